"""Analytics events: what a client may say, what stands of it on the spine, what is shown.

Owns the fields of an analytics event and their limits, its form as the payload of a spine event of type
`analytics`, by what it is found, and which of these events a filter admits. An event of that type that a
client appended through the spine itself is an analytics event like any other: of its payload what has the
form of a field counts as that field. Leaves identity and provenance to `stores/event_records.py`, contracts
to `stores/attribution.py`, and taking events in to `stores/analytics.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec

from engines.codec import check_json_value, escaped_bytes
from engines.core.idempotency import Request
from engines.core.log import Entry
from engines.errors import Invalid, TooLarge
from engines.scope import RequestContext, check_id, normalise_surface
from engines.stores.attribution import (
    ContractRef,
    PageTitle,
    Platform,
    Url,
    UtmValue,
)
from engines.stores.event_index import Views
from engines.stores.event_records import (
    NOTHING_SAID,
    ClientSource,
    Event,
    EventType,
    Instant,
    Said,
    SaidEntries,
    StoredBody,
    instant_ms,
    own_event_id,
    said_digest,
)
from engines.stores.scoped import IdentityFields, check_body, check_identity

EVENT_TYPE: Final = "analytics"
"""The type on the spine. The event's own type, such as `page_view`, stands in its payload."""
# Of one event as it is stored, quotes and backslashes counted twice.
EVENT_BYTES_MAX: Final = 64 * 1024

# Of a list of everything this view leads: each event of the type has it, and other events do not.
_EVERYTHING: Final = "all"
_NAMED: Final = "event_type"

GateVerdict = Literal["pass", "fail", "error"]
Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127}\Z")]


