"""The index of analytics events moves with its store, growing, and is made anew where the spine moves."""

from __future__ import annotations

import asyncio
import itertools

import engines
from engines.core.idempotency import Request, identify
from engines.core.listing import Window
from engines.stores.analytics import AnalyticsFilter, Ingested, NewAnalyticsEvent
from tests.moves.conftest import OWNER, Open, ended

BATCH = 40
SENDERS = 3
BLOCK = 1_000
# So that the processes, which share a loop here, have time for their leases.
PACE_S = 0.01


class Sender:
    """Sends batches under keys, now to one process and now to another, and keeps what it was told."""

    def __init__(self, number: int, processes: list[engines.Engines]) -> None:
        self._number = number
        self._processes = itertools.cycle(processes)
        self.told: list[Ingested] = []

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.send(next(self._processes), len(self.told))
            await asyncio.sleep(PACE_S)

    async def send(self, process: engines.Engines, batch: int) -> Ingested:
        events = [
            NewAnalyticsEvent(
                payload={"n": batch * BATCH + at}, session_id=f"s{self._number}", platform="web"
            )
            for at in range(BATCH)
        ]
        request = self.request(batch)
        told = await process.analytics.ingest(OWNER, events, request=request)
        if batch == len(self.told):
            self.told.append(told)
        return told

    def request(self, batch: int) -> Request:
        return identify("t_a", f"{self._number}", f"{batch}", body=b"{}")


async def positions(process: engines.Engines, number: int) -> list[int]:
    """Where the events of one sender stand, as lists tell it."""
    found: list[int] = []
    after: str | None = None
    where = AnalyticsFilter(session_id=f"s{number}")
    while True:
        window = Window(limit=1_000, after=after)
        page = await process.analytics.list(OWNER, where, window=window)
        found += [event.position for event in page.items]
        after = page.after
        if after is None:
            return found


async def projected(process: engines.Engines) -> int:
    return (await process.analytics.index_status(OWNER)).position


async def reached(process: engines.Engines, position: int) -> None:
    """Returns once so much is projected, as the processes do by themselves."""
    async with asyncio.timeout(60):
        while await projected(process) < position:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_lists_are_whole_through_moves_of_the_store_and_of_the_spine(open_process: Open) -> None:
    processes = [await open_process(), await open_process()]
    senders = [Sender(number, processes) for number in range(SENDERS)]
    stop = asyncio.Event()
    working = [asyncio.create_task(sender.run(stop)) for sender in senders]
    await reached(processes[0], BLOCK)
    for kind, target in (("analytics_store", "b"), ("event_spine", "b"), ("analytics_store", "a")):
        before = await projected(processes[0])
        stored = await processes[0].moves.start(OWNER, kind, target)
        move, progress = await ended(processes[1], stored.record.move_id)
        assert move.phase == "done", progress
        if kind == "analytics_store":
            assert await projected(processes[0]) >= before, "the index came with its store"
    stop.set()
    await asyncio.gather(*working)
    for number, sender in enumerate(senders):
        acknowledged = [event.position for told in sender.told for event in told.events]
        for process in processes:
            assert await positions(process, number) == acknowledged
        for batch in (0, len(sender.told) // 2, len(sender.told) - 1):
            again = await sender.send(processes[1], batch)
            assert again.replayed
            assert again.events == sender.told[batch].events
