"""Rules of the blackboard: conditions, versions and the limits that a route sets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engines.catalogue import BLACKBOARD, kind_named
from engines.core.listing import Window
from engines.core.records import RECORD_BYTES_MAX, Condition
from engines.core.versioned import PRUNED_PER_WRITE_MAX, VERSION_MAX
from engines.errors import (
    Forbidden,
    Invalid,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    TooLarge,
)
from engines.stores.blackboard import Blackboard, BlackboardEntry, BlackboardInput
from engines.testing.faults import Fault
from tests.stores.home import Home, context

NEW = Condition(absent=True)
ANY = Condition(versions=("*",))


@pytest.fixture
def blackboard(home: Home) -> Blackboard:
    return Blackboard(home, home.clock)


def at(entry: BlackboardEntry) -> Condition:
    return Condition(versions=(entry.etag.strip('"'),))


async def put(blackboard: Blackboard, value: Any, condition: Condition, key: str = "plan") -> BlackboardEntry:
    change = await blackboard.put(context(), "r1", key, BlackboardInput(value=value), condition=condition)
    assert change.created == (change.record.version == 1)
    return change.record


async def write_versions(blackboard: Blackboard, count: int) -> BlackboardEntry:
    entry = await put(blackboard, 1, NEW)
    for number in range(2, count + 1):
        entry = await put(blackboard, number, at(entry))
    return entry


async def kept(blackboard: Blackboard) -> list[int]:
    return [entry.version for entry in (await blackboard.versions(context(), "r1", "plan")).items]


class TestConditions:
    async def test_a_write_says_what_it_expects(self, home: Home, blackboard: Blackboard) -> None:
        with pytest.raises(PreconditionRequired):
            await blackboard.put(context(), "r1", "plan", BlackboardInput(value=1))
        assert home.driver.calls == []

    async def test_versions_count_from_one(self, blackboard: Blackboard) -> None:
        first = await put(blackboard, "a", NEW)
        second = await put(blackboard, "b", at(first))
        third = await put(blackboard, "c", ANY)
        assert [first.version, second.version, third.version] == [1, 2, 3]
        assert await blackboard.get(context(), "r1", "plan") == third
        assert third.created_at == first.created_at

    @pytest.mark.parametrize("condition", [NEW, Condition(versions=("0" * 32,))])
    async def test_an_expectation_that_does_not_hold_changes_nothing(
        self, blackboard: Blackboard, condition: Condition
    ) -> None:
        first = await put(blackboard, "a", NEW)
        with pytest.raises(PreconditionFailed):
            await put(blackboard, "b", condition)
        assert await blackboard.get(context(), "r1", "plan") == first
        assert await kept(blackboard) == [1]

    async def test_if_match_on_what_is_not_there_fails(self, blackboard: Blackboard) -> None:
        with pytest.raises(PreconditionFailed):
            await put(blackboard, "a", ANY)

    async def test_of_two_writers_on_one_version_one_wins(self, blackboard: Blackboard) -> None:
        first = await put(blackboard, 0, NEW)
        outcomes = await asyncio.gather(
            *(put(blackboard, number, at(first)) for number in range(6)), return_exceptions=True
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, BlackboardEntry)]
        assert len(won) == 1
        assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 5
        assert await blackboard.get(context(), "r1", "plan") == won[0]
        assert await kept(blackboard) == [1, 2]

    async def test_of_two_who_create_one_wins(self, blackboard: Blackboard) -> None:
        outcomes = await asyncio.gather(
            *(put(blackboard, number, NEW) for number in range(4)), return_exceptions=True
        )
        assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 3
        assert await kept(blackboard) == [1]

    async def test_a_counter_incremented_by_many_loses_nothing(self, blackboard: Blackboard) -> None:
        await put(blackboard, 0, NEW)

        async def increment() -> None:
            for _ in range(64):
                entry = await blackboard.get(context(), "r1", "plan")
                try:
                    await put(blackboard, entry.value + 1, at(entry))
                except PreconditionFailed:
                    continue
                return
            raise AssertionError("a writer was starved")

        await asyncio.gather(*(increment() for _ in range(8)))
        left = await blackboard.get(context(), "r1", "plan")
        assert (left.value, left.version) == (8, 9)

    @pytest.mark.parametrize("fault", [Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE, Fault.REFUSED])
    async def test_a_lost_reply_neither_fails_nor_doubles_a_version(
        self, home: Home, blackboard: Blackboard, fault: Fault
    ) -> None:
        first = await put(blackboard, "a", NEW)
        home.faults.script(fault)
        second = await put(blackboard, "b", at(first))
        await home.faults.late_writes_delivered()
        assert home.faults.seen[fault] == 1
        assert await blackboard.get(context(), "r1", "plan") == second
        assert await kept(blackboard) == [1, 2]


class TestVersions:
    async def test_each_version_reads_as_it_was_with_its_own_etag(self, blackboard: Blackboard) -> None:
        first = await put(blackboard, {"a": "é"}, NEW)
        second = await put(blackboard, None, at(first))
        assert await blackboard.get(context(), "r1", "plan", version=1) == first
        assert await blackboard.get(context(), "r1", "plan", version=2) == second
        assert (await blackboard.versions(context(), "r1", "plan")).items == (first, second)
        page = await blackboard.versions(context(), "r1", "plan", window=Window(limit=1, descending=True))
        assert page.items == (second,)
        page = await blackboard.versions(
            context(), "r1", "plan", window=Window(limit=1, descending=True, after=page.after)
        )
        assert page.items == (first,)
        assert page.after is None

    async def test_a_version_that_never_was_is_not_found(self, blackboard: Blackboard) -> None:
        await put(blackboard, "a", NEW)
        for version in (2, 10**10 - 1):
            with pytest.raises(NotFound):
                await blackboard.get(context(), "r1", "plan", version=version)
        with pytest.raises(NotFound):
            await blackboard.versions(context(), "r1", "other")

    @pytest.mark.parametrize("version", [0, -1, 10**10, 10**400])
    async def test_a_number_that_no_version_has_is_invalid(
        self, blackboard: Blackboard, version: int
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await blackboard.get(context(), "r1", "plan", version=version)
        assert refusal.value.field == "version"

    @pytest.mark.parametrize("limit", [1, 3])
    async def test_as_many_versions_are_kept_as_the_route_says(
        self, home: Home, blackboard: Blackboard, limit: int
    ) -> None:
        home.options[BLACKBOARD] = {"versions_kept": limit}
        last = await write_versions(blackboard, 5)
        assert await kept(blackboard) == [1, 2, 3, 4, 5][-limit:]
        with pytest.raises(NotFound):
            await blackboard.get(context(), "r1", "plan", version=5 - limit)
        assert await blackboard.get(context(), "r1", "plan", version=5) == last

    async def test_a_hundred_versions_are_kept_where_the_route_says_nothing(
        self, blackboard: Blackboard
    ) -> None:
        await write_versions(blackboard, 102)
        assert await kept(blackboard) == list(range(3, 103))

    async def test_a_lowered_limit_is_caught_up_with_over_several_writes(
        self, home: Home, blackboard: Blackboard
    ) -> None:
        entry = await write_versions(blackboard, 2 * PRUNED_PER_WRITE_MAX + 5)
        home.options[BLACKBOARD] = {"versions_kept": 2}
        for _ in range(2):
            entry = await put(blackboard, 0, at(entry))
            assert len(await kept(blackboard)) > 2
        for _ in range(2):
            entry = await put(blackboard, 0, at(entry))
        assert await kept(blackboard) == [entry.version - 1, entry.version]

    async def test_a_raised_limit_keeps_from_then_on(self, home: Home, blackboard: Blackboard) -> None:
        home.options[BLACKBOARD] = {"versions_kept": 1}
        entry = await write_versions(blackboard, 3)
        home.options[BLACKBOARD] = {"versions_kept": 3}
        for _ in range(3):
            entry = await put(blackboard, 0, at(entry))
        assert await kept(blackboard) == [4, 5, 6]


class TestLimits:
    async def test_a_value_is_as_large_as_the_route_allows_and_no_larger(
        self, home: Home, blackboard: Blackboard
    ) -> None:
        home.options[BLACKBOARD] = {"value_bytes_max": 10}
        await put(blackboard, "é" * 4, NEW, key="fits")
        with pytest.raises(TooLarge):
            await put(blackboard, "é" * 4 + "x", NEW, key="past")
        with pytest.raises(NotFound):
            await blackboard.get(context(), "r1", "past")

    async def test_three_documents_of_the_largest_record_fit_into_one_write(
        self, blackboard: Blackboard
    ) -> None:
        await put(blackboard, '"' * (RECORD_BYTES_MAX // 4 - 1_000), NEW)
        with pytest.raises(TooLarge):
            await put(blackboard, "x" * RECORD_BYTES_MAX, NEW, key="past")

    async def test_the_most_that_a_route_may_allow_is_kept_under_the_longest_ids_and_no_byte_more(
        self, home: Home, blackboard: Blackboard
    ) -> None:
        bound = {option.name: option for option in kind_named(BLACKBOARD).options}["value_bytes_max"]
        home.options[BLACKBOARD] = {"value_bytes_max": bound.maximum}
        longest = context(
            tenant_id="t_" + "t" * 62,
            env="e" * 32,
            surface_id="s" * 64,
            **dict.fromkeys(
                ("mode", "user_id", "app_id", "project_id", "run_id", "step_id", "thread_id"), "i" * 128
            ),
        )
        value = "x" * (bound.maximum - len('""'))
        entry = BlackboardInput(value=value)
        change = await blackboard.put(longest, "r" * 128, "k" * 128, entry, condition=NEW)
        assert change.record.value == value
        with pytest.raises(TooLarge, match=str(bound.maximum)):
            await put(blackboard, value + "x", NEW, key="past")

    def test_no_route_may_keep_more_versions_than_have_a_number(self) -> None:
        bounds = {option.name: option for option in kind_named(BLACKBOARD).options}
        assert bounds["versions_kept"].minimum >= 1
        assert bounds["versions_kept"].maximum <= VERSION_MAX


class TestScope:
    async def test_a_blackboard_is_shared_by_the_users_of_a_run(self, blackboard: Blackboard) -> None:
        first = await put(blackboard, "a", NEW)
        bob = context(user_id="bob", surface_id="canvas", run_id="own-run", step_id="7", thread_id="th")
        assert await blackboard.get(bob, "r1", "plan") == first
        second = (
            await blackboard.put(bob, "r1", "plan", BlackboardInput(value="b"), condition=at(first))
        ).record
        assert (second.user_id, second.surface_id, second.run_id) == ("bob", "canvas", "r1")
        assert (second.step_id, second.thread_id) == ("7", "th")
        assert (await blackboard.get(context(), "r1", "plan", version=1)).user_id == "ada"

    async def test_tenant_env_project_and_run_separate(self, blackboard: Blackboard) -> None:
        own = {"tenant_id": "t_one", "env": "prod", "project_id": "p1"}
        await blackboard.put(context(**own), "r1", "k", BlackboardInput(value="ours"), condition=NEW)
        for other in ({"tenant_id": "t_two"}, {"env": "dev"}, {"project_id": "p2"}, {"project_id": None}):
            stranger = context(**own | other)
            with pytest.raises(NotFound):
                await blackboard.get(stranger, "r1", "k")
            with pytest.raises(NotFound):
                await blackboard.versions(stranger, "r1", "k")
            assert (await blackboard.list(stranger, "r1")).items == ()
            await blackboard.put(stranger, "r1", "k", BlackboardInput(value="theirs"), condition=NEW)
        with pytest.raises(NotFound):
            await blackboard.get(context(**own), "r2", "k")
        assert (await blackboard.get(context(**own), "r1", "k")).value == "ours"

    async def test_a_list_holds_the_present_entries_by_key_and_no_versions(
        self, blackboard: Blackboard
    ) -> None:
        for key in ("b", "a", "a-1", "ab"):
            first = await put(blackboard, key, NEW, key=key)
            await put(blackboard, key * 2, at(first), key=key)
        page = await blackboard.list(context(), "r1")
        assert [(entry.key, entry.value, entry.version) for entry in page.items] == [
            ("a", "aa", 2),
            ("a-1", "a-1a-1", 2),
            ("ab", "abab", 2),
            ("b", "bb", 2),
        ]

    async def test_each_permission_is_asked_for(self, blackboard: Blackboard) -> None:
        reader = context(permissions=frozenset({"blackboard.read"}))
        writer = context(permissions=frozenset({"blackboard.write"}))
        for call in (
            blackboard.put(reader, "r1", "k", BlackboardInput(value=1), condition=NEW),
            blackboard.get(writer, "r1", "k"),
            blackboard.list(writer, "r1"),
            blackboard.versions(writer, "r1", "k"),
        ):
            with pytest.raises(Forbidden):
                await call
