"""The journal: what was changed at a place that is being moved, for the mover to follow.

Owns `Journalled`, a driver around a driver that puts one document `j!{write id}`, naming the changed keys,
into each atomic write, and the form of that document. A change and its entry are one write, so what the
mover drains is all that changed. Leaves draining to `core/transfer.py`, and when to journal to routing.

Appends to a log are not journalled: commits follow one another, and each names its markers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from engines.codec import Codec
from engines.core.keys import join, within
from engines.errors import TooLarge, Unavailable
from engines.ports.documents import ALWAYS, OPS_MAX, Absent, Doc, DocumentDriver, Op, Page, Put

JOURNAL_ABOVE, JOURNAL_BELOW = within("j")


class _Changed(msgspec.Struct, frozen=True, tag_field="schema", tag="journal/1"):
    """The keys that one write changed."""

    keys: tuple[str, ...]


_CODEC = Codec(_Changed)


def changed_keys(doc: Doc) -> tuple[str, ...]:
    """What an entry of the journal names."""
    return _CODEC.decode(doc.body).keys


class Journalled:
    """A `DocumentDriver` whose writes to `shards` leave an entry; each has room for one op less.

    Elsewhere stand the segments of logs, where only appends pass: a redaction or a trim, which rewrite what a
    mover has copied, is Unavailable until the move is over.
    """

    def __init__(self, driver: DocumentDriver, shards: Collection[str]) -> None:
        self._driver = driver
        self._shards = frozenset(shards)

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        return await self._driver.get(partition, keys)

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        return await self._driver.scan(partition, above=above, below=below, limit=limit, reverse=reverse)

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        if partition in self._shards:
            if len(ops) == OPS_MAX:
                raise TooLarge(f"while its tenant is moved, a write holds at most {OPS_MAX - 1} documents")
            entry = _CODEC.encode(_Changed(tuple(op.key for op in ops)))
            ops = [*ops, Put(join("j", write_id), entry, ALWAYS)]
        elif not all(isinstance(op.when, Absent) for op in ops):
            raise Unavailable("this log is being moved to another backend; try again later")
        await self._driver.write(partition, ops, write_id=write_id)

    async def provision(self) -> None:
        await self._driver.provision()

    async def reclaim(self, limit: int) -> int:
        return await self._driver.reclaim(limit)

    async def close(self) -> None:
        """Nothing: the driver belongs to whoever opened it."""
