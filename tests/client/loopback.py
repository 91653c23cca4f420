"""A server on loopback that answers as a test tells it: the contract's shapes, and connections that break.

Owns real sockets and real HTTP (aiohttp's server). What it answers is scripted; how it fails is not
simulated: a dropped connection is a closed socket, a silent one is left open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from aiohttp import web


class Received(NamedTuple):
    """A request as it arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Answer(NamedTuple):
    """A whole reply."""

    status: int = 200
    json: Any = None
    headers: Mapping[str, str] = {}
    raw: bytes | None = None


class Drop(NamedTuple):
    """Read the request, then close the connection without a word."""


class HalfAnswer(NamedTuple):
    """Promise more bytes than are sent, then close."""


class Silence(NamedTuple):
    """Read the request, and never answer."""


class Stream(NamedTuple):
    """Server-sent events in these pieces; then the connection ends in order, breaks, or stays open."""

    pieces: tuple[bytes, ...]
    end: str = "close"


Script = Answer | Drop | HalfAnswer | Silence | Stream


def problem(status: int, code: str, **members: Any) -> Answer:
    """A problem document as the server writes it."""
    body = {
        "type": f"urn:engines:problem:{code}",
        "title": code,
        "status": status,
        "detail": f"{code} on purpose",
        "code": code,
        "request_id": "req-1",
        **{name: value for name, value in members.items() if name != "headers"},
    }
    headers = {"Content-Type": "application/problem+json", **members.get("headers", {})}
    return Answer(status, raw=json.dumps(body).encode(), headers=headers)


class Loopback:
    """The server. Answers come from the script, in order; then from `otherwise`, which says 404."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.script: deque[Script] = deque()
        self.url = ""
        self.otherwise: Callable[[Received], Script] = lambda _: problem(404, "NotFound")
        self.stopping = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.received.append(Received(request.method, request.raw_path, request.query, request.headers, body))
        step = self.script.popleft() if self.script else self.otherwise(self.received[-1])
        if isinstance(step, Answer):
            raw = (
                step.raw
                if step.raw is not None
                else b""
                if step.json is None
                else json.dumps(step.json).encode()
            )
            return web.Response(status=step.status, body=raw, headers=dict(step.headers))
        if isinstance(step, Stream):
            return await self._stream(request, step)
        assert request.transport is not None
        if isinstance(step, Silence):
            await self.stopping.wait()
        if isinstance(step, HalfAnswer):
            request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        request.transport.close()
        return web.Response()

    async def _stream(self, request: web.Request, step: Stream) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in step.pieces:
            await response.write(piece)
        if step.end == "break":
            assert request.transport is not None
            request.transport.abort()
        elif step.end == "open":
            await self.stopping.wait()
        return response


@contextlib.asynccontextmanager
async def loopback() -> AsyncIterator[Loopback]:
    """A server that listens until the block ends."""
    server = Loopback()
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        server.stopping.set()
        await runner.cleanup()
