"""Pages of a log: from a place on, in either direction, filtered by time and by what events say.

Owns where a page of events stops and what its cursor says; time is found by the log's binary search, a run,
a user or a type by a view as far as that goes, the rest by looking at no more than `LOOKED_AT_MAX` events.
Leaves cursors to `core/cursor.py`, views to `stores/event_index.py`, and filters by what the spine does not
know of its events to the stores that do.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from engines.core.cursor import Cursors
from engines.core.listing import LIMIT_MAX, LOOKED_AT_MAX, Listed, Window
from engines.core.log import PAGE_EVENTS_MAX, Batch, Log, StoredEvent
from engines.errors import Gone, Invalid
from engines.ports.documents import PAGE_BYTES
from engines.scope import check_id
from engines.stores.event_index import Part, View
from engines.stores.event_records import StoredBody, instant_ms, stored_body

# A read of the log gives at most about 1 MiB, so this many bound what one page makes the backend read.
READS_MAX: Final = 24
_EVENT_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")

assert LIMIT_MAX <= PAGE_EVENTS_MAX


class EventFilter(msgspec.Struct, frozen=True):
    """Which events to list; None leaves a field open. `since` <= timestamp < `until`, both RFC 3339."""

    event_type: str | None = None
    run_id: str | None = None
    user_id: str | None = None
    project_id: str | None = None
    since: str | None = None
    until: str | None = None


EVERYTHING: Final = EventFilter()
OpenView = Callable[[Mapping[str, str | None]], Awaitable[View | None]]
T = TypeVar("T")
Show = Callable[[StoredEvent, StoredBody | None], T]
"""Makes what a page holds of an event and its decoded text, which is None once it was redacted."""


class EventPage(msgspec.Struct, Generic[T], frozen=True):
    """A page, and how many events of the log were looked at one by one for it."""

    listed: Listed[T]
    looked_at_in_log: int


class Where(Protocol):
    """A filter that was checked, its instants in epoch milliseconds."""

    @property
    def since_ms(self) -> int | None: ...
    @property
    def until_ms(self) -> int | None: ...
    @property
    def values(self) -> Mapping[str, str | None]:
        """The values by which a view may be found, by the view's name."""
        ...

    @property
    def looks_inside(self) -> bool:
        """Whether it asks anything of an event's text."""
        ...

    def admits(self, body: StoredBody | None) -> bool:
        """Whether an event with this text is of interest, whenever it was."""
        ...


class _Where(msgspec.Struct, frozen=True):
    event_type: str | None
    run_id: str | None
    user_id: str | None
    project_id: str | None
    since_ms: int | None
    until_ms: int | None

    @property
    def values(self) -> Mapping[str, str | None]:
        return {
            "event_type": self.event_type,
            "run_id": self.run_id,
            "user_id": self.user_id,
            "project_id": self.project_id,
        }

    @property
    def looks_inside(self) -> bool:
        return any(value is not None for value in self.values.values())

    def admits(self, body: StoredBody | None) -> bool:
        if body is None:
            return not self.looks_inside
        return (
            self.event_type in (None, body.event_type)
            and self.run_id in (None, body.run_id)
            and self.user_id in (None, body.user_id)
            and self.project_id in (None, body.project_id)
        )


class _Read(msgspec.Struct, frozen=True):
    """Events in order. `reached`: where to go on; `end`: there was nothing beyond it."""

    events: tuple[StoredEvent, ...]
    reached: int
    end: bool
    looked_at: int = 0


class _Upwards:
    """From old to new: `since` is where it begins, `until` where it ends."""

    def __init__(self, log: Log, where: Where, view: View | None) -> None:
        self._log = log
        self._where = where
        self._view = view

    async def start(self) -> int:
        return 0 if self._where.since_ms is None else await self.skip(0)

    async def skip(self, position: int) -> int:
        """The place behind which `since` begins, if `position` is not behind it already."""
        return max(position, await self._log.seek(self._where.since_ms or 0) - 1)

    async def read(self, position: int, limit: int, wanted: int) -> _Read:
        """Up to `limit` events; of a view, which gives none in vain, as many as are `wanted`."""
        if self._view is not None and position < self._view.projected:
            return _of_view(await self._view.after(position, limit=min(limit, wanted)), end=False)
        return _of_log(await self._read_log(position, limit), position)

    async def _read_log(self, position: int, limit: int) -> Batch:
        try:
            return await self._log.list_after(position, limit=limit)
        except Gone:
            if position > 0:  # Who named no place begins with what is still kept.
                raise
        return await self._log.list_after(await self._log.seek(0) - 1, limit=limit)

    def is_early(self, event: StoredEvent) -> bool:
        return self._where.since_ms is not None and event.at_ms < self._where.since_ms

    def is_beyond(self, event: StoredEvent) -> bool:
        return self._where.until_ms is not None and event.at_ms >= self._where.until_ms


