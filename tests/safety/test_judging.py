"""Each gate's rules: from facts to a verdict."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from engines.control.records import GateConfig, GateRule, KillSwitch, Switch
from engines.safety.asks import Cost, Verdict
from engines.safety.judging import (
    judge_budget,
    judge_corridors,
    judge_firearm,
    judge_kill_switch,
    judge_rate,
    judge_strategy_lock,
    judge_three_wise,
    rule_for,
)
from engines.safety.ports import BudgetFacts, CorridorFacts, FirearmFacts, LockFacts, RateFacts
from engines.stores.strategy_locks import covers

NOW_S = 1_000.0
DANGEROUS = FirearmFacts(class_id="payments", risk_level="high", licensed=True, granted=True)
LOCK = LockFacts(
    lock_id="q4",
    version=3,
    status="approved",
    actions=("refund.*", "book"),
    valid_from_s=NOW_S,
    valid_until_s=NOW_S + 10,
    review="approved",
)
COST = Cost(amount="1.50", currency="USD")
CORRIDOR = CorridorFacts(name="success", reading=0.5, floor=0.4, ceiling=0.9)


def but(facts: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(facts, **changes)


def said(verdict: Verdict) -> str:
    """`passed`, or the reason of the refusal."""
    assert (verdict.result == "pass") == (verdict.reason_code == "passed")
    assert verdict.gate_status == "ok"
    return verdict.reason_code


@pytest.mark.parametrize(
    ("pattern", "action", "expected"),
    [
        ("refund", "refund", True),
        ("refund", "refund.create", False),
        ("refund.create", "refund", False),
        ("refund*", "refund", True),
        ("refund.*", "refund.create", True),
        ("refund.*", "refund", False),
        ("refund.*", "refundXcreate", False),
        ("Refund", "refund", False),
        ("*", "anything", True),
    ],
)
def test_a_pattern_is_a_name_or_a_beginning(pattern: str, action: str, *, expected: bool) -> None:
    assert covers(pattern, action) == expected


def test_the_most_specific_rule_holds_whatever_their_order() -> None:
    patterns = ["*", "refund.*", "refund.create*", "refund.create", "re*"]
    for order in (patterns, patterns[::-1]):
        rules = tuple(GateRule(action=pattern, gates=()) for pattern in order)
        config = GateConfig(tenant_id="t_a", surface_id="chat", rules=rules)
        found = {
            action: rule.action
            for action in ("refund.create", "refund.create.all", "refund.list", "read", "x")
            if (rule := rule_for(config, action))
        }
        assert found == {
            "refund.create": "refund.create",
            "refund.create.all": "refund.create*",
            "refund.list": "refund.*",
            "read": "re*",
            "x": "*",
        }
    assert rule_for(None, "x") is None
    assert rule_for(GateConfig(tenant_id="t_a", surface_id="chat"), "x") is None


class TestKillSwitch:
    def judged(self, *switches: Switch, engaged: bool = False, surface_id: str = "chat") -> str:
        switch = KillSwitch(holder_id="t_system", tenant_id="t_a", engaged=engaged, switches=switches)
        return said(judge_kill_switch([switch], surface_id=surface_id, action="refund.create"))

    def test_nothing_is_off_where_nothing_was_set(self) -> None:
        assert said(judge_kill_switch([], surface_id="chat", action="x")) == "passed"
        assert self.judged() == "passed"

    def test_everything_a_surface_an_action_or_both_can_be_off(self) -> None:
        assert self.judged(engaged=True) == "kill_switch_engaged"
        assert self.judged(Switch(surface_id="chat")) == "kill_switch_engaged"
        assert self.judged(Switch(surface_id="canvas")) == "passed"
        assert self.judged(Switch(action="refund.*")) == "kill_switch_engaged"
        assert self.judged(Switch(action="book")) == "passed"
        assert self.judged(Switch(surface_id="chat", action="refund.*")) == "kill_switch_engaged"
        assert self.judged(Switch(surface_id="canvas", action="refund.*")) == "passed"
        assert self.judged(Switch(surface_id="chat", action="book")) == "passed"

    def test_the_refusal_says_who_holds_it_and_why(self) -> None:
        own = KillSwitch(holder_id="t_a", tenant_id="t_a")
        system = KillSwitch(holder_id="t_system", tenant_id="t_a", engaged=True, reason="incident 7")
        verdict = judge_kill_switch([own, system], surface_id="chat", action="x")
        assert verdict.details == {"held_by": "t_system", "off": "everything", "reason": "incident 7"}


class TestFirearms:
    def test_what_no_binding_names_is_not_dangerous(self) -> None:
        assert said(judge_firearm(None, at_s=NOW_S)) == "passed"

    def test_a_licence_and_a_grant_are_enough_where_the_class_asks_for_no_more(self) -> None:
        assert said(judge_firearm(DANGEROUS, at_s=NOW_S)) == "passed"

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"licensed": False}, "unlicensed"),
            ({"licensed": False, "granted": False}, "unlicensed"),
            ({"granted": False}, "not_granted"),
            ({"cooldown_until_s": NOW_S + 0.5}, "cooling_down"),
            ({"cooldown_until_s": NOW_S}, "passed"),
            ({"needs_strategy_lock": True}, "no_strategy_lock"),
            ({"needs_strategy_lock": True, "has_strategy_lock": True}, "passed"),
            ({"needs_approval": True}, "approval_required"),
            ({"needs_approval": True, "approval": "pending"}, "approval_pending"),
            ({"needs_approval": True, "approval": "refused"}, "approval_refused"),
            ({"needs_approval": True, "approval": "granted"}, "passed"),
            ({"needs_approval": True, "granted": False}, "not_granted"),
        ],
    )
    def test_each_thing_that_lacks_is_told(self, changes: dict[str, Any], expected: str) -> None:
        assert said(judge_firearm(but(DANGEROUS, **changes), at_s=NOW_S)) == expected

    def test_the_refusal_says_how_long_to_wait_and_whom_to_ask(self) -> None:
        cooling = judge_firearm(but(DANGEROUS, cooldown_until_s=NOW_S + 2.5), at_s=NOW_S)
        assert cooling.details["retry_after_s"] == 2.5
        pending = but(DANGEROUS, needs_approval=True, approval="pending", approval_id="a1")
        assert judge_firearm(pending, at_s=NOW_S).details["approval_id"] == "a1"


class TestStrategyLock:
    @pytest.mark.parametrize(
        ("locks", "expected"),
        [
            ([], "no_strategy_lock"),
            ([LOCK], "passed"),
            ([but(LOCK, status="draft")], "strategy_lock_not_approved"),
            ([but(LOCK, status="rejected")], "strategy_lock_not_approved"),
            ([but(LOCK, status="expired")], "strategy_lock_not_in_force"),
            ([but(LOCK, valid_from_s=NOW_S + 1)], "strategy_lock_not_in_force"),
            ([but(LOCK, valid_until_s=NOW_S)], "strategy_lock_not_in_force"),
            ([but(LOCK, valid_from_s=None, valid_until_s=None)], "passed"),
            ([but(LOCK, actions=("read",))], "action_not_in_strategy_lock"),
            ([but(LOCK, actions=())], "action_not_in_strategy_lock"),
            ([but(LOCK, actions=("read",)), but(LOCK, lock_id="other")], "passed"),
            ([but(LOCK, actions=("read",)), but(LOCK, status="draft")], "action_not_in_strategy_lock"),
        ],
    )
    def test_some_lock_in_force_allows_the_action(self, locks: list[LockFacts], expected: str) -> None:
        assert said(judge_strategy_lock(locks, action="refund.create", at_s=NOW_S)) == expected

    def test_the_lock_that_allowed_is_named_with_its_version(self) -> None:
        verdict = judge_strategy_lock([LOCK], action="book", at_s=NOW_S)
        assert verdict.details == {"lock_id": "q4", "version": 3}

    @pytest.mark.parametrize(
        ("locks", "expected"),
        [
            ([LOCK], "passed"),
            ([but(LOCK, review="none")], "review_missing"),
            ([but(LOCK, review="rejected")], "review_rejected"),
            ([but(LOCK, review="rejected"), LOCK], "passed"),
            ([but(LOCK, actions=("read",))], "no_strategy_lock"),
            ([but(LOCK, status="draft")], "no_strategy_lock"),
            ([], "no_strategy_lock"),
        ],
    )
    def test_the_lock_that_allows_was_reviewed(self, locks: list[LockFacts], expected: str) -> None:
        assert said(judge_three_wise(locks, action="book", at_s=NOW_S)) == expected


class TestBudget:
    def test_a_cost_that_fits_passes_and_names_its_reservation(self) -> None:
        verdict = judge_budget(BudgetFacts(fits=True, reservation_id="r1"), COST)
        assert (said(verdict), verdict.details) == ("passed", {"reservation_id": "r1"})

    def test_one_that_does_not_is_refused_by_its_limit(self) -> None:
        verdict = judge_budget(BudgetFacts(fits=False, limit_id="month"), COST)
        assert (said(verdict), verdict.details) == ("budget_exceeded", {"limit_id": "month"})

    def test_a_soft_limit_is_told_and_refuses_nothing(self) -> None:
        verdict = judge_budget(BudgetFacts(fits=True, limit_id="warn", passes_soft_limit=True), COST)
        assert (said(verdict), verdict.details["passes_soft_limit"]) == ("passed", True)

    def test_a_budgeted_action_says_what_it_costs(self) -> None:
        assert said(judge_budget(None, None)) == "cost_not_told"


class TestCorridors:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, "passed"),
            ({"reading": 0.4}, "passed"),
            ({"reading": 0.9}, "passed"),
            ({"reading": 0.39}, "below_floor"),
            ({"reading": 0.91}, "above_ceiling"),
            ({"reading": math.nan}, "below_floor"),
            ({"reading": math.nan, "floor": None}, "above_ceiling"),
            ({"reading": math.inf}, "above_ceiling"),
            ({"reading": 5, "ceiling": None}, "passed"),
            ({"reading": -5, "floor": None}, "passed"),
            ({"reading": None}, "no_reading"),
            ({"reading": None, "passes_unread": True}, "passed"),
        ],
    )
    def test_a_reading_keeps_its_bounds(self, changes: dict[str, Any], expected: str) -> None:
        assert said(judge_corridors([CORRIDOR, but(CORRIDOR, name="other", **changes)])) == expected

    def test_the_first_that_is_not_kept_is_named(self) -> None:
        verdict = judge_corridors([CORRIDOR, but(CORRIDOR, name="other", reading=2.0)])
        assert verdict.details == {"name": "other", "reading": 2.0, "floor": 0.4, "ceiling": 0.9}

    def test_where_there_is_no_corridor_nothing_is_left(self) -> None:
        assert said(judge_corridors([])) == "passed"


def test_a_rate_that_is_used_up_says_until_when() -> None:
    assert said(judge_rate(RateFacts(admitted=True))) == "passed"
    verdict = judge_rate(RateFacts(admitted=False, limit_id="per-user", retry_after_s=3.5))
    assert (said(verdict), verdict.details) == (
        "rate_limited",
        {"limit_id": "per-user", "retry_after_s": 3.5},
    )
