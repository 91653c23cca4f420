"""Backends, routes and what they decide; diagnostics and the bootstrap document."""

from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made, sqlite_backend, until
from tests.contract.wire import Reply, problem, record

LAB = {"backend_id": "lab"}
NEW = {"if_none_match": "*"}
EVENT = {"event_type": "analytics", "payload": {}}


# --- backends ---


def test_a_backend_is_written_read_listed_probed_and_deleted(cast: Cast) -> None:
    name = sqlite_backend(cast)
    system = cast.system_admin
    shown = record(system.get(f"/backends/{name}"))
    assert {key: shown[key] for key in ("backend_id", "driver", "class", "offered_to", "secrets")} == {
        "backend_id": name,
        "driver": "sqlite",
        "class": "host_local",
        "offered_to": "*",
        "secrets": {},
    }
    assert name in {item["backend_id"] for item in system.items("/backends")}
    probe = system.post(f"/backends/{name}/probe")
    assert (probe.status, probe.body["ok"]) == (200, True)
    assert system.delete(f"/backends/{name}", if_match=shown["etag"]).status == 204
    problem(system.get(f"/backends/{name}"), 404, "NotFound")
    problem(system.post(f"/backends/{name}/probe"), 404, "NotFound")


def test_a_probe_of_a_backend_that_does_not_work_says_so(cast: Cast) -> None:
    name = sqlite_backend(cast, config={"path": "/proc/nowhere/x.db"})
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
    body = {
        "driver": "sqlite",
        "class": "host_local",
        "config": {"path": str(cast.directory / "x.db")},
        **change,
    }
    problem(cast.system_admin.put(f"/backends/{fresh('b')}", body, **NEW), 400, "Invalid")


def test_a_sqlite_backend_that_claims_to_be_cloud_is_refused(cast: Cast) -> None:
    body = {"driver": "sqlite", "class": "cloud", "config": {"path": str(cast.directory / "x.db")}}
    reply = cast.system_admin.put(f"/backends/{fresh('b')}", body, **NEW)
    assert reply.status in (400, 403), reply


def test_a_backend_in_use_is_not_deleted(cast: Cast) -> None:
    name = sqlite_backend(cast)
    house = cast.tenant("owner")
    made(house["owner"].put("/routes/notes_store", {"backend_id": name}, **NEW))
    etag = cast.system_admin.get(f"/backends/{name}").etag
    reply = cast.system_admin.delete(f"/backends/{name}", if_match=str(etag))
    problem(reply, 409, "Conflict")
    assert cast.system_admin.get(f"/backends/{name}").status == 200


def test_an_owner_routes_only_to_backends_offered_to_them(cast: Cast) -> None:
    house, other = cast.tenant("owner"), cast.tenant("owner")
    mine, theirs = sqlite_backend(cast, [house.tenant_id]), sqlite_backend(cast, [other.tenant_id])
    made(house["owner"].put("/routes/notes_store", {"backend_id": mine}, **NEW))
    hidden = house["owner"].put("/routes/memory_store", {"backend_id": theirs}, **NEW)
    invented = house["owner"].put("/routes/memory_store", {"backend_id": "nobody-made-this"}, **NEW)
    assert hidden.status == invented.status, (hidden, invented)
    assert hidden.status in (400, 403, 404)
    assert str(hidden.body["detail"]).replace(theirs, "X") == str(invented.body["detail"]).replace(
        "nobody-made-this", "X"
    )


def test_a_route_never_carries_config_or_handles(cast: Cast) -> None:
    owner = cast.tenant("owner")["owner"]
    extras: tuple[dict[str, Any], ...] = (
        {"config": {"path": "/x"}},
        {"secrets": {}},
        {"driver": "sqlite"},
        {"options": {"path": "/x"}},
    )
    for extra in extras:
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
def test_a_scope_that_breaks_a_rule_is_400(tenant: Tenant, scope: Any) -> None:
    problem(tenant["owner"].put("/routes/notes_store", {**LAB, "scope": scope}, **NEW), 400, "Invalid")


