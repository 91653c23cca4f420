"""Transfer: documents and logs from one place to another, while the first is being used.

Owns copying a partition, draining its journal, comparing both sides, and copying a log commit by commit. What
arrives has the body, the version and the expiry that it had, so ETags, cursors and idempotency markers go
on working. Leaves the order of these steps, and the pause at their end, to `routing/mover.py`.

Two movers may be at work at once, because one that was paused does not know that another took over. Each
write to a partition of documents therefore replaces the partition's fence, a document of the mover's own,
under Match; whoever claims the fence ends every earlier mover. A log needs none: commits never change, and
are created under Absent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, TypeVar

import msgspec

from engines.codec import Codec, escaped_bytes
from engines.core.chain import Chain
from engines.core.commits import COMMITS_BELOW, GENESIS, Commit, commit_key, decode_commit
from engines.core.documents import Documents
from engines.core.journal import JOURNAL_ABOVE, JOURNAL_BELOW, changed_keys
from engines.core.keys import join, within
from engines.core.repeats import marker_key
from engines.errors import Conflict, Corrupt, OutcomeUnknown, Unavailable
from engines.ports.documents import (
    ABSENT,
    ALWAYS,
    GET_KEYS_MAX,
    OPS_MAX,
    Delete,
    Doc,
    Match,
    Op,
    Put,
)

FENCE_KEY: Final = join("m", "move")
# Below and above every key; keys begin with a lower-case letter.
EVERYTHING_ABOVE: Final = "a"
EVERYTHING_BELOW: Final = "zz"
# Well within one write; the fence takes an op.
BATCH_OPS: Final = OPS_MAX - 1
BATCH_BYTES: Final = 768 * 1024
PAGE_DOCS: Final = 500
COMMITS_A_PAGE: Final = 100
# What differs is looked at so often, each time after what changed was copied, before it counts as wrong.
COMPARED_AGAIN: Final = 4
# Of one write that others meet, or that a backend does not take.
ATTEMPTS_MAX: Final = 20
# Changed keys that are remembered for the last comparison; past them the whole partition is compared again.
TOUCHED_MAX: Final = 10_000

T = TypeVar("T")


class Superseded(Unavailable):
    """Another mover took over. Stop: it goes on from what is there."""

    code = Unavailable.code


class _Fence(msgspec.Struct, frozen=True, tag_field="schema", tag="fence/1"):
    """Who copies into a partition, and up to which key (None: not begun; "": all) it was copied.

    `ended`: the partition is live, and no mover writes there any more.
    """

    mover: str
    copied_to: str | None = None
    ended: bool = False


_FENCE: Final = Codec(_Fence)


class Tally(msgspec.Struct):
    """What was done so far; added to as it is done."""

    documents: int = 0
    bytes: int = 0
    repaired: int = 0
    removed: int = 0

    def add(self, docs: Sequence[Doc]) -> None:
        self.documents += len(docs)
        self.bytes += sum(len(doc.body.encode()) for doc in docs)


class PartitionTransfer:
    """One partition of documents, one step at a time: nothing is copied after it was drained anew."""

    def __init__(
        self,
        source: Documents,
        target: Documents,
        *,
        source_partition: str,
        target_partition: str,
        mover: str,
        tally: Tally,
    ) -> None:
        self.source_partition = source_partition
        self.target_partition = target_partition
        self._source = source
        self._target = target
        self._fence = _Fence(mover)
        self._fence_version = ""
        self._tally = tally
        self._touched: set[str] = set()

    @property
    def is_copied(self) -> bool:
        return self._fence.copied_to == ""

    async def claim(self) -> None:
        """Take the partition over, and go on from where an earlier mover came to."""
        doc = await self._target.get(self.target_partition, FENCE_KEY)
        if doc is not None:
            standing = _FENCE.decode(doc.body)
            if standing.ended:
                raise Superseded("the move has ended")
            self._fence = msgspec.structs.replace(self._fence, copied_to=standing.copied_to)
        put = Put(FENCE_KEY, _FENCE.encode(self._fence), ABSENT if doc is None else Match(doc.version))
        try:
            self._fence_version = await self._target.write(self.target_partition, [put])
        except Conflict as conflict:
            raise Superseded("another mover claimed the partition") from conflict

    async def copy(self) -> None:
        """Copy what stands there, page by page. Changes meanwhile are in the journal."""
        while not self.is_copied:
            above = self._fence.copied_to or EVERYTHING_ABOVE
            page = await self._source.scan(
                self.source_partition, above=above, below=EVERYTHING_BELOW, limit=PAGE_DOCS
            )
            docs = [doc for doc in page.docs if not _is_movers_own(doc.key)]
            await self._write([_as_it_is(doc) for doc in docs], copied_to=page.resume or "")
            self._tally.add(docs)

    async def drain(self) -> int:
        """Bring what the journal names up to date and empty it; how many entries that were."""
        drained = 0
        resume: str | None = JOURNAL_ABOVE
        while resume is not None:
            page = await self._source.scan(
                self.source_partition, above=resume, below=JOURNAL_BELOW, limit=PAGE_DOCS
            )
            resume = page.resume
            keys = list(dict.fromkeys(key for doc in page.docs for key in changed_keys(doc)))
            await self._bring_up_to_date(keys)
            self._touch(keys)
            for entries in _chunks(page.docs, OPS_MAX):
                await self._source.write(
                    self.source_partition, [Delete(entry.key, ALWAYS) for entry in entries]
                )
            drained += len(page.docs)
        return drained

    async def compare(self) -> None:
        """Compare both sides whole, and mend what differs: a write that nobody acknowledged may be late."""
        self._touched.clear()
        above = EVERYTHING_ABOVE
        while True:
            page = await self._source.scan(
                self.source_partition, above=above, below=EVERYTHING_BELOW, limit=PAGE_DOCS
            )
            below = EVERYTHING_BELOW if page.resume is None else page.resume + "!"
            there = await self._scan_target(above, below)
            here = {doc.key: doc for doc in page.docs if not _is_movers_own(doc.key)}
            await self._mend([key for key in {*here, *there} if here.get(key) != there.get(key)])
            if page.resume is None:
                return
            above = page.resume

    async def compare_touched(self) -> None:
        """The same for what was drained since the last comparison; the whole of it, if that was too much."""
        if len(self._touched) > TOUCHED_MAX:
            await self.compare()
            return
        await self._mend(await self._different(sorted(self._touched)))
        self._touched.clear()

    async def finish(self) -> None:
        """Close the fence for ever, whoever holds it: a mover that was paused all the while finds it so.

        May be repeated, by another mover too. Raises Unavailable where others keep changing the fence.
        """
        for _ in range(ATTEMPTS_MAX):
            doc = await self._target.get(self.target_partition, FENCE_KEY)
            fence = self._fence if doc is None else _FENCE.decode(doc.body)
            if fence.ended:
                return
            ended = _FENCE.encode(msgspec.structs.replace(fence, ended=True))
            put = Put(FENCE_KEY, ended, ABSENT if doc is None else Match(doc.version))
            try:
                await self._target.write(self.target_partition, [put])
            except Conflict:
                continue
            return
        raise Unavailable("other movers kept changing a partition's fence")

    async def _scan_target(self, above: str, below: str) -> dict[str, Doc]:
        found: dict[str, Doc] = {}
        resume: str | None = above
        while resume is not None:
            page = await self._target.scan(self.target_partition, above=resume, below=below, limit=PAGE_DOCS)
            found.update((doc.key, doc) for doc in page.docs if not _is_movers_own(doc.key))
            resume = page.resume
        return found

    async def _mend(self, keys: Sequence[str]) -> None:
        """Of what differs, most changed between the two reads, and is in the journal."""
        for _ in range(COMPARED_AGAIN):
            if not keys:
                return
            await self.drain()
            keys = await self._different(keys)
        self._tally.repaired += len(keys)
        await self._bring_up_to_date(keys)
        self._touch(keys)

    async def _different(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that are not the same on both sides now."""
        different: list[str] = []
        for chunk in _chunks(keys, GET_KEYS_MAX):
            here = await self._source.get_many(self.source_partition, chunk)
            there = await self._target.get_many(self.target_partition, chunk)
            different += [key for key in chunk if here.get(key) != there.get(key)]
        return different

    async def _bring_up_to_date(self, keys: Sequence[str]) -> None:
        for chunk in _chunks(keys, GET_KEYS_MAX):
            docs = await self._source.get_many(self.source_partition, chunk)
            ops: list[Op] = [
                _as_it_is(docs[key]) if key in docs else Delete(key, ALWAYS)
                for key in chunk
                if not _is_movers_own(key)
            ]
            await self._write(ops)

    def _touch(self, keys: Sequence[str]) -> None:
        if len(self._touched) <= TOUCHED_MAX:
            self._touched.update(keys)

    async def _write(self, ops: Sequence[Op], *, copied_to: str | None = None) -> None:
        """Write at the target behind the fence. The mark moves with the last batch, when all is there."""
        parts = list(batches(ops))
        if copied_to is not None and not parts:
            parts = [[]]
        for number, batch in enumerate(parts, 1):
            fence = self._fence
            if copied_to is not None and number == len(parts):
                fence = msgspec.structs.replace(fence, copied_to=copied_to)
            put = Put(FENCE_KEY, _FENCE.encode(fence), Match(self._fence_version))
            try:
                self._fence_version = await self._target.write(self.target_partition, [*batch, put])
            except Conflict as conflict:
                raise Superseded("another mover took over") from conflict
            self._fence = fence


