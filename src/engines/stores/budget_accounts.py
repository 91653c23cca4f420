"""Accounts: what was spent and is held against each limit, and whether an amount still fits.

Owns the arithmetic of limits on the head of a budget: periods that begin anew, holds that lapse by
themselves, which limit refuses and what its caller does next. Leaves writing the head to
`stores/budget_book.py`.

A hold counts until it is settled, released or lapses, whatever period it was made in: so what is held when a
day ends cannot pass the next day's limit. Holds are kept by the second at which they lapse, rounded up to a
second, a minute or a quarter of an hour as they are shorter than a minute, an hour or a day, so that an
account stays small however many reservations there are; nobody has to be there for one to lapse.

Which error refuses: whoever may wait gets Throttled with the time to wait, until the first hold lapses or
the period ends; where no waiting helps (the amount is above the limit itself, or the limit is for ever) it is
Conflict: read the summary and decide. Both say `reason_code: hard_limit` and name the limit in `scope`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from engines.errors import Conflict, EnginesError, Throttled
from engines.stores.budget_amounts import ZERO, difference, plain, total
from engines.stores.budget_policy import (
    Dimensions,
    Limit,
    Period,
    Policy,
    account_key,
    is_in_force,
    limits_for,
    period_end_s,
    period_start_s,
)
from engines.stores.budget_records import Account, Head

HARD_LIMIT: Final = "hard_limit"
# For holds up to so many seconds, lapses are rounded up to a multiple of so many.
_GRAINS: Final = ((60, 1), (3_600, 60), (24 * 3_600, 900))


class LimitStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a limit stands in the period that is now. `left` is below zero once more was used than allowed."""

    limit_id: str
    period: Period
    in_force: bool
    starts_at_s: int
    ends_at_s: int | None
    spent: Decimal
    held: Decimal
    hard: Decimal | None
    soft: Decimal | None
    soft_passed: bool
    left: Decimal | None


class Accounts:
    """The accounts of a head, at an instant: reading one brings it up to date in place."""

    def __init__(self, head: Head, policy: Policy | None, at_ms: int) -> None:
        self._head = head
        self._policy = policy
        self._at_ms = at_ms
        self._now_s = at_ms / 1000

    def of(self, limit: Limit) -> Account:
        key = account_key(limit)
        start_s = period_start_s(limit.period, self._now_s)
        account = self._head.accounts.get(key)
        if account is None:
            account = self._head.accounts[key] = Account(starts_s=start_s)
        elif account.starts_s != start_s:
            account.starts_s, account.spent, account.soft_told = start_s, ZERO, False
        if any(lapses_s <= self._now_s for lapses_s in account.held):
            account.held = {at_s: held for at_s, held in account.held.items() if at_s > self._now_s}
        return account

    def status(self, limit: Limit) -> LimitStatus:
        account = self.of(limit)
        held = total(*account.held.values())
        hard = None if limit.hard is None else Decimal(limit.hard)
        soft = None if limit.soft is None else Decimal(limit.soft)
        return LimitStatus(
            limit_id=limit.limit_id,
            period=limit.period,
            in_force=is_in_force(limit, self._at_ms),
            starts_at_s=account.starts_s,
            ends_at_s=period_end_s(limit.period, self._now_s),
            spent=account.spent,
            held=held,
            hard=hard,
            soft=soft,
            soft_passed=soft is not None and account.spent > soft,
            left=None if hard is None else difference(hard, total(account.spent, held)),
        )

    def statuses(self, use: Dimensions) -> Sequence[LimitStatus]:
        """Of the limits in force that count this use."""
        found = (self.status(limit) for limit in limits_for(self._policy, use))
        return [status for status in found if status.in_force]

    def all_statuses(self) -> Sequence[LimitStatus]:
        return [self.status(limit) for limit in (() if self._policy is None else self._policy.limits)]

    def refusal(self, use: Dimensions, amount: Decimal) -> tuple[LimitStatus, EnginesError] | None:
        """The first hard limit in force in which `amount` does not fit, and what says so; None: it fits."""
        for limit in limits_for(self._policy, use):
            status = self.status(limit)
            if status.in_force and status.left is not None and amount > status.left:
                return status, self._refused(limit, status, amount)
        return None

    def hold(self, use: Dimensions, amount: Decimal, lapses_s: int) -> tuple[str, ...]:
        """Take `amount`, which fits, from every hard limit in force; the keys of their accounts."""
        keys: list[str] = []
        for limit in limits_for(self._policy, use):
            if limit.hard is not None and is_in_force(limit, self._at_ms):
                account = self.of(limit)
                account.held = account.held | {
                    lapses_s: total(account.held.get(lapses_s, ZERO), amount),
                }
                keys.append(account_key(limit))
        return tuple(keys)

    def give_back(self, keys: Iterable[str], amount: Decimal, lapses_s: int) -> None:
        """What `hold` took, as far as it has not lapsed and its limit is still there."""
        for key in keys:
            account = self._head.accounts.get(key)
            if account is None or lapses_s not in account.held:
                continue
            # Less than that where the limit was taken away meanwhile, with what it held, and came back.
            left = difference(account.held[lapses_s], amount)
            account.held = {at_s: held for at_s, held in account.held.items() if at_s != lapses_s}
            if left > 0:
                account.held[lapses_s] = left

    def spend(self, use: Dimensions, amount: Decimal) -> Sequence[Limit]:
        """Count what was used, whether it fits or not; the limits whose soft amount was passed just now."""
        passed: list[Limit] = []
        for limit in limits_for(self._policy, use):
            account = self.of(limit)
            account.spent = total(account.spent, amount)
            if not account.soft_told and is_in_force(limit, self._at_ms) and self.status(limit).soft_passed:
                account.soft_told = True
                passed.append(limit)
        return passed

    def _refused(self, limit: Limit, status: LimitStatus, amount: Decimal) -> EnginesError:
        assert status.hard is not None
        assert status.left is not None
        scope = {"limit_id": limit.limit_id, "period": limit.period}
        said = f"the limit {limit.limit_id} leaves {plain(max(ZERO, status.left))} of {plain(status.hard)}"
        waits: list[float] = []
        if total(status.spent, amount) <= status.hard:
            waits.append(min(self.of(limit).held) - self._now_s)
        if status.ends_at_s is not None and amount <= status.hard:
            waits.append(status.ends_at_s - self._now_s)
        if not waits:
            refusal: EnginesError = Conflict(said, field="amount")
            refusal.scope, refusal.reason_code = scope, HARD_LIMIT
            return refusal
        return Throttled(
            said,
            field="amount",
            scope=scope,
            reason_code=HARD_LIMIT,
            retry_after_s=min(waits),
        )


def past_hard(statuses: Iterable[LimitStatus]) -> tuple[str, ...]:
    """The limits that spending and holds together have passed."""
    return tuple(status.limit_id for status in statuses if status.left is not None and status.left < 0)


def past_soft(statuses: Iterable[LimitStatus]) -> tuple[str, ...]:
    return tuple(status.limit_id for status in statuses if status.soft_passed)


def lapse_s(now_s: float, ttl_s: int) -> int:
    """The second at which a hold of `ttl_s` from now lapses: no earlier, and rounded up."""
    grain_s = next(grain_s for longest_s, grain_s in _GRAINS if ttl_s <= longest_s)
    at_s = now_s + ttl_s
    return int(-(-at_s // grain_s) * grain_s)
