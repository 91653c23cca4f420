"""Rooms: what is kept of who may join a thread or a canvas, and who may change that.

Owns the types, a room's key and the rules, which make of the room that stands the one that follows. A room
is **one** document, `r!{thread|canvas}!{id}`, that holds every member: a change is a conditional write of
all of it, so what is counted over members (the limit, the last host) holds however many change it at once,
and an access check is one read. `MEMBERS_MAX` keeps the document within a record's size.

- Who names a thread or canvas that has no room makes it, and is its first host. Of two at once one does.
- A host lets others in and out and gives them their role. A member may leave.
- The last host stays a host. A host's membership does not lapse; any other's does, where that is asked for.
- A room stays when its last member is gone: it is not for the next one to take who knows its id.
- Admins and owners are held to none of it but the limit, and to beginning a room with a host. They mend a
  room whose hosts were erased, and open one that is empty.

As elsewhere an id of a user is not looked up: whoever is no member of the tenant gets no context in it, and
may be let in before they join. Leaves reading and writing to `stores/realtime.py`, and what a host, writer
or reader does in the room to whoever serves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engines import catalogue
from engines.clock import timestamp
from engines.codec import Codec, encode_json
from engines.core.keys import join, record_key
from engines.core.records import Condition
from engines.errors import Conflict, Forbidden, Invalid, NotFound
from engines.ports.documents import Doc
from engines.scope import RequestContext, check_id
from engines.stores.scoped import IdentityFields, Stamped, stamp, with_etag

# With the longest ids in each of them, so many fit into a record.
MEMBERS_MAX: Final = 100
TTL_S_MAX: Final = 10 * 365 * 24 * 3600
ADMIN: Final = "realtime.admin"
_VERSION_CHARS: Final = 32

RoomKind = Literal["thread", "canvas"]
Role = Literal["host", "writer", "reader"]


class RoomMemberInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of PUT. Without `ttl_seconds` the membership does not lapse, whatever it did before."""

    role: Role
    ttl_seconds: Annotated[int, Meta(ge=1, le=TTL_S_MAX)] | None = None


