"""Following a log: every event once and in order, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from random import Random

import pytest

from engines.client import AsyncEngines, Event, RetryPolicy
from engines.client.sse import MESSAGE_BYTES_MAX, Message, Parser
from engines.errors import EnginesError, Gone, MissingRoute, Unavailable
from tests.client.loopback import Loopback, Received, Script, Stream, problem

QUICK = RetryPolicy(attempts_max=3, deadline_s=20.0, pause_first_s=0.001, pause_max_s=0.002)


def frame(position: int, text: str = "") -> bytes:
    """One event as the server writes it."""
    event = {
        "event_id": f"e{position}",
        "position": position,
        "cursor": f"c{position}",
        "event_type": "x",
        "payload": {"n": position, "text": text},
    }
    return b"id: c%d\ndata: %s\n\n" % (position, json.dumps(event, ensure_ascii=False).encode())


def frames(positions: Sequence[int]) -> bytes:
    return b"".join(frame(position) for position in positions)


def parsed(pieces: Sequence[bytes]) -> list[Message]:
    parser = Parser()
    return [message for piece in pieces for message in parser.feed(piece)]


# --- the parser ---


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("seed", range(20))
def test_messages_are_the_same_however_the_bytes_are_cut(line_end: bytes, seed: int) -> None:
    text = "\ufeff: hello\n\nretry: 5\n\nid: 1\ndata: a\ndata: ☃\n\nevent: gone\ndata:\n\n"
    text += "id: 2\ndata:x:y\n\n: bye\n\n"
    raw = text.encode().replace(b"\n", line_end)
    whole = [
        Message("message", "a\n☃", "1"),
        Message("gone", "", "1"),
        Message("message", "x:y", "2"),
    ]
    random = Random(seed)
    cuts = sorted(random.sample(range(1, len(raw)), k=random.randint(1, len(raw) - 1)))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    # A carriage return at the very end waits for what might follow it.
    assert parsed([*pieces, b": end\n"]) == whole, f"seed {seed}"


def test_a_message_that_is_not_complete_is_not_delivered() -> None:
    assert parsed([b"id: 1\ndata: half\n"]) == []


def test_an_id_with_a_null_is_passed_over() -> None:
    assert parsed([b"id: a\ndata: 1\n\nid: b\0\ndata: 2\n\n"])[1].id == "a"


def test_a_message_without_end_is_refused() -> None:
    with pytest.raises(EnginesError, match="longer than"):
        parsed([b"data: " + b"x" * 65_530] * (MESSAGE_BYTES_MAX // 65_536 + 2))


def test_many_lines_of_one_message_are_bounded_too() -> None:
    with pytest.raises(EnginesError, match="longer than"):
        parsed([b"data: " + b"x" * 1_000 + b"\n"] * (MESSAGE_BYTES_MAX // 1_000 + 2))


# --- following ---


@contextlib.asynccontextmanager
async def following(server: Loopback, after: str | None = None) -> AsyncIterator[AsyncGenerator[Event, None]]:
    async with AsyncEngines(server.url, "token", retry=QUICK, run_id="run-1") as client:
        events = client.events.follow(after=after)
        try:
            yield events
        finally:
            await events.aclose()


async def taken(events: AsyncIterator[Event], count: int) -> list[int]:
    async with asyncio.timeout(10):
        return [(await anext(events)).position for _ in range(count)]


async def test_it_goes_on_behind_the_last_event_after_every_kind_of_end(server: Loopback) -> None:
    server.script.extend(
        [
            Stream((frames([1, 2]),), end="close"),
            Stream((frames([3]), frame(4)[:20]), end="break"),
            problem(503, "Unavailable"),
            Stream((b": still here\n\n",), end="close"),
            Stream((frames([4, 5]),), end="open"),
        ]
    )
    async with following(server, after="c0") as events:
        assert await taken(events, 5) == [1, 2, 3, 4, 5]
    asked = [request.headers.get("Last-Event-ID") for request in server.received]
    assert asked == ["c0", "c2", "c3", "c3", "c3"]
    assert all(request.headers["X-Run-Id"] == "run-1" for request in server.received)


async def test_an_event_that_is_sent_again_is_delivered_once(server: Loopback) -> None:
    server.script.extend(
        [Stream((frames([1, 2, 3]),), end="break"), Stream((frames([2, 3, 4]), frames([4, 5])), end="open")]
    )
    async with following(server) as events:
        assert await taken(events, 5) == [1, 2, 3, 4, 5]


async def test_without_a_place_it_asks_for_none(server: Loopback) -> None:
    server.script.append(Stream((frames([1]),), end="open"))
    async with following(server) as events:
        assert await taken(events, 1) == [1]
    assert "Last-Event-ID" not in server.received[0].headers


@pytest.mark.parametrize("seed", range(10))
async def test_no_event_is_lost_or_doubled_whatever_breaks(server: Loopback, seed: int) -> None:
    random, last = Random(seed), 60

    def log(request: Received) -> Script:
        """Behind the place that was asked for, and now and then a little before it; cut off anywhere."""
        if random.random() < 0.2:
            return problem(503, "Unavailable")
        place = int(request.headers.get("Last-Event-ID", "c0")[1:])
        first = max(1, place + 1 - random.choice([0, 0, 2]))
        raw = frames(range(first, min(last, place + random.randint(0, 9)) + 1))
        sent = raw[: random.randint(0, len(raw))] if random.random() < 0.5 else raw
        cut = random.randint(0, len(sent))
        return Stream((sent[:cut], sent[cut:]), end=random.choice(["close", "break"]))

    server.otherwise = log
    async with following(server) as events:
        assert await taken(events, last) == list(range(1, last + 1)), f"seed {seed}"


async def test_a_place_that_is_gone_ends_it(server: Loopback) -> None:
    server.script.append(Stream((frames([1]), b"event: gone\ndata: {}\n\n"), end="close"))
    async with following(server) as events:
        assert await taken(events, 1) == [1]
        with pytest.raises(Gone):
            await anext(events)


async def test_a_problem_in_the_stream_is_raised_as_the_error_it_is(server: Loopback) -> None:
    told = json.dumps({"code": "MissingRoute", "detail": "none", "request_id": "r5"}).encode()
    server.script.append(Stream((b"event: problem\ndata: " + told + b"\n\n",), end="close"))
    async with following(server) as events:
        with pytest.raises(MissingRoute) as raised:
            await anext(events)
    assert raised.value.request_id == "r5"


async def test_a_problem_that_will_pass_is_waited_for(server: Loopback) -> None:
    told = json.dumps({"code": "Unavailable", "detail": "not now"}).encode()
    server.script.append(Stream((b"event: problem\ndata: " + told + b"\n\n",), end="close"))
    server.script.append(Stream((frames([1]),), end="open"))
    async with following(server) as events:
        assert await taken(events, 1) == [1]


async def test_a_refusal_is_raised_at_once(server: Loopback) -> None:
    server.script.append(problem(410, "Gone"))
    async with following(server) as events:
        with pytest.raises(Gone):
            await anext(events)
    assert len(server.received) == 1


async def test_a_server_that_stays_away_is_waited_for_no_longer_than_the_deadline(server: Loopback) -> None:
    server.script.extend([problem(503, "Unavailable")] * 10_000)
    policy = RetryPolicy(attempts_max=3, deadline_s=0.2, pause_first_s=0.02, pause_max_s=0.02)
    async with AsyncEngines(server.url, retry=policy) as client, asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await anext(client.events.follow())
    assert 2 <= len(server.received) <= 40


async def test_heartbeats_show_that_the_server_is_there(server: Loopback) -> None:
    server.script.extend([Stream((b": still here\n\n",), end="close")] * 60)
    server.script.append(Stream((frames([1]),), end="open"))
    policy = RetryPolicy(attempts_max=3, deadline_s=0.2, pause_first_s=0.01, pause_max_s=0.01)
    async with AsyncEngines(server.url, retry=policy) as client:
        events = client.events.follow()
        assert await taken(events, 1) == [1]
        await events.aclose()


async def test_leaving_the_loop_closes_the_connection(server: Loopback) -> None:
    server.script.append(Stream((frames([1]),), end="open"))
    async with AsyncEngines(server.url, retry=QUICK) as client:
        async with contextlib.aclosing(client.streams.follow("s")) as events:
            assert (await anext(events)).position == 1
        assert server.received[0].path == "/streams/s/stream"
