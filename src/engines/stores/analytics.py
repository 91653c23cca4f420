"""Analytics: events taken in item by item, found again, and links tagged for attribution.

Owns taking events in, what a repeated request gets, and the lists. The events themselves are events of the
spine, of type `analytics`; what lies in `analytics_store` is their index by session, type, platform and
surface, which follows the spine (`stores/event_index.py`), and the plans of requests that carry an
Idempotency-Key. So nothing is kept twice, and a list knows every event that was acknowledged, indexed or not.
Leaves the fields of an event to `stores/analytics_events.py`, what a plan is to `stores/analytics_plans.py`,
contracts and links to `stores/attribution.py`.

What becomes of a request:

1. Each event is judged on its own: its fields, then the attribution contract in force for its platform. One
   that breaks a rule is refused, and its neighbours are not. Where no contract is in force there is nothing
   to validate against: the event is taken in, and shows no `contract`. An identity that is not the caller's
   refuses the whole request, as everywhere.
2. The gates are asked once about all that are left: what they judge by, the caller and the action, is the
   same for each. Whatever they say, and if they fail or take too long, the events are kept, with what they
   said.
3. What was decided is written down first where the request has an Idempotency-Key: a repeat is then judged as
   it was at first, though a contract has changed meanwhile, and appended in the same parts.
4. The events are appended in parts, each of them whole or not at all: a request to the log takes no more than
   500 events and 256 KiB. An event with an id of its own is a part of its own, so that one known with other
   contents is no other's concern. If a part fails, its events say so in their own results and the others
   stand; the same request under its key appends what is missing and nothing twice, while the log knows its
   parts (24 hours, or a segment's size of further events).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from engines import catalogue
from engines.clock import Clock
from engines.core.idempotency import KEPT_S, Request
from engines.core.listing import START, Listed, Window
from engines.core.log import Entry
from engines.core.place import Places
from engines.errors import (
    Conflict,
    EnginesError,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    OutcomeUnknown,
    TooLarge,
)
from engines.ports.documents import ABSENT, Put
from engines.scope import RequestContext
from engines.stores.analytics_events import (
    VIEWS,
    AnalyticsEvent,
    AnalyticsFilter,
    DecodedEvent,
    EventEntries,
    EventGate,
    GateStatus,
    NewAnalyticsEvent,
    check_size,
    checked_event,
    checked_filter,
    shown,
)
from engines.stores.analytics_plans import (
    PLAN,
    STORED,
    Ingested,
    IngestedEvent,
    ItemProblem,
    Plan,
    part_request,
    parts_of,
    refusal_of,
    results_of,
    standing_plan,
)
from engines.stores.attribution import (
    ContractInForce,
    Contracts,
    FieldRules,
    LinkToTag,
    TaggedLink,
    tagged,
)
from engines.stores.events import AppendedEvents, EventSpine, IndexStatus, Part

__all__ = [
    "Analytics",
    "AnalyticsEvent",
    "AnalyticsFilter",
    "DecodedEvent",
    "EventGate",
    "GateStatus",
    "Ingested",
    "IngestedEvent",
    "ItemProblem",
    "LinkToTag",
    "NewAnalyticsEvent",
    "TaggedLink",
]

EVENTS_MAX: Final = 1_000
PLATFORMS_MAX: Final = 20
# The gates have a limit of their own, below this one: they are to say themselves which of them was late.
GATES_TIMEOUT_S: Final = 5.0
# From here up a status says that the backend could not, not that the event may not.
HTTP_THROTTLED: Final = 429

NO_FILTER: Final = AnalyticsFilter()


Judged = Sequence[NewAnalyticsEvent | EnginesError]


class Analytics:
    """The analytics of a tenant and env. Any number of concurrent calls on one event loop.

    Every method raises Forbidden (the role does not grant it), ContextMismatch, MissingRoute,
    ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; ingest also OutcomeUnknown.
    """

    def __init__(
        self,
        places: Places,
        spine: EventSpine,
        contracts: Contracts,
        clock: Clock,
        *,
        gate: EventGate | None = None,
    ) -> None:
        """`projector` is to be run beside requests; without it lists look through the spine.

        `gate`: None where no gates are to be asked.
        """
        self._places = places
        self._spine = spine
        self._contracts = contracts
        self._clock = clock
        self._gate = gate
        self._index = spine.index_in(catalogue.ANALYTICS, VIEWS)
        self.projector = self._index.projector

    async def ingest(
        self,
        context: RequestContext,
        events: Sequence[NewAnalyticsEvent | EnginesError],
        *,
        request: Request | None = None,
    ) -> Ingested:
        """Take in 1 to 1,000 events, each on its own. One that is an error already is refused with that.

        Raises Invalid and TooLarge for the number of events, IdempotencyKeyReused; and where nothing could be
        appended, the backend's own error rather than a list of it.
        """
        context.require_data("analytics.write")
        return await self._ingest(context, events, request)

    async def ingest_beacon(
        self, context: RequestContext, events: Sequence[NewAnalyticsEvent | EnginesError]
    ) -> Ingested:
        """The same for a page that holds a publishable credential, which may do this and nothing else.

        Raises Forbidden for any other credential: it would not belong into a page.
        """
        context.require_data("analytics.beacon")
        if context.permissions != {"analytics.beacon"}:
            raise Forbidden("a credential that may do more than send beacons does not belong into a page")
        return await self._ingest(context, events, None)

    async def list(
        self, context: RequestContext, where: AnalyticsFilter = NO_FILTER, *, window: Window = START
    ) -> Listed[AnalyticsEvent]:
        """Events by position. A filtered page may be short or empty and have more behind it.

        Raises Invalid (a limit, a filter, a cursor of another list or past the end).
        """
        context.require_data("analytics.read")
        checked = checked_filter(where)
        return await self._spine.search(context, checked, shown, index=self._index, window=window)

    async def tag_link(self, context: RequestContext, link: LinkToTag) -> TaggedLink:
        """The link with the parameters that the platform's contract says. Nothing is written.

        Raises Invalid: no contract in force, a host that it does not allow, what is no safe URL, a value.
        """
        context.require_data("analytics.read")
        contract = await self._contracts.contract_in_force(context, link.platform)
        if contract is None:
            raise Invalid("no attribution contract is in force for this platform", field="platform")
        return tagged(link, contract)

    async def index_status(self, context: RequestContext) -> IndexStatus:
        """How far the index has come on the spine."""
        context.require_data("analytics.read")
        return await self._index.status(context)

    async def rebuild_index(self, context: RequestContext) -> IndexStatus:
        """Make the index anew, beside requests; until then lists look through the spine.

        Raises Conflict where it was just being written: call again.
        """
        context.require_data("events.verify")
        return await self._index.restart(context)

    # --- taking in ---

    async def _ingest(
        self,
        context: RequestContext,
        events: Sequence[NewAnalyticsEvent | EnginesError],
        request: Request | None,
    ) -> Ingested:
        _check_count(events)
        place = await self._places.place(catalogue.ANALYTICS, context)
        plan = None if request is None else await standing_plan(place, request)
        judged = [_checked(context, event, index) for index, event in enumerate(events)]
        replayed = plan is not None
        entries: Sequence[Entry] | None = None
        if plan is None:
            plan, entries = await self._plan(context, judged, request)
            if request is not None and entries:
                plan, replayed = await self._write_down(context, plan, request)
        if entries is None or replayed:
            entries = _entries(context, judged, plan)
        results = await self._append(context, entries, plan, request) if entries else iter(())
        told = tuple(plan.refused.get(index) or next(results) for index in range(len(events)))
        stored = sum(result.status == STORED for result in told)
        return Ingested(events=told, accepted=stored, refused=len(events) - stored, replayed=replayed)

    async def _plan(
        self, context: RequestContext, judged: Judged, request: Request | None
    ) -> tuple[Plan, Sequence[Entry]]:
        contracts = await self._contracts_of(context, judged)
        rules = {
            name: None if found is None else FieldRules(found.terms) for name, found in contracts.items()
        }
        accepted: dict[int, NewAnalyticsEvent] = {}
        refused: dict[int, IngestedEvent] = {}
        for index, event in enumerate(judged):
            try:
                accepted[index] = _by_contract(event, rules)
            except EnginesError as error:
                refused[index] = refusal_of(error)
        gates = await self._ask_gates(context, len(accepted), request) if accepted else None
        references = {name: found.ref for name, found in contracts.items() if found is not None}
        entries: list[Entry] = []
        made = EventEntries(context)
        for index, event in accepted.items():
            try:
                entry = made.entry(event, references.get(event.platform or ""), gates)
                check_size(entry)
            except EnginesError as error:
                refused[index] = refusal_of(error)
            else:
                entries.append(entry)
        plan = Plan(
            request="" if request is None else request.digest,
            refused=refused,
            gates=gates,
            contracts=references,
            parts=list(parts_of(entries)),
        )
        return plan, entries

    async def _contracts_of(
        self, context: RequestContext, judged: Judged
    ) -> dict[str, ContractInForce | None]:
        platforms = dict.fromkeys(
            event.platform for event in judged if isinstance(event, NewAnalyticsEvent) and event.platform
        )
        asked = list(platforms)[:PLATFORMS_MAX]
        found = await asyncio.gather(*(self._contracts.contract_in_force(context, name) for name in asked))
        return dict(zip(asked, found, strict=True))

    async def _ask_gates(
        self, context: RequestContext, count: int, request: Request | None
    ) -> GateStatus | None:
        if self._gate is None:
            return None
        try:
            async with asyncio.timeout(GATES_TIMEOUT_S):
                return await self._gate.judge(context, count=count, request=request)
        except IdempotencyKeyReused:  # Another request's decision stands under the key: no verdict on this.
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, the events are kept and say so)
            return GateStatus(status="error", error=type(error).__name__)

    async def _write_down(self, context: RequestContext, plan: Plan, request: Request) -> tuple[Plan, bool]:
        """Keep the plan, or learn the one that an identical request has just kept; whether it did."""
        async with self._places.changing(catalogue.ANALYTICS, context) as place:
            put = Put(request.key, PLAN.encode(plan), ABSENT, expires_at=int(self._clock.now()) + KEPT_S)
            try:
                await place.documents.write(await place.partition(request.key), [put])
            except Conflict:
                standing = await standing_plan(place, request)
                if standing is None:
                    raise
                return standing, True
        return plan, False

    async def _append(
        self, context: RequestContext, entries: Sequence[Entry], plan: Plan, request: Request | None
    ) -> Iterator[IngestedEvent]:
        """What became of each event that the plan does not refuse, in order."""
        parts: list[Part] = []
        start = 0
        for number, count in enumerate(plan.parts):
            parts.append(Part(entries[start : start + count], part_request(request, number)))
            start += count
        outcomes = await self._spine.append_parts(context, parts)
        self._notice(context, outcomes)
        return itertools.chain.from_iterable(
            map(results_of, outcomes, plan.parts, itertools.repeat(plan.gates))
        )

    def _notice(self, context: RequestContext, outcomes: Sequence[AppendedEvents | EnginesError]) -> None:
        """The index may have a block to project. Raises where nothing at all could be appended."""
        positions = [
            event.position
            for outcome in outcomes
            if isinstance(outcome, AppendedEvents)
            for event in outcome.events
        ]
        if positions:
            self._index.appended(context, min(positions), max(positions))
            return
        errors = [outcome for outcome in outcomes if isinstance(outcome, EnginesError)]
        failures = [error for error in errors if error.status >= HTTP_THROTTLED]
        if failures:
            raise next((error for error in failures if isinstance(error, OutcomeUnknown)), failures[0])


def _check_count(events: Sequence[object]) -> None:
    if not events:
        raise Invalid("a request has at least one event", field="events")
    if len(events) > EVENTS_MAX:
        raise TooLarge(f"one request takes in at most {EVENTS_MAX} events", field="events")


def _checked(
    context: RequestContext, event: NewAnalyticsEvent | EnginesError, index: int
) -> NewAnalyticsEvent | EnginesError:
    """Raises ContextMismatch, which is never one event's matter alone."""
    if isinstance(event, EnginesError):
        return event
    try:
        return checked_event(context, event)
    except Invalid as refusal:
        return refusal
    except Forbidden as mismatch:
        mismatch.field = f"events[{index}].{mismatch.field}"
        raise


def _by_contract(
    event: NewAnalyticsEvent | EnginesError, rules: Mapping[str, FieldRules | None]
) -> NewAnalyticsEvent:
    if isinstance(event, EnginesError):
        raise event
    if event.platform is None:
        return event
    if event.platform not in rules:
        raise Invalid(f"one request names at most {PLATFORMS_MAX} platforms", field="platform")
    if (own := rules[event.platform]) is not None:
        own.check(event, event.payload)
    return event


def _entries(context: RequestContext, judged: Judged, plan: Plan) -> list[Entry]:
    """What the plan takes in of the same request, come again. Raises what refuses an event by now."""
    made = EventEntries(context)
    entries: list[Entry] = []
    for index, event in enumerate(judged):
        if index in plan.refused:
            continue
        if isinstance(event, EnginesError):
            raise event
        contract = plan.contracts.get(event.platform or "")
        entries.append(made.entry(event, contract, plan.gates))
    return entries
