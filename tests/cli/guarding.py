"""What guards recorded runs in a lab, set up by the example that a reader follows; and files of runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.client import Cost, Decision
from engines.client import Engines as Client
from tests.cli.conftest import SAMPLE
from tests.cli.lab import LabProcess

EXAMPLE = SAMPLE.with_name("guard_agent_runs.py")
KNOWN_S = 20.0
# One action of each class that the example defines.
DANGEROUS = {"bookings": "tool.book_nothing", "refunds": "tool.cancel_nothing"}


def set_up(lab: LabProcess, project: str, *more: str) -> str:
    """What the example printed. Returns once every process knows of it: definitions may be a second old."""
    command = [sys.executable, str(EXAMPLE), "--lab", str(lab.directory), "--project", project, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for class_id, action in DANGEROUS.items():
        if class_id not in more:
            _known(lab, project, action)
    return done.stdout


def _known(lab: LabProcess, project: str, action: str) -> None:
    """Rehearse until a dangerous action is judged by the rule for tools, and by its licence."""

    def is_known(decision: Decision) -> bool:
        judged = [gate.gate for gate in decision.gates or ()]
        return decision.passed and judged == ["kill_switch", "firearms", "budget", "kpi_corridor"]

    _rehearse(lab, project, action, is_known)


def until_refused(lab: LabProcess, project: str, action: str) -> None:
    """What was measured is known to the gates within a second."""
    _rehearse(lab, project, action, lambda decision: not decision.passed)


def _rehearse(lab: LabProcess, project: str, action: str, holds: Callable[[Decision], bool]) -> None:
    with Client(lab.file.url, lab.file.user("member").token, project_id=project) as client:
        deadline_s = time.monotonic() + KNOWN_S
        cost = Cost(amount="0", currency="USD")
        while not holds(decision := client.gates.evaluate(action, cost=cost, dry_run=True, explain=True)):
            assert time.monotonic() < deadline_s, decision
            time.sleep(0.05)


def new_project(lab: LabProcess, project: str) -> None:
    """One more project with a KPI, where tools are guarded already."""
    with Client(lab.file.url, lab.file.user("owner").token) as owner:
        owner.projects.create({"project_id": project, "name": project})
        kpi = {"aggregation": "mean", "window_seconds": 3600, "floor": 0, "ceiling": 1, "passes_unread": True}
        owner.kpis.put(f"{project}-success", kpi, if_absent=True)


def run_of(task_id: int | str, *tools: str, reward: float = 1.0, cost: str | None = None) -> dict[str, Any]:
    """A run that calls these tools, one a message."""
    traj: list[dict[str, Any]] = [{"role": "user", "content": "Please."}]
    for number, tool in enumerate(tools):
        function = {"name": tool, "arguments": "{}"}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        traj.append({"role": "assistant", "content": None, "tool_calls": [call]})
        traj.append({"role": "tool", "tool_call_id": f"call_{number}", "name": tool, "content": "done"})
    info = {} if cost is None else {"user_cost": cost}
    return {"task_id": task_id, "trial": 0, "reward": reward, "info": info, "traj": traj}


def write_runs(path: Path, runs: list[dict[str, Any]]) -> Path:
    """The runs as a file, whose costs are the numbers that their texts write."""
    text = json.dumps(runs)
    for run in runs:
        cost = run["info"].get("user_cost")
        if isinstance(cost, str):
            text = text.replace(f'"user_cost": "{cost}"', f'"user_cost": {cost}')
    path.write_text(text)
    return path
