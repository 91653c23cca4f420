"""Requests for approval of something dangerous over HTTP."""

from __future__ import annotations

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import record_reply
from engines.api.views import ListQuery, Page, page_reply
from engines.stores.approval_records import AnswerInput, Approval, ApprovalFilter, ApprovalInput, Status

router = Router("approvals")


class ApprovalQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A list of requests, and what to leave out of it."""

    status: Status | None = None
    requested_by: str | None = None


@router.post("/approvals", body=ApprovalInput, reply=Approval, statuses=(201,), has_etag=True)
async def request_approval(call: Call) -> Sendable:
    """Ask whether an action may happen once, on one subject.

    A person answers; the yes is spent by the use that it admits, or expires.
    """
    context = await call.context()
    body = await call.body(ApprovalInput)
    change = await call.engines.approvals.request(context, body, request=call.request(context))
    return record_reply(change.record, change.etag, created=True, replayed=change.replayed)


@router.get("/approvals", query=ApprovalQuery, reply=Page[Approval])
async def list_approvals(call: Call) -> Sendable:
    """The tenant's requests, by creation."""
    query = call.query(ApprovalQuery)
    where = ApprovalFilter(query.status, query.requested_by)
    context = await call.context()
    return page_reply(await call.engines.approvals.list(context, where, window=query.window()))


@router.get("/approvals/{id}", reply=Approval, has_etag=True)
async def get_approval(call: Call) -> Sendable:
    """One request, and its answer."""
    record = await call.engines.approvals.get(await call.context(), call.id("id"))
    return record_reply(record, record.etag)


@router.post("/approvals/{id}/answer", body=AnswerInput, reply=Approval, has_etag=True, conditions="optional")
async def answer_approval(call: Call) -> Sendable:
    """Answer a request that waits: yes or no, by a person who did not ask."""
    context = await call.context()
    body = await call.body(AnswerInput)
    change = await call.engines.approvals.answer(
        context, call.id("id"), body, condition=call.condition(), request=call.request(context)
    )
    return record_reply(change.record, change.etag, replayed=change.replayed)
