"""Agent memory over HTTP."""

from __future__ import annotations

from engines.agent.memory import AgentMemoryEntry, AgentMemoryInput
from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import deleted_reply, record_reply
from engines.api.views import ListQuery, Page, page_reply

router = Router("agent memory")
ENTRY = "/agent-memory/{tier}/{key}"


@router.get("/agent-memory/{tier}", query=ListQuery, reply=Page[AgentMemoryEntry])
async def list_agent_memory(call: Call) -> Sendable:
    """The caller's entries of a tier (`episodes`, `long_term` or `summaries`), by key."""
    window = call.query(ListQuery).window()
    context = await call.context()
    return page_reply(await call.engines.agent.memory.list(context, call.id("tier"), window=window))


@router.get(ENTRY, reply=AgentMemoryEntry, has_etag=True)
async def get_agent_memory(call: Call) -> Sendable:
    """One entry."""
    context = await call.context()
    entry = await call.engines.agent.memory.get(context, call.id("tier"), call.id("key"))
    return record_reply(entry, entry.etag)


@router.put(ENTRY, body=AgentMemoryInput, reply=AgentMemoryEntry, has_etag=True, is_stored_whole=True)
async def set_agent_memory(call: Call) -> Sendable:
    """Create or replace an entry. It is kept until it is deleted."""
    context = await call.context()
    entry = await call.body(AgentMemoryInput)
    change = await call.engines.agent.memory.set(
        context,
        call.id("tier"),
        call.id("key"),
        entry,
        condition=call.condition(),
        request=call.request(context),
    )
    return record_reply(change.record, change.etag, created=change.created, replayed=change.replayed)


@router.delete(ENTRY)
async def delete_agent_memory(call: Call) -> Sendable:
    """Delete an entry."""
    context = await call.context()
    deletion = await call.engines.agent.memory.delete(
        context,
        call.id("tier"),
        call.id("key"),
        condition=call.condition(),
        request=call.request(context),
    )
    return deleted_reply(replayed=deletion.replayed)
