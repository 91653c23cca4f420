"""Idempotency-Key: the same request again is answered as the first was, and done once."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, problem, record

EVENT = {"event_type": "analytics", "payload": {"n": 1}}


def call_named(cast: Cast, tenant: Tenant, name: str) -> tuple[Any, str, str, Any, Any, dict[str, str]]:
    """caller, method, path, body, another body, headers"""
    n = fresh("i")
    sqlite = {"driver": "sqlite", "class": "host_local", "config": {"path": str(cast.directory / f"{n}.db")}}
    member, admin, owner, system = tenant["member"], tenant["admin"], tenant["owner"], cast.system_admin
    new = {"if_none_match": "*"}
    calls: dict[str, tuple[Any, str, str, Any, Any, dict[str, str]]] = {
        "event": (member, "POST", "/events", EVENT, {**EVENT, "payload": {"n": 2}}, {}),
        "stream": (member, "POST", f"/streams/{n}/events", EVENT, {**EVENT, "payload": {"n": 2}}, {}),
        "table": (member, "PUT", f"/tables/t/p/{n}", {"value": 1}, {"value": 2}, {}),
        "memory": (member, "PUT", f"/memory/s/{n}", {"value": 1}, {"value": 2}, {}),
        "blackboard": (member, "PUT", f"/blackboard/r/{n}", {"value": 1}, {"value": 2}, new),
        "room member": (
            admin,
            "PUT",
            f"/realtime/thread/{n}/members/u",
            {"role": "host"},
            {"role": "writer"},
            {},
        ),
        "agent memory": (member, "PUT", f"/agent-memory/episodes/{n}", {"value": 1}, {"value": 2}, {}),
        "session": (member, "POST", "/sessions", {"title": n}, {"title": "other"}, {}),
        "tokens": (
            member,
            "POST",
            "/telemetry/tokens",
            {"provider": "p", "model": n, "tokens_in": 1},
            {"provider": "p", "model": n, "tokens_in": 2},
            {},
        ),
        "usage": (
            member,
            "POST",
            "/budget/usage",
            {"cost": "1", "currency": "USD", "note": n},
            {"cost": "2", "currency": "USD", "note": n},
            {},
        ),
        "reservation": (
            member,
            "POST",
            "/budget/reservations",
            {"amount": "1", "currency": "USD", "tool": n},
            {"amount": "2", "currency": "USD", "tool": n},
            {},
        ),
        "note": (member, "POST", "/notes", {"content": n}, {"content": "other"}, {}),
        "project": (
            admin,
            "POST",
            "/projects",
            {"project_id": n, "name": "P"},
            {"project_id": n, "name": "Q"},
            {},
        ),
        "tenant": (
            system,
            "POST",
            "/tenants",
            {"tenant_id": f"t_{n}", "name": "T", "mode": "lab", "default_surface_id": "chat"},
            {"tenant_id": f"t_{n}", "name": "U", "mode": "lab", "default_surface_id": "chat"},
            {},
        ),
        "user": (system, "POST", "/users", {"user_id": n}, {"user_id": n, "name": "N"}, {}),
        "os": (system, "POST", "/oses", {"os_id": n, "name": "O"}, {"os_id": n, "name": "P"}, {}),
        "mode": (system, "PUT", f"/modes/{n}", {"allowed_classes": []}, {"allowed_classes": ["cloud"]}, {}),
        "backend": (system, "PUT", f"/backends/{n}", sqlite, {**sqlite, "offered_to": "*"}, new),
        "member": (
            owner,
            "PUT",
            tenant.path(f"/members/{cast.user()}"),
            {"role": "member"},
            {"role": "viewer"},
            {},
        ),
        "key": (
            admin,
            "POST",
            "/keys",
            {"user_id": tenant.users["member"], "role": "member"},
            {"user_id": tenant.users["member"], "role": "viewer"},
            {},
        ),
        "route": (
            cast.tenant("owner")["owner"],
            "PUT",
            "/routes/notes_store",
            {"backend_id": "lab"},
            {"backend_id": "lab", "scope": {"env": "prod"}},
            new,
        ),
    }
    return calls[name] if name in calls else call_in_session(member, name)


def call_in_session(member: Caller, name: str) -> tuple[Any, str, str, Any, Any, dict[str, str]]:
    """The same for what is in a session, which is a new one."""
    path = f"/sessions/{made(member.post('/sessions', {})).body['session_id']}"
    if name == "fork":
        checkpoint = made(member.post(f"{path}/checkpoints", {"state": 1})).body["checkpoint_id"]
        return member, "POST", f"/checkpoints/{checkpoint}/fork", {}, {"title": "other"}, {}
    times = {"started_at": "2026-11-21T14:00:00Z", "ended_at": "2026-11-21T14:00:01Z"}
    one, other = {
        "message": ({"role": "user", "content": 1}, {"role": "user", "content": 2}),
        "checkpoint": ({"state": 1}, {"state": 2}),
        "trace": ({"name": "a", **times}, {"name": "b", **times}),
    }[name]
    return member, "POST", f"{path}/{name}s", one, other, {}


NAMES = [
    "event",
    "stream",
    "table",
    "memory",
    "blackboard",
    "room member",
    "agent memory",
    "session",
    "message",
    "checkpoint",
    "fork",
    "trace",
    "tokens",
    "usage",
    "reservation",
    "note",
    "project",
    "tenant",
    "user",
    "os",
    "mode",
    "backend",
    "member",
    "key",
    "route",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_repeat_gets_the_first_status_and_body_and_is_marked(cast: Cast, tenant: Tenant, name: str) -> None:
    caller, method, path, body, _other, headers = call_named(cast, tenant, name)
    keyed = {**headers, "idempotency_key": fresh("key")}
    first = caller.call(method, path, body, **keyed)
    assert (first.status, first.replayed) == (201, False), first
    for _ in range(2):
        again = caller.call(method, path, body, **keyed)
        assert (again.status, again.replayed) == (201, True), again
        if name == "key":
            expected = {key: value for key, value in first.body.items() if key != "key"}
            assert {
                key: value for key, value in again.body.items() if value is not None or key != "key"
            } == expected
            assert str(first.body["key"]) not in again.content.decode()
        else:
            assert again.body == first.body
        assert again.etag == first.etag


@pytest.mark.parametrize("name", NAMES)
def test_another_body_under_the_same_key_is_409(cast: Cast, tenant: Tenant, name: str) -> None:
    caller, method, path, body, other, headers = call_named(cast, tenant, name)
    keyed = {**headers, "idempotency_key": fresh("key")}
    made(caller.call(method, path, body, **keyed))
    problem(caller.call(method, path, other, **keyed), 409, "IdempotencyKeyReused")


@pytest.mark.parametrize(
    "name",
    ["event", "stream", "note", "table", "key", "tenant", "member", "session", "message", "fork", "tokens"],
)
def test_concurrent_duplicates_are_done_once(cast: Cast, tenant: Tenant, name: str) -> None:
    caller, method, path, body, _other, headers = call_named(cast, tenant, name)
    keyed = {**headers, "idempotency_key": fresh("key")}
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _n: caller.call(method, path, body, **keyed), range(8)))
    assert {reply.status for reply in replies} <= {201, 409}, replies
    done = [reply for reply in replies if reply.status == 201]
    assert [reply.replayed for reply in done].count(False) == 1
    bodies = [{key: value for key, value in reply.body.items() if key != "key"} for reply in done]
    assert all(body == bodies[0] for body in bodies)


def test_a_repeated_event_is_appended_once(tenant: Tenant) -> None:
    member, key = tenant["member"], fresh("key")
    stream = f"/streams/{fresh('s')}/events"
    for _ in range(3):
        made(member.post(stream, EVENT, idempotency_key=key))
    assert len(member.items(stream)) == 1


def test_what_is_repeated_is_said_saved_and_counted_once(tenant: Tenant) -> None:
    member, model = tenant["member"], fresh("model")
    path = f"/sessions/{made(member.post('/sessions', {})).body['session_id']}"
    said, tokens = {"role": "user", "content": "x"}, {"provider": "p", "model": model, "tokens_in": 5}
    for key in ("a", "a", "b", "a"):
        made(member.post(f"{path}/messages", said, idempotency_key=key))
        made(member.post(f"{path}/checkpoints", {"state": 1}, idempotency_key=key))
        made(member.post("/telemetry/tokens", tokens, idempotency_key=f"{model}{key}"))
    assert [item["number"] for item in member.items(f"{path}/messages")] == [1, 2]
    assert [item["number"] for item in member.items(f"{path}/checkpoints")] == [1, 2]
    groups = member.get("/telemetry/tokens").body["groups"]
    (counted,) = [group for group in groups if group["model"] == model]
    assert (counted["calls"], counted["tokens_in"]) == (2, 10)


def test_a_repeat_with_expected_position_is_no_conflict(tenant: Tenant) -> None:
    member, key = tenant["member"], fresh("key")
    stream = f"/streams/{fresh('s')}/events"
    body = {**EVENT, "expected_position": 0}
    first = made(member.post(stream, body, idempotency_key=key))
    assert made(member.post(stream, body, idempotency_key=key)).body == first.body


@pytest.mark.parametrize("path", ["/tables/t/p/{}", "/memory/s/{}", "/agent-memory/summaries/{}"])
def test_a_delete_is_repeated_as_204(tenant: Tenant, path: str) -> None:
    member, key, path = tenant["member"], fresh("key"), path.format(fresh("k"))
    made(member.put(path, {"value": 1}))
    first = member.delete(path, idempotency_key=key)
    again = member.delete(path, idempotency_key=key)
    assert (first.status, first.replayed, again.status, again.replayed) == (204, False, 204, True)
    problem(member.delete(path), 404, "NotFound")


def test_a_delete_of_a_note_a_session_a_key_and_a_member_is_repeated_as_204(
    cast: Cast, tenant: Tenant
) -> None:
    member, owner = tenant["member"], tenant["owner"]
    note = made(member.post("/notes", {"content": "x"})).body["note_id"]
    session = made(member.post("/sessions", {})).body["session_id"]
    key_id = made(owner.post("/keys", {"user_id": tenant.users["member"], "role": "viewer"})).body["key_id"]
    user = cast.user()
    made(tenant.invite(user, "viewer"))
    for caller, path in (
        (member, f"/notes/{note}"),
        (member, f"/sessions/{session}"),
        (owner, f"/keys/{key_id}"),
        (owner, tenant.path(f"/members/{user}")),
    ):
        key = fresh("key")
        assert caller.delete(path, idempotency_key=key).status == 204
        again = caller.delete(path, idempotency_key=key)
        assert (again.status, again.replayed) == (204, True), path


def test_a_repeated_conditional_put_is_no_412(tenant: Tenant) -> None:
    member, path = tenant["member"], f"/blackboard/r/{fresh('k')}"
    first = record(member.put(path, {"value": 1}, if_none_match="*"), 201)
    keyed = {"idempotency_key": fresh("key"), "if_match": first["etag"]}
    second = record(member.put(path, {"value": 2}, **keyed))
    again = member.put(path, {"value": 2}, **keyed)
    assert (again.status, again.replayed, again.body["etag"]) == (200, True, second["etag"])


def test_a_repeat_after_a_later_write_still_gets_the_first_answer_and_changes_nothing(tenant: Tenant) -> None:
    member, path, key = tenant["member"], f"/tables/t/p/{fresh('k')}", fresh("key")
    first = made(member.put(path, {"value": 1}, idempotency_key=key))
    assert member.put(path, {"value": 2}).status == 200
    again = member.put(path, {"value": 1}, idempotency_key=key)
    assert (again.status, again.body) == (201, first.body)
    assert member.get(path).body["value"] == 2


def test_a_patch_and_an_acceptance_are_repeated(cast: Cast, tenant: Tenant) -> None:
    project = fresh("p")
    made(tenant["admin"].post("/projects", {"project_id": project, "name": "P"}))
    keyed = {"idempotency_key": fresh("key")}
    first = tenant["admin"].patch(f"/projects/{project}", {"name": "Q"}, **keyed)
    again = tenant["admin"].patch(f"/projects/{project}", {"name": "Q"}, **keyed)
    assert (first.status, again.status, again.body, again.replayed) == (200, 200, first.body, True)
    house, user = cast.tenant(), cast.user()
    made(house.invite(user, "member"))
    path = house.path(f"/members/{user}/accept")
    one, two = (cast.as_user(user).post(path, idempotency_key="accept") for _ in range(2))
    assert (one.status, two.status, two.body) == (200, 200, one.body)
    assert two.replayed


def test_a_key_counts_for_one_user_one_path_one_method_one_env_and_one_tenant(cast: Cast) -> None:
    house = cast.tenant("member", "owner", envs=["prod", "dev"])
    other = cast.tenant()
    key = fresh("key")
    other.join(house.users["member"], "member")
    member = house["member"].having(x_tenant_id=house.tenant_id)
    away = house["member"].having(x_tenant_id=other.tenant_id)
    body = {"value": 1}
    made(member.put("/tables/scope/p/s", body, idempotency_key=key))
    replies = [
        house["owner"].put("/tables/scope/p/s", {"value": 2}, idempotency_key=key),
        member.put("/tables/scope/p/s2", body, idempotency_key=key),
        member.put("/tables/scope/p/s", body, idempotency_key=key, x_env="dev"),
        away.put("/tables/scope/p/s", body, idempotency_key=key),
    ]
    assert [(reply.status, reply.replayed) for reply in replies] == [(200, False), *[(201, False)] * 3]
    assert member.delete("/tables/scope/p/s", idempotency_key=key).status == 204


@pytest.mark.parametrize(
    "name", ["event", "stream", "table", "agent memory", "session", "tokens", "usage", "reservation", "note"]
)
def test_a_key_that_was_used_in_another_project_answers_for_that_one_alone(
    cast: Cast, tenant: Tenant, name: str
) -> None:
    caller, method, path, body, _other, headers = call_named(cast, tenant, name)
    project = fresh("p")
    made(tenant["admin"].post("/projects", {"project_id": project, "name": "P"}))
    keyed = {**headers, "idempotency_key": fresh("key")}
    made(caller.call(method, path, body, **keyed))
    there = caller.call(method, path, body, **keyed, x_project_id=project)
    problem(there, 409, "IdempotencyKeyReused")
    assert caller.call(method, path, body, **keyed).replayed


@pytest.mark.parametrize("bad", ["", "a" * 256, "é", "a\tb"])
def test_a_key_that_is_not_1_to_255_printable_ascii_is_400(tenant: Tenant, bad: str) -> None:
    problem(
        tenant["member"].put(f"/tables/t/p/{fresh('k')}", {"value": 1}, idempotency_key=bad), 400, "Invalid"
    )


@pytest.mark.parametrize("good", ["a", "a" * 255, "!#$%&'()*+,-./:;<=>?@[]^_`{|}~\\\"", "a b"])
def test_a_key_of_printable_ascii_is_taken(tenant: Tenant, good: str) -> None:
    path = f"/tables/t/p/{fresh('k')}"
    made(tenant["member"].put(path, {"value": 1}, idempotency_key=good))
    assert tenant["member"].put(path, {"value": 1}, idempotency_key=good).replayed


def test_a_refused_request_does_not_use_its_key_up(tenant: Tenant) -> None:
    member, path, key = tenant["member"], f"/blackboard/r/{fresh('k')}", fresh("key")
    problem(member.put(path, {"value": 1}, idempotency_key=key), 428)
    problem(member.put(path, {"valeu": 1}, idempotency_key=key, if_none_match="*"), 400)
    made(member.put(path, {"value": 1}, idempotency_key=key, if_none_match="*"))


def test_the_same_json_spelled_otherwise_is_the_same_or_another_request_but_never_a_second_effect(
    tenant: Tenant,
) -> None:
    member, key, stream = tenant["member"], fresh("key"), f"/streams/{fresh('s')}/events"
    made(member.post(stream, EVENT, idempotency_key=key))
    spelled = json.dumps(EVENT, indent=2).encode()
    assert member.post(stream, spelled, idempotency_key=key).status in (201, 409)
    assert len(member.items(stream)) == 1


def test_a_key_on_a_read_is_ignored_or_refused_never_replayed(tenant: Tenant) -> None:
    for _ in range(2):
        reply = tenant["member"].get("/me", idempotency_key="k")
        assert reply.status in (200, 400)
        assert not reply.replayed


def test_a_repeat_after_the_role_was_lost_is_refused(cast: Cast) -> None:
    house = cast.tenant("member")
    key = fresh("key")
    made(house["member"].post("/notes", {"content": "x"}, idempotency_key=key))
    assert house.invite(house.users["member"], "viewer").status == 200
    until(lambda: house["member"].post("/notes", {"content": "x"}, idempotency_key=key).status == 403)
