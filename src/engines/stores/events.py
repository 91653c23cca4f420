"""The event spine and event streams: append-only logs of a tenant and env.

Owns who may append and read, the bodies of appends, and what the spine and a stream are: the spine is the one
log of everything that happened, a stream is a log that its users name. Leaves what they have in common to
`stores/event_logs.py`, the fields of an event to `stores/event_records.py`, typed payloads to
`stores/event_payloads.py`, the spine's index to `stores/event_index.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from engines import catalogue
from engines.clock import Clock
from engines.core.chain import SEGMENT_SIZE_DEFAULT
from engines.core.idempotency import Request
from engines.core.index import Layout
from engines.core.listing import START, Listed, Window
from engines.core.log import Head
from engines.core.place import Places
from engines.core.slots import Slots
from engines.errors import EnginesError, Invalid
from engines.ids import Ids
from engines.scope import RequestContext, check_id
from engines.stores.event_index import OF_EVERY_EVENT, EventIndex, IndexStatus, Views
from engines.stores.event_logs import AppendedEvent, AppendedEvents, EventLogs, LogVerification, Part
from engines.stores.event_pages import EVERYTHING, EventFilter, Where
from engines.stores.event_payloads import check_payload
from engines.stores.event_records import Causality, Event, EventText, NewEvent, StoredBody, SystemEvent
from engines.stores.index_homes import BesideLog, IndexHome, InStore
from engines.stores.open_logs import OpenLogs

__all__ = [
    "AppendedEvent",
    "AppendedEvents",
    "Causality",
    "Event",
    "EventFilter",
    "EventSpine",
    "EventStreams",
    "EventText",
    "IndexStatus",
    "LogVerification",
    "NewEvent",
    "NewEvents",
    "NewStreamEvent",
    "NewStreamEvents",
    "Part",
    "SystemEvent",
]

SPINE_STREAM: Final = "spine"
# A verification reads a whole log: minutes of a backend's time where it is long.
VERIFYING_TENANT_MAX: Final = 1
VERIFYING_MAX: Final = 4
VERIFYING_RETRY_S: Final = 5.0
LAYOUT_DEFAULT: Final = Layout()

T = TypeVar("T")


class NewEvents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an append of several events, all or nothing."""

    events: list[NewEvent]


