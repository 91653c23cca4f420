"""Tokens that agents took, over HTTP."""

from __future__ import annotations

from engines.agent.telemetry import SessionDay, TokenReport, TokensInput, TokensQuery
from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import json_reply, record_reply

router = Router("telemetry")


class ReportQuery(TokensQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which days to add up, as `2026-11-21`, both included, and by what."""


@router.post("/telemetry/tokens", body=TokensInput, reply=SessionDay, statuses=(201,), has_etag=True)
async def count_tokens(call: Call) -> Sendable:
    """Count what calls of a model took.

    It is added to today's counters of the session, which are answered. Without an Idempotency-Key a repeat
    counts again.
    """
    context = await call.context()
    tokens = await call.body(TokensInput)
    change = await call.engines.agent.telemetry.count(context, tokens, request=call.request(context))
    return record_reply(change.record, change.etag, created=True, replayed=change.replayed)


@router.get("/telemetry/tokens", query=ReportQuery, reply=TokenReport)
async def report_tokens(call: Call) -> Sendable:
    """The caller's tokens: their sum over days, and by model, session or day.

    Without `since` and `until` it is the last thirty days.
    """
    query = call.query(ReportQuery)
    return json_reply(await call.engines.agent.telemetry.report(await call.context(), query))
