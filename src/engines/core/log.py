"""The log: an append-only, gapless, ordered sequence of events on three verbs for documents.

Owns what callers of a log see: append, read in both directions, find, seek, follow, verify, redact, trim,
seal. Leaves the stored form to `core/commits.py`, finding commits to `core/chain.py`, writing them to
`core/committer.py`, checking them to `core/verification.py`, removing them to `core/trimming.py`.

One commit is one document, keyed by its first position and created under Absent. A writer learns the tail
only from a commit, and behind a tail there is exactly one slot; so commits form a chain, gapless and in
order, with no sequence on the server, no head document and no lock. Positions start at 1.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from engines.clock import Clock
from engines.core.appends import Appended, Entry, Preparation
from engines.core.chain import SEGMENT_SIZE_DEFAULT, Address, Chain
from engines.core.commits import (
    GENESIS,
    Commit,
    EventIds,
    Sealed,
    canonical_client_id,
)
from engines.core.committer import Committer
from engines.core.documents import TIMEOUT_S, Documents
from engines.core.idempotency import Request
from engines.core.repeats import ID_MARKER, marker_key
from engines.core.tail import VIEW_S_MAX
from engines.core.trimming import redact, seal, trim
from engines.core.verification import Verification, verify
from engines.errors import Corrupt, Gone, NotFound
from engines.ids import Ids, position_of
from engines.ports.documents import PAGE_BYTES

__all__ = [
    "Appended",
    "Batch",
    "Entry",
    "Head",
    "Log",
    "Sealed",
    "StoredEvent",
    "Verification",
]

PAGE_EVENTS_MAX: Final = 1_000
FOLLOW_EVENTS_MAX: Final = 500
# How often a follower asks for events that another process appended: at first, and at the most seldom.
POLL_S_MIN: Final = 0.05
POLL_S_MAX: Final = 1.0
# Segments in which an id is looked up at once.
FIND_SEGMENTS: Final = 8
# For how much later than a time was sought its segment serves as the one to begin at.
SOUGHT_MS_MAX: Final = 3_600_000


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as it stands in the log. `body`: its JSON text, byte for byte; None once redacted."""

    position: int
    event_id: str
    at_ms: int
    body: str | None


class Batch(msgspec.Struct, frozen=True):
    """Successive events. `end`: there was nothing beyond them when they were read."""

    events: tuple[StoredEvent, ...]
    end: bool


class Head(msgspec.Struct, frozen=True):
    """The end of a log: kept elsewhere, it shows a truncation or a rewrite to `Log.verify`."""

    position: int
    digest: str


