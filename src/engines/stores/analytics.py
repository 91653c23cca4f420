"""Analytics: events taken in item by item, found again, and links tagged for attribution.

Owns taking events in, what a repeated request gets, and the lists. The events themselves are events of the
spine, of type `analytics`; what lies in `analytics_store` is their index by session, type, platform and
surface, which follows the spine (`stores/event_index.py`), and the plans of requests that carry an
Idempotency-Key. So nothing is kept twice, and a list knows every event that was acknowledged, indexed or not.
Leaves the fields of an event to `stores/analytics_events.py`, contracts and links to `stores/attribution.py`.

What becomes of a request:

1. Each event is judged on its own: its fields, then the attribution contract in force for its platform. One
   that breaks a rule is refused, and its neighbours are not. Where no contract is in force there is nothing
   to validate against: the event is taken in, and shows no `contract`. An identity that is not the caller's
   refuses the whole request, as everywhere.
2. The gates are asked about each. Whatever they say, and if they fail or take too long, the event is kept,
   with what they said.
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
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from engines import catalogue
from engines.clock import Clock
from engines.codec import Codec
from engines.core.idempotency import KEPT_S, Request
from engines.core.keys import join
from engines.core.listing import START, Listed, Window
from engines.core.log import Entry
from engines.core.place import Place, Places
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
    GateVerdict,
    NewAnalyticsEvent,
    check_size,
    checked_event,
    checked_filter,
    shown,
)
from engines.stores.attribution import (
    ContractInForce,
    ContractRef,
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
# A part fits into one request to the log however long the ids are that the context adds to each event.
PART_EVENTS_MAX: Final = 250
PART_BYTES_MAX: Final = 160 * 1024
# A thousand refusals of this size fit into one document, the plan.
FIELD_CHARS_MAX: Final = 80
DETAIL_CHARS_MAX: Final = 200
GATES_AT_ONCE: Final = 32
GATE_TIMEOUT_S: Final = 2.0
STORED: Final = 201
# From here up a status says that the backend could not, not that the event may not.
HTTP_THROTTLED: Final = 429

NO_FILTER: Final = AnalyticsFilter()


class ItemProblem(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Why one event was not taken in: the members of a problem document that are the event's own."""

    code: str
    detail: str
    field: str | None = None


class IngestedEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What became of one event. `status` is 201 where it stands on the spine, else its problem's."""

    status: int
    event_id: str | None = None
    position: int | None = None
    cursor: str | None = None
    gate_status: GateVerdict | None = None
    problem: ItemProblem | None = None


class Ingested(msgspec.Struct, frozen=True, kw_only=True):
    """The results in the order of the request. `replayed`: an identical request was taken in before."""

    events: tuple[IngestedEvent, ...]
    accepted: int
    refused: int
    replayed: bool = False


class _Plan(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="analytics_plan/1", omit_defaults=True
):
    """What was decided about a request before anything of it was appended.

    `request` is its digest. `refused` and `gates` go by an event's place in the request; `parts` says how
    many of the events that were not refused make each part, in order.
    """

    request: str
    refused: dict[int, IngestedEvent] = {}
    gates: dict[int, GateStatus] = {}
    contracts: dict[str, ContractRef] = {}
    parts: list[int] = []


