"""The chain: how the commits of one stream lie in segments, and how one of them is found.

Owns the partitions of a stream, its segment size and floor as stored, and every read of commits. Leaves
writing to `core/committer.py` and what readers are given to `core/log.py`.

A commit stands in the segment (partition) of its first position and may run past the segment's end. It
holds no more events than a segment has positions, so no segment is ever skipped: a commit that starts in
segment k ends before the last position of k+1, and the next one starts in k or k+1. Hence the commit that
holds p stands in p's segment or in the one before, and the segments that hold commits are consecutive.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engines.core.commits import (
    COMMITS_ABOVE,
    COMMITS_BELOW,
    FLOOR,
    NO_FLOOR,
    STREAM,
    Commit,
    Floor,
    StreamRecord,
    commit_key,
    decode_commit,
    floor_key,
    stream_key,
)
from engines.core.documents import Documents
from engines.core.keys import partition, shard_of
from engines.errors import Conflict, Corrupt, Gone, Invalid
from engines.ports.documents import ABSENT, SCAN_LIMIT_MAX, Put

SEGMENT_SIZE_DEFAULT: Final = 50_000
SEGMENT_SIZE_MIN: Final = 2
# A backend whose scans are no snapshots can show a commit and not the one before it; once more shows both.
GAP_READS_MAX: Final = 3


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a stream lies: the parts of its partitions' names, and the partition of its own record."""

    kind: str
    tenant_id: str
    env: str
    stream: str
    shard_partition: str
    generation: int = 0


class Stretch(msgspec.Struct, frozen=True):
    """Successive commits. `end`: there was nothing beyond them when they were read."""

    commits: list[Commit]
    end: bool