class _Downwards:
    """From new to old: `until` is where it begins, `since` where it ends."""

    def __init__(self, log: Log, where: Where, view: View | None) -> None:
        self._log = log
        self._where = where
        self._view = view

    async def start(self) -> int:
        if self._where.until_ms is None:
            return (await self._log.head()).position + 1
        return await self._log.seek(self._where.until_ms)

    async def skip(self, position: int) -> int:
        return min(position, await self.start())

    async def read(self, position: int, limit: int, wanted: int) -> _Read:
        """Up to `limit` events; of a view, which gives none in vain, as many as are `wanted`."""
        if self._view is None:
            return _of_log(await self._log.list_before(position, limit=limit), position)
        behind_view = position - 1 - self._view.projected
        if behind_view > 0:
            return _of_log(await self._log.list_before(position, limit=min(limit, behind_view)), position)
        if position <= 1:
            return _Read((), position, end=True)
        part = await self._view.before(position, limit=min(limit, wanted))
        return _of_view(part, end=part.reached <= 1)

    def is_early(self, event: StoredEvent) -> bool:
        return self._where.until_ms is not None and event.at_ms >= self._where.until_ms

    def is_beyond(self, event: StoredEvent) -> bool:
        return self._where.since_ms is not None and event.at_ms < self._where.since_ms


async def list_events(
    log: Log,
    show: Show[T],
    where: Where,
    *,
    cursors: Cursors,
    window: Window,
    open_view: OpenView | None = None,
) -> EventPage[T]:
    """One page. Raises Invalid (a limit, a cursor of another list or past the end), Gone (it is trimmed)."""
    window.checked()
    after = None if window.after is None else cursors.position(window.after)
    view = None if open_view is None else await open_view(where.values)
    way = _Downwards(log, where, view) if window.descending else _Upwards(log, where, view)
    position = await way.start() if after is None else after
    page = _PageBuilder(show, where, window.limit)
    for _ in range(READS_MAX):
        read = await way.read(position, page.read_limit, page.wanted)
        page.looked_at_in_log += read.looked_at
        if read.events and way.is_early(read.events[0]):
            position = await way.skip(position)
            continue
        for stored in read.events:
            if way.is_beyond(stored):
                return page.ended()
            if not page.take(stored):
                return page.stopped_after(cursors.of_position(position))
            position = stored.position
        position = read.reached
        if read.end:
            return page.ended()
        if page.enough:
            break
    return page.stopped_after(cursors.of_position(position))


def _of_log(batch: Batch, position: int) -> _Read:
    reached = batch.events[-1].position if batch.events else position
    return _Read(batch.events, reached, batch.end, looked_at=len(batch.events))


def _of_view(part: Part, *, end: bool) -> _Read:
    return _Read(part.events, part.reached, end)


class _PageBuilder(Generic[T]):
    def __init__(self, show: Show[T], where: Where, limit: int) -> None:
        self._show = show
        self._where = where
        self._limit = limit
        self._items: list[T] = []
        self._bytes = 0
        self._looked_at = 0
        self.looked_at_in_log = 0

    @property
    def wanted(self) -> int:
        """How many more events the page has room for, and one to know that there are more."""
        return self._limit - len(self._items) + 1

    @property
    def read_limit(self) -> int:
        """How many events the next read may give."""
        if not self._where.looks_inside:
            return self._limit
        return min(PAGE_EVENTS_MAX, LOOKED_AT_MAX - self._looked_at)

    @property
    def enough(self) -> bool:
        return self._full or self._looked_at >= LOOKED_AT_MAX

    @property
    def _full(self) -> bool:
        return len(self._items) == self._limit or self._bytes >= PAGE_BYTES

    def take(self, stored: StoredEvent) -> bool:
        """False, and not taken, where the event belongs on the next page."""
        body = stored_body(stored)
        if self._where.admits(body):
            if self._full:
                return False
            self._items.append(self._show(stored, body))
            self._bytes += len(stored.body or "")
        self._looked_at += 1
        return True

    def stopped_after(self, cursor: str) -> EventPage[T]:
        return EventPage(Listed(tuple(self._items), cursor), self.looked_at_in_log)

    def ended(self) -> EventPage[T]:
        return EventPage(Listed(tuple(self._items), None), self.looked_at_in_log)


def checked_filter(where: EventFilter) -> Where:
    """Raises Invalid for a value that no event can have."""
    if where.event_type is not None and not _EVENT_TYPE.fullmatch(where.event_type):
        raise Invalid("an event type matches ^[a-z][a-z0-9_]{0,63}$", field="event_type")
    for name in ("run_id", "user_id", "project_id"):
        if (value := getattr(where, name)) is not None:
            check_id(value, name)
    return _Where(
        event_type=where.event_type,
        run_id=where.run_id,
        user_id=where.user_id,
        project_id=where.project_id,
        since_ms=None if where.since is None else instant_ms(where.since, "since"),
        until_ms=None if where.until is None else instant_ms(where.until, "until"),
    )
