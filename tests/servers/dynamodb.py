"""A real server of the DynamoDB API on a free loopback port, for tests and measurements.

Owns one server: its file, its port, its life and its deaths. It is dynoxide, a single binary over SQLite that
syncs every write, from the npm registry; the package is pinned by version and by the digest of its archive,
and kept outside the checkout. Leaves tables and clients to whoever uses `endpoint`.

    with DynamoServer() as server:
        open_driver(Config(region="eu-central-1", table="documents", endpoint=server.endpoint), ...)
"""

import base64
import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.leash import LeashedProcess
from tests.servers.ports import free_port

PACKAGE = "@dynoxide/linux-x64"
VERSION = "1.2.1"
# Of the package's archive, as the registry states it in base64: a pin, no secret.
SHA512 = (
    "sBHqlxJ9ANkLluFkYRfd5r8Y0ApFew4FhOrlhgRAgD4X"  # pragma: allowlist secret
    "zEoFOukEo1nuBTQ1+jTtofqwn4NWQ2k0Tn5mNTjgUg=="  # pragma: allowlist secret
)
DOWNLOAD_TIMEOUT_S = 120.0
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.01
START_TRIES_MAX = 5


class DynamoUnavailableError(RuntimeError):
    """The server cannot be run on this machine; the text says why."""


class DynamoServer:
    """One server with one file. `start` after `stop` or `kill9` serves the same data on the same port.

    Not for several threads at once. Every method blocks, by its named limit at most.
    """

    def __init__(self) -> None:
        """Nothing is started yet. The data goes to a temporary directory, which `close` removes."""
        self._home: Path | None = None
        self._process: LeashedProcess | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() comes first"
        return self._process.pid

    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running()

    def start(self) -> None:
        """Start and wait until it answers. Raises `DynamoUnavailableError`, `TimeoutError`."""
        if self.is_running():
            return
        program = _program()
        if self._home is None:
            self._home = Path(tempfile.mkdtemp(prefix="engines-dynamodb-"))
        for _ in range(START_TRIES_MAX):
            if self._launched(program, self._home):
                return
        raise DynamoUnavailableError(f"the server did not start: {_log(self._home)[-2000:]}")

    def stop(self) -> None:
        """Ask it to end, and wait."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill(STOP_TIMEOUT_S)
        self._process = None

    def kill9(self) -> None:
        """SIGKILL, and wait until it is really gone."""
        if self._process is not None:
            self._process.kill(STOP_TIMEOUT_S)
            self._process = None

    def close(self) -> None:
        """Stop and remove every file. The server can be started again, empty."""
        try:
            self.stop()
        finally:
            if self._home is not None:
                shutil.rmtree(self._home, ignore_errors=True)
                self._home = None

    def _launched(self, program: Path, home: Path) -> bool:
        """Whether the server came up; False when its port was taken by somebody else, for another try."""
        first_start = self._port == 0
        port = self._port or free_port()
        said_before = len(_log(home))
        process = LeashedProcess(
            [
                str(program),
                "serve",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--db-path",
                str(home / "data.db"),
            ],
            env={},
            log=home / "server.log",
            remove=home,
        )
        try:
            ready = _wait_until_ready(process, home, said_before, port)
        except BaseException:
            process.kill(STOP_TIMEOUT_S)
            raise
        if ready:
            self._process, self._port = process, port
        elif not first_start:
            raise DynamoUnavailableError(f"the server did not start: {_log(home)[-2000:]}")
        return ready


def _wait_until_ready(process: LeashedProcess, home: Path, said_before: int, port: int) -> bool:
    """Whether the server said that it listens; False when it ended. Raises `TimeoutError`."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if f"listening on http://127.0.0.1:{port}" in _log(home)[said_before:]:
            return True
        if not process.is_running():
            process.wait(STOP_TIMEOUT_S)
            return False
        time.sleep(POLL_S)
    raise TimeoutError(f"the server was not ready within {START_TIMEOUT_S:.0f} s")


def _log(home: Path) -> str:
    path = home / "server.log"
    return path.read_text(errors="replace") if path.exists() else ""


def _program() -> Path:
    """The server's binary, downloaded once for this user. Raises `DynamoUnavailableError`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = cache / "engines-tests" / f"dynoxide-{VERSION}"
    if not program.exists():
        try:
            _download(program)
        except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
            raise DynamoUnavailableError(f"{PACKAGE} {VERSION} cannot be had from npm: {error}") from error
    return program


def _download(program: Path) -> None:
    """Several may download at once: each into a directory of its own, and the last rename stands."""
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as directory:
        subprocess.run(
            ["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", directory],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            check=True,
        )
        archive = next(Path(directory).glob("*.tgz"))
        if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != SHA512:
            raise DynamoUnavailableError(f"the archive of {PACKAGE} {VERSION} is not the one that is pinned")
        with tarfile.open(archive) as packed:
            packed.extract("package/dynoxide", directory, filter="data")
        binary = Path(directory) / "package" / "dynoxide"
        binary.chmod(0o755)
        binary.rename(program)
