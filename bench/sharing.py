"""Several processes that append: to one stream, and each to a stream of its own.

On one stream they meet: the commit of one is the conflict of all others. What matters is that together they
are not much slower than one alone, and that none is starved. Each process is told when to begin, appends for
some seconds with several callers, and says what it was acknowledged; the same processes take all turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.backends import Backend
from bench.measure import Detail, Goal, Result, absolute, compared
from bench.process import Calls, Outcome, Turn
from bench.stage import EVENT_BYTES, Stage

CALLERS: Final = 8
ANSWER_TIMEOUT_S: Final = 60.0
ROOT: Final = Path(__file__).resolve().parent.parent
COLUMNS: Final = (
    "processes",
    "streams",
    "events/s",
    "events a commit",
    "conflicts a commit",
    "reads a commit",
    "least share",
    "% of time: commits / conflicts / reads / the rest",
    "failed",
)
SUM_GOAL: Final = Goal("at least", 0.8)
SHARE_GOAL: Final = Goal("at least", 5, "%")


class Round(msgspec.Struct, frozen=True):
    """What some processes did at the same time."""

    outcomes: list[Outcome]

    @property
    def rate(self) -> float:
        """Events a second, of all."""
        return sum(outcome.appended / outcome.seconds for outcome in self.outcomes)

    @property
    def least_share(self) -> float:
        """Of the events of all, the part of whoever had least; in percent."""
        counts = [outcome.appended for outcome in self.outcomes]
        return 100 * min(counts) / max(1, sum(counts))

    @property
    def commits(self) -> int:
        return sum(outcome.calls.commits for outcome in self.outcomes)

    def for_each_commit(self, figure: Callable[[Outcome], float]) -> float:
        """The sum of all processes, for each commit of any."""
        return sum(map(figure, self.outcomes)) / max(1, self.commits)

    def part_of_time(self, figure: Callable[[Calls], float]) -> float:
        """Seconds of all processes, in percent of their time."""
        seconds = sum(outcome.seconds for outcome in self.outcomes)
        return 100 * sum(figure(outcome.calls) for outcome in self.outcomes) / seconds


# By how many processes there were, and whether they shared one stream: a round each.
Rounds = dict[tuple[int, bool], list[Round]]


def comparison(driver: str) -> Callable[[Stage], list[Result]]:
    """What `--only processes-{driver}` runs."""
    return functools.partial(_run, driver)


def _run(driver: str, stage: Stage) -> list[Result]:
    backend = stage.new_backend(driver)
    rounds = asyncio.run(_rounds(backend, stage))
    return _results(backend, rounds, max(stage.sizes.process_counts))


async def _rounds(backend: Backend, stage: Stage) -> Rounds:
    sizes = stage.sizes
    arrangements = [
        (count, shared) for count in sizes.process_counts for shared in (True, False) if shared or count > 1
    ]
    rounds: Rounds = {arrangement: [] for arrangement in arrangements}
    async with contextlib.AsyncExitStack() as stack:
        children = [
            await stack.enter_async_context(_child(backend)) for _ in range(max(sizes.process_counts))
        ]
        for number in range(sizes.process_rounds + 1):
            for count, shared in arrangements:
                names = [f"{number}-{count}-{'one' if shared else place}" for place in range(count)]
                turns = [Turn(name, CALLERS, sizes.process_seconds) for name in names]
                done = await _together(children, turns)
                if number > 0:
                    rounds[count, shared].append(done)
    return rounds


@contextlib.asynccontextmanager
async def _child(backend: Backend) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.process"),
        stdin=PIPE,
        stdout=PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))},
    )
    try:
        await _tell(child, backend)
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def _together(children: Sequence[asyncio.subprocess.Process], turns: Sequence[Turn]) -> Round:
    """All begin once the last is ready."""
    used = children[: len(turns)]
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        for child, turn in zip(used, turns, strict=True):
            await _tell(child, turn)
        for child in used:
            await _hear(child)
        for child in used:
            await _tell(child, "begin")
        return Round([msgspec.json.decode(await _hear(child), type=Outcome) for child in used])


async def _tell(child: asyncio.subprocess.Process, words: Any) -> None:
    assert child.stdin is not None
    child.stdin.write(msgspec.json.encode(words) + b"\n")
    await child.stdin.drain()


async def _hear(child: asyncio.subprocess.Process) -> bytes:
    assert child.stdout is not None
    line = await child.stdout.readline()
    if not line:
        raise RuntimeError("a process that appends has ended")
    return line


def _results(backend: Backend, rounds: Rounds, most: int) -> list[Result]:
    alone = [done.rate for done in rounds[1, True]]
    shared, own = rounds[most, True], rounds[most, False]
    what = f"{EVENT_BYTES}-byte events, {CALLERS} callers each, {backend.label}"
    sums = functools.partial(compared, unit="events/s", other_name="one process alone")
    return [
        sums(
            [done.rate for done in shared],
            alone,
            name=f"processes-{backend.driver}-one-stream",
            what=f"{most} processes on one stream, {what}",
            goal=SUM_GOAL,
            detail=_detail(backend, rounds),
        ),
        absolute(
            [done.least_share for done in shared],
            name=f"processes-{backend.driver}-least-share",
            what=f"least share of a process, {most} on one stream, {backend.label}",
            unit="%",
            goal=SHARE_GOAL,
            notes={"an even share, %": round(100 / most, 1)},
        ),
        sums(
            [done.rate for done in own],
            alone,
            name=f"processes-{backend.driver}-own-streams",
            what=f"{most} processes on {most} streams, {what}",
            goal=None,
        ),
    ]


def _detail(backend: Backend, rounds: Rounds) -> Detail:
    rows = [
        (str(count), "one" if shared else "one each", *_row(done)) for (count, shared), done in rounds.items()
    ]
    return Detail(f"Processes that append, {backend.label}", COLUMNS, tuple(rows))


def _row(rounds: Sequence[Round]) -> tuple[str, ...]:
    """In the order of COLUMNS from the third on; means of the rounds."""
    winning, losing, reading = (
        _mean([one.part_of_time(figure) for one in rounds]) for figure in (_commits_s, _conflicts_s, _reads_s)
    )
    return (
        f"{_mean([one.rate for one in rounds]):,.0f}",
        f"{_mean([one.for_each_commit(lambda outcome: outcome.appended) for one in rounds]):.1f}",
        f"{_mean([one.for_each_commit(lambda outcome: outcome.calls.conflicts) for one in rounds]):.2f}",
        f"{_mean([one.for_each_commit(lambda outcome: outcome.calls.reads) for one in rounds]):.2f}",
        f"{_mean([one.least_share for one in rounds]):.1f} %",
        f"{winning:.0f} / {losing:.0f} / {reading:.0f} / {max(0.0, 100 - winning - losing - reading):.0f}",
        str(sum(outcome.failed for one in rounds for outcome in one.outcomes)),
    )


def _commits_s(calls: Calls) -> float:
    return calls.commits_s


def _conflicts_s(calls: Calls) -> float:
    return calls.conflicts_s


def _reads_s(calls: Calls) -> float:
    return calls.reads_s


def _mean(figures: Sequence[float]) -> float:
    return sum(figures) / len(figures)
