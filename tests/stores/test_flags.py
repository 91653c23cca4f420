"""Flags in force: whose they are, how old they may be, and what a reader pays; with writers elsewhere.

Flags are written by one process and read by another: two homes on one database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from math import ceil
from typing import Any

import msgspec
import pytest

from engines.clock import Clock
from engines.core.records import Condition
from engines.errors import (
    ContextMismatch,
    Forbidden,
    Invalid,
    MissingRoute,
    PreconditionFailed,
    Throttled,
    TooLarge,
    Unavailable,
)
from engines.ports.documents import DocumentDriver
from engines.stores import flags as flags_in_force
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.flag_rules import Evaluation, Flag
from engines.stores.flags import AGE_MAX_S, BULK_TENANT_MAX, TURN_S, Flags
from engines.testing.faults import NO_FAULTS, FaultPlan
from tests.stores.definitions_home import Told
from tests.stores.home import Home, context

FLAGS = SCHEMA_NAMED["flags"]
# What was stored under rules that have changed since.
LOOSE = msgspec.structs.replace(FLAGS, type=dict[str, Any], check=None)
PRESENT = Condition(versions=("*",))


def flag(default: str = "off", **members: Any) -> DefinitionInput:
    blob = {"state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": default, **members}
    return DefinitionInput(json_blob=blob)


class World:
    """The process that writes flags, and the one that evaluates them."""

    def __init__(self, writing: Told, reader: Home) -> None:
        self.writing = writing
        self.reader = reader
        self.reading = Told(reader, "two")
        self.flags = Flags(self.reading.definitions, reader.clock, flags_max=5)

    async def define(self, key: str, definition: DefinitionInput | None = None, **where: Any) -> None:
        """A new flag, or the next version of one."""
        definitions, mine = self.writing.definitions, context(**where)
        definition = definition or flag()
        try:
            await definitions.put(mine, FLAGS, key, definition, condition=Condition(absent=True))
        except PreconditionFailed:
            await definitions.put(mine, FLAGS, key, definition, condition=PRESENT)

    async def delete(self, key: str) -> None:
        await self.writing.definitions.delete(context(), FLAGS, key, condition=PRESENT)

    async def says(self, key: str = "flag", said: Any = None, **where: Any) -> Any:
        """The value, or the error code."""
        found = await self.flags.evaluate(context(**where), key, said or {})
        return found.error_code if found.reason == "ERROR" else found.value

    async def all_say(self, **where: Any) -> dict[str, Any]:
        found = await self.flags.evaluate_all(context(**where), {})
        return {one.key: one.error_code if one.reason == "ERROR" else one.value for one in found}


@pytest.fixture
async def world(home: Home, open_driver: Callable[[Clock], DocumentDriver]) -> AsyncIterator[World]:
    writing, reader = Told(home), Home(open_driver)
    made = World(writing, reader)
    yield made
    reader.faults.plan = NO_FAULTS
    await made.flags.close()
    await made.reading.close()
    await writing.close()
    await reader.close()


class TestWhose:
    async def test_a_flag_belongs_to_its_tenant_env_and_surface(self, world: World) -> None:
        await world.define("flag", flag("on"))
        assert await world.says() is True
        for elsewhere in ({"tenant_id": "t_two"}, {"env": "dev"}, {"surface_id": "squared2"}):
            assert await world.says(**elsewhere) == "FLAG_NOT_FOUND"
            assert await world.all_say(**elsewhere) == {}
            await world.define("flag", flag("off"), **elsewhere)
        assert await world.says() is True
        assert await world.all_say() == {"flag": True}

    async def test_who_may_not_read_definitions_evaluates_nothing(self, world: World) -> None:
        """Nor what somebody else has just had evaluated."""
        await world.define("flag", flag("on"))
        assert await world.says() is True
        assert await world.all_say() == {"flag": True}
        for who, error in (
            ({"permissions": frozenset({"definitions.write"})}, Forbidden),
            ({"acting_on": "t_two"}, ContextMismatch),
        ):
            with pytest.raises(error):
                await world.says(**who)
            with pytest.raises(error):
                await world.all_say(**who)

    @pytest.mark.parametrize("key", ["", "a b", "a/b", "x" * 129])
    async def test_a_key_that_is_no_id_is_refused(self, world: World, key: str) -> None:
        with pytest.raises(Invalid) as refusal:
            await world.says(key)
        assert refusal.value.field == "key"

    async def test_a_context_that_is_none_is_refused(self, world: World) -> None:
        for call in (world.flags.evaluate(context(), "f", []), world.flags.evaluate_all(context(), 7)):  # type: ignore[arg-type]
            with pytest.raises(Invalid) as refusal:
                await call
            assert refusal.value.field == "context"


class TestAge:
    @pytest.mark.parametrize("change", ["another version", "a deletion", "a creation"])
    async def test_a_change_is_seen_within_a_second_and_costs_nothing_before(
        self, world: World, change: str
    ) -> None:
        before: Any = False
        if change == "a creation":
            before = "FLAG_NOT_FOUND"
        else:
            await world.define("flag", flag("off"))
        assert await world.says() == before
        await world.all_say()
        world.reader.driver.calls.clear()
        if change == "a deletion":
            await world.delete("flag")
        else:
            await world.define("flag", flag("on"))
        world.reader.clock.advance(AGE_MAX_S - 0.001)
        assert await world.says() == before
        assert world.reader.driver.calls == []
        world.reader.clock.advance(0.001)
        after = {"a deletion": "FLAG_NOT_FOUND"}.get(change, True)
        assert await world.says() == after
        assert await world.all_say() == ({} if change == "a deletion" else {"flag": True})

    async def test_past_a_second_an_old_answer_is_none(self, world: World) -> None:
        await world.define("flag")
        assert await world.says() is False
        assert await world.all_say() == {"flag": False}
        world.reader.faults.plan = FaultPlan(read_refused=1.0)
        assert await world.says() is False, "while it is fresh nobody asks the backend"
        world.reader.clock.advance(AGE_MAX_S)
        for _ in range(2):
            both = await asyncio.gather(world.says(), world.all_say(), return_exceptions=True)
            assert [type(each) for each in both] == [Unavailable, Unavailable]
        world.reader.faults.plan = NO_FAULTS
        assert await world.says() is False

    async def test_no_route_is_no_flag(self, world: World) -> None:
        await world.define("flag")
        assert await world.says() is False
        world.reader.missing.add("feature_flags")
        world.reader.clock.advance(AGE_MAX_S)
        with pytest.raises(MissingRoute):
            await world.says()
        with pytest.raises(MissingRoute):
            await world.all_say()

    async def test_another_route_is_asked_for_itself(self, world: World) -> None:
        """The route may depend on project, app and mode: what one leads to says nothing of another."""
        await world.define("flag")
        assert await world.says() is False
        world.reader.missing.add("feature_flags")
        for elsewhere in ({"project_id": "p1"}, {"app_id": "a1"}, {"mode": "enterprise"}):
            with pytest.raises(MissingRoute):
                await world.says(**elsewhere)


class TestCosts:
    async def test_however_many_ask_at_once_one_reads(self, world: World) -> None:
        await world.define("flag", flag("on"))
        await world.says("another")
        world.reader.driver.calls.clear()
        assert set(await asyncio.gather(*(world.says() for _ in range(200)))) == {True}
        assert world.reader.driver.calls == ["get"]
        world.reader.driver.calls.clear()
        found = await asyncio.gather(*(world.all_say() for _ in range(200)))
        assert found == [{"flag": True}] * 200
        assert world.reader.driver.calls == ["scan"]

    async def test_more_flags_than_are_evaluated_at_once_are_evaluated_one_by_one(self, world: World) -> None:
        for number in range(5):
            await world.define(f"flag-{number}")
        assert len(await world.all_say()) == 5
        await world.define("flag-5", flag("on"))
        world.reader.clock.advance(AGE_MAX_S)
        with pytest.raises(TooLarge, match="5"):
            await world.all_say()
        assert await world.says("flag-5") is True


class TestTurns:
    """What others wait for while all flags are evaluated, judged by what is evaluated in between."""

    MS_EACH = 1.5

    @pytest.fixture
    def evaluated(self, world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The keys in the order in which they are evaluated, which takes each of them some time."""
        keys: list[str] = []

        def evaluate(flag: Flag, *_said: Any) -> Evaluation:
            world.reader.clock.advance(self.MS_EACH / 1_000)
            keys.append(flag.key)
            return Evaluation(key=flag.key, reason="DISABLED")

        monkeypatch.setattr(Flag, "evaluate", evaluate)
        return keys

    async def test_an_evaluation_of_all_flags_keeps_the_loop_for_a_turn_at_most_however_many_there_are(
        self, world: World, evaluated: list[str]
    ) -> None:
        for number in range(5):
            await world.define(f"flag-{number}")
        await world.all_say()
        evaluated.clear()
        together = asyncio.gather(*(world.flags.evaluate_all(context(), {}) for _ in range(3)))
        counts = [0]
        while not together.done():
            await asyncio.sleep(0)
            counts.append(len(evaluated))
        assert counts[-1] == 15
        at_once = max(after - before for before, after in pairwise(counts))
        assert at_once == ceil(TURN_S * 1_000 / self.MS_EACH) == 2
        assert TURN_S <= 0.005
        assert [[one.key for one in each] for each in await together] == [
            [f"flag-{number}" for number in range(5)]
        ] * 3

    async def test_a_tenant_has_so_many_under_way_and_leaves_the_others_theirs(
        self, world: World, evaluated: list[str]
    ) -> None:
        for tenant_id in ("t_one", "t_two"):
            for number in range(3):
                await world.define(f"flag-{number}", tenant_id=tenant_id)
            await world.all_say(tenant_id=tenant_id)
        under_way = [
            asyncio.ensure_future(world.flags.evaluate_all(context(), {})) for _ in range(BULK_TENANT_MAX)
        ]
        await asyncio.sleep(0)
        evaluated.clear()
        with pytest.raises(Throttled) as refusal:
            await world.all_say()
        assert refusal.value.retry_after_s
        assert evaluated == [], "a refusal costs nothing"
        assert len(await world.all_say(tenant_id="t_two")) == 3
        assert [len(each) for each in await asyncio.gather(*under_way)] == [3] * BULK_TENANT_MAX
        assert len(await world.all_say()) == 3

    async def test_who_gives_up_waiting_leaves_the_turn_to_others(
        self, world: World, evaluated: list[str]
    ) -> None:
        for number in range(5):
            await world.define(f"flag-{number}")
        await world.all_say()
        evaluated.clear()
        one, two, three = (asyncio.ensure_future(world.flags.evaluate_all(context(), {})) for _ in range(3))
        await asyncio.sleep(0)
        one.cancel()
        two.cancel()
        assert len(await three) == 5
        assert len(evaluated) < 3 * 5
        assert len(await world.all_say()) == 5

    async def test_flags_share_the_steps_of_one_request(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(flags_in_force, "BULK_STEPS_MAX", 250)
        walk = {"if": [{"in": ["x", {"var": "many"}]}, "off", "on"]}
        for key in ("a", "b", "c"):
            await world.define(key, flag("off", targeting=walk))
        await world.define("d", flag("off"))
        said = {"many": [0] * 100}
        for _ in range(2):
            found = await world.flags.evaluate_all(context(), said)
            assert [(one.key, one.reason) for one in found] == [
                ("a", "TARGETING_MATCH"),
                ("b", "TARGETING_MATCH"),
                ("c", "ERROR"),
                ("d", "STATIC"),
            ]
            assert found[2].error_code == "GENERAL"
        assert await world.says("c", said) is True


class TestAnswers:
    async def test_all_flags_come_by_key_the_disabled_and_the_broken_among_them(self, world: World) -> None:
        await world.define("b", flag("on"))
        await world.define("a", flag(state="DISABLED"))
        await world.define("gone")
        await world.delete("gone")
        blob = {"state": "ENABLED", "variants": {"on": True}, "targeting": {"retired_operator": 1}}
        await world.writing.definitions.create(context(), LOOSE, DefinitionInput(id="c", json_blob=blob))
        found = await world.flags.evaluate_all(context(), {})
        assert [(one.key, one.reason) for one in found] == [
            ("a", "DISABLED"),
            ("b", "STATIC"),
            ("c", "ERROR"),
        ]
        assert found[2].error_code == "PARSE_ERROR"
        assert await world.says("c") == "PARSE_ERROR"

    async def test_the_key_is_the_definitions_id_and_the_time_the_clocks(self, world: World) -> None:
        now = int(world.reader.clock.now())
        rule = {
            "and": [{"==": [{"var": "$flagd.flagKey"}, "mine"]}, {"==": [{"var": "$flagd.timestamp"}, now]}]
        }
        await world.define("mine", flag("off", targeting={"if": [rule, "on"]}))
        assert await world.says("mine") is True
        assert await world.all_say() == {"mine": True}

    async def test_a_version_is_compiled_once(self, world: World) -> None:
        """Each compilation makes answers of its own. Reading anew every second must not be one."""
        await world.define("flag", flag(targeting={"if": [{"var": "x"}, "on"]}))
        first = await world.flags.evaluate(context(), "flag", {"x": 1})
        world.reader.clock.advance(AGE_MAX_S)
        assert await world.flags.evaluate(context(), "flag", {"x": 1}) is first
        await world.define("flag", flag(targeting={"if": [{"var": "x"}, "on"]}))
        world.reader.clock.advance(AGE_MAX_S)
        assert await world.flags.evaluate(context(), "flag", {"x": 1}) is not first


class TestDefining:
    @pytest.mark.parametrize(
        ("members", "field"),
        [
            ({"variants": {"on": [1]}}, "variants.on"),
            ({"type": "integer"}, "type"),
            ({"defaultVariant": "gone"}, "defaultVariant"),
            ({"targeting": {"nope": 1}}, "targeting"),
            ({"targeting": {"$ref": "a"}, "$evaluators": {"a": {"$ref": "a"}}}, "$evaluators.a.$ref"),
            ({"targeting": {"fractional": [["on", 0.5]]}}, "targeting.fractional[0][1]"),
            ({"unknown": 1}, None),
        ],
    )
    async def test_what_could_not_be_evaluated_is_not_stored(
        self, world: World, members: dict[str, Any], field: str | None
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await world.writing.definitions.create(context(), FLAGS, flag(**members))
        assert refusal.value.field == ("json_blob" if field is None else f"json_blob.{field}")
        assert await world.all_say() == {}

    async def test_too_large_targeting_is_not_stored(self, world: World) -> None:
        rule: Any = True
        for _ in range(40):
            rule = {"!": rule}
        with pytest.raises(TooLarge) as refusal:
            await world.writing.definitions.create(context(), FLAGS, flag(targeting=rule))
        assert str(refusal.value.field).startswith("json_blob.targeting")