class NewAnalyticsEvent(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One event to take in. What is None comes from the context, or stays absent.

    `event_type`: its own type, such as `page_view`. `event_id`: a UUID of the client's own, of any version
    but 8, under which a repeat is recognised while fewer than a segment's size of events were appended since.
    """

    event_type: EventType = EVENT_TYPE
    payload: dict[str, Any] = msgspec.field(default_factory=dict)
    event_id: str | None = None
    platform: Platform | None = None
    session_id: Id | None = None
    request_id: Id | None = None
    run_id: Id | None = None
    step_id: Id | None = None
    thread_id: Id | None = None
    source: ClientSource | None = None
    occurred_at: Instant | None = None
    utm_source: UtmValue | None = None
    utm_medium: UtmValue | None = None
    utm_campaign: UtmValue | None = None
    utm_term: UtmValue | None = None
    utm_content: UtmValue | None = None
    page_url: Url | None = None
    page_title: PageTitle | None = None
    referrer: Url | None = None


class DecodedEvent(NewAnalyticsEvent, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same, made of JSON by msgspec and by nobody else: its fields keep their rules already.

    Looking at each again would cost a third of what taking an event in costs.
    """


class GateStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the gates said. `error`: what kind of failure kept one of them, or all, from saying it."""

    status: GateVerdict
    gate: str | None = None
    reason_code: str | None = None
    error: str | None = None


class EventGate(Protocol):
    """How the gates are asked about the events of a request, which are kept whatever they say."""

    async def judge(
        self, context: RequestContext, *, count: int, request: Request | None
    ) -> GateStatus | None:
        """What they say of `count` events at once; None where nothing guards taking them in.

        Under the same `request` they say the same again. Raises IdempotencyKeyReused; whatever else is raised
        becomes the status `error`.
        """
        ...


class AnalyticsEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An event as it is shown. `contract`: the one that it was validated against, None where none was in
    force; `gate_status`: what the gates said, None where none were asked."""

    platform: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    utm_source: str | None = None
    utm_medium: str | None = None
    utm_campaign: str | None = None
    utm_term: str | None = None
    utm_content: str | None = None
    page_url: str | None = None
    page_title: str | None = None
    referrer: str | None = None
    contract: ContractRef | None = None
    gate_status: GateVerdict | None = None
    gate: str | None = None
    gate_reason_code: str | None = None
    gate_error: str | None = None


class AnalyticsFilter(msgspec.Struct, frozen=True):
    """Which events to list; None leaves a field open. `since` <= timestamp < `until`, both RFC 3339.

    `event_type` is the event's own, such as `page_view`.
    """

    session_id: str | None = None
    platform: str | None = None
    surface_id: str | None = None
    event_type: str | None = None
    since: str | None = None
    until: str | None = None


class _Payload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands in the payload on the spine."""

    event_type: str | None = None
    platform: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    utm_source: str | None = None
    utm_medium: str | None = None
    utm_campaign: str | None = None
    utm_term: str | None = None
    utm_content: str | None = None
    page_url: str | None = None
    page_title: str | None = None
    referrer: str | None = None
    contract: ContractRef | None = None
    gate_status: GateVerdict | None = None
    gate: str | None = None
    gate_reason_code: str | None = None
    gate_error: str | None = None
    payload: dict[str, Any] | None = None


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Payload).decode
_NOTHING: Final = _Payload()
# What the client itself says of an event; not who it is.
_SAID: Final = tuple(
    name for name in NewAnalyticsEvent.__struct_fields__ if name not in IdentityFields.__struct_fields__
)
_SAID_BESIDE: Final = ("run_id", "step_id", "thread_id", "source", "occurred_at")
_said_of: Final = attrgetter(*_SAID_BESIDE)
_NONE_SAID: Final = (None,) * len(_SAID_BESIDE)
_ADDED: Final = tuple(
    name for name in AnalyticsEvent.__struct_fields__ if name not in Event.__struct_fields__
)


def checked_event(context: RequestContext, event: NewAnalyticsEvent) -> NewAnalyticsEvent:
    """Raises Invalid with the `field` that breaks a rule, ContextMismatch with the one that names another."""
    if type(event) is DecodedEvent:
        check_identity(context, event)
    else:
        event = check_body(context, event)
        check_json_value(event.payload, "payload")
    if event.occurred_at is not None:
        instant_ms(event.occurred_at, "occurred_at")
    if event.event_id is not None:
        own_event_id(event.event_id)
    return event


class EventEntries:
    """What is appended to the spine of the events of one request."""

    def __init__(self, context: RequestContext) -> None:
        self._context = context
        self._said = SaidEntries(context, EVENT_TYPE)

    def entry(
        self, event: NewAnalyticsEvent, contract: ContractRef | None, gates: GateStatus | None
    ) -> Entry:
        """Of an event that was checked. Raises Invalid (text that is not Unicode)."""
        payload = _Payload(
            event_type=event.event_type,
            platform=event.platform,
            session_id=event.session_id or self._context.session_id,
            request_id=event.request_id or self._context.request_id,
            utm_source=event.utm_source,
            utm_medium=event.utm_medium,
            utm_campaign=event.utm_campaign,
            utm_term=event.utm_term,
            utm_content=event.utm_content,
            page_url=event.page_url,
            page_title=event.page_title,
            referrer=event.referrer,
            contract=contract,
            payload=event.payload,
        )
        if gates is not None:
            payload = msgspec.structs.replace(
                payload,
                gate_status=gates.status,
                gate=gates.gate,
                gate_reason_code=gates.reason_code,
                gate_error=gates.error,
            )
        try:
            text = _encode(payload)
        except UnicodeEncodeError:
            raise Invalid("text holds a character that is not Unicode") from None
        return self._entry(event, text)

    def _entry(self, event: NewAnalyticsEvent, payload: bytes) -> Entry:
        values = _said_of(event)
        said = NOTHING_SAID if values == _NONE_SAID else Said(**dict(zip(_SAID_BESIDE, values, strict=True)))
        if event.event_id is None:
            return self._said.entry(payload, said)
        return self._said.entry(
            payload,
            said,
            event_id=own_event_id(event.event_id),
            digest=said_digest(self._context, _said(event)),
        )


def check_size(entry: Entry) -> None:
    """Raises TooLarge. Once only: what the context says of an event may be longer when it is repeated."""
    if 4 * len(entry.body) > EVENT_BYTES_MAX and escaped_bytes(entry.body) > EVENT_BYTES_MAX:
        raise TooLarge(
            f"an event holds at most {EVENT_BYTES_MAX} bytes, quotes and backslashes counted twice"
        )


def shown(event: Event, body: StoredBody | None) -> AnalyticsEvent:
    """The event with its fields, and as `payload` what the client gave as that."""
    found = _NOTHING if body is None else _payload_of(body)
    values: dict[str, Any] = msgspec.structs.asdict(event)
    values.update((name, getattr(found, name)) for name in _ADDED)
    if found.event_type is not None:
        values["event_type"] = found.event_type
    if found.payload is not None:
        values["payload"] = found.payload
    return AnalyticsEvent(**values)


def _of_analytics(body: StoredBody) -> Iterator[tuple[str, str]]:
    if body.event_type != EVENT_TYPE:
        return
    found = _payload_of(body)
    if found.session_id is not None:
        yield "session_id", found.session_id
    if found.platform is not None:
        yield "platform", found.platform
    yield "surface_id", body.surface_id
    yield _NAMED, found.event_type or EVENT_TYPE
    yield _EVERYTHING, EVENT_TYPE


VIEWS: Final = Views(("session_id", _NAMED, "platform", "surface_id", _EVERYTHING), _of_analytics)


class Where(msgspec.Struct, frozen=True):
    """A filter that was checked, as `stores/event_pages.py` wants it."""

    session_id: str | None
    platform: str | None
    surface_id: str | None
    event_type: str | None
    since_ms: int | None
    until_ms: int | None

    looks_inside = True

    @property
    def values(self) -> Mapping[str, str | None]:
        return {
            "session_id": self.session_id,
            _NAMED: self.event_type,
            "platform": self.platform,
            "surface_id": self.surface_id,
            _EVERYTHING: EVENT_TYPE,
        }

    def admits(self, body: StoredBody | None) -> bool:
        if body is None or body.event_type != EVENT_TYPE or self.surface_id not in (None, body.surface_id):
            return False
        found = _payload_of(body)
        return (
            self.session_id in (None, found.session_id)
            and self.platform in (None, found.platform)
            and self.event_type in (None, found.event_type or EVENT_TYPE)
        )


def checked_filter(where: AnalyticsFilter) -> Where:
    """Raises Invalid for a value that no event can have."""
    for name in ("session_id", "platform"):
        if (value := getattr(where, name)) is not None:
            check_id(value, name)
    if where.event_type is not None:
        try:
            msgspec.convert(where.event_type, EventType)
        except msgspec.ValidationError:
            raise Invalid("an event type matches ^[a-z][a-z0-9_]{0,63}$", field="event_type") from None
    return Where(
        session_id=where.session_id,
        platform=where.platform,
        surface_id=None if where.surface_id is None else normalise_surface(where.surface_id),
        event_type=where.event_type,
        since_ms=None if where.since is None else instant_ms(where.since, "since"),
        until_ms=None if where.until is None else instant_ms(where.until, "until"),
    )


def _payload_of(body: StoredBody) -> _Payload:
    try:
        return _decode(body.payload)
    except msgspec.MsgspecError:  # A client's own form.
        return _NOTHING


def _said(event: NewAnalyticsEvent) -> Mapping[str, Any]:
    values = ((name, getattr(event, name)) for name in _SAID)
    return {name: value for name, value in values if value is not None}
