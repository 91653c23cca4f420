"""Quotas: so many units in each window of time, leased in blocks from a durable counter.

Owns one counter as one process has it: the window, the block that was leased in it, how large the next block
is, and the conditional write that takes it. Leaves what is counted and where to `stores/rate_limits.py`.

Each window has a document of its own, whose `taken` only grows, under Absent or Match, and never past the
limit. A process hands out units of a block that it took, in memory. So all processes together never hand out
more than the limit in a window, and sometimes fewer:

- What is left of a block ends with its window, or with its process; nobody gives it back.
- A write whose reply was lost may have taken its block, so nobody hands out of it.
- Windows begin at whole multiples of their length since the epoch, by the clock of the process that hands
  out. The beginning is part of the document's name, and a block counts only while that clock is within its
  window. A clock that is wrong takes from the quota of another window, and no quota is given twice: over a
  long time no more is handed out than the limit a window. A document outlives its window by `KEPT_S`; a clock
  that is further behind than that finds the counters of its windows gone and starts them again, so clocks
  must agree within it.

Two windows meet: in a length of time that straddles them up to twice the limit may be handed out, as with
every fixed window.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from math import floor
from typing import Final

import msgspec

from engines.clock import Clock
from engines.codec import Codec
from engines.core.documents import Documents
from engines.core.keys import join
from engines.core.place import Place
from engines.errors import Conflict, Unavailable
from engines.ports.documents import ABSENT, Absent, Match, Put

KEPT_S: Final = 60
# The smallest block, as a part of the limit, and the first that a process takes. A limit that is far from met
# costs a write for so many calls; of a limit that is nearly met every process may have so many left over.
FIRST_PART: Final = 20
# A block that was used up sooner than this part of a window is followed by one of twice its size, one that
# lasted twice as long by one of half: so a process that is asked a lot writes some ten times a window, and at
# its end has some tenth of what it used left over.
BLOCK_PART: Final = 10
# No block is more than this part of what is left, so that the last units are not stranded in one process;
# requests that wait are served nevertheless.
LEFT_PART: Final = 4
# Each lost race means that another process took a block.
RACES_MAX: Final = 32
RACES_RETRY_S: Final = 0.1

PlaceForChange = Callable[[], AbstractAsyncContextManager[Place]]


class _Counter(msgspec.Struct, frozen=True, tag_field="schema", tag="quota/1"):
    """What of one window's quota is taken. `name` tells whoever looks at the database what it is about."""

    name: str
    taken: int


_CODEC: Final = Codec(_Counter)


class Quota:
    """One counter in this process. `anchor` names it among all of its place. One lease at a time."""

    __slots__ = (
        "_block",
        "_block_min",
        "_leased_at_s",
        "_taken",
        "_when",
        "anchor",
        "began_s",
        "ends_s",
        "left",
        "limit",
        "name",
        "waiting",
        "window_s",
    )

    def __init__(self, name: str, anchor: str, *, limit: int, window_s: int) -> None:
        assert limit > 0
        assert window_s > 0
        self.name = name
        self.anchor = anchor
        self.limit = limit
        self.window_s = window_s
        self.began_s = self.ends_s = float("-inf")
        self.left = 0
        """Units of the block that this process has not handed out."""
        self.waiting = 0
        """How many wait for a unit: what the next block is at least to have."""
        self._taken = 0  # of the window's quota, by all processes, as far as this one knows
        self._when: Absent | Match = ABSENT
        self._block = self._block_min = max(1, limit // FIRST_PART)
        self._leased_at_s = float("-inf")

    def has_one(self, now_s: float) -> bool:
        """Whether a unit can be handed out at once: then `left` may be reduced by one."""
        return self.left > 0 and self.began_s <= now_s < self.ends_s

    def is_current(self, now_s: float) -> bool:
        """Whether what is known here is about the window that it is now."""
        return self.began_s <= now_s < self.ends_s

    def is_spent(self, now_s: float) -> bool:
        """Whether it is known that this window has no more."""
        return self.left == 0 and self._taken == self.limit and self.is_current(now_s)

    @property
    def remaining(self) -> int:
        """Units of the window that nobody is known to have taken, and those of the block."""
        return self.left + self.limit - self._taken

    async def lease(self, open_place: PlaceForChange, clock: Clock) -> None:
        """Take a block of the window that it is now. Afterwards the quota may be spent, or the window over.

        Raises what the place raises, and Unavailable where many processes take from it at once. After any
        error nothing was gained.
        """
        self._begin(clock.now())
        async with open_place() as place:
            size = await self._take(place, clock)
        # Not before the block above has ended well: a move may have gone on without this write.
        self.left += size

    def _begin(self, now_s: float) -> None:
        """Enter the window that it is now, and decide how large a block is to be."""
        lasted_s = now_s - self._leased_at_s
        if lasted_s < self.window_s / BLOCK_PART:
            self._block = min(self.limit, self._block * 2)
        elif lasted_s > 2 * self.window_s / BLOCK_PART:
            self._block = max(self._block_min, self._block // 2)
        self._leased_at_s = now_s
        if self.is_current(now_s):
            return
        self.began_s = float(floor(now_s / self.window_s) * self.window_s)
        self.ends_s = self.began_s + self.window_s
        self.left = self._taken = 0
        self._when = ABSENT

    async def _take(self, place: Place, clock: Clock) -> int:
        """Write the block down; its size, 0 where the quota is spent or the window over."""
        partition = await place.partition(self.anchor)
        key = join("q", self.anchor, str(int(self.began_s)))
        for _ in range(RACES_MAX):
            size = self._size()
            if size == 0 or not self.is_current(clock.now()):
                return 0
            body = _CODEC.encode(_Counter(self.name, self._taken + size))
            put = Put(key, body, self._when, expires_at=int(self.ends_s) + KEPT_S)
            try:
                version = await place.documents.write(partition, [put])
            except Conflict:
                await self._look(place.documents, partition, key)
                continue
            self._taken += size
            self._when = Match(version)
            return size
        raise Unavailable("many processes take from one quota at once", retry_after_s=RACES_RETRY_S)

    def _size(self) -> int:
        left = self.limit - self._taken
        return min(left, max(self.waiting, min(self._block, max(1, left // LEFT_PART))))

    async def _look(self, documents: Documents, partition: str, key: str) -> None:
        """What was taken, as it stands there; never less than is known, wherever the counter lies by now."""
        doc = await documents.get(partition, key)
        if doc is None:
            self._when = ABSENT
            return
        # More than the limit, where the limit was higher before.
        self._taken = min(self.limit, max(self._taken, _CODEC.decode(doc.body).taken))
        self._when = Match(doc.version)
