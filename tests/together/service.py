"""`engines init` and `engines serve` as processes of their own, on a control plane anywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from engines.identity.keys import parse_key
from tests.servers.leash import LeashedProcess

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
COMMAND_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.02


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Service:
    """One control plane, its server, and the command line as a client of it.

    `secrets` are environment variables that the server alone has.
    """

    def __init__(self, home: Path, control_plane: str, secrets: dict[str, str]) -> None:
        self._log = home / "serve.log"
        self._control_plane = control_plane
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("ENGINES_")
        }
        self._secrets = secrets
        self._process: LeashedProcess | None = None
        self._url = ""
        self.admin_key = ""
        self.said: list[str] = []

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def init(self) -> None:
        """The first time; the admin's key is kept."""
        done = self._run("init", "--control-plane", self._control_plane, environment=self._environment)
        assert done.code == 0, done.err
        (self.admin_key,) = [line for line in done.out.splitlines() if parse_key(line) is not None]

    def start(self) -> None:
        """Returns once it listens."""
        said = len(self.log)
        command = [sys.executable, "-m", "engines", "serve", "--control-plane", self._control_plane]
        environment = {**self._environment, **self._secrets}
        self._process = LeashedProcess([*command, "--port", "0"], env=environment, log=self._log)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not (listening := re.findall(r"Engines listens on (\S+)", self.log[said:])):
            assert self._process.is_running(), self.log[-2000:]
            assert time.monotonic() < deadline_s, self.log[-2000:]
            time.sleep(POLL_S)
        self._url = listening[-1]

    @property
    def url(self) -> str:
        return self._url

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill(STOP_TIMEOUT_S)
            self._process = None

    def engines(self, *arguments: str, key: str | None = None) -> Done:
        """One command, as the first admin or with another key."""
        client = {"ENGINES_URL": self._url, "ENGINES_TOKEN": key or self.admin_key}
        done = self._run(*arguments, environment={**self._environment, **client})
        self.said += [done.out, done.err]
        return done

    def _run(self, *arguments: str, environment: dict[str, str]) -> Done:
        ended = subprocess.run(
            [sys.executable, "-m", "engines", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        return Done(ended.returncode, ended.stdout, ended.stderr)
