"""Who may join a thread or a canvas, over HTTP."""

from __future__ import annotations

from tests.contract.cast import Cast, Tenant, fresh, made
from tests.contract.wire import problem, record


def members(kind: str = "thread") -> str:
    return f"/realtime/{kind}/{fresh('room')}/members"


def test_a_member_makes_a_room_and_says_who_is_in(cast: Cast) -> None:
    house = cast.tenant("member", "viewer", "admin")
    member, viewer, admin = house["member"], house["viewer"], house["admin"]
    path, mine, theirs = members("canvas"), house.users["member"], house.users["viewer"]
    problem(member.get(f"{path}/{mine}"), 404, "NotFound")
    shown = made(member.put(f"{path}/{mine}", {"role": "host"}, if_none_match="*"))
    assert (shown.status, shown.body["user_id"], shown.body["role"]) == (201, mine, "host")
    guest = made(member.put(f"{path}/{theirs}", {"role": "reader", "ttl_seconds": 60}))
    assert guest.body["created_by"] == mine
    assert viewer.get(f"{path}/{theirs}").body == guest.body
    assert [one["user_id"] for one in viewer.items(path)] == sorted([mine, theirs])
    assert "last host" in problem(member.delete(f"{path}/{mine}"), 409, "Conflict")["detail"]
    problem(viewer.delete(f"{path}/{theirs}"), 403, "Forbidden")
    assert admin.delete(f"{path}/{mine}").status == 204
    problem(member.put(f"{path}/{mine}", {"role": "host"}), 403, "Forbidden")
    made(admin.put(f"{path}/{mine}", {"role": "host"}))
    assert member.delete(f"{path}/{theirs}").status == 204
    problem(viewer.get(f"{path}/{theirs}"), 404, "NotFound")


def test_a_member_without_a_say_learns_so(cast: Cast) -> None:
    house = cast.tenant("member", "owner")
    member, path = house["member"], members()
    other = house.users["owner"]
    problem(member.put(f"{path}/{other}", {"role": "host"}), 403, "Forbidden")
    made(house["owner"].put(f"{path}/{other}", {"role": "host"}))
    problem(member.put(f"{path}/{house.users['member']}", {"role": "reader"}), 403, "Forbidden")
    problem(member.delete(f"{path}/{other}"), 403, "Forbidden")


def test_what_is_malformed_names_its_field(tenant: Tenant) -> None:
    owner, path = tenant["owner"], f"{members()}/u"
    for where, body, field in (
        (path, {"role": "king"}, "role"),
        (path, {}, "role"),
        (path, {"role": "writer"}, "role"),
        (path, {"role": "host", "ttl_seconds": 60}, "ttl_seconds"),
        (path, {"role": "host", "ttl_seconds": 0}, "ttl_seconds"),
        ("/realtime/meadow/t/members/u", {"role": "host"}, "room_kind"),
    ):
        assert problem(owner.put(where, body), 400, "Invalid")["field"] == field, (where, body)
    problem(owner.get("/realtime/meadow/t/members"), 400, "Invalid")
    problem(owner.get(path), 404, "NotFound")


def test_a_put_without_a_time_clears_an_earlier_one(tenant: Tenant) -> None:
    owner, path = tenant["owner"], members()
    made(owner.put(f"{path}/a", {"role": "host"}))
    timed = made(owner.put(f"{path}/b", {"role": "writer", "ttl_seconds": 60}))
    assert timed.body["expires_at"] > timed.body["updated_at"]
    etag = str(record(timed, 201)["etag"])
    kept = record(owner.put(f"{path}/b", {"role": "writer"}, if_match=etag))
    assert "expires_at" not in kept
    problem(owner.put(f"{path}/b", {"role": "reader"}, if_match=etag), 412)
