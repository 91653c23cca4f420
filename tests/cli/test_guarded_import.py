"""`engines import agent-runs --guarded`: spine, ledger and KPI agree with a count of the file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest

from engines.client import AsyncEngines, Cost, GateRule, NewUsage, RetryPolicy
from engines.client import Engines as Client
from engines.client import guarded_replay as module
from engines.client.agent_run_counts import count_file
from engines.client.agent_runs import plan_of, read_agent_runs
from engines.client.guarded_check import check_agreement
from engines.client.guarded_replay import Target, guarded_replay
from engines.client.guarded_runs import guarded_runs, read_user_costs
from engines.clock import SystemClock
from engines.testing.proxy import Behaviour, FaultProxy
from tests.cli.conftest import SAMPLE, Done, Engines, run_engines
from tests.cli.guarding import new_project, run_of, set_up, until_refused, write_runs
from tests.cli.lab import LabProcess

PATIENT = RetryPolicy(attempts_max=50, deadline_s=60.0, pause_first_s=0.01, pause_max_s=0.1)
COUNTS = {"decisions": 6, "ledger entries": 9, "measurements": 4, "rewards": 4}


@pytest.fixture
def project(request: pytest.FixtureRequest) -> str:
    """A name of the test's own, so that tests of one lab do not meet."""
    return str(request.node.name).replace("[", "-").replace("]", "")[-50:].lstrip("_")


def options(lab: LabProcess, dataset: str, *more: str, file: Path = SAMPLE) -> tuple[str, ...]:
    at = ("--lab", str(lab.directory), "--as", "member", "--dataset", dataset)
    return ("import", "agent-runs", str(file), *at, "--guarded", "--verify", "--json", *more)


def client_of(lab: LabProcess, user: str, project: str) -> Client:
    return Client(lab.file.url, lab.file.user(user).token, project_id=project)


def counts_of(done: Done) -> dict[str, tuple[str, str]]:
    rows = done.json["guarded"]["agreement"]["counts"]
    return {row["what"].rpartition(", ")[2]: (row["file"], row["server"]) for row in rows}


def differences(done: Done) -> list[tuple[str, str]]:
    found = done.json["guarded"]["agreement"]["differences"]
    return sorted((one["kind"], one["what"]) for one in found)


def test_every_call_is_decided_used_and_counted(engines: Engines, lab: LabProcess, project: str) -> None:
    said = set_up(lab, project)
    assert f"project {project}" in said
    done = engines(*options(lab, project))
    assert done.code == 0, done.out + done.err
    guarded = done.json["guarded"]
    assert (guarded["written"], guarded["already_there"], guarded["refused"]) == (COUNTS, {}, [])
    assert guarded["agreement"]["agrees"] is True
    assert counts_of(done) == {
        "decisions on the spine": ("6", "6"),
        "units in the ledger": ("6", "6"),
        "entries in the ledger": ("9", "9"),
        "cost in the ledger": ("0.0038", "0.0038"),
        "measurements in the KPI's window": ("4", "4"),
        "the KPI's reading": ("0.5", "0.5"),
        "rewards on the spine": ("4", "4"),
    }
    again = engines(*options(lab, project))
    assert again.code == 0, again.out
    assert again.json["guarded"]["runs"] == {"already there": 4}
    assert (again.json["guarded"]["written"], again.json["guarded"]["already_there"]) == ({}, COUNTS)
    assert "stands" in set_up(lab, project)


def test_a_decision_tells_its_call_and_its_unit_tells_the_decision(
    engines: Engines, lab: LabProcess, project: str
) -> None:
    set_up(lab, project)
    engines(*options(lab, project))
    plan = plan_of(project, read_agent_runs(SAMPLE)[0])
    call = next(event for event in plan.events if event.event_type == "tool_call")
    with client_of(lab, "member", project) as client:
        told = next(client.events.each(event_type="safety", run_id=plan.run_id))
        assert (told.parent_event_id, told.step_id, told.project_id) == (call.event_id, call.step_id, project)
        payload: dict[str, Any] = told.payload or {}
        assert (payload["action"], payload["subject"]) == ("tool.find_booking", "0/0/2.0")
        assert (payload["result"], payload["gate"]) == ("pass", None)
        (entry,) = [one for one in client.budget.each(run_id=plan.run_id) if one.note == "0/0/2.0"]
        assert entry.reservation_id == payload["details"]["budget"]["reservation_id"]
        assert (entry.tool, entry.units, entry.cost) == ("find_booking", 1, Decimal(0))
        held = [limit.held for limit in client.budget.summary().limits if limit.limit_id.startswith(project)]
        assert held == [0]


