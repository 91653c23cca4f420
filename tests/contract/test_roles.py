"""What each role may do: the contract's sentence, call by call."""

from typing import Any

import pytest

from tests.contract.cast import ROLES, Cast, Tenant, fresh, made, until
from tests.contract.wire import Reply, problem

WRITERS = {"member", "agent", "admin", "owner"}
ADMINS = {"admin", "owner"}
OWNERS = {"owner"}
NOBODY: set[str] = set()
NOON = "2026-11-21T12:00:00Z"
EVENT = {"event_type": "analytics", "payload": {}}

READS = [
    "/me",
    "/events",
    "/streams/s/events",
    "/tables/t/p",
    "/memory/s",
    "/blackboard/r",
    "/realtime/thread/r/members",
    "/sessions",
    "/agent-memory/episodes",
    "/telemetry/tokens",
    "/flows",
    "/approvals",
    "/temperature/chat/reading",
    "/notes",
    "/analytics/events",
    "/analytics/index",
    "/budget/usage",
    "/budget/summary",
    "/budget/reservations",
    "/bootstrap",
    "/projects",
    "/oses",
    "/surfaces",
    "/apps",
    "/tenants",
    "/surfaces/chat",
    "/oses/engines",
    "/modes/lab",
]

WRITES: list[tuple[str, str, Any, set[str]]] = [
    ("POST", "/events", EVENT, WRITERS),
    ("POST", "/streams/s/events", EVENT, WRITERS),
    ("PUT", "/tables/roles/p/{}", {"value": 1}, WRITERS),
    ("DELETE", "/tables/roles/p/{}", None, WRITERS),
    ("PUT", "/memory/roles/{}", {"value": 1}, WRITERS),
    ("DELETE", "/memory/roles/{}", None, WRITERS),
    ("PUT", "/blackboard/roles/{}", {"value": 1}, WRITERS),
    ("POST", "/sessions", {}, WRITERS),
    ("PATCH", "/sessions/{}", {"title": "x"}, WRITERS),
    ("DELETE", "/sessions/{}", None, WRITERS),
    ("POST", "/sessions/{}/messages", {"role": "user", "content": "x"}, WRITERS),
    ("POST", "/sessions/{}/checkpoints", {"state": 1}, WRITERS),
    ("POST", "/checkpoints/{}.1/fork", {}, WRITERS),
    ("POST", "/sessions/{}/traces", {"name": "t", "started_at": NOON, "ended_at": NOON}, WRITERS),
    ("PUT", "/agent-memory/episodes/{}", {"value": 1}, WRITERS),
    ("DELETE", "/agent-memory/episodes/{}", None, WRITERS),
    ("POST", "/telemetry/tokens", {"provider": "p", "model": "m"}, WRITERS),
    ("POST", "/flows", {"json_blob": {}}, WRITERS),
    ("PUT", "/flows/{}", {"json_blob": {}}, WRITERS),
    ("DELETE", "/flows/{}", None, WRITERS),
    ("POST", "/kpis", {"json_blob": {}}, ADMINS),
    ("PUT", "/kpis/{}", {"json_blob": {}}, ADMINS),
    ("DELETE", "/kpis/{}", None, ADMINS),
    ("POST", "/kpis/{}/restore", {"version": 1}, ADMINS),
    ("PUT", "/temperature/floors", {"json_blob": {"values": {}}}, ADMINS),
    ("PUT", "/firearms/{}", {"json_blob": {"risk_level": "low"}}, ADMINS),
    ("POST", "/budget/usage", {"cost": "1", "currency": "USD"}, WRITERS),
    ("POST", "/budget/reservations", {"amount": "1", "currency": "USD"}, WRITERS),
    ("POST", "/budget/reservations/{}/settle", {"cost": "1"}, WRITERS),
    ("POST", "/budget/reservations/{}/release", None, WRITERS),
    ("PUT", "/budget/policy", {"currency": "USD"}, ADMINS),
    ("GET", "/budget/summary?verify=true", None, ADMINS),
    ("POST", "/strategy-locks/{}/approve", {}, ADMINS),
    ("POST", "/strategy-locks/{}/reject", {}, ADMINS),
    ("POST", "/kpis/{}/measurements", {"value": 1}, WRITERS),
    ("POST", "/approvals/{}/answer", {"answer": "no"}, ADMINS),
    ("POST", "/notes", {"content": "x"}, WRITERS),
    ("PUT", "/notes/{}", {"content": "x"}, WRITERS),
    ("DELETE", "/notes/{}", None, WRITERS),
    ("POST", "/gates/evaluate", {"action": "roles"}, WRITERS),
    ("POST", "/gates/evaluate?explain=true", {"action": "roles"}, WRITERS - {"agent"}),
    ("GET", "/gates/kill-switch", None, set(ROLES)),
    ("GET", "/gates/config/canvas", None, set(ROLES)),
    ("PUT", "/gates/kill-switch", {"engaged": True}, ADMINS),
    ("PUT", "/gates/config/canvas", {"rules": []}, ADMINS),
    ("POST", "/analytics/events", {}, WRITERS),
    ("POST", "/analytics/index/rebuild", None, ADMINS),
    ("GET", "/events/verify", None, ADMINS),
    ("POST", "/projects", {"project_id": "{}", "name": "P"}, ADMINS),
    ("PATCH", "/projects/{}", {"name": "P"}, ADMINS),
    ("PUT", "{tenant}/members/{user}", {"role": "viewer"}, ADMINS),
    ("DELETE", "{tenant}/members/{user}", None, ADMINS),
    ("POST", "/keys", {"user_id": "{viewer}", "role": "viewer"}, ADMINS),
    ("DELETE", "/keys/{}", None, ADMINS),
    ("PATCH", "{tenant}", {"name": "T"}, OWNERS),
    ("PUT", "/routes/notes_store", {"backend_id": "lab"}, OWNERS),
    ("DELETE", "/routes/notes_store", None, OWNERS),
    (
        "POST",
        "/tenants",
        {"tenant_id": "t_{}", "name": "T", "mode": "lab", "default_surface_id": "chat"},
        NOBODY,
    ),
    ("POST", "/users", {"user_id": "{}", "identities": []}, NOBODY),
    ("PUT", "/issuers/{}", {"issuer": "https://{}.example", "audience": "a", "jwks_file": "/x"}, NOBODY),
    ("DELETE", "/issuers/{}", None, NOBODY),
    ("GET", "/issuers/people", None, NOBODY),
    ("PUT", "/modes/{}", {"allowed_classes": []}, NOBODY),
    ("POST", "/oses", {"os_id": "{}", "name": "O"}, NOBODY),
    ("PATCH", "/oses/engines", {"name": "O"}, NOBODY),
    ("POST", "/surfaces", {"surface_id": "{}", "os_id": "engines", "name": "S"}, NOBODY),
    ("PATCH", "/surfaces/chat", {"name": "S"}, NOBODY),
    ("POST", "/apps", {"app_id": "{}", "surface_id": "chat", "name": "A"}, NOBODY),
    ("PATCH", "/apps/airline", {"name": "A"}, NOBODY),
    ("PUT", "/backends/{}", {"driver": "sqlite", "class": "host_local", "config": {"path": "/x"}}, NOBODY),
    ("DELETE", "/backends/{}", None, NOBODY),
    ("GET", "/backends", None, NOBODY),
    ("GET", "/backends/lab", None, NOBODY),
    ("POST", "/backends/lab/probe", None, NOBODY),
    ("GET", "/metrics", None, NOBODY),
]


