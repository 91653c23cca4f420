"""A deployment in the test's own process, served on a port: for what nobody can bring about from outside."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from joserfc import jwt
from joserfc.jwk import OKPKey

import engines
from engines.api.app import ROUTERS, create_app
from engines.api.endpoint import Router
from engines.clock import SystemClock
from engines.control.bootstrap import Seed, apply_seed, bootstrap
from engines.wiring import open_control_plane
from tests.api.client import Client
from tests.api.serving import Server, serving

ISSUER = "urn:test:issuer"
KEY = OKPKey.generate_key("Ed25519", auto_kid=True)
TOKEN_S = 30 * 24 * 3600


class ClockAhead(SystemClock):
    """The system's clock, set forward by hand."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


class Inside(msgspec.Struct, frozen=True):
    """What such a test needs. `member` has a client and a token."""

    engines: Any
    server: Server
    port: int
    clock: ClockAhead
    client: Client
    token: str

    @property
    def member(self) -> Client:
        return self.client.bearing(self.token)


@asynccontextmanager
async def deployed(directory: Path, *, routers: Sequence[Router] = ROUTERS) -> AsyncIterator[Inside]:
    """A lab with the tenant t_a and its member u_a."""
    url = f"sqlite://{directory}/control.db"
    jwks = directory / "jwks.json"
    jwks.write_text(json.dumps({"keys": [{**KEY.as_dict(private=False), "alg": "EdDSA", "use": "sig"}]}))
    clock = ClockAhead()
    async with open_control_plane(url) as control:
        await bootstrap(control.store, control.record, host_local=True)
        seed: Seed = {
            "tenants": [{"tenant_id": "t_a", "name": "A", "mode": "lab", "default_surface_id": "chat"}],
            "users": [{"user_id": "u_a", "identities": [{"iss": ISSUER, "sub": "u_a"}]}],
            "memberships": [
                {"tenant_id": "t_a", "user_id": "u_a", "role": "member", "status": "accepted"},
            ],
            "issuers": [
                {"issuer_id": "test", "issuer": ISSUER, "audience": "engines", "jwks_file": str(jwks)}
            ],
        }
        await apply_seed(control.store, seed)
    now = int(clock.now())
    claims = {"iss": ISSUER, "aud": "engines", "sub": "u_a", "iat": now, "exp": now + TOKEN_S}
    token = jwt.encode({"alg": "EdDSA", "kid": KEY.kid}, claims, KEY, algorithms=["EdDSA"])
    async with (
        engines.open(url, clock=clock) as opened,
        serving(create_app(opened, routers=routers), lifespan="off") as (server, port),
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        yield Inside(opened, server, port, clock, client, token)
