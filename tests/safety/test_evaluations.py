"""Decisions: recorded before they are told, once, and never a pass that is not on the spine."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from engines.control.records import GateConfig, GateRule, Switch
from engines.core.committer import WAITING_MAX
from engines.core.idempotency import Request
from engines.core.log import Log
from engines.errors import (
    BackendRefused,
    Conflict,
    ContextMismatch,
    EnginesError,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    MissingRoute,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from engines.safety.asks import Ask, Cost, Decided, EvaluationInput, Verdict
from engines.stores.events import SPINE_STREAM, Causality, SystemEvent
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan
from tests.safety.house import ACTION, House, Saying, Taking, asked, keyed, passes, refuses
from tests.stores.home import EVERYTHING, context

PARENT = "0b9f7a3e-6d3c-4c5c-9d3a-0a6f0c1b2d3e"


async def evaluated(house: House, request: Request | None = None, **fields: Any) -> Decided:
    return await house.gates.evaluate(context(), asked(**fields), request=request)


async def refusal_of(house: House, **plan: float) -> EnginesError:
    """What an evaluation raises while the spine's backend behaves so, for longer than anybody waits."""
    house.home.faults.plan = FaultPlan(**plan)
    task = asyncio.create_task(evaluated(house))
    while not task.done():
        await asyncio.wait((task,), timeout=0.02)
        house.home.clock.advance(3)
    house.home.faults.plan = NO_FAULTS
    await house.home.faults.late_writes_delivered()
    await house.directory.refresh()
    error = task.exception()
    assert isinstance(error, EnginesError)
    return error


class TestRecord:
    async def test_a_decision_is_one_event_that_says_everything(self, house: House) -> None:
        gate = Saying("kpi_corridor", refuses("below_floor", details={"name": "success"}))
        house.mount([gate])
        await house.guarding("kpi_corridor")
        decided = await evaluated(house, subject="order-7", details={"amount": "12.50"})
        (event,) = await house.decisions()
        assert event.payload == {
            "action": ACTION,
            "subject": "order-7",
            "result": "block",
            "gate": "kpi_corridor",
            "reason_code": "below_floor",
            "gate_status": "ok",
            "details": {"name": "success"},
            "dry_run": False,
            "asked": {"amount": "12.50"},
            "judged_by": ["kill_switch", "kpi_corridor"],
        }
        assert (event.user_id, event.surface_id, event.source) == ("ada", "chat", "system")
        assert (event.run_id, event.step_id) == ("run-1", "0")
        answer = decided.answer
        assert (answer.decision, answer.gate, answer.reason_code) == ("block", "kpi_corridor", "below_floor")
        assert (answer.event_id, answer.position, answer.cursor) == (
            event.event_id,
            event.position,
            event.cursor,
        )

    async def test_a_pass_says_what_was_taken_for_it(self, house: House) -> None:
        house.mount([Taking("budget", passes(details={"reservation_id": "r1"}))])
        await house.guarding("budget")
        decided = await evaluated(house)
        assert (decided.passed, decided.answer.gate, decided.answer.reason_code) == (True, None, "passed")
        assert decided.answer.details == {"budget": {"reservation_id": "r1"}}
        (payload,) = await house.payloads()
        assert (payload["result"], payload["details"]) == ("pass", decided.answer.details)

    async def test_causes_are_those_that_the_evaluation_names(self, house: House) -> None:
        told = asked(
            run_id="r9",
            step_id="s9",
            thread_id="t9",
            parent_event_id=PARENT.upper(),
            causality=Causality("trace-9", "span-9"),
        )
        await house.gates.evaluate(context(), told)
        (event,) = await house.decisions()
        assert (event.run_id, event.step_id, event.thread_id) == ("r9", "s9", "t9")
        assert event.parent_event_id == PARENT
        assert event.causality == Causality("trace-9", "span-9")

    async def test_the_subject_is_the_caller_where_none_is_told(self, house: House) -> None:
        assert (await evaluated(house)).answer.subject == "ada"

    async def test_nobody_is_answered_before_the_event_is_written(self, house: House) -> None:
        await evaluated(house)
        held = house.home.faults.hold_next_write()
        task = asyncio.create_task(evaluated(house))
        await held.arrived()
        assert not task.done()
        assert len(await house.decisions()) == 1
        held.release()
        await task
        assert len(await house.decisions()) == 2

    async def test_a_rehearsal_is_recorded_as_one_and_takes_nothing(self, house: House) -> None:
        rate = Taking("rate_limit", passes())
        house.mount([rate])
        await house.guarding("rate_limit")
        decided = await evaluated(house, dry_run=True)
        assert (decided.passed, decided.answer.dry_run, rate.taken) == (True, True, 0)
        (payload,) = await house.payloads()
        assert payload["dry_run"] is True

    async def test_many_at_once_are_each_recorded_once(self, house: House) -> None:
        answers = await asyncio.gather(*(evaluated(house, subject=f"s{number}") for number in range(60)))
        payloads = await house.payloads()
        assert sorted(payload["subject"] for payload in payloads) == sorted(f"s{n}" for n in range(60))
        assert len({decided.answer.event_id for decided in answers}) == 60


