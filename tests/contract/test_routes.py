"""Backends, routes and what they decide; diagnostics and the bootstrap document."""

import time
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made, until
from tests.contract.wire import Reply, problem, record

LAB = {"backend_id": "lab"}
NEW = {"if_none_match": "*"}
EVENT = {"event_type": "analytics", "payload": {}}


def backend(cast: Cast, offered_to: Any = "*", **fields: Any) -> str:
    """A second SQLite backend at a path of its own; its id."""
    name = fresh("b")
    body = {
        "driver": "sqlite", "class": "host_local", "config": {"path": str(cast.directory / f"{name}.db")},
        "offered_to": offered_to, **fields,
    }  # fmt: skip
    made(cast.system_admin.put(f"/backends/{name}", body, **NEW))
    return name


# --- backends ---


def test_a_backend_is_written_read_listed_probed_and_deleted(cast: Cast) -> None:
    name = backend(cast)
    system = cast.system_admin
    shown = record(system.get(f"/backends/{name}"))
    assert {key: shown[key] for key in ("backend_id", "driver", "class", "offered_to", "secrets")} == {
        "backend_id": name, "driver": "sqlite", "class": "host_local", "offered_to": "*", "secrets": {},
    }  # fmt: skip
    assert name in {item["backend_id"] for item in system.items("/backends")}
    probe = system.post(f"/backends/{name}/probe")
    assert (probe.status, probe.body["ok"]) == (200, True)
    assert system.delete(f"/backends/{name}", if_match=shown["etag"]).status == 204
    problem(system.get(f"/backends/{name}"), 404, "NotFound")
    problem(system.post(f"/backends/{name}/probe"), 404, "NotFound")


def test_a_probe_of_a_backend_that_does_not_work_says_so(cast: Cast) -> None:
    name = backend(cast, config={"path": "/proc/nowhere/x.db"})
    reply = cast.system_admin.post(f"/backends/{name}/probe")
    assert reply.status in (200, 503), reply
    if reply.status == 200:
        assert reply.body["ok"] is False
        assert reply.body["error"]
    else:
        problem(reply, 503)


@pytest.mark.parametrize(
    "change",
    [
        {"driver": "nonesuch"},
        {"class": "imaginary"},
        {"class": None},
        {"config": {"pth": "x"}},
        {"config": {}},
        {"config": []},
        {"secrets": {"password": 1}},
        {"offered_to": "t_demo"},
        {"offered_to": ["demo"]},
        {"offered_to": None},
        {"extra": 1},
        {"backend_id": "another"},
    ],
    ids=repr,
)
def test_a_backend_that_breaks_a_rule_is_400(cast: Cast, change: dict[str, Any]) -> None:
    body = {"driver": "sqlite", "class": "host_local", "config": {"path": str(cast.directory / "x.db")}, **change}
    problem(cast.system_admin.put(f"/backends/{fresh('b')}", body, **NEW), 400, "Invalid")


def test_a_sqlite_backend_that_claims_to_be_cloud_is_refused(cast: Cast) -> None:
    body = {"driver": "sqlite", "class": "cloud", "config": {"path": str(cast.directory / "x.db")}}
    reply = cast.system_admin.put(f"/backends/{fresh('b')}", body, **NEW)
    assert reply.status in (400, 403), reply


def test_a_backend_in_use_is_not_deleted(cast: Cast) -> None:
    name = backend(cast)
    house = cast.tenant("owner")
    made(house["owner"].put("/routes/notes_store", {"backend_id": name}, **NEW))
    etag = cast.system_admin.get(f"/backends/{name}").etag
    reply = cast.system_admin.delete(f"/backends/{name}", if_match=str(etag))
    problem(reply, 409, "Conflict")
    assert cast.system_admin.get(f"/backends/{name}").status == 200


