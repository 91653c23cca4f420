"""Backends, routes, diagnostics and the caller's own context.

Owns paths, parameters and types of these calls. Leaves who may change what to the server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from engines.client.calls import NOTHING, Calls, Condition, Order
from engines.client.control_results import (
    Backend,
    BackendClass,
    KindState,
    Move,
    MovePlan,
    Probe,
    Resolution,
    Route,
    RouteScope,
)
from engines.client.results import Page
from engines.client.retry import Repeat

DEFAULT_SCOPE = RouteScope()


class Backends:
    """Databases as data; t_system's admins write them."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def put(
        self,
        backend_id: str,
        *,
        driver: str,
        backend_class: BackendClass,
        config: Mapping[str, Any],
        secrets: Mapping[str, str] | None = None,
        offered_to: Sequence[str] | Literal["*"] = (),
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> Backend:
        """Create (`if_absent`) or replace (`if_match`). `secrets` maps the driver's names to handles."""
        body = {
            "driver": driver,
            "class": backend_class,
            "config": dict(config),
            "secrets": dict(secrets or {}),
            "offered_to": "*" if offered_to == "*" else list(offered_to),
        }
        return await self._calls.change(
            Backend,
            "PUT",
            *("backends", backend_id),
            body=body,
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def get(self, backend_id: str) -> Backend:
        """One backend. Raises NotFound."""
        return await self._calls.get(Backend, "backends", backend_id)

    async def page(
        self, *, limit: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Page[Backend]:
        """One page, by id."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(Backend, "backends", query=query)

    def each(self, *, order: Order | None = None) -> AsyncGenerator[Backend, None]:
        """Every backend."""
        return self._calls.each(Backend, "backends", query={"order": order})

    async def delete(self, backend_id: str, *, if_match: str, idempotency_key: str | None = None) -> None:
        """Raises NotFound, PreconditionFailed, Conflict while a route leads to it."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("backends", backend_id),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def probe(self, backend_id: str) -> Probe:
        """Write, read back and delete on the real thing; it leaves nothing, so it may be repeated freely."""
        return await self._calls.change(Probe, "POST", "backends", backend_id, "probe", repeat=Repeat.READ)


class Routes:
    """Where each kind of the caller's tenant lies; `client.bound(tenant_id=…)` names another for t_system."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def page(
        self, *, limit: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Page[Route]:
        """One page of the owner's routes, by kind."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(Route, "routes", query=query)

    def each(self, *, order: Order | None = None) -> AsyncGenerator[Route, None]:
        """Every route of the owner."""
        return self._calls.each(Route, "routes", query={"order": order})

    async def put(
        self,
        resource_kind: str,
        backend_id: str,
        *,
        scope: RouteScope = DEFAULT_SCOPE,
        options: Mapping[str, Any] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> Route:
        """Create (`if_absent`) or replace (`if_match`). Raises ForbiddenBackendClass, Invalid."""
        body = {"backend_id": backend_id, "scope": scope, "options": dict(options or {})}
        return await self._calls.change(
            Route,
            "PUT",
            *("routes", resource_kind),
            body=body,
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def delete(
        self,
        resource_kind: str,
        *,
        scope: RouteScope = DEFAULT_SCOPE,
        if_match: str,
        idempotency_key: str | None = None,
    ) -> None:
        """Raises NotFound, PreconditionFailed, Forbidden for the control plane's own kinds."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("routes", resource_kind),
            query=msgspec.structs.asdict(scope),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def resolve(self, resource_kind: str) -> Resolution:
        """The route that answers for the kind in the caller's context. Raises MissingRoute."""
        return await self._calls.get(Resolution, "routes", resource_kind, "resolve")

    def history(
        self, resource_kind: str, *, scope: RouteScope = DEFAULT_SCOPE, order: Order | None = None
    ) -> AsyncGenerator[Route, None]:
        """Every version of one route, deletions included."""
        query = {**msgspec.structs.asdict(scope), "order": order}
        return self._calls.each(Route, "routes", resource_kind, "history", query=query)


class Moves:
    """Kinds of the caller's tenant on their way to another backend."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def start(
        self,
        resource_kind: str,
        backend_id: str,
        *,
        retire: bool = False,
        idempotency_key: str | None = None,
    ) -> Move:
        """Begin a move. `retire`: remove what is left behind. Raises Conflict where one is under way."""
        return await self._calls.change(
            Move,
            "POST",
            *("routes", resource_kind, "move"),
            body={"backend_id": backend_id, "retire": retire},
            idempotency_key=idempotency_key,
        )

    async def plan(self, resource_kind: str, backend_id: str) -> MovePlan:
        """What `start` would move; nothing is changed."""
        body = {"backend_id": backend_id, "dry_run": True}
        return await self._calls.change(
            MovePlan, "POST", "routes", resource_kind, "move", body=body, repeat=Repeat.READ
        )

    async def get(self, move_id: str) -> Move:
        """A move and how far it has come. Raises NotFound."""
        return await self._calls.get(Move, "moves", move_id)

    def each(self, *, order: Order | None = None) -> AsyncGenerator[Move, None]:
        """Every move of the tenant, by kind, without their progress."""
        return self._calls.each(Move, "moves", query={"order": order})

    async def cancel(self, move_id: str, *, idempotency_key: str | None = None) -> Move:
        """Take it back. Raises Conflict once readers have changed sides."""
        return await self._calls.change(
            Move, "POST", "moves", move_id, "cancel", idempotency_key=idempotency_key
        )

    async def retire(self, move_id: str, *, idempotency_key: str | None = None) -> Move:
        """Remove for ever what was left behind. Raises Conflict before the move is done."""
        return await self._calls.change(
            Move, "POST", "moves", move_id, "retire", idempotency_key=idempotency_key
        )


class Diagnostics:
    """Whether a server runs, and whether each kind of a tenant can be used."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def live(self) -> None:
        """The process answers. Raises Unavailable."""
        await self._calls.get(NOTHING, "health", "live")

    async def ready(self) -> None:
        """The server has started and reaches its control plane. Raises Unavailable."""
        await self._calls.get(NOTHING, "health", "ready")

    async def routes(self) -> tuple[KindState, ...]:
        """The state of each kind: ready, missing, forbidden or unreachable."""
        return (await self._calls.page(KindState, "diagnostics", "routes")).items

    async def bootstrap(self) -> dict[str, Any]:
        """For each area of the product whether it is empty, blocked (and why) or ready."""
        return await self._calls.get(dict[str, Any], "bootstrap")
