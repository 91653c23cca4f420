"""Resolution: from (kind, context) to the place where its records lie.

Owns the order in which routes win, what is checked each time one is resolved, and the cache of places. It is
the only thing in Engines that picks a backend. No default lives here: what no route says is MissingRoute.
Leaves writing routes to `routing/routes.py` and opening backends to `routing/backends.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final

import msgspec

from engines.catalogue import EVENT_SPINE, kind_named
from engines.control.directory import Directory
from engines.control.records import Backend, Move, Route, Tenant
from engines.core.documents import Documents
from engines.core.journal import Journalled
from engines.core.place import Place
from engines.errors import (
    BackendRefused,
    EnginesError,
    ForbiddenBackendClass,
    MissingRoute,
    OutcomeUnknown,
    Unavailable,
)
from engines.routing.backends import Backends, OpenBackend
from engines.routing.participation import Change, Participation
from engines.scope import SYSTEM_TENANT, RequestContext, RouteScope

PLACES_CACHED_MAX: Final = 100_000
# How long a change waits for a move to change sides; that takes one lease at the most.
PAUSE_S_MAX: Final = 8.0
# How long the write of a caller that went away counts as under way.
LINGER_S: Final = 1.0


class Where(msgspec.Struct, frozen=True):
    """What of a context routing looks at."""

    tenant_id: str
    mode: str
    env: str
    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None


class Looked(msgspec.Struct, frozen=True, omit_defaults=True):
    """One scope that resolution looked at, and what it found there."""

    tenant_id: str
    scope: RouteScope
    found: bool


class Resolution(msgspec.Struct, frozen=True):
    """The winning route, and every scope looked at before it."""

    route: Route
    etag: str
    looked_at: tuple[Looked, ...]


_Key = tuple[str, str, str, str, str | None, str | None, str | None]


def _key(kind: str, context: RequestContext) -> _Key:
    """What a place depends on."""
    return (
        kind,
        context.tenant_id,
        context.mode,
        context.env,
        context.surface_id,
        context.app_id,
        context.project_id,
    )


class Router:
    """`core.place.Places` and what was left behind, from the directory's routes and backends."""

    def __init__(self, directory: Directory, backends: Backends, participation: Participation) -> None:
        self._directory = directory
        self._backends = backends
        self._participation = participation
        # One for each move, so that a log stays open while other routes change.
        self._journalled: dict[tuple[str, str], tuple[Documents, Documents]] = {}
        self._places: dict[_Key, Place] = {}
        self._changeable: dict[_Key, Place] = {}
        self._generation = -1

    async def place(self, kind: str, context: RequestContext) -> Place:
        place = self._known(self._places, kind, context)
        if place is None:
            generation = self._generation
            place = await self._find(kind, where(context))
            self._remember(self._places, kind, context, place, generation)
        return place

    async def left(self, kind: str, tenant_id: str, env: str, *, backend_id: str, generation: int) -> Place:
        """Where the kind lay under an earlier route. Raises BackendRefused, Unavailable."""
        opened = await self.open_backend(backend_id)
        return Place(
            kind=kind,
            tenant_id=tenant_id,
            env=env,
            backend_id=backend_id,
            documents=opened.documents,
            layouts=opened.layouts,
            options={},
            generation=generation,
        )

    async def check(self, kind: str, context: RequestContext) -> None:
        """What `place` would raise of the route and its backend's class, without opening the backend."""
        self._directory.check_fresh()
        at = where(context)
        await self.checked_backend(await self.resolve(kind_named(kind).name, at), at)

    def changing(self, kind: str, context: RequestContext) -> _Changing:
        return _Changing(self, self._participation, kind, context)

    def known_for_change(self, kind: str, context: RequestContext) -> Place | None:
        """What `place_for_change` gave for the same before, if it still holds. Raises Unavailable."""
        return self._known(self._changeable, kind, context)

    async def place_for_change(self, kind: str, context: RequestContext) -> Place:
        """The place that takes changes now; what it rests on is still what is known when this returns."""
        try:
            async with asyncio.timeout(PAUSE_S_MAX):
                while True:
                    generation = self._directory.generation
                    await self.check(EVENT_SPINE, context)
                    place = await self.place(kind, context)
                    if place.accepts_changes and generation == self._directory.generation:
                        self._remember(self._changeable, kind, context, place, generation)
                        return place
                    if not place.accepts_changes:
                        await self._directory.changed(generation)
        except TimeoutError as error:
            raise Unavailable("a move takes long to change sides", retry_after_s=1.0) from error

    def _known(self, places: dict[_Key, Place], kind: str, context: RequestContext) -> Place | None:
        self._directory.check_fresh()
        if self._directory.moves:  # What is read at a source holds no longer than the lease does.
            self._participation.check()
        if self._generation != self._directory.generation:
            self._places.clear()
            self._changeable.clear()
            self._generation = self._directory.generation
        return places.get(_key(kind, context))

    def _remember(
        self, places: dict[_Key, Place], kind: str, context: RequestContext, place: Place, generation: int
    ) -> None:
        if generation == self._directory.generation and len(places) < PLACES_CACHED_MAX:
            places[_key(kind, context)] = place

    async def resolve(self, kind: str, at: Where) -> Resolution:
        """The first in order: the tenant's own, most specific first, then t_system's. Raises MissingRoute."""
        looked: list[Looked] = []
        candidates = list(_candidates(at))
        routes = await self._directory.routes([(owner, kind, scope) for owner, scope in candidates])
        for (owner, scope), found in zip(candidates, routes, strict=True):
            looked.append(Looked(owner, scope, found is not None))
            if found is not None:
                return Resolution(found[0], found[1], tuple(looked))
        raise _missing(kind, at, looked)

    async def checked_backend(self, resolution: Resolution, at: Where) -> Backend:
        """The route's backend. Raises ForbiddenBackendClass (mode), BackendRefused (gone or not offered)."""
        route = resolution.route
        backend = await self._directory.backend(route.backend_id)
        if backend is None:
            raise BackendRefused(
                "a route leads to a backend that is not there", resource_kind=route.resource_kind
            )
        await self.check_class(backend, at.mode, route.resource_kind)
        if not is_offered(backend, route.tenant_id):
            raise BackendRefused(
                "the backend is no longer offered to the route's owner", resource_kind=route.resource_kind
            )
        return backend

    async def backend_of(self, backend_id: str) -> Backend:
        """A backend by its id. Raises BackendRefused."""
        backend = await self._directory.backend(backend_id)
        if backend is None:
            raise BackendRefused(f"the backend {backend_id} is not there")
        return backend

    async def open_backend(self, backend_id: str) -> OpenBackend:
        """The same, open. Raises BackendRefused, Unavailable, Invalid."""
        return await self._backends.open(await self.backend_of(backend_id))

    async def check_class(self, backend: Backend, mode: str, kind: str) -> None:
        """Raises ForbiddenBackendClass."""
        record = await self._directory.mode(mode)
        if record is None or backend.backend_class not in record.allowed_classes:
            raise ForbiddenBackendClass(
                f"mode {mode} does not allow class {backend.backend_class} of backend {backend.backend_id}",
                resource_kind=kind,
                scope={"mode": mode},
            )

    async def _find(self, kind: str, at: Where) -> Place:
        kind = kind_named(kind).name
        resolution = await self.resolve(kind, at)
        route, backend = resolution.route, await self.checked_backend(resolution, at)
        move = self._directory.moves.get((at.tenant_id, kind))
        if move is None or (route.backend_id, route.generation) != source_of(move):
            return await self._place(kind, at, backend, route, generation=route.generation)
        if move.phase in ("switch", "settle"):
            target = await self.backend_of(move.target_backend_id)
            await self.check_class(target, at.mode, kind)
            place = await self._place(kind, at, target, route, generation=move.target_generation)
        else:
            place = await self._place(kind, at, backend, route, generation=move.source_generation)
        if move.phase in ("prepare", "copy", "follow"):
            place.documents = self._journal(move.move_id, place, await place.partitions())
        place.is_moving = True
        place.accepts_changes = move.phase not in ("fence", "verify", "switch")
        return place

    async def _place(self, kind: str, at: Where, backend: Backend, route: Route, *, generation: int) -> Place:
        opened = await self._backends.open(backend)
        return Place(
            kind=kind,
            tenant_id=at.tenant_id,
            env=at.env,
            backend_id=opened.record.backend_id,
            documents=opened.documents,
            layouts=opened.layouts,
            options=route.options,
            generation=generation,
        )

    def _journal(self, move_id: str, place: Place, shards: Sequence[str]) -> Documents:
        """The documents of a place that is being moved; the same as long as the backend's are the same."""
        known = self._journalled.get((move_id, place.env))
        if known is None or known[0] is not place.documents:
            under_way = {move.move_id for move in self._directory.moves.values()}
            self._journalled = {key: kept for key, kept in self._journalled.items() if key[0] in under_way}
            journalled = place.documents.through(lambda driver: Journalled(driver, shards))
            known = self._journalled[move_id, place.env] = (place.documents, journalled)
        return known[1]


