"""Books: group commit of one budget by one process.

Owns the queue of changes, packing what waits into one atomic write, and who learns what became of it. Leaves
what a change does to `stores/budget_changes.py`, the write to `stores/budget_sheet.py`, turns between
processes to `core/contention.py`.

Every write replaces the head under the version that was read, so of two writes made from one state one is
a Conflict and begins anew with what the other left: amounts are never given out twice, by any number of
processes. Nothing is kept between commits but the queue, so a process that dies takes nothing with it.

There is no timer: what waits when a commit is done makes the next one. A lost reply is settled by
`Documents.write`, which looks for the write's own id; where that cannot tell, everyone in that commit is told
OutcomeUnknown, and finds out by asking again under the same Idempotency-Key. Whoever stops waiting leaves the
commit under way as it is, and its neighbours alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, Final

from engines.clock import Clock
from engines.core.contention import Contention
from engines.core.documents import TIMEOUT_S, Documents
from engines.core.idempotency import first_answer
from engines.core.place import Place
from engines.core.tail import Tail
from engines.errors import Conflict, EnginesError, Throttled, Unavailable
from engines.ids import Ids
from engines.ports.documents import GET_KEYS_MAX, Doc
from engines.stores.budget_changes import BudgetChange, Outcome
from engines.stores.budget_records import ANCHOR, HEAD_KEY, POLICY_KEY
from engines.stores.budget_sheet import Announcements, Sheet

# Changes of one budget that wait in one process; past them callers are told to come back.
WAITING_MAX: Final = 2_000
WAITING_RETRY_S: Final = 1.0
# Books with nothing to do hold little; past this the one used longest ago goes.
BOOKS_MAX: Final = 1_000
# A change reads at most so many keys, once before and once while it is applied.
_OWN_KEYS: Final = (HEAD_KEY, POLICY_KEY)


class Waiting:
    """One change in the queue."""

    __slots__ = ("change", "deadline_s", "future", "place")

    def __init__(self, change: BudgetChange[Any], place: Place, deadline_s: float) -> None:
        self.change = change
        self.place = place
        self.deadline_s = deadline_s
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: EnginesError) -> None:
        """An exception of its own: one that several callers raise would gather all their tracebacks."""
        if not self.future.done():
            own = copy.copy(error)
            own.__cause__ = error
            self.future.set_exception(own)


class Book:
    """One budget in this process. Its task lives only while something waits."""

    def __init__(self, announcements: Announcements, ids: Ids, clock: Clock) -> None:
        self._announcements = announcements
        self._ids = ids
        self._clock = clock
        self._contention = Contention(clock, ids.write_id())
        self._queue: deque[Waiting] = deque()
        self._task: asyncio.Task[None] | None = None
        # The commit behind which this process has let others go first already.
        self._paused_at = -1

    @property
    def is_idle(self) -> bool:
        return self._task is None

    async def submit(self, change: BudgetChange[Any], place: Place) -> Outcome:
        """Queue a change; returns once it is durable. Raises Throttled where too many wait, and its own."""
        if len(self._queue) >= WAITING_MAX:
            raise Throttled("too many changes of this budget wait", retry_after_s=WAITING_RETRY_S)
        waiting = Waiting(change, place, self._clock.monotonic() + TIMEOUT_S)
        self._queue.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="budget")
        return await waiting.future

    async def close(self) -> None:
        """Finish what waits; every change has a deadline, so this ends."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    # --- the task ---

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._turn()
                if not self._queue:
                    await asyncio.sleep(0)  # Callers just answered may come back at once.
        except BaseException as error:
            failed = Unavailable("the budget's committer failed")
            failed.__cause__ = error
            while self._queue:
                self._queue.popleft().fail(failed)
            raise
        finally:
            self._task = None

    async def _turn(self) -> None:
        """One commit, or one attempt. Whatever was taken is answered, or back in the queue."""
        hand = self._take()
        if not hand:
            return
        answered: list[Waiting] = []
        try:
            answered = await self._commit(hand)
        except Conflict:
            pass  # Another process was first: again, with what it left.
        except EnginesError as error:
            for waiting in hand:
                waiting.fail(error)
        except BaseException as error:
            failed = Unavailable("the budget's committer failed")
            failed.__cause__ = error
            for waiting in hand:
                waiting.fail(failed)
            raise
        self._queue.extendleft(
            waiting for waiting in reversed(hand) if waiting not in answered and not waiting.future.done()
        )

    def _take(self) -> list[Waiting]:
        """What waits, in order, as far as one read can hold what it needs."""
        hand: list[Waiting] = []
        keys = set(_OWN_KEYS)
        now_s = self._clock.monotonic()
        while self._queue:
            waiting = self._queue[0]
            if waiting.deadline_s <= now_s:  # Nothing of it was applied.
                waiting.fail(Unavailable("too many changes of this budget were first"))
            more = keys.union(waiting.change.reads())
            if hand and (len(more) > GET_KEYS_MAX or waiting.change.is_alone or hand[0].change.is_alone):
                break
            self._queue.popleft()
            if not waiting.future.done():
                hand.append(waiting)
                keys = more
        return hand

    async def _commit(self, hand: Sequence[Waiting]) -> list[Waiting]:
        """Raises Conflict where another process was first. Returns whom it answered."""
        place = hand[-1].place
        partition = await place.partition(ANCHOR)
        documents = place.documents
        keys = dict.fromkeys((*_OWN_KEYS, *(key for waiting in hand for key in waiting.change.reads())))
        docs = await documents.get_many(partition, tuple(keys))
        write_id = documents.new_write_id()
        sheet = Sheet(docs, self._announcements, self._ids, now_s=self._clock.now(), write_id=write_id)
        tail = Tail(sheet.head.commits, "", sheet.head.at_ms, sheet.head.commits, sheet.head.turn)
        if await self._let_others_go_first(tail):
            return []
        # Again, for what the first read has named.
        more = {key for waiting in hand for key in waiting.change.reads_more(sheet)} - sheet.docs.keys()
        for some in _in_portions(sorted(more)):
            sheet.docs |= await documents.get_many(partition, some)
        for waiting in hand:
            await waiting.change.prepare(sheet, documents, partition)
        outcomes = self._apply(hand, sheet)
        await _check_no_first_landed(outcomes, sheet, documents, partition)
        if not sheet.is_blank:
            async with contextlib.AsyncExitStack() as stack:
                if sheet.told:
                    context = hand[-1].change.context
                    announcing = self._announcements.announcing(context, place, partition)
                    await stack.enter_async_context(announcing)
                await self._write(sheet, documents, partition, tail)
        for waiting, outcome in outcomes:
            if isinstance(outcome, EnginesError):
                waiting.fail(outcome)
            else:
                waiting.settle(outcome)
        return [waiting for waiting, _ in outcomes]

    async def _write(self, sheet: Sheet, documents: Documents, partition: str, tail: Tail) -> None:
        started_s = self._clock.monotonic()
        ops = sheet.ops(self._contention.turn_behind(tail.turn))
        try:
            await documents.write(partition, ops, write_id=sheet.write_id)
        except Conflict:
            await asyncio.sleep(self._contention.lost(started_s))
            raise
        self._contention.won(started_s, tail.position + 1)

    async def _let_others_go_first(self, tail: Tail) -> bool:
        """Whether this process waited for its turn; then everything is to be read again.

        Once for each commit that it sees: where nobody came meanwhile, nobody is waited for.
        """
        pause_s = self._contention.pause_s(tail)
        if pause_s <= 0 or self._paused_at == tail.position:
            return False
        self._paused_at = tail.position
        await asyncio.sleep(pause_s)
        return True

    def _apply(self, hand: Sequence[Waiting], sheet: Sheet) -> list[tuple[Waiting, Outcome | EnginesError]]:
        """Each change in its order, as far as they fit into one write. A refused one leaves no trace.

        Refusals too are answered only once the write stands: they may be due to what it holds.
        """
        outcomes: list[tuple[Waiting, Outcome | EnginesError]] = []
        for waiting in hand:
            change = waiting.change
            if waiting.future.done():
                continue
            request = change.request
            try:
                if request is not None:
                    if sheet.writes(request.key):
                        continue  # Its first is in this write; the next one finds its marker.
                    if (marker := sheet.docs.get(request.key)) is not None:
                        outcomes.append((waiting, _replayed(change, marker)))
                        continue
                if not sheet.has_room(change.ops_max(sheet)):
                    break
                outcome = change.apply(sheet)
                if request is not None:
                    sheet.mark(request, created=outcome.created, answer=outcome.body)
            except EnginesError as refusal:
                outcomes.append((waiting, refusal))
            else:
                outcomes.append((waiting, outcome))
        return outcomes


