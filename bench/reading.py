"""Reading a page of a log at a random position: a long log beside a short one in the same database.

Both are packed alike. Reads of the two alternate one by one, so that neither has the warmer moment.
"""

from __future__ import annotations

import random

import uvloop

from bench.events import event_bodies
from bench.measure import Goal, Result, Stopwatch, compared
from bench.stage import SEED, Stage
from bench.storage import POSTGRES, SQLITE, Database, Storage
from engines.core.log import Entry, Log

PAGE_EVENTS = 100
# What each commit of both logs holds; of the order that group commit makes of 32 callers.
COMMIT_EVENTS = 25


def list_after_postgres(stage: Stage) -> list[Result]:
    return uvloop.run(_list_after_on(POSTGRES, stage))


def list_after_sqlite(stage: Stage) -> list[Result]:
    return uvloop.run(_list_after_on(SQLITE, stage))


async def _list_after_on(database: Database, stage: Stage) -> list[Result]:
    few, many = stage.sizes.list_events_few, stage.sizes.list_events_many
    async with database.open(stage) as storage:
        await _fill(storage, "few", few)
        await _fill(storage, "many", many)
        # Other Log objects than the ones that wrote, as in another process: nothing is known of the tail.
        logs = ((storage.log("many"), many), (storage.log("few"), few))
        costs: tuple[list[float], list[float]] = ([], [])
        source = random.Random(SEED)
        for number in range(stage.sizes.rounds + 1):
            long_us, short_us = await _read_round(logs, source, stage.sizes.list_reads)
            if number > 0:
                costs[0].append(long_us)
                costs[1].append(short_us)
        return [
            compared(
                *costs,
                name=f"list-after-{database.name}",
                what=f"list_after, {PAGE_EVENTS} events, {database.label}, of {many:,}",
                unit="µs",
                other_name=f"the same, of {few:,}",
                goal=Goal("at most", 1.15),
                notes={"events a commit": COMMIT_EVENTS, "reads a round": stage.sizes.list_reads},
            )
        ]


async def _fill(storage: Storage, stream: str, count: int) -> None:
    log = storage.log(stream)
    entries = [Entry(body) for body in event_bodies(COMMIT_EVENTS)]
    for _ in range(count // COMMIT_EVENTS):
        await log.append(entries)
    assert (await log.head()).position == count
    await log.close()


async def _read_round(
    logs: tuple[tuple[Log, int], ...], source: random.Random, reads: int
) -> tuple[float, ...]:
    """Microseconds a read, for each log."""
    spent_s = [0.0] * len(logs)
    for _ in range(reads):
        for index, (log, count) in enumerate(logs):
            after = source.randrange(count - PAGE_EVENTS)
            watch = Stopwatch()
            batch = await log.list_after(after, limit=PAGE_EVENTS)
            spent_s[index] += watch.seconds()
            assert len(batch.events) == PAGE_EVENTS
            assert batch.events[0].position == after + 1
    return tuple(seconds / reads * 1e6 for seconds in spent_s)
