"""What control-plane calls take and give: one Struct a record, as the HTTP contract writes it.

Owns names and types, like `client/results.py` for a tenant's data.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

BackendClass = Literal["cloud", "server", "host_local"]


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What every control-plane record tells of itself: its version from 1, and who changed it last, when."""

    etag: str = ""
    version: int = 0
    created_at: str = ""
    updated_at: str = ""
    updated_by: str = ""


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """The context that the server derived of a request; `sources` says where each field came from."""

    tenant_id: str
    mode: str
    env: str
    user_id: str
    roles: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    acting_on: str | None = None
    key_id: str | None = None
    key_made_by: tuple[str, ...] = ()
    os_id: str | None = None
    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    thread_id: str | None = None
    session_id: str | None = None
    request_id: str = ""
    trace_id: str | None = None
    span_id: str | None = None
    lab: bool = False
    sources: dict[str, str] = {}


class Tenant(Recorded, frozen=True, kw_only=True):
    """An isolation boundary."""

    tenant_id: str
    name: str
    mode: str
    envs: tuple[str, ...] = ()
    default_env: str = ""
    default_surface_id: str = ""


class UserIdentity(msgspec.Struct, frozen=True):
    """Who a trusted issuer says the user is."""

    iss: str
    sub: str


class User(Recorded, frozen=True, kw_only=True):
    """A person or an agent."""

    user_id: str
    name: str | None = None
    identities: tuple[UserIdentity, ...] = ()


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Why what a user left in a tenant is kept, and since when."""

    reason: str
    held_at: str = ""


class ErasedCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure did in one kind: documents removed or rewritten, events redacted."""

    removed: int = 0
    rewritten: int = 0
    redacted: int = 0


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """How far an erasure is: `running`, or `erased` once a pass over everything found nothing more."""

    state: str
    began_at: str
    erased_at: str | None = None
    passes: int = 1
    step: str | None = None
    found: int = 0
    by_kind: dict[str, ErasedCounts] = {}


class DataSubject(Recorded, frozen=True, kw_only=True):
    """What is to become of what a user left in a tenant: held, erased, or neither."""

    tenant_id: str
    user_id: str
    hold: Hold | None = None
    erasure: Erasure | None = None


class Membership(Recorded, frozen=True, kw_only=True):
    """A user's place in a tenant; it counts once the user has accepted it."""

    tenant_id: str
    user_id: str
    role: str
    status: str = ""


class Mode(Recorded, frozen=True, kw_only=True):
    """Which backend classes are allowed, and which kinds need no default route."""

    mode: str
    allowed_classes: tuple[BackendClass, ...]
    optional_kinds: tuple[str, ...] = ()
    per_tenant_kinds: tuple[str, ...] = ()


class Os(Recorded, frozen=True, kw_only=True):
    """The product level above surfaces."""

    os_id: str
    name: str