@pytest.mark.parametrize("scope", [{"mode": "lab", "surface_id": "chat"}, {"project_id": "p"}], ids=repr)
def test_t_systems_scopes_have_rules_too(cast: Cast, scope: Any) -> None:
    problem(cast.system_admin.put("/routes/notes_store", {**LAB, "scope": scope}, **NEW), 400, "Invalid")


def test_an_unknown_kind_is_refused_and_a_reserved_one_is_501(tenant: Tenant) -> None:
    for method, rest in (("PUT", ""), ("DELETE", ""), ("GET", "/resolve"), ("GET", "/history")):
        body = LAB if method == "PUT" else None
        assert tenant["owner"].call(method, f"/routes/nonesuch{rest}", body, if_match="*").status in (
            400,
            404,
        )
    problem(tenant["owner"].put("/routes/nexus", LAB, **NEW), 501, "Reserved")
    problem(tenant["owner"].get("/routes/nexus/resolve"), 501, "Reserved")


def test_a_kinds_alias_is_the_kind(cast: Cast) -> None:
    owner = cast.tenant("owner")["owner"]
    assert made(owner.put("/routes/maybes", LAB, **NEW)).body["resource_kind"] == "notes_store"
    problem(owner.put("/routes/notes_store", LAB, **NEW), 412)
    assert owner.get("/routes/maybes_store/resolve").body["route"]["resource_kind"] == "notes_store"


def test_who_mistypes_a_kind_is_told_the_nearest(tenant: Tenant) -> None:
    said = problem(tenant["owner"].put("/routes/notes_stor", LAB, **NEW), 400, "Invalid")
    assert "did you mean notes_store?" in said["detail"]
    said = problem(tenant["owner"].get(f"/routes/{'z' * 100}/resolve"), 400, "Invalid")
    assert "did you mean" not in said["detail"]


def test_scopes_are_apart_and_the_narrower_wins(cast: Cast) -> None:
    house = cast.tenant("owner", "admin", "member", envs=["prod", "dev"])
    owner = house["owner"]
    made(house["admin"].post("/projects", {"project_id": "p", "name": "P"}))
    b = {name: sqlite_backend(cast) for name in ("tenant", "env", "surface", "project", "project_env")}
    scopes: dict[str, dict[str, str]] = {
        "tenant": {},
        "env": {"env": "prod"},
        "surface": {"surface_id": "chat"},
        "project": {"project_id": "p"},
        "project_env": {"project_id": "p", "env": "prod"},
    }

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
    "surface_id=chat&app_id=airline",
    "mode=lab",
    "nonesuch=1",
    "env=NOT",
    "surface_id=a%2Fb",
    "app_id=a!b",
    "project_id=-",
    "env=",
    "app_id=",
]


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
    cast: Cast,
) -> None:
    house = cast.tenant("owner")
    assert made(house["owner"].put("/routes/notes_store", LAB, **NEW)).body["tenant_id"] == house.tenant_id
    listed = cast.system_admin.items("/routes")
    assert {item["tenant_id"] for item in listed} == {"t_system"}
    named = made(house.operator.put("/routes/memory_store", LAB, **NEW)).body
    assert named["tenant_id"] == house.tenant_id
    assert {item["resource_kind"] for item in house.operator.items("/routes")} == {
        "notes_store",
        "memory_store",
    }


def test_the_control_planes_own_routes_cannot_be_deleted(cast: Cast) -> None:
    for kind in ("control_plane_store", "routing_registry_store"):
        etag = cast.system_admin.get(f"/routes/{kind}/resolve").etag
        reply = cast.system_admin.delete(f"/routes/{kind}", if_match=str(etag))
        assert reply.status in (400, 403, 409), reply
        assert cast.system_admin.get(f"/routes/{kind}/resolve").status == 200
