"""Rules of checkpoints and traces: what is kept of a session, how many, and which traces are none."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from engines import catalogue
from engines.agent.checkpoints import CheckpointInput
from engines.agent.sequences import PRUNED_MAX, item_id
from engines.agent.stores import AgentStores
from engines.agent.traces import SPANS_MAX, Span, TraceInput
from engines.core.listing import Window
from engines.errors import Invalid, NotFound, TooLarge
from engines.testing.faults import FaultPlan
from tests.agent.talking import ADA, begun, said, stored_keys
from tests.stores.home import Home
from tests.stores.subjects import keyed

FROM, TO = "2026-11-21T14:00:00.000Z", "2026-11-21T14:00:01.000Z"


def span(span_id: str, parent: str | None = None, **members: Any) -> Span:
    return Span(
        span_id=span_id,
        parent_span_id=parent,
        name="call",
        **{"started_at": FROM, "ended_at": TO, **members},
    )


def trace(*spans: Span, **members: Any) -> TraceInput:
    return TraceInput(**{"name": "turn", "started_at": FROM, "ended_at": TO, "spans": list(spans), **members})


TRACE = trace(span("root"), span("call", "root", attributes={"tool": "book"}))


class TestCheckpoints:
    async def test_a_state_is_found_again_with_its_place_among_the_messages(
        self, home: Home, agent: AgentStores
    ) -> None:
        session_id = (await begun(agent, "a", "b")).session_id
        first = (
            await agent.checkpoints.save(ADA, session_id, CheckpointInput(state=[1, {"x": None}], label="l"))
        ).record
        await agent.messages.append(ADA, session_id, said("c"))
        second = (await agent.checkpoints.save(ADA, session_id, CheckpointInput(state="s"))).record
        await home.reopen()
        assert (first.messages, second.messages) == (2, 3)
        assert (first.number, first.state, first.label) == (1, [1, {"x": None}], "l")
        assert await agent.checkpoints.get(ADA, first.checkpoint_id) == first
        assert (await agent.checkpoints.list(ADA, session_id)).items == (first, second)

    async def test_the_newest_are_kept_as_the_route_says(self, home: Home, agent: AgentStores) -> None:
        home.options[catalogue.CHECKPOINTS] = {"checkpoints_kept": 3}
        session_id = (await begun(agent)).session_id
        for number in range(5):
            await agent.checkpoints.save(ADA, session_id, CheckpointInput(state=number))
        listed = (await agent.checkpoints.list(ADA, session_id)).items
        assert [one.state for one in listed] == [2, 3, 4]
        assert [one.number for one in listed] == [3, 4, 5]
        with pytest.raises(NotFound):
            await agent.checkpoints.get(ADA, item_id(session_id, 2))

    async def test_a_route_that_keeps_fewer_than_before_is_met_by_and_by(
        self, home: Home, agent: AgentStores
    ) -> None:
        session_id = (await begun(agent)).session_id
        count = PRUNED_MAX + 5
        for number in range(count):
            await agent.checkpoints.save(ADA, session_id, CheckpointInput(state=number))
        home.options[catalogue.CHECKPOINTS] = {"checkpoints_kept": 1}
        left = []
        for number in range(count, count + 2):
            await agent.checkpoints.save(ADA, session_id, CheckpointInput(state=number))
            left.append(len(await stored_keys(home, "i")))
        assert left == [count + 1 - PRUNED_MAX, 1]
        assert [one.state for one in (await agent.checkpoints.list(ADA, session_id)).items] == [count + 1]

    async def test_of_many_at_once_none_is_lost(self, home: Home, agent: AgentStores) -> None:
        session_id = (await begun(agent)).session_id
        home.faults.plan = FaultPlan(pause_s_max=0.002)
        states = list(range(8))
        await asyncio.gather(
            *(agent.checkpoints.save(ADA, session_id, CheckpointInput(state=state)) for state in states)
        )
        assert sorted(one.state for one in (await agent.checkpoints.list(ADA, session_id)).items) == states

    @pytest.mark.parametrize("checkpoint_id", ["nothing", "none.1", "none.0"])
    async def test_one_that_never_was_is_not_found(self, agent: AgentStores, checkpoint_id: str) -> None:
        with pytest.raises(NotFound):
            await agent.checkpoints.get(ADA, checkpoint_id)

    async def test_a_state_that_cannot_be_kept_exactly_is_refused(self, agent: AgentStores) -> None:
        session_id = (await begun(agent)).session_id
        with pytest.raises(Invalid) as refused:
            await agent.checkpoints.save(ADA, session_id, CheckpointInput(state={"n": float("inf")}))
        assert refused.value.field == "state"
        with pytest.raises(TooLarge):
            await agent.checkpoints.save(ADA, session_id, CheckpointInput(state="x" * 262_144))


class TestTraces:
    async def test_a_trace_is_found_again_and_listed_without_its_spans(
        self, home: Home, agent: AgentStores
    ) -> None:
        session_id = (await begun(agent)).session_id
        made = (await agent.traces.record(ADA, session_id, TRACE, request=keyed("t"))).record
        again = await agent.traces.record(ADA, session_id, TRACE, request=keyed("t"))
        assert (again.record, again.replayed) == (made, True)
        await home.reopen()
        assert (made.spans, made.span_count) == (TRACE.spans, 2)
        assert await agent.traces.get(ADA, made.trace_id) == made
        listed = (await agent.traces.list(ADA, session_id)).items
        assert listed == (msgspec.structs.replace(made, spans=[]),)

    async def test_the_newest_are_kept_as_the_route_says(self, home: Home, agent: AgentStores) -> None:
        home.options[catalogue.TRACES] = {"traces_kept": 2}
        session_id = (await begun(agent)).session_id
        for number in range(4):
            await agent.traces.record(ADA, session_id, trace(name=f"turn {number}"))
        page = await agent.traces.list(ADA, session_id, window=Window(descending=True))
        assert [one.name for one in page.items] == ["turn 3", "turn 2"]
        with pytest.raises(NotFound):
            await agent.traces.get(ADA, item_id(session_id, 1))

    @pytest.mark.parametrize(
        ("told", "field"),
        [
            (trace(ended_at="2026-11-21T13:59:59.999Z"), "ended_at"),
            (trace(started_at="2026-11-21 14:00"), "started_at"),
            (trace(started_at="2026-11-21T14:00:00"), "started_at"),
            (trace(attributes={"n": float("nan")}), "attributes"),
            (trace(name=""), "name"),
            (trace(*[span(str(number)) for number in range(SPANS_MAX + 1)]), "spans"),
            (trace(span("a"), span("a")), "spans[1].span_id"),
            (trace(span("a", "nobody")), "spans[0].parent_span_id"),
            (trace(span("a", "a")), "spans[0].parent_span_id"),
            (trace(span("a", "b"), span("b", "nobody")), "spans[1].parent_span_id"),
            (trace(span("r"), span("a", "b"), span("b", "a")), "spans[1].parent_span_id"),
            (trace(span("a", "b"), span("b", "c"), span("c", "b")), "spans[1].parent_span_id"),
            (trace(span("a", ended_at="2026-11-21T13:00:00Z")), "spans[0].ended_at"),
            (trace(span("a", ended_at="soon")), "spans[0].ended_at"),
            (trace(span("a", attributes={"n": 2**70})), "spans[0].attributes"),
            (trace(span("a", status="fine")), "spans[0].status"),
        ],
    )
    async def test_one_that_is_none_is_refused(
        self, agent: AgentStores, told: TraceInput, field: str
    ) -> None:
        session_id = (await begun(agent)).session_id
        with pytest.raises(Invalid) as refused:
            await agent.traces.record(ADA, session_id, told)
        assert refused.value.field == field
        assert (await agent.traces.list(ADA, session_id)).items == ()

    async def test_deep_and_broad_trees_are_taken(self, agent: AgentStores) -> None:
        session_id = (await begun(agent)).session_id
        deep = [span("0"), *(span(str(number), str(number - 1)) for number in range(1, SPANS_MAX))]
        made = await agent.traces.record(ADA, session_id, trace(*reversed(deep)))
        assert made.record.span_count == SPANS_MAX
