"""A tenant with people in it, who leave something in every store."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

import engines
from engines.agent.checkpoints import CheckpointInput
from engines.agent.forks import ForkInput
from engines.agent.memory import AgentMemoryInput
from engines.agent.messages import MessageInput
from engines.agent.sessions import SessionInput
from engines.agent.telemetry import TokensInput
from engines.agent.traces import TraceInput
from engines.catalogue import SERVED
from engines.control import subjects
from engines.control.records import User
from engines.core.idempotency import identify
from engines.core.place import Place
from engines.core.records import Condition
from engines.core.transfer import everything, segments, stream_names
from engines.errors import PreconditionFailed
from engines.ports.documents import Doc
from engines.routing.routes import CONTROL_KINDS
from engines.routing.sides import each
from engines.safety.asks import EvaluationInput
from engines.scope import RequestContext
from engines.stores.analytics_events import NewAnalyticsEvent
from engines.stores.approval_records import AnswerInput, ApprovalInput
from engines.stores.blackboard import BlackboardInput
from engines.stores.budget_policy import Limit, PolicyInput
from engines.stores.budget_records import UsageInput
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.events import NewEvent
from engines.stores.kpi_records import MeasurementInput
from engines.stores.memory import MemoryInput
from engines.stores.notes import NoteInput
from engines.stores.realtime_rooms import RoomMemberInput
from engines.stores.strategy_locks import LockDecisionInput, LockReview
from engines.stores.tables import TableRowInput
from tests.contexts import ADMIN, context
from tests.moves.conftest import (
    Open,
    control_plane_url,
    make_deployment,
    open_process,
    sqlite_backend,
    stack,
)

KINDS = tuple(kind for kind in SERVED if kind.name not in CONTROL_KINDS)
NEW = Condition(absent=True)
ADA = context("t_a", user_id="ada-lovelace")
BOB = context("t_a", user_id="bob")
OWNER = context("t_a")
APPENDED = 120
NOON = "2026-11-21T12:00:00Z"

__all__ = ["Open", "control_plane_url", "make_deployment", "open_process", "sqlite_backend", "stack"]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's request is under way here, so no erasure waits for one to end."""
    monkeypatch.setattr(subjects, "SETTLE_S", 0.0)


async def join(process: engines.Engines, who: RequestContext, role: str = "member") -> None:
    """The user belongs to the tenant."""
    await bind_refunds(process)
    await process.users.create(ADMIN, User(user_id=who.user_id))
    invited = context("t_system", roles=("admin",), acting_on=who.tenant_id)
    await process.members.put(invited, who.tenant_id, who.user_id, role)
    await process.members.accept(who.user_id, who.tenant_id, request_id="r")


async def bind_refunds(process: engines.Engines) -> None:
    """Refunding is dangerous, so that a person can be asked whether it may happen."""
    offered = DefinitionInput(json_blob={"risk_level": "high", "offered_to": ["t_a"]})
    binding = DefinitionInput(json_blob={"class_id": "payments", "actions": ["refund"]})
    put = process.definitions.put
    with contextlib.suppress(PreconditionFailed):  # Somebody joined before.
        await put(context("t_system"), SCHEMA_NAMED["firearms"], "payments", offered, condition=NEW)
        await put(OWNER, SCHEMA_NAMED["firearms-bindings"], "refunds", binding, condition=NEW)


async def leave_everything(process: engines.Engines, who: RequestContext) -> None:
    """Something of the user's in every store, and their name in what is shared."""
    name, me = who.user_id, process
    await me.notes.create(who, NoteInput(content=f"{name} wrote this"))
    await me.memory.set(who, "s1", "k", MemoryInput(value=f"of {name}"))
    await converse(process, who)
    await me.tables.put(who, "people", name, "profile", TableRowInput(value={"likes": "tea"}))
    await me.tables.put(who, "people", "all", name, TableRowInput(value={"user_id": name}))
    await me.tables.put(who, "config", "theme", f"by{len(name)}", TableRowInput(value={"dark": True}))
    for value in ("first", "second"):
        condition = NEW if value == "first" else Condition(versions=("*",))
        entry = BlackboardInput(value=f"{value} of {name}")
        await me.blackboard.put(who, "run", f"key-{len(name)}", entry, condition=condition)
    for start in range(0, APPENDED, 40):
        events = [NewEvent(event_type="note", payload={"n": start + n}) for n in range(40)]
        await me.spine.append(who, events)
    await me.streams.append(who, "shared", [NewEvent(event_type="note", payload={"by": name})])
    if who is ADA:
        limit = Limit(limit_id="all", period="total", hard="100")
        await me.budget.put_policy(who, PolicyInput(currency="EUR", limits=(limit,)))
    await me.budget.record(who, UsageInput(cost="1.25", currency="EUR", note=f"{name}'s lunch"))
    await me.analytics.ingest(who, [NewAnalyticsEvent(platform="web", payload={"by": name})])
    await me.gates.evaluate(who, EvaluationInput(action="look", subject=name))
    await _define(process, who)


