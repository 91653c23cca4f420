"""A kind that holds logs beside its documents is moved with them."""

from __future__ import annotations

from engines.core.listing import Window
from engines.core.records import Condition
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.kpi_records import MeasurementInput
from tests.moves.conftest import OWNER, Open, ended


async def test_kpis_are_moved_there_and_back_with_their_measurements(open_process: Open) -> None:
    process, other = await open_process(), await open_process()
    given = DefinitionInput(json_blob={"aggregation": "sum"})
    absent = Condition(absent=True)
    await process.definitions.put(OWNER, SCHEMA_NAMED["kpis"], "k", given, condition=absent)
    for value in range(5):
        await process.kpis.measure(OWNER, "k", MeasurementInput(value=value))
    before = await process.kpis.measurements(OWNER, "k")
    for number, target in enumerate(("b", "a")):
        stored = await process.moves.start(OWNER, "kpi_store", target)
        move, progress = await ended(other, stored.record.move_id)
        assert move.phase == "done", progress
        for each in (process, other):
            found = await each.kpis.measurements(OWNER, "k", window=Window(limit=5))
            assert found.items == before.items
            added = await each.kpis.measure(OWNER, "k", MeasurementInput(value=1))
            reading = await each.kpis.reading(OWNER, "k")
            assert (reading.value, reading.last_position) == (
                added.record.position + 5,
                added.record.position,
            )
        assert (await process.kpis.reading(OWNER, "k")).last_position == 7 + 2 * number
