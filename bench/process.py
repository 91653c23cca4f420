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


class Calls(msgspec.Struct, frozen=True):
    """How many calls a driver had, and seconds in them: writes that won, that met a conflict, and reads."""

    commits: int = 0
    commits_s: float = 0.0
    conflicts: int = 0
    conflicts_s: float = 0.0
    reads: int = 0
    reads_s: float = 0.0

    def since(self, before: Calls) -> Calls:
        names = self.__struct_fields__
        return Calls(**{name: getattr(self, name) - getattr(before, name) for name in names})


class Turn(msgspec.Struct, frozen=True):
    """What one process does in one turn."""

    stream: str
    callers: int
    seconds: float


class Outcome(msgspec.Struct, frozen=True):
    """What became of a turn. `failed`: appends that were refused for another reason than a conflict.

    A log has one call under way at a time as a rule, so what is left of `seconds` beside the calls was spent
    waiting for a turn, or computing.
    """

    appended: int
    failed: int
    seconds: float
    calls: Calls


class Counted:
    """A driver that counts its calls."""

    def __init__(self, driver: DocumentDriver) -> None:
        self.calls = Calls()
        self._driver = driver
        self.provision, self.reclaim, self.close = driver.provision, driver.reclaim, driver.close

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        watch = Stopwatch()
        try:
            return await self._driver.get(partition, keys)
        finally:
            self._count("reads", watch)

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        watch = Stopwatch()
        try:
            return await self._driver.scan(partition, above=above, below=below, limit=limit, reverse=reverse)
        finally:
            self._count("reads", watch)

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        watch = Stopwatch()
        try:
            await self._driver.write(partition, ops, write_id=write_id)
        except Conflict:
            self._count("conflicts", watch)
            raise
        self._count("commits", watch)

    def _count(self, name: str, watch: Stopwatch) -> None:
        more = {name: getattr(self.calls, name) + 1}
        more_s = {f"{name}_s": getattr(self.calls, f"{name}_s") + watch.seconds()}
        self.calls = msgspec.structs.replace(self.calls, **more, **more_s)


async def _take_turns(backend: Backend) -> None:
    counted = Counted(backend.open())
    entries = [Entry(body) for body in event_bodies(BODIES)]
    async with open_documents(counted) as documents:
        while line := await asyncio.to_thread(sys.stdin.readline):
            turn = msgspec.json.decode(line, type=Turn)
            outcome = await _take(turn, documents, counted, entries)
            _say(outcome)


async def _take(turn: Turn, documents: Documents, counted: Counted, entries: list[Entry]) -> Outcome:
    log = new_log(documents, turn.stream)
    await log.head()
    _say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    before = counted.calls
    counts = _Counts()
    watch = Stopwatch()
    tasks = [asyncio.create_task(_append(log, entries, counts)) for _ in range(turn.callers)]
    await asyncio.sleep(turn.seconds)
    outcome = Outcome(
        appended=counts.appended,
        failed=counts.failed,
        seconds=watch.seconds(),
        calls=counted.calls.since(before),
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
