"""Who may join a thread or a canvas, over HTTP."""

from __future__ import annotations

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import deleted_reply, record_reply
from engines.api.views import ListQuery, Page, page_reply
from engines.stores.realtime_rooms import RoomMember, RoomMemberInput

router = Router("realtime registry")
MEMBERS = "/realtime/{room_kind}/{room_id}/members"
MEMBER = f"{MEMBERS}/{{user_id}}"


@router.get(MEMBERS, query=ListQuery, reply=Page[RoomMember])
async def list_room_members(call: Call) -> Sendable:
    """Who may join a thread or a canvas (`room_kind`), by user id."""
    window = call.query(ListQuery).window()
    context = await call.context()
    return page_reply(await call.engines.realtime.list(context, *_room(call), window=window))


@router.get(MEMBER, reply=RoomMember, has_etag=True)
async def get_room_member(call: Call) -> Sendable:
    """Whether a user may join, and as what: 404 for who may not, also once their time is over."""
    context = await call.context()
    member = await call.engines.realtime.get(context, *_room(call), call.id("user_id"))
    return record_reply(member, member.etag)


@router.put(MEMBER, body=RoomMemberInput, reply=RoomMember, has_etag=True)
async def put_room_member(call: Call) -> Sendable:
    """Let a user in, or give a member another role.

    A host of the room does, or an admin. Who names a thread or canvas that never had a room makes it, as its
    first host. A room keeps its last host, and has at most 100 members.
    """
    context = await call.context()
    member = await call.body(RoomMemberInput)
    change = await call.engines.realtime.put(
        context,
        *_room(call),
        call.id("user_id"),
        member,
        condition=call.condition(),
        request=call.request(context),
    )
    return record_reply(change.record, change.etag, created=change.created, replayed=change.replayed)


@router.delete(MEMBER)
async def delete_room_member(call: Call) -> Sendable:
    """Leave a room, or let a member out, as a host or an admin."""
    context = await call.context()
    deletion = await call.engines.realtime.delete(
        context, *_room(call), call.id("user_id"), condition=call.condition(), request=call.request(context)
    )
    return deleted_reply(replayed=deletion.replayed)


def _room(call: Call) -> tuple[str, str]:
    return call.id("room_kind"), call.id("room_id")
