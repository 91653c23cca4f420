"""Taking away: redaction of events, trimming of old ones, and the seal that ends a log.

Owns the writes that change or remove what a log holds. Leaves who may ask for them to the stores: the
spine, for one, is never trimmed.

The floor is raised before anything is removed, so a reader is told `Gone` and never skips. It holds the
digest of the last commit trimmed, on which the rest of the chain verifies.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from engines.clock import Clock
from engines.core.chain import Chain
from engines.core.commits import (
    COMMIT,
    COMMITS_ABOVE,
    FLOOR,
    GENESIS,
    Commit,
    Floor,
    Item,
    commit_digest,
    commit_key,
    commit_text,
    floor_key,
)
from engines.core.repeats import ID_MARKER, marker_key
from engines.errors import Conflict, Gone, NotFound, Unavailable
from engines.ports.documents import ABSENT, ALWAYS, OPS_MAX, Delete, Match, Op, Put

# A write that is under way, or a writer that was asleep, may still count on the tail it knew: nothing
# younger goes.
TRIM_AGE_MS_MIN: Final = 24 * 3600 * 1000
# Each lost race means that another redaction, trim or append went through.
RACES_MAX: Final = 64
# No partition has a key at or above this one; keys begin with a lower-case letter.
_EVERYTHING_BELOW: Final = "zz"


async def redact(chain: Chain, positions: Iterable[int]) -> None:
    """Rewrite each commit that holds some of `positions` once, without those events' texts and salts."""
    left = sorted(set(positions))
    while left:
        last = await _redact_in_first_commit(chain, left)
        left = left[bisect.bisect_right(left, last) :]


async def _redact_in_first_commit(chain: Chain, positions: Sequence[int]) -> int:
    """Redact those of `positions` that the first one's commit holds; returns the commit's last position."""
    for _ in range(RACES_MAX):
        commit = await chain.holding(positions[0])
        if commit is None:
            raise NotFound("there is no event at this position")
        offsets = [position - commit.first for position in positions if position <= commit.last]
        offsets = [offset for offset in offsets if commit.events[offset].salt is not None]
        if not offsets:
            return commit.last
        partition = chain.partition(chain.segment_of(commit.first))
        ids = [item_id for offset in offsets if (item_id := commit.events[offset].id) is not None]
        keys = [commit_key(commit.first), *map(marker_key, ids)]
        docs = await chain.documents.get_many(partition, keys)
        if keys[0] not in docs or COMMIT.decode(docs[keys[0]].body) != commit:
            continue
        items = list(commit.events)
        for offset in offsets:
            items[offset] = Item(id=items[offset].id, leaf=items[offset].leaf_digest())
        body = COMMIT.encode(msgspec.structs.replace(commit, events=items))
        ops: list[Op] = [Put(keys[0], body, Match(docs[keys[0]].version))]
        for marker in (docs[key] for key in keys[1:] if key in docs):
            bare = msgspec.structs.replace(ID_MARKER.decode(marker.body), digest=None)
            ops.append(Put(marker.key, ID_MARKER.encode(bare), Match(marker.version)))
        try:
            await chain.documents.write(partition, ops)
        except Conflict:
            continue
        return commit.last
    raise Unavailable("others kept changing the commit")


async def trim(chain: Chain, before_position: int, *, now_ms: int) -> int:
    """Raise the floor to the last commit that may go, then remove what is below; returns the floor."""
    if not await chain.reload():
        return 0
    with contextlib.suppress(Gone):  # Another trim went further meanwhile.
        last = await _last_to_go(chain, before_position, now_ms)
        if last is not None:
            await _raise_floor(chain, last)
    await _sweep(chain)
    return chain.floor.position


async def _last_to_go(chain: Chain, before_position: int, now_ms: int) -> Commit | None:
    """The last commit that ends before `before_position`, is old enough and is not the newest."""
    tail = await chain.tail()
    if tail is None:
        return None
    low, high = chain.floor.position, min(before_position - 1, tail.first - 1)
    found: Commit | None = None
    while low < high:
        middle = (low + high + 1) // 2
        commit = await chain.holding(middle)
        if commit is None or commit.last > high or commit.at > now_ms - TRIM_AGE_MS_MIN:
            high = middle - 1 if commit is None else commit.first - 1
        else:
            low, found = commit.last, commit
    return found


async def _raise_floor(chain: Chain, last: Commit) -> None:
    key = floor_key(chain.address.stream)
    for _ in range(RACES_MAX):
        doc = await chain.documents.get(chain.address.shard_partition, key)
        floor = Floor() if doc is None else FLOOR.decode(doc.body)
        if floor.position < last.last:
            floor = Floor(position=last.last, digest=last.digest, at=last.at, swept=floor.swept)
            when = ABSENT if doc is None else Match(doc.version)
            try:
                await chain.documents.write(
                    chain.address.shard_partition, [Put(key, FLOOR.encode(floor), when)]
                )
            except Conflict:
                continue
        chain.floor = floor
        return
    raise Unavailable("others kept moving the floor")


async def _sweep(chain: Chain) -> None:
    """Remove what is below the floor. Interrupted, it is taken up by the next trim.

    Markers stay for as long as a writer may look them up: in the floor's segment and the two before it.
    """
    floor = chain.floor
    whole = max(floor.swept, chain.segment_of(floor.position + 1) - 2)
    for segment in range(floor.swept, whole):
        await _remove(chain, segment, above="a", below=_EVERYTHING_BELOW)
    for segment in range(whole, chain.segment_of(floor.position) + 1):
        await _remove(chain, segment, above=COMMITS_ABOVE, below=commit_key(floor.position + 1))
    if whole > floor.swept:
        await _note_swept(chain, whole)


async def _note_swept(chain: Chain, swept: int) -> None:
    key = floor_key(chain.address.stream)
    doc = await chain.documents.get(chain.address.shard_partition, key)
    if doc is None:
        return
    floor = msgspec.structs.replace(FLOOR.decode(doc.body), swept=swept)
    try:
        await chain.documents.write(
            chain.address.shard_partition, [Put(key, FLOOR.encode(floor), Match(doc.version))]
        )
    except Conflict:
        return  # Another trim moved the floor; the next one sweeps these empty segments again.
    chain.floor = floor


async def _remove(chain: Chain, segment: int, *, above: str, below: str) -> None:
    partition = chain.partition(segment)
    resume: str | None = above
    while resume is not None:
        page = await chain.documents.scan(partition, above=resume, below=below, limit=OPS_MAX)
        if page.docs:
            await chain.documents.write(partition, [Delete(doc.key, ALWAYS) for doc in page.docs])
        resume = page.resume


async def seal(chain: Chain, *, clock: Clock) -> tuple[int, str]:
    """Put an empty commit into the next slot; returns the end. Sealing again succeeds."""
    if not await chain.open():
        await chain.create()
    for _ in range(RACES_MAX):
        tail = await chain.tail()
        if tail is not None and tail.is_seal:
            return tail.last, tail.digest
        position, previous, at = (0, GENESIS, 0) if tail is None else (tail.last, tail.digest, tail.at)
        at = max(int(clock.now() * 1000), at)
        digest = commit_digest(previous, position + 1, at, [])
        body = commit_text(position + 1, at, previous, digest, [])
        partition = chain.partition(chain.segment_of(position + 1))
        try:
            await chain.documents.write(partition, [Put(commit_key(position + 1), body, ABSENT)])
        except Conflict:
            await asyncio.sleep(0)
            continue
        return position, digest
    raise Unavailable("other writers kept taking the next position of the log")