class _Changing:
    """`Places.changing`: one change, from the place that it goes to until it may be acknowledged."""

    __slots__ = ("_change", "_context", "_kind", "_participation", "_router")

    def __init__(
        self, router: Router, participation: Participation, kind: str, context: RequestContext
    ) -> None:
        self._router = router
        self._participation = participation
        self._kind = kind
        self._context = context
        self._change: Change | None = None

    async def __aenter__(self) -> Place:
        place = self._router.known_for_change(self._kind, self._context)
        if place is None:
            place = await self._router.place_for_change(self._kind, self._context)
        self._change = self._participation.enter((place.tenant_id, place.kind))
        return place

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._change is not None
        if isinstance(error, asyncio.CancelledError):
            # Its write may still be under way.
            asyncio.get_running_loop().call_later(LINGER_S, self._participation.leave, self._change)
        elif not self._participation.leave(self._change) and (
            error is None or isinstance(error, EnginesError)
        ):
            raise OutcomeUnknown(
                "this process was out of touch with the control plane while it wrote"
            ) from error


def source_of(move: Move) -> tuple[str, int]:
    """What a route names that leads to where the move comes from."""
    return move.source_backend_id, move.source_generation


def where(context: RequestContext) -> Where:
    """What routing looks at in a request."""
    return Where(
        tenant_id=context.tenant_id,
        mode=context.mode,
        env=context.env,
        surface_id=context.surface_id,
        app_id=context.app_id,
        project_id=context.project_id,
    )


