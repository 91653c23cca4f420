"""One backend down: who is led there learns so in time, nobody else notices, and healing is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec
import pytest

import engines
from engines.control.records import Project
from engines.core.documents import TIMEOUT_S
from engines.core.records import Condition
from engines.errors import EnginesError, OutcomeUnknown, Throttled, Unavailable
from engines.scope import RequestContext
from engines.stores.tables import TableRowInput
from engines.testing.proxy import WELL, Behaviour, FaultProxy
from tests.contexts import context
from tests.servers.cosmos import CosmosServer
from tests.servers.dynamodb import DynamoServer
from tests.servers.dynamodb_relay import DynamoRelay, Request, refusal
from tests.together.conftest import (
    DRIVERS,
    MIXED,
    NETWORKED,
    Deployment,
    NewUrl,
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
        while (await traffic.turn()).error is not None:
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
        for _ in range(CALLS_BEFORE):
            await asyncio.gather(theirs.turn(), *(traffic.turn() for traffic in others.values()))
        before = {name: traffic.calls[2:] for name, traffic in others.items()}
        assert not [call for traffic in (theirs, *others.values()) for call in traffic.calls if call.error]
        for traffic in (theirs, *others.values()):
            traffic.calls = []
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


async def kinds_of_mixed(process: engines.Engines) -> dict[str, bool]:
    """Which kinds of the tenant on several backends are ready."""
    at = await process.routes.where(context("t_mixed"))
    report = await process.diagnostics.report(at)
    return {kind.resource_kind: kind.state == "ready" for kind in report if kind.resource_kind in MIXED}
