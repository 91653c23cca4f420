"""Rules of agent memory: tiers, and what of them is shown to whom."""

from __future__ import annotations

import asyncio

import pytest

from engines import catalogue
from engines.agent.memory import TIERS, AgentMemory, AgentMemoryInput
from engines.agent.stores import AgentStores
from engines.core.listing import Window
from engines.core.records import Condition
from engines.errors import (
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    MissingRoute,
    NotFound,
    PreconditionFailed,
    TooLarge,
)
from engines.testing.faults import Fault, FaultPlan
from tests.agent.talking import ADA, BOB, person
from tests.stores.home import Home
from tests.stores.subjects import keyed


@pytest.fixture
def memory(agent: AgentStores) -> AgentMemory:
    return agent.memory


def known(value: object) -> AgentMemoryInput:
    return AgentMemoryInput(value=value)


@pytest.mark.parametrize("tier", TIERS)
async def test_what_is_set_is_found_again(home: Home, memory: AgentMemory, tier: str) -> None:
    made = await memory.set(ADA, tier, "likes", known({"tea": True}))
    home.clock.advance(1)
    again = await memory.set(ADA, tier, "likes", known(["coffee", None]))
    await home.reopen()
    assert (made.created, again.created) == (True, False)
    assert made.record.created_at == again.record.created_at < again.record.updated_at
    found = await memory.get(ADA, tier, "likes")
    assert found == again.record
    assert (found.tier, found.key, found.value) == (tier, "likes", ["coffee", None])


async def test_tiers_users_and_tenants_are_apart(memory: AgentMemory) -> None:
    await memory.set(ADA, "episodes", "k", known(1))
    for who, tier in ((ADA, "long_term"), (BOB, "episodes"), (person("ada", tenant_id="t_two"), "episodes")):
        with pytest.raises(NotFound):
            await memory.get(who, tier, "k")
        with pytest.raises(NotFound):
            await memory.delete(who, tier, "k")
        assert (await memory.list(who, tier)).items == ()


async def test_a_tier_is_listed_by_key(memory: AgentMemory) -> None:
    days = ["2026-11-19", "2026-11-20", "2026-11-21"]
    for day in reversed(days):
        await memory.set(ADA, "episodes", day, known(day))
    page = await memory.list(ADA, "episodes", window=Window(limit=2))
    rest = await memory.list(ADA, "episodes", window=Window(after=page.after))
    assert [entry.key for entry in (*page.items, *rest.items)] == days
    with pytest.raises(Invalid):
        await memory.list(ADA, "summaries", window=Window(after=page.after))


async def test_conditions_and_repeats(home: Home, memory: AgentMemory) -> None:
    absent = Condition(absent=True)
    home.faults.script(Fault.LOST_APPLIED)
    first = await memory.set(ADA, "summaries", "doc", known("v1"), condition=absent, request=keyed("s"))
    again = await memory.set(ADA, "summaries", "doc", known("v1"), condition=absent, request=keyed("s"))
    assert (again.record, again.replayed) == (first.record, True)
    with pytest.raises(IdempotencyKeyReused):
        await memory.set(ADA, "summaries", "doc", known("v2"), request=keyed("s", b"other"))
    with pytest.raises(PreconditionFailed):
        await memory.set(ADA, "summaries", "doc", known("v2"), condition=absent)
    assert not (await memory.delete(ADA, "summaries", "doc", request=keyed("d"))).replayed
    assert (await memory.delete(ADA, "summaries", "doc", request=keyed("d"))).replayed
    with pytest.raises(NotFound):
        await memory.get(ADA, "summaries", "doc")


async def test_of_several_at_once_that_make_it_one_does(home: Home, memory: AgentMemory) -> None:
    home.faults.plan = FaultPlan(pause_s_max=0.002)
    absent = Condition(absent=True)
    outcomes = await asyncio.gather(
        *(memory.set(ADA, "episodes", "k", known(n), condition=absent) for n in range(4)),
        return_exceptions=True,
    )
    assert sorted(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == [
        False,
        True,
        True,
        True,
    ]


async def test_what_cannot_be_kept_is_refused(home: Home, memory: AgentMemory) -> None:
    for tier, key, field in (("short_term", "k", "tier"), ("episodes", "a b", "key")):
        with pytest.raises(Invalid) as refused:
            await memory.set(ADA, tier, key, known(1))
        assert refused.value.field == field
    with pytest.raises(Invalid):
        await memory.list(ADA, "everything")
    with pytest.raises(Invalid):
        await memory.set(ADA, "episodes", "k", known(float("nan")))
    with pytest.raises(TooLarge):
        await memory.set(ADA, "episodes", "k", known("x" * 262_144))
    with pytest.raises(Forbidden):
        await memory.set(person("ada", "viewer"), "episodes", "k", known(1))
    home.missing = {catalogue.AGENT_MEMORY}
    with pytest.raises(MissingRoute):
        await memory.get(ADA, "episodes", "k")
