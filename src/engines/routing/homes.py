"""Homes: every place in which a tenant's records of one kind may lie.

Owns reading them out of the routes: one context for each scope that a route of the tenant's, or of
t_system's, tells apart. Leaves resolving each of them to the router. What a deleted route once led to is no
home any more.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engines.control.records import Route
from engines.control.store import ControlStore
from engines.control.tables import SURFACES, TENANTS
from engines.errors import ForbiddenBackendClass, MissingRoute
from engines.routing.router import Router
from engines.routing.routes import own_routes
from engines.scope import SYSTEM_TENANT, RequestContext

# No surface is called so: a route of a surface is not what is meant.
NO_SURFACE = ""


class Homes:
    """The homes of a tenant's kinds."""

    def __init__(self, store: ControlStore, router: Router) -> None:
        self._store = store
        self._router = router

    async def of(self, context: RequestContext, kind: str) -> list[RequestContext]:
        """A context for each home of the kind in the context's tenant, in all envs, in a fixed order.

        Where no route leads nothing lies, and nothing where a surface's mode forbids it: those are passed
        over. Raises ForbiddenBackendClass for the tenant's own mode, and what opening a backend raises.
        """
        routes = await own_routes(self._store, context.tenant_id, kind)
        if context.tenant_id != SYSTEM_TENANT:
            routes += await own_routes(self._store, SYSTEM_TENANT, kind)
        tenant = (await self._store.get(TENANTS, context.tenant_id)).record
        modes = sorted({tenant.mode, *await self._modes_of_surfaces()})
        found: dict[tuple[str, str, int], RequestContext] = {}
        for env in tenant.envs:
            for mode in modes:
                at = msgspec.structs.replace(
                    context, env=env, mode=mode, surface_id=NO_SURFACE, app_id=None, project_id=None
                )
                for home in _scoped(at, routes):
                    try:
                        place = await self._router.place(kind, home)
                    except MissingRoute:
                        continue
                    except ForbiddenBackendClass:
                        if mode == tenant.mode:
                            raise
                        continue
                    found.setdefault((env, place.backend_id, place.generation), home)
        return [found[key] for key in sorted(found)]

    async def _modes_of_surfaces(self) -> set[str]:
        modes: set[str] = set()
        after: str | None = None
        while True:
            page = await self._store.page(SURFACES, after=after, limit=1_000)
            modes |= {stored.record.mode for stored in page.items if stored.record.mode is not None}
            if page.after is None:
                return modes
            after = page.after


def _scoped(at: RequestContext, routes: list[Route]) -> Iterator[RequestContext]:
    """The context without a scope, and within each scope that a route names."""
    yield at
    for route in routes:
        scope = route.scope
        if scope.surface_id is not None:
            yield msgspec.structs.replace(at, surface_id=scope.surface_id)
        if scope.app_id is not None:
            yield msgspec.structs.replace(at, app_id=scope.app_id)
        if scope.project_id is not None:
            yield msgspec.structs.replace(at, project_id=scope.project_id)
