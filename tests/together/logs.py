"""Every log that is appended to, and how to get at it by both doors.

Owns the rows; a kind that begins to be served needs one here or in `records.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import engines
from engines import catalogue
from engines.agent.checkpoints import CheckpointInput
from engines.agent.messages import MessageInput
from engines.agent.telemetry import TokensInput, TokensQuery
from engines.agent.traces import TraceInput
from engines.client import (
    AsyncEngines,
    NewAnalyticsEvent,
    NewEvent,
    NewTrace,
    NewUsage,
)
from engines.safety.asks import EvaluationInput
from engines.scope import RequestContext
from engines.stores import analytics, budget_records, event_records, kpi_records
from engines.stores.events import EventFilter
from engines.stores.scoped import Change
from tests.together.doors import Log, LogDoor, under


def _numbers(events: Sequence[Any]) -> list[int]:
    return [event.payload["n"] for event in events if "n" in event.payload]


def _spine_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = NewEvent(event_type="message", payload={"n": number})
        return await client.events.append([event], idempotency_key=key)

    async def listed() -> list[int]:
        return _numbers([event async for event in client.events.each(event_type="message")])

    return LogDoor(append=append, listed=listed)


def _spine_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = event_records.NewEvent(event_type="message", payload={"n": number})
        return (await opened.spine.append(who, [event], request=under(key))).events

    async def listed() -> list[int]:
        return _numbers((await opened.spine.list(who, EventFilter(event_type="message"))).items)

    return LogDoor(append=append, listed=listed)


def _stream_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = NewEvent(event_type="message", payload={"n": number})
        return await client.streams.append("s", [event], idempotency_key=key)

    async def listed() -> list[int]:
        return _numbers([event async for event in client.streams.each("s")])

    return LogDoor(append=append, listed=listed)


def _stream_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = event_records.NewEvent(event_type="message", payload={"n": number})
        return (await opened.streams.append(who, "s", [event], request=under(key))).events

    async def listed() -> list[int]:
        return _numbers((await opened.streams.list(who, "s")).items)

    return LogDoor(append=append, listed=listed)


def _measured_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        return await client.kpis.measure("measured", number, idempotency_key=key)

    async def listed() -> list[int]:
        return [int(one.value or 0) async for one in client.kpis.each_measurement("measured")]

    return LogDoor(append=append, listed=listed)


def _measured_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        said = kpi_records.MeasurementInput(value=float(number))
        return (await opened.kpis.measure(who, "measured", said, request=under(key))).record

    async def listed() -> list[int]:
        return [int(one.value or 0) for one in (await opened.kpis.measurements(who, "measured")).items]

    return LogDoor(append=append, listed=listed)


def _usage_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        usage = NewUsage(units=number, cost=Decimal("0.1"), currency="USD")
        return await client.budget.record(usage, idempotency_key=key)

    async def listed() -> list[int]:
        return [entry.units async for entry in client.budget.each()]

    return LogDoor(append=append, listed=listed)


def _usage_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        usage = budget_records.UsageInput(units=number, cost="0.1", currency="USD")
        return (await opened.budget.record(who, usage, request=under(key))).record

    async def listed() -> list[int]:
        return [entry.units for entry in (await opened.budget.usage(who)).items]

    return LogDoor(append=append, listed=listed)


def _analytics_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = NewAnalyticsEvent(event_type="page_view", payload={"n": number})
        ingested = await client.analytics.ingest([event], idempotency_key=key)
        assert ingested.accepted == 1
        return ingested

    async def listed() -> list[int]:
        return _numbers([event async for event in client.analytics.each(event_type="page_view")])

    return LogDoor(append=append, listed=listed)


def _analytics_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = analytics.NewAnalyticsEvent(event_type="page_view", payload={"n": number})
        ingested = await opened.analytics.ingest(who, [event], request=under(key))
        assert ingested.accepted == 1
        return ingested.events

    async def listed() -> list[int]:
        where = analytics.AnalyticsFilter(event_type="page_view")
        return _numbers((await opened.analytics.list(who, where)).items)

    return LogDoor(append=append, listed=listed)


def _decided_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        return await client.gates.evaluate(f"act-{number}", idempotency_key=key)

    async def listed() -> list[int]:
        return _actions([event async for event in client.events.each(event_type="safety")])

    return LogDoor(append=append, listed=listed)


def _decided_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        asked_for = EvaluationInput(action=f"act-{number}")
        return (await opened.gates.evaluate(who, asked_for, request=under(key))).answer

    async def listed() -> list[int]:
        return _actions((await opened.spine.list(who, EventFilter(event_type="safety"))).items)

    return LogDoor(append=append, listed=listed)


def _actions(events: Sequence[Any]) -> list[int]:
    return [int(event.payload["action"].removeprefix("act-")) for event in events]


class _InSession:
    """What one session has several of: each test begins another session, which its doors lead into."""

    session_id = "s_none"

    def __init__(self, part: str) -> None:
        self.part = part

    async def begin(self, client: AsyncEngines) -> None:
        self.session_id = (await client.sessions.create(title=self.part)).session_id

    def by_client(self, client: AsyncEngines) -> LogDoor:
        group = getattr(client, self.part)

        async def append(number: int, key: str) -> Any:
            if self.part == "messages":
                return await group.append(self.session_id, "user", number, idempotency_key=key)
            if self.part == "checkpoints":
                return await group.save(self.session_id, number, idempotency_key=key)
            trace = NewTrace(name=str(number), started_at=_NOON, ended_at=_NOON)
            return await group.record(self.session_id, trace, idempotency_key=key)

        async def listed() -> list[int]:
            return [_number_in(record) async for record in group.each(self.session_id)]

        return LogDoor(append=append, listed=listed)

    def in_process(self, opened: engines.Engines, who: RequestContext) -> LogDoor:
        agent = opened.agent

        async def append(number: int, key: str) -> Any:
            change: Change[Any]
            if self.part == "messages":
                said = MessageInput(role="user", content=number)
                change = await agent.messages.append(who, self.session_id, said, request=under(key))
            elif self.part == "checkpoints":
                state = CheckpointInput(state=number)
                change = await agent.checkpoints.save(who, self.session_id, state, request=under(key))
            else:
                trace = TraceInput(name=str(number), started_at=_NOON, ended_at=_NOON)
                change = await agent.traces.record(who, self.session_id, trace, request=under(key))
            return change.record

        async def listed() -> list[int]:
            store = getattr(agent, self.part)
            return [_number_in(record) for record in (await store.list(who, self.session_id)).items]

        return LogDoor(append=append, listed=listed)


_NOON: Final = "2026-11-21T12:00:00Z"


def _number_in(record: Any) -> int:
    """What a message, a checkpoint or a trace says."""
    said = record.content if hasattr(record, "content") else getattr(record, "state", None)
    return int(record.name if said is None else said)


def _in_session(part: str, kind: str) -> Log:
    parts = _InSession(part)
    return Log(name=part, kind=kind, client=parts.by_client, process=parts.in_process, prepare=parts.begin)


def _tokens_by_client(client: AsyncEngines) -> LogDoor:
    """Each number is counted of a model of its own, so that who is counted twice is another number."""

    async def append(number: int, key: str) -> Any:
        return await client.telemetry.count("p", str(number), tokens_in=number, idempotency_key=key)

    async def listed() -> list[int]:
        return [group.tokens_in for group in (await client.telemetry.report()).groups]

    return LogDoor(append=append, listed=listed)


def _tokens_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        tokens = TokensInput(provider="p", model=str(number), tokens_in=number)
        return (await opened.agent.telemetry.count(who, tokens, request=under(key))).record

    async def listed() -> list[int]:
        return [group.tokens_in for group in (await opened.agent.telemetry.report(who, TokensQuery())).groups]

    return LogDoor(append=append, listed=listed)


LOGS: Final = (
    Log(name="spine", kind=catalogue.EVENT_SPINE, client=_spine_by_client, process=_spine_in_process),
    Log(name="stream", kind=catalogue.EVENT_STREAM, client=_stream_by_client, process=_stream_in_process),
    Log(
        name="measurements",
        kind=catalogue.KPIS,
        client=_measured_by_client,
        process=_measured_in_process,
        prepare=lambda client: client.kpis.create({"aggregation": "sum"}, definition_id="measured"),
    ),
    Log(name="usage", kind=catalogue.BUDGET, client=_usage_by_client, process=_usage_in_process),
    Log(
        name="analytics",
        kind=catalogue.ANALYTICS,
        client=_analytics_by_client,
        process=_analytics_in_process,
    ),
    _in_session("messages", catalogue.SESSIONS),
    _in_session("checkpoints", catalogue.CHECKPOINTS),
    _in_session("traces", catalogue.TRACES),
    Log(name="tokens", kind=catalogue.TELEMETRY, client=_tokens_by_client, process=_tokens_in_process),
    Log(name="decisions", kind=catalogue.EVENT_SPINE, client=_decided_by_client, process=_decided_in_process),
)
