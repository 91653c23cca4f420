"""Backends and routes as data: who may write them, and what is checked when they are.

Owns the rules of `PUT /backends` and `PUT /routes`. A route names a backend and options, never config or
handles: inline config would be a way to somebody else's secret. Leaves resolution to `routing/router.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from engines.catalogue import CONTROL_PLANE, EVENT_SPINE, ROUTING_REGISTRY, check_options, kind_named
from engines.control.moves import moves_under_way, settled_generation
from engines.control.records import Backend, Route
from engines.control.service import Service, actor, require_in_tenant, require_system_admin
from engines.control.store import ControlStore, Listing, Stored
from engines.control.tables import (
    APPS,
    BACKENDS,
    MODES,
    PROJECTS,
    ROUTES,
    TENANTS,
    moving_key,
    route_ids,
    surface_key,
)
from engines.core.idempotency import Request
from engines.core.records import Condition
from engines.errors import (
    Conflict,
    ContextMismatch,
    Forbidden,
    ForbiddenBackendClass,
    Invalid,
    NotFound,
)
from engines.ports.documents import SCAN_LIMIT_MAX
from engines.routing.backends import CONTROL_BACKEND, Backends, check_config
from engines.routing.diagnostics import Probe, probe
from engines.routing.router import Resolution, Router, Where, at_home, is_offered, where
from engines.scope import (
    SYSTEM_TENANT,
    RequestContext,
    RouteScope,
    check_env,
    check_id,
    normalise_surface,
)

CONTROL_KINDS = frozenset({CONTROL_PLANE, ROUTING_REGISTRY})


async def own_routes(store: ControlStore, tenant_id: str, kind: str) -> list[Route]:
    """An owner's routes of one kind, straight from the store."""
    routes: list[Route] = []
    after: str | None = None
    while True:
        page = await store.page(ROUTES, tenant_id, kind, after=after, limit=SCAN_LIMIT_MAX - 1)
        routes += [stored.record for stored in page.items]
        after = page.after
        if after is None:
            return routes


class BackendRecords:
    """`/backends`: t_system's admins alone."""

    def __init__(self, service: Service, backends: Backends) -> None:
        self._service = service
        self._store = service.store
        self._backends = backends

    async def put(
        self,
        context: RequestContext,
        backend: Backend,
        *,
        condition: Condition,
        request: Request | None = None,
    ) -> Stored[Backend]:
        """Raises Forbidden, PreconditionRequired, Invalid (a driver's rule), Conflict (still routed to)."""
        require_system_admin(context)
        condition.required()
        await self._service.admit(context)
        check_config(backend)

        async def build(existing: Backend | None) -> Backend:
            if backend.backend_id == CONTROL_BACKEND and existing is not None:
                raise Forbidden("the control plane's own backend is changed at start, not here")
            if existing is not None:
                await self._check_still_offered(backend)
            return backend

        return await self._store.put(
            BACKENDS,
            [backend.backend_id],
            build,
            actor=actor(context),
            condition=condition,
            request=request,
        )

    async def get(self, context: RequestContext, backend_id: str) -> Stored[Backend]:
        require_system_admin(context)
        return await self._store.get(BACKENDS, backend_id)

    async def list(
        self, context: RequestContext, *, after: str | None = None, limit: int = 100, descending: bool = False
    ) -> Listing[Backend]:
        require_system_admin(context)
        return await self._store.page(BACKENDS, after=after, limit=limit, descending=descending)

    async def delete(
        self,
        context: RequestContext,
        backend_id: str,
        *,
        condition: Condition,
        request: Request | None = None,
    ) -> Stored[Backend]:
        """Raises Conflict while a route leads to it, NotFound, PreconditionRequired."""
        require_system_admin(context)
        condition.required()
        await self._service.admit(context)

        async def check(existing: Backend) -> None:
            if await self._store.scan_index("i", "routed", existing.backend_id, limit=1):
                raise Conflict("routes lead to this backend; delete or change them first")
            for move in await moves_under_way(self._store):
                if existing.backend_id in (move.source_backend_id, move.target_backend_id):
                    raise Conflict(f"a kind of {move.tenant_id} is being moved to or from this backend")

        return await self._store.delete(
            BACKENDS, [backend_id], actor=actor(context), condition=condition, request=request, check=check
        )

    async def probe(self, context: RequestContext, backend_id: str) -> Probe:
        """Write, read back and delete on the real thing. Never raises for what the backend does."""
        require_system_admin(context)
        stored = await self._store.get(BACKENDS, backend_id)
        return await probe(self._backends, stored.record)

    async def _check_still_offered(self, backend: Backend) -> None:
        for move in await moves_under_way(self._store):
            if move.target_backend_id == backend.backend_id and not is_offered(backend, move.tenant_id):
                raise Conflict(
                    f"a kind of {move.tenant_id} is being moved to this backend", field="offered_to"
                )
        after: str | None = None
        while backend.offered_to != "*":
            page = await self._store.scan_index(
                "i", "routed", backend.backend_id, after=after, limit=SCAN_LIMIT_MAX
            )
            for routed in page:
                owner = routed.split("!", 1)[0]
                if not is_offered(backend, owner):
                    raise Conflict(f"a route of {owner} leads to this backend", field="offered_to")
            if not page:
                return
            after = page[-1]


