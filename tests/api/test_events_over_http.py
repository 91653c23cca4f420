"""Events over HTTP: appended, listed, verified and followed."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from engines.api import stream as limits
from tests.api.client import Client
from tests.api.test_records import paged
from tests.servers.lab import LabServer


def event(number: int = 0, **members: Any) -> dict[str, Any]:
    return {"event_type": "analytics", "payload": {"number": number}, **members}


# --- appending and reading ---


async def test_one_event_or_several_are_one_call(member: Client, fresh: Iterator[str]) -> None:
    run = next(fresh)
    one = await member("POST", "/events", event(1, run_id=run))
    assert one.status == 201
    assert set(one.json) == {"events"}
    assert set(one.json["events"][0]) == {"event_id", "position", "cursor"}
    many = await member("POST", "/events", {"events": [event(2, run_id=run), event(3, run_id=run)]})
    placed = [*one.json["events"], *many.json["events"]]
    listed = [item async for page in paged(member, "/events", run_id=run) for item in page]
    assert [(item["event_id"], item["cursor"]) for item in listed] == [
        (item["event_id"], item["cursor"]) for item in placed
    ]
    assert [item["payload"]["number"] for item in listed] == [1, 2, 3]
    read = await member("GET", f"/events/{placed[1]['event_id']}")
    assert read.json == listed[1]
    assert (read.json["user_id"], read.json["source"], read.json["step_id"]) == ("u_member", "ui", "0")
    behind = await member("GET", f"/events?run_id={run}&after={placed[0]['cursor']}")
    assert [item["payload"]["number"] for item in behind.json["items"]] == [2, 3]


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"events": []}, 400, "Invalid", "events"),
        ({"events": {}}, 400, "Invalid", "events"),
        ({"events": [event()], "event_type": "a"}, 400, "Invalid", "event_type"),
        ({"payload": {}}, 400, "Invalid", "event_type"),
        (event(event_type="Analytics"), 400, "Invalid", "event_type"),
        (event(payload=[]), 400, "Invalid", "payload"),
        (event(source="system"), 400, "Invalid", "source"),
        (event(timestamp="2026-11-21T14:00:00Z"), 400, "Invalid", "timestamp"),
        (event(occurred_at="yesterday"), 400, "Invalid", "occurred_at"),
        (event(event_id="x"), 400, "Invalid", "event_id"),
        (event(parent_event_id="x"), 400, "Invalid", "parent_event_id"),
        (event(run_id="a/b"), 400, "Invalid", "run_id"),
        (event(event_type="audit"), 403, "Forbidden", "event_type"),
        (event(user_id="u_owner"), 403, "ContextMismatch", "user_id"),
        ({"events": [event(), event(run_id="..")]}, 400, "Invalid", "events[1].run_id"),
        ({"events": [event(), {"event_type": "a"}]}, 400, "Invalid", "events[1].payload"),
        ({"events": [event()] * 501}, 413, "TooLarge", "events"),
        (event(payload={"text": "x" * 300_000}), 413, "TooLarge", None),
    ],
)
async def test_an_event_that_breaks_a_rule_is_refused_and_nothing_is_written(
    member: Client, fresh: Iterator[str], body: Any, status: int, code: str, field: str | None
) -> None:
    stream = f"/streams/{next(fresh)}/events"
    for path in ("/events", stream):
        (await member("POST", path, body)).problem(status, code, field)
    assert (await member("GET", stream)).json == {"items": [], "after": None}


async def test_a_stream_is_appended_where_it_is_expected_to_end(member: Client, fresh: Iterator[str]) -> None:
    path = f"/streams/{next(fresh)}/events"
    first = await member("POST", path, event(1, expected_position=0))
    assert (first.status, first.json["events"][0]["position"]) == (201, 1)
    (await member("POST", path, event(2, expected_position=0))).problem(409, "Conflict", "expected_position")
    second = await member("POST", path, {"events": [event(2), event(3)], "expected_position": 1})
    assert [item["position"] for item in second.json["events"]] == [2, 3]
    (await member("POST", path, event(4, expected_position=-1))).problem(400, "Invalid", "expected_position")
    items = (await member("GET", path)).json["items"]
    assert [item["payload"]["number"] for item in items] == [1, 2, 3]


async def test_a_repeat_under_the_same_key_or_id_is_the_same_event(
    member: Client, fresh: Iterator[str]
) -> None:
    key, own = next(fresh), str(uuid.uuid4())
    path = f"/streams/{next(fresh)}/events"
    first = await member("POST", path, event(1), Idempotency_Key=key)
    again = await member("POST", path, event(1), Idempotency_Key=key)
    assert (again.status, again.json) == (201, first.json)
    assert again.headers["Idempotency-Replayed"] == "true"
    (await member("POST", path, event(2), Idempotency_Key=key)).problem(
        409, "IdempotencyKeyReused", "Idempotency-Key"
    )
    named = await member("POST", path, event(5, event_id=own))
    assert (await member("POST", path, event(5, event_id=own))).json == named.json
    (await member("POST", path, event(6, event_id=own))).problem(409, "Conflict", "event_id")
    assert len((await member("GET", path)).json["items"]) == 2


async def test_the_spine_verifies_against_a_head_seen_before(owner: Client) -> None:
    await owner("POST", "/events", event())
    found = (await owner("GET", "/events/verify")).json
    assert found["ok"]
    head = found["head"]
    await owner("POST", "/events", event())
    held = await owner("GET", f"/events/verify?position={head['position']}&digest={head['digest']}")
    assert held.json["ok"]
    other = "0" * 64
    broken = await owner("GET", f"/events/verify?position={head['position']}&digest={other}")
    assert (broken.status, broken.json["ok"]) == (200, False)
    (await owner("GET", f"/events/verify?position={head['position']}")).problem(400, "Invalid", "digest")
    (await owner("GET", "/events/verify?digest=abc&position=1")).problem(400, "Invalid", "digest")


async def test_verifying_is_for_admins(member: Client) -> None:
    (await member("GET", "/events/verify")).problem(403, "Forbidden")


async def test_admins_see_how_far_the_index_is_and_have_it_made_anew(
    owner: Client, member: Client, fresh: Iterator[str]
) -> None:
    run = next(fresh)
    await member("POST", "/events", event(1, run_id=run))
    before = (await owner("GET", "/events/index")).json
    assert set(before) == {"position", "head", "lag", "block"}
    assert before["lag"] == before["head"] - before["position"]
    rebuilt = await owner("POST", "/events/index/rebuild")
    assert (rebuilt.status, set(rebuilt.json)) == (200, set(before))
    listed = await member("GET", f"/events?run_id={run}")
    assert [item["payload"]["number"] for item in listed.json["items"]] == [1]
    (await member("GET", "/events/index")).problem(403, "Forbidden")
    (await member("POST", "/events/index/rebuild")).problem(403, "Forbidden")


# --- following ---


class Followed:
    """A stream of server-sent events as it comes: whole messages, each a dictionary of its fields."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self._rest = b""

    async def messages(self) -> AsyncIterator[dict[str, str]]:
        async for chunk in self.response.content.iter_any():
            *whole, self._rest = (self._rest + chunk).split(b"\n\n")
            for message in whole:
                lines = [line.split(": ", 1) for line in message.decode().split("\n")]
                yield {line[0]: line[1] for line in lines if len(line) == 2 and line[0]}

    async def events(self, count: int, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(timeout_s):
            async for message in self.messages():
                if "data" in message:
                    document = json.loads(message["data"])
                    assert message["id"] == document["cursor"]
                    found.append(document)
                if len(found) == count:
                    return found
        raise AssertionError(f"the stream ended after {len(found)} events")

    async def end(self, timeout_s: float = 5.0) -> list[dict[str, str]]:
        """The messages until the server ends the stream."""
        async with asyncio.timeout(timeout_s):
            return [message async for message in self.messages()]


@contextlib.asynccontextmanager
async def following(lab: LabServer, path: str, token: str, **headers: str) -> AsyncIterator[Followed]:
    given = {"Authorization": f"Bearer {token}"} | {n.replace("_", "-"): v for n, v in headers.items()}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
        session.get(lab.url + path, headers=given) as response,
    ):
        assert response.status == 200, await response.read()
        assert response.headers["Content-Type"] == "text/event-stream"
        yield Followed(response)