def filled(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: filled(member, names) for key, member in value.items()}
    if isinstance(value, str):
        for mark, name in names.items():
            value = value.replace(mark, name)
    return value


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("path", READS)
def test_every_role_reads(tenant: Tenant, path: str, role: str) -> None:
    assert tenant[role].get(path).status == 200


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("method", "path", "body", "allowed"), WRITES)
def test_a_role_may_do_what_the_contract_says_and_nothing_else(
    cast: Cast, tenant: Tenant, role: str, method: str, path: str, body: Any, allowed: set[str]
) -> None:
    user = cast.user() if "{user}" in path else ""
    names = {"{tenant}": tenant.path(), "{user}": user, "{viewer}": tenant.users["viewer"], "{}": fresh("n")}
    reply: Reply = tenant[role].call(method, filled(path, names), filled(body, names), if_match='"x"')
    if role in allowed:
        # The condition holds nowhere and some records do not exist: past the permission all the same.
        assert reply.status in (200, 201, 204, 404, 412), reply
    else:
        problem(reply, 403, "Forbidden")


def test_a_role_is_data_and_an_unknown_one_is_refused(cast: Cast, tenant: Tenant) -> None:
    reply = tenant["owner"].put(tenant.path(f"/members/{cast.user()}"), {"role": "emperor"})
    assert reply.status in (400, 404), reply


