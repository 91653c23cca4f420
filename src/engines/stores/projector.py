"""The projector: when which spine's index is brought up to date, beside requests.

Owns the spines that are due, in order, and how they share this process. A spine is due once an append ended
a block, or a list had to look through one; nothing else makes it due, so a spine that nobody uses costs
nothing, and one that was forgotten here is noticed again by its next use. Due spines have short turns, some
at once, each bounded in blocks and in time; one that fails waits, longer each time, and delays no other.
Leaves the turn itself to `stores/event_index.py`.
"""

from __future__ import annotations

import asyncio
import enum
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from engines.clock import Clock
from engines.errors import EnginesError
from engines.scope import RequestContext

# Past it the spine that has been due longest is forgotten.
DUE_MAX: Final = 1_000
TURNS_AT_ONCE: Final = 4
TURN_TIMEOUT_S: Final = 10.0
# Between two turns of one spine, so that catching up leaves room for requests.
PAUSE_S: Final = 0.1
# While another process or a move is at it, and after a failure: doubled each time, up to the maximum.
TAKEN_PAUSE_S: Final = 5.0
FAILURE_PAUSE_S: Final = 1.0
FAILURE_PAUSE_MAX_S: Final = 60.0
POLL_S: Final = 0.1

Key = tuple[str, ...]

log = structlog.get_logger(__name__)


class Turn(enum.Enum):
    """How a turn ended."""

    DONE = "done"  # There is no whole block left.
    MORE = "more"
    TAKEN = "taken"  # Another process is at it, or a move.


class _Due:
    __slots__ = ("again", "context", "failures", "ready_at_s", "running", "since_s")

    def __init__(self, context: RequestContext, since_s: float) -> None:
        self.context = context
        self.since_s = since_s
        self.ready_at_s = 0.0
        self.failures = 0
        self.running = False
        self.again = False


class Projector:
    """The due spines of one process. `failures`: turns that ended in an error, since the process began."""

    def __init__(self, turn: Callable[[RequestContext], Awaitable[Turn]], clock: Clock) -> None:
        self._turn = turn
        self._clock = clock
        self._due: OrderedDict[Key, _Due] = OrderedDict()
        self._wake = asyncio.Event()
        self._turns: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self.failures = 0

    @property
    def due(self) -> int:
        """How many spines are known to have a block that is not projected."""
        return len(self._due)

    @property
    def lag_s(self) -> float:
        """Seconds since the due spine that has waited longest came on or became due; 0 where none is due."""
        now_s = self._clock.monotonic()
        return max((now_s - due.since_s for due in self._due.values()), default=0.0)

    def notice(self, key: Key, context: RequestContext) -> None:
        """The context's spine has a block to project."""
        due = self._due.get(key)
        if due is None:
            due = self._due[key] = _Due(context, self._clock.monotonic())
            if len(self._due) > DUE_MAX:
                self._due.popitem(last=False)
        due.context, due.again = context, True
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; turns under way are cancelled with it. Raises what no turn should."""
        try:
            while True:
                self._wake.clear()
                if self._broken is not None:
                    raise self._broken
                self._start_turns()
                if not self._due:
                    await self._wake.wait()
                    continue
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._turns:
                task.cancel()
            await asyncio.gather(*self._turns, return_exceptions=True)

    def _start_turns(self) -> None:
        now_s = self._clock.monotonic()
        for key, due in list(self._due.items()):
            if len(self._turns) >= TURNS_AT_ONCE:
                return
            if not due.running and due.ready_at_s <= now_s:
                self._due.move_to_end(key)
                due.running, due.again = True, False
                task = asyncio.create_task(self._take_turn(key, due), name="project")
                self._turns.add(task)
                task.add_done_callback(self._turn_ended)

    def _turn_ended(self, task: asyncio.Task[None]) -> None:
        self._turns.discard(task)
        if not task.cancelled():
            self._broken = self._broken or task.exception()
        self._wake.set()

    async def _take_turn(self, key: Key, due: _Due) -> None:
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S):
                outcome = await self._turn(due.context)
        except (EnginesError, TimeoutError) as error:
            self._failed(due, error)
            return
        finally:
            due.running = False
        due.failures, due.since_s = 0, self._clock.monotonic()
        if outcome is Turn.DONE and not due.again:
            if self._due.get(key) is due:
                del self._due[key]
            return
        pause_s = TAKEN_PAUSE_S if outcome is Turn.TAKEN else PAUSE_S
        due.ready_at_s = self._clock.monotonic() + pause_s

    def _failed(self, due: _Due, error: Exception) -> None:
        pause_s = min(FAILURE_PAUSE_MAX_S, FAILURE_PAUSE_S * 2 ** min(due.failures, 10))
        due.failures += 1
        self.failures += 1
        due.ready_at_s = self._clock.monotonic() + pause_s
        log.warning(
            "an index waits",
            tenant=due.context.tenant_id,
            env=due.context.env,
            error=type(error).__name__,
            pause_s=pause_s,
        )
