"""One backend down: who is led there learns so in time, nobody else notices, and healing is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from typing import Any, Final
from urllib.parse import quote

import msgspec
import pytest
import structlog

import engines
from engines.control.records import Project
from engines.core.documents import TIMEOUT_S
from engines.core.outbox import PAUSE_MAX_S
from engines.core.records import Condition
from engines.errors import EnginesError, OutcomeUnknown, Throttled, Unavailable
from engines.scope import RequestContext
from engines.stores.tables import TableRowInput
from engines.testing.proxy import WELL, Behaviour, FaultProxy
from tests.contexts import ADMIN, context
from tests.servers.cosmos import CosmosServer
from tests.servers.dynamodb import DynamoServer
from tests.servers.dynamodb_relay import DynamoRelay, Request, refusal
from tests.together.conftest import (
    DRIVERS,
    MIXED,
    NETWORKED,
    Deployment,
    NewUrl,
    address_of,
    deploy,
    record_at,
    tenant_of,
)

# How late a call may end past its own deadline on a machine that is busy.
LATE_S: Final = 3.0
# What an open circuit answers takes no time; this is for a machine that is busy.
AT_ONCE_S: Final = 0.5
HEALED_WITHIN_S: Final = 8.0
PAUSE_S: Final = 0.05
CALLERS: Final = 6
CALLS_BEFORE: Final = 15
SLOW_S: Final = 0.3
TOLD_WITHIN_S: Final = 20.0
THROTTLED_CALLS: Final = 10_000
THROTTLED_BY_COSMOS: Final[dict[str, Any]] = {
    "status": 429,
    "body": {"code": "429", "message": "Request rate is large"},
    "headers": {"x-ms-retry-after-ms": "100"},
}


class Call(msgspec.Struct, frozen=True):
    """How one call ended: `error` is None where it did what it was asked."""

    writes: bool
    began_s: float
    duration_s: float
    error: EnginesError | None


class Traffic:
    """Writes and reads rows of one tenant, and remembers what was acknowledged."""

    def __init__(self, process: engines.Engines, tenant_id: str) -> None:
        self._process = process
        self._context: RequestContext = context(tenant_id)
        self._numbers = itertools.count()
        self.calls: list[Call] = []
        self.acknowledged: set[str] = set()

    async def turn(self) -> Call:
        """One write of a new row, or one read of another that was acknowledged."""
        number = next(self._numbers)
        writes = number % 2 == 0 or not self.acknowledged
        began_s = time.monotonic()
        error: EnginesError | None = None
        try:
            if writes:
                await self._process.tables.put(
                    self._context, "t", "pk", f"k{number}", TableRowInput(value=number)
                )
                self.acknowledged.add(f"k{number}")
            else:
                await self._process.tables.get(self._context, "t", "pk", next(iter(self.acknowledged)))
        except EnginesError as refusal:
            error = refusal
        call = Call(writes, began_s, time.monotonic() - began_s, error)
        self.calls.append(call)
        return call

    async def keep_on(self) -> None:
        """Turn after turn, until cancelled."""
        while True:
            await self.turn()
            await asyncio.sleep(PAUSE_S)

    async def check_acknowledged(self) -> None:
        for key in self.acknowledged:
            row = await self._process.tables.get(self._context, "t", "pk", key)
            assert row.value == int(key.removeprefix("k"))


async def until(holds: Callable[[], bool]) -> None:
    """Looks again and again; the test's own time limit ends it."""
    while True:
        if holds():
            return
        await asyncio.sleep(PAUSE_S)


async def told(process: engines.Engines, mine: RequestContext, record: str) -> list[str]:
    """The ids of the audit events about a record, once there is one."""
    while True:
        with contextlib.suppress(Unavailable):
            if found := await audit_of(process, mine, record):
                return found
        await asyncio.sleep(PAUSE_S)


