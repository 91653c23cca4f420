"""The realtime registry: who may join a thread or a canvas, so that it is still so after a restart.

Owns reading a room, changing it on what was read, and telling the spine: each change is an `audit` event, by
the outbox of the same write. Leaves what a room is and who may change it to `stores/realtime_rooms.py`, and
connections, presence and what is said in a room to whoever serves it: they ask `get` before they let somebody
in. Whoever may read here may ask about anybody: who is in a room is no secret within its tenant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from engines import catalogue
from engines.clock import Clock
from engines.core.cursor import list_scope
from engines.core.documents import Documents
from engines.core.idempotency import Request, marker_put
from engines.core.keys import SEPARATOR
from engines.core.listing import START, Listed, Window
from engines.core.place import Places
from engines.core.records import ANYTHING, RACES_MAX, Condition, Written, replayed, replayed_or_raise
from engines.errors import Conflict, EnginesError
from engines.ports.documents import ABSENT, Doc, Match, Op, Put
from engines.scope import RequestContext, check_id
from engines.stores.announcements import Announcements
from engines.stores.realtime_rooms import (
    ROOMS,
    Address,
    RoomMember,
    RoomMemberInput,
    Seat,
    Turn,
    address_of,
    decode_seat,
    encode_seat,
    let_in,
    let_out,
    live_seats,
    no_such_member,
    shown,
)
from engines.stores.scoped import Change, Deletion, check_body

WRITE: Final = "realtime.write"
READ: Final = "realtime.read"

# One attempt: what becomes of the room that stands, if any does.
Attempt = Callable[[Doc | None, float], Turn]


class _Done(msgspec.Struct, frozen=True):
    """What a change came to; `seat` is None where somebody was let out."""

    seat: Seat | None
    created: bool = False
    replayed: bool = False


class RealtimeRegistry:
    """The rooms of a tenant and env. Any number of concurrent calls on one event loop.

    Every method raises Invalid (neither a thread nor a canvas, a malformed id), Forbidden (the role does not
    grant it), ContextMismatch, MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused,
    Corrupt; changes also OutcomeUnknown.
    """

    def __init__(self, places: Places, announcements: Announcements, clock: Clock) -> None:
        self._places = places
        self._announcements = announcements
        self._clock = clock

    async def get(self, context: RequestContext, room_kind: str, room_id: str, user_id: str) -> RoomMember:
        """The access check: whether a user is in, and as what. One read.

        Raises NotFound for who is not in, also from the instant at which the membership lapses.
        """
        context.require_data(READ)
        at = address_of(room_kind, room_id)
        check_id(user_id, "user_id")
        seat = (await self._seats(context, at)).get(user_id)
        if seat is None:
            raise no_such_member()
        return shown(seat)

    async def list(
        self, context: RequestContext, room_kind: str, room_id: str, *, window: Window = START
    ) -> Listed[RoomMember]:
        """Who is in, by user id. Raises Invalid (a limit or a cursor)."""
        context.require_data(READ)
        at = address_of(room_kind, room_id)
        window.checked()
        above = at.key + SEPARATOR
        cursors = list_scope(catalogue.REALTIME, context.tenant_id, context.env, at.anchor)
        after = None if window.after is None else cursors.key(above, window.after)[len(above) :]
        seats = await self._seats(context, at)
        names = sorted(seats, reverse=window.descending)
        if after is not None:
            names = [name for name in names if (name < after if window.descending else name > after)]
        page = names[: window.limit]
        return Listed(
            tuple(shown(seats[name]) for name in page),
            cursors.of_key(above, above + page[-1]) if len(page) < len(names) else None,
        )

    async def put(
        self,
        context: RequestContext,
        room_kind: str,
        room_id: str,
        user_id: str,
        member: RoomMemberInput,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[RoomMember]:
        """Let a user in, or give a member another role or end. The first one into a room makes it.

        Raises Forbidden (no host of the room), PreconditionFailed, Conflict (the last host; a full room; too
        many others changed it meanwhile), IdempotencyKeyReused.
        """
        context.require_data(WRITE)
        at = address_of(room_kind, room_id)
        check_id(user_id, "user_id")
        member = check_body(context, member)
        done = await self._change(
            context,
            at,
            lambda doc, now_s: let_in(context, at, user_id, member, doc, condition=condition, now_s=now_s),
            request,
        )
        assert done.seat is not None
        return Change(shown(done.seat), done.created, done.replayed)

    async def delete(
        self,
        context: RequestContext,
        room_kind: str,
        room_id: str,
        user_id: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Deletion:
        """Leave, or let a member out. Raises what `put` does, and NotFound."""
        context.require_data(WRITE)
        at = address_of(room_kind, room_id)
        check_id(user_id, "user_id")
        done = await self._change(
            context,
            at,
            lambda doc, now_s: let_out(context, at, user_id, doc, condition=condition, now_s=now_s),
            request,
        )
        return Deletion(done.replayed)

    async def _seats(self, context: RequestContext, at: Address) -> dict[str, Seat]:
        place = await self._places.place(catalogue.REALTIME, context)
        doc = await place.documents.get(await place.partition(at.anchor), at.key)
        return live_seats(doc, self._clock.now())

    async def _change(
        self, context: RequestContext, at: Address, attempt: Attempt, request: Request | None
    ) -> _Done:
        async with self._places.changing(catalogue.REALTIME, context) as place:
            partition = await place.partition(at.anchor)
            async with self._announcements.announcing(context, place, partition):
                return await self._write(context, place.documents, partition, at, attempt, request)

    async def _write(
        self,
        context: RequestContext,
        documents: Documents,
        partition: str,
        at: Address,
        attempt: Attempt,
        request: Request | None,
    ) -> _Done:
        """Like `records.replace`; but what a repeat is answered is the member, not the room."""
        keys = [at.key] if request is None else [at.key, request.key]
        lost: Conflict | None = None
        for _ in range(RACES_MAX):
            found = await documents.get_many(partition, keys)
            if request is not None and request.key in found:
                return _replayed(replayed(at.key, found[request.key], request))
            doc = found.get(at.key)
            try:
                turn = attempt(doc, self._clock.now())
            except EnginesError as refusal:
                return _replayed(await replayed_or_raise(refusal, documents, partition, at.key, request))
            try:
                await documents.write(partition, self._ops(context, documents, at, doc, turn, request))
            except Conflict as conflict:
                lost = conflict
            else:
                return _Done(turn.seat, turn.created)
        assert lost is not None
        raise lost

    def _ops(
        self,
        context: RequestContext,
        documents: Documents,
        at: Address,
        doc: Doc | None,
        turn: Turn,
        request: Request | None,
    ) -> Sequence[Op]:
        """The room, what the spine is told, and what a repeat is answered: together or not at all."""
        when = ABSENT if doc is None else Match(doc.version)
        version, told = turn.room.version, dict(turn.told)
        ops = [
            Put(at.key, ROOMS.encode(turn.room), when),
            self._announcements.message(context, at.key, version, "audit", told),
        ]
        if request is not None:
            answer = "null" if turn.seat is None else encode_seat(turn.seat)
            ops.append(marker_put(request, now=documents.now(), created=turn.created, answer=answer))
        return ops


def _replayed(first: Written) -> _Done:
    """What the first request was answered: the member as it left them, or nothing."""
    answer = first.doc.body
    return _Done(None if answer == "null" else decode_seat(answer), first.created, replayed=True)
