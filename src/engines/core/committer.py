"""The committer: group commit of one stream by one process.

Owns the queue of requests, the view of the tail, and what becomes of a write whose reply was lost. Leaves the
contents of requests to `core/appends.py` and pauses between processes to `core/contention.py`.

Every commit goes into the slot behind the tail under Absent, and the tail is only ever learned from a
commit. So whatever became of a write, its slot tells: a commit with the write's own digest means that it
landed, any other that it never will, and an empty slot that it still may, but then nobody has passed the
slot either. Until the slot is seen filled, every write sent to it is remembered as in doubt; at most one of
them can land. That is why requests may be packed anew after a lost reply: in whichever write they land,
they land once.

Client ids and request markers are written beside the commit under Absent, which decides within a segment.
Across segments there is a rule: into segment k writes only who knows from a commit that k-1 is closed, and
looks the ids up in k-1 after that was known. Where k-2's last commit ran on into k-1, also there, for as
long as its events are among the last `segment_size`.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from engines.clock import Clock
from engines.core.appends import EVENT_BYTES_MAX, EVENTS_MAX, Append
from engines.core.chain import Chain
from engines.core.commits import GENESIS, Commit, EventIds, Sealed, commit_digest, commit_key, commit_text
from engines.core.contention import Contention
from engines.core.documents import RETRY_PAUSE_MAX_S, RETRY_PAUSE_S
from engines.core.repeats import Repeats
from engines.errors import (
    BackendRefused,
    Conflict,
    EnginesError,
    OutcomeUnknown,
    Throttled,
    TooLarge,
    Unavailable,
)
from engines.ports.documents import ABSENT, OPS_MAX, Op, Put

WAITING_MAX: Final = 4_096
WAITING_BYTES_MAX: Final = 16 * 1024 * 1024
# A view of the tail older than this is read again: its successors may have been trimmed away
# (`core/trimming.py` trims nothing younger than a day), and then its slot would look free.
TAIL_VIEW_S_MAX: Final = 60.0


class Tail(msgspec.Struct, frozen=True):
    """The end of the log as a commit showed it. `first`: where that commit starts; 0 for an empty log."""

    position: int
    digest: str
    at: int
    first: int


EMPTY: Final = Tail(0, GENESIS, 0, 0)


class Write(msgspec.Struct, frozen=True):
    """One attempt at a slot: its ops, and for each request the positions that its entries would have."""

    tail: Tail
    segment: int
    ops: list[Op]
    placed: list[tuple[Append, tuple[int, ...]]]
    write_id: str


class Committer:
    """Packs what waits into commits, one at a time. Its task lives only while something waits."""

    def __init__(
        self, chain: Chain, *, event_ids: EventIds, clock: Clock, on_tail: Callable[[], None]
    ) -> None:
        self._chain = chain
        self._documents = chain.documents
        self._event_ids = event_ids
        self._clock = clock
        self._on_tail = on_tail
        self._contention = Contention(clock)
        self._queue: deque[Append] = deque()
        self._queue_bytes = 0
        self._hand: list[Append] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._refusals = 0
        self._tail: Tail | None = None
        self._tail_seen = (0.0, 0.0)
        self._in_doubt: dict[str, Write] = {}
        # The end of the last commit of segment k-2, for the segment k of the tail.
        self._overrun: tuple[int, int] = (0, 0)

    @property
    def tail(self) -> Tail | None:
        """The last tail seen, which may be behind by now."""
        return self._tail

    def submit(self, append: Append) -> None:
        """Queue a request. Raises Throttled where too much waits, Unavailable after `close`."""
        if self._closed:
            raise Unavailable("the log is closed")
        if len(self._queue) >= WAITING_MAX or self._queue_bytes + append.size > WAITING_BYTES_MAX:
            raise Throttled("too many appends wait for this log")
        self._queue.append(append)
        self._queue_bytes += append.size
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="log-committer")

    async def close(self) -> None:
        """Take nothing more and finish what waits; each request has a deadline, so this ends."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait((self._task,))

    # --- the task ---

    async def _run(self) -> None:
        """Serve the queue until it is empty. Whatever ends this ends every request that waits."""
        try:
            while self._queue:
                await self._turn()
        except EnginesError as error:
            self._fail_all(error)
        except BaseException as error:
            self._fail_all(Unavailable("the log's committer failed"), cause=error)
            raise
        finally:
            self._task = None

    async def _turn(self) -> None:
        """One commit, or one step towards it. What is in hand and not settled goes back to the queue."""
        try:
            if (pause_s := self._contention.pause_s()) > 0:
                await asyncio.sleep(pause_s)
            tail = await self._fresh_tail()
            self._take()
            await self._refuse_unexpected(tail)
            segment = self._chain.segment_of(tail.position + 1)
            await self._look_before(segment, tail)
            write = self._pack(tail, segment)
            if write is not None:
                await self._send(write)
        except (Throttled, Unavailable, OutcomeUnknown) as error:
            if isinstance(error, Sealed):
                raise
            self._put_back()
            self._expire(error)
            await asyncio.sleep(self._retry_pause_s(error))
        self._put_back()

    def _retry_pause_s(self, error: EnginesError) -> float:
        longest_s = min(RETRY_PAUSE_MAX_S, RETRY_PAUSE_S * 2 ** min(self._refusals, 10))
        self._refusals += 1
        return random.uniform(0, longest_s) + (error.retry_after_s or 0.0)  # noqa: S311 (it spreads callers)

    # --- choosing ---

    def _take(self) -> None:
        """Move waiting requests into the hand: whole, in order, up to the limits of one commit."""
        events_max = min(EVENTS_MAX, self._chain.segment_size)
        events = size = 0
        ops = 1
        marked: set[str] = set()
        queue, hand = self._queue, self._hand
        while queue:
            append = queue[0]
            if not append.future.done():
                count = len(append.items)
                marks = 0 if append.repeats is None else append.repeats.count
                if count > events_max:
                    append.fail(TooLarge(f"one request to this log appends at most {events_max} events"))
                elif hand and (
                    events + count > events_max
                    or size + append.size > EVENT_BYTES_MAX
                    or ops + marks > OPS_MAX
                    or append.expected_position is not None
                    or (append.repeats and not marked.isdisjoint(append.repeats.marker_keys()))
                ):
                    return
                else:
                    hand.append(append)
                    events += count
                    size += append.size
                    if append.repeats is not None:
                        ops += marks
                        marked.update(append.repeats.marker_keys())
            queue.popleft()
            self._queue_bytes -= append.size

    async def _refuse_unexpected(self, tail: Tail) -> None:
        """Where the first in hand expects another tail: refuse it, or find its first answer."""
        append = self._hand[0] if self._hand else None
        if append is None or append.expected_position in (None, tail.position):
            return
        assert append.expected_position is not None
        if (
            append.expected_position > tail.position
            and (await self._refreshed_tail()).position > tail.position
        ):
            self._put_back()
            return
        segment = self._chain.segment_of(tail.position + 1)
        await self._look_before(segment, tail)
        await self._look_in(segment)
        append.fail(Conflict(f"the log ends at position {tail.position}", field="expected_position"))
        self._put_back()

    def _put_back(self) -> None:
        """Return what is in hand and still waits to the head of the queue, in its order."""
        for append in reversed(self._hand):
            if not append.future.done():
                self._queue.appendleft(append)
                self._queue_bytes += append.size
        self._hand = []

    def _expire(self, error: EnginesError) -> None:
        """Answer those whose deadline has passed: with what went wrong, or that nobody knows."""
        now_s = self._clock.monotonic()
        for append in self._queue:
            if append.deadline_s <= now_s:
                append.fail(_of_its_own(error, append))

    def _fail_all(self, error: EnginesError, cause: BaseException | None = None) -> None:
        self._put_back()
        for append in self._queue:
            failure = _of_its_own(error, append)
            failure.__cause__ = cause or error
            append.fail(failure)
        self._queue.clear()
        self._queue_bytes = 0
        self._tail = None
        self._in_doubt.clear()

    # --- known ids ---

    async def _look_before(self, segment: int, tail: Tail) -> None:
        """The rule: look ids up in the segments before `segment`, which `tail` shows to be closed."""
        if segment == 0:
            return
        asking = [repeats for _, repeats in self._marked() if repeats.looked_before != segment]
        if not asking:
            return
        segments = [segment - 1]
        if segment > 1:
            if self._overrun[0] != segment:
                last = await self._chain.last_in(segment - 2)
                self._overrun = (segment, 0 if last is None else last.last)
            if self._overrun[1] > tail.position - self._chain.segment_size:
                segments.append(segment - 2)
        for closed in segments:
            await self._look_in(closed)
        for repeats in asking:
            repeats.looked_before = segment

    async def _look_in(self, segment: int) -> None:
        """Read the markers of the requests in hand in `segment`, and settle what they answer."""
        marked = self._marked()
        keys = [key for _, repeats in marked for key in repeats.marker_keys()]
        if keys:
            docs = await self._documents.get_many(self._chain.partition(segment), keys)
            for append, _ in marked if docs else ():
                append.recall(docs, self._event_ids)

    def _marked(self) -> list[tuple[Append, Repeats]]:
        """The requests in hand that leave markers and still wait."""
        hand = [append for append in self._hand if not append.future.done()]
        return [(append, append.repeats) for append in hand if append.repeats is not None]

    # --- writing ---

    def _pack(self, tail: Tail, segment: int) -> Write | None:
        """One write of everything in hand that still waits; None if nothing does."""
        first = position = tail.position + 1
        now_s = self._clock.now()
        at = max(int(now_s * 1000), tail.at)
        items: list[str] = []
        lines: list[str] = []
        placed: list[tuple[Append, tuple[int, ...]]] = []
        markers: list[Op] = []
        for append in self._hand:
            if append.future.done():
                continue
            placed.append((append, append.place(position)))
            if append.repeats is None:
                items += append.items
                lines += append.lines
                position += len(append.items)
            else:
                markers += append.repeats.puts(position, at, now_s=now_s)
                fresh = append.repeats.fresh()
                items += [append.items[index] for index in fresh]
                lines += [append.lines[index] for index in fresh]
                position += len(fresh)
        if not placed:
            return None
        digest = commit_digest(tail.digest, first, at, lines)
        body = commit_text(first, at, tail.digest, digest, items)
        after = Tail(position - 1, digest, at, first)
        ops = [Put(commit_key(first), body, ABSENT), *markers]
        return Write(after, segment, ops, placed, self._documents.new_write_id())

    async def _send(self, write: Write) -> None:
        started_s = self._clock.monotonic()
        try:
            await self._documents.write_once(
                self._chain.partition(write.segment), write.ops, write_id=write.write_id
            )
        except Conflict:
            await self._settle_conflict(write)
        except (Throttled, Unavailable, BackendRefused):
            raise  # Nothing was applied, and nothing will be.
        except OutcomeUnknown:
            self._doubt(write)
            if (await self._refreshed_tail()).position < write.tail.first:
                raise
        except BaseException:
            self._doubt(write)
            raise
        else:
            self._refusals = 0
            self._contention.won(started_s)
            self._land(write)

    def _land(self, write: Write) -> None:
        """The write is durable: its requests are answered, and its slot is behind us."""
        self._see(write.tail)
        at, ids = write.tail.at, self._event_ids
        for append, positions in write.placed:
            append.settle(positions, at, ids)

    def _doubt(self, write: Write) -> None:
        self._in_doubt[write.tail.digest] = write
        for append, _ in write.placed:
            append.in_doubt = True

    async def _settle_conflict(self, write: Write) -> None:
        """The slot or a marker was taken: learn by whom, settle what that answers, pack the rest again."""
        tail = await self._refreshed_tail()
        await self._look_in(write.segment)
        if tail.position >= write.tail.first:
            pause_s = self._contention.lost()
            self._put_back()
            self._expire(Unavailable("other writers kept taking the next position of the log"))
            await asyncio.sleep(pause_s)

    # --- the tail ---

    async def _fresh_tail(self) -> Tail:
        """The tail to write behind: the one at hand, unless it is missing or too old to trust."""
        if self._tail is None:
            if not await self._chain.open():
                await self._chain.create()
            return await self._refreshed_tail()
        now_s, wall_s = self._clock.monotonic(), self._clock.now()
        seen_s, seen_wall_s = self._tail_seen
        if max(now_s - seen_s, abs(wall_s - seen_wall_s)) > TAIL_VIEW_S_MAX:
            return await self._refreshed_tail()
        return self._tail

    async def _refreshed_tail(self) -> Tail:
        """The tail as it is now. Settles writes in doubt first, while their slot is still the next one."""
        known = self._tail
        if self._in_doubt and known is not None:
            commit = await self._chain.starting_at(known.position + 1)
            if commit is None:
                return self._see(known)
            if (landed := self._in_doubt.get(commit.digest)) is not None:
                self._land(landed)
            self._end_doubt()
            known = self._see(_tail_of(commit))
        start = None if known is None or known.first == 0 else self._chain.segment_of(known.first)
        last = await self._chain.tail(start)
        return self._see(EMPTY if last is None else _tail_of(last))

    def _see(self, tail: Tail) -> Tail:
        """Take note of a tail. No write to a slot before it is in doubt any more."""
        if self._tail is None or tail.position > self._tail.position:
            self._end_doubt()
            self._on_tail()
        self._tail = tail
        self._tail_seen = (self._clock.monotonic(), self._clock.now())
        return tail

    def _end_doubt(self) -> None:
        """The slot is filled: what was sent to it and is not what fills it will never land."""
        for write in self._in_doubt.values():
            for append, _ in write.placed:
                append.in_doubt = False
        self._in_doubt.clear()


def _tail_of(commit: Commit) -> Tail:
    if commit.is_seal:
        raise Sealed("the log was sealed and goes on elsewhere")
    return Tail(commit.last, commit.digest, commit.at, commit.first)


def _of_its_own(error: EnginesError, append: Append) -> EnginesError:
    """An exception for one caller alone; OutcomeUnknown where a write of its request lost its reply."""
    own = OutcomeUnknown("the reply to an append was lost") if append.in_doubt else copy.copy(error)
    own.__cause__ = error
    return own
