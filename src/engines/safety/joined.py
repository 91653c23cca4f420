"""The gates over the stores that this deployment has.

Owns which store answers what a gate asks, where the two do not speak the same words: budgets and rate limits
are translated here, the others answer as `safety/ports.py` asks. Leaves judging to the gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from engines.clock import Clock
from engines.codec import encode_json
from engines.core.idempotency import Request, identify
from engines.errors import Conflict, Throttled
from engines.safety.asks import Cost
from engines.safety.gates import (
    BudgetGate,
    BudgetRoomGate,
    CorridorGate,
    FirearmsGate,
    Gate,
    RateLimitGate,
    StrategyLockGate,
    ThreeWiseGate,
)
from engines.safety.ports import BudgetFacts, Corridors, Firearms, RateFacts, StrategyLocks
from engines.scope import RequestContext
from engines.stores.budget import Budget
from engines.stores.budget_accounts import HARD_LIMIT
from engines.stores.budget_records import Reservation, ReservationInput
from engines.stores.budget_room import BudgetCheck
from engines.stores.event_records import instant_ms
from engines.stores.rate_limits import ACTION_PREFIX, Admission, RateLimits

# How often one evaluation is asked again after what it held has lapsed, within the life of its key.
LAPSED_MAX: Final = 100


def gates_over(
    *,
    firearms: Firearms,
    strategy_locks: StrategyLocks,
    budget: Budget,
    kpis: Corridors,
    temperatures: Corridors,
    rate_limits: RateLimits,
    clock: Clock,
) -> Sequence[Gate]:
    """Every gate but the kill switch, which the chain has by itself."""
    budgets = StoredBudgets(budget, clock)
    return (
        FirearmsGate(firearms),
        StrategyLockGate(strategy_locks),
        ThreeWiseGate(strategy_locks),
        BudgetGate(budgets),
        BudgetRoomGate(budgets),
        CorridorGate("kpi_corridor", kpis),
        CorridorGate("temperature", temperatures),
        RateLimitGate(ActionLimits(rate_limits)),
    )


class StoredBudgets:
    """`Budgets` over the budget's store: an evaluation holds its cost as a reservation."""

    def __init__(self, budget: Budget, clock: Clock) -> None:
        self._budget = budget
        self._clock = clock

    async def reserve(self, context: RequestContext, cost: Cost, *, evaluation_id: str) -> BudgetFacts:
        try:
            held = await self._held(context, cost, evaluation_id)
        except (Throttled, Conflict) as refusal:
            if refusal.reason_code != HARD_LIMIT:
                raise
            scope = refusal.scope or {}
            return BudgetFacts(fits=False, limit_id=scope.get("limit_id"), remaining=scope.get("left"))
        return BudgetFacts(
            fits=True,
            reservation_id=held.reservation_id,
            limit_id=held.soft_limits[0] if held.soft_limits else None,
            passes_soft_limit=bool(held.soft_limits),
        )

    async def _held(self, context: RequestContext, cost: Cost, name: str) -> Reservation:
        """The reservation of this name; where that has lapsed since, the next one, which must fit anew."""
        for _ in range(LAPSED_MAX):
            change = await self._budget.reserve(
                context, _reservation(cost), request=_named(context, cost, name)
            )
            ends_ms = instant_ms(change.record.expires_at, "expires_at")
            if not change.replayed or ends_ms > self._clock.now() * 1_000:
                return change.record
            name = change.record.reservation_id
        raise Conflict("the reservations of this evaluation have lapsed again and again")

    async def room_for(self, context: RequestContext, cost: Cost) -> BudgetFacts:
        amount = Decimal(cost.amount)
        found = await self._budget.check(context, amount, currency=cost.currency, provider=cost.provider)
        return _budget_facts(found)

    async def recent_room_for(self, context: RequestContext, cost: Cost) -> BudgetFacts:
        amount = Decimal(cost.amount)
        found = await self._budget.recent_check(
            context, amount, currency=cost.currency, provider=cost.provider
        )
        return _budget_facts(found)

    async def release(self, context: RequestContext, cost: Cost, *, evaluation_id: str) -> None:
        facts = await self.reserve(context, cost, evaluation_id=evaluation_id)  # Told again which one it was.
        if facts.reservation_id is not None:
            await self._budget.release(context, facts.reservation_id)


class ActionLimits:
    """`RateLimits` over the store of quotas: an action is a route of its own name."""

    def __init__(self, rate_limits: RateLimits) -> None:
        self._rate_limits = rate_limits

    async def take(self, context: RequestContext, action: str) -> RateFacts:
        return _rate_facts(await self._rate_limits.admit(context, ACTION_PREFIX + action))

    async def room_for(self, context: RequestContext, action: str) -> RateFacts:
        return _rate_facts(await self._rate_limits.admit(context, ACTION_PREFIX + action, count=False))


def _budget_facts(found: BudgetCheck) -> BudgetFacts:
    soft = found.soft_limits[0] if found.soft_limits else None
    return BudgetFacts(
        fits=found.passes,
        limit_id=found.limit_id or soft,
        remaining=None if found.left is None else f"{found.left:f}",
        passes_soft_limit=soft is not None,
    )


def _rate_facts(admission: Admission) -> RateFacts:
    refused = admission.refused_by
    if refused is None:
        return RateFacts(admitted=True)
    return RateFacts(admitted=False, limit_id=refused.name, retry_after_s=admission.retry_after_s)


def _reservation(cost: Cost) -> ReservationInput:
    return ReservationInput(
        amount=cost.amount,
        currency=cost.currency,
        provider=cost.provider,
        model=cost.model,
        tool=cost.tool,
    )


def _named(context: RequestContext, cost: Cost, evaluation_id: str) -> Request:
    """One reservation an evaluation, however often it is asked for."""
    return identify(context.tenant_id, context.env, "gates", evaluation_id, body=encode_json(cost).encode())
