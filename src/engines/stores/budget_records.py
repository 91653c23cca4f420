"""What a budget keeps: bodies of requests, the records shown, and the documents behind them.

Owns their fields and keys. Everything of one budget stands in one partition:

    h!head                  the head: the ledger's length, the accounts of the limits, holds, whose turn it is
    h!policy                the policy
    u!{position}            an entry of the ledger, immutable; positions start at 1 and have no gaps
    x!{position}            what a corrected entry counts as now
    r!{reservation_id}      a reservation
    t!{day}!{digest}        totals of one day's use with the same dimensions
    o!…, k!…                what waits for the spine, and idempotency markers

Leaves what changes them to `stores/budget_changes.py`. Documents that nobody is shown hold `Decimal`s; shown
records hold amounts as text in plain notation.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec

from engines.clock import timestamp
from engines.codec import Codec, canonical_json
from engines.core.commits import Turn
from engines.core.keys import join
from engines.stores.budget_amounts import ZERO, difference, plain, total
from engines.stores.budget_policy import Amount, Currency, Dimensions, Name, Policy, Tokens
from engines.stores.event_records import Instant
from engines.stores.scoped import IdentityFields, Stamped

# Everything of a budget is anchored here, so that one atomic write can touch all of it.
ANCHOR: Final = "budget"
HEAD_KEY: Final = join("h", "head")
POLICY_KEY: Final = join("h", "policy")

NOTE_CHARS_MAX: Final = 500
HELD_S_DEFAULT: Final = 300
HELD_S_MAX: Final = 24 * 3600

State = Literal["held", "settled", "released"]
HeldFor = Annotated[int, msgspec.Meta(ge=1, le=HELD_S_MAX)]
Note = Annotated[str, msgspec.Meta(min_length=1, max_length=NOTE_CHARS_MAX)]


class UsageInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One use. Without `cost` it is priced by the policy; `units` is 1 where it is left out.

    With `corrects` (the id of an entry) it says what that entry should have said: provider, model and tool
    are that entry's, and so is every number that is left out.
    """

    provider: Name | None = None
    model: Name | None = None
    tool: Name | None = None
    tokens_in: Tokens | None = None
    tokens_out: Tokens | None = None
    units: Tokens | None = None
    cost: Amount | None = None
    currency: Currency | None = None
    occurred_at: Instant | None = None
    corrects: str | None = None
    note: Note | None = None


class ReservationInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a reservation. It lapses `ttl_seconds` from now, or a little later."""

    amount: Amount
    currency: Currency | None = None
    provider: Name | None = None
    model: Name | None = None
    tool: Name | None = None
    ttl_seconds: HeldFor = HELD_S_DEFAULT


class SettlementInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was used in the end. Without `cost` it is priced by the policy."""

    tokens_in: Tokens = 0
    tokens_out: Tokens = 0
    units: Tokens = 1
    cost: Amount | None = None
    currency: Currency | None = None
    occurred_at: Instant | None = None
    note: Note | None = None


class Measures(msgspec.Struct, frozen=True):
    """What an entry adds to every total. Negative only where a correction takes back."""

    cost: str
    units: int
    tokens_in: int
    tokens_out: int


