"""Strategy locks: who decides, once, and which action an approved one allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from engines.clock import timestamp
from engines.core.idempotency import identify
from engines.core.records import Condition
from engines.errors import (
    Conflict,
    ContextMismatch,
    Corrupt,
    Forbidden,
    Invalid,
    MissingRoute,
    PreconditionFailed,
    PreconditionRequired,
    TooLarge,
    Unavailable,
)
from engines.scope import RequestContext
from engines.stores.definition_cache import DefinitionCache, shaped
from engines.stores.definition_records import Definition, DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.definition_shapes import FirearmClass
from engines.stores.erasing import ERASED, Erasing
from engines.stores.strategy_locks import LockDecisionInput, LockReview, StrategyLocks
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan
from tests.stores.definitions_home import Told
from tests.stores.home import Home, context

LOCKS = SCHEMA_NAMED["strategy-locks"]
ADA, BOB, CAROL = context(), context(user_id="bob"), context(user_id="carol")
PASSED = LockReview(verdict="pass", reviewers=("one", "two", "three"))
PLAIN = LockDecisionInput()
ANY = Condition(versions=("*",))


class Locked(Told):
    """One process with strategy locks."""

    def __init__(self, home: Home, name: str = "one") -> None:
        super().__init__(home, name)
        self.locks = StrategyLocks(self.definitions, home.clock)

    async def close(self) -> None:
        await self.locks.close()
        await super().close()

    async def draft(self, who: RequestContext = ADA, lock_id: str = "l1", **members: Any) -> Definition:
        blob = {"allowed_actions": ["book_*"], **members}
        given = DefinitionInput(json_blob=blob, id=lock_id)
        return (await self.definitions.create(who, LOCKS, given)).record

    async def write(self, who: RequestContext, former: Definition, *actions: str) -> Definition:
        given = DefinitionInput(json_blob={"allowed_actions": list(actions)})
        change = await self.definitions.put(who, LOCKS, former.id, given, condition=at(former))
        return change.record

    async def allows(self, action: str, who: RequestContext = ADA) -> bool:
        """As it is known once everything of before has been read."""
        self.home.clock.advance(1)
        return await self.locks.in_force(who, action, at_s=self.home.clock.now()) is not None


async def erase(home: Home, user_id: str) -> None:
    """What the user drafted, as the erasure of a user does."""
    erasing = Erasing(home, home.ids, home.clock)
    for step in await erasing.steps(ADA, LOCKS.kind):
        after: str | None = None
        while (taken := await erasing.take(ADA, step, after, user_id)).after is not None:
            after = taken.after
    await erasing.close()


def at(record: Definition) -> Condition:
    return Condition(versions=(record.etag.strip('"'),))


@pytest_asyncio.fixture
async def one(home: Home) -> AsyncIterator[Locked]:
    locked = Locked(home)
    yield locked
    await locked.close()


class TestDeciding:
    async def test_a_draft_of_another_is_approved_and_told_as_the_next_version(self, one: Locked) -> None:
        await one.draft()
        assert not await one.allows("book_flight")
        change = await one.locks.approve(
            BOB, "l1", LockDecisionInput(review=PASSED, note="sound"), condition=ANY
        )
        record = change.record
        assert (record.version, record.user_id, record.json_blob) == (
            2,
            "bob",
            {"allowed_actions": ["book_*"]},
        )
        state = record.state or {}
        assert (state["status"], state["proposed_by"], state["decided_by"]) == ("approved", ["ada"], "bob")
        assert state["review"] == {"verdict": "pass", "reviewers": ["one", "two", "three"]}
        assert (await one.definitions.get(ADA, LOCKS, "l1")).state == state
        history = (await one.definitions.versions(ADA, LOCKS, "l1")).items
        assert [(version.state or {})["status"] for version in history] == ["draft", "approved"]
        told = await one.told(2, event_type="strategy_lock")
        assert [event["state"]["status"] for event in told] == ["draft", "approved"]
        assert await one.allows("book_flight")
        assert not await one.allows("refund")

    async def test_nobody_decides_about_their_own(self, one: Locked) -> None:
        await one.draft()
        for decide in (one.locks.approve, one.locks.reject):
            with pytest.raises(Forbidden):
                await decide(ADA, "l1", PLAIN, condition=ANY)
        assert (await one.definitions.get(ADA, LOCKS, "l1")).version == 1

    async def test_whoever_had_a_hand_in_a_draft_does_not_decide_about_it(self, one: Locked) -> None:
        await one.write(BOB, await one.draft(), "book_*", "refund")
        for who in (ADA, BOB):
            with pytest.raises(Forbidden):
                await one.locks.approve(who, "l1", PLAIN, condition=ANY)
        await one.locks.approve(CAROL, "l1", PLAIN, condition=ANY)

    async def test_whoever_made_the_key_that_a_draft_was_written_with_does_not_decide_about_it(
        self, one: Locked
    ) -> None:
        drafted = await one.draft(context(key_id="k1", key_made_by=("bob",)))
        assert (drafted.state or {})["proposed_by"] == ["ada", "bob"]
        await one.write(context(user_id="dan", key_id="k2", key_made_by=("eve",)), drafted, "refund")
        for user_id in ("ada", "bob", "dan", "eve"):
            for decide in (one.locks.approve, one.locks.reject):
                with pytest.raises(Forbidden):
                    await decide(context(user_id=user_id), "l1", PLAIN, condition=ANY)
        await one.locks.approve(CAROL, "l1", PLAIN, condition=ANY)

    async def test_after_a_decision_new_contents_are_their_writers_alone(self, one: Locked) -> None:
        await one.draft()
        rejected = (await one.locks.reject(BOB, "l1", PLAIN, condition=ANY)).record
        again = await one.write(CAROL, rejected, "book_hotel")
        assert again.state == {"status": "draft", "proposed_by": ["carol"]}
        await one.locks.approve(ADA, "l1", PLAIN, condition=ANY)

    async def test_new_contents_of_an_approved_lock_allow_nothing_until_they_are_approved(
        self, one: Locked
    ) -> None:
        await one.draft()
        approved = (await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)).record
        await one.write(BOB, approved, "book_*", "refund")
        assert not await one.allows("book_flight")
        with pytest.raises(Forbidden):
            await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)

    async def test_a_restored_version_is_also_its_authors(self, one: Locked) -> None:
        await one.draft()
        await one.locks.reject(BOB, "l1", PLAIN, condition=ANY)
        restored = (await one.definitions.restore(CAROL, LOCKS, "l1", 1)).record
        assert restored.state == {"status": "draft", "proposed_by": ["ada", "carol"]}
        with pytest.raises(Forbidden):
            await one.locks.approve(ADA, "l1", PLAIN, condition=ANY)

    async def test_what_was_deleted_and_restored_by_another_is_still_its_authors(self, one: Locked) -> None:
        first = await one.draft()
        await one.definitions.delete(ADA, LOCKS, "l1", condition=at(first))
        await one.definitions.restore(BOB, LOCKS, "l1", 1)
        with pytest.raises(Forbidden):
            await one.locks.approve(ADA, "l1", PLAIN, condition=ANY)

    async def test_a_copy_is_a_draft_of_its_copier_and_its_authors(self, one: Locked) -> None:
        await one.draft()
        await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)
        copied = await one.definitions.copy(CAROL, LOCKS, "l1", CAROL, target_id="l2")
        assert copied.record.state == {"status": "draft", "proposed_by": ["ada", "carol"]}
        with pytest.raises(Forbidden):
            await one.locks.approve(ADA, "l2", PLAIN, condition=ANY)

    async def test_what_somebody_proposed_who_was_erased_is_nobodys_to_decide_until_put_anew(
        self, one: Locked
    ) -> None:
        await one.write(CAROL, await one.draft(), "book_*", "refund")
        await erase(one.home, "ada")
        erased = await one.definitions.get(BOB, LOCKS, "l1")
        assert erased.state == {"status": "draft", "proposed_by": [ERASED, "carol"]}
        for decide in (one.locks.approve, one.locks.reject):
            for who, error in ((ADA, Conflict), (BOB, Conflict), (CAROL, Forbidden)):
                with pytest.raises(error) as caught:
                    await decide(who, "l1", PLAIN, condition=ANY)
                assert not isinstance(caught.value, PreconditionFailed)
        anew = await one.write(CAROL, erased, "book_*")
        assert anew.state == {"status": "draft", "proposed_by": ["carol"]}
        await one.locks.approve(ADA, "l1", PLAIN, condition=ANY)  # As of a lock that carol made: it took two.

    @pytest.mark.parametrize("how", ["restored", "copied", "deleted and restored"])
    async def test_who_takes_a_version_of_somebody_who_was_erased_does_not_propose_it_anew(
        self, one: Locked, how: str
    ) -> None:
        await one.draft()
        approved = (await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)).record
        await erase(one.home, "ada")
        if how == "copied":
            taken = (await one.definitions.copy(CAROL, LOCKS, "l1", CAROL, target_id="l2")).record
        else:
            if how != "restored":
                await one.definitions.delete(CAROL, LOCKS, "l1", condition=ANY)
            taken = (await one.definitions.restore(CAROL, LOCKS, "l1", approved.version)).record
        assert taken.state == {"status": "draft", "proposed_by": [ERASED, "carol"]}
        with pytest.raises(Conflict):
            await one.locks.approve(ADA, taken.id, PLAIN, condition=ANY)

    async def test_an_approval_outlives_who_proposed_it(self, one: Locked) -> None:
        await one.draft()
        await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)
        await erase(one.home, "ada")
        assert await one.allows("book_flight")

    async def test_only_a_draft_is_decided(self, one: Locked) -> None:
        with pytest.raises(PreconditionFailed):
            await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)
        first = await one.draft()
        await one.locks.reject(BOB, "l1", PLAIN, condition=ANY)
        for decide in (one.locks.approve, one.locks.reject):
            with pytest.raises(Conflict) as caught:
                await decide(BOB, "l1", PLAIN, condition=ANY)
            assert not isinstance(caught.value, PreconditionFailed)
            with pytest.raises(PreconditionFailed):
                await decide(BOB, "l1", PLAIN, condition=at(first))

    async def test_a_decision_says_about_which_version_it_is(self, one: Locked) -> None:
        await one.draft()
        for decide in (one.locks.approve, one.locks.reject):
            with pytest.raises(PreconditionRequired):
                await decide(BOB, "l1", PLAIN, condition=Condition())
        assert (await one.definitions.get(ADA, LOCKS, "l1")).version == 1

    async def test_an_approver_who_read_another_version_learns(self, one: Locked) -> None:
        first = await one.draft()
        await one.write(ADA, first, "*")
        with pytest.raises(PreconditionFailed):
            await one.locks.approve(BOB, "l1", PLAIN, condition=at(first))
        assert not await one.allows("anything")

    async def test_the_role_decides_and_no_agent(self, one: Locked) -> None:
        await one.draft()
        without = msgspec.structs.replace(BOB, permissions=BOB.permissions - {"strategy_locks.decide"})
        for who in (without, msgspec.structs.replace(BOB, roles=("agent",))):
            with pytest.raises(Forbidden):
                await one.locks.approve(who, "l1", PLAIN, condition=ANY)
        with pytest.raises(ContextMismatch):
            await one.locks.approve(BOB, "l1", LockDecisionInput(user_id="ada"), condition=ANY)

    async def test_a_review_that_failed_or_is_missing_approves_nothing(self, one: Locked) -> None:
        await one.draft(three_wise=True)
        failed = LockReview(verdict="fail", reviewers=("one",), note="too wide")
        for decision, field in (
            (PLAIN, "review"),
            (LockDecisionInput(review=failed), "review.verdict"),
            (LockDecisionInput(review=LockReview(verdict="pass", reviewers=())), "review.reviewers"),
            (LockDecisionInput(review=LockReview(verdict="pass", reviewers=("a", "a"))), "review.reviewers"),
        ):
            with pytest.raises(Invalid) as caught:
                await one.locks.approve(BOB, "l1", decision, condition=ANY)
            assert caught.value.field == field
        rejected = (await one.locks.reject(BOB, "l1", LockDecisionInput(review=failed), condition=ANY)).record
        assert (rejected.state or {})["review"]["note"] == "too wide"
        assert [lock.review for lock in await one.locks.locks_for(ADA)] == ["rejected"]

    async def test_what_is_over_is_not_approved(self, one: Locked) -> None:
        await one.draft(valid_until=timestamp(one.home.clock.now() + 10))
        one.home.clock.advance(10)
        with pytest.raises(Conflict):
            await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)


class TestRaces:
    async def test_of_two_processes_that_decide_at_once_one_does(self, home: Home) -> None:
        one, two = Locked(home), Locked(home, "two")
        try:
            await one.draft()
            outcomes = await asyncio.gather(
                one.locks.approve(BOB, "l1", PLAIN, condition=ANY),
                two.locks.reject(CAROL, "l1", PLAIN, condition=ANY),
                return_exceptions=True,
            )
            assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
            history = (await one.definitions.versions(ADA, LOCKS, "l1")).items
            assert len(history) == 2
        finally:
            await one.close()
            await two.close()

    async def test_contents_that_change_while_it_is_approved_are_not_approved(self, home: Home) -> None:
        one, two = Locked(home), Locked(home, "two")
        try:
            for number in range(6):
                first = await one.draft(lock_id=f"l{number}")
                outcomes = await asyncio.gather(
                    one.locks.approve(BOB, first.id, PLAIN, condition=at(first)),
                    two.write(ADA, first, "*"),
                    return_exceptions=True,
                )
                assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 1
                found = await one.definitions.get(ADA, LOCKS, first.id)
                approved = (found.state or {})["status"] == "approved"
                assert approved is (found.json_blob["allowed_actions"] == ["book_*"])
        finally:
            await one.close()
            await two.close()

    async def test_a_decision_whose_reply_was_lost_is_found_by_its_key(self, one: Locked) -> None:
        await one.draft()
        request = identify("t_one", "prod", "bob", "POST", "/strategy-locks/l1/approve", "k", body=b"{}")
        one.home.faults.script(Fault.LOST_APPLIED)
        first = await one.locks.approve(BOB, "l1", PLAIN, request=request, condition=ANY)
        again = await one.locks.approve(BOB, "l1", PLAIN, request=request, condition=ANY)
        assert (again.replayed, again.record) == (True, first.record)
        assert len((await one.definitions.versions(ADA, LOCKS, "l1")).items) == 2

    async def test_it_is_approved_after_a_restart(self, one: Locked, home: Home) -> None:
        await one.draft()
        await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)
        await one.close()
        await home.reopen()
        other = Locked(home, "two")
        try:
            assert await other.allows("book_flight")
        finally:
            await other.close()


class TestInForce:
    async def test_a_lock_holds_within_its_window_alone(self, one: Locked) -> None:
        now = one.home.clock.now()
        await one.draft(valid_from=timestamp(now + 10), valid_until=timestamp(now + 20))
        await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)
        assert not await one.allows("book_flight")
        one.home.clock.advance(10)
        assert await one.allows("book_flight")
        one.home.clock.advance(10)
        assert not await one.allows("book_flight")
        assert [lock.status for lock in await one.locks.locks_for(ADA)] == ["expired"]

    async def test_it_holds_on_its_surface_and_for_its_project(self, one: Locked) -> None:
        await one.draft()
        await one.draft(who=context(project_id="p1"), lock_id="l2", allowed_actions=["refund"])
        await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)
        await one.locks.approve(context(user_id="bob", project_id="p1"), "l2", PLAIN, condition=ANY)
        in_project = context(project_id="p1")
        assert await one.allows("book_flight", in_project)
        assert await one.allows("refund", in_project)
        assert not await one.allows("refund", context(project_id="p2"))
        assert not await one.allows("refund")
        for other in (context(surface_id="canvas"), context(tenant_id="t_two"), context(env="dev")):
            assert not await one.allows("book_flight", other)

    async def test_it_asks_no_permission_of_the_caller_and_reads_no_other_tenant(self, one: Locked) -> None:
        await one.draft()
        await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)
        assert await one.allows("book_flight", context(permissions=frozenset(), roles=()))
        with pytest.raises(ContextMismatch):
            await one.locks.locks_for(context(acting_on="t_two"))

    async def test_without_a_route_there_is_no_answer(self, one: Locked, home: Home) -> None:
        home.missing.add("strategy_lock_store")
        with pytest.raises(MissingRoute):
            await one.locks.locks_for(ADA)

    async def test_what_is_known_is_read_once_a_second_however_many_ask(
        self, one: Locked, home: Home
    ) -> None:
        await one.draft()
        await one.close()  # Nothing else reads while calls are counted.
        other = Locked(home, "two")
        try:
            home.driver.calls.clear()
            found = await asyncio.gather(*(other.locks.locks_for(ADA) for _ in range(50)))
            assert [len(locks) for locks in found] == [1] * 50
            assert home.driver.calls.count("scan") == 1
            home.clock.advance(1)
            await other.locks.locks_for(ADA)
            assert home.driver.calls.count("scan") == 2
        finally:
            await other.close()

    async def test_what_cannot_be_read_anew_is_not_known(self, one: Locked) -> None:
        await one.draft()
        await one.locks.approve(BOB, "l1", PLAIN, condition=ANY)
        assert await one.allows("book_flight")
        await one.told(2, event_type="strategy_lock")
        one.home.clock.advance(1)
        one.home.faults.plan = FaultPlan(read_refused=1.0)
        with pytest.raises(Unavailable):
            await one.locks.locks_for(ADA)
        one.home.faults.plan = NO_FAULTS
        assert await one.allows("book_flight")


async def test_a_scope_with_too_many_definitions_is_refused(one: Locked) -> None:
    cache = DefinitionCache(
        one.definitions, LOCKS, lambda record: record.id, one.home.clock, definitions_max=2
    )
    for number in range(2):
        await one.draft(lock_id=f"l{number}")
    assert set(await cache.get(ADA)) == {"l0", "l1"}
    await one.draft(lock_id="l2")
    one.home.clock.advance(1)
    with pytest.raises(TooLarge):
        await cache.get(ADA)
    await cache.close()


async def test_a_definition_of_another_shape_is_corrupt_and_no_answer(one: Locked) -> None:
    cache = DefinitionCache(
        one.definitions, LOCKS, lambda record: shaped(record, FirearmClass), one.home.clock
    )
    await one.draft()
    with pytest.raises(Corrupt):
        await cache.get(ADA)
    await cache.close()


async def test_a_definition_is_compiled_once_for_each_version(one: Locked) -> None:
    compiled: list[int] = []

    def compile_one(record: Definition) -> int:
        compiled.append(record.version)
        return record.version

    cache = DefinitionCache(one.definitions, LOCKS, compile_one, one.home.clock)
    first = await one.draft()
    for _ in range(3):
        assert dict(await cache.get(ADA)) == {"l1": 1}
        one.home.clock.advance(1)
    await one.write(ADA, first, "x")
    assert dict(await cache.get(ADA)) == {"l1": 2}
    assert compiled == [1, 2]
    await cache.close()
