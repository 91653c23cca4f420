"""Room: whether an amount would fit into a budget, as one reading shows it.

Owns the answer and what it rests on, for gates. Leaves reading to `stores/budget.py`, limits to
`stores/budget_accounts.py`. Nothing is held: two who are told of the same room may both take it.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from engines.errors import Invalid
from engines.scope import RequestContext
from engines.stores.budget_accounts import HARD_LIMIT, Accounts
from engines.stores.budget_policy import Dimensions
from engines.stores.budget_totals import Standing

# What one of these takes of memory, about: a lapse of a hold, an account, a limit or a price.
_PART_BYTES = 300


class BudgetCheck(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether an amount would fit. Where it would not: which limit refuses, and what that limit leaves.

    `has_policy` False: nobody has limited anything, so everything fits. `soft_limits`: passed already.
    """

    passes: bool
    has_policy: bool
    limit_id: str | None = None
    period: str | None = None
    left: Decimal | None = None
    reason_code: str | None = None
    soft_limits: tuple[str, ...] = ()


def room_in(
    standing: Standing,
    context: RequestContext,
    amount: Decimal,
    *,
    currency: str | None,
    provider: str | None,
    now_s: float,
) -> BudgetCheck:
    """Whether `amount` fits now into every hard limit. Brings the accounts of `standing` up to date.

    Raises Invalid for another currency than the budget's.
    """
    head = standing.head
    if head is not None and None not in (currency, head.currency) and currency != head.currency:
        raise Invalid(f"this budget is kept in {head.currency}", field="currency")
    if head is None or standing.policy is None:
        return BudgetCheck(passes=True, has_policy=False)
    accounts = Accounts(head, standing.policy, max(int(now_s * 1_000), head.at_ms))
    use = Dimensions(provider, None, None, context.project_id, context.surface_id, context.app_id)
    soft = tuple(status.limit_id for status in accounts.statuses(use) if status.soft_passed)
    refused = accounts.refusal(use, amount)
    if refused is None:
        return BudgetCheck(passes=True, has_policy=True, soft_limits=soft)
    status, _ = refused
    return BudgetCheck(
        passes=False,
        has_policy=True,
        limit_id=status.limit_id,
        period=status.period,
        left=status.left,
        reason_code=HARD_LIMIT,
        soft_limits=soft,
    )


def weight_of(standing: Standing) -> int:
    """About how many bytes of memory it takes to keep this."""
    head, policy = standing.head, standing.policy
    parts = 1
    if head is not None:
        parts += len(head.accounts) + sum(1 + len(holds.held) for holds in head.holds)
    if policy is not None:
        parts += len(policy.limits) + len(policy.prices)
    return parts * _PART_BYTES
