"""Who writes while a tenant is moved, in this process, and remembers what must be there.

Owns the writer of notes and the appender of events, whose calls go through any of several `engines.Engines`
as through several processes. Leaves moves to the tests.
"""

from __future__ import annotations

import asyncio
import random
import uuid

import msgspec

import engines
from engines.core.idempotency import identify
from engines.core.listing import Window
from engines.core.records import Condition
from engines.scope import RequestContext
from engines.stores.event_records import Event, NewEvent
from engines.stores.events import EventSpine
from engines.stores.notes import NoteInput
from tests.moves.conftest import OWNER


class Writer:
    """One user who alone changes their notes, through any process, and knows what must be there."""

    def __init__(self, number: int, processes: list[engines.Engines], *, seed: int = 0) -> None:
        self.context: RequestContext = msgspec.structs.replace(OWNER, user_id=f"u{number}")
        self.notes: dict[str, str] = {}
        self.longest_s = 0.0
        self.changes = 0
        self._processes = processes
        self._random = random.Random(f"{seed}.{number}")

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


def new_event(number: int, *, named: bool) -> NewEvent:
    return NewEvent(
        event_type="note",
        payload={"number": number},
        event_id=str(uuid.UUID(int=number, version=4)) if named else None,
    )


class Appender:
    """Appends with ids and Idempotency-Keys of its own through any process, and remembers each answer."""

    def __init__(self, number: int, processes: list[engines.Engines]) -> None:
        self.answers: dict[int, tuple[str, int]] = {}
        self.longest_s = 0.0
        self._base = number * 1_000_000
        self._processes = processes

    async def run(self, stop: asyncio.Event) -> None:
        clock = self._processes[0].clock
        count = 0
        while not stop.is_set():
            number = self._base + count
            began_s = clock.monotonic()
            self.answers[number] = await self.append(number)
            self.longest_s = max(self.longest_s, clock.monotonic() - began_s)
            count += 1

    async def append(self, number: int) -> tuple[str, int]:
        """The same event under the same key, whenever it is called."""
        spine = self._processes[number % len(self._processes)].spine
        request = identify("test", str(number), body=b"") if number % 3 == 0 else None
        appended = await spine.append(OWNER, [new_event(number, named=number % 2 == 0)], request=request)
        return appended.events[0].event_id, appended.events[0].position


async def all_events(spine: EventSpine) -> list[Event]:
    events: list[Event] = []
    after: str | None = None
    while True:
        page = await spine.list(OWNER, window=Window(limit=1_000, after=after))
        events += page.items
        if page.after is None:
            return events
        after = page.after
