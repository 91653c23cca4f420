"""The spine and the streams read: filters, positions, verification, and followers."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.cast import ADOPTION_S, Cast, Tenant, fresh, made
from tests.contract.wire import Caller, problem

EVENT: dict[str, Any] = {"event_type": "analytics", "payload": {"n": 1}}


@pytest.fixture(scope="module")
def filtered(cast: Cast) -> Tenant:
    house = cast.tenant("member", "admin")
    made(house["admin"].post("/projects", {"project_id": "p1", "name": "P"}))
    for number in range(6):
        role = ("member", "admin")[number % 2]
        headers = {"x_project_id": "p1"} if number >= 3 else {}
        body = {
            "event_type": ("message", "tool_call", "handoff")[number % 3],
            "payload": {"n": number},
            "run_id": f"r{number // 2}",
        }
        made(house[role].post("/events", body, **headers))
        time.sleep(0.003)
    return house


def numbers(house: Tenant, query: str) -> list[int]:
    items = house["member"].items(f"/events?{query}")
    return [item["payload"]["n"] for item in items if "n" in item["payload"]]


def test_events_are_filtered_by_type_run_user_and_project(filtered: Tenant) -> None:
    assert numbers(filtered, "event_type=message") == [0, 3]
    assert numbers(filtered, "run_id=r1") == [2, 3]
    assert numbers(filtered, f"user_id={filtered.users['member']}") == [0, 2, 4]
    assert numbers(filtered, "project_id=p1") == [3, 4, 5]
    assert numbers(filtered, "event_type=message&project_id=p1") == [3]
    assert numbers(filtered, "event_type=message&order=desc") == [3, 0]
    assert numbers(filtered, "event_type=message&limit=1") == [0, 3]
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


@pytest.mark.parametrize(
    "query", ["position=1", "digest=" + "0" * 64, "position=x&digest=y", "position=-1&digest=" + "0" * 64]
)
def test_half_an_expected_head_is_400(tenant: Tenant, query: str) -> None:
    problem(tenant["admin"].get(f"/events/verify?{query}"), 400, "Invalid")


# --- server-sent events ---


def streams() -> list[tuple[str, str]]:
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
            assert time.monotonic() - began < ADOPTION_S
            assert (event["position"], event["event_id"]) == (number, answer["event_id"])


def test_each_frame_has_the_cursor_as_id_and_the_event_as_the_list_shows_it(cast: Cast) -> None:
    house = cast.tenant("member")
    for log, stream in streams():
        made(house["member"].post(log, EVENT))
        listed = house["member"].items(log)
        with house["member"].stream(stream) as frames:
            for expected in listed:
                frame = frames.next()
                assert json.loads(frame["data"]) == expected
                assert frame["id"] in (expected["cursor"], expected["event_id"])


def test_last_event_id_is_a_cursor_or_an_event_id(cast: Cast) -> None:
    house = cast.tenant("member")
    for log, stream in streams():
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
        assert (end["event"], json.loads(end["data"])["code"]) == ("problem", "Unauthenticated")
        with pytest.raises(EOFError):
            frames.next()


def test_a_follower_sees_no_other_tenants_events(cast: Cast, tenant: Tenant) -> None:
    other = cast.tenant("member")
    with tenant["member"].stream("/streams/same/stream") as frames:
        made(other["member"].post("/streams/same/events", {**EVENT, "payload": {"n": "theirs"}}))
        made(tenant["member"].post("/streams/same/events", {**EVENT, "payload": {"n": "ours"}}))
        assert frames.event()["payload"]["n"] == "ours"
