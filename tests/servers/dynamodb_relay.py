"""An HTTP relay before a DynamoDB server: it keeps what passes, and answers in the server's place if told.

Owns telling operations apart and answers that the real server cannot be brought to give: throttling, internal
errors, partial batches, damaged replies. What is not scripted goes to the real server and back unchanged.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from aiohttp import web

# A transaction of 4 MB, whose text the SDK escapes to ASCII: three times the size at most.
REQUEST_BYTES_MAX = 16 * 1024 * 1024


class Answer(msgspec.Struct, frozen=True):
    """What a client gets."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = msgspec.field(default_factory=lambda: {"x-amzn-RequestId": "relay"})


class Request(msgspec.Struct, frozen=True):
    """What a client sent: the operation's name, its parameters, and how to ask the real server instead."""

    operation: str
    access_key_id: str
    body: dict[str, Any]
    forward: Callable[[dict[str, Any]], Awaitable[Answer]]


Script = Callable[[Request], Awaitable[Answer]]


def refusal(code: str, message: str = "", *, status: int = 400, **fields: Any) -> Answer:
    """An error as the service gives it."""
    body = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": message, **fields}
    return Answer(json.dumps(body).encode(), status)


async def _pass(request: Request) -> Answer:
    return await request.forward(request.body)


class DynamoRelay:
    """Listens on a free port of 127.0.0.1. `script` may be set at any time."""

    def __init__(self, server: str) -> None:
        self._server = server
        app = web.Application(client_max_size=REQUEST_BYTES_MAX)
        app.router.add_post("/", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._port = 0
        self._session: aiohttp.ClientSession | None = None
        self.seen: list[Request] = []
        self.script: Script = _pass

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def operations(self) -> list[str]:
        return [request.operation for request in self.seen]

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        assert self._session is not None
        await self._session.close()

    async def _answer(self, request: web.Request) -> web.Response:
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("host", "content-length")
        }

        async def forward(body: dict[str, Any]) -> Answer:
            assert self._session is not None
            async with self._session.post(self._server, json=body, headers=headers) as reply:
                return Answer(await reply.read(), reply.status, dict(reply.headers))

        operation = request.headers["X-Amz-Target"].partition(".")[2]
        access_key_id = request.headers["Authorization"].partition("Credential=")[2].partition("/")[0]
        seen = Request(operation, access_key_id, json.loads(await request.read()), forward)
        self.seen.append(seen)
        answer = await self.script(seen)
        return web.Response(body=answer.body, status=answer.status, headers=_kept(answer.headers))


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    """Without what the relay's own server writes."""
    own = ("content-length", "date", "server", "connection", "transfer-encoding")
    return {name: value for name, value in headers.items() if name.lower() not in own}


async def silence(_request: Request) -> Answer:
    """Never answers."""
    await asyncio.Event().wait()
    raise AssertionError
