"""The chain: order, what is asked at once, and gates that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from engines.errors import MissingRoute, Unavailable
from engines.safety.asks import Ask, Verdict
from engines.safety.chain import Outcome, Stage, in_stages, judge_in_order, undo
from engines.safety.gates import Gate
from tests.safety.house import Saying, Taking, passes, refuses
from tests.stores.home import context

ASK = Ask(
    context=context(),
    action="refund.create",
    subject="order-1",
    cost=None,
    dry_run=False,
    evaluation_id="e1",
    at_s=0.0,
)
REHEARSED = Ask(
    context=context(),
    action="refund.create",
    subject="order-1",
    cost=None,
    dry_run=True,
    evaluation_id="e1",
    at_s=0.0,
)


class Failing(Saying):
    """A gate that raises."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name, passes())
        self.error = error

    async def judge(self, ask: Ask) -> Verdict:
        await super().judge(ask)
        raise self.error


class Meeting(Saying):
    """A gate that answers once as many as `barrier` awaits are being asked at once."""

    def __init__(self, name: str, barrier: asyncio.Barrier) -> None:
        super().__init__(name, passes())
        self.barrier = barrier

    async def judge(self, ask: Ask) -> Verdict:
        await self.barrier.wait()
        return await super().judge(ask)


class Hanging(Taking):
    """A gate that takes and then does not answer."""

    async def judge(self, ask: Ask) -> Verdict:
        await super().judge(ask)
        await asyncio.Event().wait()
        raise AssertionError("nobody wakes it")


async def judged(gates: Sequence[Gate], ask: Ask, **options: float) -> Outcome:
    return await judge_in_order(in_stages(gates), ask, **options)


def names(groups: Sequence[Stage]) -> list[list[str]]:
    return [[gate.name for gate in group] for group in groups]


def refused(outcome: Outcome) -> tuple[str, str, str]:
    assert outcome.refusal is not None
    return outcome.refusal.gate, outcome.refusal.reason_code, outcome.refusal.gate_status


def test_the_first_two_and_those_that_take_are_asked_alone_the_others_at_once() -> None:
    gates = [
        Saying("kill_switch", passes()),
        Saying("firearms", passes()),
        Saying("strategy_lock", passes()),
        Saying("three_wise", passes()),
        Taking("budget", passes()),
        Saying("kpi_corridor", passes()),
        Saying("temperature", passes()),
        Taking("rate_limit", passes()),
    ]
    assert names(in_stages(gates)) == [
        ["kill_switch"],
        ["firearms"],
        ["strategy_lock", "three_wise"],
        ["budget"],
        ["kpi_corridor", "temperature"],
        ["rate_limit"],
    ]


async def test_gates_that_only_read_are_asked_at_once() -> None:
    barrier = asyncio.Barrier(3)
    gates = [Meeting(name, barrier) for name in ("a", "b", "c")]
    outcome = await judged(gates, ASK)
    assert [one.gate for one in outcome.judged] == ["a", "b", "c"]
    assert outcome.refusal is None


async def test_the_first_in_order_that_refuses_decides() -> None:
    outcome = await judged([Saying("a", passes()), Saying("b", refuses()), Saying("c", refuses())], ASK)
    assert refused(outcome) == ("b", "below_floor", "ok")


async def test_behind_a_refusal_nothing_is_taken() -> None:
    budget, rate = Taking("budget", passes()), Taking("rate_limit", passes())
    outcome = await judged([Saying("kpi_corridor", refuses()), budget, rate], ASK)
    assert (budget.taken, rate.taken, outcome.took) == (0, 0, ())


async def test_behind_a_gate_that_comes_first_nothing_is_asked() -> None:
    lock = Saying("strategy_lock", passes())
    outcome = await judged([Saying("firearms", refuses("unlicensed")), lock], ASK)
    assert refused(outcome) == ("firearms", "unlicensed", "ok")
    assert lock.asked == []


async def test_what_was_taken_is_told_and_given_back() -> None:
    budget = Taking("budget", passes())
    outcome = await judged([budget, Saying("kpi_corridor", refuses())], ASK)
    assert outcome.took == (budget,)
    assert budget.held == {"e1"}
    await undo(outcome.took, ASK)
    assert budget.held == set()


async def test_a_rehearsal_takes_nothing() -> None:
    budget = Taking("budget", passes())
    outcome = await judged([budget], REHEARSED)
    assert (outcome.took, budget.taken) == ((), 0)
    assert outcome.refusal is None


@pytest.mark.parametrize(
    ("error", "reason_code", "details"),
    [
        (Unavailable("gone"), "gate_error", {"error": "Unavailable", "detail": "gone"}),
        (
            MissingRoute("none", resource_kind="budget_store"),
            "missing_route",
            {"resource_kind": "budget_store"},
        ),
        (ZeroDivisionError("secret"), "gate_error", {"error": "ZeroDivisionError"}),
        (TimeoutError(), "gate_timeout", {}),
    ],
    ids=["ours", "route", "bug", "timeout"],
)
async def test_a_gate_that_raises_refuses(
    error: Exception, reason_code: str, details: dict[str, object]
) -> None:
    behind = Taking("rate_limit", passes())
    outcome = await judged([Failing("budget", error), behind], ASK)
    assert refused(outcome) == ("budget", reason_code, "error")
    assert outcome.refusal is not None
    assert outcome.refusal.details == details
    assert behind.taken == 0


async def test_a_gate_that_hangs_refuses_and_what_it_may_have_taken_is_given_back() -> None:
    hanging = Hanging("budget", passes())
    outcome = await judged([hanging], ASK, timeout_s=0.01)
    assert refused(outcome) == ("budget", "gate_timeout", "error")
    assert hanging.held == {"e1"}
    await undo(outcome.took, ASK)
    assert hanging.held == set()


async def test_of_gates_asked_at_once_the_one_that_hangs_refuses_and_the_others_are_heard() -> None:
    class Silent(Saying):
        async def judge(self, ask: Ask) -> Verdict:
            await asyncio.Event().wait()
            return await super().judge(ask)

    outcome = await judged([Saying("a", passes()), Silent("b", passes())], ASK, timeout_s=0.01)
    assert [one.reason_code for one in outcome.judged] == ["gate_timeout", "gate_timeout"]


async def test_a_stage_that_ends_as_its_time_does_lets_nothing_pass_that_was_not_asked() -> None:
    """The last verdict comes in the very turn of the loop in which the time is over."""

    class Slow(Saying):
        async def judge(self, ask: Ask) -> Verdict:
            await asyncio.sleep(0)
            time.sleep(0.05)  # noqa: ASYNC251  (what blocks the loop is what is meant)
            return await super().judge(ask)

    last = Taking("budget", refuses())
    outcome = await judged([Saying("a", passes()), Slow("b", passes()), last], ASK, timeout_s=0.01)
    assert outcome.refusal is not None
    assert outcome.refusal.reason_code == "gate_timeout"


async def test_one_that_cannot_give_back_keeps_no_other_from_it() -> None:
    class Stuck(Taking):
        async def undo(self, _: Ask) -> None:
            raise Unavailable("not now")

    stuck, budget = Stuck("rate_limit", passes()), Taking("budget", passes())
    outcome = await judged([stuck, budget], ASK)
    await undo(outcome.took, ASK)
    assert (stuck.held, budget.held) == ({"e1"}, set())
