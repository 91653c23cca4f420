"""A switch of backends, routes that are missing or forbidden, and what diagnostics say of them."""

import time
from functools import partial
from typing import Any

import pytest

from tests.contract.cast import ADOPTION_S, Cast, Tenant, fresh, made, sqlite_backend, until
from tests.contract.wire import problem

LAB = {"backend_id": "lab"}
NEW, ANY = {"if_none_match": "*"}, {"if_match": "*"}
EVENT = {"event_type": "analytics", "payload": {}}
TURN = {"name": "turn", "started_at": "2026-11-21T14:00:00Z", "ended_at": "2026-11-21T14:00:01Z"}
RESERVED = {"pii_vault", "nexus", "tool_registry", "canvas_registry", "connector_execution"}


def test_a_tenant_switches_from_a_to_b_and_back_while_another_stays(cast: Cast) -> None:
    house, other = cast.tenant("owner", "member"), cast.tenant("member")
    name = sqlite_backend(cast)
    path = "/tables/switch/p/s"
    for member in (house["member"], other["member"]):
        made(member.put(path, {"value": "on A"}))
    route = made(house["owner"].put("/routes/tabular_store", {"backend_id": name}, **NEW))
    began = time.monotonic()
    until(lambda: house["member"].get(path).status == 404)
    assert time.monotonic() - began < ADOPTION_S
    made(house["member"].put(path, {"value": "on B"}))
    assert other["member"].get(path).body["value"] == "on A"
    assert house["owner"].delete("/routes/tabular_store", if_match=str(route.etag)).status == 204
    until(lambda: house["member"].get(path).body.get("value") == "on A")
    made(house["owner"].put("/routes/tabular_store", {"backend_id": name}, **NEW))
    until(lambda: house["member"].get(path).body.get("value") == "on B")


def resolves(cast: Cast, kind: str) -> bool:
    return cast.system_admin.get(f"/routes/{kind}/resolve").status == 200


@pytest.fixture
def holed(cast: Cast) -> Any:
    """t_system's default for a kind is gone for the length of one test."""
    taken: list[tuple[str, Any]] = []

    def take(kind: str) -> None:
        system = cast.system_admin
        found = system.get(f"/routes/{kind}/resolve")
        taken.append((kind, found.body["route"]["backend_id"]))
        assert system.delete(f"/routes/{kind}", if_match=str(found.etag)).status == 204

    yield take
    for kind, name in taken:
        made(cast.system_admin.put(f"/routes/{kind}", {"backend_id": name}, **NEW))
        until(partial(resolves, cast, kind))


def test_a_missing_route_is_503_and_says_which_kind_where_and_what_mends_it(cast: Cast, holed: Any) -> None:
    house = cast.tenant("member", "owner")
    holed("notes_store")
    until(lambda: house["member"].get("/notes").status == 503)
    for reply in (house["member"].get("/notes"), house["member"].post("/notes", {"content": "x"})):
        said = problem(reply, 503, "MissingRoute")
        assert said["resource_kind"] == "notes_store"
        assert said["scope"]["tenant_id"] == house.tenant_id
        assert "notes_store" in said["detail"]
        assert "engines routes" in said["detail"]
    assert house["member"].get("/tables/t/p").status == 200
    problem(house["owner"].get("/routes/notes_store/resolve"), 503, "MissingRoute")
    report = {
        item["resource_kind"]: item["state"]
        for item in house["owner"].get("/diagnostics/routes").body["items"]
    }
    assert report["notes_store"] == "missing"
    areas = {area["area"]: area for area in house["owner"].get("/bootstrap").body["areas"]}
    assert (areas["notes_store"]["state"], areas["notes_store"]["reason_code"]) == ("blocked", "MissingRoute")
    made(house["owner"].put("/routes/notes_store", LAB, **NEW))
    until(lambda: house["member"].get("/notes").status == 200)


