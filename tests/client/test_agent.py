"""The client and a real server: what an agent reads and writes of its user, by every method of it."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp
import pytest

from engines.client import AsyncEngines, Engines, NewTrace, Span
from engines.errors import Invalid, NotFound, PreconditionFailed
from engines.testing.proxy import Behaviour, FaultProxy
from tests.cli.lab import LabProcess
from tests.client.conftest import client_as

T = TypeVar("T")

SPAN = Span(
    span_id="s1",
    name="call",
    started_at="2026-11-22T10:00:00Z",
    ended_at="2026-11-22T10:00:01Z",
    attributes={"model": "m"},
)
TRACE = NewTrace(
    name="turn",
    started_at="2026-11-22T10:00:00Z",
    ended_at="2026-11-22T10:00:02Z",
    status="error",
    attributes={"tries": 2},
    spans=(SPAN, Span(span_id="s2", name="t", started_at=SPAN.started_at, ended_at=SPAN.ended_at)),
)


async def test_a_session_is_begun_read_listed_changed_and_deleted(
    member: AsyncEngines, lab: LabProcess
) -> None:
    made = await member.sessions.create(title="Trip", metadata={"a": [1]})
    assert (made.status, made.title, made.metadata, made.forked_from) == ("active", "Trip", {"a": [1]}, None)
    assert await member.sessions.get(made.session_id) == made
    assert (await member.sessions.page(limit=1, order="desc")).items == (made,)
    assert made in [session async for session in member.sessions.each()]
    renamed = await member.sessions.patch(made.session_id, title="Travel", if_match=made.etag)
    assert (renamed.title, renamed.metadata) == ("Travel", {"a": [1]})
    emptied = await member.sessions.patch(made.session_id, metadata={})
    assert (emptied.title, emptied.metadata) == ("Travel", {})
    async with client_as(lab, "owner") as another:
        with pytest.raises(NotFound):
            await another.sessions.get(made.session_id)
    with pytest.raises(PreconditionFailed):
        await member.sessions.delete(made.session_id, if_match=made.etag)
    await member.sessions.delete(made.session_id, if_match=emptied.etag)
    with pytest.raises(NotFound):
        await member.messages.page(made.session_id)


async def test_messages_are_said_in_order_and_read_behind_any_of_them(member: AsyncEngines) -> None:
    session_id = (await member.sessions.create()).session_id
    call = {"id": "c1", "name": "search", "arguments": {"q": "rain"}}
    said = [
        await member.messages.append(session_id, "user", "Rain tomorrow?", name="ada"),
        await member.messages.append(session_id, "assistant", None, tool_calls=[call]),
        await member.messages.append(session_id, "tool", [{"mm": 3}], tool_call_id="c1", metadata={"ms": 9}),
    ]
    assert [message.number for message in said] == [1, 2, 3]
    assert (said[0].name, said[1].tool_calls, said[2].metadata) == ("ada", (call,), {"ms": 9})
    assert (said[1].content, said[2].content, said[2].tool_call_id) == (None, [{"mm": 3}], "c1")
    assert (await member.messages.page(session_id, after=said[0].cursor, limit=1)).items == (said[1],)
    assert [message async for message in member.messages.each(session_id)] == said
    behind = [message async for message in member.messages.each(session_id, after=said[1].cursor)]
    assert behind == said[2:]
    assert [one.number async for one in member.messages.each(session_id, order="desc")] == [3, 2, 1]
    with pytest.raises(Invalid):
        await member.messages.append(session_id, "user", "x", tool_calls=[call])


async def test_a_fork_goes_on_from_a_checkpoint(member: AsyncEngines) -> None:
    first = await member.sessions.create(title="Trip", metadata={"n": 1})
    await member.messages.append(first.session_id, "user", "To Rome.")
    saved = await member.checkpoints.save(first.session_id, {"step": 1}, label="asked")
    await member.messages.append(first.session_id, "assistant", "Booked!")
    assert (saved.number, saved.messages, saved.label, saved.state) == (1, 1, "asked", {"step": 1})
    assert await member.checkpoints.get(saved.checkpoint_id) == saved
    assert (await member.checkpoints.page(first.session_id, limit=1)).items == (saved,)
    assert [one async for one in member.checkpoints.each(first.session_id, order="desc")] == [saved]
    fork = await member.checkpoints.fork(saved.checkpoint_id, title="Trip, again")
    assert (fork.title, fork.metadata, fork.status) == ("Trip, again", {"n": 1}, "active")
    assert fork.forked_from is not None
    assert (fork.forked_from.session_id, fork.forked_from.checkpoint_id) == (
        first.session_id,
        saved.checkpoint_id,
    )
    assert [one.content async for one in member.messages.each(fork.session_id)] == ["To Rome."]
    assert [one.state async for one in member.checkpoints.each(fork.session_id)] == [{"step": 1}]
    assert (await member.messages.append(fork.session_id, "assistant", "By train?")).number == 2
    with pytest.raises(NotFound):
        await member.checkpoints.fork(f"{first.session_id}.9")


async def test_a_trace_is_kept_with_its_spans(member: AsyncEngines) -> None:
    session_id = (await member.sessions.create()).session_id
    kept = await member.traces.record(session_id, TRACE)
    assert (kept.name, kept.status, kept.attributes, kept.spans) == (
        "turn",
        "error",
        {"tries": 2},
        TRACE.spans,
    )
    assert await member.traces.get(kept.trace_id) == kept
    (listed,) = (await member.traces.page(session_id, order="desc")).items
    assert (listed.trace_id, listed.span_count, listed.spans) == (kept.trace_id, 2, ())
    assert [one async for one in member.traces.each(session_id)] == [listed]
    orphan = NewTrace(
        name="turn",
        started_at=SPAN.started_at,
        ended_at=SPAN.ended_at,
        spans=(Span(span_id="s", name="n", started_at="2026", ended_at="2026"),),
    )
    with pytest.raises(Invalid) as refused:
        await member.traces.record(session_id, orphan)
    assert refused.value.field == "spans[0].started_at"


async def test_what_is_remembered_lies_in_tiers(member: AsyncEngines) -> None:
    key = f"k-{uuid.uuid4().hex}"
    made = await member.agent_memory.put("long_term", key, {"diet": "vegan"}, if_absent=True)
    assert (made.tier, made.key, made.value) == ("long_term", key, {"diet": "vegan"})
    with pytest.raises(PreconditionFailed):
        await member.agent_memory.put("long_term", key, 1, if_absent=True)
    changed = await member.agent_memory.put("long_term", key, None, if_match=made.etag)
    assert (changed.value, changed.created_at) == (None, made.created_at)
    assert await member.agent_memory.get("long_term", key) == changed
    assert changed in (await member.agent_memory.page("long_term", limit=500)).items
    assert changed in [entry async for entry in member.agent_memory.each("long_term", order="desc")]
    with pytest.raises(NotFound):
        await member.agent_memory.get("episodes", key)
    await member.agent_memory.delete("long_term", key, if_match=changed.etag)
    with pytest.raises(NotFound):
        await member.agent_memory.delete("long_term", key)


async def test_tokens_are_counted_and_added_up(member: AsyncEngines) -> None:
    session_id = f"s-{uuid.uuid4().hex}"
    bound = member.bound(session_id=session_id)
    await bound.telemetry.count("p", "small", tokens_in=10, tokens_out=2, tokens_cached=4)
    day = await member.telemetry.count("p", "large", tokens_in=5, calls=2, session_id=session_id)
    assert day.session_id == session_id
    assert [(one.model, one.calls, one.tokens_in) for one in day.models] == [
        ("small", 1, 10),
        ("large", 2, 5),
    ]
    report = await member.telemetry.report(since=day.day, until=day.day, session_id=session_id)
    assert (report.by, [group.model for group in report.groups]) == ("model", ["large", "small"])
    total = report.total
    assert (total.calls, total.tokens_in, total.tokens_out, total.tokens_cached) == (3, 15, 2, 4)
    by_session = await member.telemetry.report(by="session")
    assert [one.tokens_in for one in by_session.groups if one.session_id == session_id] == [15]
    none = await member.telemetry.count("p", "m")
    assert none.session_id is None
    assert None in [one.session_id for one in (await member.telemetry.report(by="session")).groups]
    with pytest.raises(Invalid):
        await member.telemetry.count("p", "small", tokens_in=1, tokens_cached=2)


async def test_a_sum_that_is_zero_is_in_the_report_of_every_client(
    member: AsyncEngines, lab: LabProcess
) -> None:
    await member.telemetry.count("zero", "m", tokens_in=3)
    headers = {"Authorization": f"Bearer {lab.file.user('member').token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{lab.file.url}/telemetry/tokens") as reply,
    ):
        groups = [group for group in (await reply.json())["groups"] if group["provider"] == "zero"]
    sums = {"calls": 1, "tokens_in": 3, "tokens_out": 0, "tokens_cached": 0}
    assert groups == [{"provider": "zero", "model": "m", **sums}]


def test_without_an_event_loop_it_is_the_same(lab: LabProcess) -> None:
    with Engines(lab.file.url, lab.file.user("member").token) as client:
        made = client.sessions.create(title="a")
        session_id = made.session_id
        assert client.sessions.patch(session_id, title="b").title == "b"
        assert client.sessions.get(session_id) in client.sessions.page(limit=500).items
        assert session_id in [one.session_id for one in client.sessions.each()]
        said = client.messages.append(session_id, "user", "x")
        assert (
            list(client.messages.each(session_id)) == [said] == list(client.messages.page(session_id).items)
        )
        saved = client.checkpoints.save(session_id, 1)
        assert (
            client.checkpoints.get(saved.checkpoint_id) == saved == next(client.checkpoints.each(session_id))
        )
        assert client.checkpoints.page(session_id).items == (saved,)
        fork = client.checkpoints.fork(saved.checkpoint_id)
        kept = client.traces.record(fork.session_id, TRACE)
        assert client.traces.get(kept.trace_id).spans == TRACE.spans
        assert client.traces.page(fork.session_id).items == tuple(client.traces.each(fork.session_id))
        key = f"k-{uuid.uuid4().hex}"
        entry = client.agent_memory.put("episodes", key, 1)
        assert client.agent_memory.get("episodes", key) == entry
        assert entry in client.agent_memory.page("episodes").items
        assert entry in list(client.agent_memory.each("episodes"))
        client.agent_memory.delete("episodes", key)
        client.telemetry.count("p", "m", tokens_out=3, session_id=session_id)
        assert client.telemetry.report(session_id=session_id).total.tokens_out == 3
        client.sessions.delete(session_id)
        with pytest.raises(NotFound):
            client.checkpoints.page(session_id)
        assert client.sessions.get(fork.session_id).forked_from is not None


async def test_a_key_of_the_callers_own_makes_each_change_once(member: AsyncEngines) -> None:
    async def twice(change: Callable[[str], Awaitable[T]]) -> T:
        key = uuid.uuid4().hex
        first = await change(key)
        assert await change(key) == first
        return first

    sessions, name = member.sessions, uuid.uuid4().hex
    made = await twice(lambda key: sessions.create(title=name, idempotency_key=key))
    at = made.session_id
    await twice(lambda key: sessions.patch(at, title=name, if_match=made.etag, idempotency_key=key))
    await twice(lambda key: member.messages.append(at, "user", "x", idempotency_key=key))
    saved = await twice(lambda key: member.checkpoints.save(at, 1, idempotency_key=key))
    await twice(lambda key: member.checkpoints.fork(saved.checkpoint_id, idempotency_key=key))
    await twice(lambda key: member.traces.record(at, TRACE, idempotency_key=key))
    assert [one.number async for one in member.messages.each(at)] == [1]
    assert len([one async for one in sessions.each() if one.title == name]) == 2
    await twice(lambda key: sessions.delete(at, idempotency_key=key))
    memory = member.agent_memory
    await twice(lambda key: memory.put("episodes", name, 1, if_absent=True, idempotency_key=key))
    await twice(lambda key: memory.delete("episodes", name, idempotency_key=key))
    await twice(lambda key: member.telemetry.count("p", "m", session_id=at, idempotency_key=key))
    assert (await member.telemetry.report(session_id=at)).total.calls == 1


# --- a network that loses replies ---


async def test_what_is_written_though_its_reply_is_lost_is_written_once(
    far: AsyncEngines, proxy: FaultProxy
) -> None:
    def lose_a_reply() -> None:
        proxy.behave(Behaviour(reply_bytes_max=0, once=True))

    session = await far.sessions.create(title=uuid.uuid4().hex)
    lose_a_reply()
    said = await far.messages.append(session.session_id, "user", "once")
    lose_a_reply()
    saved = await far.checkpoints.save(session.session_id, None)
    lose_a_reply()
    fork = await far.checkpoints.fork(saved.checkpoint_id)
    lose_a_reply()
    day = await far.telemetry.count("p", "m", tokens_in=1, session_id=session.session_id)
    assert [one async for one in far.messages.each(session.session_id)] == [said]
    assert [one async for one in far.checkpoints.each(session.session_id)] == [saved]
    assert [one async for one in far.sessions.each() if one.title == session.title] == [session, fork]
    assert [one.content async for one in far.messages.each(fork.session_id)] == ["once"]
    assert [one.tokens_in for one in day.models] == [1]
    lose_a_reply()
    await far.sessions.delete(session.session_id)
    with pytest.raises(NotFound):
        await far.sessions.get(session.session_id)