class LogTransfer:
    """One stream. Its own record and its floor stand in a shard, and came with that."""

    def __init__(self, source: Chain, target: Chain, *, tally: Tally) -> None:
        self._source = source
        self._target = target
        self._tally = tally
        self._position: int | None = None
        self._digest = GENESIS
        self._compared: str | None = None

    async def follow(self) -> int:
        """Copy the commits that the target does not have; how many that were.

        Raises Corrupt where the log does not hold what its digests say.
        """
        if self._position is None and not await self._open():
            return 0
        copied = 0
        while True:
            assert self._position is not None
            segment = self._source.segment_of(self._position + 1)
            page = await self._source.documents.scan(
                self._source.partition(segment),
                above=commit_key(self._position),
                below=COMMITS_BELOW,
                limit=COMMITS_A_PAGE,
            )
            if not page.docs:
                return copied
            await self._copy(segment, page.docs)
            copied += len(page.docs)

    async def compare(self) -> None:
        """Raises Corrupt where the target does not end in the commit that was copied last."""
        if self._position is None or self._compared == self._digest:
            return
        last = await self._target.tail()
        if (last.last, last.digest) != (self._position, self._digest) if last else self._digest != GENESIS:
            raise Corrupt("the copy of a log does not end where the log does")
        self._compared = self._digest

    async def _open(self) -> bool:
        """Learn how far the target has come; False where nothing was ever appended."""
        if not (await self._source.open() and await self._target.open()):
            return False
        last = await self._target.tail()
        if last is not None:
            self._position, self._digest = last.last, last.digest
        else:
            self._position, self._digest = self._source.floor.position, self._source.floor.digest
        return True

    async def _copy(self, segment: int, docs: Sequence[Doc]) -> None:
        markers: list[str] = []
        for doc in docs:
            commit = self._checked(decode_commit(doc.key, doc.body))
            markers += [marker_key(item.id) for item in commit.events if item.id is not None]
            markers += commit.requests
            self._position, self._digest = commit.last, commit.digest
        found: list[Doc] = []
        for keys in _chunks(list(dict.fromkeys(markers)), GET_KEYS_MAX):
            there = await self._source.documents.get_many(self._source.partition(segment), keys)
            found += there.values()
        # Markers first: a commit that is there says that they are.
        for batch in batches([_if_new(doc) for doc in (*found, *docs)]):
            await self._put(self._target.partition(segment), batch)
        self._tally.add(docs)

    def _checked(self, commit: Commit) -> Commit:
        assert self._position is not None
        if (
            commit.is_seal
            or commit.first != self._position + 1
            or commit.previous != self._digest
            or commit.computed_digest() != commit.digest
        ):
            raise Corrupt(f"the log does not verify at position {commit.first}")
        return commit

    async def _put(self, partition: str, ops: Sequence[Op]) -> None:
        """Write what is not there yet: an earlier mover may have written some of it, or be at it."""
        for _ in range(ATTEMPTS_MAX):
            try:
                await self._target.documents.write(partition, ops)
            except (Conflict, OutcomeUnknown):
                there = await self._target.documents.get_many(partition, [op.key for op in ops])
                ops = [op for op in ops if op.key not in there]
                if not ops:
                    return
            else:
                return
        raise Unavailable("the target answers reads and takes no writes")


