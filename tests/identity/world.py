"""A control plane on a real SQLite file with a few people in it, and the one way to their contexts.

Owns the cast: who belongs where, which issuer vouches for them, and tokens in their names. Time moves by
hand; a change of the control plane is adopted at once, as it is within a second in a process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from engines.control.bootstrap import bootstrap
from engines.control.directory import Directory
from engines.control.records import (
    ApiKey,
    App,
    Backend,
    Issuer,
    Membership,
    Mode,
    Project,
    Surface,
    SurfaceDefaults,
    Tenant,
    User,
    UserIdentity,
)
from engines.control.store import PARTITION, Actor, ControlStore, Table
from engines.control.tables import (
    APPS,
    ISSUERS,
    KEYS,
    MEMBERSHIPS,
    MODES,
    PROJECTS,
    SURFACES,
    TENANTS,
    USERS,
)
from engines.core.documents import Documents
from engines.core.outbox import Backlog
from engines.core.secrets import Secrets
from engines.drivers.registry import document_driver, secret_sources
from engines.identity.context import Contexts
from engines.identity.keys import mint_key
from engines.identity.tokens import TokenVerifier
from engines.ids import Ids
from engines.testing.clock import ManualClock
from engines.testing.faults import FaultyDriver
from tests.identity.signing import PrivateKey, ed_key, jwk, jwks, token

ISSUER: Final = "https://issuer.test/"
AUDIENCE: Final = "engines"
HOUR_S: Final = 3600

ACTOR: Final = Actor(user_id="test", tenant_id="t_system", request_id="test", tenants=("t_system",))
# user -> its memberships: (tenant, role, status)
PEOPLE: Final[Mapping[str, tuple[tuple[str, str, str], ...]]] = {
    "ada": (("t_one", "owner", "accepted"),),
    "bob": (("t_one", "viewer", "accepted"), ("t_two", "admin", "accepted")),
    "eve": (("t_two", "member", "accepted"),),
    "ivy": (("t_one", "member", "invited"),),
    "rex": (("t_one", "member", "revoked"),),
    "sam": (("t_system", "admin", "accepted"),),
    "sue": (("t_system", "owner", "accepted"), ("t_one", "member", "accepted")),
    "vic": (("t_system", "viewer", "accepted"),),
    "zoe": (),
}


class World:
    """One deployment's control plane and identity."""

    def __init__(self, directory_path: Path) -> None:
        self.path = directory_path
        self.clock = ManualClock()
        self.ids = Ids(self.clock)
        module = document_driver("sqlite")
        config = msgspec.convert({"path": str(self.path / "control.db")}, module.Config)
        self.driver = FaultyDriver(module.open_driver(config, {}, self.clock))
        self.documents = Documents(self.driver, ids=self.ids, clock=self.clock)
        self.store = ControlStore(self.documents, Backlog(self.documents, PARTITION, self.clock))
        self.directory = Directory(self.store, self.clock)
        self.secrets = Secrets(secret_sources(file=str(self.path / "secrets.json")))
        self.verifier = TokenVerifier(self.secrets, self.clock)
        self.contexts = Contexts(self.directory, self.verifier, self.ids, self.clock)
        self.key: PrivateKey = ed_key()
        self.jwks_path = self.path / "jwks.json"

    async def build(self) -> None:
        """Make the cast; the issuer's record comes with `open`, because its key file is each test's own."""
        await self.driver.provision()
        control = Backend(backend_id="control", driver="sqlite", backend_class="host_local")
        await bootstrap(self.store, control, host_local=False)
        await self._people()
        await self._products()

    async def open(self) -> None:
        """On a copy of what `build` made."""
        self.store.on_change = self.directory.refresh
        await self.directory.refresh()
        self.publish(jwk(self.key, kid="k1"))
        await self.put_issuer()

    async def close(self) -> None:
        await self.contexts.close()
        await self.documents.close()

    # --- changing the control plane ---

    async def put(self, table: Table[Any], ids: list[str], record: Any) -> None:
        """Create or replace one record, and have it adopted."""

        async def build(_: Any) -> Any:
            return record

        await self.store.put(table, ids, build, actor=ACTOR)

    async def put_issuer(self, **changes: Any) -> None:
        source = {} if {"jwks_url", "hs256_secret"} & changes.keys() else {"jwks_file": str(self.jwks_path)}
        issuer = {"issuer_id": "main", "issuer": ISSUER, "audience": AUDIENCE, **source, **changes}
        await self.put(ISSUERS, [issuer["issuer_id"]], Issuer(**issuer))

    async def join(self, tenant_id: str, user_id: str, role: str, status: str = "accepted") -> None:
        membership = Membership(tenant_id=tenant_id, user_id=user_id, role=role, status=status)  # type: ignore[arg-type]
        await self.put(MEMBERSHIPS, [tenant_id, user_id], membership)

    async def mint(self, tenant_id: str, user_id: str, role: str, **bound: Any) -> str:
        """An API key as it is shown once."""
        minted = mint_key(self.ids)
        record = ApiKey(
            key_id=minted.key_id,
            tenant_id=tenant_id,
            user_id=user_id,
            role=role,
            **bound,
            secret_sha256=minted.secret_sha256,
        )
        await self.put(KEYS, [minted.key_id], record)
        return minted.key

    def publish(self, *keys: Mapping[str, Any]) -> None:
        """Replace the issuer's key file, as a careful issuer does: whole."""
        temporary = self.jwks_path.with_suffix(".new")
        temporary.write_text(jwks(*keys))
        temporary.replace(self.jwks_path)

    async def pass_time(self, seconds: float) -> None:
        """Time passes, and the control plane was heard from meanwhile."""
        self.clock.advance(seconds)
        await self.directory.refresh()

    # --- tokens ---

    def claims(self, user_id: str = "ada", /, **changes: Any) -> dict[str, Any]:
        """A good token's claims; a change to None leaves a claim out."""
        now = int(self.clock.now())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": f"sub-{user_id}", "iat": now, "exp": now + HOUR_S}
        return {name: value for name, value in {**claims, **changes}.items() if value is not None}

    def token(self, user_id: str = "ada", /, **claims: Any) -> str:
        return token("EdDSA", self.key, self.claims(user_id, **claims), kid="k1")

    # --- the cast ---

    async def _people(self) -> None:
        for tenant_id, mode in (("t_one", "saas"), ("t_two", "enterprise"), ("t_lab", "lab")):
            tenant = Tenant(
                tenant_id=tenant_id,
                name=tenant_id,
                mode=mode,
                envs=("prod", "dev"),
                default_env="prod",
                default_surface_id="chat",
            )
            await self.put(TENANTS, [tenant_id], tenant)
        for user_id, memberships in PEOPLE.items():
            identity = UserIdentity(ISSUER, f"sub-{user_id}")
            await self.put(USERS, [user_id], User(user_id=user_id, identities=(identity,)))
            for tenant_id, role, status in memberships:
                await self.join(tenant_id, user_id, role, status)

    async def _products(self) -> None:
        await self.put(MODES, ["cloud_only"], Mode(mode="cloud_only", allowed_classes=("cloud",)))
        for surface in (
            Surface(surface_id="squared2", os_id="engines", name="SQUARED²", aliases=("SQUARED²", "Sq 2")),
            Surface(surface_id="strict", os_id="engines", name="Strict", mode="cloud_only"),
            Surface(surface_id="wide", os_id="engines", name="Wide", mode="lab"),
            Surface(
                surface_id="desk", os_id="engines", name="Desk", defaults=SurfaceDefaults(app_id="phone")
            ),
        ):
            await self.put(SURFACES, [surface.surface_id], surface)
        for app_id, surface_id in (("phone", "desk"), ("mail", "desk"), ("pen", "chat")):
            await self.put(APPS, [app_id], App(app_id=app_id, surface_id=surface_id, name=app_id))
        for tenant_id, project in (
            ("t_one", Project(project_id="plain", name="Plain")),
            ("t_one", Project(project_id="penned", app_id="pen", name="Penned")),
            ("t_one", Project(project_id="mailed", app_id="mail", name="Mailed")),
            ("t_two", Project(project_id="theirs", name="Theirs")),
        ):
            await self.put(PROJECTS, [tenant_id, project.project_id], project)


def without(claims: Mapping[str, Any], *names: str) -> str:
    """The claims as JSON text, some left out."""
    return json.dumps({name: value for name, value in claims.items() if name not in names})
