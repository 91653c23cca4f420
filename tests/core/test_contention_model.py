"""Eight writers of one stream on a model of a backend: what turns cost, and what everybody gets.

The model is two processors that client and server share, as on a small machine, and a log that is no more
than its tail. Calls take processor time alone, each as much as it was measured to take on a backend. It shows
what a rule of `core/contention.py` does to sum and shares in a second, and shows it again from the same seed.
Real backends are in `bench/sharing.py`; the model comes close to their figures.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final

import pytest

from engines.core.commits import Turn
from engines.core.contention import Contention
from engines.core.tail import Tail
from engines.testing.clock import ManualClock

PROCESSORS: Final = 2
# What a processor does for one call before it turns to the next.
SLICE_S: Final = 0.0005
# A call takes as long as others do, give or take this part of it.
JITTER: Final = 0.2
EVENTS: Final = 8
# In seconds: a commit, what a refused one takes more, a look at the tail.
CHEAP_LOOKS: Final = (0.0016, 0.0008, 0.0016)
DEAR_LOOKS: Final = (0.0014, 0.0015, 0.010)
DEARER_LOOKS: Final = (0.0014, 0.0015, 0.025)

# What a writer wants next: to wait so long, or a processor for so long.
Step = Generator[tuple[str, float], None, Any]


class Machine:
    """Runs writers until a time. Whatever is to be random is drawn from `random`, seeded by the test."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._waiting: deque[tuple[float, Step]] = deque()
        self._free = PROCESSORS

    def start(self, step: Step) -> None:
        for verb, seconds in step:
            if verb == "sleep":
                self._at(seconds, lambda: self.start(step))
            else:
                self._waiting.append((seconds * random.uniform(1 - JITTER, 1 + JITTER), step))
                self._work()
            return

    def run(self, seconds: float) -> None:
        until_s = self.clock.monotonic() + seconds
        while self._later and self._later[0][0] < until_s:
            at_s, _, happen = heapq.heappop(self._later)
            self.clock.advance(at_s - self.clock.monotonic())
            happen()

    def _at(self, seconds: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._later, (self.clock.monotonic() + seconds, next(self._order), happen))

    def _work(self) -> None:
        while self._free and self._waiting:
            left_s, step = self._waiting.popleft()
            self._free -= 1
            self._at(min(SLICE_S, left_s), functools.partial(self._done, left_s - SLICE_S, step))

    def _done(self, left_s: float, step: Step) -> None:
        self._free += 1
        if left_s > 0:
            self._waiting.append((left_s, step))
        else:
            self.start(step)
        self._work()


class Stream:
    """Its tail, and how many commits each writer had."""

    def __init__(self, clock: ManualClock, costs: tuple[float, float, float], writers: int) -> None:
        self.wins = [0] * writers
        self.waits_s = [0.0] * writers
        self._won_s = [clock.monotonic()] * writers
        self._clock = clock
        self._commit_s, self._refusal_s, self._look_s = costs
        self._tail = Tail(0, "", 0, 0)

    def ended(self) -> None:
        """Who did not come again waits to the end."""
        now_s = self._clock.monotonic()
        self.waits_s = [
            max(wait_s, now_s - won_s) for wait_s, won_s in zip(self.waits_s, self._won_s, strict=True)
        ]

    def writer(self, number: int, away_s: float) -> Step:
        """What `core/committer.py` does, for one that always has something to write.

        `away_s`: what it hears is so old, and what it sends takes so long.
        """
        contention = Contention(self._clock, f"w{number}")
        tail = yield from self._look(contention, away_s)
        while True:
            if (pause_s := contention.pause_s(tail)) > 0:
                yield "sleep", pause_s
                tail = yield from self._look(contention, away_s)
                continue
            turn: Turn | None = contention.turn_behind(tail.turn)
            at, started_s = int(self._clock.now() * 1000), self._clock.monotonic()
            yield "sleep", away_s
            yield "work", self._commit_s
            if self._tail.position == tail.position:
                tail = self._tail = Tail(tail.position + EVENTS, "", at, tail.position + 1, turn)
                self.wins[number] += 1
                self.waits_s[number] = max(self.waits_s[number], started_s - self._won_s[number])
                self._won_s[number] = started_s
                yield "sleep", away_s
                contention.won(started_s, tail.position)
            else:
                yield "work", self._refusal_s
                yield "sleep", away_s
                yield "sleep", contention.lost(started_s)
                tail = yield from self._look(contention, away_s)

    def _look(self, contention: Contention, away_s: float) -> Step:
        started_s = self._clock.monotonic()
        yield "sleep", away_s
        yield "work", self._look_s / 2
        tail = self._tail
        yield "work", self._look_s / 2
        yield "sleep", away_s
        contention.looked(started_s)
        return tail


def written(away_s: Sequence[float], costs: tuple[float, float, float], seconds: float) -> Stream:
    """The stream, after its writers, which are so far away, have written for that time."""
    clock = ManualClock()
    machine, stream = Machine(clock), Stream(clock, costs, len(away_s))
    for number, away in enumerate(away_s):
        machine.start(stream.writer(number, away))
    machine.run(seconds)
    stream.ended()
    return stream


def commits(writers: int, costs: tuple[float, float, float], seconds: float) -> list[int]:
    """How many commits each of them makes in that time."""
    return written([0.0] * writers, costs, seconds).wins


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("costs", "seconds"),
    [
        pytest.param(CHEAP_LOOKS, 3, id="cheap looks"),
        pytest.param(DEAR_LOOKS, 3, id="looks of 10 ms"),
        pytest.param(DEARER_LOOKS, 9, id="looks of 25 ms"),
    ],
)
def test_eight_writers_make_most_of_what_one_makes_and_each_has_its_share(
    costs: tuple[float, float, float], seconds: float, seed: int
) -> None:
    random.seed(seed)
    [alone] = commits(1, costs, seconds)
    together = commits(8, costs, seconds)
    assert sum(together) >= 0.75 * alone
    assert min(together) >= 0.05 * sum(together)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("near", "away_s"), [(1, 0.01), (1, 0.02), (2, 0.01)])
def test_who_is_far_away_beside_writers_that_never_rest_has_turns(
    near: int, away_s: float, seed: int
) -> None:
    random.seed(seed)
    stream = written([away_s, *[0.0] * near], CHEAP_LOOKS, 60)
    assert stream.waits_s[0] < 10.0, "no longer than the time of a request"
    assert stream.wins[0] > 20


def test_who_writes_alone_for_long_leaves_little_to_somebody_who_never_comes() -> None:
    random.seed(0)
    stream = written([0.0], CHEAP_LOOKS, 120)
    assert sum(stream.wins) > 0.975 * 120 / CHEAP_LOOKS[0]
