"""The chain: order, what is asked behind a refusal, and gates that fail."""

from __future__ import annotations

import asyncio

import pytest

from engines.errors import MissingRoute, Unavailable
from engines.safety.asks import Ask, Verdict
from engines.safety.chain import Outcome, judge_in_order, undo
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


class Hanging(Taking):
    """A gate that takes and then does not answer."""

    async def judge(self, ask: Ask) -> Verdict:
        await super().judge(ask)
        await asyncio.Event().wait()
        raise AssertionError("nobody wakes it")


def refused(outcome: Outcome) -> tuple[str, str, str]:
    assert outcome.refusal is not None
    return outcome.refusal.gate, outcome.refusal.reason_code, outcome.refusal.gate_status


async def test_the_first_in_order_that_refuses_decides() -> None:
    outcome = await judge_in_order(
        [Saying("a", passes()), Saying("b", refuses()), Saying("c", refuses())], ASK
    )
    assert refused(outcome) == ("b", "below_floor", "ok")


async def test_behind_a_refusal_nothing_is_taken() -> None:
    budget, rate = Taking("budget", passes()), Taking("rate_limit", passes())
    outcome = await judge_in_order([Saying("kpi_corridor", refuses()), budget, rate], ASK)
    assert (budget.taken, rate.taken, outcome.took) == (0, 0, ())


async def test_behind_a_refusal_nothing_is_asked() -> None:
    lock = Saying("strategy_lock", passes())
    outcome = await judge_in_order([Saying("firearms", refuses("unlicensed")), lock], ASK)
    assert refused(outcome) == ("firearms", "unlicensed", "ok")
    assert [one.gate for one in outcome.judged] == ["firearms"]
    assert lock.asked == []


async def test_the_gates_are_asked_one_after_the_other() -> None:
    asked: list[str] = []

    class Noting(Saying):
        async def judge(self, ask: Ask) -> Verdict:
            asked.append(f"{self.name} begins")
            await asyncio.sleep(0)
            asked.append(f"{self.name} ends")
            return await super().judge(ask)

    await judge_in_order([Noting("a", passes()), Noting("b", passes())], ASK)
    assert asked == ["a begins", "a ends", "b begins", "b ends"]


async def test_what_was_taken_is_told_and_given_back() -> None:
    budget = Taking("budget", passes())
    outcome = await judge_in_order([budget, Saying("kpi_corridor", refuses())], ASK)
    assert outcome.took == (budget,)
    assert budget.held == {"e1"}
    await undo(outcome.took, ASK)
    assert budget.held == set()


async def test_a_rehearsal_takes_nothing() -> None:
    budget = Taking("budget", passes())
    outcome = await judge_in_order([budget], REHEARSED)
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
    outcome = await judge_in_order([Failing("budget", error), behind], ASK)
    assert refused(outcome) == ("budget", reason_code, "error")
    assert outcome.refusal is not None
    assert outcome.refusal.details == details
    assert behind.taken == 0


async def test_a_gate_that_hangs_refuses_and_what_it_may_have_taken_is_given_back() -> None:
    hanging = Hanging("budget", passes())
    outcome = await judge_in_order([hanging], ASK, timeout_s=0.01)
    assert refused(outcome) == ("budget", "gate_timeout", "error")
    assert hanging.held == {"e1"}
    await undo(outcome.took, ASK)
    assert hanging.held == set()


async def test_behind_one_that_hangs_nothing_is_asked_and_those_before_are_heard() -> None:
    class Silent(Saying):
        async def judge(self, ask: Ask) -> Verdict:
            await asyncio.Event().wait()
            return await super().judge(ask)

    last = Taking("budget", passes())
    gates = [Saying("a", passes()), Silent("b", passes()), last]
    outcome = await judge_in_order(gates, ASK, timeout_s=0.01)
    assert [(one.gate, one.result) for one in outcome.judged] == [("a", "pass"), ("b", "block")]
    assert refused(outcome) == ("b", "gate_timeout", "error")
    assert (last.taken, outcome.took) == (0, ())


async def test_one_that_cannot_give_back_keeps_no_other_from_it() -> None:
    class Stuck(Taking):
        async def undo(self, _: Ask) -> None:
            raise Unavailable("not now")

    stuck, budget = Stuck("rate_limit", passes()), Taking("budget", passes())
    outcome = await judge_in_order([stuck, budget], ASK)
    await undo(outcome.took, ASK)
    assert (stuck.held, budget.held) == ({"e1"}, set())
