"""Set up what guards the tool calls of recorded agent runs, as the people of a deployment would do it.

Start a lab in one terminal, and run this in another; then replay a file under the same project:

    script/run --dir .lab
    .venv/bin/python examples/guard_agent_runs.py --lab .lab --project example
    .venv/bin/engines import agent-runs examples/agent-runs.json --lab .lab --as member \\
        --dataset example --guarded --verify

It may be run again: what stands stays as it is. `--without refunds` leaves out the licence for refunds, and
the gates refuse every one of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from engines.client import BudgetLimit, Engines, GateRule, NewBudgetPolicy
from engines.errors import Conflict, NotFound, PreconditionFailed

# Which tools are dangerous, in the words of the recorded airline's service desk and of the example's railway.
CLASSES = {
    "bookings": ("tool.book_*", "tool.update_reservation_*", "tool.change_seat"),
    "refunds": ("tool.cancel_*", "tool.send_certificate"),
}
GATES = ("kill_switch", "firearms", "budget", "kpi_corridor")


def main(options: argparse.Namespace) -> None:
    """Three people, each with what is theirs to say."""
    told = json.loads((options.lab / "lab.json").read_text())
    users = {user["role"]: user for user in told["users"].values()}
    url = told["url"]
    with (
        Engines(url, users["system_admin"]["token"]) as admin,
        Engines(url, users["owner"]["token"]) as owner,
        Engines(url, users["member"]["token"]) as member,
    ):
        me = member.me()
        classify(admin, me.tenant_id)
        license_classes(owner, me.user_id, without=options.without)
        give_a_budget(owner, options.project, options.hard)
        measure_success(owner, f"{options.project}-success", options.floor)
        assert me.surface_id is not None
        guard_tools(owner, me.surface_id)


def classify(admin: Engines, tenant_id: str) -> None:
    """t_system says which actions are dangerous, and which tenant may license itself for them."""
    for class_id, actions in CLASSES.items():
        firearm = {"risk_level": "high", "human_approval": False, "offered_to": [tenant_id]}
        what = f"class {class_id}, offered to {tenant_id}"
        once(what, admin.firearms.put, class_id, firearm, if_absent=True)
        binding = {"class_id": class_id, "actions": actions}
        what = f"{', '.join(actions)} bound to {class_id}"
        once(what, admin.firearm_bindings.put, class_id, binding, if_absent=True)


def license_classes(owner: Engines, user_id: str, *, without: list[str]) -> None:
    """The tenant's owner takes the licences, and grants their use to whoever replays."""
    for class_id in CLASSES:
        grant = {"class_id": class_id, "user_id": user_id}
        what = f"{user_id} granted {class_id}"
        once(what, owner.firearm_grants.put, f"{class_id}-{user_id}", grant, if_absent=True)
        if class_id not in without:
            licence = {"class_id": class_id}
            once(f"licence for {class_id}", owner.firearm_licences.put, class_id, licence, if_absent=True)


def give_a_budget(owner: Engines, project_id: str, hard: Decimal) -> None:
    """A project of the import's own, and what may be spent in it, beside the limits that stand."""
    project = {"project_id": project_id, "name": project_id}
    once(f"project {project_id}", owner.projects.create, project)
    limit = BudgetLimit(limit_id=f"{project_id}-total", period="total", hard=hard, project_id=project_id)
    what = f"at most {hard} USD in project {project_id}"
    try:
        policy = owner.budget.policy()
    except NotFound:
        policy = None
    if policy is None:
        new = NewBudgetPolicy(currency="USD", limits=(limit,))
        once(what, owner.budget.put_policy, new, if_absent=True)
    elif any(stands.limit_id == limit.limit_id for stands in policy.limits):
        print(f"stands   {what}")
    else:
        limits = (*policy.limits, limit)
        new = NewBudgetPolicy(currency=policy.currency, limits=limits, prices=policy.prices)
        once(what, owner.budget.put_policy, new, if_match=policy.etag)


def measure_success(owner: Engines, kpi_id: str, floor: float) -> None:
    """The share of runs that succeed, over ninety days. Below the floor no tool may be called any more."""
    kpi = {
        "name": "Successful runs",
        "aggregation": "mean",
        "window_seconds": 90 * 24 * 3600,
        "floor": floor,
        "ceiling": 1,
        "actions": ["tool.*"],
        "passes_unread": True,
    }
    once(f"KPI {kpi_id}, well from {floor} to 1", owner.kpis.put, kpi_id, kpi, if_absent=True)


def guard_tools(owner: Engines, surface_id: str) -> None:
    """Which gates every tool of the surface passes, in order."""
    rules = (GateRule(action="tool.*", gates=GATES),)
    what = f"tool.* on {surface_id} guarded by {', '.join(GATES)}"
    once(what, owner.gates.put_config, surface_id, rules=rules, if_absent=True)


def once(what: str, change: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Make a change unless it was made before."""
    try:
        change(*arguments, **options)
    except (Conflict, PreconditionFailed):
        print(f"stands   {what}")
    else:
        print(f"set up   {what}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lab", type=Path, default=Path(".lab"), help="the lab's directory")
    parser.add_argument("--project", default="example", help="the import's project: by default its dataset")
    parser.add_argument("--hard", type=Decimal, default=Decimal(5), help="its hard limit, in USD")
    parser.add_argument("--floor", type=float, default=0.0, help="the least share of runs that succeed")
    parser.add_argument(
        "--without", action="append", default=[], choices=CLASSES, help="leave this unlicensed"
    )
    main(parser.parse_args())
