"""Checkpoints: states of an agent, saved in the course of a session, to which it can go back.

Owns the checkpoint's data model. A checkpoint remembers how many messages its session had, so that
`agent/forks.py` can make another session from there. Leaves what a state means to the agent, and how
checkpoints are kept to `agent/kept.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from engines import catalogue
from engines.agent.kept import Kept
from engines.agent.sequences import item_id
from engines.agent.sessions import READ, WRITE, Sessions
from engines.clock import Clock, timestamp
from engines.codec import Codec, check_json_value
from engines.core.idempotency import Request
from engines.core.listing import START, Listed, Window
from engines.core.place import Places
from engines.ports.documents import Doc
from engines.scope import RequestContext
from engines.stores.scoped import Change, IdentityFields, Stamped, check_body, stamp, with_etag

LABEL_CHARS_MAX: Final = 200

Label = Annotated[str, Meta(max_length=LABEL_CHARS_MAX)]


class CheckpointInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a new checkpoint. `state` is any JSON that the agent can go on from."""

    state: Any
    label: Label = ""


class Checkpoint(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """A checkpoint as it is stored and shown. `messages`: how many its session had when it was saved."""

    checkpoint_id: str
    session_id: str
    number: int
    messages: int
    label: str
    state: Any
    created_at: str


class _Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="checkpoint/1"):
    record: Checkpoint


_CODEC: Final = Codec(_Stored)


class Checkpoints:
    """The checkpoints of the caller's sessions. Any number of concurrent calls on one event loop.

    Every method raises Invalid (a malformed id), NotFound (no such session, or one that is being deleted),
    Forbidden (the role does not grant it), ContextMismatch, MissingRoute, ForbiddenBackendClass, Throttled,
    Unavailable, BackendRefused, Corrupt; changes also OutcomeUnknown.
    """

    def __init__(self, places: Places, sessions: Sessions, clock: Clock) -> None:
        self._sessions = sessions
        self._clock = clock
        self._kept = Kept(catalogue.CHECKPOINTS, "checkpoint", places, sessions, _shown)

    async def save(
        self,
        context: RequestContext,
        session_id: str,
        checkpoint: CheckpointInput,
        *,
        request: Request | None = None,
    ) -> Change[Checkpoint]:
        """Save a state. Two reads and one write; past what the route keeps, the oldest one goes.

        Raises Invalid, TooLarge, IdempotencyKeyReused, Conflict (a session that is being copied; too many
        others saved one meanwhile).
        """
        context.require_data(WRITE)
        checkpoint = check_body(context, checkpoint)
        check_json_value(checkpoint.state, "state")
        record = Checkpoint(
            **stamp(context),
            checkpoint_id="",
            session_id=session_id,
            number=0,
            messages=await self._sessions.accepting(context, session_id),
            label=checkpoint.label,
            state=checkpoint.state,
            created_at=timestamp(self._clock.now()),
        )
        return await self._append(context, session_id, record, request)

    async def has_any(self, context: RequestContext, session_id: str) -> bool:
        """Whether one was ever saved in a session. One read."""
        return (await self._kept.head(context, session_id)).count > 0

    async def copy(
        self, context: RequestContext, checkpoint: Checkpoint, session_id: str, *, request: Request
    ) -> None:
        """The same checkpoint for a session that is made from it. Raises NotFound, as `save` does."""
        await self._sessions.active(context, session_id)
        await self._append(context, session_id, msgspec.structs.replace(checkpoint, etag=""), request)

    async def _append(
        self, context: RequestContext, session_id: str, record: Checkpoint, request: Request | None
    ) -> Change[Checkpoint]:
        """`record` under the next number of a session."""

        def text(number: int) -> str:
            numbered = msgspec.structs.replace(
                record, checkpoint_id=item_id(session_id, number), session_id=session_id, number=number
            )
            return _CODEC.encode(_Stored(numbered))

        return await self._kept.append(context, session_id, text, request)

    async def get(self, context: RequestContext, checkpoint_id: str) -> Checkpoint:
        """Two reads. Raises NotFound, also for one that is no longer kept."""
        context.require_data(READ)
        return await self._kept.get(context, checkpoint_id)

    async def list(
        self, context: RequestContext, session_id: str, *, window: Window = START
    ) -> Listed[Checkpoint]:
        """A session's checkpoints, the oldest first. Two reads. Raises Invalid (a limit or a cursor)."""
        context.require_data(READ)
        return await self._kept.list(context, session_id, window=window)


def _shown(doc: Doc) -> Checkpoint:
    return with_etag(_CODEC.decode(doc.body).record, doc.version)
