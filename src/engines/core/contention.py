"""Several processes on one stream: who waits, and for how long, so that none of them starves.

Owns the pauses alone; safety is the chain's and never depends on them. Only the winner of a slot knows the
tail, so it would win the next one too, and the next. Hence the winner yields: after a tenure it pauses for
several commit times, in which another takes the slot and makes it the loser. A loser waits a flat random
time; an exponential one hands everything to whoever won first.
"""

from __future__ import annotations

import random
from typing import Final

from engines.clock import Clock

TENURE_S: Final = 0.02
# Without a foreign commit in sight the winner still looks up now and then: a starved process shows nothing.
TENURE_ALONE_S: Final = 1.0
FOREIGN_REMEMBERED_S: Final = 2.0
YIELD_COMMITS: Final = 6.0
LOSER_COMMITS_MAX: Final = 4.0
# Bounds of what one commit is taken to last, whatever was measured.
COMMIT_S_MIN: Final = 0.0005
COMMIT_S_MAX: Final = 0.05
_SMOOTHING: Final = 0.2


class Contention:
    """How this process takes turns on one stream."""

    __slots__ = ("_clock", "_commit_s", "_foreign_seen_s", "_last_commit_s", "_tenure_since_s")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._commit_s = 0.002
        self._foreign_seen_s = float("-inf")
        self._last_commit_s = float("-inf")
        self._tenure_since_s: float | None = None

    def won(self, started_s: float) -> None:
        """A commit of ours, sent at `started_s` (monotonic), is durable."""
        now_s = self._clock.monotonic()
        taken_s = min(COMMIT_S_MAX, max(COMMIT_S_MIN, now_s - started_s))
        self._commit_s += _SMOOTHING * (taken_s - self._commit_s)
        if self._tenure_since_s is None or started_s - self._last_commit_s > YIELD_COMMITS * self._commit_s:
            self._tenure_since_s = started_s
        self._last_commit_s = now_s

    def lost(self) -> float:
        """Another process took the slot; returns the pause before the next attempt."""
        self._foreign_seen_s = self._clock.monotonic()
        self._tenure_since_s = None
        longest_s = LOSER_COMMITS_MAX * self._commit_s
        return random.uniform(0, longest_s)  # noqa: S311 (it spreads writers, it hides nothing)

    def pause_s(self) -> float:
        """The pause that this process owes the others before it packs its next commit; mostly 0."""
        if self._tenure_since_s is None:
            return 0.0
        now_s = self._clock.monotonic()
        if now_s - self._last_commit_s > YIELD_COMMITS * self._commit_s:
            self._tenure_since_s = None  # It was idle for as long as it would pause.
            return 0.0
        contended = now_s - self._foreign_seen_s < FOREIGN_REMEMBERED_S
        if now_s - self._tenure_since_s < (TENURE_S if contended else TENURE_ALONE_S):
            return 0.0
        self._tenure_since_s = None
        return YIELD_COMMITS * self._commit_s
