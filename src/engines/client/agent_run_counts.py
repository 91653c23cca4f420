"""Counting a file of recorded runs by itself: how many tool calls, what they cost, how many runs succeeded.

What a guarded replay left behind is compared with this (`client/guarded_check.py`). It shares nothing with
what plans and writes the replay, not even the reader of JSON: what both got wrong would agree with itself.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from decimal import Context, Decimal, Inexact
from pathlib import Path
from typing import Any, Final

# Beyond any sum of a file's costs; a digit that were lost all the same would be an exception.
_EXACT: Final = Context(prec=100, traps=[Inexact])


@dataclass(frozen=True, kw_only=True)
class FileCounts:
    """What the file says. `calls`: the tool of each call by its place, `TASK/TRIAL/MESSAGE.CALL`."""

    runs: list[str] = field(default_factory=list)
    calls: dict[str, str] = field(default_factory=dict)
    costs: dict[str, Decimal] = field(default_factory=dict)
    rewards: dict[str, Decimal] = field(default_factory=dict)

    @property
    def by_tool(self) -> Counter[str]:
        """How often each tool is called."""
        return Counter(self.calls.values())

    @property
    def cost(self) -> Decimal:
        """The sum of all costs, exactly."""
        return exact_sum(*self.costs.values())

    @property
    def succeeded(self) -> int:
        """Runs with the full reward."""
        return sum(reward >= 1 for reward in self.rewards.values())


def count_file(path: Path, *, limit: int | None = None) -> FileCounts:
    """Count the file's first `limit` runs, or all of them."""
    counts = FileCounts()
    runs: list[dict[str, Any]] = json.loads(path.read_text("utf-8"), parse_float=Decimal)
    for run in runs[:limit]:
        place = f"{run['task_id']}/{run['trial']}"
        counts.runs.append(place)
        counts.rewards[place] = Decimal(run["reward"])
        cost = run.get("info", {}).get("user_cost")
        if cost is not None:
            counts.costs[place] = Decimal(cost)
        for index, message in enumerate(run["traj"]):
            for number, call in enumerate(message.get("tool_calls") or ()):
                counts.calls[f"{place}/{index}.{number}"] = call["function"]["name"]
    return counts


def exact_sum(*values: Decimal) -> Decimal:
    """The sum, every digit of it."""
    result = Decimal(0)
    for value in values:
        result = _EXACT.add(result, value)
    return result
