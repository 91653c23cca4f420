"""Notes: what a user keeps for good, theirs alone.

Owns the note's data model, its filters and its keys `n!{user}!{note_id}`, anchored at the user. A note is
found by its id whatever surface is bound; it stays on the surface and project where it was made. Leaves
who the user is to `identity/`, where notes lie to `routing/`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from engines import catalogue
from engines.clock import Clock, timestamp
from engines.codec import Codec, check_json_value
from engines.core import records
from engines.core.cursor import list_scope
from engines.core.idempotency import Request
from engines.core.keys import record_key
from engines.core.listing import START, Listed, Window, list_records
from engines.core.place import Places
from engines.core.records import ANYTHING, Condition, Draft
from engines.errors import ContextMismatch, Invalid, NotFound
from engines.ids import Ids
from engines.ports.documents import Doc
from engines.scope import RequestContext, check_id, normalise_surface
from engines.stores.scoped import (
    AGENT_ROLE,
    Change,
    Deletion,
    IdentityFields,
    Stamped,
    check_body,
    stamp,
    validated,
    with_etag,
)

TITLE_CHARS_MAX: Final = 500
TAGS_MAX: Final = 50
TAG_CHARS_MAX: Final = 100
ID_CHARS_MAX: Final = 128

ContentType = Literal["markdown", "text", "json"]
Author = Literal["user", "agent"]
Title = Annotated[str, msgspec.Meta(max_length=TITLE_CHARS_MAX)]
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=TAG_CHARS_MAX)]
Tags = Annotated[tuple[Tag, ...], msgspec.Meta(max_length=TAGS_MAX)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]


class NoteSourceInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a note comes from, as its writer says it. What is left out comes from the context."""

    created_by: Author | None = None
    agent_id: Id | None = None
    run_id: Id | None = None


class NoteInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST and PUT. `content` is text, or any JSON where `content_type` is `json`.

    `source` is told when a note is made and stays: a PUT may only repeat it.
    """

    content: Any
    title: Title = ""
    content_type: ContentType = "markdown"
    tags: Tags = ()
    source: NoteSourceInput | None = None


class NoteSource(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who made the note. `agent_id` and `run_id` are provenance, not identity."""

    created_by: Author
    agent_id: str | None = None
    run_id: str | None = None


class NoteTimestamps(msgspec.Struct, frozen=True):
    """RFC 3339 in UTC, from the server's clock."""

    created_at: str
    updated_at: str


class Note(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """A note as it is stored and shown."""

    note_id: str
    title: str
    content: Any
    content_type: ContentType
    tags: tuple[str, ...]
    source: NoteSource
    timestamps: NoteTimestamps


class NoteFilter(msgspec.Struct, frozen=True):
    """Which of the user's notes to list; None leaves a field open. A bound project is a filter as well."""

    user_id: str | None = None
    surface_id: str | None = None
    project_id: str | None = None
    tag: str | None = None


NO_FILTER: Final = NoteFilter()


class _Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="note/1"):
    record: Note


_CODEC: Final = Codec(_Stored)