class Routes:
    """`/routes`: a tenant's own for its owner, t_system's for its admins."""

    def __init__(self, service: Service, router: Router) -> None:
        self._service = service
        self._store = service.store
        self._router = router

    async def put(
        self,
        context: RequestContext,
        kind: str,
        backend_id: str,
        *,
        scope: RouteScope,
        options: Mapping[str, Any],
        condition: Condition,
        request: Request | None = None,
    ) -> Stored[Route]:
        """Raises Forbidden, PreconditionRequired, Invalid, ForbiddenBackendClass, MissingRoute (no spine)."""
        owner = self._owner_for_change(context)
        condition.required()
        named = kind_named(kind)
        mends = named.name == EVENT_SPINE
        if not mends:
            await self._service.admit(context)
        check_options(named, options)
        _check_scope(owner, scope)

        async def build(existing: Route | None) -> Route:
            checked = await self._checked_scope(owner, scope)
            await self._check_backend(owner, checked, backend_id, named.name)
            await self._check_not_moving(owner, named.name)
            return Route(
                tenant_id=owner,
                resource_kind=named.name,
                scope=checked,
                backend_id=backend_id,
                options=dict(options),
                generation=await self._generation(owner, named.name, backend_id, existing),
            )

        ids = route_ids(owner, named.name, _folded(scope))
        return await self._store.put(
            ROUTES,
            ids,
            build,
            actor=actor(context, owner),
            condition=condition,
            request=request,
            mends=mends,
        )

    async def delete(
        self,
        context: RequestContext,
        kind: str,
        scope: RouteScope,
        *,
        condition: Condition,
        request: Request | None = None,
    ) -> Stored[Route]:
        """Raises Forbidden (a control-plane kind's route stays), PreconditionRequired, NotFound."""
        owner = self._owner_for_change(context)
        condition.required()
        named = kind_named(kind)
        await self._service.admit(context)
        _check_scope(owner, scope)
        if named.name in CONTROL_KINDS and owner == SYSTEM_TENANT:
            raise Forbidden("the routes of the control plane's own kinds cannot be deleted")
        ids = route_ids(owner, named.name, _folded(scope))

        async def check(existing: Route) -> None:
            await self._check_not_moving(owner, named.name)
            was_moved = await settled_generation(self._store, owner, named.name) > 0
            if was_moved and existing.scope == RouteScope():
                raise Conflict(
                    "this kind was moved: without the route, a default of t_system would show what was"
                    " left behind. Move it, or put another route"
                )

        return await self._store.delete(
            ROUTES, ids, actor=actor(context, owner), condition=condition, request=request, check=check
        )

    async def list(
        self, context: RequestContext, *, after: str | None = None, limit: int = 100, descending: bool = False
    ) -> Listing[Route]:
        """The owner's routes, by kind. Raises Forbidden."""
        require_in_tenant(context, "routes.read")
        return await self._store.page(
            ROUTES, self._owner(context), after=after, limit=limit, descending=descending
        )

    async def history(
        self,
        context: RequestContext,
        kind: str,
        scope: RouteScope,
        *,
        after: str | None = None,
        limit: int = 100,
        descending: bool = False,
    ) -> Listing[Route]:
        """Every version of one route, deletions included. Raises Forbidden, Invalid."""
        require_in_tenant(context, "routes.read")
        _check_scope(self._owner(context), scope)
        ids = route_ids(self._owner(context), kind_named(kind).name, _folded(scope))
        return await self._store.versions(ROUTES, *ids, after=after, limit=limit, descending=descending)

    async def resolve(self, context: RequestContext, kind: str) -> Resolution:
        """The winner for this context, or for the tenant that an admin named. Raises MissingRoute."""
        require_in_tenant(context, "routes.read")
        return await self._router.resolve(kind_named(kind).name, await self.where(context))

    async def where(self, context: RequestContext) -> Where:
        """What routing looks at for the tenant that the call is about."""
        if context.acting_on is None:
            return where(context)
        tenant = (await self._store.get(TENANTS, context.acting_on)).record
        return at_home(tenant)

    def _owner(self, context: RequestContext) -> str:
        return context.target_tenant_id

    def _owner_for_change(self, context: RequestContext) -> str:
        owner = self._owner(context)
        if owner == SYSTEM_TENANT:
            require_system_admin(context)
        else:
            require_in_tenant(context, "routes.write")
        return owner

    async def _checked_scope(self, owner: str, scope: RouteScope) -> RouteScope:
        folded = _folded(scope)
        if scope.surface_id is not None:
            surface_id = await self._store.resolve_index(surface_key(folded.surface_id or ""))
            if surface_id != folded.surface_id:
                raise Invalid("name an existing surface by its id", field="scope.surface_id")
        if scope.app_id is not None and await self._store.read(APPS, scope.app_id) is None:
            raise Invalid("there is no such app", field="scope.app_id")
        if scope.mode is not None and await self._store.read(MODES, scope.mode) is None:
            raise Invalid("there is no such mode", field="scope.mode")
        if scope.project_id is not None and await self._store.read(PROJECTS, owner, scope.project_id) is None:
            raise ContextMismatch("this project is not yours", field="scope.project_id")
        tenant = await self._store.read(TENANTS, owner)
        if tenant is None:
            raise NotFound("there is no such tenant")
        if scope.env is not None and owner != SYSTEM_TENANT and scope.env not in tenant.record.envs:
            raise ContextMismatch("the tenant does not declare this env", field="scope.env")
        return folded

    async def _generation(self, owner: str, kind: str, backend_id: str, existing: Route | None) -> int:
        """Under which generation a kind lies where a route leads: its others' there, or the newest.

        So routes to one backend share what lies there, and none leads to what a move left behind.
        """
        if owner == SYSTEM_TENANT:
            return 0
        if existing is not None and existing.backend_id == backend_id:
            return existing.generation
        for route in await own_routes(self._store, owner, kind):
            if route.backend_id == backend_id:
                return route.generation
        return await settled_generation(self._store, owner, kind)

    async def _check_not_moving(self, owner: str, kind: str) -> None:
        move_id = await self._store.resolve_index(moving_key(owner, kind))
        if move_id is not None:
            raise Conflict(f"this kind is being moved: wait for move {move_id}, or cancel it")

    async def _check_backend(self, owner: str, scope: RouteScope, backend_id: str, kind: str) -> None:
        backend = await self._store.read(BACKENDS, backend_id)
        # An owner learns nothing of backends that were not offered to them.
        if backend is None or not is_offered(backend.record, owner):
            raise Invalid("no backend of this id is offered to you", field="backend_id")
        if kind in CONTROL_KINDS and backend_id != CONTROL_BACKEND:
            raise Invalid("the control plane's own kinds lie where it was started", field="backend_id")
        tenant = await self._store.get(TENANTS, owner)
        mode = scope.mode or tenant.record.mode
        stored = await self._store.get(MODES, mode)
        if backend.record.backend_class not in stored.record.allowed_classes:
            raise ForbiddenBackendClass(
                f"mode {mode} does not allow the class {backend.record.backend_class}",
                resource_kind=kind,
                scope={"mode": mode},
            )


def _check_scope(owner: str, scope: RouteScope) -> None:
    for name in ("app_id", "project_id", "mode"):
        if (value := getattr(scope, name)) is not None:
            check_id(value, f"scope.{name}")
    if scope.env is not None:
        check_env(scope.env, "scope.env")
    named = [
        name for name in ("surface_id", "app_id", "project_id", "mode") if getattr(scope, name) is not None
    ]
    if len(named) > 1:
        raise Invalid("a scope holds at most one of surface_id, app_id, project_id and mode", field="scope")
    if scope.mode is not None and owner != SYSTEM_TENANT:
        raise Invalid("only t_system's routes have a mode", field="scope.mode")
    if scope.project_id is not None and owner == SYSTEM_TENANT:
        raise Invalid("projects belong to tenants; t_system's routes have none", field="scope.project_id")


def _folded(scope: RouteScope) -> RouteScope:
    if scope.surface_id is None:
        return scope
    return msgspec.structs.replace(scope, surface_id=normalise_surface(scope.surface_id, "scope.surface_id"))
