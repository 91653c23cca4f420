"""Deciding about strategy locks over HTTP; their other calls are those of every definition."""

from __future__ import annotations

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import record_reply
from engines.stores.definition_records import Definition
from engines.stores.strategy_locks import LockDecisionInput

router = Router("strategy-locks")
LOCK = "/strategy-locks/{id}"


@router.post(
    f"{LOCK}/approve", body=LockDecisionInput, reply=Definition, has_etag=True, conditions="required"
)
async def approve_strategy_lock(call: Call) -> Sendable:
    """Approve a draft that others proposed, in the version that was read.

    Its actions may happen within its window from now on.
    """
    context = await call.context()
    body = await call.optional_body(LockDecisionInput)
    change = await call.engines.strategy_locks.approve(
        context, call.id("id"), body, condition=call.condition(), request=call.request(context)
    )
    return record_reply(change.record, change.etag, replayed=change.replayed)


@router.post(f"{LOCK}/reject", body=LockDecisionInput, reply=Definition, has_etag=True, conditions="required")
async def reject_strategy_lock(call: Call) -> Sendable:
    """Reject a draft that others proposed, in the version that was read."""
    context = await call.context()
    body = await call.optional_body(LockDecisionInput)
    change = await call.engines.strategy_locks.reject(
        context, call.id("id"), body, condition=call.condition(), request=call.request(context)
    )
    return record_reply(change.record, change.etag, replayed=change.replayed)