def test_an_owner_routes_only_to_backends_offered_to_them(cast: Cast) -> None:
    house, other = cast.tenant("owner"), cast.tenant("owner")
    mine, theirs = backend(cast, [house.tenant_id]), backend(cast, [other.tenant_id])
    made(house["owner"].put("/routes/notes_store", {"backend_id": mine}, **NEW))
    hidden = house["owner"].put("/routes/memory_store", {"backend_id": theirs}, **NEW)
    invented = house["owner"].put("/routes/memory_store", {"backend_id": "nobody-made-this"}, **NEW)
    assert hidden.status == invented.status, (hidden, invented)
    assert hidden.status in (400, 403, 404)
    assert str(hidden.body["detail"]).replace(theirs, "X") == str(invented.body["detail"]).replace("nobody-made-this", "X")


def test_a_route_never_carries_config_or_handles(cast: Cast) -> None:
    owner = cast.tenant("owner")["owner"]
    for extra in ({"config": {"path": "/x"}}, {"secrets": {}}, {"driver": "sqlite"}, {"options": {"path": "/x"}}):
        problem(owner.put("/routes/notes_store", {**LAB, **extra}, **NEW), 400, "Invalid")


# --- routes: scope ---


@pytest.mark.parametrize(
    "scope",
    [
        {"surface_id": "chat", "project_id": "p"},
        {"surface_id": "chat", "app_id": "airline"},
        {"app_id": "airline", "project_id": "p"},
        {"mode": "lab"},
        {"mode": "lab", "surface_id": "chat"},
        {"nonesuch": "x"},
        {"env": "NOT"},
        {"app_id": "a!b"},
        {"project_id": "a/b"},
        {"surface_id": 7},
        {"tenant_id": "t_demo"},
        "chat",
    ],
    ids=repr,
)
def test_a_scope_that_breaks_a_rule_is_400(cast: Cast, tenant: Tenant, scope: Any) -> None:
    problem(tenant["owner"].put("/routes/notes_store", {**LAB, "scope": scope}, **NEW), 400, "Invalid")


@pytest.mark.parametrize("scope", [{"mode": "lab", "surface_id": "chat"}, {"project_id": "p"}], ids=repr)
def test_t_systems_scopes_have_rules_too(cast: Cast, scope: Any) -> None:
    problem(cast.system_admin.put("/routes/notes_store", {**LAB, "scope": scope}, **NEW), 400, "Invalid")


def test_an_unknown_kind_is_refused_and_a_reserved_one_is_501(tenant: Tenant) -> None:
    for method, rest in (("PUT", ""), ("DELETE", ""), ("GET", "/resolve"), ("GET", "/history")):
        body = LAB if method == "PUT" else None
        assert tenant["owner"].call(method, f"/routes/nonesuch{rest}", body, if_match="*").status in (400, 404)
    problem(tenant["owner"].put("/routes/nexus", LAB, **NEW), 501, "Reserved")
    problem(tenant["owner"].get("/routes/nexus/resolve"), 501, "Reserved")


def test_a_kinds_alias_is_the_kind(cast: Cast) -> None:
    owner = cast.tenant("owner")["owner"]
    assert made(owner.put("/routes/maybes", LAB, **NEW)).body["resource_kind"] == "notes_store"
    problem(owner.put("/routes/notes_store", LAB, **NEW), 412)
    assert owner.get("/routes/maybes_store/resolve").body["route"]["resource_kind"] == "notes_store"