def _as_it_is(doc: Doc) -> Put:
    return Put(doc.key, doc.body, ALWAYS, expires_at=doc.expires_at, write_id=doc.version)


def _is_movers_own(key: str) -> bool:
    return key == FENCE_KEY or JOURNAL_ABOVE < key < JOURNAL_BELOW


def _if_new(doc: Doc) -> Put:
    return Put(doc.key, doc.body, ABSENT, expires_at=doc.expires_at, write_id=doc.version)


def batches(
    ops: Sequence[Op], *, ops_max: int = BATCH_OPS, bytes_max: int = BATCH_BYTES
) -> Iterator[list[Op]]:
    """Successive parts of `ops`, each within one write."""
    batch: list[Op] = []
    size = 0
    for op in ops:
        op_bytes = escaped_bytes(op.body) if isinstance(op, Put) else 0
        if batch and (len(batch) == ops_max or size + op_bytes > bytes_max):
            yield batch
            batch, size = [], 0
        batch.append(op)
        size += op_bytes
    if batch:
        yield batch


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


async def everything(documents: Documents, partition: str) -> AsyncIterator[Sequence[Doc]]:
    """What stands in a partition, but for the mover's own documents, page by page."""
    resume: str | None = EVERYTHING_ABOVE
    while resume is not None:
        page = await documents.scan(partition, above=resume, below=EVERYTHING_BELOW, limit=PAGE_DOCS)
        yield [doc for doc in page.docs if not _is_movers_own(doc.key)]
        resume = page.resume


