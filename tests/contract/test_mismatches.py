"""What names an identity that is not the caller's is refused, existing or not, and audited."""

import itertools
import time
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, problem

ALMOST_A_SECOND = timedelta(seconds=0.9)


def audits(caller: Caller) -> list[Any]:
    return caller.items("/events?event_type=audit")


def refusals_told_to(caller: Caller) -> list[Any]:
    """Audit events of refusals, which say so in their action."""
    return [event for event in audits(caller) if "refused" in event["payload"]["action"]]


MISMATCHES = [
    ("x_tenant_id", "t_nobody_made_this"),
    ("x_mode", "saas"),
    ("x_mode", "nonesuch"),
    ("x_env", "staging"),
    ("x_surface_id", "nonesuch"),
    ("x_app_id", "nonesuch"),
    ("x_project_id", "nonesuch"),
]


@pytest.mark.parametrize(("header", "value"), MISMATCHES)
def test_a_header_that_names_what_is_not_the_callers_is_a_context_mismatch(
    tenant: Tenant, header: str, value: str
) -> None:
    for path in ("/me", "/notes"):
        problem(tenant["member"].get(path, **{header: value}), 403, "ContextMismatch")
    problem(tenant["member"].post("/notes", {"content": "x"}, **{header: value}), 403, "ContextMismatch")


def test_headers_that_equal_the_context_are_accepted(tenant: Tenant) -> None:
    me = tenant["member"].get(
        "/me",
        x_tenant_id=tenant.tenant_id,
        x_mode="lab",
        x_env="prod",
        x_surface_id="chat",
        x_run_id="run-1",
        x_step_id="3",
        x_thread_id="th",
        x_session_id="s",
    )
    assert me.status == 200, me
    named = {name: me.body[name] for name in ("run_id", "step_id", "thread_id", "session_id")}
    assert named == {"run_id": "run-1", "step_id": "3", "thread_id": "th", "session_id": "s"}


def test_the_run_defaults_to_the_request_id_and_the_step_to_0(tenant: Tenant) -> None:
    me = tenant["member"].get("/me", x_request_id="req-9").body
    assert (me["run_id"], me["step_id"]) == ("req-9", "0")


def test_an_env_that_the_tenant_declares_is_a_partition_of_its_own(cast: Cast) -> None:
    two = cast.tenant("member", envs=["prod", "staging"])
    member = two["member"]
    made(member.put("/tables/t/p/s", {"value": 1}, x_env="staging"))
    assert member.get("/tables/t/p/s").status == 404
    assert member.get("/tables/t/p/s", x_env="staging").body["env"] == "staging"
    problem(member.get("/me", x_env="dev"), 403, "ContextMismatch")


@pytest.mark.parametrize("alias", ["SQUARED²", "squared2", "Squared 2", "SQUARED 2", "Squared²"])
def test_every_spelling_of_a_surface_is_that_surface(tenant: Tenant, alias: str) -> None:
    assert tenant["member"].get("/me", x_surface_id=alias).body["surface_id"] == "squared2"


def test_a_surface_claim_binds_and_another_header_is_a_mismatch(cast: Cast, tenant: Tenant) -> None:
    bound = cast.as_user(tenant.users["member"], {"surface_id": "canvas"})
    assert bound.get("/me").body["surface_id"] == "canvas"
    assert bound.get("/me", x_surface_id="canvas").status == 200
    problem(bound.get("/me", x_surface_id="chat"), 403, "ContextMismatch")


def test_a_surface_claim_in_another_spelling_still_binds(cast: Cast, tenant: Tenant) -> None:
    bound = cast.as_user(tenant.users["member"], {"surface_id": "SQUARED²"})
    assert bound.get("/me", x_surface_id="Squared 2").body["surface_id"] == "squared2"


def test_an_app_must_stand_on_the_surface(cast: Cast, tenant: Tenant) -> None:
    app = fresh("app")
    made(cast.system_admin.post("/apps", {"app_id": app, "surface_id": "canvas", "name": "App"}))
    me = tenant["member"].get("/me", x_app_id=app, x_surface_id="canvas")
    assert (me.status, me.body["app_id"]) == (200, app)
    problem(tenant["member"].get("/me", x_app_id=app, x_surface_id="chat"), 403, "ContextMismatch")


def test_a_project_of_another_tenant_and_an_invented_one_are_refused_alike(
    cast: Cast, tenant: Tenant
) -> None:
    other = cast.tenant("admin")
    project = fresh("p")
    made(other["admin"].post("/projects", {"project_id": project, "name": "P"}))
    assert other["admin"].get("/me", x_project_id=project).body["project_id"] == project
    documents = [
        {**problem(tenant["member"].get("/me", x_project_id=name), 403, "ContextMismatch"), "request_id": ""}
        for name in (project, "p-nobody-made-this")
    ]
    assert documents[0] == documents[1]


