"""Several processes on one limit: together never more than it says, and at a low demand hardly fewer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from engines.clock import Clock
from engines.core.quota import KEPT_S
from engines.errors import EnginesError, Unavailable
from engines.ports.documents import DocumentDriver
from engines.stores.rate_limits import RateLimit, RateLimits
from engines.testing.faults import Fault, FaultPlan, FaultyDriver
from tests.stores.home import Home, context
from tests.stores.limits import READ_NOTE, a_limit, admitted, counters, limited, to_next_window

Another = Callable[..., Awaitable[Home]]
SEEDS = range(6)


@pytest.fixture
async def another(home: Home, open_driver: Callable[[Clock], DocumentDriver]) -> AsyncIterator[Another]:
    """Each call is another process on the home's database, whose clock is `ahead_s` of the home's."""
    async with AsyncExitStack() as stack:

        async def open_another(*, ahead_s: float = 0.0) -> Home:
            process = Home(open_driver)
            process.clock.jump(home.clock.now() + ahead_s - process.clock.now())
            stack.push_async_callback(process.close)
            return process

        yield open_another


async def processes(home: Home, another: Another, count: int, *limits: RateLimit) -> list[RateLimits]:
    homes = [home, *[await another() for _ in range(count - 1)]]
    return [limited(one, *limits) for one in homes]


class TestTogether:
    @pytest.mark.parametrize("limit", [1, 7, 100, 1_000])
    async def test_all_that_ask_on_get_the_limit_to_the_last_unit(
        self, home: Home, another: Another, limit: int
    ) -> None:
        """Blocks shrink near the limit; what one process has not used it uses as long as it is asked."""
        three = await processes(home, another, 3, a_limit(limit))
        total = 0
        for _ in range(limit + 3):
            for process in three:
                total += await admitted(process, 1)
        assert total == limit

    async def test_at_a_low_demand_nearly_all_are_admitted(self, home: Home, another: Another) -> None:
        """Three processes, three windows, four fifths of the limit, spread over the window."""
        homes = [home, await another(), await another()]
        three = [limited(one, a_limit(300)) for one in homes]
        for _ in range(3):
            total = 0
            for _ in range(80):
                for process in three:
                    total += await admitted(process, 1)
                for one in homes:
                    one.clock.advance(60 / 80)
            assert total >= 0.97 * 240

    async def test_what_one_process_used_another_does_not_give_again(
        self, home: Home, another: Another
    ) -> None:
        first, second = await processes(home, another, 2, a_limit(50))
        assert await admitted(first, 80) == 50
        assert await admitted(second, 80) == 0

    async def test_a_restart_loses_the_block_and_gives_nothing_twice(self, home: Home) -> None:
        total = 0
        for _ in range(30):
            total += await admitted(limited(home, a_limit(1_000)), 30)
            await home.reopen()
        total += await admitted(limited(home, a_limit(1_000)), 1_000)
        assert 600 <= total <= 1_000

    async def test_when_two_take_the_same_block_one_takes_another(self, home: Home, another: Another) -> None:
        other = await another()
        first, second = limited(home, a_limit(10)), limited(other, a_limit(10))
        await admitted(first, 1)
        to_next_window(home, other)
        held = home.faults.hold_next_write()
        waiting = asyncio.create_task(first.admit(context(), READ_NOTE))
        await held.arrived()
        assert await admitted(second, 8) == 8
        held.release()
        assert (await waiting).refused_by is None
        assert await admitted(first, 9) + await admitted(second, 9) == 1


class TestLostReplies:
    async def test_a_lease_whose_reply_is_lost_counts_as_taken(self, home: Home, another: Another) -> None:
        """It was applied, then another process took a block: nobody can tell any more whose the first was."""
        other = await another()
        first, second = limited(home, a_limit(10)), limited(other, a_limit(10))
        await admitted(first, 1)
        to_next_window(home, other)
        home.faults.script(Fault.LOST_APPLIED)
        home.faults.plan = FaultPlan(read_refused=1.0)
        waiting = asyncio.create_task(first.admit(context(), READ_NOTE))
        while await counters(other) < 2:
            assert not waiting.done()
        assert await admitted(second, 3) == 3
        home.faults.plan = FaultPlan()
        await asyncio.wait([waiting])
        assert type(waiting.exception()) is Unavailable
        assert await admitted(first, 20) + await admitted(second, 20) == 10 - 3 - 1

    @pytest.mark.parametrize("seed", SEEDS)
    async def test_under_all_faults_no_window_gives_more_than_its_limit(
        self, home: Home, another: Another, seed: int
    ) -> None:
        source = random.Random(seed)
        print(f"seed {seed}")
        homes = [home, await another(), await another()]
        limit = source.choice([5, 40, 200])
        counts: Counter[int] = Counter()
        asked = 0
        for one in homes:
            one.faults = FaultyDriver(
                one.faults._driver,
                FaultPlan(
                    write_refused=0.05,
                    write_lost_unapplied=0.05,
                    write_lost_applied=0.1,
                    write_late=0.1,
                    read_refused=0.05,
                    pause_s_max=0.002,
                ),
                random=random.Random(source.random()),
            )
            one.driver._driver = one.faults
            one.faults.script(Fault.LOST_APPLIED)  # Met for certain, however few leases there are.
        three = [limited(one, a_limit(limit, window_seconds=10)) for one in homes]

        async def ask(number: int) -> None:
            nonlocal asked
            one, process = homes[number], three[number]
            for _ in range(60):
                try:
                    admission = await process.admit(context(), READ_NOTE)
                except EnginesError:
                    continue
                finally:
                    asked += 1
                if admission.refused_by is None:
                    counts[int(one.clock.now() // 10)] += 1

        for _ in range(4):
            await asyncio.gather(*(ask(number) for number in range(3) for _ in range(3)))
            to_next_window(*homes, window_s=10)
        assert sum(one.faults.seen[Fault.LOST_APPLIED] + one.faults.seen[Fault.LATE] for one in homes) > 0
        assert all(count <= limit for count in counts.values()), counts
        assert sum(counts.values()) >= 4 * limit * 0.5


class TestClocks:
    async def test_windows_of_processes_whose_clocks_differ_are_each_given_once(
        self, home: Home, another: Another
    ) -> None:
        """One that is ahead takes from the window that the others come to later."""
        ahead = await another(ahead_s=30)
        counts: Counter[int] = Counter()
        for _ in range(40):
            for one, process in ((home, limited(home, a_limit(20))), (ahead, limited(ahead, a_limit(20)))):
                counts[int(one.clock.now() // 60)] += await admitted(process, 3)
                one.clock.advance(6)
        assert max(counts.values()) <= 20
        assert sum(counts.values()) >= 20 * 4

    async def test_a_clock_that_is_set_back_brings_no_block_of_another_window_with_it(
        self, home: Home, another: Another
    ) -> None:
        other = await another()
        assert await admitted(limited(other, a_limit(20)), 40) == 20  # This window is spent.
        to_next_window(home)
        process = limited(home, a_limit(20))
        assert await admitted(process, 1) == 1  # A block of the next one.
        home.clock.jump(-1)
        assert await admitted(process, 5) == 0
        home.clock.jump(1)
        assert await admitted(process, 40) <= 19

    async def test_a_lease_that_comes_after_its_window_admits_nothing_in_the_next(
        self, home: Home, another: Another
    ) -> None:
        process = limited(home, a_limit(1_000))
        await admitted(process, 1)
        to_next_window(home)
        held = home.faults.hold_next_write()
        waiting = asyncio.create_task(process.admit(context(), READ_NOTE))
        await held.arrived()
        to_next_window(home)
        held.release()
        assert (await waiting).refused_by is None
        other = await another()
        assert (
            1 + await admitted(process, 1_000) + await admitted(limited(other, a_limit(1_000)), 1_000)
            <= 1_000
        )

    async def test_a_clock_that_is_behind_finds_the_counter_of_its_window_for_a_minute(
        self, home: Home, another: Another
    ) -> None:
        behind = await another(ahead_s=-KEPT_S)
        assert await admitted(limited(home, a_limit(5, window_seconds=10)), 9) == 5
        home.clock.advance(10 + KEPT_S - 1)
        while await home.documents.reclaim(100):
            pass
        behind.clock.jump(home.clock.now() - behind.clock.now() - KEPT_S - 5)
        assert await admitted(limited(behind, a_limit(5, window_seconds=10)), 9) == 0
