"""Appending to a log: against a bare loop that inserts the very rows that the log wrote.

The bare side is handed the packed rows of our round, so it has the same bodies at the same batch size; it
neither packs, checks, hashes nor answers anybody.
"""

from __future__ import annotations

import asyncio

import uvloop

from bench.bare import Bare, Row
from bench.events import event_bodies
from bench.measure import Goal, Result, Stopwatch, alternate, compared
from bench.stage import APPENDERS, EVENT_BYTES, Stage
from bench.storage import ENV, KIND, POSTGRES, SQLITE, TENANT, Database, Storage
from engines.core.commits import COMMITS_ABOVE, COMMITS_BELOW
from engines.core.keys import partition
from engines.core.log import Entry, Log

WARM_APPENDS = 3


def append_postgres(stage: Stage) -> list[Result]:
    return uvloop.run(_append_on(POSTGRES, stage))


def append_sqlite(stage: Stage) -> list[Result]:
    return uvloop.run(_append_on(SQLITE, stage))


async def _append_on(database: Database, stage: Stage) -> list[Result]:
    async with database.open(stage) as storage:
        return [
            await _many(database, storage, stage),
            await _alone(database, storage, stage),
        ]


async def _many(database: Database, storage: Storage, stage: Stage) -> Result:
    each, events = stage.sizes.appends_each, stage.sizes.appends_each * APPENDERS
    entries = [Entry(body) for body in event_bodies(events)]
    rows: list[Row] = []
    batches: list[float] = []

    async def ours(number: int) -> float:
        stream = f"many-{number}"
        rate = await append_rate(storage.log(stream), entries, each)
        rows[:] = await _commits(storage, stream, events)
        batches.append(events / len(rows))
        return rate

    async def bare(_: int) -> float:
        return events / await _insert_all(storage.bare, rows)

    rates = await alternate(stage.sizes.rounds, ours, bare)
    return compared(
        *rates,
        name=f"append-{database.name}",
        what=f"append, {database.label}, {EVENT_BYTES}-byte events, {APPENDERS} appenders",
        unit="events/s",
        other_name=f"{database.other}, the same packed rows",
        goal=Goal("at least", 0.7),
        notes={"events a commit": round(sum(batches) / len(batches), 1), "events a round": events},
    )


async def _alone(database: Database, storage: Storage, stage: Stage) -> Result:
    count = stage.sizes.lone_appends
    entries = [Entry(body) for body in event_bodies(count)]
    rows: list[Row] = []

    async def ours(number: int) -> float:
        stream = f"alone-{number}"
        log = storage.log(stream)
        await warm(log, entries)
        watch = Stopwatch()
        for entry in entries:
            await log.append((entry,))
        seconds = watch.seconds()
        await log.close()
        rows[:] = await _commits(storage, stream, count)
        return seconds / count * 1e6

    async def bare(_: int) -> float:
        return await _insert_all(storage.bare, rows) / count * 1e6

    costs = await alternate(stage.sizes.rounds, ours, bare)
    return compared(
        *costs,
        name=f"append-{database.name}-alone",
        what=f"one append alone, {database.label}, {EVENT_BYTES} bytes",
        unit="µs",
        other_name=f"{database.other}, the same row",
        goal=Goal("at most", 1.3),
        notes={"appends a round": count},
    )


async def append_rate(log: Log, entries: list[Entry], each: int) -> float:
    """Events per second of `APPENDERS` callers who each append one event a request, and wait for it."""
    await warm(log, entries)

    async def appender(start: int) -> None:
        for entry in entries[start : start + each]:
            await log.append((entry,))

    watch = Stopwatch()
    async with asyncio.TaskGroup() as group:
        for number in range(APPENDERS):
            group.create_task(appender(number * each))
    seconds = watch.seconds()
    await log.close()
    return APPENDERS * each / seconds


async def warm(log: Log, entries: list[Entry]) -> None:
    """The stream's own record, the first commits, the caches."""
    for entry in entries[:WARM_APPENDS]:
        await log.append((entry,))


async def _commits(storage: Storage, stream: str, events: int) -> list[Row]:
    """The commits of a stream as rows, without those of the warm-up, checked to be all there."""
    rows: list[Row] = []
    head = await storage.log(stream).head()
    assert head.position == events + WARM_APPENDS, "every append that was answered is there"
    for segment in range(head.position // 50_000 + 1):
        rows += await storage.bare.written_by_us(partition(KIND, TENANT, ENV, f"{stream}.{segment}"))
    commits = [row for row in rows if COMMITS_ABOVE < row[1] < COMMITS_BELOW]
    return commits[WARM_APPENDS:]


async def _insert_all(bare: Bare, rows: list[Row]) -> float:
    """Seconds."""
    watch = Stopwatch()
    for row in rows:
        await bare.insert(row)
    return watch.seconds()
