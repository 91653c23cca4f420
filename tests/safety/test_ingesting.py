"""Analytics events before the chain: kept whatever it says, with what it said, by one decision a request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engines.control.records import GateConfig, Switch
from engines.core.idempotency import Request, identify
from engines.errors import EnginesError, IdempotencyKeyReused, MissingRoute, OutcomeUnknown, Unavailable
from engines.safety.asks import Ask, Verdict
from engines.safety.gates import BudgetGate
from engines.safety.ingesting import INGEST, IngestGate
from engines.safety.joined import StoredBudgets
from engines.scope import RequestContext
from engines.stores.analytics import Analytics, AnalyticsEvent, Ingested, NewAnalyticsEvent
from engines.stores.announcements import Announcements
from engines.stores.attribution import ContractInForce
from engines.stores.budget import Budget
from engines.testing.faults import Fault, FaultPlan
from tests.safety.house import House, Saying, Taking, asked, passes, refuses
from tests.stores.home import context

EVENTS = [NewAnalyticsEvent(event_type="page_view", payload={"n": number}) for number in range(3)]
PAGE = context(roles=("beacon",), permissions=frozenset({"analytics.beacon"}))


class NoContracts:
    async def contract_in_force(self, _: RequestContext, __: str) -> ContractInForce | None:
        return None


class Hanging(Saying):
    """A gate that never answers."""

    async def judge(self, _: Ask) -> Verdict:
        await asyncio.Event().wait()
        raise AssertionError("nobody lets go of it")


def over(house: House) -> Analytics:
    """Analytics before the gates that the house has mounted by now."""
    return Analytics(house.home, house.spine, NoContracts(), house.home.clock, gate=IngestGate(house.gates))


def request(key: str = "k", body: bytes = b"{}") -> Request:
    return identify("t_one", "prod", "ada", "POST", "/analytics/events", key, body=body)


async def kept(analytics: Analytics) -> list[AnalyticsEvent]:
    return list((await analytics.list(context())).items)


def said(event: AnalyticsEvent) -> tuple[str | None, ...]:
    return event.gate_status, event.gate, event.gate_reason_code, event.gate_error


async def test_where_nothing_guards_it_no_backend_is_asked_for_it_and_nothing_recorded(house: House) -> None:
    house.mount([Saying("firearms", refuses("unlicensed")), Saying("temperature", refuses())])
    await house.guarding("temperature", action="streams.*")
    bare = Analytics(house.home, house.spine, NoContracts(), house.home.clock)
    gated = over(house)
    await gated.ingest(context(), EVENTS)
    calls: list[list[Any]] = []
    for one in (bare, gated):
        house.home.driver.calls.clear()
        ingested = await one.ingest(context(), EVENTS)
        assert [event.gate_status for event in ingested.events] == [None] * 3
        calls.append(list(house.home.driver.calls))
    assert calls[0] == calls[1]
    assert await house.decisions() == []
    assert {said(event) for event in await kept(gated)} == {(None,) * 4}


async def test_a_pass_is_kept_with_each_event_and_recorded_once(house: House) -> None:
    await house.guarding("kill_switch", action="analytics.*")
    analytics = over(house)
    assert (await analytics.ingest(context(), EVENTS)).accepted == 3
    assert {said(event) for event in await kept(analytics)} == {("pass", None, None, None)}
    (payload,) = await house.payloads()
    assert (payload["action"], payload["result"], payload["asked"]) == (INGEST, "pass", {"events": 3})
    assert payload["dry_run"] is False


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (Saying("temperature", refuses("above_ceiling")), ("fail", "temperature", "above_ceiling", None)),
        (
            Saying("temperature", refuses("gate_error", gate_status="error", details={"error": "Corrupt"})),
            ("error", "temperature", "gate_error", "Corrupt"),
        ),
        (Hanging("temperature", passes()), ("error", "temperature", "gate_timeout", "gate_timeout")),
    ],
)
async def test_what_is_refused_is_kept_with_the_gate_and_its_reason(
    house: House, gate: Saying, expected: tuple[str | None, ...]
) -> None:
    house.mount([gate], timeout_s=0.05)
    await house.guarding("temperature", action=INGEST)
    analytics = over(house)
    ingested = await analytics.ingest(context(), EVENTS)
    assert [(event.status, event.gate_status) for event in ingested.events] == [(201, expected[0])] * 3
    assert {said(event) for event in await kept(analytics)} == {expected}
    (payload,) = await house.payloads()
    assert (payload["result"], payload["reason_code"]) == ("block", expected[2])


@pytest.mark.parametrize(
    ("raised", "reason_code", "error"),
    [
        (RuntimeError("secret words"), "gate_error", "RuntimeError"),
        (Unavailable("secret words"), "gate_error", "Unavailable"),
        (MissingRoute("none", resource_kind="kpi_store"), "missing_route", "missing_route"),
    ],
)
async def test_a_gate_that_raises_is_an_error_of_its_kind(
    house: House, raised: Exception, reason_code: str, error: str
) -> None:
    class Broken(Saying):
        async def judge(self, _: Ask) -> Verdict:
            raise raised

    house.mount([Broken("kpi_corridor", passes())])
    await house.guarding("kpi_corridor", action=INGEST)
    analytics = over(house)
    assert (await analytics.ingest(context(), EVENTS)).accepted == 3
    assert {said(event) for event in await kept(analytics)} == {("error", "kpi_corridor", reason_code, error)}
    assert "secret words" not in str([event.payload for event in await kept(analytics)])


async def test_a_switch_and_a_surface_that_refuses_the_unnamed_keep_no_event_out(house: House) -> None:
    analytics = over(house)
    await house.switches.put(context(), switches=(Switch(action="analytics.*"),))
    await analytics.ingest(context(), EVENTS)
    await house.switches.put(context())
    await house.configs.put(context(), GateConfig(tenant_id="t_one", surface_id="chat", otherwise="block"))
    await analytics.ingest(context(), EVENTS)
    expected = ("fail", "kill_switch", "kill_switch_engaged", None), ("fail", "config", "no_rule", None)
    assert [said(event) for event in await kept(analytics)] == [expected[0]] * 3 + [expected[1]] * 3


async def test_a_page_needs_no_permission_to_be_judged(house: House) -> None:
    rate = Taking("rate_limit", passes())
    house.mount([rate])
    await house.guarding("rate_limit", action=INGEST)
    analytics = over(house)
    ingested = await analytics.ingest_beacon(PAGE, EVENTS)
    assert [event.gate_status for event in ingested.events] == ["pass"] * 3
    assert (rate.taken, len(await house.decisions())) == (1, 1)


async def test_nothing_is_held_of_a_budget(house: House) -> None:
    home = house.home
    budget = Budget(home, Announcements(home, house.spine, home.ids, home.clock), home.ids, home.clock)
    house.mount([BudgetGate(StoredBudgets(budget, home.clock))])
    await house.guarding("budget", action=INGEST)
    analytics = over(house)
    home.missing.add("budget_store")  # Were it asked, that would be an error.
    await analytics.ingest(context(), EVENTS)
    assert {said(event) for event in await kept(analytics)} == {("fail", "budget", "cost_not_told", None)}
    await budget.close()


class TestRepeats:
    async def test_a_repeat_is_neither_judged_nor_recorded_again(self, house: House) -> None:
        rate = Taking("rate_limit", passes())
        house.mount([rate])
        await house.guarding("rate_limit", action=INGEST)
        analytics = over(house)
        first = await analytics.ingest(context(), EVENTS, request=request())
        rate.verdict = refuses("rate_limited")
        again = await analytics.ingest(context(), EVENTS, request=request())
        assert (again.events, again.replayed) == (first.events, True)
        assert (rate.taken, len(await house.decisions())) == (1, 1)

    async def test_an_attempt_that_broke_off_behind_the_decision_gets_the_same_one(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rate = Taking("rate_limit", refuses("rate_limited"))
        house.mount([rate])
        await house.guarding("rate_limit", action=INGEST)
        analytics = over(house)

        async def broken(*_: Any) -> Any:
            raise Unavailable("gone")

        with monkeypatch.context() as patched:
            patched.setattr(analytics, "_write_down", broken)
            with pytest.raises(Unavailable):
                await analytics.ingest(context(), EVENTS, request=request())
        rate.verdict = passes()
        ingested = await analytics.ingest(context(), EVENTS, request=request())
        assert [event.gate_status for event in ingested.events] == ["fail"] * 3
        assert (rate.taken, len(await house.decisions())) == (1, 1)
        with pytest.raises(IdempotencyKeyReused):
            await analytics.ingest(context(), EVENTS[:1], request=request(body=b"[]"))

    async def test_the_same_key_elsewhere_is_another_decision(self, house: House) -> None:
        await house.guarding("kill_switch", action=INGEST)
        analytics = over(house)
        await analytics.ingest(context(), EVENTS, request=request("one"))
        await analytics.ingest(context(), EVENTS, request=request("other"))
        await house.gates.evaluate(context(), asked(INGEST), request=request("one"))
        assert len(await house.decisions()) == 3


class TestFaults:
    async def test_a_decision_that_cannot_be_recorded_is_an_error_and_loses_nothing(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await house.guarding("kill_switch", action=INGEST)
        analytics = over(house)
        for error in (Unavailable("gone"), OutcomeUnknown("lost")):

            async def broken(*_: Any, error: EnginesError = error, **__: Any) -> Any:
                raise error

            with monkeypatch.context() as patched:
                patched.setattr(house.spine, "append_system", broken)
                ingested = await analytics.ingest(context(), EVENTS)
            assert [event.gate_status for event in ingested.events] == ["error"] * 3
        found = [said(event) for event in await kept(analytics)]
        assert (
            found
            == [("error", None, None, "Unavailable")] * 3 + [("error", None, None, "OutcomeUnknown")] * 3
        )
        assert await house.decisions() == []

    async def test_a_decision_that_is_recorded_too_late_is_an_error_and_stands_all_the_same(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await house.guarding("kill_switch", action=INGEST)
        analytics = over(house)
        append, let_go = house.spine.append_system, asyncio.Event()

        async def slow(*given: Any, **named: Any) -> Any:
            await let_go.wait()
            return await append(*given, **named)

        monkeypatch.setattr("engines.stores.analytics.GATES_TIMEOUT_S", 0.02)
        monkeypatch.setattr(house.spine, "append_system", slow)
        first = await analytics.ingest(context(), EVENTS, request=request())
        assert [(event.status, event.gate_status) for event in first.events] == [(201, "error")] * 3
        let_go.set()
        await house.gates.close()
        assert len(await house.decisions()) == 1
        assert (await analytics.ingest(context(), EVENTS, request=request())).events == first.events
        assert {said(event) for event in await kept(analytics)} == {("error", None, None, "TimeoutError")}
        assert len(await house.decisions()) == 1

    async def test_a_process_that_may_be_out_of_date_does_not_say_that_nothing_guards_it(
        self, house: House
    ) -> None:
        analytics = over(house)
        house.home.clock.advance(3.1)
        await analytics.ingest(context(), EVENTS)
        assert {said(event) for event in await kept(analytics)} == {("error", None, None, "Unavailable")}

    @pytest.mark.parametrize("fault", [Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE, Fault.REFUSED])
    @pytest.mark.parametrize("write", range(3))
    async def test_a_write_whose_reply_is_lost_decides_once(
        self, house: House, fault: Fault, write: int
    ) -> None:
        await house.guarding("kill_switch", action=INGEST)
        analytics = over(house)
        await analytics.ingest(context(), EVENTS[:1])
        house.home.faults.script(*[Fault.NONE] * write, fault)
        ingested = await analytics.ingest(context(), EVENTS, request=request())
        await house.home.faults.late_writes_delivered()
        assert [(event.status, event.gate_status) for event in ingested.events] == [(201, "pass")] * 3
        assert (await analytics.ingest(context(), EVENTS, request=request())).events == ingested.events
        assert (len(await kept(analytics)), len(await house.decisions())) == (4, 2)

    async def test_under_many_faults_no_event_is_lost_and_none_differs_from_its_decision(
        self, house: House
    ) -> None:
        rate = Taking("rate_limit", passes())
        house.mount([rate])
        await house.guarding("rate_limit", action=INGEST)
        analytics = over(house)
        await analytics.ingest(context(), EVENTS)
        house.home.faults.plan = FaultPlan(
            write_refused=0.1,
            write_lost_unapplied=0.05,
            write_lost_applied=0.15,
            write_late=0.1,
            read_refused=0.05,
            late_s_max=0.005,
            pause_s_max=0.001,
        )

        async def send(number: int) -> Ingested:
            body = str(number).encode()
            while True:
                rate.verdict = passes() if number % 2 else refuses("rate_limited")
                try:
                    ingested = await analytics.ingest(context(), EVENTS, request=request(str(number), body))
                except (Unavailable, OutcomeUnknown):
                    continue
                if ingested.refused == 0:
                    return ingested

        told = await asyncio.gather(*map(send, range(12)))
        await house.home.faults.late_writes_delivered()
        house.home.faults.plan = FaultPlan()
        statuses = [event.gate_status for ingested in told for event in ingested.events]
        stored = [event.gate_status for event in await kept(analytics)]
        assert sorted(map(str, stored)) == sorted(map(str, [*statuses, "pass", "pass", "pass"]))
        assert len(await house.decisions()) <= 1 + 12
