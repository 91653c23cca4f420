"""Every change of the control plane reaches the spines that it concerns, once."""

import asyncio
from typing import Any

import pytest

from engines.control.records import Project
from engines.control.store import PARTITION
from engines.core import outbox
from engines.core.documents import Documents
from engines.core.keys import within
from engines.core.listing import Window
from engines.core.records import Condition
from engines.errors import Unavailable
from engines.scope import RouteScope
from engines.stores.event_records import Event
from engines.stores.events import EventFilter
from engines.stores.notes import NoteInput
from engines.testing.faults import FaultPlan, FaultyDriver
from engines.wiring import Engines
from tests.deployment.conftest import Open, token

ANY = Condition(versions=("*",))
PATIENCE_S = 10.0
# Of one call to a database in the next region: 30 ms on average.
PAUSE_S_MAX = 0.06


def payload(event: Event) -> dict[str, Any]:
    assert event.payload is not None, "nothing was redacted"
    return event.payload


async def audits(deployment: Engines, user: str, count: int) -> list[Event]:
    """The first `count` audit events that name an action on the user's spine, as they arrive."""
    context = await deployment.contexts.context(token(user), {})
    found: list[Event] = []
    async with asyncio.timeout(PATIENCE_S):
        async for batch in await deployment.spine.follow(context):
            found += [event for event in batch if event.event_type == "audit" and "action" in payload(event)]
            if len(found) >= count:
                return found
    raise AssertionError("a follower does not end by itself")


async def waits(documents: Documents, tenant_id: str) -> bool:
    """Whether a message for the tenant's spine stands in the control plane."""
    above, below = within("o", tenant_id)
    return bool((await documents.scan(PARTITION, above=above, below=below, limit=1)).docs)


async def test_a_change_by_an_owner_is_told_on_their_own_spine(open_deployment: Open) -> None:
    deployment = await open_deployment()
    owner = await deployment.contexts.context(token("owner"), {})
    await deployment.projects.create(owner, Project(project_id="p1", name="One"))
    (event,) = await audits(deployment, "owner", 1)
    assert payload(event)["action"] == "projects.created"
    assert event.tenant_id == "t_a"
    assert event.user_id == "owner"
    assert event.source == "system"
    assert event.run_id == owner.request_id
    assert payload(event)["record"] == "t_a/p1"
    assert payload(event)["actor"] == {"user_id": "owner", "tenant_id": "t_a"}


async def test_a_change_by_an_admin_of_t_system_is_told_on_both_spines(open_deployment: Open) -> None:
    deployment = await open_deployment()
    admin = await deployment.contexts.context(token("admin"), {"x-tenant-id": "t_a"})
    await deployment.tenants.patch(admin, "t_a", {"name": "Renamed"}, condition=ANY)
    theirs = await audits(deployment, "owner", 1)
    assert [payload(event)["changed"] for event in theirs] == [["name"]]
    seeded = 0
    async with asyncio.timeout(PATIENCE_S):
        while True:
            ours = await audits(deployment, "admin", seeded + 1)
            if payload(ours[-1])["record"] == "t_a":
                break
            seeded = len(ours)
    assert ours[-1].event_id != theirs[0].event_id


async def test_what_cannot_be_told_yet_waits_and_is_told_once_the_route_is_mended(
    open_deployment: Open,
) -> None:
    deployment = await open_deployment()
    admin = await deployment.contexts.context(token("admin"), {})
    owner = await deployment.contexts.context(token("owner"), {})
    await audits(deployment, "admin", 1)
    await deployment.routes.delete(admin, "event_spine", RouteScope(), condition=ANY)
    backend_id = "control"
    await deployment.routes.put(
        admin, "event_spine", backend_id, scope=RouteScope(), options={}, condition=Condition(absent=True)
    )
    await deployment.projects.create(owner, Project(project_id="p1", name="One"))
    actions = [payload(event)["action"] for event in await audits(deployment, "owner", 1)]
    assert actions == ["projects.created"]


async def test_a_long_backlog_is_told_in_order_though_the_backend_is_far_away(
    open_deployment: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one page of them, each of which may have been told before, at 30 ms a call."""
    monkeypatch.setattr(outbox, "PAUSE_MAX_S", 1.0)
    deployment = await open_deployment()
    owner = await deployment.contexts.context(token("owner"), {})
    append, documents = deployment.spine.append_system, deployment.routes._store.documents

    async def lose(*args: Any, **options: Any) -> Any:
        await append(*args, **options)
        raise Unavailable("and its messages stay")

    monkeypatch.setattr(deployment.spine, "append_system", lose)
    for number in range(130):
        await deployment.projects.create(owner, Project(project_id=f"p{number:03d}", name="x"))
    documents._driver = FaultyDriver(documents._driver, FaultPlan(pause_s_max=PAUSE_S_MAX))
    monkeypatch.setattr(deployment.spine, "append_system", append)
    async with asyncio.timeout(2 * PATIENCE_S):
        while await waits(documents, "t_a"):  # noqa: ASYNC110 (nobody is told when a message is removed)
            await asyncio.sleep(0.1)
    listed = await deployment.spine.list(owner, EventFilter(event_type="audit"), window=Window(limit=1000))
    told = [payload(event)["record"] for event in listed.items if "action" in payload(event)]
    assert told == [f"t_a/p{number:03d}" for number in range(130)]
    assert all(event.user_id == "owner" for event in listed.items)


async def test_several_processes_tell_each_change_once(open_deployment: Open) -> None:
    deployments = [await open_deployment() for _ in range(3)]
    owner = await deployments[0].contexts.context(token("owner"), {})
    await asyncio.gather(
        *(
            deployments[number % 3].projects.create(owner, Project(project_id=f"p{number}", name="x"))
            for number in range(30)
        )
    )
    found = await audits(deployments[0], "owner", 30)
    told = sorted(payload(event)["record"] for event in found)
    assert told == sorted(f"t_a/p{number}" for number in range(30))


async def test_all_is_there_after_a_restart(open_deployment: Open) -> None:
    first = await open_deployment()
    member = await first.contexts.context(token("member"), {})
    note = (await first.notes.create(member, NoteInput(content="remembered"))).record
    second = await open_deployment()
    again = await second.contexts.context(token("member"), {})
    assert (await second.notes.get(again, note.note_id)) == note
