"""`engines import`: bring data of other programs in."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Final

from cyclopts import App

from engines.cli.connection import DEFAULT, Connection
from engines.cli.guarded_imports import GuardedImport
from engines.cli.import_report import Bar, call_times, print_counts, print_failures, print_times
from engines.cli.output import FAILED, OK, AsJson, console, print_json, print_table
from engines.client import AsyncEngines, RetryPolicy
from engines.client.agent_runs import Plan, dataset_of, plan_of, read_agent_runs
from engines.client.replay import CONCURRENCY_DEFAULT, Tally, replay
from engines.client.replay_check import Checked, check
from engines.clock import SystemClock
from engines.errors import Invalid

# How long a call waits for a server that is away, such as one that is being started again.
WAIT_S: Final = 120.0
# Attempts within it: at one a second and never faster than the policy's pauses, the deadline comes first.
ATTEMPTS_MAX: Final = 10_000
DIFFERENCES_SHOWN: Final = 50
INTERRUPTED: Final = "interrupted: start the same command again, and it goes on where it was"

app = App(name="import", help="Bring data of other programs in.")


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
    guarded: bool = False,
    project: str | None = None,
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
    guarded
        Have every tool call decided by the gates too, take a unit of the project's budget for each that may
        happen, and measure each run's outcome. With --verify, count the file anew and compare.
    project
        With --guarded: the project whose budget pays, and of no other import; PROJECT-success is its KPI.
        Default: the dataset.
    """
    name = dataset_of(file, dataset)
    if project is not None and not guarded:
        raise Invalid("--project is whose budget a guarded replay takes: give --guarded too", field="project")
    plans = [plan_of(name, run) for run in read_agent_runs(file)[:limit]]
    gates = GuardedImport(file, name, project, plans, limit=limit) if guarded else None
    retry = RetryPolicy(attempts_max=ATTEMPTS_MAX, deadline_s=wait_s, pause_max_s=1.0)
    async with connection.client(retry=retry) as client:
        try:
            if gates is not None:
                await gates.prepare(client)
            tally = await _replay(client, plans, concurrency)
            if gates is not None:
                failed = frozenset(failure.run for failure in tally.failures)
                await gates.replay(client, without=failed, concurrency=concurrency)
            checked = await _check(client, plans, concurrency) if verify else None
            if gates is not None and verify:
                await gates.check(client)
        except asyncio.CancelledError:
            print(INTERRUPTED, file=sys.stderr)
            raise
    if as_json:
        summary = _summary(name, plans, tally, checked)
        print_json(summary if gates is None else {**summary, "guarded": gates.told()})
    else:
        _print_summary(name, tally, checked)
        if gates is not None:
            gates.print()
    is_well = not tally.failures and (checked is None or checked.difference_count == 0)
    return OK if is_well and (gates is None or gates.succeeded) else FAILED


async def _replay(client: AsyncEngines, plans: list[Plan], concurrency: int) -> Tally:
    with Bar("importing", plans) as bar:
        return await replay(client, plans, clock=SystemClock(), concurrency=concurrency, on_run=bar.advance)


async def _check(client: AsyncEngines, plans: list[Plan], concurrency: int) -> Checked:
    with Bar("comparing", plans) as bar:
        return await check(client, plans, concurrency=concurrency, on_run=bar.advance)


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
        "calls": call_times(tally),
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
    print_counts(tally)
    written = sum(tally.written.values())
    out.print(f"\n{written} records in {tally.elapsed_s:.1f} s, {written / tally.elapsed_s:.0f} a second\n")
    print_times(tally)
    print_failures(tally)
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
