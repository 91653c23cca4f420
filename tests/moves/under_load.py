"""One tenant's notes and spine are moved from `a` to `b` while they are used, and everything is compared.

Owns that scenario, which tests/moves/test_matrix.py plays on some pairs of backends and script/soak on all.
Leaves backends to `tests/backends.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec

import engines
from engines.control.records import Backend
from engines.core.idempotency import identify
from engines.core.listing import Window
from engines.core.records import Condition
from engines.stores.notes import NoteInput
from tests.moves.conftest import OWNER, ended, make_deployment
from tests.moves.load import Appender, Writer, all_events

PROCESSES = 2
WRITERS = 3
APPENDERS = 2
NOTES_BEFORE = 12
EVENTS_BEFORE = 12
MOVE_TIMEOUT_S = 90.0
# Of this user nothing changes but by the test itself.
STILL = msgspec.structs.replace(OWNER, user_id="u_still")
PAGE = Window(limit=3)
KINDS = ("notes_store", "event_spine")


class Outcome(msgspec.Struct, frozen=True):
    """What was written while the kinds were moved, and the longest that one change waited."""

    changes: int
    events: int
    longest_s: float


class Held:
    """What a client holds from before the move: an ETag, cursors, an Idempotency-Key with its answer."""

    def __init__(self, process: engines.Engines) -> None:
        self._process = process
        self._request = identify("held", "1", body=b"")

    async def take(self) -> None:
        for number in range(2 * PAGE.limit):
            await self._process.notes.create(STILL, NoteInput(content=f"still {number}"))
        self._made = await self._keyed(self._process)
        listed = await self._process.notes.list(STILL, window=Window(limit=100))
        self._notes = [(note.note_id, note.content) for note in listed.items]
        self._notes_page = await self._process.notes.list(STILL, window=PAGE)
        self._events_page = await self._process.spine.list(OWNER, window=PAGE)

    async def check(self, process: engines.Engines) -> None:
        """All of it works as it did before."""
        assert await self._keyed(process) == self._made, "the Idempotency-Key is not known any more"
        listed = await process.notes.list(STILL, window=Window(limit=100))
        assert [(note.note_id, note.content) for note in listed.items] == self._notes
        after = Window(limit=100, after=self._notes_page.after)
        rest = await process.notes.list(STILL, window=after)
        assert [note.note_id for note in rest.items] == [note_id for note_id, _ in self._notes[PAGE.limit :]]
        after = Window(limit=PAGE.limit, after=self._events_page.after)
        events = await process.spine.list(OWNER, window=after)
        assert [event.position for event in events.items] == [4, 5, 6]
        note_id, etag = self._made
        condition = Condition(versions=(etag.strip('"'),))
        changed = await process.notes.replace(STILL, note_id, NoteInput(content="after"), condition=condition)
        assert changed.etag != etag

    async def _keyed(self, process: engines.Engines) -> tuple[str, str]:
        made = await process.notes.create(STILL, NoteInput(content="keyed"), request=self._request)
        return made.record.note_id, made.etag


async def move_under_load(control_plane_url: str, a: Backend, b: Backend, *, seed: int = 0) -> Outcome:
    """On an empty control plane. Raises AssertionError where anything is lost, doubled or not as it was."""
    await make_deployment(control_plane_url, a, b)
    async with contextlib.AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(engines.open(control_plane_url)) for _ in range(PROCESSES)
        ]
        writers = [Writer(number, processes, seed=seed) for number in range(WRITERS)]
        appenders = [Appender(number, processes) for number in range(1, APPENDERS + 1)]
        everyone: list[Writer | Appender] = [*writers, *appenders]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as working:
            for one in everyone:
                working.create_task(one.run(stop))
            await _written(processes[1], writers, appenders)
            held = Held(processes[0])
            await held.take()
            await _move(processes)
            stop.set()
        await _check(processes, writers, appenders)
        await held.check(processes[1])
    return Outcome(
        sum(writer.changes for writer in writers),
        sum(len(appender.answers) for appender in appenders),
        max(one.longest_s for one in everyone),
    )


async def _written(
    process: engines.Engines, writers: Sequence[Writer], appenders: Sequence[Appender]
) -> None:
    """Until there is something to move; readers are about, too."""
    while (
        sum(writer.changes for writer in writers) < NOTES_BEFORE
        or sum(len(appender.answers) for appender in appenders) < EVENTS_BEFORE
    ):
        await process.spine.list(OWNER)


async def _move(processes: Sequence[engines.Engines]) -> None:
    """Both kinds at once, begun by one process."""
    started = [await processes[0].moves.start(OWNER, kind, "b") for kind in KINDS]
    for stored in started:
        move, progress = await ended(processes[1], stored.record.move_id, timeout_s=MOVE_TIMEOUT_S)
        assert move.phase == "done", progress


async def _check(
    processes: Sequence[engines.Engines], writers: Sequence[Writer], appenders: Sequence[Appender]
) -> None:
    for process in processes:
        for kind in KINDS:
            assert (await process.routes.resolve(OWNER, kind)).route.backend_id == "b"
        for writer in writers:
            await writer.check(process)
        events = await all_events(process.spine)
        assert [event.position for event in events] == list(range(1, len(events) + 1)), "gaps in the spine"
        by_id = {event.event_id: event for event in events}
        assert len(by_id) == len(events), "an event is there twice"
        numbers = [(event.payload or {}).get("number") for event in events if event.event_type == "note"]
        assert len(set(numbers)) == len(numbers), "an event was appended twice"
        for appender in appenders:
            for number, (event_id, position) in appender.answers.items():
                found = by_id[event_id]
                assert (found.position, found.payload) == (position, {"number": number})
        assert (await process.spine.verify(OWNER)).ok
    for appender in appenders:
        for number in list(appender.answers):
            if number % 2 == 0 or number % 3 == 0:  # Its own id, or an Idempotency-Key.
                assert (await appender.append(number))[1] == appender.answers[number][1]