def test_people_are_told_the_same(engines: Engines, lab: LabProcess, project: str) -> None:
    set_up(lab, project)
    done = engines(*(option for option in options(lab, project) if option != "--json"))
    assert done.code == 0
    assert "The counts agree." in done.out
    assert "0.0038" in done.out


def test_without_gates_for_tools_a_unit_stands_on_its_own(
    engines: Engines, lab: LabProcess, project: str
) -> None:
    """No budget guards the action, so nothing was reserved: the base gates alone decided."""
    set_up(lab, project)
    with client_of(lab, "owner", project) as owner:
        surface_id = owner.me().surface_id
        assert surface_id is not None
        config = owner.gates.config(surface_id)
        owner.gates.put_config(surface_id, rules=())
        try:
            done = engines(*options(lab, project))
        finally:
            rules = [GateRule(action=rule.action, gates=rule.gates) for rule in config.rules]
            owner.gates.put_config(surface_id, rules=rules)
    assert done.code == 0, done.out
    assert {call["call"] for call in done.json["guarded"]["calls"]}.isdisjoint({"budget settle"})


# --- refused ---


def test_what_the_gates_refuse_is_told_by_gate_and_takes_no_unit(
    engines: Engines, own_lab: LabProcess, tmp_path: Path
) -> None:
    """No licence for refunds, then a limit that was passed, then a KPI below its floor."""
    own_lab.start()
    refunds = [
        run_of(n, "look_up", "cancel_reservation", "book_seat", "send_certificate", cost="0.25")
        for n in range(3)
    ]
    file = write_runs(tmp_path / "refunds.json", refunds)
    set_up(own_lab, "unlicensed", "--without", "refunds")
    done = engines(*options(own_lab, "unlicensed", file=file))
    assert done.code == 0, done.out
    refusal = {"gate": "firearms", "reason_code": "unlicensed", "gate_status": "ok", "count": 3}
    agreement = done.json["guarded"]["agreement"]
    assert agreement["refusals"] == [
        {**refusal, "action": "tool.cancel_reservation"},
        {**refusal, "action": "tool.send_certificate"},
    ]
    assert counts_of(done)["units in the ledger"] == ("6", "6")
    assert counts_of(done)["decisions on the spine"] == ("12", "12")
    assert counts_of(done)["entries in the ledger"] == ("9", "9")
    assert engines(*options(own_lab, "unlicensed", file=file)).json["guarded"]["written"] == {}
    printed = engines(*(part for part in options(own_lab, "unlicensed", file=file) if part != "--json"))
    table = [line.split() for line in printed.out.splitlines()]
    assert ["tool.cancel_reservation", "firearms", "ok", "unlicensed", "3"] in table

    set_up(own_lab, "spent", "--hard", "0.30")
    one_by_one = ("--concurrency", "1")
    spent = engines(*options(own_lab, "spent", *one_by_one, file=file))
    assert spent.code == 0, spent.out
    told = spent.json["guarded"]["agreement"]["refusals"]
    assert {one["gate"]: one["reason_code"] for one in told} == {"budget": "budget_exceeded"}
    assert sum(one["count"] for one in told) == 4  # The third run's: two have spent 0.50.
    assert counts_of(spent)["cost in the ledger"] == ("0.75", "0.75")

    failing = write_runs(tmp_path / "failing.json", [run_of(n, "ask", "ask", reward=0.0) for n in range(3)])
    set_up(own_lab, "failing", "--floor", "0.5")
    assert engines(*options(own_lab, "failing", "--limit", "1", file=failing)).code == 0
    until_refused(own_lab, "failing", "tool.ask")
    below = engines(*options(own_lab, "failing", file=failing))
    assert below.code == 0, below.out
    assert below.json["guarded"]["agreement"]["refusals"] == [
        {
            "gate": "kpi_corridor",
            "reason_code": "below_floor",
            "gate_status": "ok",
            "action": "tool.ask",
            "count": 4,
        }
    ]
    assert counts_of(below)["units in the ledger"] == ("2", "2")
    assert counts_of(below)["the KPI's reading"] == ("0.0", "0.0")