def test_t_systems_admin_writes_what_the_others_may_not(cast: Cast) -> None:
    admin = cast.system_admin
    made(admin.post("/oses", {"os_id": fresh("os"), "name": "O"}))
    made(admin.put(f"/modes/{fresh('m')}", {"allowed_classes": []}))
    assert admin.get("/metrics").status == 200
    assert admin.get("/backends/lab").status == 200


def test_a_member_of_t_system_is_no_system_admin(cast: Cast) -> None:
    user = cast.user()
    made(cast.system_admin.put(f"/tenants/t_system/members/{user}", {"role": "member"}))
    member = cast.as_user(user)
    assert member.post(f"/tenants/t_system/members/{user}/accept").status == 200
    problem(member.post("/oses", {"os_id": fresh("os"), "name": "O"}), 403, "Forbidden")
    problem(member.get("/me", x_tenant_id="t_demo"), 403, "ContextMismatch")
    problem(member.get("/metrics"), 403, "Forbidden")
    problem(member.get("/backends"), 403, "Forbidden")


def test_an_owner_in_t_system_is_a_system_admin(cast: Cast) -> None:
    user = cast.user()
    made(cast.system_admin.put(f"/tenants/t_system/members/{user}", {"role": "owner"}))
    owner = cast.as_user(user)
    assert owner.post(f"/tenants/t_system/members/{user}/accept").status == 200
    made(owner.post("/oses", {"os_id": fresh("os"), "name": "O"}))


def test_owners_of_other_tenants_are_no_system_admins_and_list_themselves_alone(
    tenant: Tenant,
) -> None:
    listed = tenant["owner"].items("/tenants")
    assert [item["tenant_id"] for item in listed] == [tenant.tenant_id]


def test_metrics_without_a_token_are_401(cast: Cast) -> None:
    problem(cast.nobody.get("/metrics"), 401, "Unauthenticated")


def test_a_promoted_member_may_what_their_new_role_may_within_a_second(cast: Cast) -> None:
    house = cast.tenant("owner", "member")
    user = house.users["member"]
    assert house["owner"].put(house.path(f"/members/{user}"), {"role": "admin"}).status == 200
    until(lambda: house["member"].get("/events/verify").status == 200)


# --- notes and memory belong to their user ---


@pytest.mark.parametrize("role", ["owner", "admin", "agent", "viewer"])
def test_a_note_is_404_for_everyone_else_whatever_their_role(tenant: Tenant, role: str) -> None:
    note = made(tenant["member"].post("/notes", {"content": "mine"})).body["note_id"]
    path = f"/notes/{note}"
    problem(tenant[role].get(path), 404, "NotFound")
    if role != "viewer":
        problem(tenant[role].put(path, {"content": "theirs"}), 404, "NotFound")
        problem(tenant[role].delete(path), 404, "NotFound")
    assert note not in {item["note_id"] for item in tenant[role].items("/notes")}
    assert tenant["member"].get(path).body["content"] == "mine"


