"""The tail: the end of the log as this process knows it, and the writes beyond it that may yet land.

Owns the rule that a tail is learned from a commit alone, how long such knowledge is trusted, and what
became of a write whose reply was lost. Leaves packing and sending to `core/committer.py`.

Every commit goes into the slot behind the tail under Absent. So whatever became of a write, its slot tells:
a commit with the write's own digest means that it landed, any other that it never will, and an empty slot
that it still may, but then nobody has passed that slot. Until the slot is seen filled every write that was
sent to it stays in doubt; at most one of them can land. The digest names a write because it covers random
salts, and it survives redaction and a move, which a document's version does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from engines.clock import Clock
from engines.core.appends import Append
from engines.core.chain import Chain
from engines.core.commits import GENESIS, Commit, Sealed, Turn
from engines.ports.documents import Op

# A view older than this is read again before use: commits behind it may have been trimmed away, and then
# their slots would look free. `core/trimming.py` trims nothing younger than a day.
VIEW_S_MAX: Final = 60.0


class Tail(msgspec.Struct, frozen=True):
    """The end of the log as a commit showed it. `first`: where that commit starts; 0 for an empty log."""

    position: int
    digest: str
    at: int
    first: int
    turn: Turn | None = None


EMPTY: Final = Tail(0, GENESIS, 0, 0)


class Write(msgspec.Struct, frozen=True):
    """One attempt at a slot: the tail once it lands, its ops, and each request's positions in it."""

    tail: Tail
    segment: int
    ops: list[Op]
    placed: list[tuple[Append, tuple[int, ...]]]


class TailView:
    """What one process knows of the end of one log. `on_landed` is told of a write in doubt found there."""

    def __init__(
        self,
        chain: Chain,
        *,
        clock: Clock,
        on_moved: Callable[[], None],
        on_landed: Callable[[Write], None],
    ) -> None:
        self.known: Tail | None = None
        self._chain = chain
        self._clock = clock
        self._on_moved = on_moved
        self._on_landed = on_landed
        self._seen_s = self._seen_wall_s = 0.0
        self._in_doubt: dict[str, Write] = {}

    def is_fresh(self) -> bool:
        """Whether the tail at hand may be written behind: nothing is in doubt there, and it is young enough.

        By either clock: a machine may have been asleep.
        """
        if self.known is None or self._in_doubt:
            return False
        slept_s = abs(self._clock.now() - self._seen_wall_s)
        return slept_s <= VIEW_S_MAX and self._clock.monotonic() - self._seen_s <= VIEW_S_MAX

    async def refresh(self) -> Tail:
        """The tail as it is now. Writes in doubt are settled first, while their slot is the next one."""
        if not await self._chain.open():
            await self._chain.create()
        known = self.known
        if self._in_doubt and known is not None:
            commit = await self._chain.starting_at(known.position + 1)
            if commit is None:
                return self.see(known)
            if (landed := self._in_doubt.get(commit.digest)) is not None:
                self._on_landed(landed)
            self._end_doubt()
            known = self.see(_tail_of(commit))
        last = await self._chain.tail(0 if known is None else known.first)
        return self.see(EMPTY if last is None else _tail_of(last))

    def see(self, tail: Tail) -> Tail:
        """Take note of a tail that a commit showed just now."""
        if self.known is None or tail.position > self.known.position:
            self._end_doubt()
            self._on_moved()
        self.known = tail
        self._seen_s, self._seen_wall_s = self._clock.monotonic(), self._clock.now()
        return tail

    def doubt(self, write: Write) -> None:
        """The reply to a write was lost.

        Of earlier ones those are forgotten for which nobody waits any more, as a backend may lose replies for
        hours: should one of them land, its commit shows that as any other does. One is enough for the slot to
        stay in doubt.
        """
        self._in_doubt = {
            digest: earlier
            for digest, earlier in self._in_doubt.items()
            if any(not append.future.done() for append, _ in earlier.placed)
        }
        self._in_doubt[write.tail.digest] = msgspec.structs.replace(write, ops=[])
        for append, _ in write.placed:
            append.in_doubt = True

    def forget(self) -> None:
        """Nobody waits any more for what is in doubt, and the tail is to be read again."""
        self.known = None
        self._in_doubt.clear()

    def _end_doubt(self) -> None:
        """The slot is filled: what was sent to it and is not what fills it will never land."""
        for write in self._in_doubt.values():
            for append, _ in write.placed:
                append.in_doubt = False
        self._in_doubt.clear()


def _tail_of(commit: Commit) -> Tail:
    if commit.is_seal:
        raise Sealed("the log was sealed and goes on elsewhere")
    return Tail(commit.last, commit.digest, commit.at, commit.first, commit.turn)
