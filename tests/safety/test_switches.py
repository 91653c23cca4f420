"""Kill switches and configuration: who may set them, what they may name, and how soon everybody follows."""

from __future__ import annotations

from typing import Any

import pytest

from engines.control.gates import GateConfigs, KillSwitches
from engines.control.records import GateConfig, GateRule, Switch
from engines.control.service import Service
from engines.control.store import PARTITION, ControlStore
from engines.core.outbox import Backlog
from engines.core.records import Condition
from engines.errors import Forbidden, Invalid, NotFound, PreconditionFailed, Throttled
from engines.scope import RequestContext
from tests.safety.house import ACTION, ADMIN, Admits, House, Saying, asked, keyed, passes
from tests.stores.home import EVERYTHING, Home, context


async def reason(house: House, who: RequestContext | None = None, action: str = ACTION) -> str:
    return (await house.gates.evaluate(who or context(), asked(action))).answer.reason_code


class TestKillSwitch:
    async def test_it_holds_from_the_moment_it_is_set_until_it_is_let_go_of(self, house: House) -> None:
        assert await reason(house) == "passed"
        made = await house.switches.put(context(), engaged=True, reason="incident")
        assert await reason(house) == "kill_switch_engaged"
        found = await house.switches.get(context())
        assert (found.record, found.etag) == (made.record, made.etag)
        await house.switches.put(context())
        assert await reason(house) == "passed"

    async def test_a_tenant_switches_off_nobody_else(self, house: House) -> None:
        await house.switches.put(context(), engaged=True)
        assert await reason(house, context(tenant_id="t_two")) == "passed"
        with pytest.raises(NotFound):
            await house.switches.get(context(tenant_id="t_two"))

    async def test_the_system_switches_off_a_tenant_which_cannot_let_go_of_it(self, house: House) -> None:
        acting = context(tenant_id="t_system", roles=("owner",), acting_on="t_one")
        await house.switches.put(acting, engaged=True)
        await house.switches.put(context(), engaged=False)
        answer = (await house.gates.evaluate(context(), asked())).answer
        assert (answer.reason_code, answer.details["held_by"]) == ("kill_switch_engaged", "t_system")
        assert await reason(house, context(tenant_id="t_two")) == "passed"
        await house.switches.put(acting)
        assert await reason(house) == "passed"

    async def test_the_system_switches_off_everybody(self, house: House) -> None:
        await house.switches.put(ADMIN, switches=(Switch(action="refund.*"),))
        for tenant_id in ("t_one", "t_two", "t_system"):
            assert await reason(house, context(tenant_id=tenant_id)) == "kill_switch_engaged"
            assert await reason(house, context(tenant_id=tenant_id), "book") == "passed"

    async def test_a_surface_is_named_by_any_of_its_spellings(self, house: House) -> None:
        made = await house.switches.put(context(), switches=(Switch(surface_id="CANVAS²"),))
        assert made.record.switches == (Switch(surface_id="canvas"),)
        assert await reason(house) == "passed"
        assert await reason(house, context(surface_id="canvas")) == "kill_switch_engaged"

    @pytest.mark.parametrize(
        ("switch", "field"),
        [
            (Switch(surface_id="nonesuch"), "switches[0].surface_id"),
            (Switch(surface_id="!"), "switches[0].surface_id"),
            (Switch(reason="why"), "switches[0]"),
        ],
    )
    async def test_a_switch_names_what_there_is(self, house: House, switch: Switch, field: str) -> None:
        with pytest.raises(Invalid) as refused:
            await house.switches.put(context(), switches=(switch,))
        assert refused.value.field == field
        with pytest.raises(NotFound):
            await house.switches.get(context())

    async def test_who_may(self, house: House) -> None:
        for who in (
            context(permissions=EVERYTHING - {"gates.write"}),
            context(tenant_id="t_system", roles=("member",)),
        ):
            with pytest.raises(Forbidden):
                await house.switches.put(who, engaged=True)
            with pytest.raises(Forbidden):
                await house.configs.put(who, GateConfig(tenant_id="t_one", surface_id="chat"))
        mute = context(permissions=EVERYTHING - {"gates.read"})
        with pytest.raises(Forbidden):
            await house.switches.get(mute)
        with pytest.raises(Forbidden):
            await house.configs.get(mute, "chat")

    async def test_a_condition_and_a_repeat_are_kept(self, house: House) -> None:
        made = await house.switches.put(context(), engaged=True, request=keyed("k1"))
        await house.switches.put(context(), condition=Condition(versions=(made.etag.strip('"'),)))
        with pytest.raises(PreconditionFailed):
            await house.switches.put(
                context(), engaged=True, condition=Condition(versions=(made.etag.strip('"'),))
            )
        again = await house.switches.put(context(), engaged=True, request=keyed("k1"))
        assert (again.replayed, again.version) == (True, 1)
        assert await reason(house) == "passed"

    async def test_it_is_set_though_the_audit_of_earlier_changes_waits(self, house: House) -> None:
        full = Backlog(house.home.documents, PARTITION, house.home.clock, waiting_max=0)
        service = Service(ControlStore(house.home.documents, full), Admits())
        with pytest.raises(Throttled):
            await GateConfigs(service, ()).put(context(), GateConfig(tenant_id="t_one", surface_id="chat"))
        await KillSwitches(service).put(context(), engaged=True)
        await house.directory.refresh()
        assert await reason(house) == "kill_switch_engaged"

    async def test_a_change_is_told_to_the_tenant_it_is_about_and_the_one_who_made_it(
        self, house: House
    ) -> None:
        await house.switches.put(context(), engaged=True)
        acting = context(tenant_id="t_system", roles=("owner",), acting_on="t_one")
        await house.switches.put(acting, engaged=True)
        waiting = await house.home.driver.scan(
            "control_plane_store.t_system.global.0", above="o!", below='o"', limit=100, reverse=False
        )
        told = [doc.key.split("!")[1] for doc in waiting.docs if "kill_switches" in doc.key]
        assert sorted(told) == ["t_one", "t_one", "t_system"]


