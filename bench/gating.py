"""What a decision of the gates costs beside the append that each one is: both in process, one at a time.

The other side appends the very payload of such a decision to the same spine, and judges nothing.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Final, get_args

import msgspec
import uvloop

from bench.deployment import Deployment, prepare
from bench.measure import Goal, Result, alternate, compared
from bench.stage import Stage
from engines.control.gates import WRITE
from engines.control.records import GateConfig, GateName, GateRule
from engines.safety.asks import Cost, EvaluationInput
from engines.scope import RequestContext
from engines.stores.events import SystemEvent
from engines.wiring import Engines, open_engines

ACTION: Final = "refund.create"
LABELS: Final = {"postgres": "PostgreSQL", "sqlite": "SQLite"}


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
        await _guard_with_all(engines, context)
        evaluation = EvaluationInput(
            action=ACTION, subject="order-7", cost=Cost(amount="1", currency="USD"), details={"amount": "12"}
        )
        decided = await engines.gates.evaluate(context, evaluation)
        recorded = await engines.spine.get(context, decided.answer.event_id)
        assert recorded.payload is not None
        event = SystemEvent(event_type=recorded.event_type, payload=recorded.payload)

        async def ours(_: int) -> float:
            return await _p50_us(stage, lambda: engines.gates.evaluate(context, evaluation))

        async def other(_: int) -> float:
            return await _p50_us(stage, lambda: engines.spine.append_system(context, [event]))

        figures = await alternate(stage.sizes.rounds, ours, other)
    return [
        compared(
            *figures,
            name=f"gates-{driver}",
            what=f"p50 of one evaluation, {len(recorded.payload['judged_by'])} gates asked, {LABELS[driver]}",
            unit="µs",
            other_name="one append of the same event alone",
            goal=Goal("at most", 1.5),
            notes={"evaluations a round": stage.sizes.lone_appends, "decision": decided.answer.decision},
        )
    ]


async def _guard_with_all(engines: Engines, context: RequestContext) -> None:
    """A rule under which every gate that is mounted guards the action."""
    gates = tuple(name for name in get_args(GateName) if name in engines.gates.mounted)
    admin = msgspec.structs.replace(context, permissions=context.permissions | {WRITE})
    rule = GateRule(action=ACTION, gates=gates)
    config = GateConfig(tenant_id=context.tenant_id, surface_id=context.surface_id, rules=(rule,))
    await engines.gate_configs.put(admin, config)


async def _p50_us(stage: Stage, call: Callable[[], Awaitable[object]]) -> float:
    seconds: list[float] = []
    for _ in range(stage.sizes.lone_appends):
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e6
