"""Events: what a client may say, what is stored, what is shown.

Owns the rules of an event's fields, the stored text and the digest by which a repeat of a client's own id is
recognised. Leaves positions, minted ids and time to `core/log.py` and paging to `stores/event_pages.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec

from engines.clock import timestamp
from engines.codec import Codec, canonical_json, check_json_value, decode_json, encode_json
from engines.core.cursor import Cursors
from engines.core.log import Entry, StoredEvent
from engines.errors import Forbidden, Invalid
from engines.scope import RequestContext, check_id
from engines.stores.scoped import AGENT_ROLE, IdentityFields, check_body, validated

RESERVED_TYPES: Final = frozenset(("audit", "safety", "budget", "strategy_lock"))
TRACE_ID_CHARS_MAX: Final = 128
INSTANT_CHARS_MAX: Final = 64
# The type under which an event shows whose text was removed for ever.
REDACTED: Final = "redacted"

ClientSource = Literal["ui", "agent", "connector", "tool"]
Source = Literal["ui", "agent", "connector", "tool", "system"]
EventType = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Instant = Annotated[str, msgspec.Meta(max_length=INSTANT_CHARS_MAX)]
TraceId = Annotated[str, msgspec.Meta(min_length=1, max_length=TRACE_ID_CHARS_MAX)]

# Refuses a payload that events of this type may not have; a log without one takes any.
PayloadCheck = Callable[[str, Mapping[str, Any]], None]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UUID_VERSION_INDEX: Final = 14
_MINTED_VERSION: Final = "8"
_RFC_3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


class Causality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where an event belongs in a trace."""

    trace_id: TraceId | None = None
    span_id: TraceId | None = None