class TestConfig:
    async def test_a_surface_is_found_by_its_spellings_and_read_back(self, house: House) -> None:
        rule = GateRule(action=ACTION, gates=("kill_switch",))
        config = GateConfig(tenant_id="t_x", surface_id="CHAT²", rules=(rule,), otherwise="block")
        made = await house.configs.put(context(), config)
        assert made.record == GateConfig(
            tenant_id="t_one", surface_id="chat", rules=(rule,), otherwise="block"
        )
        assert (await house.configs.get(context(), "chat")).record == made.record
        for who in (context(tenant_id="t_two"), ADMIN):
            with pytest.raises(NotFound):
                await house.configs.get(who, "chat")
        with pytest.raises(NotFound):
            await house.configs.put(context(), GateConfig(tenant_id="t_one", surface_id="nonesuch"))

    @pytest.mark.parametrize(
        ("rules", "field"),
        [
            ([("a", ("temperature",))], "rules[0].gates[0]"),
            ([("a", ("kill_switch",)), ("b", ("kill_switch", "budget"))], "rules[1].gates[1]"),
            ([("a", ("kill_switch", "kill_switch"))], "rules[0].gates"),
            ([("a", ()), ("b", ()), ("a", ())], "rules[2].action"),
        ],
    )
    async def test_what_a_rule_names_is_there_once(self, house: House, rules: Any, field: str) -> None:
        config = GateConfig(
            tenant_id="t_one",
            surface_id="chat",
            rules=tuple(GateRule(action=action, gates=gates) for action, gates in rules),
        )
        with pytest.raises(Invalid) as refused:
            await house.configs.put(context(), config)
        assert refused.value.field == field

    async def test_a_gate_may_be_named_once_its_store_is_mounted(self, house: House) -> None:
        with pytest.raises(Invalid):
            await house.guarding("temperature")
        house.mount([Saying("temperature", passes())])
        await house.guarding("temperature")


async def test_a_second_home_on_one_database_sees_the_same_switch(house: House, home: Home) -> None:
    await house.switches.put(context(), engaged=True)
    await house.close()
    await home.reopen()
    reopened = House(home)
    await reopened.open()
    assert await reason(reopened) == "kill_switch_engaged"
    await reopened.close()
