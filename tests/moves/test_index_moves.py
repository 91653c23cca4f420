"""The index of a spine is not moved: it is made anew at the target, and retired with the source."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

import engines
from engines.core.listing import Window
from engines.errors import Unavailable
from engines.stores.event_records import NewEvent
from engines.stores.events import EventFilter
from tests.moves.conftest import OWNER, Open, ended

COUNT = 1_200
BLOCK = 1_000
RARE = EventFilter(run_id="rare")


async def test_a_moved_spine_is_indexed_anew_and_leaves_no_index_behind(
    open_process: Open, tmp_path: Path
) -> None:
    process = await open_process()
    for start in range(0, COUNT, 100):
        await process.spine.append(OWNER, [new_event(start + at) for at in range(100)])
    expected = await rare_positions(process)
    assert len(expected) == COUNT // 100
    await indexed(process)
    assert await rare_positions(process) == expected
    assert indexed_documents(tmp_path / "a.db") > 0

    stored = await process.moves.start(OWNER, "event_spine", "b", retire=True)
    while not process.directory.moves:
        await process.directory.changed(process.directory.generation)
    with pytest.raises(Unavailable, match="its index is made anew"):
        await process.spine.rebuild_index(OWNER)
    began = await process.spine.index_status(OWNER)
    assert began.position == BLOCK
    while process.directory.moves:
        assert await rare_positions(process) == expected
        await asyncio.sleep(0.05)
    move, progress = await ended(process, stored.record.move_id)
    assert move.phase == "retired", progress
    assert await rare_positions(process) == expected
    await indexed(process)
    assert await rare_positions(process) == expected
    assert indexed_documents(tmp_path / "b.db") > 0
    assert indexed_documents(tmp_path / "a.db") == 0


def new_event(number: int) -> NewEvent:
    run_id = "rare" if number % 100 == 7 else "often"
    return NewEvent(event_type="note", payload={"number": number}, run_id=run_id)


async def rare_positions(process: engines.Engines) -> list[int]:
    page = await process.spine.list(OWNER, RARE, window=Window(limit=100))
    return [event.position for event in page.items]


async def indexed(process: engines.Engines) -> None:
    """Returns once the first block is projected, as the process does by itself."""
    async with asyncio.timeout(30):
        while (await process.spine.index_status(OWNER)).position != BLOCK:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def indexed_documents(database: Path) -> int:
    with sqlite3.connect(database) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        assert "documents" in tables, tables
        query = "SELECT count(*) FROM documents WHERE partition LIKE 'event_spine.t_a.%.spine.index%'"
        return int(connection.execute(query).fetchone()[0])
