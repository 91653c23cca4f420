"""The ledger's entries: recording a use, and correcting what was recorded.

Owns the rules of both. A use that happened is recorded though it passes a hard limit, and the answer says
which: only reservations are refused. A correction says what an entry should have said and adds the
difference, today, in the dimensions of that entry; it names the entry itself, never another correction, and
the last one holds. Limits and totals count a use when it is recorded; `occurred_at` decides about its price
alone. Each entry is told on the spine, and each soft limit that is passed, once a period.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from engines.clock import timestamp
from engines.core.idempotency import Request
from engines.errors import Invalid, NotFound
from engines.ids import event_id_at, stream_tag
from engines.scope import RequestContext
from engines.stores.budget_accounts import past_hard, past_soft
from engines.stores.budget_amounts import amount_of, check_currency, plain
from engines.stores.budget_changes import (
    BudgetChange,
    Outcome,
    checked_time,
    currency_of,
    is_within,
    soft_limit_count,
)
from engines.stores.budget_policy import Dimensions, Limit, priced
from engines.stores.budget_records import (
    CORRECTED,
    USAGE,
    Corrected,
    StoredUsage,
    Sums,
    UsageEntry,
    UsageInput,
    corrected_key,
    sums_of,
    usage_key,
    use_of,
)
from engines.stores.budget_sheet import Sheet
from engines.stores.event_records import instant_ms
from engines.stores.scoped import Stamped, stamp

_POSITION_SHIFT: Final = 80
# An event says these of itself, where it stands.
_IN_THE_EVENT: Final = frozenset(Stamped.__struct_fields__) | {"cursor"}


class RecordUsage(BudgetChange[UsageEntry]):
    """A use, or what an entry should have said."""

    codec = USAGE

    def __init__(self, context: RequestContext, usage: UsageInput, request: Request | None) -> None:
        """Raises Invalid for whatever can be judged without the budget."""
        super().__init__(context, request)
        self._usage = usage
        self._cost = None if usage.cost is None else amount_of(usage.cost, "cost")
        self._occurred_ms = (
            None if usage.occurred_at is None else instant_ms(usage.occurred_at, "occurred_at")
        )
        if usage.currency is not None:
            check_currency(usage.currency)
        self._corrected = None if usage.corrects is None else position_named(usage.corrects, "corrects")

    def reads(self) -> Sequence[str]:
        if self._corrected is None:
            return super().reads()
        return (*super().reads(), usage_key(self._corrected), corrected_key(self._corrected))

    def reads_more(self, sheet: Sheet) -> Sequence[str]:
        if self._corrected is None:
            return (sheet.cell(self._use()),)
        body = sheet.body(usage_key(self._corrected))
        return () if body is None else (sheet.cell(use_of(USAGE.decode(body).record)),)

    def ops_max(self, sheet: Sheet) -> int:
        return 5 + soft_limit_count(sheet)

    def apply(self, sheet: Sheet) -> Outcome:
        entry = self._record(sheet) if self._corrected is None else self._correct(sheet, self._corrected)
        body = sheet.body(usage_key(entry.position))
        assert body is not None
        return Outcome(body, created=True, version=sheet.write_id)

    def _use(self) -> Dimensions:
        usage, context = self._usage, self.context
        return Dimensions(
            usage.provider, usage.model, usage.tool, context.project_id, context.surface_id, context.app_id
        )

    def _record(self, sheet: Sheet) -> UsageEntry:
        usage, use = self._usage, self._use()
        stated = priced_sums(
            sheet,
            use,
            cost=self._cost,
            units=1 if usage.units is None else usage.units,
            tokens_in=usage.tokens_in or 0,
            tokens_out=usage.tokens_out or 0,
            occurred_ms=checked_time(sheet, self._occurred_ms),
        )
        return post(
            sheet,
            self.context,
            use,
            stated,
            stated,
            currency=currency_of(sheet, usage.currency),
            is_priced=self._cost is None,
            occurred_at=usage.occurred_at,
            note=usage.note,
        )

    def _correct(self, sheet: Sheet, position: int) -> UsageEntry:
        usage = self._usage
        body = sheet.body(usage_key(position))
        entry = None if body is None else USAGE.decode(body).record
        if entry is None or entry.usage_id != usage.corrects or not is_within(self.context, entry):
            raise NotFound("there is no such entry to correct", field="corrects")
        if entry.corrects is not None:
            raise Invalid("a correction names the entry that was wrong first", field="corrects")
        for name in ("provider", "model", "tool"):
            if getattr(usage, name) not in (None, getattr(entry, name)):
                raise Invalid("a correction is of the same provider, model and tool", field=name)
        currency = currency_of(sheet, usage.currency)
        standing = self._standing(sheet, position, entry)
        use = use_of(entry)
        occurred_at = usage.occurred_at or entry.occurred_at
        cost = self._cost
        if cost is None and not entry.is_priced:
            raise Invalid("say what the cost should have been", field="cost")
        stated = priced_sums(
            sheet,
            use,
            cost=cost,
            units=standing.units if usage.units is None else usage.units,
            tokens_in=standing.tokens_in if usage.tokens_in is None else usage.tokens_in,
            tokens_out=standing.tokens_out if usage.tokens_out is None else usage.tokens_out,
            occurred_ms=checked_time(sheet, instant_ms(occurred_at, "occurred_at")),
        )
        correction = post(
            sheet,
            self.context,
            use,
            stated,
            stated.minus(standing),
            currency=currency,
            is_priced=cost is None,
            occurred_at=occurred_at,
            corrects=entry.usage_id,
            note=usage.note,
        )
        sheet.put(corrected_key(position), CORRECTED.encode(Corrected(stated, correction.usage_id)))
        return correction

    def _standing(self, sheet: Sheet, position: int, entry: UsageEntry) -> Sums:
        """What the entry counts as now, in its own terms: the count of entries is nobody's to correct."""
        body = sheet.body(corrected_key(position))
        standing = sums_of(entry) if body is None else CORRECTED.decode(body).sums
        return msgspec.structs.replace(standing, entries=0)


