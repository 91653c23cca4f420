"""Firearms and approvals: what a dangerous action takes, asked once, and of two uses one."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from engines.clock import timestamp
from engines.core.idempotency import KEPT_S, identify, marker_put
from engines.core.listing import Window
from engines.core.records import Condition
from engines.errors import (
    Conflict,
    ContextMismatch,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    MissingRoute,
    NotFound,
    PreconditionFailed,
    TooLarge,
    Unavailable,
)
from engines.ports.documents import Match, Put
from engines.scope import SYSTEM_TENANT, RequestContext
from engines.stores import firearm_rules
from engines.stores.approval_records import (
    ANCHOR,
    OWN_USE_S,
    TTL_S_MAX,
    AnswerInput,
    Approval,
    ApprovalFilter,
    ApprovalInput,
    asked_key_of,
)
from engines.stores.approvals import Approvals
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.firearm_rules import Bound, FirearmFacts, Rules, patterns_that_cover
from engines.stores.firearm_uses import CLASSES_MAX, FirearmUses, Using
from engines.stores.firearms import Firearms
from engines.stores.scoped import Change
from engines.stores.strategy_locks import LockDecisionInput, StrategyLocks, covers
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan
from tests.stores.definitions_home import Told
from tests.stores.home import Home, context
from tests.stores.subjects import keyed
from tests.torn import torn

ADA, BOB = context(), context(user_id="bob")
SYSTEM = context(tenant_id=SYSTEM_TENANT, user_id="root")
YES, NO = AnswerInput(answer="yes"), AnswerInput(answer="no")
ABSENT = Condition(absent=True)
CLASSES, LICENCES = "firearms", "firearms-licences"
GRANTS, BINDINGS = "firearms-grants", "firearms-bindings"


class Untouched(dict[str, Any]):
    """Definitions in which each is found by its name, and nobody walks through them all."""

    def __iter__(self) -> Any:
        raise AssertionError("somebody walks through all definitions")

    keys = values = items = __iter__


class Armed(Told):
    """One process with firearms and approvals."""

    def __init__(self, home: Home, name: str = "one") -> None:
        super().__init__(home, name)
        self.locks = StrategyLocks(self.definitions, home.clock)
        uses = FirearmUses(home, self.announcements, home.clock)
        self.firearms = Firearms(self.definitions, uses, self.locks, self._system, home.clock)
        self.approvals = Approvals(
            home, self.announcements, self.firearms.class_of_action, home.ids, home.clock
        )

    async def _system(self) -> RequestContext:
        return context(
            tenant_id=SYSTEM_TENANT, user_id="system", roles=(), permissions=frozenset({"definitions.read"})
        )

    async def close(self) -> None:
        await self.firearms.close()
        await self.locks.close()
        await super().close()

    async def define(self, name: str, record_id: str, who: RequestContext = ADA, /, **members: Any) -> None:
        """The next version, whatever stands; known at once to whoever looks a second later."""
        schema = SCHEMA_NAMED[name]
        condition = ABSENT
        try:
            former = await self.definitions.get(who, schema, record_id)
            condition = Condition(versions=(former.etag.strip('"'),))
        except NotFound:
            pass
        given = DefinitionInput(json_blob=members)
        await self.definitions.put(who, schema, record_id, given, condition=condition)
        self.home.clock.advance(1)

    async def arm(self, **members: Any) -> None:
        """t_system's class `payments`, offered to t_one, which is licensed; Ada has a grant."""
        needs = {"risk_level": "high", "human_approval": False, "offered_to": ["t_one"], **members}
        await self.define(CLASSES, "payments", SYSTEM, **needs)
        await self.define(BINDINGS, "b", SYSTEM, class_id="payments", actions=["refund", "pay_*"])
        await self.define(LICENCES, "l", class_id="payments")
        await self.define(GRANTS, "g", class_id="payments", user_id="ada")

    async def facts(self, who: RequestContext = ADA, action: str = "refund") -> FirearmFacts:
        facts = await self.firearms.facts_of(who, action, "order-1", at_s=self.home.clock.now())
        assert facts is not None
        return facts

    async def allows(self, who: RequestContext = ADA, action: str = "refund") -> bool:
        return (await self.facts(who, action)).allow(self.home.clock.now())

    async def take(self, use_id: str, subject: str = "order-1", who: RequestContext = ADA) -> bool:
        at_s = self.home.clock.now()
        facts = await self.firearms.take(who, "refund", subject, use_id=use_id, at_s=at_s)
        assert facts is not None
        return facts.allow(at_s)

    async def ask(self, subject: str = "order-1", who: RequestContext = ADA, **members: Any) -> Approval:
        given = ApprovalInput(action="refund", subject=subject, reason="broken", **members)
        return (await self.approvals.request(who, given)).record

    async def status(self, approval_id: str) -> str:
        return (await self.approvals.get(ADA, approval_id)).status


