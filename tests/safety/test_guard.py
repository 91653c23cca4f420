"""The guard of our own calls: what it asks about, what it lets through, what it raises."""

from __future__ import annotations

import pytest

from engines.control.records import GateConfig, Switch
from engines.errors import GateDenied, MissingRoute, Unavailable
from engines.safety.asks import Ask, Verdict
from tests.safety.house import House, Saying, Taking, passes, refuses
from tests.stores.home import context

STREAMS = "streams.append"


async def guarded(house: House, path: str = "/streams/s/events") -> None:
    await house.gates.guard(context(), STREAMS, subject=path)


async def test_where_nothing_guards_the_action_nothing_is_evaluated_and_nothing_recorded(
    house: House,
) -> None:
    gate = Saying("firearms", refuses("unlicensed"))
    house.mount([gate])
    await house.guarding("firearms", action="refund.*")
    house.home.driver.calls.clear()
    await guarded(house)
    await guarded(house)
    assert (gate.asked, await house.decisions()) == ([], [])


async def test_where_a_rule_names_it_a_pass_is_recorded(house: House) -> None:
    await house.guarding("kill_switch", action="streams.*")
    await guarded(house, "/streams/" + "s" * 500)
    (payload,) = await house.payloads()
    assert (payload["action"], payload["result"]) == (STREAMS, "pass")
    assert payload["subject"].startswith("/streams/sss")
    assert len(payload["subject"]) == 256


async def test_a_refusal_is_told_with_its_gate_and_reason(house: House) -> None:
    house.mount([Saying("rate_limit", refuses("rate_limited", details={"retry_after_s": 2.5}))])
    await house.guarding("rate_limit", action=STREAMS)
    with pytest.raises(GateDenied) as refused:
        await guarded(house)
    assert (refused.value.gate, refused.value.reason_code) == ("rate_limit", "rate_limited")
    assert refused.value.retry_after_s == 2.5
    (payload,) = await house.payloads()
    assert payload["result"] == "block"


async def test_a_switch_covers_it_though_no_rule_names_it(house: House) -> None:
    await house.switches.put(context(), switches=(Switch(action="streams.*"),))
    with pytest.raises(GateDenied) as refused:
        await guarded(house)
    assert (refused.value.gate, refused.value.reason_code) == ("kill_switch", "kill_switch_engaged")
    assert len(await house.decisions()) == 1


async def test_a_surface_that_refuses_what_no_rule_names_refuses_it(house: House) -> None:
    await house.configs.put(context(), GateConfig(tenant_id="t_one", surface_id="chat", otherwise="block"))
    with pytest.raises(GateDenied) as refused:
        await guarded(house)
    assert (refused.value.gate, refused.value.reason_code) == ("config", "no_rule")


async def test_a_gate_whose_store_has_no_route_is_a_missing_route(house: House) -> None:
    class Unrouted(Saying):
        async def judge(self, _: Ask) -> Verdict:
            raise MissingRoute("none", resource_kind="budget_store")

    house.mount([Unrouted("budget", passes())])
    await house.guarding("budget", action=STREAMS)
    with pytest.raises(MissingRoute) as refused:
        await guarded(house)
    assert (refused.value.gate, refused.value.resource_kind) == ("budget", "budget_store")
    (payload,) = await house.payloads()
    assert (payload["result"], payload["reason_code"]) == ("block", "missing_route")


async def test_a_decision_that_cannot_be_recorded_lets_nothing_through(house: House) -> None:
    await house.guarding("kill_switch", action=STREAMS)
    house.home.missing.add("event_spine")
    with pytest.raises(MissingRoute) as refused:
        await guarded(house)
    assert refused.value.decision == "block"
    house.home.missing.clear()
    house.home.clock.advance(3.1)
    with pytest.raises(Unavailable) as stale:
        await guarded(house)
    assert stale.value.decision == "block"


async def test_each_attempt_is_judged_anew(house: House) -> None:
    rate = Taking("rate_limit", passes())
    house.mount([rate])
    await house.guarding("rate_limit", action=STREAMS)
    await guarded(house)
    await guarded(house)
    assert (rate.taken, len(await house.decisions())) == (2, 2)
