"""What the control plane holds: one Struct a table.

Owns the shapes and the field rules that one record can be judged by alone. Leaves storage, versions,
audit and rules that need a second record to `control/store.py` and its services.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engines.ports.documents import BackendClass
from engines.scope import RouteScope
from engines.stores.rate_limits import LIMITS_MAX, RateLimit

Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127}\Z")]
TenantId = Annotated[str, Meta(pattern=r"^t_[a-z0-9_-]+\Z", max_length=64)]
Env = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(min_length=1, max_length=1024)]
MembershipStatus = Literal["invited", "accepted", "revoked"]
# An action's name, which is an id; with a trailing `*` all that begin so, and `*` alone every action.
ActionPattern = Annotated[str, Meta(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127}\*?)\Z")]
GateName = Literal[
    "kill_switch",
    "firearms",
    "strategy_lock",
    "three_wise",
    "budget",
    "budget_room",
    "kpi_corridor",
    "temperature",
    "rate_limit",
]

IDENTITIES_MAX: Final = 20
ALIASES_MAX: Final = 20
ENVS_MAX: Final = 32
# Keys that were made with keys that were made with keys: enough for whoever means well.
MADE_BY_MAX: Final = 8
OFFERED_TO_MAX: Final = 1_000
SWITCHES_MAX: Final = 100
RULES_MAX: Final = 200
GATES_MAX: Final = 9
ORIGINS_MAX: Final = 50

# As browsers send it (RFC 6454, section 6.2): scheme and host in lower case, a port where it is another than
# the scheme's own. `null` is nobody's.
Origin = Annotated[str, Meta(pattern=r"^https?://[a-z0-9.-]{1,253}(:[1-9][0-9]{0,4})?\Z")]
Origins = Annotated[tuple[Origin, ...], Meta(max_length=ORIGINS_MAX)]


class Tenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The isolation boundary."""

    tenant_id: TenantId
    name: Name
    mode: Id
    envs: Annotated[tuple[Env, ...], Meta(min_length=1, max_length=ENVS_MAX)] = ("prod",)
    default_env: Env = "prod"
    default_surface_id: Text


class UserIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who a trusted issuer says the user is."""

    iss: Text
    sub: Text


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A person or an agent. Belongs to tenants by memberships."""

    user_id: Id
    name: Name | None = None
    identities: Annotated[tuple[UserIdentity, ...], Meta(max_length=IDENTITIES_MAX)] = ()


