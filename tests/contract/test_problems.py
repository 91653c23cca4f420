"""What bad requests get: problem documents with the contract's codes, and never a 422 or a 500."""

import gzip
import json
import socket
import time
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made
from tests.contract.wire import Reply, exchange, problem, raw

STALL_S = 10.0
NOON = "2026-11-21T12:00:00Z"
LATER = "2026-11-21T12:00:01.5+00:00"
TABLE = "/tables/t/p"


def row(name: str = "k") -> str:
    return f"{TABLE}/{fresh(name)}"


@pytest.mark.parametrize(
    "credential", [None, "", "nonsense", "a.b.c", "ek_none_none", "ek_", "\u00e9", "a b"]
)
def test_no_or_a_bad_credential_is_401(cast: Cast, credential: str | None) -> None:
    headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
    reply = exchange(cast.url, "GET", "/me", headers)
    problem(reply, 401, "Unauthenticated")
    assert reply.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("value", ["Basic dTpw", "Bearer", "bearer", "Token x"])
def test_an_authorization_of_another_form_is_401(cast: Cast, value: str) -> None:
    problem(exchange(cast.url, "GET", "/me", {"Authorization": value}), 401, "Unauthenticated")


def test_the_scheme_bearer_is_of_either_case(tenant: Tenant) -> None:
    member = tenant["member"]
    assert exchange(member.url, "GET", "/me", {"Authorization": f"bearer {member.credential}"}).status == 200


def test_a_path_that_does_not_exist_is_404_with_and_without_a_credential(cast: Cast, tenant: Tenant) -> None:
    problem(tenant["member"].get("/nonesuch"), 404, "NotFound")
    assert cast.nobody.get("/nonesuch").status in (401, 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/notes", {"GET", "POST"}),
        ("POST", "/me", {"GET"}),
        ("PATCH", "/tables/t/p/s", {"GET", "PUT", "DELETE"}),
        ("DELETE", "/blackboard/r/k", {"GET", "PUT"}),
        ("PUT", "/events", {"GET", "POST"}),
        ("DELETE", "/tenants/t_demo", {"GET", "PATCH"}),
        ("POST", "/tables/t/p", {"GET"}),
        ("PUT", "/keys/k", {"DELETE"}),
        ("POST", "/health/live", {"GET"}),
        ("OPTIONS", "/notes", {"GET", "POST"}),
        ("TRACE", "/notes", {"GET", "POST"}),
        ("PROPFIND", "/notes", {"GET", "POST"}),
    ],
)
def test_a_wrong_method_is_405_with_allow(tenant: Tenant, method: str, path: str, allowed: set[str]) -> None:
    reply = tenant["owner"].call(method, path, {} if method in ("POST", "PUT", "PATCH") else None)
    problem(reply, 405, "MethodNotAllowed")
    assert {name.strip() for name in reply.headers["Allow"].split(",")} - {"HEAD", "OPTIONS"} == allowed


@pytest.mark.parametrize(
    "media", ["text/plain", "application/xml", "application/x-www-form-urlencoded", "json"]
)
def test_a_wrong_media_type_is_415(tenant: Tenant, media: str) -> None:
    problem(tenant["member"].put(row(), {"value": 1}, content_type=media), 415, "UnsupportedMediaType")


def test_a_charset_on_the_media_type_is_accepted(tenant: Tenant) -> None:
    reply = tenant["member"].put(row(), {"value": 1}, content_type="application/json; charset=utf-8")
    assert reply.status == 201, reply


