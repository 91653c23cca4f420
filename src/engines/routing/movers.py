"""Movers: the moves on which this process works, of all that are under way.

Owns taking a move up that nobody works on, and letting go of it once its lease is lost. Leaves what is done
to `routing/mover.py`. A lease is an economy: two movers at one move do no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Final

import structlog

from engines.clock import Clock
from engines.control.directory import Directory
from engines.control.store import PARTITION, ControlStore
from engines.core.lease import Lease, Sightings
from engines.core.transfer import Superseded
from engines.errors import EnginesError
from engines.ids import Ids
from engines.routing.backends import Backends
from engines.routing.mover import Mover, Resolve
from engines.routing.participation import Observer

LEASE_S: Final = 3.0
LOOK_S: Final = 1.0

log = structlog.get_logger(__name__)


class Movers:
    """The moves that this process works on: those whose lease it holds."""

    def __init__(
        self,
        store: ControlStore,
        directory: Directory,
        backends: Backends,
        resolve: Resolve,
        *,
        ids: Ids,
        clock: Clock,
    ) -> None:
        self._store = store
        self._resolve = resolve
        self._directory = directory
        self._backends = backends
        self._ids = ids
        self._clock = clock
        # Whoever takes a move over has heard the processes for as long as it was under way.
        self._observer = Observer(store.documents, clock)
        self._sightings = Sightings(clock)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Take up what nobody works on, until cancelled."""
        try:
            while True:
                for move in list(self._directory.moves.values()):
                    if move.move_id not in self._tasks:
                        task = asyncio.create_task(self._work(move.move_id), name=f"move-{move.move_id}")
                        self._tasks[move.move_id] = task
                        task.add_done_callback(functools.partial(self._ended, move.move_id))
                if self._directory.moves:
                    with contextlib.suppress(EnginesError):  # It is asked again.
                        await self._observer.listen()
                    await asyncio.sleep(LOOK_S)
                else:
                    await self._directory.changed(self._directory.generation)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, move_id: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(move_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a mover failed; another goes on", move=move_id, exc_info=error)

    async def _work(self, move_id: str) -> None:
        """Work on one move for as long as the lease can be kept."""
        lease = Lease(
            self._store.documents,
            PARTITION,
            f"move-{move_id}",
            holder=self._ids.write_id(),
            clock=self._clock,
            duration_s=LEASE_S,
            sightings=self._sightings,
        )
        try:
            while not await lease.acquire():
                if lease.refused_for_s > LOOK_S:
                    return
                # It lapses before the next look: changes may be waiting for the next mover.
                await asyncio.sleep(lease.refused_for_s)
            async with _kept(lease):
                mover = Mover(
                    move_id,
                    store=self._store,
                    directory=self._directory,
                    backends=self._backends,
                    observer=self._observer,
                    resolve=self._resolve,
                    ids=self._ids,
                    clock=self._clock,
                )
                await mover.run()
        except EnginesError as error:
            log.warning("a move waits", move=move_id, error=error.code, detail=error.detail)
        finally:
            with contextlib.suppress(EnginesError):
                await asyncio.shield(lease.release())


@contextlib.asynccontextmanager
async def _kept(lease: Lease) -> AsyncIterator[None]:
    """Renew the lease beside the block, and end the block with Superseded where it is lost."""
    block = asyncio.current_task()
    assert block is not None
    lost = False

    async def keep() -> None:
        nonlocal lost
        while True:
            await asyncio.sleep(LEASE_S / 4)
            try:
                # Another mover may have come and gone while this one was paused.
                held = await lease.acquire() and lease.continued
            except EnginesError:
                held = lease.held
            if not held:
                lost = True
                block.cancel()
                return

    keeper = asyncio.create_task(keep())
    try:
        yield
    except asyncio.CancelledError:
        if lost:
            block.uncancel()
            raise Superseded("the lease of a move was lost") from None
        raise
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
