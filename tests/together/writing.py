"""A process that writes to every store until it is killed: `python -m tests.together.writing URL`.

It prints what was acknowledged, as `store value`. Its parent kills it in the midst of that.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

import engines
from engines.agent.checkpoints import CheckpointInput
from engines.agent.forks import ForkInput
from engines.agent.memory import AgentMemoryInput
from engines.agent.messages import MessageInput
from engines.agent.sessions import SessionInput
from engines.agent.telemetry import TokensInput
from engines.agent.traces import TraceInput
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
TALKS = 2
FORKED = "forked here"
NOON = "2026-11-21T12:00:00Z"
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


async def converse(opened: engines.Engines, name: str) -> None:
    """A turn after another: said, saved, traced, remembered and counted."""
    agent, turn = opened.agent, TraceInput(name="turn", started_at=NOON, ended_at=NOON)
    session_id = (await agent.sessions.create(ADA, SessionInput(title=name))).record.session_id
    tokens = TokensInput(provider="p", model=name, tokens_in=2)
    for number in itertools.count(1):
        said = MessageInput(role="user", content=number)
        answered = await agent.messages.append(ADA, session_id, said)
        say("messages", f"{name}={answered.record.number}")
        saved = await agent.checkpoints.save(ADA, session_id, CheckpointInput(state=number))
        say("checkpoints", f"{name}={saved.record.number}")
        traced = await agent.traces.record(ADA, session_id, turn)
        say("traces", f"{name}={traced.record.number}")
        await agent.memory.set(ADA, "episodes", name, AgentMemoryInput(value=number))
        say("remembered", f"{name}={number}")
        await agent.telemetry.count(ADA, tokens)
        say("tokens", f"{name}={number}")


async def fork(opened: engines.Engines) -> None:
    """One session and its forks, and each fork deleted again."""
    agent = opened.agent
    session_id = (await agent.sessions.create(ADA, SessionInput(title="first"))).record.session_id
    for number in range(3):
        await agent.messages.append(ADA, session_id, MessageInput(role="user", content=number))
    state = (await agent.checkpoints.save(ADA, session_id, CheckpointInput(state=FORKED))).record
    while True:
        forked = (await agent.forks.fork(ADA, state.checkpoint_id, ForkInput(title="fork"))).record
        await agent.sessions.delete(ADA, forked.session_id)
        say("forks", forked.session_id)


WORKERS = (ingest, decide, spend, measure, seat, fork)


async def main(url: str) -> None:
    async with engines.open(url) as opened:
        authors = (define(opened, f"f{number}") for number in range(AUTHORS))
        talks = (converse(opened, f"t{number}") for number in range(TALKS))
        await asyncio.gather(*authors, *talks, *(work(opened) for work in WORKERS))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
