"""Every log that is appended to, and how to get at it by both doors.

Owns the rows; a kind that begins to be served needs one here or in `records.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import engines
from engines import catalogue
from engines.client import (
    AsyncEngines,
    NewAnalyticsEvent,
    NewEvent,
    NewUsage,
)
from engines.safety.asks import EvaluationInput
from engines.scope import RequestContext
from engines.stores import analytics, budget_records, event_records, kpi_records
from engines.stores.events import EventFilter
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
    Log(name="decisions", kind=catalogue.EVENT_SPINE, client=_decided_by_client, process=_decided_in_process),
)