@pytest_asyncio.fixture
async def one(home: Home) -> AsyncIterator[Armed]:
    armed = Armed(home)
    yield armed
    await armed.close()


@pytest_asyncio.fixture
async def both(home: Home) -> AsyncIterator[tuple[Armed, Armed]]:
    """Two processes on one database."""
    armed = Armed(home), Armed(home, "two")
    yield armed
    for each in armed:
        await each.close()


class TestRules:
    async def test_what_nobody_binds_is_not_dangerous(self, one: Armed) -> None:
        await one.arm()
        now = one.home.clock.now()
        assert await one.firearms.facts_of(ADA, "read", "s", at_s=now) is None
        assert await one.firearms.take(ADA, "read", "s", use_id="u", at_s=now) is None
        await one.firearms.undo(ADA, "read", "s", use_id="u")

    async def test_it_takes_an_offer_a_licence_and_a_grant(self, one: Armed) -> None:
        await one.arm()
        facts = await one.facts()
        assert (facts.class_id, facts.risk_level, facts.licensed, facts.granted) == (
            "payments",
            "high",
            True,
            True,
        )
        assert await one.allows(action="pay_out")
        assert not (await one.facts(BOB)).granted
        await one.define(LICENCES, "l", class_id="other")
        assert not (await one.facts()).licensed

    async def test_a_tenant_that_licenses_itself_for_what_it_is_not_offered_is_not_licensed(
        self, one: Armed
    ) -> None:
        two = context(tenant_id="t_two")
        await one.arm()
        await one.define(LICENCES, "l", two, class_id="payments")
        await one.define(GRANTS, "g", two, class_id="payments", user_id="ada")
        facts = await one.facts(two)
        assert (facts.licensed, facts.granted) == (False, True)
        await one.arm(offered_to="*")
        assert await one.allows(two)
        await one.arm(offered_to=[])
        assert not await one.allows()

    @pytest.mark.parametrize("members", [{}, {"offered_to": []}])
    async def test_a_class_is_offered_to_nobody_unless_it_says_so(
        self, one: Armed, members: dict[str, Any]
    ) -> None:
        await one.arm()
        await one.define(CLASSES, "payments", SYSTEM, risk_level="low", human_approval=False, **members)
        assert not await one.allows()

    async def test_a_tenant_cannot_bind_define_or_licence_its_way_around(self, one: Armed) -> None:
        await one.arm(cooldown_seconds=60, human_approval=True, strategy_lock=True)
        await one.define(CLASSES, "payments", risk_level="low", human_approval=False, offered_to="*")
        await one.define(CLASSES, "harmless", risk_level="low", human_approval=False)
        await one.define(BINDINGS, "b", class_id="harmless", actions=["refund"])
        await one.define(LICENCES, "l2", class_id="harmless")
        await one.define(GRANTS, "g2", class_id="harmless", user_id="ada")
        await one.define(
            LICENCES, "l", class_id="payments", human_approval=False, cooldown_seconds=0, strategy_lock=False
        )
        facts = await one.facts()
        assert (facts.class_id, facts.risk_level) == ("payments", "high")
        assert (facts.needs_approval, facts.needs_strategy_lock) == (True, True)
        await one.define(LICENCES, "l", class_id="another")
        assert not (await one.facts()).licensed

    async def test_a_tenant_may_ask_for_more(self, one: Armed) -> None:
        await one.arm()
        assert await one.allows()
        await one.define(LICENCES, "l", class_id="payments", human_approval=True)
        assert (await one.facts()).needs_approval
        await one.define(LICENCES, "l", class_id="payments")
        await one.define(CLASSES, "payments", risk_level="critical", human_approval=False)
        assert (await one.facts()).risk_level == "critical"
        await one.define(BINDINGS, "b", class_id="own", actions=["pay_*", "read"])
        assert not await one.allows(action="pay_out")
        assert await one.allows()
        await one.define(CLASSES, "own", risk_level="low", human_approval=False)
        await one.define(LICENCES, "l2", class_id="own")
        await one.define(GRANTS, "g2", class_id="own", user_id="ada")
        assert await one.allows(action="pay_out")
        assert await one.allows(action="read")

    async def test_a_binding_to_a_class_that_nobody_defines_is_refused(self, one: Armed) -> None:
        await one.define(BINDINGS, "b", class_id="ghost", actions=["refund"])
        await one.define(LICENCES, "l", class_id="ghost")
        await one.define(GRANTS, "g", class_id="ghost", user_id="ada")
        facts = await one.facts()
        assert (facts.licensed, facts.risk_level, facts.needs_approval) == (False, "critical", True)

    async def test_an_action_of_more_classes_than_a_use_may_have_is_refused(self, one: Armed) -> None:
        await one.arm(cooldown_seconds=60)

        async def bind(class_id: str) -> None:
            given = DefinitionInput(id=class_id, json_blob={"class_id": class_id, "actions": ["refund"]})
            await one.definitions.create(ADA, SCHEMA_NAMED[BINDINGS], given)

        for number in range(CLASSES_MAX - 1):
            await bind(f"c{number}")
        one.home.clock.advance(1)
        assert not (await one.facts()).licensed
        assert not await one.take("u1")
        await one.firearms.undo(ADA, "refund", "order-1", use_id="u1")
        await bind("another")
        one.home.clock.advance(1)
        for call in (
            one.facts(),
            one.take("u1"),
            one.firearms.undo(ADA, "refund", "order-1", use_id="u1"),
        ):
            with pytest.raises(TooLarge, match="bind it to fewer"):
                await call

    async def test_of_an_action_of_too_many_classes_no_more_are_looked_at_than_say_so(
        self, one: Armed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A class that nobody defines asks for an approval: the first says so."""
        looked_at: list[str] = []
        look = Rules.bound

        def bound(rules: Rules, who: RequestContext, class_id: str, at_s: float) -> Bound:
            looked_at.append(class_id)
            return look(rules, who, class_id, at_s)

        monkeypatch.setattr(Rules, "bound", bound)
        for number in range(CLASSES_MAX + 1):
            given = DefinitionInput(json_blob={"class_id": f"c{number}", "actions": ["refund"]})
            await one.definitions.create(ADA, SCHEMA_NAMED[BINDINGS], given)
        one.home.clock.advance(1)
        with pytest.raises(TooLarge, match=f"{CLASSES_MAX + 1} classes"):
            await one.facts()
        assert looked_at == ["c0"]
        assert await one.firearms.class_of_action(ADA, "refund") == "c0"

    async def test_what_an_action_costs_depends_on_its_own_classes(
        self, one: Armed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await one.arm()
        for number in range(20):
            for name, members in (
                (CLASSES, {"risk_level": "low"}),
                (BINDINGS, {"class_id": f"c{number}", "actions": [f"other{number}", "other_*"]}),
                (LICENCES, {"class_id": f"c{number}"}),
                (GRANTS, {"class_id": f"c{number}", "user_id": "ada"}),
            ):
                given = DefinitionInput(id=f"c{number}", json_blob=members)
                await one.definitions.create(ADA, SCHEMA_NAMED[name], given)
        one.home.clock.advance(1)
        assert await one.allows()
        looked_at: list[str | None] = []
        is_before = firearm_rules._is_before

        def counted(expires_at: str | None, at_s: float) -> bool:
            looked_at.append(expires_at)
            return is_before(expires_at, at_s)

        monkeypatch.setattr(firearm_rules, "_is_before", counted)
        assert await one.allows()
        assert len(looked_at) == 2, "one licence and one grant"
        looked_at.clear()
        rules = await one.firearms._rules(ADA)
        untouched = {name: Untouched(getattr(rules, name)) for name in Rules.__struct_fields__}
        assert Rules(**untouched).class_ids("refund") == ["payments"]
        assert Rules(**untouched).bound(ADA, "payments", one.home.clock.now()).granted

    async def test_a_binding_that_changes_names_other_actions(self, one: Armed) -> None:
        await one.arm()
        await one.define(BINDINGS, "mine", class_id="payments", actions=["send", "send_*"])
        assert await one.firearms.class_of_action(ADA, "send") == "payments"
        await one.define(BINDINGS, "mine", class_id="payments", actions=["mail"])
        for action, class_id in (("mail", "payments"), ("send", None), ("send_all", None)):
            assert await one.firearms.class_of_action(ADA, action) == class_id
        one.home.clock.advance(1)
        assert await one.firearms.class_of_action(ADA, "mail") == "payments", "a version read before"

    async def test_a_use_may_have_so_many_classes_that_one_write_takes_them(
        self, one: Armed, home: Home
    ) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask()
        await one.approvals.answer(BOB, asked.approval_id, YES)
        uses = FirearmUses(home, one.announcements, home.clock)
        class_ids = [f"c{number}" for number in range(CLASSES_MAX)]
        using = Using(context=ADA, action="refund", subject="order-1", class_ids=class_ids, use_id="u1")
        found = await uses.standing(using)
        cooldowns_s = dict.fromkeys(class_ids, 60)
        await uses.record(using, found, at_s=home.clock.now(), cooldowns_s=cooldowns_s, spends=True)
        assert list((await uses.standing(using)).last) == class_ids
        assert await one.status(asked.approval_id) == "used"
        await uses.undo(using)
        assert (await uses.standing(using)).last == {}
        assert await one.status(asked.approval_id) == "granted"

    async def test_licences_and_grants_end(self, one: Armed) -> None:
        await one.arm()
        soon = timestamp(one.home.clock.now() + 10)
        await one.define(LICENCES, "l", class_id="payments", expires_at=soon)
        await one.define(GRANTS, "g", class_id="payments", user_id="ada", expires_at=soon)
        assert await one.allows()
        one.home.clock.advance(8)
        facts = await one.facts()
        assert (facts.licensed, facts.granted) == (False, False)

    async def test_a_revoked_grant_is_none(self, one: Armed) -> None:
        await one.arm()
        await one.define(GRANTS, "g", class_id="payments", user_id="ada", revoked=True)
        assert not await one.allows()

    async def test_a_users_grant_is_no_agents_and_an_agents_no_users(self, one: Armed) -> None:
        await one.arm()
        agent = context(roles=("agent",))
        assert not await one.allows(agent)
        await one.define(GRANTS, "g", class_id="payments", agent_id="ada")
        assert await one.allows(agent)
        assert not await one.allows()

    async def test_a_strategy_lock_must_allow_it(self, one: Armed) -> None:
        await one.arm(strategy_lock=True)
        assert not await one.allows()
        blob = {"allowed_actions": ["refund"]}
        locks = SCHEMA_NAMED["strategy-locks"]
        await one.definitions.create(BOB, locks, DefinitionInput(json_blob=blob, id="lock"))
        await one.locks.approve(ADA, "lock", LockDecisionInput(), condition=Condition(versions=("*",)))
        one.home.clock.advance(1)
        assert await one.allows()
        assert not await one.allows(action="pay_out")

    async def test_another_tenants_definitions_count_for_nothing(self, one: Armed) -> None:
        await one.arm()
        two = context(tenant_id="t_two")
        await one.define(BINDINGS, "x", two, class_id="payments", actions=["read"])
        now = one.home.clock.now()
        assert await one.firearms.facts_of(ADA, "read", "s", at_s=now) is None
        with pytest.raises(ContextMismatch):
            await one.firearms.facts_of(context(acting_on="t_two"), "refund", "s", at_s=now)

    async def test_without_an_answer_there_are_no_facts(self, one: Armed, home: Home) -> None:
        await one.arm()
        home.clock.advance(1)
        home.faults.plan = FaultPlan(read_refused=1.0)
        with pytest.raises(Unavailable):
            await one.facts()
        home.faults.plan = NO_FAULTS

    async def test_without_a_route_there_are_no_facts(self, one: Armed, home: Home) -> None:
        await one.arm()
        home.clock.advance(1)
        home.missing.add("firearms_store")
        with pytest.raises(MissingRoute):
            await one.facts()

    @pytest.mark.parametrize(
        ("needs", "reads"),
        [({}, []), ({"cooldown_seconds": 60}, ["get"]), ({"human_approval": True}, ["get"])],
        ids=["nothing", "cooldown", "approval"],
    )
    async def test_warm_facts_cost_a_read_only_where_a_use_leaves_something(
        self, one: Armed, home: Home, needs: dict[str, Any], reads: list[str]
    ) -> None:
        await one.arm(**needs)
        await one.close()  # Nothing else reads while calls are counted.
        other = Armed(home, "two")
        try:
            await other.facts()
            home.driver.calls.clear()
            await other.facts()
            assert home.driver.calls == reads
        finally:
            await other.close()


class TestCooldown:
    async def test_a_use_cools_its_class_down_for_its_user_alone(self, one: Armed) -> None:
        await one.arm(cooldown_seconds=60)
        await one.define(GRANTS, "g2", class_id="payments", user_id="bob")
        began = one.home.clock.now()
        assert await one.take("u1")
        assert not await one.take("u2", subject="another order")
        assert (await one.facts()).cooldown_until_s == began + 60
        assert await one.allows(BOB)
        one.home.clock.advance(59)
        assert not await one.take("u2")
        one.home.clock.advance(1)
        assert await one.take("u2")
        assert not await one.allows()

    async def test_the_same_use_is_admitted_as_often_as_it_asks(self, one: Armed) -> None:
        await one.arm(cooldown_seconds=60)
        for _ in range(3):
            assert await one.take("u1")

    async def test_looking_uses_nothing(self, one: Armed) -> None:
        await one.arm(cooldown_seconds=60)
        for _ in range(3):
            assert await one.allows()
        assert await one.take("u1")

    async def test_of_many_uses_in_two_processes_one_is_admitted(self, both: tuple[Armed, Armed]) -> None:
        await both[0].arm(cooldown_seconds=60)
        both[0].home.faults.plan = FaultPlan(pause_s_max=0.002)
        for round_number in range(3):
            taken = await asyncio.gather(
                *(both[number % 2].take(f"u{round_number}-{number}") for number in range(12))
            )
            assert sum(taken) == 1
            both[0].home.clock.advance(60)

    async def test_a_use_whose_reply_was_lost_is_one_use(self, one: Armed) -> None:
        await one.arm(cooldown_seconds=60)
        one.home.faults.script(Fault.LOST_APPLIED)
        assert await one.take("u1")
        assert await one.take("u1")
        assert not await one.take("u2")

    async def test_it_outlasts_a_restart(self, one: Armed, home: Home) -> None:
        await one.arm(cooldown_seconds=60)
        await one.take("u1")
        await one.close()
        await home.reopen()
        other = Armed(home, "two")
        try:
            assert not await other.take("u2")
        finally:
            await other.close()

    async def test_a_use_that_came_to_nothing_leaves_nothing(self, one: Armed) -> None:
        await one.arm(cooldown_seconds=60)
        await one.take("u1")
        await one.firearms.undo(ADA, "refund", "order-1", use_id="u2")
        assert not await one.allows()
        await one.firearms.undo(ADA, "refund", "order-1", use_id="u1")
        assert await one.take("u2")


class TestAsking:
    async def test_a_request_waits_and_says_what_for(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        assert (await one.facts()).approval == "none"
        asked = await one.ask(context={"order": 1})
        assert (asked.status, asked.class_id, asked.requested_by) == ("pending", "payments", "ada")
        assert await one.approvals.get(BOB, asked.approval_id) == asked
        facts = await one.facts()
        assert (facts.approval, facts.approval_id) == ("pending", asked.approval_id)
        assert not await one.take("u1")
        assert (await one.approvals.list(BOB)).items == (asked,)

    async def test_only_what_is_dangerous_is_asked_for(self, one: Armed) -> None:
        await one.arm()
        for action, class_id, field in (("read", None, "action"), ("refund", "other", "class_id")):
            given = ApprovalInput(action=action, subject="s", reason="", class_id=class_id)
            with pytest.raises(Invalid) as caught:
                await one.approvals.request(ADA, given)
            assert caught.value.field == field
        for broken, field in (
            ({"subject": ""}, "subject"),
            ({"ttl_seconds": 0}, "ttl_seconds"),
            ({"ttl_seconds": 8 * 24 * 3600}, "ttl_seconds"),
        ):
            with pytest.raises(Invalid) as caught:
                await one.ask(**broken)
            assert caught.value.field == field
        with pytest.raises(TooLarge):
            await one.ask(context={"text": "x" * 20_000})
        with pytest.raises(ContextMismatch):
            await one.ask(user_id="bob")
        assert (await one.approvals.list(ADA)).items == ()

    async def test_one_question_at_a_time(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        first = await one.ask()
        with pytest.raises(Conflict) as caught:
            await one.ask()
        assert first.approval_id in caught.value.detail
        await one.ask(subject="order-2")
        await one.approvals.answer(BOB, first.approval_id, YES)
        with pytest.raises(Conflict):
            await one.ask()
        await one.take("u1")
        second = await one.ask()
        await one.approvals.answer(BOB, second.approval_id, NO)
        await one.ask(ttl_seconds=5)
        one.home.clock.advance(5)
        await one.ask()

    async def test_of_many_who_ask_at_once_one_does(self, both: tuple[Armed, Armed]) -> None:
        await both[0].arm(human_approval=True)
        outcomes = await asyncio.gather(
            *(both[number % 2].ask() for number in range(8)), return_exceptions=True
        )
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 7
        assert len((await both[0].approvals.list(ADA)).items) == 1

    @pytest.mark.parametrize("status", ["pending", "granted"])
    async def test_what_a_riskier_class_made_worthless_does_not_stand_in_the_way(
        self, both: tuple[Armed, Armed], status: str
    ) -> None:
        one = both[0]
        await one.arm(human_approval=True)
        former = await one.ask(ttl_seconds=7 * 24 * 3600)
        if status == "granted":
            await one.approvals.answer(BOB, former.approval_id, YES)
        await one.define(CLASSES, "worse", risk_level="critical", human_approval=True)
        await one.define(LICENCES, "l2", class_id="worse")
        await one.define(GRANTS, "g2", class_id="worse", user_id="ada")
        await one.define(BINDINGS, "b2", class_id="worse", actions=["refund"])
        assert (await one.facts()).approval == "none"
        outcomes = await asyncio.gather(
            *(both[number % 2].ask() for number in range(8)), return_exceptions=True
        )
        asked = [outcome for outcome in outcomes if isinstance(outcome, Approval)]
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 7
        assert [record.class_id for record in asked] == ["worse"]
        await one.approvals.answer(BOB, asked[0].approval_id, YES)
        if status == "pending":  # The yes to what is no longer looked at counts for nothing.
            await one.approvals.answer(BOB, former.approval_id, YES)
        assert (await one.facts()).approval_id == asked[0].approval_id
        assert await one.take("u1")
        assert not await one.take("u2")
        assert await one.status(former.approval_id) == "granted"

    async def test_a_repeat_gets_the_first_answer(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        given = ApprovalInput(action="refund", subject="order-1", reason="broken")
        request = identify("t_one", "prod", "ada", "POST", "/approvals", "k", body=b"1")
        one.home.faults.script(Fault.LOST_APPLIED)
        first = await one.approvals.request(ADA, given, request=request)
        again = await one.approvals.request(ADA, given, request=request)
        assert (again.replayed, again.record) == (True, first.record)
        other = identify("t_one", "prod", "ada", "POST", "/approvals", "k", body=b"2")
        with pytest.raises(IdempotencyKeyReused):
            await one.approvals.request(ADA, given, request=other)

    async def test_so_does_one_that_meets_its_first_as_it_lands(
        self, one: Armed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await one.arm(human_approval=True)
        asked = ApprovalInput(action="refund", subject="order-1", reason="broken")

        async def ask() -> Change[Approval]:
            return await one.approvals.request(ADA, asked, request=keyed("ask"))

        torn(one.home.documents, monkeypatch, ask)
        first, again = await ask(), await ask()
        assert (first.replayed, first.record) == (True, again.record)
        approval_id = first.record.approval_id

        async def answer(key: str = "answer") -> Change[Approval]:
            return await one.approvals.answer(BOB, approval_id, YES, request=keyed(key))

        torn(one.home.documents, monkeypatch, answer)
        answered = await answer()
        assert (answered.replayed, answered.record.status) == (True, "granted")
        with pytest.raises(Conflict, match="granted"):
            await answer("another")
        with pytest.raises(Conflict, match="asked for already"):
            await one.approvals.request(ADA, asked, request=keyed("another"))

    async def test_the_role_decides(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask()
        nobody = context(user_id="carol", permissions=frozenset())
        given = ApprovalInput(action="refund", subject="s", reason="")
        for call in (
            one.approvals.request(nobody, given),
            one.approvals.get(nobody, asked.approval_id),
            one.approvals.list(nobody),
            one.approvals.answer(nobody, asked.approval_id, YES),
        ):
            with pytest.raises(Forbidden):
                await call

    async def test_lists_go_by_creation_status_and_who_asked(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = [await one.ask(subject=f"order-{number}") for number in range(4)]
        theirs = await one.ask(who=BOB)
        await one.approvals.answer(BOB, asked[1].approval_id, NO)

        async def ids(where: ApprovalFilter, **window: Any) -> list[str]:
            listed = await one.approvals.list(ADA, where, window=Window(**window))
            return [item.approval_id for item in listed.items]

        assert await ids(ApprovalFilter(status="refused")) == [asked[1].approval_id]
        assert await ids(ApprovalFilter(requested_by="bob")) == [theirs.approval_id]
        assert await ids(ApprovalFilter(), limit=2) == [item.approval_id for item in asked[:2]]
        two = context(tenant_id="t_two")
        assert (await one.approvals.list(two)).items == ()
        with pytest.raises(NotFound):
            await one.approvals.get(two, asked[0].approval_id)
        with pytest.raises(NotFound):
            await one.approvals.answer(two, asked[0].approval_id, YES)


class TestAnswering:
    async def test_a_yes_admits_one_use_and_is_told(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask()
        answer = AnswerInput(answer="yes", note="go on")
        change = await one.approvals.answer(BOB, asked.approval_id, answer)
        given = change.record.answer
        assert (change.record.status, change.record.version, change.record.user_id) == ("granted", 2, "bob")
        assert given is not None
        assert (given.answer, given.answered_by, given.note) == ("yes", "bob", "go on")
        assert (await one.facts()).approval == "granted"
        assert await one.take("u1")
        assert await one.status(asked.approval_id) == "used"
        assert await one.take("u1")
        assert not await one.take("u2")
        told = [event for event in await one.told(5) if event.get("record") == "approval"]
        assert [(event["action"], event["status"]) for event in told] == [
            ("requested", "pending"),
            ("answered", "granted"),
            ("used", "used"),
        ]
        assert (told[1]["answer"], told[1]["answered_by"]) == ("yes", "bob")

    async def test_a_no_refuses(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask()
        await one.approvals.answer(BOB, asked.approval_id, NO)
        assert (await one.facts()).approval == "refused"
        assert not await one.take("u1")

    async def test_a_yes_is_for_its_action_subject_and_user(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        await one.define(GRANTS, "g2", class_id="payments", user_id="bob")
        asked = await one.ask()
        await one.approvals.answer(BOB, asked.approval_id, YES)
        assert not await one.take("u1", subject="order-2")
        assert not await one.allows(BOB)
        assert not await one.allows(action="pay_out")
        assert await one.take("u1")

    async def test_a_yes_for_one_class_is_none_for_a_riskier_one(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask()
        await one.approvals.answer(BOB, asked.approval_id, YES)
        await one.define(CLASSES, "worse", risk_level="critical")
        await one.define(BINDINGS, "b2", class_id="worse", actions=["refund"])
        await one.define(LICENCES, "l2", class_id="worse")
        await one.define(GRANTS, "g2", class_id="worse", user_id="ada")
        assert (await one.facts()).approval == "none"

    async def test_nobody_answers_themselves_and_no_agent_anybody(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask()
        for who in (ADA, msgspec.structs.replace(BOB, roles=("agent",))):
            with pytest.raises(Forbidden):
                await one.approvals.answer(who, asked.approval_id, YES)
        assert await one.status(asked.approval_id) == "pending"

    async def test_nobody_answers_what_was_asked_with_a_key_that_they_made(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask(who=context(key_id="k1", key_made_by=("bob", "carol")))
        assert (asked.requested_by, asked.key_made_by) == ("ada", ("bob", "carol"))
        for user_id in ("ada", "bob", "carol"):
            with pytest.raises(Forbidden):
                await one.approvals.answer(context(user_id=user_id), asked.approval_id, YES)
        await one.approvals.answer(context(user_id="dan"), asked.approval_id, YES)
        assert await one.take("u1")
        assert (await one.approvals.get(ADA, asked.approval_id)).key_made_by == ("bob", "carol")

    async def test_whoever_gave_an_agent_its_key_answers_what_it_asks(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        agent = context(roles=("agent",), key_id="k1", key_made_by=("bob",))
        asked = await one.ask(who=agent)
        assert asked.key_made_by == ()
        answered = await one.approvals.answer(BOB, asked.approval_id, YES)
        assert answered.record.status == "granted"

    async def test_it_is_answered_once_and_in_time(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask(ttl_seconds=10)
        at = Condition(versions=(asked.etag.strip('"'),))
        await one.approvals.answer(BOB, asked.approval_id, YES, condition=at)
        with pytest.raises(Conflict) as caught:
            await one.approvals.answer(BOB, asked.approval_id, NO)
        assert not isinstance(caught.value, PreconditionFailed)
        with pytest.raises(PreconditionFailed):
            await one.approvals.answer(BOB, asked.approval_id, NO, condition=at)
        one.home.clock.advance(10)
        assert await one.status(asked.approval_id) == "expired"
        assert not await one.take("u1")
        late = await one.ask(ttl_seconds=10)
        one.home.clock.advance(10)
        with pytest.raises(Conflict):
            await one.approvals.answer(BOB, late.approval_id, YES)
        with pytest.raises(NotFound):
            await one.approvals.answer(BOB, "nonesuch", YES)

    async def test_of_a_yes_and_a_no_at_once_one_counts(self, both: tuple[Armed, Armed]) -> None:
        await both[0].arm(human_approval=True)
        asked = await both[0].ask()
        outcomes = await asyncio.gather(
            both[0].approvals.answer(BOB, asked.approval_id, YES),
            both[1].approvals.answer(context(user_id="carol"), asked.approval_id, NO),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
        assert (await both[0].approvals.get(ADA, asked.approval_id)).version == 2

    async def test_of_many_uses_of_one_yes_one_is_admitted(self, both: tuple[Armed, Armed]) -> None:
        await both[0].arm(human_approval=True)
        asked = await both[0].ask()
        await both[0].approvals.answer(BOB, asked.approval_id, YES)
        both[0].home.faults.plan = FaultPlan(pause_s_max=0.002)
        taken = await asyncio.gather(*(both[number % 2].take(f"u{number}") for number in range(12)))
        assert sum(taken) == 1

    async def test_an_answer_whose_reply_was_lost_is_given_once(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask()
        request = identify("t_one", "prod", "bob", "POST", "/approvals/x/answer", "k", body=b"1")
        one.home.faults.script(Fault.LOST_APPLIED)
        first = await one.approvals.answer(BOB, asked.approval_id, YES, request=request)
        again = await one.approvals.answer(BOB, asked.approval_id, YES, request=request)
        assert (again.replayed, again.record) == (True, first.record)

    async def test_a_use_that_came_to_nothing_gives_the_yes_back(self, one: Armed) -> None:
        await one.arm(human_approval=True, cooldown_seconds=60)
        asked = await one.ask()
        await one.approvals.answer(BOB, asked.approval_id, YES)
        await one.take("u1")
        await one.firearms.undo(ADA, "refund", "order-1", use_id="other")
        assert await one.status(asked.approval_id) == "used"
        for _ in range(2):
            await one.firearms.undo(ADA, "refund", "order-1", use_id="u1")
            assert await one.status(asked.approval_id) == "granted"
        assert await one.take("u2")
        assert await one.status(asked.approval_id) == "used"

    async def test_a_use_is_the_same_one_only_while_its_marker_stands(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask(ttl_seconds=TTL_S_MAX)
        await one.approvals.answer(BOB, asked.approval_id, YES)
        assert await one.take("u1")
        one.home.clock.advance(OWN_USE_S - 1)
        assert await one.take("u1")
        for _ in range(3):
            one.home.clock.advance(KEPT_S)
            assert not await one.take("u1")
            await one.firearms.undo(ADA, "refund", "order-1", use_id="u1")
            assert await one.status(asked.approval_id) == "used"
            assert not await one.take("u2")

    async def test_it_is_over_before_a_marker_of_the_same_moment(self, one: Armed) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask()
        await one.approvals.answer(BOB, asked.approval_id, YES)
        assert await one.take("u1")
        marker = marker_put(keyed("use"), now=one.home.clock.now())
        assert marker.expires_at is not None
        one.home.clock.advance(marker.expires_at - one.home.clock.now())
        assert not await one.take("u1")

    async def test_a_use_of_unknown_time_is_not_repeated(self, one: Armed, home: Home) -> None:
        """As approvals were stored before they kept when they were used."""
        await one.arm(human_approval=True)
        asked = await one.ask()
        await one.approvals.answer(BOB, asked.approval_id, YES)
        assert await one.take("u1")
        partition = await (await home.place("firearms_store", ADA)).partition(ANCHOR)
        key = asked_key_of("ada", "refund", "order-1")
        doc = await home.documents.get(partition, key)
        assert doc is not None
        former = {name: value for name, value in json.loads(doc.body).items() if name != "used_at_s"}
        await home.documents.write(partition, [Put(key, json.dumps(former), Match(doc.version))])
        assert not await one.take("u1")

    async def test_a_class_cools_down_for_the_same_id_a_day_later(self, one: Armed) -> None:
        await one.arm(cooldown_seconds=3 * KEPT_S)
        assert await one.take("u1")
        assert await one.take("u1")
        one.home.clock.advance(KEPT_S)
        assert not await one.take("u1")
        await one.firearms.undo(ADA, "refund", "order-1", use_id="u1")
        assert not await one.take("u1")

    async def test_an_answer_outlasts_a_restart(self, one: Armed, home: Home) -> None:
        await one.arm(human_approval=True)
        asked = await one.ask()
        await one.approvals.answer(BOB, asked.approval_id, YES)
        await one.close()
        await home.reopen()
        other = Armed(home, "two")
        try:
            assert await other.take("u1")
            assert not await other.take("u2")
        finally:
            await other.close()


def test_a_binding_is_found_by_what_it_writes_exactly_where_that_covers_the_action() -> None:
    texts = ["".join(each) for length in range(5) for each in itertools.product("ab*", repeat=length)]
    for action in texts:
        found = set(patterns_that_cover(action))
        assert {pattern for pattern in texts if covers(pattern, action)} == found & set(texts), action
