"""Sessions: a user's conversations with an agent, theirs alone.

Owns the session's record `s!{user}!{session_id}`, anchored at the user, what a session goes through, and
the order in which all that belongs to one goes when it is deleted. A session is made in one write with the
head of its messages (`agent/sequences.py`), so there is never the one without the other. Leaves messages,
checkpoints and traces to their modules, which ask `active` before they show or add anything.

A deletion takes several writes, on up to three backends: first the session says `deleting`, from when on
none of its parts is shown or added to; then the parts go, kind by kind; the session goes last. One that was
interrupted is finished by deleting again. What was counted of a session (`agent/telemetry.py`) stays.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engines import catalogue
from engines.agent import sequences
from engines.agent.sequences import HEAD, Address, Head, address, no_such_session, still_copied
from engines.clock import Clock, timestamp
from engines.codec import Codec, check_json_value
from engines.core import records
from engines.core.cursor import list_scope
from engines.core.documents import Documents
from engines.core.idempotency import Request, first_answer, identify, marker_put
from engines.core.keys import record_key
from engines.core.listing import START, Listed, Window, list_records
from engines.core.place import Places
from engines.core.records import ANYTHING, RACES_MAX, Condition, Draft, replayed_or_raise
from engines.errors import Conflict, EnginesError
from engines.ids import Ids
from engines.ports.documents import ABSENT, ALWAYS, Delete, Doc, Match, Op, Put
from engines.scope import RequestContext, check_id
from engines.stores.scoped import (
    Change,
    Deletion,
    IdentityFields,
    Stamped,
    check_body,
    stamp,
    with_etag,
)

READ: Final = "sessions.read"
WRITE: Final = "sessions.write"
TITLE_CHARS_MAX: Final = 500
# The kinds that hold parts of a session, beside the one that holds the session.
PART_KINDS: Final = (catalogue.CHECKPOINTS, catalogue.TRACES)

Title = Annotated[str, Meta(max_length=TITLE_CHARS_MAX)]
# `forking`: its messages are being copied. `deleting`: it goes, and deleting it again finishes that.
Status = Literal["active", "forking", "deleting"]


class SessionInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a new session. `metadata` is any JSON object of the client's own."""

    title: Title = ""
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class SessionPatch(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a session. `metadata` replaces all that there was."""

    title: Title | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class Origin(msgspec.Struct, frozen=True):
    """Whence a session was forked. The ids stay when what they name is deleted."""

    session_id: str
    checkpoint_id: str


class Session(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """A session as it is stored and shown. Instants are RFC 3339; `updated_at` is the record's alone."""

    session_id: str
    title: str
    metadata: dict[str, Any]
    status: Status
    forked_from: Origin | None = None
    created_at: str
    updated_at: str


class _Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="session/1"):
    record: Session


_CODEC: Final = Codec(_Stored)


