"""Reservations: an amount held for a use that is about to happen.

Owns making one, settling it and releasing it. What was used is recorded though it is more than was
reserved, or comes after the reservation lapsed. A settlement that repeats the first is answered as the first
was; another one is Conflict, and so are a settlement after a release and a release after a settlement. A
release may be repeated. Both are for the user who reserved, by whichever credential, and for those who set
the limits: what somebody holds is not anybody's to free. Nothing of a reservation is told on the spine: it
comes to nothing, or to an entry. Leaves whether an amount fits to `stores/budget_accounts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from engines.clock import timestamp
from engines.codec import canonical_json
from engines.core.idempotency import Request
from engines.errors import Conflict, Forbidden, NotFound, Throttled
from engines.ids import first_record_id
from engines.scope import RequestContext, check_id
from engines.stores.budget_accounts import ROUNDED_S_MAX, lapse_s, past_hard, past_soft
from engines.stores.budget_amounts import EXACT, amount_of, check_currency, plain
from engines.stores.budget_changes import (
    MANAGE,
    BudgetChange,
    Outcome,
    checked_time,
    currency_of,
    is_within,
    soft_limit_count,
)
from engines.stores.budget_policy import Dimensions
from engines.stores.budget_records import (
    HELD_S_MAX,
    RESERVATION,
    Reservation,
    ReservationInput,
    SettlementInput,
    StoredReservation,
    reservation_key,
    use_of,
)
from engines.stores.budget_sheet import Sheet
from engines.stores.budget_usage import post, priced_sums
from engines.stores.event_records import instant_ms
from engines.stores.scoped import stamp

# How long a reservation is kept once it lapses or would have: to be settled late, or asked again.
KEPT_S: Final = 7 * 24 * 3600
CLOCKS_DIFFER_S: Final = 3600


class Reserve(BudgetChange[Reservation]):
    """Hold an amount that fits into every hard limit in force, or nothing."""

    codec = RESERVATION

    def __init__(
        self,
        context: RequestContext,
        reservation: ReservationInput,
        request: Request | None,
        *,
        reservation_id: str,
    ) -> None:
        """Raises Invalid for whatever can be judged without the budget."""
        super().__init__(context, request)
        self._input = reservation
        self._reservation_id = reservation_id
        self._amount = amount_of(reservation.amount, "amount")
        if reservation.currency is not None:
            check_currency(reservation.currency)

    def ops_max(self, sheet: Sheet) -> int:  # noqa: ARG002
        return 2

    def apply(self, sheet: Sheet) -> Outcome:
        said, context = self._input, self.context
        currency = currency_of(sheet, said.currency)
        use = Dimensions(
            said.provider, said.model, said.tool, context.project_id, context.surface_id, context.app_id
        )
        refused = sheet.accounts.refusal(use, self._amount)
        if refused is not None:
            raise refused[1]
        accounts = sheet.accounts
        lapses_s = lapse_s(sheet.now_s, said.ttl_seconds, crowded=accounts.is_crowded)
        held_for = accounts.held_for(use) if self._amount > 0 else None
        if held_for is not None:
            if not accounts.has_room(held_for, lapses_s):
                raise Throttled(
                    "too many different reservations of this budget are open",
                    retry_after_s=accounts.first_lapse_s,
                )
            accounts.hold(held_for, self._amount, lapses_s)
        sheet.head.currency, sheet.head.is_used = currency, True
        statuses = sheet.accounts.statuses(use)
        now = timestamp(sheet.now_s)
        record = Reservation(
            **stamp(context),
            reservation_id=self._reservation_id,
            state="held",
            amount=plain(self._amount),
            currency=currency,
            provider=said.provider,
            model=said.model,
            tool=said.tool,
            limits=tuple(status.limit_id for status in statuses if status.hard is not None),
            created_at=now,
            updated_at=now,
            expires_at=timestamp(lapses_s),
            soft_limits=past_soft(statuses),
        )
        return _written(sheet, StoredReservation(record, lapses_s, held_for), created=True)


class _OfReservation(BudgetChange[Reservation]):
    """What is done to one that stands."""

    codec = RESERVATION

    def __init__(self, context: RequestContext, reservation_id: str, request: Request | None) -> None:
        super().__init__(context, request)
        self._key = reservation_key(check_id(reservation_id, "reservation_id"))

    def reads(self) -> Sequence[str]:
        return (*super().reads(), self._key)

    def _standing(self, sheet: Sheet) -> StoredReservation:
        """Raises NotFound, Forbidden (another user's)."""
        body = sheet.body(self._key)
        stored = None if body is None else RESERVATION.decode(body)
        if stored is None or not is_within(self.context, stored.record):
            raise no_such_reservation()
        if self.context.user_id != stored.record.user_id and MANAGE not in self.context.permissions:
            raise Forbidden(f"another user reserved this, and the role does not grant {MANAGE}")
        return stored

    def _as_it_is(self, sheet: Sheet, stored: StoredReservation) -> Outcome:
        """Done before: the same answer. It may have been done just now, by this very commit."""
        version = sheet.write_id if sheet.writes(self._key) else sheet.docs[self._key].version
        return Outcome(RESERVATION.encode(stored), created=False, version=version)


class Settle(_OfReservation):
    """What was reserved was used: record what it cost, give back what was held."""

    def __init__(
        self,
        context: RequestContext,
        reservation_id: str,
        settlement: SettlementInput,
        request: Request | None,
    ) -> None:
        """Raises Invalid for whatever can be judged without the budget."""
        super().__init__(context, reservation_id, request)
        self._input = settlement
        self._cost = None if settlement.cost is None else amount_of(settlement.cost, "cost")
        said = settlement.occurred_at
        self._occurred_ms = None if said is None else instant_ms(said, "occurred_at")
        if settlement.currency is not None:
            check_currency(settlement.currency)

    def reads_more(self, sheet: Sheet) -> Sequence[str]:
        body = sheet.body(self._key)
        return () if body is None else (sheet.cell(use_of(RESERVATION.decode(body).record)),)

    def ops_max(self, sheet: Sheet) -> int:
        return 5 + soft_limit_count(sheet)

    def apply(self, sheet: Sheet) -> Outcome:
        stored = self._standing(sheet)
        record, said = stored.record, self._input
        if record.state == "released":
            raise Conflict("this reservation was released: record the use by itself")
        if stored.settled_by is not None:
            if stored.settled_by != self._says():
                raise Conflict(f"this reservation was settled for {record.settled_cost}", field="cost")
            return self._as_it_is(sheet, stored)
        currency = currency_of(sheet, said.currency)
        use = use_of(record)
        stated = priced_sums(
            sheet,
            use,
            cost=self._cost,
            units=said.units,
            tokens_in=said.tokens_in,
            tokens_out=said.tokens_out,
            occurred_ms=checked_time(sheet, self._occurred_ms),
        )
        _give_back(sheet, stored)
        entry = post(
            sheet,
            self.context,
            use,
            stated,
            stated,
            currency=currency,
            is_priced=self._cost is None,
            occurred_at=said.occurred_at,
            reservation_id=record.reservation_id,
            note=said.note,
        )
        settled = msgspec.structs.replace(
            record,
            state="settled",
            updated_at=entry.recorded_at,
            settled_cost=entry.cost,
            usage_id=entry.usage_id,
            over_limits=entry.over_limits,
            soft_limits=entry.soft_limits,
        )
        return _written(sheet, msgspec.structs.replace(stored, record=settled, settled_by=self._says()))

    def _says(self) -> str:
        """What tells a repeat from another settlement."""
        said = self._input
        cost = None if self._cost is None else plain(EXACT.normalize(self._cost))
        return canonical_json([cost, said.units, said.tokens_in, said.tokens_out])


class Release(_OfReservation):
    """What was reserved is not used."""

    def ops_max(self, sheet: Sheet) -> int:  # noqa: ARG002
        return 2

    def apply(self, sheet: Sheet) -> Outcome:
        stored = self._standing(sheet)
        record = stored.record
        if record.state == "settled":
            raise Conflict("this reservation was settled: correct its entry instead")
        if record.state == "released":
            return self._as_it_is(sheet, stored)
        _give_back(sheet, stored)
        statuses = sheet.accounts.statuses(use_of(record))
        released = msgspec.structs.replace(
            record,
            state="released",
            updated_at=timestamp(sheet.now_s),
            over_limits=past_hard(statuses),
            soft_limits=past_soft(statuses),
        )
        return _written(sheet, msgspec.structs.replace(stored, record=released))


def holds(stored: StoredReservation, now_s: float) -> bool:
    """Whether it takes something from limits now: it is of some amount, and neither ended nor lapsed."""
    is_held = stored.record.state == "held" and stored.held_for is not None
    return is_held and now_s < stored.lapses_s


def oldest_key(now_s: float) -> str:
    """Before it stands no reservation that still holds something, whatever the clock that made its id."""
    return reservation_key(first_record_id(now_s - HELD_S_MAX - ROUNDED_S_MAX - CLOCKS_DIFFER_S))


def no_such_reservation() -> NotFound:
    return NotFound("there is no such reservation, or it is no longer kept")


def _give_back(sheet: Sheet, stored: StoredReservation) -> None:
    if stored.held_for is not None:
        amount = amount_of(stored.record.amount, "amount")
        sheet.accounts.give_back(stored.held_for, amount, stored.lapses_s)


def _written(sheet: Sheet, stored: StoredReservation, *, created: bool = False) -> Outcome:
    key = reservation_key(stored.record.reservation_id)
    body = RESERVATION.encode(stored)
    sheet.put(key, body, expires_at=stored.lapses_s + KEPT_S)
    return Outcome(body, created, sheet.write_id)
