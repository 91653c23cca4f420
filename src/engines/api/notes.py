"""Notes over HTTP."""

from __future__ import annotations

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import deleted_reply, record_reply
from engines.api.views import ListQuery, Page, page_reply
from engines.stores.notes import Note, NoteFilter, NoteInput

router = Router("notes")


class NoteQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A list of notes, and what to leave out of it."""

    user_id: str | None = None
    surface_id: str | None = None
    project_id: str | None = None
    tag: str | None = None


@router.post("/notes", body=NoteInput, reply=Note, statuses=(201,), has_etag=True, is_stored_whole=True)
async def create_note(call: Call) -> Sendable:
    """Write a note. It belongs to whoever writes it, and nobody else can read it."""
    context = await call.context()
    note = await call.body(NoteInput)
    change = await call.engines.notes.create(context, note, request=call.request(context))
    return record_reply(change.record, change.etag, created=True, replayed=change.replayed)


@router.get("/notes", query=NoteQuery, reply=Page[Note])
async def list_notes(call: Call) -> Sendable:
    """The caller's notes, by creation."""
    query = call.query(NoteQuery)
    where = NoteFilter(query.user_id, query.surface_id, query.project_id, query.tag)
    return page_reply(await call.engines.notes.list(await call.context(), where, window=query.window()))


@router.get("/notes/{note_id}", reply=Note, has_etag=True)
async def get_note(call: Call) -> Sendable:
    """One note, whatever surface is bound."""
    note = await call.engines.notes.get(await call.context(), call.id("note_id"))
    return record_reply(note, note.etag)


@router.put(
    "/notes/{note_id}", body=NoteInput, reply=Note, statuses=(200,), has_etag=True, is_stored_whole=True
)
async def replace_note(call: Call) -> Sendable:
    """Replace what a note says. Notes are created by POST alone."""
    context = await call.context()
    note = await call.body(NoteInput)
    change = await call.engines.notes.replace(
        context, call.id("note_id"), note, condition=call.condition(), request=call.request(context)
    )
    return record_reply(change.record, change.etag, replayed=change.replayed)


@router.delete("/notes/{note_id}")
async def delete_note(call: Call) -> Sendable:
    """Delete a note for good."""
    context = await call.context()
    deletion = await call.engines.notes.delete(
        context, call.id("note_id"), condition=call.condition(), request=call.request(context)
    )
    return deleted_reply(replayed=deletion.replayed)
