"""Session memory: what a user's session must remember, until it is deleted or its own time is up.

Owns entries and their keys `s!{user}!{session}!{project or -}!{key}`, anchored at user and session, and
expiry to the millisecond: the waist counts whole seconds, so an entry that has lapsed within its last
second is left out here. Nothing expires that was not asked to.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import msgspec

from engines import catalogue
from engines.clock import Clock, epoch_ms, timestamp
from engines.codec import Codec, check_json_value
from engines.core import records
from engines.core.cursor import list_scope
from engines.core.idempotency import Request
from engines.core.keys import NO_PROJECT, join, record_key
from engines.core.listing import START, Listed, Window, list_records
from engines.core.place import Places
from engines.core.records import ANYTHING, Condition, Draft
from engines.errors import NotFound
from engines.ports.documents import Doc
from engines.scope import RequestContext, check_id
from engines.stores.scoped import Change, Deletion, IdentityFields, Stamped, check_body, stamp, with_etag

TTL_S_MAX: Final = 10 * 365 * 24 * 3600

TtlSeconds = Annotated[int, msgspec.Meta(ge=1, le=TTL_S_MAX)]


class MemoryInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of PUT. Without `ttl_seconds` the entry is kept until deleted, whatever it had before."""

    value: Any
    ttl_seconds: TtlSeconds | None = None


class MemoryEntry(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """An entry as it is stored and shown. Instants are RFC 3339; at `expires_at` it is gone."""

    session_id: str
    key: str
    value: Any
    created_at: str
    updated_at: str
    expires_at: str | None = None


class _Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="memory/1"):
    record: MemoryEntry


_CODEC: Final = Codec(_Stored)


class SessionMemory:
    """The session memory of whoever asks, within the bound project. An entry of another user is not found.

    Every method raises Invalid (a malformed id), Forbidden (the role does not grant it), ContextMismatch,
    MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; changes also
    OutcomeUnknown.
    """

    def __init__(self, places: Places, clock: Clock) -> None:
        self._places = places
        self._clock = clock

    async def get(self, context: RequestContext, session_id: str, key: str) -> MemoryEntry:
        """One read. Raises NotFound, also from the instant at which the entry expires."""
        context.require_data("memory.read")
        document_key = _key(context, session_id, key)
        place = await self._places.place(catalogue.SESSION_MEMORY, context)
        partition = await place.partition(join(context.user_id, session_id))
        doc = await place.documents.get(partition, document_key)
        entry = None if doc is None else self._if_live(doc)
        if entry is None:
            raise NotFound("there is no such memory entry")
        return entry

    async def set(
        self,
        context: RequestContext,
        session_id: str,
        key: str,
        entry: MemoryInput,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[MemoryEntry]:
        """Create or replace, the last writer wins unless `condition` says otherwise.

        Raises Invalid, PreconditionFailed, TooLarge, IdempotencyKeyReused, Conflict.
        """
        context.require_data("memory.write")
        document_key = _key(context, session_id, key)
        entry = check_body(context, entry)
        check_json_value(entry.value, "value")
        async with self._places.changing(catalogue.SESSION_MEMORY, context) as place:
            now_s = self._clock.now()
            written = await records.replace(
                place.documents,
                await place.partition(join(context.user_id, session_id)),
                document_key,
                lambda doc: _draft(context, entry, doc, session_id=session_id, key=key, now_s=now_s),
                condition=condition,
                request=request,
                is_live=self._is_live,
            )
        return Change(_shown(written.doc), written.created, written.replayed)

    async def delete(
        self,
        context: RequestContext,
        session_id: str,
        key: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Deletion:
        """Raises NotFound, PreconditionFailed, IdempotencyKeyReused, Conflict."""
        context.require_data("memory.write")
        document_key = _key(context, session_id, key)
        async with self._places.changing(catalogue.SESSION_MEMORY, context) as place:
            replayed = await records.remove(
                place.documents,
                await place.partition(join(context.user_id, session_id)),
                document_key,
                condition=condition,
                request=request,
                is_live=self._is_live,
            )
        return Deletion(replayed)

    async def list(
        self, context: RequestContext, session_id: str, *, window: Window = START
    ) -> Listed[MemoryEntry]:
        """The session's live entries in the bound project, by key. Raises Invalid (a limit or a cursor)."""
        context.require_data("memory.read")
        project = context.project_id or NO_PROJECT
        names = (context.user_id, check_id(session_id, "session_id"), project)
        place = await self._places.place(catalogue.SESSION_MEMORY, context)
        return await list_records(
            place.documents,
            await place.partition(join(context.user_id, session_id)),
            ("s", *names),
            self._if_live,
            cursors=list_scope(catalogue.SESSION_MEMORY, context.tenant_id, context.env, *names),
            window=window,
        )

    def _if_live(self, doc: Doc) -> MemoryEntry | None:
        entry = _shown(doc)
        if entry.expires_at is not None and epoch_ms(entry.expires_at) <= self._clock.now() * 1000:
            return None
        return entry

    def _is_live(self, doc: Doc) -> bool:
        return doc.expires_at is None or self._if_live(doc) is not None


def _key(context: RequestContext, session_id: str, key: str) -> str:
    check_id(session_id, "session_id")
    check_id(key, "key")
    return record_key("s", context.user_id, session_id, context.project_id or NO_PROJECT, key)


def _draft(
    context: RequestContext, entry: MemoryInput, doc: Doc | None, *, session_id: str, key: str, now_s: float
) -> Draft:
    now = timestamp(now_s)
    until_s = None if entry.ttl_seconds is None else now_s + entry.ttl_seconds
    record = MemoryEntry(
        **stamp(context),
        session_id=session_id,
        key=key,
        value=entry.value,
        created_at=now if doc is None else _shown(doc).created_at,
        updated_at=now,
        expires_at=None if until_s is None else timestamp(until_s),
    )
    return Draft(_CODEC.encode(_Stored(record)), None if until_s is None else math.ceil(until_s))


def _shown(doc: Doc) -> MemoryEntry:
    return with_etag(_CODEC.decode(doc.body).record, doc.version)