def at_home(tenant: Tenant) -> Where:
    """What routing looks at where a tenant itself is meant, and no request of its users."""
    return Where(
        tenant_id=tenant.tenant_id,
        mode=tenant.mode,
        env=tenant.default_env,
        surface_id=tenant.default_surface_id,
    )


def is_offered(backend: Backend, tenant_id: str) -> bool:
    """Whether an owner may route to the backend; t_system may to all."""
    return tenant_id == SYSTEM_TENANT or backend.offered_to == "*" or tenant_id in backend.offered_to


def _candidates(at: Where) -> Iterator[tuple[str, RouteScope]]:
    own = (("project_id", at.project_id), ("app_id", at.app_id), ("surface_id", at.surface_id), (None, None))
    defaults = (("app_id", at.app_id), ("surface_id", at.surface_id), ("mode", at.mode), (None, None))
    seen: set[tuple[str, RouteScope]] = set()
    for owner, levels in ((at.tenant_id, own), (SYSTEM_TENANT, defaults)):
        for level, value in levels:
            if level is not None and value is None:
                continue
            for env in (at.env, None):
                scope = RouteScope(**({level: value} if level else {}), env=env)
                if (owner, scope) not in seen:
                    seen.add((owner, scope))
                    yield owner, scope


def _missing(kind: str, at: Where, looked: Sequence[Looked]) -> MissingRoute:
    places = "; ".join(f"{look.tenant_id} {_words(look.scope)}" for look in looked)
    return MissingRoute(
        f"no route for {kind}. Looked at: {places}. "
        f"Add one: engines routes put {kind} --tenant {at.tenant_id} --backend BACKEND_ID",
        resource_kind=kind,
        scope={
            name: value
            for name in ("tenant_id", "mode", "env", "surface_id", "app_id", "project_id")
            if (value := getattr(at, name)) is not None
        },
    )


def _words(scope: RouteScope) -> str:
    named = [f"{name}={getattr(scope, name)}" for name in scope.__struct_fields__ if getattr(scope, name)]
    return " ".join(named) or "default"
