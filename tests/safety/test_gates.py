"""What each gate asks of its port, and what it takes: facts that a test holds in its hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engines.safety.asks import Ask, Cost
from engines.safety.gates import (
    BudgetGate,
    CorridorGate,
    FirearmsGate,
    RateLimitGate,
    StrategyLockGate,
    ThreeWiseGate,
    consumes,
)
from engines.safety.ports import BudgetFacts, CorridorFacts, FirearmFacts, LockFacts, RateFacts
from engines.scope import RequestContext
from tests.stores.home import context

COST = Cost(amount="1.50", currency="USD", provider="acme")
ASK = Ask(
    context=context(),
    action="refund.create",
    subject="order-1",
    cost=COST,
    dry_run=False,
    evaluation_id="e1",
    at_s=1_000.0,
)
REHEARSED = msgspec.structs.replace(ASK, dry_run=True)


class Facts:
    """Every port at once: it says what it was given to say and notes what it was asked."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        self.asked: list[tuple[Any, ...]] = []

    async def facts_of(
        self, context: RequestContext, action: str, subject: str, *, at_s: float
    ) -> FirearmFacts | None:
        self.asked.append(("facts_of", context.tenant_id, action, subject, at_s))
        found: FirearmFacts | None = self.facts["firearm"]
        return found

    async def locks_for(self, context: RequestContext) -> Sequence[LockFacts]:
        self.asked.append(("locks_for", context.tenant_id))
        found: Sequence[LockFacts] = self.facts["locks"]
        return found

    async def corridors_for(
        self, context: RequestContext, action: str, *, at_s: float
    ) -> Sequence[CorridorFacts]:
        self.asked.append(("corridors_for", context.tenant_id, action, at_s))
        found: Sequence[CorridorFacts] = self.facts["corridors"]
        return found


class Purse:
    """A budget that has room for everything, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    async def reserve(self, context: RequestContext, cost: Cost, *, evaluation_id: str) -> BudgetFacts:
        self.asked.append(("reserve", context.tenant_id, cost.amount, evaluation_id))
        return BudgetFacts(fits=True, reservation_id="r1")

    async def room_for(self, context: RequestContext, cost: Cost) -> BudgetFacts:
        self.asked.append(("room_for", context.tenant_id, cost.amount))
        return BudgetFacts(fits=True)

    async def release(self, context: RequestContext, cost: Cost, *, evaluation_id: str) -> None:
        self.asked.append(("release", context.tenant_id, cost.amount, evaluation_id))


class Counter:
    """A quota that admits nothing, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    async def take(self, context: RequestContext, action: str) -> RateFacts:
        self.asked.append(("take", context.tenant_id, action))
        return RateFacts(admitted=False, limit_id="per-user", retry_after_s=2.0)

    async def room_for(self, context: RequestContext, action: str) -> RateFacts:
        self.asked.append(("room_for", context.tenant_id, action))
        return RateFacts(admitted=False, limit_id="per-user", retry_after_s=2.0)


async def test_firearms_are_asked_about_action_and_subject_as_of_now() -> None:
    firearm = FirearmFacts(class_id="payments", risk_level="high", licensed=False, granted=False)
    facts = Facts(firearm=firearm)
    verdict = await FirearmsGate(facts).judge(ASK)
    assert verdict.reason_code == "unlicensed"
    assert facts.asked == [("facts_of", "t_one", "refund.create", "order-1", 1_000.0)]


async def test_strategy_lock_and_review_are_judged_of_the_same_locks() -> None:
    lock = LockFacts(lock_id="q4", version=1, status="approved", actions=("refund.*",), review="rejected")
    facts = Facts(locks=[lock])
    assert (await StrategyLockGate(facts).judge(ASK)).reason_code == "passed"
    assert (await ThreeWiseGate(facts).judge(ASK)).reason_code == "review_rejected"


async def test_a_corridor_gate_is_named_for_what_it_reads() -> None:
    facts = Facts(corridors=[CorridorFacts(name="heat", reading=9.0, floor=None, ceiling=5.0)])
    gate = CorridorGate("temperature", facts)
    assert (gate.name, (await gate.judge(ASK)).reason_code) == ("temperature", "above_ceiling")
    assert facts.asked == [("corridors_for", "t_one", "refund.create", 1_000.0)]


async def test_a_budget_reserves_under_the_evaluations_name_and_gives_it_back() -> None:
    purse = Purse()
    gate = BudgetGate(purse)
    assert (await gate.judge(ASK)).details == {"reservation_id": "r1"}
    await gate.undo(ASK)
    assert purse.asked == [("reserve", "t_one", "1.50", "e1"), ("release", "t_one", "1.50", "e1")]


async def test_a_budget_reserves_nothing_in_a_rehearsal_or_for_a_cost_that_is_not_told() -> None:
    purse = Purse()
    gate = BudgetGate(purse)
    assert (await gate.judge(REHEARSED)).result == "pass"
    untold = msgspec.structs.replace(ASK, cost=None)
    assert (await gate.judge(untold)).reason_code == "cost_not_told"
    await gate.undo(untold)
    assert purse.asked == [("room_for", "t_one", "1.50")]


async def test_a_rate_limit_takes_but_in_a_rehearsal() -> None:
    counter = Counter()
    gate = RateLimitGate(counter)
    assert (await gate.judge(ASK)).reason_code == "rate_limited"
    assert (await gate.judge(REHEARSED)).reason_code == "rate_limited"
    await gate.undo(ASK)
    assert counter.asked == [("take", "t_one", "refund.create"), ("room_for", "t_one", "refund.create")]


def test_the_gates_that_take_something_are_these() -> None:
    facts = Facts()
    gates = (
        FirearmsGate(facts),
        StrategyLockGate(facts),
        ThreeWiseGate(facts),
        BudgetGate(Purse()),
        CorridorGate("kpi_corridor", facts),
        RateLimitGate(Counter()),
    )
    assert [gate.name for gate in gates if consumes(gate)] == ["budget", "rate_limit"]
