"""What a guarded replay asks, uses and measures of a recorded run: each tool call, its cost, its outcome.

Owns the names of these (actions, subjects, keys, notes, labels) and the exact cost of each run. Nothing here
speaks to a server: that is `client/guarded_replay.py`; the count to compare with is
`client/agent_run_counts.py`, which shares nothing with this.

A tool call is the action `tool.NAME`, so that one rule of a surface's gates guards every tool (`tool.*`) and
nothing else, and its subject is its place, `TASK/TRIAL/MESSAGE.CALL`, which is the only one of its dataset.
Ids are derived as those of `client/agent_runs.py` are.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec

from engines.client.agent_runs import NAMESPACE, Plan
from engines.client.gate_results import Cost
from engines.client.results import NewEvent
from engines.codec import canonical_json
from engines.errors import Invalid

ACTION_PREFIX: Final = "tool."
# `user_cost` is what the simulated user's model was paid, in this currency: the file does not say so itself.
CURRENCY: Final = "USD"


class GuardedCall(msgspec.Struct, frozen=True, kw_only=True):
    """One tool call. `event_id`: its event on the spine, which the decision has as its parent."""

    event_id: str
    step_id: str
    tool: str
    subject: str
    details: dict[str, Any]

    @property
    def action(self) -> str:
        """What the gates are asked."""
        return f"{ACTION_PREFIX}{self.tool}"

    @property
    def cost(self) -> Cost:
        """A call is a unit of the ledger and costs nothing by itself: the file knows costs of whole runs."""
        return Cost(amount="0", currency=CURRENCY, tool=self.tool)


class GuardedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `cost`: `info.user_cost`, with every digit of the file, None where the file has none."""

    plan: Plan
    place: str
    calls: tuple[GuardedCall, ...]
    cost: Decimal | None
    succeeded: bool
    labels: dict[str, str]
    reward: NewEvent


def guarded_run(dataset: str, plan: Plan, cost: Decimal | None) -> GuardedRun:
    """What `plan` becomes beside its records. The same input gives the same, to the byte."""
    task_id, trial = plan.facts["task_id"], plan.facts["trial"]
    place = f"{task_id}/{trial}"
    return GuardedRun(
        plan=plan,
        place=place,
        calls=tuple(_call(place, event) for event in plan.events if event.event_type == "tool_call"),
        cost=cost,
        succeeded=plan.facts["reward"] >= 1,
        labels={"dataset": dataset, "run": place},
        reward=_reward(dataset, plan),
    )


def read_user_costs(path: Path) -> Mapping[str, Decimal | None]:
    """`info.user_cost` of every run by task and trial (`cost_key`), as the file writes it: no float between.

    Raises Invalid for a file that is none of runs.
    """
    try:
        runs = msgspec.json.decode(path.read_bytes(), type=list[_CostedRun])
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}", field="file") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{path.name} has a cost that is no number: {error}", field="file") from error
    return {cost_key(run.task_id, run.trial): run.info.user_cost for run in runs}


def cost_key(task_id: int | str, trial: int) -> str:
    """What tells runs of one file apart."""
    return canonical_json([task_id, trial])


def guarded_runs(
    dataset: str, plans: Sequence[Plan], costs: Mapping[str, Decimal | None]
) -> tuple[GuardedRun, ...]:
    """The runs of `plans`, each with its cost. Raises Invalid where two of them would go by one name."""
    runs = tuple(
        guarded_run(dataset, plan, costs[cost_key(plan.facts["task_id"], plan.facts["trial"])])
        for plan in plans
    )
    if len({run.place for run in runs}) < len(runs):
        raise Invalid("two tasks differ only as a number and its text", field="task_id")
    return runs


class _Info(msgspec.Struct, frozen=True):
    user_cost: Decimal | None = None


class _CostedRun(msgspec.Struct, frozen=True):
    task_id: int | str
    trial: int
    info: _Info = _Info()


def _call(place: str, event: NewEvent) -> GuardedCall:
    payload = event.payload
    function = payload["tool_call"].get("function")
    tool = function.get("name") if isinstance(function, dict) else None
    if not isinstance(tool, str):
        raise Invalid("a tool call has a function with a name", field="traj.tool_calls.function.name")
    assert event.event_id is not None
    assert event.step_id is not None
    return GuardedCall(
        event_id=event.event_id,
        step_id=event.step_id,
        tool=tool,
        subject=f"{place}/{event.step_id}",
        details={
            name: payload[name] for name in ("dataset", "task_id", "trial", "message_index", "call_index")
        },
    )


def _reward(dataset: str, plan: Plan) -> NewEvent:
    """The run's reward as training reads it, behind everything that was said."""
    task_id, trial = plan.facts["task_id"], plan.facts["trial"]
    namespace = uuid.uuid5(NAMESPACE, dataset)
    return NewEvent(
        event_id=str(uuid.uuid5(namespace, canonical_json([task_id, trial, "reward"]))),
        event_type="rl",
        run_id=plan.run_id,
        thread_id=plan.run_id,
        parent_event_id=plan.messages[-1].event_id if plan.messages else None,
        source="connector",
        payload={
            "kind": "reward",
            "value": plan.facts["reward"],
            "terminated": True,
            "details": {"dataset": dataset, "task_id": task_id, "trial": trial},
        },
    )
