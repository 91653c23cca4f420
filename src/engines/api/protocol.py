"""HTTP/1.1 on one connection, bounded: what uvicorn's parser is given, and for how long it may wait.

Owns the limits below a request: how many connections there are, the size of the header section, the time in
which it must be complete, the time that a reader may leave an answer unread, and how a connection ends. A
client that breaks a limit gets an answer in its turn, after those to the requests that it sent before, and
then the connection ends in order: a close over unread bytes would reset it and could destroy the answer on
its way.

Leaves parsing to httptools, requests to uvicorn's cycle, and the body to `api/body.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from engines.api.reply import CLOSE, HeaderFields, Reply, problem_reply
from engines.clock import SystemClock
from engines.errors import EnginesError, HeadersTooLarge, RequestTimeout, Throttled
from engines.ids import Ids

HEADER_BYTES_MAX: Final = 32 * 1024
HEADERS_TIMEOUT_S: Final = 10.0
# Of one process. Each costs a descriptor, and what it has sent of a request.
CONNECTIONS_MAX: Final = 4_096
CONNECTIONS_RETRY_S: Final = 1.0
WRITE_STALL_TIMEOUT_S: Final = 30.0
# After the last answer, what the client still sends is read and dropped, within these bounds.
LINGER_TIMEOUT_S: Final = 2.0
LINGER_BYTES_MAX: Final = 8 * 1024 * 1024
# A field costs its name, its value, ": " and the end of its line.
_FIELD_OVERHEAD_BYTES: Final = 4
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_ERRORS: Final[Mapping[HTTPStatus, EnginesError]] = {
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: HeadersTooLarge(
        f"a header section has at most {HEADER_BYTES_MAX:,} bytes"
    ),
    HTTPStatus.REQUEST_TIMEOUT: RequestTimeout(f"a header section comes within {HEADERS_TIMEOUT_S:g} s"),
    HTTPStatus.TOO_MANY_REQUESTS: Throttled(
        "too many connections are open here", retry_after_s=CONNECTIONS_RETRY_S
    ),
}
REQUEST_ID_BYTES: Final = 16
_ids: Final = Ids(SystemClock())

ON_SHUTDOWN: Final = "engines.on_shutdown"
"""Key in a scope: a callable that the protocol calls when the server begins to stop. For endless answers."""
ANSWER: Final = "engines.answer"
"""Key in a scope: sends one whole answer, given (status, fields, body), in place of ASGI's two messages.

