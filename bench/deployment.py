"""A deployment for measuring: a control plane with one tenant, one member, their token, and a server process.

Owns seeding, the issuer's key, the child process and its memory. Leaves requests to `load.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
from joserfc import jwt
from joserfc.jwk import OKPKey

from engines.clock import SystemClock
from engines.control.bootstrap import Seed, apply_seed, bootstrap
from engines.wiring import open_control_plane

ISSUER: Final = "urn:bench:issuer"
AUDIENCE: Final = "engines"
TENANT: Final = "t_bench"
USER: Final = "u_bench"
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0


class Deployment(msgspec.Struct, frozen=True):
    """An initialised control plane, and the token of a member of its tenant, or of each of its tenants."""

    control_plane: str
    token: str
    tokens: dict[str, str] = {}


def prepare(control_plane: str, directory: Path, *, others: Sequence[str] = ()) -> Deployment:
    """`control_plane`: the URL of an empty database, in which the tenants' records will lie as well.

    `others`: tenants beside the one, with a member of their own.
    """
    key = OKPKey.generate_key("Ed25519", auto_kid=True)
    public = {**key.as_dict(private=False), "alg": "EdDSA", "use": "sig"}
    jwks_file = directory / "jwks.json"
    jwks_file.write_text(json.dumps({"keys": [public]}))
    users = {TENANT: USER, **{tenant: f"u_{tenant}" for tenant in others}}
    asyncio.run(_seed(control_plane, jwks_file, users))
    now = int(SystemClock().now())
    tokens = {}
    for tenant, user in users.items():
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": user, "iat": now, "exp": now + 86_400}
        header = {"alg": "EdDSA", "kid": key.kid}
        tokens[tenant] = jwt.encode(header, claims, key, algorithms=["EdDSA"])
    return Deployment(control_plane, tokens[TENANT], tokens)


async def _seed(control_plane: str, jwks_file: Path, users: Mapping[str, str]) -> None:
    async with open_control_plane(control_plane) as control:
        await bootstrap(control.store, control.record, host_local=control.host_local)
        mode = "lab" if control.host_local else "saas"
        seed: Seed = {
            "tenants": [
                {"tenant_id": tenant, "name": "Bench", "mode": mode, "default_surface_id": "chat"}
                for tenant in users
            ],
            "users": [
                {"user_id": user, "identities": [{"iss": ISSUER, "sub": user}]} for user in users.values()
            ],
            "memberships": [
                {"tenant_id": tenant, "user_id": user, "role": "member", "status": "accepted"}
                for tenant, user in users.items()
            ],
            "issuers": [
                {
                    "issuer_id": "bench",
                    "issuer": ISSUER,
                    "audience": AUDIENCE,
                    "jwks_file": str(jwks_file),
                }
            ],
        }
        await apply_seed(control.store, seed)


class ServerProcess:
    """A child that serves HTTP on a port of its choice and says which on its first line.

    Its further output goes to a file, as a service's does.
    """

    def __init__(
        self,
        arguments: list[str],
        *,
        directory: Path,
        environment: dict[str, str] | None = None,
        first_input: str | None = None,
    ) -> None:
        log = (directory / "server.log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdin is not None
        if first_input is not None:
            self._process.stdin.write(first_input.encode() + b"\n")
        self._process.stdin.close()
        try:
            self.port = self._read_port(directory)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident_bytes(self) -> int:
        """What of its memory is in RAM, shared libraries included."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the server has no memory: it ended")

    def cpu_seconds(self) -> float:
        """Processor time that its threads have taken, to the nanosecond."""
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read_port(self, directory: Path) -> int:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        line = self._process.stdout.readline().decode() if ready else ""
        _, found, rest = line.partition("127.0.0.1:")
        if not found:
            words = (directory / "server.log").read_text(errors="replace")[-2_000:]
            raise RuntimeError(f"the server did not start: {line}{words}")
        return int(rest.split()[0])


def engines_server(deployment: Deployment, directory: Path) -> ServerProcess:
    """`engines serve`, one worker."""
    return ServerProcess(
        ["-m", "engines", "serve", "--port", "0"],
        directory=directory,
        environment={"ENGINES_CONTROL_PLANE": deployment.control_plane},
    )