class Membership(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A user's place in a tenant; it counts once the user has accepted it."""

    tenant_id: TenantId
    user_id: Id
    role: Id
    status: MembershipStatus
    # Which version of the record began it; 0 where the user was never removed before. Never shown.
    began_at_version: int = 0


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What its holders may do."""

    role: Id
    permissions: tuple[str, ...]


class Mode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which backend classes are allowed, and which kinds need no route of t_system's."""

    mode: Id
    allowed_classes: tuple[BackendClass, ...]
    optional_kinds: tuple[str, ...] = ()
    per_tenant_kinds: tuple[str, ...] = ()


class Os(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The product level above surfaces."""

    os_id: Id
    name: Name


class SurfaceDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a request on the surface gets when it does not say."""

    app_id: Id | None = None


class Surface(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A product scope. Every alias, folded, leads to it and to no other; it may narrow the mode."""

    surface_id: Text
    os_id: Id
    name: Name
    aliases: Annotated[tuple[Text, ...], Meta(max_length=ALIASES_MAX)] = ()
    mode: Id | None = None
    defaults: SurfaceDefaults = SurfaceDefaults()


class App(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A product unit on a surface."""

    app_id: Id
    surface_id: Text
    name: Name


class Project(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A tenant's own grouping."""

    project_id: Id
    app_id: Id | None = None
    name: Name


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whose tokens are believed. Exactly one of the last three says where its keys are."""

    issuer_id: Id
    issuer: Text
    audience: Text
    jwks_file: Text | None = None
    jwks_url: Text | None = None
    hs256_secret: Text | None = None


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A key's record: what it is bound to and the SHA-256 of its secret, never the secret.

    `origins`: of a key that stands in pages, whose pages may send beacons with it. `surface_id`
    and `env`: where alone it acts, if it is bound. `made_by`: who else had it in hand: its maker, and where
    they used a key themselves, that key's.
    `revoked` is true in the last version of a key that was revoked, which is all that is left of it.
    """

    key_id: Id
    tenant_id: TenantId
    user_id: Id
    role: Id
    name: Name | None = None
    origins: Origins = ()
    surface_id: Text | None = None
    env: Env | None = None
    made_by: Annotated[tuple[Id, ...], Meta(max_length=MADE_BY_MAX)] = ()
    secret_sha256: str
    # The `began_at_version` of the user's membership, with which the key ends. Never shown.
    membership: int = 0
    revoked: bool = False


class Backend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One database. `secrets` maps the driver's names to handles; `offered_to` lists who may route to it."""

    backend_id: Id
    driver: Id
    backend_class: BackendClass = msgspec.field(name="class")
    config: dict[str, Any] = {}
    secrets: dict[str, Text] = {}
    offered_to: Literal["*"] | Annotated[tuple[TenantId, ...], Meta(max_length=OFFERED_TO_MAX)] = ()


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """(owner, kind, scope) → backend and options. `tenant_id` is the owner; t_system's are defaults.

    `generation` is part of the names under which a moved kind lies; 0 where it was never moved.
    """

    tenant_id: TenantId
    resource_kind: Id
    scope: RouteScope = RouteScope()
    backend_id: Id
    options: dict[str, Any] = {}
    generation: int = 0


MovePhase = Literal[
    "prepare",  # every process journals what it changes
    "copy",
    "follow",  # what changed meanwhile; both sides are compared
    "fence",  # changes wait, reads go on at the source
    "verify",  # what was drained since the comparison is compared
    "switch",  # reads go to the target, changes still wait
    "settle",  # changes go to the target; the routes are rewritten
    "done",  # what was left behind is still there
    "retire",  # it is being removed
    "retired",
    "cancel",  # the target is being emptied, and the journal
    "cancelled",
]
MOVE_ENDED: Final = frozenset({"done", "retired", "cancelled"})


class Move(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of one tenant on its way from one backend to another.

    `epoch` grows with each phase; `options` are the route's; `retire`: remove what was left behind, too.
    `envs`: those of which anything may have been copied; from `switch` on, those that were moved.
    """

    move_id: Id
    tenant_id: TenantId
    resource_kind: Id
    source_backend_id: Id
    source_generation: int
    target_backend_id: Id
    target_generation: int
    options: dict[str, Any] = {}
    phase: MovePhase = "prepare"
    epoch: int = 1
    retire: bool = False
    reason: str | None = None
    envs: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        return self.phase in MOVE_ENDED


class RateLimitPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The rate limits of one tenant and env; none where there are none in it."""

    tenant_id: TenantId
    env: Env
    limits: Annotated[tuple[RateLimit, ...], Meta(max_length=LIMITS_MAX)]


class Switch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A part that is switched off: a surface, the actions that a pattern names, or these on that surface."""

    surface_id: Text | None = None
    action: ActionPattern | None = None
    reason: Name | None = None


class KillSwitch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is switched off for a tenant: everything where `engaged`, and each of `switches`.

    `holder_id`: who holds it, and alone lets go of it: the tenant itself, or t_system. What t_system holds
    for t_system is switched off for every tenant.
    """

    holder_id: TenantId
    tenant_id: TenantId
    engaged: bool = False
    reason: Name | None = None
    switches: Annotated[tuple[Switch, ...], Meta(max_length=SWITCHES_MAX)] = ()


class GateRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which gates guard the actions that a pattern names, in order."""

    action: ActionPattern
    gates: Annotated[tuple[GateName, ...], Meta(max_length=GATES_MAX)]


class GateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which gates guard what on a surface. Of the rules that name an action, the most specific holds.

    `tenant_id`: whose; t_system's holds for each tenant that has none of its own. `otherwise`: what becomes
    of an action that no rule names: the base gates alone judge it, or it is refused.
    """

    tenant_id: TenantId
    surface_id: Text
    rules: Annotated[tuple[GateRule, ...], Meta(max_length=RULES_MAX)] = ()
    otherwise: Literal["base", "block"] = "base"


class Hold(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why what a user left in a tenant must be kept, and since when."""

    reason: Text
    held_at: str


class ErasedCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure did in one kind: documents removed or rewritten, events redacted."""

    removed: int = 0
    rewritten: int = 0
    redacted: int = 0

    def __add__(self, other: ErasedCounts) -> ErasedCounts:
        return ErasedCounts(
            removed=self.removed + other.removed,
            rewritten=self.rewritten + other.rewritten,
            redacted=self.redacted + other.redacted,
        )

    @property
    def total(self) -> int:
        return self.removed + self.rewritten + self.redacted


class Erasure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far an erasure is.

    It goes over everything in passes; the first that finds nothing proves that all is gone. `step` and
    `after`: how far the present pass is; None where it begins. `found`: what it met so far. `final_from_s`: a
    pass that began earlier proves nothing, since a request of the user's may have been under way.
    `moves`: the tenant's moves, ended ones included, when the pass began.
    """

    state: Literal["running", "erased"] = "running"
    began_at: str
    erased_at: str | None = None
    passes: int = 1
    pass_began_s: float = 0.0
    final_from_s: float = 0.0
    moves: int = 0
    step: str | None = None
    after: str | None = None
    found: int = 0
    by_kind: dict[str, ErasedCounts] = {}


class DataSubject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to become of what a user left in a tenant: held, erased, or neither."""

    tenant_id: TenantId
    user_id: Id
    hold: Hold | None = None
    erasure: Erasure | None = None
