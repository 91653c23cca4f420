"""An agent's sessions over HTTP, with their messages, checkpoints and traces."""

from __future__ import annotations

from engines.agent.checkpoints import Checkpoint, CheckpointInput
from engines.agent.forks import ForkInput
from engines.agent.messages import Message, MessageInput
from engines.agent.sessions import Session, SessionInput, SessionPatch
from engines.agent.traces import Trace, TraceInput
from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import deleted_reply, record_reply
from engines.api.views import ListQuery, Page, page_reply
from engines.stores.scoped import Change

router = Router("sessions")
SESSION = "/sessions/{session_id}"


@router.post("/sessions", body=SessionInput, reply=Session, statuses=(201,), has_etag=True)
async def create_session(call: Call) -> Sendable:
    """Begin a session. It belongs to whoever begins it, and nobody else can read it."""
    context = await call.context()
    session = await call.body(SessionInput)
    return _created(await call.engines.agent.sessions.create(context, session, request=call.request(context)))


@router.get("/sessions", query=ListQuery, reply=Page[Session])
async def list_sessions(call: Call) -> Sendable:
    """The caller's sessions, by creation."""
    window = call.query(ListQuery).window()
    return page_reply(await call.engines.agent.sessions.list(await call.context(), window=window))


@router.get(SESSION, reply=Session, has_etag=True)
async def get_session(call: Call) -> Sendable:
    """One session, without its messages."""
    session = await call.engines.agent.sessions.get(await call.context(), call.id("session_id"))
    return record_reply(session, session.etag)


@router.patch(SESSION, body=SessionPatch, reply=Session, has_etag=True)
async def patch_session(call: Call) -> Sendable:
    """Another title, other metadata."""
    context = await call.context()
    patch = await call.body(SessionPatch)
    change = await call.engines.agent.sessions.patch(
        context, call.id("session_id"), patch, condition=call.condition(), request=call.request(context)
    )
    return record_reply(change.record, change.etag, replayed=change.replayed)


@router.delete(SESSION)
async def delete_session(call: Call) -> Sendable:
    """Delete a session with its messages, checkpoints and traces, for good.

    Where that was interrupted the session says `deleting`; deleting it again goes on from there.
    """
    context = await call.context()
    deletion = await call.engines.agent.sessions.delete(
        context, call.id("session_id"), condition=call.condition(), request=call.request(context)
    )
    return deleted_reply(replayed=deletion.replayed)


@router.post(f"{SESSION}/messages", body=MessageInput, reply=Message, statuses=(201,), has_etag=True)
async def append_message(call: Call) -> Sendable:
    """Say something in a session. Messages are numbered from 1 and never change."""
    context = await call.context()
    message = await call.body(MessageInput)
    return _created(
        await call.engines.agent.messages.append(
            context, call.id("session_id"), message, request=call.request(context)
        )
    )


@router.get(f"{SESSION}/messages", query=ListQuery, reply=Page[Message])
async def list_messages(call: Call) -> Sendable:
    """What was said, in order. `after` takes the `cursor` of any message."""
    window = call.query(ListQuery).window()
    context = await call.context()
    return page_reply(await call.engines.agent.messages.list(context, call.id("session_id"), window=window))


@router.post(f"{SESSION}/checkpoints", body=CheckpointInput, reply=Checkpoint, statuses=(201,), has_etag=True)
async def save_checkpoint(call: Call) -> Sendable:
    """Save a state of the agent, to which a fork can go back.

    The newest are kept, as many as the route's `checkpoints_kept` says.
    """
    context = await call.context()
    checkpoint = await call.body(CheckpointInput)
    return _created(
        await call.engines.agent.checkpoints.save(
            context, call.id("session_id"), checkpoint, request=call.request(context)
        )
    )


@router.get(f"{SESSION}/checkpoints", query=ListQuery, reply=Page[Checkpoint])
async def list_checkpoints(call: Call) -> Sendable:
    """A session's checkpoints, the oldest first."""
    window = call.query(ListQuery).window()
    context = await call.context()
    return page_reply(
        await call.engines.agent.checkpoints.list(context, call.id("session_id"), window=window)
    )


@router.get("/checkpoints/{checkpoint_id}", reply=Checkpoint, has_etag=True)
async def get_checkpoint(call: Call) -> Sendable:
    """One checkpoint, with its state."""
    checkpoint = await call.engines.agent.checkpoints.get(await call.context(), call.id("checkpoint_id"))
    return record_reply(checkpoint, checkpoint.etag)


@router.post(
    "/checkpoints/{checkpoint_id}/fork", body=ForkInput, reply=Session, statuses=(201,), has_etag=True
)
async def fork_checkpoint(call: Call) -> Sendable:
    """Another session that goes on from a checkpoint: a copy of what was said until then, and of the state.

    Send an Idempotency-Key: the same request then goes on where one before it was interrupted.
    """
    context = await call.context()
    fork = await call.body(ForkInput)
    return _created(
        await call.engines.agent.forks.fork(
            context, call.id("checkpoint_id"), fork, request=call.request(context)
        )
    )


@router.post(f"{SESSION}/traces", body=TraceInput, reply=Trace, statuses=(201,), has_etag=True)
async def record_trace(call: Call) -> Sendable:
    """Keep what a turn did, once it is over.

    The newest are kept, as many as the route's `traces_kept` says.
    """
    context = await call.context()
    trace = await call.body(TraceInput)
    return _created(
        await call.engines.agent.traces.record(
            context, call.id("session_id"), trace, request=call.request(context)
        )
    )


@router.get(f"{SESSION}/traces", query=ListQuery, reply=Page[Trace])
async def list_traces(call: Call) -> Sendable:
    """A session's traces without their spans, the oldest first."""
    window = call.query(ListQuery).window()
    context = await call.context()
    return page_reply(await call.engines.agent.traces.list(context, call.id("session_id"), window=window))


@router.get("/traces/{trace_id}", reply=Trace, has_etag=True)
async def get_trace(call: Call) -> Sendable:
    """One trace, with its spans."""
    trace = await call.engines.agent.traces.get(await call.context(), call.id("trace_id"))
    return record_reply(trace, trace.etag)


def _created(change: Change[Session] | Change[Message] | Change[Checkpoint] | Change[Trace]) -> Sendable:
    return record_reply(change.record, change.etag, created=True, replayed=change.replayed)
