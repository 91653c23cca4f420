"""Feeds: work that follows a log from a durable checkpoint, in batches of a fixed size, skipping nothing.

Owns the checkpoint: how far a named piece of work has come. A batch is handed on first and the checkpoint
moved behind it afterwards, under the version that was read, so a crash between the two hands the batch on
again: at least once, never past an event. Whoever receives batches must bear to be given one twice, also by
two processes at once; a `Lease` makes that rare, and nothing relies on it. Leaves what is done with a batch
to its user (`core/index.py` is the first).

Batches begin at the same positions whoever reads them: the n-th holds the n-th `size` events of the log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from engines.codec import Codec
from engines.core.documents import Documents
from engines.core.keys import join
from engines.core.log import PAGE_EVENTS_MAX, Log, StoredEvent
from engines.errors import Corrupt
from engines.ports.documents import ABSENT, Doc, Match, Put

K = TypeVar("K")


class _Checkpoint(msgspec.Struct, frozen=True, tag_field="schema", tag="checkpoint/1"):
    """Everything up to `position` was handed on, and what was done with it is durable."""

    position: int


_CODEC: Final = Codec(_Checkpoint)


def position_of(checkpoint: Doc | None) -> int:
    """How far the work has come whose checkpoint this is; 0 where there is none yet."""
    return 0 if checkpoint is None else _CODEC.decode(checkpoint.body).position


class Feed:
    """One piece of work on one log. `partition`: where its checkpoint stands, beside what it makes."""

    def __init__(self, documents: Documents, partition: str, name: str, *, size: int) -> None:
        assert 0 < size <= PAGE_EVENTS_MAX
        self.key = join("f", name)
        self._documents = documents
        self._partition = partition
        self._size = size

    async def advance(
        self,
        log: Log,
        keep: Callable[[StoredEvent], K],
        handle: Callable[[Sequence[K]], Awaitable[None]],
    ) -> bool:
        """Hand the next batch on and move the checkpoint behind it; False where it is not whole yet.

        `keep` says what of each event is handed on: a whole batch of events may be too large to hold.

        Raises Conflict where the checkpoint was moved meanwhile, by another holder or by `restart`: what was
        done is no loss, and the next call begins where the checkpoint says. What `handle` raises leaves the
        checkpoint where it is.
        """
        checkpoint = await self._documents.get(self._partition, self.key)
        position = position_of(checkpoint)
        kept = await self._read(log, position, keep)
        if len(kept) < self._size:
            return False
        await handle(kept)
        await self._move(checkpoint, position + self._size)
        return True

    async def restart(self) -> None:
        """Begin again with the first event of the log. Raises Conflict, where a batch was just finished."""
        checkpoint = await self._documents.get(self._partition, self.key)
        if checkpoint is not None:
            await self._move(checkpoint, 0)

    async def _move(self, checkpoint: Doc | None, position: int) -> None:
        when = ABSENT if checkpoint is None else Match(checkpoint.version)
        put = Put(self.key, _CODEC.encode(_Checkpoint(position)), when)
        await self._documents.write(self._partition, [put])

    async def _read(self, log: Log, position: int, keep: Callable[[StoredEvent], K]) -> list[K]:
        """Of the batch behind `position`, or of what there is of it."""
        kept: list[K] = []
        while len(kept) < self._size:
            at = position + len(kept)
            batch = await log.list_after(at, limit=self._size - len(kept))
            if [event.position for event in batch.events] != list(range(at + 1, at + 1 + len(batch.events))):
                raise Corrupt("a log gave other positions than were asked for")
            kept += map(keep, batch.events)
            if batch.end:
                break
        return kept
