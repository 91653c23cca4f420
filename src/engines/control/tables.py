"""The control plane's tables: names, types, and the index entries that lead to each record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from engines.control.records import (
    ApiKey,
    App,
    Backend,
    DataSubject,
    GateConfig,
    Issuer,
    KillSwitch,
    Membership,
    Mode,
    Move,
    Os,
    Project,
    RateLimitPolicy,
    Role,
    Route,
    Surface,
    Tenant,
    User,
)
from engines.control.store import Table
from engines.core.keys import join
from engines.scope import RouteScope, normalise_surface


def identity_key(iss: str, sub: str) -> str:
    """Where the user bound to (iss, sub) is named."""
    digest = hashlib.sha256(f"{len(iss)}:{iss}{sub}".encode()).hexdigest()
    return join("u", "identities", digest[:40])


def issuer_key(iss: str) -> str:
    """Where the issuer record that believes `iss` is named."""
    return join("u", "issuers", hashlib.sha256(iss.encode()).hexdigest()[:40])


def surface_key(folded: str) -> str:
    """Where the surface with this folded id or alias is named."""
    return join("u", "surfaces", folded)


def moving_key(tenant_id: str, kind: str) -> str:
    """Where the move of a tenant's kind that is under way is named."""
    return join("i", "moving", tenant_id, kind)


def _surface_indexes(surface: Surface) -> Mapping[str, str]:
    names = {surface.surface_id, *(normalise_surface(alias, "aliases") for alias in surface.aliases)}
    return {surface_key(name): surface.surface_id for name in sorted(names)}


def _user_indexes(user: User) -> Mapping[str, str]:
    return {identity_key(identity.iss, identity.sub): user.user_id for identity in user.identities}


def _membership_indexes(membership: Membership) -> Mapping[str, str]:
    return {join("i", "memberships", membership.user_id, membership.tenant_id): membership.tenant_id}


def _key_indexes(key: ApiKey) -> Mapping[str, str]:
    return {join("i", "keys", key.tenant_id, key.key_id): key.key_id}


def route_ids(tenant_id: str, kind: str, scope: RouteScope) -> tuple[str, ...]:
    """What tells a route from every other: owner, kind, level, the id at that level, and env."""
    for level in ("project_id", "app_id", "surface_id", "mode"):
        value = getattr(scope, level)
        if value is not None:
            return tenant_id, kind, level, value, scope.env or "-"
    return tenant_id, kind, "-", "-", scope.env or "-"


def _route_indexes(route: Route) -> Mapping[str, str]:
    ids = route_ids(route.tenant_id, route.resource_kind, route.scope)
    return {join("i", "routed", route.backend_id, *ids): route.tenant_id}


def _move_indexes(move: Move) -> Mapping[str, str]:
    """Its place in the tenant's history and, until it has ended, the claim that keeps a second one away."""
    number = f"{move.target_generation:06d}"
    history = {join("i", "moves", move.tenant_id, move.resource_kind, number): move.move_id}
    if move.ended:
        return history
    return {**history, moving_key(move.tenant_id, move.resource_kind): move.move_id}


TENANTS: Final = Table("tenants", Tenant)
USERS: Final = Table("users", User, indexes=_user_indexes)
MEMBERSHIPS: Final = Table("memberships", Membership, indexes=_membership_indexes)
ROLES: Final = Table("roles", Role)
MODES: Final = Table("modes", Mode)
OSES: Final = Table("oses", Os)
SURFACES: Final = Table("surfaces", Surface, indexes=_surface_indexes)
APPS: Final = Table("apps", App)
PROJECTS: Final = Table("projects", Project)
ISSUERS: Final = Table(
    "issuers", Issuer, indexes=lambda issuer: {issuer_key(issuer.issuer): issuer.issuer_id}
)
KEYS: Final = Table("keys", ApiKey, indexes=_key_indexes)
BACKENDS: Final = Table("backends", Backend)
ROUTES: Final = Table("routes", Route, indexes=_route_indexes)
MOVES: Final = Table("moves", Move, indexes=_move_indexes)
RATE_LIMITS: Final = Table("rate_limits", RateLimitPolicy)
KILL_SWITCHES: Final = Table("kill_switches", KillSwitch)
GATE_CONFIGS: Final = Table("gate_configs", GateConfig)
DATA_SUBJECTS: Final = Table("data_subjects", DataSubject)
