"""What a guarded replay asks of recorded runs, and the count of the file that it is compared with."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from engines.client.agent_run_counts import count_file
from engines.client.agent_runs import plan_of, read_agent_runs
from engines.client.guarded_runs import GuardedRun, guarded_runs, read_user_costs
from engines.codec import encode_json
from engines.errors import Invalid

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "agent-runs.json"


def runs_of(path: Path = SAMPLE) -> tuple[GuardedRun, ...]:
    plans = [plan_of("sample", run) for run in read_agent_runs(path)]
    return guarded_runs("sample", plans, read_user_costs(path))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "runs.json"
    path.write_text(text)
    return path


def run_with(**fields: Any) -> dict[str, Any]:
    return {"task_id": 0, "trial": 0, "reward": 1, "traj": [], **fields}


def test_a_call_is_an_action_of_its_tool_on_its_place_in_the_file() -> None:
    first = runs_of()[0]
    assert [(call.action, call.subject, call.step_id) for call in first.calls] == [
        ("tool.find_booking", "0/0/2.0", "2.0"),
        ("tool.list_seats", "0/0/2.1", "2.1"),
        ("tool.change_seat", "0/0/7.0", "7.0"),
    ]
    assert first.calls[0].event_id == next(
        event.event_id for event in first.plan.events if event.event_type == "tool_call"
    )


def test_no_two_calls_share_a_subject_and_the_same_file_asks_the_same() -> None:
    subjects = [call.subject for run in runs_of() for call in run.calls]
    assert len(set(subjects)) == len(subjects) == 6
    assert encode_json(runs_of()) == encode_json(runs_of())


@pytest.mark.parametrize(
    "cost", ["0.0035475000000000003", "0.10", "1e-7", "12345678901234567890.12345678", "0"]
)
def test_a_cost_keeps_every_digit_of_the_file(tmp_path: Path, cost: str) -> None:
    """A float has seventeen of them at most."""
    text = '[{"task_id": 0, "trial": 0, "reward": 1, "traj": [], "info": {"user_cost": %s}}]'
    path = written(tmp_path, text % cost)
    (run,) = runs_of(path)
    assert run.cost == Decimal(cost) == count_file(path).cost


@pytest.mark.parametrize("info", [{}, {"info": {}}, {"info": {"user_cost": None}}])
def test_a_run_whose_cost_the_file_does_not_have_has_none(tmp_path: Path, info: dict[str, Any]) -> None:
    path = written(tmp_path, json.dumps([run_with(**info)]))
    assert runs_of(path)[0].cost is None
    assert count_file(path).costs == {}


def test_a_cost_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps([run_with(info={"user_cost": "much"})]))
    with pytest.raises(Invalid):
        read_user_costs(path)


def test_a_call_without_a_name_is_refused(tmp_path: Path) -> None:
    said = {"role": "assistant", "tool_calls": [{"id": "c", "function": {}}]}
    path = written(tmp_path, json.dumps([run_with(traj=[said])]))
    with pytest.raises(Invalid):
        runs_of(path)


def test_tasks_that_would_go_by_one_name_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps([run_with(), run_with(task_id="0")]))
    with pytest.raises(Invalid):
        runs_of(path)


def test_the_count_of_a_file() -> None:
    counts = count_file(SAMPLE)
    assert counts.runs == ["0/0", "0/1", "1/0", "1/1"]
    assert counts.by_tool == {"find_booking": 1, "list_seats": 1, "change_seat": 2, "ping": 2}
    assert (counts.cost, len(counts.costs), counts.succeeded) == (Decimal("0.0038"), 3, 2)
    assert count_file(SAMPLE, limit=1).runs == ["0/0"]
