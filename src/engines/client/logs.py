"""The logs: the tenant's spine of events, and named streams beside it.

Owns their paths, parameters and types, and which append the server knows again by itself. Leaves following to
`client/sse.py` and everything else to `client/calls.py`.

What every method may raise is what the server answers (`engines.errors`), Unavailable where it cannot be
reached, and for appends OutcomeUnknown where the reply was lost and repeating could not settle it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from engines.client.calls import Calls, Order
from engines.client.results import (
    Appended,
    AppendedEvents,
    Event,
    Head,
    IndexStatus,
    NewEvent,
    Page,
    Verification,
)
from engines.client.retry import Repeat
from engines.client.sse import follow
from engines.client.transport import target


class Events:
    """The tenant's spine."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def append(
        self, events: Sequence[NewEvent], *, idempotency_key: str | None = None
    ) -> tuple[Appended, ...]:
        """Append 1 to 500 events, all or none; at most 98 of them with an `event_id` of their own."""
        return await _append(self._calls, ("events",), events, None, idempotency_key)

    async def get(self, event_id: str) -> Event:
        """One event by its id. Raises NotFound."""
        return await self._calls.get(Event, "events", event_id)

    async def page(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        event_type: str | None = None,
        run_id: str | None = None,
        user_id: str | None = None,
        project_id: str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> Page[Event]:
        """One page; with a filter it may be short or empty and still have `after`. Times are RFC 3339."""
        query = {
            "limit": limit,
            "after": after,
            "order": order,
            "event_type": event_type,
            "run_id": run_id,
            "user_id": user_id,
            "project_id": project_id,
            "since": since,
            "until": until,
        }
        return await self._calls.page(Event, "events", query=query)

    async def export_page(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        event_type: str | None = None,
        run_id: str | None = None,
        user_id: str | None = None,
        project_id: str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> Page[Event]:
        """The same page, under the permission to export: `client/export.py` takes them all."""
        query = {
            "limit": limit,
            "after": after,
            "order": order,
            "event_type": event_type,
            "run_id": run_id,
            "user_id": user_id,
            "project_id": project_id,
            "since": since,
            "until": until,
        }
        return await self._calls.page(Event, "events", "export", query=query)

    def each(
        self,
        *,
        after: str | None = None,
        order: Order | None = None,
        event_type: str | None = None,
        run_id: str | None = None,
        user_id: str | None = None,
        project_id: str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Every event that the filters let through, up to the end as it stands when it is reached."""
        query = {
            "after": after,
            "order": order,
            "event_type": event_type,
            "run_id": run_id,
            "user_id": user_id,
            "project_id": project_id,
            "since": since,
            "until": until,
        }
        return self._calls.each(Event, "events", query=query)

    def follow(self, *, after: str | None = None) -> AsyncGenerator[Event, None]:
        """Every event behind `after`, and those to come, for ever: each once, across broken connections."""
        return follow(self._calls.transport, target("events", "stream"), self._calls.context, after=after)

    async def last(self) -> Event | None:
        """The newest event; its cursor is where following may begin. None for an empty spine."""
        page = await self.page(limit=1, order="desc")
        return page.items[0] if page.items else None

    async def verify(self, *, expected: Head | None = None) -> Verification:
        """Read the whole spine and its digests. `expected`: a head seen earlier, which it must still hold."""
        return await self._calls.get(Verification, "events", "verify", query=_head_query(expected))

    async def index(self) -> IndexStatus:
        """How far the index by run, user and type has come; what is behind it lists look through."""
        return await self._calls.get(IndexStatus, "events", "index")

    async def rebuild_index(self) -> IndexStatus:
        """Make the index anew, beside requests; lists stay complete and are slower meanwhile."""
        return await self._calls.change(IndexStatus, "POST", "events", "index", "rebuild", repeat=Repeat.READ)


class Streams:
    """Named logs beside the spine."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def append(
        self,
        stream_id: str,
        events: Sequence[NewEvent],
        *,
        expected_position: int | None = None,
        idempotency_key: str | None = None,
    ) -> tuple[Appended, ...]:
        """Append 1 to 500 events, all or none. Raises Conflict where `expected_position` is not the tail."""
        parts = ("streams", stream_id, "events")
        return await _append(self._calls, parts, events, expected_position, idempotency_key)

    async def page(
        self,
        stream_id: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
    ) -> Page[Event]:
        """One page, by position."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(Event, "streams", stream_id, "events", query=query)

    def each(
        self, stream_id: str, *, after: str | None = None, order: Order | None = None
    ) -> AsyncGenerator[Event, None]:
        """Every event, up to the end as it stands when it is reached."""
        query = {"after": after, "order": order}
        return self._calls.each(Event, "streams", stream_id, "events", query=query)

    def follow(self, stream_id: str, *, after: str | None = None) -> AsyncGenerator[Event, None]:
        """Every event behind `after`, and those to come, for ever: each once, across broken connections."""
        path = target("streams", stream_id, "stream")
        return follow(self._calls.transport, path, self._calls.context, after=after)


async def _append(
    calls: Calls,
    parts: tuple[str, ...],
    events: Sequence[NewEvent],
    expected_position: int | None,
    idempotency_key: str | None,
) -> tuple[Appended, ...]:
    body: dict[str, Any] = {"events": events}
    if expected_position is not None:
        body["expected_position"] = expected_position
    # The log knows an event again by its id; under an expected position a repeat would meet its own first
    # arrival at the tail, so that needs a key all the same.
    own_ids = expected_position is None and all(event.event_id is not None for event in events)
    answer = await calls.change(
        AppendedEvents,
        "POST",
        *parts,
        body=body,
        idempotency_key=idempotency_key,
        repeat=Repeat.RECOGNISED if own_ids else Repeat.APPLIED,
    )
    return answer.events


def _head_query(expected: Head | None) -> dict[str, Any]:
    if expected is None:
        return {}
    return {"position": expected.position, "digest": expected.digest}
