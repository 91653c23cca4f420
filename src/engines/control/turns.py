"""Turns: the changes of one process, one at a time, and fairly between tenants.

Every change takes the next number of one feed, so of those that run at once one is made and the others were
in vain. Owns their order in this process (each lane in turn, however many wait in it), how many of one lane
may wait, and the pauses by which processes make way for each other. Order alone: that no two changes have one
number the feed sees to.

A lane is a tenant's changes, or those of them that must not wait for the rest (`control/store.py`, `mends`).
So a change waits for the one that is being made, for one of each other lane, and for those of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from typing import Final

from engines.errors import Throttled

# Of one lane. At a hundred changes a second the last of them waits for some seconds. Who waits costs next to
# nothing, who is refused comes back at once.
WAITING_MAX: Final = 256
WAITING_RETRY_S: Final = 1.0
# A process whose queue never empties leaves the feed alone for a moment after so many changes: it alone knows
# the feed's end at once, so without that another process would lose every race.
ROW_MAX: Final = 16
# In changes' times. Who lost tries again within two of them, so one of its attempts falls in whole.
BERTH_CHANGES: Final = 3
BERTH_S_MAX: Final = 0.5
LOSER_S_MAX: Final = 0.1
_SMOOTHING: Final = 0.2

Lane = tuple[str, bool]


class Turns:
    """Whose change is made now, in this process. For one event loop."""

    def __init__(self, *, waiting_max: int = WAITING_MAX) -> None:
        assert waiting_max > 0
        self._waiting_max = waiting_max
        # Lanes with somebody in them, the one whose turn is next first.
        self._lanes: OrderedDict[Lane, deque[asyncio.Future[None]]] = OrderedDict()
        self._is_taken = False
        self._holder: asyncio.Task[object] | None = None
        self._in_a_row = 0
        self._change_s = 0.0

    @contextlib.asynccontextmanager
    async def hold(self, lane: Lane) -> AsyncIterator[None]:
        """The turn, once it is this lane's. Raises Throttled where too many wait in the lane already."""
        await self._take(lane)
        self._holder, started_s = asyncio.current_task(), self.now()
        try:
            yield
        finally:
            self._holder = None
            self._change_s += _SMOOTHING * (self.now() - started_s - self._change_s)
            self._make_way()

    def now(self) -> float:
        """Seconds, of the clock by which this measures."""
        return asyncio.get_running_loop().time()

    async def lost(self, started_s: float) -> None:
        """Wait a little: another process was faster than the attempt that began at `started_s`."""
        longest_s = min(LOSER_S_MAX, self.now() - started_s)
        await asyncio.sleep(random.uniform(0, longest_s))  # noqa: S311 (it spreads writers, it hides nothing)

    async def _take(self, lane: Lane) -> None:
        assert self._holder is None or self._holder is not asyncio.current_task(), "a change within a change"
        if not self._is_taken:
            self._is_taken = True
            return
        waiting = self._lanes.setdefault(lane, deque())
        if len(waiting) >= self._waiting_max:
            raise Throttled(
                f"{len(waiting)} changes of this tenant wait for their turn", retry_after_s=WAITING_RETRY_S
            )
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(lane, turn)
            else:  # It was given the turn and cancelled at once.
                self._pass_on()
            raise

    def _leave(self, lane: Lane, turn: asyncio.Future[None]) -> None:
        waiting = self._lanes.get(lane)
        if waiting is not None and turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._lanes[lane]

    def _make_way(self) -> None:
        """For the next one here, or for other processes first."""
        self._in_a_row = self._in_a_row + 1 if self._lanes else 0
        if self._in_a_row < ROW_MAX:
            self._pass_on()
            return
        self._in_a_row = 0
        berth_s = min(BERTH_S_MAX, BERTH_CHANGES * self._change_s)
        asyncio.get_running_loop().call_later(berth_s, self._pass_on)

    def _pass_on(self) -> None:
        while self._lanes:
            lane, waiting = self._lanes.popitem(last=False)
            turn = waiting.popleft()
            if waiting:
                self._lanes[lane] = waiting
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False
