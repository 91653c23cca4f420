"""Rules of admitting calls: what is counted apart, what is refused, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from engines import catalogue
from engines.core.documents import Documents
from engines.core.place import Layouts, Place
from engines.errors import BackendRefused, MissingRoute, OutcomeUnknown, Throttled, Unavailable
from engines.ports.documents import ALWAYS, Delete
from engines.scope import RequestContext
from engines.stores import rate_limits
from engines.stores.rate_limits import UNLIMITED, RateLimit, RateLimits
from engines.testing.faults import Fault
from tests.stores.home import Home, context
from tests.stores.limits import READ_NOTE, Limits, a_limit, admitted, counters, limited, to_next_window

BOOK = "action:book"


class TestAdmitting:
    async def test_without_limits_nothing_is_asked_of_the_store(self, home: Home) -> None:
        home.missing.add(catalogue.RATE_LIMITS)
        limits = limited(home)
        assert await limits.admit(context(), READ_NOTE) is UNLIMITED
        assert home.driver.calls == []

    async def test_as_many_are_admitted_as_the_limit_says_and_no_more(self, home: Home) -> None:
        limits = limited(home, a_limit(25))
        assert await admitted(limits, 40) == 25

    async def test_a_refusal_says_which_limit_and_when_its_window_ends(self, home: Home) -> None:
        home.clock.advance(13)
        limits = limited(home, a_limit(100, "user", name="wide"), a_limit(2, "user", name="narrow"))
        await admitted(limits, 2)
        refusal = await limits.admit(context(), READ_NOTE)
        assert refusal.refused_by is not None
        assert refusal.refused_by.name == "narrow"
        assert refusal.retry_after_s == 47
        with pytest.raises(Throttled) as raised:
            refusal.check()
        assert raised.value.retry_after_s == 47
        assert raised.value.resource_kind == "rate_limit_store"
        assert "narrow" in raised.value.detail

    async def test_a_refusal_tells_of_no_limit_whose_window_it_does_not_know(self, home: Home) -> None:
        limits = limited(home, a_limit(1), a_limit(9, "user", window_seconds=10))
        await admitted(limits, 2)
        home.clock.advance(10)
        refusal = await limits.admit(context(), READ_NOTE)
        assert refusal.retry_after_s == 50
        assert [(one.limit.name, one.remaining, one.resets_in_s) for one in refusal.standings] == [
            ("tenant", 0, 50)
        ]

    async def test_the_next_window_has_a_quota_of_its_own(self, home: Home) -> None:
        limits = limited(home, a_limit(3))
        assert await admitted(limits, 9) == 3
        home.clock.advance(59)
        assert await admitted(limits, 9) == 0
        home.clock.advance(1)
        assert await admitted(limits, 9) == 3

    async def test_a_rehearsal_is_judged_and_not_counted(self, home: Home) -> None:
        limits = limited(home, a_limit(2))
        for _ in range(9):
            assert (await limits.admit(context(), READ_NOTE, count=False)).refused_by is None
        assert await admitted(limits, 9) == 2
        assert (await limits.admit(context(), READ_NOTE, count=False)).refused_by is not None

    async def test_a_standing_tells_what_is_left_and_for_how_long(self, home: Home) -> None:
        home.clock.advance(20)
        limits = limited(home, a_limit(10))
        for left in (9, 8, 7):
            (standing,) = (await limits.admit(context(), READ_NOTE)).standings
            assert (standing.remaining, standing.resets_in_s) == (left, 40)


class TestWhatIsCounted:
    @pytest.mark.parametrize(
        ("per", "apart"),
        [
            (("tenant",), set()),
            (("user",), {"user_id"}),
            (("surface",), {"surface_id"}),
            (("key",), {"key_id"}),
            (("user", "surface"), {"user_id", "surface_id"}),
        ],
    )
    async def test_what_a_limit_names_has_a_counter_of_its_own(
        self, home: Home, per: tuple[str, ...], apart: set[str]
    ) -> None:
        limits = limited(home, a_limit(1, *per))
        first = context(key_id="k1")
        assert await admitted(limits, 2, who=first) == 1
        for field in ("user_id", "surface_id", "key_id", "app_id", "project_id", "run_id"):
            other = context(**{"key_id": "k1", field: "other"})
            assert await admitted(limits, 2, who=other) == (1 if field in apart else 0), field

    async def test_each_route_has_a_counter_where_a_limit_names_it(self, home: Home) -> None:
        limits = limited(home, a_limit(1, "route", "user"))
        assert await admitted(limits, 2) == 1
        assert await admitted(limits, 2, route="POST /notes") == 1
        assert await admitted(limits, 2, route="POST /notes", who=context(user_id="bob")) == 1

    async def test_a_limit_by_key_counts_no_call_with_a_token(self, home: Home) -> None:
        limits = limited(home, a_limit(1, "key"))
        assert await admitted(limits, 9) == 9
        assert await admitted(limits, 9, who=context(key_id="k1")) == 1
        limits = limited(home, a_limit(1, "key", "user"))
        assert await admitted(limits, 9) == 9

    async def test_a_limit_of_one_route_leaves_the_others_alone(self, home: Home) -> None:
        limits = limited(home, a_limit(1, route=READ_NOTE), a_limit(3, name="all"))
        assert await admitted(limits, 5) == 1
        assert await admitted(limits, 5, route="POST /notes") == 2

    async def test_calls_and_guarded_actions_are_counted_apart(self, home: Home) -> None:
        limits = limited(
            home, a_limit(2), a_limit(3, name="acts", route="action:*"), a_limit(1, name="book", route=BOOK)
        )
        assert await admitted(limits, 5, route=BOOK) == 1
        assert await admitted(limits, 5, route="action:refund") == 2
        assert await admitted(limits, 5) == 2

    async def test_a_call_that_one_limit_refuses_is_counted_by_none(self, home: Home) -> None:
        limits = limited(home, a_limit(10, "user"), a_limit(1, name="post", route="POST /notes"))
        assert await admitted(limits, 9, route="POST /notes") == 1
        assert await admitted(limits, 20) == 9

    async def test_tenants_and_envs_have_counters_of_their_own(self, home: Home) -> None:
        policies = Limits(a_limit(1))
        policies.set(a_limit(1), tenant_id="t_two")
        limits = RateLimits(home, policies, home.clock)
        for who in (context(), context(tenant_id="t_two"), context(env="dev")):
            assert await admitted(limits, 3, who=who) == 1
        assert await admitted(limits, 3, who=context(tenant_id="t_three")) == 3

    async def test_the_counter_of_a_user_lies_in_one_place_whatever_is_bound(self, home: Home) -> None:
        """A route by surface or project must not give the user another quota."""
        asked: list[RequestContext] = []

        class Watched(Home):
            async def place(self, kind: str, context: RequestContext) -> Place:
                asked.append(context)
                return await home.place(kind, context)

        watched = object.__new__(Watched)
        limits = RateLimits(watched, Limits(a_limit(5, "user")), home.clock)
        for bound in ({"surface_id": "canvas"}, {"project_id": "p"}, {"app_id": "a"}):
            await admitted(limits, 3, who=context(**bound))
        assert {(one.surface_id, one.app_id, one.project_id) for one in asked} == {("chat", None, None)}


class TestChangedLimits:
    async def test_a_limit_that_is_raised_or_lowered_counts_what_was_taken_before(self, home: Home) -> None:
        policies = Limits(a_limit(4))
        limits = RateLimits(home, policies, home.clock)
        assert await admitted(limits, 9) == 4
        policies.set(a_limit(6))
        assert await admitted(limits, 9) == 2
        policies.set(a_limit(5))
        assert await admitted(limits, 9) == 0
        (standing,) = (await limits.admit(context(), READ_NOTE)).standings
        assert standing.remaining == 0

    @pytest.mark.parametrize(
        "other", [a_limit(4, window_seconds=30), a_limit(4, "user", name="tenant"), a_limit(4, name="new")]
    )
    async def test_another_window_name_or_dimension_is_another_counter(
        self, home: Home, other: RateLimit
    ) -> None:
        policies = Limits(a_limit(4))
        limits = RateLimits(home, policies, home.clock)
        assert await admitted(limits, 9) == 4
        policies.set(other)
        assert await admitted(limits, 9) == 4

    async def test_a_limit_that_is_taken_away_refuses_nothing_more(self, home: Home) -> None:
        policies = Limits(a_limit(1))
        limits = RateLimits(home, policies, home.clock)
        assert await admitted(limits, 3) == 1
        policies.set()
        assert await admitted(limits, 3) == 3

    async def test_a_change_elsewhere_in_the_control_plane_costs_no_block(self, home: Home) -> None:
        policies = Limits(a_limit(1_000))
        limits = RateLimits(home, policies, home.clock)
        await admitted(limits, 1)
        home.driver.calls.clear()
        policies.generation += 1
        await admitted(limits, 5)
        assert home.driver.calls == []


class TestLostCounters:
    async def test_what_a_process_knows_is_taken_it_does_not_give_again(self, home: Home) -> None:
        """A route that was changed leads to a store without the window's counter."""
        limits = limited(home, a_limit(40))
        assert await admitted(limits, 11) == 11
        place = await home.place(catalogue.RATE_LIMITS, context())
        for partition in await place.partitions():
            for doc in (await home.documents.scan(partition, above="q!", below='q"')).docs:
                await home.documents.write(partition, [Delete(doc.key, ALWAYS)])
        assert await admitted(limits, 40) == 29


