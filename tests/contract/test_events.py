"""The spine and the streams: what may be appended, how it is shown, found and followed."""

import uuid
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made
from tests.contract.wire import problem

EVENT: dict[str, Any] = {"event_type": "analytics", "payload": {"n": 1}}
RESERVED = ["audit", "safety", "budget", "strategy_lock"]
EVENT_FIELDS = {
    "event_id",
    "tenant_id",
    "mode",
    "user_id",
    "surface_id",
    "run_id",
    "step_id",
    "timestamp",
    "event_type",
    "source",
    "payload",
    "route",
    "causality",
    "env",
    "position",
    "cursor",
}


both_logs = pytest.mark.parametrize("log", ["/events", "/streams/rules/events"])


@both_logs
def test_an_append_answers_201_with_id_position_and_cursor(tenant: Tenant, log: str) -> None:
    reply = made(tenant["member"].post(log, EVENT))
    assert set(reply.body) == {"events"}
    (answer,) = reply.body["events"]
    assert set(answer) == {"event_id", "position", "cursor"}
    uuid.UUID(answer["event_id"])
    assert isinstance(answer["position"], int)


@both_logs
def test_a_stored_event_has_the_contracts_shape(tenant: Tenant, log: str) -> None:
    body = {
        **EVENT,
        "run_id": "r1",
        "step_id": "s1",
        "parent_event_id": str(uuid.uuid4()),
        "thread_id": "th",
        "source": "tool",
        "occurred_at": "2020-01-01T00:00:00Z",
        "causality": {"trace_id": "a" * 32, "span_id": "b" * 16},
    }
    event_id = made(tenant["member"].post(log, body)).body["events"][0]["event_id"]
    event = tenant["member"].get(f"{log}?order=desc&limit=1").body["items"][0]
    assert set(event) >= EVENT_FIELDS
    assert event["event_id"] == event_id
    for name in ("run_id", "step_id", "parent_event_id", "thread_id", "source", "payload", "event_type"):
        assert event[name] == body[name], name
    assert event["causality"] == body["causality"]
    assert event["occurred_at"].startswith("2020-01-01T00:00:00")
    assert not event["timestamp"].startswith("2020")
    assert event["route"] == ("event_spine" if log == "/events" else "event_stream")
    identity = (event["tenant_id"], event["mode"], event["env"], event["user_id"], event["surface_id"])
    assert identity == (tenant.tenant_id, "lab", "prod", tenant.users["member"], "chat")


def test_an_event_is_read_by_its_id_as_the_list_shows_it(tenant: Tenant) -> None:
    event_id = made(tenant["member"].post("/events", EVENT)).body["events"][0]["event_id"]
    one = tenant["member"].get(f"/events/{event_id}").body
    listed = tenant["member"].get("/events?order=desc&limit=1").body["items"][0]
    assert {name: one[name] for name in listed} == listed


@pytest.mark.parametrize("unknown", [str(uuid.uuid4()), "00000000-0001-8000-a2bd-4682fd7e06c4", "nope"])
def test_an_unknown_event_is_404(tenant: Tenant, unknown: str) -> None:
    problem(tenant["member"].get(f"/events/{unknown}"), 404, "NotFound")


def test_an_event_of_another_tenant_is_404(cast: Cast, tenant: Tenant) -> None:
    other = cast.tenant("member")
    event_id = made(tenant["member"].post("/events", EVENT)).body["events"][0]["event_id"]
    problem(other["member"].get(f"/events/{event_id}"), 404, "NotFound")


@both_logs
def test_run_and_step_and_source_have_their_defaults(tenant: Tenant, log: str) -> None:
    made(tenant["member"].post(log, EVENT, x_request_id="req-1"))
    made(tenant["member"].post(log, EVENT, x_run_id="run-1", x_step_id="7", x_thread_id="th-1"))
    made(tenant["agent"].post(log, EVENT))
    agent, header, plain = tenant["member"].get(f"{log}?order=desc&limit=3").body["items"]
    assert (plain["run_id"], plain["step_id"], plain["source"]) == ("req-1", "0", "ui")
    assert (header["run_id"], header["step_id"], header["thread_id"]) == ("run-1", "7", "th-1")
    assert agent["source"] == "agent"


@both_logs
@pytest.mark.parametrize("source", ["ui", "agent", "connector", "tool"])
def test_a_client_may_say_each_of_the_contracts_sources(tenant: Tenant, log: str, source: str) -> None:
    made(tenant["member"].post(log, {**EVENT, "source": source}))
    assert tenant["member"].get(f"{log}?order=desc&limit=1").body["items"][0]["source"] == source


