"""Definitions by the client, against a real server."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from engines.client import AsyncEngines, Engines, RetryPolicy
from engines.errors import Conflict, Invalid, NotFound, PreconditionFailed, PreconditionRequired
from tests.cli.lab import LabProcess

RETRY = RetryPolicy(attempts_max=20, deadline_s=30.0, pause_first_s=0.01, pause_max_s=0.1)
FLOW = {"nodes": [{"id": "a"}, {"id": "b"}], "edges": [{"source": "a", "target": "b"}]}


def fresh(stem: str) -> str:
    return f"{stem}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def member(lab: LabProcess) -> AsyncIterator[AsyncEngines]:
    async with AsyncEngines(lab.file.url, lab.file.user("member").token, retry=RETRY) as client:
        yield client


async def test_a_flow_has_versions_that_can_be_read_compared_and_restored(member: AsyncEngines) -> None:
    name = fresh("flow")
    with pytest.raises(PreconditionRequired):
        await member.flows.put(name, FLOW)
    first = await member.flows.put(name, FLOW, if_absent=True)
    second = await member.flows.put(name, {**FLOW, "name": "two"}, if_match=first.etag)
    assert (second.version, second.json_blob["name"], second.created_by) == (2, "two", first.user_id)
    assert (await member.flows.get(name, version=1)).json_blob == FLOW
    diff = await member.flows.diff(name)
    assert [(one.op, one.path, one.after) for one in diff.changes] == [("add", "/name", "two")]
    with pytest.raises(PreconditionFailed):
        await member.flows.put(name, FLOW, if_match=first.etag)
    await member.flows.delete(name, if_match=second.etag)
    with pytest.raises(NotFound):
        await member.flows.get(name)
    restored = await member.flows.restore(name, 1)
    assert (restored.version, restored.restored_from) == (4, 1)
    assert [one.version async for one in member.flows.versions(name)] == [1, 2, 3, 4]


async def test_a_page_is_found_by_its_slug_and_copied_to_a_project(member: AsyncEngines) -> None:
    slug = fresh("about")
    page = await member.pages.create({"slug": slug, "status": "published"})
    assert [one.id for one in (await member.pages.page(slug=slug)).items] == [page.id]
    assert page.id in [one.id async for one in member.pages.each(status="published")]
    with pytest.raises(Conflict):
        await member.pages.create({"slug": slug})
    with pytest.raises(Conflict):
        await member.pages.create({"slug": fresh("other")}, definition_id=page.id)
    copy = await member.pages.copy(page.id, surface_id="canvas")
    assert copy.copied_from is not None
    assert (copy.copied_from.id, copy.copied_from.surface_id) == (page.id, page.surface_id)
    assert (await member.bound(surface_id="canvas").pages.get(page.id)).json_blob == page.json_blob


async def test_what_breaks_a_rule_names_its_field(member: AsyncEngines) -> None:
    with pytest.raises(Invalid) as caught:
        await member.graphs.create({"nodes": [{"id": "a"}], "edges": [{"source": "a", "target": "z"}]})
    assert caught.value.field == "json_blob.edges[0].target"


def test_the_blocking_client_has_them_too(lab: LabProcess) -> None:
    with Engines(lab.file.url, lab.file.user("owner").token) as client:
        made = client.firearm_bindings.create({"class_id": "payments", "actions": ["refund"]})
        assert client.firearm_bindings.get(made.id).json_blob["actions"] == ["refund"]
        assert made.id in [one.id for one in client.firearm_bindings.each()]
