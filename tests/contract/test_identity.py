"""Who a request is and for whom it acts: derived by the server, and refused where a client says otherwise."""

from typing import Any

import pytest

from tests.contract.cast import AUDIENCE, Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, problem, raw

CONTEXT_FIELDS = [
    "tenant_id",
    "mode",
    "env",
    "user_id",
    "roles",
    "os_id",
    "surface_id",
    "app_id",
    "project_id",
    "run_id",
    "step_id",
    "thread_id",
    "session_id",
    "request_id",
    "trace_id",
    "span_id",
]


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
    event = (
        tenant["member"]
        .post("/events", {"event_type": "analytics", "payload": {}}, traceparent=sent)
        .body["events"][0]
    )
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
    for method, path in (
        ("GET", "/me"),
        ("GET", "/notes"),
        ("GET", "/events"),
        ("GET", "/routes"),
        ("GET", "/keys"),
    ):
        problem(cast.outsider.call(method, path), 403)
    problem(cast.outsider.post("/notes", {"content": "x"}), 403)


def test_a_user_unknown_here_is_no_user(cast: Cast) -> None:
    assert cast.as_user("nobody-has-this-sub").get("/me").status in (401, 403)


def test_a_foreign_tenant_and_an_invented_one_are_refused_alike(cast: Cast, tenant: Tenant) -> None:
    other = cast.tenant()
    replies = [
        tenant["member"].get("/me", x_tenant_id=name)
        for name in (other.tenant_id, "t_nobody_made_this", "t_system")
    ]
    documents = [{**problem(reply, 403, "ContextMismatch"), "request_id": ""} for reply in replies]
    assert documents[0] == documents[1] == documents[2]


def test_a_user_is_bound_to_issuer_and_subject_never_the_subject_alone(cast: Cast, tenant: Tenant) -> None:
    user_id = tenant.users["member"]
    second = {
        "issuer": "https://other.example",
        "audience": AUDIENCE,
        "jwks_file": str(cast.directory / "people.jwks"),
    }
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


# --- fields that come twice ---


@pytest.mark.parametrize(
    "fields",
    [
        b"X-Tenant-Id: t_demo\r\nX-Tenant-Id: t_demo",
        b"Idempotency-Key: a\r\nIdempotency-Key: b",
        b"Content-Type: text/plain",
        b'If-Match: "a"\r\nIf-Match: *',
        b"X-Run-Id: a\r\nX-Run-Id: b",
    ],
)
def test_a_header_that_may_appear_once_and_comes_twice_is_400(tenant: Tenant, fields: bytes) -> None:
    path = f"/tables/t/p/{fresh('twice')}"
    said = raw(
        tenant.cast.url,
        b"PUT %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: application/json\r\nContent-Length: 11\r\n%s\r\n\r\n"
        b'{"value":1}' % (path.encode(), str(tenant["member"].credential).encode(), fields),
    )
    assert said.split(b" ")[1] == b"400", said[:300]
    assert tenant["member"].get(path).status == 404


def test_two_credentials_are_none(tenant: Tenant) -> None:
    field = b"Authorization: Bearer %s\r\n" % str(tenant["member"].credential).encode()
    said = raw(
        tenant.cast.url, b"GET /me HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s%s\r\n" % (field, field)
    )
    assert said.split(b" ")[1] in (b"400", b"401"), said[:300]
