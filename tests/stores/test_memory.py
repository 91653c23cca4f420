"""Rules of session memory, expiry above all."""

from __future__ import annotations

from typing import Any

import pytest

from engines.core.idempotency import identify
from engines.core.listing import Window
from engines.core.records import Condition
from engines.errors import Invalid, NotFound, PreconditionFailed
from engines.stores.memory import TTL_S_MAX, MemoryInput, SessionMemory
from tests.stores.home import Home, context


@pytest.fixture
def memory(home: Home) -> SessionMemory:
    return SessionMemory(home, home.clock)


def remember(value: Any = 1, ttl_seconds: int | None = None) -> MemoryInput:
    return MemoryInput(value=value, ttl_seconds=ttl_seconds)


async def keys(memory: SessionMemory, **changes: Any) -> list[str]:
    return [entry.key for entry in (await memory.list(context(**changes), "s1")).items]


class TestExpiry:
    async def test_without_a_ttl_an_entry_is_kept_for_good(self, home: Home, memory: SessionMemory) -> None:
        change = await memory.set(context(), "s1", "k", remember())
        assert change.record.expires_at is None
        home.clock.advance(100 * 365 * 24 * 3600)
        await home.driver.reclaim(1_000)
        assert await memory.get(context(), "s1", "k") == change.record

    @pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
    @pytest.mark.parametrize("ttl_seconds", [1, 60])
    async def test_an_entry_lives_exactly_as_long_as_asked(
        self, home: Home, memory: SessionMemory, fraction: float, ttl_seconds: int
    ) -> None:
        home.clock.advance(fraction)
        await memory.set(context(), "s1", "k", remember(ttl_seconds=ttl_seconds))
        home.clock.advance(ttl_seconds - 0.002)
        assert (await memory.get(context(), "s1", "k")).value == 1
        assert await keys(memory) == ["k"]
        home.clock.advance(0.004)
        with pytest.raises(NotFound):
            await memory.get(context(), "s1", "k")
        assert await keys(memory) == []

    async def test_expires_at_says_when(self, home: Home, memory: SessionMemory) -> None:
        home.clock.advance(0.25)
        record = (await memory.set(context(), "s1", "k", remember(ttl_seconds=90))).record
        assert record.updated_at == "2027-01-15T08:00:00.250Z"
        assert record.expires_at == "2027-01-15T08:01:30.250Z"

    @pytest.mark.parametrize("lapsed_by_s", [0.1, 5.0])
    async def test_to_every_call_a_lapsed_entry_is_one_that_never_was(
        self, home: Home, memory: SessionMemory, lapsed_by_s: float
    ) -> None:
        home.clock.advance(0.2)

        async def lapse() -> str:
            etag = (await memory.set(context(), "s1", "k", remember(ttl_seconds=1))).etag
            home.clock.advance(1 + lapsed_by_s)
            return etag.strip('"')

        version = await lapse()
        with pytest.raises(NotFound):
            await memory.delete(context(), "s1", "k")
        with pytest.raises(PreconditionFailed):
            await memory.delete(context(), "s1", "k", condition=Condition(versions=(version,)))
        with pytest.raises(PreconditionFailed):
            await memory.set(context(), "s1", "k", remember(2), condition=Condition(versions=(version,)))
        change = await memory.set(context(), "s1", "k", remember(2), condition=Condition(absent=True))
        assert change.created
        assert change.record.created_at == change.record.updated_at

    async def test_a_put_without_a_ttl_clears_an_earlier_one(self, home: Home, memory: SessionMemory) -> None:
        await memory.set(context(), "s1", "k", remember(ttl_seconds=10))
        change = await memory.set(context(), "s1", "k", remember(2))
        assert change.record.expires_at is None
        home.clock.advance(11)
        await home.driver.reclaim(1_000)
        assert (await memory.get(context(), "s1", "k")).value == 2

    async def test_a_put_with_a_ttl_counts_from_itself(self, home: Home, memory: SessionMemory) -> None:
        await memory.set(context(), "s1", "k", remember(ttl_seconds=10))
        home.clock.advance(9)
        await memory.set(context(), "s1", "k", remember(ttl_seconds=10))
        home.clock.advance(9)
        assert (await memory.get(context(), "s1", "k")).value == 1

    @pytest.mark.parametrize("ttl_seconds", [0, -1, TTL_S_MAX + 1, 2**63, True, 1.5, "60"])
    async def test_a_ttl_out_of_bounds_is_invalid(self, memory: SessionMemory, ttl_seconds: Any) -> None:
        with pytest.raises(Invalid) as refusal:
            await memory.set(context(), "s1", "k", remember(ttl_seconds=ttl_seconds))
        assert refusal.value.field == "ttl_seconds"

    async def test_the_longest_ttl_is_admitted(self, home: Home, memory: SessionMemory) -> None:
        await memory.set(context(), "s1", "k", remember(ttl_seconds=TTL_S_MAX))
        home.clock.advance(TTL_S_MAX - 1)
        assert (await memory.get(context(), "s1", "k")).value == 1

    async def test_a_clock_set_back_brings_nothing_to_life_that_a_sweep_removed(
        self, home: Home, memory: SessionMemory
    ) -> None:
        await memory.set(context(), "s1", "k", remember(ttl_seconds=10))
        await memory.set(context(), "s1", "kept", remember())
        home.clock.advance(11)
        await home.driver.reclaim(1_000)
        home.clock.jump(-11)
        assert await keys(memory) == ["kept"]

    async def test_a_repeat_gets_its_answer_after_the_entry_expired(
        self, home: Home, memory: SessionMemory
    ) -> None:
        request = identify("t_one", "prod", "ada", "PUT", "/memory/s1/k", "key", body=b"{}")
        first = await memory.set(context(), "s1", "k", remember(ttl_seconds=10), request=request)
        home.clock.advance(11)
        again = await memory.set(context(), "s1", "k", remember(ttl_seconds=10), request=request)
        assert again.replayed
        assert again.record == first.record
        with pytest.raises(NotFound):
            await memory.get(context(), "s1", "k")

    async def test_expired_entries_do_not_shorten_a_list(self, home: Home, memory: SessionMemory) -> None:
        for number in range(6):
            await memory.set(context(), "s1", f"k{number}", remember(ttl_seconds=1 if number % 2 else None))
        home.clock.advance(1.0)
        page = await memory.list(context(), "s1", window=Window(limit=2))
        assert [entry.key for entry in page.items] == ["k0", "k2"]
        page = await memory.list(context(), "s1", window=Window(limit=2, after=page.after))
        assert [entry.key for entry in page.items] == ["k4"]
        assert page.after is None