@contextlib.asynccontextmanager
async def under_way(*work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    async def run(item: Callable[[], Awaitable[None]]) -> None:
        await item()

    tasks = [asyncio.create_task(run(item)) for item in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes


async def in_good_times(theirs: Traffic, others: dict[str, Traffic]) -> dict[str, list[Call]]:
    """What the others' calls take before any fault; afterwards nobody has a call on record."""
    everybody = (theirs, *others.values())
    for traffic in everybody:
        await traffic.turn()  # The first opens the backend.
        traffic.calls = []
    async with under_way(*(traffic.keep_on for traffic in everybody)):
        await until(lambda: min(len(traffic.calls) for traffic in everybody) >= CALLS_BEFORE)
    before = {name: traffic.calls for name, traffic in others.items()}
    assert not [call for traffic in everybody for call in traffic.calls if call.error]
    for traffic in everybody:
        traffic.calls = []
    return before


def check_others(name: str, before: list[Call], during: list[Call]) -> None:
    """No error, and no slower than chance on a busy machine: medians, within a generous factor."""
    assert not [call for call in during if call.error is not None], name
    assert len(during) >= CALLS_BEFORE, name
    was_s, is_s = (statistics.median(call.duration_s for call in calls) for calls in (before, during))
    print(
        f"{name}: p50 {was_s * 1000:.1f} -> {is_s * 1000:.1f} ms, p99"
        f" {percentile(before, 99) * 1000:.1f} -> {percentile(during, 99) * 1000:.1f} ms"
    )
    assert is_s < 5 * was_s + 0.1, f"{name} was slower: {was_s:.3f} s before, {is_s:.3f} s during the fault"


def percentile(calls: list[Call], percent: int) -> float:
    durations = sorted(call.duration_s for call in calls)
    return durations[min(len(durations) - 1, len(durations) * percent // 100)]


def check_victim(calls: list[Call], allowed: tuple[type[EnginesError], ...]) -> None:
    """Each call ended in time, and said what its caller can rely on."""
    for call in calls:
        assert call.duration_s < TIMEOUT_S + LATE_S, call
        if call.error is not None:
            assert isinstance(call.error, allowed), call
            assert call.writes or not isinstance(call.error, OutcomeUnknown), call


async def answers_again(traffic: Traffic) -> float:
    """Seconds until the victim's calls succeed."""
    began_s = time.monotonic()
    async with asyncio.timeout(HEALED_WITHIN_S):
        while True:
            if (await traffic.turn()).error is None:
                break
            await asyncio.sleep(PAUSE_S)
    return time.monotonic() - began_s


async def learns_at_once(traffic: Traffic) -> None:
    """Until most of the last calls fail without being sent: the circuit is open."""
    async with asyncio.timeout(3 * TIMEOUT_S):
        while True:
            last = traffic.calls[-2 * CALLERS :]
            quick = [call for call in last if call.error is not None and call.duration_s < AT_ONCE_S]
            if len(last) == 2 * CALLERS and len(quick) > CALLERS:
                return
            await asyncio.sleep(PAUSE_S)


async def refuse(network: FaultProxy) -> None:
    await network.refuse()


async def hang(network: FaultProxy) -> None:
    network.behave(Behaviour(hang=True))


async def cut_replies(network: FaultProxy) -> None:
    network.behave(Behaviour(reply_bytes_max=0))


async def heal(network: FaultProxy, fault: Callable[[FaultProxy], Awaitable[None]]) -> None:
    network.behave(WELL)
    if fault is refuse:
        await network.accept()


FAULTS: Final = {"refuses": refuse, "hangs": hang, "resets replies": cut_replies}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("victim", NETWORKED)
async def test_a_backend_that_is_down_takes_down_its_own_alone(
    victim: str, fault: Callable[[FaultProxy], Awaitable[None]], deployment: Deployment
) -> None:
    network = deployment.networks[victim]
    kind_of = {driver: kind for kind, driver in MIXED.items()}
    async with engines.open(deployment.url) as process:
        others = {name: Traffic(process, tenant_of(name)) for name in DRIVERS if name != victim}
        theirs = Traffic(process, tenant_of(victim))
        before = await in_good_times(theirs, others)
        callers = [theirs.keep_on] * CALLERS
        async with under_way(*callers, *(traffic.keep_on for traffic in others.values())):
            await fault(network)
            await learns_at_once(theirs)
            states = await kinds_of_mixed(process)
        assert states == {kind: name != victim for name, kind in kind_of.items()}
        check_victim(theirs.calls, (Unavailable, OutcomeUnknown))
        for name, traffic in others.items():
            check_others(name, before[name], traffic.calls)
        await heal(network, fault)
        healed_s = await answers_again(theirs)
        print(f"{victim}: healed after {healed_s:.2f} s")
        await theirs.check_acknowledged()


@pytest.mark.slow
@pytest.mark.parametrize("victim", NETWORKED)
async def test_a_backend_that_is_slow_is_slow_for_its_own_alone(victim: str, deployment: Deployment) -> None:
    async with engines.open(deployment.url) as process:
        others = {name: Traffic(process, tenant_of(name)) for name in DRIVERS if name != victim}
        theirs = Traffic(process, tenant_of(victim))
        before = await in_good_times(theirs, others)
        deployment.networks[victim].behave(Behaviour(delay_s=SLOW_S))
        callers = [theirs.keep_on] * CALLERS
        async with under_way(*callers, *(traffic.keep_on for traffic in others.values())):
            await until(lambda: len(theirs.calls) >= 3 * CALLERS)
        check_victim(theirs.calls, ())
        assert statistics.median(call.duration_s for call in theirs.calls) > SLOW_S
        for name, traffic in others.items():
            check_others(name, before[name], traffic.calls)
        deployment.networks[victim].behave(WELL)
        await theirs.check_acknowledged()


@pytest.mark.slow
async def test_a_file_that_somebody_locks_takes_down_its_own_alone(deployment: Deployment) -> None:
    """SQLite has no network: what can be done to it is to hold its lock."""
    async with engines.open(deployment.url) as process:
        others = {name: Traffic(process, tenant_of(name)) for name in NETWORKED}
        theirs = Traffic(process, tenant_of("sqlite"))
        before = await in_good_times(theirs, others)
        path = deployment.records["sqlite"].config["path"]
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            callers = [theirs.keep_on] * CALLERS
            async with under_way(*callers, *(traffic.keep_on for traffic in others.values())):
                await until(lambda: sum(call.error is not None for call in theirs.calls) >= CALLERS)
            holder.execute("ROLLBACK")
        check_victim(theirs.calls, (Unavailable, OutcomeUnknown))
        assert all(call.writes for call in theirs.calls if call.error is not None), "reads need no lock"
        for name, traffic in others.items():
            check_others(name, before[name], traffic.calls)
        await answers_again(theirs)
        await theirs.check_acknowledged()


async def throttled_by_the_relay(request: Request) -> Any:  # noqa: ARG001
    return refusal("ThrottlingException", "Rate exceeded")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["dynamodb", "cosmos"])
async def test_a_service_that_throttles_throttles_its_own_alone(
    victim: str,
    request: pytest.FixtureRequest,
    new_url: NewUrl,
    stack: AsyncExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed = await deploy(new_url("sqlite"), new_url, stack, monkeypatch)
    relay: DynamoRelay | None = None
    if victim == "dynamodb":
        dynamodb: DynamoServer = request.getfixturevalue("dynamodb_server")
        relay = await stack.enter_async_context(DynamoRelay(dynamodb.endpoint))
        record = deployed.records[victim]
        config = {**record.config, "endpoint": relay.endpoint}
        async with engines.open(deployed.url) as process:
            await process.backends.put(
                ADMIN, msgspec.structs.replace(record, config=config), condition=Condition(versions=("*",))
            )
    async with engines.open(deployed.url) as process:
        others = {name: Traffic(process, tenant_of(name)) for name in DRIVERS if name != victim}
        theirs = Traffic(process, tenant_of(victim))
        before = await in_good_times(theirs, others)
        if relay is not None:
            relay.script = throttled_by_the_relay
        else:
            cosmos: CosmosServer = request.getfixturevalue("cosmos_server")
            cosmos.order(*[THROTTLED_BY_COSMOS] * THROTTLED_CALLS)
        async with under_way(*[theirs.keep_on] * CALLERS, *(one.keep_on for one in others.values())):
            await until(lambda: sum(call.error is not None for call in theirs.calls) >= CALLERS)
        if relay is not None:
            relay.script = passed_on
        else:
            cosmos = request.getfixturevalue("cosmos_server")
            cosmos.forget_orders()
        check_victim(theirs.calls, (Throttled,))
        for name, traffic in others.items():
            check_others(name, before[name], traffic.calls)
        await answers_again(theirs)
        await theirs.check_acknowledged()


async def passed_on(request: Request) -> Any:
    return await request.forward(request.body)


@pytest.mark.slow
@pytest.mark.parametrize("victim", NETWORKED)
async def test_a_process_that_starts_while_one_hangs_serves_all_others(
    victim: str, deployment: Deployment
) -> None:
    network = deployment.networks[victim]
    network.behave(Behaviour(hang=True))
    began_s = time.monotonic()
    async with engines.open(deployment.url) as process:
        assert time.monotonic() - began_s < TIMEOUT_S, "it waited for a backend of tenants"
        theirs = Traffic(process, tenant_of(victim))
        async with under_way(*[theirs.keep_on] * CALLERS):
            others = {name: Traffic(process, tenant_of(name)) for name in DRIVERS if name != victim}
            mixed = await asyncio.gather(*(traffic.turn() for traffic in others.values()))
            assert not [call for call in mixed if call.error is not None]
            assert not theirs.acknowledged
            await learns_at_once(theirs)
        check_victim(theirs.calls, (Unavailable,))
        network.behave(WELL)
        await answers_again(theirs)


@pytest.mark.slow
async def test_a_kind_whose_backend_answers_is_served_while_the_spines_hangs_at_the_start(
    deployment: Deployment,
) -> None:
    deployment.networks[MIXED["memory_store"]].behave(Behaviour(hang=True))
    spine = MIXED["event_spine"]
    assert spine == "sqlite"
    record = deployment.records[spine]
    missing = msgspec.structs.replace(record, config={"path": record.config["path"] + ".d/missing.db"})
    async with engines.open(deployment.url) as process:
        await process.backends.put(ADMIN, missing, condition=Condition(versions=("*",)))
    async with engines.open(deployment.url) as process:
        mixed = Traffic(process, "t_mixed")
        assert (await mixed.turn()).error is None
        assert (await mixed.turn()).error is None
        states = await kinds_of_mixed(process)
    down = {"event_spine", "memory_store"}
    assert states == {kind: kind not in down for kind in MIXED}


async def audit_of(process: engines.Engines, mine: RequestContext, record: str) -> list[str]:
    """The ids of the audit events about a record on the tenant's spine."""
    events = (await process.spine.list(mine)).items
    return [
        event.event_id
        for event in events
        if event.event_type == "audit" and (event.payload or {}).get("record") == record
    ]


def delivery_failures(said: list[MutableMapping[str, Any]]) -> list[str]:
    """The tenants of whom a delivery to their spine failed."""
    return [entry["group"] for entry in said if entry["event"] == "outbox delivery waits"]


# Each takes some seconds: every fault on one backend, and one on each of the others.
SPINES_DOWN = [
    *(("postgres", name) for name in FAULTS),
    *zip([victim for victim in NETWORKED if victim != "postgres"], FAULTS, strict=True),
]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "named"), SPINES_DOWN)
async def test_a_change_whose_spine_is_down_is_made_and_told_once_after_healing(
    victim: str, named: str, deployment: Deployment
) -> None:
    fault = FAULTS[named]
    network = deployment.networks[victim]
    theirs, other = context(tenant_of(victim)), context("t_sqlite")
    async with engines.open(deployment.url) as process:
        await process.spine.list(theirs)
        await fault(network)
        with structlog.testing.capture_logs() as said:
            await process.projects.create(theirs, Project(project_id="p1", name="One"))
            await process.projects.create(other, Project(project_id="p2", name="Two"))
            async with asyncio.timeout(TOLD_WITHIN_S):
                await told(process, other, "t_sqlite/p2")
                # A delivery has failed, with its reply lost or never sent.
                await until(lambda: theirs.tenant_id in delivery_failures(said))
        await heal(network, fault)
        async with asyncio.timeout(PAUSE_MAX_S + TOLD_WITHIN_S):
            first = await told(process, theirs, f"{theirs.tenant_id}/p1")
        # What was told last is behind everything that waited before it.
        await process.projects.create(theirs, Project(project_id="p3", name="Three"))
        async with asyncio.timeout(PAUSE_MAX_S + TOLD_WITHIN_S):
            await told(process, theirs, f"{theirs.tenant_id}/p3")
        assert await audit_of(process, theirs, f"{theirs.tenant_id}/p1") == first
        assert len(first) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", NETWORKED)
async def test_a_change_whose_control_plane_is_down_is_refused(
    victim: str, new_url: NewUrl, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spines are elsewhere and answer; after healing nothing of the refused change is there."""
    url = new_url(victim)
    record = record_at(url, "aside", monkeypatch)
    network = await stack.enter_async_context(FaultProxy(address_of(record)))
    host, port = network.address
    there = ":".join(map(str, address_of(record)))
    through = url.replace(quote(there, safe=""), quote(f"{host}:{port}", safe="")).replace(
        there, f"{host}:{port}"
    )
    assert through != url
    deployed = await deploy(through, new_url, stack, monkeypatch)
    mine = context("t_sqlite")
    async with engines.open(deployed.url) as process:
        await process.spine.list(mine)
        await process.projects.create(mine, Project(project_id="p1", name="One"))
        network.behave(Behaviour(request_bytes_max=0))
        began_s = time.monotonic()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await process.projects.create(mine, Project(project_id="p2", name="Two"))
        assert time.monotonic() - began_s < TIMEOUT_S + LATE_S
        network.behave(WELL)
        async with asyncio.timeout(HEALED_WITHIN_S + TOLD_WITHIN_S):
            await told(process, mine, "t_sqlite/p1")
            listed = await process.projects.list(mine)
        assert [stored.record.project_id for stored in listed.items] == ["p1"]
        assert not await audit_of(process, mine, "t_sqlite/p2")


async def kinds_of_mixed(process: engines.Engines) -> dict[str, bool]:
    """Which kinds of the tenant on several backends are ready."""
    at = await process.routes.where(context("t_mixed"))
    report = await process.diagnostics.report(at)
    return {kind.resource_kind: kind.state == "ready" for kind in report if kind.resource_kind in MIXED}
