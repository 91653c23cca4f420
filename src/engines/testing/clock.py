"""A clock that a test moves by hand.

Owns `ManualClock`; the system's clock and the protocol stand in `engines.clock`.
"""

from __future__ import annotations

from typing import Final

START_S: Final = 1_800_000_000.0


class ManualClock:
    """`engines.clock.Clock` that stands still until it is told otherwise."""

    def __init__(self, now_s: float = START_S) -> None:
        self._now_s = now_s
        self._monotonic_s = 0.0

    def now(self) -> float:
        return self._now_s

    def monotonic(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Time passes: both readings move on by the same amount."""
        assert seconds >= 0, "time passes in one direction; `jump` sets the wall clock back"
        self._now_s += seconds
        self._monotonic_s += seconds

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock, in either direction; `monotonic` stays."""
        self._now_s += seconds