async def test_a_follower_gets_what_was_and_what_comes(
    lab: LabServer, member: Client, fresh: Iterator[str]
) -> None:
    stream = next(fresh)
    await member("POST", f"/streams/{stream}/events", {"events": [event(1), event(2)]})
    async with following(lab, f"/streams/{stream}/stream", lab.token("member")) as follower:
        assert [found["payload"]["number"] for found in await follower.events(2)] == [1, 2]
        await member("POST", f"/streams/{stream}/events", event(3))
        (third,) = await follower.events(1)
        assert third["payload"] == {"number": 3}
        assert third == (await member("GET", f"/streams/{stream}/events?limit=1&order=desc")).json["items"][0]


async def test_a_follower_goes_on_behind_a_cursor_or_an_event_id(
    lab: LabServer, member: Client, fresh: Iterator[str]
) -> None:
    path = f"/streams/{next(fresh)}"
    placed = (
        await member("POST", f"{path}/events", {"events": [event(number) for number in range(1, 5)]})
    ).json["events"]
    token = lab.token("member")
    for after in (placed[1]["cursor"], placed[1]["event_id"]):
        async with following(lab, f"{path}/stream", token, Last_Event_ID=after) as follower:
            assert [found["payload"]["number"] for found in await follower.events(2)] == [3, 4]
        async with following(lab, f"{path}/stream?after={after}", token) as follower:
            assert [found["payload"]["number"] for found in await follower.events(2)] == [3, 4]


