"""The index: where in a log the events with a certain value stand, derived from the log itself.

Owns the form of entries and where they lie. Positions are counted in blocks of a fixed size. All that is
known of one value within one block is one document, a posting, whose key and text follow from the events
of the block alone: who writes a block again, late or beside another, writes the same. So writing needs no
condition and no order; only the checkpoint (`core/feed.py`) says which blocks are whole. Leaves what the
values are to its user (`stores/event_index.py`), which also checks each event found: an entry may outlive
what it says, as after a redaction.

    index                        the layout, the checkpoint, the lease
    index.{segment}.{shard}      x!{view}!{value}!{block:012d}: a posting

A segment is a stretch of blocks, a shard part of the values, so no partition outgrows a bound. Where these
parts lie is its user's to say. Beside its log (`beside_log`) each has a partition of its own, whose name ends
in the generation of the place: a log that was moved begins with an empty index, and its index is made anew.
An index that shares partitions with others has a name, which stands in its keys before everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from engines.codec import Codec
from engines.core.chain import Chain
from engines.core.documents import Documents
from engines.core.feed import Feed, position_of
from engines.core.keys import join, partition, shard_of
from engines.errors import Conflict, Corrupt
from engines.ports.documents import ABSENT, ALWAYS, Doc, Op, Put

# A write leaves room for one op more, as a journal takes it.
WRITE_OPS: Final = 99
# Postings read at once: of the most frequent value they hold 64,000 positions in a quarter of a MiB.
SCAN_POSTINGS: Final = 64
_BLOCK_DIGITS: Final = 12
_BLOCKS_MAX: Final = 10**_BLOCK_DIGITS


class Layout(msgspec.Struct, frozen=True, tag_field="schema", tag="index_layout/1"):
    """Events a block, blocks a segment, shards a segment; fixed for each index by its first use."""

    block: int = 1_000
    segment_blocks: int = 1_000
    shards: int = 4


class _Posting(msgspec.Struct, frozen=True, tag_field="schema", tag="posting/1"):
    """Where in its block a value occurs: 0 is the block's first position."""

    offsets: tuple[int, ...]


_LAYOUT: Final = Codec(Layout)
_POSTING: Final = Codec(_Posting)

Entries = Mapping[tuple[str, str], Sequence[int]]
"""For each (view, value) the positions of its events, ascending, all within one block."""
Locate = Callable[[str], str]
"""From a part of an index to the partition in which it lies."""


class Found(msgspec.Struct, frozen=True):
    """Positions in the order asked for. `reached`: up to there, included, none was left out."""

    positions: tuple[int, ...]
    reached: int


