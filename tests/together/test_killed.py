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
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

import engines
from engines.agent.checkpoints import CheckpointInput
from engines.agent.forks import ForkInput
from engines.agent.messages import MessageInput
from engines.agent.telemetry import TokensQuery
from engines.agent.traces import TraceInput
from engines.catalogue import CHECKPOINTS, SESSIONS
from engines.control.bootstrap import apply_seed, bootstrap
from engines.core.keys import within
from engines.core.listing import Window
from engines.core.pledges import ABANDONED_S, Pledges
from engines.core.records import Condition
from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.errors import NotFound
from engines.stores.budget_policy import Limit, PolicyInput
from engines.stores.budget_summary import SummaryQuery
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.events import Event, EventFilter
from engines.testing.clock import ManualClock
from engines.wiring import PLEDGES_PARTITION, open_control_plane
from tests.backends import DYNAMODB_CREDENTIALS, new_url, session_server
from tests.together.writing import ADA, AUTHORS, FLOWS, FORKED, KPI, NOON, TALKS, TENANT

ROOT: Final = Path(__file__).resolve().parents[2]
ACKNOWLEDGED: Final = 8
# A turn of an agent is five writes, a fork and its deletion some twenty.
TURNS: Final = 3
PARTS: Final = ("messages", "checkpoints", "traces")
START_TIMEOUT_S: Final = 60.0
TOLD_WITHIN_S: Final = 20.0
# How much each store acknowledges before the process is killed.
STORES: Final = {
    "versions": ACKNOWLEDGED * AUTHORS,
    **dict.fromkeys(("analytics", "decisions", "usage", "measurements", "rooms"), ACKNOWLEDGED),
    **dict.fromkeys((*PARTS, "remembered", "tokens"), TURNS * TALKS),
    "forks": 1,
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
    is_killed = False
    async with asyncio.timeout(START_TIMEOUT_S):
        while line := await process.stdout.readline():
            if not line.endswith(b"\n"):
                break
            store, _, value = line.decode().strip().partition(" ")
            if store in said:  # Its log goes the same way.
                said[store].append(value)
            if not is_killed and all(len(said[store]) >= enough for store, enough in STORES.items()):
                process.kill()
                is_killed = True
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
        await check_talks(opened, said)
        await check_forks(opened, said["forks"])
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


async def check_talks(opened: engines.Engines, acknowledged: dict[str, list[str]]) -> None:
    """Each session goes on: its parts are numbered without a gap, and at most what was under way is there
    beside what was acknowledged."""
    agent, turn = opened.agent, TraceInput(name="turn", started_at=NOON, ended_at=NOON)
    sessions = {one.title: one.session_id for one in (await agent.sessions.list(ADA)).items}
    report = await agent.telemetry.report(ADA, TokensQuery())
    counted = {group.model: group for group in report.groups}
    last = {kind: _last(acknowledged[kind]) for kind in (*PARTS, "remembered", "tokens")}
    for name in last["tokens"]:
        at = sessions[name]
        await agent.messages.append(ADA, at, MessageInput(role="user", content=0))
        await agent.checkpoints.save(ADA, at, CheckpointInput(state=0))
        await agent.traces.record(ADA, at, turn)
        for part in PARTS:
            found = await every(partial(_parts, getattr(agent, part), at))
            assert [record.number for record in found] == list(range(1, len(found) + 1)), part
            assert len(found) - last[part][name] in (1, 2), part
        remembered = (await agent.memory.get(ADA, "episodes", name)).value
        assert remembered - last["remembered"][name] in (0, 1)
        assert counted[name].calls - last["tokens"][name] in (0, 1)
        assert counted[name].tokens_in == 2 * counted[name].calls


def _last(acknowledged: list[str]) -> dict[str, int]:
    """The last number that was said of each name."""
    return {name: int(number) for name, _, number in (line.partition("=") for line in acknowledged)}


async def _parts(store: Any, session_id: str, window: Window) -> Any:
    return await store.list(ADA, session_id, window=window)


async def check_forks(opened: engines.Engines, deleted: list[str]) -> None:
    """What was deleted is gone; what the kill left half made or half deleted can be deleted."""
    agent = opened.agent
    sessions = {one.session_id: one for one in (await agent.sessions.list(ADA)).items}
    assert not sessions.keys() & set(deleted)
    left = [one for one in sessions.values() if one.title == "fork"]
    assert len(left) <= 1
    for one in left:
        await agent.sessions.delete(ADA, one.session_id)
        with pytest.raises(NotFound):
            await agent.sessions.get(ADA, one.session_id)
    (first,) = [one for one in sessions.values() if one.title == "first"]
    said = (await agent.messages.list(ADA, first.session_id)).items
    assert [message.content for message in said] == [0, 1, 2]
    (state,) = (await agent.checkpoints.list(ADA, first.session_id)).items
    fork = (await agent.forks.fork(ADA, state.checkpoint_id, ForkInput())).record
    copies = (await agent.messages.list(ADA, fork.session_id)).items
    assert [message.content for message in copies] == [0, 1, 2]
    assert [one.state for one in (await agent.checkpoints.list(ADA, fork.session_id)).items] == [FORKED]
    for name, kind in (("messages", SESSIONS), ("checkpoints", CHECKPOINTS)):
        place = await opened.router.place(kind, ADA)
        partition = await place.partition(ADA.user_id)
        for session_id in (*deleted, *(one.session_id for one in left)):
            above, below = within("i", ADA.user_id, session_id)
            page = await place.documents.scan(partition, above=above, below=below, limit=1)
            assert page.docs == (), name


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