def test_scopes_are_apart_and_the_narrower_wins(cast: Cast) -> None:
    house = cast.tenant("owner", "admin", "member", envs=["prod", "dev"])
    owner = house["owner"]
    made(house["admin"].post("/projects", {"project_id": "p", "name": "P"}))
    b = {name: backend(cast) for name in ("tenant", "env", "surface", "project", "project_env")}
    scopes: dict[str, dict[str, str]] = {
        "tenant": {}, "env": {"env": "prod"}, "surface": {"surface_id": "chat"}, "project": {"project_id": "p"},
        "project_env": {"project_id": "p", "env": "prod"},
    }  # fmt: skip

    def winner(**headers: str) -> str:
        reply = owner.get("/routes/notes_store/resolve", **headers)
        return str(record_of_resolution(reply)["route"]["backend_id"])

    def becomes(name: str, **headers: str) -> None:
        until(lambda: winner(**headers) == b[name])

    assert winner() == "lab"
    for name in ("tenant", "env", "surface", "project", "project_env"):
        made(owner.put("/routes/notes_store", {"backend_id": b[name], "scope": scopes[name]}, **NEW))
    becomes("project_env", x_project_id="p")
    becomes("project", x_project_id="p", x_env="dev")
    becomes("surface")
    becomes("env", x_surface_id="canvas")
    becomes("tenant", x_surface_id="canvas", x_env="dev")
    listed = {str(item["scope"]): item["backend_id"] for item in owner.items("/routes")}
    assert set(listed.values()) == set(b.values())
    path = "/routes/notes_store?project_id=p&env=prod"
    problem(owner.delete(path), 428)
    etag = owner.get("/routes/notes_store/resolve", x_project_id="p").etag
    assert owner.delete(path, if_match=str(etag)).status == 204
    becomes("project", x_project_id="p")
    problem(owner.delete(path, if_match=str(etag)), 412)


def record_of_resolution(reply: Reply) -> Any:
    assert reply.status == 200, reply
    assert reply.etag == reply.body["etag"]
    return reply.body


BAD_SCOPES = [
    "surface_id=chat&app_id=airline", "mode=lab", "nonesuch=1", "env=NOT", "surface_id=a%2Fb", "app_id=a!b",
    "project_id=-", "env=", "app_id=",
]  # fmt: skip


@pytest.mark.parametrize("query", BAD_SCOPES)
def test_a_scope_in_a_query_that_breaks_a_rule_is_400(tenant: Tenant, query: str) -> None:
    problem(tenant["owner"].delete(f"/routes/notes_store?{query}", if_match="*"), 400, "Invalid")
    problem(tenant["owner"].get(f"/routes/notes_store/history?{query}"), 400, "Invalid")


def test_resolve_shows_every_scope_looked_at_up_to_the_winner(tenant: Tenant) -> None:
    body = record_of_resolution(tenant["owner"].get("/routes/notes_store/resolve"))
    assert body["looked_at"][-1]["found"] is True or any(look["found"] for look in body["looked_at"])
    tenants = [look["tenant_id"] for look in body["looked_at"]]
    assert tenants == sorted(tenants, key=lambda name: name == "t_system")
    assert {"surface_id": "chat", "env": "prod"} in [look["scope"] for look in body["looked_at"]]


def test_the_winners_etag_can_be_sent_back(cast: Cast) -> None:
    owner = cast.tenant("owner")["owner"]
    made(owner.put("/routes/notes_store", LAB, **NEW))
    etag = owner.get("/routes/notes_store/resolve").etag
    assert owner.put("/routes/notes_store", LAB, if_match=str(etag)).status == 200


def test_history_shows_every_version_and_the_deletion(cast: Cast) -> None:
    owner = cast.tenant("owner")["owner"]
    first = made(owner.put("/routes/notes_store", LAB, **NEW))
    second = owner.put("/routes/notes_store", {**LAB, "options": {}}, if_match=str(first.etag))
    assert owner.delete("/routes/notes_store", if_match=str(second.etag)).status == 204
    history = owner.items("/routes/notes_store/history")
    assert [item["version"] for item in history] == [1, 2, 3]
    assert [item["deleted"] for item in history] == [False, False, True]
    assert made(owner.put("/routes/notes_store", LAB, **NEW)).body["version"] == 4


def test_without_a_scope_an_owner_writes_their_tenants_route_and_a_system_admin_t_systems(
    cast: Cast, tenant: Tenant
) -> None:
    house = cast.tenant("owner")
    assert made(house["owner"].put("/routes/notes_store", LAB, **NEW)).body["tenant_id"] == house.tenant_id
    listed = cast.system_admin.items("/routes")
    assert {item["tenant_id"] for item in listed} == {"t_system"}
    named = made(house.operator.put("/routes/memory_store", LAB, **NEW)).body
    assert named["tenant_id"] == house.tenant_id
    assert {item["resource_kind"] for item in house.operator.items("/routes")} == {"notes_store", "memory_store"}


