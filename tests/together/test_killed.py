"""A process dies by SIGKILL while it writes to every store, on each backend: what it acknowledged stands.

Another process finishes what it left: each version is told to the spine once and in order, the ledger agrees
with its totals and its limits, and nothing that was answered is missing from where it is listed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

import engines
from engines.control.bootstrap import apply_seed, bootstrap
from engines.core.listing import Window
from engines.core.pledges import ABANDONED_S, Pledges
from engines.core.records import Condition
from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.stores.budget_policy import Limit, PolicyInput
from engines.stores.budget_summary import SummaryQuery
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.events import Event, EventFilter
from engines.testing.clock import ManualClock
from engines.wiring import PLEDGES_PARTITION, open_control_plane
from tests.backends import DYNAMODB_CREDENTIALS, new_url, session_server
from tests.together.writing import ADA, AUTHORS, FLOWS, KPI, TENANT

ROOT: Final = Path(__file__).resolve().parents[2]
ACKNOWLEDGED: Final = 8
START_TIMEOUT_S: Final = 60.0
TOLD_WITHIN_S: Final = 20.0
STORES: Final = {
    "versions": AUTHORS,
    "analytics": 1,
    "decisions": 1,
    "usage": 1,
    "measurements": 1,
    "rooms": 1,
}


async def prepared(url: str) -> None:
    """A control plane with one tenant, who has a budget and a KPI."""
    async with open_control_plane(url) as control:
        await bootstrap(control.store, control.record, host_local=control.host_local)
        tenant = {"tenant_id": TENANT, "name": "A", "mode": "lab", "default_surface_id": "chat"}
        await apply_seed(control.store, {"tenants": [tenant]})
    async with engines.open(url) as opened:
        limit = Limit(limit_id="all", period="total", hard="1000000")
        await opened.budget.put_policy(ADA, PolicyInput(currency="USD", limits=(limit,)))
        kpi = DefinitionInput(json_blob={"aggregation": "count"})
        await opened.definitions.put(ADA, SCHEMA_NAMED["kpis"], KPI, kpi, condition=Condition(absent=True))
        await told(opened, "audit", 1)


async def killed_while_writing(url: str) -> dict[str, list[str]]:
    """What the process acknowledged, by store, before it was killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.together.writing", url),
        stdout=PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    said: dict[str, list[str]] = {store: [] for store in STORES}
    async with asyncio.timeout(START_TIMEOUT_S):
        while line := await process.stdout.readline():
            if not line.endswith(b"\n"):
                break
            store, _, value = line.decode().strip().partition(" ")
            if store in said:  # Its log goes the same way.
                said[store].append(value)
            if all(len(said[store]) >= ACKNOWLEDGED * count for store, count in STORES.items()):
                process.kill()
    assert await process.wait() == -9
    return said


async def every(list_page: Callable[[Window], Awaitable[Any]]) -> list[Any]:
    found: list[Any] = []
    after: str | None = None
    while True:
        page = await list_page(Window(limit=1_000, after=after))
        found += page.items
        after = page.after
        if after is None:
            return found


async def events(opened: engines.Engines, event_type: str) -> list[Event]:
    where = EventFilter(event_type=event_type)
    return await every(lambda window: opened.spine.list(ADA, where, window=window))


async def told(opened: engines.Engines, event_type: str, count: int) -> list[dict[str, Any]]:
    """What the spine was told, once that is so much."""
    async with asyncio.timeout(TOLD_WITHIN_S):
        while True:
            payloads = [event.payload or {} for event in await events(opened, event_type)]
            if len(payloads) >= count:
                return payloads
            await asyncio.sleep(0.05)


async def finish(url: str, opened: engines.Engines) -> None:
    """What another process does for one that is gone for so long."""
    async with open_control_plane(url) as control:
        clock = ManualClock()
        heir = Pledges(
            control.documents,
            PLEDGES_PARTITION,
            process_id="heir",
            clock=clock,
            finish=opened.announcements.finish,
        )
        await heir.finish_abandoned()
        clock.advance(ABANDONED_S)
        assert await heir.finish_abandoned() > 0


@pytest.mark.crash
@pytest.mark.parametrize("driver", DOCUMENT_DRIVERS)
async def test_what_a_killed_process_acknowledged_stands_and_is_told_once(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    for name, value in DYNAMODB_CREDENTIALS.items():
        monkeypatch.setenv(f"AWS_{name.upper()}", value)
    url = new_url(driver, session_server(request, driver), tmp_path)
    await prepared(url)
    said = await killed_while_writing(url)
    async with engines.open(url) as opened:
        await finish(url, opened)
        await check_versions(opened, said["versions"])
        await check_usage(opened, said["usage"])
        await check_room(opened, len(said["rooms"]))
        listed = await every(lambda window: opened.analytics.list(ADA, window=window))
        check_once(said["analytics"], [event.event_id for event in listed])
        check_once(said["decisions"], [event.event_id for event in await events(opened, "safety")])
        measured = await every(lambda window: opened.kpis.measurements(ADA, KPI, window=window))
        check_once(said["measurements"], [one.measurement_id for one in measured])
        assert (await opened.kpis.reading(ADA, KPI)).value == len(measured)
        assert (await opened.spine.verify(ADA)).ok


def check_once(acknowledged: list[str], found: list[str]) -> None:
    assert set(acknowledged) <= set(found)
    assert len(set(found)) == len(found)


async def check_versions(opened: engines.Engines, acknowledged: list[str]) -> None:
    """Each that was acknowledged is there, and each that is there was told once, in its order."""
    payloads = await told(opened, "audit", 0)
    for name, versions in _by_name(acknowledged).items():
        present = await opened.definitions.get(ADA, FLOWS, name)
        assert present.version >= versions[-1]
        order = [
            one["version"] for one in payloads if (one.get("definition"), one.get("id")) == ("flows", name)
        ]
        assert order == list(range(1, present.version + 1)), name


async def check_room(opened: engines.Engines, acknowledged: int) -> None:
    """Who is in is what the spine was told last, and it was told of every change once and in order."""
    changes = [one for one in await told(opened, "audit", 0) if one.get("record") == "room"]
    assert len(changes) > acknowledged
    assert [one["version"] for one in changes] == list(range(1, len(changes) + 1))
    members = (await opened.realtime.list(ADA, "thread", "t")).items
    roles = {one["member_id"]: one["role"] for one in changes}
    assert {one.user_id: one.role for one in members} == roles


def _by_name(acknowledged: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for line in acknowledged:
        name, _, version = line.partition("=")
        found.setdefault(name, []).append(int(version))
    assert len(found) == AUTHORS
    return found


async def check_usage(opened: engines.Engines, acknowledged: list[str]) -> None:
    """The ledger says what its totals and its limits say, and the spine what the ledger does."""
    entries = [entry.usage_id for entry in await every(lambda w: opened.budget.usage(ADA, window=w))]
    check_once(acknowledged, entries)
    summary = await opened.budget.summary(ADA, SummaryQuery(verify=True))
    assert summary.verification is not None
    assert summary.verification.ok, summary.verification
    payloads = await told(opened, "budget", len(entries) + 1)
    used = Counter(payload["usage_id"] for payload in payloads if payload["kind"] == "usage")
    assert used == Counter(entries)
