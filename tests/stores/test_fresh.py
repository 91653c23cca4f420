"""Values that were read a moment ago: how old they get, how often they are read, how many are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from engines.errors import BackendRefused, Unavailable
from engines.stores.fresh import Fresh
from engines.testing.clock import ManualClock

AGE_MAX_S = 1.0


class Source:
    """Something that is read: how often, and with what known before. Reads wait while the gate is closed."""

    def __init__(self) -> None:
        self.reads: list[str | None] = []
        self.value = "first"
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.began = asyncio.Event()

    async def read(self, before: str | None) -> str:
        self.reads.append(before)
        self.began.set()
        value, error = self.value, self.error
        await self.gate.wait()
        if error is not None:
            raise error
        return value


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def open_fresh(clock: ManualClock) -> AsyncIterator[Callable[..., Fresh[str, str]]]:
    opened: list[Fresh[str, str]] = []

    def open_it(entries_max: int = 3, weight_max: int = 100, age_max_s: float = AGE_MAX_S) -> Fresh[str, str]:
        opened.append(
            Fresh(clock, age_max_s=age_max_s, entries_max=entries_max, weight_max=weight_max, weigh=len)
        )
        return opened[-1]

    yield open_it
    for one in opened:
        await one.close()


@pytest.fixture
def fresh(open_fresh: Callable[..., Fresh[str, str]]) -> Fresh[str, str]:
    return open_fresh()


@pytest.fixture
def source() -> Source:
    return Source()


async def test_a_value_is_read_once_until_it_is_too_old(
    fresh: Fresh[str, str], source: Source, clock: ManualClock
) -> None:
    assert await fresh.get("a", source.read) == "first"
    source.value = "second"
    clock.advance(AGE_MAX_S - 0.001)
    assert await fresh.get("a", source.read) == "first"
    clock.advance(0.001)
    assert await fresh.get("a", source.read) == "second"
    assert source.reads == [None, "first"]


async def test_age_counts_from_when_the_read_began(
    fresh: Fresh[str, str], source: Source, clock: ManualClock
) -> None:
    source.gate.clear()
    waiting = asyncio.create_task(fresh.get("a", source.read))
    await source.began.wait()
    clock.advance(0.9)
    source.gate.set()
    assert await waiting == "first"
    clock.advance(0.2)
    source.value = "second"
    assert await fresh.get("a", source.read) == "second"


async def test_a_read_that_took_longer_than_a_value_may_be_old_has_come_to_nothing(
    fresh: Fresh[str, str], source: Source, clock: ManualClock
) -> None:
    source.gate.clear()
    waiting = asyncio.create_task(fresh.get("a", source.read))
    await source.began.wait()
    clock.advance(AGE_MAX_S)
    source.gate.set()
    with pytest.raises(Unavailable):
        await waiting


async def test_a_read_that_never_ends_is_given_up(
    open_fresh: Callable[..., Fresh[str, str]], source: Source
) -> None:
    source.gate.clear()
    with pytest.raises(Unavailable):
        await open_fresh(age_max_s=0.05).get("a", source.read)


async def test_however_many_ask_one_reads(fresh: Fresh[str, str], source: Source) -> None:
    source.gate.clear()
    waiting = [asyncio.create_task(fresh.get("a", source.read)) for _ in range(100)]
    await source.began.wait()
    source.gate.set()
    assert set(await asyncio.gather(*waiting)) == {"first"}
    assert len(source.reads) == 1


async def test_who_leaves_takes_nobody_else_along(fresh: Fresh[str, str], source: Source) -> None:
    source.gate.clear()
    first = asyncio.create_task(fresh.get("a", source.read))
    await source.began.wait()
    second = asyncio.create_task(fresh.get("a", source.read))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    source.gate.set()
    assert await second == "first"
    assert len(source.reads) == 1


async def test_a_failure_is_everybodys_and_what_was_read_before_is_nobodys(
    fresh: Fresh[str, str], source: Source, clock: ManualClock
) -> None:
    await fresh.get("a", source.read)
    clock.advance(AGE_MAX_S)
    source.error = BackendRefused("the password is wrong")
    source.gate.clear()
    waiting = [asyncio.create_task(fresh.get("a", source.read)) for _ in range(10)]
    await asyncio.sleep(0)
    source.gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, BackendRefused) for outcome in outcomes)
    assert len(set(map(id, outcomes))) == 10, "each raises an error of its own, with its own traceback"
    assert len(source.reads) == 2
    with pytest.raises(BackendRefused):
        await fresh.get("a", source.read)
    source.error = None
    assert await fresh.get("a", source.read) == "first"


async def test_one_key_says_nothing_of_another(fresh: Fresh[str, str], source: Source) -> None:
    await fresh.get("a", source.read)
    source.value = "b's"
    assert await fresh.get("b", source.read) == "b's"
    assert await fresh.get("a", source.read) == "first"


async def test_past_the_bound_what_was_not_asked_for_the_longest_goes(
    fresh: Fresh[str, str], source: Source
) -> None:
    for key in "abcad":
        await fresh.get(key, source.read)
    assert len(source.reads) == 4
    await fresh.get("a", source.read)
    assert len(source.reads) == 4, "it was asked for lately"
    await fresh.get("b", source.read)
    assert len(source.reads) == 5


async def test_weight_is_bounded_too(open_fresh: Callable[..., Fresh[str, str]], source: Source) -> None:
    fresh = open_fresh(entries_max=1_000, weight_max=100)
    source.value = "x" * 40
    for key in "abc":
        await fresh.get(key, source.read)
    assert len(source.reads) == 3
    await fresh.get("c", source.read)
    await fresh.get("b", source.read)
    assert len(source.reads) == 3
    await fresh.get("a", source.read)
    assert len(source.reads) == 4
    source.value = "x" * 1_000
    assert await fresh.get("huge", source.read) == source.value
    assert await fresh.get("huge", source.read) == source.value
    assert len(source.reads) == 5


async def test_closing_tells_whoever_waits(fresh: Fresh[str, str], source: Source) -> None:
    source.gate.clear()
    waiting = asyncio.create_task(fresh.get("a", source.read))
    await source.began.wait()
    await fresh.close()
    with pytest.raises(Unavailable):
        await waiting


async def test_a_failure_that_nobody_waits_for_any_more_is_no_noise(
    fresh: Fresh[str, str], source: Source
) -> None:
    """Pytest fails a test whose task ended with an exception that nobody looked at."""
    source.gate.clear()
    source.error = BackendRefused("no")
    waiting = asyncio.create_task(fresh.get("a", source.read))
    await source.began.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    source.gate.set()
    await asyncio.sleep(0.01)
