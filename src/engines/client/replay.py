"""Replaying recorded agent runs into a running server, so that starting again neither loses nor doubles.

Owns the order of a run's writes and how each recognises that it was made before. Leaves what is written to
`client/agent_runs.py` and repeating a single call to `client/retry.py`.

A run's session memory says how far it is. `importing` is written before anything else, under If-None-Match,
and `done`, with the note's id, after everything else. So whoever starts again

- passes over a run that is `done`, in one read;
- knows that of a run without an entry nothing was written;
- and looks, for a run that is `importing`, at what is there: the thread is read whole, the spine is asked
  for the run's events by id (they were appended in order, so those that stand are the first ones), the
  blackboard is listed, the note is sought by the run's own tag.

That holds after any time. An event sent by a process that has died since, and delivered only after we looked,
meets ours in the log, which knows an event again by its id; a note meets ours under the same Idempotency-Key.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec

from engines.client.agent_runs import MEMORY_KEY, Plan, ToolResult, batches
from engines.client.engines import AsyncEngines
from engines.client.results import Appended, Event, NewEvent
from engines.clock import Clock
from engines.codec import canonical_json
from engines.errors import Conflict, Invalid, NotFound, PreconditionFailed, TooLarge

T = TypeVar("T")

CONCURRENCY_DEFAULT: Final = 8
CONCURRENCY_MAX: Final = 64
# The server takes at most 98 events with ids of their own and 256 KiB an append; an eighth is left for
# stamps.
BATCH_EVENTS_MAX: Final = 98
BATCH_BYTES_MAX: Final = 224 * 1024

IMPORTING: Final = "importing"
DONE: Final = "done"


class Progress(msgspec.Struct, frozen=True):
    """A run's entry in session memory: what it is, how far its import is, where the spine stood before it."""

    state: str
    digest: str
    facts: dict[str, Any]
    spine_after: str | None = None
    spine_position: int = 0
    note_id: str | None = None


class RunFailure(msgspec.Struct, frozen=True):
    """A run that could not be imported although the others could."""

    run: str
    code: str
    detail: str
    request_id: str | None


class Tally:
    """What a replay did: records by kind, and how long each kind of call took, repeats included."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.written: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        self.failures: list[RunFailure] = []
        self.durations_s: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self._began_s = clock.monotonic()
        self.elapsed_s = 0.0

    async def timed(self, kind: str, call: Awaitable[T]) -> T:
        began_s = self._clock.monotonic()
        try:
            return await call
        finally:
            self.durations_s[kind].append(self._clock.monotonic() - began_s)

    def find(self, kind: str, count: int) -> None:
        """Note records that were there before; a kind of which there were none is not listed."""
        if count:
            self.found[kind] += count

    def end(self) -> None:
        """Note how long it took all together."""
        self.elapsed_s = self._clock.monotonic() - self._began_s


class OnRun(Protocol):
    """Told of each run once it is settled, with the number of its records."""

    def __call__(self, plan: Plan) -> None: ...


async def replay(
    client: AsyncEngines,
    plans: Sequence[Plan],
    *,
    clock: Clock,
    concurrency: int = CONCURRENCY_DEFAULT,
    on_run: OnRun | None = None,
) -> Tally:
    """Write every run, `concurrency` at a time. Safe to repeat, at any time, after any interruption.

    A run that is refused for what it holds (Invalid, TooLarge, Conflict) is told of in `Tally.failures`, and
    the others go on. What would meet every run is raised: a credential, a missing route, a server that stays
    away.
    """
    if not 1 <= concurrency <= CONCURRENCY_MAX:
        raise Invalid(f"a concurrency from 1 to {CONCURRENCY_MAX}", field="concurrency")
    tally = Tally(clock)
    last = await tally.timed("spine tail", client.events.last())
    waiting = iter(plans)
    work = [_work(client, waiting, last, tally, on_run) for _ in range(min(concurrency, len(plans)))]
    await together(work)
    tally.end()
    return tally


async def together(work: Sequence[Awaitable[None]]) -> None:
    """Run all; the first error ends the others and is raised by itself, not in a group."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _work(
    client: AsyncEngines, waiting: Iterator[Plan], last: Event | None, tally: Tally, on_run: OnRun | None
) -> None:
    for plan in waiting:
        try:
            await _Import(client, plan, last, tally).run()
        except (Invalid, TooLarge, Conflict) as error:
            tally.runs["failed"] += 1
            tally.failures.append(RunFailure(plan.name, error.code, error.detail, error.request_id))
        if on_run is not None:
            on_run(plan)


