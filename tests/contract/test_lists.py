"""Lists: their shape, their limits, their cursors and their order, alike everywhere."""

import re
from dataclasses import dataclass
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made
from tests.contract.wire import Caller, problem

CURSOR = re.compile(r"[A-Za-z0-9._~-]+")
COUNT = 5


@dataclass(frozen=True)
class Listed:
    """One list with at least COUNT items: who reads it, where, and what names an item."""

    caller: Caller
    path: str
    id_field: str
    ordered_by: str  # "name", "creation", "position" or "number"


NAMES = [
    "events",
    "streams",
    "tables",
    "memory",
    "blackboard",
    "versions",
    "room members",
    "agent memory",
    "sessions",
    "messages",
    "checkpoints",
    "traces",
    "notes",
    "tenants",
    "users",
    "oses",
    "surfaces",
    "apps",
    "projects",
    "keys",
    "backends",
    "routes",
    "history",
    "reservations",
]


@pytest.fixture(scope="module")
def lists(cast: Cast) -> dict[str, Listed]:
    house = cast.tenant("owner", "member")
    member, owner, system = house["member"], house["owner"], cast.system_admin
    session = f"/sessions/{made(member.post('/sessions', {})).body['session_id']}"
    etag: str | None = None
    route: str | None = None
    for number in range(COUNT):
        event = {"event_type": "analytics", "payload": {"n": number}}
        made(member.post("/events", event))
        made(member.post("/streams/l/events", event))
        made(member.put(f"/tables/l/p/k{number}", {"value": number}))
        made(member.put(f"/memory/l/k{number}", {"value": number}))
        made(member.put(f"/blackboard/l/k{number}", {"value": number}, if_none_match="*"))
        version = member.put(
            "/blackboard/lv/k", {"value": number}, **({"if_match": etag} if etag else {"if_none_match": "*"})
        )
        etag = version.etag
        made(owner.put(f"/realtime/thread/l/members/k{number}", {"role": "host"}))
        made(member.put(f"/agent-memory/episodes/k{number}", {"value": number}))
        made(member.post("/sessions", {"title": str(number)}))
        for part, body in in_a_session(number):
            made(member.post(f"{session}/{part}", body))
        made(member.post("/notes", {"content": str(number)}))
        made(member.post("/budget/reservations", {"amount": "1", "currency": "USD"}))
        made(owner.post("/projects", {"project_id": f"p{number}", "name": "P"}))
        made(owner.post("/keys", {"user_id": house.users["member"], "role": "viewer"}))
        cast.user()
        cast.tenant()
        for field, path in (("os_id", "/oses"), ("surface_id", "/surfaces"), ("app_id", "/apps")):
            extra = (
                {"os_id": "engines"}
                if field == "surface_id"
                else {"surface_id": "chat"}
                if field == "app_id"
                else {}
            )
            made(system.post(path, {field: fresh("list"), "name": "L", **extra}))
        file = str(cast.directory / f"{fresh('list')}.db")
        sqlite = {"driver": "sqlite", "class": "host_local", "config": {"path": file}}
        made(system.put(f"/backends/{fresh('list')}", sqlite, if_none_match="*"))
        body = {"backend_id": "lab", "options": {}}
        changed = owner.put(
            "/routes/notes_store", body, **({"if_match": route} if route else {"if_none_match": "*"})
        )
        assert changed.status in (200, 201), changed
        route = changed.etag
    for kind in ("memory_store", "event_stream", "tabular_store", "blackboard_store"):
        made(owner.put(f"/routes/{kind}", {"backend_id": "lab"}, if_none_match="*"))
    house.settled(1 + 2 * 2 + 4 * COUNT + 4)
    return {
        "events": Listed(member, "/events", "event_id", "position"),
        "streams": Listed(member, "/streams/l/events", "event_id", "position"),
        "tables": Listed(member, "/tables/l/p", "sk", "name"),
        "memory": Listed(member, "/memory/l", "key", "name"),
        "blackboard": Listed(member, "/blackboard/l", "key", "name"),
        "versions": Listed(member, "/blackboard/lv/k/versions", "version", "creation"),
        "room members": Listed(owner, "/realtime/thread/l/members", "user_id", "name"),
        "agent memory": Listed(member, "/agent-memory/episodes", "key", "name"),
        "sessions": Listed(member, "/sessions", "session_id", "creation"),
        "messages": Listed(member, f"{session}/messages", "message_id", "number"),
        "checkpoints": Listed(member, f"{session}/checkpoints", "checkpoint_id", "number"),
        "traces": Listed(member, f"{session}/traces", "trace_id", "number"),
        "notes": Listed(member, "/notes", "note_id", "creation"),
        "tenants": Listed(system, "/tenants", "tenant_id", "name"),
        "users": Listed(system, "/users", "user_id", "name"),
        "oses": Listed(system, "/oses", "os_id", "name"),
        "surfaces": Listed(system, "/surfaces", "surface_id", "name"),
        "apps": Listed(system, "/apps", "app_id", "name"),
        "projects": Listed(owner, "/projects", "project_id", "name"),
        "keys": Listed(owner, "/keys", "key_id", "creation"),
        "backends": Listed(system, "/backends", "backend_id", "name"),
        "routes": Listed(owner, "/routes", "resource_kind", "name"),
        "history": Listed(owner, "/routes/notes_store/history", "version", "creation"),
        "reservations": Listed(member, "/budget/reservations", "reservation_id", "creation"),
    }