class Books:
    """The books of one process, one a budget."""

    def __init__(self, announcements: Announcements, ids: Ids, clock: Clock) -> None:
        self._announcements = announcements
        self._ids = ids
        self._clock = clock
        self._open: OrderedDict[tuple[str, str, str, int], Book] = OrderedDict()
        self._closed = False

    async def submit(self, change: BudgetChange[Any], place: Place) -> Outcome:
        """As `Book.submit`. Raises Unavailable after `close`."""
        if self._closed:
            raise Unavailable("the store is closed")
        key = (place.tenant_id, place.env, place.backend_id, place.generation)
        book = self._open.get(key)
        if book is None:
            self._make_room()
            book = self._open[key] = Book(self._announcements, self._ids, self._clock)
        self._open.move_to_end(key)
        return await book.submit(change, place)

    async def close(self) -> None:
        """Take nothing more and finish what waits."""
        self._closed = True
        await asyncio.gather(*(book.close() for book in self._open.values()))

    def _make_room(self) -> None:
        if len(self._open) < BOOKS_MAX:
            return
        idle = next((key for key, book in self._open.items() if book.is_idle), None)
        if idle is None:
            raise Throttled(
                f"{BOOKS_MAX} budgets are being changed in this process", retry_after_s=WAITING_RETRY_S
            )
        del self._open[idle]


async def _check_no_first_landed(
    outcomes: Sequence[tuple[Waiting, Outcome | EnginesError]],
    sheet: Sheet,
    documents: Documents,
    partition: str,
) -> None:
    """Raises Conflict where a change was refused for what its own first attempt did: then all is read again.

    The rule of `core.records.replayed_or_raise`, for many at once.
    """
    requests = [waiting.change.request for waiting, outcome in outcomes if isinstance(outcome, EnginesError)]
    unseen = {request.key for request in requests if request is not None} - sheet.docs.keys()
    for keys in _in_portions(sorted(unseen)):
        if landed := await documents.get_many(partition, keys):
            raise Conflict("a first attempt landed meanwhile", keys=tuple(landed))


def _replayed(change: BudgetChange[Any], marker: Doc) -> Outcome:
    """What the first request with this key was answered. Raises IdempotencyKeyReused."""
    assert change.request is not None
    first = first_answer(marker, change.request)
    return Outcome(bytes(first.answer).decode(), first.created, marker.version, replayed=True)


def _in_portions(keys: Sequence[str]) -> Sequence[tuple[str, ...]]:
    return [tuple(keys[start : start + GET_KEYS_MAX]) for start in range(0, len(keys), GET_KEYS_MAX)]
