"""Kill -9 of a lab and of the database under it, while clients write; then everything is compared.

Owns one driver's cycles. In a cycle clients create and replace notes and append events, each change under a
key or id of its own; the lab's server, the database or both are killed and started again; every client
repeats what was in doubt until it is answered, and stops. Then each note and each event must be there once,
as it was acknowledged. A lab and its storage serve some cycles and are then made anew, so that cycles stay
equally long.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

import msgspec

from engines.client import AsyncEngines, Event, NewEvent, NewNote, Note
from engines.errors import OutcomeUnknown, RequestTimeout, Throttled, Unavailable
from tests.backends import Server, make_running, new_backend
from tests.cli.lab import LabProcess
from tests.servers.cosmos import CosmosAccount

WRITERS: Final = 4
CYCLES_A_LAB: Final = 20
CYCLE_TIMEOUT_S: Final = 120.0
# Changes of all writers before the kill.
CHANGES_BEFORE: Final = (5, 40)
AWAY_S_MAX: Final = 0.4
EVENT_TYPE: Final = "soak"
IN_DOUBT: Final = (Unavailable, OutcomeUnknown, Throttled, RequestTimeout)

T = TypeVar("T")


class Tally(msgspec.Struct):
    """What was done so far: cycles that held, changes acknowledged in them, and who was killed how often."""

    cycles: int = 0
    changes: int = 0
    kills: dict[str, int] = {}


class Writer:
    """One task's changes under names of its own, and what it was told of each."""

    def __init__(self, name: str, client: AsyncEngines, random: Random) -> None:
        self.notes: dict[str, Note] = {}
        self.events: dict[str, int] = {}
        self.changes = 0
        self.heard = asyncio.Event()
        self._name = name
        self._client = client
        self._random = random

    async def run(self, stop: asyncio.Event) -> None:
        """Change until `stop`; returns with every change acknowledged."""
        while not stop.is_set():
            await self._change(f"{self._name}.{self.changes}")
            self.changes += 1
            self.heard.set()

    async def _change(self, name: str) -> None:
        what = self._random.choice(("create", "replace", "append", "append"))
        notes, events = self._client.notes, self._client.events
        if what == "append":
            event = NewEvent(
                event_type=EVENT_TYPE, event_id=str(uuid.uuid4()), payload={"name": name}, run_id="soak"
            )
            appended = await _until_answered(lambda: events.append([event]))
            self.events[name] = appended[0].position
            return
        content = NewNote(title=name, content=name)
        if what == "create" or not self.notes:
            note = await _until_answered(lambda: notes.create(content, idempotency_key=name))
        else:
            old = self.notes[self._random.choice(list(self.notes))]
            note = await _until_answered(
                lambda: notes.replace(old.note_id, content, if_match=old.etag, idempotency_key=name)
            )
        self.notes[note.note_id] = note


async def _until_answered(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat what was refused for now or is in doubt: it carries a key or an id."""
    while True:
        with contextlib.suppress(*IN_DOUBT):
            return await call()


class Lab:
    """A lab whose tenant lies on one driver's storage, the clients that write to it, and their books."""

    def __init__(self, driver: str, server: Server | None, directory: Path) -> None:
        self.server = server
        self.process = LabProcess(directory / "lab")
        backend = new_backend(
            driver, server, directory, "kept"
        )  # Its secrets must be there as the lab starts.
        self.process.start()
        self.process.keep_on(backend)
        self.writers: list[Writer] = []
        file = self.process.file
        self.client = AsyncEngines(file.url, file.user("member").token)
        self._owner = AsyncEngines(file.url, file.user("owner").token)

    async def close(self) -> None:
        await self.client.close()
        await self._owner.close()
        self.process.kill()

    async def cycle(self, name: str, tally: Tally) -> None:
        """Raises AssertionError where anything acknowledged is lost, doubled or another."""
        random = Random(name)
        writers = [Writer(f"{name}.{n}", self.client, Random(f"{name}.{n}")) for n in range(WRITERS)]
        self.writers += writers
        stop = asyncio.Event()
        async with asyncio.timeout(CYCLE_TIMEOUT_S), asyncio.TaskGroup() as working:
            for writer in writers:
                working.create_task(writer.run(stop))
            await _changed(writers, random.randint(*CHANGES_BEFORE))
            what = random.choice(self._victims())
            tally.kills[what] = tally.kills.get(what, 0) + 1
            await asyncio.to_thread(self._kill, what, random.uniform(0, AWAY_S_MAX))
            await _changed(writers, sum(writer.changes for writer in writers) + WRITERS)
            stop.set()
        await self.check()
        tally.cycles += 1
        tally.changes += sum(writer.changes for writer in writers)

    def _victims(self) -> tuple[str, ...]:
        if self.server is None or isinstance(self.server, CosmosAccount):
            return ("server",)
        return ("server", "database", "both")

    def _kill(self, what: str, away_s: float) -> None:
        if what != "server":
            assert self.server is not None
            assert not isinstance(self.server, CosmosAccount)
            self.server.kill9()
        if what != "database":
            self.process.kill()
        time.sleep(away_s)
        make_running(self.server)
        if what != "database":
            self.process.start()

    async def check(self) -> None:
        """Every note and event of all cycles so far. Raises AssertionError."""
        notes = [note async for note in self.client.notes.each()]
        expected = {note_id: note for writer in self.writers for note_id, note in writer.notes.items()}
        found = {note.note_id: (note.content, note.etag) for note in notes}
        assert len(found) == len(notes), "a note is listed twice"
        assert found == {note_id: (note.content, note.etag) for note_id, note in expected.items()}, (
            "notes are lost, doubled or not as they were acknowledged"
        )
        events = [event async for event in self.client.events.each()]
        assert [event.position for event in events] == list(range(1, len(events) + 1)), "gaps in the spine"
        own = [event for event in events if event.event_type == EVENT_TYPE]
        positions = {str(_payload(event)["name"]): event.position for event in own}
        assert len(positions) == len(own), "an event is there twice"
        acknowledged = {name: at for writer in self.writers for name, at in writer.events.items()}
        assert positions == acknowledged, "events are lost or not where they were acknowledged"
        verified = await self._owner.events.verify()
        assert verified.ok, verified.reason


async def _changed(writers: Sequence[Writer], count: int) -> None:
    """Until all of them together were answered so often, and each at least once more than now."""
    before = [writer.changes for writer in writers]
    for writer, changes in zip(writers, before, strict=True):
        while writer.changes == changes or sum(one.changes for one in writers) < count:
            writer.heard.clear()
            await writer.heard.wait()


def _payload(event: Event) -> dict[str, Any]:
    return dict(event.payload or {})


async def crash_cycles(
    driver: str, server: Server | None, *, seed: int, cycles: int, tally: Tally, go_on: Callable[[], bool]
) -> None:
    """Up to `cycles` of them while `go_on`; `tally` says how many there were. Raises what a cycle raises."""
    for first in range(0, cycles, CYCLES_A_LAB):
        with tempfile.TemporaryDirectory(prefix="engines-soak-") as directory:
            lab = Lab(driver, server, Path(directory))
            try:
                for number in range(first, min(first + CYCLES_A_LAB, cycles)):
                    if not go_on():
                        return
                    await lab.cycle(f"{seed}.{driver}.{number}", tally)
            finally:
                await lab.close()