BODY_CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/events", {"event_type": "analytics", "payload": {}}),
    ("POST", "/streams/body/events", {"event_type": "analytics", "payload": {}}),
    ("PUT", "/tables/body/p/{}", {"value": 1}),
    ("PUT", "/memory/body/{}", {"value": 1}),
    ("PUT", "/blackboard/body/{}", {"value": 1}),
    ("POST", "/notes", {"content": "x"}),
    ("PUT", "/agent-memory/episodes/{}", {"value": 1}),
    ("POST", "/sessions", {}),
    ("POST", "/telemetry/tokens", {"provider": "p", "model": "m"}),
    ("POST", "/analytics/events", {}),
    ("POST", "/budget/usage", {"cost": "1", "currency": "USD"}),
    ("POST", "/budget/reservations", {"amount": "1", "currency": "USD"}),
]


@pytest.mark.parametrize(("method", "path", "body"), BODY_CALLS)
def test_identity_fields_in_a_body_that_equal_the_context_are_accepted(
    tenant: Tenant, method: str, path: str, body: dict[str, Any]
) -> None:
    identity = {
        "tenant_id": tenant.tenant_id,
        "user_id": tenant.users["member"],
        "mode": "lab",
        "env": "prod",
        "surface_id": "chat",
    }
    reply = tenant["member"].call(method, path.format(fresh("k")), {**body, **identity}, if_none_match="*")
    assert reply.status == 201, reply


@pytest.mark.parametrize(
    "identity",
    [
        {"tenant_id": "t_other"},
        {"user_id": "u_other"},
        {"mode": "saas"},
        {"env": "staging"},
        {"surface_id": "canvas"},
        {"project_id": "p"},
        {"app_id": "a"},
    ],
    ids=lambda identity: next(iter(identity)),
)
@pytest.mark.parametrize(("method", "path", "body"), BODY_CALLS)
def test_identity_fields_in_a_body_that_differ_are_403(
    tenant: Tenant, method: str, path: str, body: dict[str, Any], identity: dict[str, Any]
) -> None:
    path = path.format(fresh("k"))
    reply = tenant["member"].call(method, path, {**body, **identity}, if_none_match="*")
    problem(reply, 403, "ContextMismatch")
    if method == "PUT":
        assert tenant["member"].get(path).status == 404


def test_one_event_of_a_batch_with_another_identity_refuses_the_whole_batch(tenant: Tenant) -> None:
    before = len(tenant["member"].items("/events?event_type=analytics"))
    batch = [
        {"event_type": "analytics", "payload": {}},
        {"event_type": "analytics", "payload": {}, "tenant_id": "t_other"},
    ]
    problem(tenant["member"].post("/events", {"events": batch}), 403, "ContextMismatch")
    assert len(tenant["member"].items("/events?event_type=analytics")) == before


def test_a_mismatch_is_audited_on_the_callers_own_spine_at_most_once_a_second_with_a_count(
    cast: Cast,
) -> None:
    own, other = cast.tenant("member", "owner"), cast.tenant("owner")
    for _ in range(5):
        problem(own["member"].get("/me", x_tenant_id=other.tenant_id), 403, "ContextMismatch")
    told = until(lambda: refusals_told_to(own["owner"]))
    event = told[0]
    assert (event["event_type"], event["source"], event["tenant_id"]) == ("audit", "system", own.tenant_id)
    assert event["user_id"] == own.users["member"]
    time.sleep(1.1)
    problem(own["member"].get("/me", x_tenant_id=other.tenant_id), 403, "ContextMismatch")
    # The first of a second is told at once, the others together at its end.
    until(lambda: sum(event["payload"]["count"] for event in refusals_told_to(own["owner"])) == 6)
    told_at = [datetime.fromisoformat(event["timestamp"]) for event in refusals_told_to(own["owner"])]
    assert all(later - earlier >= ALMOST_A_SECOND for earlier, later in itertools.pairwise(told_at))
    assert not refusals_told_to(other["owner"])


def test_an_outsiders_mismatch_is_audited_on_t_systems_spine(cast: Cast) -> None:
    outsider = cast.as_user(cast.user("stranger"))
    problem(outsider.get("/me", x_tenant_id="t_demo"), 403, "ContextMismatch")

    def told() -> bool:
        events = cast.system_admin.get("/events?event_type=audit&order=desc&limit=200").body["items"]
        return any("refused" in event["payload"]["action"] for event in events)

    until(told)


