"""Who a request is and for whom it acts: derived by the server, and refused where a client says otherwise."""

import time
from typing import Any

import pytest

from tests.contract.cast import ADOPTION_S, AUDIENCE, ISSUER, Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, Reply, exchange, problem, record

CONTEXT_FIELDS = (
    "tenant_id mode env user_id roles os_id surface_id app_id project_id run_id step_id thread_id session_id "
    "request_id trace_id span_id"
).split()


def audits(caller: Caller) -> list[Any]:
    return caller.items("/events?event_type=audit")


def refusals_told_to(caller: Caller) -> list[Any]:
    """Audit events of refusals, which say so in their action."""
    return [event for event in audits(caller) if "refused" in event["payload"]["action"]]


# --- me ---


def test_me_has_every_field_of_the_context_at_the_top_and_says_where_each_came_from(tenant: Tenant) -> None:
    me = tenant["member"].get("/me").body
    assert set(me) >= {*CONTEXT_FIELDS, "sources", "lab"}
    assert set(me["sources"]) <= {*CONTEXT_FIELDS, *me}
    assert set(me["sources"]) >= {"tenant_id", "user_id", "surface_id", "env"}
    assert (me["tenant_id"], me["user_id"]) == (tenant.tenant_id, tenant.users["member"])
    assert (me["mode"], me["env"], me["surface_id"]) == ("lab", "prod", "chat")
    assert me["lab"] is True


def test_valid_auth_and_a_tenant_are_enough_for_every_read(tenant: Tenant) -> None:
    paths = (
        "/me /events /notes /projects /keys /routes /diagnostics/routes /bootstrap /tables/t/p /memory/s "
        "/blackboard/r /streams/s/events /tenants /oses /surfaces /apps"
    )
    for path in paths.split():
        reply = tenant["owner"].get(path)
        assert reply.status == 200, (path, reply)


# --- request ids and traces ---


def test_a_request_id_is_echoed_and_made_where_none_came(tenant: Tenant) -> None:
    assert tenant["member"].get("/me", x_request_id="r.1~x").headers["X-Request-Id"] == "r.1~x"
    first, second = (tenant["member"].get("/me").headers["X-Request-Id"] for _ in range(2))
    assert first
    assert first != second


@pytest.mark.parametrize("bad", ["a b", "a" * 129, "-a", "a!b", "é", "<script>"])
def test_a_request_id_of_a_bad_pattern_is_400_and_is_not_echoed(tenant: Tenant, bad: str) -> None:
    reply = tenant["member"].get("/me", x_request_id=bad)
    problem(reply, 400, "Invalid")
    assert bad not in reply.headers["X-Request-Id"]


@pytest.mark.parametrize("path", ["/nonesuch", "/me", "/health/live", "/notes/nope"])
def test_every_reply_has_a_request_id(cast: Cast, path: str) -> None:
    assert cast.nobody.get(path, x_request_id="mine").headers["X-Request-Id"] == "mine"


def test_a_traceparent_is_taken_in_and_given_out(tenant: Tenant) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    sent = f"00-{trace}-b7ad6b7169203331-01"
    reply = tenant["member"].get("/me", traceparent=sent)
    assert reply.body["trace_id"] == trace
    version, given, span, _flags = reply.headers["traceparent"].split("-")
    assert (version, given, span) == ("00", trace, reply.body["span_id"])
    event = tenant["member"].post(
        "/events", {"event_type": "analytics", "payload": {}}, traceparent=sent
    ).body["events"][0]
    stored = tenant["member"].get(f"/events/{event['event_id']}").body
    assert stored["causality"]["trace_id"] == trace


@pytest.mark.parametrize("bad", ["x", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "é"])
def test_a_broken_traceparent_is_refused_or_replaced(tenant: Tenant, bad: str) -> None:
    reply = tenant["member"].get("/me", traceparent=bad)
    assert reply.status in (200, 400)
    if reply.status == 200:
        assert len(reply.body["trace_id"]) == 32
        assert reply.body["trace_id"] != "0" * 32


