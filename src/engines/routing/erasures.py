"""Erasing a user: everything that the tenant's stores hold of them, wherever routes lead.

Owns the order of the work, its passes and its time. An erasure goes over every place of every kind in passes;
the first pass that finds nothing, and that began after the last request of the user's had ended, proves that
all is gone. How far it is stands in the control plane, so whoever asks again goes on there, after any
interruption; two who ask at once do the same work twice and neither harms the other. Each step looks whether
a hold was laid on it. Leaves who may ask to `control/subjects.py` and what is done to a document or event to
`stores/erasing.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from engines.catalogue import SERVED
from engines.clock import Clock
from engines.control.records import DataSubject, ErasedCounts, Erasure
from engines.control.store import Stored
from engines.control.subjects import ERASE, DataSubjects
from engines.errors import Throttled
from engines.routing.homes import Homes
from engines.routing.routes import CONTROL_KINDS
from engines.routing.sides import each
from engines.scope import RequestContext
from engines.stores.erasing import Erasing, Step, Taken

# A call does what it can in this time and says how far it is.
CALL_S: Final = 8.0
KEEP_S: Final = 3.0
WAIT_S: Final = 0.25
# Of one process; and of a tenant one.
UNDER_WAY_MAX: Final = 4
BUSY_RETRY_S: Final = 2.0
STEPS_AT_ONCE: Final = 16
KINDS_AT_ONCE: Final = 8
_KINDS: Final = tuple(kind.name for kind in SERVED if kind.name not in CONTROL_KINDS)


class Erasures:
    """Erasing what users left in a tenant."""

    def __init__(self, subjects: DataSubjects, homes: Homes, erasing: Erasing, clock: Clock) -> None:
        self._subjects = subjects
        self._homes = homes
        self._erasing = erasing
        self._clock = clock
        self._under_way: set[str] = set()

    async def close(self) -> None:
        await self._erasing.close()

    async def erase(
        self, context: RequestContext, user_id: str, *, call_s: float = CALL_S
    ) -> Stored[DataSubject]:
        """End the user's membership and erase what they left, for about `call_s`; call again while `running`.

        Raises Forbidden, NotFound (never a member), Conflict (held; the caller's own data; a move that is
        under way or left a copy), Throttled (this process has enough of them under way, or one of the
        tenant's), and what the backends raise: then what was done so far is done.
        """
        context.require_data(ERASE)
        if context.tenant_id in self._under_way or len(self._under_way) >= UNDER_WAY_MAX:
            raise Throttled("another erasure is under way", retry_after_s=BUSY_RETRY_S)
        self._under_way.add(context.tenant_id)
        try:
            return await self._erase(context, user_id, call_s)
        finally:
            self._under_way.discard(context.tenant_id)

    async def _erase(self, context: RequestContext, user_id: str, call_s: float) -> Stored[DataSubject]:
        stored = await self._subjects.begin(context, user_id)
        until_s = self._clock.monotonic() + call_s
        assert stored.record.erasure is not None
        erasure = stored.record.erasure
        while True:
            erasure, is_whole = await self._pass(context, user_id, erasure, until_s)
            if is_whole:
                done = await self._subjects.complete(context, user_id, erasure)
                if done is not None:
                    return done
                await self._settle(erasure, until_s)
                erasure = self._subjects.next_pass(erasure, await self._subjects.moves(context))
            if self._clock.monotonic() >= until_s:
                return await self._subjects.keep(context, user_id, erasure)

    async def _pass(
        self, context: RequestContext, user_id: str, erasure: Erasure, until_s: float
    ) -> tuple[Erasure, bool]:
        """Go on with the present pass, by some pages at least, until it is whole or the time is over."""
        if erasure.step is None:
            waiting = await self._subjects.waiting(context, user_id)
            erasure = msgspec.structs.replace(erasure, found=erasure.found + waiting)
        kept_s = self._clock.monotonic()
        steps = [pair for pair in await self._steps(context) if pair[1].name >= (erasure.step or "")]
        for start in range(0, len(steps), STEPS_AT_ONCE):
            some = steps[start : start + STEPS_AT_ONCE]
            if start and self._clock.monotonic() >= until_s:
                return msgspec.structs.replace(erasure, step=some[0][1].name, after=None), False
            if start and self._clock.monotonic() - kept_s >= KEEP_S:  # So much at most is done again.
                at_step = msgspec.structs.replace(erasure, step=some[0][1].name, after=None)
                await self._subjects.keep(context, user_id, at_step)
                kept_s = self._clock.monotonic()
            at = erasure

            async def take(pair: tuple[RequestContext, Step]) -> tuple[list[Taken], str | None]:
                home, step = pair
                after = at.after if step.name == at.step else None  # noqa: B023  called within this turn
                return await self._take(context, home, step, user_id, after, until_s)

            ended = await each(some, take, STEPS_AT_ONCE)
            for (_, step), (counts, _) in zip(some, ended, strict=True):
                erasure = _counted(erasure, step.kind, counts)
            for (_, step), (_, after) in zip(some, ended, strict=True):
                if after is not None:
                    return msgspec.structs.replace(erasure, step=step.name, after=after), False
        return erasure, True

    async def _take(
        self,
        context: RequestContext,
        home: RequestContext,
        step: Step,
        user_id: str,
        after: str | None,
        until_s: float,
    ) -> tuple[list[Taken], str | None]:
        """One step from `after`, by a page at least: what came of it, and where it stopped if not its end."""
        taken: list[Taken] = []
        while True:
            await self._subjects.check(context, user_id)
            taken.append(await self._erasing.take(home, step, after, user_id))
            after = taken[-1].after
            if after is None or self._clock.monotonic() >= until_s:
                return taken, after

    async def _steps(self, context: RequestContext) -> list[tuple[RequestContext, Step]]:
        """Everything there is to look through, in the order of its names, which every call shares."""

        async def of_kind(kind: str) -> list[tuple[RequestContext, Step]]:
            homes = await self._homes.of(context, kind)
            return [(home, step) for home in homes for step in await self._erasing.steps(home, kind)]

        found = [pair for pairs in await each(_KINDS, of_kind, KINDS_AT_ONCE) for pair in pairs]
        return sorted(found, key=lambda pair: pair[1].name)

    async def _settle(self, erasure: Erasure, until_s: float) -> None:
        """Wait for what stands in the way of a last pass: a request under way, an event to be delivered."""
        wait_s = WAIT_S
        if erasure.found == 0:
            wait_s = max(wait_s, erasure.final_from_s - self._clock.now())
        await asyncio.sleep(max(0.0, min(wait_s, until_s - self._clock.monotonic())))


def _counted(erasure: Erasure, kind: str, taken: Sequence[Taken]) -> Erasure:
    counts = ErasedCounts(
        removed=sum(one.removed for one in taken),
        rewritten=sum(one.rewritten for one in taken),
        redacted=sum(one.redacted for one in taken),
    )
    found = counts.total + sum(one.waiting for one in taken)
    if found == 0:
        return erasure
    by_kind = {**erasure.by_kind, kind: erasure.by_kind.get(kind, ErasedCounts()) + counts}
    return msgspec.structs.replace(erasure, found=erasure.found + found, by_kind=by_kind)
