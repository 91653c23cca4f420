"""Budgets, for clients: the ledger, the policy, the summary and reservations.

Owns the paths, parameters and types of `/budget`. Amounts are `Decimal`s, which travel as text; no float ever
stands in between. Leaves conditions, keys and pages to `client/calls.py`.

What every method may raise is what the server answers (`engines.errors`), Unavailable where it cannot be
reached, and for changes OutcomeUnknown where the reply was lost and repeating could not settle it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Literal

import msgspec

from engines.client.calls import Calls, Condition, Order
from engines.client.results import Page, Stamped
from engines.errors import Invalid

Period = Literal["hour", "day", "month", "total"]
Dimension = Literal["provider", "model", "tool", "project", "surface", "app", "day"]


class NewUsage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A use to record. Without `cost` the policy's price says it.

    `corrects` names an entry: then this is what that entry should have said, which those say who set limits.
    """

    provider: str | None = None
    model: str | None = None
    tool: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    units: int | None = None
    cost: Decimal | None = None
    currency: str | None = None
    occurred_at: str | None = None
    corrects: str | None = None
    note: str | None = None


class Measures(msgspec.Struct, frozen=True):
    """What an entry adds to every total; negative where a correction takes back."""

    cost: Decimal
    units: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class UsageEntry(Stamped, frozen=True, kw_only=True):
    """An entry of the ledger. `over_limits`, `soft_limits`: what was passed once it was recorded."""

    usage_id: str
    position: int
    cost: Decimal
    currency: str
    adds: Measures
    provider: str | None = None
    model: str | None = None
    tool: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    units: int = 0
    is_priced: bool = False
    occurred_at: str = ""
    recorded_at: str = ""
    reservation_id: str | None = None
    corrects: str | None = None
    note: str | None = None
    over_limits: tuple[str, ...] = ()
    soft_limits: tuple[str, ...] = ()
    cursor: str = ""


class BudgetLimit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may be spent in a period by what it names, or by the whole tenant: hard, soft, or both."""

    limit_id: str
    period: Period
    hard: Decimal | None = None
    soft: Decimal | None = None
    project_id: str | None = None
    surface_id: str | None = None
    app_id: str | None = None
    provider: str | None = None
    valid_from: str | None = None
    valid_until: str | None = None


class Price(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a provider takes: for a million tokens in, a million out, and each unit."""

    provider: str
    model: str | None = None
    tool: str | None = None
    input_per_million: Decimal | None = None
    output_per_million: Decimal | None = None
    per_unit: Decimal | None = None
    valid_from: str | None = None
    valid_until: str | None = None


class NewBudgetPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy to put. All amounts are in `currency`."""

    currency: str
    limits: tuple[BudgetLimit, ...] = ()
    prices: tuple[Price, ...] = ()


class BudgetPolicy(Stamped, frozen=True, kw_only=True):
    """The policy that holds."""

    currency: str
    limits: tuple[BudgetLimit, ...] = ()
    prices: tuple[Price, ...] = ()
    version: int
    created_at: str = ""
    updated_at: str = ""


class Reservation(Stamped, frozen=True, kw_only=True):
    """An amount held in each hard limit named, until it is settled, released or lapses."""

    reservation_id: str
    state: str
    amount: Decimal
    currency: str
    provider: str | None = None
    model: str | None = None
    tool: str | None = None
    limits: tuple[str, ...] = ()
    created_at: str = ""
    updated_at: str = ""
    expires_at: str = ""
    settled_cost: Decimal | None = None
    usage_id: str | None = None
    over_limits: tuple[str, ...] = ()
    soft_limits: tuple[str, ...] = ()


class BudgetTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Exact sums over entries; `value`: that of the dimension which they share."""

    cost: Decimal
    units: int
    tokens_in: int
    tokens_out: int
    entries: int
    value: str | None = None


class LimitStanding(msgspec.Struct, frozen=True, kw_only=True):
    """How a limit stands in the period that is now. `left` is negative once it was passed."""

    limit_id: str
    period: Period
    in_force: bool
    spent: Decimal
    held: Decimal
    starts_at: str | None = None
    ends_at: str | None = None
    hard: Decimal | None = None
    soft: Decimal | None = None
    left: Decimal | None = None
    soft_passed: bool = False


