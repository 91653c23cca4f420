"""What an agent reads and writes of its user: sessions with messages, checkpoints, forks and traces, memory
beyond them, and tokens.

Owns the paths, parameters and types of these groups. Leaves conditions, keys and pages to `client/calls.py`.

All of it is the caller's own: what is another user's is NotFound. What every method may raise beside is what
`client/stores.py` says.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from engines.client.agent_results import (
    AgentMemoryEntry,
    Checkpoint,
    MemoryTier,
    Message,
    NewTrace,
    Session,
    SessionDay,
    Speaker,
    TokenReport,
    TokensBy,
    Trace,
)
from engines.client.calls import NOTHING, Calls, Condition, Order
from engines.client.results import Page


class Sessions:
    """A user's conversations with an agent."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def create(
        self,
        *,
        title: str = "",
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Session:
        """A new session without a message; the server names it."""
        return await self._calls.change(
            Session,
            "POST",
            "sessions",
            body={"title": title, "metadata": metadata or {}},
            idempotency_key=idempotency_key,
        )

    async def get(self, session_id: str) -> Session:
        """One session, without its messages. Raises NotFound."""
        return await self._calls.get(Session, "sessions", session_id)

    async def patch(
        self,
        session_id: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> Session:
        """Another title, other metadata in place of all there was; what is None stays.

        Raises NotFound, PreconditionFailed.
        """
        return await self._calls.change(
            Session,
            "PATCH",
            *("sessions", session_id),
            body=_said(title=title, metadata=metadata),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def delete(
        self, session_id: str, *, if_match: str | None = None, idempotency_key: str | None = None
    ) -> None:
        """Delete it with its messages, checkpoints and traces, for good; again where that was interrupted.

        Raises NotFound, PreconditionFailed.
        """
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("sessions", session_id),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def page(
        self, *, limit: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Page[Session]:
        """One page of the caller's sessions, by creation."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(Session, "sessions", query=query)

    def each(self, *, order: Order | None = None) -> AsyncGenerator[Session, None]:
        """Every session of the caller's, by creation."""
        return self._calls.each(Session, "sessions", query={"order": order})


class Messages:
    """What was said in a session, in order. A message never changes."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def append(
        self,
        session_id: str,
        role: Speaker,
        content: Any,
        *,
        name: str | None = None,
        tool_calls: Sequence[Any] = (),
        tool_call_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Message:
        """Say something. `content` is text or any JSON, such as a list of parts.

        An assistant's message alone has `tool_calls`, a tool's alone and always `tool_call_id`. Raises
        NotFound, TooLarge, Conflict (a full session, or a fork that is not whole yet).
        """
        said = _said(name=name, tool_call_id=tool_call_id, metadata=metadata)
        if tool_calls:
            said["tool_calls"] = tool_calls
        return await self._calls.change(
            Message,
            "POST",
            *("sessions", session_id, "messages"),
            body={"role": role, "content": content, **said},
            idempotency_key=idempotency_key,
        )

    async def page(
        self,
        session_id: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
    ) -> Page[Message]:
        """One page of a session's messages; `after` may be the cursor of any. Raises NotFound."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(Message, "sessions", session_id, "messages", query=query)

    def each(
        self, session_id: str, *, after: str | None = None, order: Order | None = None
    ) -> AsyncGenerator[Message, None]:
        """Every message, or those behind the cursor `after`."""
        query = {"after": after, "order": order}
        return self._calls.each(Message, "sessions", session_id, "messages", query=query)


class Checkpoints:
    """States of an agent in a session, to which a fork goes back."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def save(
        self, session_id: str, state: Any, *, label: str = "", idempotency_key: str | None = None
    ) -> Checkpoint:
        """Save a state, any JSON; beyond those that the route keeps the oldest one goes.

        Raises NotFound, TooLarge, Conflict.
        """
        return await self._calls.change(
            Checkpoint,
            "POST",
            *("sessions", session_id, "checkpoints"),
            body={"state": state, "label": label},
            idempotency_key=idempotency_key,
        )

    async def get(self, checkpoint_id: str) -> Checkpoint:
        """One checkpoint, with its state. Raises NotFound, also for one that is no longer kept."""
        return await self._calls.get(Checkpoint, "checkpoints", checkpoint_id)

    async def page(
        self,
        session_id: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
    ) -> Page[Checkpoint]:
        """One page of a session's checkpoints, the oldest first. Raises NotFound."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(Checkpoint, "sessions", session_id, "checkpoints", query=query)

    def each(self, session_id: str, *, order: Order | None = None) -> AsyncGenerator[Checkpoint, None]:
        """Every checkpoint of a session that is kept."""
        parts = ("sessions", session_id, "checkpoints")
        return self._calls.each(Checkpoint, *parts, query={"order": order})

    async def fork(
        self,
        checkpoint_id: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Session:
        """Another session with the messages until the checkpoint, and its state as the first checkpoint.

        Title and metadata are those of the first session unless given. The same `idempotency_key` goes on
        where a fork was interrupted: bring one that outlives the process if the fork has to be finished.
        Raises NotFound, Conflict (the first session was deleted meanwhile).
        """
        return await self._calls.change(
            Session,
            "POST",
            *("checkpoints", checkpoint_id, "fork"),
            body=_said(title=title, metadata=metadata),
            idempotency_key=idempotency_key,
        )


class Traces:
    """What an agent's turns did, span by span."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def record(self, session_id: str, trace: NewTrace, *, idempotency_key: str | None = None) -> Trace:
        """Keep a turn that is over; beyond those that the route keeps the oldest one goes.

        Raises NotFound, Invalid (a span whose parent is not there), TooLarge, Conflict.
        """
        return await self._calls.change(
            Trace,
            "POST",
            *("sessions", session_id, "traces"),
            body=trace,
            idempotency_key=idempotency_key,
        )

    async def get(self, trace_id: str) -> Trace:
        """One trace, with its spans. Raises NotFound, also for one that is no longer kept."""
        return await self._calls.get(Trace, "traces", trace_id)

    async def page(
        self,
        session_id: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
    ) -> Page[Trace]:
        """One page of a session's traces without their spans, the oldest first. Raises NotFound."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(Trace, "sessions", session_id, "traces", query=query)

    def each(self, session_id: str, *, order: Order | None = None) -> AsyncGenerator[Trace, None]:
        """Every trace of a session that is kept, without its spans."""
        return self._calls.each(Trace, "sessions", session_id, "traces", query={"order": order})


class AgentMemory:
    """What an agent knows of its user beyond a session."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def put(
        self,
        tier: MemoryTier,
        key: str,
        value: Any,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> AgentMemoryEntry:
        """Create or replace; the last writer wins unless a condition is given. Raises PreconditionFailed."""
        return await self._calls.change(
            AgentMemoryEntry,
            "PUT",
            *("agent-memory", tier, key),
            body={"value": value},
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def get(self, tier: MemoryTier, key: str) -> AgentMemoryEntry:
        """One entry. Raises NotFound."""
        return await self._calls.get(AgentMemoryEntry, "agent-memory", tier, key)

    async def delete(
        self,
        tier: MemoryTier,
        key: str,
        *,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Raises NotFound, PreconditionFailed."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("agent-memory", tier, key),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def page(
        self,
        tier: MemoryTier,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
    ) -> Page[AgentMemoryEntry]:
        """One page of a tier's entries, by key."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(AgentMemoryEntry, "agent-memory", tier, query=query)

    def each(self, tier: MemoryTier, *, order: Order | None = None) -> AsyncGenerator[AgentMemoryEntry, None]:
        """Every entry of a tier."""
        return self._calls.each(AgentMemoryEntry, "agent-memory", tier, query={"order": order})


class Telemetry:
    """The tokens that a user's agents take from models."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def count(
        self,
        provider: str,
        model: str,
        *,
        tokens_in: int = 0,
        tokens_out: int = 0,
        tokens_cached: int = 0,
        calls: int = 1,
        session_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> SessionDay:
        """Add what one or several calls of a model took to today's counters, which are answered.

        `tokens_cached` is a part of `tokens_in`. Without `session_id` it is the client's bound session's, if
        one is bound. Raises Invalid, Conflict (a hundred models in one session and day).
        """
        return await self._calls.change(
            SessionDay,
            "POST",
            *("telemetry", "tokens"),
            body={
                "provider": provider,
                "model": model,
                "tokens_in": tokens_in,
                "tokens_out": tokens_out,
                "tokens_cached": tokens_cached,
                "calls": calls,
                **_said(session_id=session_id),
            },
            idempotency_key=idempotency_key,
        )

    async def report(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        session_id: str | None = None,
        by: TokensBy | None = None,
    ) -> TokenReport:
        """Sums over UTC days written as 2026-11-21, both included; the last thirty unless given.

        `by`: `"model"` unless given. Raises Invalid, also where there is too much to add up.
        """
        query = {"since": since, "until": until, "session_id": session_id, "by": by}
        return await self._calls.get(TokenReport, "telemetry", "tokens", query=query)


def _said(**members: Any) -> dict[str, Any]:
    """The members that were given."""
    return {name: value for name, value in members.items() if value is not None}
