"""Identifiers, from an injected clock and an injected source of randomness.

Owns the shapes of ids: time-ordered record ids (UUIDv7), write ids, and the position-bearing event ids
of a log (UUIDv8). Leaves to `core/keys.py` how ids are joined into document keys.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from typing import Final

from engines.clock import Clock

RandomBytes = Callable[[int], bytes]
# Drawn from the source at once: a system call for each id was a tenth of what a read over HTTP costs.
DRAWN_BYTES: Final = 2_048

# RFC 9562, sections 5.7 and 5.8: 4 bits of version, 2 bits of variant.
_VERSION_7 = 0x7 << 76
_VERSION_8 = 0x8 << 76
_VARIANT = 0b10 << 62
_POSITION_BITS = 48
_POSITION_MAX = (1 << _POSITION_BITS) - 1
_STREAM_TAG_MASK = (1 << 62) - 1

_forks = 0
"""How many forks lie between this process and the first: what a parent drew is not its child's."""


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Ids:
    """Makes ids. One instance a process; not shared between event loops or threads."""

    def __init__(self, clock: Clock, random_bytes: RandomBytes = os.urandom) -> None:
        self._clock = clock
        self._random_bytes = random_bytes
        self._last_ms_and_counter = 0
        self._drawn = b""
        self._used = 0
        self._forks = _forks

    def record_id(self) -> str:
        """A UUIDv7 that sorts after every one this process made before, even if the clock goes back.

        The 12 bits after the milliseconds are a counter (RFC 9562, section 6.2, method 1).
        """
        self._last_ms_and_counter = max(self._last_ms_and_counter + 1, int(self._clock.now() * 1000) << 12)
        milliseconds, counter = divmod(self._last_ms_and_counter, 1 << 12)
        tail = int.from_bytes(self.token(8)) & ((1 << 62) - 1)
        return str(uuid.UUID(int=milliseconds << 80 | _VERSION_7 | counter << 64 | _VARIANT | tail))

    def write_id(self) -> str:
        """32 hexadecimal digits, fresh for each write: the version of what the write puts, for ever."""
        return self.token(16).hex()

    def salt(self) -> str:
        """32 hexadecimal digits that make an event's leaf digest unguessable."""
        return self.token(16).hex()

    def token(self, byte_count: int) -> bytes:
        """Unpredictable bytes, for secrets. No byte is ever handed out twice."""
        end = self._used + byte_count
        if end > len(self._drawn) or self._forks != _forks:
            self._forks = _forks
            self._drawn = self._random_bytes(max(byte_count, DRAWN_BYTES))
            self._used, end = 0, byte_count
        taken = self._drawn[self._used : end]
        self._used = end
        return taken


def stream_tag(stream: str) -> int:
    """62 bits that say which stream an event id belongs to."""
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8]) & _STREAM_TAG_MASK


def event_id_at(tag: int, position: int) -> str:
    """The UUIDv8 of the event at `position` (1 to 2**48 - 1) of the stream with `tag`: one read finds it."""
    assert 0 < position <= _POSITION_MAX
    return str(uuid.UUID(int=position << 80 | _VERSION_8 | _VARIANT | tag & _STREAM_TAG_MASK))


def position_of(event_id: str, tag: int) -> int | None:
    """The position that a server-minted id encodes; None for a client's id or another stream's."""
    try:
        parsed = uuid.UUID(event_id)
    except ValueError:
        return None
    if parsed.version != 8 or parsed.int & _STREAM_TAG_MASK != tag:
        return None
    return parsed.int >> 80 or None


def first_record_id(at_s: float) -> str:
    """What sorts behind every record id made before `at_s` (epoch seconds), and before all others."""
    return str(uuid.UUID(int=int(at_s * 1000) << 80))
