"""Analytics events that gates guard, in batches of 100: against appending the very events to the same spine.

Ours is a deployment's own ingest, a rule of whose surface has every gate guard it that only reads: one
decision a batch, recorded by an append of its own before that of the events. The other side appends what ours
wrote, and judges nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import uvloop

from bench.deployment import prepare
from bench.ingesting import BATCH, BATCHES, CALLERS, page_view, rate_of
from bench.measure import Goal, Result, alternate, compared
from bench.stage import Stage
from engines.api.analytics import events_of
from engines.control.gates import WRITE
from engines.control.records import GateConfig, GateRule
from engines.core.log import Entry
from engines.safety.ingesting import INGEST
from engines.scope import RequestContext
from engines.stores.analytics_events import EventEntries, GateStatus, NewAnalyticsEvent
from engines.stores.events import Part
from engines.wiring import Engines, open_engines

LABELS: Final = {"postgres": "PostgreSQL", "sqlite": "SQLite"}
FAILED: Final = GateStatus(status="fail", gate="strategy_lock", reason_code="no_strategy_lock")


def comparison(driver: str) -> Callable[[Stage], list[Result]]:
    """What `--only ingest-guarded-{driver}` runs."""
    return functools.partial(_run, driver)


def _run(driver: str, stage: Stage) -> list[Result]:
    directory = stage.new_directory()
    url = stage.new_database() if driver == "postgres" else f"sqlite://{directory}/data.db"
    deployment = prepare(url, directory)
    return uvloop.run(_guarding(driver, stage, deployment.control_plane, deployment.token))


async def _guarding(driver: str, stage: Stage, control_plane: str, token: str) -> list[Result]:
    batches = BATCHES * max(1, stage.sizes.appends_each // BATCH)
    count = CALLERS * batches * BATCH
    batch = [page_view(number) for number in range(BATCH)]
    async with open_engines(control_plane) as engines:
        context = await engines.contexts.context(token)
        await _guard(engines, context)
        entries = _entries(context, batch)

        async def ours(_: int) -> float:
            async def caller(_: int) -> None:
                for _ in range(batches):
                    told = await engines.analytics.ingest(context, events_of(batch))
                    assert told.accepted == BATCH
                    assert told.events[0].gate_status == FAILED.status

            return await rate_of(count, caller)

        async def spine(_: int) -> float:
            async def caller(_: int) -> None:
                for _ in range(batches):
                    await engines.spine.append_parts(context, [Part(entries, None)])

            return await rate_of(count, caller)

        rates = await alternate(stage.sizes.rounds, ours, spine)
    return [
        compared(
            *rates,
            name=f"ingest-guarded-{driver}",
            what=f"take in analytics events that gates guard, {LABELS[driver]}, batches of {BATCH} "
            f"by {CALLERS} callers",
            unit="events/s",
            other_name="the spine, the same events in the same batches",
            goal=Goal("at least", 0.6),
            notes={"events a round": count},
        )
    ]


async def _guard(engines: Engines, context: RequestContext) -> None:
    """A rule under which the gates that only read guard taking events in."""
    admin = msgspec.structs.replace(context, permissions=context.permissions | {WRITE})
    rule = GateRule(action=INGEST, gates=("kpi_corridor", "temperature", "strategy_lock", "three_wise"))
    config = GateConfig(tenant_id=context.tenant_id, surface_id=context.surface_id, rules=(rule,))
    await engines.gate_configs.put(admin, config)


def _entries(context: RequestContext, batch: Sequence[dict[str, object]]) -> list[Entry]:
    made = EventEntries(context)
    events = events_of(batch)
    return [made.entry(event, None, FAILED) for event in events if isinstance(event, NewAnalyticsEvent)]
