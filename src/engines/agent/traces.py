"""Traces: what a turn of an agent did, span by span, for whoever looks into it afterwards.

Owns the trace's data model and that its spans make trees. A trace is written once, when the turn is over;
what has to be seen while it happens are events of the spine. Leaves what attributes mean to the agent, and
how traces are kept to `agent/kept.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engines import catalogue
from engines.agent.kept import Kept
from engines.agent.sequences import item_id
from engines.agent.sessions import READ, WRITE, Sessions
from engines.clock import Clock, epoch_ms, timestamp
from engines.codec import Codec, check_json_value
from engines.core.idempotency import Request
from engines.core.listing import START, Listed, Window
from engines.core.place import Places
from engines.errors import Invalid
from engines.ports.documents import Doc
from engines.scope import RequestContext
from engines.stores.scoped import (
    Change,
    IdentityFields,
    Stamped,
    check_body,
    stamp,
    validated,
    with_etag,
)

SPANS_MAX: Final = 1_000
NAME_CHARS_MAX: Final = 200

Outcome = Literal["ok", "error"]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
SpanId = Annotated[str, Meta(min_length=1, max_length=128)]
Instant = Annotated[str, Meta(max_length=64)]


class Span(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One step of a turn: a call of a model, of a tool, or whatever the agent does. Instants are RFC 3339.

    `parent_span_id` names another span of the same trace.
    """

    span_id: SpanId
    name: Name
    started_at: Instant
    ended_at: Instant
    parent_span_id: SpanId | None = None
    status: Outcome = "ok"
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)


class TraceInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a new trace: a turn that is over."""

    name: Name
    started_at: Instant
    ended_at: Instant
    status: Outcome = "ok"
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    spans: Annotated[list[Span], Meta(max_length=SPANS_MAX)] = msgspec.field(default_factory=list)


class Trace(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """A trace as it is stored and shown. Lists leave `spans` out, and say how many there are."""

    trace_id: str
    session_id: str
    number: int
    name: str
    started_at: str
    ended_at: str
    status: Outcome
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    span_count: int
    spans: list[Span] = msgspec.field(default_factory=list)
    created_at: str


class _Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="trace/1"):
    record: Trace


_CODEC: Final = Codec(_Stored)


class Traces:
    """The traces of the caller's sessions. Any number of concurrent calls on one event loop.

    Every method raises Invalid (a malformed id), NotFound (no such session, or one that is being deleted),
    Forbidden (the role does not grant it), ContextMismatch, MissingRoute, ForbiddenBackendClass, Throttled,
    Unavailable, BackendRefused, Corrupt; changes also OutcomeUnknown.
    """

    def __init__(self, places: Places, sessions: Sessions, clock: Clock) -> None:
        self._sessions = sessions
        self._clock = clock
        self._kept = Kept(catalogue.TRACES, "trace", places, sessions, _shown)

    async def record(
        self, context: RequestContext, session_id: str, trace: TraceInput, *, request: Request | None = None
    ) -> Change[Trace]:
        """Keep a trace. Two reads and one write; past what the route keeps, the oldest one goes.

        Raises Invalid (a span whose parent is not there, a time that ends before it begins), TooLarge,
        IdempotencyKeyReused, Conflict (a session that is being copied; too many others recorded one
        meanwhile).
        """
        context.require_data(WRITE)
        trace = check_body(context, trace)
        _check(trace)
        await self._sessions.accepting(context, session_id)
        now = timestamp(self._clock.now())

        def text(number: int) -> str:
            record = Trace(
                **stamp(context),
                trace_id=item_id(session_id, number),
                session_id=session_id,
                number=number,
                name=trace.name,
                started_at=trace.started_at,
                ended_at=trace.ended_at,
                status=trace.status,
                attributes=trace.attributes,
                span_count=len(trace.spans),
                spans=trace.spans,
                created_at=now,
            )
            return _CODEC.encode(_Stored(record))

        return await self._kept.append(context, session_id, text, request)

    async def get(self, context: RequestContext, trace_id: str) -> Trace:
        """A trace with its spans. Two reads. Raises NotFound, also for one that is no longer kept."""
        context.require_data(READ)
        return await self._kept.get(context, trace_id)

    async def list(
        self, context: RequestContext, session_id: str, *, window: Window = START
    ) -> Listed[Trace]:
        """A session's traces without their spans, the oldest first. Two reads.

        Raises Invalid (a limit or a cursor).
        """
        context.require_data(READ)
        return await self._kept.list(context, session_id, window=window, shown=_without_spans)


def _check(trace: TraceInput) -> None:
    """Raises Invalid with the `field` that breaks its rule."""
    check_json_value(trace.attributes, "attributes")
    _check_times(trace, "")
    names: set[str] = set()
    for index, span in enumerate(trace.spans):
        field = f"spans[{index}]"
        validated(span, field)
        check_json_value(span.attributes, f"{field}.attributes")
        _check_times(span, f"{field}.")
        if span.span_id in names:
            raise Invalid("two spans of a trace have one id", field=f"{field}.span_id")
        names.add(span.span_id)
    _check_parents(trace.spans)


def _check_parents(spans: Sequence[Span]) -> None:
    """Every parent is there, and nobody is above itself: what was seen to have a root is not walked again."""
    parents = {span.span_id: span.parent_span_id for span in spans}
    index_of = {span.span_id: index for index, span in enumerate(spans)}
    for span in spans:
        if span.parent_span_id is not None and span.parent_span_id not in parents:
            raise _wrong_parent(index_of[span.span_id], "no span of this trace has this id")
    rooted: set[str] = set()
    for span in spans:
        path: set[str] = set()
        above: str | None = span.span_id
        while above is not None and above not in rooted:
            if above in path:
                raise _wrong_parent(index_of[above], "a span is above itself")
            path.add(above)
            above = parents[above]
        rooted |= path


def _wrong_parent(index: int, detail: str) -> Invalid:
    return Invalid(detail, field=f"spans[{index}].parent_span_id")


def _check_times(told: TraceInput | Span, within: str) -> None:
    instants = []
    for name in ("started_at", "ended_at"):
        try:
            instants.append(epoch_ms(getattr(told, name)))
        except (ValueError, OverflowError):
            raise Invalid("an instant is RFC 3339 with a time zone", field=f"{within}{name}") from None
    if instants[0] > instants[1]:
        raise Invalid("it ends before it begins", field=f"{within}ended_at")


def _shown(doc: Doc) -> Trace:
    return with_etag(_CODEC.decode(doc.body).record, doc.version)


def _without_spans(doc: Doc) -> Trace:
    return msgspec.structs.replace(_shown(doc), spans=[])