class RoomMember(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """Who may join a room, and as what. `user_id` is the member; who let them in stands in `created_by`.

    Where it was written, and on what run, is the last change's. Instants are RFC 3339; at `expires_at` the
    membership is over.
    """

    room_kind: RoomKind
    room_id: str
    role: Role
    created_by: str
    created_at: str
    updated_by: str
    updated_at: str
    expires_at: str | None = None


class Seat(msgspec.Struct, frozen=True, omit_defaults=True):
    """A membership as it stands in its room. `version`: the room's, by the change that made it so."""

    record: RoomMember
    version: int
    expires_at_s: float | None = None


class Room(msgspec.Struct, frozen=True, tag_field="schema", tag="room/1"):
    """All memberships by user id, those that lapsed since the last change among them.

    `version` counts the room's changes from 1 and never begins again.
    """

    version: int
    seats: dict[str, Seat]


ROOMS: Final = Codec(Room)
_ROOM_KINDS: Final[Mapping[str, RoomKind]] = {"thread": "thread", "canvas": "canvas"}
_SEATS: Final = msgspec.json.Decoder(Seat)
_EMPTY: Final = Room(0, {})


class Address(msgspec.Struct, frozen=True):
    """Where a room stands."""

    room_kind: RoomKind
    room_id: str

    @property
    def anchor(self) -> str:
        return join(self.room_kind, self.room_id)

    @property
    def key(self) -> str:
        return record_key("r", self.room_kind, self.room_id)


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One change: the room that follows, the member's seat in it (None: they are out), and what is told."""

    room: Room
    seat: Seat | None
    created: bool
    told: Mapping[str, Any]


def address_of(room_kind: str, room_id: str) -> Address:
    """Raises Invalid for what is neither a thread nor a canvas, and for a malformed id."""
    kind = _ROOM_KINDS.get(room_kind)
    if kind is None:
        raise Invalid("a room is a thread or a canvas", field="room_kind")
    return Address(kind, check_id(room_id, "room_id"))


def live_seats(doc: Doc | None, now_s: float) -> dict[str, Seat]:
    """The memberships in a room's document that are not over."""
    return _live(_EMPTY if doc is None else ROOMS.decode(doc.body), now_s)


def shown(seat: Seat) -> RoomMember:
    """A membership with its ETag."""
    return with_etag(seat.record, _version_of(seat))


def encode_seat(seat: Seat) -> str:
    return encode_json(seat)


def decode_seat(body: str) -> Seat:
    return _SEATS.decode(body)


def let_in(
    context: RequestContext,
    at: Address,
    user_id: str,
    member: RoomMemberInput,
    doc: Doc | None,
    *,
    condition: Condition,
    now_s: float,
) -> Turn:
    """A member comes in, or has another role or end from now on.

    Raises Forbidden, PreconditionFailed, Invalid (what comes into an empty room is no host, a host who would
    lapse), Conflict (the last host; a room that is full).
    """
    if member.role == "host" and member.ttl_seconds is not None:
        raise Invalid("the membership of a host does not lapse", field="ttl_seconds")
    room = _EMPTY if doc is None else ROOMS.decode(doc.body)
    seats = _live(room, now_s)
    makes_it = room.version == 0 and user_id == context.user_id
    if not makes_it and not _is_run_by(seats, context):
        raise Forbidden("a host of the room lets others in, or an admin")
    former = seats.get(user_id)
    condition.check(_as_doc(former))
    if not seats and member.role != "host":
        raise Invalid("who comes into an empty room first is its host", field="role")
    if former is None and len(seats) >= MEMBERS_MAX:
        raise Conflict(f"a room has at most {MEMBERS_MAX} members: let one out first", field="members")
    if member.role != "host":
        _keep_a_host(seats, user_id, context)
    record = _record(context, at, user_id, member, None if former is None else former.record, now_s)
    until_s = None if member.ttl_seconds is None else now_s + member.ttl_seconds
    seat = Seat(record, room.version + 1, until_s)
    told = "joined" if former is None else "changed"
    return Turn(
        room=Room(seat.version, {**seats, user_id: seat}),
        seat=seat,
        created=former is None,
        told=_told(told, at, user_id, seat.version, role=member.role, until=record.expires_at),
    )


def let_out(
    context: RequestContext,
    at: Address,
    user_id: str,
    doc: Doc | None,
    *,
    condition: Condition,
    now_s: float,
) -> Turn:
    """A member leaves or is put out.

    Raises Forbidden, PreconditionFailed, NotFound, Conflict (the last host).
    """
    room = _EMPTY if doc is None else ROOMS.decode(doc.body)
    seats = _live(room, now_s)
    if user_id != context.user_id and not _is_run_by(seats, context):
        raise Forbidden("a host of the room puts others out, or an admin")
    former = seats.get(user_id)
    condition.check(_as_doc(former))
    if former is None:
        raise no_such_member()
    _keep_a_host(seats, user_id, context)
    left = {name: seat for name, seat in seats.items() if name != user_id}
    return Turn(
        room=Room(room.version + 1, left),
        seat=None,
        created=False,
        told=_told("left" if user_id == context.user_id else "removed", at, user_id, room.version + 1),
    )


def no_such_member() -> NotFound:
    return NotFound("this room has no such member")


def _live(room: Room, now_s: float) -> dict[str, Seat]:
    return {
        name: seat
        for name, seat in room.seats.items()
        if seat.expires_at_s is None or now_s < seat.expires_at_s
    }


def _is_run_by(seats: Mapping[str, Seat], context: RequestContext) -> bool:
    return ADMIN in context.permissions or _is_host(seats.get(context.user_id))


def _is_host(seat: Seat | None) -> bool:
    return seat is not None and seat.record.role == "host"


def _keep_a_host(seats: Mapping[str, Seat], user_id: str, context: RequestContext) -> None:
    """Raises Conflict where without this host there would be none; an admin may do that, and mend it."""
    if ADMIN in context.permissions or not _is_host(seats.get(user_id)):
        return
    if not any(_is_host(seat) for name, seat in seats.items() if name != user_id):
        raise Conflict("this is the room's last host: make another one first")


def _record(
    context: RequestContext,
    at: Address,
    user_id: str,
    member: RoomMemberInput,
    former: RoomMember | None,
    now_s: float,
) -> RoomMember:
    now = timestamp(now_s)
    return RoomMember(
        **stamp(context) | {"user_id": user_id},
        room_kind=at.room_kind,
        room_id=at.room_id,
        role=member.role,
        created_by=context.user_id if former is None else former.created_by,
        created_at=now if former is None else former.created_at,
        updated_by=context.user_id,
        updated_at=now,
        expires_at=None if member.ttl_seconds is None else timestamp(now_s + member.ttl_seconds),
    )


def _told(
    action: str,
    at: Address,
    user_id: str,
    version: int,
    *,
    role: str | None = None,
    until: str | None = None,
) -> dict[str, Any]:
    """The payload of the `audit` event."""
    told: dict[str, Any] = {
        "action": action,
        "resource_kind": catalogue.REALTIME,
        "record": "room",
        "room_kind": at.room_kind,
        "id": at.room_id,
        "version": version,
        "member_id": user_id,
    }
    if role is not None:
        told["role"] = role
    if until is not None:
        told["expires_at"] = until
    return told


def _as_doc(seat: Seat | None) -> Doc | None:
    """What a condition is judged against: a document is the whole room, and its version every member's."""
    return None if seat is None else Doc("", "", _version_of(seat))


def _version_of(seat: Seat) -> str:
    """Of what stands there, so that it changes with whatever is changed, an erasure too."""
    return hashlib.sha256(encode_seat(seat).encode()).hexdigest()[:_VERSION_CHARS]