@pytest.mark.parametrize("path", ["/me", "/notes", "/nonesuch", "/notes/nope"])
def test_a_lab_says_so_in_every_reply(tenant: Tenant, path: str) -> None:
    assert tenant["member"].get(path).headers["X-Engines-Lab"] == "true"


# --- tenant ---


def test_a_users_only_accepted_membership_is_their_tenant(cast: Cast) -> None:
    one = cast.tenant("member")
    assert one["member"].get("/me").body["tenant_id"] == one.tenant_id


def test_several_memberships_and_none_named_is_tenant_required(cast: Cast) -> None:
    one, two = cast.tenant(), cast.tenant()
    user = cast.user()
    one.join(user, "member")
    caller = two.join(user, "viewer")
    problem(caller.get("/me"), 400, "TenantRequired")
    for tenant, role in ((one, "member"), (two, "viewer")):
        me = caller.get("/me", x_tenant_id=tenant.tenant_id).body
        assert (me["tenant_id"], me["roles"]) == (tenant.tenant_id, [role])
    claimed = cast.as_user(user, {"tenant_id": one.tenant_id})
    assert claimed.get("/me").body["tenant_id"] == one.tenant_id
    problem(claimed.get("/me", x_tenant_id=two.tenant_id), 403, "ContextMismatch")


def test_a_membership_that_is_not_accepted_does_not_count(cast: Cast) -> None:
    one, two = cast.tenant("member"), cast.tenant()
    made(two.invite(one.users["member"], "member"))
    assert one["member"].get("/me").body["tenant_id"] == one.tenant_id
    problem(one["member"].get("/me", x_tenant_id=two.tenant_id), 403)


def test_an_outsider_is_403_everywhere(cast: Cast) -> None:
    for method, path in (("GET", "/me"), ("GET", "/notes"), ("GET", "/events"), ("GET", "/routes"), ("GET", "/keys")):
        problem(cast.outsider.call(method, path), 403)
    problem(cast.outsider.post("/notes", {"content": "x"}), 403)


def test_a_user_unknown_here_is_no_user(cast: Cast) -> None:
    assert cast.as_user("nobody-has-this-sub").get("/me").status in (401, 403)


def test_a_foreign_tenant_and_an_invented_one_are_refused_alike(cast: Cast, tenant: Tenant) -> None:
    other = cast.tenant()
    replies = [
        tenant["member"].get("/me", x_tenant_id=name) for name in (other.tenant_id, "t_nobody_made_this", "t_system")
    ]
    documents = [{**problem(reply, 403, "ContextMismatch"), "request_id": ""} for reply in replies]
    assert documents[0] == documents[1] == documents[2]


def test_a_user_is_bound_to_issuer_and_subject_never_the_subject_alone(cast: Cast, tenant: Tenant) -> None:
    user_id = tenant.users["member"]
    second = {"issuer": "https://other.example", "audience": AUDIENCE, "jwks_file": str(cast.directory / "people.jwks")}
    reply = cast.system_admin.put("/issuers/other", second)
    assert reply.status in (200, 201), reply

    def refused() -> bool:
        reply = cast.as_user(user_id, {"iss": "https://other.example"}).get("/me")
        assert reply.status in (401, 403), reply
        return reply.status == 403

    until(refused)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://unknown.example"},
        {"aud": "another"},
        {"aud": None},
        {"exp": 1},
        {"exp": None},
        {"nbf": 4_000_000_000},
        {"sub": None},
        {"sub": 7},
        {"iss": None},
        {"exp": "soon"},
    ],
)
def test_a_token_that_does_not_hold_is_401(cast: Cast, tenant: Tenant, claims: dict[str, Any]) -> None:
    problem(cast.as_user(tenant.users["member"], claims).get("/me"), 401, "Unauthenticated")