MALFORMED = {
    "empty": b"",
    "cut": b'{"value": ',
    "trailing": b'{"value": 1} x',
    "two": b'{"value": 1}{"value": 2}',
    "nan": b'{"value": NaN}',
    "infinity": b'{"value": -Infinity}',
    "not_utf8": b'{"value": "\xff\xfe"}',
    "utf16": '{"value": 1}'.encode("utf-16"),
    "lone_surrogate": b'{"value": "\\ud800"}',
    "null": b"null",
    "array": b"[]",
    "string": b'"value"',
    "number": b"1",
    "missing": b"{}",
    "unknown": b'{"value": 1, "valeu": 2}',
    "control_character": b'{"value": "\x01"}',
    "single_quotes": b"{'value': 1}",
    "huge_exponent": b'{"value": 1e999}',
    "long_integer": b'{"value": ' + b"9" * 5000 + b"}",
    "deep_arrays": b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep_objects": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "unclosed": b"[" * 100_000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_body_is_400_and_nothing_is_written(tenant: Tenant, name: str) -> None:
    path = row()
    reply = tenant["member"].put(path, MALFORMED[name])
    problem(reply, 400, "Invalid")
    assert tenant["member"].get(path).status == 404


@pytest.mark.parametrize(("depth", "status"), [(64, 201), (65, 400)])
def test_json_is_nested_at_most_64_deep(tenant: Tenant, depth: int, status: int) -> None:
    arrays = depth - 1  # the body's own object is the first level
    body = b'{"value": ' + b"[" * arrays + b"]" * arrays + b"}"
    assert tenant["member"].put(row(), body).status == status


@pytest.mark.parametrize("opening", [b'"[[[[', b'"{{{{'])
def test_brackets_within_a_string_are_no_nesting(tenant: Tenant, opening: bytes) -> None:
    body = b'{"value": ' + opening * 1 + b"[" * 500 + b'"}'
    assert tenant["member"].put(row(), body).status == 201


@pytest.mark.parametrize("value", [2**53, -(2**63), 2**64 - 1, 2**64, 2**200, 1.5e300, 0.1, -0.0])
def test_numbers_come_back_as_they_were_or_are_refused(tenant: Tenant, value: float) -> None:
    path = row()
    reply = tenant["member"].put(path, {"value": value})
    if reply.status == 400:
        problem(reply, 400, "Invalid")
    else:
        assert reply.status == 201, reply
        assert tenant["member"].get(path).body["value"] == value


@pytest.mark.parametrize(
    "value",
    ["", "\u0000", "é", "\U0001f600", "a" * 10_000, {"": {"": []}}, [None, True, False, {}, []], None],
)
def test_any_json_is_a_value_and_comes_back_as_it_was(tenant: Tenant, value: Any) -> None:
    path = row()
    reply = tenant["member"].put(path, {"value": value})
    assert reply.status == 201, reply
    assert reply.body["value"] == value
    assert tenant["member"].get(path).body["value"] == value


UNKNOWN_FIELDS = [
    ("POST", "/events", {"event_type": "analytics", "payload": {}}),
    ("POST", "/streams/s/events", {"event_type": "analytics", "payload": {}}),
    ("PUT", "/tables/t/p/unknown", {"value": 1}),
    ("PUT", "/memory/s/unknown", {"value": 1}),
    ("PUT", "/blackboard/r/unknown", {"value": 1}),
    ("PUT", "/realtime/thread/unknown/members/u", {"role": "host"}),
    ("POST", "/sessions", {}),
    ("PATCH", "/sessions/s", {"title": "x"}),
    ("POST", "/sessions/s/messages", {"role": "user", "content": "x"}),
    ("POST", "/sessions/s/checkpoints", {"state": 1}),
    ("POST", "/checkpoints/s.1/fork", {}),
    ("POST", "/sessions/s/traces", {"name": "t", "started_at": NOON, "ended_at": NOON}),
    (
        "POST",
        "/sessions/s/traces",
        {"name": "t", "started_at": NOON, "ended_at": NOON, "spans": [{"zzz": 1}]},
    ),
    ("PUT", "/agent-memory/episodes/unknown", {"value": 1}),
    ("POST", "/telemetry/tokens", {"provider": "p", "model": "m"}),
    ("POST", "/notes", {"content": "x"}),
    ("POST", "/budget/usage", {"cost": "1", "currency": "USD"}),
    ("POST", "/budget/reservations", {"amount": "1", "currency": "USD"}),
    ("POST", "/projects", {"project_id": "p_unknown", "name": "P"}),
    ("POST", "/keys", {"user_id": "u_nobody", "role": "member"}),
    ("PUT", "/routes/notes_store", {"backend_id": "lab"}),
]


@pytest.mark.parametrize(("method", "path", "body"), UNKNOWN_FIELDS)
def test_an_unknown_body_field_is_400_and_named(
    tenant: Tenant, method: str, path: str, body: dict[str, Any]
) -> None:
    reply = tenant["owner"].call(method, path, {**body, "zzz": 1}, if_none_match="*")
    assert "zzz" in json.dumps(problem(reply, 400, "Invalid"))


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/events", {"event_type": 1, "payload": {}}, "event_type"),
        ("POST", "/events", {"event_type": "analytics", "payload": []}, "payload"),
        ("POST", "/events", {"event_type": "analytics", "payload": {}, "causality": "x"}, "causality"),
        ("PUT", "/memory/s/k", {"value": 1, "ttl_seconds": "60"}, "ttl_seconds"),
        ("PUT", "/memory/s/k", {"value": 1, "ttl_seconds": 1.5}, "ttl_seconds"),
        ("PUT", "/memory/s/k", {"value": 1, "ttl_seconds": True}, "ttl_seconds"),
        ("PUT", "/memory/s/k", {"value": 1, "ttl_seconds": 2**80}, "ttl_seconds"),
        ("POST", "/notes", {"content": "x", "tags": "a"}, "tags"),
        ("POST", "/notes", {"content": "x", "tags": [1]}, "tags"),
        ("POST", "/notes", {"content": 1}, "content"),
        ("POST", "/notes", {"content": "x", "content_type": "html"}, "content_type"),
        ("POST", "/notes", {"content": "x", "title": None}, "title"),
        ("POST", "/projects", {"project_id": "a b", "name": "P"}, "project_id"),
        ("POST", "/projects", {"project_id": "p", "name": 7}, "name"),
    ],
)
def test_a_wrong_type_is_400_and_its_field_is_named(
    tenant: Tenant, method: str, path: str, body: dict[str, Any], field: str
) -> None:
    said = problem(tenant["owner"].call(method, path, body), 400, "Invalid")
    assert said.get("field", "").startswith(field), said