def post(
    sheet: Sheet,
    context: RequestContext,
    use: Dimensions,
    stated: Sums,
    adds: Sums,
    *,
    currency: str,
    is_priced: bool,
    occurred_at: str | None,
    reservation_id: str | None = None,
    corrects: str | None = None,
    note: str | None = None,
) -> UsageEntry:
    """Put an entry into the ledger, count it everywhere, tell the spine. It refuses nothing."""
    head = sheet.head
    head.currency, head.is_used = currency, True
    head.position += 1
    passed = sheet.accounts.spend(use, adds.cost)
    statuses = sheet.accounts.statuses(use)
    now = timestamp(sheet.now_s)
    where = {"project_id": use.project_id, "surface_id": use.surface_id, "app_id": use.app_id}
    entry = UsageEntry(
        **stamp(context) | where,
        usage_id=event_id_at(stream_tag(head.ledger_id), head.position),
        position=head.position,
        provider=use.provider,
        model=use.model,
        tool=use.tool,
        tokens_in=stated.tokens_in,
        tokens_out=stated.tokens_out,
        units=stated.units,
        cost=plain(stated.cost),
        currency=currency,
        adds=adds.measures(),
        is_priced=is_priced,
        occurred_at=occurred_at or now,
        recorded_at=now,
        reservation_id=reservation_id,
        corrects=corrects,
        note=note,
        over_limits=past_hard(statuses),
        soft_limits=past_soft(statuses),
    )
    sheet.put(usage_key(head.position), USAGE.encode(StoredUsage(entry, sheet.at_ms)))
    sheet.count(use, msgspec.structs.replace(adds, entries=1))
    sheet.tell(context, _told(entry))
    for limit in passed:
        sheet.tell(context, _told_of_limit(sheet, limit, entry))
    return entry


def priced_sums(
    sheet: Sheet,
    use: Dimensions,
    *,
    cost: Decimal | None,
    units: int,
    tokens_in: int,
    tokens_out: int,
    occurred_ms: int,
) -> Sums:
    """What is stated of a use; its cost from the price in force where none was said. Raises Invalid."""
    if cost is None:
        cost = priced(
            sheet.policy, use, tokens_in=tokens_in, tokens_out=tokens_out, units=units, at_ms=occurred_ms
        )
    return Sums(cost, units, tokens_in, tokens_out)


def position_named(usage_id: str, field: str) -> int:
    """The position that an entry's id holds, whosever it is. Raises Invalid, NotFound."""
    try:
        parsed = uuid.UUID(usage_id)
    except ValueError:
        raise Invalid("the id of an entry is a UUID", field=field) from None
    position = parsed.int >> _POSITION_SHIFT
    if str(parsed) != usage_id or parsed.version != 8 or position == 0:
        raise NotFound("there is no such entry to correct", field=field)
    return position


def _told(entry: UsageEntry) -> dict[str, Any]:
    said = msgspec.to_builtins(entry)
    return {"kind": "usage"} | {name: value for name, value in said.items() if name not in _IN_THE_EVENT}


def _told_of_limit(sheet: Sheet, limit: Limit, entry: UsageEntry) -> dict[str, Any]:
    status = sheet.accounts.status(limit)
    return {
        "kind": "soft_limit_passed",
        "limit_id": limit.limit_id,
        "period": limit.period,
        "starts_at": timestamp(status.starts_at_s),
        "soft": limit.soft,
        "spent": plain(status.spent),
        "currency": entry.currency,
        "usage_id": entry.usage_id,
    }