def test_a_token_with_its_signature_changed_is_401(cast: Cast, tenant: Tenant) -> None:
    token = cast.token(tenant.users["member"])
    head, body, signature = token.split(".")
    for forged in (f"{head}.{body}.", f"{head}.{body}.{signature[::-1]}", f"eyJhbGciOiJub25lIn0.{body}."):
        problem(Caller(cast.url, forged, {}).get("/me"), 401, "Unauthenticated")


# --- mismatches ---


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


def test_headers_that_equal_the_context_are_accepted(cast: Cast, tenant: Tenant) -> None:
    me = tenant["member"].get(
        "/me", x_tenant_id=tenant.tenant_id, x_mode="lab", x_env="prod", x_surface_id="chat", x_run_id="run-1",
        x_step_id="3", x_thread_id="th", x_session_id="s",
    )  # fmt: skip
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


def test_a_project_of_another_tenant_and_an_invented_one_are_refused_alike(cast: Cast, tenant: Tenant) -> None:
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
]


@pytest.mark.parametrize(("method", "path", "body"), BODY_CALLS)
def test_identity_fields_in_a_body_that_equal_the_context_are_accepted(
    tenant: Tenant, method: str, path: str, body: dict[str, Any]
) -> None:
    identity = {
        "tenant_id": tenant.tenant_id, "user_id": tenant.users["member"], "mode": "lab", "env": "prod",
        "surface_id": "chat",
    }  # fmt: skip
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


def test_a_mismatch_is_audited_on_the_callers_own_spine_at_most_once_a_second_with_a_count(cast: Cast) -> None:
    own, other = cast.tenant("member", "owner"), cast.tenant("owner")
    for _ in range(5):
        problem(own["member"].get("/me", x_tenant_id=other.tenant_id), 403, "ContextMismatch")
    told = until(lambda: refusals_told_to(own["owner"]))
    event = told[0]
    assert (event["event_type"], event["source"], event["tenant_id"]) == ("audit", "system", own.tenant_id)
    assert event["user_id"] == own.users["member"]
    time.sleep(1.1)
    problem(own["member"].get("/me", x_tenant_id=other.tenant_id), 403, "ContextMismatch")
    told = until(lambda: len(refusals_told_to(own["owner"])) > len(told) and refusals_told_to(own["owner"]))
    assert len(told) <= 3
    assert sum(event["payload"]["count"] for event in told) >= 5
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
        replies = [tenant["owner"].get(f"/tenants/{name}{path}") for name in (other.tenant_id, "t_nobody_made_this")]
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
    cast: Cast, tenant: Tenant
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


# --- memberships ---


def test_an_invited_user_accepts_alone_and_needs_no_accepted_membership(cast: Cast) -> None:
    house = cast.tenant("owner")
    user = cast.user()
    invited = record(house["owner"].put(house.path(f"/members/{user}"), {"role": "member"}), 201)
    assert (invited["status"], invited["role"]) == ("invited", "member")
    caller = cast.as_user(user)
    problem(caller.get("/me"), 403)
    accept = house.path(f"/members/{user}/accept")
    problem(house["owner"].post(accept), 403)
    problem(cast.system_admin.post(accept), 403)
    accepted = record(caller.post(accept))
    assert accepted["status"] == "accepted"
    assert caller.get("/me").body["tenant_id"] == house.tenant_id
    assert record(caller.post(accept))["status"] == "accepted"


def test_accepting_where_nobody_invited_is_refused_alike_for_every_tenant(cast: Cast) -> None:
    user = cast.user()
    caller = cast.as_user(user)
    house = cast.tenant()
    replies = [caller.post(f"/tenants/{name}/members/{user}/accept") for name in (house.tenant_id, "t_nobody_made")]
    documents = [{**problem(reply, reply.status), "request_id": ""} for reply in replies]
    assert documents[0] == documents[1]
    assert replies[0].status in (403, 404)


def test_an_invited_user_who_accepts_for_another_user_is_refused(cast: Cast) -> None:
    house = cast.tenant()
    one, two = cast.user(), cast.user()
    for user in (one, two):
        made(house.invite(user, "member"))
    assert cast.as_user(one).post(house.path(f"/members/{two}/accept")).status == 403


