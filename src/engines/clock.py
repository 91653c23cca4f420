"""Time. The only module that reads it.

Owns the `Clock` port and the system's clock. Everything that needs an instant or a duration is given a
`Clock`; tests give one that they move by hand (`engines.testing.clock`).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where instants come from."""

    def now(self) -> float:
        """Wall-clock time in seconds since the epoch. It may jump in either direction."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin. It never goes back; for durations and deadlines alone."""


class SystemClock:
    """The operating system's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def timestamp(epoch_s: float) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-11-21T14:00:00.000Z`."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def epoch_ms(text: str) -> int:
    """The inverse of `timestamp` for any RFC 3339 instant with a zone. Raises ValueError."""
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return round(instant.timestamp() * 1000)