def test_each_part_of_a_session_needs_a_route_of_its_own_and_its_deletion_all_of_them(
    cast: Cast, holed: Any
) -> None:
    house = cast.tenant("member", "owner")
    member = house["member"]
    session = f"/sessions/{made(member.post('/sessions', {})).body['session_id']}"
    made(member.post(f"{session}/messages", {"role": "user", "content": "x"}))
    holed("trace_store")
    until(lambda: member.get(f"{session}/traces").status == 503)
    for reply in (member.get(f"{session}/traces"), member.post(f"{session}/traces", TURN)):
        assert problem(reply, 503, "MissingRoute")["resource_kind"] == "trace_store"
    made(member.post(f"{session}/checkpoints", {"state": 1}))
    assert problem(member.delete(session), 503, "MissingRoute")["resource_kind"] == "trace_store"
    assert member.get(session).body["status"] == "active", "what cannot be finished is not begun"
    assert len(member.items(f"{session}/messages")) == 1
    made(house["owner"].put("/routes/trace_store", LAB, **NEW))
    until(lambda: member.delete(session, idempotency_key="again").status == 204)
    problem(member.get(session), 404, "NotFound")
    repeated = member.delete(session, idempotency_key="again")
    assert (repeated.status, repeated.replayed) == (204, True)


def test_without_a_spine_route_every_state_changing_call_is_missing_route_except_the_one_that_mends_it(
    cast: Cast, holed: Any
) -> None:
    house = cast.tenant("member", "owner", "admin")
    member, admin, owner = house["member"], house["admin"], house["owner"]
    made(member.put("/tables/spine/p/s", {"value": 1}))
    note = made(member.post("/notes", {"content": "x"})).body["note_id"]
    session = f"/sessions/{made(member.post('/sessions', {})).body['session_id']}"
    state = made(member.post(f"{session}/checkpoints", {"state": 1})).body["checkpoint_id"]
    made(admin.put("/kpis/spine", {"json_blob": {}}, **NEW))
    made(member.put("/strategy-locks/spine", {"json_blob": {"allowed_actions": ["*"]}}, **NEW))
    user = cast.user()
    holed("event_spine")
    until(lambda: member.get("/events").status == 503)
    refused = [
        member.post("/events", EVENT),
        member.post("/streams/s/events", EVENT),
        member.put("/tables/spine/p/s", {"value": 2}),
        member.delete("/tables/spine/p/s"),
        member.put("/memory/s/k", {"value": 1}),
        member.put("/blackboard/r/k", {"value": 1}, **NEW),
        member.put("/flows/f", {"json_blob": {}}, **NEW),
        member.put(f"/realtime/thread/t/members/{house.users['member']}", {"role": "host"}),
        member.post("/sessions", {}),
        member.patch(session, {"title": "x"}),
        member.post(f"{session}/messages", {"role": "user", "content": "x"}),
        member.post(f"{session}/checkpoints", {"state": 2}),
        member.post(f"/checkpoints/{state}/fork", {}),
        member.post(f"{session}/traces", TURN),
        member.delete(session),
        member.put("/agent-memory/episodes/k", {"value": 1}),
        member.post("/telemetry/tokens", {"provider": "p", "model": "m"}),
        member.post("/budget/usage", {"cost": "1", "currency": "USD"}),
        member.post("/budget/reservations", {"amount": "1", "currency": "USD"}),
        member.post("/budget/reservations/r/settle", {"cost": "1"}),
        member.post("/budget/reservations/r/release"),
        admin.put("/budget/policy", {"currency": "USD"}),
        member.post("/kpis/spine/measurements", {"value": 1}),
        owner.post("/strategy-locks/spine/approve", {}, **ANY),
        member.post("/notes", {"content": "x"}),
        member.post("/analytics/events", {}),
        member.put(f"/notes/{note}", {"content": "y"}),
        member.delete(f"/notes/{note}"),
        member.post("/gates/evaluate", {"action": "refund.create"}),
        admin.put("/gates/kill-switch", {"engaged": True}),
        admin.put("/gates/config/chat", {"rules": []}),
        admin.post("/projects", {"project_id": "p", "name": "P"}),
        admin.post("/keys", {"user_id": house.users["member"], "role": "member"}),
        admin.put(house.path(f"/members/{user}"), {"role": "member"}),
        owner.patch(house.path(), {"name": "N"}, if_match=str(owner.get(house.path()).etag)),
        owner.put("/routes/notes_store", LAB, **NEW),
    ]
    for number, reply in enumerate(refused):
        assert reply.status == 503, (number, reply)
        assert problem(reply, 503, "MissingRoute")["resource_kind"] == "event_spine"
    assert member.get("/tables/spine/p/s").body["value"] == 1
    assert member.get(f"/notes/{note}").body["content"] == "x"
    assert [item["status"] for item in member.items("/sessions")] == ["active"]
    assert [item["state"] for item in member.items(f"{session}/checkpoints")] == [1]
    assert member.items(f"{session}/messages") == []
    made(owner.put("/routes/event_spine", LAB, **NEW))
    until(lambda: member.put("/tables/spine/p/s", {"value": 3}).status == 200)

    def told() -> bool:
        events = owner.items("/events?event_type=audit")
        return any("event_spine" in str(event["payload"]) for event in events)

    until(told)


