"""KPIs and temperatures: what a window says, and what a surface's readings make together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from engines import catalogue
from engines.core.documents import Documents
from engines.core.idempotency import identify
from engines.core.listing import Window
from engines.core.place import Layouts
from engines.core.records import Condition
from engines.drivers.registry import document_driver
from engines.errors import (
    ContextMismatch,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    MissingRoute,
    NotFound,
    TooLarge,
)
from engines.scope import RequestContext
from engines.stores import kpis as kpis_module
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.erasing import Erasing
from engines.stores.kpi_records import MeasurementInput
from engines.stores.kpis import Kpis
from engines.stores.temperature import Missing, Temperatures
from engines.testing.faults import Fault
from tests.stores.definitions_home import Told
from tests.stores.home import Home, context

KPIS, SETTINGS = SCHEMA_NAMED["kpis"], SCHEMA_NAMED["temperature"]
ADA = context()
ABSENT = Condition(absent=True)


class Measuring(Told):
    """One process with KPIs and temperatures."""

    def __init__(self, home: Home, name: str = "one", *, measurements_max: int = 10) -> None:
        super().__init__(home, name)
        self.kpis = Kpis(home, self.definitions, home.ids, home.clock, measurements_max=measurements_max)
        self.temperatures = Temperatures(self.definitions, self.kpis, home.clock)

    async def close(self) -> None:
        await self.temperatures.close()
        await self.kpis.close()
        await super().close()

    async def define(self, kpi_id: str = "k1", who: RequestContext = ADA, **members: Any) -> None:
        given = DefinitionInput(json_blob=members, id=kpi_id)
        await self.definitions.create(who, KPIS, given)

    async def set(self, setting: str, **values: float) -> None:
        condition = ABSENT
        try:
            former = await self.definitions.get(ADA, SETTINGS, setting)
            condition = Condition(versions=(former.etag.strip('"'),))
        except NotFound:
            pass
        given = DefinitionInput(json_blob={"values": values})
        await self.definitions.put(ADA, SETTINGS, setting, given, condition=condition)

    async def measure(self, *values: float, kpi_id: str = "k1", who: RequestContext = ADA) -> None:
        for value in values:
            await self.kpis.measure(who, kpi_id, MeasurementInput(value=value))

    async def recent(self, kpi_id: str = "k1") -> float | None:
        reading = await self.kpis.recent_reading(ADA, kpi_id)
        assert reading is not None
        return reading.value


async def lead_to_an_empty_backend(home: Home, directory: Path) -> None:
    """As a route does that was replaced by hand: nothing is moved."""
    module = document_driver("sqlite")
    config, _ = module.config_from_url(f"sqlite://{directory}/second.db")
    driver = module.open_driver(msgspec.convert(config, module.Config), {}, home.clock)
    await driver.provision()
    home.documents = Documents(driver, ids=home.ids, clock=home.clock)
    home.layouts = Layouts(home.documents)
    home.backend_id = "second"


async def erase(home: Home, user_id: str) -> None:
    """What the user measured, as the erasure of a user does."""
    erasing = Erasing(home, home.ids, home.clock)
    for step in await erasing.steps(ADA, catalogue.KPIS):
        after: str | None = None
        while (taken := await erasing.take(ADA, step, after, user_id)).after is not None:
            after = taken.after
    await erasing.close()


async def pass_time(home: Home) -> None:
    while True:
        home.clock.advance(0.01)
        await asyncio.sleep(0.005)


@pytest_asyncio.fixture
async def one(home: Home) -> AsyncIterator[Measuring]:
    measuring = Measuring(home)
    yield measuring
    await measuring.close()


class TestMeasuring:
    async def test_a_measurement_is_appended_stamped_and_listed_by_position(self, one: Measuring) -> None:
        await one.define()
        given = MeasurementInput(value=0.5, occurred_at="2026-01-01T00:00:00Z", labels={"run": "r1"})
        record = (await one.kpis.measure(ADA, "k1", given)).record
        assert (record.tenant_id, record.user_id, record.position, record.value) == ("t_one", "ada", 1, 0.5)
        await one.measure(1, 2)
        listed = await one.kpis.measurements(ADA, "k1")
        assert listed.items[0] == record
        assert [(item.position, item.value) for item in listed.items] == [(1, 0.5), (2, 1.0), (3, 2.0)]
        first = await one.kpis.measurements(ADA, "k1", window=Window(limit=2))
        rest = await one.kpis.measurements(ADA, "k1", window=Window(after=first.after))
        assert [item.position for item in (*first.items, *rest.items)] == [1, 2, 3]
        newest = await one.kpis.measurements(ADA, "k1", window=Window(limit=1, descending=True))
        assert [item.position for item in newest.items] == [3]

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.1e300])
    async def test_what_is_no_number_to_add_up_is_refused(self, one: Measuring, value: float) -> None:
        await one.define()
        with pytest.raises(Invalid) as caught:
            await one.measure(value)
        assert caught.value.field == "value"
        assert (await one.kpis.measurements(ADA, "k1")).items == ()

    async def test_what_else_breaks_a_rule_is_refused_by_its_field(self, one: Measuring) -> None:
        await one.define()
        for given, field in (
            (MeasurementInput(value=1, occurred_at="yesterday"), "occurred_at"),
            (MeasurementInput(value=1, labels={str(number): "" for number in range(21)}), "labels"),
        ):
            with pytest.raises(Invalid) as caught:
                await one.kpis.measure(ADA, "k1", given)
            assert caught.value.field == field
        with pytest.raises(ContextMismatch):
            await one.kpis.measure(ADA, "k1", MeasurementInput(value=1, tenant_id="t_two"))

    async def test_only_what_is_defined_is_measured_and_read(self, one: Measuring) -> None:
        await one.define()
        for who in (context(tenant_id="t_two"), context(surface_id="canvas"), context(env="dev")):
            with pytest.raises(NotFound):
                await one.measure(1, who=who)
            with pytest.raises(NotFound):
                await one.kpis.reading(who, "k1")
            with pytest.raises(NotFound):
                await one.kpis.measurements(who, "k1")

    async def test_tenants_and_surfaces_measure_apart_under_one_name(self, one: Measuring) -> None:
        others = [context(tenant_id="t_two"), context(surface_id="canvas"), context(env="dev")]
        for number, who in enumerate([ADA, *others]):
            await one.define(who=who)
            await one.measure(number, who=who)
        for number, who in enumerate([ADA, *others]):
            assert (await one.kpis.reading(who, "k1")).value == number

    async def test_the_role_decides(self, one: Measuring) -> None:
        await one.define()
        nobody = context(permissions=frozenset())
        for call in (
            one.kpis.measure(nobody, "k1", MeasurementInput(value=1)),
            one.kpis.reading(nobody, "k1"),
            one.kpis.measurements(nobody, "k1"),
            one.temperatures.reading(nobody),
        ):
            with pytest.raises(Forbidden):
                await call

    async def test_a_repeat_is_recognised_and_gets_its_first_answer(self, one: Measuring) -> None:
        await one.define()
        request = identify("t_one", "prod", "ada", "POST", "/kpis/k1/measurements", "k", body=b"1")
        one.home.faults.script(Fault.LOST_APPLIED)
        first = await one.kpis.measure(ADA, "k1", MeasurementInput(value=1), request=request)
        again = await one.kpis.measure(
            context(run_id="run-2"), "k1", MeasurementInput(value=1), request=request
        )
        assert (again.replayed, again.record) == (True, first.record)
        other = identify("t_one", "prod", "ada", "POST", "/kpis/k1/measurements", "k", body=b"2")
        with pytest.raises(IdempotencyKeyReused):
            await one.kpis.measure(ADA, "k1", MeasurementInput(value=2), request=other)
        assert len((await one.kpis.measurements(ADA, "k1")).items) == 1

    async def test_two_processes_measure_at_once_and_nothing_is_lost(self, home: Home) -> None:
        one, two = Measuring(home, measurements_max=100), Measuring(home, "two", measurements_max=100)
        # Two writers of one log take turns by the clock, which stands still unless it is moved.
        passing = asyncio.create_task(pass_time(home))
        try:
            await one.define(aggregation="sum")
            await asyncio.gather(*(each.measure(*range(10)) for each in (one, two)))
            for each in (one, two):
                reading = await each.kpis.reading(ADA, "k1")
                assert (reading.value, reading.count, reading.last_position) == (90.0, 20, 20)
        finally:
            passing.cancel()
            await one.close()
            await two.close()

    async def test_measurements_outlast_a_restart_and_the_definition(
        self, one: Measuring, home: Home
    ) -> None:
        await one.define()
        await one.measure(7)
        record = await one.definitions.get(ADA, KPIS, "k1")
        at = Condition(versions=(record.etag.strip('"'),))
        await one.definitions.delete(ADA, KPIS, "k1", condition=at)
        with pytest.raises(NotFound):
            await one.kpis.reading(ADA, "k1")
        await one.close()
        await home.reopen()
        other = Measuring(home, "two")
        try:
            await other.definitions.restore(ADA, KPIS, "k1", 1)
            assert (await other.kpis.reading(ADA, "k1")).value == 7
        finally:
            await other.close()


class TestReading:
    @pytest.mark.parametrize(
        ("aggregation", "value"), [("last", 2.0), ("sum", 6.5), ("mean", 6.5 / 3), ("count", 3.0)]
    )
    async def test_it_is_of_the_window_alone(self, one: Measuring, aggregation: str, value: float) -> None:
        await one.define(aggregation=aggregation, window_seconds=60)
        await one.measure(100, 200)
        one.home.clock.advance(60)
        await one.measure(0.5, 4, 2)
        reading = await one.kpis.reading(ADA, "k1")
        assert (reading.value, reading.aggregation, reading.window_seconds) == (value, aggregation, 60)
        first = 5 if aggregation == "last" else 3
        assert (reading.count, reading.first_position, reading.last_position) == (6 - first, first, 5)

    @pytest.mark.parametrize(("aggregation", "value"), [("last", None), ("sum", None), ("count", 0.0)])
    async def test_of_an_empty_window_nothing_is_said_but_that(
        self, one: Measuring, aggregation: str, value: float | None
    ) -> None:
        await one.define(aggregation=aggregation, window_seconds=60, floor=0)
        for _ in range(2):
            reading = await one.kpis.reading(ADA, "k1")
            status = "no_data" if value is None else "within"
            assert (reading.value, reading.status, reading.count) == (value, status, 0)
            assert (reading.first_position, reading.last_position) == (None, None)
            await one.measure(1)
            one.home.clock.advance(60)

    @pytest.mark.parametrize(
        ("value", "status"), [(0.9, "below"), (1, "within"), (2, "within"), (2.1, "above")]
    )
    async def test_a_corridor_has_its_bounds_within(self, one: Measuring, value: float, status: str) -> None:
        await one.define(floor=1, ceiling=2)
        await one.measure(value)
        assert (await one.kpis.reading(ADA, "k1")).status == status

    async def test_a_sum_is_exact_for_what_was_measured(self, one: Measuring) -> None:
        await one.define(aggregation="sum")
        await one.measure(1e16, 1, -1e16, *[0.1] * 7)
        assert (await one.kpis.reading(ADA, "k1")).value == math.fsum([1, *[0.1] * 7])

    async def test_the_largest_measurements_add_up_to_a_number(self, one: Measuring) -> None:
        await one.define(aggregation="mean")
        await one.measure(*[1e300] * 10)
        assert (await one.kpis.reading(ADA, "k1")).value == 1e300

    async def test_a_sum_over_too_many_is_refused_and_a_count_is_not(self, one: Measuring) -> None:
        await one.define(aggregation="sum", window_seconds=60)
        await one.define("k2", aggregation="count", window_seconds=60)
        for kpi_id in ("k1", "k2"):
            await one.measure(*range(11), kpi_id=kpi_id)
        with pytest.raises(TooLarge):
            await one.kpis.reading(ADA, "k1")
        assert (await one.kpis.reading(ADA, "k2")).value == 11
        one.home.clock.advance(60)
        await one.measure(5)
        assert (await one.kpis.reading(ADA, "k1")).value == 5

    async def test_what_is_older_than_the_window_is_not_read(self, home: Home) -> None:
        one = Measuring(home)
        try:
            await one.define(aggregation="sum", window_seconds=5)
            for _ in range(64):
                await one.measure(1)
                home.clock.advance(1)
            await one.told(1)
            home.driver.calls.clear()
            reading = await one.kpis.reading(ADA, "k1")
            assert (reading.value, reading.first_position) == (4.0, 61)
            # The search halves 64 commits six or seven times; beside it the definition, tail and window.
            assert len(home.driver.calls) <= 24
        finally:
            await one.close()

    async def test_a_recent_reading_reads_on_from_where_it_was(self, one: Measuring) -> None:
        await one.define(aggregation="sum", window_seconds=3)
        for number in range(8):
            await one.measure(number)
            one.home.clock.advance(1)
            recent = await one.kpis.recent_reading(ADA, "k1")
            assert recent is not None
            assert (
                recent.value
                == (await one.kpis.reading(ADA, "k1")).value
                == sum(range(max(0, number - 1), number + 1))
            )

    @pytest.mark.parametrize(("aggregation", "value"), [("sum", 12.0), ("mean", 6.0)])
    async def test_where_the_clock_was_set_back_the_window_is_read_from_its_new_beginning(
        self, one: Measuring, aggregation: str, value: float
    ) -> None:
        await one.define(aggregation=aggregation, window_seconds=60)
        await one.measure(5)
        one.home.clock.advance(30)
        await one.measure(7)
        one.home.clock.advance(31)
        assert await one.recent() == 7
        one.home.clock.jump(-20)
        one.home.clock.advance(1)
        for _ in range(2):  # Then it reads on, from the longer window.
            recent = await one.kpis.recent_reading(ADA, "k1")
            assert recent is not None
            assert (recent.value, recent.count, recent.first_position) == (value, 2, 1)
            one.home.clock.advance(1)
        one.home.clock.jump(20)
        assert await one.recent() == (await one.kpis.reading(ADA, "k1")).value == 7

    @pytest.mark.parametrize("changed", ["backend", "generation"])
    async def test_where_the_route_leads_elsewhere_gates_judge_by_what_is_there(
        self, one: Measuring, home: Home, tmp_path: Path, changed: str
    ) -> None:
        await one.define(aggregation="mean")
        await one.measure(*[100] * 5)
        assert await one.recent() == 100
        former = home.documents
        if changed == "backend":
            await lead_to_an_empty_backend(home, tmp_path)
        else:
            home.generation += 1
        try:
            await one.define(aggregation="mean")
            await one.measure(*[1] * 3)
            home.clock.advance(1)
            assert await one.recent() == (await one.kpis.reading(ADA, "k1")).value == 1
            await one.measure(*[4] * 3)
            home.clock.advance(1)
            assert await one.recent() == (await one.kpis.reading(ADA, "k1")).value == 2.5
        finally:
            await former.close()

    async def test_what_was_erased_counts_for_a_minute_at_most(self, one: Measuring, home: Home) -> None:
        await one.define(aggregation="mean")
        await one.measure(100, 100, 100, who=context(user_id="bob"))
        await one.measure(1)
        assert await one.recent() == 75.25
        home.clock.advance(1)
        await one.measure(1)
        await erase(home, "bob")
        assert (await one.kpis.reading(ADA, "k1")).value == 1
        for _ in range(60):  # Asked all the time, so that each reads on from the one before.
            home.clock.advance(1)
            await one.recent()
        assert await one.recent() == (await one.kpis.reading(ADA, "k1")).value == 1

    @pytest.mark.parametrize("erased_ones", [1, 10, 11, 25])
    async def test_last_is_the_newest_that_was_not_erased(
        self, home: Home, erased_ones: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kpis_module, "PAGE_EVENTS_MAX", 7)
        one = Measuring(home, measurements_max=27)
        try:
            await one.define(window_seconds=60, floor=1, ceiling=100)
            await one.measure(500)
            home.clock.advance(60)
            await one.measure(42)
            await one.measure(*range(erased_ones), who=context(user_id="bob"))
            await erase(home, "bob")
            reading = await one.kpis.reading(ADA, "k1")
            assert (reading.value, reading.status, reading.count) == (42, "within", 1)
            assert (reading.first_position, reading.last_position) == (2, 2)
            await erase(home, "ada")  # What is left was measured before the window.
            assert (await one.kpis.reading(ADA, "k1")).status == "no_data"
        finally:
            await one.close()

    async def test_last_of_a_window_that_was_erased_to_the_logs_beginning_is_no_data(
        self, one: Measuring
    ) -> None:
        await one.define(floor=1)
        for _ in range(2):
            await one.measure(1, 2, 3, who=context(user_id="bob"))
            await erase(one.home, "bob")
            reading = await one.kpis.reading(ADA, "k1")
            assert (reading.value, reading.status, reading.first_position) == (None, "no_data", None)

    async def test_last_that_was_not_found_among_so_many_is_an_error_and_not_no_data(
        self, one: Measuring
    ) -> None:
        await one.define(floor=1, passes_unread=True)
        await one.measure(0)
        await one.measure(*range(10), who=context(user_id="bob"))
        await erase(one.home, "bob")
        with pytest.raises(TooLarge):
            await one.kpis.reading(ADA, "k1")
        with pytest.raises(TooLarge):
            await one.kpis.corridors_for(ADA, "book", at_s=one.home.clock.now())
        await one.measure(5)
        assert (await one.kpis.reading(ADA, "k1")).value == 5

    @pytest.mark.parametrize(
        ("aggregation", "value", "count"), [("sum", 43.0, 2), ("mean", 21.5, 2), ("count", 5.0, 5)]
    )
    async def test_a_reading_counts_what_it_rests_on(
        self, one: Measuring, aggregation: str, value: float, count: int
    ) -> None:
        await one.define(aggregation=aggregation)
        await one.measure(42)
        await one.measure(7, 8, 9, who=context(user_id="bob"))
        await one.measure(1)
        await erase(one.home, "bob")
        reading = await one.kpis.reading(ADA, "k1")
        assert (reading.value, reading.count) == (value, count)
        assert (reading.first_position, reading.last_position) == (1, 5)

    async def test_within_the_minute_a_window_is_read_on_and_then_once_as_a_whole(
        self, one: Measuring, home: Home
    ) -> None:
        await one.define(aggregation="mean")
        await one.measure(1, 2, 3)
        await one.told(1)
        reads = []
        for _ in range(62):
            home.driver.calls.clear()
            await one.recent()
            reads.append(len(home.driver.calls))
            home.clock.advance(1)
        warm = reads[2]
        assert [second for second, count in enumerate(reads) if second > 0 and count > warm] == [59]

    async def test_recent_readings_ask_the_backend_once_a_second(self, one: Measuring) -> None:
        await one.define(aggregation="mean", floor=0)
        await one.measure(1, 2)
        await one.told(1)
        now = one.home.clock.now()
        await one.kpis.corridors_for(ADA, "book", at_s=now)
        one.home.driver.calls.clear()
        found = await asyncio.gather(*(one.kpis.corridors_for(ADA, "book", at_s=now) for _ in range(20)))
        assert one.home.driver.calls == []
        assert {facts[0].reading for facts in found} == {1.5}
        assert found[0][0].made_from["count"] == 2
        await one.measure(6)
        one.home.clock.advance(1)
        assert (await one.kpis.corridors_for(ADA, "book", at_s=now))[0].reading == 3

    async def test_a_corridor_holds_for_the_actions_it_names(self, one: Measuring) -> None:
        await one.define("everywhere", floor=1)
        await one.define("booking", ceiling=2, actions=["book_*"], passes_unread=True)
        await one.define("unbounded")
        nobody = context(permissions=frozenset())

        async def names(action: str) -> list[tuple[str, bool]]:
            found = await one.kpis.corridors_for(nobody, action, at_s=one.home.clock.now())
            return [(facts.name, facts.passes_unread) for facts in found]

        assert await names("refund") == [("everywhere", False)]
        assert sorted(await names("book_flight")) == [("booking", True), ("everywhere", False)]

    async def test_without_a_route_nothing_is_measured_or_read(self, one: Measuring, home: Home) -> None:
        home.missing.add("kpi_store")
        for call in (one.measure(1), one.kpis.reading(ADA, "k1"), one.kpis.recent_reading(ADA, "k1")):
            with pytest.raises(MissingRoute):
                await call


class TestTemperature:
    async def test_it_is_the_weighted_mean_of_the_heats_and_says_of_what(self, one: Measuring) -> None:
        for kpi_id, value in (("a", 5), ("b", 30), ("c", -1)):
            await one.define(kpi_id)
            await one.measure(value, kpi_id=kpi_id)
        await one.set("floors", a=0, b=10, c=0)
        await one.set("ceilings", a=10, b=20, c=1)
        await one.set("weights", a=2, b=1, c=1)
        reading = await one.temperatures.reading(ADA)
        assert (reading.temperature, reading.missing, reading.surface_id) == (0.5, (), "chat")
        assert [(part.kpi_id, part.heat) for part in reading.kpis] == [("a", 0.5), ("b", 1.0), ("c", 0.0)]
        assert [part.reading and part.reading.last_position for part in reading.kpis] == [1, 1, 1]

    async def test_what_is_missing_is_said_and_never_guessed(self, one: Measuring) -> None:
        async def missing() -> set[tuple[str, str | None]]:
            reading = await one.temperatures.reading(ADA)
            assert (reading.temperature is None) is bool(reading.missing)
            return {(lack.what, lack.kpi_id) for lack in reading.missing}

        assert await missing() == {("weights", None)}
        await one.set("weights", a=1, b=0)
        assert await missing() == {("floor", "a"), ("ceiling", "a"), ("kpi", "a")}
        await one.set("floors", a=1)
        assert await missing() == {("ceiling", "a"), ("kpi", "a")}
        await one.set("ceilings", a=1)
        await one.define("a")
        assert await missing() == {("range", "a"), ("reading", "a")}
        await one.set("ceilings", a=2)
        assert await missing() == {("reading", "a")}
        await one.measure(1.5, kpi_id="a")
        assert await missing() == set()
        await one.set("weights", a=1, b=-1)
        assert await missing() == {("weight", "b")}

    async def test_a_ceiling_below_its_floor_makes_no_heat(self, one: Measuring) -> None:
        await one.define("a")
        await one.measure(5, kpi_id="a")
        await one.set("floors", a=2)
        await one.set("ceilings", a=1)
        await one.set("weights", a=1)
        reading = await one.temperatures.reading(ADA)
        assert (reading.temperature, reading.missing) == (None, (Missing("range", "a"),))
        assert [part.heat for part in reading.kpis] == [None]

    async def test_numbers_at_the_edge_of_a_double_stay_numbers(self, one: Measuring) -> None:
        for kpi_id in ("a", "b"):
            await one.define(kpi_id)
            await one.measure(0, kpi_id=kpi_id)
        await one.set("floors", a=-1.7e308, b=-1.7e308)
        await one.set("ceilings", a=1.7e308, b=1.7e308)
        await one.set("weights", a=1.7e308, b=1.7e308)
        assert (await one.temperatures.reading(ADA)).temperature == 0.5

    async def test_each_weighted_kpi_is_a_corridor(self, one: Measuring) -> None:
        now = one.home.clock.now()
        assert await one.temperatures.corridors_for(ADA, "book", at_s=now) == ()
        await one.define("a")
        await one.measure(5, kpi_id="a")
        await one.set("floors", a=0)
        await one.set("weights", a=1, b=1)
        one.home.clock.advance(1)
        before = await one.temperatures.corridors_for(ADA, "book", at_s=now)
        assert [(facts.name, facts.reading) for facts in before] == [("a", None), ("b", None)]
        await one.set("ceilings", a=10)
        one.home.clock.advance(1)
        after = await one.temperatures.corridors_for(ADA, "book", at_s=now)
        assert [(facts.name, facts.reading, facts.floor, facts.ceiling) for facts in after] == [
            ("a", 5.0, 0.0, 10.0),
            ("b", None, None, None),
        ]

    async def test_another_surface_has_its_own(self, one: Measuring) -> None:
        await one.set("weights", a=1)
        reading = await one.temperatures.reading(context(surface_id="canvas"))
        assert reading.missing == (Missing("weights"),)
