"""A running deployment: a refusal is answered, and stands on the spine that it concerns, counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.client import Client
from tests.servers.lab import LabServer


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    directory: Path = tmp_path_factory.mktemp("identity") / "lab"
    server = LabServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
async def anyone(lab: LabServer) -> AsyncIterator[Client]:
    async with Client(lab.url) as client:
        yield client


async def refusals(reader: Client, user_id: str) -> list[Any]:
    """What the reader's spine was told of the user, in order."""
    answer = await reader("GET", "/events?event_type=audit&limit=1000")
    assert answer.status == 200, answer.body
    events = [event for event in answer.json["items"] if event["payload"]["action"] == "context.refused"]
    return [event for event in events if event["user_id"] == user_id]


async def counted(reader: Client, user_id: str, count: int) -> list[Any]:
    """The refusals, once this many have been counted in them; never more."""
    async with asyncio.timeout(10):
        while True:
            events = await refusals(reader, user_id)
            found = sum(event["payload"]["count"] for event in events)
            assert found <= count
            if found == count:
                return events
            await asyncio.sleep(0.1)


async def test_a_refusal_stands_on_the_callers_own_spine_once_it_is_answered(
    lab: LabServer, anyone: Client
) -> None:
    viewer = anyone.bearing(lab.token("viewer"))
    problem = (await viewer("GET", "/me", X_Tenant_Id="t_system")).problem(
        403, "ContextMismatch", "X-Tenant-Id"
    )
    (event,) = await refusals(viewer, "u_viewer")
    assert event["source"] == "system"
    assert event["run_id"] == problem["request_id"]
    assert (event["payload"]["field"], event["payload"]["named"], event["payload"]["count"]) == (
        "X-Tenant-Id",
        "t_system",
        1,
    )


async def test_many_refusals_of_one_user_are_few_events_that_count_them_all(
    lab: LabServer, anyone: Client
) -> None:
    member = anyone.bearing(lab.token("member"))
    for _ in range(60):
        (await member("GET", "/notes", X_User_Id="u_owner")).problem(403, "ContextMismatch", "X-User-Id")
    assert len(await counted(member, "u_member", 60)) < 10


async def test_whoever_belongs_nowhere_is_told_of_on_t_systems_spine(lab: LabServer, anyone: Client) -> None:
    """Wherever it was found: in a header, in the path, or by there being no invitation."""
    outsider, admin = anyone.bearing(lab.token(None)), anyone.bearing(lab.token("system_admin"))
    members = "/tenants/t_demo/members"
    answers = [
        await outsider("GET", "/me", X_Tenant_Id="t_demo"),
        await outsider("POST", f"{members}/u_owner/accept"),
        await outsider("POST", f"{members}/u_outsider/accept"),
    ]
    for answer, field in zip(answers, ("X-Tenant-Id", "user_id", "tenant_id"), strict=True):
        answer.problem(403, "ContextMismatch", field)
    await counted(admin, "u_outsider", 3)
