"""What calls of an agent's sessions, its memory and its telemetry take and give: one Struct a record, as the
HTTP contract writes it.

Owns names and types, like `client/results.py` for a tenant's other data.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from engines.client.results import Stamped

Speaker: TypeAlias = Literal["system", "user", "assistant", "tool"]
MemoryTier: TypeAlias = Literal["episodes", "long_term", "summaries"]
TokensBy: TypeAlias = Literal["model", "session", "day"]


class SessionOrigin(msgspec.Struct, frozen=True):
    """Whence a session was forked. The ids stay when what they name is deleted."""

    session_id: str
    checkpoint_id: str


class Session(Stamped, frozen=True, kw_only=True):
    """A user's conversation with an agent. `updated_at` is the record's alone: a message leaves it."""

    session_id: str
    status: Literal["active", "forking", "deleting"]
    title: str = ""
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    forked_from: SessionOrigin | None = None
    created_at: str = ""
    updated_at: str = ""


class Message(Stamped, frozen=True, kw_only=True):
    """What was said in a session. `number` counts from 1 without a gap; lists go on behind `cursor`."""

    message_id: str
    session_id: str
    number: int
    role: Speaker
    content: Any = None
    name: str | None = None
    tool_calls: tuple[Any, ...] = ()
    tool_call_id: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    created_at: str = ""
    cursor: str = ""


class Checkpoint(Stamped, frozen=True, kw_only=True):
    """A state of an agent. `messages`: how many its session had when it was saved."""

    checkpoint_id: str
    session_id: str
    number: int
    messages: int
    state: Any = None
    label: str = ""
    created_at: str = ""


class Span(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of a turn. Instants are RFC 3339; `parent_span_id` names another span of the trace."""

    span_id: str
    name: str
    started_at: str
    ended_at: str
    parent_span_id: str | None = None
    status: Literal["ok", "error"] = "ok"
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)


class NewTrace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A turn that is over, with at most 1,000 spans. Instants are RFC 3339."""

    name: str
    started_at: str
    ended_at: str
    status: Literal["ok", "error"] = "ok"
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    spans: tuple[Span, ...] = ()


class Trace(Stamped, frozen=True, kw_only=True):
    """A turn that is over. Lists leave `spans` out, and say in `span_count` how many there are."""

    trace_id: str
    session_id: str
    number: int
    name: str
    started_at: str
    ended_at: str
    status: Literal["ok", "error"] = "ok"
    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    span_count: int = 0
    spans: tuple[Span, ...] = ()
    created_at: str = ""


class AgentMemoryEntry(Stamped, frozen=True, kw_only=True):
    """One entry of what an agent knows of its user beyond a session."""

    tier: MemoryTier
    key: str
    value: Any
    created_at: str = ""
    updated_at: str = ""


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Sums. `tokens_cached` is the part of `tokens_in` that was read from a cache."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0


class ModelTokens(TokenCounts, frozen=True, kw_only=True):
    """What was taken from one model."""

    provider: str
    model: str


class SessionDay(Stamped, frozen=True, kw_only=True):
    """The counters of one session and one UTC day; of no session where `session_id` is None."""

    day: str
    session_id: str | None = None
    models: tuple[ModelTokens, ...] = ()
    updated_at: str = ""


class TokenGroup(TokenCounts, frozen=True, kw_only=True):
    """What belongs together by what the report asked for; other names are None, as no session is."""

    provider: str | None = None
    model: str | None = None
    session_id: str | None = None
    day: str | None = None


class TokenReport(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over whole UTC days, `since` and `until` included."""

    since: str
    until: str
    total: TokenCounts
    by: TokensBy
    groups: tuple[TokenGroup, ...] = ()
