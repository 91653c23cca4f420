"""The contract's paths, bodies and statuses, call by call."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.client import Client, until
from tests.api.serving import wire
from tests.servers.lab import LabServer

# --- who asks ---

PRIVATE = ["/me", "/notes", "/events", "/tenants", "/routes", "/metrics", "/bootstrap", "/diagnostics/routes"]


@pytest.mark.parametrize("path", PRIVATE)
async def test_without_a_credential_the_answer_is_401(anyone: Client, path: str) -> None:
    answer = await anyone("GET", path)
    answer.problem(401, "Unauthenticated")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    for credential in ("Bearer ", "Bearer nonsense", "Basic YTpi", "Bearer ek_1_2", "Bearer a.b.c"):
        (await anyone("GET", path, Authorization=credential)).problem(401, "Unauthenticated")


async def test_a_credential_is_asked_for_before_a_body_is_looked_at(anyone: Client) -> None:
    (await anyone("POST", "/notes", data=b"{")).problem(401, "Unauthenticated")


async def test_health_and_the_description_need_no_credential(anyone: Client) -> None:
    assert (await anyone("GET", "/health/live")).json == {"status": "live"}
    assert (await anyone("GET", "/health/ready")).json == {"status": "ready"}
    assert (await anyone("GET", "/openapi.json")).json["openapi"] == "3.1.0"


async def test_me_is_the_context_and_where_each_field_came_from(member: Client) -> None:
    answer = await member("GET", "/me", X_Surface_Id="Chat", X_Run_Id="r1", X_Step_Id="7", X_Env="staging")
    me = answer.json
    assert me["tenant_id"] == "t_demo"
    assert (me["user_id"], me["roles"], me["mode"], me["env"]) == ("u_member", ["member"], "lab", "staging")
    assert (me["surface_id"], me["run_id"], me["step_id"], me["lab"]) == ("chat", "r1", "7", True)
    assert me["request_id"] == answer.headers["X-Request-Id"]
    assert me["sources"]["env"] != me["sources"]["tenant_id"]


async def test_a_user_of_no_tenant_is_403(outsider: Client) -> None:
    (await outsider("GET", "/me")).problem(403, "Forbidden")


@pytest.mark.parametrize(
    ("header", "value"),
    [("X-Tenant-Id", "t_other"), ("X-Mode", "saas"), ("X-Env", "nowhere"), ("X-Project-Id", "p_other")],
)
async def test_a_header_that_names_what_is_not_the_callers_is_403(
    member: Client, header: str, value: str
) -> None:
    answer = await member.with_headers(**{header: value})("GET", "/notes")
    answer.problem(403, "ContextMismatch", header)


@pytest.mark.parametrize(
    "header", ["X-Tenant-Id", "X-Env", "X-App-Id", "X-Project-Id", "X-Run-Id", "X-Step-Id", "X-Thread-Id"]
)
async def test_a_header_that_breaks_its_pattern_is_400(member: Client, header: str) -> None:
    (await member.with_headers(**{header: "a/../b"})("GET", "/notes")).problem(400, "Invalid", header)


async def test_an_identity_in_a_body_is_compared_and_never_used(member: Client) -> None:
    same = {"content": "a", "tenant_id": "t_demo", "user_id": "u_member", "env": "prod", "mode": "lab"}
    assert (await member("POST", "/notes", same)).status == 201
    for field, value in (("tenant_id", "t_other"), ("user_id", "u_owner"), ("env", "dev"), ("mode", "saas")):
        answer = await member("POST", "/notes", {"content": "a", field: value})
        answer.problem(403, "ContextMismatch", field)
    (await member("POST", "/notes", {"content": "a", "tenant_id": "../t"})).problem(
        400, "Invalid", "tenant_id"
    )


async def test_a_mismatch_is_told_to_the_callers_own_spine(member: Client, owner: Client) -> None:
    answer = await member("GET", "/tenants/t_nobody")
    answer.problem(403, "ContextMismatch", "tenant_id")
    path = "/events?event_type=audit&user_id=u_member&order=desc&limit=20"

    async def is_told() -> bool:
        told = (await owner("GET", path)).json["items"]
        return any(event["payload"].get("action") == "context.refused" for event in told)

    await until(is_told, timeout_s=5)


async def test_a_record_of_another_user_is_404_as_if_there_were_none(member: Client, owner: Client) -> None:
    note = (await owner("POST", "/notes", {"content": "mine"})).json
    for method, body in (("GET", None), ("PUT", {"content": "x"}), ("DELETE", None)):
        theirs = (await member(method, f"/notes/{note['note_id']}", body)).problem(404, "NotFound")
        nobodys = (await member(method, "/notes/nothing", body)).problem(404, "NotFound")
        assert theirs["detail"] == nobodys["detail"]
    (await member("GET", "/notes?user_id=u_owner")).problem(403, "ContextMismatch", "user_id")


async def test_a_viewer_reads_and_does_not_write(viewer: Client, fresh: Iterator[str]) -> None:
    assert (await viewer("GET", "/notes")).status == 200
    for method, path, body in (
        ("POST", "/notes", {"content": "a"}),
        ("PUT", f"/memory/{next(fresh)}/k", {"value": 1}),
        ("POST", "/events", {"event_type": "analytics", "payload": {}}),
        ("DELETE", "/tables/a/b/c", None),
    ):
        (await viewer(method, path, body)).problem(403, "Forbidden")


async def test_an_admin_of_t_system_does_not_reach_a_tenants_data(admin: Client) -> None:
    assert (await admin("GET", "/routes", X_Tenant_Id="t_demo")).status == 200
    (await admin("GET", "/notes", X_Tenant_Id="t_demo")).problem(403, "ContextMismatch", "X-Tenant-Id")


# --- every answer ---


async def test_every_answer_carries_the_request_id(anyone: Client, member: Client) -> None:
    given = await member("GET", "/me", X_Request_Id="my-request")
    assert given.headers["X-Request-Id"] == given.json["request_id"] == "my-request"
    for path in ("/me", "/nothing", "/health/live", "/notes/..%2f"):
        assert re.fullmatch("[0-9a-f]{32}", (await anyone("GET", path)).headers["X-Request-Id"])
    refused = await member("GET", "/me", X_Request_Id="a b")
    refused.problem(400, "Invalid", "X-Request-Id")
    assert refused.headers["X-Request-Id"] != "a b"


async def test_every_answer_of_a_lab_says_so_and_none_is_to_be_kept(anyone: Client, member: Client) -> None:
    for answer in (
        await anyone("GET", "/health/live"),
        await member("GET", "/me"),
        await anyone("GET", "/x"),
    ):
        assert answer.headers["X-Engines-Lab"] == "true"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_a_trace_goes_on_from_the_callers(member: Client) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await member("GET", "/me", traceparent=f"00-{trace}-00f067aa0ba902b7-01")
    assert answer.json["trace_id"] == trace
    assert answer.headers["traceparent"] == f"00-{trace}-{answer.json['span_id']}-01"


async def test_a_header_that_may_come_once_is_400_when_it_comes_twice(lab: LabServer, lab_port: int) -> None:
    for name in ("content-type", "idempotency-key", "host", "x-run-id", "x-tenant-id"):
        async with wire(lab_port) as line:
            head = (
                f"GET /notes HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {lab.token('member')}\r\n"
                f"{name}: t_demo\r\n{name}: t_demo\r\n\r\n"
            )
            await line.send(head.encode())
            assert (await line.answer())[0] == 400, name


# --- the control plane ---


async def test_a_tenant_from_its_creation_to_a_member_who_writes(
    admin: Client, anyone: Client, lab: LabServer, fresh: Iterator[str]
) -> None:
    tenant_id = f"t_{next(fresh)}"
    body = {"tenant_id": tenant_id, "name": "New", "mode": "lab", "default_surface_id": "CHAT"}
    created = await admin("POST", "/tenants", body)
    assert (created.status, created.json["default_surface_id"]) == (201, "chat")
    (await admin("POST", "/tenants", body)).problem(409, "Conflict", "tenant_id")
    (await admin("PATCH", f"/tenants/{tenant_id}", {"name": "Newer"})).problem(428, "PreconditionRequired")
    patched = await admin("PATCH", f"/tenants/{tenant_id}", {"name": "Newer"}, If_Match=created.etag)
    assert (patched.status, patched.json["name"], patched.json["version"]) == (200, "Newer", 2)
    stale = await admin("PATCH", f"/tenants/{tenant_id}", {"name": "Newest"}, If_Match=created.etag)
    stale.problem(412, "Conflict", "If-Match")
    assert (await admin("GET", f"/tenants/{tenant_id}")).json == patched.json

    outsider = anyone.bearing(lab.token(None))
    member_path = f"/tenants/{tenant_id}/members/u_outsider"
    invited = await admin("PUT", member_path, {"role": "member"})
    assert (invited.status, invited.json["status"]) == (201, "invited")
    (await outsider("GET", "/me")).problem(403, "Forbidden")
    accepted = await outsider("POST", f"{member_path}/accept")
    assert (accepted.status, accepted.json["status"]) == (200, "accepted")
    me = (await outsider("GET", "/me")).json
    assert (me["tenant_id"], me["roles"]) == (tenant_id, ["member"])
    assert (await outsider("POST", "/notes", {"content": "first"})).status == 201
    assert (await admin("DELETE", member_path)).status == 204

    async def is_out() -> bool:
        return (await outsider("GET", "/me")).status == 403

    await until(is_out, timeout_s=1)


async def test_only_an_invited_user_accepts(member: Client, outsider: Client, anyone: Client) -> None:
    path = "/tenants/t_demo/members/u_outsider/accept"
    (await anyone("POST", path)).problem(401, "Unauthenticated")
    assert (await member("POST", path)).status == 403
    assert (await outsider("POST", path)).status == 403


async def test_a_body_that_names_another_record_than_its_path_is_refused(admin: Client) -> None:
    path = "/tenants/t_demo/members/u_viewer"
    (await admin("PUT", path, {"role": "viewer", "tenant_id": "t_x"})).problem(
        403, "ContextMismatch", "tenant_id"
    )
    (await admin("PUT", path, {"role": "viewer", "user_id": "u_x"})).problem(400, "Invalid", "user_id")


async def test_a_key_is_told_once_works_and_dies_within_a_second(
    owner: Client, anyone: Client, fresh: Iterator[str]
) -> None:
    body = {"user_id": "u_member", "role": "member", "name": "laptop"}
    name = next(fresh)
    made = await owner("POST", "/keys", body, Idempotency_Key=name)
    assert made.status == 201
    key, key_id = made.json["key"], made.json["key_id"]
    assert re.fullmatch(rf"ek_{key_id}_[0-9A-Za-z]+", key)
    again = await owner("POST", "/keys", body, Idempotency_Key=name)
    assert (again.status, again.json["key_id"]) == (201, key_id)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json.get("key") is None
    listed = await owner("GET", "/keys?limit=1000")
    assert key_id in {item["key_id"] for item in listed.json["items"]}
    assert key.rsplit("_", 1)[1] not in listed.body.decode()
    assert "secret_sha256" not in listed.body.decode()

    bearer = anyone.bearing(key)
    assert (await bearer("GET", "/me")).json["user_id"] == "u_member"
    assert (await owner("DELETE", f"/keys/{key_id}")).status == 204

    async def is_dead() -> bool:
        return (await bearer("GET", "/me")).status == 401

    await until(is_dead, timeout_s=1)
    (await owner("DELETE", f"/keys/{key_id}")).problem(404, "NotFound")


async def test_surfaces_are_one_in_every_spelling(admin: Client, fresh: Iterator[str]) -> None:
    name = next(fresh)
    body = {"surface_id": f"{name.upper()}²", "os_id": "engines", "name": "S", "aliases": [f"{name} two"]}
    created = await admin("POST", "/surfaces", body)
    assert (created.status, created.json["surface_id"]) == (201, f"{name}2")
    for spelling in (f"{name}2", f"{name.upper()}2", f"{name}two"):
        assert (await admin("GET", f"/surfaces/{spelling}")).json["surface_id"] == f"{name}2"
    taken = {"surface_id": f"{name}TWO", "os_id": "engines", "name": "T"}
    (await admin("POST", "/surfaces", taken)).problem(409, "Conflict")


async def test_products_are_made_read_and_changed(admin: Client, owner: Client, fresh: Iterator[str]) -> None:
    os_id, app_id, project_id = next(fresh), next(fresh), next(fresh)
    for client, path, id_field, body in (
        (admin, "/oses", "os_id", {"os_id": os_id, "name": "O"}),
        (admin, "/apps", "app_id", {"app_id": app_id, "surface_id": "Chat", "name": "A"}),
        (owner, "/projects", "project_id", {"project_id": project_id, "app_id": app_id, "name": "P"}),
    ):
        created = await client("POST", path, body)
        assert created.status == 201, created.body
        name = created.json[id_field]
        (await client("POST", path, body)).problem(409, "Conflict", id_field)
        changed = await client("PATCH", f"{path}/{name}", {"name": "new"}, If_Match=created.etag)
        assert (changed.status, changed.json["name"]) == (200, "new")
        assert (await client("GET", f"{path}/{name}")).json == changed.json
        fixed = await client("PATCH", f"{path}/{name}", {id_field: "other"})
        fixed.problem(400, "Invalid", id_field)
        (await client("GET", f"{path}/nothing")).problem(404, "NotFound")
    (await owner("POST", "/oses", {"os_id": "x", "name": "O"})).problem(403, "Forbidden")


async def test_users_modes_and_issuers_are_t_systems(
    admin: Client, owner: Client, fresh: Iterator[str]
) -> None:
    user = {"user_id": next(fresh), "identities": [{"iss": "urn:x", "sub": next(fresh)}]}
    assert (await admin("POST", "/users", user)).status == 201
    (await owner("POST", "/users", user)).problem(403, "Forbidden")
    (await owner("GET", "/users")).problem(403, "Forbidden")
    assert (await owner("GET", "/modes/lab")).json["allowed_classes"] == ["cloud", "server", "host_local"]
    (await owner("PUT", "/modes/lab", {"allowed_classes": []})).problem(403, "Forbidden")
    mode = next(fresh)
    assert (await admin("PUT", f"/modes/{mode}", {"allowed_classes": ["cloud"]})).status == 201
    refused = await admin("PUT", f"/modes/{mode}", {"allowed_classes": ["host_local"]})
    refused.problem(403, "ForbiddenBackendClass", "allowed_classes")
    issuer = {"issuer": f"urn:{next(fresh)}", "audience": "a", "jwks_url": "https://issuer.example/jwks"}
    path = f"/issuers/{next(fresh)}"
    created = await admin("PUT", path, issuer)
    assert created.status == 201
    assert (await admin("GET", path)).json == created.json
    (await admin("PUT", path, {**issuer, "hs256_secret": "file:x"})).problem(400, "Invalid", "jwks_url")
    (await owner("GET", path)).problem(403, "Forbidden")
    assert (await admin("DELETE", path)).status == 204
    (await admin("GET", path)).problem(404, "NotFound")


# --- backends and routes ---


async def test_a_backend_and_a_route_from_creation_to_deletion(
    admin: Client, owner: Client, tmp_path: Any, fresh: Iterator[str]
) -> None:
    backend_id = next(fresh)
    path = f"/backends/{backend_id}"
    body = {
        "driver": "sqlite",
        "class": "host_local",
        "config": {"path": str(tmp_path / "b.db")},
        "offered_to": ["t_demo"],
    }
    (await owner("PUT", path, body, If_None_Match="*")).problem(403, "Forbidden")
    (await admin("PUT", path, body)).problem(428, "PreconditionRequired")
    created = await admin("PUT", path, body, If_None_Match="*")
    assert (created.status, created.json["class"]) == (201, "host_local")
    probe = await admin("POST", f"{path}/probe")
    assert (probe.status, probe.json["ok"]) == (200, True)

    project = next(fresh)
    assert (await owner("POST", "/projects", {"project_id": project, "name": "P"})).status == 201
    route = {"backend_id": backend_id, "scope": {"project_id": project}}
    (await owner("PUT", "/routes/maybes", route)).problem(428, "PreconditionRequired")
    routed = await owner("PUT", "/routes/maybes", route, If_None_Match="*")
    assert (routed.status, routed.json["resource_kind"]) == (201, "notes_store")
    found = await owner("GET", "/routes/notes_store/resolve", X_Project_Id=project)
    assert (found.json["route"]["backend_id"], found.etag) == (backend_id, routed.etag)
    assert found.json["looked_at"][-1]["found"]
    (await admin("DELETE", path, If_Match=created.etag)).problem(409, "Conflict")
    scope = f"project_id={project}"
    (await owner("DELETE", f"/routes/notes_store?{scope}")).problem(428, "PreconditionRequired")
    assert (await owner("DELETE", f"/routes/notes_store?{scope}", If_Match=routed.etag)).status == 204
    history = (await owner("GET", f"/routes/maybes_store/history?{scope}")).json["items"]
    assert [(item["version"], item["deleted"]) for item in history] == [(1, False), (2, True)]
    assert (await admin("DELETE", path, If_Match=created.etag)).status == 204


async def test_a_route_that_cannot_be_is_refused_with_its_field(owner: Client, admin: Client) -> None:
    for body, status, code, field in (
        ({"backend_id": "nothing"}, 400, "Invalid", "backend_id"),
        ({"backend_id": "lab", "scope": {"colour": "blue"}}, 400, "Invalid", "scope.colour"),
        ({"backend_id": "lab", "scope": {"mode": "lab"}}, 400, "Invalid", "scope.mode"),
        ({"backend_id": "lab", "scope": {"app_id": "a", "surface_id": "b"}}, 400, "Invalid", "scope"),
        ({"backend_id": "lab", "options": {"colour": 1}}, 400, "Invalid", "options.colour"),
        ({"backend_id": "lab", "scope": {"project_id": "no"}}, 403, "ContextMismatch", "scope.project_id"),
    ):
        (await owner("PUT", "/routes/notes_store", body, If_None_Match="*")).problem(status, code, field)
    unknown = await owner("PUT", "/routes/nothing", {"backend_id": "lab"}, If_None_Match="*")
    unknown.problem(400, "Invalid", "resource_kind")
    (await owner("GET", "/routes/nexus/resolve")).problem(501, "Reserved", "resource_kind")
    kept = await admin("DELETE", "/routes/control_plane_store", If_Match="*")
    kept.problem(403, "Forbidden")


async def test_a_kind_without_a_route_is_503_and_shows_in_diagnostics_and_bootstrap(
    admin: Client, member: Client
) -> None:
    path = "/routes/tabular_store"
    route = (await admin("GET", f"{path}/resolve")).json["route"]
    etag = (await admin("GET", f"{path}/resolve")).etag
    assert (await admin("DELETE", path, If_Match=etag)).status == 204
    try:
        problem = (await member("GET", "/tables/a/b")).problem(503, "MissingRoute")
        assert problem["resource_kind"] == "tabular_store"
        assert "engines routes" in problem["detail"]
        report = {
            item["resource_kind"]: item for item in (await member("GET", "/diagnostics/routes")).json["items"]
        }
        assert report["tabular_store"]["state"] == "missing"
        assert report["notes_store"]["state"] == "ready"
        areas = {area["area"]: area for area in (await member("GET", "/bootstrap")).json["areas"]}
        assert (areas["tabular_store"]["state"], areas["tabular_store"]["reason_code"]) == (
            "blocked",
            "MissingRoute",
        )
        assert areas["nexus"]["state"] == "blocked"
    finally:
        body = {"backend_id": route["backend_id"]}
        assert (await admin("PUT", path, body, If_None_Match="*")).status == 201
    assert (await member("GET", "/tables/a/b")).status == 200


async def test_bootstrap_tells_empty_from_ready_for_whoever_asks(
    outsider: Client, admin: Client, member: Client, fresh: Iterator[str]
) -> None:
    theirs = {area["area"]: area["state"] for area in (await admin("GET", "/bootstrap")).json["areas"]}
    assert {theirs[kind] for kind in ("notes_store", "memory_store", "tabular_store")} == {"empty"}
    name = next(fresh)
    await member("POST", "/notes", {"content": "a"})
    await member("PUT", f"/memory/{name}/k", {"value": 1})
    await member("PUT", f"/tables/{name}/p/s", {"value": 1})
    await member("PUT", f"/blackboard/{name}/k", {"value": 1}, If_None_Match="*")
    await member("POST", f"/streams/{name}/events", {"event_type": "analytics", "payload": {}})
    await member("POST", "/events", {"event_type": "analytics", "payload": {}})
    areas = {area["area"]: area["state"] for area in (await member("GET", "/bootstrap")).json["areas"]}
    served = ("notes", "memory", "tabular", "blackboard")
    assert {areas[f"{kind}_store"] for kind in served} == {"ready"}
    assert areas["event_spine"] == areas["event_stream"] == "ready"
    (await outsider("GET", "/bootstrap")).problem(403, "Forbidden")


async def test_a_scrape_key_reads_metrics_and_nothing_else(admin: Client, anyone: Client) -> None:
    made = await admin("POST", "/keys", {"user_id": "u_system_admin", "role": "scrape"})
    assert made.status == 201
    scraper = anyone.bearing(made.json["key"])
    assert (await scraper("GET", "/metrics")).status == 200
    for path in ("/notes", "/events", "/users", "/backends", "/keys", "/diagnostics/routes"):
        (await scraper("GET", path)).problem(403, "Forbidden")


async def test_metrics_are_for_the_operator(admin: Client, owner: Client) -> None:
    await owner("GET", "/notes/nothing")
    (await owner("GET", "/metrics")).problem(403, "Forbidden")
    answer = await admin("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    text = answer.body.decode()
    assert re.search(
        r'engines_http_requests_total\{method="GET",route="/notes/\{note_id\}",status="4xx"\} \d', text
    )
    assert "engines_index_lag_seconds 0.0" in text
    assert "nothing" not in text
    buckets = re.findall(
        r'duration_seconds_bucket\{le="([^"]+)",method="GET",route="/metrics",status="2xx"\} (\S+)',
        (await admin("GET", "/metrics")).body.decode(),
    )
    counts = [float(count) for _, count in buckets]
    assert counts == sorted(counts)
    assert buckets[-1][0] == "+Inf"
    assert counts[-1] >= 1