class NewEvent(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One event that a client appends. What is None comes from the context, or stays absent.

    `event_id`: a UUID of the client's own, of any version but 8; a repeat under it is recognised while fewer
    than a segment's size of events were appended since. `occurred_at`: RFC 3339, the client's own time.
    """

    event_type: EventType
    payload: dict[str, Any]
    event_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    parent_event_id: str | None = None
    thread_id: str | None = None
    source: ClientSource | None = None
    occurred_at: Instant | None = None
    causality: Causality | None = None


_SAID: Final = tuple(
    name for name in NewEvent.__struct_fields__ if name not in IdentityFields.__struct_fields__
)


class SystemEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the server's own, of any type. With an `event_id` it can be appended again safely.

    `causality`: where another trace than the context's caused it. `whose`: whose doing it was, where that is
    not the context's; of the same tenant, mode and env.
    """

    event_type: str
    payload: dict[str, Any]
    event_id: str | None = None
    parent_event_id: str | None = None
    causality: Causality | None = None
    whose: RequestContext | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event as it is shown. `timestamp` is the server's; `cursor` goes on behind this event.

    Of a redacted event its place, id and time are left: its type is `redacted`, its payload None.
    """

    event_id: str
    tenant_id: str
    mode: str
    env: str
    user_id: str | None = None
    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    run_id: str
    step_id: str
    parent_event_id: str | None = None
    thread_id: str | None = None
    timestamp: str
    occurred_at: str | None = None
    event_type: str
    source: Source
    payload: dict[str, Any] | None
    route: str
    causality: Causality
    position: int
    cursor: str


class EventText(msgspec.Struct, frozen=True):
    """An event as it is shown, as JSON in one line. For whoever passes it on and does not look into it."""

    cursor: str
    text: bytes


class StoredBody(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="schema", tag="event/1"
):
    """The stored text of an event: all but its position, its time and a minted id, which its commit has.

    The payload stays text until somebody wants it.
    """

    event_id: str | None = None
    tenant_id: str
    mode: str
    env: str
    user_id: str
    surface_id: str
    app_id: str | None = None
    project_id: str | None = None
    run_id: str
    step_id: str
    parent_event_id: str | None = None
    thread_id: str | None = None
    occurred_at: str | None = None
    event_type: str
    source: Source
    trace_id: str | None = None
    span_id: str | None = None
    payload: msgspec.Raw


_CODEC: Final = Codec(StoredBody)
_encode: Final = msgspec.json.Encoder().encode
_NO_PAYLOAD: Final = msgspec.Raw(b"null")
_WITHOUT_PAYLOAD: Final = "null}"
assert StoredBody.__struct_fields__[-1] == "payload"


class EventView:
    """Makes shown events of the stored ones of one log."""

    __slots__ = ("_cursors", "_env", "_route", "_tenant_id")

    def __init__(self, *, tenant_id: str, env: str, route: str, cursors: Cursors) -> None:
        self._tenant_id = tenant_id
        self._env = env
        self._route = route
        self._cursors = cursors

    def shown(self, stored: StoredEvent) -> Event:
        """Raises Corrupt."""
        return self.show(stored, stored_body(stored))

    def show(self, stored: StoredEvent, body: StoredBody | None) -> Event:
        """The same for a caller who decoded the text already."""
        if body is None:
            return self._redacted(stored)
        return self._event(stored, body, decode_json(bytes(body.payload)))

    def text(self, stored: StoredEvent) -> EventText:
        """The event's JSON. Its payload stays text: as objects it may take twenty times the room.

        Raises Corrupt.
        """
        body = stored_body(stored)
        if body is None or _has_line_end(body.payload):
            event = self.show(stored, body)
        else:
            event = self._event(stored, body, body.payload)
        return EventText(event.cursor, _encode(event))

    def _event(self, stored: StoredEvent, body: StoredBody, payload: Any) -> Event:
        return Event(
            event_id=stored.event_id,
            tenant_id=body.tenant_id,
            mode=body.mode,
            env=body.env,
            user_id=body.user_id,
            surface_id=body.surface_id,
            app_id=body.app_id,
            project_id=body.project_id,
            run_id=body.run_id,
            step_id=body.step_id,
            parent_event_id=body.parent_event_id,
            thread_id=body.thread_id,
            timestamp=timestamp(stored.at_ms / 1000),
            occurred_at=body.occurred_at,
            event_type=body.event_type,
            source=body.source,
            payload=payload,
            route=self._route,
            causality=Causality(body.trace_id, body.span_id),
            position=stored.position,
            cursor=self._cursors.of_position(stored.position),
        )

    def _redacted(self, stored: StoredEvent) -> Event:
        """An event whose text was removed for ever."""
        return Event(
            event_id=stored.event_id,
            tenant_id=self._tenant_id,
            mode="",
            env=self._env,
            run_id="",
            step_id="",
            timestamp=timestamp(stored.at_ms / 1000),
            event_type=REDACTED,
            source="system",
            payload=None,
            route=self._route,
            causality=Causality(),
            position=stored.position,
            cursor=self._cursors.of_position(stored.position),
        )


def _has_line_end(payload: msgspec.Raw) -> bool:
    text = bytes(payload)
    return b"\n" in text or b"\r" in text


def stored_body(stored: StoredEvent) -> StoredBody | None:
    """What stands in the log of an event; None once it is redacted. Raises Corrupt."""
    return None if stored.body is None else _CODEC.decode(stored.body)


def client_entry(
    context: RequestContext, event: NewEvent, *, check_payload: PayloadCheck | None = None
) -> Entry:
    """What a client's event becomes.

    Raises Invalid and ContextMismatch with the `field`, and Forbidden for a type that is the server's.
    """
    event = check_body(context, event)
    if event.event_type in RESERVED_TYPES:
        raise Forbidden("events of this type are the server's own", field="event_type")
    if check_payload is not None:
        check_payload(event.event_type, event.payload)
    check_json_value(event.payload, "payload")
    if event.occurred_at is not None:
        instant_ms(event.occurred_at, "occurred_at")
    event_id = own_event_id(event.event_id)
    cause = None
    if event.causality is not None:
        cause = validated(event.causality, "causality")
    said = Said(
        run_id=event.run_id,
        step_id=event.step_id,
        parent_event_id=_uuid(event.parent_event_id, "parent_event_id"),
        thread_id=event.thread_id,
        source=event.source,
        occurred_at=event.occurred_at,
        cause=cause,
    )
    return SaidEntries(context, event.event_type).entry(
        encode_json(event.payload).encode(),
        said,
        event_id=event_id,
        digest=None if event_id is None else said_digest(context, _said(event)),
    )


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a client said of an event beside its payload; checked already, but for the names that are ids."""

    run_id: str | None = None
    step_id: str | None = None
    parent_event_id: str | None = None
    thread_id: str | None = None
    source: ClientSource | None = None
    occurred_at: str | None = None
    cause: Causality | None = None


NOTHING_SAID: Final = Said()


class SaidEntries:
    """The entries of one type in one request. All that the context says of them is made into text once.

    Making it anew for each event would cost half of what an entry costs.
    """

    __slots__ = ("_before_payload", "_context", "_event_type")

    def __init__(self, context: RequestContext, event_type: str) -> None:
        self._context = context
        self._event_type = event_type
        self._before_payload: str | None = None

    def entry(
        self,
        payload: bytes,
        said: Said = NOTHING_SAID,
        *,
        event_id: str | None = None,
        digest: str | None = None,
    ) -> Entry:
        """`payload`: JSON. `digest`: by which a repeat under `event_id` is recognised.

        Raises Invalid for a run, step or thread that is no id.
        """
        if event_id is not None or said is not NOTHING_SAID:
            return Entry(self._text_before(said, event_id) + payload.decode() + "}", event_id, digest)
        if self._before_payload is None:
            self._before_payload = self._text_before(said, None)
        return Entry(f"{self._before_payload}{payload.decode()}}}")

    def _text_before(self, said: Said, event_id: str | None) -> str:
        """Of the stored text what stands before the payload, which is the last of it."""
        context, cause = self._context, said.cause
        body = StoredBody(
            event_id=event_id,
            tenant_id=context.tenant_id,
            mode=context.mode,
            env=context.env,
            user_id=context.user_id,
            surface_id=context.surface_id,
            app_id=context.app_id,
            project_id=context.project_id,
            run_id=_named(said.run_id, "run_id") or context.run_id,
            step_id=_named(said.step_id, "step_id") or context.step_id,
            parent_event_id=said.parent_event_id,
            thread_id=_named(said.thread_id, "thread_id") or context.thread_id,
            occurred_at=said.occurred_at,
            event_type=self._event_type,
            source=said.source or (AGENT_ROLE if AGENT_ROLE in context.roles else "ui"),
            trace_id=context.trace_id if cause is None else cause.trace_id,
            span_id=context.span_id if cause is None else cause.span_id,
            payload=_NO_PAYLOAD,
        )
        text = _CODEC.encode(body)
        assert text.endswith(_WITHOUT_PAYLOAD)
        return text.removesuffix(_WITHOUT_PAYLOAD)


def own_event_id(text: str | None) -> str | None:
    """A client's own id in its canonical form. Raises Invalid."""
    event_id = _uuid(text, "event_id")
    if event_id is not None and event_id[_UUID_VERSION_INDEX] == _MINTED_VERSION:
        raise Invalid("a UUID of version 8 is the server's to mint", field="event_id")
    return event_id


def system_entry(
    context: RequestContext, event: SystemEvent, *, check_payload: PayloadCheck | None = None
) -> Entry:
    """What an event of the server's own becomes; a trace of zeros is none. Raises Invalid."""
    if check_payload is not None:
        check_payload(event.event_type, event.payload)
    payload = encode_json(event.payload)
    context = context if event.whose is None else event.whose
    cause = event.causality
    if cause is None:
        has_trace = bool(context.trace_id.strip("0"))
        cause = Causality(context.trace_id, context.span_id) if has_trace else Causality()
    body = StoredBody(
        event_id=event.event_id,
        tenant_id=context.tenant_id,
        mode=context.mode,
        env=context.env,
        user_id=context.user_id,
        surface_id=context.surface_id,
        app_id=context.app_id,
        project_id=context.project_id,
        run_id=context.run_id,
        step_id=context.step_id,
        parent_event_id=event.parent_event_id,
        thread_id=context.thread_id,
        event_type=event.event_type,
        source="system",
        trace_id=cause.trace_id,
        span_id=cause.span_id,
        payload=msgspec.Raw(payload.encode()),
    )
    # The context is derived anew for each attempt, and may differ: what was to be said is the same.
    digest = None if event.event_id is None else _digest(event.event_type, event.payload)
    return Entry(_CODEC.encode(body), event.event_id, digest)


def instant_ms(text: str, field: str) -> int:
    """An RFC 3339 instant in epoch milliseconds, rounded up. Raises Invalid."""
    if not _RFC_3339.fullmatch(text):
        raise Invalid("an instant is RFC 3339, such as 2026-11-21T14:00:00Z", field=field)
    try:
        return -((_EPOCH - datetime.fromisoformat(text.upper())) // _MILLISECOND)
    except (ValueError, OverflowError):
        raise Invalid("there is no such instant", field=field) from None


def is_uuid(text: str) -> bool:
    """Whether it has the form of an event id, whoever made it."""
    return _UUID.fullmatch(text.lower()) is not None


def _uuid(text: str | None, field: str) -> str | None:
    if text is None:
        return None
    lowered = text.lower()
    if not _UUID.fullmatch(lowered):
        raise Invalid("an event id is a UUID of 36 characters", field=field)
    return lowered


def _named(text: str | None, field: str) -> str | None:
    return None if text is None else check_id(text, field)


def said_digest(context: RequestContext, said: Mapping[str, Any]) -> str:
    """Of what the client itself said, so that a repeat in another request is the same event."""
    return _digest(context.user_id, said)


def _said(event: NewEvent) -> Mapping[str, Any]:
    values = ((name, getattr(event, name)) for name in _SAID)
    return {name: value for name, value in values if value is not None}


def _digest(*said: Any) -> str:
    return hashlib.sha256(canonical_json(said).encode()).hexdigest()
