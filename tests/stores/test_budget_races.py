"""Budgets under races, lost replies and death: nothing is spent twice, nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import uuid
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engines.core.documents import TIMEOUT_S
from engines.core.listing import Window
from engines.core.pledges import ABANDONED_S
from engines.errors import (
    Conflict,
    EnginesError,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)
from engines.ports.documents import ALWAYS, Page, Put
from engines.stores import budget_book, budget_totals
from engines.stores.budget_records import Reservation, ReservationInput, SettlementInput, UsageEntry
from engines.stores.budget_summary import SummaryQuery
from engines.stores.scoped import Change
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan
from tests.servers.postgres import PostgresServer
from tests.stores.budget_home import ADA, Spender, hard, soft
from tests.stores.budget_process import home_at
from tests.stores.home import Home, context
from tests.stores.subjects import keyed
from tests.stores.ticking import ticking
from tests.torn import torn

SPENDERS = 200
FAULTS = FaultPlan(
    write_refused=0.05,
    write_lost_unapplied=0.05,
    write_lost_applied=0.1,
    write_late=0.05,
    read_refused=0.02,
    pause_s_max=0.002,
)
ACKNOWLEDGED_BEFORE_KILL = 60


@pytest_asyncio.fixture
async def two(home: Home) -> AsyncIterator[tuple[Spender, Spender]]:
    """Two processes on one budget, and time that passes."""
    time = asyncio.create_task(ticking(home.clock))
    pair = Spender(home, "one"), Spender(home, "two")
    yield pair
    home.faults.plan = NO_FAULTS
    for spender in pair:
        await spender.close()
    time.cancel()


@pytest_asyncio.fixture
async def one(home: Home) -> AsyncIterator[Spender]:
    spender = Spender(home)
    yield spender
    await spender.close()


async def tried(spender: Spender, amount: str = "1") -> Reservation | None:
    """A reservation, or None where the limit refused it."""
    try:
        return await spender.reserve(amount)
    except (Throttled, Conflict) as refusal:
        if refusal.reason_code != "hard_limit":
            raise
        return None


class TestRaces:
    async def test_concurrent_spenders_never_pass_a_hard_limit(self, two: tuple[Spender, Spender]) -> None:
        await two[0].limit(hard("100", soft="10"), hard("70", limit_id="day", period="day"))
        outcomes = await asyncio.gather(*(tried(two[number % 2]) for number in range(SPENDERS)))
        held = [outcome for outcome in outcomes if outcome is not None]
        assert len(held) == 70, "every unit was given out, and none twice"
        ends = []
        for number, reservation in enumerate(held):
            ended_by = two[(number // 2) % 2]
            if number % 3 == 0:
                ends.append(ended_by.release(reservation))
            else:
                ends.append(ended_by.settle(reservation, "0.7"))
        await asyncio.gather(*ends)
        assert await two[0].left("day") == (Decimal("0.7") * 46, 0)
        again = await asyncio.gather(*(tried(two[number % 2]) for number in range(SPENDERS)))
        assert sum(outcome is not None for outcome in again) == 37, "70 less 32.2"
        summary = await two[1].reconciled()
        assert (summary.total.entries, Decimal(summary.total.cost)) == (46, Decimal("32.2"))
        assert len(await two[0].told(46)) == 46
        assert len(await two[0].told(1, "soft_limit_passed")) == 1

    async def test_a_repeat_that_meets_its_first_as_it_lands_is_no_refusal(
        self, two: tuple[Spender, Spender], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It finds the limit taken by what it took itself; refused, nobody would know what is held."""
        await two[0].limit(hard("1"))

        async def reserve(spender: Spender, key: str = "r") -> Change[Reservation]:
            return await spender.budget.reserve(ADA, ReservationInput(amount="1"), request=keyed(key))

        torn(two[0].home.documents, monkeypatch, lambda: reserve(two[1]))
        again, first = await reserve(two[0]), await reserve(two[1])
        assert (again.replayed, again.record) == (True, first.record)
        with pytest.raises(EnginesError) as caught:
            await reserve(two[0], "another")
        assert caught.value.reason_code == "hard_limit"
        assert await two[0].left() == (0, 1)

    async def test_no_process_starves_the_other(self, two: tuple[Spender, Spender]) -> None:
        counts = [0, 0]
        ended = asyncio.Event()

        async def spend(number: int) -> None:
            while not ended.is_set():
                await two[number].release(await two[number].reserve())
                counts[number] += 1
                if min(counts) >= 20:
                    ended.set()

        await asyncio.gather(*(spend(number % 2) for number in range(8)))
        assert min(counts) >= 20

    async def test_two_who_settle_one_reservation_record_one_use(self, two: tuple[Spender, Spender]) -> None:
        for _ in range(10):
            reservation = await two[0].reserve("5")
            done = await asyncio.gather(*(spender.settle(reservation, "4") for spender in two))
            assert done[0].record == done[1].record
            other = await two[0].reserve("5")
            outcomes = await asyncio.gather(
                two[0].settle(other, "4"), two[1].release(other), return_exceptions=True
            )
            assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1

    async def test_corrections_of_one_entry_come_one_after_another(
        self, two: tuple[Spender, Spender]
    ) -> None:
        entry = await two[0].use("10")
        await asyncio.gather(*(two[n % 2].use(str(n), corrects=entry.usage_id) for n in range(20)))
        entries = (await two[0].budget.usage(ADA)).items
        assert Decimal((await two[0].reconciled()).total.cost) == Decimal(entries[-1].cost)

    async def test_policies_race_with_spending_and_new_limits_count_all_of_it(
        self, two: tuple[Spender, Spender]
    ) -> None:
        spending: list[Any] = [two[number % 2].use("1", tool=f"t{number % 7}") for number in range(120)]
        limits = [
            two[number % 2].limit(hard("1000", limit_id=f"l{number}", period=period))
            for number, period in enumerate(("hour", "day", "month", "total") * 2)
        ]
        for number, limit in enumerate(limits):
            spending.insert(15 * number, limit)
        await asyncio.gather(*spending)
        summary = await two[0].reconciled()
        assert [(Decimal(limit.spent)) for limit in summary.limits] == [120]

    async def test_a_limit_that_comes_and_goes_forgets_nothing_that_is_held(
        self, two: tuple[Spender, Spender]
    ) -> None:
        limit = hard("10", period="day")
        work: list[Any] = [tried(two[number % 2]) for number in range(60)]
        for number in range(6):
            work.insert(10 * number, two[number % 2].limit(*(() if number % 2 else (limit,))))
        outcomes = await asyncio.gather(*work)
        held = [one for one in outcomes if one is not None]
        await two[0].limit(limit)
        assert await two[1].left() == (0, len(held))
        ended = [two[number % 2].release(one) for number, one in enumerate(held)]
        await asyncio.gather(*ended, two[0].limit(), two[1].limit(limit))
        await two[0].limit(limit)
        assert await two[1].left() == (0, 0)
        again = await asyncio.gather(*(tried(two[number % 2]) for number in range(20)))
        assert sum(one is not None for one in again) == 10

    async def test_a_policy_that_another_process_is_faster_than_counts_what_that_spent(
        self, home: Home, two: tuple[Spender, Spender]
    ) -> None:
        for spender in two:
            await spender.use("1")
            await spender.quiet()
        held = home.faults.hold_next_write()
        limits = hard("9", period="hour"), hard("9", limit_id="project", project_id="p1")
        putting = asyncio.create_task(two[0].limit(*limits))
        await held.arrived()
        await two[1].use("2", context(project_id="p1"))
        held.release()
        await putting
        assert await two[0].left() == (4, 0)
        assert await two[0].left("project") == (2, 0)
        await two[1].reconciled()

    async def test_what_is_spent_while_limits_are_opened_is_counted_once(
        self, home: Home, two: tuple[Spender, Spender], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process spends between two pages of cells: on pages that were read and on those to come."""
        monkeypatch.setattr(budget_totals, "SCAN_LIMIT_MAX", 2)
        for tool in "abcdef":
            await two[0].use("1", tool=tool)
        scan, pages = home.documents.scan, 0

        async def scan_and_spend(partition: str, *, above: str, **window: Any) -> Page:
            nonlocal pages
            page = await scan(partition, above=above, **window)
            if above.startswith("t!"):
                pages += 1
                await asyncio.gather(*(two[1].use("1", tool=tool) for tool in "abcdefgh"))
            return page

        limits = [hard("99", limit_id=period, period=period) for period in ("day", "month", "total")]
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(home.documents, "scan", scan_and_spend)
            await two[0].limit(*limits)
        assert pages >= 3
        summary = await two[0].reconciled()
        assert summary.total.entries == 6 + 8 * pages
        assert {Decimal(limit.spent) for limit in summary.limits} == {6 + 8 * pages}

    async def test_a_summary_of_a_budget_in_use_is_of_one_moment(self, two: tuple[Spender, Spender]) -> None:
        await two[0].limit(hard("1000"))
        spending = asyncio.gather(
            *(two[number % 2].use("1", tool=f"t{number % 50}") for number in range(300))
        )
        seen = set()
        while not spending.done():
            summary = await two[0].budget.summary(ADA, SummaryQuery(verify=True))
            assert summary.verification is not None
            assert summary.verification.ok, summary.verification
            assert summary.total.entries == summary.position
            seen.add(summary.position)
        await spending
        assert len(seen) > 2, "nothing was spent meanwhile"

    async def test_what_waits_shares_commits(self, home: Home, one: Spender) -> None:
        await one.limit(hard("100"))
        await one.quiet()
        home.driver.calls.clear()
        await asyncio.gather(*(tried(one) for _ in range(SPENDERS)))
        assert home.driver.calls.count("write") <= 4

    async def test_two_at_once_under_one_key_are_one(self, one: Spender) -> None:
        await one.limit(hard("10"))
        said, request = ReservationInput(amount="4"), keyed("one")
        first, second = await asyncio.gather(
            *(one.budget.reserve(ADA, said, request=request) for _ in range(2))
        )
        assert (first.record, first.replayed, second.replayed) == (second.record, False, True)
        assert await one.left() == (0, 4)

    async def test_who_stops_waiting_stops_nobody_else(self, home: Home, one: Spender) -> None:
        await one.limit(hard("100"))
        await one.quiet()
        held = home.faults.hold_next_write()
        tasks = [asyncio.create_task(one.reserve()) for _ in range(10)]
        await held.arrived()
        tasks[3].cancel()
        waiting = [asyncio.create_task(one.reserve()) for _ in range(10)]
        await asyncio.sleep(0)
        waiting[5].cancel()
        held.release()
        done = await asyncio.gather(*tasks, *waiting, return_exceptions=True)
        assert sum(isinstance(outcome, Reservation) for outcome in done) == 18
        assert await one.left() == (0, 19), "what was under way stands, what only waited does not"

    async def test_too_many_who_wait_are_told_so(self, one: Spender, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budget_book, "WAITING_MAX", 5)
        outcomes = await asyncio.gather(*(one.reserve() for _ in range(20)), return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Throttled)]
        assert len(refused) == 15
        assert all(refusal.retry_after_s for refusal in refused)

    async def test_budgets_that_nobody_changes_make_room_for_others(
        self, one: Spender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(budget_book, "BOOKS_MAX", 2)
        tenants = [context(tenant_id=f"t_{number}") for number in range(4)]
        for mine in tenants:
            await one.reserve("1", mine)
        outcomes = await asyncio.gather(*(one.reserve("1", mine) for mine in tenants), return_exceptions=True)
        assert sum(isinstance(outcome, Throttled) for outcome in outcomes) == 2

    async def test_a_refusal_has_no_part_in_its_neighbours(self, one: Spender) -> None:
        await one.limit(hard("10"))
        outcomes = await asyncio.gather(
            one.reserve("4"),
            one.reserve("40"),
            one.use("1", currency="EUR"),
            one.settle(await one.reserve("1"), "0.5"),
            one.reserve("5"),
            return_exceptions=True,
        )
        assert [isinstance(outcome, EnginesError) for outcome in outcomes] == [
            False,
            True,
            True,
            False,
            False,
        ]
        assert await one.left() == (Decimal("0.5"), 9)


class TestLostReplies:
    @pytest.mark.parametrize("fault", [Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE, Fault.REFUSED])
    async def test_what_is_repeated_within_is_done_once(self, home: Home, one: Spender, fault: Fault) -> None:
        await one.limit(hard("10"))
        for _ in range(3):
            home.faults.script(fault)
            reservation = await one.reserve("3")
            home.faults.script(fault)
            await one.settle(reservation, "1")
        await home.faults.late_writes_delivered()
        assert await one.left() == (3, 0)
        assert (await one.reconciled()).total.entries == 3

    async def test_what_nobody_can_tell_is_found_by_asking_again(self, home: Home, one: Spender) -> None:
        await one.limit(hard("10"))
        await one.quiet()
        said = ReservationInput(amount="4")
        time = asyncio.create_task(ticking(home.clock, TIMEOUT_S / 20))
        for applied in (True, False):
            request = keyed(f"r{applied}")
            held = home.faults.hold_next_write()
            home.faults.script(Fault.LOST_APPLIED if applied else Fault.LOST_UNAPPLIED)
            asked = asyncio.create_task(one.budget.reserve(ADA, said, request=request))
            await held.arrived()
            home.faults.plan = FaultPlan(read_refused=1.0)
            held.release()
            with pytest.raises(OutcomeUnknown):
                await asked
            home.faults.plan = NO_FAULTS
            home.clock.advance(60)
            found = await one.budget.reserve(ADA, said, request=request)
            assert found.replayed is applied
            await one.release(found.record)
            await one.quiet()
        time.cancel()
        assert await one.left() == (0, 0)

    async def test_whatever_fails_amounts_and_ledger_agree(
        self, home: Home, two: tuple[Spender, Spender]
    ) -> None:
        await two[0].limit(hard("40"))
        # Each of them is met among the first commits, however many commits there are; then chance decides.
        scripted = (Fault.REFUSED, Fault.LOST_APPLIED, Fault.LATE, Fault.LOST_UNAPPLIED)
        home.faults.script(*scripted)
        home.faults.plan = FAULTS

        async def insist(number: int) -> bool:
            """Reserve and settle under keys until both are answered; few at a time, so in many commits."""
            spender, said = two[number % 2], ReservationInput(amount="1", ttl_seconds=3_600)
            while True:
                try:
                    reservation = (
                        await spender.budget.reserve(ADA, said, request=keyed(f"r{number}"))
                    ).record
                    settlement = SettlementInput(cost="0.9")
                    await spender.budget.settle(
                        ADA, reservation.reservation_id, settlement, request=keyed(f"s{number}")
                    )
                except (Unavailable, OutcomeUnknown):
                    continue
                except (Throttled, Conflict) as refusal:
                    if refusal.reason_code != "hard_limit":
                        raise
                    return False
                return True

        async def in_turn(first: int) -> int:
            return sum([await insist(number) for number in range(first, 80, 6)])

        done = sum(await asyncio.gather(*map(in_turn, range(6))))
        home.faults.plan = NO_FAULTS
        await home.faults.late_writes_delivered()
        home.clock.advance(60)
        summary = await two[0].reconciled()
        assert summary.total.entries == done >= 40
        assert Decimal(summary.total.cost) == Decimal("0.9") * done <= 40
        assert await two[0].left() == (Decimal(summary.total.cost), 0)
        told = await two[0].told(done)
        assert len({event["usage_id"] for event in told}) == len(told) == done
        assert all(home.faults.seen[fault] for fault in scripted)

    async def test_an_error_of_the_backend_is_everybodys_own(self, home: Home, one: Spender) -> None:
        home.faults.script(Fault.FORBIDDEN)
        outcomes = await asyncio.gather(*(one.reserve() for _ in range(5)), return_exceptions=True)
        assert len({id(outcome) for outcome in outcomes}) == 5
        assert {type(outcome).__name__ for outcome in outcomes} == {"BackendRefused"}
        await one.reserve()

    async def test_a_tampered_total_is_found(self, home: Home, one: Spender) -> None:
        await one.limit(hard("100"))
        await one.use("5")
        place = await home.place("budget_store", ADA)
        partition = await place.partition("budget")
        docs = (await home.documents.scan(partition, above="t!", below='t"')).docs
        forged = docs[0].body.replace('"cost":"5"', '"cost":"4"')
        await home.documents.write(partition, [Put(docs[0].key, forged, ALWAYS)])
        summary = await one.budget.summary(ADA, SummaryQuery(verify=True))
        assert summary.verification is not None
        assert not summary.verification.ok
        assert summary.verification.ledger_cost == "5"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/killed.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    assert server is not None
    return f"{request.getfixturevalue('shared_database')}?schema=s{uuid.uuid4().hex}"


@contextlib.asynccontextmanager
async def spending_process(url: str, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.stores.budget_process", url, name),
        stdout=PIPE,
        stderr=DEVNULL,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert child.stdout is not None
        assert await child.stdout.readline() == b'{"ready": true}\n', "the other process did not start"
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def test_a_process_that_is_killed_leaves_a_ledger_that_agrees_with_everything(url: str) -> None:
    home = home_at(url)
    await home.driver.provision()
    spender = Spender(home, "heir")
    await spender.limit(hard("1000", limit_id="tenant"), soft("0.01", limit_id="early"))
    settled: dict[str, str] = {}
    async with spending_process(url, "killed") as child:
        assert child.stdout is not None
        async for line in child.stdout:
            said = json.loads(line)
            if "settled" in said:
                settled[said["usage_id"]] = said["cost"]
            if len(settled) == ACKNOWLEDGED_BEFORE_KILL:
                child.kill()
    await spender.pledges.finish_abandoned()
    home.clock.advance(max(ABANDONED_S, 600))
    summary = await spender.reconciled()
    entries = [entry async for entry in _every_entry(spender)]
    ledger = {entry.usage_id: entry.cost for entry in entries}
    assert settled.items() <= ledger.items(), "what was acknowledged is there"
    assert summary.total.entries == len(entries) >= ACKNOWLEDGED_BEFORE_KILL
    assert await spender.left("tenant") == (Decimal(summary.total.cost), 0), "what was held came back"
    await spender.pledges.finish_abandoned()
    told = await spender.told(len(entries))
    assert sorted(event["usage_id"] for event in told) == sorted(ledger), "told once each"
    assert len(await spender.told(1, "soft_limit_passed")) == 1
    await spender.use("1")
    await spender.close()
    await home.close()


async def _every_entry(spender: Spender) -> AsyncIterator[UsageEntry]:
    after: str | None = None
    while True:
        page = await spender.budget.usage(ADA, window=Window(limit=1_000, after=after))
        for entry in page.items:
            yield entry
        if page.after is None:
            return
        after = page.after