# --- an agent's sessions, memory and tokens ---


def said(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "messages", {"role": "user", "content": "x", **fields}


def saved(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "checkpoints", {"state": 1, **fields}


def turned(*spans: dict[str, Any], **fields: Any) -> tuple[str, dict[str, Any]]:
    return "traces", {"name": "t", "started_at": NOON, "ended_at": LATER, "spans": spans, **fields}


def span(span_id: str = "a", parent: str | None = None, **fields: Any) -> dict[str, Any]:
    times = {"started_at": NOON, "ended_at": LATER}
    return {"span_id": span_id, "name": "n", "parent_span_id": parent, **times, **fields}


BAD_PARTS: list[tuple[tuple[str, dict[str, Any]], str, str]] = [
    (said(role="tool"), "tool_call_id", "a tool's message"),
    (said(tool_call_id="c"), "tool_call_id", "a tool's message"),
    (said(role="assistant", tool_call_id="c"), "tool_call_id", "a tool's message"),
    (said(tool_calls=[{"id": "c"}]), "tool_calls", "an assistant alone"),
    (said(role="tool", tool_call_id="c", tool_calls=[1]), "tool_calls", "an assistant alone"),
    (said(role="tool", tool_call_id=""), "tool_call_id", "at least 1"),
    (said(role="robot"), "role", "expected one of"),
    (said(name=""), "name", "at least 1"),
    (said(name="n" * 129), "name", "at most 128"),
    (said(metadata=[]), "metadata", "object"),
    (said(tool_calls={}), "tool_calls", "array"),
    (saved(label="l" * 201), "label", "at most 200"),
    (saved(label=None), "label", "str"),
    (turned(ended_at="2026-11-21T11:59:59.999Z"), "ended_at", "before it begins"),
    (turned(started_at="2026-11-21T12:00:00"), "started_at", "time zone"),
    (turned(ended_at="yesterday"), "ended_at", "RFC 3339"),
    (turned(ended_at="2026-02-30T12:00:00Z"), "ended_at", "RFC 3339"),
    (turned(status="fine"), "status", "expected one of"),
    (turned(name=""), "name", "at least 1"),
    (turned(span(), span("b", "c")), "spans[1].parent_span_id", "no span of this trace"),
    (turned(span("a", "a")), "spans[0].parent_span_id", "above itself"),
    (turned(span("r"), span("a", "c"), span("b", "a"), span("c", "b")), "spans[1].parent_span_id", "itself"),
    (turned(span(), span("b"), span()), "spans[2].span_id", "one id"),
    (turned(span(started_at=LATER, ended_at=NOON)), "spans[0].ended_at", "before it begins"),
    (turned(span(), span("b", started_at="noon")), "spans[1].started_at", "time zone"),
    (turned(span("")), "spans[0].span_id", "at least 1"),
    (turned(span("s" * 129)), "spans[0].span_id", "at most 128"),
    (turned(span(status="bad")), "spans[0].status", "expected one of"),
    (turned(*(span(str(number)) for number in range(1_001))), "spans", "at most 1000"),
]


@pytest.fixture(scope="module")
def session(tenant: Tenant) -> str:
    """A session of the owner's, in which nothing is."""
    return f"/sessions/{made(tenant['owner'].post('/sessions', {'title': 'T'})).body['session_id']}"


@pytest.mark.parametrize(
    ("told", "field", "rule"),
    BAD_PARTS,
    ids=[f"{part}-{field}-{rule}" for (part, _), field, rule in BAD_PARTS],
)
def test_a_part_of_a_session_that_breaks_a_rule_is_refused_by_field_and_rule_and_not_written(
    tenant: Tenant, session: str, told: tuple[str, dict[str, Any]], field: str, rule: str
) -> None:
    owner, (part, body) = tenant["owner"], told
    refusal = problem(owner.post(f"{session}/{part}", body, idempotency_key=fresh("bad")), 400, "Invalid")
    assert (refusal["field"], rule in refusal["detail"]) == (field, True), refusal
    assert owner.get(f"{session}/{part}").body["items"] == []


@pytest.mark.parametrize("missing", ["role", "content", "state", "name", "started_at", "ended_at"])
def test_what_a_part_of_a_session_must_have_is_named_where_it_is_missing(
    tenant: Tenant, session: str, missing: str
) -> None:
    (part, body) = next(told for told in (said(), saved(), turned()) if missing in told[1])
    left = {name: value for name, value in body.items() if name != missing}
    refusal = problem(tenant["owner"].post(f"{session}/{part}", left), 400, "Invalid")
    assert (refusal["field"], "required" in refusal["detail"]) == (missing, True), refusal
    assert tenant["owner"].get(f"{session}/{part}").body["items"] == []


@pytest.mark.parametrize("part", ["messages", "checkpoints", "traces"])
def test_a_record_of_a_session_that_is_too_long_is_413_and_not_written(
    tenant: Tenant, session: str, part: str
) -> None:
    long = "a" * (256 * 1024)
    bodies = dict([said(content=long), saved(state=long), turned(attributes={"a": long})])
    problem(tenant["owner"].post(f"{session}/{part}", bodies[part]), 413, "TooLarge")
    assert tenant["owner"].get(f"{session}/{part}").body["items"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"title": "t" * 501}, "title"),
        ({"title": None}, "title"),
        ({"metadata": []}, "metadata"),
        ({"metadata": None}, "metadata"),
    ],
)
def test_a_session_that_breaks_a_rule_is_refused_by_field_and_stays(
    tenant: Tenant, session: str, body: dict[str, Any], field: str
) -> None:
    owner = tenant["owner"]
    before = owner.get(session).body
    for reply in (owner.post("/sessions", body), owner.patch(session, body)):
        assert problem(reply, 400, "Invalid")["field"] == field
    assert owner.items("/sessions") == [before]