_PLAN: Final = Codec(_Plan)
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
        """`projector` is to be run beside requests; without it lists look through the spine."""
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
        plan = None if request is None else await _standing_plan(place, request)
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
    ) -> tuple[_Plan, Sequence[Entry]]:
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
                refused[index] = _refusal(error)
        gates = await self._ask_gates(context, accepted)
        references = {name: found.ref for name, found in contracts.items() if found is not None}
        entries: list[Entry] = []
        made = EventEntries(context)
        for index, event in accepted.items():
            try:
                entry = made.entry(event, references.get(event.platform or ""), gates.get(index))
                check_size(entry)
            except EnginesError as error:
                refused[index] = _refusal(error)
            else:
                entries.append(entry)
        plan = _Plan(
            request="" if request is None else request.digest,
            refused=refused,
            gates=gates,
            contracts=references,
            parts=list(_parts(entries)),
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
        self, context: RequestContext, events: Mapping[int, NewAnalyticsEvent]
    ) -> dict[int, GateStatus]:
        gate = self._gate
        if gate is None:
            return {}
        at_once = asyncio.Semaphore(GATES_AT_ONCE)

        async def ask(event: NewAnalyticsEvent) -> GateStatus | None:
            try:
                async with at_once, asyncio.timeout(GATE_TIMEOUT_S):
                    return await gate.judge(context, event)
            except Exception as error:  # noqa: BLE001 (whatever it is, the event is kept and says so)
                return GateStatus(status="error", error=type(error).__name__)

        said = await asyncio.gather(*map(ask, events.values()))
        return {index: status for index, status in zip(events, said, strict=True) if status is not None}

    async def _write_down(self, context: RequestContext, plan: _Plan, request: Request) -> tuple[_Plan, bool]:
        """Keep the plan, or learn the one that an identical request has just kept; whether it did."""
        async with self._places.changing(catalogue.ANALYTICS, context) as place:
            put = Put(request.key, _PLAN.encode(plan), ABSENT, expires_at=int(self._clock.now()) + KEPT_S)
            try:
                await place.documents.write(await place.partition(request.key), [put])
            except Conflict:
                standing = await _standing_plan(place, request)
                if standing is None:
                    raise
                return standing, True
        return plan, False

    async def _append(
        self, context: RequestContext, entries: Sequence[Entry], plan: _Plan, request: Request | None
    ) -> Iterator[IngestedEvent]:
        """What became of each event that the plan does not refuse, in order."""
        parts: list[Part] = []
        start = 0
        for number, count in enumerate(plan.parts):
            parts.append(Part(entries[start : start + count], _part_request(request, number)))
            start += count
        outcomes = await self._spine.append_parts(context, parts)
        self._notice(context, outcomes)
        results = itertools.chain.from_iterable(map(_results, outcomes, plan.parts))
        if not plan.gates:
            return results
        indices = (index for index in itertools.count() if index not in plan.refused)
        return (
            _with_gates(result, plan.gates.get(index))
            for result, index in zip(results, indices, strict=False)
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


def _entries(context: RequestContext, judged: Judged, plan: _Plan) -> list[Entry]:
    """What the plan takes in of the same request, come again. Raises what refuses an event by now."""
    made = EventEntries(context)
    entries: list[Entry] = []
    for index, event in enumerate(judged):
        if index in plan.refused:
            continue
        if isinstance(event, EnginesError):
            raise event
        contract = plan.contracts.get(event.platform or "")
        entries.append(made.entry(event, contract, plan.gates.get(index)))
    return entries


def _parts(entries: Sequence[Entry]) -> Iterator[int]:
    """How many successive entries make each part."""
    count = size = 0
    for entry in entries:
        entry_size = 2 * len(entry.body.encode())
        is_full = count == PART_EVENTS_MAX or size + entry_size > PART_BYTES_MAX
        if count > 0 and (is_full or entry.event_id is not None):
            yield count
            count = size = 0
        if entry.event_id is not None:
            yield 1
            continue
        count, size = count + 1, size + entry_size
    if count > 0:
        yield count


async def _standing_plan(place: Place, request: Request) -> _Plan | None:
    """What was decided about the same request. Raises IdempotencyKeyReused."""
    doc = await place.documents.get(await place.partition(request.key), request.key)
    if doc is None:
        return None
    plan = _PLAN.decode(doc.body)
    if plan.request != request.digest:
        raise IdempotencyKeyReused(
            "this Idempotency-Key was used with another request", field="Idempotency-Key"
        )
    return plan


def _part_request(request: Request | None, number: int) -> Request | None:
    """By which the log knows one part of a request again."""
    if request is None:
        return None
    return Request(
        join("k", hashlib.sha256(f"{request.key} {number}".encode()).hexdigest()[:40]), request.digest
    )


def _results(outcome: AppendedEvents | EnginesError, count: int) -> Sequence[IngestedEvent]:
    if isinstance(outcome, EnginesError):
        return [_refusal(outcome)] * count
    return [
        IngestedEvent(status=STORED, event_id=event.event_id, position=event.position, cursor=event.cursor)
        for event in outcome.events
    ]


def _refusal(error: EnginesError) -> IngestedEvent:
    field = None if error.field is None else _shortened(error.field, FIELD_CHARS_MAX)
    problem = ItemProblem(error.code, _shortened(error.detail, DETAIL_CHARS_MAX), field)
    return IngestedEvent(status=error.status, problem=problem)


def _shortened(text: str, chars_max: int) -> str:
    """A name that a client chose may be as long as its request is."""
    return text[:chars_max].encode("ascii", "replace").decode()


def _with_gates(result: IngestedEvent, gates: GateStatus | None) -> IngestedEvent:
    if gates is None or result.status != STORED:
        return result
    return msgspec.structs.replace(result, gate_status=gates.status)