class TestWhatGuards:
    async def test_an_action_that_no_rule_names_meets_the_base_gates_alone(self, house: House) -> None:
        firearms, lock = Saying("firearms", passes()), Saying("strategy_lock", refuses())
        house.mount([lock, firearms])
        await house.guarding("strategy_lock", action="book")
        assert (await evaluated(house)).passed
        assert (len(firearms.asked), len(lock.asked)) == (1, 0)

    async def test_it_is_refused_where_the_configuration_says_so(self, house: House) -> None:
        firearms = Saying("firearms", passes())
        house.mount([firearms])
        config = GateConfig(tenant_id="t_one", surface_id="chat", otherwise="block")
        await house.configs.put(context(), config)
        answer = (await evaluated(house)).answer
        assert (answer.gate, answer.reason_code) == ("config", "no_rule")
        await house.switches.put(context(), engaged=True)
        assert (await evaluated(house)).answer.gate == "kill_switch"

    async def test_the_base_gates_come_first_whatever_a_rule_says(self, house: House) -> None:
        order: list[str] = []

        class Noting(Saying):
            async def judge(self, ask: Ask) -> Verdict:
                order.append(self.name)
                return await super().judge(ask)

        house.mount([Noting(name, passes()) for name in ("budget", "firearms", "strategy_lock")])
        await house.guarding("strategy_lock", "budget", "firearms", "kill_switch")
        decided = await house.gates.evaluate(context(), asked(), explain=True)
        assert order == ["firearms", "strategy_lock", "budget"]
        assert decided.answer.gates is not None
        assert [one.gate for one in decided.answer.gates] == ["kill_switch", *order]

    async def test_a_rule_that_forgets_firearms_disarms_nothing(self, house: House) -> None:
        house.mount([Saying("firearms", refuses("unlicensed")), Saying("strategy_lock", passes())])
        await house.guarding("strategy_lock")
        answer = (await evaluated(house)).answer
        assert (answer.gate, answer.reason_code) == ("firearms", "unlicensed")

    async def test_a_gate_that_is_not_mounted_any_more_refuses(self, house: House) -> None:
        house.mount([Saying("temperature", passes())])
        await house.guarding("temperature")
        house.mount([])
        answer = (await evaluated(house)).answer
        assert (answer.gate, answer.reason_code, answer.gate_status) == (
            "temperature",
            "gate_not_mounted",
            "error",
        )
        (payload,) = await house.payloads()
        assert payload["gate_status"] == "error"

    async def test_a_gate_that_raises_refuses_and_that_is_recorded(self, house: House) -> None:
        class Broken(Saying):
            async def judge(self, _: Ask) -> Verdict:
                raise ZeroDivisionError

        house.mount([Broken("temperature", passes())])
        await house.guarding("temperature")
        assert not (await evaluated(house)).passed
        (payload,) = await house.payloads()
        assert (payload["gate"], payload["reason_code"], payload["gate_status"]) == (
            "temperature",
            "gate_error",
            "error",
        )

    async def test_a_tenants_own_configuration_holds_over_the_systems(self, house: House) -> None:
        house.mount([Saying("temperature", refuses("above_ceiling")), Saying("kpi_corridor", refuses())])
        admin = context(tenant_id="t_system", roles=("admin",), user_id="sam")
        rule = GateRule(action="*", gates=("temperature",))
        await house.configs.put(admin, GateConfig(tenant_id="t_x", surface_id="chat", rules=(rule,)))
        assert (await evaluated(house)).answer.gate == "temperature"
        await house.guarding("kpi_corridor")
        assert (await evaluated(house)).answer.gate == "kpi_corridor"
        elsewhere = await house.gates.evaluate(context(tenant_id="t_two"), asked())
        assert elsewhere.answer.gate == "temperature"

    async def test_judging_reads_no_backend(self, house: House) -> None:
        await house.guarding("kill_switch")
        await evaluated(house)
        house.home.driver.calls.clear()
        await evaluated(house)
        assert house.home.driver.calls == ["write"]


