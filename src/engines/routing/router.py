"""Resolution: from (kind, context) to the place where its records lie.

Owns the order in which routes win, what is checked each time one is resolved, and the cache of places. It is
the only thing in Engines that picks a backend. No default lives here: what no route says is MissingRoute.
Leaves writing routes to `routing/routes.py` and opening backends to `routing/backends.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from engines.catalogue import EVENT_SPINE, kind_named
from engines.control.directory import Directory
from engines.control.records import Backend, Route
from engines.core.place import Place
from engines.errors import BackendRefused, ForbiddenBackendClass, MissingRoute
from engines.routing.backends import Backends
from engines.scope import SYSTEM_TENANT, RequestContext, RouteScope

PLACES_CACHED_MAX: Final = 100_000


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


class Router:
    """`core.place.Places`, from the directory's routes and backends."""

    def __init__(self, directory: Directory, backends: Backends) -> None:
        self._directory = directory
        self._backends = backends
        self._places: dict[tuple[str, str, str, str, str | None, str | None, str | None], Place] = {}
        self._generation = -1

    async def place(self, kind: str, context: RequestContext) -> Place:
        self._directory.check_fresh()
        if self._generation != self._directory.generation:
            self._places.clear()
            self._generation = self._directory.generation
        key = (
            kind,
            context.tenant_id,
            context.mode,
            context.env,
            context.surface_id,
            context.app_id,
            context.project_id,
        )
        place = self._places.get(key)
        if place is None:
            generation = self._generation
            place = await self._find(kind, where(context))
            if generation == self._directory.generation and len(self._places) < PLACES_CACHED_MAX:
                self._places[key] = place
        return place

    async def check(self, kind: str, context: RequestContext) -> None:
        """What `place` would raise of the route and its backend's class, without opening the backend."""
        self._directory.check_fresh()
        at = where(context)
        await self.checked_backend(await self.resolve(kind_named(kind).name, at), at)

    async def place_for_change(self, kind: str, context: RequestContext) -> Place:
        await self.place(EVENT_SPINE, context)
        return await self.place(kind, context)

    async def resolve(self, kind: str, at: Where) -> Resolution:
        """The first in order: the tenant's own, most specific first, then t_system's. Raises MissingRoute."""
        looked: list[Looked] = []
        for owner, scope in _candidates(at):
            found = next(
                (
                    (route, etag)
                    for route, etag in await self._directory.routes(owner, kind)
                    if route.scope == scope
                ),
                None,
            )
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
        opened = await self._backends.open(await self.checked_backend(resolution, at))
        return Place(
            kind=kind,
            tenant_id=at.tenant_id,
            env=at.env,
            backend_id=opened.record.backend_id,
            documents=opened.documents,
            layouts=opened.layouts,
            options=resolution.route.options,
        )


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
