"""Pages of a log: from a place on, in either direction, filtered by time and by what events say.

Owns where a page of events stops and what its cursor says; time is found by the log's binary search, the rest
by looking at no more than `LOOKED_AT_MAX` events. Leaves cursors to `core/cursor.py`.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from engines.core.cursor import Cursors
from engines.core.listing import LIMIT_MAX, LOOKED_AT_MAX, Listed, Window
from engines.core.log import PAGE_EVENTS_MAX, Batch, Log, StoredEvent
from engines.errors import Gone, Invalid
from engines.ports.documents import PAGE_BYTES
from engines.scope import check_id
from engines.stores.event_records import Event, EventView, StoredBody, instant_ms, stored_body

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


class _Where(msgspec.Struct, frozen=True):
    """A filter that was checked, its instants in epoch milliseconds."""

    event_type: str | None
    run_id: str | None
    user_id: str | None
    project_id: str | None
    since_ms: int | None
    until_ms: int | None

    @property
    def looks_inside(self) -> bool:
        return (self.event_type, self.run_id, self.user_id, self.project_id) != (None, None, None, None)

    def admits(self, body: StoredBody | None) -> bool:
        if body is None:
            return not self.looks_inside
        return (
            self.event_type in (None, body.event_type)
            and self.run_id in (None, body.run_id)
            and self.user_id in (None, body.user_id)
            and self.project_id in (None, body.project_id)
        )


class _Upwards:
    """From old to new: `since` is where it begins, `until` where it ends."""

    def __init__(self, log: Log, where: _Where) -> None:
        self._log = log
        self._where = where

    async def start(self) -> int:
        return 0 if self._where.since_ms is None else await self.skip(0)

    async def skip(self, position: int) -> int:
        """The place behind which `since` begins, if `position` is not behind it already."""
        return max(position, await self._log.seek(self._where.since_ms or 0) - 1)

    async def read(self, position: int, limit: int) -> Batch:
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

    def __init__(self, log: Log, where: _Where) -> None:
        self._log = log
        self._where = where

    async def start(self) -> int:
        if self._where.until_ms is None:
            return (await self._log.head()).position + 1
        return await self._log.seek(self._where.until_ms)

    async def skip(self, position: int) -> int:
        return min(position, await self.start())

    async def read(self, position: int, limit: int) -> Batch:
        return await self._log.list_before(position, limit=limit)

    def is_early(self, event: StoredEvent) -> bool:
        return self._where.until_ms is not None and event.at_ms >= self._where.until_ms

    def is_beyond(self, event: StoredEvent) -> bool:
        return self._where.since_ms is not None and event.at_ms < self._where.since_ms


async def list_events(
    log: Log, view: EventView, where: EventFilter, *, cursors: Cursors, window: Window
) -> Listed[Event]:
    """One page. Raises Invalid (a limit, a filter, a cursor or one past the end), Gone (it is trimmed)."""
    window.checked()
    checked = _checked(where)
    way = _Downwards(log, checked) if window.descending else _Upwards(log, checked)
    position = await way.start() if window.after is None else cursors.position(window.after)
    page = _PageBuilder(view, checked, window.limit)
    for _ in range(READS_MAX):
        batch = await way.read(position, page.read_limit)
        if batch.events and way.is_early(batch.events[0]):
            position = await way.skip(position)
            continue
        for stored in batch.events:
            if way.is_beyond(stored):
                return page.ended()
            if not page.take(stored):
                return page.stopped_after(cursors.of_position(position))
            position = stored.position
        if batch.end:
            return page.ended()
        if page.enough:
            break
    return page.stopped_after(cursors.of_position(position))


class _PageBuilder:
    def __init__(self, view: EventView, where: _Where, limit: int) -> None:
        self._view = view
        self._where = where
        self._limit = limit
        self._items: list[Event] = []
        self._bytes = 0
        self._looked_at = 0

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
            self._items.append(
                self._view.redacted(stored) if body is None else self._view.of_body(stored, body)
            )
            self._bytes += len(stored.body or "")
        self._looked_at += 1
        return True

    def stopped_after(self, cursor: str) -> Listed[Event]:
        return Listed(tuple(self._items), cursor)

    def ended(self) -> Listed[Event]:
        return Listed(tuple(self._items), None)


def _checked(where: EventFilter) -> _Where:
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
