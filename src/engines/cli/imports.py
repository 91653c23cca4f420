"""`engines import`: bring data of other programs in."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from cyclopts import App
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engines.cli.connection import DEFAULT, Connection
from engines.cli.output import FAILED, OK, AsJson, console, print_json, print_table
from engines.client import AsyncEngines, RetryPolicy
from engines.client.agent_runs import Plan, dataset_of, plan_of, read_agent_runs
from engines.client.replay import CONCURRENCY_DEFAULT, Tally, replay
from engines.client.replay_check import Checked, check
from engines.clock import SystemClock

# How long a call waits for a server that is away, such as one that is being started again.
WAIT_S: Final = 120.0
# Attempts within it: at one a second and never faster than the policy's pauses, the deadline comes first.
ATTEMPTS_MAX: Final = 10_000
# Where there is no terminal, a line after so many runs.
RUNS_PER_LINE: Final = 20
DIFFERENCES_SHOWN: Final = 50
INTERRUPTED: Final = "interrupted: start the same command again, and it goes on where it was"

app = App(name="import", help="Bring data of other programs in.")


class CallTimes(msgspec.Struct, frozen=True):
    """How long one kind of call took, in milliseconds, repeats included."""

    call: str
    count: int
    p50_ms: float
    p99_ms: float


@app.command
async def agent_runs(
    file: Path,
    /,
    *,
    dataset: str | None = None,
    verify: bool = False,
    concurrency: int = CONCURRENCY_DEFAULT,
    wait_s: float = WAIT_S,
    limit: int | None = None,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> int:
    """Replay recorded agent runs. Interrupted and started again, it neither loses nor doubles anything.

    Each run becomes a thread in event_stream; each message and tool call an event on the spine; tool results
    entries on the run's blackboard; the run itself an entry in session memory and a note with the outcome.

    Parameters
    ----------
    file
        A JSON list of runs with task_id, trial, reward, info and traj (chat messages).
    dataset
        The name from which ids derive, with task, trial and indexes. Default: the file's name.
    verify
        Read everything back afterwards and compare it as canonical JSON.
    concurrency
        Runs at once, 1 to 64.
    wait_s
        Seconds that one call waits for a server that is away.
    limit
        Only the first so many runs.
    """
    name = dataset_of(file, dataset)
    plans = [plan_of(name, run) for run in read_agent_runs(file)[:limit]]
    retry = RetryPolicy(attempts_max=ATTEMPTS_MAX, deadline_s=wait_s, pause_max_s=1.0)
    async with connection.client(retry=retry) as client:
        try:
            tally = await _replay(client, plans, concurrency)
            checked = await _check(client, plans, concurrency) if verify else None
        except asyncio.CancelledError:
            print(INTERRUPTED, file=sys.stderr)
            raise
    if as_json:
        print_json(_summary(name, plans, tally, checked))
    else:
        _print_summary(name, tally, checked)
    return OK if not tally.failures and (checked is None or checked.difference_count == 0) else FAILED


async def _replay(client: AsyncEngines, plans: list[Plan], concurrency: int) -> Tally:
    with _Bar("importing", plans) as bar:
        return await replay(client, plans, clock=SystemClock(), concurrency=concurrency, on_run=bar.advance)


async def _check(client: AsyncEngines, plans: list[Plan], concurrency: int) -> Checked:
    with _Bar("comparing", plans) as bar:
        return await check(client, plans, concurrency=concurrency, on_run=bar.advance)


class _Bar:
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

    def __enter__(self) -> _Bar:
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


def _times(tally: Tally) -> list[CallTimes]:
    found: list[CallTimes] = []
    for kind, durations_s in sorted(tally.durations_s.items()):
        ordered = sorted(durations_s)
        p50_s, p99_s = (ordered[min(len(ordered) * part // 100, len(ordered) - 1)] for part in (50, 99))
        found.append(CallTimes(kind, len(ordered), round(p50_s * 1000, 2), round(p99_s * 1000, 2)))
    return found


def _summary(dataset: str, plans: list[Plan], tally: Tally, checked: Checked | None) -> dict[str, Any]:
    written = sum(tally.written.values())
    summary: dict[str, Any] = {
        "dataset": dataset,
        "runs": dict(tally.runs),
        "records": sum(plan.records for plan in plans),
        "written": dict(tally.written),
        "already_there": dict(tally.found),
        "elapsed_s": round(tally.elapsed_s, 3),
        "records_per_s": round(written / tally.elapsed_s, 1),
        "calls": _times(tally),
        "failures": tally.failures,
    }
    if checked is not None:
        summary["verified"] = {
            "compared": dict(checked.compared),
            "difference_count": checked.difference_count,
            "differences": checked.differences,
        }
    return summary


def _print_summary(dataset: str, tally: Tally, checked: Checked | None) -> None:
    out = console()
    runs = ", ".join(f"{count} {state}" for state, count in sorted(tally.runs.items())) or "none"
    out.print(f"Runs of {dataset}: {runs}\n")
    kinds = sorted(tally.written.keys() | tally.found.keys())
    rows = [[kind, str(tally.written[kind]), str(tally.found[kind])] for kind in kinds]
    print_table(("records", "written", "already there"), rows)
    written = sum(tally.written.values())
    out.print(f"\n{written} records in {tally.elapsed_s:.1f} s, {written / tally.elapsed_s:.0f} a second\n")
    times = [[t.call, str(t.count), f"{t.p50_ms:.1f}", f"{t.p99_ms:.1f}"] for t in _times(tally)]
    print_table(("call", "count", "p50 ms", "p99 ms"), times)
    for failure in tally.failures:
        out.print(f"\nfailed: {failure.run}: {failure.code}: {failure.detail}")
    if checked is not None:
        _print_checked(checked)


def _print_checked(checked: Checked) -> None:
    compared = ", ".join(f"{count} {kind}" for kind, count in sorted(checked.compared.items()))
    console().print(f"\nRead back and compared: {compared}.")
    if checked.difference_count == 0:
        console().print("Everything is there once, and as the file has it.")
        return
    console().print(f"{checked.difference_count} differences:")
    rows = [[d.kind, d.record_id, d.what, d.run] for d in checked.differences[:DIFFERENCES_SHOWN]]
    print_table(("kind", "id", "what", "run"), rows)
