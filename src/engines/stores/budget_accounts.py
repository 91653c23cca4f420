"""Accounts: what was spent and is held against each limit, and whether an amount still fits.

Owns the arithmetic of limits on the head of a budget: periods that begin anew, holds that lapse by
themselves, which limit refuses and what its caller does next. Leaves writing the head to
`stores/budget_book.py`.

A hold counts until it is settled, released or lapses, whatever period it was made in: so what is held when a
day ends cannot pass the next day's limit. Holds belong to uses and not to limits: a limit that comes, comes
back or becomes hard counts what is held already, and nobody passes one by having it taken away for a moment.

Holds are kept by the second at which they lapse, rounded up to a second, a minute or a quarter of an hour as
they are shorter than a minute, an hour or a day, so that a head stays small however many reservations there
are; nobody has to be there for one to lapse. Past half of what they may take of the head the rest are rounded
up to a quarter of an hour, and are told apart by nothing that no limit names: so nobody fills the head with
names of their own invention. A limit that comes later and names one of those counts it from then on.

Which error refuses: whoever may wait gets Throttled with the time to wait, until the first hold lapses or
the period ends; where no waiting helps (the amount is above the limit itself, or the limit is for ever) it is
Conflict: read the summary and decide. Both say `reason_code: hard_limit` and name the limit in `scope`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from engines.codec import encode_json, escaped_bytes
from engines.errors import Conflict, EnginesError, Throttled
from engines.stores.budget_amounts import ZERO, difference, plain, total
from engines.stores.budget_policy import (
    Dimensions,
    Limit,
    Period,
    Policy,
    account_key,
    counts,
    is_in_force,
    limits_for,
    period_end_s,
    period_start_s,
)
from engines.stores.budget_records import Account, Head, Holds

HARD_LIMIT: Final = "hard_limit"
# For holds up to so many seconds, lapses are rounded up to a multiple of so many.
_GRAINS: Final = ((60, 1), (3_600, 60), (24 * 3_600, 900))
# By so much a hold lapses later than was asked for, at most.
ROUNDED_S_MAX: Final = _GRAINS[-1][1]
# What holds may take of the head, quotes and backslashes counted twice: of each use its dimensions, and so
# much for each second at which it lapses. The accounts of 50 limits and the rest need less than 100 kB.
HOLDS_BYTES_MAX: Final = 256_000
_LAPSE_BYTES: Final = 80
# By what limits tell uses apart.
_LIMITED: Final = ("provider", "project_id", "surface_id", "app_id")


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
    """The accounts and holds of a head, at an instant: reading brings them up to date in place."""

    def __init__(self, head: Head, policy: Policy | None, at_ms: int) -> None:
        self._head = head
        self._policy = policy
        self._at_ms = at_ms
        self._now_s = at_ms / 1000
        head.holds = [holds for holds in head.holds if _drop_lapsed(holds, self._now_s)]
        self._holds = {holds.use: holds for holds in head.holds}
        self._bytes = sum(map(_bytes_of, head.holds))
        # By the account's key: what its limit counts of the holds.
        self._held: dict[str, Decimal] = {}

    @property
    def is_crowded(self) -> bool:
        """Whether holds are to lapse together as far as they can."""
        return self._bytes > HOLDS_BYTES_MAX // 2

    @property
    def first_lapse_s(self) -> float:
        """In how many seconds something that is held lapses."""
        return (
            min((at_s for holds in self._head.holds for at_s in holds.held), default=self._now_s)
            - self._now_s
        )

    def of(self, limit: Limit) -> Account:
        key = account_key(limit)
        start_s = period_start_s(limit.period, self._now_s)
        account = self._head.accounts.get(key)
        if account is None:
            account = self._head.accounts[key] = Account(starts_s=start_s)
        elif account.starts_s != start_s:
            account.starts_s, account.spent, account.soft_told = start_s, ZERO, False
        return account

    def status(self, limit: Limit) -> LimitStatus:
        account = self.of(limit)
        held = self._held_of(limit)
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

    def held_for(self, use: Dimensions) -> Dimensions:
        """What a hold of this use is to be told apart by."""
        limits = () if self._policy is None else self._policy.limits
        told = {name: getattr(use, name) for name in _LIMITED}
        if self.is_crowded:
            named = {(name, getattr(limit, name)) for limit in limits for name in _LIMITED}
            told = {name: value if (name, value) in named else None for name, value in told.items()}
        return Dimensions(**told)

    def has_room(self, held_for: Dimensions, lapses_s: int) -> bool:
        """Whether one more hold fits into the head."""
        holds = self._holds.get(held_for)
        more = _bytes_of(Holds(held_for)) if holds is None else 0
        if holds is None or lapses_s not in holds.held:
            more += _LAPSE_BYTES
        return self._bytes + more <= HOLDS_BYTES_MAX

    def hold(self, held_for: Dimensions, amount: Decimal, lapses_s: int) -> None:
        """Take `amount`, which fits: every limit that counts the use counts it, those to come as well."""
        holds = self._holds.get(held_for)
        if holds is None:
            holds = self._holds[held_for] = Holds(held_for)
            self._head.holds.append(holds)
            self._bytes += _bytes_of(holds)
        if lapses_s not in holds.held:
            self._bytes += _LAPSE_BYTES
        holds.held[lapses_s] = total(holds.held.get(lapses_s, ZERO), amount)
        self._count(held_for, amount)

    def give_back(self, held_for: Dimensions, amount: Decimal, lapses_s: int) -> None:
        """What `hold` took, as far as it has not lapsed."""
        holds = self._holds.get(held_for)
        if holds is None or lapses_s not in holds.held:
            return
        held = holds.held.pop(lapses_s)
        if held > amount:
            holds.held[lapses_s] = difference(held, amount)
        self._count(held_for, difference(ZERO, min(held, amount)))

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

    def _held_of(self, limit: Limit) -> Decimal:
        key = account_key(limit)
        if key not in self._held:
            self._held[key] = total(*(one for holds in self._counted(limit) for one in holds.held.values()))
        return self._held[key]

    def _counted(self, limit: Limit) -> Iterator[Holds]:
        return (holds for holds in self._head.holds if counts(limit, holds.use))

    def _count(self, use: Dimensions, change: Decimal) -> None:
        """Bring what was added up already up to date."""
        for limit in limits_for(self._policy, use):
            key = account_key(limit)
            if key in self._held:
                self._held[key] = total(self._held[key], change)

    def _refused(self, limit: Limit, status: LimitStatus, amount: Decimal) -> EnginesError:
        assert status.hard is not None
        assert status.left is not None
        scope = {"limit_id": limit.limit_id, "period": limit.period}
        said = f"the limit {limit.limit_id} leaves {plain(max(ZERO, status.left))} of {plain(status.hard)}"
        waits: list[float] = []
        if total(status.spent, amount) <= status.hard:
            lapses = (min(holds.held) for holds in self._counted(limit) if holds.held)
            waits.append(min(lapses) - self._now_s)
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


def lapse_s(now_s: float, ttl_s: int, *, crowded: bool = False) -> int:
    """The second at which a hold of `ttl_s` from now lapses: no earlier, and rounded up."""
    grain_s = next(grain_s for longest_s, grain_s in _GRAINS if ttl_s <= longest_s)
    if crowded:
        grain_s = _GRAINS[-1][1]
    at_s = now_s + ttl_s
    return int(-(-at_s // grain_s) * grain_s)


def _drop_lapsed(holds: Holds, now_s: float) -> bool:
    """Whether anything of it is still held."""
    if any(lapses_s <= now_s for lapses_s in holds.held):
        holds.held = {at_s: held for at_s, held in holds.held.items() if at_s > now_s}
    return bool(holds.held)


def _bytes_of(holds: Holds) -> int:
    return escaped_bytes(encode_json(holds.use)) + _LAPSE_BYTES * (1 + len(holds.held))
