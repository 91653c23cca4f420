"""A lab as a process of its own, for tests that stop it, kill it and start it again.

Owns one `engines lab` on one directory. It is leashed: whoever kills the tests leaves no server behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from engines.catalogue import CONTROL_PLANE, ROUTING_REGISTRY, SERVED
from engines.cli.connection import OWNER, SYSTEM_ADMIN, LabFile, read_lab
from engines.client import Engines
from engines.control.records import Backend
from tests.backends import SECRET_PREFIX
from tests.servers.leash import LeashedProcess

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.01


class LabProcess:
    """Start, stop, kill. It keeps its port from one start to the next."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._log = directory.with_name(f"{directory.name}.log")
        self._port = 0
        self._process: LeashedProcess | None = None

    @property
    def file(self) -> LabFile:
        return read_lab(self.directory)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Returns once it listens."""
        said = self.log.count("Engines listens on")
        command = [sys.executable, "-m", "engines", "lab", "--dir", str(self.directory)]
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ENGINES_") or name.startswith(SECRET_PREFIX)
        }
        self._process = LeashedProcess([*command, "--port", str(self._port)], env=environment, log=self._log)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self.log.count("Engines listens on") == said:
            assert self._process.is_running(), f"the lab did not start: {self.log[-2000:]}"
            assert time.monotonic() < deadline_s, f"the lab is not there: {self.log[-2000:]}"
            time.sleep(POLL_S)
        self._port = urlsplit(self.file.url).port or 0

    def keep_on(self, backend: Backend) -> None:
        """From now on every kind of t_demo lies on this backend; the control plane stays where it is.

        The lab was started after the backend was made, and so inherited its secrets.
        """
        with Engines(self.file.url, self.file.user(SYSTEM_ADMIN).token) as admin:
            admin.backends.put(
                backend.backend_id,
                driver=backend.driver,
                backend_class=backend.backend_class,
                config=backend.config,
                secrets=backend.secrets,
                offered_to="*",
                if_absent=True,
            )
        with Engines(self.file.url, self.file.user(OWNER).token) as owner:
            for kind in SERVED:
                if kind.name not in (CONTROL_PLANE, ROUTING_REGISTRY):
                    owner.routes.put(kind.name, backend.backend_id, if_absent=True)
                    resolved = owner.routes.resolve(kind.name)
                    assert resolved.route.backend_id == backend.backend_id

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill(STOP_TIMEOUT_S)
        self._process = None

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        return process.wait(STOP_TIMEOUT_S)
