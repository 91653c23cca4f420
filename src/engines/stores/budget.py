"""Budgets: what was used and what may be, of a tenant and env.

Owns who may do what, and finding the place. The rules stand where they are kept: amounts in
`stores/budget_amounts.py`, limits and prices in `budget_policy.py`, counting against limits in
`budget_accounts.py`, entries in `budget_usage.py`, reservations in `budget_reservations.py`, totals in
`budget_totals.py`, what gates ask in `budget_room.py`, group commit in `budget_book.py`.

Why the ledger is documents beside its totals, and no `core/log.py`: an entry, the totals that it changes, the
account of each limit, the end of its reservation, the marker of its request and what the spine is to be told
are one atomic write, which only one partition can hold; so they agree whenever anybody looks, and a process
that is killed, or a reply that is lost, leaves all of them or none. A commit of a log stands in a partition
of its own. All of a tenant and env is one budget, because one reservation may touch limits of any scope; a
route for a project, app or surface leads to a budget of its own there, with a policy of its own.

What that costs: the budget of a tenant and env is changed by one atomic write after another. Group commit
packs some tens of changes into each; how many a second one partition takes is the backend's to say.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final, TypeVar

import msgspec

from engines import catalogue
from engines.clock import Clock
from engines.codec import encode_json
from engines.core.cursor import list_scope
from engines.core.idempotency import Request
from engines.core.listing import START, Listed, Window, list_records
from engines.core.place import Places
from engines.core.records import ANYTHING, Condition
from engines.core.slots import Slots
from engines.errors import ContextMismatch, NotFound
from engines.ids import Ids
from engines.ports.documents import Doc
from engines.scope import RequestContext, check_id, normalise_surface
from engines.stores.budget_amounts import checked
from engines.stores.budget_book import Books
from engines.stores.budget_changes import MANAGE, BudgetChange, PutPolicy, R, is_within
from engines.stores.budget_policy import Policy, PolicyInput, check_policy
from engines.stores.budget_records import (
    ANCHOR,
    POLICY,
    POLICY_KEY,
    RESERVATION,
    USAGE,
    Reservation,
    ReservationInput,
    SettlementInput,
    UsageEntry,
    UsageInput,
    reservation_key,
)
from engines.stores.budget_reservations import (
    Release,
    Reserve,
    Settle,
    holds,
    no_such_reservation,
    oldest_key,
)
from engines.stores.budget_room import BudgetCheck, room_in, weight_of
from engines.stores.budget_sheet import Announcements
from engines.stores.budget_summary import Summary, SummaryQuery, check_query, summarise
from engines.stores.budget_totals import Standing, read_standing
from engines.stores.budget_usage import RecordUsage
from engines.stores.fresh import Fresh
from engines.stores.scoped import B, Change, check_body, with_etag

F = TypeVar("F", "UsageFilter", "ReservationFilter")

# A verification reads the whole ledger.
VERIFYING_TENANT_MAX: Final = 1
VERIFYING_MAX: Final = 4
VERIFYING_RETRY_S: Final = 5.0
# What gates judge by is never older than this.
AGE_MAX_S: Final = 1.0
STANDINGS_KEPT_MAX: Final = 1_000
KEPT_BYTES_MAX: Final = 32 * 1024 * 1024


class UsageFilter(msgspec.Struct, frozen=True):
    """Which entries to list; None leaves a field open. A bound project is a filter as well."""

    provider: str | None = None
    model: str | None = None
    tool: str | None = None
    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    run_id: str | None = None
    reservation_id: str | None = None


class ReservationFilter(msgspec.Struct, frozen=True):
    """Which reservations to list; None leaves a field open. A bound project is a filter as well.

    `holding`: those alone that hold an amount now, so neither ended nor lapsed.
    """

    holding: bool = False
    user_id: str | None = None
    project_id: str | None = None


NO_FILTER: Final = UsageFilter()
EVERY_RESERVATION: Final = ReservationFilter()
EVERYTHING: Final = SummaryQuery()


class Budget:
    """The budget of whoever asks. Any number of concurrent calls on one event loop.

    Every method raises Forbidden (the role does not grant it), ContextMismatch, MissingRoute (without a route
    nothing is allowed), ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; changes also
    OutcomeUnknown and IdempotencyKeyReused.
    """

    def __init__(self, places: Places, announcements: Announcements, ids: Ids, clock: Clock) -> None:
        self._places = places
        self._ids = ids
        self._clock = clock
        self._books = Books(announcements, ids, clock)
        # By backend and partition.
        self._standings: Fresh[tuple[str, str], Standing] = Fresh(
            clock,
            age_max_s=AGE_MAX_S,
            entries_max=STANDINGS_KEPT_MAX,
            weight_max=KEPT_BYTES_MAX,
            weigh=weight_of,
        )
        self._verifying = Slots(
            "verifications",
            tenant_max=VERIFYING_TENANT_MAX,
            process_max=VERIFYING_MAX,
            retry_after_s=VERIFYING_RETRY_S,
        )

    async def record(
        self, context: RequestContext, usage: UsageInput, *, request: Request | None = None
    ) -> Change[UsageEntry]:
        """Append an entry to the ledger: a use, or with `corrects` what an entry should have said.

        A correction may lower what was spent, so it is for those who set the limits. Raises Invalid (an
        amount, a currency, a time, no price in force), NotFound (`corrects`).
        """
        context.require_data("budget.write")
        if usage.corrects is not None:
            context.require(MANAGE)
        return await self._change(RecordUsage(context, _checked(context, usage), request))

    async def usage(
        self, context: RequestContext, where: UsageFilter = NO_FILTER, *, window: Window = START
    ) -> Listed[UsageEntry]:
        """The ledger by position. A filtered page may be short or empty and have more behind it.

        Raises Invalid (a limit, a cursor or a filter), ContextMismatch (another project than the bound one).
        """
        context.require_data("budget.read")
        where = msgspec.structs.replace(
            _bound(context, where),
            surface_id=None if where.surface_id is None else normalise_surface(where.surface_id),
        )
        place = await self._places.place(catalogue.BUDGET, context)
        cursors = list_scope(catalogue.BUDGET, context.tenant_id, context.env, "usage")

        def shown(doc: Doc) -> UsageEntry | None:
            entry = with_etag(USAGE.decode(doc.body).record, doc.version)
            if not _matches(entry, where):
                return None
            msgspec.structs.force_setattr(entry, "cursor", cursors.of_key("u!", doc.key))
            return entry

        return await list_records(
            place.documents,
            await place.partition(ANCHOR),
            ("u",),
            shown,
            cursors=cursors,
            window=window,
            selective=where != NO_FILTER,
        )

    async def reserve(
        self, context: RequestContext, reservation: ReservationInput, *, request: Request | None = None
    ) -> Change[Reservation]:
        """Hold an amount in every hard limit in force that counts it, or in none.

        Raises Invalid; and with `reason_code: hard_limit` Throttled where it may fit after `retry_after_s`,
        Conflict where waiting does not help.
        """
        context.require_data("budget.write")
        reservation = _checked(context, reservation)
        reservation_id = self._ids.record_id()
        return await self._change(Reserve(context, reservation, request, reservation_id=reservation_id))

    async def reservation(self, context: RequestContext, reservation_id: str) -> Reservation:
        """One read. Raises Invalid, NotFound, also for one that is no longer kept."""
        context.require_data("budget.read")
        key = reservation_key(check_id(reservation_id, "reservation_id"))
        place = await self._places.place(catalogue.BUDGET, context)
        doc = await place.documents.get(await place.partition(ANCHOR), key)
        shown = None if doc is None else _reservation(doc)
        if shown is None or not is_within(context, shown):
            raise no_such_reservation()
        return shown

    async def reservations(
        self,
        context: RequestContext,
        where: ReservationFilter = EVERY_RESERVATION,
        *,
        window: Window = START,
    ) -> Listed[Reservation]:
        """Everybody's, the oldest first. A filtered page may be short or empty and have more behind it.

        Raises Invalid (a limit, a cursor or a filter), ContextMismatch (another project than the bound one).
        """
        context.require_data("budget.read")
        where = _bound(context, where)
        place = await self._places.place(catalogue.BUDGET, context)
        now_s = self._clock.now()

        def shown(doc: Doc) -> Reservation | None:
            stored = RESERVATION.decode(doc.body)
            is_wanted = (
                where.user_id in (None, stored.record.user_id)
                and where.project_id in (None, stored.record.project_id)
                and (not where.holding or holds(stored, now_s))
            )
            return with_etag(stored.record, doc.version) if is_wanted else None

        return await list_records(
            place.documents,
            await place.partition(ANCHOR),
            ("r",),
            shown,
            cursors=list_scope(catalogue.BUDGET, context.tenant_id, context.env, "reservations"),
            window=window,
            selective=where != EVERY_RESERVATION,
            first=oldest_key(now_s) if where.holding else None,
        )

    async def settle(
        self,
        context: RequestContext,
        reservation_id: str,
        settlement: SettlementInput,
        *,
        request: Request | None = None,
    ) -> Change[Reservation]:
        """Record what was used and give back what was held. The same again is answered as the first.

        Raises Forbidden also where another user reserved it, unless the caller sets the limits; Invalid,
        NotFound, Conflict (settled for something else, or released).
        """
        context.require_data("budget.write")
        settlement = _checked(context, settlement)
        return await self._change(Settle(context, reservation_id, settlement, request))

    async def release(
        self, context: RequestContext, reservation_id: str, *, request: Request | None = None
    ) -> Change[Reservation]:
        """Give back what was held; nothing was used.

        Raises Forbidden as `settle` does, Invalid, NotFound, Conflict (it was settled).
        """
        context.require_data("budget.write")
        return await self._change(Release(context, reservation_id, request))

    async def policy(self, context: RequestContext) -> Policy:
        """One read. Raises NotFound."""
        context.require_data("budget.read")
        place = await self._places.place(catalogue.BUDGET, context)
        doc = await place.documents.get(await place.partition(ANCHOR), POLICY_KEY)
        if doc is None:
            raise NotFound("this budget has no policy: nothing is limited, and nothing has a price")
        return with_etag(POLICY.decode(doc.body).record, doc.version)

    async def put_policy(
        self,
        context: RequestContext,
        policy: PolicyInput,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[Policy]:
        """Replace the policy. It holds from the next reservation on, in every process.

        Raises Invalid, PreconditionFailed, TooLarge.
        """
        context.require_data(MANAGE)
        policy = check_policy(_checked(context, policy))
        return await self._change(PutPolicy(context, policy, condition, request))

    async def summary(self, context: RequestContext, query: SummaryQuery = EVERYTHING) -> Summary:
        """Totals by dimension and day, and how the limits stand.

        With `verify` the ledger is added up anew and compared. Raises Invalid, TooLarge.
        """
        context.require_data("budget.read")
        query = check_query(query)
        if not query.verify:
            return await self._summary(context, query)
        context.require_data("budget.verify")
        with self._verifying.hold(context.tenant_id):
            return await self._summary(context, query)

    async def check(
        self,
        context: RequestContext,
        amount: Decimal,
        *,
        currency: str | None = None,
        provider: str | None = None,
    ) -> BudgetCheck:
        """Whether `amount` would fit into every hard limit now, for gates: one read, nothing is held.

        No permission is asked for: it is the server's own question. Raises Invalid.
        """
        checked(amount, "amount")
        place = await self._places.place(catalogue.BUDGET, context)
        standing = await read_standing(place.documents, await place.partition(ANCHOR))
        now_s = self._clock.now()
        return room_in(standing, context, amount, currency=currency, provider=provider, now_s=now_s)

    async def recent_check(
        self,
        context: RequestContext,
        amount: Decimal,
        *,
        currency: str | None = None,
        provider: str | None = None,
    ) -> BudgetCheck:
        """The same by what was used and held at most a second ago, without a read if that is known."""
        checked(amount, "amount")
        place = await self._places.place(catalogue.BUDGET, context)
        partition = await place.partition(ANCHOR)

        async def read(_: Standing | None) -> Standing:
            return await read_standing(place.documents, partition)

        standing = await self._standings.get((place.backend_id, partition), read)
        now_s = self._clock.now()
        return room_in(standing, context, amount, currency=currency, provider=provider, now_s=now_s)

    async def close(self) -> None:
        """Take nothing more and finish what waits, end the reads under way."""
        await self._standings.close()
        await self._books.close()

    async def _change(self, change: BudgetChange[R]) -> Change[R]:
        async with self._places.changing(catalogue.BUDGET, change.context) as place:
            outcome = await self._books.submit(change, place)
        return change.shown(outcome)

    async def _summary(self, context: RequestContext, query: SummaryQuery) -> Summary:
        place = await self._places.place(catalogue.BUDGET, context)
        partition = await place.partition(ANCHOR)
        return await summarise(place.documents, partition, context, query, now_s=self._clock.now())


def _checked(context: RequestContext, body: B) -> B:
    """As `check_body`, and it can be written: nothing that cannot gets as far as those who share a commit."""
    body = check_body(context, body)
    encode_json(body)
    return body


def _bound(context: RequestContext, where: F) -> F:
    """With the bound project as a filter. Raises Invalid, ContextMismatch."""
    for name in ("app_id", "project_id", "run_id", "reservation_id", "user_id"):
        if (value := getattr(where, name, None)) is not None:
            check_id(value, name)
    project_id = where.project_id or context.project_id
    if context.project_id not in (None, project_id):
        raise ContextMismatch("another project is bound to this request", field="project_id")
    return msgspec.structs.replace(where, project_id=project_id)


def _reservation(doc: Doc) -> Reservation:
    return with_etag(RESERVATION.decode(doc.body).record, doc.version)


def _matches(entry: UsageEntry, where: UsageFilter) -> bool:
    return all(
        wanted is None or wanted == getattr(entry, name)
        for name, wanted in msgspec.structs.asdict(where).items()
    )