class TestCost:
    async def test_a_block_is_one_write_and_its_calls_are_none(self, home: Home) -> None:
        limits = limited(home, a_limit(10_000))
        await admitted(limits, 1)
        to_next_window(home)
        home.driver.calls.clear()
        await admitted(limits, 50)
        assert home.driver.calls == ["write"]

    async def test_blocks_grow_with_the_demand(self, home: Home) -> None:
        limits = limited(home, a_limit(4_000))
        await admitted(limits, 1)
        home.driver.calls.clear()
        await admitted(limits, 2_000)
        assert len(home.driver.calls) <= 4

    async def test_refusals_cost_nothing_until_the_window_ends(self, home: Home) -> None:
        limits = limited(home, a_limit(5))
        await admitted(limits, 6)
        home.driver.calls.clear()
        assert await admitted(limits, 1_000) == 0
        assert home.driver.calls == []

    async def test_calls_that_wait_together_share_one_lease(self, home: Home) -> None:
        limits = limited(home, a_limit(100))
        await admitted(limits, 1)
        to_next_window(home)
        home.driver.calls.clear()
        admissions = await asyncio.gather(*(limits.admit(context(), READ_NOTE) for _ in range(150)))
        assert sum(admission.refused_by is None for admission in admissions) == 100
        assert len(home.driver.calls) <= 4

    async def test_counters_that_ended_do_not_stay(self, home: Home) -> None:
        limits = limited(home, a_limit(5, "user"))
        for _ in range(20):
            await admitted(limits, 1)
            to_next_window(home)
        assert await counters(home) <= 2
        while await home.documents.reclaim(100):
            pass
        home.clock.jump(-10_000)  # What was reclaimed is gone by any clock.
        assert await counters(home) <= 2