@both_logs
@pytest.mark.parametrize("source", ["system", "server", "", "UI", 1])
def test_another_source_is_400(tenant: Tenant, log: str, source: Any) -> None:
    assert (
        problem(tenant["member"].post(log, {**EVENT, "source": source}), 400, "Invalid")["field"] == "source"
    )


@pytest.mark.parametrize("event_type", RESERVED)
def test_the_servers_event_types_are_forbidden_to_clients(tenant: Tenant, event_type: str) -> None:
    for role in ("member", "owner"):
        body = {"event_type": event_type, "payload": {}}
        problem(tenant[role].post("/events", body), 403, "Forbidden")
        problem(tenant[role].post("/events", {"events": [EVENT, body]}), 403, "Forbidden")


@pytest.mark.parametrize("event_type", ["a", "analytics", "rl_", "tool_call", "a" + "b" * 63, "a_9"])
def test_an_event_type_of_the_pattern_is_taken(tenant: Tenant, event_type: str) -> None:
    made(tenant["member"].post("/events", {"event_type": event_type, "payload": {}}))
    found = tenant["member"].get(f"/events?event_type={event_type}&order=desc&limit=1").body["items"]
    assert found[0]["event_type"] == event_type


@both_logs
@pytest.mark.parametrize(
    "event_type", ["", "A", "9a", "_a", "a-b", "a.b", "a" * 65, "a\n", "é", "Audit", "audit "]
)
def test_an_event_type_of_another_pattern_is_400(tenant: Tenant, log: str, event_type: str) -> None:
    body = {"event_type": event_type, "payload": {}}
    assert problem(tenant["member"].post(log, body), 400, "Invalid")["field"] == "event_type"


@both_logs
@pytest.mark.parametrize(
    "field",
    ["timestamp", "position", "cursor", "route", "digest"],
)
def test_a_client_cannot_say_what_the_server_says(tenant: Tenant, log: str, field: str) -> None:
    problem(tenant["member"].post(log, {**EVENT, field: "2020-01-01T00:00:00Z"}), 400, "Invalid")


@both_logs
@pytest.mark.parametrize(
    "occurred", ["yesterday", "", "2020-13-01T00:00:00Z", "2020-01-01", 0, "0000-01-01T00:00:00Z"]
)
def test_an_occurred_at_that_is_no_time_is_400(tenant: Tenant, log: str, occurred: Any) -> None:
    reply = tenant["member"].post(log, {**EVENT, "occurred_at": occurred})
    assert problem(reply, 400, "Invalid")["field"] == "occurred_at"


@both_logs
@pytest.mark.parametrize("field", ["run_id", "step_id", "thread_id", "parent_event_id"])
@pytest.mark.parametrize("bad", ["a b", "a/b", "a" * 129, "", "a!b", "-a", 7])
def test_provenance_of_a_bad_pattern_is_400(tenant: Tenant, log: str, field: str, bad: Any) -> None:
    assert problem(tenant["member"].post(log, {**EVENT, field: bad}), 400, "Invalid")["field"] == field


# --- client ids ---


@both_logs
@pytest.mark.parametrize(
    "bad", ["x", "", "a" * 36, str(uuid.uuid4()) + "0", "{" + str(uuid.uuid4()) + "}", 7]
)
def test_an_event_id_that_is_no_uuid_is_400(tenant: Tenant, log: str, bad: Any) -> None:
    assert (
        problem(tenant["member"].post(log, {**EVENT, "event_id": bad}), 400, "Invalid")["field"] == "event_id"
    )


@both_logs
def test_a_clients_event_id_is_a_uuid_of_a_version_other_than_8(tenant: Tenant, log: str) -> None:
    problem(
        tenant["member"].post(log, {**EVENT, "event_id": "00000000-0001-8000-a2bd-4682fd7e06c4"}),
        400,
        "Invalid",
    )
    for own in (uuid.uuid4(), uuid.uuid5(uuid.NAMESPACE_URL, fresh("x")), uuid.uuid1()):
        answer = made(tenant["member"].post(log, {**EVENT, "event_id": str(own)})).body["events"][0]
        assert answer["event_id"] == str(own)


@both_logs
def test_a_known_event_id_returns_its_first_position_and_with_another_body_409(
    tenant: Tenant, log: str
) -> None:
    body = {**EVENT, "event_id": str(uuid.uuid4()), "run_id": "r"}
    first = made(tenant["member"].post(log, body)).body["events"][0]
    made(tenant["member"].post(log, EVENT))
    again = tenant["member"].post(log, body)
    assert again.status in (200, 201)
    assert again.body["events"][0] == first
    problem(tenant["member"].post(log, {**body, "payload": {"n": 2}}), 409, "Conflict")


