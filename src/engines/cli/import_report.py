"""What an import shows while it works, and how long its calls took.

Owns the progress bar and the times, which every part of an import shares. Leaves what was imported to
`cli/imports.py` and what was decided to `cli/guarded_imports.py`.
"""

from __future__ import annotations

import sys
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engines.cli.output import console, print_table
from engines.client.agent_runs import Plan
from engines.client.replay import Tally

# Where there is no terminal, a line after so many runs.
RUNS_PER_LINE: Final = 20


class CallTimes(msgspec.Struct, frozen=True):
    """How long one kind of call took, in milliseconds, repeats included."""

    call: str
    count: int
    p50_ms: float
    p99_ms: float


class Bar:
    """A progress bar on a terminal, a line now and then elsewhere.

    On standard error, so that output stays clean.
    """

    def __init__(self, what: str, plans: list[Plan]) -> None:
        self._what = what
        self._runs = len(plans)
        self._runs_done = self._records_done = 0
        self._shown = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self._shown,
        )
        self._task = self._progress.add_task(what, total=sum(plan.records for plan in plans))

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, plan: Plan) -> None:
        self._runs_done += 1
        self._records_done += plan.records
        self._progress.advance(self._task, plan.records)
        last = self._runs_done == self._runs
        if not self._shown and (last or self._runs_done % RUNS_PER_LINE == 0):
            told = f"{self._what}: {self._runs_done} of {self._runs} runs, {self._records_done} records"
            print(told, file=sys.stderr, flush=True)


def call_times(tally: Tally) -> list[CallTimes]:
    """Each kind of call by its name."""
    found: list[CallTimes] = []
    for kind, durations_s in sorted(tally.durations_s.items()):
        ordered = sorted(durations_s)
        p50_s, p99_s = (ordered[min(len(ordered) * part // 100, len(ordered) - 1)] for part in (50, 99))
        found.append(CallTimes(kind, len(ordered), round(p50_s * 1000, 2), round(p99_s * 1000, 2)))
    return found


def print_counts(tally: Tally) -> None:
    """What was written, and what was there already."""
    kinds = sorted(tally.written.keys() | tally.found.keys())
    rows = [[kind, str(tally.written[kind]), str(tally.found[kind])] for kind in kinds]
    print_table(("records", "written", "already there"), rows)


def print_times(tally: Tally) -> None:
    """How long each kind of call took."""
    times = [[t.call, str(t.count), f"{t.p50_ms:.1f}", f"{t.p99_ms:.1f}"] for t in call_times(tally)]
    print_table(("call", "count", "p50 ms", "p99 ms"), times)


def print_failures(tally: Tally) -> None:
    """Each run that could not be taken."""
    for failure in tally.failures:
        console().print(f"\nfailed: {failure.run}: {failure.code}: {failure.detail}")
