"""Rate limits of a whole process: policies that others set, and a control plane that is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import engines
from engines.control.bootstrap import Seed, apply_seed, bootstrap
from engines.control.directory import AGE_MAX_S
from engines.errors import ContextMismatch, Forbidden, Invalid, Throttled, Unavailable
from engines.stores.rate_limits import LIMITS_MAX, UNLIMITED, RateLimit
from engines.testing.clock import ManualClock
from engines.wiring import open_control_plane
from tests.contexts import ADMIN, PERMISSIONS_OF, context

SEED: Seed = {
    "tenants": [
        {
            "tenant_id": "t_a",
            "name": "A",
            "mode": "lab",
            "envs": ["prod", "dev"],
            "default_surface_id": "chat",
        }
    ]
}
OWNER = context("t_a")
CALL = "GET /notes"
# How soon is told by tests/control/test_directory.py.
PATIENCE_S = 30.0


def limit(count: int, name: str = "all", **fields: object) -> RateLimit:
    values = {"per": ("tenant",), "limit": count, "window_seconds": 3600, **fields}
    return RateLimit(name=name, **values)  # type: ignore[arg-type]


@pytest.fixture
async def url(tmp_path: Path) -> str:
    made = f"sqlite://{tmp_path}/control.db"
    async with open_control_plane(made) as control:
        await bootstrap(control.store, control.record, host_local=True)
        await apply_seed(control.store, SEED)
    return made


@pytest.fixture
async def opened(url: str) -> AsyncIterator[engines.Engines]:
    async with engines.open(url) as process:
        yield process


async def test_another_process_goes_by_a_policy(url: str, opened: engines.Engines) -> None:
    async with engines.open(url) as other:
        assert await other.rate_limits.admit(OWNER, CALL) is UNLIMITED
        await opened.rate_limit_policies.put(OWNER, [limit(3)])
        async with asyncio.timeout(PATIENCE_S):
            while (await other.rate_limits.admit(OWNER, CALL, count=False)) is UNLIMITED:
                await other.directory.changed(other.directory.generation)
        both = [await process.rate_limits.admit(OWNER, CALL) for process in (other, opened) * 4]
        assert sum(admission.refused_by is None for admission in both) == 3
        with pytest.raises(Throttled):
            both[-1].check()


async def test_a_process_that_hears_nothing_of_the_control_plane_does_not_guess(url: str) -> None:
    clock = ManualClock()
    async with engines.open(url, clock=clock) as process:
        await process.rate_limit_policies.put(OWNER, [limit(1_000)])
        assert (await process.rate_limits.admit(OWNER, CALL)).refused_by is None
        clock.advance(AGE_MAX_S + 1)
        with pytest.raises(Unavailable):
            await process.rate_limits.admit(OWNER, CALL)
        with pytest.raises(Unavailable):
            await process.rate_limits.admit(context("t_b"), CALL)


async def test_a_policy_is_one_of_an_env_and_an_operators_is_the_default_env_s(
    opened: engines.Engines,
) -> None:
    policies = opened.rate_limit_policies
    await policies.put(context("t_a", env="dev"), [limit(1)])
    acting = context("t_system", roles=("admin",), acting_on="t_a")
    stored = await policies.put(acting, [limit(2)])
    assert (stored.record.tenant_id, stored.record.env) == ("t_a", "prod")
    assert (await policies.get(OWNER)).record.limits == (limit(2),)
    assert (await policies.get(context("t_a", env="dev"))).record.limits == (limit(1),)
    with pytest.raises(ContextMismatch):
        await policies.put(OWNER, [], env="dev")


async def test_who_may_not_is_refused(opened: engines.Engines) -> None:
    member = context("t_a", roles=("member",), permissions=PERMISSIONS_OF["member"])
    with pytest.raises(Forbidden):
        await opened.rate_limit_policies.put(member, [limit(1)])
    with pytest.raises(Forbidden):
        await opened.rate_limit_policies.get(context("t_a", permissions=frozenset()))
    await opened.rate_limit_policies.put(ADMIN, [limit(1)])
    assert (await opened.rate_limit_policies.get(ADMIN)).record.tenant_id == "t_system"


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ([limit(0)], "limits[0].limit"),
        ([limit(1), limit(1, "B")], "limits[1].name"),
        ([limit(1, per=("tenant", "user"))], "limits[0].per"),
        ([limit(1, route="notes")], "limits[0].route"),
        ([limit(1, f"l{number}") for number in range(LIMITS_MAX + 1)], "limits"),
    ],
)
async def test_what_was_made_in_process_is_judged_too(
    opened: engines.Engines, limits: list[RateLimit], field: str
) -> None:
    with pytest.raises(Invalid) as refused:
        await opened.rate_limit_policies.put(OWNER, limits)
    assert refused.value.field == field
