"""Processes that write definitions are killed: what was acknowledged is there, and told once, in order."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

import engines
from engines.control.bootstrap import Seed, apply_seed, bootstrap
from engines.core.listing import Window
from engines.core.pledges import ABANDONED_S, Pledges
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.events import EventFilter
from engines.testing.clock import ManualClock
from engines.wiring import PLEDGES_PARTITION, open_control_plane
from tests.contexts import context
from tests.stores.definitions_process import AUTHORS, TENANT

ROOT = Path(__file__).resolve().parents[2]
SEED: Seed = {
    "tenants": [{"tenant_id": TENANT, "name": "A", "mode": "lab", "default_surface_id": "chat"}],
}
KILLS = 4
LINES = 40


async def killed_while_writing(url: str, prefix: str) -> dict[str, int]:
    """The highest version of each definition that the process acknowledged before it was killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.stores.definitions_process", url, prefix, cwd=ROOT, stdout=PIPE
    )
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(LINES)]
    process.kill()
    lines += (await process.stdout.read()).splitlines(keepends=True)
    await process.wait()
    versions: dict[str, int] = {}
    for name, version in (line.decode().split() for line in lines if line.endswith(b"\n")):
        versions[name] = int(version)
    return versions


async def told(process: engines.Engines) -> dict[str, list[int]]:
    """The versions that the spine was told of, by definition, in its order."""
    found: dict[str, list[int]] = {}
    after: str | None = None
    while True:
        window = Window(limit=1_000, after=after)
        listed = await process.spine.list(context(TENANT), EventFilter(event_type="audit"), window=window)
        for event in listed.items:
            payload = event.payload or {}
            if payload.get("definition") == "flows":
                found.setdefault(payload["id"], []).append(payload["version"])
        after = listed.after
        if after is None:
            return found


@pytest.mark.slow
async def test_what_killed_processes_acknowledged_is_told_once_by_another(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/control.db"
    async with open_control_plane(url) as control:
        await bootstrap(control.store, control.record, host_local=True)
        await apply_seed(control.store, SEED)
    acknowledged: dict[str, int] = {}
    for number in range(KILLS):
        acknowledged |= await killed_while_writing(url, f"k{number}-")
    assert len(acknowledged) == KILLS * AUTHORS
    async with engines.open(url) as opened, open_control_plane(url) as control:
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
        assert await heir.finish_abandoned() == KILLS
        found = await told(opened)
        for name, version in acknowledged.items():
            present = await opened.definitions.get(context(TENANT), SCHEMA_NAMED["flows"], name)
            assert present.version >= version
            assert found[name] == list(range(1, present.version + 1)), name
