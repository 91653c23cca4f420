"""What a connection gets for bytes that are no request, too many, too slow, or in a pipeline."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engines.api import protocol as limits
from engines.api.protocol import ANSWER, ON_SHUTDOWN, BoundedProtocol
from tests.api.serving import serving, wire


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with what it was asked; `/slow` waits for the test, `/early` answers before it reads."""
    path = scope["path"]
    body = b"" if path == "/early" else await read(path, receive)
    if body is None:
        return
    if path == "/slow":
        await release.wait()
    if path == "/endless":
        await endless(scope, send)
        return
    shown = {"path": path, "size": len(body), "fields": len(scope["headers"])}
    await answer(scope, send, b"x" * 50_000_000 if path == "/large" else json.dumps(shown).encode())


async def read(path: str, receive: Any) -> bytes | None:
    """The whole body; None where the client went away."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            seen_disconnects.append(path)
            disconnected.set()
            return None
        body += bytes(message["body"])
        if not message["more_body"]:
            return body


async def answer(scope: dict[str, Any], send: Any, body: bytes) -> None:
    """In one piece or two, as the test says; `/head-first` waits for it between the two."""
    fields = [(b"content-length", b"%d" % len(body))]
    if scope["path"] == "/injected":
        fields.append((b"x", b"a\r\nset-cookie: b"))
    if in_one_piece and scope["path"] != "/head-first":
        await scope[ANSWER](200, fields, body)
        return
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    if scope["path"] == "/head-first":
        await release.wait()
    await send({"type": "http.response.body", "body": body})


async def endless(scope: dict[str, Any], send: Any) -> None:
    stopping = asyncio.Event()
    scope[ON_SHUTDOWN] = stopping.set
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello", "more_body": True})
    await stopping.wait()
    await send({"type": "http.response.body", "body": b"bye"})


in_one_piece = False
seen_disconnects: list[str] = []
disconnected = asyncio.Event()
release = asyncio.Event()


class Hasty(BoundedProtocol):
    """The same limits, sooner."""

    headers_timeout_s = 0.3
    write_stall_timeout_s = 0.3


@pytest.fixture(params=[False, True], ids=["by ASGI's two messages", "in one piece"])
async def port(request: pytest.FixtureRequest) -> AsyncIterator[int]:
    global disconnected, release, in_one_piece
    in_one_piece = request.param
    disconnected, release = asyncio.Event(), asyncio.Event()
    seen_disconnects.clear()
    async with serving(echo, protocol=Hasty, lifespan="off") as (_, number):
        yield number
        release.set()


def sent(path: str, body: bytes = b"", **fields: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
    length = f"content-length: {len(body)}\r\n" if body else ""
    method = "POST" if body else "GET"
    return f"{method} {path} HTTP/1.1\r\nhost: a\r\n{length}{''.join(lines)}\r\n".encode() + body


GARBAGE = {
    "binary": bytes(range(256)),
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "no request line": b"hello\r\n\r\n",
    "http/0.9": b"GET /\r\n\r\n",
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a control character in a field": b"GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nhost : a\r\n\r\n",
    "a path that is not ASCII": b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
    "a tunnel": b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "a negative length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
    "a length beyond 64 bits": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_gets_a_plain_400_and_the_end_of_the_connection(port: int, garbage: bytes) -> None:
    async with wire(port) as line:
        await line.send(garbage)
        status, fields, body = await line.answer()
        assert (status, body) == (400, b"Bad Request")
        assert fields["connection"] == "close"
        assert await line.rest() == b""


async def test_a_header_section_at_its_limit_is_read_and_one_byte_more_is_431(port: int) -> None:
    # "/" + ("host", "a") + ("x", value), with four bytes a field.
    value = "v" * (limits.HEADER_BYTES_MAX - 1 - 9 - 5)
    async with wire(port) as line:
        await line.send(sent("/", x=value))
        assert (await line.answer())[0] == 200
        await line.send(sent("/", x=value + "v"))
        assert (await line.answer())[0] == 431
        assert await line.rest() == b""


async def test_a_megabyte_of_header_in_one_field_or_in_many_is_431(port: int) -> None:
    for section in (b"x: " + b"v" * 1_000_000, b"x: vvvvvv\r\n" * 100_000, b"x" * 1_000_000):
        async with wire(port) as line:
            await line.send(b"GET / HTTP/1.1\r\n" + section + b"\r\n\r\n")
            assert (await line.answer())[0] == 431


async def test_a_megabyte_of_path_is_431(port: int) -> None:
    async with wire(port) as line:
        await line.send(b"GET /" + b"p" * 1_000_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await line.answer())[0] == 431


async def test_a_header_section_that_never_ends_is_cut_at_its_limit_not_kept(port: int) -> None:
    async with wire(port) as line:
        await line.send(b"GET / HTTP/1.1\r\nx: ")
        sent = 0
        while not line.reader.at_eof() and sent < 100_000_000:
            try:
                await line.send(b"v" * 4096)
            except ConnectionError:
                break
            sent += 4096
            await asyncio.sleep(0)
        assert sent <= limits.LINGER_BYTES_MAX * 2


async def test_line_ends_without_a_request_are_bounded_like_headers(port: int) -> None:
    async with wire(port) as line:
        await line.send(b"\r\n" * 40_000)
        assert (await line.answer())[0] == 431


async def test_headers_that_are_not_complete_in_time_are_408(port: int) -> None:
    async with wire(port) as line:
        await line.send(b"GET / HTTP/1.1\r\nx: ")

        async def trickle() -> None:
            with contextlib.suppress(ConnectionError):
                while True:  # If that started the clock again, there would never be an answer.
                    await line.send(b"v")
                    await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        status, fields, _ = await line.answer()
        trickling.cancel()
        assert (status, fields["connection"]) == (408, "close")


async def test_headers_of_a_later_request_have_the_same_time(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/"))
        assert (await line.answer())[0] == 200
        await line.send(b"GET / HT")
        assert (await line.answer())[0] == 408


async def test_a_connection_that_says_nothing_is_ended_without_a_word(port: int) -> None:
    async with wire(port) as line:
        assert await line.rest() == b""


async def test_an_idle_connection_between_requests_is_not_timed_as_headers(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/"))
        assert (await line.answer())[0] == 200
        await asyncio.sleep(0.5)
        await line.send(sent("/"))
        assert (await line.answer())[0] == 200


async def test_pipelined_requests_are_answered_in_their_order(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/a") + sent("/b", b"1234") + sent("/c"))
        answers = [json.loads((await line.answer())[2]) for _ in range(3)]
        assert [(answer["path"], answer["size"]) for answer in answers] == [("/a", 0), ("/b", 4), ("/c", 0)]


async def test_garbage_behind_a_pipeline_is_answered_after_it(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/slow") + sent("/b") + b"\x00garbage\r\n\r\n")
        release.set()
        assert [(await line.answer())[0] for _ in range(3)] == [200, 200, 400]
        assert await line.rest() == b""


async def test_headers_too_large_behind_a_request_under_way_wait_for_its_answer(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/slow"))
        await line.send(sent("/b", x="v" * 40_000))
        release.set()
        assert [(await line.answer())[0] for _ in range(2)] == [200, 431]


async def test_a_chunk_that_does_not_parse_is_400_and_the_handler_is_told(port: int) -> None:
    async with wire(port) as line:
        await line.send(b"POST /chunked HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n")
        await asyncio.sleep(0.05)
        await line.send(b"zz\r\n")
        assert (await line.answer())[0] == 400
        await line.rest()
    assert seen_disconnects == ["/chunked"]


async def test_a_broken_body_in_a_pipeline_is_never_handed_on(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/slow"))
        await line.send(b"POST /broken HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
        release.set()
        assert [(await line.answer())[0] for _ in range(2)] == [200, 400]
    assert seen_disconnects == []


async def test_a_half_sent_body_is_a_disconnect_to_the_handler(port: int) -> None:
    async with wire(port) as line:
        await line.send(b"POST /half HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc")
        await asyncio.sleep(0.05)
    await asyncio.wait_for(disconnected.wait(), 2)
    assert seen_disconnects == ["/half"]


async def test_an_answer_before_the_body_was_read_survives_the_rest_of_the_body(port: int) -> None:
    async with wire(port) as line:
        await line.send(
            b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 4000000\r\n\r\n" + b"b" * 2_000_000
        )
        assert (await line.answer())[0] == 200
        assert await line.rest() == b""


async def test_a_body_in_many_reads_is_not_counted_as_headers_of_the_next_request(port: int) -> None:
    async with wire(port) as line:
        for _ in range(3):
            await line.send(b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n")
            for _ in range(4):
                await asyncio.sleep(0.01)
                await line.send(b"b" * 50_000)
            assert (await line.answer())[0] == 200


async def test_a_request_to_change_protocol_is_answered_in_http_and_is_the_last(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/", connection="Upgrade", upgrade="websocket") + b"\x81\x00\x81\x00")
        status, fields, _ = await line.answer()
        assert (status, fields["connection"]) == (200, "close")
        assert await line.rest() == b""


async def test_a_reader_that_never_reads_is_cut_off(port: int) -> None:
    async with wire(port) as line:
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await line.send(sent("/large"))
        await asyncio.sleep(1.0)
        line.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await line.answer()


async def test_the_head_of_an_answer_does_not_wait_for_a_body_that_is_not_ready(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/head-first"))
        async with asyncio.timeout(2):
            head = await line.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        release.set()
        async with asyncio.timeout(2):
            assert json.loads(await line.reader.readuntil(b"}"))["path"] == "/head-first"


async def test_an_answer_that_is_all_head_is_sent_and_the_connection_goes_on(port: int) -> None:
    async with wire(port) as line:
        for _ in range(3):
            await line.send(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
            async with asyncio.timeout(2):
                head = await line.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_client_that_waits_to_be_told_to_continue_is_told(port: int) -> None:
    async with wire(port) as line:
        await line.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(2):
            assert await line.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await line.send(b"{}")
        status, _, body = await line.answer()
        assert (status, json.loads(body)["size"]) == (200, 2)


async def test_a_stop_ends_an_endless_answer_in_order() -> None:
    async with serving(echo, lifespan="off") as (server, number), wire(number) as line:
        await line.send(sent("/endless"))
        async with asyncio.timeout(2):
            await line.reader.readuntil(b"hello\r\n")
        server.should_exit = True
        assert await line.rest() == b"3\r\nbye\r\n0\r\n\r\n"


async def test_a_stop_closes_idle_connections_at_once() -> None:
    async with serving(echo, lifespan="off") as (server, number), wire(number) as line:
        await line.send(sent("/"))
        await line.answer()
        server.should_exit = True
        assert await line.rest() == b""


async def test_a_field_that_would_end_its_line_early_is_never_sent(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/injected"))
        assert b"set-cookie" not in await line.rest()


async def test_an_answer_says_close_where_the_client_wanted_that(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/", connection="close"))
        assert (await line.answer())[1]["connection"] == "close"
        assert await line.rest() == b""


async def test_an_answer_has_the_servers_own_fields(port: int) -> None:
    async with wire(port) as line:
        await line.send(sent("/"))
        assert "date" in (await line.answer())[1]


class TwoConnections(BoundedProtocol):
    connections_max = 2


async def test_a_connection_too_many_is_told_so_and_ended_and_the_others_go_on() -> None:
    async with serving(echo, protocol=TwoConnections) as (_, port), wire(port) as first:
        await first.send(b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await first.answer())[0] == 200
        async with wire(port) as second, wire(port) as third:
            await second.send(b"GET /b HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await second.answer())[0] == 200
            await third.send(b"POST /c HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody")
            status, fields, body = await third.answer()
            assert (status, fields["retry-after"], fields["connection"]) == (429, "1", "close")
            problem = json.loads(body)
            assert (problem["code"], problem["request_id"]) == ("Throttled", fields["x-request-id"])
            assert await third.rest() == b""
            await first.send(b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await first.answer())[0] == 200
        async with asyncio.timeout(5):
            while True:
                async with wire(port) as again:
                    await again.send(b"GET /d HTTP/1.1\r\nhost: a\r\n\r\n")
                    if (await again.answer())[0] == 200:
                        break
