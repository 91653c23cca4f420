"""Data subjects over HTTP: erasing what a user left in a tenant, and holding it."""

from __future__ import annotations

import msgspec

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import deleted_reply, json_reply
from engines.api.views import repeats_path, repeats_tenant, shown, stored_reply, view_of
from engines.control.records import DataSubject, Id, TenantId, Text

router = Router("people's data", is_limited=False)

DataSubjectView = shown(DataSubject)
ERASE = "/users/{user_id}/erase"
HOLD = "/users/{user_id}/hold"


class HoldInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why everything is to be kept. The ids may repeat the request's."""

    reason: Text
    user_id: Id | None = None
    tenant_id: TenantId | None = None


@router.post(ERASE, reply=DataSubjectView, statuses=(200, 202))
async def erase_user(call: Call) -> Sendable:
    """End a user's membership, and remove or redact everything that they left in the tenant.

    A call works for some ten seconds; 202 and `"state": "running"` mean that it has to be sent again, and
    goes on where it was. 200 and `"state": "erased"` mean that a last pass over everything found nothing.
    """
    context = await call.context()
    stored = await call.engines.erasures.erase(context, call.id("user_id"))
    erasure = stored.record.erasure
    is_running = erasure is not None and erasure.state == "running"
    return json_reply(view_of(DataSubjectView, stored), status=202 if is_running else 200)


@router.get(ERASE, reply=DataSubjectView, has_etag=True)
async def get_erasure(call: Call) -> Sendable:
    """Whether a user's data is held, and how far their erasure is."""
    context = await call.context()
    return stored_reply(DataSubjectView, await call.engines.subjects.get(context, call.id("user_id")))


@router.put(HOLD, body=HoldInput, reply=DataSubjectView, has_etag=True)
async def put_hold(call: Call) -> Sendable:
    """Keep everything that a user left in the tenant: nothing erases it until the hold is lifted."""
    context = await call.context()
    body = await call.body(HoldInput)
    repeats_path(call, "user_id", body.user_id)
    repeats_tenant(body.tenant_id, context.target_tenant_id)
    stored = await call.engines.subjects.hold(
        context,
        call.id("user_id"),
        body.reason,
        condition=call.condition(),
        request=call.request(context),
    )
    return stored_reply(DataSubjectView, stored)


@router.delete(HOLD)
async def lift_hold(call: Call) -> Sendable:
    """End a hold."""
    context = await call.context()
    stored = await call.engines.subjects.lift(
        context, call.id("user_id"), condition=call.condition(), request=call.request(context)
    )
    return deleted_reply(replayed=stored.replayed)