class SurfaceDefaults(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request on the surface gets when it does not say."""

    app_id: str | None = None


class Surface(Recorded, frozen=True, kw_only=True):
    """A product scope with its aliases; it may narrow the mode."""

    surface_id: str
    os_id: str
    name: str
    aliases: tuple[str, ...] = ()
    mode: str | None = None
    defaults: SurfaceDefaults = SurfaceDefaults()


class App(Recorded, frozen=True, kw_only=True):
    """A product unit on a surface."""

    app_id: str
    surface_id: str
    name: str


class Project(Recorded, frozen=True, kw_only=True):
    """A tenant's own grouping."""

    project_id: str
    name: str
    app_id: str | None = None


class ApiKey(Recorded, frozen=True, kw_only=True):
    """An API key's record. `key` is the secret, told once: by the answer that made it."""

    key_id: str
    tenant_id: str = ""
    user_id: str = ""
    role: str = ""
    name: str | None = None
    origins: tuple[str, ...] = ()
    surface_id: str | None = None
    env: str | None = None
    made_by: tuple[str, ...] = ()
    revoked: bool = False
    key: str | None = None


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """At most `limit` calls in each window of `window_seconds`, for each of what `per` names together."""

    name: str
    per: tuple[Literal["tenant", "user", "surface", "key", "route"], ...]
    route: str = "*"
    limit: int
    window_seconds: int


class RateLimitPolicy(Recorded, frozen=True, kw_only=True):
    """The rate limits of one tenant and env."""

    tenant_id: str = ""
    env: str = ""
    limits: tuple[RateLimit, ...] = ()


class Issuer(Recorded, frozen=True, kw_only=True):
    """Whose tokens are believed, and where its keys are."""

    issuer_id: str
    issuer: str
    audience: str
    jwks_file: str | None = None
    jwks_url: str | None = None
    hs256_secret: str | None = None


class Backend(Recorded, frozen=True, kw_only=True):
    """One database. `secrets` holds handles, never secrets."""

    backend_id: str
    driver: str
    backend_class: BackendClass = msgspec.field(name="class")
    config: dict[str, Any] = {}
    secrets: dict[str, str] = {}
    offered_to: Literal["*"] | tuple[str, ...] = ()


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What writing, reading back and deleting on the real thing found. `error`: the code of what failed."""

    backend_id: str = ""
    ok: bool
    duration_ms: float = 0.0
    error: str | None = None
    detail: str | None = None


class RouteScope(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a route applies within its owner: at most one of the first four, and an env."""

    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    mode: str | None = None
    env: str | None = None


class Route(Recorded, frozen=True, kw_only=True):
    """(owner, kind, scope) → backend and options; `tenant_id` is the owner."""

    resource_kind: str
    backend_id: str = ""
    tenant_id: str = ""
    scope: RouteScope = RouteScope()
    options: dict[str, Any] = {}
    deleted: bool = False


class MoveProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a move has come. `lag`: changes that waited in its last round; `pause_ms`: their pause."""

    documents: int = 0
    bytes: int = 0
    repaired: int = 0
    partitions: int = 0
    partitions_done: int = 0
    lag: int = 0
    documents_per_s: float = 0.0
    estimated_end: str | None = None
    pause_ms: float | None = None
    error: str | None = None


class Move(Recorded, frozen=True, kw_only=True):
    """A kind of a tenant on its way from one backend to another. `progress` is told by `Moves.get` alone."""

    move_id: str
    tenant_id: str = ""
    resource_kind: str = ""
    source_backend_id: str = ""
    target_backend_id: str = ""
    phase: str = ""
    retire: bool = False
    reason: str | None = None
    progress: MoveProgress = MoveProgress()

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen of itself."""
        return self.phase in ("done", "retired", "cancelled")


class MovePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a move would take along. Where `complete` is false there is more than was counted."""

    tenant_id: str = ""
    resource_kind: str = ""
    source_backend_id: str = ""
    target_backend_id: str = ""
    envs: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    documents: int = 0
    bytes: int = 0
    streams: int = 0
    events: int = 0
    complete: bool = True


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """One scope that resolution looked at, whose it is, and whether a route was found there."""

    tenant_id: str
    scope: RouteScope = RouteScope()
    found: bool


class ResolvedRoute(msgspec.Struct, frozen=True, kw_only=True):
    """Where a kind lies: whose route says so (`tenant_id`), for which scope, and where it leads."""

    resource_kind: str
    backend_id: str
    tenant_id: str
    scope: RouteScope = RouteScope()
    options: dict[str, Any] = {}


class Resolution(msgspec.Struct, frozen=True, kw_only=True):
    """Which route answers for a kind in the caller's context, and every scope that was looked at."""

    route: ResolvedRoute
    etag: str = ""
    looked_at: tuple[Looked, ...] = ()


class KindState(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of a tenant: ready, missing, forbidden, unreachable or reserved, and why."""

    resource_kind: str
    state: str
    backend_id: str | None = None
    backend_class: str | None = None
    detail: str | None = None
