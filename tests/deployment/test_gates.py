"""The gate chain in two processes on one control plane and one spine, by their own clocks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from engines.core.listing import Window
from engines.errors import GateDenied
from engines.safety.asks import Decided, EvaluationInput
from engines.scope import RequestContext
from engines.stores.events import EventFilter
from engines.wiring import Engines
from tests.deployment.conftest import Open, token

# A change is adopted within a second.
# It takes a second (in polls: tests/control/test_directory.py), and what a machine that pauses adds.
ADOPTION_S = 2.5
PATIENCE_S = 20.0
ROUNDS = 2
REFUND = EvaluationInput(action="refund.create")


async def who(deployment: Engines, user: str = "member", **headers: str) -> RequestContext:
    return await deployment.contexts.context(token(user), headers)


async def recorded(deployment: Engines, context: RequestContext) -> dict[str, Any]:
    """The result of every decision on the spine, by event id."""
    found: dict[str, Any] = {}
    window = Window(limit=1_000)
    while True:
        page = await deployment.spine.list(context, EventFilter(event_type="safety"), window=window)
        found |= {event.event_id: (event.payload or {})["result"] for event in page.items}
        if page.after is None:
            return found
        window = Window(limit=1_000, after=page.after)


async def test_another_process_follows_a_switch_within_a_second(open_deployment: Open) -> None:
    here, there = await open_deployment(), await open_deployment()
    owner, member = await who(here, "owner"), await who(there)
    assert (await there.gates.evaluate(member, REFUND)).passed
    for engaged in (True, False):
        await here.kill_switches.put(owner, engaged=engaged)
        set_at = time.monotonic()
        assert (await here.gates.evaluate(await who(here), REFUND)).passed is not engaged
        asked_at = time.monotonic()
        while (await there.gates.evaluate(member, REFUND)).passed is engaged:
            assert asked_at - set_at < ADOPTION_S
            asked_at = time.monotonic()


async def test_switching_off_while_others_evaluate_leaves_no_pass_behind_it(open_deployment: Open) -> None:
    """Two processes evaluate without pause while one of them switches everything off, and on again."""
    here, there = await open_deployment(), await open_deployment()
    owner = await who(here, "owner")
    contexts = {id(one): await who(one) for one in (here, there)}
    for one in (here, there):
        await one.gates.evaluate(contexts[id(one)], REFUND)
    told: list[Decided] = []
    passed_late: list[Decided] = []
    switched_off = asyncio.Event()
    ended = asyncio.Event()
    blocked = {id(here): asyncio.Event(), id(there): asyncio.Event()}

    async def evaluating(one: Engines) -> None:
        while not ended.is_set():
            began_off = switched_off.is_set()
            decided = await one.gates.evaluate(contexts[id(one)], REFUND)
            told.append(decided)
            if not decided.passed:
                blocked[id(one)].set()
            elif began_off and switched_off.is_set() and one is here:
                passed_late.append(decided)

    workers = [asyncio.create_task(evaluating(one)) for one in (here, there) for _ in range(3)]
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(ROUNDS):
            await here.kill_switches.put(owner, engaged=True)
            switched_off.set()
            await asyncio.gather(*(event.wait() for event in blocked.values()))
            switched_off.clear()
            await here.kill_switches.put(owner, engaged=False)
            for event in blocked.values():
                event.clear()
        ended.set()
        await asyncio.gather(*workers)
    assert passed_late == []
    found = await recorded(here, contexts[id(here)])
    assert {decided.answer.event_id for decided in told} <= set(found)
    assert len(found) == len(told) + 2
    for decided in told:
        assert found[decided.answer.event_id] == decided.answer.decision


async def test_a_guard_in_process_is_the_same_chain(open_deployment: Open) -> None:
    deployment = await open_deployment()
    member = await who(deployment)
    await deployment.gates.guard(member, "streams.append", subject="s")
    await deployment.kill_switches.put(await who(deployment, "owner"), engaged=True, reason="incident")
    with pytest.raises(GateDenied) as denied:
        await deployment.gates.guard(member, "streams.append", subject="s")
    assert (denied.value.gate, denied.value.reason_code) == ("kill_switch", "kill_switch_engaged")
    assert list((await recorded(deployment, member)).values()) == ["block"]


async def test_an_admin_of_the_system_switches_off_a_tenant_by_name(open_deployment: Open) -> None:
    deployment = await open_deployment()
    admin = await deployment.contexts.context(token("admin"), {"x-tenant-id": "t_a"})
    await deployment.kill_switches.put(admin, engaged=True)
    answer = (await deployment.gates.evaluate(await who(deployment), REFUND)).answer
    assert (answer.decision, answer.details["held_by"]) == ("block", "t_system")
    await deployment.kill_switches.put(await who(deployment, "owner"), engaged=False)
    assert not (await deployment.gates.evaluate(await who(deployment), REFUND)).passed