def test_a_revoked_membership_holds_within_a_second_and_an_invitation_starts_again(cast: Cast) -> None:
    house = cast.tenant("member", "owner")
    user, caller = house.users["member"], house["member"]
    path = house.path(f"/members/{user}")
    key = house.key(user, "member")
    assert key.get("/me").status == 200
    assert house["owner"].delete(path).status == 204
    began = time.monotonic()
    until(lambda: caller.get("/me").status == 403)
    until(lambda: key.get("/me").status in (401, 403))
    assert time.monotonic() - began <= 1.2
    gone = house["owner"].get(path)
    assert gone.status == 404 or gone.body["status"] == "revoked"
    assert house["owner"].delete(path).status == 404
    again = house.invite(user, "viewer")
    assert again.status in (200, 201), again
    assert again.body["status"] == "invited"
    problem(caller.get("/me"), 403)


def test_a_revoked_member_cannot_accept_their_old_invitation(cast: Cast) -> None:
    house = cast.tenant("member")
    user = house.users["member"]
    assert house.operator.delete(house.path(f"/members/{user}")).status == 204
    assert cast.as_user(user).post(house.path(f"/members/{user}/accept")).status in (403, 404)


def test_a_changed_role_holds_within_a_second(cast: Cast) -> None:
    house = cast.tenant("member")
    user, caller = house.users["member"], house["member"]
    assert house.invite(user, "viewer").status == 200

    def demoted() -> bool:
        return caller.post("/notes", {"content": "x"}).status == 403

    until(demoted)


# --- API keys ---


def test_a_key_is_bound_to_one_tenant_user_and_role(cast: Cast, tenant: Tenant) -> None:
    user = tenant.users["owner"]
    reply = made(tenant.operator.post("/keys", {"user_id": user, "role": "viewer", "name": "reader"}))
    assert reply.body["key"].startswith("ek_" + reply.body["key_id"] + "_")
    key = Caller(cast.url, reply.body["key"], {})
    me = key.get("/me").body
    assert (me["tenant_id"], me["user_id"], me["roles"]) == (tenant.tenant_id, user, ["viewer"])
    problem(key.post("/notes", {"content": "x"}), 403, "Forbidden")
    problem(key.get("/me", x_tenant_id="t_demo"), 403, "ContextMismatch")


def test_a_keys_secret_is_shown_once(tenant: Tenant) -> None:
    reply = made(tenant["owner"].post("/keys", {"user_id": tenant.users["member"], "role": "member"}))
    key, key_id = reply.body["key"], reply.body["key_id"]
    listed = tenant["owner"].items("/keys")
    assert key_id in {item["key_id"] for item in listed}
    assert key.rpartition("_")[2] not in str(listed)
    assert not any(item.get("key") for item in listed)


def test_a_key_with_another_secret_is_401(cast: Cast, tenant: Tenant) -> None:
    key = str(tenant.key(tenant.users["member"], "member").credential)
    for wrong in (key[:-1] + ("a" if key[-1] != "a" else "b"), key + "a", key[:-1], key.upper()):
        problem(Caller(cast.url, wrong, {}).get("/me"), 401, "Unauthenticated")


def test_a_revoked_key_is_401_within_a_second(tenant: Tenant) -> None:
    reply = made(tenant["owner"].post("/keys", {"user_id": tenant.users["member"], "role": "member"}))
    key = Caller(tenant.cast.url, reply.body["key"], {})
    assert key.get("/me").status == 200
    path = f"/keys/{reply.body['key_id']}"
    assert tenant["owner"].delete(path).status == 204
    began = time.monotonic()
    until(lambda: key.get("/me").status == 401)
    assert time.monotonic() - began <= 1.2
    problem(tenant["owner"].delete(path), 404, "NotFound")


