"""What a decision of the gates costs beside the append that each one is: both in process, one at a time.

The other side appends the very payload of such a decision to the same spine, and judges nothing. The action
is a dangerous one at a price, eight gates guard it and let it pass: once with the budget's gate that looks
whether there is room, and once with the one that reserves the price, by a durable write of its own.
"""

from __future__ import annotations

import asyncio
import functools
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, get_args

import msgspec
import uvloop

from bench.deployment import Deployment, prepare
from bench.measure import Goal, Result, alternate, compared
from bench.stage import Stage
from engines.control.records import GateConfig, GateName, GateRule
from engines.core.records import Condition
from engines.safety.asks import Cost, EvaluationInput
from engines.scope import RequestContext
from engines.stores.budget_policy import Limit, PolicyInput
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.events import SystemEvent
from engines.stores.kpi_records import MeasurementInput
from engines.stores.rate_limits import RateLimit
from engines.stores.strategy_locks import LockDecisionInput, LockReview
from engines.wiring import Engines, open_engines

RESERVES: Final[GateName] = "budget"
LOOKS: Final[GateName] = "budget_room"
COMMON: Final[tuple[GateName, ...]] = tuple(
    gate for gate in get_args(GateName) if gate not in (RESERVES, LOOKS)
)
LABELS: Final = {"postgres": "PostgreSQL", "sqlite": "SQLite"}
GOAL: Final = Goal("at most", 1.5)
# More than any run asks for.
PLENTY: Final = 10_000_000
KNOWN_TIMEOUT_S: Final = 10.0


def comparison(driver: str) -> Callable[[Stage], list[Result]]:
    """What `--only gates-{driver}` runs."""
    return functools.partial(_run, driver)


def _run(driver: str, stage: Stage) -> list[Result]:
    directory = stage.new_directory()
    url = stage.new_database() if driver == "postgres" else f"sqlite://{directory}/data.db"
    return uvloop.run(_gating(driver, stage, prepare(url, directory)))


async def _gating(driver: str, stage: Stage, deployment: Deployment) -> list[Result]:
    async with open_engines(deployment.control_plane) as engines:
        context = await engines.contexts.context(deployment.token)
        await _let_pass(engines, context)
        return [
            await _compared(driver, stage, engines, context, LOOKS),
            await _compared(driver, stage, engines, context, RESERVES),
        ]


async def _compared(
    driver: str, stage: Stage, engines: Engines, context: RequestContext, budget: GateName
) -> Result:
    """The price of an action that this gate and the seven others guard, and all of them let pass."""
    gates, action = (*COMMON, budget), f"refund.{budget}"
    await _guard(engines, context, action, gates)
    cost = Cost(amount="0.01", currency="USD")
    evaluation = EvaluationInput(action=action, subject="order-7", cost=cost, details={"amount": "12"})
    recorded = await engines.spine.get(context, await _passed(engines, context, evaluation))
    assert recorded.payload is not None
    assert recorded.payload["judged_by"] == list(gates)
    event = SystemEvent(event_type=recorded.event_type, payload=recorded.payload)

    async def ours(_: int) -> float:
        return await _p50_us(stage, lambda: engines.gates.evaluate(context, evaluation))

    async def other(_: int) -> float:
        return await _p50_us(stage, lambda: engines.spine.append_system(context, [event]))

    held = "one reservation each" if budget == RESERVES else "each with room in its budget"
    return compared(
        *await alternate(stage.sizes.rounds, ours, other),
        name=f"gates-{budget}-{driver}",
        what=f"p50 of one evaluation that {len(gates)} gates let pass, {held}, {LABELS[driver]}",
        unit="µs",
        other_name="one append of the same event alone",
        goal=GOAL,
        notes={"evaluations a round": stage.sizes.lone_appends},
    )


async def _passed(engines: Engines, context: RequestContext, evaluation: EvaluationInput) -> str:
    """The event of a decision that lets the action pass: what was just defined is known within a second."""
    async with asyncio.timeout(KNOWN_TIMEOUT_S):
        while True:
            decided = await engines.gates.evaluate(context, evaluation)
            if decided.passed:
                return decided.answer.event_id
            await asyncio.sleep(0.1)


async def _guard(engines: Engines, context: RequestContext, action: str, gates: Sequence[GateName]) -> None:
    config = GateConfig(
        tenant_id=context.tenant_id,
        surface_id=context.surface_id,
        rules=(GateRule(action=action, gates=tuple(gates)),),
    )
    await engines.gate_configs.put(_may(context, "gates.write"), config)


async def _let_pass(engines: Engines, context: RequestContext) -> None:
    """Everything that the gates look at, so that nothing stands in the way of a refund."""
    admin = _may(
        msgspec.structs.replace(context, user_id="u_admin"),
        *("budget.policy", "definitions.write", "firearms.write", "rate_limits.write"),
        *("kpis.define", "kpis.write", "strategy_locks.decide"),
    )
    system = msgspec.structs.replace(admin, tenant_id="t_system")
    define = functools.partial(_define, engines)
    capability = {"risk_level": "high", "human_approval": False, "offered_to": "*"}
    await define(system, "firearms", "payments", capability)
    await define(system, "firearms-bindings", "payments", {"class_id": "payments", "actions": ["refund.*"]})
    await define(admin, "firearms-licences", "payments", {"class_id": "payments"})
    await define(admin, "firearms-grants", "all", {"class_id": "payments", "user_id": context.user_id})
    await define(context, "strategy-locks", "q4", {"allowed_actions": ["refund.*"], "three_wise": True})
    review = LockReview(verdict="pass", reviewers=("one", "two", "three"))
    seen = Condition(versions=("*",))
    await engines.strategy_locks.approve(admin, "q4", LockDecisionInput(review=review), condition=seen)
    budget = Limit(limit_id="month", period="month", hard=str(PLENTY))
    await engines.budget.put_policy(admin, PolicyInput(currency="USD", limits=(budget,)))
    await define(admin, "kpis", "success", {"floor": 0.5, "ceiling": 1.0})
    await engines.kpis.measure(admin, "success", MeasurementInput(value=0.8))
    for setting, value in (("floors", 0.0), ("ceilings", 1.0), ("weights", 1.0)):
        await define(admin, "temperature", setting, {"values": {"success": value}})
    quota = RateLimit(name="refunds", per=("user",), route="action:*", limit=PLENTY, window_seconds=3_600)
    await engines.rate_limit_policies.put(admin, [quota])


async def _define(
    engines: Engines, context: RequestContext, name: str, record_id: str, blob: dict[str, Any]
) -> None:
    given = DefinitionInput(json_blob=blob)
    new = Condition(absent=True)
    await engines.definitions.put(context, SCHEMA_NAMED[name], record_id, given, condition=new)


def _may(context: RequestContext, *permissions: str) -> RequestContext:
    return msgspec.structs.replace(context, permissions=context.permissions | set(permissions))


async def _p50_us(stage: Stage, call: Callable[[], Awaitable[object]]) -> float:
    seconds: list[float] = []
    for _ in range(stage.sizes.lone_appends):
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e6
