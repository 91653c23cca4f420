"""A lab served by a process of its own, for tests that stop it, kill it and start it again."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.servers.leash import LeashedProcess

START_S = 30.0
STOP_S = 15.0


class LabServer:
    """`engines lab` on one directory; the port is kept once it was chosen."""

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        self.directory = directory
        self.output = directory.with_name(directory.name + ".out")
        self._port = port
        self._process: LeashedProcess | None = None

    def start(self) -> None:
        """Returns once it listens. Raises AssertionError, with its output, where it does not come up."""
        said = self.output.read_text().count("Three things to try") if self.output.exists() else 0
        program = str(Path(sys.executable).with_name("engines"))
        argv = [program, "lab", "--dir", str(self.directory), "--port", str(self._port)]
        self._process = LeashedProcess(argv, env=dict(os.environ), log=self.output)
        deadline = time.monotonic() + START_S
        while self.output.read_text().count("Three things to try") == said:
            assert self._process.is_running(), self.output.read_text()[-4000:]
            assert time.monotonic() < deadline, self.output.read_text()[-4000:]
            time.sleep(0.02)
        self._port = int(self.url.rsplit(":", 1)[1])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it as a person would; returns its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(STOP_S)

    def kill9(self) -> None:
        assert self._process is not None
        self._process.kill(STOP_S)

    def close(self) -> None:
        if self._process is not None and self._process.is_running():
            with contextlib.suppress(ProcessLookupError):
                self._process.kill(STOP_S)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def file(self) -> dict[str, Any]:
        """`lab.json`."""
        return json.loads((self.directory / "lab.json").read_text())  # type: ignore[no-any-return]

    @property
    def url(self) -> str:
        return str(self.file["url"])

    def token(self, role: str | None) -> str:
        """The token of the user with this role in lab.json."""
        (token,) = [user["token"] for user in self.file["users"].values() if user["role"] == role]
        return str(token)