class Notes:
    """The notes of whoever asks. Any number of concurrent calls on one event loop.

    Every method raises Forbidden (the role does not grant it), ContextMismatch, MissingRoute,
    ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; changes also OutcomeUnknown.
    """

    def __init__(self, places: Places, ids: Ids, clock: Clock) -> None:
        self._places = places
        self._ids = ids
        self._clock = clock

    async def create(
        self, context: RequestContext, note: NoteInput, *, request: Request | None = None
    ) -> Change[Note]:
        """A new note, named by the server. One write; under an Idempotency-Key one read before it.

        Raises Invalid, TooLarge, IdempotencyKeyReused.
        """
        context.require_data("notes.write")
        note = _checked(context, note)
        now = timestamp(self._clock.now())
        record = Note(
            **stamp(context),
            note_id=self._ids.record_id(),
            title=note.title,
            content=note.content,
            content_type=note.content_type,
            tags=note.tags,
            source=_source(context, note.source),
            timestamps=NoteTimestamps(now, now),
        )
        async with self._places.changing(catalogue.NOTES, context) as place:
            partition = await place.partition(context.user_id)
            key = record_key("n", context.user_id, record.note_id)
            draft = Draft(_CODEC.encode(_Stored(record)))
            written = await records.create(place.documents, partition, key, draft, request=request)
        return _change(written)

    async def get(self, context: RequestContext, note_id: str) -> Note:
        """One read. Raises Invalid for a malformed id, NotFound (also where the note is another user's)."""
        context.require_data("notes.read")
        key = _key(context, note_id)
        place = await self._places.place(catalogue.NOTES, context)
        doc = await place.documents.get(await place.partition(context.user_id), key)
        if doc is None:
            raise _no_such_note()
        return _shown(doc)

    async def replace(
        self,
        context: RequestContext,
        note_id: str,
        note: NoteInput,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[Note]:
        """New contents for a note that exists; who made it, when and where stays.

        Raises Invalid, NotFound, PreconditionFailed (also for a missing note under If-Match), TooLarge,
        IdempotencyKeyReused, Conflict (too many others replaced it meanwhile).
        """
        context.require_data("notes.write")
        key = _key(context, note_id)
        note = _checked(context, note)
        async with self._places.changing(catalogue.NOTES, context) as place:
            now = timestamp(self._clock.now())
            written = await records.replace(
                place.documents,
                await place.partition(context.user_id),
                key,
                lambda doc: _replacement(context, note, doc, now),
                condition=condition,
                request=request,
            )
        return _change(written)

    async def delete(
        self,
        context: RequestContext,
        note_id: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Deletion:
        """Raises Invalid, NotFound, PreconditionFailed, IdempotencyKeyReused, Conflict."""
        context.require_data("notes.write")
        key = _key(context, note_id)
        async with self._places.changing(catalogue.NOTES, context) as place:
            partition = await place.partition(context.user_id)
            replayed = await records.remove(
                place.documents, partition, key, condition=condition, request=request
            )
        return Deletion(replayed)

    async def list(
        self, context: RequestContext, where: NoteFilter = NO_FILTER, *, window: Window = START
    ) -> Listed[Note]:
        """The user's notes by creation. A filtered page may be short or empty and have more behind it.

        Raises Invalid (a limit, a cursor or a filter), ContextMismatch (another user's notes, or another
        project than the bound one).
        """
        context.require_data("notes.read")
        where = _checked_filter(context, where)
        place = await self._places.place(catalogue.NOTES, context)
        return await list_records(
            place.documents,
            await place.partition(context.user_id),
            ("n", context.user_id),
            lambda doc: _if_matching(_shown(doc), where),
            cursors=list_scope(catalogue.NOTES, context.tenant_id, context.env, context.user_id),
            window=window,
            selective=where != NO_FILTER,
        )


def _key(context: RequestContext, note_id: str) -> str:
    return record_key("n", context.user_id, check_id(note_id, "note_id"))


def _checked(context: RequestContext, note: NoteInput) -> NoteInput:
    note = check_body(context, note)
    if note.content_type == "json":
        check_json_value(note.content, "content")
    elif not isinstance(note.content, str):
        raise Invalid("the content of a markdown or text note is a string", field="content")
    return note


def _source(context: RequestContext, told: NoteSourceInput | None) -> NoteSource:
    """Who makes the note. An agent's own credential makes an agent's note, whatever the body says."""
    told = validated(told or NoteSourceInput(), "source")
    is_agent = AGENT_ROLE in context.roles
    if is_agent and told.created_by == "user":
        raise ContextMismatch("a note of this principal is created by an agent", field="source.created_by")
    if told.agent_id is not None:
        check_id(told.agent_id, "source.agent_id")
    if told.run_id is not None:
        check_id(told.run_id, "source.run_id")
    return NoteSource(
        created_by=told.created_by or ("agent" if is_agent else "user"),
        agent_id=told.agent_id or (context.user_id if is_agent else None),
        run_id=told.run_id or context.run_id,
    )


def _replacement(context: RequestContext, note: NoteInput, doc: Doc | None, now: str) -> Draft:
    if doc is None:
        raise _no_such_note()
    former = _CODEC.decode(doc.body).record
    if note.source is not None and not _repeats(note.source, former.source):
        raise Invalid("the source of a note stays as it was made", field="source")
    fields = stamp(context) | {
        "surface_id": former.surface_id,
        "app_id": former.app_id,
        "project_id": former.project_id,
    }
    record = Note(
        **fields,
        note_id=former.note_id,
        title=note.title,
        content=note.content,
        content_type=note.content_type,
        tags=note.tags,
        source=former.source,
        timestamps=NoteTimestamps(former.timestamps.created_at, now),
    )
    return Draft(_CODEC.encode(_Stored(record)))


def _repeats(told: NoteSourceInput, source: NoteSource) -> bool:
    return all(
        value is None or value == getattr(source, name)
        for name, value in msgspec.structs.asdict(told).items()
    )


def _checked_filter(context: RequestContext, where: NoteFilter) -> NoteFilter:
    if where.user_id is not None and check_id(where.user_id, "user_id") != context.user_id:
        raise ContextMismatch("notes are listed by their own user alone", field="user_id")
    project_id = context.project_id if where.project_id is None else check_id(where.project_id, "project_id")
    if context.project_id not in (None, project_id):
        raise ContextMismatch("another project is bound to this request", field="project_id")
    return NoteFilter(
        surface_id=None if where.surface_id is None else normalise_surface(where.surface_id),
        project_id=project_id,
        tag=where.tag,
    )


def _if_matching(note: Note, where: NoteFilter) -> Note | None:
    matches = (
        where.surface_id in (None, note.surface_id)
        and where.project_id in (None, note.project_id)
        and (where.tag is None or where.tag in note.tags)
    )
    return note if matches else None


def _shown(doc: Doc) -> Note:
    return with_etag(_CODEC.decode(doc.body).record, doc.version)


def _change(written: records.Written) -> Change[Note]:
    return Change(_shown(written.doc), written.created, written.replayed)


def _no_such_note() -> NotFound:
    return NotFound("there is no such note")
