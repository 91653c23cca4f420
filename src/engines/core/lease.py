"""Leases: one holder at a time of a named piece of work, as a document that lapses.

Owns acquiring, renewing and releasing. A lease is an economy, never a safety: a paused holder may go on
working after its lease lapsed, so whatever it guards must be correct when two do it at once.

No two clocks are compared: a holder goes on for the lease's duration after its write of it began, and another
process takes the lease over once it saw the same version of it for that long, by clocks that never go back.
An instant at which it lapses would be judged by a wall clock that somebody sets: read by one that is behind,
the lease of a dead holder stands for as long as that is; by one that is ahead, a live holder is robbed. So a
process that comes after the holder died waits for a whole duration, as it does where nobody died.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engines.clock import Clock
from engines.codec import Codec
from engines.core.documents import Documents
from engines.core.keys import join
from engines.errors import Conflict
from engines.ports.documents import ABSENT, Delete, Doc, Match, Put

DURATION_S: Final = 15.0
# Clocks of two machines run at almost the same speed.
DRIFT: Final = 1.02
# Leases of others that a process remembers; of one more, that which it looked at longest ago is forgotten.
SIGHTINGS_MAX: Final = 1_000


class _Tenure(msgspec.Struct, frozen=True, tag_field="schema", tag="lease/1"):
    """`until`: for processes that go by the holder's clock, which wrote no `duration_s` either."""

    holder: str
    until: float
    duration_s: float | None = None


class _Sighting(msgspec.Struct, frozen=True):
    version: str
    since_s: float


_CODEC: Final = Codec(_Tenure)


class Sightings:
    """Since when a process has seen the leases of others unchanged: it must outlive a single attempt."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[tuple[int, str, str], _Sighting] = {}

    def unchanged_s(self, documents: Documents, partition: str, doc: Doc) -> float:
        """For how long, to be asked behind the read of `doc`: it was written before it was seen."""
        # What was another database by then has other versions, so an id that is used again does no harm.
        place = (id(documents), partition, doc.key)
        now_s = self._clock.monotonic()
        sighting = self._seen.pop(place, None)
        if sighting is None or sighting.version != doc.version:
            sighting = _Sighting(doc.version, now_s)
        self._seen[place] = sighting
        if len(self._seen) > SIGHTINGS_MAX:
            del self._seen[next(iter(self._seen))]
        return now_s - sighting.since_s


class Lease:
    """One process's claim on `name` within a partition. Not shared between tasks.

    `sightings`: what the process saw before, where it makes a lease anew for each attempt.
    """

    def __init__(
        self,
        documents: Documents,
        partition: str,
        name: str,
        *,
        holder: str,
        clock: Clock,
        duration_s: float = DURATION_S,
        sightings: Sightings | None = None,
    ) -> None:
        self._documents = documents
        self._partition = partition
        self._key = join("l", name)
        self._holder = holder
        self._clock = clock
        self._duration_s = duration_s
        self._sightings = sightings or Sightings(clock)
        self._version: str | None = None
        self._held_until = 0.0
        self.continued = False
        """Whether nobody else held it between the last two acquisitions."""
        self.refused_for_s = 0.0
        """After a refusal: how long the other's lease lasts unless it is renewed or given up."""

    @property
    def held(self) -> bool:
        """Whether this process may go on, judged by a clock that never goes back."""
        return self._clock.monotonic() < self._held_until

    async def acquire(self) -> bool:
        """Take it, or renew it once half of it has passed. False where another process holds it."""
        began = self._clock.monotonic()
        if began < self._held_until - self._duration_s / 2:
            self.continued = True
            return True
        tenure = _Tenure(self._holder, self._documents.now() + self._duration_s, self._duration_s)
        when = ABSENT if self._version is None else Match(self._version)
        try:
            self._version = await self._documents.write(
                self._partition, [Put(self._key, _CODEC.encode(tenure), when)]
            )
        except Conflict:
            return await self._take_over(tenure, began)
        self.continued = isinstance(when, Match)
        self._held_until = began + self._duration_s
        return True

    async def release(self) -> None:
        """Give it up, so that another need not wait for it to lapse.

        What stands there decides, because a renewal that was cancelled may have been written all the same.
        """
        self._version, self._held_until, self.continued = None, 0.0, False
        doc = await self._documents.get(self._partition, self._key)
        if doc is None or _CODEC.decode(doc.body).holder != self._holder:
            return
        try:
            await self._documents.write(self._partition, [Delete(self._key, Match(doc.version))])
        except Conflict:  # It lapsed and is another's by now.
            return

    async def _take_over(self, tenure: _Tenure, began: float) -> bool:
        self._version, self._held_until, self.continued = None, 0.0, False
        doc = await self._documents.get(self._partition, self._key)
        self.refused_for_s = 0.0 if doc is None else self._lasts_s(doc)
        if self.refused_for_s > 0:
            return False
        when = ABSENT if doc is None else Match(doc.version)
        try:
            self._version = await self._documents.write(
                self._partition, [Put(self._key, _CODEC.encode(tenure), when)]
            )
        except Conflict:
            self.refused_for_s = self._duration_s
            return False
        self._held_until = began + self._duration_s
        return True

    def _lasts_s(self, doc: Doc) -> float:
        """For how long another's lease is still to be left alone; 0 where it has lapsed, or is our own."""
        present = _CODEC.decode(doc.body)
        if present.holder == self._holder:
            return 0.0
        # One that an earlier version wrote says no duration: leases of one name all have the same.
        lasts_s = (self._duration_s if present.duration_s is None else present.duration_s) * DRIFT
        return max(0.0, lasts_s - self._sightings.unchanged_s(self._documents, self._partition, doc))
