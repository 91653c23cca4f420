"""One call on a cloud service's API: ours against the service's own SDK called directly.

Ours goes the whole way that stores take: `core/documents.py` for a document, `core/log.py` for events. The
bare side reads and writes documents of the same size, and for an append the very documents that our round
wrote. Processor time is this process's; the servers are processes of their own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import uvloop

from bench.bare_sdks import NAMES, BareSdk, open_sdk
from bench.events import event_bodies
from bench.measure import Goal, Result, Stopwatch, alternate, compared
from bench.stage import EVENT_BYTES, Stage
from bench.storage import ENV, KIND, TENANT, new_log, open_backend
from engines.core.commits import COMMITS_ABOVE, COMMITS_BELOW
from engines.core.documents import Documents
from engines.core.keys import partition
from engines.core.log import Entry
from engines.ports.documents import ABSENT, Doc, Match, Put

EVENTS_AN_APPEND: Final = 99
PARTITION: Final = "notes_store.t_bench.prod.0"
OURS: Final = "n!u_bench!ours"
BARE: Final = "n!u_bench!bare"
CALL_GOAL: Final = Goal("at most", 1.25)
APPEND_GOAL: Final = Goal("at most", 1.15)

Call = Callable[[], Awaitable[object]]


def sdk_dynamodb(stage: Stage) -> list[Result]:
    return uvloop.run(_compare("dynamodb", stage))


def sdk_firestore(stage: Stage) -> list[Result]:
    return uvloop.run(_compare("firestore", stage))


def sdk_cosmos(stage: Stage) -> list[Result]:
    return uvloop.run(_compare("cosmos", stage))


class _Pair:
    """Both sides on one storage."""

    def __init__(self, driver: str, label: str, documents: Documents, bare: BareSdk, stage: Stage) -> None:
        self.driver = driver
        self.label = label
        self.documents = documents
        self.bare = bare
        self.rounds = stage.sizes.sdk_rounds
        self.calls = stage.sizes.sdk_calls
        self.appends = stage.sizes.sdk_appends

    def result(
        self, operation: str, what: str, ours: _Side, bare: _Side, walls: list[list[float]], goal: Goal
    ) -> Result:
        """`walls`: microseconds a call, of each side's rounds."""
        return compared(
            *walls,
            name=f"sdk-{self.driver}-{operation}",
            what=f"{what}, {self.label}",
            unit="µs",
            other_name=NAMES[self.driver],
            goal=goal,
            cpu=[mine / theirs for mine, theirs in zip(ours.cpu_us, bare.cpu_us, strict=True)],
            notes={
                "calls a round": ours.calls,
                "CPU µs, ours": round(_mean(ours.cpu_us), 1),
                "CPU µs, the other": round(_mean(bare.cpu_us), 1),
            },
        )


class _Side:
    """One side of a comparison: microseconds a call, and what of it this process computed."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.cpu_us: list[float] = []

    async def time(self, number: int, call: Call) -> float:
        watch = Stopwatch()
        for _ in range(self.calls):
            await call()
        seconds, cpu_seconds = watch.seconds(), watch.cpu_seconds()
        if number > 0:
            self.cpu_us.append(cpu_seconds / self.calls * 1e6)
        return seconds / self.calls * 1e6


async def _compare(driver: str, stage: Stage) -> list[Result]:
    async with _open(driver, stage) as pair:
        await pair.documents.write(PARTITION, [Put(OURS, _body(), ABSENT)])
        await pair.bare.create(PARTITION, Doc(BARE, _body(), "0" * 36))
        return [await _get(pair), await _replace(pair), await _append(pair)]


@contextlib.asynccontextmanager
async def _open(driver: str, stage: Stage) -> AsyncIterator[_Pair]:
    backend = stage.new_backend(driver)
    async with open_backend(backend) as documents, open_sdk(backend) as bare:
        yield _Pair(driver, backend.label, documents, bare, stage)


async def _get(pair: _Pair) -> Result:
    mine, theirs = _Side(pair.calls), _Side(pair.calls)

    async def ours(number: int) -> float:
        return await mine.time(number, functools.partial(pair.documents.get, PARTITION, OURS))

    async def bare(number: int) -> float:
        return await theirs.time(number, functools.partial(pair.bare.get, PARTITION, BARE))

    walls = await alternate(pair.rounds, ours, bare)
    return pair.result("get", f"read of {EVENT_BYTES} bytes", mine, theirs, walls, CALL_GOAL)


async def _replace(pair: _Pair) -> Result:
    """Each replacement is conditioned on what the one before made."""
    mine, theirs = _Side(pair.calls), _Side(pair.calls)
    found = await pair.documents.get(PARTITION, OURS)
    assert found is not None
    version, body, count = found.version, _body(), 0

    async def put() -> None:
        nonlocal version
        version = await pair.documents.write(PARTITION, [Put(OURS, body, Match(version))])

    async def put_bare() -> None:
        nonlocal count
        count += 1
        await pair.bare.replace(PARTITION, Doc(BARE, body, f"{count:036d}"))

    async def ours(number: int) -> float:
        return await mine.time(number, put)

    async def bare(number: int) -> float:
        return await theirs.time(number, put_bare)

    walls = await alternate(pair.rounds, ours, bare)
    return pair.result("put", f"conditional write of {EVENT_BYTES} bytes", mine, theirs, walls, CALL_GOAL)


async def _append(pair: _Pair) -> Result:
    mine, theirs = _Side(pair.appends), _Side(pair.appends)
    entries = [Entry(body) for body in event_bodies(EVENTS_AN_APPEND)]
    written: list[Doc] = []
    copies = 0

    async def ours(number: int) -> float:
        stream = f"calls-{number}"
        log = new_log(pair.documents, stream)
        await log.append(entries)
        figure = await mine.time(number, functools.partial(log.append, entries))
        await log.close()
        page = await pair.documents.scan(
            partition(KIND, TENANT, ENV, f"{stream}.0"), above=COMMITS_ABOVE, below=COMMITS_BELOW
        )
        written[:] = page.docs
        return figure

    async def bare(number: int) -> float:
        nonlocal copies
        copies += 1
        left = iter([written[place % len(written)] for place in range(pair.appends)])
        keys = iter(range(pair.appends))

        async def create() -> None:
            doc = next(left)
            copy = Doc(f"{doc.key}.{next(keys)}", doc.body, doc.version)
            await pair.bare.create(f"bare.{copies}", copy)

        return await theirs.time(number, create)

    walls = await alternate(pair.rounds, ours, bare)
    what = f"append of {EVENTS_AN_APPEND} events of {EVENT_BYTES} bytes in one commit"
    return pair.result("append", what, mine, theirs, walls, APPEND_GOAL)


def _body() -> str:
    return event_bodies(1)[0]


def _mean(figures: list[float]) -> float:
    return sum(figures) / len(figures)
