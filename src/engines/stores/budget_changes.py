"""Changes of a budget: what each reads, and what it leaves on the sheet that is to be written.

Owns what all of them share, and replacing the policy. A change refuses before it has touched anything. Leaves
uses to `stores/budget_usage.py`, reservations to `stores/budget_reservations.py`, packing and writing to
`stores/budget_book.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from engines.clock import timestamp
from engines.codec import Codec, encode_json, escaped_bytes
from engines.core.documents import Documents
from engines.core.idempotency import Request
from engines.core.records import Condition
from engines.errors import Invalid, TooLarge
from engines.scope import RequestContext
from engines.stores.budget_policy import Policy, PolicyInput, account_key
from engines.stores.budget_records import (
    POLICY,
    POLICY_KEY,
    Reservation,
    StoredPolicy,
    UsageEntry,
)
from engines.stores.budget_sheet import Sheet
from engines.stores.budget_totals import Opening
from engines.stores.scoped import Change, Stamped, stamp, with_etag

POLICY_BYTES_MAX: Final = 100 * 1024
# Whoever sets the limits may take back what counts against them, and end what others hold.
MANAGE: Final = "budget.policy"
# How far a client's clock may be ahead.
AHEAD_MS_MAX: Final = 5 * 60 * 1000

R = TypeVar("R", bound=Stamped)


class Outcome(msgspec.Struct, frozen=True):
    """The stored record that answers. `version`: its ETag where it was not written by this commit."""

    body: str
    created: bool
    version: str
    replayed: bool = False


class BudgetChange(Generic[R]):
    """One change. `reads` are the keys that it needs, `reads_more` those that these name."""

    codec: Codec[Any]
    is_alone = False

    def __init__(self, context: RequestContext, request: Request | None) -> None:
        self.context = context
        self.request = request

    def reads(self) -> Sequence[str]:
        return () if self.request is None else (self.request.key,)

    def reads_more(self, sheet: Sheet) -> Sequence[str]:  # noqa: ARG002
        return ()

    async def prepare(self, sheet: Sheet, documents: Documents, partition: str) -> None:
        """Whatever else is to be read."""

    def ops_max(self, sheet: Sheet) -> int:
        """The most ops that it adds to a write, its marker among them."""
        raise NotImplementedError

    def apply(self, sheet: Sheet) -> Outcome:
        raise NotImplementedError

    def shown(self, outcome: Outcome) -> Change[R]:
        """The answer to whoever asked for it."""
        record: R = self.codec.decode(outcome.body).record
        return Change(with_etag(record, outcome.version), outcome.created, outcome.replayed)


def currency_of(sheet: Sheet, said: str | None) -> str:
    """The one currency of the budget. Raises Invalid where another one was said, or none is known yet."""
    own = sheet.head.currency
    if own is None and said is None:
        raise Invalid("this budget has no currency yet: say one", field="currency")
    if own is not None and said not in (None, own):
        raise Invalid(f"this budget is kept in {own}", field="currency")
    return own or said or ""


def checked_time(sheet: Sheet, occurred_ms: int | None) -> int:
    """When a use happened: now where nothing was said. Raises Invalid for what is yet to come."""
    if occurred_ms is None:
        return sheet.at_ms
    if occurred_ms > sheet.at_ms + AHEAD_MS_MAX:
        raise Invalid("what is recorded has happened", field="occurred_at")
    return occurred_ms


def is_within(context: RequestContext, record: UsageEntry | Reservation) -> bool:
    """Whether the record is of the bound project, where one is bound."""
    return context.project_id in (None, record.project_id)


def soft_limit_count(sheet: Sheet) -> int:
    return 0 if sheet.policy is None else sum(limit.soft is not None for limit in sheet.policy.limits)


class PutPolicy(BudgetChange[Policy]):
    """Replace the policy; limits that come count what was spent in their periods, and what is held."""

    codec = POLICY
    is_alone = True

    def __init__(
        self, context: RequestContext, policy: PolicyInput, condition: Condition, request: Request | None
    ) -> None:
        """`policy` was checked. Raises TooLarge."""
        super().__init__(context, request)
        self._input = policy
        self._condition = condition
        self._opening = Opening()
        if escaped_bytes(encode_json(policy)) > POLICY_BYTES_MAX:
            raise TooLarge(f"a policy holds at most {POLICY_BYTES_MAX} bytes")

    async def prepare(self, sheet: Sheet, documents: Documents, partition: str) -> None:
        limits = self._input.limits
        await self._opening.bring_to(documents, partition, sheet.head, limits, at_ms=sheet.at_ms)

    def ops_max(self, sheet: Sheet) -> int:  # noqa: ARG002
        return 3

    def apply(self, sheet: Sheet) -> Outcome:
        said, head = self._input, sheet.head
        self._condition.check(sheet.docs.get(POLICY_KEY))
        if head.is_used and head.currency != said.currency:
            raise Invalid(f"this budget is kept in {head.currency}", field="currency")
        now, former = timestamp(sheet.now_s), sheet.policy
        policy = Policy(
            **stamp(self.context),
            currency=said.currency,
            limits=said.limits,
            prices=said.prices,
            version=1 if former is None else former.version + 1,
            created_at=now if former is None else former.created_at,
            updated_at=now,
        )
        known = head.accounts | self._opening.accounts
        head.accounts = {key: known[key] for key in map(account_key, said.limits)}
        head.currency, head.policy = said.currency, sheet.write_id
        body = POLICY.encode(StoredPolicy(policy))
        sheet.put(POLICY_KEY, body)
        payload = {
            "kind": "policy",
            "version": policy.version,
            "currency": policy.currency,
            "limits": msgspec.to_builtins(policy.limits),
            "prices": msgspec.to_builtins(policy.prices),
        }
        sheet.tell(self.context, payload)
        return Outcome(body, former is None, sheet.write_id)
