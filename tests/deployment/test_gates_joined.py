"""The eight gates over the stores that this deployment has: what each refuses, takes and gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from engines.control.records import GateConfig, GateRule
from engines.core.records import Condition
from engines.safety.asks import Cost, Decision, EvaluationInput
from engines.safety.joined import StoredBudgets
from engines.scope import RequestContext
from engines.stores.approval_records import AnswerInput, ApprovalInput
from engines.stores.budget_policy import Limit, PolicyInput
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.events import EventFilter
from engines.stores.kpi_records import MeasurementInput
from engines.stores.rate_limits import RateLimit
from engines.stores.strategy_locks import LockDecisionInput, LockReview
from engines.testing.clock import ManualClock
from engines.wiring import Engines
from tests.deployment.conftest import Open, token

NEW, ANY = Condition(absent=True), Condition(versions=("*",))
ALL_GATES = (
    "kill_switch",
    "firearms",
    "strategy_lock",
    "three_wise",
    "budget",
    "kpi_corridor",
    "temperature",
    "rate_limit",
)
REFUND = EvaluationInput(action="refund", subject="order-7", cost=Cost(amount="2.50", currency="USD"))


async def who(deployment: Engines, user: str = "member") -> RequestContext:
    return await deployment.contexts.context(token(user), {})


async def define(deployment: Engines, user: str, name: str, record_id: str, blob: dict[str, Any]) -> None:
    await deployment.definitions.put(
        await who(deployment, user),
        SCHEMA_NAMED[name],
        record_id,
        DefinitionInput(json_blob=blob),
        condition=NEW,
    )


async def guarded_by(deployment: Engines, *gates: str) -> None:
    config = GateConfig(
        tenant_id="t_a",
        surface_id="chat",
        rules=(msgspec.convert({"action": "refund", "gates": gates}, GateRule),),
    )
    await deployment.gate_configs.put(await who(deployment, "owner"), config)


async def asked(deployment: Engines, evaluation: EvaluationInput = REFUND) -> Decision:
    return (await deployment.gates.evaluate(await who(deployment), evaluation)).answer


async def until(
    deployment: Engines, holds: Callable[[Decision], bool], evaluation: EvaluationInput = REFUND
) -> Decision:
    """The first decision of which it holds: what was just defined is known within a second."""
    async with asyncio.timeout(10):
        while True:
            decision = await asked(deployment, evaluation)
            if holds(decision):
                return decision
            await asyncio.sleep(0.1)


async def everything_in_order(deployment: Engines) -> None:
    """A deployment in which the member may refund: nothing stands in the way."""
    owner = await who(deployment, "owner")
    await define(
        deployment,
        "admin",
        "firearms",
        "payments",
        {"risk_level": "high", "human_approval": False, "offered_to": "*"},
    )
    await define(
        deployment, "admin", "firearms-bindings", "payments", {"class_id": "payments", "actions": ["refund"]}
    )
    await define(deployment, "owner", "firearms-licences", "payments", {"class_id": "payments"})
    await define(
        deployment, "owner", "firearms-grants", "member", {"class_id": "payments", "user_id": "member"}
    )
    await define(
        deployment, "member", "strategy-locks", "q4", {"allowed_actions": ["refund"], "three_wise": True}
    )
    review = LockReview(verdict="pass", reviewers=("one", "two", "three"))
    await deployment.strategy_locks.approve(owner, "q4", LockDecisionInput(review=review), condition=ANY)
    limits = (Limit(limit_id="month", period="month", hard="1000"),)
    await deployment.budget.put_policy(owner, PolicyInput(currency="USD", limits=limits))
    await define(deployment, "owner", "kpis", "success", {"floor": 0.5, "ceiling": 1.0})
    await deployment.kpis.measure(owner, "success", MeasurementInput(value=0.8))
    for setting, value in (("floors", 0.0), ("ceilings", 1.0), ("weights", 1.0)):
        await define(deployment, "owner", "temperature", setting, {"values": {"success": value}})
    limit = RateLimit(name="refunds", per=("user",), route="action:refund", limit=50, window_seconds=3_600)
    await deployment.rate_limit_policies.put(owner, [limit])


async def test_an_action_that_all_eight_let_pass_has_its_cost_reserved(open_deployment: Open) -> None:
    here = await open_deployment()
    await everything_in_order(here)
    await guarded_by(here, *ALL_GATES)
    await until(here, lambda decision: decision.decision == "pass")
    summary = await here.budget.summary(await who(here, "owner"))
    held = [status.held for status in summary.limits]
    assert held == ["2.50"], summary
    told = await here.spine.list(await who(here), EventFilter(event_type="safety"))
    assert (told.items[-1].payload or {})["result"] == "pass"


async def test_room_in_a_budget_is_judged_and_nothing_is_held(open_deployment: Open) -> None:
    here = await open_deployment()
    await everything_in_order(here)
    await guarded_by(here, *("budget_room" if gate == "budget" else gate for gate in ALL_GATES))
    await until(here, lambda decision: decision.decision == "pass")
    assert await held_now(here) == ["0"]
    await break_one(here, "budget")
    decision = await until(here, lambda decision: decision.decision == "block")
    assert (decision.gate, decision.reason_code) == ("budget_room", "budget_exceeded"), decision
    assert decision.details["limit_id"] == "month"
    untold = await asked(here, msgspec.structs.replace(REFUND, cost=None))
    assert (untold.gate, untold.reason_code) == ("budget_room", "cost_not_told")


async def test_a_rehearsal_is_refused_for_a_currency_as_the_action_would_be(open_deployment: Open) -> None:
    here = await open_deployment()
    await everything_in_order(here)
    await guarded_by(here, "budget")
    foreign = msgspec.structs.replace(REFUND, cost=Cost(amount="1", currency="EUR"))
    for asked_for in (foreign, msgspec.structs.replace(foreign, dry_run=True)):
        decision = await until(here, lambda decision: decision.gate == "budget", asked_for)
        assert (decision.decision, decision.reason_code) == ("block", "gate_error")
        assert decision.details["detail"] == "this budget is kept in USD"


@pytest.mark.parametrize(
    ("breaks", "gate"),
    [
        ("grant", "firearms"),
        ("lock", "strategy_lock"),
        ("review", "three_wise"),
        ("budget", "budget"),
        ("kpi", "kpi_corridor"),
        ("heat", "temperature"),
        ("rate", "rate_limit"),
    ],
)
async def test_each_gate_refuses_what_its_own_store_says(
    open_deployment: Open, breaks: str, gate: str
) -> None:
    here = await open_deployment()
    await everything_in_order(here)
    await guarded_by(here, *ALL_GATES)
    await until(here, lambda decision: decision.decision == "pass")
    await break_one(here, breaks)
    decision = await until(here, lambda decision: decision.gate == gate)
    assert (decision.decision, decision.gate_status) == ("block", "ok"), decision
    before = await held_now(here)
    again = await asked(here)
    assert (again.gate, await held_now(here)) == (gate, before), "a refused action holds nothing"


async def break_one(here: Engines, what: str) -> None:
    owner = await who(here, "owner")
    schema_of = {"grant": ("firearms-grants", "member"), "lock": ("strategy-locks", "q4")}
    if what in schema_of:
        name, record_id = schema_of[what]
        present = await here.definitions.get(owner, SCHEMA_NAMED[name], record_id)
        condition = Condition(versions=(present.etag.strip('"'),))
        await here.definitions.delete(owner, SCHEMA_NAMED[name], record_id, condition=condition)
    elif what == "review":
        await define(here, "member", "strategy-locks", "q5", {"allowed_actions": ["refund"]})
        await here.strategy_locks.approve(owner, "q5", LockDecisionInput(), condition=ANY)
        await break_one(here, "lock")
    elif what == "budget":
        limits = (Limit(limit_id="month", period="month", hard="1"),)
        await here.budget.put_policy(owner, PolicyInput(currency="USD", limits=limits))
    elif what == "kpi":
        await here.kpis.measure(owner, "success", MeasurementInput(value=0.2))
    elif what == "heat":
        await here.kpis.measure(owner, "success", MeasurementInput(value=0.9))
        present = await here.definitions.get(owner, SCHEMA_NAMED["temperature"], "ceilings")
        await here.definitions.put(
            owner,
            SCHEMA_NAMED["temperature"],
            "ceilings",
            DefinitionInput(json_blob={"values": {"success": 0.85}}),
            condition=Condition(versions=(present.etag.strip('"'),)),
        )
    else:
        limit = RateLimit(name="refunds", per=("user",), route="action:refund", limit=1, window_seconds=3_600)
        await here.rate_limit_policies.put(owner, [limit])


async def held_now(here: Engines) -> list[str]:
    return [status.held for status in (await here.budget.summary(await who(here, "owner"))).limits]


async def test_an_approval_admits_one_use(open_deployment: Open) -> None:
    here = await open_deployment()
    owner, member = await who(here, "owner"), await who(here)
    await everything_in_order(here)
    licence = await here.definitions.get(owner, SCHEMA_NAMED["firearms-licences"], "payments")
    await here.definitions.put(
        owner,
        SCHEMA_NAMED["firearms-licences"],
        "payments",
        DefinitionInput(json_blob={"class_id": "payments", "human_approval": True}),
        condition=Condition(versions=(licence.etag.strip('"'),)),
    )
    await until(here, lambda decision: decision.decision == "block")
    approval = await here.approvals.request(
        member, ApprovalInput(action="refund", subject="order-7", reason="broken")
    )
    await here.approvals.answer(owner, approval.record.approval_id, AnswerInput(answer="yes"))
    assert (await asked(here)).decision == "pass"
    assert (await asked(here)).gate == "firearms"


async def test_a_rehearsal_takes_nothing(open_deployment: Open) -> None:
    here = await open_deployment()
    await everything_in_order(here)
    await guarded_by(here, *ALL_GATES)
    rehearsed = msgspec.structs.replace(REFUND, dry_run=True)
    await until(here, lambda decision: decision.decision == "pass", rehearsed)
    assert await held_now(here) == ["0"]


async def test_what_an_evaluation_held_and_has_lapsed_must_fit_anew(open_deployment: Open) -> None:
    here = await open_deployment()
    await everything_in_order(here)
    member, clock = await who(here), ManualClock(here.clock.now())
    room, cost = StoredBudgets(here.budget, clock), Cost(amount="600", currency="USD")
    first = await room.reserve(member, cost, evaluation_id="e1")
    again = await room.reserve(member, cost, evaluation_id="e1")
    assert (first.fits, again.reservation_id) == (True, first.reservation_id)
    clock.advance(24 * 3_600)
    lapsed = await room.reserve(member, cost, evaluation_id="e1")
    assert (lapsed.fits, lapsed.limit_id) == (False, "month"), "the first is held still, by the store's clock"