class _Import:
    """The import of one run."""

    def __init__(self, client: AsyncEngines, plan: Plan, last: Event | None, tally: Tally) -> None:
        self._client = client.bound(run_id=plan.run_id, thread_id=plan.run_id, session_id=plan.run_id)
        self._plan = plan
        self._last = last
        self._tally = tally

    async def run(self) -> None:
        progress, begun_before = await self._begin()
        if progress.digest != self._plan.digest:
            raise Conflict("a run of this name was imported before with other contents", field="digest")
        if progress.state == DONE:
            self._found_all()
            return
        thread = await self._thread_ids() if begun_before else frozenset()
        await self._append_thread(thread)
        await self._append_spine(await self._spine_count() if begun_before else 0)
        await self._put_results(await self._results() if begun_before else {})
        note_id = await self._note(search=begun_before)
        done = msgspec.structs.replace(progress, state=DONE, note_id=note_id)
        await self._timed("memory put", self._client.memory.put(self._plan.run_id, MEMORY_KEY, done))
        self._tally.runs["resumed" if begun_before else "imported"] += 1

    async def _begin(self) -> tuple[Progress, bool]:
        """The run's progress, and whether somebody had begun it before."""
        plan, last = self._plan, self._last
        present = await self._read_progress()
        if present is not None:
            return present, True
        progress = Progress(
            state=IMPORTING,
            digest=plan.digest,
            facts=plan.facts,
            spine_after=None if last is None else last.cursor,
            spine_position=0 if last is None else last.position,
        )
        put = self._client.memory.put(plan.run_id, MEMORY_KEY, progress, if_absent=True)
        try:
            await self._timed("memory put", put)
        except PreconditionFailed:
            # Somebody else imports the same file at this moment; each write of both recognises the other's.
            present = await self._read_progress()
            if present is None:
                raise
            return present, True
        self._tally.written["memory entries"] += 1
        return progress, False

    async def _read_progress(self) -> Progress | None:
        try:
            entry = await self._timed("memory get", self._client.memory.get(self._plan.run_id, MEMORY_KEY))
        except NotFound:
            return None
        self._tally.find("memory entries", 1)
        return progress_of(entry.value)

    def _found_all(self) -> None:
        plan, tally = self._plan, self._tally
        tally.find("thread events", len(plan.messages))
        tally.find("spine events", len(plan.events))
        tally.find("tool results", len(plan.results))
        tally.find("notes", 1)
        self._tally.runs["already there"] += 1

    # --- the thread ---

    async def _thread_ids(self) -> frozenset[str]:
        try:
            return frozenset([event.event_id async for event in self._client.streams.each(self._plan.run_id)])
        except NotFound:
            return frozenset()

    async def _append_thread(self, present: frozenset[str]) -> None:
        missing = [event for event in self._plan.messages if event.event_id not in present]
        self._tally.find("thread events", len(self._plan.messages) - len(missing))

        async def append(part: Sequence[NewEvent]) -> tuple[Appended, ...]:
            return await self._client.streams.append(self._plan.run_id, part)

        await self._append("thread", missing, append)

    # --- the spine ---

    async def _spine_count(self) -> int:
        """How many of the run's events stand on the spine. They were appended in order, so the first ones."""
        low, high = 0, len(self._plan.events)
        while low < high:
            middle = (low + high) // 2
            if await self._stands(self._plan.events[middle]):
                low = middle + 1
            else:
                high = middle
        return low

    async def _stands(self, event: NewEvent) -> bool:
        assert event.event_id is not None
        try:
            await self._timed("spine get", self._client.events.get(event.event_id))
        except NotFound:
            return False
        return True

    async def _append_spine(self, present: int) -> None:
        self._tally.find("spine events", present)
        await self._append("spine", self._plan.events[present:], self._client.events.append)

    async def _append(
        self,
        where: str,
        events: Sequence[NewEvent],
        append: Callable[[Sequence[NewEvent]], Awaitable[tuple[Appended, ...]]],
    ) -> None:
        for part in batches(events, count_max=BATCH_EVENTS_MAX, bytes_max=BATCH_BYTES_MAX):
            await self._timed(f"{where} append", append(part))
            self._tally.written[f"{where} events"] += len(part)

    # --- blackboard and note ---

    async def _results(self) -> dict[str, Any]:
        entries = self._client.blackboard.each(self._plan.run_id)
        return {entry.key: entry.value async for entry in entries}

    async def _put_results(self, present: dict[str, Any]) -> None:
        for result in self._plan.results:
            if result.key in present:
                self._compare(result, present[result.key])
                continue
            await self._put_result(result)

    async def _put_result(self, result: ToolResult) -> None:
        run_id = self._plan.run_id
        try:
            await self._timed(
                "blackboard put",
                self._client.blackboard.put(run_id, result.key, result.value, if_absent=True),
            )
        except PreconditionFailed:
            entry = await self._timed("blackboard get", self._client.blackboard.get(run_id, result.key))
            self._compare(result, entry.value)
        else:
            self._tally.written["tool results"] += 1

    def _compare(self, result: ToolResult, value: Any) -> None:
        if canonical_json(value) != canonical_json(result.value):
            raise Conflict(f"the blackboard holds something else at {result.key}", field=result.key)
        self._tally.find("tool results", 1)

    async def _note(self, *, search: bool) -> str:
        """The run's note. It was made before, or is made now; under its key only once even if both race."""
        if search:
            async for note in self._client.notes.each(tag=self._plan.run_tag):
                self._tally.find("notes", 1)
                return note.note_id
        key = f"agent-run-{self._plan.run_id}"
        create = self._client.notes.create(self._plan.note, idempotency_key=key)
        note = await self._timed("note post", create)
        self._tally.written["notes"] += 1
        return note.note_id

    async def _timed(self, kind: str, call: Awaitable[T]) -> T:
        return await self._tally.timed(kind, call)


def progress_of(value: Any) -> Progress:
    """A run's entry as it was read. Raises Conflict where something else stands in its place."""
    try:
        return msgspec.convert(value, Progress)
    except msgspec.ValidationError as error:
        raise Conflict("the run's session memory holds something else", field=MEMORY_KEY) from error