class Log:
    """One stream. Any number of callers on one event loop, any number of processes on one stream.

    Every method raises, beside what it names: Throttled, Unavailable, BackendRefused, Corrupt, and `Sealed`
    where the log goes on elsewhere.
    """

    def __init__(
        self,
        documents: Documents,
        *,
        kind: str,
        tenant_id: str,
        env: str,
        stream: str,
        ids: Ids,
        clock: Clock,
        shard_partition: str,
        generation: int = 0,
        segment_size_default: int = SEGMENT_SIZE_DEFAULT,
        timeout_s: float = TIMEOUT_S,
        catch_ups: asyncio.Semaphore | None = None,
    ) -> None:
        """Nothing is read yet. `shard_partition`: where the stream's own record stands.

        `catch_ups`: so many followers at a time, of this log and of others, read what they are behind by.
        """
        address = Address(
            kind=kind,
            tenant_id=tenant_id,
            env=env,
            stream=stream,
            shard_partition=shard_partition,
            generation=generation,
        )
        self._preparation = Preparation(ids)
        self._clock = clock
        self._timeout_s = timeout_s
        # Of two tenants' streams of one name, no two events share an id.
        self._event_ids = EventIds(f"{kind}.{tenant_id}.{env}.{stream}")
        self._chain = Chain(documents, address, segment_size_default=segment_size_default)
        self._committer = Committer(
            self._chain, event_ids=self._event_ids, clock=clock, on_moved=self._wake_followers
        )
        self._catch_ups = catch_ups or asyncio.Semaphore()
        self._closed = False
        self._news = 0
        # A time, in ms, and the segment of what was written from then on.
        self._sought = (-SOUGHT_MS_MAX - 1, 0)
        self._sleepers: set[asyncio.Future[None]] = set()

    # --- writing ---

    async def append(
        self,
        entries: Sequence[Entry],
        *,
        expected_position: int | None = None,
        request: Request | None = None,
    ) -> Appended:
        """Append 1 to 500 events in one commit; returns once they are durable.

        `expected_position`: the tail that the caller assumes (0: empty). `request`: the Idempotency-Key's,
        whose repeat gets the first answer. A client's event id that is known is not appended again; that is
        recognised while fewer than a segment's size of events were appended since.

        Cancelling the call does not undo a commit under way. Raises TooLarge, Conflict (another tail; a
        known id with other contents), IdempotencyKeyReused, Invalid (an id), OutcomeUnknown (the reply was
        lost, and until the deadline nothing showed what became of it).
        """
        append = self._preparation.prepare(
            entries,
            deadline_s=self._clock.monotonic() + self._timeout_s,
            expected_position=expected_position,
            request=request,
        )
        self._committer.submit(append)
        return await append.future

    async def answered(self, request: Request) -> tuple[int, ...] | None:
        """The positions of what was appended under this Idempotency-Key, as far as that can be seen.

        None proves nothing; an append decides. Two or three reads at once. Raises IdempotencyKeyReused.
        """
        return await self._committer.answered(request) if await self._chain.open() else None

    async def redact(self, *positions: int) -> None:
        """Remove events' texts for ever; place, id and leaf digest stay, so the log still verifies.

        One write for each commit that holds some of them, in order. Raises NotFound, Gone, OutcomeUnknown.
        Redacting again succeeds.
        """
        if not await self._chain.open():
            raise NotFound("there is no event at this position")
        await redact(self._chain, positions)

    async def trim(self, before_position: int) -> int:
        """Remove whole commits older than a day whose events all stand before `before_position`.

        Returns the floor: events up to it are gone. The newest commit always stays.
        """
        return await trim(self._chain, before_position, now_ms=int(self._clock.now() * 1000))

    async def seal(self) -> Head:
        """End this log for ever, so that it can go on elsewhere: every writer meets the seal."""
        return Head(*await seal(self._chain, clock=self._clock))

    async def close(self) -> None:
        """Take no more appends, finish those that wait, end the followers."""
        self._closed = True
        self._wake_followers()
        await self._committer.close()

    # --- reading ---

    async def list_after(self, position: int, *, limit: int) -> Batch:
        """At most `limit` events behind `position`, in order; fewer where they make more than about 1 MiB.

        Raises Gone below the floor, Invalid for a position past the end.
        """
        return await self._list_after(position, limit=limit, boundary=self._is_tail(position))

    async def list_before(self, position: int | None, *, limit: int) -> Batch:
        """At most `limit` events before `position` (None: from the end), in descending order.

        Raises Gone for positions below the floor, Invalid for one past the end.
        """
        assert 0 < limit <= PAGE_EVENTS_MAX
        events: list[StoredEvent] = []
        page_bytes = 0
        if not await self._chain.open():
            return Batch((), end=True)
        if position is None:
            position = (await self.head()).position + 1
        while len(events) < limit and page_bytes < PAGE_BYTES:
            commits = await self._chain.before(position, events=limit - len(events))
            if not commits:
                return Batch(tuple(events), end=True)
            for commit in commits:
                taken = self._events(commit, below=position, limit=limit - len(events), descending=True)
                events += taken
                page_bytes += _text_size(taken)
                position = events[-1].position if events else position
                if len(events) == limit or page_bytes >= PAGE_BYTES:
                    break
        return Batch(tuple(events), end=position == self._chain.floor.position + 1)

    async def find(self, event_id: str) -> StoredEvent | None:
        """The event with this id, minted or a client's own; None where there is none. Raises Gone."""
        if not await self._chain.open():
            return None
        position = position_of(event_id, self._event_ids.tag)
        if position is None:
            client_id = canonical_client_id(event_id)
            position = None if client_id is None else (await self._positions_of([client_id])).get(client_id)
        if position is None:
            return None
        commit = await self._chain.holding(position)
        if commit is None:
            return None
        event = self._event(commit, position)
        return event if event.event_id == event_id.lower() else None

    async def positions(self, event_ids: Sequence[str], *, since_ms: int = 0) -> dict[str, int]:
        """Where events of a client's own ids stand, of those that were written at `since_ms` or later.

        Some reads for all of them together, however many events the log holds.
        """
        if not await self._chain.open():
            return {}
        return await self._positions_of(event_ids, since_ms=since_ms)

    async def seek(self, at_ms: int) -> int:
        """The first position written at `at_ms` or later; the one behind the end where there is none.

        A binary search over commits, whose times never go back. What is trimmed meanwhile counts as earlier.
        """
        if not await self._chain.open():
            return 1
        tail = await self._chain.tail()
        if tail is None:
            return 1
        low, high = self._chain.floor.position + 1, tail.last + 1
        while low < high:
            middle = (low + high) // 2
            try:
                commit = await self._chain.holding(middle)
            except Gone:
                low = self._chain.floor.position + 1
                continue
            if commit is None:
                raise Corrupt(f"the log has no commit that holds position {middle} and has later ones")
            if commit.at >= at_ms:
                high = commit.first
            else:
                low = commit.last + 1
        return low

    async def head(self) -> Head:
        """The end of the log as of now; of an empty one position 0."""
        if not await self._chain.open():
            return Head(0, GENESIS)
        known = self._committer.view.known
        commit = await self._chain.tail(0 if known is None else known.first)
        return Head(0, GENESIS) if commit is None else Head(commit.last, commit.digest)

    async def verify(self, expected: Head | None = None) -> Verification:
        """Walk all commits and say where the chain breaks first, if it does. Memory is bounded by a page.

        `expected`, a head kept elsewhere, shows also what was cut off or written anew.
        """
        known = self._committer.view.known
        pair = None if expected is None else (expected.position, expected.digest)
        return await verify(self._chain, expected=pair, reached=0 if known is None else known.position)

    async def follow(self, after: int) -> AsyncIterator[Batch]:
        """Events behind `after` as they come, in batches that are never empty; ends when the log is closed.

        Woken at once by appends of this process; asks for others' every `POLL_S_MIN` at first and, while
        nothing comes, less and less, every `POLL_S_MAX`. Raises Gone where events were trimmed before they
        were read.
        """
        poll_s, boundary_until_s = POLL_S_MIN, 0.0
        is_behind = True
        while not self._closed:
            news = self._news
            boundary = self._clock.monotonic() < boundary_until_s or self._is_tail(after)
            # At the tail there is little to read, and whoever is told of it is told at once.
            async with self._catch_ups if is_behind else contextlib.nullcontext():
                batch = await self._list_after(after, limit=FOLLOW_EVENTS_MAX, boundary=boundary)
            end, is_behind, found = batch.end, not batch.end, [batch]
            has_events = bool(batch.events)
            if has_events:
                after, poll_s = batch.events[-1].position, POLL_S_MIN
            del batch  # A reader that stalls keeps what it was given, and this nothing.
            if has_events:
                yield found.pop()
            if end:
                if has_events or not boundary:
                    # It ends where a commit does; trusted no longer than any view of the tail.
                    boundary_until_s = self._clock.monotonic() + VIEW_S_MAX
                if news == self._news and not await self._woken(poll_s):
                    poll_s = min(POLL_S_MAX, poll_s * 2)
            else:
                boundary_until_s = 0.0

    # --- parts ---

    async def _list_after(self, position: int, *, limit: int, boundary: bool) -> Batch:
        assert position >= 0
        assert 0 < limit <= PAGE_EVENTS_MAX
        events: list[StoredEvent] = []
        page_bytes = 0
        if not await self._chain.open():
            return Batch((), end=True)
        while len(events) < limit and page_bytes < PAGE_BYTES:
            stretch = await self._chain.after(position, events=limit - len(events), boundary=boundary)
            for commit in stretch.commits:
                if commit.is_seal:
                    if not events:
                        raise Sealed("the log was sealed and goes on elsewhere")
                    return Batch(tuple(events), end=False)
                taken = self._events(commit, above=position, limit=limit - len(events))
                events += taken
                page_bytes += _text_size(taken)
                position = taken[-1].position
                boundary = position == commit.last
                if not boundary or len(events) == limit or page_bytes >= PAGE_BYTES:
                    is_last = boundary and commit is stretch.commits[-1]
                    return Batch(tuple(events), end=stretch.end and is_last)
            if stretch.end:
                return Batch(tuple(events), end=True)
        return Batch(tuple(events), end=False)

    def _events(
        self,
        commit: Commit,
        *,
        above: int = 0,
        below: int | None = None,
        limit: int,
        descending: bool = False,
    ) -> list[StoredEvent]:
        first = max(commit.first, above + 1)
        last = commit.last if below is None else min(commit.last, below - 1)
        positions = range(first, last + 1)
        chosen = positions[::-1][:limit] if descending else positions[:limit]
        return [self._event(commit, position) for position in chosen]

    def _event(self, commit: Commit, position: int) -> StoredEvent:
        item = commit.events[position - commit.first]
        body = None if item.salt is None else bytes(item.event).decode()
        return StoredEvent(position, self._event_ids.of(item, position), commit.at, body)

    async def _positions_of(self, client_ids: Sequence[str], *, since_ms: int = 0) -> dict[str, int]:
        """Look for markers, newest segment first and some at a time, until all are found."""
        known = self._committer.view.known
        tail = await self._chain.tail(0 if known is None else known.first)
        if tail is None:
            return {}
        wanted = {marker_key(client_id): client_id for client_id in client_ids}
        found: dict[str, int] = {}
        newest = self._chain.segment_of(tail.first)
        oldest = await self._oldest_segment(newest, since_ms)
        for high in range(newest, oldest - 1, -FIND_SEGMENTS):
            segments = range(high, max(oldest, high - FIND_SEGMENTS + 1) - 1, -1)
            pages = await asyncio.gather(
                *(
                    self._chain.documents.get_many(self._chain.partition(segment), tuple(wanted))
                    for segment in segments
                )
            )
            for docs in pages:
                for key, doc in docs.items():
                    found.setdefault(wanted[key], ID_MARKER.decode(doc.body).position)
            wanted = {key: client_id for key, client_id in wanted.items() if client_id not in found}
            if not wanted:
                break
        return found

    async def _oldest_segment(self, newest: int, since_ms: int) -> int:
        """The first segment in which anything stands that was written at `since_ms` or later."""
        oldest = self._chain.floor.swept
        if newest - oldest < FIND_SEGMENTS or since_ms == 0:
            return oldest
        sought_ms, segment = self._sought
        if not sought_ms <= since_ms <= sought_ms + SOUGHT_MS_MAX:
            segment = self._chain.segment_of(await self.seek(since_ms))
            self._sought = since_ms, segment
        return max(oldest, min(newest, segment))

    def _is_tail(self, position: int) -> bool:
        """Whether a commit is known to end there, by a view that is no older than a writer's may be."""
        view = self._committer.view
        return view.known is not None and view.known.position == position and view.is_fresh()

    def _wake_followers(self) -> None:
        self._news += 1
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    async def _woken(self, seconds: float) -> bool:
        """Wait for news from this process, but no longer than `seconds`; whether there was any."""
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.add(sleeper)
        try:
            done, _ = await asyncio.wait((sleeper,), timeout=seconds)
        finally:
            self._sleepers.discard(sleeper)
        return bool(done)


def _text_size(events: Sequence[StoredEvent]) -> int:
    return sum(len(event.body) for event in events if event.body is not None)
