"""Announcements where routes differ by scope, or change: each is told once, on the spine of its own scope."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

import engines
from engines.control.records import Project
from engines.core.records import Condition
from engines.errors import Unavailable
from engines.scope import RequestContext, RouteScope
from engines.stores import announcements
from engines.stores.budget_records import UsageInput
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.events import EventFilter
from tests.moves.conftest import NEW, OWNER, Open

FLOWS = SCHEMA_NAMED["flows"]
USE = UsageInput(cost="1", currency="USD", provider="x")
P1, P2 = (msgspec.structs.replace(OWNER, project_id=name) for name in ("p1", "p2"))


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Looks again and again; the test's own time limit ends it."""
    while True:
        if await holds():
            return
        await asyncio.sleep(0.02)


async def all_told(process: engines.Engines) -> None:
    async def holds() -> bool:
        return not process.announcements._deliveries

    await until(holds)


async def leads_to(process: engines.Engines, kind: str, mine: RequestContext, backend_id: str) -> None:
    async def holds() -> bool:
        return (await process.router.place(kind, mine)).backend_id == backend_id

    await until(holds)


async def two_spines(process: engines.Engines) -> None:
    """The budget of both projects lies at `a`; the spine of p1 at `b`, every other at `a`."""
    for name in ("p1", "p2"):
        await process.projects.create(OWNER, Project(project_id=name, name=name))
    scope = RouteScope(project_id="p1")
    await process.routes.put(OWNER, "event_spine", "b", scope=scope, options={}, condition=NEW)
    await leads_to(process, "event_spine", P1, "b")


async def told_to(process: engines.Engines, mine: RequestContext, event_type: str = "budget") -> Counter[Any]:
    """How many events the spine of that scope holds, by the project in which they happened."""
    found = (await process.spine.list(mine, EventFilter(event_type=event_type))).items
    return Counter(event.project_id for event in found)


async def have_told(process: engines.Engines, count: int) -> bool:
    return await told_to(process, P2) == {"p2": count}


async def failed_once(process: engines.Engines) -> bool:
    return any(delivery.failures for delivery in process.announcements._deliveries.values())


async def about(process: engines.Engines, record_id: str) -> int:
    events = (await process.spine.list(OWNER, EventFilter(event_type="audit"))).items
    return sum((event.payload or {}).get("id") == record_id for event in events)


async def test_changes_of_one_partition_are_told_each_on_the_spine_of_its_own_scope(
    open_process: Open,
) -> None:
    process = await open_process()
    await two_spines(process)
    uses = [process.budget.record(mine, USE) for _ in range(20) for mine in (P2, P1)]
    await asyncio.gather(*uses)
    await all_told(process)
    assert await told_to(process, P1) == {"p1": 20}
    assert await told_to(process, P2) == {"p2": 20}


async def test_a_spine_that_is_away_keeps_no_other_waiting(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await open_process()
    await two_spines(process)
    append = process.spine.append_system

    async def away(context: RequestContext, *args: Any, **options: Any) -> Any:
        if context.project_id == "p1":
            raise Unavailable("the spine's backend is away")
        return await append(context, *args, **options)

    monkeypatch.setattr(process.spine, "append_system", away)
    monkeypatch.setattr(announcements, "DELIVERED_MAX", 2)
    for number in range(4):
        await asyncio.gather(*(process.budget.record(mine, USE) for mine in (P1, P2)))
        await until(functools.partial(have_told, process, number + 1))
    assert await told_to(process, P1) == {}
    monkeypatch.undo()
    await all_told(process)
    assert (await told_to(process, P1), await told_to(process, P2)) == ({"p1": 4}, {"p2": 4})


@pytest.mark.parametrize("change", ["put", "delete"])
async def test_what_waits_where_no_route_leads_any_more_is_told(
    open_process: Open, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    process = await open_process()
    of_chat = RouteScope(surface_id="chat")
    await process.routes.put(OWNER, "flow_store", "b", scope=of_chat, options={}, condition=NEW)
    await leads_to(process, "flow_store", OWNER, "b")

    async def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("the spine's backend is away")

    monkeypatch.setattr(process.spine, "append_system", away)
    flow = DefinitionInput(json_blob={"nodes": [{"id": "a"}]}, id="f1")
    await process.definitions.create(OWNER, FLOWS, flow)
    await until(lambda: failed_once(process))
    (present,) = [one for one in (await process.routes.list(OWNER)).items if one.record.scope == of_chat]
    stands = Condition(versions=(present.etag.strip('"'),))
    if change == "put":
        await process.routes.put(OWNER, "flow_store", "a", scope=of_chat, options={}, condition=stands)
    else:  # All tenants' default leads to `a`.
        await process.routes.delete(OWNER, "flow_store", scope=of_chat, condition=stands)
    await leads_to(process, "flow_store", OWNER, "a")
    monkeypatch.undo()
    await all_told(process)
    assert await about(process, "f1") == 1


async def test_a_place_that_one_scope_left_is_named_by_another_from_then_on(open_process: Open) -> None:
    process = await open_process()
    for name in ("p1", "p2"):
        await process.projects.create(OWNER, Project(project_id=name, name=name))
    await process.budget.record(P1, USE)
    await all_told(process)
    of_p1 = RouteScope(project_id="p1")
    await process.routes.put(OWNER, "budget_store", "b", scope=of_p1, options={}, condition=NEW)
    await leads_to(process, "budget_store", P1, "b")
    for _ in range(2):
        await process.budget.record(P2, USE)
        await all_told(process)
    assert await told_to(process, OWNER) == {"p1": 1, "p2": 2}
    (name,) = [name for (_, _, _, backend_id, _), name in process.announcements._names.items()]
    assert '"project_id":"p2"' in name
