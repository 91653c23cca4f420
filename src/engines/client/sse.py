"""Server-sent events: bytes to messages, and a connection that is taken up again where it broke.

Owns the parser (WHATWG HTML, section 9.2) and the rule that makes following lossless: what was delivered
last names the place from which the next connection goes on, and an event at or below it is not delivered
again. Leaves what an event holds to `client/results.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Final

import msgspec

from engines.client.problems import Problem, error_of_problem, unreadable
from engines.client.results import Event
from engines.client.retry import Repeat, may_repeat
from engines.client.transport import Transport
from engines.errors import EnginesError, Gone, Unavailable

# One event is at most 256 KiB escaped; JSON in one `data:` line is less.
MESSAGE_BYTES_MAX: Final = 2 * 1024 * 1024
_event_decoder: Final = msgspec.json.Decoder(Event)
_problem_decoder: Final = msgspec.json.Decoder(Problem)


class Message(msgspec.Struct, frozen=True):
    """One message of a stream. `id` is what the stream last said, in this message or before it."""

    event: str
    data: str
    id: str | None


class Parser:
    """Bytes in, messages out. One for each connection."""

    def __init__(self) -> None:
        self._rest = b""
        self._event = ""
        self._data: list[str] = []
        self._size = 0
        self._id: str | None = None
        self._begun = False

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that `chunk` completes.

        Raises EnginesError for one that is past `MESSAGE_BYTES_MAX`.
        """
        if not self._begun and len(self._rest) + len(chunk) >= len(b"\xef\xbb\xbf"):
            chunk = (self._rest + chunk).removeprefix(b"\xef\xbb\xbf")
            self._rest = b""
            self._begun = True
        # A carriage return at the end may be half of a line end: it waits for what follows.
        text = self._rest + chunk
        held = text.endswith(b"\r")
        lines = (text[:-1] if held else text).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + (b"\r" if held else b"")
        if self._size + len(self._rest) > MESSAGE_BYTES_MAX:
            raise unreadable(f"a message of the stream is longer than {MESSAGE_BYTES_MAX} bytes")
        found = [self._line(line) for line in lines]
        return [message for message in found if message is not None]

    def _line(self, line: bytes) -> Message | None:
        if not line:
            return self._dispatched()
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
            self._size += len(line)
        elif name == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatched(self) -> Message | None:
        event, data = self._event or "message", self._data
        self._event, self._data, self._size = "", [], 0
        return Message(event, "\n".join(data), self._id) if data or event != "message" else None


async def follow(
    transport: Transport, target: str, context: Mapping[str, str], *, after: str | None
) -> AsyncGenerator[Event, None]:
    """Every event behind the cursor `after` (None: where the server begins), for ever: each once, in order.

    A broken connection is made again and goes on behind the last event delivered; pauses between connections
    grow up to the policy's longest, and start anew once an event came. Raises Gone where that is
    no longer kept; Unavailable where the server cannot be reached for longer than the retry policy's
    deadline; what else the server answers.
    """
    place = _Place(after)
    while True:
        try:
            async with transport.stream(target, place.headers(context)) as content:
                parser = Parser()
                async for chunk in content.iter_any():
                    place.alive()
                    for message in parser.feed(chunk):
                        event = place.read(message)
                        if event is not None:
                            yield event
        except EnginesError as error:
            await place.wait(transport, error)
        else:
            # The server ended the stream in order: it stops, or it lets go of a connection that is old.
            await place.wait(transport, Unavailable("the server ended the stream"))


class _Place:
    """How far a follower is, and how long it has been trying to go on."""

    def __init__(self, after: str | None) -> None:
        self._last_id = after
        self._position = 0
        self._failures = 0
        self._failing_since: float | None = None

    def headers(self, context: Mapping[str, str]) -> dict[str, str]:
        given = {} if self._last_id is None else {"Last-Event-ID": self._last_id}
        return {**context, **given}

    def alive(self) -> None:
        """The server sent something, if only to say that it is there."""
        self._failing_since = None

    def read(self, message: Message) -> Event | None:
        """The event of a message, if it is new.

        Raises Gone, or what a problem document in the stream says.
        """
        self._failures = 0
        if message.event == "gone":
            raise Gone("the stream's place is no longer kept; start from what is")
        if message.event in {"error", "problem"}:
            raise error_of_problem(_decode_problem(message.data), status=500)
        if message.id:
            self._last_id = message.id
        if not message.data:
            return None
        event = _decode_event(message.data)
        if event.position <= self._position:
            return None
        self._position = event.position
        return event

    async def wait(self, transport: Transport, error: EnginesError) -> None:
        """Pause before the next connection, or raise `error` where that is of no use or too late."""
        if not may_repeat(error, Repeat.READ):
            raise error
        self._failures += 1
        now = transport.retries.now()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > transport.retries.policy.deadline_s:
            raise error
        await transport.retries.pause(self._failures, error)


def _decode_event(data: str) -> Event:
    try:
        return _event_decoder.decode(data)
    except msgspec.DecodeError as error:
        raise unreadable(error) from error


def _decode_problem(data: str) -> Problem:
    try:
        return _problem_decoder.decode(data)
    except msgspec.DecodeError as error:
        raise unreadable(error) from error
