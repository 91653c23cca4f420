"""One HTTP exchange with a server: what is sent, how long it may take, how much may come back.

Owns the connection pool, the request line and headers, and the limits of one attempt. Leaves repeating to
`client/retry.py`, the meaning of errors to `client/problems.py` and of bodies to whoever calls.

Redirects are not followed and cookies not kept: a token goes to the server that it was given for and nowhere
else. aiohttp repeats a PUT, DELETE or GET by itself where a kept connection turns out to be closed; that is
harmless because every PUT and DELETE of ours is one that the server knows again (`client/calls.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from yarl import URL

from engines.client.problems import error_of_reply, translated, unreadable
from engines.client.retry import Repeat, Retries
from engines.errors import EnginesError, Invalid
from engines.scope import check_id

CONNECTIONS_MAX: Final = 32
TIMEOUT_S: Final = 15.0
CONNECT_TIMEOUT_S: Final = 5.0
# The server stops a page at about 1 MiB; one record past that mark is at most another 384 KiB, escaped.
REPLY_BYTES_MAX: Final = 16 * 1024 * 1024
# The server sends something at least this often on an open stream; silence for longer means a dead
# connection.
STREAM_SILENCE_S: Final = 60.0
_STATUS_ERROR_MIN: Final = 300
_NOT_MODIFIED: Final = 304

_encoder: Final = msgspec.json.Encoder()


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request, whole before its first attempt, so that every repeat sends the same bytes."""

    method: str
    target: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    repeat: Repeat = Repeat.READ


class Reply(msgspec.Struct, frozen=True):
    """A reply of status below 300, or 304, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Exchanges with one server. Any number of concurrent calls on one event loop."""

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        retries: Retries,
        connections_max: int = CONNECTIONS_MAX,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._url = checked_url(url)
        self._token = token
        self._retries = retries
        self._connections_max = connections_max
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    @property
    def url(self) -> str:
        return self._url

    @property
    def retries(self) -> Retries:
        return self._retries

    async def send(self, request: Request) -> Reply:
        """Exchange, and repeat as the policy allows. Raises what the server answered (`engines.errors`)."""

        async def attempt(remaining_s: float) -> Reply:
            return await self._exchange(request, remaining_s)

        return await self._retries.run(attempt, repeat=request.repeat)

    @contextlib.asynccontextmanager
    async def stream(self, target: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.StreamReader]:
        """The body of one GET that has no end.

        Raises Unavailable where the connection breaks or falls silent.
        """
        timeout = aiohttp.ClientTimeout(
            total=None,
            connect=CONNECT_TIMEOUT_S,
            sock_connect=CONNECT_TIMEOUT_S,
            sock_read=STREAM_SILENCE_S,
        )
        request = Request(method="GET", target=target, headers={**headers, "Accept": "text/event-stream"})
        with translated(changes=False):
            async with self._request(request, timeout) as response:
                if response.status >= _STATUS_ERROR_MIN:
                    raise await _error(response)
                yield response.content

    async def close(self) -> None:
        """Close every connection. Calls under way end as broken."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _exchange(self, request: Request, remaining_s: float) -> Reply:
        timeout = aiohttp.ClientTimeout(
            total=max(min(self._timeout_s, remaining_s), 0.001),
            connect=CONNECT_TIMEOUT_S,
            sock_connect=CONNECT_TIMEOUT_S,
        )
        with translated(changes=request.repeat is not Repeat.READ):
            async with self._request(request, timeout) as response:
                if response.status >= _STATUS_ERROR_MIN and response.status != _NOT_MODIFIED:
                    raise await _error(response)
                return Reply(response.status, response.headers, await _body(response))

    def _request(
        self, request: Request, timeout: aiohttp.ClientTimeout
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = dict(request.headers)
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        return self._open_session().request(
            request.method,
            URL(self._url + request.target, encoded=True),
            data=request.body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise EnginesError("this client is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections_max),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session


async def _error(response: aiohttp.ClientResponse) -> EnginesError:
    return error_of_reply(response.status, await _body(response), response.headers)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > REPLY_BYTES_MAX:
            raise unreadable(f"it is longer than {REPLY_BYTES_MAX} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def checked_url(url: str) -> str:
    """The server's address without a slash at its end. Raises Invalid for what is no http or https URL."""
    try:
        parsed = URL(url)
    except ValueError as error:
        raise Invalid("the server's URL does not parse", field="url") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.query_string or parsed.user:
        raise Invalid("the server's URL is like http://127.0.0.1:8080", field="url")
    return url.rstrip("/")


def target(*parts: str, query: Mapping[str, Any] | None = None) -> str:
    """Path and query, percent-encoded. A query value of None is left out. Raises Invalid for a bad path id.

    Ids are checked here by the server's own rule, so that no id can lead to another path than the one meant.
    """
    path = "/" + "/".join(quote(check_id(part, "path"), safe="") for part in parts)
    given = {name: _text(value) for name, value in (query or {}).items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def encode(value: Any) -> bytes:
    """A request's body: compact JSON."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}") from error