def test_a_class_that_the_mode_forbids_is_refused_when_written_and_when_resolved(cast: Cast) -> None:
    system = cast.system_admin
    mode = fresh("mode")
    made(system.put(f"/modes/{mode}", {"allowed_classes": ["cloud", "server"]}))
    reply = system.post(
        "/tenants", {"tenant_id": fresh("t_x"), "name": "T", "mode": mode, "default_surface_id": "chat"}
    )
    assert 400 <= reply.status < 500, "a lab refuses a tenant in any other mode"
    for saas in ("saas", "enterprise", "system"):
        reply = system.post(
            "/tenants", {"tenant_id": fresh("t_x"), "name": "T", "mode": saas, "default_surface_id": "chat"}
        )
        assert 400 <= reply.status < 500, reply


def test_a_surface_that_narrows_the_mode_forbids_what_its_mode_forbids(cast: Cast) -> None:
    system, house = cast.system_admin, cast.tenant("member")
    mode, surface = fresh("mode"), fresh("surface")
    made(system.put(f"/modes/{mode}", {"allowed_classes": ["cloud", "server"]}))
    made(system.post("/surfaces", {"surface_id": surface, "os_id": "engines", "name": "S", "mode": mode}))
    until(lambda: house["member"].get("/me", x_surface_id=surface).status == 200)
    reply = house["member"].get("/notes", x_surface_id=surface)
    problem(reply, 403, "ForbiddenBackendClass")
    assert house["member"].get("/notes").status == 200


# --- diagnostics ---


def test_diagnostics_say_of_each_kind_whether_it_is_ready(tenant: Tenant) -> None:
    for role in ("owner", "admin"):
        body = tenant[role].get("/diagnostics/routes").body
        assert set(body) == {"items", "after"}
        states = {item["resource_kind"]: item["state"] for item in body["items"]}
        reserved = {kind for kind, state in states.items() if state == "reserved"}
        assert reserved == RESERVED
        others = {state for kind, state in states.items() if kind not in reserved}
        assert others <= {"ready", "missing", "forbidden", "unreachable"}
        for kind in (
            "event_spine",
            "event_stream",
            "tabular_store",
            "memory_store",
            "blackboard_store",
            "notes_store",
            "budget_store",
            "realtime_registry",
            "session_store",
            "checkpoint_store",
            "trace_store",
            "agent_memory_store",
            "telemetry_store",
        ):
            assert states[kind] == "ready"


def test_what_is_reserved_shows_everywhere_and_can_be_used_nowhere(tenant: Tenant) -> None:
    items = {item["resource_kind"]: item for item in tenant["owner"].get("/diagnostics/routes").body["items"]}
    areas = {area["area"]: area for area in tenant["owner"].get("/bootstrap").body["areas"]}
    for kind in RESERVED:
        assert items[kind] == {"resource_kind": kind, "state": "reserved", "detail": areas[kind]["reason"]}
        assert (areas[kind]["state"], areas[kind]["reason_code"]) == ("blocked", "Reserved")
        assert problem(tenant["owner"].get(f"/reserved/{kind}"), 501, "Reserved")["resource_kind"] == kind
        problem(tenant["owner"].put(f"/routes/{kind}", LAB, **NEW), 501, "Reserved")
        problem(tenant["owner"].get(f"/routes/{kind}/resolve"), 501, "Reserved")


def test_diagnostics_show_a_backend_that_cannot_be_reached(cast: Cast) -> None:
    house = cast.tenant("owner", "member")
    name = sqlite_backend(cast, config={"path": "/proc/nowhere/x.db"})
    made(house["owner"].put("/routes/notes_store", {"backend_id": name}, **NEW))

    def state() -> str:
        items = house["owner"].get("/diagnostics/routes").body["items"]
        return str({item["resource_kind"]: item["state"] for item in items}["notes_store"])

    until(lambda: state() == "unreachable")
    reply = house["member"].get("/notes")
    assert reply.status == 503, reply
    assert problem(reply, 503)["code"] in ("Unavailable", "BackendRefused")
    assert "/proc/nowhere" not in reply.content.decode()


