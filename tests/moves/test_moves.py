"""A kind of a tenant is moved while several processes read and write it."""

from __future__ import annotations

import asyncio
import random

import msgspec

import engines
from engines.core.listing import Window
from engines.core.records import Condition
from engines.scope import RequestContext
from engines.stores.notes import NoteInput
from tests.moves.conftest import OWNER, Open, ended

# While every process answers; a lease takes three seconds.
PAUSE_S_MAX = 2.5


class Writer:
    """One user who alone changes their notes, through any process, and knows what must be there."""

    def __init__(self, number: int, processes: list[engines.Engines]) -> None:
        self.context: RequestContext = msgspec.structs.replace(OWNER, user_id=f"u{number}")
        self.notes: dict[str, str] = {}
        self.longest_s = 0.0
        self.changes = 0
        self._processes = processes
        self._random = random.Random(number)

    async def run(self, stop: asyncio.Event) -> None:
        clock = self._processes[0].clock
        while not stop.is_set():
            began_s = clock.monotonic()
            await self._change()
            self.longest_s = max(self.longest_s, clock.monotonic() - began_s)
            self.changes += 1
            await self._look()

    async def _change(self) -> None:
        notes = self._random.choice(self._processes).notes
        verb = self._random.choice(("create", "create", "replace", "delete"))
        if verb == "create" or not self.notes:
            note = await notes.create(self.context, NoteInput(content=self._text()))
            self.notes[note.record.note_id] = note.etag
            return
        note_id = self._random.choice(list(self.notes))
        condition = Condition(versions=(self.notes[note_id].strip('"'),))
        if verb == "replace":
            changed = await notes.replace(
                self.context, note_id, NoteInput(content=self._text()), condition=condition
            )
            self.notes[note_id] = changed.etag
        else:
            await notes.delete(self.context, note_id, condition=condition)
            del self.notes[note_id]

    async def _look(self) -> None:
        """Whatever was acknowledged is what any process shows."""
        if self.notes:
            note_id = self._random.choice(list(self.notes))
            note = await self._random.choice(self._processes).notes.get(self.context, note_id)
            assert note.etag == self.notes[note_id]

    async def check(self, process: engines.Engines) -> None:
        listed = await process.notes.list(self.context, window=Window(limit=1_000))
        assert {note.note_id: note.etag for note in listed.items} == self.notes

    def _text(self) -> str:
        return "ü" * self._random.randint(1, 200)


async def test_notes_are_moved_there_and_back_while_they_are_used(open_process: Open) -> None:
    processes = [await open_process(), await open_process()]
    writers = [Writer(number, processes) for number in range(8)]
    stop = asyncio.Event()
    working = [asyncio.create_task(writer.run(stop)) for writer in writers]
    for target in ("b", "a"):
        stored = await processes[0].moves.start(OWNER, "notes_store", target)
        move, progress = await ended(processes[1], stored.record.move_id)
        assert move.phase == "done", progress
        assert progress.documents >= sum(len(writer.notes) for writer in writers) / 2
        assert progress.repaired == 0
    assert max(writer.longest_s for writer in writers) < PAUSE_S_MAX
    stop.set()
    await asyncio.gather(*working)
    for writer in writers:
        for process in processes:
            await writer.check(process)
    assert (await processes[0].routes.resolve(OWNER, "notes_store")).route.backend_id == "a"
