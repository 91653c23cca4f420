"""How things are compared: in short rounds that alternate, by the median of the ratios of each round.

Owns rounds, spreads, goals and what a comparison reports. A machine that is slower for a while is slower
for both sides of a round, so a ratio survives what an absolute rate does not. Leaves what is run to the
comparisons.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

import msgspec

Side = Callable[[int], Awaitable[float]]


class Spread(msgspec.Struct, frozen=True):
    """The median of what rounds gave, and the extremes."""

    median: float
    least: float
    most: float


class Goal(msgspec.Struct, frozen=True):
    """What a ratio, or an absolute figure in `unit`, should be."""

    sense: Literal["at least", "at most", "within"]
    value: float
    unit: str = "of the other"

    def met_by(self, figure: float) -> bool:
        """`within`: no farther from 1 than the value."""
        if self.sense == "within":
            return 1 - self.value <= figure <= 1 + self.value
        return figure >= self.value if self.sense == "at least" else figure <= self.value


class Detail(msgspec.Struct, frozen=True):
    """A table of its own: what a result was made from."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. `ours` and `other` are medians in `unit`.

    `judged` is what the goal is about: the ratio ours/other, or `ours` itself where there is no other side.
    `cpu` is the same ratio of processor time, of this process or of the server, where that was taken. `goal`
    is None for what is only told.
    """

    name: str
    what: str
    unit: str
    ours: Spread
    other_name: str | None = None
    other: Spread | None = None
    judged: Spread
    cpu: Spread | None = None
    goal: Goal | None
    rounds: int
    notes: dict[str, float | int | str] = {}
    detail: Detail | None = None

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.goal.met_by(self.judged.median)


def spread(figures: Sequence[float]) -> Spread:
    return Spread(statistics.median(figures), min(figures), max(figures))


def compared(
    ours: Sequence[float],
    other: Sequence[float],
    *,
    name: str,
    what: str,
    unit: str,
    other_name: str,
    goal: Goal | None,
    cpu: Sequence[float] | None = None,
    notes: Mapping[str, float | int | str] | None = None,
    detail: Detail | None = None,
) -> Result:
    """The result of rounds in which both sides ran, in the same order."""
    assert len(ours) == len(other) > 0
    return Result(
        name=name,
        what=what,
        unit=unit,
        ours=spread(ours),
        other_name=other_name,
        other=spread(other),
        judged=spread([mine / theirs for mine, theirs in zip(ours, other, strict=True)]),
        cpu=None if cpu is None else spread(cpu),
        goal=goal,
        rounds=len(ours),
        notes=dict(notes or {}),
        detail=detail,
    )


def absolute(
    figures: Sequence[float],
    *,
    name: str,
    what: str,
    unit: str,
    goal: Goal | None,
    notes: Mapping[str, float | int | str] | None = None,
    detail: Detail | None = None,
) -> Result:
    """The result of a figure that has no other side."""
    return Result(
        name=name,
        what=what,
        unit=unit,
        ours=spread(figures),
        judged=spread(figures),
        goal=goal,
        rounds=len(figures),
        notes=dict(notes or {}),
        detail=detail,
    )


async def alternate(rounds: int, *sides: Side) -> list[list[float]]:
    """The figures of each side, which take turns: A B A B. A round of each goes before, and is not counted.

    Sides are told the number of the round, 0 for the one that is not counted.
    """
    figures: list[list[float]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for side, kept in zip(sides, figures, strict=True):
            figure = await side(number)
            if number > 0:
                kept.append(figure)
    return figures


class Stopwatch:
    """Seconds since it was made, and this process's processor time since then."""

    def __init__(self) -> None:
        self._started_s = time.perf_counter()
        self._started_cpu_s = time.process_time()

    def seconds(self) -> float:
        return time.perf_counter() - self._started_s

    def cpu_seconds(self) -> float:
        return time.process_time() - self._started_cpu_s
