"""A session is moved while an agent goes on in it: all that was acknowledged is there, and what clients hold
still works."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import engines
from engines.agent.checkpoints import CheckpointInput
from engines.agent.forks import ForkInput
from engines.agent.messages import MessageInput
from engines.agent.sessions import SessionInput, SessionPatch
from engines.agent.stores import AgentStores
from engines.agent.telemetry import TokensInput, TokensQuery
from engines.agent.traces import TraceInput
from engines.core.idempotency import identify
from engines.core.listing import Listed, Window
from engines.core.records import Condition
from engines.errors import NotFound
from engines.stores.scoped import Change
from tests.backends import session_backend
from tests.moves.conftest import OWNER, ended, make_deployment, sqlite_backend

KINDS = ("session_store", "checkpoint_store", "trace_store", "telemetry_store")
NOON = "2026-11-21T12:00:00Z"
ONCE = identify("said once", body=b"")
# So that the processes, which share a loop here, have time for their leases.
PACE_S = 0.01


def said(content: Any) -> MessageInput:
    return MessageInput(role="user", content=content)


class Part:
    """One sort of records of the session: who appends to it, now by one process and now by another, and what
    was acknowledged, by number."""

    def __init__(
        self,
        append: Callable[[AgentStores, int], Awaitable[Change[Any]]],
        list_page: Callable[[AgentStores, Window], Awaitable[Listed[Any]]],
    ) -> None:
        self._append = append
        self._list_page = list_page
        self.acknowledged: dict[int, Any] = {}

    async def run(self, stop: asyncio.Event, agents: Iterator[AgentStores]) -> None:
        while not stop.is_set():
            await self.add(next(agents))
            await asyncio.sleep(PACE_S)

    async def add(self, agent: AgentStores) -> Any:
        record = (await self._append(agent, len(self.acknowledged) + 1)).record
        assert record.number not in self.acknowledged
        self.acknowledged[record.number] = record
        return record

    async def listed(self, agent: AgentStores, after: str | None = None) -> list[Any]:
        found: list[Any] = []
        while True:
            page = await self._list_page(agent, Window(limit=50, after=after))
            found += page.items
            after = page.after
            if after is None:
                return found

    async def check(self, agent: AgentStores) -> None:
        """Each is there once, at its place, as it was answered: by its ETag, and what it says."""
        found = await self.listed(agent)
        assert [record.number for record in found] == list(range(1, len(self.acknowledged) + 1))
        assert {record.number: record for record in found} == self.acknowledged


def parts_of(session_id: str) -> tuple[Part, Part, Part]:
    turn = TraceInput(name="turn", started_at=NOON, ended_at=NOON)
    return (
        Part(
            lambda agent, number: agent.messages.append(OWNER, session_id, said(number)),
            lambda agent, window: agent.messages.list(OWNER, session_id, window=window),
        ),
        Part(
            lambda agent, number: agent.checkpoints.save(OWNER, session_id, CheckpointInput(state=number)),
            lambda agent, window: agent.checkpoints.list(OWNER, session_id, window=window),
        ),
        Part(
            lambda agent, _: agent.traces.record(OWNER, session_id, turn),
            lambda agent, window: agent.traces.list(OWNER, session_id, window=window),
        ),
    )


async def move_all(processes: list[engines.Engines], target: str) -> None:
    started = [await processes[0].moves.start(OWNER, kind, target) for kind in KINDS]
    for stored in started:
        move, progress = await ended(processes[1], stored.record.move_id)
        assert move.phase == "done", progress


@pytest.fixture
async def processes(
    request: pytest.FixtureRequest, tmp_path: Path, stack: AsyncExitStack
) -> list[engines.Engines]:
    """Two of a deployment whose backend `a` is SQLite, and `b` PostgreSQL."""
    url = f"sqlite://{tmp_path}/control.db"
    await make_deployment(url, sqlite_backend(tmp_path, "a"), session_backend(request, "postgres", "b"))
    return [await stack.enter_async_context(engines.open(url)) for _ in range(2)]


async def test_a_session_is_whole_through_two_moves_and_what_was_held_works(
    processes: list[engines.Engines],
) -> None:
    agents = [process.agent for process in processes]
    session = (await agents[0].sessions.create(OWNER, SessionInput(title="before"))).record
    session_id = session.session_id
    messages, checkpoints, traces = parts = parts_of(session_id)
    for part in parts:
        for _ in range(3):
            await part.add(agents[0])
    once = (await agents[0].messages.append(OWNER, session_id, said("once"), request=ONCE)).record
    messages.acknowledged[once.number] = once
    page = await agents[0].checkpoints.list(OWNER, session_id, window=Window(limit=2))
    state, counted, stop = checkpoints.acknowledged[2], 0, asyncio.Event()
    tokens = TokensInput(provider="p", model="m", tokens_in=3)

    async def count() -> None:
        nonlocal counted
        for agent in itertools.cycle(agents):
            if stop.is_set():
                return
            await agent.telemetry.count(OWNER, tokens)
            counted += 1
            await asyncio.sleep(PACE_S)

    async with asyncio.TaskGroup() as working:
        for part in parts:
            working.create_task(part.run(stop, itertools.cycle(agents)))
        working.create_task(count())
        for target in ("b", "a"):
            before = [len(part.acknowledged) for part in parts]
            await move_all(processes, target)
            assert all(len(part.acknowledged) > was for part, was in zip(parts, before, strict=True))
        stop.set()
    for agent in agents:
        for part in parts:
            await part.check(agent)
        assert (await agent.telemetry.report(OWNER, TokensQuery())).total.calls == counted
        again = await agent.messages.append(OWNER, session_id, said("once"), request=ONCE)
        assert (again.replayed, again.record.message_id) == (True, once.message_id)
        rest = await messages.listed(agent, after=messages.acknowledged[2].cursor)
        assert [message.number for message in rest] == list(range(3, len(messages.acknowledged) + 1))
        others = await checkpoints.listed(agent, after=page.after)
        assert [one.number for one in others] == list(range(3, len(checkpoints.acknowledged) + 1))
        assert await agent.checkpoints.get(OWNER, state.checkpoint_id) == state
        assert await agent.traces.get(OWNER, traces.acknowledged[1].trace_id) == traces.acknowledged[1]
    fork = (await agents[1].forks.fork(OWNER, state.checkpoint_id, ForkInput())).record
    copies = (await agents[0].messages.list(OWNER, fork.session_id)).items
    assert [message.content for message in copies] == [1, 2, 3]
    held = Condition(versions=(session.etag.strip('"'),))
    changed = await agents[0].sessions.patch(OWNER, session_id, SessionPatch(title="after"), condition=held)
    assert (changed.record.title, changed.record.created_at) == ("after", session.created_at)
    await agents[1].sessions.delete(OWNER, session_id)
    with pytest.raises(NotFound):
        await agents[0].messages.list(OWNER, session_id)
    assert len((await agents[0].messages.list(OWNER, fork.session_id)).items) == 3


async def test_a_session_is_deleted_while_it_is_moved_and_none_of_it_comes_back(
    processes: list[engines.Engines],
) -> None:
    agents = [process.agent for process in processes]
    gone, kept = [
        (await agents[0].sessions.create(OWNER, SessionInput())).record.session_id for _ in range(2)
    ]
    parts = {session_id: parts_of(session_id) for session_id in (gone, kept)}
    for part in itertools.chain(*parts.values()):
        for _ in range(3):
            await part.add(agents[0])
    async with asyncio.TaskGroup() as working:
        working.create_task(move_all(processes, "b"))
        working.create_task(agents[1].sessions.delete(OWNER, gone))
    for agent in agents:
        with pytest.raises(NotFound):
            await agent.sessions.get(OWNER, gone)
        assert [one.session_id for one in (await agent.sessions.list(OWNER)).items] == [kept]
        for part in parts[gone]:
            with pytest.raises(NotFound):
                await part.listed(agent)
        for part in parts[kept]:
            await part.check(agent)
    for kind in KINDS:
        place = await processes[1].router.place(kind, OWNER)
        partition = await place.partition(OWNER.user_id)
        above, below = (f"i!{OWNER.user_id}!{gone}!{end}" for end in ("", "~"))
        assert (await place.documents.scan(partition, above=above, below=below, limit=10)).docs == ()
