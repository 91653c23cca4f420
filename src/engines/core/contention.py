"""Several processes on one stream: whose turn it is, and how long each waits, so that none of them starves.

Owns the order and the pauses alone; safety is the chain's and never depends on them. Only the winner of a
slot knows the tail, so it would win the next one too, and the next. Hence it goes on for a tenure and then
makes way. That the others need not try in order to learn when, a commit under contention says who had
turns, the last first, and for how long its writer means to go on (`core/commits.py`, `Turn`).

Of those in the order whoever had no turn for longest goes next, at once; each behind it waits a tenure
more, up to `PATIENCE_S` for each commit that it sees and `WAIT_S_MAX` in all. Who finds the tail where it was
passes over those that did not come, and they leave the order. Who is not in it tries at the end of every
tenure. Where a commit says nothing a loser waits a flat random time; an exponential one hands everything to
whoever won first.

Who needs longer than such a pause from a look to its commit, being far away or overloaded, would never win
and so never be seen. For its sake a writer that never rests leaves the slot for `BERTH_S` now and then. Where
several fill each other's pauses even that is no turn for it.

A look at the tail may cost as much as many commits, and it takes the backend's time from whoever writes. So
where looks are dear tenures are longer, who waits looks less often, and pauses are long enough to look in.

Whether a writer has more than it writes now nobody knows beforehand. So a first commit asks for a few commit
times alone, unless the tenure before it ended too early; and it leaves the order only where others were seen
to write while it waited: without a crowd there is nothing to put in order. Where the clocks of two machines
differ, turns are taken too early, which costs conflicts, or too late within the limits above.
"""

from __future__ import annotations

import random
from typing import Final

from engines.clock import Clock
from engines.core.commits import Turn
from engines.core.tail import Tail

# A tenure lasts so many commits: a change of turns costs a few of them. The upper bound keeps the turns of
# sixteen writers below the time that a request has, unless looks or commits take 50 ms and more.
TENURE_COMMITS: Final = 32
TENURE_S_MIN: Final = 0.02
TENURE_S_MAX: Final = 0.25
# A change of turns takes a look at the least.
TENURE_LOOKS: Final = 5
# Without a foreign commit in sight the winner still looks up now and then: a starved process shows nothing.
# Soon at first, because many may begin at the same time, yet not before as many commits as a tenure has; then
# half as often each time.
TENURE_ALONE_S_MIN: Final = 0.05
TENURE_ALONE_S: Final = 1.0
# Where commits are slow its pauses are long, and so are the times between them.
TENURE_ALONE_PAUSES: Final = 20
TENURE_ALONE_S_MAX: Final = 6.0
# Now and then it leaves room for somebody slower: within the time of a request where others were seen lately,
# and half as often each time where nobody comes.
BERTH_S: Final = 0.2
BERTH_EVERY_S: Final = 6.0
BERTH_EVERY_S_MAX: Final = 60.0
FOREIGN_REMEMBERED_S: Final = 2.0
PATIENCE_S: Final = 0.3
# Where looks are dear patience is longer: sixteen who wait spend about half of one's time on looks.
PATIENCE_LOOKS: Final = 40
WAIT_S_MAX: Final = 3.0
# Who has not come back with another commit after so many commit times has nothing to write.
YIELD_COMMITS: Final = 6.0
# A pause in favour of others is of use only where one of them finds the tail in it.
YIELD_LOOKS: Final = 2.0
LOSER_COMMITS_MAX: Final = 4.0
LOSER_LOOKS_MAX: Final = 4.0
WRITERS_MAX: Final = 16
# Of a process's name among the writers; two of one name would take each other's turns, and no more.
WRITER_CHARS: Final = 8
# Bounds of what one commit, and one look at the tail, is taken to last, whatever was measured.
COMMIT_S_MIN: Final = 0.0005
COMMIT_S_MAX: Final = 0.05
LOOK_S_MAX: Final = 0.1
_SMOOTHING: Final = 0.2
# Looks are few.
_SMOOTHING_LOOKS: Final = 0.5


