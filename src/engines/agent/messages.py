"""Messages: what was said in a session, in order, for as long as the session is there.

Owns the message's data model and how many a session holds. A message never changes. Leaves numbers and
races to `agent/sequences.py`, and the session to `agent/sessions.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engines import catalogue
from engines.agent import sequences
from engines.agent.sequences import Address, Rules, address, item_id
from engines.agent.sessions import READ, WRITE, Sessions
from engines.clock import Clock, timestamp
from engines.codec import Codec, check_json_value
from engines.core.cursor import Cursors, list_scope
from engines.core.idempotency import Request
from engines.core.keys import within
from engines.core.listing import START, Listed, Window, list_records
from engines.core.place import Places
from engines.errors import Invalid
from engines.ports.documents import Doc
from engines.scope import RequestContext, check_id
from engines.stores.scoped import Change, IdentityFields, Stamped, check_body, stamp, with_etag

MESSAGES_MAX: Final = 10_000
# A fork copies all of them, and a deletion goes through them.
MESSAGES_BYTES_MAX: Final = 64 * 1024 * 1024
NAME_CHARS_MAX: Final = 128

RULES: Final = Rules("messages", count_max=MESSAGES_MAX, bytes_max=MESSAGES_BYTES_MAX)

Speaker = Literal["system", "user", "assistant", "tool"]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]


class MessageInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a new message.

    `content` is text or any other JSON, such as a list of parts. `tool_calls` is what an assistant asks of
    tools; `tool_call_id` says which of those a tool's message answers.
    """

    role: Speaker
    content: Any
    name: Name | None = None
    tool_calls: list[Any] = msgspec.field(default_factory=list)
    tool_call_id: Name | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class Message(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """A message as it is stored and shown. `number` counts from 1 within the session, without a gap.

    `cursor` is where a list goes on behind this message.
    """

    message_id: str
    session_id: str
    number: int
    role: Speaker
    content: Any
    name: str | None = None
    tool_calls: list[Any] = msgspec.field(default_factory=list)
    tool_call_id: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    created_at: str
    cursor: str = ""


class Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="message/1"):
    """The stored form."""

    record: Message


CODEC: Final = Codec(Stored)


class Messages:
    """The messages of the caller's sessions. Any number of concurrent calls on one event loop.

    Every method raises Invalid (a malformed id), NotFound (no such session, or one that is being deleted),
    Forbidden (the role does not grant it), ContextMismatch, MissingRoute, ForbiddenBackendClass, Throttled,
    Unavailable, BackendRefused, Corrupt; changes also OutcomeUnknown.
    """

    def __init__(self, places: Places, sessions: Sessions, clock: Clock) -> None:
        self._places = places
        self._sessions = sessions
        self._clock = clock

    async def append(
        self,
        context: RequestContext,
        session_id: str,
        message: MessageInput,
        *,
        request: Request | None = None,
    ) -> Change[Message]:
        """Say something in a session. One read and one write.

        Raises Invalid, TooLarge, IdempotencyKeyReused, Conflict (a full session; one that is being copied;
        too many others appended meanwhile).
        """
        context.require_data(WRITE)
        at = address(context, check_id(session_id, "session_id"))
        message = _checked(context, message)
        now = timestamp(self._clock.now())
        async with self._places.changing(catalogue.SESSIONS, context) as place:
            written = await sequences.append(
                place.documents,
                await place.partition(at.user_id),
                at,
                lambda number: _text(context, session_id, message, number, now),
                rules=RULES,
                request=request,
            )
        shown = _shown(written.doc, at, cursors_of(context, session_id))
        return Change(shown, written.created, written.replayed)

    async def list(
        self, context: RequestContext, session_id: str, *, window: Window = START
    ) -> Listed[Message]:
        """What was said, in order. Two reads. Raises Invalid (a limit or a cursor)."""
        context.require_data(READ)
        await self._sessions.active(context, session_id)
        at, cursors = address(context, session_id), cursors_of(context, session_id)
        place = await self._places.place(catalogue.SESSIONS, context)
        return await list_records(
            place.documents,
            await place.partition(at.user_id),
            at.prefix,
            lambda doc: _shown(doc, at, cursors),
            cursors=cursors,
            window=window,
        )


def cursors_of(context: RequestContext, session_id: str) -> Cursors:
    """The cursors of a session's messages."""
    names = (context.user_id, session_id, "messages")
    return list_scope(catalogue.SESSIONS, context.tenant_id, context.env, *names)


def _checked(context: RequestContext, message: MessageInput) -> MessageInput:
    message = check_body(context, message)
    for field in ("content", "tool_calls", "metadata"):
        check_json_value(getattr(message, field), field)
    if message.tool_calls and message.role != "assistant":
        raise Invalid("an assistant alone calls tools", field="tool_calls")
    if (message.tool_call_id is None) == (message.role == "tool"):
        raise Invalid("a tool's message, and no other, says which call it answers", field="tool_call_id")
    return message


def _text(context: RequestContext, session_id: str, message: MessageInput, number: int, now: str) -> str:
    record = Message(
        **stamp(context),
        message_id=item_id(session_id, number),
        session_id=session_id,
        number=number,
        role=message.role,
        content=message.content,
        name=message.name,
        tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id,
        metadata=message.metadata,
        created_at=now,
    )
    return CODEC.encode(Stored(record))


def _shown(doc: Doc, at: Address, cursors: Cursors) -> Message:
    record = with_etag(CODEC.decode(doc.body).record, doc.version)
    cursor = cursors.of_key(within(*at.prefix)[0], at.item(record.number))
    msgspec.structs.force_setattr(record, "cursor", cursor)  # Nobody else holds what was just decoded.
    return record
