"""The import into a deployment in earnest.

PostgreSQL, two worker processes, one of which dies now and then.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import OKPKey

from engines.client import Engines as Client
from engines.client import UserIdentity
from engines.clock import SystemClock
from tests.cli.conftest import Engines, run_engines, start_engines
from tests.cli.test_import_survives import FINISH_S, synthetic
from tests.servers.leash import LeashedProcess, descendants

ISSUER, AUDIENCE, TENANT = "urn:test:issuer", "engines", "t_earnest"
WORKERS = 2
START_S = 60.0
KEY = OKPKey.generate_key("Ed25519", auto_kid=True)


class Deployment:
    """`engines serve` with several workers, a tenant, and a member's token."""

    def __init__(self, control_plane: str, admin_key: str, tmp_path: Path) -> None:
        self._log = tmp_path / "serve.log"
        command = [sys.executable, "-m", "engines", "serve", "--control-plane", control_plane]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ENGINES_")}
        self.process = LeashedProcess(
            [*command, "--port", "0", "--workers", str(WORKERS)], env=environment, log=self._log
        )
        self.url = self._wait_for(lambda: re.search(r"listens on (\S+)", self.log)).group(1)
        self.admin = Client(self.url, admin_key)
        self.token = self._prepare(tmp_path)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _wait_for(self, found: Callable[[], re.Match[str] | None]) -> re.Match[str]:
        deadline_s = time.monotonic() + START_S
        while (match := found()) is None:
            assert self.process.is_running(), self.log[-2_000:]
            assert time.monotonic() < deadline_s, self.log[-2_000:]
            time.sleep(0.02)
        return match

    def _prepare(self, tmp_path: Path) -> str:
        jwks = tmp_path / "jwks.json"
        public = {**KEY.as_dict(private=False), "alg": "EdDSA", "use": "sig"}
        jwks.write_text(json.dumps({"keys": [public]}))
        self.admin.issuers.put("test", issuer=ISSUER, audience=AUDIENCE, jwks_file=str(jwks))
        self.admin.tenants.create(TENANT, name="Earnest", mode="saas", default_surface_id="chat")
        self.admin.users.create("u_ada", identities=[UserIdentity(ISSUER, "ada")])
        self.admin.members.put(TENANT, "u_ada", role="member")
        now = int(SystemClock().now())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 3_600}
        token = jwt.encode({"alg": "EdDSA", "kid": KEY.kid}, claims, KEY, algorithms=["EdDSA"])
        with Client(self.url, token) as ada:
            ada.members.accept(TENANT, "u_ada")
        return token

    def workers(self) -> list[int]:
        """Their process ids: children of the server that run its code, not multiprocessing's helper."""
        found: list[int] = []
        for pid in descendants(self.process.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if "spawn_main" in command:
                found.append(pid)
        return found

    def close(self) -> None:
        self.admin.close()
        self.process.kill(30)


@pytest.fixture
def deployment(postgres_database: str, engines: Engines, tmp_path: Path) -> Iterator[Deployment]:
    made = engines("init", "--control-plane", postgres_database)
    assert made.code == 0, made.err
    key = re.search(r"ek_\S+", made.out)
    assert key is not None, made.out
    running = Deployment(postgres_database, key.group(), tmp_path)
    yield running
    running.close()


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_import_survives_workers_that_are_killed(deployment: Deployment, tmp_path: Path) -> None:
    file = synthetic(tmp_path)
    at = ("--url", deployment.url, "--token", deployment.token, "--dataset", "workers", "--json")
    process = start_engines("import", "agent-runs", file, *at)
    killed: list[int] = []
    try:
        while process.poll() is None and len(killed) < 3:
            time.sleep(0.4)
            living = [pid for pid in deployment.workers() if pid not in killed]
            if len(living) == WORKERS and process.poll() is None:
                os.kill(living[0], signal.SIGKILL)
                killed.append(living[0])
        out, err = process.communicate(timeout=FINISH_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 0, out + err
    assert killed, "the import was over before a worker was killed"
    done = run_engines("import", "agent-runs", file, *at, "--verify")
    assert done.code == 0, done.out[-3_000:]
    assert done.json["written"] == {}
    assert done.json["verified"]["difference_count"] == 0
    assert "Traceback" not in deployment.log
