"""Who asks, and where: the values that identity derives and every store stamps.

Owns the patterns of identifiers, the surface alias rule, the request context and the scope stamped on
records. Leaves deriving them to `identity/` and storing them to the stores.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import msgspec

from engines.errors import ContextMismatch, Forbidden, Invalid

SYSTEM_TENANT: Final = "t_system"
ADMIN_ROLES: Final = frozenset({"admin", "owner"})
TENANT_ID_MAX: Final = 64

_TENANT_ID = re.compile(r"t_[a-z0-9_-]+")
_ENV = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PATH_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127}")
_SURFACE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_tenant_id(value: str, field: str = "tenant_id") -> str:
    """`t_` and then lower-case letters, digits, `_` or `-`; at most 64 characters, matched whole."""
    if len(value) > TENANT_ID_MAX or not _TENANT_ID.fullmatch(value):
        raise Invalid("a tenant id matches ^t_[a-z0-9_-]+$ and has at most 64 characters", field=field)
    return value


def check_env(value: str, field: str = "env") -> str:
    """A lower-case letter, then at most 31 lower-case letters, digits or `-`."""
    if not _ENV.fullmatch(value):
        raise Invalid("an env matches ^[a-z][a-z0-9-]{0,31}$", field=field)
    return value


def check_id(value: str, field: str) -> str:
    """Any identifier that may stand in a path or a document key, at most 128 characters."""
    if not _PATH_ID.fullmatch(value):
        raise Invalid("an id matches ^[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127}$", field=field)
    return value


def normalise_surface(value: str, field: str = "surface_id") -> str:
    """The one id that all spellings of a surface share: `SQUARED²`, `Squared 2` and `squared2` are one.

    Unicode compatibility form (NFKC turns `²` into `2`), lower case, white space removed.
    """
    folded = "".join(unicodedata.normalize("NFKC", value).casefold().split())
    if not _SURFACE_ID.fullmatch(folded):
        raise Invalid(
            "a surface id is letters, digits, '.', '_' or '-', at most 64 after folding", field=field
        )
    return folded


class RouteScope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a route applies within its owner: at most one of the first four, and an env."""

    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    mode: str | None = None
    env: str | None = None


class Scope(msgspec.Struct, frozen=True, omit_defaults=True):
    """The identity stamped on every record, from the context and never from a body."""

    tenant_id: str
    mode: str
    env: str
    user_id: str
    surface_id: str
    app_id: str | None = None
    project_id: str | None = None


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the server derived of one request. Made by `identity` alone.

    `tenant_id` is the principal's own tenant. `acting_on` is another tenant that a t_system admin named
    for the control plane; data calls refuse such a context (`require_data`). `key_id` is the API key's, where
    the credential is one, and `key_made_by` who else may know it: what is asked with it, they asked for.
    """

    tenant_id: str
    mode: str
    env: str
    user_id: str
    roles: tuple[str, ...]
    permissions: frozenset[str]
    os_id: str
    surface_id: str
    app_id: str | None = None
    project_id: str | None = None
    run_id: str
    step_id: str
    thread_id: str | None = None
    session_id: str | None = None
    request_id: str
    trace_id: str
    span_id: str
    lab: bool
    sources: dict[str, str]
    acting_on: str | None = None
    key_id: str | None = None
    key_made_by: tuple[str, ...] = ()

    def require(self, permission: str) -> None:
        """Raises Forbidden unless one of the principal's roles grants `permission`."""
        if permission not in self.permissions:
            raise Forbidden(f"the role does not grant {permission}")

    def require_data(self, permission: str) -> None:
        """Like `require`, for a tenant's data, which nobody reaches from another tenant."""
        if self.acting_on is not None:
            raise ContextMismatch("data is reached only from its own tenant", field="X-Tenant-Id")
        self.require(permission)

    @property
    def target_tenant_id(self) -> str:
        """The tenant that a control-plane call is about."""
        return self.acting_on or self.tenant_id

    @property
    def is_system_admin(self) -> bool:
        return self.tenant_id == SYSTEM_TENANT and not ADMIN_ROLES.isdisjoint(self.roles)

    def scope(self) -> Scope:
        return Scope(
            tenant_id=self.tenant_id,
            mode=self.mode,
            env=self.env,
            user_id=self.user_id,
            surface_id=self.surface_id,
            app_id=self.app_id,
            project_id=self.project_id,
        )