def test_the_control_planes_own_routes_cannot_be_deleted(cast: Cast) -> None:
    for kind in ("control_plane_store", "routing_registry_store"):
        etag = cast.system_admin.get(f"/routes/{kind}/resolve").etag
        reply = cast.system_admin.delete(f"/routes/{kind}", if_match=str(etag))
        assert reply.status in (400, 403, 409), reply
        assert cast.system_admin.get(f"/routes/{kind}/resolve").status == 200


# --- a switch from one backend to another, and routes that are missing ---


def test_a_tenant_switches_from_a_to_b_and_back_while_another_stays(cast: Cast) -> None:
    house, other = cast.tenant("owner", "member"), cast.tenant("member")
    name = backend(cast)
    path = "/tables/switch/p/s"
    for member in (house["member"], other["member"]):
        made(member.put(path, {"value": "on A"}))
    route = made(house["owner"].put("/routes/tabular_store", {"backend_id": name}, **NEW))
    began = time.monotonic()
    until(lambda: house["member"].get(path).status == 404)
    assert time.monotonic() - began < 1.2
    made(house["member"].put(path, {"value": "on B"}))
    assert other["member"].get(path).body["value"] == "on A"
    assert house["owner"].delete("/routes/tabular_store", if_match=str(route.etag)).status == 204
    until(lambda: house["member"].get(path).body.get("value") == "on A")
    made(house["owner"].put("/routes/tabular_store", {"backend_id": name}, **NEW))
    until(lambda: house["member"].get(path).body.get("value") == "on B")


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
        until(lambda kind=kind: cast.system_admin.get(f"/routes/{kind}/resolve").status == 200)


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
    report = {item["resource_kind"]: item["state"] for item in house["owner"].get("/diagnostics/routes").body["items"]}
    assert report["notes_store"] == "missing"
    areas = {area["area"]: area for area in house["owner"].get("/bootstrap").body["areas"]}
    assert (areas["notes_store"]["state"], areas["notes_store"]["reason_code"]) == ("blocked", "MissingRoute")
    made(house["owner"].put("/routes/notes_store", LAB, **NEW))
    until(lambda: house["member"].get("/notes").status == 200)


def test_without_a_spine_route_every_state_changing_call_is_missing_route_except_the_one_that_mends_it(
    cast: Cast, holed: Any
) -> None:
    house = cast.tenant("member", "owner", "admin")
    member, admin, owner = house["member"], house["admin"], house["owner"]
    made(member.put("/tables/spine/p/s", {"value": 1}))
    note = made(member.post("/notes", {"content": "x"})).body["note_id"]
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
        member.post("/notes", {"content": "x"}),
        member.put(f"/notes/{note}", {"content": "y"}),
        member.delete(f"/notes/{note}"),
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
        assert set(states.values()) <= {"ready", "missing", "forbidden", "unreachable"}
        for kind in ("event_spine", "event_stream", "tabular_store", "memory_store", "blackboard_store", "notes_store"):
            assert states[kind] == "ready"


def test_diagnostics_show_a_backend_that_cannot_be_reached(cast: Cast) -> None:
    house = cast.tenant("owner", "member")
    name = backend(cast, config={"path": "/proc/nowhere/x.db"})
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
            if [("{" in part) or part for part in known.split("/")] == [("{" in part) or part for part in shape.split("/")]
            for method in calls
        }
        assert set(methods.split(",")) <= found, call


CALLS = """GET /me
POST,GET /tenants
GET,PATCH /tenants/{}
PUT,GET,DELETE /tenants/{}/members/{}
POST /tenants/{}/members/{}/accept
POST,GET /users
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
GET,POST,PUT,PATCH,DELETE /reserved/{}""".splitlines()