One write, one pass over the fields: reading a note costs about a tenth less than by way of uvicorn's cycle.
"""


class _Refused(Exception):
    """Raised inside a parser callback, so that the parser stops there."""


class _Transport:
    """The transport as uvicorn sees it: `close` ends the connection in order."""

    __slots__ = ("_protocol", "_raw", "get_extra_info", "pause_reading", "resume_reading", "write")

    def __init__(self, raw: asyncio.Transport, protocol: BoundedProtocol) -> None:
        self._raw = raw
        self._protocol = protocol
        self.write = raw.write
        self.pause_reading = raw.pause_reading
        self.resume_reading = raw.resume_reading
        self.get_extra_info = raw.get_extra_info

    def close(self) -> None:
        self._protocol.end()

    def is_closing(self) -> bool:
        return self._protocol.ending or self._raw.is_closing()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits, for `uvicorn.Config(http=BoundedProtocol)`.

    The limits are class attributes so that a subclass can have others.
    """

    connections_max: int = CONNECTIONS_MAX
    header_bytes_max: int = HEADER_BYTES_MAX
    headers_timeout_s: float = HEADERS_TIMEOUT_S
    write_stall_timeout_s: float = WRITE_STALL_TIMEOUT_S

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.ending = False
        """Whether the last byte that this connection will send has been given to the transport."""
        self._is_one_too_many = False
        self._raw: asyncio.Transport
        self._current: RequestResponseCycle | None = None  # being answered; pipelined ones wait in `pipeline`
        # Between requests and until a request's header section is complete.
        self._in_headers = True
        self._begun = False
        self._field_bytes = 0  # of the section's complete fields
        self._section_bytes = 0  # of the reads that brought nothing but this section
        self._boundaries = 0  # ends of header sections and of requests
        self._broken: HTTPStatus | None = None
        self._refusal: HTTPStatus | None = None
        self._dropped_bytes = 0
        self._headers_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._raw = transport
        super().connection_made(cast("asyncio.Transport", _Transport(transport, self)))
        self._is_one_too_many = len(self.connections) > self.connections_max
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ending = True
        for timer in (self._headers_timer, self._stall_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._drop(len(data))
            return
        boundaries = self._boundaries
        super().data_received(data)
        if not self._in_headers or self._deaf:
            return
        if boundaries == self._boundaries:
            self._section_bytes += len(data)
            if self._section_bytes > self.header_bytes_max:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                return
        if not self._idle and self._headers_timer is None:
            self._await_headers()

    def shutdown(self) -> None:
        """Requests under way are answered, endless answers are told to end, and nothing else begins."""
        if self._current is None:
            self.end()
            return
        self._current.keep_alive = False
        on_shutdown = cast("Callable[[], None] | None", self._current.scope.get(ON_SHUTDOWN))
        if on_shutdown is not None:
            on_shutdown()

    @property
    def _deaf(self) -> bool:
        """Nothing that still comes is a request."""
        return self.ending or self._refusal is not None

    @property
    def _idle(self) -> bool:
        """Nothing of a next request has come."""
        return self._in_headers and not self._begun and not self._section_bytes

    # --- parser callbacks ---

    def on_message_begin(self) -> None:
        self._begun = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + _FIELD_OVERHEAD_BYTES)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in _VERSIONS:
            raise _Refused
        super().on_headers_complete()  # raises for a target that is no path
        self.cycle.scope[ANSWER] = partial(self._answer, self.cycle)  # type: ignore[typeddict-unknown-key]
        self._in_headers = False
        self._field_bytes = self._section_bytes = 0
        self._boundaries += 1
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None
        if self.parser.should_upgrade():
            # No other protocol is spoken here, and what follows such a request is not HTTP.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self.ending:
            self._drop(len(body))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_headers = True
        self._begun = False
        self._boundaries += 1
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > self.header_bytes_max:
            self._broken = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise _Refused

    def _unsupported_upgrade_warning(self) -> None:
        """A client that asks for another protocol is answered in HTTP; the log need not hear of it."""

    # --- requests and their answers ---

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current = cycle
        super()._start_asgi_task(cycle, _refuse_connection if self._is_one_too_many else app)

    async def _answer(
        self, cycle: RequestResponseCycle, status: int, fields: HeaderFields, body: bytes
    ) -> None:
        """What `RequestResponseCycle.send` does for an answer that is whole. See `ANSWER`."""
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if cycle.disconnected:
            return
        assert not cycle.response_started
        if CLOSE in fields:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            fields = (*fields, CLOSE)
        head = _head(status, (*self.server_state.default_headers, *fields))
        self._raw.write(head if cycle.scope["method"] == "HEAD" else head + body)
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.end()
        cycle.on_response()

    def on_response_complete(self) -> None:
        self._current = None
        if not self.pipeline and not self._in_headers and self._refusal is None:
            self.end()  # answered before its body was complete: what still comes of that is no request
        super().on_response_complete()
        if self._refusal is not None and self._current is None:
            self._send_refusal()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """What uvicorn calls for bytes that do not parse."""
        self._refuse(self._broken or HTTPStatus.BAD_REQUEST)

    def _refuse(self, status: HTTPStatus) -> None:
        """Read no more of this connection; answer `status` once every whole request has its answer."""
        if self._refusal is not None or self.ending:
            return
        self._refusal = status
        if not self._in_headers:
            self._abandon(self.cycle)
        if self._current is None:
            self._send_refusal()

    def _abandon(self, cycle: RequestResponseCycle) -> None:
        """Its body cannot be read any further: never start it, or tell it that the client is gone."""
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
            return
        cycle.keep_alive = False
        if not cycle.response_started:
            cycle.disconnected = True
            self._current = None
        cycle.message_event.set()

    def _send_refusal(self) -> None:
        if self.ending or self._refusal is None:
            return
        self._raw.write(_refusal_answer(self._refusal))
        self.end()

    # --- ending ---

    def end(self) -> None:
        """Send what is written, say that nothing more comes, and give the client a moment to hear it."""
        if self.ending:
            return
        self.ending = True
        if self._idle or self._raw.is_closing() or not self._raw.can_write_eof():
            self._raw.close()
            return
        self._raw.write_eof()
        self.flow.resume_reading()
        self._linger_timer = self.loop.call_later(LINGER_TIMEOUT_S, self._raw.close)

    def _drop(self, size: int) -> None:
        self._dropped_bytes += size
        if self._dropped_bytes > LINGER_BYTES_MAX:
            self._raw.abort()

    # --- time ---

    def _await_headers(self) -> None:
        self._headers_timer = self.loop.call_later(self.headers_timeout_s, self._on_headers_timeout)

    def _on_headers_timeout(self) -> None:
        self._headers_timer = None
        if self._idle:
            self.end()
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self.write_stall_timeout_s, self._raw.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


async def _refuse_connection(scope: Any, _receive: Any, _send: Any) -> None:
    """The app of a connection too many: its first request is answered, and it is ended."""
    reply = _refusal(HTTPStatus.TOO_MANY_REQUESTS)
    await scope[ANSWER](reply.status, (*reply.fields, reply.length_field, CLOSE), reply.body)


def _refusal_answer(status: HTTPStatus) -> bytes:
    reply = _refusal(status)
    return _head(status, (*reply.fields, reply.length_field, CLOSE)) + reply.body


def _refusal(status: HTTPStatus) -> Reply:
    """What is HTTP and breaks a limit gets a problem document like any other, garbage one line."""
    error = _ERRORS.get(status)
    if error is None:
        return Reply(status, status.phrase.encode(), ((b"content-type", b"text/plain; charset=utf-8"),))
    request_id = _ids.token(REQUEST_ID_BYTES).hex()
    reply = problem_reply(error, request_id)
    return Reply(status, reply.body, (*reply.fields, (b"x-request-id", request_id.encode())))


def _head(status: int, fields: HeaderFields) -> bytes:
    """Status line and header section. Raises ValueError for a field that would end its line early."""
    lines = [STATUS_LINE[status]]
    for name, value in fields:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n")
    head = b"".join(lines)
    if not head.count(b"\n") == head.count(b"\r") == len(fields) + 2:
        raise ValueError("a header field holds the end of a line")
    return head
