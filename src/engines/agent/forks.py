"""Forks: another session that goes on from a checkpoint, as if what came after it had never been said.

Owns the order in which one is made: the session, `forking`; copies of the messages that the checkpoint saw,
some at a time; the checkpoint's state as the new session's first; the session, `active`. Each step looks at
what is there, so whatever ends this half-way, the same request goes on from where it ended; without an
Idempotency-Key nobody can repeat it, and the session stays `forking` until it is deleted. Until it is active
nobody else can append to it.

The copy is whole and its own: deleting the first session takes nothing away from it. Leaves the steps
themselves to the stores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from engines import catalogue
from engines.agent import messages, sequences
from engines.agent.checkpoints import Checkpoints
from engines.agent.sequences import Address, address, item_id, no_such_session
from engines.agent.sessions import WRITE, Origin, Session, SessionInput, Sessions, Title
from engines.codec import escaped_bytes
from engines.core.idempotency import Request, identify
from engines.core.place import Places
from engines.errors import Conflict, NotFound
from engines.ports.documents import Doc
from engines.scope import RequestContext
from engines.stores.scoped import Change, IdentityFields, check_body

# Of one write, beside the head. A message may hold a quarter of what a write may.
COPIED_MAX: Final = 50
COPIED_BYTES_MAX: Final = 768 * 1024


class ForkInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a fork: what the new session has otherwise than the one it is made from."""

    title: Title | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class Forks:
    """Sessions made from checkpoints. Any number of concurrent calls on one event loop."""

    def __init__(self, places: Places, sessions: Sessions, checkpoints: Checkpoints) -> None:
        self._places = places
        self._sessions = sessions
        self._checkpoints = checkpoints

    async def fork(
        self, context: RequestContext, checkpoint_id: str, fork: ForkInput, *, request: Request | None = None
    ) -> Change[Session]:
        """Another session with the messages up to the checkpoint, and its state as the first checkpoint.

        One write for some fifty messages, and a dozen calls beside. Raises what the stores do; Conflict where
        the first session is deleted meanwhile: what was made is then `forking`, and may be deleted.
        """
        context.require_data(WRITE)
        fork = check_body(context, fork)
        made = None if request is None else await self._sessions.forked_by(context, request)
        if made is not None:
            return Change(await self._finish(context, made, request), created=True, replayed=True)
        checkpoint = await self._checkpoints.get(context, checkpoint_id)
        source, _ = await self._sessions.active(context, checkpoint.session_id)
        begun = await self._sessions.create(
            context,
            _input(source, fork),
            request=request,
            forked_from=Origin(checkpoint.session_id, checkpoint_id),
        )
        session = await self._finish(context, begun.record, request)
        return Change(session, created=True, replayed=begun.replayed)

    async def _finish(self, context: RequestContext, session: Session, request: Request | None) -> Session:
        """Whatever is left to do for a session that was begun."""
        if session.status != "forking":
            return session
        assert session.forked_from is not None
        copy = address(context, session.session_id)
        if not await self._checkpoints.has_any(context, session.session_id):
            await self._copy(context, session.forked_from, copy)
        return await self._sessions.finish_fork(context, copy.session_id, request=request)

    async def _copy(self, context: RequestContext, origin: Origin, copy: Address) -> None:
        """What the checkpoint saw, and the checkpoint last: where the copy has one, all of it is there."""
        checkpoint = await self._checkpoints.get(context, origin.checkpoint_id)
        source = address(context, checkpoint.session_id)
        await self._copy_messages(context, source, copy, checkpoint.messages)
        once = identify(context.tenant_id, context.env, context.user_id, "fork", copy.session_id, body=b"")
        # A repeat may have been done first, and its copy be pruned already or gone: what is true then is the
        # session's to say.
        with contextlib.suppress(NotFound):
            await self._checkpoints.copy(context, checkpoint, copy.session_id, request=once)

    async def _copy_messages(
        self, context: RequestContext, source: Address, copy: Address, count: int
    ) -> None:
        """Copy messages until there are `count`, or somebody else has."""
        while True:
            async with self._places.changing(catalogue.SESSIONS, context) as place:
                partition = await place.partition(context.user_id)
                doc, head = await sequences.head_of(place.documents, partition, copy)
                if doc is None or head.state == "closed":
                    raise no_such_session()
                if head.state == "open" or head.count == count:
                    return
                page = await place.documents.scan(
                    partition,
                    above=source.item(head.count),
                    below=source.item(count + 1),
                    limit=COPIED_MAX,
                    reverse=False,
                )
                bodies = _copies(page.docs, source, copy, behind=head.count)
                if not bodies:
                    raise Conflict("the session that this one is made from was deleted meanwhile")
                # Who lost the slot to a repeat of the same request goes on from what that one copied.
                with contextlib.suppress(Conflict):
                    await sequences.fill(place.documents, partition, copy, doc, head, bodies)


def _copies(docs: Sequence[Doc], source: Address, copy: Address, *, behind: int) -> list[str]:
    """The texts of successive messages as the copy has them, as many as fit into one write."""
    bodies: list[str] = []
    size = 0
    for number, doc in enumerate(docs, start=behind + 1):
        if doc.key != source.item(number):
            break
        record = msgspec.structs.replace(
            messages.CODEC.decode(doc.body).record,
            session_id=copy.session_id,
            message_id=item_id(copy.session_id, number),
        )
        body = messages.CODEC.encode(messages.Stored(record))
        size += escaped_bytes(body)
        if bodies and size > COPIED_BYTES_MAX:
            break
        bodies.append(body)
    return bodies


def _input(source: Session, fork: ForkInput) -> SessionInput:
    return SessionInput(
        title=source.title if fork.title is UNSET else fork.title,
        metadata=source.metadata if fork.metadata is UNSET else fork.metadata,
    )