def test_another_tenant_in_the_path_is_a_context_mismatch_whether_it_exists_or_not(
    cast: Cast, tenant: Tenant
) -> None:
    other = cast.tenant("member")
    for path in ("", "/members/u_x", f"/members/{other.users['member']}"):
        replies = [
            tenant["owner"].get(f"/tenants/{name}{path}") for name in (other.tenant_id, "t_nobody_made_this")
        ]
        documents = [{**problem(reply, 403, "ContextMismatch"), "request_id": ""} for reply in replies]
        assert documents[0] == documents[1]
    problem(tenant["owner"].put(other.path("/members/u_x"), {"role": "member"}), 403, "ContextMismatch")
    problem(tenant["owner"].patch(other.path(), {"name": "x"}, if_match='"x"'), 403, "ContextMismatch")


def test_a_tenant_id_of_a_bad_pattern_in_the_path_is_400(tenant: Tenant) -> None:
    for bad in ("demo", "t_UPPER", "t_", "t_" + "a" * 63, "t_a.b"):
        for caller in (tenant["owner"], tenant.cast.system_admin):
            problem(caller.get(f"/tenants/{bad}"), 400, "Invalid")
            problem(caller.put(f"/tenants/{bad}/members/u", {"role": "member"}), 400, "Invalid")


# --- t_system's admin ---


def test_a_system_admin_may_name_any_tenant_for_the_control_plane_backends_routes_and_diagnostics(
    tenant: Tenant,
) -> None:
    operator = tenant.operator
    for path in ("/projects", "/keys", "/routes", "/diagnostics/routes", "/backends", tenant.path(), "/me"):
        assert operator.get(path).status == 200, path
    assert operator.get("/routes/notes_store/resolve").body["looked_at"][0]["tenant_id"] == tenant.tenant_id
    made(operator.post("/projects", {"project_id": fresh("p"), "name": "P"}))


DATA_CALLS: list[tuple[str, str, Any]] = [
    ("GET", "/events", None),
    ("POST", "/events", {"event_type": "analytics", "payload": {}}),
    ("GET", "/events/stream", None),
    ("GET", "/events/verify", None),
    ("GET", "/streams/s/events", None),
    ("POST", "/streams/s/events", {"event_type": "analytics", "payload": {}}),
    ("GET", "/tables/t/p", None),
    ("PUT", "/tables/t/p/s", {"value": 1}),
    ("DELETE", "/tables/t/p/s", None),
    ("GET", "/memory/s", None),
    ("PUT", "/memory/s/k", {"value": 1}),
    ("GET", "/blackboard/r", None),
    ("PUT", "/blackboard/r/k", {"value": 1}),
    ("GET", "/realtime/thread/t/members", None),
    ("PUT", "/realtime/thread/t/members/u", {"role": "host"}),
    ("GET", "/sessions", None),
    ("POST", "/sessions", {}),
    ("GET", "/sessions/s", None),
    ("PATCH", "/sessions/s", {"title": "x"}),
    ("DELETE", "/sessions/s", None),
    ("POST", "/sessions/s/messages", {"role": "user", "content": "x"}),
    ("GET", "/sessions/s/messages", None),
    ("POST", "/sessions/s/checkpoints", {"state": 1}),
    ("GET", "/checkpoints/s.1", None),
    ("POST", "/checkpoints/s.1/fork", {}),
    ("GET", "/traces/s.1", None),
    ("GET", "/agent-memory/episodes", None),
    ("PUT", "/agent-memory/episodes/k", {"value": 1}),
    ("GET", "/telemetry/tokens", None),
    ("POST", "/telemetry/tokens", {"provider": "p", "model": "m"}),
    ("GET", "/budget/usage", None),
    ("POST", "/budget/usage", {"cost": "1", "currency": "USD"}),
    ("GET", "/budget/policy", None),
    ("PUT", "/budget/policy", {"currency": "USD"}),
    ("GET", "/budget/summary", None),
    ("POST", "/budget/reservations", {"amount": "1", "currency": "USD"}),
    ("GET", "/budget/reservations", None),
    ("GET", "/budget/reservations/r", None),
    ("POST", "/budget/reservations/r/settle", {"cost": "1"}),
    ("POST", "/budget/reservations/r/release", None),
    ("GET", "/notes", None),
    ("POST", "/notes", {"content": "x"}),
]


@pytest.mark.parametrize(("method", "path", "body"), DATA_CALLS)
def test_a_system_admin_who_names_another_tenant_on_a_data_call_is_403(
    tenant: Tenant, method: str, path: str, body: Any
) -> None:
    problem(tenant.operator.call(method, path, body), 403)


def test_a_system_admin_may_use_data_of_t_system(cast: Cast) -> None:
    assert cast.system_admin.get("/notes", x_tenant_id="t_system").status == 200
    made(cast.system_admin.post("/notes", {"content": "x"}))


def test_a_system_admin_who_names_an_invented_tenant_is_refused(cast: Cast) -> None:
    reply = cast.system_admin.get("/projects", x_tenant_id="t_nobody_made_this")
    assert reply.status in (403, 404), reply
