"""The committer: group commit of one stream by one process.

Owns the queue of requests, what goes into one commit, and the rule that keeps repeats out. Leaves the
contents of requests to `core/appends.py`, the tail and lost replies to `core/tail.py`, pauses between
processes to `core/contention.py`.

There is no timer: whatever waits when a commit is done makes the next one. A request whose write lost its
reply may be packed anew, since all its writes go to one slot until that is seen filled: in whichever of
them it lands, it lands once.

Client ids and request markers are written beside the commit under Absent, which decides within a segment.
Across segments there is a rule: into segment k writes only who knows from a commit that k-1 is closed, and
looks the ids up in k-1 after that was known. Where k-2's last commit ran on into k-1 it looks there too,
for as long as that commit is among the last `segment_size` events.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from engines.clock import Clock
from engines.core.appends import EVENT_BYTES_MAX, EVENTS_MAX, Append
from engines.core.chain import Chain
from engines.core.commits import EventIds, Sealed, commit_digest, commit_key, commit_text
from engines.core.contention import Contention
from engines.core.documents import RETRY_PAUSE_MAX_S, RETRY_PAUSE_S
from engines.core.idempotency import Request
from engines.core.repeats import Repeats, replayed_answer
from engines.core.tail import Tail, TailView, Write
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
# Of memory, for one log.
WAITING_BYTES_MAX: Final = 16 * 1024 * 1024


class Committer:
    """Packs what waits into commits, one at a time. Its task lives only while something waits."""

    def __init__(
        self, chain: Chain, *, event_ids: EventIds, clock: Clock, on_moved: Callable[[], None]
    ) -> None:
        self.view = TailView(chain, clock=clock, on_moved=on_moved, on_landed=self._landed)
        self._chain = chain
        self._documents = chain.documents
        self._event_ids = event_ids
        self._clock = clock
        self._contention = Contention(clock, chain.documents.new_write_id())
        self._queue: deque[Append] = deque()
        self._queue_bytes = 0
        # What goes into the commit under way; it is in the queue or in hand, never in both.
        self._hand: list[Append] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._refusals = 0
        # The end of the last commit of segment k-2, for a segment k.
        self._overrun: tuple[int, int] = (0, 0)

    def submit(self, append: Append) -> None:
        """Queue a request. Raises Throttled where too much waits, Unavailable after `close`."""
        if self._closed:
            raise Unavailable("the log is closed")
        if len(self._queue) >= WAITING_MAX or self._queue_bytes + append.held_bytes > WAITING_BYTES_MAX:
            raise Throttled("too many appends wait for this log")
        self._queue.append(append)
        self._queue_bytes += append.held_bytes
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Take nothing more and finish what waits; each request has a deadline, so this ends."""
        self._closed = True
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def answered(self, request: Request) -> tuple[int, ...] | None:
        """The positions that a marker in the newest segments gives for this request; None where none does."""
        tail = self.view.known
        if tail is None or not self.view.is_fresh():
            last = await self._chain.tail()
            position = 0 if last is None else last.last
        else:
            position = tail.position
        newest = self._chain.segment_of(position + 1)
        segments = [segment for segment in (newest, newest - 1, newest - 2) if segment >= 0]
        docs = await asyncio.gather(
            *(self._documents.get(self._chain.partition(segment), request.key) for segment in segments)
        )
        for doc in docs:
            if doc is not None:
                return replayed_answer(doc, request)[0]
        return None

    # --- the task ---

    async def _run(self) -> None:
        """Serve the queue until it is empty. Whatever ends this ends every request that waits."""
        try:
            while self._queue:
                await self._turn()
                if not self._queue:
                    # Callers just answered may come back at once, and find this task still there.
                    await asyncio.sleep(0)
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
            tail = self.view.known
            if tail is None or not self.view.is_fresh():
                tail = await self._look(Unavailable("the end of the log could not be read in time"))
            if (pause_s := self._contention.pause_s(tail)) > 0:
                await asyncio.sleep(pause_s)
                self._contention.waited()
                # Who waits behind commits of this process alone asks for more than it can write.
                is_ours = self._contention.wrote_last(tail)
                late = Throttled("more is appended than this log can take") if is_ours else _outrun()
                await self._look(late)
                self._expire(late)
                return
            segment = self._chain.segment_of(tail.position + 1)
            if self._take() and not await self._is_repeat_or_refused(tail, segment):
                await self._send(self._pack(tail, segment))
        except (Throttled, Unavailable, OutcomeUnknown) as error:
            if isinstance(error, Sealed):
                raise
            self._put_back()
            self._expire(error)
            await self._rest(error)
        if self._hand:
            self._put_back()

    async def _look(self, late: EnginesError) -> Tail:
        """The tail as it is now; what that takes decides how often this process looks.

        Whoever has no time left before it is read is answered meanwhile: with `late`.
        """
        started_s = self._clock.monotonic()
        looking = asyncio.create_task(self.view.refresh())
        try:
            while not (await asyncio.wait((looking,), timeout=self._first_left_s()))[0]:
                self._expire(late)
        finally:
            looking.cancel()
        tail = looking.result()
        self._contention.looked(started_s)
        return tail

    def _first_left_s(self) -> float | None:
        """How much time the first of those in the queue still has; None where it is empty."""
        if not self._queue:
            return None
        return max(0.0, min(append.deadline_s for append in self._queue) - self._clock.monotonic())

    async def _rest(self, error: EnginesError) -> None:
        """Pause after an error, for as long as the backend asks; but no caller outwaits a deadline."""
        left_s = self._retry_pause_s(error)
        while left_s > 0 and (first_left_s := self._first_left_s()) is not None:
            pause_s = min(left_s, first_left_s)
            await asyncio.sleep(pause_s)
            left_s -= pause_s
            self._expire(error)

    def _retry_pause_s(self, error: EnginesError) -> float:
        longest_s = min(RETRY_PAUSE_MAX_S, RETRY_PAUSE_S * 2 ** min(self._refusals, 10))
        self._refusals += 1
        return random.uniform(0, longest_s) + (error.retry_after_s or 0.0)  # noqa: S311 (it spreads callers)

    def _put_back(self) -> None:
        """Return what is in hand and still waits to the head of the queue, in its order."""
        for append in reversed(self._hand):
            if not append.future.done():
                self._queue.appendleft(append)
                self._queue_bytes += append.held_bytes
        self._hand = []

    def _expire(self, error: EnginesError) -> None:
        """Answer those whose deadline has passed: with what went wrong, or that nobody knows.

        Whoever does not wait any more leaves the queue, so that this task ends though the backend stays away.
        """
        now_s = self._clock.monotonic()
        for append in self._queue:
            if append.deadline_s <= now_s:
                append.fail(_of_its_own(error, append))
        self._queue = deque(append for append in self._queue if not append.future.done())
        self._queue_bytes = sum(append.held_bytes for append in self._queue)

    def _fail_all(self, error: EnginesError, cause: BaseException | None = None) -> None:
        self._put_back()
        for append in self._queue:
            failure = _of_its_own(error, append)
            failure.__cause__ = cause or error
            append.fail(failure)
        self._queue.clear()
        self._queue_bytes = 0
        self.view.forget()

    # --- choosing ---

    def _take(self) -> bool:
        """Move waiting requests into the hand: whole, in order, up to the limits of one commit."""
        events_max = min(EVENTS_MAX, self._chain.segment_size)
        events = size = 0
        ops = 1
        marked: set[str] = set()
        queue, hand = self._queue, self._hand
        while queue:
            append = queue[0]
            if not append.future.done():
                events += len(append.items)
                size += append.size
                if append.repeats is not None:
                    ops += append.repeats.count
                if hand and (
                    events > events_max
                    or size > EVENT_BYTES_MAX
                    or ops > OPS_MAX
                    or append.expected_position is not None
                    or (append.repeats and not marked.isdisjoint(append.repeats.marker_keys()))
                ):
                    break
                hand.append(append)
                if append.repeats is not None:
                    marked.update(append.repeats.marker_keys())
            queue.popleft()
            self._queue_bytes -= append.held_bytes
        if hand and len(hand[0].items) > events_max:
            hand[0].fail(TooLarge(f"one request to this log appends at most {events_max} events"))
            return False
        return bool(hand)

    async def _is_repeat_or_refused(self, tail: Tail, segment: int) -> bool:
        """Look up what is in hand as far as it must be; True where nothing of it is to be written now."""
        first = self._hand[0]
        if first.expected_position is None and not self._marked():
            return False
        await self._look_before(segment, tail)
        if first.expected_position not in (None, tail.position):
            await self._refuse_unexpected(first, tail, segment)
            return True
        return all(append.future.done() for append in self._hand)

    async def _refuse_unexpected(self, append: Append, tail: Tail, segment: int) -> None:
        """The request expects another tail: it is a repeat, or it is refused, or our view was old."""
        assert append.expected_position is not None
        if append.expected_position > tail.position:
            moved = await self.view.refresh()
            if moved.position > tail.position:
                return
        await self._look_in(segment)
        append.fail(Conflict(f"the log ends at position {tail.position}", field="expected_position"))

    # --- repeats ---

    async def _look_before(self, segment: int, tail: Tail) -> None:
        """The rule: look ids up in the segments before `segment`, which `tail` shows to be closed."""
        asking = [repeats for _, repeats in self._marked() if repeats.looked_before != segment]
        if segment == 0 or not asking:
            return
        segments = [segment - 1]
        if segment > 1:
            if self._overrun[0] != segment:
                last = await self._chain.last_in(segment - 2)
                # Trimmed commits leave their markers for this long, so one that is gone may be asked for.
                self._overrun = (segment, tail.position if last is None else last.last)
            if self._overrun[1] > tail.position - self._chain.segment_size:
                segments.append(segment - 2)
        for closed in segments:
            await self._look_in(closed)
        for repeats in asking:
            repeats.looked_before = segment

    async def _look_in(self, segment: int) -> bool:
        """Read the markers of the requests in hand in `segment`, settle what they answer; False for none."""
        marked = self._marked()
        keys = [key for _, repeats in marked for key in repeats.marker_keys()]
        if not keys:
            return False
        docs = await self._documents.get_many(self._chain.partition(segment), keys)
        for append, _ in marked if docs else ():
            append.recall(docs, self._event_ids)
        return bool(docs)

    def _marked(self) -> list[tuple[Append, Repeats]]:
        """The requests in hand that leave markers and still wait."""
        marked = [(append, append.repeats) for append in self._hand if append.repeats is not None]
        return [(append, repeats) for append, repeats in marked if not append.future.done()]

    # --- writing ---

    def _pack(self, tail: Tail, segment: int) -> Write:
        """One write of everything in hand that still waits."""
        first = position = tail.position + 1
        now_s = self._clock.now()
        at = max(int(now_s * 1000), tail.at)
        items: list[str] = []
        lines: list[str] = []
        placed: list[tuple[Append, tuple[int, ...]]] = []
        markers: list[Op] = []
        requests: list[str] = []
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
                if append.repeats.request is not None:
                    requests.append(append.repeats.request.key)
                fresh = append.repeats.fresh()
                items += [append.items[index] for index in fresh]
                lines += [append.lines[index] for index in fresh]
                position += len(fresh)
        digest = commit_digest(tail.digest, first, at, lines)
        turn = self._contention.turn_behind(tail.turn)
        body = commit_text(first, at, tail.digest, digest, items, requests, turn)
        ops = [Put(commit_key(first), body, ABSENT), *markers]
        return Write(Tail(position - 1, digest, at, first, turn), segment, ops, placed)

    async def _send(self, write: Write) -> None:
        started_s = self._clock.monotonic()
        try:
            await self._documents.write_once(
                self._chain.partition(write.segment), write.ops, write_id=self._documents.new_write_id()
            )
        except Conflict as conflict:
            # Who is told of a marker alone meets the slot the next time.
            if write.ops[0].key in conflict.keys:
                # Before the tail is read, not after: what is read then may still hold when it is used.
                await asyncio.sleep(self._contention.lost(started_s))
            await self._settle_conflict(write)
        except (Throttled, Unavailable, BackendRefused):
            raise  # Nothing was applied, and nothing will be.
        except OutcomeUnknown as lost:
            self.view.doubt(write)
            self._put_back()
            self._expire(lost)
            if not self._queue or (await self._look(lost)).position < write.tail.first:
                raise
        except BaseException:
            self.view.doubt(write)
            raise
        else:
            self._refusals = 0
            self._hand = []
            self._contention.won(started_s, write.tail.position)
            self._land(write)

    def _land(self, write: Write) -> None:
        """The write is durable: its slot is behind us, and only now its requests are answered."""
        self.view.see(write.tail)
        at, ids = write.tail.at, self._event_ids
        for append, positions in write.placed:
            append.settle(positions, at, ids)

    def _landed(self, write: Write) -> None:
        """The reply to the write was lost, and its commit stands."""
        self._contention.landed(write.tail.position)
        self._land(write)

    async def _settle_conflict(self, write: Write) -> None:
        """The slot or a marker was taken: learn by whom, settle what that answers, pack the rest again."""
        tail = await self._look(_outrun())
        found = await self._look_in(write.segment)
        if tail.position >= write.tail.first:
            self._put_back()
            self._expire(_outrun())
        elif not found:
            raise Unavailable("a condition of an append did not hold, and nothing shows why")


def _outrun() -> Unavailable:
    return Unavailable("other writers kept taking the next position of the log")


def _of_its_own(error: EnginesError, append: Append) -> EnginesError:
    """An exception for one caller alone: OutcomeUnknown only where a write of its request may yet land."""
    if append.in_doubt:
        own: EnginesError = OutcomeUnknown("the reply to an append was lost")
    elif isinstance(error, OutcomeUnknown):
        own = Unavailable("the log could not be written to")
    else:
        own = copy.copy(error)
    own.__cause__ = error
    return own