TOKENS = {"provider": "p", "model": "m", "tokens_in": 5, "tokens_out": 1}


@pytest.mark.parametrize(
    ("body", "field", "rule"),
    [
        ({"tokens_cached": 6}, "tokens_cached", "a part of"),
        ({"tokens_in": -1}, "tokens_in", "at least 0"),
        ({"tokens_out": -1}, "tokens_out", "at least 0"),
        ({"tokens_cached": -1}, "tokens_cached", "at least 0"),
        ({"calls": 0}, "calls", "at least 1"),
        ({"calls": -1}, "calls", "at least 1"),
        ({"tokens_in": 10**9 + 1}, "tokens_in", "at most 1000000000"),
        ({"tokens_in": 1.5}, "tokens_in", "int"),
        ({"tokens_in": "5"}, "tokens_in", "int"),
        ({"tokens_in": True}, "tokens_in", "int"),
        ({"tokens_in": None}, "tokens_in", "int"),
        ({"provider": ""}, "provider", "at least 1"),
        ({"model": "m" * 129}, "model", "at most 128"),
        ({"session_id": "a b"}, "session_id", "id"),
        ({"session_id": "-"}, "session_id", "id"),
    ],
)
def test_counts_that_break_a_rule_are_refused_by_field_and_rule_and_not_counted(
    tenant: Tenant, body: dict[str, Any], field: str, rule: str
) -> None:
    reply = tenant["owner"].post("/telemetry/tokens", {**TOKENS, **body})
    refusal = problem(reply, 400, "Invalid")
    assert (refusal["field"], rule in refusal["detail"]) == (field, True), refusal
    assert tenant["owner"].get("/telemetry/tokens").body["total"]["calls"] == 0


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("since=yesterday", "since"),
        ("since=", "since"),
        ("since=2026-02-30", "since"),
        ("until=2026-11-21T00:00:00Z", "until"),
        ("until=20261121", "until"),
        ("until=2026-W47-6", "until"),
        ("since=2026-11-22&until=2026-11-21", "until"),
        ("since=2025-11-20&until=2026-11-21", "since"),
        ("since=9999-01-01", "until"),
        ("session_id=a%20b", "session_id"),
        ("session_id=-", "session_id"),
        ("by=hour", "by"),
        ("by=", "by"),
        ("sinse=2026-11-21", "sinse"),
    ],
)
def test_a_report_of_days_that_are_none_is_400_and_its_field_is_named(
    tenant: Tenant, query: str, field: str
) -> None:
    refusal = problem(tenant["member"].get(f"/telemetry/tokens?{query}"), 400, "Invalid")
    assert refusal.get("field") == field, refusal


