"""A process that writes to every store until it is killed: `python -m tests.together.writing URL`.

It prints what was acknowledged, as `store value`. Its parent kills it in the midst of that.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

import engines
from engines.core.records import Condition
from engines.safety.asks import EvaluationInput
from engines.stores.analytics import NewAnalyticsEvent
from engines.stores.budget_records import ReservationInput, SettlementInput
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.kpi_records import MeasurementInput
from engines.stores.realtime_rooms import Role, RoomMemberInput
from tests.contexts import context

TENANT = "t_a"
ADA = context(TENANT)
KPI = "measured"
AUTHORS = 3
FLOWS = SCHEMA_NAMED["flows"]


def say(store: str, value: object) -> None:
    sys.stdout.write(f"{store} {value}\n")
    sys.stdout.flush()


async def define(opened: engines.Engines, name: str) -> None:
    etag = ""
    while True:
        condition = Condition(versions=(etag,)) if etag else Condition(absent=True)
        body = DefinitionInput(json_blob={"nodes": [{"id": "a"}]})
        change = await opened.definitions.put(ADA, FLOWS, name, body, condition=condition)
        etag = change.etag.strip('"')
        say("versions", f"{name}={change.record.version}")


async def ingest(opened: engines.Engines) -> None:
    for number in itertools.count():
        event = NewAnalyticsEvent(event_type="page_view", payload={"n": number})
        ingested = await opened.analytics.ingest(ADA, [event])
        say("analytics", ingested.events[0].event_id)


async def decide(opened: engines.Engines) -> None:
    while True:
        decided = await opened.gates.evaluate(ADA, EvaluationInput(action="refund"))
        say("decisions", decided.answer.event_id)


async def spend(opened: engines.Engines) -> None:
    while True:
        reserved = await opened.budget.reserve(ADA, ReservationInput(amount="1", currency="USD"))
        cost = SettlementInput(cost="0.7")
        settled = await opened.budget.settle(ADA, reserved.record.reservation_id, cost)
        say("usage", settled.record.usage_id)


async def measure(opened: engines.Engines) -> None:
    while True:
        measured = await opened.kpis.measure(ADA, KPI, MeasurementInput(value=1.0))
        say("measurements", measured.record.measurement_id)


async def seat(opened: engines.Engines) -> None:
    put, room = opened.realtime.put, ("thread", "t")
    await put(ADA, *room, ADA.user_id, RoomMemberInput(role="host"))
    for number in itertools.count():
        role: Role = "reader" if number % 2 else "writer"
        await put(ADA, *room, "guest", RoomMemberInput(role=role))
        say("rooms", role)


async def main(url: str) -> None:
    async with engines.open(url) as opened:
        authors = (define(opened, f"f{number}") for number in range(AUTHORS))
        await asyncio.gather(*authors, *(work(opened) for work in (ingest, decide, spend, measure, seat)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
