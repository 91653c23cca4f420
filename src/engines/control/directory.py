"""The directory: what every request needs of the control plane, cached and followed.

Owns the caches of records and short lists, their invalidation by the change feed, and the age of the view:
a process that has not heard from the control plane for `AGE_MAX_S` answers Unavailable rather than guess.
Leaves reading and changing records with their versions to `control/store.py`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
import structlog

from engines.clock import Clock
from engines.control.moves import moves_under_way
from engines.control.records import (
    ApiKey,
    App,
    Backend,
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
from engines.control.store import ControlStore, Table
from engines.control.tables import (
    APPS,
    BACKENDS,
    GATE_CONFIGS,
    ISSUERS,
    KEYS,
    KILL_SWITCHES,
    MEMBERSHIPS,
    MODES,
    MOVES,
    OSES,
    PROJECTS,
    RATE_LIMITS,
    ROLES,
    ROUTES,
    SURFACES,
    TENANTS,
    USERS,
    identity_key,
    issuer_key,
    route_ids,
    surface_key,
)
from engines.core.keys import SEPARATOR, join
from engines.errors import EnginesError, Unavailable
from engines.scope import SYSTEM_TENANT, RouteScope, normalise_surface

# A change is adopted within a second: one poll, and time to spare for a slow one.
POLL_S: Final = 0.25
# While a move is about to change sides: what it asks of the processes is a part of its pause.
POLL_MOVING_S: Final = 0.025
POLL_TIMEOUT_S: Final = 2.0
AGE_MAX_S: Final = 3.0
ENTRIES_MAX: Final = 100_000
MISSES_MAX: Final = 20_000
MEMBERSHIPS_MAX: Final = 1_000

_UNKNOWN: Final = object()
_NEAR: Final = frozenset({"follow", "fence", "verify", "switch", "settle"})
_MOVE_KEYS: Final = join("r", MOVES.name, "")

T = TypeVar("T", bound=msgspec.Struct)
log = structlog.get_logger(__name__)


def _nothing() -> None:
    """Where nobody takes part in moves."""


class Directory:
    """The control plane as this process sees it. Every lookup may raise Unavailable."""

    def __init__(self, store: ControlStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._cache = _Cache()
        self._seen = 0
        self._heard_at = self._heard_at_wall = float("-inf")
        self._poll_lock = asyncio.Lock()
        self.generation = 0
        """Grows whenever anything known may have changed; caches derived from the directory go with it."""
        self.lab = False
        self.moves: Mapping[tuple[str, str], Move] = {}
        """Those under way, by tenant and kind."""
        self.on_moves: Callable[[], None] = _nothing
        """Called after one has come, gone or entered another phase."""
        self._changed = asyncio.Event()

    # --- following ---

    async def follow(self) -> None:
        """Poll the feed until cancelled."""
        while True:
            is_near = any(move.phase in _NEAR for move in self.moves.values())
            await asyncio.sleep(POLL_MOVING_S if is_near else POLL_S)
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    await self.refresh()
            except (TimeoutError, EnginesError) as error:
                log.warning("control plane does not answer", error=type(error).__name__)

    async def refresh(self) -> None:
        """Adopt every change made before this call."""
        async with self._poll_lock:
            began, began_wall = self._clock.monotonic(), self._clock.now()
            tail, touched = await self._store.changes_after(self._seen)
            moved = touched is None or any(key.startswith(_MOVE_KEYS) for key in touched)
            if moved:
                self.moves = await self._moves_under_way()
            # The moves may be newer than the tail: no route is remembered that is older than they are.
            if touched is None or moved:
                self._cache.clear()
            else:
                self._forget(touched)
            if touched is None or touched:
                self.generation += 1
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()
            if moved:
                self.on_moves()
            if touched is None or touched:
                system = await self.tenant(SYSTEM_TENANT)
                self.lab = system is not None and system.mode == "lab"
            self._seen = tail
            self._heard_at, self._heard_at_wall = began, began_wall

    async def changed(self, generation: int) -> None:
        """Wait until more is known than at `generation`; whoever waits bounds it."""
        while self.generation == generation:
            await self._changed.wait()

    @property
    def heard_s(self) -> float:
        """When the last reading that succeeded began (monotonic)."""
        return self._heard_at

    def check_fresh(self) -> None:
        """Raises Unavailable where the view may be out of date."""
        if not self.is_fresh:
            raise Unavailable("the control plane has not answered for some seconds", retry_after_s=1.0)

    @property
    def is_fresh(self) -> bool:
        """By either clock: a machine may have been asleep."""
        return (
            self._clock.monotonic() - self._heard_at <= AGE_MAX_S
            and self._clock.now() - self._heard_at_wall <= AGE_MAX_S
        )

    def _forget(self, keys: Sequence[str]) -> None:
        """Drop what stands at the keys, and the lists that they are in."""
        for key in keys:
            self._cache.drop(key)
            parts = key.split(SEPARATOR)
            for length in range(1, len(parts)):
                self._cache.drop(join(*parts[:length], "*"))

    def _remember(self, key: str, value: Any, generation: int) -> None:
        if generation != self.generation:  # Read before a change that was adopted meanwhile.
            return
        self._cache.put(key, value)

    # --- records ---

    async def tenant(self, tenant_id: str) -> Tenant | None:
        return await self._record(TENANTS, tenant_id)

    async def user(self, user_id: str) -> User | None:
        return await self._record(USERS, user_id)

    async def membership(self, tenant_id: str, user_id: str) -> Membership | None:
        return await self._record(MEMBERSHIPS, tenant_id, user_id)

    async def role(self, name: str) -> Role | None:
        return await self._record(ROLES, name)

    async def mode(self, name: str) -> Mode | None:
        return await self._record(MODES, name)

    async def os(self, os_id: str) -> Os | None:
        return await self._record(OSES, os_id)

    async def app(self, app_id: str) -> App | None:
        return await self._record(APPS, app_id)

    async def project(self, tenant_id: str, project_id: str) -> Project | None:
        return await self._record(PROJECTS, tenant_id, project_id)

    async def api_key(self, key_id: str) -> ApiKey | None:
        return await self._record(KEYS, key_id)

    async def backend(self, backend_id: str) -> Backend | None:
        return await self._record(BACKENDS, backend_id)

    async def rate_limit_policy(self, tenant_id: str, env: str) -> RateLimitPolicy | None:
        return await self._record(RATE_LIMITS, tenant_id, env)

    async def surface(self, spelling: str) -> Surface | None:
        """By id or alias, in any spelling. Raises Invalid for what can be none."""
        surface_id = await self._index(surface_key(normalise_surface(spelling)))
        return None if surface_id is None else await self._record(SURFACES, surface_id)

    async def user_of_identity(self, iss: str, sub: str) -> User | None:
        user_id = await self._index(identity_key(iss, sub))
        return None if user_id is None else await self._record(USERS, user_id)

    async def issuer_of(self, iss: str) -> Issuer | None:
        issuer_id = await self._index(issuer_key(iss))
        return None if issuer_id is None else await self._record(ISSUERS, issuer_id)

    async def memberships_of(self, user_id: str) -> tuple[Membership, ...]:
        """At most `MEMBERSHIPS_MAX`, by tenant."""
        prefix = ("i", "memberships", user_id)
        key = join(*prefix, "*")
        tenants = self._cache.get(key)
        if tenants is _UNKNOWN:
            generation = self.generation
            tenants = await self._store.scan_index(*prefix, limit=MEMBERSHIPS_MAX)
            self._remember(key, tuple(tenants), generation)
        found = [await self.membership(tenant_id, user_id) for tenant_id in tenants]
        return tuple(membership for membership in found if membership is not None)

    async def routes(self, wanted: Sequence[tuple[str, str, RouteScope]]) -> list[tuple[Route, str] | None]:
        """The routes of these (owner, kind, scope), at most 100 and distinct, each with its ETag.

        What is not known is read in one go; what else an owner has costs nothing.
        """
        named = [route_ids(*one) for one in wanted]
        known = {ids: self._cache.get(ROUTES.key(*ids)) for ids in named}
        unknown = [ids for ids, found in known.items() if found is _UNKNOWN]
        if unknown:
            generation = self.generation
            for ids, stored in zip(unknown, await self._store.read_many(ROUTES, unknown), strict=True):
                known[ids] = None if stored is None else (stored.record, stored.etag)
                self._remember(ROUTES.key(*ids), known[ids], generation)
        return [known[ids] for ids in named]

    async def kill_switches(self, tenant_id: str) -> tuple[KillSwitch, ...]:
        """Those that hold for a tenant: t_system's for everybody, t_system's for it, and its own."""
        wanted = dict.fromkeys(
            ((SYSTEM_TENANT, SYSTEM_TENANT), (SYSTEM_TENANT, tenant_id), (tenant_id, tenant_id))
        )
        found = await self._records(KILL_SWITCHES, tuple(wanted))
        return tuple(switch for switch in found if switch is not None)

    async def gate_config(self, tenant_id: str, surface_id: str) -> GateConfig | None:
        """What guards the actions of a surface: the tenant's own, else t_system's."""
        wanted = dict.fromkeys(((tenant_id, surface_id), (SYSTEM_TENANT, surface_id)))
        found = await self._records(GATE_CONFIGS, tuple(wanted))
        return next((config for config in found if config is not None), None)

    async def _moves_under_way(self) -> Mapping[tuple[str, str], Move]:
        found = await moves_under_way(self._store)
        return {(move.tenant_id, move.resource_kind): move for move in found}

    async def _record(self, table: Table[T], *ids: str) -> T | None:
        key = table.key(*ids)
        known = self._cache.get(key)
        if known is not _UNKNOWN:
            return known  # type: ignore[no-any-return]
        generation = self.generation
        stored = await self._store.read(table, *ids)
        record = None if stored is None else stored.record
        self._remember(key, record, generation)
        return record

    async def _records(self, table: Table[T], wanted: Sequence[tuple[str, ...]]) -> list[T | None]:
        """Several of one table, distinct; what is not known is read in one go."""
        keys = [table.key(*ids) for ids in wanted]
        known = [self._cache.get(key) for key in keys]
        unknown = [place for place, found in enumerate(known) if found is _UNKNOWN]
        if unknown:
            generation = self.generation
            read = await self._store.read_many(table, [wanted[place] for place in unknown])
            for place, stored in zip(unknown, read, strict=True):
                known[place] = None if stored is None else stored.record
                self._remember(keys[place], known[place], generation)
        return known

    async def _index(self, key: str) -> str | None:
        known = self._cache.get(key)
        if known is not _UNKNOWN:
            return known  # type: ignore[no-any-return]
        generation = self.generation
        value = await self._store.resolve_index(key)
        self._remember(key, value, generation)
        return value  # type: ignore[no-any-return]


class _Cache:
    """What was read, by key; what was used longest ago goes first.

    What is there and what is not are bounded apart: names that a stranger invents push nothing out.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[str, Any] = OrderedDict()
        self._missing: OrderedDict[str, None] = OrderedDict()

    def get(self, key: str) -> Any:
        """What stands at the key, None where nothing does, `_UNKNOWN` where nobody has looked."""
        found = self._found.get(key)
        if found is not None:
            self._found.move_to_end(key)
            return found
        if key in self._missing:
            self._missing.move_to_end(key)
            return None
        return _UNKNOWN

    def put(self, key: str, value: Any) -> None:
        if value is None:
            self._missing[key] = None
            if len(self._missing) > MISSES_MAX:
                self._missing.popitem(last=False)
        else:
            self._found[key] = value
            if len(self._found) > ENTRIES_MAX:
                self._found.popitem(last=False)

    def drop(self, key: str) -> None:
        self._found.pop(key, None)
        self._missing.pop(key, None)

    def clear(self) -> None:
        self._found.clear()
        self._missing.clear()
