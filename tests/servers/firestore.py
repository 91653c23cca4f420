"""A real Firestore emulator, made durable, on free loopback ports, for tests and measurements.

Owns one server of two processes: Google's emulator, as the Debian package google-cloud-cli-firestore-emulator
brings it, and the journaling pass-through in front of it; their files, ports, life and deaths. Java is run
directly, because a signal to the package's script ends the shell and not the emulator. Leaves the journal to
`firestore_journal.py`.
"""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.leash import LeashedProcess
from tests.servers.ports import free_port

PACKAGE = "google-cloud-cli-firestore-emulator"
MAIN_CLASS = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
# A benchmark of a few minutes fills 256 MiB: the emulator keeps everything, former versions too.
HEAP = "-Xmx1g"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
HTTP_TIMEOUT_S = 30.0
POLL_S = 0.05
START_TRIES_MAX = 5
ROOT = Path(__file__).parents[2]


class FirestoreUnavailableError(RuntimeError):
    """The emulator cannot be run on this machine; the text says why."""


class FirestoreServer:
    """One server with one journal. `start` after `stop` or `kill9` serves the same data on the same port.

    Not for several threads at once. Every method blocks, by its named limit at most.
    """

    project = "demo-engines"
    database = "(default)"

    def __init__(self) -> None:
        self._home: Path | None = None
        self._emulator: LeashedProcess | None = None
        self._front: LeashedProcess | None = None
        self._emulator_port = 0
        self._port = 0

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
    def endpoint(self) -> str:
        """Where clients connect: the pass-through."""
        return f"127.0.0.1:{self._port}"

    @property
    def emulator_endpoint(self) -> str:
        """The emulator itself, for measurements; what is written here does not outlive it."""
        return f"127.0.0.1:{self._emulator_port}"

    @property
    def log(self) -> str:
        """All that both have written to their log so far."""
        return self._log().read_text(errors="replace")

    def is_running(self) -> bool:
        return all(process is not None and process.is_running() for process in (self._emulator, self._front))

    def start(self) -> None:
        """Start and wait until it answers. Raises `FirestoreUnavailableError`, `TimeoutError`."""
        if self.is_running():
            return
        self.kill9()
        jar = _jar()
        if self._home is None:
            self._home = Path(tempfile.mkdtemp(prefix="engines-firestore-"))
        try:
            self._start_emulator(jar)
            self._start_front()
        except BaseException:
            self.kill9()
            raise

    def stop(self) -> None:
        """There is no orderly end that would differ: everything acknowledged is in the journal."""
        self.kill9()

    def kill9(self) -> None:
        """SIGKILL both processes, and wait until they are really gone."""
        for process in (self._front, self._emulator):
            if process is not None:
                process.kill(STOP_TIMEOUT_S)
        self._front = self._emulator = None

    def clear(self) -> None:
        """Remove every document, from the journal too. Nobody may be writing."""
        self._request("DELETE", f"/emulator/v1/projects/{self.project}/databases/{self.database}/documents")
        os.truncate(self._journal(), 0)

    def close(self) -> None:
        """Stop and remove every file. The server can be started again, empty."""
        try:
            self.kill9()
        finally:
            if self._home is not None:
                shutil.rmtree(self._home, ignore_errors=True)
                self._home = None

    def _start_emulator(self, jar: Path) -> None:
        java = shutil.which("java") or ""

        def launch(port: int) -> LeashedProcess:
            return self._leashed(
                [java, HEAP, "-cp", str(jar), MAIN_CLASS, "start", "--host=127.0.0.1", f"--port={port}"]
            )

        def answers(port: int) -> bool:
            self._emulator_port = port
            return self._request("GET", "/") == http.HTTPStatus.OK

        self._emulator, self._emulator_port = _launched(launch, answers, self._emulator_port, self._log)

    def _start_front(self) -> None:
        def launch(port: int) -> LeashedProcess:
            arguments = [str(port), self.emulator_endpoint, str(self._journal())]
            return self._leashed([sys.executable, "-m", "tests.servers.firestore_journal", *arguments])

        def answers(port: int) -> bool:
            with socket.create_connection(("127.0.0.1", port), timeout=HTTP_TIMEOUT_S):
                return True

        self._front, self._port = _launched(launch, answers, self._port, self._log)

    def _leashed(self, argv: Sequence[str]) -> LeashedProcess:
        env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        return LeashedProcess(argv, env=env, log=self._log(), cwd=str(ROOT), remove=self._started_home())

    def _request(self, method: str, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._emulator_port, timeout=HTTP_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request(method, path)
            return connection.getresponse().status

    def _started_home(self) -> Path:
        assert self._home is not None, "start() comes first"
        return self._home

    def _log(self) -> Path:
        return self._started_home() / "server.log"

    def _journal(self) -> Path:
        return self._started_home() / "journal"


def _launched(
    launch: Callable[[int], LeashedProcess],
    answers: Callable[[int], bool],
    port: int,
    log: Callable[[], Path],
) -> tuple[LeashedProcess, int]:
    """The process and its port: the same as before, or on the first start one that nobody had taken."""
    for chosen in [port] if port else (free_port() for _ in range(START_TRIES_MAX)):
        process = launch(chosen)
        try:
            if _wait_until(process, lambda chosen=chosen: answers(chosen)):  # type: ignore[misc]
                return process, chosen
        except BaseException:
            process.kill(STOP_TIMEOUT_S)
            raise
    raise FirestoreUnavailableError(f"it did not start: {log().read_text(errors='replace')[-2000:]}")


def _wait_until(process: LeashedProcess, answers: Callable[[], bool]) -> bool:
    """Whether the process answered; False when it ended. Raises `TimeoutError`."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if not process.is_running():
            process.wait(STOP_TIMEOUT_S)
            return False
        with contextlib.suppress(OSError, http.client.HTTPException):
            if answers():
                return True
        time.sleep(POLL_S)
    raise TimeoutError(f"the Firestore emulator was not ready within {START_TIMEOUT_S:.0f} s")


def _jar() -> Path:
    """The emulator as Debian installed it."""
    if shutil.which("java") is None:
        raise FirestoreUnavailableError("there is no java")
    try:
        listed = subprocess.run(
            ["dpkg", "-L", PACKAGE], capture_output=True, text=True, check=True, timeout=HTTP_TIMEOUT_S
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise FirestoreUnavailableError(f"the package {PACKAGE} is not installed") from error
    for line in listed.splitlines():
        if line.endswith(".jar"):
            return Path(line)
    raise FirestoreUnavailableError(f"the package {PACKAGE} holds no jar")