async def test_events_that_came_together_leave_as_one_piece(
    lab: LabServer, member: Client, fresh: Iterator[str]
) -> None:
    stream = next(fresh)
    await member("POST", f"/streams/{stream}/events", {"events": [event(number) for number in range(200)]})
    async with following(lab, f"/streams/{stream}/stream", lab.token("member")) as follower:
        pieces = 0
        seen = b""
        async for data, ends_chunk in follower.response.content.iter_chunks():
            seen += data
            pieces += ends_chunk
            if seen.count(b"\n\nid: ") + 1 >= 200 and seen.endswith(b"\n\n"):
                break
        assert pieces <= 5


@pytest.mark.parametrize("after", ["invented", "a" * 2000, str(uuid.uuid4())])
async def test_a_place_that_is_none_is_400(member: Client, fresh: Iterator[str], after: str) -> None:
    for path in ("/events/stream", f"/streams/{next(fresh)}/stream"):
        answer = await member("GET", path, Last_Event_ID=after)
        answer.problem(400, "Invalid", answer.json["field"])


async def test_a_follower_whose_key_is_revoked_is_ended_within_a_second(
    lab: LabServer, owner: Client, fresh: Iterator[str]
) -> None:
    made = (await owner("POST", "/keys", {"user_id": "u_member", "role": "member"})).json
    async with following(lab, f"/streams/{next(fresh)}/stream", made["key"]) as follower:
        async with asyncio.timeout(5):
            await anext(follower.messages())  # the stream has begun
        assert (await owner("DELETE", f"/keys/{made['key_id']}")).status == 204
        # Of that second: RECHECK_S below, and POLL_S of the directory.
        last = (await follower.end(10.0))[-1]
        assert last["event"] == "problem"
        assert json.loads(last["data"])["code"] == "Unauthenticated"


async def test_a_follower_of_a_route_that_is_gone_is_told(
    lab: LabServer, owner: Client, fresh: Iterator[str], admin: Client, tmp_path: Any
) -> None:
    project, backend_id = next(fresh), next(fresh)
    await owner("POST", "/projects", {"project_id": project, "name": "P"})
    backend = {"driver": "sqlite", "class": "host_local", "config": {"path": str(tmp_path / "b.db")}}
    await admin("PUT", f"/backends/{backend_id}", {**backend, "offered_to": "*"}, If_None_Match="*")
    route = {"backend_id": backend_id, "scope": {"project_id": project}}
    routed = await owner("PUT", "/routes/event_stream", route, If_None_Match="*")
    path = f"/streams/{next(fresh)}/stream"
    async with following(lab, path, lab.token("owner"), X_Project_Id=project) as follower:
        deleted = await owner("DELETE", f"/routes/event_stream?project_id={project}", If_Match=routed.etag)
        assert deleted.status == 204
        last = (await follower.end(5.0))[-1]
        assert (last["event"], json.loads(last["data"])["code"]) == ("problem", "Unavailable")


def test_a_revoked_key_has_half_its_second_left_when_it_is_looked_at() -> None:
    assert limits.RECHECK_S <= 0.5
    assert limits.HEARTBEAT_S <= 15