def in_a_session(number: int) -> list[tuple[str, dict[str, Any]]]:
    """One of each that a session has, and where it is sent."""
    times = {"started_at": "2026-11-21T14:00:00Z", "ended_at": "2026-11-21T14:00:01Z"}
    return [
        ("messages", {"role": "user", "content": number}),
        ("checkpoints", {"state": number}),
        ("traces", {"name": f"turn {number}", **times}),
    ]


def ids(listed: Listed, path: str | None = None) -> list[Any]:
    return [item[listed.id_field] for item in listed.caller.items(path or listed.path)]


every_list = pytest.mark.parametrize("name", NAMES)


@every_list
def test_a_list_is_items_and_after_and_null_means_the_end(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    page = listed.caller.get(f"{listed.path}?limit=1000").body
    assert set(page) == {"items", "after"}
    assert page["after"] is None
    assert len(page["items"]) >= COUNT


@every_list
def test_a_limit_bounds_a_page_and_after_goes_on_without_gap_or_repeat(
    lists: dict[str, Listed], name: str
) -> None:
    listed = lists[name]
    whole = ids(listed, f"{listed.path}?limit=1000")
    assert ids(listed, f"{listed.path}?limit=2") == whole
    assert len(listed.caller.get(f"{listed.path}?limit=2").body["items"]) == 2
    assert len(set(whole)) == len(whole)


@every_list
def test_a_page_that_ends_exactly_at_the_end_says_so_or_is_followed_by_an_empty_one(
    lists: dict[str, Listed], name: str
) -> None:
    listed = lists[name]
    count = len(ids(listed))
    page = listed.caller.get(f"{listed.path}?limit={count}").body
    assert len(page["items"]) == count
    if page["after"] is not None:
        assert listed.caller.get(f"{listed.path}?after={page['after']}").body == {"items": [], "after": None}


@every_list
def test_order_desc_reverses(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    assert ids(listed, f"{listed.path}?order=desc") == ids(listed)[::-1]
    assert ids(listed, f"{listed.path}?order=desc&limit=2") == ids(listed)[::-1]


@every_list
def test_a_list_is_in_the_contracts_order(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    items = listed.caller.items(listed.path)
    if listed.ordered_by == "name":
        found = [item[listed.id_field] for item in items]
        assert found == sorted(found)
    elif listed.ordered_by in ("position", "number"):
        assert [item[listed.ordered_by] for item in items] == list(range(1, len(items) + 1))
    else:
        created = [
            item.get("updated_at") or item.get("created_at") or item["timestamps"]["created_at"]
            for item in items
        ]
        assert created == sorted(created)


@every_list
@pytest.mark.parametrize(
    "limit", ["0", "1001", "x", "-1", "1.5", "", "1e2", "%201", "99999999999999999999", "01"]
)
def test_a_limit_outside_1_to_1000_is_400(lists: dict[str, Listed], name: str, limit: str) -> None:
    listed = lists[name]
    assert problem(listed.caller.get(f"{listed.path}?limit={limit}"), 400, "Invalid")["field"] == "limit"


@every_list
def test_limits_of_1_and_1000_are_taken(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    assert len(listed.caller.get(f"{listed.path}?limit=1").body["items"]) == 1
    assert listed.caller.get(f"{listed.path}?limit=1000").status == 200


@every_list
@pytest.mark.parametrize("order", ["down", "", "DESC"])
def test_another_order_is_400(lists: dict[str, Listed], name: str, order: str) -> None:
    listed = lists[name]
    problem(listed.caller.get(f"{listed.path}?order={order}"), 400, "Invalid")


@every_list
def test_order_asc_is_the_default(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    assert ids(listed, f"{listed.path}?order=asc") == ids(listed)


INVENTED = [
    "x",
    "",
    "AAAA",
    "a" * 500,
    "....",
    "UUalck52cDE",
    "-",
    "~~~~",
    "7MCgj01lcDEy",
    "%21",
    "a%20b",
    "%C3%A9",
]


@every_list
@pytest.mark.parametrize("after", INVENTED)
def test_an_invented_cursor_is_400(lists: dict[str, Listed], name: str, after: str) -> None:
    listed = lists[name]
    assert problem(listed.caller.get(f"{listed.path}?after={after}"), 400, "Invalid")["field"] == "after"


@every_list
def test_a_cursor_has_only_url_safe_characters(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    after = listed.caller.get(f"{listed.path}?limit=1").body["after"]
    assert CURSOR.fullmatch(after)


@every_list
def test_a_cursor_with_one_character_changed_is_400(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    after = listed.caller.get(f"{listed.path}?limit=1").body["after"]
    for place in range(len(after)):
        other = after[:place] + ("A" if after[place] != "A" else "B") + after[place + 1 :]
        problem(listed.caller.get(f"{listed.path}?after={other}"), 400, "Invalid")


@every_list
def test_a_cursor_of_another_list_is_400(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    for other in lists.values():
        if other.path != listed.path:
            after = other.caller.get(f"{other.path}?limit=1").body["after"]
            problem(listed.caller.get(f"{listed.path}?after={after}"), 400, "Invalid")


OWN_LISTS = [
    "events",
    "streams",
    "tables",
    "memory",
    "blackboard",
    "versions",
    "room members",
    "agent memory",
    "sessions",
    "notes",
    "projects",
    "keys",
    "routes",
]


@pytest.mark.parametrize("name", OWN_LISTS)
def test_a_cursor_of_another_tenant_is_400(cast: Cast, lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    after = listed.caller.get(f"{listed.path}?limit=1").body["after"]
    stranger = cast.tenant("owner")["owner"]
    problem(stranger.get(f"{listed.path}?after={after}"), 400, "Invalid")


@pytest.mark.parametrize("name", ["notes", "memory", "agent memory", "sessions"])
def test_a_cursor_of_another_user_is_400(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    after = listed.caller.get(f"{listed.path}?limit=1").body["after"]
    other = lists["projects"].caller
    problem(other.get(f"{listed.path}?after={after}"), 400, "Invalid")


@pytest.mark.parametrize("name", ["events", "streams", "messages"])
def test_every_item_of_a_log_has_a_cursor_and_after_takes_any(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    items = listed.caller.items(listed.path)
    for place, item in enumerate(items):
        assert CURSOR.fullmatch(item["cursor"])
        rest = ids(listed, f"{listed.path}?after={item['cursor']}")
        assert rest == [later[listed.id_field] for later in items[place + 1 :]]


@pytest.mark.parametrize("name", ["events", "streams"])
def test_the_cursor_of_an_append_answer_is_the_lists(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    stream = f"/streams/{fresh('s')}/events" if name == "streams" else "/events"
    answered = made(listed.caller.post(stream, {"event_type": "analytics", "payload": {}})).body["events"][0]
    last = listed.caller.get(f"{stream}?order=desc&limit=1").body["items"][0]
    assert (answered["cursor"], answered["position"]) == (last["cursor"], last["position"])
    page = listed.caller.get(f"{stream}?after={answered['cursor']}").body
    assert page == {"items": [], "after": None}


def test_the_cursor_of_an_answered_message_is_the_lists(lists: dict[str, Listed]) -> None:
    member = lists["messages"].caller
    path = f"/sessions/{made(member.post('/sessions', {})).body['session_id']}/messages"
    for number in range(3):
        answered = made(member.post(path, {"role": "user", "content": number}, idempotency_key=f"m{number}"))
        again = member.post(path, {"role": "user", "content": number}, idempotency_key=f"m{number}")
        assert (again.replayed, again.body["cursor"]) == (True, answered.body["cursor"])
        assert member.items(path)[-1] == answered.body
        assert member.get(f"{path}?after={answered.body['cursor']}").body == {"items": [], "after": None}


@pytest.mark.parametrize("name", ["events", "streams", "messages"])
def test_a_log_is_read_backwards_from_a_cursor(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    items = listed.caller.items(listed.path)
    found = ids(listed, f"{listed.path}?order=desc&after={items[3]['cursor']}")
    assert found == [item[listed.id_field] for item in items[:3]][::-1]


@every_list
def test_an_unknown_parameter_is_400(lists: dict[str, Listed], name: str) -> None:
    listed = lists[name]
    problem(listed.caller.get(f"{listed.path}?lmit=3"), 400, "Invalid")


@pytest.mark.parametrize(
    "path",
    [
        "/notes",
        "/tables/none/none",
        "/memory/none",
        "/blackboard/none",
        "/streams/none/events",
        "/projects",
        "/sessions",
        "/agent-memory/summaries",
    ],
)
def test_an_empty_list_is_empty_and_not_404(cast: Cast, path: str) -> None:
    assert cast.tenant("member")["member"].get(path).body == {"items": [], "after": None}


def test_the_versions_of_a_missing_entry_are_404_or_empty(tenant: Tenant) -> None:
    reply = tenant["member"].get("/blackboard/none/none/versions")
    assert reply.status == 404 or reply.body == {"items": [], "after": None}


def test_what_a_new_session_has_is_empty_and_what_none_has_is_404(cast: Cast) -> None:
    member = cast.tenant("member")["member"]
    session = made(member.post("/sessions", {})).body["session_id"]
    for part in ("messages", "checkpoints", "traces"):
        assert member.get(f"/sessions/{session}/{part}").body == {"items": [], "after": None}
        problem(member.get(f"/sessions/nobody-began-this/{part}"), 404, "NotFound")


def test_a_page_stops_at_about_a_mebibyte(tenant: Tenant) -> None:
    member = tenant["member"]
    for number in range(8):
        made(member.put(f"/tables/large/p/k{number}", {"value": "a" * 250_000}))
    first = member.get("/tables/large/p?limit=1000")
    assert len(first.content) <= 1_500_000
    assert first.body["after"] is not None
    assert [item["sk"] for item in member.items("/tables/large/p?limit=1000")] == [f"k{n}" for n in range(8)]


def test_an_etag_and_a_cursor_are_never_the_same_thing(lists: dict[str, Listed]) -> None:
    for name in ("tables", "projects"):
        listed = lists[name]
        etag = listed.caller.items(listed.path)[0]["etag"].strip('"')
        problem(listed.caller.get(f"{listed.path}?after={etag}"), 400, "Invalid")
