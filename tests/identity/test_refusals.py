"""Refusals are told at most once a second for each principal, with a count that loses nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from engines.errors import ContextMismatch, MissingRoute
from engines.identity.context import Contexts, Principal
from engines.identity.refusals import INTERVAL_S, Refusal, RefusalAudit, RefusedContext
from engines.testing.clock import ManualClock
from tests.identity.world import World


class Seconds:
    """The audit's timer, moved by hand: `pass_one` ends every sleep that has begun."""

    def __init__(self) -> None:
        self.sleepers: list[asyncio.Future[None]] = []

    async def sleep(self, seconds: float) -> None:
        assert seconds == INTERVAL_S
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.append(sleeper)
        await sleeper

    async def pass_one(self) -> None:
        sleepers, self.sleepers = self.sleepers, []
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(None)
        for _ in range(10):
            await asyncio.sleep(0)


class Told:
    """What the spine was told, and how it behaves when it is."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str, Mapping[str, Any]]] = []
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None

    async def emit(self, tenant_id: str, user_id: str, request_id: str, payload: Mapping[str, Any]) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        self.events.append((tenant_id, user_id, request_id, payload))

    def counts(self) -> dict[tuple[str, str], int]:
        counted: Counter[tuple[str, str]] = Counter()
        for tenant_id, user_id, _, payload in self.events:
            counted[tenant_id, user_id] += payload["count"]
        return dict(counted)


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def audit(told: Told, seconds: Seconds) -> AsyncIterator[RefusalAudit]:
    audit = RefusalAudit(told.emit, ManualClock(), sleep=seconds.sleep, principals_max=3)
    yield audit
    if told.hold is not None:
        told.hold.set()
    await audit.close()


def mismatch(user_id: str = "ada", request_id: str = "req-1", tenant_id: str = "t_one") -> RefusedContext:
    refusal = Refusal(
        tenant_id=tenant_id, user_id=user_id, request_id=request_id, field="X-Tenant-Id", named="t_two"
    )
    return RefusedContext("not yours", refusal=refusal)


async def settle(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 (what is waited for is a number, not an event)
            await asyncio.sleep(0)


async def test_a_refusal_is_told_before_it_is_answered(audit: RefusalAudit, told: Told) -> None:
    await audit.record(mismatch())
    ((tenant_id, user_id, request_id, payload),) = told.events
    assert (tenant_id, user_id, request_id) == ("t_one", "ada", "req-1")
    assert payload == {
        "action": "context.refused",
        "field": "X-Tenant-Id",
        "named": "t_two",
        "count": 1,
        "at": "2027-01-15T08:00:00.000Z",
    }


async def test_a_principal_is_told_of_once_a_second_and_all_are_counted(
    audit: RefusalAudit, told: Told, seconds: Seconds
) -> None:
    for number in range(100):
        await audit.record(mismatch(request_id=f"req-{number}"))
    assert len(told.events) == 1
    await seconds.pass_one()
    assert [payload["count"] for *_, payload in told.events] == [1, 99]
    assert told.events[-1][2] == "req-99"
    for _ in range(3):
        await audit.record(mismatch())
    assert len(told.events) == 2
    await seconds.pass_one()
    assert [payload["count"] for *_, payload in told.events] == [1, 99, 3]


async def test_a_quiet_second_ends_the_count_and_the_next_refusal_is_told_at_once(
    audit: RefusalAudit, told: Told, seconds: Seconds
) -> None:
    await audit.record(mismatch())
    await seconds.pass_one()
    assert seconds.sleepers == []
    await audit.record(mismatch())
    assert len(told.events) == 2


async def test_principals_do_not_hold_each_other_back(audit: RefusalAudit, told: Told) -> None:
    for user_id in ("ada", "bob", "eve"):
        await audit.record(mismatch(user_id))
    await audit.record(mismatch("ada", tenant_id="t_two"))
    assert {(tenant, user) for tenant, user, *_ in told.events[:3]} == {
        ("t_one", "ada"),
        ("t_one", "bob"),
        ("t_one", "eve"),
    }


async def test_the_table_is_bounded_and_what_does_not_fit_is_told_as_others(
    audit: RefusalAudit, told: Told, seconds: Seconds
) -> None:
    for number in range(50):
        await audit.record(mismatch(f"user-{number}"))
    assert len(seconds.sleepers) <= 4
    assert len(told.events) == 4
    assert told.events[-1][0] == "t_system"
    assert told.events[-1][3]["others"] is True
    await seconds.pass_one()
    assert sum(payload["count"] for *_, payload in told.events) == 50
    await seconds.pass_one()
    assert seconds.sleepers == []


async def test_closing_tells_what_is_held_back(audit: RefusalAudit, told: Told) -> None:
    for user_id, count in (("ada", 5), ("bob", 1)):
        for _ in range(count):
            await audit.record(mismatch(user_id))
    await audit.close()
    assert told.counts() == {("t_one", "ada"): 5, ("t_one", "bob"): 1}
    await audit.record(mismatch())
    assert told.counts()["t_one", "ada"] == 6


async def test_closing_waits_for_what_is_being_told(audit: RefusalAudit, told: Told) -> None:
    told.hold = asyncio.Event()
    telling = asyncio.create_task(audit.record(mismatch()))
    await asyncio.sleep(0)
    closing = asyncio.create_task(audit.close())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done()
    told.hold.set()
    await closing
    await telling
    assert told.counts() == {("t_one", "ada"): 1}


async def test_a_client_that_goes_away_does_not_undo_the_telling(audit: RefusalAudit, told: Told) -> None:
    told.hold = asyncio.Event()
    telling = asyncio.create_task(audit.record(mismatch()))
    await asyncio.sleep(0)
    telling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await telling
    told.hold.set()
    await settle(lambda: bool(told.events))
    assert told.counts() == {("t_one", "ada"): 1}


@pytest.mark.parametrize("error", [MissingRoute("no spine"), ValueError("a bug"), TimeoutError()])
async def test_a_refusal_stays_one_when_it_cannot_be_told(
    audit: RefusalAudit, told: Told, seconds: Seconds, error: Exception
) -> None:
    told.error = error
    await audit.record(mismatch())
    await audit.record(mismatch())
    await seconds.pass_one()
    told.error = None
    await audit.record(mismatch())
    await seconds.pass_one()
    assert [payload["count"] for *_, payload in told.events] == [1]


async def test_a_spine_that_hangs_holds_a_refusal_up_for_a_bounded_time(
    audit: RefusalAudit, told: Told
) -> None:
    told.hold = asyncio.Event()
    async with asyncio.timeout(5):
        await audit.record(mismatch())
    assert told.events == []


async def test_a_mismatch_found_later_is_told_of_the_context_or_principal(
    world: World, audit: RefusalAudit, told: Told
) -> None:
    context = await world.contexts.context(world.token(), request_id="req-7")
    await audit.record(ContextMismatch("the body names another", field="tenant_id"), context)
    principal = Principal(
        user_id="ivy",
        tenant_id="t_system",
        request_id="req-8",
        trace_id="0" * 32,
        span_id="0" * 16,
        lab=False,
    )
    await audit.record(ContextMismatch("no invitation", field="tenant_id"), principal)
    assert [event[:3] for event in told.events] == [("t_one", "ada", "req-7"), ("t_system", "ivy", "req-8")]
    await audit.record(ContextMismatch("of nobody"))
    assert len(told.events) == 2


async def test_a_refusal_in_this_process_is_told_as_well(
    world: World, audit: RefusalAudit, told: Told
) -> None:
    contexts = Contexts(world.directory, world.verifier, world.ids, world.clock, refusals=audit)
    with pytest.raises(ContextMismatch):
        await contexts.context(world.token(), {"x-tenant-id": "t_two"})
    with pytest.raises(ContextMismatch):
        await contexts.principal(world.token("bob"), tenant_id="t_one", user_id="ada")
    assert [event[:2] for event in told.events] == [("t_one", "ada"), ("t_system", "bob")]


async def test_a_refused_context_is_a_context_mismatch_by_name() -> None:
    assert (mismatch().code, mismatch().status, mismatch().field) == ("ContextMismatch", 403, "X-Tenant-Id")
