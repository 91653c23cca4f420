"""A small HTTP client for tests: every answer whole, nothing repeated, nothing followed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec


class Answer(msgspec.Struct, frozen=True):
    """One answer. `json` decodes its body."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def etag(self) -> str:
        return str(self.headers["ETag"])

    def problem(self, status: int, code: str, field: str | None = None) -> Any:
        """The problem document, once it has been found to be one, of this status, code and field."""
        assert self.headers["Content-Type"] == "application/problem+json", self.body
        document = self.json
        assert (self.status, document["status"], document["code"]) == (status, status, code), document
        assert document.get("field") == field, document
        assert document["request_id"] == self.headers["X-Request-Id"]
        assert document["type"] == f"urn:engines:problem:{code}"
        assert document["title"]
        assert document["detail"]
        return document


class Client:
    """`await client("GET", "/notes")`. Clients made by `bearing` share the connections of the first."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        self._url = url
        self._headers = headers or {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    def bearing(self, token: str, **headers: str) -> Client:
        """A client that presents this credential, and these headers (`X_Tenant_Id` for X-Tenant-Id)."""
        return self.with_headers(Authorization=f"Bearer {token}", **headers)

    def with_headers(self, **headers: str) -> Client:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        other = Client(self._url, {**self._headers, **given})
        other._session = self._session
        return other

    async def __call__(
        self, method: str, path: str, body: Any = None, *, data: bytes | None = None, **headers: str
    ) -> Answer:
        """`body` is sent as JSON, `data` as it is; headers as in `bearing`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            given.setdefault("Content-Type", "application/json")
        assert self._session is not None
        async with self._session.request(
            method,
            self._url + path,
            data=data,
            headers={**self._headers, **given},
            allow_redirects=False,
            skip_auto_headers=("Content-Type",),
        ) as response:
            return Answer(response.status, response.headers.copy(), await response.read())


async def until(holds: Callable[[], Awaitable[bool]], *, timeout_s: float) -> None:
    """Wait for a condition that nobody announces; it must come to hold within the time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while not await holds():
        assert loop.time() < end, "it did not come to hold in time"
        await asyncio.sleep(0.02)
