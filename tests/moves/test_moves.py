"""A kind of a tenant is moved while several processes read and write it."""

from __future__ import annotations

import asyncio

from tests.moves.conftest import OWNER, Open, ended
from tests.moves.load import Writer

# While every process answers; a lease takes three seconds.
PAUSE_S_MAX = 2.5


async def test_notes_are_moved_there_and_back_while_they_are_used(open_process: Open) -> None:
    processes = [await open_process(), await open_process()]
    writers = [Writer(number, processes) for number in range(8)]
    stop = asyncio.Event()
    working = [asyncio.create_task(writer.run(stop)) for writer in writers]
    for target in ("b", "a"):
        there = sum(len(writer.notes) for writer in writers)
        stored = await processes[0].moves.start(OWNER, "notes_store", target)
        move, progress = await ended(processes[1], stored.record.move_id)
        assert move.phase == "done", progress
        assert progress.documents >= there / 2  # Some were deleted before they were copied.
        assert progress.repaired == 0
    assert max(writer.longest_s for writer in writers) < PAUSE_S_MAX
    stop.set()
    await asyncio.gather(*working)
    for writer in writers:
        for process in processes:
            await writer.check(process)
    assert (await processes[0].routes.resolve(OWNER, "notes_store")).route.backend_id == "a"