class TestBounds:
    async def test_counters_in_memory_are_bounded_and_the_limit_holds_beyond(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rate_limits, "QUOTAS_PER_TENANT_MAX", 3)
        limits = limited(home, a_limit(5, "user"))
        users = [context(user_id=f"u{number}") for number in range(10)]
        counts = dict.fromkeys(range(10), 0)
        for _ in range(8):
            for number, who in enumerate(users):
                counts[number] += await admitted(limits, 1, who=who)
                assert len(limits._quotas) <= 3
        assert max(counts.values()) <= 5
        assert min(counts.values()) > 0

    async def test_what_one_tenant_counts_pushes_out_nothing_of_another(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rate_limits, "QUOTAS_PER_TENANT_MAX", 3)
        policies = Limits(a_limit(500, "user"))
        policies.set(a_limit(500, "user"), tenant_id="t_two")
        limits = RateLimits(home, policies, home.clock)
        await admitted(limits, 2)
        for number in range(10):
            await admitted(limits, 1, who=context(tenant_id="t_two", user_id=f"u{number}"))
        home.driver.calls.clear()
        await admitted(limits, 2)
        assert home.driver.calls == []

    async def test_all_counters_together_are_bounded(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rate_limits, "QUOTAS_MAX", 5)
        monkeypatch.setattr(rate_limits, "TENANTS_MAX", 4)
        policies = Limits()
        callers = [
            context(tenant_id=f"t_{tenant}", user_id=f"u{user}") for tenant in range(8) for user in range(3)
        ]
        for who in callers:
            policies.set(a_limit(2, "user"), tenant_id=who.tenant_id)
        limits = RateLimits(home, policies, home.clock)
        for _ in range(3):
            for who in callers:
                await admitted(limits, 1, who=who)
                assert len(limits._quotas) <= 5
                assert len(limits._tenants) <= 4
        for who in callers:
            assert await admitted(limits, 3, who=who) == 0

    async def test_the_counter_whose_block_is_oldest_goes_first(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rate_limits, "QUOTAS_PER_TENANT_MAX", 2)
        limits = limited(home, a_limit(1_000, "user"))
        old, used, new = (context(user_id=name) for name in ("old", "used", "new"))
        await admitted(limits, 1, who=used)
        await admitted(limits, 1, who=old)
        await admitted(limits, 60, who=used)  # Its second block.
        await admitted(limits, 1, who=new)
        home.driver.calls.clear()
        await admitted(limits, 1, who=used)
        assert home.driver.calls == []


