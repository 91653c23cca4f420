"""Rules of the spine's index: a filtered list is the full list, filtered, whatever happened to the index."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest

from engines.core.index import Layout
from engines.core.listing import Window
from engines.errors import EnginesError
from engines.stores.events import Event, EventFilter, EventSpine
from engines.testing.faults import NO_FAULTS, FaultPlan
from tests.stores.home import Home, context
from tests.stores.samples import numbered

SMALL = Layout(block=5, segment_blocks=3, shards=2)
RUNS = ("run-0", "run-1", "run-12", "run")
USERS = ("ada", "bob", "a")
TYPES = ("rl", "tuning", "rlha")


def new_spine(home: Home, *, layout: Layout = SMALL, segment_size: int = 7) -> EventSpine:
    return EventSpine(
        home, home.ids, home.clock, segment_size_default=segment_size, index_layout_default=layout
    )


@pytest.fixture
async def small(home: Home) -> AsyncIterator[EventSpine]:
    spine = new_spine(home)
    yield spine
    await spine.close()


async def fill(spine: EventSpine, count: int, random: Random) -> None:
    """Append `count` events of random runs, users and types in random commits."""
    while count:
        size = min(count, random.randint(1, 4))
        batch = [
            numbered(count - at, event_type=random.choice(TYPES), run_id=random.choice(RUNS))
            for at in range(size)
        ]
        await spine.append(context(user_id=random.choice(USERS)), batch)
        count -= size


async def collect(
    spine: EventSpine, where: EventFilter, *, limit: int = 100, descending: bool = False
) -> list[Event]:
    found: list[Event] = []
    after: str | None = None
    while True:
        page = await spine.list(
            context(), where, window=Window(limit=limit, after=after, descending=descending)
        )
        assert len(page.items) <= limit
        found += page.items
        after = page.after
        if after is None:
            return found


def admitted(events: list[Event], where: EventFilter) -> list[Event]:
    return [
        shown
        for shown in events
        if where.run_id in (None, shown.run_id)
        and where.user_id in (None, shown.user_id)
        and where.event_type in (None, shown.event_type)
        and (where.since is None or shown.timestamp >= where.since)
        and (where.until is None or shown.timestamp < where.until)
    ]


def a_filter(random: Random, events: list[Event]) -> EventFilter:
    some = [random.choice(("run_id", "user_id", "event_type"))]
    some += [name for name in ("run_id", "user_id", "event_type") if random.random() < 0.2]
    values = {"run_id": (*RUNS, "nobody"), "user_id": USERS, "event_type": TYPES}
    chosen = {name: random.choice(values[name]) for name in some}
    times = {
        name: random.choice(events).timestamp
        for name in ("since", "until")
        if events and random.random() < 0.2
    }
    return EventFilter(**chosen, **times)


async def project(spine: EventSpine) -> None:
    """Everything that is whole."""
    while await spine._index.step(context()):
        pass


async def projected(spine: EventSpine, home: Home) -> int:
    return await spine._index._index(await home.place("event_spine", context())).projected()


async def check(spine: EventSpine, random: Random, *, lists: int = 4) -> None:
    """Lists by random filters against the whole log, which no index serves."""
    everything = await collect(spine, EventFilter(), limit=1_000)
    for _ in range(lists):
        where = a_filter(random, everything)
        limit = random.choice((1, 2, 3, 7, 100))
        expected = admitted(everything, where)
        assert await collect(spine, where, limit=limit) == expected, where
        assert await collect(spine, where, limit=limit, descending=True) == expected[::-1], where


@pytest.mark.parametrize("seed", range(6))
async def test_filtered_lists_equal_a_full_scan_whatever_happens(home: Home, seed: int) -> None:
    random = Random(seed)
    spines = [new_spine(home, segment_size=random.choice((4, 50)), layout=SMALL) for _ in range(2)]
    faults = FaultPlan(write_refused=0.1, write_lost_unapplied=0.1, write_lost_applied=0.1, write_late=0.1)
    for _ in range(25):
        home.clock.advance(10)  # A circuit that opened closes again.
        spine = random.choice(spines)
        act = random.choice(("append", "append", "project", "project", "check", "redact", "restart"))
        if act == "append":
            await fill(spine, random.randint(1, 12), random)
        elif act == "project":
            home.faults.plan = faults
            try:
                await spine._index.turn(context())
            except EnginesError:
                pass
            finally:
                home.faults.plan = NO_FAULTS
        elif act == "check":
            await check(spine, random)
        elif act == "redact":
            await redact_one(home, spine, random)
        elif random.random() < 0.3:
            await spine._index.restart(context())
    await home.faults.late_writes_delivered()
    home.clock.advance(60)
    await project(spines[0])
    for spine in spines:
        await check(spine, random, lists=10)
        await spine.close()


async def redact_one(home: Home, spine: EventSpine, random: Random) -> None:
    async with spine._logs._using(await home.place("event_spine", context()), "spine") as log:
        if tail := (await log.head()).position:
            await log.redact(random.randint(1, tail))