class UsageEntry(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of the ledger. `cost` and the counts are as stated; `adds` is what the entry counts for.

    `over_limits` and `soft_limits`: limits past which spending stood once this was recorded.
    """

    usage_id: str
    position: int
    provider: str | None = None
    model: str | None = None
    tool: str | None = None
    tokens_in: int
    tokens_out: int
    units: int
    cost: str
    currency: str
    adds: Measures
    is_priced: bool = False
    occurred_at: str
    recorded_at: str
    reservation_id: str | None = None
    corrects: str | None = None
    note: str | None = None
    over_limits: tuple[str, ...] = ()
    soft_limits: tuple[str, ...] = ()
    cursor: str = ""


class Reservation(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """An amount taken from every hard limit that applied, until it is settled, released or lapses.

    `over_limits` and `soft_limits`: as of the last change.
    """

    reservation_id: str
    state: State
    amount: str
    currency: str
    provider: str | None = None
    model: str | None = None
    tool: str | None = None
    limits: tuple[str, ...] = ()
    created_at: str
    updated_at: str
    expires_at: str
    settled_cost: str | None = None
    usage_id: str | None = None
    over_limits: tuple[str, ...] = ()
    soft_limits: tuple[str, ...] = ()


class StoredUsage(msgspec.Struct, frozen=True, tag_field="schema", tag="budget-usage/1"):
    """`at_ms`: when it was recorded, never before the entry before it."""

    record: UsageEntry
    at_ms: int


class StoredReservation(msgspec.Struct, frozen=True, tag_field="schema", tag="budget-reservation/1"):
    """It is held until `lapses_s` (epoch seconds) as a use of `held_for`; None: nothing is held.

    `settled_by`: what the settlement said, by which a repeat is recognised.
    """

    record: Reservation
    lapses_s: int
    held_for: Dimensions | None = None
    settled_by: str | None = None


class StoredPolicy(msgspec.Struct, frozen=True, tag_field="schema", tag="budget-policy/1"):
    record: Policy


class Account(msgspec.Struct, tag_field="schema", tag="budget-account/1"):
    """What counts against one limit. Changed in place by the one who will write it.

    `spent` is of the period that began at `starts_s`; `soft_told`: that the soft limit was passed in this
    period was told.
    """

    starts_s: int
    spent: Decimal = ZERO
    soft_told: bool = False


class Holds(msgspec.Struct):
    """What is held for uses that no limit tells apart, by the second at which it lapses.

    Changed in place by the one who will write it. `use` names only what limits may name.
    """

    use: Dimensions
    held: dict[int, Decimal] = {}


class Head(msgspec.Struct, tag_field="schema", tag="budget-head/2"):
    """What every change replaces, under the version that was read; so changes are one after another.

    `policy`: the version of the policy's document. `ledger_id` makes the ids of entries this ledger's own.
    `currency` is the policy's or the first use's, and once something was used or reserved it stays.
    `messages`: how many the spine was told, or will be. `holds`: what is reserved, of each use once.
    """

    ledger_id: str
    commits: int = 0
    position: int = 0
    messages: int = 0
    at_ms: int = 0
    currency: str | None = None
    is_used: bool = False
    policy: str | None = None
    accounts: dict[str, Account] = {}
    holds: list[Holds] = []
    turn: Turn | None = None


class HeadV1(msgspec.Struct, tag_field="schema", tag="budget-head/1"):
    """As it was when each account held for itself; what those held counts no more."""

    ledger_id: str
    commits: int = 0
    position: int = 0
    messages: int = 0
    at_ms: int = 0
    currency: str | None = None
    is_used: bool = False
    policy: str | None = None
    accounts: dict[str, Account] = {}
    turn: Turn | None = None


class Sums(msgspec.Struct, frozen=True, tag_field="schema", tag="budget-sums/1"):
    """Exact sums over entries."""

    cost: Decimal = ZERO
    units: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    entries: int = 0

    def plus(self, other: Sums) -> Sums:
        return Sums(
            total(self.cost, other.cost),
            self.units + other.units,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.entries + other.entries,
        )

    def minus(self, other: Sums) -> Sums:
        return Sums(
            difference(self.cost, other.cost),
            self.units - other.units,
            self.tokens_in - other.tokens_in,
            self.tokens_out - other.tokens_out,
            self.entries - other.entries,
        )

    def measures(self) -> Measures:
        return Measures(plain(self.cost), self.units, self.tokens_in, self.tokens_out)


class Cell(msgspec.Struct, frozen=True, tag_field="schema", tag="budget-cell/1"):
    """The totals of one day's entries with the same dimensions, up to and with position `through`."""

    day: str
    use: Dimensions
    sums: Sums
    through: int


class Corrected(msgspec.Struct, frozen=True, tag_field="schema", tag="budget-corrected/1"):
    """What an entry counts as since its last correction, which is `usage_id`."""

    sums: Sums
    usage_id: str


USAGE: Final = Codec(StoredUsage)
RESERVATION: Final = Codec(StoredReservation)
POLICY: Final = Codec(StoredPolicy)
HEAD: Final = Codec(Head, {HeadV1: lambda head: Head(**msgspec.structs.asdict(head))})
CELL: Final = Codec(Cell)
CORRECTED: Final = Codec(Corrected)


def usage_key(position: int) -> str:
    return join("u", f"{position:016d}")


def corrected_key(position: int) -> str:
    return join("x", f"{position:016d}")


def reservation_key(reservation_id: str) -> str:
    return join("r", reservation_id)


def cell_key(day: str, use: Dimensions) -> str:
    digest = hashlib.sha256(canonical_json(use).encode()).hexdigest()
    return join("t", day, digest[:32])


def sums_of(entry: UsageEntry) -> Sums:
    """What an entry adds to every total."""
    adds = entry.adds
    return Sums(Decimal(adds.cost), adds.units, adds.tokens_in, adds.tokens_out, entries=1)


def use_of(record: UsageEntry | Reservation) -> Dimensions:
    return Dimensions(
        record.provider,
        record.model,
        record.tool,
        record.project_id,
        record.surface_id,
        record.app_id,
    )


def day_of(at_ms: int) -> str:
    """The UTC day of an instant, as `2026-11-21`."""
    return timestamp(at_ms / 1000)[:10]