class TestWithoutAStore:
    async def test_no_route_is_a_missing_route_and_never_a_silent_yes(self, home: Home) -> None:
        home.missing.add(catalogue.RATE_LIMITS)
        limits = limited(home, a_limit(5))
        for _ in range(2):
            with pytest.raises(MissingRoute):
                await limits.admit(context(), READ_NOTE)
        home.missing.clear()
        assert await admitted(limits, 9) == 5

    async def test_a_store_that_refuses_fails_the_call_and_the_next_one_asks_again(self, home: Home) -> None:
        limits = limited(home, a_limit(5))
        await admitted(limits, 1)
        to_next_window(home)
        home.faults.script(Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await limits.admit(context(), READ_NOTE)
        assert await admitted(limits, 9) == 5

    async def test_a_store_that_does_not_answer_is_unavailable_for_all_who_wait(self, home: Home) -> None:
        home.documents = Documents(home.driver, ids=home.ids, clock=home.clock, timeout_s=0.5)
        home.layouts = Layouts(home.documents)
        limits = limited(home, a_limit(5))
        await admitted(limits, 1)
        to_next_window(home)
        held = home.faults.hold_next_write()
        calls = [asyncio.create_task(limits.admit(context(), READ_NOTE)) for _ in range(3)]
        await held.arrived()
        home.faults.plan = type(home.faults.plan)(read_refused=1.0)
        await asyncio.wait(calls)
        held.release()
        for call in calls:
            # What became of the lease is unknown; that the call has not begun is known.
            assert type(call.exception()) is Unavailable
        assert limits._leases == {}

    async def test_a_lease_that_a_move_may_have_gone_on_without_is_handed_out_by_nobody(
        self, home: Home
    ) -> None:
        class OutOfTouch:
            async def place(self, kind: str, context: RequestContext) -> Place:
                return await home.place(kind, context)

            @contextlib.asynccontextmanager
            async def changing(self, kind: str, context: RequestContext) -> AsyncIterator[Place]:
                yield await home.place(kind, context)
                raise OutcomeUnknown("this process was out of touch with the control plane while it wrote")

        limits = RateLimits(OutOfTouch(), Limits(a_limit(5)), home.clock)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await limits.admit(context(), READ_NOTE)
        assert await admitted(limited(home, a_limit(5)), 9) == 3

    async def test_a_call_that_goes_away_leaves_the_lease_to_those_who_wait(self, home: Home) -> None:
        limits = limited(home, a_limit(5))
        await admitted(limits, 1)
        to_next_window(home)
        held = home.faults.hold_next_write()
        first = asyncio.create_task(limits.admit(context(), READ_NOTE))
        second = asyncio.create_task(limits.admit(context(), READ_NOTE))
        await held.arrived()
        first.cancel()
        await asyncio.wait([first])
        held.release()
        assert (await second).refused_by is None
        assert await admitted(limits, 9) == 4

    async def test_closing_ends_the_leases_under_way(self, home: Home) -> None:
        limits = limited(home, a_limit(5))
        await admitted(limits, 1)
        to_next_window(home)
        held = home.faults.hold_next_write()
        call = asyncio.create_task(limits.admit(context(), READ_NOTE))
        await held.arrived()
        await limits.close()
        with pytest.raises(Unavailable):
            await call
        held.release()