class Chain:
    """The commits of one stream, as stored. Nothing but the segment size, the floor and a density is kept."""

    def __init__(self, documents: Documents, address: Address, *, segment_size_default: int) -> None:
        assert segment_size_default >= SEGMENT_SIZE_MIN
        self.documents = documents
        self.address = address
        self.segment_size = 0
        self.floor: Floor = NO_FLOOR
        self._segment_size_default = segment_size_default
        self._events_per_commit = 1.0

    def segment_of(self, position: int) -> int:
        return position // self.segment_size

    def partition(self, segment: int) -> str:
        at = self.address
        shard = f"{at.stream}.{segment}"
        return partition(at.kind, at.tenant_id, at.env, shard, generation=at.generation)

    # --- the stream's own record and its floor ---

    async def open(self) -> bool:
        """Learn the segment size and the floor; False where nothing was ever appended."""
        return self.segment_size > 0 or await self.reload()

    async def reload(self) -> bool:
        """Read the stream's record and floor; False where there is none."""
        keys = (stream_key(self.address.stream), floor_key(self.address.stream))
        docs = await self.documents.get_many(self.address.shard_partition, keys)
        if (record := docs.get(keys[0])) is not None:
            self.segment_size = STREAM.decode(record.body).segment_size
        if (floor := docs.get(keys[1])) is not None:
            self.floor = FLOOR.decode(floor.body)
        return record is not None

    async def create(self) -> None:
        """Fix the segment size, before the first commit. Whoever comes first fixes it for all."""
        record = StreamRecord(self._segment_size_default)
        put = Put(stream_key(self.address.stream), STREAM.encode(record), ABSENT)
        try:
            await self.documents.write(self.address.shard_partition, [put])
        except Conflict:
            if not await self.reload():
                raise Corrupt("a stream's record was written and cannot be read") from None
        else:
            self.segment_size = record.segment_size

    # --- one commit ---

    async def starting_at(self, first: int) -> Commit | None:
        """The commit in the slot `first`."""
        key = commit_key(first)
        doc = await self.documents.get(self.partition(self.segment_of(first)), key)
        return None if doc is None else decode_commit(key, doc.body)

    async def last_in(self, segment: int, *, since: int = 0, up_to: int | None = None) -> Commit | None:
        """The last commit of a segment, of those that start at `since` or after and at `up_to` or before."""
        above = COMMITS_ABOVE if since == 0 else commit_key(since - 1)
        below = COMMITS_BELOW if up_to is None else commit_key(up_to + 1)
        page = await self.documents.scan(
            self.partition(segment), above=above, below=below, limit=1, reverse=True
        )
        return decode_commit(page.docs[0].key, page.docs[0].body) if page.docs else None

    async def up_to(self, position: int) -> Commit | None:
        """The last commit that starts at `position` or before, of those that could reach it."""
        segment = self.segment_of(position)
        commit = await self.last_in(segment, up_to=position)
        if commit is None and segment > 0:
            commit = await self.last_in(segment - 1)
        return commit

    async def holding(self, position: int) -> Commit | None:
        """The commit that holds `position`; None past the end. Raises Gone below the floor."""
        commit = await self.up_to(position)
        if commit is not None and commit.first <= position <= commit.last:
            return commit
        await self.check_floor(position)
        return None

    async def tail(self, known: int = 0) -> Commit | None:
        """The last commit of the log; None where it is empty.

        Gallops over segments with scans of one document, from the position `known` on (where a commit
        starts), else from the floor. One read where the last commit of its segment does not reach the end.
        """
        low = self.segment_of(known or self.floor.position + 1)
        found = await self.last_in(low, since=known)
        if found is None:
            # Behind `known` the log may have lost its end, in a restore: what is known then proves nothing.
            return await (self.tail() if known else self._tail_behind_floor(low))
        high, step = 0, 1
        while self.segment_of(found.last + 1) != low and high - low != 1:
            probed = low + step if high == 0 else (low + high) // 2
            commit = await self.last_in(probed)
            if commit is None:
                high = probed
            else:
                low, found = probed, commit
            step = step * 2 if high == 0 else step
        return found

    async def _tail_behind_floor(self, looked_in: int) -> Commit | None:
        """Nothing stood in a segment: the log is empty, or was trimmed past it since its floor was read."""
        await self.reload()
        first_segment = self.segment_of(self.floor.position + 1)
        return await self.tail() if first_segment != looked_in else None

    # --- several commits ---

    async def after(self, position: int, *, events: int, boundary: bool = False) -> Stretch:
        """Commits from the one that holds `position` + 1 on, enough for about `events`, within one segment.

        `boundary`: a commit is known to end at `position`, which saves a read at the end of the log. Raises
        Gone below the floor, Invalid where `position` is past the end, Corrupt where a commit is missing.
        """
        for _ in range(GAP_READS_MAX):
            if position < self.floor.position:
                break
            stretch = await self._after(position, events=events, boundary=boundary)
            if stretch is not None:
                return stretch
            await self.reload()
        await self.check_floor(position + 1)
        raise Corrupt(f"the log has no commit that holds position {position + 1} and has later ones")

    async def _after(self, position: int, *, events: int, boundary: bool) -> Stretch | None:
        """None where a commit seems to be missing."""
        segment = self.segment_of(position + 1)
        page = await self.documents.scan(
            self.partition(segment),
            above=commit_key(position),
            below=COMMITS_BELOW,
            limit=self._commit_count(events),
        )
        commits = [decode_commit(doc.key, doc.body) for doc in page.docs]
        if not commits or commits[0].first != position + 1:
            if not boundary:
                before = await self._reaching(position, is_end=not commits)
                if before is not None and before.last > position:
                    commits.insert(0, before)
            if commits and commits[0].first > position + 1:
                return None
        whole = _contiguous(commits)
        self._observe(whole)
        last = whole[-1].last if whole else position
        end = len(whole) == len(commits) and page.resume is None and self.segment_of(last + 1) == segment
        return Stretch(whole, end)

    async def _reaching(self, position: int, *, is_end: bool) -> Commit | None:
        """The commit that holds `position`; None at the floor. Raises Gone, and at the end Invalid."""
        if position > self.floor.position:
            commit = await self.up_to(position)
            if commit is not None and commit.last >= position:
                return commit
        await self.check_floor(position + 1)
        if is_end and position > self.floor.position:
            tail = await self.tail()
            if tail is None or tail.last < position:
                raise Invalid("the cursor is past the end of the log", field="after")
        return None

    async def before(self, position: int, *, events: int) -> list[Commit]:
        """Commits from the one that holds `position` - 1 down, enough for about `events`, within one segment.

        Empty where the log begins at `position`. Raises Gone, Invalid, Corrupt as `after` does.
        """
        for _ in range(GAP_READS_MAX):
            if position <= self.floor.position + 1:
                break
            commits = await self._before(position, events=events)
            if commits is not None:
                return commits
            await self.reload()
        if position == self.floor.position + 1:
            return []
        await self.check_floor(position - 1)
        raise Corrupt(f"the log has no commit that holds position {position - 1}")

    async def _before(self, position: int, *, events: int) -> list[Commit] | None:
        segment = self.segment_of(position - 1)
        for candidate in (segment, segment - 1) if segment > 0 else (segment,):
            page = await self.documents.scan(
                self.partition(candidate),
                above=COMMITS_ABOVE,
                below=commit_key(position),
                limit=self._commit_count(events),
                reverse=True,
            )
            if page.docs:
                commits = [decode_commit(doc.key, doc.body) for doc in page.docs]
                self._observe(commits)
                if commits[0].last >= position - 1:
                    return _contiguous_down(commits)
                break
        tail = await self.tail()
        if tail is None or tail.last < position - 1:
            raise Invalid("the cursor is past the end of the log", field="after")
        return None

    async def check_floor(self, position: int) -> None:
        """Raises Gone where `position` was trimmed; reads the floor again first."""
        await self.reload()
        if position <= self.floor.position:
            raise Gone(f"events up to position {self.floor.position} are no longer kept")

    def _commit_count(self, events: int) -> int:
        """How many commits probably hold that many events, one more for the cut at either end."""
        return max(1, min(SCAN_LIMIT_MAX, int(events / self._events_per_commit) + 2))

    def _observe(self, commits: list[Commit]) -> None:
        if commits:
            self._events_per_commit = max(1.0, sum(len(commit.events) for commit in commits) / len(commits))


def _contiguous(commits: list[Commit]) -> list[Commit]:
    """The commits up to the first gap. A seal ends the log, so it is taken and nothing after it."""
    for index in range(1, len(commits)):
        if commits[index].first != commits[index - 1].last + 1 or commits[index - 1].is_seal:
            return commits[:index]
    return commits


def _contiguous_down(commits: list[Commit]) -> list[Commit]:
    for index in range(1, len(commits)):
        if commits[index].last + 1 != commits[index - 1].first:
            return commits[:index]
    return commits


def chain_of(
    documents: Documents,
    stream: str,
    *,
    kind: str,
    tenant_id: str,
    env: str,
    shards: int,
    generation: int,
) -> Chain:
    """The chain of a stream whose kind is spread over `shards`, for who looks at what is stored. No call."""
    address = Address(
        kind=kind,
        tenant_id=tenant_id,
        env=env,
        stream=stream,
        shard_partition=partition(kind, tenant_id, env, shard_of(stream, shards), generation=generation),
        generation=generation,
    )
    return Chain(documents, address, segment_size_default=SEGMENT_SIZE_DEFAULT)