def test_the_longest_and_the_earliest_report_are_answered(tenant: Tenant) -> None:
    for query in (
        "since=2025-11-21&until=2026-11-21",
        "until=0001-01-01",
        "since=9999-12-31&until=9999-12-31",
    ):
        reply = tenant["member"].get(f"/telemetry/tokens?{query}")
        assert (reply.status, reply.body.get("groups")) == (200, []), (query, reply)


@pytest.mark.parametrize("tier", ["forever", "Episodes", "long-term"])
def test_an_unknown_tier_is_400_and_the_tiers_are_named(tenant: Tenant, tier: str) -> None:
    member = tenant["member"]
    for reply in (
        member.get(f"/agent-memory/{tier}"),
        member.get(f"/agent-memory/{tier}/k"),
        member.put(f"/agent-memory/{tier}/k", {"value": 1}),
        member.delete(f"/agent-memory/{tier}/k"),
    ):
        refusal = problem(reply, 400, "Invalid")
        assert refusal["field"] == "tier"
        assert "episodes, long_term, summaries" in refusal["detail"]


def test_headers_over_32_kib_are_431(tenant: Tenant) -> None:
    reply = tenant["member"].get("/me", x_filler="a" * (33 * 1024))
    problem(reply, 431, "HeadersTooLarge")


def test_headers_of_30_kib_are_accepted(tenant: Tenant) -> None:
    assert tenant["member"].get("/me", x_filler="a" * (30 * 1024)).status == 200


def test_many_small_headers_over_32_kib_are_431(tenant: Tenant) -> None:
    lines = b"".join(b"X-F%d: %s\r\n" % (number, b"a" * 90) for number in range(400))
    said = raw(
        tenant.cast.url, b"GET /health/live HTTP/1.1\r\nHost: a\r\n" + lines + b"Connection: close\r\n\r\n"
    )
    assert b" 431 " in said.split(b"\r\n")[0]


def test_a_header_of_a_megabyte_is_431_or_a_plain_400(tenant: Tenant) -> None:
    said = raw(tenant.cast.url, b"GET /me HTTP/1.1\r\nHost: a\r\nX-F: " + b"a" * 1_000_000 + b"\r\n\r\n")
    assert said[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("method", "path", "wrap"),
    [
        ("PUT", "/tables/t/p/large", "value"),
        ("PUT", "/memory/s/large", "value"),
        ("PUT", "/blackboard/r/large", "value"),
        ("PUT", "/agent-memory/summaries/large", "value"),
        ("POST", "/sessions", "title"),
        ("POST", "/notes", "content"),
    ],
)
def test_a_body_over_its_limit_is_413(tenant: Tenant, method: str, path: str, wrap: str) -> None:
    body = {wrap: "a" * 3_000_000}
    problem(tenant["member"].call(method, path, body, if_none_match="*"), 413, "TooLarge")
    assert tenant["member"].get("/tables/t/p/large").status == 404


def test_a_body_announced_over_the_limit_is_413_before_it_is_sent(tenant: Tenant) -> None:
    member = tenant["member"]
    said = raw(
        tenant.cast.url,
        b"PUT /tables/t/p/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: 99999999999\r\n\r\n" % str(member.credential).encode(),
        patience_s=8,
    )
    assert b" 413 " in said.split(b"\r\n")[0]


