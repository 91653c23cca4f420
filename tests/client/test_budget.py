"""The client's budget against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from engines.client import (
    AsyncEngines,
    BudgetLimit,
    NewBudgetPolicy,
    NewUsage,
    Price,
    Reservation,
    RetryPolicy,
)
from engines.errors import Conflict, Forbidden, Invalid, NotFound, PreconditionFailed, Throttled
from tests.cli.lab import LabProcess

RETRY = RetryPolicy(attempts_max=20, deadline_s=30.0, pause_first_s=0.01, pause_max_s=0.1)
TINY = Decimal("0.0000001")


@pytest.fixture
async def member(lab: LabProcess) -> AsyncIterator[AsyncEngines]:
    async with AsyncEngines(lab.file.url, lab.file.user("member").token, retry=RETRY) as client:
        yield client


@pytest.fixture
async def owner(lab: LabProcess) -> AsyncIterator[AsyncEngines]:
    async with AsyncEngines(lab.file.url, lab.file.user("owner").token, retry=RETRY) as client:
        yield client


async def test_a_budget_from_its_policy_to_its_summary(member: AsyncEngines, owner: AsyncEngines) -> None:
    with pytest.raises(NotFound):
        await member.budget.policy()
    said = NewBudgetPolicy(
        currency="EUR",
        limits=(BudgetLimit(limit_id="all", period="total", hard=Decimal("1.5"), soft=TINY),),
        prices=(Price(provider="p", per_unit=Decimal("0.25")),),
    )
    with pytest.raises(Forbidden):
        await member.budget.put_policy(said)
    policy = await owner.budget.put_policy(said, if_absent=True)
    assert (policy.version, policy.limits, policy.prices) == (1, said.limits, said.prices)
    with pytest.raises(PreconditionFailed):
        await owner.budget.put_policy(said, if_match='"0"')
    assert await member.budget.policy() == policy

    entry = await member.budget.record(NewUsage(provider="p", tool="t", cost=TINY))
    assert (entry.cost, entry.soft_limits) == (TINY, ())
    priced = await member.bound(run_id="run-9").budget.record(NewUsage(provider="p", units=2))
    assert (priced.cost, priced.run_id, priced.soft_limits) == (Decimal("0.5"), "run-9", ("all",))
    correction = NewUsage(corrects=priced.usage_id, units=1)
    with pytest.raises(Forbidden):
        await member.budget.record(correction)
    right = await owner.budget.record(correction)
    assert (right.cost, right.adds.cost) == (Decimal("0.25"), Decimal("-0.25"))
    with pytest.raises(Invalid) as refusal:
        await member.budget.record(NewUsage(cost=Decimal("NaN")))
    assert refusal.value.field == "cost"
    for amount in (0.1, 1e-7, None, True):
        with pytest.raises(Invalid) as refusal:
            await member.budget.reserve(amount)  # type: ignore[arg-type]
        assert refusal.value.field == "amount"
    with pytest.raises(Invalid) as refusal:
        await member.budget.settle("nothing", cost=0.1)  # type: ignore[arg-type]
    assert refusal.value.field == "cost"

    outcomes = await asyncio.gather(
        *(member.budget.reserve(Decimal("0.1")) for _ in range(20)), return_exceptions=True
    )
    held = [outcome for outcome in outcomes if isinstance(outcome, Reservation)]
    assert len(held) == 12
    assert all(isinstance(outcome, Throttled | Reservation) for outcome in outcomes)
    with pytest.raises(Conflict) as impossible:
        await member.budget.reserve(Decimal(2))
    assert impossible.value.reason_code == "hard_limit"
    holding = [one async for one in member.budget.each_reservation(holding=True)]
    assert {one.reservation_id for one in holding} == {one.reservation_id for one in held}
    assert (await member.budget.reservations(limit=1, holding=True)).items == (holding[0],)
    assert await member.budget.reservation(holding[0].reservation_id) == holding[0]
    settled = await member.budget.settle(held[0].reservation_id, cost=Decimal("0.05"), tokens_in=7)
    assert (settled.state, settled.settled_cost) == ("settled", Decimal("0.05"))
    for reservation in held[1:]:
        assert (await member.budget.release(reservation.reservation_id)).state == "released"

    listed = [one async for one in member.budget.each()]
    assert [one.position for one in listed] == [1, 2, 3, 4]
    assert (await member.budget.page(limit=1, after=listed[2].cursor)).items == (listed[3],)
    assert [one.usage_id async for one in member.budget.each(run_id="run-9")] == [priced.usage_id]
    summary = await owner.budget.summary(by="tool", verify=True)
    assert summary.verification is not None
    assert summary.verification.ok
    assert summary.total.cost == sum(one.adds.cost for one in listed) == Decimal("0.3000001")
    (limit,) = summary.limits
    assert (limit.spent, limit.held, limit.soft_passed) == (summary.total.cost, Decimal(0), True)
    assert (await member.budget.summary(until="2026-01-01")).total.entries == 0
