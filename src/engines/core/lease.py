"""Leases: one holder at a time of a named piece of work, as a document that lapses.

Owns acquiring, renewing and releasing. A lease is an economy, never a safety: a paused holder may go on
working after its lease lapsed, so whatever it guards must be correct when two do it at once.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engines.clock import Clock
from engines.codec import Codec
from engines.core.documents import Documents
from engines.core.keys import join
from engines.errors import Conflict
from engines.ports.documents import ABSENT, Delete, Match, Put

DURATION_S: Final = 15.0


class _Tenure(msgspec.Struct, frozen=True, tag_field="schema", tag="lease/1"):
    holder: str
    until: float


_CODEC: Final = Codec(_Tenure)


class Lease:
    """One process's claim on `name` within a partition. Not shared between tasks."""

    def __init__(
        self,
        documents: Documents,
        partition: str,
        name: str,
        *,
        holder: str,
        clock: Clock,
        duration_s: float = DURATION_S,
    ) -> None:
        self._documents = documents
        self._partition = partition
        self._key = join("l", name)
        self._holder = holder
        self._clock = clock
        self._duration_s = duration_s
        self._version: str | None = None
        self._held_until = 0.0
        self.continued = False
        """Whether nobody else held it between the last two acquisitions."""

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
        tenure = _Tenure(self._holder, self._documents.now() + self._duration_s)
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
        if doc is not None:
            present = _CODEC.decode(doc.body)
            if present.holder != self._holder and present.until > self._documents.now():
                return False
        when = ABSENT if doc is None else Match(doc.version)
        try:
            self._version = await self._documents.write(
                self._partition, [Put(self._key, _CODEC.encode(tenure), when)]
            )
        except Conflict:
            return False
        self._held_until = began + self._duration_s
        return True
