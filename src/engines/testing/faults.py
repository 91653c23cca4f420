"""Faults on purpose: a document driver whose replies are refused, lost or late.

Owns `FaultyDriver`, which wraps a real driver, either by chance from a seeded source or as a test scripts it.
What it wraps stays a real database; only the way there is bad. Faults of the network itself are in
`engines.testing.proxy`.

    driver = FaultyDriver(real, FaultPlan(write_refused=0.05, write_lost_applied=0.05), random=Random(seed))
    driver.script(Fault.LOST_APPLIED)          # the next write lands and its reply does not
    held = driver.hold_next_write()            # the next write waits on the wire until `held.release()`
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import Counter, deque
from collections.abc import Sequence
from random import Random
from typing import Final

import msgspec

from engines.errors import BackendRefused, EnginesError, OutcomeUnknown, Unavailable
from engines.ports.documents import Doc, DocumentDriver, Op, Page

# Late deliveries under way at once; past it a late write is delivered without delay.
LATE_WRITES_MAX: Final = 1_000


class Fault(enum.Enum):
    """What can happen to one write. Every fault but the two kinds of refusal is OutcomeUnknown."""

    NONE = "none"
    REFUSED = "refused"  # Unavailable; nothing is sent.
    FORBIDDEN = "forbidden"  # BackendRefused; nothing is applied. By script alone.
    LOST_UNAPPLIED = "lost_unapplied"  # The request is lost: it is never applied.
    LOST_APPLIED = "lost_applied"  # The request is carried out, then its reply is lost, a Conflict too.
    LATE = "late"  # The error comes first; the request is delivered after it.


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How likely each fault is (0 to 1; those of a write add up to at most 1), and how long things take."""

    write_refused: float = 0.0
    write_lost_unapplied: float = 0.0
    write_lost_applied: float = 0.0
    write_late: float = 0.0
    read_refused: float = 0.0
    # A late write is delivered within this time of its error.
    late_s_max: float = 0.02
    # Before and after each call a pause from 0 to this, so that concurrent callers meet in every order.
    pause_s_max: float = 0.0

    def __post_init__(self) -> None:
        assert sum(chance for _, chance in self.write_chances()) <= 1.0

    def write_chances(self) -> tuple[tuple[Fault, float], ...]:
        return (
            (Fault.REFUSED, self.write_refused),
            (Fault.LOST_UNAPPLIED, self.write_lost_unapplied),
            (Fault.LOST_APPLIED, self.write_lost_applied),
            (Fault.LATE, self.write_late),
        )


NO_FAULTS: Final = FaultPlan()


class HeldWrite:
    """One write that a test keeps on the wire."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()
        self._released = asyncio.Event()

    async def arrived(self) -> None:
        """Returns once a write waits here."""
        await self._arrived.wait()

    def release(self) -> None:
        """Let it go on to the database."""
        self._released.set()

    async def _pass(self) -> None:
        self._arrived.set()
        await self._released.wait()


class FaultyDriver:
    """`DocumentDriver` around `driver`. One seed gives one sequence of decisions, in the order of the calls.

    `plan` may be replaced at any time. `seen` counts what happened to writes, so that a test can say that the
    faults it asked for took place.
    """

    def __init__(
        self, driver: DocumentDriver, plan: FaultPlan = NO_FAULTS, *, random: Random | None = None
    ) -> None:
        self.plan = plan
        self.seen: Counter[Fault] = Counter()
        self._driver = driver
        self._random = random or Random(0)
        self._script: deque[Fault] = deque()
        self._holds: deque[HeldWrite] = deque()
        self._late: set[asyncio.Task[None]] = set()

    def script(self, *faults: Fault) -> None:
        """What the next writes meet, one each, before chance decides again."""
        self._script.extend(faults)

    def forget_script(self) -> None:
        """What was scripted and no write has met will not happen."""
        self._script.clear()

    def hold_next_write(self) -> HeldWrite:
        """The next write that is not yet promised to another hold waits for its release, then goes on."""
        held = HeldWrite()
        self._holds.append(held)
        return held

    async def late_writes_delivered(self) -> None:
        """Returns once nothing is on the wire any more."""
        while self._late:
            await asyncio.wait(self._late)

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        await self._before_read()
        docs = await self._driver.get(partition, keys)
        await self._pause(self.plan.pause_s_max)
        return docs

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        await self._before_read()
        page = await self._driver.scan(partition, above=above, below=below, limit=limit, reverse=reverse)
        await self._pause(self.plan.pause_s_max)
        return page

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        fault = self._next_fault()
        self.seen[fault] += 1
        if self._holds:
            await self._holds.popleft()._pass()
        if fault is Fault.REFUSED:
            await self._pause(self.plan.pause_s_max)
            raise Unavailable("injected: nothing was sent")
        if fault is Fault.FORBIDDEN:
            raise BackendRefused("injected: a right was withdrawn")
        if fault is Fault.LATE:
            self._deliver_late(partition, ops, write_id)
        await self._pause(self.plan.pause_s_max)
        if fault is Fault.NONE:
            await self._driver.write(partition, ops, write_id=write_id)
            await self._pause(self.plan.pause_s_max)
            return
        if fault is Fault.LOST_APPLIED:
            with contextlib.suppress(EnginesError):  # Whatever the reply was, it is lost.
                await self._driver.write(partition, ops, write_id=write_id)
        raise OutcomeUnknown("injected: the reply was lost")

    async def provision(self) -> None:
        await self._driver.provision()

    async def reclaim(self, limit: int) -> int:
        return await self._driver.reclaim(limit)

    async def close(self) -> None:
        """Late writes are delivered first: a database outlives the caller that gave up on it."""
        await self.late_writes_delivered()
        await self._driver.close()

    def _next_fault(self) -> Fault:
        if self._script:
            return self._script.popleft()
        drawn = self._random.random()
        for fault, chance in self.plan.write_chances():
            if drawn < chance:
                return fault
            drawn -= chance
        return Fault.NONE

    def _deliver_late(self, partition: str, ops: Sequence[Op], write_id: str) -> None:
        delay_s = self._random.uniform(0, self.plan.late_s_max)
        if len(self._late) >= LATE_WRITES_MAX:
            delay_s = 0.0
        task = asyncio.create_task(self._deliver(partition, tuple(ops), write_id, delay_s))
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _deliver(self, partition: str, ops: Sequence[Op], write_id: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        with contextlib.suppress(EnginesError):  # Nobody waits for the reply.
            await self._driver.write(partition, ops, write_id=write_id)

    async def _before_read(self) -> None:
        await self._pause(self.plan.pause_s_max)
        if self._random.random() < self.plan.read_refused:
            raise Unavailable("injected: the database could not be asked")

    async def _pause(self, seconds_max: float) -> None:
        if seconds_max > 0:
            await asyncio.sleep(self._random.uniform(0, seconds_max))
