"""Logs of events under one resource kind: what the spine and the streams have in common.

Owns appending, finding, listing, following and verifying by way of the open logs, and the cursors of events.
A follower stays on its log for as long as the route leads there. Leaves permissions to `stores/events.py`,
an event's fields to `stores/event_records.py`, pages to `stores/event_pages.py`, the log to `core/log.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final, TypeVar, cast

import msgspec

from engines.core.appends import EVENTS_MAX, Appended
from engines.core.cursor import Cursors, list_scope
from engines.core.idempotency import Request
from engines.core.listing import Listed, Window
from engines.core.log import Batch, Entry, Head, Log, Sealed, StoredEvent
from engines.core.place import Place, Places
from engines.errors import EnginesError, Invalid, NotFound, TooLarge, Unavailable
from engines.scope import RequestContext
from engines.stores.event_index import EventIndex
from engines.stores.event_pages import (
    EVERYTHING,
    EventFilter,
    EventPage,
    Show,
    Where,
    checked_filter,
    list_events,
)
from engines.stores.event_records import (
    Event,
    EventText,
    EventView,
    NewEvent,
    PayloadCheck,
    StoredBody,
    SystemEvent,
    client_entry,
    is_uuid,
    system_entry,
)
from engines.stores.open_logs import OpenLogs

T = TypeVar("T")

# How soon a follower notices that its log's route leads elsewhere or is gone.
ROUTE_CHECK_S: Final = 1.0


class AppendedEvent(msgspec.Struct, frozen=True):
    """Where an event stands. Positions start at 1 and have no gaps."""

    event_id: str
    position: int
    cursor: str


class AppendedEvents(msgspec.Struct, frozen=True):
    """The events of one append, in its order. `replayed`: an identical request, made before, did it."""

    events: tuple[AppendedEvent, ...]
    replayed: bool = False


class Part(msgspec.Struct, frozen=True):
    """Events that are appended together or not at all, beside others of one call."""

    entries: Sequence[Entry]
    request: Request | None = None


class LogVerification(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What reading a whole log and its digests found; `head` is where it holds up to.

    Where `ok` is false, `bad_position` and `reason` say where it breaks first.
    """

    ok: bool
    head: Head
    event_count: int
    commit_count: int
    redacted_count: int
    bad_position: int | None = None
    reason: str | None = None