def test_without_a_project_or_a_kpi_nothing_is_written(
    engines: Engines, lab: LabProcess, project: str
) -> None:
    for more, said in (((), "ContextMismatch"), (("--project", "p_demo"), "p_demo-success")):
        done = engines(*options(lab, project, *more))
        assert done.code == 1
        assert said in done.err
    plain = ("--dataset", project, "--lab", str(lab.directory), "--as", "member", "--json")
    assert engines("import", "agent-runs", SAMPLE, *plain).json["already_there"] == {}


def test_a_project_is_for_a_guarded_replay(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", str(lab.directory), "--project", "p_demo")
    done = engines("import", "agent-runs", SAMPLE, *at)
    assert (done.code, "--guarded" in done.err) == (1, True)


def test_a_run_that_was_replayed_into_another_project_is_refused(
    engines: Engines, lab: LabProcess, project: str
) -> None:
    set_up(lab, project)
    set_up(lab, f"{project}-b")
    assert engines(*options(lab, project)).code == 0
    done = engines(*options(lab, project, "--project", f"{project}-b"))
    assert done.code == 1
    assert done.json["guarded"]["runs"] == {"failed": 4}
    assert done.json["guarded"]["written"] == {}


# --- what the comparison sees ---


def test_a_decision_an_entry_and_a_measurement_too_many_are_told(
    engines: Engines, lab: LabProcess, project: str
) -> None:
    set_up(lab, project)
    engines(*options(lab, project))
    asked = {"dataset": project, "task_id": 0, "trial": 0, "message_index": 2, "call_index": 0}
    with client_of(lab, "member", project) as client:
        cost = Cost(amount="0", currency="USD")
        client.bound(step_id="2.0").gates.evaluate(
            "tool.find_booking",
            subject="0/0/2.0",
            details=asked,
            cost=cost,
        )
        client.budget.record(
            NewUsage(tool="ping", units=1, cost=Decimal("0.0000000000000000001"), currency="USD")
        )
        client.budget.record(NewUsage(units=0, cost=Decimal(0), currency="USD", note="0/0"))
        client.kpis.measure(f"{project}-success", 1.0, labels={"dataset": project, "run": "1/1"})
        client.kpis.measure(f"{project}-success", 1.0)
    done = engines(*options(lab, project))
    assert done.code == 1
    assert done.json["verified"]["difference_count"] == 0
    assert differences(done) == [
        ("decision", "doubled"),
        ("ledger entry", "different"),
        ("ledger entry", "doubled"),
        ("ledger entry", "unexpected"),
        ("measurement", "different"),
        ("measurement", "doubled"),
        ("measurement", "unexpected"),
    ]
    wrong = {what for what, (file, server) in counts_of(done).items() if file != server}
    assert wrong == {
        "decisions on the spine",
        "units in the ledger",
        "entries in the ledger",
        "cost in the ledger",
        "measurements in the KPI's window",
        "the KPI's reading",
    }
    assert counts_of(done)["cost in the ledger"] == ("0.0038", "0.0038000000000000001")


def test_a_rehearsal_counts_for_nothing_and_the_smallest_cost_too_many_is_told(
    engines: Engines, lab: LabProcess, project: str
) -> None:
    set_up(lab, project)
    engines(*options(lab, project))
    asked = {"dataset": project, "task_id": 0, "trial": 0, "message_index": 2, "call_index": 0}
    with client_of(lab, "member", project) as client:
        cost = Cost(amount="0", currency="USD")
        client.gates.evaluate("tool.ping", subject="0/0/2.0", details=asked, cost=cost, dry_run=True)
        assert engines(*options(lab, project)).code == 0
        client.budget.record(NewUsage(units=0, cost=Decimal("1e-19"), currency="USD"))
    done = engines(*(option for option in options(lab, project) if option != "--json"))
    assert done.code == 1
    assert "The counts do not agree." in done.out
    assert "0.0038000000000000001" in done.out


def test_what_was_never_replayed_is_told_as_missing(engines: Engines, lab: LabProcess, project: str) -> None:
    set_up(lab, project)
    engines(*options(lab, project, "--limit", "1"))
    with client_of(lab, "member", project) as client:
        assert client.kpis.reading(f"{project}-success").count == 1
    assert differences(engines(*options(lab, f"{project}-x", "--project", project, "--limit", "0"))) == [
        *[("ledger entry", "unexpected")] * 4,
        ("measurement", "unexpected"),
    ]


# --- interrupted ---


class Dies(SystemClock):
    """A clock whose process ends when it is read for the so-and-so-manieth time."""

    def __init__(self, readings: int) -> None:
        self._left = readings

    def monotonic(self) -> float:
        self._left -= 1
        if self._left == 0:
            raise _KilledError
        return super().monotonic()


class _KilledError(Exception):
    pass


@pytest.fixture
async def member(lab: LabProcess) -> AsyncIterator[AsyncEngines]:
    async with AsyncEngines(lab.file.url, lab.file.user("member").token) as client:
        yield client


async def test_wherever_a_replay_was_left_it_is_taken_up_there(
    lab: LabProcess, member: AsyncEngines, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each single write of it, and so long ago that no Idempotency-Key remembers.

    Each write is timed, so a clock may end the process right behind it.
    """
    set_up(lab, project)
    counts = count_file(SAMPLE, limit=2)
    writes = 0
    while True:
        writes += 1
        name = f"cut-{writes}-{project}"[:50]
        new_project(lab, name)
        target = Target(project_id=name, kpi_id=f"{name}-success")
        plans = [plan_of(name, run) for run in read_agent_runs(SAMPLE)[:2]]
        runs = guarded_runs(name, plans, read_user_costs(SAMPLE))
        monkeypatch.setattr(module, "KEYS", "earlier")
        try:
            # Once for where it begins, then before and behind every call, of which the first is a read.
            await guarded_replay(member, runs, target, clock=Dies(3 + 2 * writes), concurrency=1)
        except _KilledError:
            is_over = False
        else:
            is_over = True
        monkeypatch.setattr(module, "KEYS", "agent-run")
        # A rehearsal is no decision of the call that it is about.
        about = member.bound(project_id=name, run_id=runs[0].plan.run_id, step_id=runs[0].calls[0].step_id)
        first = runs[0].calls[0]
        await about.gates.evaluate(first.action, subject=first.subject, details=first.details, dry_run=True)
        await guarded_replay(member, runs, target, clock=SystemClock())
        agreement = await check_agreement(member, counts, name, plans, target)
        assert agreement.agrees, f"left after {writes} writes: {agreement}"
        if is_over:
            break
    assert writes > 18


def test_several_at_once_decide_every_call_once(lab: LabProcess, project: str) -> None:
    set_up(lab, project)
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(run_engines, *options(lab, project)) for _ in range(3)]
        results = [one.result() for one in running]
    assert sum(done.json["guarded"]["failures"] == [] for done in results) == 3, results
    last = run_engines(*options(lab, project))
    assert last.code == 0, last.out
    assert last.json["guarded"]["runs"] == {"already there": 4}


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_network_that_loses_replies_doubles_nothing(
    lab: LabProcess, member: AsyncEngines, tmp_path: Path, project: str, seed: int
) -> None:
    """Whatever was done and not heard of is asked for again, in the middle of anything."""
    random, address = Random(seed), urlsplit(lab.file.url)
    file = write_runs(tmp_path / "x.json", [run_of(n, "look_up", "book_seat", cost="0.1") for n in range(6)])
    set_up(lab, project)
    plans = [plan_of(project, run) for run in read_agent_runs(file)]
    runs, target = guarded_runs(project, plans, read_user_costs(file)), Target(project, f"{project}-success")
    assert address.hostname is not None
    assert address.port is not None

    async def spoil(proxy: FaultProxy) -> None:
        while True:
            await asyncio.sleep(random.uniform(0.0, 0.05))
            proxy.behave(Behaviour(reply_bytes_max=random.randint(0, 3_000), once=True))

    async with FaultProxy((address.hostname, address.port)) as proxy:
        host, port = proxy.address
        url, token = f"http://{host}:{port}", lab.file.user("member").token
        spoiler = asyncio.create_task(spoil(proxy))
        async with AsyncEngines(url, token, retry=PATIENT) as far:
            await guarded_replay(far, runs, target, clock=SystemClock(), concurrency=2)
        spoiler.cancel()
    agreement = await check_agreement(member, count_file(file), project, plans, target)
    assert agreement.agrees, agreement