def test_live_and_ready_need_no_token(cast: Cast) -> None:
    for path in ("/health/live", "/health/ready", "/openapi.json"):
        assert cast.nobody.get(path).status == 200
        assert cast.nobody.having(authorization="Bearer nonsense").get(path).status == 200


def test_bootstrap_says_of_each_area_empty_blocked_with_the_reason_or_ready(cast: Cast) -> None:
    house = cast.tenant("member")
    member = house["member"]

    def areas() -> dict[str, Any]:
        return {area["area"]: area for area in member.get("/bootstrap").body["areas"]}

    before = areas()
    assert {area["state"] for area in before.values()} <= {"empty", "blocked", "ready"}
    assert all(area["reason_code"] for area in before.values() if area["state"] == "blocked")
    assert before["notes_store"]["state"] == "empty"
    made(member.post("/notes", {"content": "x"}))
    assert areas()["notes_store"]["state"] == "ready"


def test_the_description_has_every_call_of_the_contract(cast: Cast) -> None:
    described = cast.nobody.get("/openapi.json").body["paths"]
    for call in CALLS:
        methods, path = call.split(" ")
        shape = path.replace("{}", "{x}")
        found = {
            method.upper()
            for known, calls in described.items()
            if [("{" in part) or part for part in known.split("/")]
            == [("{" in part) or part for part in shape.split("/")]
            for method in calls
        }
        assert set(methods.split(",")) <= found, call


CALLS = """GET /me
POST,GET /tenants
GET,PATCH /tenants/{}
PUT,GET,DELETE /tenants/{}/members/{}
POST /tenants/{}/members/{}/accept
POST,GET /users
POST,GET /users/{}/erase
PUT,DELETE /users/{}/hold
GET,PUT /modes/{}
POST,GET /oses
POST,GET /surfaces
POST,GET /apps
POST,GET /projects
GET,PATCH /oses/{}
GET,PATCH /surfaces/{}
GET,PATCH /apps/{}
GET,PATCH /projects/{}
POST,GET /keys
DELETE /keys/{}
PUT,GET,DELETE /issuers/{}
PUT,GET,DELETE /backends/{}
GET /backends
POST /backends/{}/probe
GET /routes
PUT,DELETE /routes/{}
GET /routes/{}/resolve
GET /routes/{}/history
GET /health/live
GET /health/ready
GET /metrics
GET /diagnostics/routes
GET /bootstrap
POST,GET /events
GET /events/{}
GET /events/stream
GET /events/verify
POST,GET /streams/{}/events
GET /streams/{}/stream
PUT,GET,DELETE /tables/{}/{}/{}
GET /tables/{}/{}
PUT,GET,DELETE /memory/{}/{}
GET /memory/{}
PUT,GET /blackboard/{}/{}
GET /blackboard/{}
GET /blackboard/{}/{}/versions
POST,GET /notes
GET,PUT,DELETE /notes/{}
POST,GET /budget/usage
GET,PUT /budget/policy
GET /budget/summary
POST,GET /budget/reservations
GET /budget/reservations/{}
POST /budget/reservations/{}/settle
POST /budget/reservations/{}/release
POST,GET /flows
GET,PUT,DELETE /flows/{}
GET /flows/{}/versions
GET /flows/{}/diff
POST /flows/{}/restore
POST /flows/{}/copy
PUT,GET,DELETE /realtime/{}/{}/members/{}
GET /realtime/{}/{}/members
POST,GET /sessions
GET,PATCH,DELETE /sessions/{}
POST,GET /sessions/{}/messages
POST,GET /sessions/{}/checkpoints
GET /checkpoints/{}
POST /checkpoints/{}/fork
POST,GET /sessions/{}/traces
GET /traces/{}
PUT,GET,DELETE /agent-memory/{}/{}
GET /agent-memory/{}
POST,GET /telemetry/tokens
GET,POST,PUT,PATCH,DELETE /reserved/{}""".splitlines()