async def stream_names(documents: Documents, shard_partition: str) -> list[str]:
    """The streams whose own record stands in this shard."""
    above, below = within("s")
    names: list[str] = []
    resume: str | None = above
    while resume is not None:
        page = await documents.scan(shard_partition, above=resume, below=below)
        names += [doc.key[len(above) :] for doc in page.docs]
        resume = page.resume
    return names


async def segments(chain: Chain) -> list[str]:
    """The partitions in which a stream's commits and markers may stand, the newest first.

    Emptied in this order, those that are left are found again after an interruption.
    """
    if not await chain.open():
        return []
    last = await chain.tail()
    newest = chain.segment_of(chain.floor.position + 1 if last is None else last.first)
    # One more: of a segment that was being emptied the commits are gone, and markers may be left.
    return [chain.partition(segment) for segment in range(newest + 1, chain.floor.swept - 1, -1)]


async def empty(documents: Documents, partition: str, tally: Tally, *, journal_only: bool = False) -> None:
    """Remove every document of a partition, or its journal alone."""
    above, below = (JOURNAL_ABOVE, JOURNAL_BELOW) if journal_only else (EVERYTHING_ABOVE, EVERYTHING_BELOW)
    while True:
        page = await documents.scan(partition, above=above, below=below, limit=PAGE_DOCS)
        for docs in _chunks(page.docs, OPS_MAX):
            await documents.write(partition, [Delete(doc.key, ALWAYS) for doc in docs])
            tally.removed += len(docs)
        if page.resume is None:
            return
        above = page.resume
