"""The event spine and event streams over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from engines.api.call import Call
from engines.api.endpoint import Guarded, Router, Sendable
from engines.api.reply import Reply, json_reply
from engines.api.stream import EventStream
from engines.api.views import Cursor, ListQuery, Page, page_reply
from engines.core.log import Head
from engines.errors import Invalid
from engines.stores.event_payloads import PAYLOADS
from engines.stores.events import (
    AppendedEvent,
    AppendedEvents,
    Event,
    EventFilter,
    IndexStatus,
    LogVerification,
    NewEvent,
    NewEvents,
    NewStreamEvent,
    NewStreamEvents,
)

router = Router("events")
STREAM = "/streams/{stream_id}"

Position = Annotated[int, Meta(ge=0, le=2**48 - 1)]


class EventQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a log, and what to leave out of it. `since` <= timestamp < `until`."""

    event_type: str | None = None
    run_id: str | None = None
    user_id: str | None = None
    project_id: str | None = None
    since: str | None = None
    until: str | None = None

    def where(self) -> EventFilter:
        return EventFilter(
            self.event_type, self.run_id, self.user_id, self.project_id, self.since, self.until
        )


class FollowQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where to begin: a cursor or an event id. `Last-Event-ID` says the same, and wins."""

    after: Cursor | None = None


class VerifyQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A head seen before, which the spine must still hold: both or neither."""

    position: Position | None = None
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None

    def head(self) -> Head | None:
        """Raises Invalid for half of one."""
        if self.position is None and self.digest is None:
            return None
        if self.position is None or self.digest is None:
            missing = "position" if self.position is None else "digest"
            raise Invalid("a head is a position and its digest", field=missing)
        return Head(self.position, self.digest)


class AppendedView(msgspec.Struct, frozen=True):
    """Where each event stands, in the order of the request."""

    events: tuple[AppendedEvent, ...]


def _one_or_many(value: Any) -> Any:
    """A body is one event, or `{"events": [...]}`."""
    return NewEvents if isinstance(value, dict) and "events" in value else NewEvent


def _one_or_many_for_stream(value: Any) -> Any:
    return NewStreamEvents if isinstance(value, dict) and "events" in value else NewStreamEvent


# --- the spine ---


@router.post(
    "/events",
    body=NewEvent | NewEvents,
    type_of=_one_or_many,
    reply=AppendedView,
    statuses=(201,),
    payloads={event_type: tuple(kinds.values()) for event_type, kinds in PAYLOADS.items()},
)
async def append_events(call: Call) -> Sendable:
    """Append one event or up to 500, all or nothing, to the tenant's spine.

    The payload of some types has to be of one of that type's kinds; that of every other type is free.
    """
    context = await call.context()
    body = await call.any_body()
    events = body.events if isinstance(body, NewEvents) else (body,)
    return _appended(await call.engines.spine.append(context, events, request=call.request(context)))


@router.get("/events", query=EventQuery, reply=Page[Event])
async def list_events(call: Call) -> Sendable:
    """Events of the spine, by position."""
    query = call.query(EventQuery)
    context = await call.context()
    return page_reply(await call.engines.spine.list(context, query.where(), window=query.window()))


@router.get("/events/export", query=EventQuery, reply=Page[Event])
async def export_events(call: Call) -> Sendable:
    """Events of the spine, by position, for whoever takes them away: the pages of the list.

    It needs the permission to export.
    """
    query = call.query(EventQuery)
    context = await call.context()
    return page_reply(await call.engines.spine.export(context, query.where(), window=query.window()))


@router.get("/events/stream", query=FollowQuery, is_stream=True)
async def follow_events(call: Call) -> Sendable:
    """The spine as server-sent events, from the first or behind a place, and on as they come."""
    context = await call.context()
    batches = await call.engines.spine.follow_text(context, after=_place(call))
    return EventStream(call, context, batches, permission="events.read")


@router.get("/events/verify", query=VerifyQuery, reply=LogVerification)
async def verify_events(call: Call) -> Sendable:
    """Read the whole spine and its digests, and say whether it is what was written."""
    expected = call.query(VerifyQuery).head()
    return json_reply(await call.engines.spine.verify(await call.context(), expected=expected))


@router.get("/events/index", reply=IndexStatus)
async def get_index(call: Call) -> Sendable:
    """How far the spine's index by run, user and type has come; what is behind it lists look through."""
    return json_reply(await call.engines.spine.index_status(await call.context()))


@router.post("/events/index/rebuild", reply=IndexStatus, is_idempotent=False)
async def rebuild_index(call: Call) -> Sendable:
    """Make the spine's index anew, beside requests; lists stay complete and are slower meanwhile."""
    return json_reply(await call.engines.spine.rebuild_index(await call.context()))


@router.get("/events/{event_id}", reply=Event)
async def get_event(call: Call) -> Sendable:
    """One event, whoever minted its id."""
    return json_reply(await call.engines.spine.get(await call.context(), call.id("event_id")))


# --- streams ---


@router.post(
    f"{STREAM}/events",
    body=NewStreamEvent | NewStreamEvents,
    type_of=_one_or_many_for_stream,
    reply=AppendedView,
    statuses=(201,),
    guarded=Guarded("streams.append", "streams.write"),
)
async def append_to_stream(call: Call) -> Sendable:
    """Append one event or up to 500, all or nothing, to a stream, which begins with its first event."""
    context = await call.context()
    body = await call.any_body()
    events: Sequence[NewEvent] = body.events if isinstance(body, NewStreamEvents) else (_plain(body),)
    appended = await call.engines.streams.append(
        context,
        call.id("stream_id"),
        events,
        expected_position=body.expected_position,
        request=call.request(context),
    )
    return _appended(appended)


@router.get(f"{STREAM}/events", query=EventQuery, reply=Page[Event])
async def list_stream(call: Call) -> Sendable:
    """Events of a stream, by position."""
    query = call.query(EventQuery)
    context = await call.context()
    listed = await call.engines.streams.list(
        context, call.id("stream_id"), query.where(), window=query.window()
    )
    return page_reply(listed)


@router.get(f"{STREAM}/stream", query=FollowQuery, is_stream=True)
async def follow_stream(call: Call) -> Sendable:
    """A stream as server-sent events, from the first that is kept or behind a place."""
    context = await call.context()
    batches = await call.engines.streams.follow_text(context, call.id("stream_id"), after=_place(call))
    return EventStream(call, context, batches, permission="streams.read")


def _appended(appended: AppendedEvents) -> Reply:
    return json_reply(AppendedView(appended.events), status=201, replayed=appended.replayed)


def _place(call: Call) -> str | None:
    """Where to begin. `Last-Event-ID` is sent by the browser when it comes back, so it wins."""
    after = call.query(FollowQuery).after
    return call.fields.get(b"last-event-id") or after


def _plain(event: NewStreamEvent) -> NewEvent:
    """Without what is about the stream and not about the event."""
    return NewEvent(**{name: getattr(event, name) for name in NewEvent.__struct_fields__})