class BudgetVerification(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the ledger, added up anew, says what the totals and the limits say."""

    ok: bool
    entries: int
    ledger_cost: Decimal
    differing: tuple[str, ...] = ()


class BudgetSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What was used, as of the entry at `position`."""

    position: int
    total: BudgetTotals
    by: dict[str, tuple[BudgetTotals, ...]]
    limits: tuple[LimitStanding, ...] = ()
    currency: str | None = None
    since: str | None = None
    until: str | None = None
    verification: BudgetVerification | None = None


class Budget:
    """What was used and what may be, of a tenant and env."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def record(self, usage: NewUsage, *, idempotency_key: str | None = None) -> UsageEntry:
        """Append an entry to the ledger, whether limits are passed or not."""
        return await self._calls.change(
            UsageEntry, "POST", "budget", "usage", body=usage, idempotency_key=idempotency_key
        )

    async def page(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        provider: str | None = None,
        model: str | None = None,
        tool: str | None = None,
        project_id: str | None = None,
        run_id: str | None = None,
    ) -> Page[UsageEntry]:
        """One page of the ledger; with a filter it may be short or empty and still have `after`."""
        query = {
            "limit": limit,
            "after": after,
            "order": order,
            "provider": provider,
            "model": model,
            "tool": tool,
            "project_id": project_id,
            "run_id": run_id,
        }
        return await self._calls.page(UsageEntry, "budget", "usage", query=query)

    def each(
        self,
        *,
        order: Order | None = None,
        provider: str | None = None,
        model: str | None = None,
        tool: str | None = None,
        project_id: str | None = None,
        run_id: str | None = None,
    ) -> AsyncGenerator[UsageEntry, None]:
        """Every entry that the filters let through."""
        query = {
            "order": order,
            "provider": provider,
            "model": model,
            "tool": tool,
            "project_id": project_id,
            "run_id": run_id,
        }
        return self._calls.each(UsageEntry, "budget", "usage", query=query)

    async def policy(self) -> BudgetPolicy:
        """The policy that holds. Raises NotFound."""
        return await self._calls.get(BudgetPolicy, "budget", "policy")

    async def put_policy(
        self,
        policy: NewBudgetPolicy,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> BudgetPolicy:
        """Replace the policy. Raises PreconditionFailed."""
        return await self._calls.change(
            BudgetPolicy,
            "PUT",
            *("budget", "policy"),
            body=policy,
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def summary(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        by: Dimension | None = None,
        verify: bool = False,
    ) -> BudgetSummary:
        """Totals of the UTC days since <= day < until, and how the limits stand."""
        query = {"since": since, "until": until, "by": by, "verify": "true" if verify else None}
        return await self._calls.get(BudgetSummary, "budget", "summary", query=query)

    async def reserve(
        self,
        amount: Decimal | int | str,
        *,
        currency: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        tool: str | None = None,
        ttl_seconds: int | None = None,
        idempotency_key: str | None = None,
    ) -> Reservation:
        """Hold an amount. Where it may fit within the retry policy's deadline, it is waited for.

        Raises Throttled where it may fit later, Conflict where waiting does not help, Invalid for a float.
        """
        said = {
            "amount": _amount(amount, "amount"),
            "currency": currency,
            "provider": provider,
            "model": model,
            "tool": tool,
            "ttl_seconds": ttl_seconds,
        }
        return await self._calls.change(
            Reservation,
            "POST",
            *("budget", "reservations"),
            body={name: value for name, value in said.items() if value is not None},
            idempotency_key=idempotency_key,
        )

    async def reservation(self, reservation_id: str) -> Reservation:
        """A reservation as it stands. Raises NotFound."""
        return await self._calls.get(Reservation, "budget", "reservations", reservation_id)

    async def reservations(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        holding: bool = False,
        user_id: str | None = None,
        project_id: str | None = None,
    ) -> Page[Reservation]:
        """One page of everybody's; with a filter it may be short or empty and still have `after`."""
        query = {
            "limit": limit,
            "after": after,
            "order": order,
            "holding": "true" if holding else None,
            "user_id": user_id,
            "project_id": project_id,
        }
        return await self._calls.page(Reservation, "budget", "reservations", query=query)

    def each_reservation(
        self,
        *,
        order: Order | None = None,
        holding: bool = False,
        user_id: str | None = None,
        project_id: str | None = None,
    ) -> AsyncGenerator[Reservation, None]:
        """Everybody's reservations; `holding`: those alone that hold an amount now."""
        query = {
            "order": order,
            "holding": "true" if holding else None,
            "user_id": user_id,
            "project_id": project_id,
        }
        return self._calls.each(Reservation, "budget", "reservations", query=query)

    async def settle(
        self,
        reservation_id: str,
        *,
        cost: Decimal | int | str | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        units: int = 1,
        occurred_at: str | None = None,
        note: str | None = None,
        idempotency_key: str | None = None,
    ) -> Reservation:
        """Record what was used and give back what was held.

        Raises Forbidden where another user reserved it and the caller sets no limits, NotFound, Conflict.
        """
        said = {
            "cost": None if cost is None else _amount(cost, "cost"),
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "units": units,
            "occurred_at": occurred_at,
            "note": note,
        }
        return await self._calls.change(
            Reservation,
            "POST",
            *("budget", "reservations", reservation_id, "settle"),
            body={name: value for name, value in said.items() if value is not None},
            idempotency_key=idempotency_key,
        )

    async def release(self, reservation_id: str, *, idempotency_key: str | None = None) -> Reservation:
        """Give back what was held; nothing was used. Raises as `settle` does."""
        return await self._calls.change(
            Reservation,
            "POST",
            *("budget", "reservations", reservation_id, "release"),
            idempotency_key=idempotency_key,
        )


def _amount(amount: object, field: str) -> str:
    """As HTTP takes it, to the last digit. Raises Invalid for a float: it is not the amount that it shows."""
    if isinstance(amount, str):
        return amount
    if isinstance(amount, Decimal | int) and not isinstance(amount, bool):
        return format(Decimal(amount), "f")
    raise Invalid('an amount is a Decimal, a whole number or text, such as "0.0125"', field=field)
