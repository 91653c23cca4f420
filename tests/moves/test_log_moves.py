"""Logs are moved with their positions, ids, digests and markers, while several processes append to them."""

from __future__ import annotations

import asyncio

import msgspec

import engines
from engines.core.listing import Window
from engines.stores.event_records import Event
from engines.stores.events import EventStreams
from tests.moves.conftest import OWNER, Open, ended
from tests.moves.load import Appender, all_events, new_event

EVENTS_EACH = 6


async def test_a_spine_is_moved_there_and_back_while_it_is_appended_to(open_process: Open) -> None:
    processes = [await open_process(), await open_process()]
    appenders = [Appender(number, processes) for number in range(1, 7)]
    stop = asyncio.Event()
    working = [asyncio.create_task(appender.run(stop)) for appender in appenders]
    until: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    following = asyncio.create_task(_follow(processes[1], until))
    while sum(len(appender.answers) for appender in appenders) < 30:
        await asyncio.gather(*(process.spine.list(OWNER) for process in processes))
    before = await processes[0].spine.list(OWNER, window=Window(limit=10))
    for target in ("b", "a"):
        stored = await processes[0].moves.start(OWNER, "event_spine", target)
        move, progress = await ended(processes[1], stored.record.move_id)
        assert move.phase == "done", progress
    stop.set()
    await asyncio.gather(*working)
    until.set_result((await appenders[0].append(98))[1])
    await appenders[0].append(99)  # The follower may have seen the one before already.

    events = await all_events(processes[0].spine)
    assert events == await all_events(processes[1].spine)
    by_id = {event.event_id: event for event in events}
    assert len(by_id) == len(events)
    for appender in appenders:
        for number, (event_id, position) in appender.answers.items():
            assert (by_id[event_id].position, by_id[event_id].payload) == (position, {"number": number})
            if number % 6 == 0:  # A client's own id under an Idempotency-Key: recognised as ever.
                assert await appender.append(number) == (event_id, position)
            elif number % 2 == 0 or number % 3 == 0:
                assert (await appender.append(number))[1] == position
    assert (await processes[0].spine.verify(OWNER)).ok
    after = await processes[1].spine.list(OWNER, window=Window(limit=5, after=before.after))
    assert [event.position for event in after.items] == list(range(11, 16))
    followed = await asyncio.wait_for(following, 10)
    assert [event.event_id for event in followed] == [event.event_id for event in events[: len(followed)]]


async def _follow(process: engines.Engines, until: asyncio.Future[int]) -> list[Event]:
    """Every event as it comes, up to the position that is told in the end."""
    followed: list[Event] = []
    async for batch in await process.spine.follow(OWNER):
        followed.extend(batch)
        if until.done() and followed[-1].position >= until.result():
            break
    return followed


async def test_streams_are_moved_and_what_was_left_behind_is_removed(open_process: Open) -> None:
    processes = [await open_process(), await open_process()]
    names = [f"s{number}" for number in range(40)]
    for name in names:
        await _append(processes[0].streams, name)
    stored = await processes[0].moves.start(OWNER, "event_stream", "b", retire=True)
    added = 0
    while processes[0].directory.moves:
        await _append(processes[1].streams, f"late{added}")
        added += 1
    move, _ = await ended(processes[1], stored.record.move_id)
    assert move.phase == "retired"
    for process in processes:
        for name in [*names, *(f"late{number}" for number in range(added))]:
            listed = await process.streams.list(OWNER, name)
            assert [event.position for event in listed.items] == list(range(1, EVENTS_EACH + 1))
    opened = await processes[0].router.place("event_stream", OWNER)
    assert (opened.backend_id, opened.generation) == ("b", 1)
    left = await processes[0].moves.plan(msgspec.structs.replace(OWNER), "event_stream", "a")
    assert left.streams == len(names) + added
    assert left.events == EVENTS_EACH * left.streams


async def _append(streams: EventStreams, name: str) -> None:
    for number in range(EVENTS_EACH):
        await streams.append(OWNER, name, [new_event(number, named=False)])
