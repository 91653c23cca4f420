"""Session memory over HTTP."""

from __future__ import annotations

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import deleted_reply, record_reply
from engines.api.views import ListQuery, Page, page_reply
from engines.stores.memory import MemoryEntry, MemoryInput

router = Router("session memory")
ENTRY = "/memory/{session_id}/{key}"


@router.get("/memory/{session_id}", query=ListQuery, reply=Page[MemoryEntry])
async def list_memory(call: Call) -> Sendable:
    """The caller's live entries of a session, by key."""
    window = call.query(ListQuery).window()
    context = await call.context()
    return page_reply(await call.engines.memory.list(context, call.id("session_id"), window=window))


@router.get(ENTRY, reply=MemoryEntry, has_etag=True)
async def get_memory(call: Call) -> Sendable:
    """One entry, until it expires."""
    context = await call.context()
    entry = await call.engines.memory.get(context, call.id("session_id"), call.id("key"))
    return record_reply(entry, entry.etag)


@router.put(ENTRY, body=MemoryInput, reply=MemoryEntry, has_etag=True, is_stored_whole=True)
async def set_memory(call: Call) -> Sendable:
    """Create or replace an entry.

    Without `ttl_seconds` it is kept until it is deleted, whatever was said before.
    """
    context = await call.context()
    entry = await call.body(MemoryInput)
    change = await call.engines.memory.set(
        context,
        call.id("session_id"),
        call.id("key"),
        entry,
        condition=call.condition(),
        request=call.request(context),
    )
    return record_reply(change.record, change.etag, created=change.created, replayed=change.replayed)


@router.delete(ENTRY)
async def delete_memory(call: Call) -> Sendable:
    """Delete an entry."""
    context = await call.context()
    deletion = await call.engines.memory.delete(
        context,
        call.id("session_id"),
        call.id("key"),
        condition=call.condition(),
        request=call.request(context),
    )
    return deleted_reply(replayed=deletion.replayed)
