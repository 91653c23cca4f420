"""Routes over HTTP: which backend holds a kind, for which scope."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import deleted_reply, record_reply
from engines.api.views import ControlList, ListQuery, Page, repeats_path, shown, stored_reply
from engines.catalogue import kind_named
from engines.control.records import Id, Route
from engines.control.tables import route_ids
from engines.routing.router import Looked
from engines.scope import RouteScope

router = Router("routes", is_limited=False)


RouteView = shown(Route)
RouteVersionView: Any = msgspec.defstruct(
    "RouteVersionView", [("deleted", bool)], bases=(RouteView,), frozen=True, kw_only=True
)
RouteVersionView.__doc__ = "One version of a route. `deleted`: the change was its deletion."


class RouteInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a kind lies from now on. A scope holds at most one of its first four members, and an env."""

    resource_kind: Id | None = None
    backend_id: Id
    scope: RouteScope = RouteScope()
    options: dict[str, Any] = {}


class ScopeQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The scope of one route; the default route's where it is left out."""

    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    mode: str | None = None
    env: str | None = None

    def scope(self) -> RouteScope:
        return RouteScope(self.surface_id, self.app_id, self.project_id, self.mode, self.env)


class HistoryQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One route's scope, and a part of its history."""

    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    mode: str | None = None
    env: str | None = None

    def scope(self) -> RouteScope:
        return RouteScope(self.surface_id, self.app_id, self.project_id, self.mode, self.env)


class ResolutionView(msgspec.Struct, frozen=True):
    """The winning route, whose ETag the answer carries, and every scope looked at on the way to it."""

    route: Route
    etag: str
    looked_at: tuple[Looked, ...]


@router.get("/routes", query=ListQuery, reply=Page[RouteView])  # type: ignore[valid-type]
async def list_routes(call: Call) -> Sendable:
    """The routes of the tenant that the request is about, by kind."""
    context = await call.context()
    page = ControlList(context, call.query(ListQuery), "routes")
    listing = await call.engines.routes.list(
        context, after=page.after, limit=page.limit, descending=page.descending
    )
    return page.reply(RouteView, listing)


@router.put("/routes/{resource_kind}", body=RouteInput, reply=RouteView, has_etag=True, conditions="required")
async def put_route(call: Call) -> Sendable:
    """Say where a kind lies, by its name or an alias.

    Without a scope it is t_system's default for its admin (unless X-Tenant-Id names a tenant), and the
    tenant's own for an owner.
    """
    context = await call.context()
    body = await call.body(RouteInput)
    repeats_path(call, "resource_kind", body.resource_kind)
    stored = await call.engines.routes.put(
        context,
        call.id("resource_kind"),
        body.backend_id,
        scope=body.scope,
        options=body.options,
        condition=call.condition(),
        request=call.request(context),
    )
    return stored_reply(RouteView, stored)


@router.delete("/routes/{resource_kind}", query=ScopeQuery, conditions="required")
async def delete_route(call: Call) -> Sendable:
    """Delete the route of one scope."""
    context = await call.context()
    scope = call.query(ScopeQuery).scope()
    stored = await call.engines.routes.delete(
        context,
        call.id("resource_kind"),
        scope,
        condition=call.condition(),
        request=call.request(context),
    )
    return deleted_reply(replayed=stored.replayed)


@router.get("/routes/{resource_kind}/resolve", reply=ResolutionView, has_etag=True)
async def resolve_route(call: Call) -> Sendable:
    """Which route wins for this context, and every scope that was looked at."""
    found = await call.engines.routes.resolve(await call.context(), call.id("resource_kind"))
    return record_reply(ResolutionView(found.route, found.etag, found.looked_at), found.etag)


@router.get("/routes/{resource_kind}/history", query=HistoryQuery, reply=Page[RouteVersionView])
async def list_route_versions(call: Call) -> Sendable:
    """Every version of one route, its deletions included."""
    context = await call.context()
    query = call.query(HistoryQuery)
    scope = query.scope()
    kind = kind_named(call.id("resource_kind")).name
    page = ControlList(context, query, "history", *route_ids(context.target_tenant_id, kind, scope))
    listing = await call.engines.routes.history(
        context, kind, scope, after=page.after, limit=page.limit, descending=page.descending
    )
    return page.reply(RouteVersionView, listing)
