"""Rules of one answer that follows a log: what it has in hand, whoever it is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

from engines.api.call import Call
from engines.api.stream import EventStream, follower_slots
from engines.clock import SystemClock
from engines.stores.events import EventText
from tests.contexts import context


class Stalled:
    """A call whose client takes each piece of the body only when it is let."""

    def __init__(self) -> None:
        self.engines = SimpleNamespace(clock=SystemClock(), contexts=self)
        self.followers = follower_slots()
        self.metrics = SimpleNamespace(streams=SimpleNamespace(inc=lambda: None, dec=lambda: None))
        self.scope: dict[str, Any] = {"headers": []}
        self.request_id = "r1"
        self.taken = asyncio.Semaphore(1)  # The line that says when to come back.
        self.offered: asyncio.Queue[bytes] = asyncio.Queue()

    async def context_of(self, *_: object, **__: object) -> Any:
        return context()

    async def receive(self) -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    async def begin(self, status: int, *_: object) -> None:
        assert status == 200

    async def write(self, piece: bytes, **_: object) -> None:
        self.offered.put_nowait(piece)
        await self.taken.acquire()


async def test_nothing_is_read_for_a_reader_that_has_not_taken_what_was_read_last() -> None:
    call = Stalled()
    begun: list[int] = []

    async def batches() -> AsyncGenerator[tuple[EventText, ...], None]:
        for number in range(3):
            begun.append(number)
            yield (EventText(f"c{number}", b"{}"),)

    answer = cast(Call, call)
    stream = EventStream(answer, context(), batches(), permission="events.read")
    sending = asyncio.create_task(stream.send(answer))
    assert await call.offered.get() == b"retry: 1000\n\n"
    for number in range(3):
        assert await call.offered.get() == b"id: c%d\ndata: {}\n\n" % number
        for _ in range(50):
            await asyncio.sleep(0)
        assert begun == list(range(number + 1))
        call.taken.release()
    assert await call.offered.get() == b""
    call.taken.release()
    await sending