@pytest.mark.parametrize("role", ["owner", "admin", "agent"])
def test_memory_is_each_users_own(tenant: Tenant, role: str) -> None:
    key = fresh("k")
    path = f"/memory/shared/{key}"
    made(tenant["member"].put(path, {"value": "mine"}))
    problem(tenant[role].get(path), 404, "NotFound")
    assert key not in {item["key"] for item in tenant[role].items("/memory/shared")}
    made(tenant[role].put(path, {"value": "theirs"}))
    assert tenant["member"].get(path).body["value"] == "mine"


@pytest.mark.parametrize("role", ["owner", "admin", "agent", "viewer"])
def test_a_session_and_what_is_in_it_are_404_for_everyone_else_the_same_as_nobodys(
    tenant: Tenant, role: str
) -> None:
    member, other = tenant["member"], tenant[role]
    session_id = made(member.post("/sessions", {"title": "mine"})).body["session_id"]
    session, turn = f"/sessions/{session_id}", {"name": "t", "started_at": NOON, "ended_at": NOON}
    made(member.post(f"{session}/messages", {"role": "user", "content": "mine"}))
    made(member.post(f"{session}/checkpoints", {"state": "mine"}))
    made(member.post(f"{session}/traces", turn))
    calls: list[tuple[str, str, Any]] = [
        ("GET", "/sessions/{}", None),
        ("GET", "/sessions/{}/messages", None),
        ("GET", "/sessions/{}/checkpoints", None),
        ("GET", "/sessions/{}/traces", None),
        ("GET", "/checkpoints/{}.1", None),
        ("GET", "/traces/{}.1", None),
    ]
    if role != "viewer":
        calls += [
            ("PATCH", "/sessions/{}", {"title": "theirs"}),
            ("DELETE", "/sessions/{}", None),
            ("POST", "/sessions/{}/messages", {"role": "user", "content": "theirs"}),
            ("POST", "/sessions/{}/checkpoints", {"state": "theirs"}),
            ("POST", "/sessions/{}/traces", turn),
            ("POST", "/checkpoints/{}.1/fork", {}),
        ]
    for method, path, body in calls:
        said = [
            {**problem(other.call(method, path.format(name), body), 404, "NotFound"), "request_id": ""}
            for name in (session_id, "nobody-began-this")
        ]
        assert said[0] == said[1], (method, path)
    assert session_id not in {item["session_id"] for item in other.items("/sessions")}
    assert member.get(session).body["title"] == "mine"
    assert [item["content"] for item in member.items(f"{session}/messages")] == ["mine"]
    assert [item["state"] for item in member.items(f"{session}/checkpoints")] == ["mine"]
    assert len(member.items(f"{session}/traces")) == 1


@pytest.mark.parametrize("role", ["owner", "admin", "agent", "viewer"])
def test_agent_memory_and_tokens_are_each_users_own(tenant: Tenant, role: str) -> None:
    member, other, key = tenant["member"], tenant[role], fresh("k")
    path, tokens = f"/agent-memory/long_term/{key}", {"provider": "p", "model": key, "tokens_in": 7}
    made(member.put(path, {"value": "mine"}))
    made(member.post("/telemetry/tokens", tokens))
    said = [problem(other.get(f"{path}{end}"), 404, "NotFound") for end in ("", "-nobodys")]
    assert said[0] == {**said[1], "request_id": said[0]["request_id"]}
    assert key not in {item["key"] for item in other.items("/agent-memory/long_term")}
    assert key not in {group["model"] for group in other.get("/telemetry/tokens").body["groups"]}
    if role != "viewer":
        problem(other.delete(path), 404, "NotFound")
        made(other.put(path, {"value": "theirs"}))
        made(other.post("/telemetry/tokens", tokens))
    assert member.get(path).body["value"] == "mine"
    groups = {group["model"]: group for group in member.get("/telemetry/tokens").body["groups"]}
    assert groups[key]["tokens_in"] == 7


