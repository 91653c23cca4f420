"""One service with tenants on every backend at the same time, and its control plane on any of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

import engines
from engines.errors import Conflict
from engines.scope import RequestContext
from engines.stores.blackboard import BlackboardInput
from engines.stores.budget_records import UsageInput
from engines.stores.definition_records import DefinitionFilter, DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.event_records import NewEvent
from engines.stores.events import EventFilter
from engines.stores.memory import MemoryInput
from engines.stores.notes import NoteInput
from engines.stores.tables import TableRowInput
from tests.contexts import context
from tests.together.conftest import DATA_KINDS, DRIVERS, MIXED, NEW, NOT_MIXED, NewUrl, deploy, tenant_of

PAGES = SCHEMA_NAMED["pages"]
TENANTS = (*map(tenant_of, DRIVERS), "t_mixed")


async def write_each_kind(process: engines.Engines, mine: RequestContext) -> str:
    """One record of the tenant's own on each kind; returns the note's id."""
    value = {"of": mine.tenant_id}
    event = NewEvent(event_type="analytics", payload=value)
    await process.spine.append(mine, [event])
    await process.streams.append(mine, "s", [event])
    await process.tables.put(mine, "t", "pk", "sk", TableRowInput(value=value))
    await process.memory.set(mine, "s", "k", MemoryInput(value=value))
    await process.blackboard.put(mine, "r", "k", BlackboardInput(value=value), condition=NEW)
    page = DefinitionInput(json_blob={"slug": "home", "content": value}, id="home")
    await process.definitions.create(mine, PAGES, page)
    await told_of_page(process, mine)
    await process.budget.record(mine, UsageInput(cost="0.1", currency="USD", tool=mine.tenant_id))
    return (await process.notes.create(mine, NoteInput(content=mine.tenant_id))).record.note_id


async def told_of_page(process: engines.Engines, mine: RequestContext) -> None:
    """Returns once the tenant's own spine knows of the page, wherever each of them lies."""
    while True:
        told = await process.spine.list(mine, EventFilter(event_type="audit"))
        if any((event.payload or {}).get("definition") == "pages" for event in told.items):
            return
        await asyncio.sleep(0.05)


async def check_each_kind(process: engines.Engines, mine: RequestContext, note_id: str) -> None:
    """What `write_each_kind` wrote for this tenant is there, and nobody else's."""
    value = {"of": mine.tenant_id}
    told = [event.payload for event in (await process.spine.list(mine)).items if event.payload == value]
    assert told == [value]
    assert [event.payload for event in (await process.streams.list(mine, "s")).items] == [value]
    assert (await process.tables.get(mine, "t", "pk", "sk")).value == value
    assert (await process.memory.get(mine, "s", "k")).value == value
    assert (await process.blackboard.get(mine, "r", "k")).value == value
    assert (await process.notes.get(mine, note_id)).content == mine.tenant_id
    found = await process.definitions.list(mine, PAGES, DefinitionFilter(slug="home"))
    assert [page.json_blob["content"] for page in found.items] == [value]
    assert [entry.tool for entry in (await process.budget.usage(mine)).items] == [mine.tenant_id]
    with pytest.raises(Conflict):
        await process.definitions.create(mine, PAGES, DefinitionInput(json_blob={"slug": "home"}))


@pytest.mark.slow
@pytest.mark.parametrize("control_driver", DRIVERS)
async def test_every_backend_serves_its_tenants_beside_the_others(
    control_driver: str, new_url: NewUrl, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed = await deploy(new_url(control_driver), new_url, stack, monkeypatch)
    async with engines.open(deployed.url) as process:
        notes = await asyncio.gather(*(write_each_kind(process, context(name)) for name in TENANTS))
    async with engines.open(deployed.url) as process:
        for name, note_id in zip(TENANTS, notes, strict=True):
            await check_each_kind(process, context(name), note_id)
        for name in TENANTS:
            at = await process.routes.where(context(name))
            report = {kind.resource_kind: kind for kind in await process.diagnostics.report(at)}
            states = {kind.state for kind in report.values()}
            assert states == {"ready", "reserved"}, report
            expected = {kind: name.removeprefix("t_") for kind in DATA_KINDS}
            if name == "t_mixed":
                expected = {**MIXED, **dict.fromkeys(NOT_MIXED, "control")}
            assert {kind: report[kind].backend_id for kind in DATA_KINDS} == expected
