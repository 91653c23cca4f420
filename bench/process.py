"""Another process that appends to a log as fast as it can: `python -m bench.process`.

The program reads lines of JSON. The first is the backend; each other one a turn: a stream, callers, seconds.
It answers `ready` once the stream's log is open, waits for a line, appends, and answers with a line of JSON:
how many events were acknowledged, how many writes met somebody else's. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import uvloop

from bench.backends import Backend
from bench.events import event_bodies
from bench.measure import Stopwatch
from bench.storage import new_log, open_documents
from engines.core.documents import Documents
from engines.core.log import Entry, Log
from engines.errors import Conflict, EnginesError
from engines.ports.documents import Doc, DocumentDriver, Op, Page

BODIES = 500


class Turn(msgspec.Struct, frozen=True):
    """What one process does in one turn."""

    stream: str
    callers: int
    seconds: float


class Outcome(msgspec.Struct, frozen=True):
    """What became of a turn. `failed`: appends that were refused for another reason than a conflict."""

    appended: int
    commits: int
    conflicts: int
    failed: int
    seconds: float


class Conflicts:
    """A driver that counts writes, and those that met somebody else's."""

    def __init__(self, driver: DocumentDriver) -> None:
        self.writes = self.conflicts = 0
        self._driver = driver
        self.provision, self.reclaim, self.close = driver.provision, driver.reclaim, driver.close

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        return await self._driver.get(partition, keys)

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        return await self._driver.scan(partition, above=above, below=below, limit=limit, reverse=reverse)

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        try:
            await self._driver.write(partition, ops, write_id=write_id)
        except Conflict:
            self.conflicts += 1
            raise
        self.writes += 1


async def _take_turns(backend: Backend) -> None:
    conflicts = Conflicts(backend.open())
    entries = [Entry(body) for body in event_bodies(BODIES)]
    async with open_documents(conflicts) as documents:
        while line := await asyncio.to_thread(sys.stdin.readline):
            turn = msgspec.json.decode(line, type=Turn)
            outcome = await _take(turn, documents, conflicts, entries)
            _say(outcome)


async def _take(turn: Turn, documents: Documents, conflicts: Conflicts, entries: list[Entry]) -> Outcome:
    log = new_log(documents, turn.stream)
    await log.head()
    _say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    writes, met = conflicts.writes, conflicts.conflicts
    counts = _Counts()
    watch = Stopwatch()
    tasks = [asyncio.create_task(_append(log, entries, counts)) for _ in range(turn.callers)]
    await asyncio.sleep(turn.seconds)
    outcome = Outcome(
        appended=counts.appended,
        commits=conflicts.writes - writes,
        conflicts=conflicts.conflicts - met,
        failed=counts.failed,
        seconds=watch.seconds(),
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await log.close()
    return outcome


class _Counts:
    def __init__(self) -> None:
        self.appended = self.failed = 0


async def _append(log: Log, entries: list[Entry], counts: _Counts) -> None:
    for entry in itertools.cycle(entries):
        try:
            await log.append((entry,))
            counts.appended += 1
        except EnginesError:
            counts.failed += 1


def _say(words: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(words) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(_take_turns(msgspec.json.decode(sys.stdin.readline(), type=Backend)))