@both_logs
def test_the_same_event_id_twice_in_a_batch_is_refused_or_one_event(tenant: Tenant, log: str) -> None:
    body = {**EVENT, "event_id": str(uuid.uuid4()), "run_id": "r"}
    reply = tenant["member"].post(log, {"events": [body, body]})
    assert reply.status in (201, 400, 409), reply
    if reply.status == 201:
        one, two = reply.body["events"]
        assert one == two


def test_two_tenants_and_two_streams_may_use_one_event_id(cast: Cast, tenant: Tenant) -> None:
    body = {**EVENT, "event_id": str(uuid.uuid4())}
    other = cast.tenant("member")
    for member in (tenant["member"], other["member"]):
        for log in ("/events", "/streams/one/events", "/streams/two/events"):
            made(member.post(log, body))


# --- batches ---


@both_logs
def test_a_batch_is_appended_in_its_order(tenant: Tenant, log: str) -> None:
    batch = [{**EVENT, "payload": {"n": number}} for number in range(20)]
    answers = made(tenant["member"].post(log, {"events": batch})).body["events"]
    positions = [answer["position"] for answer in answers]
    assert positions == list(range(positions[0], positions[0] + 20))
    found = tenant["member"].get(f"{log}?order=desc&limit=20").body["items"][::-1]
    assert [event["payload"]["n"] for event in found] == list(range(20))


@both_logs
def test_500_events_are_one_request_and_501_are_413(tenant: Tenant, log: str) -> None:
    small = {"event_type": "a", "payload": {}}
    answers = made(tenant["member"].post(log, {"events": [small] * 500})).body["events"]
    assert len(answers) == 500
    problem(tenant["member"].post(log, {"events": [small] * 501}), 413, "TooLarge")
    made(tenant["member"].post(log, EVENT))
    assert (
        tenant["member"].get(f"{log}?order=desc&limit=1").body["items"][0]["position"]
        == answers[-1]["position"] + 1
    )


@both_logs
def test_98_client_ids_are_one_request_and_99_are_413(tenant: Tenant, log: str) -> None:
    def batch(count: int) -> dict[str, Any]:
        return {"events": [{**EVENT, "event_id": str(uuid.uuid4())} for _ in range(count)]}

    last = made(tenant["member"].post(log, batch(98), idempotency_key=fresh("key"))).body["events"][-1][
        "position"
    ]
    problem(tenant["member"].post(log, batch(99)), 413, "TooLarge")
    after = made(tenant["member"].post(log, EVENT)).body["events"][0]["position"]
    assert after == last + 1


@both_logs
def test_a_batch_past_256_kib_is_413_and_one_within_is_taken(tenant: Tenant, log: str) -> None:
    def batch(size: int) -> dict[str, Any]:
        return {"events": [{**EVENT, "payload": {"text": "a" * (size // 4)}} for _ in range(4)]}

    made(tenant["member"].post(log, batch(240_000)))
    problem(tenant["member"].post(log, batch(270_000)), 413, "TooLarge")


@both_logs
def test_escaped_text_counts_as_it_is_stored(tenant: Tenant, log: str) -> None:
    problem(tenant["member"].post(log, {**EVENT, "payload": {"text": '"\\' * 90_000}}), 413, "TooLarge")


@both_logs
@pytest.mark.parametrize("position", [0, 4, 9])
def test_a_batch_is_all_or_nothing(tenant: Tenant, log: str, position: int) -> None:
    before = tenant["member"].get(f"{log}?order=desc&limit=1").body["items"]
    batch: list[Any] = [EVENT] * 10
    batch[position] = {"event_type": "BAD", "payload": {}}
    said = problem(tenant["member"].post(log, {"events": batch}), 400, "Invalid")
    assert str(position) in said["field"], said
    assert tenant["member"].get(f"{log}?order=desc&limit=1").body["items"] == before


@both_logs
@pytest.mark.parametrize(
    "body", [{"events": []}, {"events": [EVENT], **EVENT}, {"events": EVENT}, {"events": None}, [EVENT]]
)
def test_a_body_that_is_neither_one_event_nor_a_batch_is_400(tenant: Tenant, log: str, body: Any) -> None:
    problem(tenant["member"].post(log, body), 400, "Invalid")
