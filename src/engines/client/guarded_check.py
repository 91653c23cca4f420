"""Whether spine, ledger and KPI agree with a count of the file, after a guarded replay.

Owns the comparison: what the server says, read through the same API as everything else, with what
`client/agent_run_counts.py` counted. Nothing of the plan is looked at but where each run's replay began.

Each tool call is one decision on the spine; each decision that let one pass is one unit in the ledger, each
that refused is none; each cost is one entry more; each run is one measurement and one reward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from engines.client.agent_run_counts import FileCounts
from engines.client.agent_runs import Plan
from engines.client.engines import AsyncEngines
from engines.client.guarded_replay import Target, read_progress
from engines.client.results import Event

DIFFERENCES_MAX: Final = 1_000
ACTION: Final = "tool."


class Row(msgspec.Struct, frozen=True):
    """One number twice: as the file has it (less what the gates refused) and as the server says it."""

    what: str
    file: str
    server: str

    @property
    def agrees(self) -> bool:
        return self.file == self.server


class ToolRow(msgspec.Struct, frozen=True):
    """One tool: its calls in the file, its decisions on the spine, its units in the ledger."""

    tool: str
    calls: int
    passed: int
    refused: int
    units: int

    @property
    def agrees(self) -> bool:
        return self.calls == self.passed + self.refused and self.passed == self.units


class Refusals(msgspec.Struct, frozen=True):
    """How many calls a gate refused for one reason."""

    gate: str
    reason_code: str
    gate_status: str
    action: str
    count: int


class Mismatch(msgspec.Struct, frozen=True):
    """A record that is not as the file says. `what`: missing, doubled, different or unexpected."""

    kind: str
    place: str
    what: str


class Agreement(msgspec.Struct):
    """The three counts and what differs; at most `DIFFERENCES_MAX` are kept, all are counted."""

    rows: list[Row]
    tools: list[ToolRow]
    refusals: list[Refusals]
    differences: list[Mismatch]
    difference_count: int = 0

    @property
    def agrees(self) -> bool:
        """Whether everything does."""
        return (
            self.difference_count == 0
            and all(row.agrees for row in self.rows)
            and all(tool.agrees for tool in self.tools)
        )

    def differ(self, kind: str, place: str, what: str) -> None:
        self.difference_count += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(Mismatch(kind, place, what))


async def check_agreement(
    client: AsyncEngines, counts: FileCounts, dataset: str, plans: Sequence[Plan], target: Target
) -> Agreement:
    """Read spine, ledger and KPI, and compare them with the file."""
    bound = client.bound(project_id=target.project_id)
    agreement = Agreement([], [], [], [])
    after = await _before_everything(client, plans)
    decisions = await _decisions(bound, dataset, after)
    _compare_decisions(agreement, counts, decisions)
    await _compare_ledger(agreement, bound, counts, decisions)
    await _compare_entries(agreement, bound, counts, decisions, target)
    await _compare_kpi(agreement, bound, counts, dataset, target)
    await _compare_rewards(agreement, bound, counts, dataset, after)
    return agreement


async def _before_everything(client: AsyncEngines, plans: Sequence[Plan]) -> str | None:
    """The cursor behind which every decision lies: where the spine stood when the first run was begun."""
    found = [await read_progress(client.memory, plan.run_id) for plan in plans]
    begun = [progress for progress in found if progress is not None]
    earliest = min(begun, key=lambda progress: progress.spine_position, default=None)
    return None if earliest is None else earliest.spine_after


# --- the spine ---


async def _decisions(client: AsyncEngines, dataset: str, after: str | None) -> list[Event]:
    """Every decision about the dataset's calls, as somebody replays the spine who knows nothing of runs."""
    return [
        event
        async for event in client.events.each(after=after, event_type="safety")
        if event.payload is not None
        and event.payload["asked"].get("dataset") == dataset
        and not event.payload["dry_run"]
    ]


def _compare_decisions(agreement: Agreement, counts: FileCounts, decisions: Sequence[Event]) -> None:
    seen: Counter[str] = Counter()
    refusals: Counter[tuple[str, str, str, str]] = Counter()
    for event in decisions:
        said: dict[str, Any] = event.payload or {}
        subject = said["subject"]
        seen[subject] += 1
        if subject in counts.calls and not _tells(event, subject, counts.calls[subject]):
            agreement.differ("decision", subject, "different")
        if said["result"] == "block":
            refusals[said["gate"], said["reason_code"], said["gate_status"], said["action"]] += 1
    _compare_places(agreement, "decision", counts.calls, seen)
    agreement.rows.append(
        Row("tool calls, decisions on the spine", str(len(counts.calls)), str(len(decisions)))
    )
    agreement.refusals = [Refusals(*about, count) for about, count in sorted(refusals.items())]


