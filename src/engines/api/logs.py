"""The process's log: one line of JSON an entry, written together every so often.

Owns the form of a line and when it reaches the file. A warning and whatever is worse is written at once, with
all lines before it; the account of ordinary requests waits for others, because a system call for each would
cost as much as finding the route does. A process that is killed loses at most `FLUSH_S` of such accounts.

What is logged names fields: never a body, a credential, a path or a query. Leaves what to say to who says it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, BinaryIO, Final

import msgspec
import structlog

from engines.clock import Clock, timestamp

FLUSH_S: Final = 0.1
LINES_BYTES_MAX: Final = 64 * 1024

_encode: Final = msgspec.json.Encoder(enc_hook=repr).encode
_SECOND_CHARS: Final = len("2026-11-21T14:00:00")


class Account(msgspec.Struct, frozen=True):
    """What the log says of one request. `route` is the template; `status` 499: the client had gone."""

    method: str
    route: str
    status: int
    duration_ms: float
    tenant_id: str | None
    request_id: str


class _Line(msgspec.Struct, frozen=True):
    """An `Account` as a line."""

    at: str
    level: str
    event: str
    method: str
    route: str
    status: int
    duration_ms: float
    tenant_id: str | None
    request_id: str


class Lines:
    """The lines of this process on their way to a file. One event loop at a time."""

    def __init__(self, file: BinaryIO, clock: Clock) -> None:
        self._file = file
        self._clock = clock
        self._waiting = bytearray()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._second = -1
        self._second_text = ""

    def account(self, request: Account) -> None:
        """Say that a request is over."""
        line = _Line(
            self._now(),
            "info",
            "request",
            request.method,
            request.route,
            request.status,
            request.duration_ms,
            request.tenant_id,
            request.request_id,
        )
        self.write(_encode(line), at_once=False)

    def write(self, line: bytes, *, at_once: bool) -> None:
        self._waiting += line
        self._waiting += b"\n"
        if at_once or len(self._waiting) >= LINES_BYTES_MAX:
            self.flush()
        elif self._flush_timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # Nothing runs that could flush later.
                self.flush()
            else:
                self._flush_timer = loop.call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        lines, self._waiting = self._waiting, bytearray()
        if lines:
            self._file.write(lines)
            self._file.flush()

    def _now(self) -> str:
        """RFC 3339 with milliseconds; all but those is made once a second."""
        now = self._clock.now()
        second = int(now)
        if second != self._second:
            self._second, self._second_text = second, timestamp(second)[:_SECOND_CHARS]
        return f"{self._second_text}.{int((now - second) * 1000):03d}Z"

    def _stamp(self, _: Any, level: str, entry: Any) -> Any:
        return {"at": self._now(), "level": level, **entry}

    def configure_structlog(self) -> None:
        """Everything that is logged in this process comes here, from `info` up."""
        structlog.configure(
            processors=[self._stamp, structlog.processors.format_exc_info, _render],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            logger_factory=lambda *_: _Logger(self),
            cache_logger_on_first_use=True,
        )


class _Logger:
    """What structlog calls with a rendered line, by the name of its level."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def info(self, line: bytes) -> None:
        self._lines.write(line, at_once=False)

    def warning(self, line: bytes) -> None:
        self._lines.write(line, at_once=True)

    debug = info
    error = critical = fatal = exception = warning


def _render(_: Any, __: str, entry: Any) -> bytes:
    return _encode(entry)
