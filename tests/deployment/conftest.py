"""Whole deployments in this process, on a control plane of each kind."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import OKPKey

import engines
from engines.clock import SystemClock
from engines.control.bootstrap import Seed, apply_seed, bootstrap
from engines.wiring import open_control_plane

ISSUER = "urn:test:issuer"
AUDIENCE = "engines"
KEY = OKPKey.generate_key("Ed25519", auto_kid=True)
USERS = ("owner", "member", "viewer", "admin", "outsider")

Open = Callable[[], Awaitable[engines.Engines]]


def token(user_id: str, **claims: object) -> str:
    """A token of the test's own issuer, valid for an hour."""
    now = int(SystemClock().now())
    body = {"iss": ISSUER, "aud": AUDIENCE, "sub": user_id, "iat": now, "exp": now + 3600, **claims}
    return jwt.encode({"alg": "EdDSA", "kid": KEY.kid}, body, KEY, algorithms=["EdDSA"])


def seed(mode: str, jwks_file: Path) -> Seed:
    """Two tenants; `owner`, `member` and `viewer` belong to t_a, `admin` to t_system."""
    return {
        "tenants": [
            {"tenant_id": tenant_id, "name": tenant_id, "mode": mode, "default_surface_id": "chat"}
            for tenant_id in ("t_a", "t_b")
        ],
        "users": [{"user_id": name, "identities": [{"iss": ISSUER, "sub": name}]} for name in USERS],
        "memberships": [
            {"tenant_id": "t_system", "user_id": "admin", "role": "admin", "status": "accepted"},
            *(
                {"tenant_id": "t_a", "user_id": role, "role": role, "status": "accepted"}
                for role in ("owner", "member", "viewer")
            ),
        ],
        "issuers": [
            {"issuer_id": "test", "issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(jwks_file)}
        ],
    }


@pytest.fixture
def jwks_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [{**KEY.as_dict(private=False), "alg": "EdDSA", "use": "sig"}]}))
    return path


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgres"])
async def control_plane_url(request: pytest.FixtureRequest, tmp_path: Path, jwks_file: Path) -> str:
    """An initialised control plane: a lab on SQLite, a deployment in earnest on PostgreSQL."""
    if request.param == "sqlite":
        url = f"sqlite://{tmp_path}/control.db"
    else:
        url = str(request.getfixturevalue("postgres_database"))
    async with open_control_plane(url) as control:
        await bootstrap(control.store, control.record, host_local=control.host_local)
        await apply_seed(control.store, seed("lab" if control.host_local else "saas", jwks_file))
    return url


@pytest.fixture
async def open_deployment(control_plane_url: str, stack: AsyncExitStack) -> Open:
    """Each call is another process on the one control plane."""

    async def open_another() -> engines.Engines:
        return await stack.enter_async_context(engines.open(control_plane_url))

    return open_another
