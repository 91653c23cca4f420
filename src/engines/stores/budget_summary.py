"""Summaries of a budget: what was used by what, how the limits stand, and whether the ledger agrees.

Owns what is shown of both. Days are UTC, `since` is part of a window and `until` is not. Leaves reading and
adding up to `stores/budget_totals.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec

from engines.clock import timestamp
from engines.core.documents import Documents
from engines.errors import Invalid
from engines.scope import RequestContext
from engines.stores.budget_accounts import Accounts, LimitStatus
from engines.stores.budget_amounts import plain
from engines.stores.budget_policy import Period, account_key
from engines.stores.budget_records import Sums
from engines.stores.budget_totals import (
    Cells,
    Standing,
    cells_at,
    cells_of_ledger,
    read_standing,
    spent_of_ledger,
)

Dimension = Literal["provider", "model", "tool", "project", "surface", "app", "day"]
DIMENSIONS: Final[Mapping[Dimension, str]] = {
    "provider": "provider",
    "model": "model",
    "tool": "tool",
    "project": "project_id",
    "surface": "surface_id",
    "app": "app_id",
    "day": "",
}
Day = Annotated[str, msgspec.Meta(min_length=10, max_length=10)]
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


class SummaryQuery(msgspec.Struct, frozen=True):
    """Days since <= day < until, all of them by default; `by` one dimension, or each.

    `verify`: read the whole ledger and compare.
    """

    since: str | None = None
    until: str | None = None
    by: Dimension | None = None
    verify: bool = False


class Totals(msgspec.Struct, frozen=True):
    """Sums over entries of the ledger, exact."""

    cost: str
    units: int
    tokens_in: int
    tokens_out: int
    entries: int


class Line(Totals, frozen=True):
    """The totals of one value of a dimension; None: the entries that named none."""

    value: str | None = None


class LimitView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a limit stands in the period that is now. `left` is negative once it was passed."""

    limit_id: str
    period: Period
    in_force: bool
    starts_at: str | None = None
    ends_at: str | None = None
    hard: str | None = None
    soft: str | None = None
    spent: str
    held: str
    left: str | None = None
    soft_passed: bool = False


class BudgetVerification(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether the ledger, added up anew, says the same as the totals, and as the accounts of the limits."""

    ok: bool
    entries: int
    ledger_cost: str
    differing: tuple[str, ...] = ()


class Summary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was used. `position`: that of the last entry counted; everything is as of it."""

    currency: str | None = None
    position: int
    since: str | None = None
    until: str | None = None
    total: Totals
    by: dict[str, tuple[Line, ...]]
    limits: tuple[LimitView, ...]
    verification: BudgetVerification | None = None


def check_query(query: SummaryQuery) -> SummaryQuery:
    """Raises Invalid."""
    for field in ("since", "until"):
        _check_day(getattr(query, field), field)
    if query.since is not None and query.until is not None and query.until <= query.since:
        raise Invalid("the period ends before it begins", field="until")
    return query


async def summarise(
    documents: Documents, partition: str, context: RequestContext, query: SummaryQuery, *, now_s: float
) -> Summary:
    """Two reads and one more for each thousand cells; `verify` one more for each thousand entries.

    A bound project sees its own use; the limits are everybody's. Raises TooLarge, Corrupt.
    """
    standing = await read_standing(documents, partition)
    window = {"since": query.since, "until": query.until}
    cells = await cells_at(documents, partition, standing.position, **window)
    verification = None
    if query.verify:
        anew = await cells_of_ledger(documents, partition, standing.position, **window)
        spent = await spent_of_ledger(documents, partition, standing)
        verification = _verified(standing, cells, anew, spent)
    if context.project_id is not None:
        cells = {key: sums for key, sums in cells.items() if key[1].project_id == context.project_id}
    return Summary(
        currency=None if standing.head is None else standing.head.currency,
        position=standing.position,
        since=query.since,
        until=query.until,
        total=_totals(_sum(cells.values())),
        by={name: _lines(cells, name) for name in DIMENSIONS if query.by in (None, name)},
        limits=limit_views(standing, now_s=now_s),
        verification=verification,
    )


def limit_views(standing: Standing, *, now_s: float) -> tuple[LimitView, ...]:
    """The limits of the policy, in its order."""
    if standing.head is None:
        return ()
    at_ms = max(int(now_s * 1000), standing.head.at_ms)
    return tuple(map(_limit_view, Accounts(standing.head, standing.policy, at_ms).all_statuses()))


def _limit_view(status: LimitStatus) -> LimitView:
    return LimitView(
        limit_id=status.limit_id,
        period=status.period,
        in_force=status.in_force,
        starts_at=timestamp(status.starts_at_s) if status.period != "total" else None,
        ends_at=None if status.ends_at_s is None else timestamp(status.ends_at_s),
        hard=None if status.hard is None else plain(status.hard),
        soft=None if status.soft is None else plain(status.soft),
        spent=plain(status.spent),
        held=plain(status.held),
        left=None if status.left is None else plain(status.left),
        soft_passed=status.soft_passed,
    )


def _verified(
    standing: Standing, cells: Cells, anew: Cells, spent: Mapping[str, Decimal]
) -> BudgetVerification:
    differing = sorted(
        f"{day} {'/'.join(value or '-' for value in msgspec.structs.astuple(use))}"
        for day, use in cells.keys() | anew.keys()
        if cells.get((day, use)) != anew.get((day, use))
    )
    if standing.head is not None and standing.policy is not None:
        accounts = standing.head.accounts
        differing += [
            f"limit {limit.limit_id}"
            for limit in standing.policy.limits
            if accounts[account_key(limit)].spent != spent[account_key(limit)]
        ]
    sums = _sum(anew.values())
    return BudgetVerification(
        ok=not differing,
        entries=sums.entries,
        ledger_cost=plain(sums.cost),
        differing=tuple(differing),
    )


def _lines(cells: Cells, dimension: Dimension) -> tuple[Line, ...]:
    sums: dict[str | None, Sums] = {}
    for (day, use), own in cells.items():
        value = day if dimension == "day" else getattr(use, DIMENSIONS[dimension])
        sums[value] = sums.get(value, Sums()).plus(own)
    return tuple(
        Line(**msgspec.structs.asdict(_totals(sums[value])), value=value)
        for value in sorted(sums, key=lambda value: (value is not None, value or ""))
    )


def _sum(all_sums: Iterable[Sums]) -> Sums:
    result = Sums()
    for sums in all_sums:
        result = result.plus(sums)
    return result


def _totals(sums: Sums) -> Totals:
    return Totals(plain(sums.cost), sums.units, sums.tokens_in, sums.tokens_out, sums.entries)


def _check_day(text: str | None, field: str) -> None:
    if text is None:
        return
    try:
        if not _DAY.fullmatch(text):
            raise ValueError(text)
        date.fromisoformat(text)
    except ValueError:
        raise Invalid("a day is written as 2026-11-21", field=field) from None