class TestUnwritable:
    async def test_without_a_route_of_the_spine_nothing_is_decided(self, house: House) -> None:
        house.home.missing.add("event_spine")
        with pytest.raises(MissingRoute) as refused:
            await evaluated(house)
        assert refused.value.decision == "block"
        house.home.missing.clear()
        assert await house.decisions() == []

    async def test_a_spine_that_refuses_is_a_block_and_leaves_nothing(self, house: House) -> None:
        await evaluated(house)
        house.home.faults.script(Fault.FORBIDDEN)
        with pytest.raises(BackendRefused) as refused:
            await evaluated(house)
        assert refused.value.decision == "block"
        assert len(await house.decisions()) == 1

    async def test_a_spine_that_cannot_be_reached_is_a_block_and_leaves_nothing(self, house: House) -> None:
        await evaluated(house)
        error = await refusal_of(house, write_refused=1.0)
        assert isinstance(error, Unavailable)
        assert error.decision == "block"
        assert len(await house.decisions()) == 1

    async def test_a_spine_that_does_not_answer_is_a_block(self, house: House) -> None:
        await evaluated(house)
        error = await refusal_of(house, write_lost_applied=1.0, read_refused=1.0)
        assert isinstance(error, OutcomeUnknown)
        assert error.decision == "block"

    async def test_a_spine_for_which_too_much_waits_is_unavailable_and_a_block(self, house: House) -> None:
        await evaluated(house)
        held = house.home.faults.hold_next_write()
        event = SystemEvent(event_type="rl", payload={})
        first = asyncio.create_task(house.spine.append_system(context(), [event]))
        await held.arrived()
        waiting = [
            asyncio.create_task(house.spine.append_system(context(), [event])) for _ in range(WAITING_MAX + 1)
        ]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)  # The one too many is turned away.
        with pytest.raises(Unavailable) as refused:
            await evaluated(house)
        assert refused.value.decision == "block"
        held.release()
        await asyncio.gather(first, *waiting, return_exceptions=True)
        assert len(await house.decisions()) == 1

    async def test_a_view_that_may_be_out_of_date_decides_nothing(self, house: House) -> None:
        house.home.clock.advance(3.1)
        with pytest.raises(Unavailable) as refused:
            await evaluated(house)
        assert refused.value.decision == "block"
        await house.directory.refresh()
        assert await house.decisions() == []

    @pytest.mark.parametrize("fault", [Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE, Fault.REFUSED])
    async def test_whatever_happens_to_one_reply_the_decision_is_recorded_once(
        self, house: House, fault: Fault
    ) -> None:
        await evaluated(house)
        house.home.faults.script(fault)
        decided = await evaluated(house)
        await house.home.faults.late_writes_delivered()
        assert house.home.faults.seen[fault] == 1
        events = await house.decisions()
        assert [event.position for event in events] == [1, 2]
        assert events[1].event_id == decided.answer.event_id

    async def test_by_chance_no_pass_is_told_that_is_not_on_the_spine(self, house: House) -> None:
        await evaluated(house)
        house.home.faults.plan = FaultPlan(
            write_refused=0.1, write_lost_applied=0.1, write_lost_unapplied=0.1, write_late=0.1
        )
        told = await asyncio.gather(
            *(evaluated(house, subject=f"s{number}") for number in range(40)), return_exceptions=True
        )
        house.home.faults.plan = NO_FAULTS
        await house.home.faults.late_writes_delivered()
        recorded = [event.event_id for event in await house.decisions()]
        assert len(recorded) == len(set(recorded))
        answered = [decided.answer.event_id for decided in told if isinstance(decided, Decided)]
        assert set(answered) <= set(recorded)
        assert len(set(answered)) == len(answered) > 0
        for error in told:
            assert isinstance(error, Decided) or getattr(error, "decision", None) == "block"

    async def test_what_was_taken_for_a_decision_that_was_not_recorded_is_given_back(
        self, house: House
    ) -> None:
        budget = Taking("budget", passes())
        house.mount([budget])
        await house.guarding("budget")
        await evaluated(house)
        assert len(budget.held) == 1
        house.home.faults.script(Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await evaluated(house)
        assert (budget.taken, len(budget.held)) == (2, 1)

    async def test_under_a_key_it_is_kept_since_another_attempt_may_have_been_recorded(
        self, house: House
    ) -> None:
        budget = Taking("budget", passes())
        house.mount([budget])
        await house.guarding("budget")
        await evaluated(house)
        budget.held.clear()
        house.home.faults.script(Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await evaluated(house, keyed("k1"))
        assert len(budget.held) == 1
        assert (await evaluated(house, keyed("k1"))).passed
        assert len(budget.held) == 1, "the same is held under the same name"


class TestRepeats:
    async def test_a_repeat_gets_the_first_decision_whatever_has_changed(self, house: House) -> None:
        first = await evaluated(house, keyed("k1"))
        await house.switches.put(context(), engaged=True)
        again = await evaluated(house, keyed("k1"))
        assert (first.replayed, again.replayed) == (False, True)
        assert again.answer == first.answer
        assert len(await house.decisions()) == 1
        assert not (await evaluated(house, keyed("k2"))).passed

    async def test_a_repeat_takes_nothing_again(self, house: House) -> None:
        budget = Taking("budget", passes(details={"reservation_id": "r1"}))
        house.mount([budget])
        await house.guarding("budget")
        first = await evaluated(house, keyed("k1"))
        again = await evaluated(house, keyed("k1"))
        assert again.answer == first.answer
        assert budget.taken == 1

    async def test_another_body_under_the_key_is_refused(self, house: House) -> None:
        await evaluated(house, keyed("k1", b"{}"))
        with pytest.raises(IdempotencyKeyReused):
            await evaluated(house, keyed("k1", b"{1}"))
        budget = Taking("budget", passes())
        house.mount([budget])
        await house.guarding("budget")
        with pytest.raises(IdempotencyKeyReused):
            await evaluated(house, keyed("k1", b"{1}"))
        assert (len(await house.decisions()), budget.taken) == (1, 0)

    async def test_a_repeat_is_known_after_a_restart(self, house: House) -> None:
        first = await evaluated(house, keyed("k1"))
        await house.close()
        await house.home.reopen()
        reopened = House(house.home)
        await reopened.open()
        again = await evaluated(reopened, keyed("k1"))
        assert (again.answer, again.replayed) == (first.answer, True)
        await reopened.close()

    async def test_a_first_decision_that_was_redacted_is_not_decided_again(self, house: House) -> None:
        await evaluated(house, keyed("k1"))
        place = await house.home.place("event_spine", context())
        log = Log(
            place.documents,
            kind=place.kind,
            tenant_id=place.tenant_id,
            env=place.env,
            stream=SPINE_STREAM,
            ids=house.home.ids,
            clock=house.home.clock,
            shard_partition=await place.partition(SPINE_STREAM),
        )
        await log.redact(1)
        await log.close()
        with pytest.raises(Conflict) as refused:
            await evaluated(house, keyed("k1"))
        assert refused.value.field == "Idempotency-Key"

    async def test_an_explanation_is_repeated_too(self, house: House) -> None:
        first = await house.gates.evaluate(context(), asked(), explain=True, request=keyed("k1"))
        again = await house.gates.evaluate(context(), asked(), explain=True, request=keyed("k1"))
        assert first.answer.gates is not None
        assert again.answer == first.answer

    async def test_of_two_at_once_both_get_one_decision_and_what_it_took_stays(self, house: House) -> None:
        """Another process has the same request; whichever is recorded first is the answer of both."""
        both = asyncio.Barrier(2)

        class Turning(Saying):
            """Passes one of the two and refuses the other, once both are being asked."""

            async def judge(self, _: Ask) -> Verdict:
                number = await both.wait()
                return passes() if number == 0 else refuses("above_ceiling")

        other = House(house.home)
        await other.directory.refresh()
        held: set[str] = set()
        for one in (house, other):
            budget = Taking("budget", passes())
            budget.held = held
            one.mount([budget, Turning("temperature", passes())])
        await house.guarding("budget", "temperature")
        await other.directory.refresh()
        for number in range(6):
            held.clear()
            key = keyed(f"k{number}")
            tasks = [asyncio.create_task(evaluated(one, key)) for one in (house, other)]
            while (await asyncio.wait(tasks, timeout=0.02))[1]:
                house.home.clock.advance(0.1)  # Processes on one stream take turns, which end with time.
            found = [task.result() for task in tasks]
            await house.directory.refresh()
            await other.directory.refresh()
            assert found[0].answer == found[1].answer
            assert [one.replayed for one in found].count(True) == 1
            assert len(held) == (1 if found[0].passed else 0)
        assert len(await house.decisions()) == 6
        await other.close()


class TestCancelled:
    async def test_a_caller_that_goes_away_leaves_a_whole_decision(self, house: House) -> None:
        budget = Taking("budget", passes())
        house.mount([budget])
        await house.guarding("budget")
        await evaluated(house)
        held = house.home.faults.hold_next_write()
        task = asyncio.create_task(evaluated(house, subject="left"))
        await held.arrived()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.release()
        await house.gates.close()
        payloads = await house.payloads()
        assert [payload["subject"] for payload in payloads] == ["ada", "left"]
        assert (budget.taken, len(budget.held)) == (2, 2)

    async def test_one_that_goes_away_while_a_gate_is_asked_leaves_a_recorded_decision(
        self, house: House
    ) -> None:
        asking, go_on = asyncio.Event(), asyncio.Event()

        class Slow(Taking):
            async def judge(self, ask: Ask) -> Verdict:
                asking.set()
                await go_on.wait()
                return await super().judge(ask)

        budget = Slow("budget", passes())
        house.mount([budget, Saying("temperature", refuses("above_ceiling"))])
        await house.guarding("budget", "temperature")
        task = asyncio.create_task(evaluated(house))
        await asking.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await house.gates.close()
        (payload,) = await house.payloads()
        assert payload["gate"] == "temperature"
        assert (budget.taken, budget.held) == (1, set())


class TestWho:
    async def test_each_permission_is_asked_for(self, house: House) -> None:
        mute = context(permissions=EVERYTHING - {"gates.evaluate"})
        with pytest.raises(Forbidden):
            await house.gates.evaluate(mute, asked())
        curious = context(permissions=EVERYTHING - {"gates.explain"})
        with pytest.raises(Forbidden):
            await house.gates.evaluate(curious, asked(), explain=True)
        assert (await house.gates.evaluate(curious, asked())).answer.gates is None
        assert len(await house.decisions()) == 1

    async def test_an_explanation_shows_each_gates_inputs_and_verdict(self, house: House) -> None:
        house.mount([Saying("temperature", passes(inputs={"reading": 0.5}))])
        await house.guarding("temperature")
        decided = await house.gates.evaluate(context(), asked(), explain=True)
        assert decided.answer.gates is not None
        shown = [msgspec.to_builtins(one) for one in decided.answer.gates]
        assert shown == [
            {
                "gate": "kill_switch",
                "result": "pass",
                "reason_code": "passed",
                "inputs": {"surface_id": "chat", "action": ACTION, "looked_at": []},
            },
            {
                "gate": "temperature",
                "result": "pass",
                "reason_code": "passed",
                "inputs": {"reading": 0.5},
            },
        ]

    async def test_data_is_decided_on_in_its_own_tenant_alone(self, house: House) -> None:
        acting = context(tenant_id="t_system", roles=("admin",), acting_on="t_one")
        with pytest.raises(ContextMismatch):
            await house.gates.evaluate(acting, asked())
        with pytest.raises(ContextMismatch):
            await house.gates.evaluate(context(), asked(tenant_id="t_two"))

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"action": ""}, "action"),
            ({"action": "refund*"}, "action"),
            ({"action": "a b"}, "action"),
            ({"action": "a" * 129}, "action"),
            ({"subject": ""}, "subject"),
            ({"subject": "s" * 257}, "subject"),
            ({"run_id": "a/b"}, "run_id"),
            ({"parent_event_id": "nonesuch"}, "parent_event_id"),
            ({"causality": Causality("")}, "causality.trace_id"),
            ({"details": {"x": float("nan")}}, "details"),
            ({"cost": Cost(amount="-1", currency="USD")}, "cost.amount"),
            ({"cost": Cost(amount="NaN", currency="USD")}, "cost.amount"),
            ({"cost": Cost(amount="1e5", currency="USD")}, "cost.amount"),
            ({"cost": Cost(amount="1" * 29, currency="USD")}, "cost.amount"),
            ({"cost": Cost(amount="1.", currency="USD")}, "cost.amount"),
            ({"cost": Cost(amount="1", currency="usd")}, "cost.currency"),
            ({"cost": Cost(amount="1", currency="USD", provider="a b")}, "cost.provider"),
        ],
        ids=repr,
    )
    async def test_what_breaks_a_rule_is_refused_by_name_and_nothing_is_recorded(
        self, house: House, fields: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(Invalid) as refused:
            await house.gates.evaluate(context(), EvaluationInput(**{"action": ACTION, **fields}))
        assert refused.value.field == field
        assert await house.decisions() == []

    async def test_details_have_a_limit(self, house: House) -> None:
        await evaluated(house, details={"x": "y" * (8 * 1024 - 8)})
        with pytest.raises(TooLarge) as refused:
            await evaluated(house, details={"x": "y" * (8 * 1024 - 7)})
        assert refused.value.field == "details"


class TestSwitchedOffMeanwhile:
    async def test_the_switch_is_looked_at_again_when_all_have_passed(self, house: House) -> None:
        class Incident(Saying):
            """While it is asked somebody switches the action off."""

            async def judge(self, ask: Ask) -> Verdict:
                await house.switches.put(context(), switches=(Switch(action=ACTION),))
                return await super().judge(ask)

        budget = Taking("budget", passes())
        house.mount([budget, Incident("temperature", passes())])
        await house.guarding("budget", "temperature")
        decided = await evaluated(house)
        assert decided.answer.reason_code == "kill_switch_engaged"
        (payload,) = await house.payloads()
        assert (payload["result"], payload["gate"]) == ("block", "kill_switch")
        assert (budget.taken, budget.held) == (1, set())
