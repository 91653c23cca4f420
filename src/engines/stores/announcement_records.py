"""What is written of an announcement: the message beside a change, and the place that a pledge names.

Owns both texts and what a message becomes: whose event, and under which id. Leaves writing, delivering and
removing to `stores/announcements.py`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engines.codec import Codec, decode_json, encode_json
from engines.core.outbox import event_id_of
from engines.core.place import Place
from engines.ports.documents import Doc
from engines.scope import RequestContext
from engines.stores.event_records import SystemEvent


class Where(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place as a pledge names it, and a context that led there: where that leads now, it may have moved.

    `backend_id` is None in a pledge of an earlier version, which named a context alone.
    """

    kind: str
    tenant_id: str
    mode: str
    env: str
    os_id: str
    surface_id: str
    app_id: str | None = None
    project_id: str | None = None
    backend_id: str | None = None
    generation: int = 0


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="schema", tag="announcement/1"
):
    """One waiting event, and the context in which it happened.

    `made_ms`: when, in epoch milliseconds. An earlier version left out this, `mode` and `os_id`, which were
    those of whoever changed the partition next.
    """

    event_type: str
    payload: msgspec.Raw
    user_id: str
    run_id: str
    step_id: str
    trace_id: str
    span_id: str
    surface_id: str
    app_id: str | None = None
    project_id: str | None = None
    thread_id: str | None = None
    parent_event_id: str | None = None
    mode: str | None = None
    os_id: str | None = None
    made_ms: int = 0


class Waiting(msgspec.Struct, frozen=True):
    """A message that was read, in whose context it goes to the spine."""

    doc: Doc
    context: RequestContext
    event: SystemEvent
    made_ms: int


MESSAGES: Final = Codec(Message)
WHERES: Final = msgspec.json.Decoder(Where)


def message_of(
    context: RequestContext,
    event_type: str,
    payload: dict[str, Any],
    *,
    parent_event_id: str | None,
    made_ms: int,
) -> str:
    """The text of a message: the event, and the context in which it happened."""
    return MESSAGES.encode(
        Message(
            event_type=event_type,
            payload=msgspec.Raw(encode_json(payload).encode()),
            user_id=context.user_id,
            run_id=context.run_id,
            step_id=context.step_id,
            trace_id=context.trace_id,
            span_id=context.span_id,
            surface_id=context.surface_id,
            app_id=context.app_id,
            project_id=context.project_id,
            thread_id=context.thread_id,
            parent_event_id=parent_event_id,
            mode=context.mode,
            os_id=context.os_id,
            made_ms=made_ms,
        )
    )


def waiting_of(where: Where, doc: Doc) -> Waiting:
    """What a message becomes. Its id is not made of the partition's name, which changes as the kind moves."""
    message = MESSAGES.decode(doc.body)
    context = _context_of(where, message)
    event = SystemEvent(
        event_type=message.event_type,
        payload=decode_json(bytes(message.payload)),
        event_id=event_id_of(f"{where.kind}.{where.tenant_id}.{where.env}", doc.key),
        parent_event_id=message.parent_event_id,
        whose=context,
    )
    return Waiting(doc, context, event, message.made_ms)


def where_of(context: RequestContext, place: Place) -> Where:
    return Where(
        kind=place.kind,
        tenant_id=context.tenant_id,
        mode=context.mode,
        env=context.env,
        os_id=context.os_id,
        surface_id=context.surface_id,
        app_id=context.app_id,
        project_id=context.project_id,
        backend_id=place.backend_id,
        generation=place.generation,
    )


def context_at(where: Where) -> RequestContext:
    """The server itself at work at a place: it may do nothing that needs a permission."""
    return RequestContext(
        tenant_id=where.tenant_id,
        mode=where.mode,
        env=where.env,
        user_id="system",
        roles=(),
        permissions=frozenset(),
        os_id=where.os_id,
        surface_id=where.surface_id,
        app_id=where.app_id,
        project_id=where.project_id,
        run_id="announcements",
        step_id="0",
        request_id="announcements",
        trace_id="0" * 32,
        span_id="0" * 16,
        lab=where.mode == "lab",
        sources={},
    )


def _context_of(where: Where, message: Message) -> RequestContext:
    """Whose change it was: it decides the spine, and the event says so."""
    mode = message.mode or where.mode
    return msgspec.structs.replace(
        context_at(where),
        mode=mode,
        lab=mode == "lab",
        os_id=message.os_id or where.os_id,
        user_id=message.user_id,
        run_id=message.run_id,
        step_id=message.step_id,
        trace_id=message.trace_id,
        span_id=message.span_id,
        surface_id=message.surface_id,
        app_id=message.app_id,
        project_id=message.project_id,
        thread_id=message.thread_id,
    )
