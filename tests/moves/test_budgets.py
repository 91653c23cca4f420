"""One budget, two processes, every backend: no limit is passed, also while the budget is moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path

import pytest

import engines
from engines.core.listing import Window
from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.errors import Conflict, OutcomeUnknown, Throttled, Unavailable
from engines.stores.budget_policy import Limit, PolicyInput
from engines.stores.budget_records import ReservationInput, SettlementInput
from engines.stores.budget_summary import Summary, SummaryQuery
from engines.stores.events import EventFilter
from tests.backends import session_backend
from tests.moves.conftest import OWNER, Open, ended, make_deployment, sqlite_backend

# The processes share a loop here, and each needs time for its leases.
PACE_S = 0.01

SPENDERS = 120
# Of the tenant; each spender takes one.
LIMIT = 80


async def limit(process: engines.Engines, amount: int) -> None:
    said = Limit(limit_id="all", period="month", hard=str(amount))
    await process.budget.put_policy(OWNER, PolicyInput(currency="USD", limits=(said,)))


async def spend(process: engines.Engines, cost: str) -> bool:
    """Reserve one and settle it; False where the limit refused it."""
    try:
        reservation = await process.budget.reserve(OWNER, ReservationInput(amount="1", provider="p"))
    except (Throttled, Conflict) as refusal:
        if refusal.reason_code != "hard_limit":
            raise
        return False
    await process.budget.settle(OWNER, reservation.record.reservation_id, SettlementInput(cost=cost))
    return True


async def reconciled(process: engines.Engines) -> Summary:
    summary = await process.budget.summary(OWNER, SummaryQuery(verify=True))
    assert summary.verification is not None
    assert summary.verification.ok, summary.verification
    return summary


async def told(process: engines.Engines, count: int) -> list[str]:
    """The entries that the spine was told of, once there are so many."""
    while True:
        found = [usage_id async for usage_id in told_so_far(process)]
        if len(found) >= count:
            return found
        await asyncio.sleep(0.05)


async def told_so_far(process: engines.Engines) -> AsyncIterator[str]:
    window = Window(limit=1_000)
    while True:
        listed = await process.spine.list(OWNER, EventFilter(event_type="budget"), window=window)
        for event in listed.items:
            assert event.payload is not None
            if event.payload["kind"] == "usage":
                yield event.payload["usage_id"]
        if listed.after is None:
            return
        window = Window(limit=1_000, after=listed.after)


@pytest.mark.parametrize("driver", DOCUMENT_DRIVERS)
async def test_two_processes_never_pass_a_limit_on_any_backend(
    request: pytest.FixtureRequest, driver: str, tmp_path: Path, stack: AsyncExitStack
) -> None:
    url = f"sqlite://{tmp_path}/control.db"
    await make_deployment(url, session_backend(request, driver, "a"), sqlite_backend(tmp_path, "b"))
    two = [await stack.enter_async_context(engines.open(url)) for _ in range(2)]
    await limit(two[0], LIMIT)
    done = await asyncio.gather(*(spend(two[number % 2], "0.9") for number in range(SPENDERS)))
    summary = await reconciled(two[1])
    assert LIMIT <= sum(done) <= LIMIT / 0.9
    assert summary.total.entries == sum(done)
    (standing,) = summary.limits
    assert Decimal(standing.spent) == Decimal("0.9") * sum(done)
    assert Decimal(standing.held) == 0
    usage_ids = await told(two[0], sum(done))
    assert len(set(usage_ids)) == len(usage_ids) == sum(done)


async def test_a_budget_that_is_moved_in_use_loses_nothing_and_gives_nothing_twice(
    open_process: Open,
) -> None:
    two = [await open_process() for _ in range(2)]
    await limit(two[0], 10_000)
    acknowledged = unknown = 0
    stop = asyncio.Event()
    news = asyncio.Condition()

    async def go_on(number: int) -> None:
        nonlocal acknowledged, unknown
        while not stop.is_set():
            try:
                spent = await spend(two[number % 2], "1")
            except OutcomeUnknown:
                unknown += 1
            except Unavailable:
                pass
            else:
                acknowledged += spent
                async with news:
                    news.notify_all()
            await asyncio.sleep(PACE_S)

    async def reached(count: int) -> None:
        async with news:
            await news.wait_for(lambda: acknowledged >= count)

    spenders = [asyncio.create_task(go_on(number)) for number in range(12)]
    await reached(50)
    stored = await two[0].moves.start(OWNER, "budget_store", "b")
    move, _ = await ended(two[0], stored.record.move_id)
    await reached(acknowledged + 50)
    stop.set()
    await asyncio.gather(*spenders)
    assert move.phase == "done", move
    summary = await reconciled(two[1])
    assert acknowledged <= summary.total.entries <= acknowledged + 2 * unknown
    assert Decimal(summary.limits[0].spent) == summary.total.entries
    usage_ids = await told(two[0], summary.total.entries)
    assert len(set(usage_ids)) == len(usage_ids) == summary.total.entries
