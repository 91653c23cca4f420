"""What every control-plane service does: who may, who is told, and merging a patch.

Owns the rules that all tables share. Leaves each table's own rules to its service.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from engines.catalogue import EVENT_SPINE
from engines.control.store import Actor, ControlStore
from engines.errors import ContextMismatch, Forbidden, Invalid
from engines.scope import SYSTEM_TENANT, RequestContext

T = TypeVar("T", bound=msgspec.Struct)


class Routing(Protocol):
    """What the services ask of routing, which stands above them."""

    async def check(self, kind: str, context: RequestContext) -> None:
        """Raises MissingRoute, ForbiddenBackendClass, BackendRefused, Unavailable; opens no backend."""
        ...


class Service:
    """What the services are given: the store, and routing to ask whether a change may be made at all."""

    def __init__(self, store: ControlStore, routing: Routing) -> None:
        self.store = store
        self._routing = routing

    async def admit(self, context: RequestContext) -> None:
        """A state-changing call. Raises MissingRoute where the caller's spine could not be told of it."""
        await self._routing.check(EVENT_SPINE, context)


def require_system_admin(context: RequestContext) -> None:
    """Raises Forbidden for everybody else."""
    if not context.is_system_admin:
        raise Forbidden("only an admin of t_system may do this")


def require_in_tenant(context: RequestContext, permission: str) -> None:
    """An admin of t_system acts on any tenant; its own people need the permission. Raises Forbidden."""
    if not context.is_system_admin:
        context.require(permission)


def require_tenant(context: RequestContext, tenant_id: str, field: str = "tenant_id") -> None:
    """The tenant that a path or body names must be the caller's. Raises ContextMismatch."""
    if context.is_system_admin:
        if context.acting_on is not None and context.acting_on != tenant_id:
            raise ContextMismatch("the request names two tenants", field=field)
    elif tenant_id != context.tenant_id:
        raise ContextMismatch("this tenant is not yours", field=field)


def actor(context: RequestContext, about: str = SYSTEM_TENANT) -> Actor:
    """Who changes something about tenant `about`: its spine is told, and the caller's own."""
    return Actor(
        user_id=context.user_id,
        tenant_id=context.tenant_id,
        request_id=context.request_id,
        tenants=tuple(dict.fromkeys((about, context.tenant_id))),
    )


def merged(existing: T, changes: Mapping[str, Any], *, fixed: tuple[str, ...] = ()) -> T:
    """`existing` with some members replaced. Raises Invalid for a member that is fixed or does not fit."""
    present = msgspec.to_builtins(existing)
    for field in fixed:
        if field in changes and changes[field] != present.get(field):
            raise Invalid("this member cannot be changed", field=field)
    try:
        return msgspec.convert({**present, **changes}, type(existing))
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise Invalid(message, field=path.rstrip("`") or None) from error