def test_a_viewer_reads_what_they_made_before_they_were_one(cast: Cast) -> None:
    house = cast.tenant("member")
    user = house.users["member"]
    caller = cast.as_user(user)
    session = f"/sessions/{made(caller.post('/sessions', {})).body['session_id']}"
    state = made(caller.post(f"{session}/checkpoints", {"state": 1})).body["checkpoint_id"]
    turn = {"name": "t", "started_at": NOON, "ended_at": NOON}
    trace = made(caller.post(f"{session}/traces", turn)).body["trace_id"]
    made(caller.post(f"{session}/messages", {"role": "user", "content": "x"}))
    made(caller.put("/agent-memory/episodes/k", {"value": 1}))
    assert house.invite(user, "viewer").status == 200
    until(lambda: caller.post("/sessions", {}).status == 403)
    for path in (session, f"/checkpoints/{state}", f"/traces/{trace}", "/agent-memory/episodes/k"):
        assert caller.get(path).status == 200, path
    assert len(caller.items(f"{session}/messages")) == 1
    problem(caller.post(f"/checkpoints/{state}/fork", {}), 403, "Forbidden")
    problem(caller.delete(session), 403, "Forbidden")


def test_another_user_in_the_query_is_403_whether_they_exist_or_not(tenant: Tenant) -> None:
    for role in ("member", "owner"):
        for other in (tenant.users["admin"], "u_nobody_made_this"):
            problem(tenant[role].get(f"/notes?user_id={other}"), 403, "ContextMismatch")
        assert tenant[role].get(f"/notes?user_id={tenant.users[role]}").status == 200


def test_a_users_notes_are_theirs_whichever_credential_they_use(tenant: Tenant) -> None:
    note = made(tenant["member"].post("/notes", {"content": "mine"})).body["note_id"]
    key = tenant.key(tenant.users["member"], "member")
    assert key.get(f"/notes/{note}").status == 200


def test_nothing_of_one_tenant_shows_in_another(cast: Cast, tenant: Tenant) -> None:
    other = cast.tenant("member")
    user = other.users["member"]
    tenant.join(user, "member")
    here = cast.as_user(user).having(x_tenant_id=tenant.tenant_id)
    there = cast.as_user(user).having(x_tenant_id=other.tenant_id)
    note = made(here.post("/notes", {"content": "here"})).body["note_id"]
    made(here.put("/memory/iso/k", {"value": 1}))
    made(here.put("/tables/iso/p/s", {"value": 1}))
    made(here.put("/blackboard/iso/k", {"value": 1}, if_none_match="*"))
    made(here.put(f"/realtime/canvas/iso/members/{user}", {"role": "host"}))
    made(here.put("/agent-memory/episodes/iso", {"value": 1}))
    session = made(here.post("/sessions", {})).body["session_id"]
    made(here.post(f"/sessions/{session}/checkpoints", {"state": 1}))
    made(here.post(f"/sessions/{session}/traces", {"name": "t", "started_at": NOON, "ended_at": NOON}))
    made(here.post("/telemetry/tokens", {"provider": "p", "model": "iso"}))
    event = made(here.post("/events", EVENT)).body["events"][0]["event_id"]
    made(here.post("/streams/iso/events", EVENT))
    for path in (
        f"/notes/{note}",
        "/memory/iso/k",
        "/tables/iso/p/s",
        "/blackboard/iso/k",
        f"/realtime/canvas/iso/members/{user}",
        "/agent-memory/episodes/iso",
        f"/sessions/{session}",
        f"/sessions/{session}/messages",
        f"/checkpoints/{session}.1",
        f"/traces/{session}.1",
        f"/events/{event}",
    ):
        problem(there.get(path), 404, "NotFound")
    assert there.items("/notes") == []
    assert there.items("/sessions") == []
    assert there.get("/telemetry/tokens").body["total"]["calls"] == 0
    assert there.items("/streams/iso/events") == []
    assert event not in {item["event_id"] for item in there.items("/events")}