def _tells(event: Event, subject: str, tool: str) -> bool:
    """The call that stands at this place, and a gate with every refusal and with none that passes."""
    said: dict[str, Any] = event.payload or {}
    asked = said["asked"]
    run = f"{asked.get('task_id')}/{asked.get('trial')}"
    place = f"{run}/{asked.get('message_index')}.{asked.get('call_index')}"
    refuses = said["result"] == "block"
    return (
        said["action"] == f"{ACTION}{tool}"
        and place == subject
        and event.step_id == subject.rpartition("/")[2]
        and refuses == (said["gate"] is not None)
    )


# --- the ledger ---


async def _compare_ledger(
    agreement: Agreement, client: AsyncEngines, counts: FileCounts, decisions: Iterable[Event]
) -> None:
    results: Counter[tuple[str, str]] = Counter()
    for event in decisions:
        said: dict[str, Any] = event.payload or {}
        results[said["action"].removeprefix(ACTION), said["result"]] += 1
    summary = await client.budget.summary(by="tool")
    units = {line.value: line.units for line in summary.by["tool"] if line.value is not None}
    calls = counts.by_tool
    agreement.tools = [
        ToolRow(tool, calls[tool], results[tool, "pass"], results[tool, "block"], units.get(tool, 0))
        for tool in sorted({*calls, *units, *(tool for tool, _ in results)})
    ]
    refused = sum(row.refused for row in agreement.tools)
    used = len(counts.calls) - refused
    less = f" (less {refused} refused)" if refused else ""
    agreement.rows += [
        Row(f"tool calls{less}, units in the ledger", str(used), str(summary.total.units)),
        Row(
            "the same and runs with a cost, entries in the ledger",
            str(used + len(counts.costs)),
            str(summary.total.entries),
        ),
        Row("cost of the runs, cost in the ledger", _plain(counts.cost), _plain(summary.total.cost)),
    ]


async def _compare_entries(
    agreement: Agreement,
    client: AsyncEngines,
    counts: FileCounts,
    decisions: Iterable[Event],
    target: Target,
) -> None:
    """One entry of one unit for each call that happened, and the run's own cost for each that has one."""
    used_calls = {
        event.payload["subject"]: event.payload["action"].removeprefix(ACTION)
        for event in decisions
        if event.payload is not None and event.payload["result"] == "pass"
    }
    seen: Counter[str] = Counter()
    async for entry in client.budget.each(project_id=target.project_id):
        place = entry.note or entry.usage_id
        seen[place] += 1
        cost = Decimal(entry.cost)
        is_call = (entry.tool, entry.units) == (used_calls.get(place), 1) and cost == 0
        is_cost = (entry.tool, entry.units) == (None, 0) and cost == counts.costs.get(place)
        if (place in used_calls and not is_call) or (place in counts.costs and not is_cost):
            agreement.differ("ledger entry", place, "different")
    _compare_places(agreement, "ledger entry", {**used_calls, **counts.costs}, seen)


def _plain(amount: Decimal) -> str:
    """Every digit, without zeros at the end: 0.50 is 0.5."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


# --- the KPI ---


async def _compare_kpi(
    agreement: Agreement, client: AsyncEngines, counts: FileCounts, dataset: str, target: Target
) -> None:
    """The windowed reading, and each measurement that it may rest on."""
    seen: Counter[str] = Counter()
    async for one in client.kpis.each_measurement(target.kpi_id):
        if one.labels.get("dataset") != dataset:
            agreement.differ("measurement", one.measurement_id, "unexpected")
            continue
        place = one.labels.get("run", "")
        seen[place] += 1
        if place in counts.rewards and one.value != float(counts.rewards[place] >= 1):
            agreement.differ("measurement", place, "different")
    _compare_places(agreement, "measurement", counts.rewards, seen)
    reading = await client.kpis.reading(target.kpi_id)
    runs = len(counts.runs)
    expected = counts.succeeded / runs if runs else None
    agreement.rows += [
        Row("runs, measurements in the KPI's window", str(runs), str(reading.count)),
        Row("share of runs that succeeded, the KPI's reading", str(expected), str(reading.value)),
    ]


async def _compare_rewards(
    agreement: Agreement, client: AsyncEngines, counts: FileCounts, dataset: str, after: str | None
) -> None:
    seen: Counter[str] = Counter()
    async for event in client.events.each(after=after, event_type="rl"):
        said: dict[str, Any] = event.payload or {}
        about = said.get("details", {})
        if said.get("kind") != "reward" or about.get("dataset") != dataset:
            continue
        place = f"{about.get('task_id')}/{about.get('trial')}"
        seen[place] += 1
        if place in counts.rewards and said["value"] != float(counts.rewards[place]):
            agreement.differ("reward", place, "different")
    _compare_places(agreement, "reward", counts.rewards, seen)
    agreement.rows.append(Row("runs, rewards on the spine", str(len(counts.runs)), str(seen.total())))


def _compare_places(
    agreement: Agreement, kind: str, expected: Mapping[str, object], seen: Counter[str]
) -> None:
    """Every place once, and no other."""
    for place in expected:
        if seen[place] != 1:
            agreement.differ(kind, place, "missing" if seen[place] == 0 else "doubled")
    for place in seen.keys() - expected.keys():
        agreement.differ(kind, place, "unexpected")