class TestScope:
    async def test_an_entry_belongs_to_tenant_env_user_session_and_project(
        self, memory: SessionMemory
    ) -> None:
        own = {"tenant_id": "t_one", "env": "prod", "user_id": "ada", "project_id": "p1"}
        await memory.set(context(**own), "s1", "k", remember("mine"))
        for other in (
            {"tenant_id": "t_two"},
            {"env": "dev"},
            {"user_id": "bob"},
            {"project_id": "p2"},
            {"project_id": None},
        ):
            stranger = context(**own | other)
            with pytest.raises(NotFound):
                await memory.get(stranger, "s1", "k")
            with pytest.raises(NotFound):
                await memory.delete(stranger, "s1", "k")
            assert (await memory.list(stranger, "s1")).items == ()
            assert (await memory.set(stranger, "s1", "k", remember("theirs"))).created
        with pytest.raises(NotFound):
            await memory.get(context(**own), "s2", "k")
        assert (await memory.get(context(**own), "s1", "k")).value == "mine"

    async def test_surface_run_and_app_are_stamped_and_do_not_separate(self, memory: SessionMemory) -> None:
        await memory.set(context(surface_id="chat", app_id="a"), "s1", "k", remember("x"))
        elsewhere = context(surface_id="canvas", run_id="run-2", thread_id="th", session_id="s9")
        record = (await memory.set(elsewhere, "s1", "k", remember("y"))).record
        assert (record.surface_id, record.app_id, record.run_id, record.thread_id) == (
            "canvas",
            None,
            "run-2",
            "th",
        )
        assert (await memory.get(context(), "s1", "k")) == record

    async def test_names_that_extend_each_other_do_not_mix(self, memory: SessionMemory) -> None:
        for session, key in (("s1", "a"), ("s1", "a-b"), ("s1-a", "b"), ("s11", "a"), ("s1", "ab")):
            await memory.set(context(), session, key, remember([session, key]))
        assert await keys(memory) == ["a", "a-b", "ab"]
        assert (await memory.get(context(), "s1-a", "b")).value == ["s1-a", "b"]