def test_a_chunked_body_is_read_and_has_the_same_limit(tenant: Tenant) -> None:
    member = tenant["member"]
    head = (
        b"PUT %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    path = row()
    credential = str(member.credential).encode()
    said = raw(member.url, head % (path.encode(), credential) + b'8\r\n{"value"\r\n3\r\n:7}\r\n0\r\n\r\n')
    assert b" 201 " in said.split(b"\r\n")[0]
    assert member.get(path).body["value"] == 7
    chunk = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    said = raw(member.url, head % (row().encode(), credential) + chunk * 64 + b"0\r\n\r\n")
    assert b" 413 " in said.split(b"\r\n")[0]


def test_a_body_that_stalls_10_seconds_is_408_and_the_connection_closes(tenant: Tenant) -> None:
    member = tenant["member"]
    path = row()
    began = time.monotonic()
    said = raw(
        member.url,
        b"PUT %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
        b'Content-Length: 20\r\n\r\n{"value": ' % (path.encode(), str(member.credential).encode()),
        patience_s=STALL_S + 5,
    )
    took = time.monotonic() - began
    head, _, content = said.partition(b"\r\n\r\n")
    assert b" 408 " in head.split(b"\r\n")[0]
    assert json.loads(content)["code"] == "RequestTimeout"
    assert STALL_S - 1 <= took <= STALL_S + 4
    assert member.get(path).status == 404


def test_a_half_sent_body_writes_nothing(tenant: Tenant) -> None:
    member = tenant["member"]
    path = row()
    host, port = member.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"PUT %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
            b'Content-Length: 30\r\n\r\n{"value": 1}' % (path.encode(), str(member.credential).encode())
        )
    assert member.get(path).status == 404


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /me\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /me HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET /me HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /me HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n",
        b"POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /events HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_garbage_below_http_is_a_plain_400_or_a_closed_connection(cast: Cast, garbage: bytes) -> None:
    said = raw(cast.url, garbage, patience_s=15)
    assert not said or said.split(b" ")[1] in (b"400", b"401", b"404", b"405", b"408"), said[:300]
    assert cast.nobody.get("/health/live").status == 200


def test_a_content_length_and_chunks_together_are_refused(tenant: Tenant) -> None:
    member = tenant["member"]
    path = row()
    said = raw(
        member.url,
        b"PUT %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b'b\r\n{"value":7}\r\n0\r\n\r\n' % (path.encode(), str(member.credential).encode()),
    )
    assert said.split(b" ")[1] == b"400", said[:300]
    assert member.get(path).status == 404


@pytest.mark.parametrize(
    "query", ["limit=%FF", "limit=1&limit=2", "nonesuch=1", "%00=1", "limit=1%00", "after=%C3%A9"]
)
def test_a_strange_query_is_answered_without_a_server_error(tenant: Tenant, query: str) -> None:
    reply = tenant["owner"].get(f"/notes?{query}")
    assert reply.status in (200, 400), reply


def strange_replies(tenant: Tenant) -> list[Reply]:
    owner = tenant["owner"]
    return [
        owner.get("/me", x_run_id="a b"),
        owner.get("/me", x_run_id="é"),
        owner.get("/me", x_thread_id="a" * 129),
        owner.get("/me", x_session_id="-"),
        owner.get("/me", x_step_id="!"),
        owner.get("/me", x_env="PROD"),
        owner.get("/me", x_mode="a b"),
        owner.get("/me", x_tenant_id="T_upper"),
        owner.get("/me", x_tenant_id="t_" + "a" * 63),
        owner.get("/me", x_project_id="a/b"),
        owner.get("/me", x_app_id="a,b"),
    ]


def test_a_header_of_a_bad_pattern_is_400(tenant: Tenant) -> None:
    for reply in strange_replies(tenant):
        problem(reply, 400, "Invalid")


def test_the_openapi_description_names_no_422(cast: Cast) -> None:
    described = cast.nobody.get("/openapi.json").body
    assert described["openapi"].startswith("3.1")
    for path, calls in described["paths"].items():
        for method, call in calls.items():
            assert "422" not in call.get("responses", {}), (method, path)


@pytest.mark.parametrize("body", [b'{"value": 1, "value": 2}', b'\xef\xbb\xbf{"value": 1}'])
def test_a_member_named_twice_and_a_byte_order_mark_are_400(tenant: Tenant, body: bytes) -> None:
    path = row()
    problem(tenant["member"].put(path, body), 400, "Invalid")
    assert tenant["member"].get(path).status == 404


def test_a_body_in_a_content_coding_is_refused(tenant: Tenant) -> None:
    reply = tenant["member"].put(row(), gzip.compress(b'{"value": 1}'), content_encoding="gzip")
    assert reply.status in (400, 415), reply