class Sessions:
    """The sessions of whoever asks. Any number of concurrent calls on one event loop.

    Every method raises Invalid (a malformed id), Forbidden (the role does not grant it), ContextMismatch,
    MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt; changes also
    OutcomeUnknown.
    """

    def __init__(self, places: Places, ids: Ids, clock: Clock) -> None:
        self._places = places
        self._ids = ids
        self._clock = clock

    async def create(
        self,
        context: RequestContext,
        session: SessionInput,
        *,
        request: Request | None = None,
        forked_from: Origin | None = None,
    ) -> Change[Session]:
        """A new session, named by the server, without a message. One write.

        `forked_from`: it waits for the messages of another one (`agent/forks.py`), and is `forking` until
        then. Raises Invalid, TooLarge, IdempotencyKeyReused.
        """
        context.require_data(WRITE)
        session = check_body(context, session)
        check_json_value(session.metadata, "metadata")
        now = timestamp(self._clock.now())
        record = Session(
            **stamp(context),
            session_id=self._ids.record_id(),
            title=session.title,
            metadata=session.metadata,
            status="active" if forked_from is None else "forking",
            forked_from=forked_from,
            created_at=now,
            updated_at=now,
        )
        at = address(context, record.session_id)
        head = Head(state="open" if forked_from is None else "filling")
        draft = Draft(_CODEC.encode(_Stored(record)), also=[Put(at.head, HEAD.encode(head), ABSENT)])
        async with self._places.changing(catalogue.SESSIONS, context) as place:
            partition = await place.partition(context.user_id)
            written = await records.create(place.documents, partition, _key(at), draft, request=request)
        return Change(_shown(written.doc), written.created, written.replayed)

    async def forked_by(self, context: RequestContext, request: Request) -> Session | None:
        """What this request has made of a fork: the session it was answered with, or the one that it began.

        None where it has made none. Raises IdempotencyKeyReused, NotFound (deleted before it was whole).
        """
        place = await self._places.place(catalogue.SESSIONS, context)
        partition = await place.partition(context.user_id)
        marker = await place.documents.get(partition, request.key)
        if marker is None:
            return None
        at = address(context, _shown(records.replayed("", marker, request).doc).session_id)
        answered = _answered(at, request)
        found = await place.documents.get_many(partition, (_key(at), answered.key))
        if answered.key in found:
            return _shown(records.replayed("", found[answered.key], answered).doc)
        if _key(at) not in found or _shown(found[_key(at)]).status == "deleting":
            raise no_such_session()
        return _shown(found[_key(at)])

    async def get(self, context: RequestContext, session_id: str) -> Session:
        """One read. Raises NotFound, also where the session is another user's."""
        context.require_data(READ)
        at = address(context, check_id(session_id, "session_id"))
        place = await self._places.place(catalogue.SESSIONS, context)
        doc = await place.documents.get(await place.partition(at.user_id), _key(at))
        if doc is None:
            raise no_such_session()
        return _shown(doc)

    async def active(self, context: RequestContext, session_id: str) -> tuple[Session, int]:
        """A session whose parts may be shown, and how many messages it has. One read.

        Raises NotFound, also for one that is being deleted.
        """
        at = address(context, check_id(session_id, "session_id"))
        place = await self._places.place(catalogue.SESSIONS, context)
        keys = (_key(at), at.head)
        found = await place.documents.get_many(await place.partition(at.user_id), keys)
        session, head = found.get(keys[0]), found.get(keys[1])
        if session is None or head is None:
            raise no_such_session()
        record = _shown(session)
        if record.status == "deleting":
            raise no_such_session()
        return record, HEAD.decode(head.body).count

    async def accepting(self, context: RequestContext, session_id: str) -> int:
        """How many messages a session has that takes checkpoints and traces. One read.

        Raises what `active` does, and Conflict for one that is being copied.
        """
        session, messages = await self.active(context, session_id)
        if session.status == "forking":
            raise still_copied()
        return messages

    async def list(self, context: RequestContext, *, window: Window = START) -> Listed[Session]:
        """The user's sessions by creation. Raises Invalid (a limit or a cursor)."""
        context.require_data(READ)
        place = await self._places.place(catalogue.SESSIONS, context)
        return await list_records(
            place.documents,
            await place.partition(context.user_id),
            ("s", context.user_id),
            _shown,
            cursors=list_scope(catalogue.SESSIONS, context.tenant_id, context.env, context.user_id),
            window=window,
        )

    async def patch(
        self,
        context: RequestContext,
        session_id: str,
        patch: SessionPatch,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[Session]:
        """Another title, other metadata; where and when it was made stays.

        Raises NotFound, PreconditionFailed, TooLarge, IdempotencyKeyReused, Conflict (too many others changed
        it meanwhile).
        """
        context.require_data(WRITE)
        at = address(context, check_id(session_id, "session_id"))
        patch = check_body(context, patch)
        if patch.metadata is not UNSET:
            check_json_value(patch.metadata, "metadata")
        now = timestamp(self._clock.now())
        async with self._places.changing(catalogue.SESSIONS, context) as place:
            written = await records.replace(
                place.documents,
                await place.partition(at.user_id),
                _key(at),
                lambda doc: _patched(doc, patch, now),
                condition=condition,
                request=request,
            )
        return Change(_shown(written.doc), created=False, replayed=written.replayed)

    async def finish_fork(
        self, context: RequestContext, session_id: str, *, request: Request | None = None
    ) -> Session:
        """What it is made from is copied whole: from now on messages may be appended. A repeat is welcome.

        `request` is the fork's; its repeats are answered by what this gives. Raises NotFound (it was deleted
        meanwhile), Conflict (too many others changed it meanwhile).
        """
        at = address(context, session_id)
        async with self._places.changing(catalogue.SESSIONS, context) as place:
            partition = await place.partition(at.user_id)
            for _ in range(RACES_MAX):
                found = await place.documents.get_many(partition, (_key(at), at.head))
                doc, head_doc = found.get(_key(at)), found.get(at.head)
                if doc is None or head_doc is None:
                    raise no_such_session()
                session = _shown(doc)
                if session.status == "active":
                    return session
                if session.status == "deleting":
                    raise no_such_session()
                with contextlib.suppress(Conflict):
                    return await _opened(place.documents, partition, at, doc, head_doc, request)
        raise Conflict("too many others changed the session meanwhile; repeat the fork")

    async def delete(
        self,
        context: RequestContext,
        session_id: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Deletion:
        """Delete a session with its messages, checkpoints and traces, for good.

        Interrupted, it leaves the session `deleting`; the same call goes on from there. Raises NotFound,
        PreconditionFailed, IdempotencyKeyReused, Conflict.
        """
        context.require_data(WRITE)
        at = address(context, check_id(session_id, "session_id"))
        for kind in PART_KINDS:
            await self._places.place(kind, context)  # What cannot be finished is not begun.
        async with self._places.changing(catalogue.SESSIONS, context) as place:
            partition = await place.partition(at.user_id)
            begun = await _begin_deletion(place.documents, partition, at, condition, request)
        if begun.is_over:
            return Deletion(begun.replayed)
        for kind in PART_KINDS:
            async with self._places.changing(kind, context) as place:
                await sequences.close(place.documents, await place.partition(at.user_id), at)
            await sequences.remove(self._places, kind, context, at)
        await sequences.remove(self._places, catalogue.SESSIONS, context, at)
        async with self._places.changing(catalogue.SESSIONS, context) as place:
            # Always: who deletes at the same time may be done first; behind `deleting` comes nothing else.
            gone = [Delete(_key(at), ALWAYS), Delete(at.head, ALWAYS)]
            await place.documents.write(await place.partition(at.user_id), gone)
        return Deletion(begun.replayed)


async def _opened(
    documents: Documents, partition: str, at: Address, doc: Doc, head_doc: Doc, request: Request | None
) -> Session:
    """One attempt at making a session that was forked active. Raises Conflict."""
    session = msgspec.structs.replace(_shown(doc), status="active", etag="")
    body = _CODEC.encode(_Stored(session))
    head = msgspec.structs.replace(HEAD.decode(head_doc.body), state="open")
    ops = [
        Put(_key(at), body, Match(doc.version)),
        Put(at.head, HEAD.encode(head), Match(head_doc.version)),
    ]
    if request is not None:
        ops.append(marker_put(_answered(at, request), now=documents.now(), created=True, answer=body))
    return with_etag(session, await documents.write(partition, ops))


def _answered(at: Address, request: Request) -> Request:
    """Under which the last answer to a fork is kept; under the request itself is the session as it began."""
    return identify("forked", at.session_id, body=request.digest.encode())


class _Begun(msgspec.Struct, frozen=True):
    """Where a deletion stands: `is_over` where the session is gone already."""

    replayed: bool = False
    is_over: bool = False


async def _begin_deletion(
    documents: Documents, partition: str, at: Address, condition: Condition, request: Request | None
) -> _Begun:
    """Mark the session, and close what its messages are counted by. A condition is judged here, once.

    Raises NotFound, PreconditionFailed, IdempotencyKeyReused, Conflict.
    """
    keys = [_key(at)] if request is None else [_key(at), request.key]
    lost: Conflict | None = None
    for _ in range(RACES_MAX):
        found = await documents.get_many(partition, keys)
        doc = found.get(_key(at))
        if request is not None and request.key in found:
            first_answer(found[request.key], request)
            return _Begun(replayed=True, is_over=doc is None)
        is_going = doc is not None and _shown(doc).status == "deleting"
        if is_going and request is None:
            return _Begun()
        try:
            if not is_going:
                condition.check(doc)
            if doc is None:
                raise no_such_session()
        except EnginesError as refusal:
            await replayed_or_raise(refusal, documents, partition, _key(at), request)
            continue  # The first request's marker stands by now.
        try:
            await documents.write(partition, _marked(documents, at, doc, request, is_going=is_going))
        except Conflict as conflict:
            lost = conflict
        else:
            return _Begun()
    assert lost is not None
    raise lost


def _marked(
    documents: Documents, at: Address, doc: Doc, request: Request | None, *, is_going: bool
) -> list[Op]:
    """Who goes on with a deletion changes nothing, but may repeat their request when the session is gone."""
    ops: list[Op] = []
    if not is_going:
        record = msgspec.structs.replace(_shown(doc), status="deleting", etag="")
        ops = [
            Put(_key(at), _CODEC.encode(_Stored(record)), Match(doc.version)),
            Put(at.head, HEAD.encode(Head(state="closed")), ALWAYS),
        ]
    if request is not None:
        ops.append(marker_put(request, now=documents.now()))
    return ops


def _patched(doc: Doc | None, patch: SessionPatch, now: str) -> Draft:
    session = None if doc is None else _shown(doc)
    if session is None or session.status == "deleting":
        raise no_such_session()
    changes = {name: value for name in ("title", "metadata") if (value := getattr(patch, name)) is not UNSET}
    record = msgspec.structs.replace(session, **changes, updated_at=now, etag="")
    return Draft(_CODEC.encode(_Stored(record)))


def _key(at: Address) -> str:
    return record_key("s", at.user_id, at.session_id)


def _shown(doc: Doc) -> Session:
    return with_etag(_CODEC.decode(doc.body).record, doc.version)