class NewStreamEvent(NewEvent, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One event for a stream. `expected_position`: that of the last event, 0 for an empty stream."""

    expected_position: int | None = None


class NewStreamEvents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same for several events."""

    events: list[NewEvent]
    expected_position: int | None = None


class EventSpine:
    """The spine of whoever asks: one log a tenant and env.

    Every method raises Forbidden (the role does not grant it), ContextMismatch, MissingRoute,
    ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; appends also OutcomeUnknown.
    """

    def __init__(
        self,
        places: Places,
        ids: Ids,
        clock: Clock,
        *,
        segment_size_default: int = SEGMENT_SIZE_DEFAULT,
        index_layout_default: Layout = LAYOUT_DEFAULT,
    ) -> None:
        """`projector` is to be run beside requests; without it lists by run, user or type are only slower."""
        self._places = places
        self._ids = ids
        self._clock = clock
        self._open = OpenLogs(ids, clock, segment_size_default=segment_size_default)
        self._layout_default = index_layout_default
        home = BesideLog(SPINE_STREAM, layout_default=index_layout_default)
        self._index = self._index_at(home, OF_EVERY_EVENT)
        self._logs = EventLogs(
            catalogue.EVENT_SPINE, places, self._open, index=self._index, check_payload=check_payload
        )
        self.projector = self._index.projector
        self._verifying = Slots(
            "verifications",
            tenant_max=VERIFYING_TENANT_MAX,
            process_max=VERIFYING_MAX,
            retry_after_s=VERIFYING_RETRY_S,
        )

    async def append(
        self, context: RequestContext, events: Sequence[NewEvent], *, request: Request | None = None
    ) -> AppendedEvents:
        """Append 1 to 500 events, all or nothing; at most 98 of them with an `event_id` of their own.

        Raises Invalid (by `field`; `events[3].run_id` where there are several; the payload of a type that
        learning reads has rules, see `stores/event_payloads.py`), ContextMismatch, Forbidden (a type that is
        the server's), TooLarge, Conflict (a known `event_id` with other contents), IdempotencyKeyReused.
        """
        context.require_data("events.write")
        return await self._logs.append(context, SPINE_STREAM, events, request=request)

    async def append_system(
        self,
        context: RequestContext,
        events: Sequence[SystemEvent],
        *,
        look_everywhere: bool = False,
        since_ms: int = 0,
        request: Request | None = None,
    ) -> AppendedEvents:
        """Append the server's own events on the spine that `context` names; no permission is asked for.

        `look_everywhere` finds an `event_id` that was appended at `since_ms` or later; without it, one that
        was appended within the last segment's size of events. `request`: a repeat of it appends nothing.
        Raises TooLarge, Conflict, IdempotencyKeyReused.
        """
        return await self._logs.append_system(
            context,
            SPINE_STREAM,
            events,
            look_everywhere=look_everywhere,
            since_ms=since_ms,
            request=request,
        )

    async def answered(self, context: RequestContext, request: Request) -> tuple[Event, ...] | None:
        """The events that an append under this request made, for the server itself; no permission is asked.

        None proves nothing: an append elsewhere may be under way, or its marker just not seen yet. Raises
        IdempotencyKeyReused.
        """
        return await self._logs.answered(context, SPINE_STREAM, request)

    async def get(self, context: RequestContext, event_id: str) -> Event:
        """The event with this id, whoever minted it. Raises Invalid, NotFound, Gone."""
        context.require_data("events.read")
        check_id(event_id, "event_id")
        return await self._logs.get(context, SPINE_STREAM, event_id)

    async def list(
        self, context: RequestContext, where: EventFilter = EVERYTHING, *, window: Window = START
    ) -> Listed[Event]:
        """Events by position. A filtered page may be short or empty and have more behind it.

        Raises Invalid (a limit, a filter, a cursor of another list or past the end).
        """
        context.require_data("events.read")
        return await self._logs.list(context, SPINE_STREAM, where, window)

    async def follow(
        self, context: RequestContext, *, after: str | None = None
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        """Events behind `after` (a cursor or an event id; None: from the first) as they come.

        The call itself raises Invalid and Gone. The iterator raises Gone, and Unavailable or MissingRoute
        once the route leads elsewhere; it ends when the store is closed. Close it (`aclose`) when done.
        """
        context.require_data("events.read")
        return await self._logs.follow(context, SPINE_STREAM, after)

    async def follow_text(
        self, context: RequestContext, *, after: str | None = None
    ) -> AsyncGenerator[tuple[EventText, ...], None]:
        """The same events as JSON: an edge passes them on as they are, and a payload is never decoded."""
        context.require_data("events.read")
        return await self._logs.follow_text(context, SPINE_STREAM, after)

    async def export(
        self, context: RequestContext, where: EventFilter = EVERYTHING, *, window: Window = START
    ) -> Listed[Event]:
        """The pages of `list`, for whoever takes the events away: they need the permission to export."""
        context.require_data("export")
        return await self._logs.list(context, SPINE_STREAM, where, window)

    async def verify(self, context: RequestContext, *, expected: Head | None = None) -> LogVerification:
        """Read the whole spine and its digests. `expected`: a head seen before, which it must still hold.

        Raises Throttled while as many are under way as there may be of the tenant, or in this process.
        """
        context.require_data("events.verify")
        with self._verifying.hold(context.tenant_id):
            return await self._logs.verify(context, SPINE_STREAM, expected)

    async def index_status(self, context: RequestContext) -> IndexStatus:
        """How far the index by run, user and type has come."""
        context.require_data("events.verify")
        return await self._index.status(context)

    async def rebuild_index(self, context: RequestContext) -> IndexStatus:
        """Make the index anew, beside requests; until then lists look through the log.

        Raises Conflict where it was just being written: call again.
        """
        context.require_data("events.verify")
        return await self._index.restart(context)

    # --- for stores whose records are events of the spine ---

    def index_in(self, kind: str, views: Views) -> EventIndex:
        """Another index of the spines, which lies in the store `kind`. Its projector is to be run as well."""
        home = InStore(kind, SPINE_STREAM, self._places, layout_default=self._layout_default)
        return self._index_at(home, views)

    async def append_parts(
        self, context: RequestContext, parts: Sequence[Part]
    ) -> Sequence[AppendedEvents | EnginesError]:
        """Append each part on its own, in this order where all succeed; what became of each.

        The permission is the store's to ask for. Raises what concerns all of them, as MissingRoute does.
        """
        return await self._logs.append_parts(context, SPINE_STREAM, parts)

    async def search(
        self,
        context: RequestContext,
        where: Where,
        show: Callable[[Event, StoredBody | None], T],
        *,
        index: EventIndex,
        window: Window,
    ) -> Listed[T]:
        """A page of what `where` admits, found by way of `index`. The permission is the store's to ask."""
        return await self._logs.search(context, SPINE_STREAM, where, show, index, window)

    async def close(self) -> None:
        """Finish the appends that wait, end the followers."""
        await self._logs.close()

    def _index_at(self, home: IndexHome, views: Views) -> EventIndex:
        return EventIndex(
            catalogue.EVENT_SPINE,
            SPINE_STREAM,
            self._places,
            self._open,
            self._ids,
            self._clock,
            home=home,
            views=views,
            block_default=self._layout_default.block,
        )


class EventStreams:
    """The named streams of a tenant and env. A stream begins with its first append.

    Every method raises Invalid (a malformed id), Forbidden (the role does not grant it), ContextMismatch,
    MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; appends also
    OutcomeUnknown.
    """

    def __init__(
        self, places: Places, ids: Ids, clock: Clock, *, segment_size_default: int = SEGMENT_SIZE_DEFAULT
    ) -> None:
        logs = OpenLogs(ids, clock, segment_size_default=segment_size_default)
        self._logs = EventLogs(catalogue.EVENT_STREAM, places, logs)

    async def append(
        self,
        context: RequestContext,
        stream_id: str,
        events: Sequence[NewEvent],
        *,
        expected_position: int | None = None,
        request: Request | None = None,
    ) -> AppendedEvents:
        """As `EventSpine.append`; Conflict also where `expected_position` is not the last event's."""
        context.require_data("streams.write")
        check_id(stream_id, "stream_id")
        if expected_position is not None and expected_position < 0:
            raise Invalid("a position is a whole number from 0", field="expected_position")
        return await self._logs.append(
            context, stream_id, events, expected_position=expected_position, request=request
        )

    async def list(
        self,
        context: RequestContext,
        stream_id: str,
        where: EventFilter = EVERYTHING,
        *,
        window: Window = START,
    ) -> Listed[Event]:
        """As `EventSpine.list`; a cursor below what is kept of a trimmed stream is Gone."""
        context.require_data("streams.read")
        check_id(stream_id, "stream_id")
        return await self._logs.list(context, stream_id, where, window)

    async def follow(
        self, context: RequestContext, stream_id: str, *, after: str | None = None
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        """As `EventSpine.follow`."""
        context.require_data("streams.read")
        check_id(stream_id, "stream_id")
        return await self._logs.follow(context, stream_id, after)

    async def follow_text(
        self, context: RequestContext, stream_id: str, *, after: str | None = None
    ) -> AsyncGenerator[tuple[EventText, ...], None]:
        """As `EventSpine.follow_text`."""
        context.require_data("streams.read")
        check_id(stream_id, "stream_id")
        return await self._logs.follow_text(context, stream_id, after)

    async def close(self) -> None:
        """Finish the appends that wait, end the followers."""
        await self._logs.close()
