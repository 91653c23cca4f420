"""What only a deployment in this process can show: corrupt data, bugs, trimmed logs, an orderly stop."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from engines import catalogue
from engines.api import stream as limits
from engines.api.app import ROUTERS
from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.core.keys import join
from engines.core.log import Log
from engines.ports.documents import ALWAYS, Put
from tests.api.client import until
from tests.api.inside import Inside, deployed
from tests.api.serving import Wire, wire


def follow(path: str, token: str, *fields: str) -> bytes:
    lines = (f"GET {path} HTTP/1.1", "host: a", f"authorization: Bearer {token}", *fields, "", "")
    return "\r\n".join(lines).encode()


async def read_until(line: Wire, wanted: bytes, timeout_s: float = 10.0) -> bytes:
    seen = b""
    async with asyncio.timeout(timeout_s):
        while wanted not in seen:
            piece = await line.reader.read(65536)
            assert piece, f"the connection ended before {wanted!r}"
            seen += piece
    return seen


# --- what is our fault ---


async def test_a_stored_record_that_does_not_decode_is_500_corrupt_and_says_nothing_of_it(
    tmp_path: Path,
) -> None:
    async with deployed(tmp_path) as inside:
        await inside.member("PUT", "/tables/t/p/s", {"value": 1})
        context = await inside.engines.contexts.context(inside.token)
        place = await inside.engines.router.place(catalogue.TABLES, context)
        partition = await place.partition(join("t", "p"))
        await place.documents.write(partition, [Put(join("t", "t", "p", "s"), '{"secret":"stored"}', ALWAYS)])
        with structlog.testing.capture_logs() as entries:
            answer = await inside.member("GET", "/tables/t/p/s")
        answer.problem(500, "Corrupt")
        assert b"stored" not in answer.body.replace(b"a stored record", b"")
        (entry,) = [entry for entry in entries if entry["event"] == "request failed"]
        assert (entry["code"], entry["request_id"]) == ("Corrupt", answer.headers["X-Request-Id"])


async def test_a_bug_of_ours_is_500_with_a_request_id_for_the_user_and_the_cause_in_the_log(
    tmp_path: Path,
) -> None:
    router = Router("broken")

    @router.get("/broken")
    async def divide(_: Call) -> Sendable:
        """Divide by nothing."""
        return 1 // 0  # type: ignore[return-value]

    async with deployed(tmp_path, routers=(*ROUTERS, router)) as inside:
        with structlog.testing.capture_logs() as entries:
            answer = await inside.member("GET", "/broken")
        answer.problem(500, "Internal")
        assert b"ivi" not in answer.body
        (entry,) = [entry for entry in entries if entry["event"] == "unexpected error"]
        assert entry["exc_info"]
        assert (entry["request_id"], entry["route"]) == (answer.headers["X-Request-Id"], "/broken")
        assert (await inside.member("GET", "/me")).status == 200


async def test_work_that_was_ended_under_a_request_is_503_and_not_our_bug(tmp_path: Path) -> None:
    router = Router("ended")

    @router.get("/ended")
    async def wait_for_what_is_ended(_: Call) -> Sendable:
        """Wait for work that somebody else ends."""
        work = asyncio.create_task(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(work.cancel)
        await work
        raise AssertionError

    async with deployed(tmp_path, routers=(*ROUTERS, router)) as inside:
        (await inside.member("GET", "/ended")).problem(503, "Unavailable")


# --- followers ---


async def trimmed(inside: Inside, stream: str, before_position: int) -> None:
    """Everything before the position is a day old, and taken away."""
    inside.clock.ahead_s += 25 * 3600
    await inside.engines.directory.refresh()  # What was heard a day ago counts no more.
    context = await inside.engines.contexts.context(inside.token)
    place = await inside.engines.router.place(catalogue.EVENT_STREAM, context)
    log = Log(
        place.documents,
        kind=place.kind,
        tenant_id=place.tenant_id,
        env=place.env,
        stream=stream,
        ids=inside.engines.ids,
        clock=inside.clock,
        shard_partition=await place.partition(stream),
    )
    assert await log.trim(before_position) == before_position - 1
    await log.close()


def event(**payload: Any) -> dict[str, Any]:
    return {"event_type": "analytics", "payload": payload}


async def test_a_cursor_below_what_is_kept_is_410_for_a_list_and_a_follower(tmp_path: Path) -> None:
    async with deployed(tmp_path) as inside:
        cursors = [
            (await inside.member("POST", "/streams/s/events", event(number=number))).json["events"][0][
                "cursor"
            ]
            for number in range(5)
        ]
        await trimmed(inside, "s", 4)
        for path in (f"/streams/s/events?after={cursors[0]}", f"/streams/s/stream?after={cursors[0]}"):
            (await inside.member("GET", path)).problem(410, "Gone")
        kept = await inside.member("GET", f"/streams/s/events?after={cursors[2]}")
        assert [item["payload"]["number"] for item in kept.json["items"]] == [3, 4]


async def test_a_slow_follower_whose_place_is_taken_away_is_told_gone_and_ended(tmp_path: Path) -> None:
    async with deployed(tmp_path) as inside, wire(inside.port) as line:
        for _ in range(80):
            await inside.member("POST", "/streams/s/events", event(text="x" * 200_000))
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await line.send(follow("/streams/s/stream", inside.token))
        await asyncio.sleep(1.0)  # long enough to fill what lies between the server and a client that sleeps
        await trimmed(inside, "s", 79)
        line.writer.transport.resume_reading()  # type: ignore[attr-defined]
        seen = await line.rest(20)
        assert seen.count(b"\nid: ") < 80, "the server read on while nobody took what it had read"
        gone = seen[seen.index(b"event: gone") :]
        assert json.loads(gone.split(b"data: ")[1].split(b"\n")[0])["code"] == "Gone"
        assert gone.endswith(b"\r\n0\r\n\r\n")


async def test_a_stop_of_the_server_ends_followers_in_order_and_at_once(tmp_path: Path) -> None:
    async with deployed(tmp_path) as inside, wire(inside.port) as line:
        await line.send(follow("/events/stream", inside.token))
        await read_until(line, b"retry:")
        inside.server.should_exit = True
        assert (await line.rest()).endswith(b"0\r\n\r\n")


async def test_a_follower_that_leaves_is_let_go(tmp_path: Path) -> None:
    async with deployed(tmp_path) as inside:
        async with wire(inside.port) as line:
            await line.send(follow("/events/stream", inside.token))
            await read_until(line, b"retry:")

        async def is_let_go() -> bool:
            return not [task for task in asyncio.all_tasks() if task.get_name().startswith("stream-")]

        await until(is_let_go, timeout_s=10)


async def test_a_follower_too_many_is_429_until_another_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FOLLOWERS_TENANT_MAX", 2)
    async with deployed(tmp_path) as inside, wire(inside.port) as first:
        await first.send(follow("/events/stream", inside.token))
        await read_until(first, b"retry:")
        async with wire(inside.port) as second:
            await second.send(follow("/streams/s/stream", inside.token))
            await read_until(second, b"retry:")
            refused = await inside.member("GET", "/events/stream")
            refused.problem(429, "Throttled")
            assert refused.headers["Retry-After"] == "5"
            assert (await inside.member("GET", "/events")).status == 200

        async def is_admitted() -> bool:
            async with wire(inside.port) as third:
                await third.send(follow("/events/stream", inside.token))
                return b" 200 " in await read_until(third, b"\r\n")

        await until(is_admitted, timeout_s=5)


@pytest.mark.slow
async def test_a_follower_hears_that_the_server_is_still_there(tmp_path: Path) -> None:
    async with deployed(tmp_path) as inside, wire(inside.port) as line:
        await line.send(follow("/streams/s/stream", inside.token))
        await read_until(line, b": still here\n\n", limits.HEARTBEAT_S + 20)