def test_a_key_of_another_tenant_is_404(cast: Cast, tenant: Tenant) -> None:
    other = cast.tenant("owner")
    reply = made(other["owner"].post("/keys", {"user_id": other.users["owner"], "role": "viewer"}))
    problem(tenant["owner"].delete(f"/keys/{reply.body['key_id']}"), 404, "NotFound")
    problem(tenant["owner"].delete("/keys/nobody-made-this"), 404, "NotFound")


def test_a_key_for_a_user_who_is_no_member_is_refused(cast: Cast, tenant: Tenant) -> None:
    for user in (cast.user(), "u_nobody_made_this"):
        reply = tenant["owner"].post("/keys", {"user_id": user, "role": "member"})
        assert 400 <= reply.status < 500, reply


def test_a_key_never_carries_more_than_its_maker_or_its_user_may(tenant: Tenant) -> None:
    reply = tenant["admin"].post("/keys", {"user_id": tenant.users["admin"], "role": "owner"})
    assert reply.status in (400, 403), reply
    reply = tenant["admin"].post("/keys", {"user_id": tenant.users["owner"], "role": "owner"})
    assert reply.status in (400, 403), reply


def test_an_admin_cannot_make_an_owner(cast: Cast, tenant: Tenant) -> None:
    reply = tenant["admin"].put(tenant.path(f"/members/{tenant.users['admin']}"), {"role": "owner"})
    assert reply.status in (400, 403), reply


def test_a_credential_in_the_query_is_no_credential(cast: Cast, tenant: Tenant) -> None:
    token = tenant["member"].credential
    for name in ("token", "access_token", "authorization", "key"):
        assert exchange(cast.url, "GET", f"/me?{name}={token}", {}).status in (400, 401)


def reply_codes(replies: list[Reply]) -> set[int]:
    return {reply.status for reply in replies}


# --- issuers ---


def test_issuers_are_t_system_admins_alone(cast: Cast, tenant: Tenant) -> None:
    path = f"/issuers/{fresh('i')}"
    body = {"issuer": f"https://{fresh('x')}.example", "audience": "a", "jwks_file": "/nonexistent"}
    problem(tenant["owner"].put(path, body), 403, "Forbidden")
    problem(tenant["owner"].get("/issuers/people"), 403, "Forbidden")
    problem(tenant["owner"].delete("/issuers/people"), 403, "Forbidden")
    assert cast.system_admin.put(path, body).status in (201, 400)


def test_an_issuer_is_made_read_replaced_and_deleted(cast: Cast) -> None:
    name = fresh("i")
    file = str(cast.directory / "people.jwks")
    body = {"issuer": f"https://{name}.example", "audience": AUDIENCE, "jwks_file": file}
    path = f"/issuers/{name}"
    first = record(cast.system_admin.put(path, body), 201)
    assert record(cast.system_admin.get(path))["issuer"] == body["issuer"]
    second = record(cast.system_admin.put(path, {**body, "audience": "b"}), 200)
    assert first["etag"] != second["etag"]
    assert cast.system_admin.delete(path).status == 204
    problem(cast.system_admin.get(path), 404, "NotFound")
    problem(cast.system_admin.delete(path), 404, "NotFound")


def test_a_token_of_a_deleted_issuer_is_401_within_a_second(cast: Cast) -> None:
    name = fresh("i")
    issuer = f"https://{name}.example"
    user = fresh("u")
    identities = [{"iss": issuer, "sub": user}]
    made(cast.system_admin.post("/users", {"user_id": user, "identities": identities}))
    body = {"issuer": issuer, "audience": AUDIENCE, "jwks_file": str(cast.directory / "people.jwks")}
    made(cast.system_admin.put(f"/issuers/{name}", body))
    caller = cast.as_user(user, {"iss": issuer})
    until(lambda: caller.get("/me").status == 403)
    assert cast.system_admin.delete(f"/issuers/{name}").status == 204
    until(lambda: caller.get("/me").status == 401)


def test_the_tests_issuer_is_not_the_labs(cast: Cast) -> None:
    assert cast.system_admin.get("/issuers/people").body["issuer"] == ISSUER
    assert ADOPTION_S > 1