class Contention:
    """How this process takes turns. `name`: any text of its own, of which the beginning is stored."""

    __slots__ = (
        "_alone_s",
        "_berth_every_s",
        "_berthed_s",
        "_clock",
        "_commit_s",
        "_due_s",
        "_foreign_seen_s",
        "_had_more",
        "_is_crowded",
        "_last_commit_s",
        "_last_position",
        "_look_s",
        "_losing_since_s",
        "_lost_s",
        "_name",
        "_tenure_since_s",
        "_tenure_until_s",
        "_waits_behind",
        "_waits_since_s",
    )

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name[:WRITER_CHARS]
        self._commit_s = self._look_s = 0.002
        self._foreign_seen_s = float("-inf")
        self._last_commit_s = float("-inf")
        self._last_position = -1
        self._tenure_since_s: float | None = None
        # Fixed when it begins: others wait for the end that they were told, and miss one that comes earlier.
        self._tenure_until_s = 0.0
        self._alone_s = TENURE_ALONE_S_MIN
        # When it last left the slot for long enough, and how long after it does so again.
        self._berthed_s = clock.monotonic()
        self._berth_every_s = BERTH_EVERY_S
        # Its last tenure ended before it had written everything; others wrote while it waited for this one.
        self._had_more = self._is_crowded = False
        # Since when it only loses, and when it lost last.
        self._losing_since_s: float | None = None
        self._lost_s = float("-inf")
        self._waits_since_s: float | None = None
        self._waits_behind = -1
        self._due_s = 0.0

    def won(self, started_s: float, position: int) -> None:
        """A commit of ours, sent at `started_s` (monotonic), is durable; it ends at `position`."""
        tenure_s = self._tenure_s()
        self._measure(started_s)
        self._wrote(started_s, position, tenure_s)

    def landed(self, position: int) -> None:
        """A commit of ours whose reply was lost is durable after all; it ends at `position`."""
        self._wrote(self._clock.monotonic(), position, self._tenure_s())

    def _wrote(self, started_s: float, position: int, tenure_s: float) -> None:
        if self._was_idle(started_s):
            self._tenure_since_s, self._had_more = None, False
        if started_s - self._last_commit_s >= BERTH_S:
            self._berthed_s = started_s
        if self._tenure_since_s is None:
            self._tenure_since_s = started_s
            self._tenure_until_s = started_s + tenure_s
        self._waits_since_s = self._losing_since_s = None
        self._is_crowded = False
        self._last_commit_s, self._last_position = self._clock.monotonic(), position

    def looked(self, started_s: float) -> None:
        """The tail was read from the backend; that began at `started_s` (monotonic)."""
        taken_s = min(LOOK_S_MAX, self._clock.monotonic() - started_s)
        self._look_s += _SMOOTHING_LOOKS * (taken_s - self._look_s)

    def lost(self, started_s: float) -> float:
        """Another process took the slot; returns the pause before the tail is read again."""
        self._measure(started_s)
        self._foreign_seen_s = now_s = self._clock.monotonic()
        self._berth_every_s = BERTH_EVERY_S
        self._end_tenure(started_s)
        if self._losing_since_s is None or now_s - self._lost_s > WAIT_S_MAX:
            self._losing_since_s = now_s
        self._lost_s = now_s
        if now_s - self._losing_since_s > WAIT_S_MAX:
            return _up_to(self._commit_s)  # A berth is short.
        return _up_to(max(LOSER_COMMITS_MAX * self._commit_s, LOSER_LOOKS_MAX * self._look_s))

    def wrote_last(self, tail: Tail) -> bool:
        """Whether the log ends with a commit of this process."""
        return tail.position == self._last_position

    def pause_s(self, tail: Tail) -> float:
        """Take note of the tail, behind which a commit is to go; returns how long others come first.

        Mostly 0. After the pause the tail is to be read again: where it has moved, so has the order.
        """
        now_s = self._clock.monotonic()
        if self.wrote_last(tail):
            if self._goes_on(now_s, tail.turn):
                return 0.0
            since_s = self._last_commit_s
        elif tail.turn is None:
            return 0.0
        else:
            since_s = now_s - max(0.0, self._clock.now() - tail.at / 1000)
            self._foreign_seen_s = max(self._foreign_seen_s, since_s)
            self._berth_every_s = BERTH_EVERY_S
        self._end_tenure(now_s)
        if now_s > self._due_s + WAIT_S_MAX:
            self._waits_since_s = None  # It waited for its turn once, and did not come for it.
        if tail.position != self._waits_behind:
            self._is_crowded = self._waits_since_s is not None
            self._waits_behind = tail.position
            self._due_s = since_s + self._time_of_others_s(tail.turn)
            if self.wrote_last(tail):
                self._due_s = max(self._due_s, since_s + self._berth_s(now_s))
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        return max(0.0, min(self._due_s, self._waits_since_s + WAIT_S_MAX) - now_s)

    def waited(self) -> None:
        """The last pause was slept to its end: that ends it, though an injected clock may stand still."""
        self._due_s = min(self._due_s, self._clock.monotonic())

    def turn_behind(self, turn: Turn | None) -> Turn | None:
        """What a commit of ours says behind one that says `turn`; None where nobody else was seen lately."""
        now_s = self._clock.monotonic()
        others = self._others(turn)
        if not others and now_s - self._foreign_seen_s >= FOREIGN_REMEMBERED_S:
            return None
        if self._tenure_since_s is not None and not self._was_idle(now_s):
            left_s = self._tenure_until_s - now_s
        elif self._had_more:
            left_s = self._tenure_s()
        else:
            left_s = YIELD_COMMITS * self._commit_s
            others = others if self._is_crowded else ()
        left_ms = int(left_s * 1000) if left_s > self._commit_s else 0
        return Turn((self._name, *others)[:WRITERS_MAX], left_ms)

    def _goes_on(self, now_s: float, turn: Turn | None) -> bool:
        """Whether the tenure of this process, whose commit says `turn`, is not over yet."""
        if self._tenure_since_s is None:
            return False
        if turn is None:
            alone_s = max(self._alone_s, min(TENURE_ALONE_S, TENURE_COMMITS * self._commit_s))
            return self._was_idle(now_s) or now_s - self._tenure_since_s < alone_s
        return turn.left_ms > 0

    def _end_tenure(self, now_s: float) -> None:
        if self._tenure_since_s is not None:
            self._tenure_since_s, self._had_more = None, not self._was_idle(now_s)
            was_alone = now_s - self._foreign_seen_s >= FOREIGN_REMEMBERED_S
            longest_s = min(TENURE_ALONE_S_MAX, max(TENURE_ALONE_S, TENURE_ALONE_PAUSES * self._least_s()))
            self._alone_s = min(longest_s, 2 * self._alone_s) if was_alone else TENURE_ALONE_S_MIN

    def _berth_s(self, now_s: float) -> float:
        """How long this process, whose tenure is over, leaves the slot to somebody who is never seen."""
        if now_s - self._berthed_s < self._berth_every_s:
            return 0.0
        self._berthed_s = now_s
        self._berth_every_s = min(BERTH_EVERY_S_MAX, 2 * self._berth_every_s)
        return BERTH_S

    def _time_of_others_s(self, turn: Turn | None) -> float:
        """How long after the commit that says `turn` this process leaves the next slot to others."""
        least_s = self._least_s()
        if turn is None:
            return least_s
        # Stored numbers are any: a limit comes before arithmetic.
        time_s = min(max(turn.left_ms, 0), 1000 * TENURE_S_MAX) / 1000
        late_s = 0.0
        if self._name in turn.writers:
            # The last commit of a tenure is under way when the tenure ends.
            late_s = self._commit_s
            place = turn.writers.index(self._name)
            time_s += (len(turn.writers) - 1 - place) * self._tenure_s()
            if place == 0:
                time_s = max(time_s, least_s)
        if time_s <= 0:
            # At the end of a tenure there is nothing to spread: one of those who see it gets the slot.
            return 0.0
        patience_s = max(PATIENCE_S, PATIENCE_LOOKS * self._look_s)
        return min(time_s, patience_s) + late_s + _up_to(self._commit_s)

    def _least_s(self) -> float:
        """A pause in which somebody just as fast finds the tail and gets the slot."""
        return max(YIELD_COMMITS * self._commit_s, YIELD_LOOKS * self._look_s)

    def _others(self, turn: Turn | None) -> tuple[str, ...]:
        """Who stays in the order behind this process, which takes the slot behind the commit of `turn`."""
        if turn is None:
            return ()
        names = tuple(name for name in turn.writers[:WRITERS_MAX] if len(name) <= WRITER_CHARS)
        if self._name not in names:
            return names
        place = names.index(self._name)
        goes_on = place == 0 and turn.left_ms > 0
        return names[1:] if goes_on else names[:place]

    def _measure(self, started_s: float) -> None:
        taken_s = min(COMMIT_S_MAX, max(COMMIT_S_MIN, self._clock.monotonic() - started_s))
        self._commit_s += _SMOOTHING * (taken_s - self._commit_s)

    def _tenure_s(self) -> float:
        worth_s = max(TENURE_COMMITS * self._commit_s, TENURE_LOOKS * self._look_s)
        return min(TENURE_S_MAX, max(TENURE_S_MIN, worth_s))

    def _was_idle(self, now_s: float) -> bool:
        return now_s - self._last_commit_s > YIELD_COMMITS * self._commit_s


def _up_to(longest_s: float) -> float:
    return random.uniform(0, longest_s)  # noqa: S311 (it spreads writers, it hides nothing)