class Index:
    """The index of one log, as it lies on its backend. Nothing is kept but the layout."""

    def __init__(
        self, documents: Documents, locate: Locate, *, layout_default: Layout, name: tuple[str, ...] = ()
    ) -> None:
        """Nothing is read yet. `name`: where other indices, or records, lie in the same partitions."""
        self.documents = documents
        self.layout = layout_default
        self.root = locate("index")
        self.work = join(*name, "index")
        """What its checkpoint and its lease are called."""
        self._locate = locate
        self._layout_default = layout_default
        self._layout_key = join("m", *name, "layout")
        self._prefix = join("x", *name)

    def feed(self) -> Feed:
        """The work of making it. Call `create` first, which learns the layout."""
        return Feed(self.documents, self.root, self.work, size=self.layout.block)

    async def projected(self) -> int:
        """Learn the layout, and up to which position the index is whole. One read."""
        checkpoint_key = self.feed().key
        docs = await self.documents.get_many(self.root, (self._layout_key, checkpoint_key))
        if (layout := docs.get(self._layout_key)) is not None:
            self.layout = _LAYOUT.decode(layout.body)
        return position_of(docs.get(checkpoint_key))

    async def exists(self) -> bool:
        """Learn the layout; False where nothing was ever projected."""
        doc = await self.documents.get(self.root, self._layout_key)
        if doc is not None:
            self.layout = _LAYOUT.decode(doc.body)
        return doc is not None

    async def create(self) -> None:
        """Learn the layout or fix it. Whoever comes first fixes it for all."""
        if await self.exists():
            return
        put = Put(self._layout_key, _LAYOUT.encode(self._layout_default), ABSENT)
        try:
            await self.documents.write(self.root, [put])
        except Conflict:
            if not await self.exists():
                raise Corrupt("the layout of an index was written and cannot be read") from None
        else:
            self.layout = self._layout_default

    async def write(self, block: int, entries: Entries) -> None:
        """Write all postings of one block, the same at every attempt. Durable once it returns."""
        assert 0 <= block < _BLOCKS_MAX
        first = block * self.layout.block + 1
        by_partition: dict[str, list[Op]] = {}
        for (view, value), positions in entries.items():
            body = _POSTING.encode(_Posting(tuple(position - first for position in positions)))
            put = Put(self._key(view, value, block), body, ALWAYS)
            by_partition.setdefault(self._shard(view, value, block), []).append(put)
        for name, ops in by_partition.items():
            for start in range(0, len(ops), WRITE_OPS):
                await self.documents.write(name, ops[start : start + WRITE_OPS])

    async def above(self, view: str, value: str, position: int, *, up_to: int) -> Found:
        """Some of the positions behind `position` and up to `up_to`, ascending; `reached` says how many."""
        block = position // self.layout.block
        last_of_segment = (block // self.layout.segment_blocks + 1) * self.layout.segment_blocks - 1
        docs, end = await self._scan(view, value, block, last_of_segment, reverse=False)
        found = tuple(at for at in self._positions(docs) if position < at <= up_to)
        last_block = last_of_segment if end else _block_of(docs[-1])
        return Found(found, min(up_to, (last_block + 1) * self.layout.block))

    async def below(self, view: str, value: str, position: int) -> Found:
        """Some of the positions before `position`, descending; `reached` says how many, 1 says all."""
        block = (position - 2) // self.layout.block
        first_of_segment = block // self.layout.segment_blocks * self.layout.segment_blocks
        docs, end = await self._scan(view, value, first_of_segment, block, reverse=True)
        found = tuple(at for at in sorted(self._positions(docs), reverse=True) if at < position)
        first_block = first_of_segment if end else _block_of(docs[-1])
        return Found(found, first_block * self.layout.block + 1)

    def partitions(self, position: int) -> Iterator[str]:
        """All partitions of an index of events up to `position`, the root last."""
        segments = position // (self.layout.block * self.layout.segment_blocks) + 1
        for segment in range(segments):
            for shard in range(self.layout.shards):
                yield self._locate(f"index.{segment}.{shard}")
        yield self.root

    async def _scan(
        self, view: str, value: str, first: int, last: int, *, reverse: bool
    ) -> tuple[Sequence[Doc], bool]:
        """The first postings of blocks `first` to `last`, of one segment; whether those are all."""
        shard = self._shard(view, value, first)
        above = self._key(view, value, first - 1) if first > 0 else join(self._prefix, view, value, "")
        below = self._key(view, value, last + 1)
        while True:
            page = await self.documents.scan(
                shard, above=above, below=below, limit=SCAN_POSTINGS, reverse=reverse
            )
            if page.docs or page.resume is None:
                return page.docs, page.resume is None
            above, below = (above, page.resume) if reverse else (page.resume, below)

    def _positions(self, docs: Sequence[Doc]) -> Iterator[int]:
        for doc in docs:
            first = _block_of(doc) * self.layout.block + 1
            for offset in _POSTING.decode(doc.body).offsets:
                yield first + offset

    def _shard(self, view: str, value: str, block: int) -> str:
        shard = shard_of(join(view, value), self.layout.shards)
        return self._locate(f"index.{block // self.layout.segment_blocks}.{shard}")

    def _key(self, view: str, value: str, block: int) -> str:
        return join(self._prefix, view, value, f"{block:0{_BLOCK_DIGITS}d}")


def _block_of(doc: Doc) -> int:
    return int(doc.key[-_BLOCK_DIGITS:])


def beside_log(kind: str, tenant_id: str, env: str, stream: str, *, generation: int) -> Locate:
    """The partitions of an index that lies where its log does: `{kind}.{tenant}.{env}.{stream}.{part}`."""
    return lambda part: partition(kind, tenant_id, env, f"{stream}.{part}", generation=generation)


async def index_partitions(chain: Chain) -> list[str]:
    """The partitions beside a stream in which its index may lie, if it has one."""
    at = chain.address
    locate = beside_log(at.kind, at.tenant_id, at.env, at.stream, generation=at.generation)
    index = Index(chain.documents, locate, layout_default=Layout())
    if not await index.exists() or not await chain.open():
        return []
    last = await chain.tail()
    return list(index.partitions(0 if last is None else last.last))