class EventLogs:
    """The logs of one kind. Nothing here asks for a permission."""

    def __init__(
        self,
        kind: str,
        places: Places,
        logs: OpenLogs,
        *,
        index: EventIndex | None = None,
        check_payload: PayloadCheck | None = None,
    ) -> None:
        """`index`: of the one log that these are, if it has one. `check_payload`: else any payload goes."""
        self._kind = kind
        self._places = places
        self._logs = logs
        self._index = index
        self._check_payload = check_payload

    async def append(
        self,
        context: RequestContext,
        stream: str,
        events: Sequence[NewEvent],
        *,
        expected_position: int | None = None,
        request: Request | None = None,
    ) -> AppendedEvents:
        _check_count(events)
        entries = [self._entry(context, event, index, len(events)) for index, event in enumerate(events)]
        async with self._places.changing(self._kind, context) as place, self._using(place, stream) as log:
            appended = await log.append(entries, expected_position=expected_position, request=request)
        self._appended(context, appended)
        return _answer(appended, self._cursors(context, stream))

    async def append_parts(
        self, context: RequestContext, stream: str, parts: Sequence[Part]
    ) -> Sequence[AppendedEvents | EnginesError]:
        """Append each part on its own, in this order where all succeed; what became of each."""
        async with self._places.changing(self._kind, context) as place, self._using(place, stream) as log:
            outcomes = await asyncio.gather(
                *(log.append(part.entries, request=part.request) for part in parts), return_exceptions=True
            )
            if any(isinstance(outcome, Sealed) for outcome in outcomes):
                self._logs.drop(place, stream)
        cursors = self._cursors(context, stream)
        answers: list[AppendedEvents | EnginesError] = []
        for outcome in outcomes:
            if isinstance(outcome, Appended):
                self._appended(context, outcome)
                answers.append(_answer(outcome, cursors))
            elif isinstance(outcome, EnginesError):
                answers.append(outcome)
            else:
                raise outcome
        return answers

    async def append_system(
        self,
        context: RequestContext,
        stream: str,
        events: Sequence[SystemEvent],
        *,
        look_everywhere: bool,
        since_ms: int = 0,
        request: Request | None = None,
    ) -> AppendedEvents:
        _check_count(events)
        replayed = False
        cursors = self._cursors(context, stream)
        known: dict[int, AppendedEvent] = {}
        async with self._places.changing(self._kind, context) as place, self._using(place, stream) as log:
            if look_everywhere:
                named = [event.event_id for event in events if event.event_id is not None]
                stood = await log.positions(named, since_ms=since_ms)
                for index, event in enumerate(events):
                    if event.event_id is not None and (position := stood.get(event.event_id)) is not None:
                        cursor = cursors.of_position(position)
                        known[index] = AppendedEvent(event.event_id, position, cursor)
            unknown = [index for index in range(len(events)) if index not in known]
            if unknown:
                entries = [
                    system_entry(context, events[index], check_payload=self._check_payload)
                    for index in unknown
                ]
                appended = await log.append(entries, request=request)
                replayed = appended.replayed
                self._appended(context, appended)
                placed = zip(unknown, appended.event_ids, appended.positions, strict=True)
                for index, event_id, position in placed:
                    known[index] = AppendedEvent(event_id, position, cursors.of_position(position))
        return AppendedEvents(tuple(known[index] for index in range(len(events))), replayed)

    async def answered(
        self, context: RequestContext, stream: str, request: Request
    ) -> tuple[Event, ...] | None:
        """The events that an append under `request` made; None where none is seen."""
        place = await self._places.place(self._kind, context)
        async with self._using(place, stream) as log:
            positions = await log.answered(request)
            if positions is None:
                return None
            found = [await log.list_after(position - 1, limit=1) for position in positions]
        view = self._view(context, self._cursors(context, stream))
        return tuple(view.shown(event) for batch in found for event in batch.events)

    async def get(self, context: RequestContext, stream: str, event_id: str) -> Event:
        place = await self._places.place(self._kind, context)
        async with self._using(place, stream) as log:
            found = await log.find(event_id) if is_uuid(event_id) else None
        if found is None:
            raise NotFound("there is no such event")
        return self._view(context, self._cursors(context, stream)).shown(found)

    async def list(
        self, context: RequestContext, stream: str, where: EventFilter, window: Window
    ) -> Listed[Event]:
        show = self._view(context, self._cursors(context, stream)).show
        page = await self._page(context, stream, checked_filter(where), show, self._index, window)
        if self._index is not None and where != EVERYTHING:
            self._index.missed(context, page.looked_at_in_log)
        return page.listed

    async def search(
        self,
        context: RequestContext,
        stream: str,
        where: Where,
        show: Callable[[Event, StoredBody | None], T],
        index: EventIndex,
        window: Window,
    ) -> Listed[T]:
        """A list by an index of a store's own, which `show` makes of events and their decoded texts."""
        view = self._view(context, self._cursors(context, stream))
        page = await self._page(
            context, stream, where, lambda stored, body: show(view.show(stored, body), body), index, window
        )
        index.missed(context, page.looked_at_in_log)
        return page.listed

    async def _page(
        self,
        context: RequestContext,
        stream: str,
        where: Where,
        show: Show[T],
        index: EventIndex | None,
        window: Window,
    ) -> EventPage[T]:
        place = await self._places.place(self._kind, context)
        async with self._using(place, stream) as log:
            return await list_events(
                log,
                show,
                where,
                cursors=self._cursors(context, stream),
                window=window,
                open_view=None if index is None else partial(index.view, context, place, log),
            )

    async def follow(
        self, context: RequestContext, stream: str, after: str | None
    ) -> AsyncGenerator[tuple[Event, ...], None]:
        show = self._view(context, self._cursors(context, stream)).shown
        return await self._follow(context, stream, after, show)

    async def follow_text(
        self, context: RequestContext, stream: str, after: str | None
    ) -> AsyncGenerator[tuple[EventText, ...], None]:
        show = self._view(context, self._cursors(context, stream)).text
        return await self._follow(context, stream, after, show)

    async def _follow(
        self, context: RequestContext, stream: str, after: str | None, show: Callable[[StoredEvent], T]
    ) -> AsyncGenerator[tuple[T, ...], None]:
        cursors = self._cursors(context, stream)
        place = await self._places.place(self._kind, context)
        async with self._using(place, stream) as log:
            position = 0
            if after is not None:
                position = await _position_after(log, after, cursors)
                await log.list_after(position, limit=1)  # Whether it is gone, or past the end.
        return self._batches(context, stream, position, place, show)

    async def verify(self, context: RequestContext, stream: str, expected: Head | None) -> LogVerification:
        place = await self._places.place(self._kind, context)
        async with self._using(place, stream) as log:
            found = await log.verify(expected)
        return LogVerification(
            ok=found.ok,
            head=Head(found.position, found.digest),
            event_count=found.event_count,
            commit_count=found.commit_count,
            redacted_count=found.redacted_count,
            bad_position=found.bad_position,
            reason=found.reason,
        )

    async def close(self) -> None:
        await self._logs.close()

    async def _batches(
        self,
        context: RequestContext,
        stream: str,
        position: int,
        place: Place,
        show: Callable[[StoredEvent], T],
    ) -> AsyncGenerator[tuple[T, ...], None]:
        """Follow the log wherever it is moved: its copy has the same positions.

        Nothing is read before what was read last is asked to go on from, and nothing of it is kept.
        """
        while True:
            batches = self._at(context, stream, position, place)
            async with contextlib.aclosing(batches):
                async for batch in batches:
                    position = batch.events[-1].position
                    shown = [tuple(map(show, batch.events))]
                    del batch
                    yield shown.pop()
            now = await self._places.place(self._kind, context)
            if _is_same(now, place):
                return
            if now.generation <= place.generation and now.backend_id != place.backend_id:
                raise Unavailable("the route of this log leads elsewhere now; follow it anew")
            place = now

    async def _at(
        self, context: RequestContext, stream: str, position: int, place: Place
    ) -> AsyncGenerator[Batch, None]:
        """The same at one place: until the route leads elsewhere, or the log is closed."""
        async with self._using(place, stream) as log:
            batches = cast(AsyncGenerator[Batch, None], log.follow(position))
            coming: asyncio.Task[Batch | None] | None = None
            try:
                while True:
                    coming = coming or asyncio.create_task(_next(batches))
                    await asyncio.wait((coming,), timeout=ROUTE_CHECK_S)
                    if not _is_same(await self._places.place(self._kind, context), place):
                        return
                    if coming.done():
                        batch, coming = coming.result(), None
                        if batch is None:
                            return
                        found = [batch]
                        del batch
                        yield found.pop()
            finally:
                if coming is not None:
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
                await batches.aclose()

    def _entry(self, context: RequestContext, event: NewEvent, index: int, count: int) -> Entry:
        try:
            return client_entry(context, event, check_payload=self._check_payload)
        except EnginesError as error:
            if count > 1:
                error.field = f"events[{index}].{error.field}" if error.field else f"events[{index}]"
            raise

    def _appended(self, context: RequestContext, appended: Appended) -> None:
        if self._index is not None:
            self._index.appended(context, min(appended.positions), max(appended.positions))

    @contextlib.asynccontextmanager
    async def _using(self, place: Place, stream: str) -> AsyncIterator[Log]:
        try:
            async with self._logs.use(place, stream) as log:
                yield log
        except Sealed:
            self._logs.drop(place, stream)
            raise

    def _cursors(self, context: RequestContext, stream: str) -> Cursors:
        return list_scope(self._kind, context.tenant_id, context.env, stream)

    def _view(self, context: RequestContext, cursors: Cursors) -> EventView:
        return EventView(tenant_id=context.tenant_id, env=context.env, route=self._kind, cursors=cursors)


def _answer(appended: Appended, cursors: Cursors) -> AppendedEvents:
    placed = zip(appended.event_ids, appended.positions, strict=True)
    return AppendedEvents(
        tuple(AppendedEvent(name, position, cursors.of_position(position)) for name, position in placed),
        appended.replayed,
    )


def _check_count(events: Sequence[msgspec.Struct]) -> None:
    if not events:
        raise Invalid("an append has at least one event", field="events")
    if len(events) > EVENTS_MAX:
        raise TooLarge(f"one request appends at most {EVENTS_MAX} events", field="events")


async def _position_after(log: Log, after: str, cursors: Cursors) -> int:
    """The position behind which a cursor or an event id says to go on. Raises Invalid."""
    if not is_uuid(after):
        return cursors.position(after)
    event = await log.find(after)
    if event is None:
        raise Invalid("there is no such event to go on after", field="after")
    return event.position


async def _next(batches: AsyncIterator[Batch]) -> Batch | None:
    """The next batch; None at the end."""
    return await anext(batches, None)


def _is_same(now: Place, before: Place) -> bool:
    return (
        now.documents is before.documents
        and now.backend_id == before.backend_id
        and now.generation == before.generation
    )
