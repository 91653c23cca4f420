"""Moves as data: who may start, cancel and retire one, what is checked first, and how far it has come.

Owns the rules of `POST /routes/{kind}/move`, what a move would take along, and the progress that a mover
reports. Leaves moving to `routing/mover.py`.

A move takes everything of one kind of one tenant from one backend. Each gets a generation of its own, part of
the names under which the kind lies, so that nothing on the target is ever overwritten, there and back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from engines.catalogue import kind_named
from engines.clock import Clock, timestamp
from engines.codec import Codec
from engines.control.moves import newest_generation
from engines.control.records import Move, MovePhase, Route
from engines.control.service import Service, actor, require_in_tenant
from engines.control.store import PARTITION, Listing, Stored
from engines.control.tables import BACKENDS, MOVES, TENANTS, moving_key
from engines.core.documents import Documents
from engines.core.idempotency import Request
from engines.core.keys import join
from engines.core.transfer import Tally
from engines.errors import Conflict, Invalid, NotFound, Throttled
from engines.ids import Ids
from engines.ports.documents import ALWAYS, GET_KEYS_MAX, Put
from engines.routing.router import Router, at_home, is_offered, source_of
from engines.routing.routes import CONTROL_KINDS, own_routes
from engines.routing.sides import Sides
from engines.scope import SYSTEM_TENANT, RequestContext, RouteScope

# Moves of all tenants together: each makes every process look at the control plane more often.
UNDER_WAY_MAX: Final = 32
MOVABLE: Final = frozenset({"documents", "log", "definitions"})
CANCELLABLE: Final = frozenset({"prepare", "copy", "follow", "fence", "verify"})
# What a plan looks at before it says "at least".
PLAN_S_MAX: Final = 10.0


class Progress(msgspec.Struct, tag_field="schema", tag="progress/1", omit_defaults=True):
    """How far a move has come, as its mover last said. `lag`: changes that were waiting in the last round.

    `repaired`: documents that differed when both sides were compared, and were copied anew. `pause_ms`: how
    long changes waited.
    """

    documents: int = 0
    bytes: int = 0
    repaired: int = 0
    partitions: int = 0
    partitions_done: int = 0
    lag: int = 0
    documents_per_s: float = 0.0
    started_at: float = 0.0
    updated_at: float = 0.0
    estimated_end: str | None = None
    pause_ms: float | None = None
    error: str | None = None

    def measure(self, tally: Tally, clock: Clock) -> None:
        """Take the present counts over, and the rate and the end that follow from them."""
        now = clock.now()
        self.started_at = self.started_at or now
        self.updated_at = now
        self.documents, self.bytes, self.repaired = tally.documents, tally.bytes, tally.repaired
        elapsed_s = max(0.001, now - self.started_at)
        self.documents_per_s = round(self.documents / elapsed_s, 1)
        if 0 < self.partitions_done < self.partitions:
            left_s = elapsed_s * (self.partitions - self.partitions_done) / self.partitions_done
            self.estimated_end = timestamp(now + left_s)
        else:
            self.estimated_end = None


_PROGRESS: Final = Codec(Progress)


class Progresses:
    """The progress of each move: a document beside its record, neither versioned nor audited."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def read(self, move_id: str) -> Progress | None:
        doc = await self._documents.get(PARTITION, _progress_key(move_id))
        return None if doc is None else _PROGRESS.decode(doc.body)

    async def write(self, move_id: str, progress: Progress) -> None:
        await self._documents.write(
            PARTITION, [Put(_progress_key(move_id), _PROGRESS.encode(progress), ALWAYS)]
        )


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a move would take along. Where `complete` is false, there is more than was counted.

    Of a log, `documents` are the records of its streams, and `events` what stands in them.
    """

    tenant_id: str
    resource_kind: str
    source_backend_id: str
    target_backend_id: str
    envs: tuple[str, ...]
    routes: tuple[Route, ...]
    documents: int
    bytes: int
    streams: int
    events: int
    complete: bool


class Moves:
    """`/moves`: a tenant's own for its owner, anybody's for t_system's admins."""

    def __init__(self, service: Service, router: Router, ids: Ids) -> None:
        self._service = service
        self._store = service.store
        self._router = router
        self._ids = ids
        self.progresses = Progresses(service.store.documents)

    async def start(
        self,
        context: RequestContext,
        kind: str,
        backend_id: str,
        *,
        retire: bool = False,
        request: Request | None = None,
    ) -> Stored[Move]:
        """Begin a move; a mover takes it up at once.

        Raises Forbidden, Invalid (the target, the kind), ForbiddenBackendClass, MissingRoute, Throttled, and
        Conflict where one is under way or the tenant's routes lead to more than one place.
        """
        require_in_tenant(context, "routes.write")
        await self._service.admit(context)
        move_id = self._ids.record_id()

        async def build(_: Move | None) -> Move:
            # A repeat is answered before it is checked: what it asked for may be there by now.
            move = await self._checked(context, kind, backend_id, move_id)
            await self._check_under_way()
            claimed = await self._store.resolve_index(moving_key(move.tenant_id, move.resource_kind))
            if claimed is not None:
                raise Conflict(f"this kind is being moved already: {claimed}")
            newest = await newest_generation(self._store, move.tenant_id, move.resource_kind)
            return msgspec.structs.replace(move, target_generation=newest + 1, retire=retire)

        return await self._store.put(
            MOVES, [move_id], build, actor=actor(context, context.target_tenant_id), request=request
        )

    async def plan(self, context: RequestContext, kind: str, backend_id: str) -> Plan:
        """What `start` would move, counted for at most `PLAN_S_MAX`.

        Raises what `start` raises, and BackendRefused or Unavailable where a side cannot be used now.
        """
        require_in_tenant(context, "routes.write")
        move = await self._checked(context, kind, backend_id, self._ids.record_id())
        tenant = (await self._store.get(TENANTS, move.tenant_id)).record
        routes = [
            route
            for route in await own_routes(self._store, move.tenant_id, move.resource_kind)
            if (route.backend_id, route.generation) == source_of(move)
        ]
        await self._router.open_backend(move.target_backend_id)
        opened = await self._router.open_backend(move.source_backend_id)
        sides = Sides(move, opened, opened, tenant.envs, Tally())
        counted = await sides.count(until_s=PLAN_S_MAX)
        return Plan(
            tenant_id=move.tenant_id,
            resource_kind=move.resource_kind,
            source_backend_id=move.source_backend_id,
            target_backend_id=move.target_backend_id,
            envs=tenant.envs,
            routes=tuple(routes),
            documents=counted.documents,
            bytes=counted.bytes,
            streams=counted.streams,
            events=counted.events,
            complete=counted.complete,
        )

    async def get(self, context: RequestContext, move_id: str) -> tuple[Stored[Move], Progress]:
        """A move and how far it has come. Raises Forbidden, NotFound (also where it is another tenant's)."""
        require_in_tenant(context, "routes.read")
        stored = await self._own(context, move_id)
        return stored, await self.progresses.read(move_id) or Progress()

    async def list(
        self, context: RequestContext, *, after: str | None = None, limit: int = 100, descending: bool = False
    ) -> Listing[Move]:
        """The tenant's moves, by kind and number. Raises Forbidden."""
        require_in_tenant(context, "routes.read")
        prefix = ("i", "moves", context.target_tenant_id)
        named, resume = await self._store.page_of_index(
            *prefix, after=after, limit=min(limit, GET_KEYS_MAX), descending=descending
        )
        found = await self._store.read_many(MOVES, [(move_id,) for _, move_id in named]) if named else []
        return Listing(tuple(stored for stored in found if stored is not None), resume)

    async def cancel(
        self, context: RequestContext, move_id: str, *, request: Request | None = None
    ) -> Stored[Move]:
        """Take it back: nothing is changed for readers and writers. Raises Conflict from the switch on."""

        async def check(move: Move) -> None:
            if move.phase not in CANCELLABLE:
                raise Conflict(f"a move in phase {move.phase} is not taken back; move the kind once more")

        return await self._steer(context, move_id, "cancel", check, request)

    async def retire(
        self, context: RequestContext, move_id: str, *, request: Request | None = None
    ) -> Stored[Move]:
        """Remove what was left behind, for ever. Raises Conflict before the move is done."""

        async def check(move: Move) -> None:
            if move.phase != "done":
                raise Conflict(f"a move is retired once it is done; this one is in phase {move.phase}")
            if await self._store.read(BACKENDS, move.source_backend_id) is None:
                raise Conflict(f"{move.source_backend_id}, where something was left, is not there any more")

        return await self._steer(context, move_id, "retire", check, request)

    # --- what is checked ---

    async def _steer(
        self,
        context: RequestContext,
        move_id: str,
        phase: MovePhase,
        check: Callable[[Move], Awaitable[None]],
        request: Request | None,
    ) -> Stored[Move]:
        require_in_tenant(context, "routes.write")
        move = (await self._own(context, move_id)).record
        await self._service.admit(context)

        async def build(existing: Move | None) -> Move:
            assert existing is not None
            await check(existing)
            if existing.ended:  # It is claimed once more.
                await self._check_under_way()
            reason = f"{phase} by {context.user_id}"
            return msgspec.structs.replace(existing, phase=phase, epoch=existing.epoch + 1, reason=reason)

        return await self._store.put(
            MOVES, [move_id], build, actor=actor(context, move.tenant_id), request=request
        )

    async def _check_under_way(self) -> None:
        if len(await self._store.scan_index("i", "moving", limit=UNDER_WAY_MAX)) >= UNDER_WAY_MAX:
            raise Throttled(f"{UNDER_WAY_MAX} moves are under way", retry_after_s=60.0)

    async def _own(self, context: RequestContext, move_id: str) -> Stored[Move]:
        stored = await self._store.get(MOVES, move_id)
        is_anybodys = context.is_system_admin and context.acting_on is None
        if not is_anybodys and stored.record.tenant_id != context.target_tenant_id:
            raise NotFound("there is no such record")
        return stored

    async def _checked(self, context: RequestContext, kind: str, backend_id: str, move_id: str) -> Move:
        """The move that is asked for, which may be made as things stand."""
        tenant_id = context.target_tenant_id
        named = kind_named(kind)
        if tenant_id == SYSTEM_TENANT:
            raise Invalid("name the tenant that is to be moved; t_system's routes are everybody's defaults")
        if named.family not in MOVABLE or named.name in CONTROL_KINDS or not named.served:
            raise Invalid("records of this kind are not moved", field="resource_kind")
        tenant = (await self._store.get(TENANTS, tenant_id)).record
        route = (await self._router.resolve(named.name, at_home(tenant))).route
        await self._check_target(tenant_id, tenant.mode, backend_id, named.name)
        if backend_id == route.backend_id:
            raise Invalid("the kind lies there already", field="backend_id")
        own = await own_routes(self._store, tenant_id, named.name)
        await self._check_routes(tenant.mode, named.name, route, own)
        return Move(
            move_id=move_id,
            tenant_id=tenant_id,
            resource_kind=named.name,
            source_backend_id=route.backend_id,
            source_generation=route.generation,
            target_backend_id=backend_id,
            target_generation=0,
            options=route.options,
        )

    async def _check_target(self, tenant_id: str, mode: str, backend_id: str, kind: str) -> None:
        backend = await self._store.read(BACKENDS, backend_id)
        if backend is None or not is_offered(backend.record, tenant_id):
            raise Invalid("no backend of this id is offered to you", field="backend_id")
        await self._router.check_class(backend.record, mode, kind)

    async def _check_routes(self, mode: str, kind: str, route: Route, own: Sequence[Route]) -> None:
        """What leads to the source leads to one generation, and no default of t_system's leads elsewhere.

        A moved tenant has a default route of its own, and that beats everything that t_system says.
        """
        if {r.generation for r in own if r.backend_id == route.backend_id} - {route.generation}:
            raise Conflict("the tenant's routes lead to two generations of this kind on one backend")
        if any(r.scope == RouteScope() for r in own):
            return
        for default in await own_routes(self._store, SYSTEM_TENANT, kind):
            elsewhere = (default.backend_id, default.generation) != (route.backend_id, route.generation)
            if elsewhere and default.scope.mode in (None, mode):
                raise Conflict(
                    f"a default of t_system leads this kind to {default.backend_id} for a part of the tenant;"
                    " give the tenant routes of its own first"
                )


def _progress_key(move_id: str) -> str:
    return join("p", "moves", move_id)
