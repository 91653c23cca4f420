"""Whether the process lives, is ready, and which kinds of a tenant can be used."""

from __future__ import annotations

from typing import Literal

import msgspec

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.metrics import MEDIA_TYPE
from engines.api.reply import Reply, json_reply
from engines.api.views import Page
from engines.catalogue import KINDS, RESERVED, RESERVED_DETAIL, Kind
from engines.control.service import require_in_tenant
from engines.errors import EnginesError, Forbidden, Unavailable
from engines.routing.diagnostics import KindReport
from engines.scope import SYSTEM_TENANT, RequestContext
from engines.stores.presence import holds_anything

router = Router("diagnostics", is_limited=False)

METRICS_PERMISSION = "metrics.read"


class Health(msgspec.Struct, frozen=True):
    """The process answers; `ready` also means that it started and reaches its control plane."""

    status: Literal["live", "ready"]


class Area(msgspec.Struct, frozen=True, omit_defaults=True):
    """One area of the product, as this caller finds it. `reason_code` and `reason` say what blocks it."""

    area: str
    state: Literal["empty", "blocked", "ready"]
    reason_code: str | None = None
    reason: str | None = None


class Bootstrap(msgspec.Struct, frozen=True):
    """What a client needs to draw its first screen."""

    tenant_id: str
    user_id: str
    mode: str
    env: str
    surface_id: str
    lab: bool
    areas: tuple[Area, ...]


@router.get("/health/live", reply=Health, access="public")
async def get_live(_: Call) -> Sendable:
    """The process answers."""
    return json_reply(Health("live"))


@router.get("/health/ready", reply=Health, access="public")
async def get_ready(call: Call) -> Sendable:
    """It has started and reaches its control plane; backends of tenants are not looked at."""
    if not call.engines.directory.is_fresh:
        raise Unavailable("the control plane does not answer", retry_after_s=1.0)
    return json_reply(Health("ready"))


@router.get("/metrics", media_type=MEDIA_TYPE, reply=str)
async def get_metrics(call: Call) -> Sendable:
    """Numbers of this process, for Prometheus; t_system's admins and keys of a role that may read them."""
    context = await call.context()
    if not context.is_system_admin:
        if context.tenant_id != SYSTEM_TENANT:
            raise Forbidden("metrics are the operator's")
        context.require(METRICS_PERMISSION)
    return Reply(200, call.metrics.exposition(), ((b"content-type", MEDIA_TYPE.encode()),))


@router.get("/diagnostics/routes", reply=Page[KindReport])
async def get_routes_report(call: Call) -> Sendable:
    """Each kind of the tenant: ready, missing, forbidden or unreachable; and those that are reserved.

    Each backend is written to and read back, but no more often than every few seconds.
    """
    context = await call.context()
    require_in_tenant(context, "routes.read")
    engines = call.engines
    report = await engines.diagnostics.report(await engines.routes.where(context))
    return json_reply(Page(tuple(report), None))


@router.get("/bootstrap", reply=Bootstrap)
async def get_bootstrap(call: Call) -> Sendable:
    """For each area of the product, whether it is empty, blocked (and why) or ready, for this caller."""
    context = await call.context()
    return json_reply(
        Bootstrap(
            tenant_id=context.tenant_id,
            user_id=context.user_id,
            mode=context.mode,
            env=context.env,
            surface_id=context.surface_id,
            lab=context.lab,
            areas=tuple([await _area(call, context, kind) for kind in KINDS]),
        )
    )


async def _area(call: Call, context: RequestContext, kind: Kind) -> Area:
    if kind in RESERVED:
        return Area(kind.name, "blocked", "Reserved", RESERVED_DETAIL)
    if not kind.served:
        return Area(kind.name, "blocked", "NotServed", "this server does not serve the kind")
    try:
        holds = await holds_anything(call.engines.router, kind.name, context)
    except EnginesError as error:
        return Area(kind.name, "blocked", error.code, error.detail)
    return Area(kind.name, "ready" if holds else "empty")
