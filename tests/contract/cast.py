"""Who calls: users that sign in with an issuer of the tests' own, tenants with a user in each role, API keys.

Everything is made through the API itself, by the lab's system admin, so that each test has its own tenant,
users and ids and owes nothing to another.
"""

import base64
import itertools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.contract.wire import Caller, Reply
from tests.servers.lab import LabServer

ROLES = ("viewer", "member", "agent", "admin", "owner")
ISSUER = "https://people.example"
AUDIENCE = "contract"
TOKEN_S = 3600
# A change is adopted within a second; a machine that pauses adds to what a test measures.
ADOPTION_S = 3.0
# Whatever somebody waits for is there in milliseconds: this only ends a test that would hang.
PATIENCE_S = 15.0
POLL_S = 0.03

_Found = TypeVar("_Found")
_numbers = itertools.count(1)


def fresh(stem: str) -> str:
    """A name that no other test of this run uses."""
    return f"{stem}-{next(_numbers)}"


class Cast:
    """Everybody who calls one server, and the means to make more of them."""

    def __init__(self, lab: LabServer, directory: Path) -> None:
        self.lab = lab
        self.url = lab.url
        self.directory = directory
        self.nobody = Caller(self.url, None, {})
        self.system_admin = Caller(self.url, lab.token("system_admin"), {})
        self.outsider = Caller(self.url, lab.token(None), {})
        self.demo = {role: Caller(self.url, lab.token(role), {}) for role in ("owner", "member", "viewer")}
        self._key = Ed25519PrivateKey.generate()
        self._trust()

    def _trust(self) -> None:
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        jwk = {
            "kty": "OKP",
            "crv": "Ed25519",
            "alg": "EdDSA",
            "use": "sig",
            "kid": "contract",
            "x": _b64(public),
        }
        file = self.directory / "people.jwks"
        file.write_text(json.dumps({"keys": [jwk]}))
        body = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(file)}
        reply = self.system_admin.put("/issuers/people", body)
        assert reply.status in (200, 201), reply

    def token(self, sub: str, claims: Mapping[str, Any] | None = None) -> str:
        """A token of the tests' issuer for this subject; a claim of None is left out."""
        now = int(time.time())
        said = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": sub,
            "iat": now,
            "exp": now + TOKEN_S,
            **(claims or {}),
        }
        return self.signed({name: value for name, value in said.items() if value is not None})

    def signed(self, claims: Mapping[str, Any]) -> str:
        header = {"alg": "EdDSA", "typ": "JWT", "kid": "contract"}
        signed = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(claims).encode())}"
        return f"{signed}.{_b64(self._key.sign(signed.encode()))}"

    def as_user(self, user_id: str, claims: Mapping[str, Any] | None = None) -> Caller:
        """The user, signed in; users made here have their id as subject."""
        return Caller(self.url, self.token(user_id, claims), {})

    def user(self, stem: str = "u") -> str:
        """A new user who belongs to no tenant."""
        user_id = fresh(f"u_{stem}")
        body = {"user_id": user_id, "identities": [{"iss": ISSUER, "sub": user_id}]}
        made(self.system_admin.post("/users", body))
        return user_id

    def tenant(self, *roles: str, **fields: Any) -> "Tenant":
        """A new tenant, with a user in each of the roles."""
        tenant_id = f"t_{next(_numbers)}"
        body = {
            "tenant_id": tenant_id,
            "name": "A tenant",
            "mode": "lab",
            "default_surface_id": "chat",
            **fields,
        }
        made(self.system_admin.post("/tenants", body))
        tenant = Tenant(self, tenant_id)
        for role in roles:
            tenant.join(self.user(role), role)
        return tenant


class Tenant:
    """One tenant and its people; `tenant["owner"]` is the first who joined in that role."""

    def __init__(self, cast: Cast, tenant_id: str) -> None:
        self.cast = cast
        self.tenant_id = tenant_id
        self.users: dict[str, str] = {}
        self.operator = cast.system_admin.having(x_tenant_id=tenant_id)

    def __getitem__(self, role: str) -> Caller:
        return self.cast.as_user(self.users[role])

    def path(self, rest: str = "") -> str:
        return f"/tenants/{self.tenant_id}{rest}"

    def invite(self, user_id: str, role: str) -> Reply:
        return self.operator.put(self.path(f"/members/{user_id}"), {"role": role})

    def join(self, user_id: str, role: str) -> Caller:
        """Invited, and accepted by themselves."""
        made(self.invite(user_id, role))
        reply = self.cast.as_user(user_id).post(self.path(f"/members/{user_id}/accept"))
        assert reply.status == 200, reply
        self.users.setdefault(role, user_id)
        return self.cast.as_user(user_id)

    def settled(self, changes: int) -> "Tenant":
        """Itself, once its spine was told of so many changes: none comes between a test's events then."""
        reader = next(iter(self.users))
        until(lambda: len(self[reader].items("/events?event_type=audit")) >= changes)
        return self

    def key(self, user_id: str, role: str) -> Caller:
        """A new API key of this user in this role."""
        reply = made(self.operator.post("/keys", {"user_id": user_id, "role": role}))
        return Caller(self.cast.url, reply.body["key"], {})


def sqlite_backend(cast: Cast, offered_to: Any = "*", **fields: Any) -> str:
    """A second SQLite backend at a path of its own; its id."""
    name = fresh("b")
    body = {
        "driver": "sqlite",
        "class": "host_local",
        "config": {"path": str(cast.directory / f"{name}.db")},
        "offered_to": offered_to,
        **fields,
    }
    made(cast.system_admin.put(f"/backends/{name}", body, if_none_match="*"))
    return name


def until(condition: Callable[[], _Found]) -> _Found:
    """Poll until it is true. Whoever promises how soon measures that beside it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(POLL_S)


def made(reply: Reply) -> Reply:
    assert reply.status == 201, reply
    return reply


def _b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
