"""The guarded part of `engines import agent-runs`: tool calls through the gates, and counts that must agree.

Owns what it needs of the file and how its outcome is told. Leaves the replay to `client/guarded_replay.py`
and the comparison to `client/guarded_check.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from engines.cli.import_report import Bar, call_times, print_counts, print_failures, print_times
from engines.cli.output import console, print_table
from engines.client import AsyncEngines
from engines.client.agent_run_counts import count_file
from engines.client.agent_runs import Plan
from engines.client.guarded_check import Agreement, check_agreement
from engines.client.guarded_replay import GuardedTally, Target, check_target, guarded_replay
from engines.client.guarded_runs import guarded_runs, read_user_costs
from engines.clock import SystemClock

DIFFERENCES_SHOWN: Final = 50
_VERDICT: Final = {True: "", False: "differs"}


class GuardedImport:
    """One file's tool calls, decided and counted."""

    def __init__(
        self, file: Path, dataset: str, project: str | None, plans: Sequence[Plan], *, limit: int | None
    ) -> None:
        """Nothing is sent yet. Raises Invalid for a file with a cost that is none, or a call without name."""
        self._file = file
        self._dataset = dataset
        self._plans = plans
        self._limit = limit
        project_id = dataset if project is None else project
        self._target = Target(project_id=project_id, kpi_id=f"{project_id}-success")
        self._runs = guarded_runs(dataset, plans, read_user_costs(file))
        self._tally: GuardedTally | None = None
        self._agreement: Agreement | None = None

    async def prepare(self, client: AsyncEngines) -> None:
        """Before anything is written. Raises ContextMismatch (no such project), NotFound (no such KPI)."""
        await check_target(client, self._target)

    async def replay(self, client: AsyncEngines, *, without: Collection[str], concurrency: int) -> None:
        """Have every call decided, but those of the runs that could not be imported."""
        runs = [run for run in self._runs if run.plan.name not in without]
        with Bar("deciding", [run.plan for run in runs]) as bar:
            self._tally = await guarded_replay(
                client,
                runs,
                self._target,
                clock=SystemClock(),
                concurrency=concurrency,
                on_run=lambda run: bar.advance(run.plan),
            )

    async def check(self, client: AsyncEngines) -> None:
        """Count the file anew and compare."""
        counts = count_file(self._file, limit=self._limit)
        self._agreement = await check_agreement(client, counts, self._dataset, self._plans, self._target)

    @property
    def succeeded(self) -> bool:
        """Whether every run was replayed and, where they were compared, the counts agree."""
        failed = self._tally is not None and bool(self._tally.did.failures)
        return not failed and (self._agreement is None or self._agreement.agrees)

    def told(self) -> dict[str, Any]:
        """For programs."""
        assert self._tally is not None
        did = self._tally.did
        summary: dict[str, Any] = {
            "project_id": self._target.project_id,
            "kpi_id": self._target.kpi_id,
            "runs": dict(did.runs),
            "written": dict(did.written),
            "already_there": dict(did.found),
            "refused": _refused(self._tally),
            "elapsed_s": round(did.elapsed_s, 3),
            "calls": call_times(did),
            "failures": did.failures,
        }
        found = self._agreement
        if found is not None:
            summary["agreement"] = {
                "agrees": found.agrees,
                "counts": [
                    {"what": row.what, "file": row.file, "server": row.server, "agrees": row.agrees}
                    for row in found.rows
                ],
                "tools": found.tools,
                "refusals": found.refusals,
                "difference_count": found.difference_count,
                "differences": found.differences,
            }
        return summary

    def print(self) -> None:
        """For people."""
        assert self._tally is not None
        did, out = self._tally.did, console()
        runs = ", ".join(f"{count} {state}" for state, count in sorted(did.runs.items())) or "none"
        out.print(f"\nGuarded, project {self._target.project_id}: {runs}\n")
        print_counts(did)
        out.print("")
        print_times(did)
        print_failures(did)
        if self._agreement is not None:
            _print_agreement(self._agreement)


def _refused(tally: GuardedTally) -> list[dict[str, Any]]:
    return [
        {"gate": gate, "reason_code": reason_code, "action": action, "count": count}
        for (gate, reason_code, action), count in sorted(tally.refused.items())
    ]


def _print_agreement(found: Agreement) -> None:
    out = console()
    out.print("\nThe file, counted anew, and the server:\n")
    rows = [[row.what, row.file, row.server, _VERDICT[row.agrees]] for row in found.rows]
    print_table(("", "file", "server", " "), rows)
    out.print("")
    tools = [
        [tool.tool, *map(str, (tool.calls, tool.passed, tool.refused, tool.units)), _VERDICT[tool.agrees]]
        for tool in found.tools
    ]
    print_table(("tool", "calls", "passed", "refused", "units", " "), tools)
    if found.refusals:
        out.print("")
        refusals = [
            [one.action, one.gate, one.gate_status, one.reason_code, str(one.count)] for one in found.refusals
        ]
        print_table(("refused", "by the gate", "which was", "because", "calls"), refusals)
    for difference in found.differences[:DIFFERENCES_SHOWN]:
        out.print(f"{difference.what}: {difference.kind} {difference.place}")
    out.print("\nThe counts agree." if found.agrees else "\nThe counts do not agree.")