async def converse(process: engines.Engines, who: RequestContext) -> None:
    """Two sessions, the second forked from the first, and what is left of a third that was deleted."""
    name, agent = who.user_id, process.agent
    first, leaving = [
        (await agent.sessions.create(who, SessionInput(title=f"{title} of {name}"))).record.session_id
        for title in ("first", "leaving")
    ]
    for session_id in (first, leaving):
        for number in range(3):
            said = MessageInput(role="user", content=f"{name} said {number}")
            await agent.messages.append(who, session_id, said)
        turn = TraceInput(name="turn", started_at=NOON, ended_at=NOON, attributes={"of": name})
        await agent.traces.record(who, session_id, turn)
    state = CheckpointInput(state={"of": name})
    saved = (await agent.checkpoints.save(who, first, state)).record
    await agent.forks.fork(who, saved.checkpoint_id, ForkInput(), request=identify("fork", name, body=b""))
    await agent.sessions.delete(who, leaving)
    await agent.memory.set(who, "long_term", "k", AgentMemoryInput(value=f"{name} likes tea"))
    tokens = TokensInput(provider="p", model="m", tokens_in=5)
    for bound in (who, msgspec.structs.replace(who, session_id=first)):
        await agent.telemetry.count(bound, tokens)


async def _define(process: engines.Engines, who: RequestContext) -> None:
    of = f"d{len(who.user_id)}"
    drawn = {"name": "one", "nodes": [{"id": "a"}], "edges": []}
    definitions = process.definitions
    await definitions.put(who, SCHEMA_NAMED["flows"], of, DefinitionInput(json_blob=drawn), condition=NEW)
    for state in ("ENABLED", "DISABLED"):
        flag = {"state": state, "variants": {"on": True}, "defaultVariant": "on"}
        condition = NEW if state == "ENABLED" else Condition(versions=("*",))
        await definitions.put(
            who, SCHEMA_NAMED["flags"], of, DefinitionInput(json_blob=flag), condition=condition
        )
    kpi = DefinitionInput(json_blob={"aggregation": "sum"})
    await definitions.put(who, SCHEMA_NAMED["kpis"], of, kpi, condition=NEW)
    await process.kpis.measure(who, of, MeasurementInput(value=1))
    asked = ApprovalInput(
        action="refund", subject=f"order of {who.user_id}", reason=f"{who.user_id} asks", class_id="payments"
    )
    await process.approvals.request(who, asked)


Found = dict[tuple[str, str, str], Doc]


async def decide(process: engines.Engines) -> None:
    """Ada approves locks of Bob's, of which he deletes one, and has a room; the owner lets her into another,
    and answers what each of them asked."""
    locks, lock = SCHEMA_NAMED["strategy-locks"], DefinitionInput(json_blob={"allowed_actions": ["*"]})
    review = LockReview(verdict="pass", reviewers=(ADA.user_id, "eve"), note=f"{ADA.user_id} likes it")
    said = LockDecisionInput(note=f"says {ADA.user_id}", review=review)
    for name in ("lock", "gone"):
        await process.definitions.put(BOB, locks, name, lock, condition=NEW)
        await process.strategy_locks.approve(ADA, name, said, condition=Condition(versions=("*",)))
    await process.definitions.delete(BOB, locks, "gone", condition=Condition(versions=("*",)))
    put, writer = process.realtime.put, RoomMemberInput(role="writer")
    await put(ADA, "thread", "hers", ADA.user_id, RoomMemberInput(role="host"))
    await put(ADA, "thread", "hers", BOB.user_id, writer)
    await put(OWNER, "canvas", "ours", OWNER.user_id, RoomMemberInput(role="host"))
    for user_id in (ADA.user_id, "eve"):
        await put(OWNER, "canvas", "ours", user_id, writer)
    for asked in (await process.approvals.list(OWNER)).items:
        await process.approvals.answer(OWNER, asked.approval_id, AnswerInput(answer="yes"))


async def all_documents(process: engines.Engines, tenant: RequestContext) -> Found:
    """Every document of every kind of the tenant's, by place, partition and key."""
    places = [await process.router.place(kind.name, tenant) for kind in KINDS]
    found: Found = {}

    async def read(at: tuple[Place, str]) -> None:
        place, partition = at
        async for docs in everything(place.documents, partition):
            found.update(((place.backend_id, partition, doc.key), doc) for doc in docs)

    async def segments_of(at: tuple[Place, str]) -> list[tuple[Place, str]]:
        place, shard = at
        named: list[tuple[Place, str]] = []
        for stream in await stream_names(place.documents, shard):
            named += [(place, partition) for partition in await segments(await place.chain(stream))]
        return named

    shards = [(place, shard) for place in places for shard in await place.partitions()]
    holds_logs = {kind.name for kind in KINDS if kind.family == "log" or kind.has_streams}
    of_logs = [at for at in shards if at[0].kind in holds_logs]
    logs = [at for named in await each(of_logs, segments_of, 16) for at in named]
    await each([*shards, *logs], read, 16)
    return found


async def told_documents(process: engines.Engines, tenant: RequestContext) -> Found:
    """All documents, once the spine was told of every change: what waits to be told goes by itself."""
    while True:
        documents = await all_documents(process, tenant)
        if not any(key.startswith("o!") for _, _, key in documents):
            return documents
        await asyncio.sleep(0.05)


def mentioning(documents: Found, name: str) -> Found:
    return {at: doc for at, doc in documents.items() if name in doc.body or name in doc.key}
