"""Budgets over HTTP: the ledger, the policy, the summary and reservations."""

from __future__ import annotations

import msgspec

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import json_reply, record_reply
from engines.api.views import ListQuery, Page, page_reply
from engines.stores.budget import ReservationFilter, UsageFilter
from engines.stores.budget_policy import Name, Policy, PolicyInput
from engines.stores.budget_records import (
    Reservation,
    ReservationInput,
    SettlementInput,
    UsageEntry,
    UsageInput,
)
from engines.stores.budget_summary import Day, Dimension, Summary, SummaryQuery

router = Router("budget")
RESERVATION = "/budget/reservations/{reservation_id}"


class UsageQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the ledger, and what to leave out of it."""

    provider: Name | None = None
    model: Name | None = None
    tool: Name | None = None
    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    run_id: str | None = None
    reservation_id: str | None = None

    def where(self) -> UsageFilter:
        return UsageFilter(
            provider=self.provider,
            model=self.model,
            tool=self.tool,
            surface_id=self.surface_id,
            app_id=self.app_id,
            project_id=self.project_id,
            run_id=self.run_id,
            reservation_id=self.reservation_id,
        )


class ReservationsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the reservations; `holding=true`: those alone that hold an amount now."""

    holding: bool = False
    user_id: str | None = None
    project_id: str | None = None

    def where(self) -> ReservationFilter:
        return ReservationFilter(self.holding, self.user_id, self.project_id)


class BudgetSummaryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """UTC days since <= day < until; one dimension, or each; whether to add the ledger up anew."""

    since: Day | None = None
    until: Day | None = None
    by: Dimension | None = None
    verify: bool = False


@router.post("/budget/usage", body=UsageInput, reply=UsageEntry, statuses=(201,), has_etag=True)
async def record_usage(call: Call) -> Sendable:
    """Append an entry to the ledger: a use, or what an earlier entry should have said.

    It is recorded though it passes a limit: `over_limits` says which. Without a `cost` the price in force at
    `occurred_at` says it. What an earlier entry should have said needs budget.policy.
    """
    context = await call.context()
    usage = await call.body(UsageInput)
    change = await call.engines.budget.record(context, usage, request=call.request(context))
    return record_reply(change.record, change.etag, created=True, replayed=change.replayed)


@router.get("/budget/usage", query=UsageQuery, reply=Page[UsageEntry])
async def list_usage(call: Call) -> Sendable:
    """The ledger, by position. Each entry has a `cursor`, which `after` takes."""
    query = call.query(UsageQuery)
    listed = await call.engines.budget.usage(await call.context(), query.where(), window=query.window())
    return page_reply(listed)


@router.get("/budget/policy", reply=Policy, statuses=(200, 404), has_etag=True)
async def get_budget_policy(call: Call) -> Sendable:
    """The currency, the limits and the prices."""
    policy = await call.engines.budget.policy(await call.context())
    return record_reply(policy, policy.etag)


@router.put("/budget/policy", body=PolicyInput, reply=Policy, has_etag=True)
async def put_budget_policy(call: Call) -> Sendable:
    """Replace the policy. A limit that comes counts what its period spent and what is held."""
    context = await call.context()
    policy = await call.body(PolicyInput)
    change = await call.engines.budget.put_policy(
        context, policy, condition=call.condition(), request=call.request(context)
    )
    return record_reply(change.record, change.etag, created=change.created, replayed=change.replayed)


@router.get("/budget/summary", query=BudgetSummaryQuery, reply=Summary)
async def get_budget_summary(call: Call) -> Sendable:
    """What was used, by dimension and day, and how the limits stand.

    With `verify=true`, for those who may, the whole ledger is added up anew and compared.
    """
    query = call.query(BudgetSummaryQuery)
    asked = SummaryQuery(since=query.since, until=query.until, by=query.by, verify=query.verify)
    return json_reply(await call.engines.budget.summary(await call.context(), asked))


@router.post("/budget/reservations", body=ReservationInput, reply=Reservation, statuses=(201,), has_etag=True)
async def reserve_budget(call: Call) -> Sendable:
    """Hold an amount in every hard limit that applies, or in none.

    Where it does not fit: 429 with `Retry-After` where it may fit later, 409 where waiting does not help;
    both with `reason_code: hard_limit` and the limit in `scope`.
    """
    context = await call.context()
    reservation = await call.body(ReservationInput)
    change = await call.engines.budget.reserve(context, reservation, request=call.request(context))
    return record_reply(change.record, change.etag, created=True, replayed=change.replayed)


@router.get("/budget/reservations", query=ReservationsQuery, reply=Page[Reservation])
async def list_reservations(call: Call) -> Sendable:
    """Everybody's reservations, the oldest first, until seven days after they lapse or would have."""
    query = call.query(ReservationsQuery)
    listed = await call.engines.budget.reservations(
        await call.context(), query.where(), window=query.window()
    )
    return page_reply(listed)


@router.get(RESERVATION, reply=Reservation, statuses=(200, 404), has_etag=True)
async def get_reservation(call: Call) -> Sendable:
    """A reservation as it stands. One that lapsed is still `held`, past its `expires_at`."""
    reservation = await call.engines.budget.reservation(await call.context(), call.id("reservation_id"))
    return record_reply(reservation, reservation.etag)


@router.post(f"{RESERVATION}/settle", body=SettlementInput, reply=Reservation, has_etag=True)
async def settle_reservation(call: Call) -> Sendable:
    """Record what was used in the end, and give back what was held. The same again changes nothing.

    It is for the user who reserved; another's reservation needs budget.policy.
    """
    context = await call.context()
    settlement = await call.body(SettlementInput)
    change = await call.engines.budget.settle(
        context, call.id("reservation_id"), settlement, request=call.request(context)
    )
    return record_reply(change.record, change.etag, replayed=change.replayed)


@router.post(f"{RESERVATION}/release", reply=Reservation, has_etag=True)
async def release_reservation(call: Call) -> Sendable:
    """Give back what was held: nothing was used. Again, it changes nothing.

    It is for the user who reserved; another's reservation needs budget.policy.
    """
    context = await call.context()
    change = await call.engines.budget.release(
        context, call.id("reservation_id"), request=call.request(context)
    )
    return record_reply(change.record, change.etag, replayed=change.replayed)
