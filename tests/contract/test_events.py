"""The spine and the streams: what may be appended, how it is shown, found and followed."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made
from tests.contract.wire import Caller, problem

EVENT: dict[str, Any] = {"event_type": "analytics", "payload": {"n": 1}}
RESERVED = ["audit", "safety", "budget", "strategy_lock"]
EVENT_FIELDS = {
    "event_id", "tenant_id", "mode", "user_id", "surface_id", "run_id", "step_id", "timestamp", "event_type", "source",
    "payload", "route", "causality", "env", "position", "cursor",
}  # fmt: skip


def logs() -> list[str]:
    return ["/events", f"/streams/{fresh('s')}/events"]


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
        **EVENT, "run_id": "r1", "step_id": "s1", "parent_event_id": str(uuid.uuid4()), "thread_id": "th",
        "source": "tool", "occurred_at": "2020-01-01T00:00:00Z", "causality": {"trace_id": "a" * 32, "span_id": "b" * 16},
    }  # fmt: skip
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
    assert problem(tenant["member"].post(log, {**EVENT, "source": source}), 400, "Invalid")["field"] == "source"


@pytest.mark.parametrize("event_type", RESERVED)
def test_the_servers_event_types_are_forbidden_to_clients(tenant: Tenant, event_type: str) -> None:
    for role in ("member", "owner"):
        body = {"event_type": event_type, "payload": {}}
        problem(tenant[role].post("/events", body), 403, "Forbidden")
        problem(tenant[role].post("/events", {"events": [EVENT, body]}), 403, "Forbidden")


@pytest.mark.parametrize("event_type", ["a", "analytics", "rl", "rlha", "tuning", "tool_call", "a" + "b" * 63, "a_9"])
def test_an_event_type_of_the_pattern_is_taken(tenant: Tenant, event_type: str) -> None:
    made(tenant["member"].post("/events", {"event_type": event_type, "payload": {}}))
    found = tenant["member"].get(f"/events?event_type={event_type}&order=desc&limit=1").body["items"]
    assert found[0]["event_type"] == event_type


@both_logs
@pytest.mark.parametrize("event_type", ["", "A", "9a", "_a", "a-b", "a.b", "a" * 65, "a\n", "é", "Audit", "audit "])
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
@pytest.mark.parametrize("occurred", ["yesterday", "", "2020-13-01T00:00:00Z", "2020-01-01", 0, "0000-01-01T00:00:00Z"])
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
@pytest.mark.parametrize("bad", ["x", "", "a" * 36, str(uuid.uuid4()) + "0", "{" + str(uuid.uuid4()) + "}", 7])
def test_an_event_id_that_is_no_uuid_is_400(tenant: Tenant, log: str, bad: Any) -> None:
    assert problem(tenant["member"].post(log, {**EVENT, "event_id": bad}), 400, "Invalid")["field"] == "event_id"


@both_logs
def test_a_clients_event_id_is_a_uuid_of_a_version_other_than_8(tenant: Tenant, log: str) -> None:
    problem(tenant["member"].post(log, {**EVENT, "event_id": "00000000-0001-8000-a2bd-4682fd7e06c4"}), 400, "Invalid")
    for own in (uuid.uuid4(), uuid.uuid5(uuid.NAMESPACE_URL, fresh("x")), uuid.uuid1()):
        answer = made(tenant["member"].post(log, {**EVENT, "event_id": str(own)})).body["events"][0]
        assert answer["event_id"] == str(own)


@both_logs
def test_a_known_event_id_returns_its_first_position_and_with_another_body_409(tenant: Tenant, log: str) -> None:
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
    assert tenant["member"].get(f"{log}?order=desc&limit=1").body["items"][0]["position"] == answers[-1]["position"] + 1


@both_logs
def test_98_client_ids_are_one_request_and_99_are_413(tenant: Tenant, log: str) -> None:
    def batch(count: int) -> dict[str, Any]:
        return {"events": [{**EVENT, "event_id": str(uuid.uuid4())} for _ in range(count)]}

    last = made(tenant["member"].post(log, batch(98), idempotency_key=fresh("key"))).body["events"][-1]["position"]
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
@pytest.mark.parametrize("body", [{"events": []}, {"events": [EVENT], **EVENT}, {"events": EVENT}, {"events": None}, [EVENT]])
def test_a_body_that_is_neither_one_event_nor_a_batch_is_400(tenant: Tenant, log: str, body: Any) -> None:
    problem(tenant["member"].post(log, body), 400, "Invalid")


# --- filters ---


@pytest.fixture(scope="module")
def filtered(cast: Cast) -> Tenant:
    house = cast.tenant("member", "admin")
    made(house["admin"].post("/projects", {"project_id": "p1", "name": "P"}))
    for number in range(6):
        role = ("member", "admin")[number % 2]
        headers = {"x_project_id": "p1"} if number >= 3 else {}
        body = {"event_type": ("rl", "tuning", "rlha")[number % 3], "payload": {"n": number}, "run_id": f"r{number // 2}"}
        made(house[role].post("/events", body, **headers))
        time.sleep(0.003)
    return house


def numbers(house: Tenant, query: str) -> list[int]:
    items = house["member"].items(f"/events?{query}")
    return [item["payload"]["n"] for item in items if "n" in item["payload"]]


def test_events_are_filtered_by_type_run_user_and_project(filtered: Tenant) -> None:
    assert numbers(filtered, "event_type=rl") == [0, 3]
    assert numbers(filtered, "run_id=r1") == [2, 3]
    assert numbers(filtered, f"user_id={filtered.users['member']}") == [0, 2, 4]
    assert numbers(filtered, "project_id=p1") == [3, 4, 5]
    assert numbers(filtered, "event_type=rl&project_id=p1") == [3]
    assert numbers(filtered, "event_type=rl&order=desc") == [3, 0]
    assert numbers(filtered, "event_type=rl&limit=1") == [0, 3]
    assert numbers(filtered, "run_id=none") == []


def test_since_and_until_are_times_of_the_server(filtered: Tenant) -> None:
    items = [item for item in filtered["member"].items("/events") if "n" in item["payload"]]
    third = items[3]["timestamp"]
    since = numbers(filtered, f"since={third}")
    until = numbers(filtered, f"until={third}")
    assert since == [3, 4, 5]
    assert set(until) | set(since) == {0, 1, 2, 3, 4, 5}
    assert until[:3] == [0, 1, 2]
    assert numbers(filtered, "since=2999-01-01T00:00:00Z") == []
    assert numbers(filtered, "until=2000-01-01T00:00:00Z") == []


def test_since_takes_an_offset(filtered: Tenant) -> None:
    assert numbers(filtered, "since=2000-01-01T02:00:00%2B02:00") == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("bad", ["x", "", "2020-01-01T00:00:00", "2020-02-30T00:00:00Z", "1e9"])
def test_a_since_or_until_that_is_no_time_is_400(filtered: Tenant, name: str, bad: str) -> None:
    assert problem(filtered["member"].get(f"/events?{name}={bad}"), 400, "Invalid")["field"] == name


@pytest.mark.parametrize("query", ["event_type=BAD", "run_id=a%20b", "user_id=%21", "project_id=a%2Fb"])
def test_a_filter_of_a_bad_pattern_is_400(filtered: Tenant, query: str) -> None:
    problem(filtered["member"].get(f"/events?{query}"), 400, "Invalid")


# --- positions ---


def test_positions_of_a_stream_start_at_1_and_have_no_gap(tenant: Tenant) -> None:
    stream = f"/streams/{fresh('s')}/events"
    for number in range(1, 6):
        assert made(tenant["member"].post(stream, EVENT)).body["events"][0]["position"] == number


def test_concurrent_appends_leave_no_gap(tenant: Tenant) -> None:
    stream = f"/streams/{fresh('s')}/events"
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _n: tenant["member"].post(stream, EVENT), range(40)))
    assert sorted(made(reply).body["events"][0]["position"] for reply in replies) == list(range(1, 41))


def test_expected_position_is_the_last_events_and_0_for_an_empty_stream(tenant: Tenant) -> None:
    stream = f"/streams/{fresh('s')}/events"
    post = tenant["member"].post
    problem(post(stream, {**EVENT, "expected_position": 1}), 409, "Conflict")
    made(post(stream, {**EVENT, "expected_position": 0}))
    problem(post(stream, {**EVENT, "expected_position": 0}), 409, "Conflict")
    made(post(stream, {"events": [EVENT, EVENT], "expected_position": 1}))
    made(post(stream, {**EVENT, "expected_position": 3}))
    problem(post(stream, {**EVENT, "expected_position": 5}), 409, "Conflict")
    assert len(tenant["member"].items(stream)) == 4


def test_one_of_several_with_one_expected_position_wins(tenant: Tenant) -> None:
    stream = f"/streams/{fresh('s')}/events"
    body = {**EVENT, "expected_position": 0}
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _n: tenant["member"].post(stream, body), range(8)))
    assert sorted(reply.status for reply in replies) == [201] + [409] * 7


@pytest.mark.parametrize("bad", [-1, "0", 1.5, True, 2**70])
def test_an_expected_position_that_is_none_is_400(tenant: Tenant, bad: Any) -> None:
    reply = tenant["member"].post("/streams/bad/events", {**EVENT, "expected_position": bad})
    assert problem(reply, 400, "Invalid")["field"] == "expected_position"


def test_the_spine_has_no_expected_position(tenant: Tenant) -> None:
    problem(tenant["member"].post("/events", {**EVENT, "expected_position": 0}), 400, "Invalid")


def test_an_event_of_a_stream_is_not_on_the_spine(tenant: Tenant) -> None:
    event = made(tenant["member"].post("/streams/own/events", EVENT)).body["events"][0]["event_id"]
    problem(tenant["member"].get(f"/events/{event}"), 404, "NotFound")


# --- verify ---


def test_verify_passes_and_returns_the_head_and_takes_an_expected_one(tenant: Tenant) -> None:
    made(tenant["member"].post("/events", EVENT))
    first = tenant["admin"].get("/events/verify").body
    assert first["ok"] is True
    assert set(first["head"]) == {"position", "digest"}
    head = first["head"]
    made(tenant["member"].post("/events", EVENT))
    kept = tenant["admin"].get(f"/events/verify?position={head['position']}&digest={head['digest']}").body
    assert kept["ok"] is True
    assert kept["head"]["position"] > head["position"]
    wrong = tenant["admin"].get(f"/events/verify?position={head['position']}&digest={'0' * 64}").body
    assert wrong["ok"] is False
    beyond = tenant["admin"].get(f"/events/verify?position=999999&digest={head['digest']}").body
    assert beyond["ok"] is False


@pytest.mark.parametrize("query", ["position=1", "digest=" + "0" * 64, "position=x&digest=y", "position=-1&digest=" + "0" * 64])
def test_half_an_expected_head_is_400(tenant: Tenant, query: str) -> None:
    problem(tenant["admin"].get(f"/events/verify?{query}"), 400, "Invalid")


# --- server-sent events ---


def streams(tenant: Tenant) -> list[tuple[str, str]]:
    name = fresh("sse")
    return [("/events", "/events/stream"), (f"/streams/{name}/events", f"/streams/{name}/stream")]


def test_a_stream_shows_what_is_there_and_then_what_comes(cast: Cast) -> None:
    member = cast.tenant("member")["member"]
    made(member.post("/streams/sse/events", EVENT))
    with member.stream("/streams/sse/stream") as frames:
        assert frames.status == 200
        assert frames.headers["Content-Type"].split(";")[0] == "text/event-stream"
        first = frames.next()
        assert json.loads(first["data"])["position"] == 1
        for number in (2, 3):
            began = time.monotonic()
            answer = made(member.post("/streams/sse/events", EVENT)).body["events"][0]
            event = frames.event()
            assert time.monotonic() - began < 2
            assert (event["position"], event["event_id"]) == (number, answer["event_id"])


def test_each_frame_has_the_cursor_as_id_and_the_event_as_the_list_shows_it(cast: Cast) -> None:
    house = cast.tenant("member")
    for log, stream in streams(house):
        made(house["member"].post(log, EVENT))
        listed = house["member"].items(log)
        with house["member"].stream(stream) as frames:
            for expected in listed:
                frame = frames.next()
                assert json.loads(frame["data"]) == expected
                assert frame["id"] in (expected["cursor"], expected["event_id"])


def test_last_event_id_is_a_cursor_or_an_event_id(cast: Cast) -> None:
    house = cast.tenant("member")
    for log, stream in streams(house):
        own = {**EVENT, "event_id": str(uuid.uuid4())}
        for body in (EVENT, own, EVENT):
            made(house["member"].post(log, body))
        items = house["member"].items(log)
        for place, item in enumerate(items[:-1]):
            for last in (item["cursor"], item["event_id"]):
                with house["member"].stream(stream, last_event_id=last) as frames:
                    assert frames.status == 200
                    assert frames.event()["event_id"] == items[place + 1]["event_id"]
        with house["member"].stream(f"{stream}?after={items[0]['cursor']}") as frames:
            assert frames.event()["event_id"] == items[1]["event_id"]


def test_a_last_event_id_of_another_log_or_of_nobody_is_400(cast: Cast, tenant: Tenant) -> None:
    other = cast.tenant("member")
    made(tenant["member"].post("/streams/lei/events", EVENT))
    foreign = other["member"]
    made(foreign.post("/events", EVENT))
    event = foreign.items("/events")[-1]
    for last in (event["cursor"], event["event_id"], "x", str(uuid.uuid4()), "a b"):
        for stream in ("/events/stream", "/streams/lei/stream"):
            problem(tenant["member"].get(stream, last_event_id=last), 400, "Invalid")


def test_a_stream_needs_a_credential_and_a_tenant(cast: Cast) -> None:
    for stream in ("/events/stream", "/streams/s/stream"):
        problem(cast.nobody.get(stream), 401, "Unauthenticated")
        problem(cast.outsider.get(stream), 403)


def test_a_stream_that_was_never_written_is_followed_from_its_first_event(tenant: Tenant) -> None:
    name = fresh("s")
    with tenant["member"].stream(f"/streams/{name}/stream") as frames:
        assert frames.status == 200
        made(tenant["member"].post(f"/streams/{name}/events", EVENT))
        assert frames.event()["position"] == 1


def test_a_follower_of_a_revoked_key_is_cut_off(cast: Cast) -> None:
    house = cast.tenant("member", "owner")
    reply = made(house["owner"].post("/keys", {"user_id": house.users["member"], "role": "member"}))
    key = Caller(cast.url, reply.body["key"], {})
    with key.stream("/streams/cut/stream") as frames:
        made(house["member"].post("/streams/cut/events", EVENT))
        assert frames.event()["position"] == 1
        assert house["owner"].delete(f"/keys/{reply.body['key_id']}").status == 204
        time.sleep(1.5)
        made(house["member"].post("/streams/cut/events", EVENT))
        end = frames.next()
        assert (end["event"], json.loads(end["data"])["code"]) == ("error", "Unauthenticated")
        with pytest.raises(EOFError):
            frames.next()


def test_a_follower_sees_no_other_tenants_events(cast: Cast, tenant: Tenant) -> None:
    other = cast.tenant("member")
    with tenant["member"].stream("/streams/same/stream") as frames:
        made(other["member"].post("/streams/same/events", {**EVENT, "payload": {"n": "theirs"}}))
        made(tenant["member"].post("/streams/same/events", {**EVENT, "payload": {"n": "ours"}}))
        assert frames.event()["payload"]["n"] == "ours"
