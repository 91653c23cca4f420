"""The gate chain over HTTP: evaluations, kill switches, and what guards the actions of a surface."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import json_reply
from engines.api.views import repeats_path, repeats_tenant, shown, stored_reply
from engines.control.records import (
    RULES_MAX,
    SWITCHES_MAX,
    GateConfig,
    GateRule,
    KillSwitch,
    Name,
    Switch,
    TenantId,
    Text,
)
from engines.safety.asks import Decision, EvaluationInput

router = Router("gates", is_limited=False)

KillSwitchView = shown(KillSwitch)
GateConfigView = shown(GateConfig)


class EvaluateQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`explain`: show what each gate was told and what it said."""

    explain: bool = False


class KillSwitchInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be off: everything where `engaged`, and each of `switches`. `{}` lets go of all of it."""

    engaged: bool = False
    reason: Name | None = None
    switches: Annotated[tuple[Switch, ...], Meta(max_length=SWITCHES_MAX)] = ()
    tenant_id: TenantId | None = None


class GateConfigInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which gates guard which actions of the surface, in order, and what becomes of the others."""

    rules: Annotated[tuple[GateRule, ...], Meta(max_length=RULES_MAX)] = ()
    otherwise: Literal["base", "block"] = "base"
    surface_id: Text | None = None
    tenant_id: TenantId | None = None


@router.post("/gates/evaluate", body=EvaluationInput, query=EvaluateQuery, reply=Decision, is_limited=True)
async def evaluate(call: Call) -> Sendable:
    """Decide whether an action may happen, and record it on the spine before answering.

    An action that is refused is answered with 200 and `"decision": "block"`. Where the decision cannot be
    recorded the answer is 503, with `"decision": "block"` in the problem document.
    """
    context = await call.context()
    evaluation = await call.body(EvaluationInput)
    decided = await call.engines.gates.evaluate(
        context, evaluation, explain=call.query(EvaluateQuery).explain, request=call.request(context)
    )
    return json_reply(decided.answer, replayed=decided.replayed)


@router.put("/gates/kill-switch", body=KillSwitchInput, reply=KillSwitchView, has_etag=True)
async def put_kill_switch(call: Call) -> Sendable:
    """Switch off everything, surfaces or actions of the tenant; adopted everywhere within a second.

    A t_system admin switches off a tenant by naming it in X-Tenant-Id, and every tenant by naming none; what
    they hold only they let go of.
    """
    context = await call.context()
    body = await call.body(KillSwitchInput)
    repeats_tenant(body.tenant_id, context.target_tenant_id)
    stored = await call.engines.kill_switches.put(
        context,
        engaged=body.engaged,
        reason=body.reason,
        switches=body.switches,
        condition=call.condition(),
        request=call.request(context),
    )
    return stored_reply(KillSwitchView, stored)


@router.get("/gates/kill-switch", reply=KillSwitchView, has_etag=True)
async def get_kill_switch(call: Call) -> Sendable:
    """What the tenant itself holds; for a t_system admin what t_system holds for the tenant, or for all."""
    context = await call.context()
    return stored_reply(KillSwitchView, await call.engines.kill_switches.get(context))


@router.put("/gates/config/{surface_id}", body=GateConfigInput, reply=GateConfigView, has_etag=True)
async def put_gate_config(call: Call) -> Sendable:
    """Say which gates guard which actions of a surface.

    A t_system admin who names no tenant says it for every tenant that has no configuration of its own.
    """
    context = await call.context()
    body = await call.body(GateConfigInput)
    repeats_tenant(body.tenant_id, context.target_tenant_id)
    repeats_path(call, "surface_id", body.surface_id)
    config = GateConfig(
        tenant_id=context.target_tenant_id,
        surface_id=call.id("surface_id"),
        rules=body.rules,
        otherwise=body.otherwise,
    )
    stored = await call.engines.gate_configs.put(
        context, config, condition=call.condition(), request=call.request(context)
    )
    return stored_reply(GateConfigView, stored)


@router.get("/gates/config/{surface_id}", reply=GateConfigView, has_etag=True)
async def get_gate_config(call: Call) -> Sendable:
    """The tenant's own configuration of a surface; 404 where t_system's holds, or none."""
    context = await call.context()
    stored = await call.engines.gate_configs.get(context, call.id("surface_id"))
    return stored_reply(GateConfigView, stored)
