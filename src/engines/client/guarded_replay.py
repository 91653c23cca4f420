"""Replaying tool calls of recorded runs through the gates; starting again neither loses nor doubles.

Owns the order of a run's calls, what is used of the budget, and how each write recognises that it was made
before. Leaves what is asked to `client/guarded_runs.py`, the records of a run to `client/replay.py`, which
comes first: a decision has its tool call's event as parent.

For each tool call, in the order of the file: the gates are asked. If they let it pass, one unit goes into the
ledger, by settling what the budget gate reserved, or on its own where no budget guards the action. What they
refuse was not used. Behind the calls of a run come its cost, the measurement of its outcome and its reward.

A run's session memory says how far it is: `replaying` before anything else, under If-None-Match, and `done`
behind everything. Each call is sent under a key derived from the file, by which the server knows it again for
a day; a process that dies between asking, using and the run's `done` leaves what the next one

- finds under the same key, if it is sent again, or arrives late: the same decision, with the same
  reservation, of which the second settlement is answered as the first was; the same entry and measurement;
- and finds by looking, however much later: the run's decisions on the spine, which name the call, its
  entries in the ledger, whose notes do, its measurement by its labels, its reward by its id.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypeVar

import msgspec

from engines.client.budget import NewUsage
from engines.client.engines import AsyncEngines
from engines.client.gate_results import Decision
from engines.client.guarded_runs import CURRENCY, GuardedCall, GuardedRun
from engines.client.replay import (
    CONCURRENCY_DEFAULT,
    CONCURRENCY_MAX,
    DONE,
    RunFailure,
    Tally,
    together,
)
from engines.client.results import Event
from engines.client.stores import Memory
from engines.clock import Clock
from engines.errors import Conflict, Invalid, NotFound, PreconditionFailed, TooLarge

T = TypeVar("T")

GUARD_KEY: Final = "guarded"
REPLAYING: Final = "replaying"
# What every Idempotency-Key of a replay begins with.
KEYS: Final = "agent-run"
ZERO: Final = Decimal(0)


class GuardedProgress(msgspec.Struct, frozen=True):
    """A run's entry in session memory: of what, into which project, and where the spine stood before it.

    `used`: how many of its calls were let pass, once it is done.
    """

    state: str
    digest: str
    project_id: str
    kpi_id: str
    spine_after: str | None = None
    spine_position: int = 0
    used: int = 0


class Target(msgspec.Struct, frozen=True):
    """Where a replay's budget and outcomes go: a project, and a KPI of the bound surface."""

    project_id: str
    kpi_id: str


class GuardedTally:
    """What a replay did, and what was refused: by gate, reason and action."""

    def __init__(self, clock: Clock) -> None:
        self.did = Tally(clock)
        self.refused: Counter[tuple[str, str, str]] = Counter()


OnGuarded = Callable[[GuardedRun], None]


async def guarded_replay(
    client: AsyncEngines,
    runs: Sequence[GuardedRun],
    target: Target,
    *,
    clock: Clock,
    concurrency: int = CONCURRENCY_DEFAULT,
    on_run: OnGuarded | None = None,
) -> GuardedTally:
    """Have every tool call decided, `concurrency` runs at a time. Safe to repeat after any interruption.

    A run that is refused for what it holds (Invalid, TooLarge, Conflict) is told of in the tally's failures,
    and the others go on. What would meet every run is raised: NotFound (there is no such KPI), a credential,
    a missing route, a server that stays away.
    """
    if not 1 <= concurrency <= CONCURRENCY_MAX:
        raise Invalid(f"a concurrency from 1 to {CONCURRENCY_MAX}", field="concurrency")
    bound = client.bound(project_id=target.project_id)
    tally = GuardedTally(clock)
    await check_target(client, target)
    measured = _Measured(bound, target)
    last = await tally.did.timed("spine tail", bound.events.last())
    waiting = iter(runs)
    work = [
        _work(client, waiting, target, measured, last, tally, on_run)
        for _ in range(min(concurrency, len(runs)))
    ]
    await together(work)
    tally.did.end()
    return tally


async def check_target(client: AsyncEngines, target: Target) -> None:
    """Whether it is there. Raises ContextMismatch (no such project), NotFound (no such KPI)."""
    try:
        await client.bound(project_id=target.project_id).kpis.get(target.kpi_id)
    except NotFound:
        raise NotFound(f"this surface has no KPI {target.kpi_id} for the outcomes", field="kpi_id") from None


async def _work(
    client: AsyncEngines,
    waiting: Iterator[GuardedRun],
    target: Target,
    measured: _Measured,
    last: Event | None,
    tally: GuardedTally,
    on_run: OnGuarded | None,
) -> None:
    for run in waiting:
        try:
            await _Replay(client, run, target, measured, last, tally).run()
        except (Invalid, TooLarge, Conflict) as error:
            tally.did.runs["failed"] += 1
            tally.did.failures.append(RunFailure(run.plan.name, error.code, error.detail, error.request_id))
        if on_run is not None:
            on_run(run)


class _Measured:
    """Which runs have their measurement: read once, and only if a run was begun before."""

    def __init__(self, client: AsyncEngines, target: Target) -> None:
        self._client = client
        self._target = target
        self._reading = asyncio.Lock()
        self._labels: frozenset[tuple[tuple[str, str], ...]] | None = None

    async def has(self, labels: Mapping[str, str]) -> bool:
        async with self._reading:
            if self._labels is None:
                found = self._client.kpis.each_measurement(self._target.kpi_id)
                self._labels = frozenset([tuple(sorted(one.labels.items())) async for one in found])
        return tuple(sorted(labels.items())) in self._labels


class _Replay:
    """The calls of one run."""

    def __init__(
        self,
        client: AsyncEngines,
        run: GuardedRun,
        target: Target,
        measured: _Measured,
        last: Event | None,
        tally: GuardedTally,
    ) -> None:
        run_id = run.plan.run_id
        # Session memory is each project's own; how far a run is must be found whatever project is named.
        self._memory = client.bound(run_id=run_id, thread_id=run_id, session_id=run_id).memory
        self._client = client.bound(
            project_id=target.project_id, run_id=run_id, thread_id=run_id, session_id=run_id
        )
        self._run = run
        self._target = target
        self._measured = measured
        self._last = last
        self._tally = tally

    async def run(self) -> None:
        progress, begun_before = await self._begin()
        mine = (self._run.plan.digest, self._target.project_id, self._target.kpi_id)
        if (progress.digest, progress.project_id, progress.kpi_id) != mine:
            raise Conflict(
                "this run was replayed before with other contents, or into another project or KPI",
                field="digest",
            )
        did = self._tally.did
        if progress.state == DONE:
            self._found_all(progress)
            return
        decided = await self._decided(progress) if begun_before else {}
        entered = await self._entered() if begun_before else frozenset[str]()
        used = 0
        for call in self._run.calls:
            used += await self._settled(call, decided.get(call.subject), entered)
        await self._cost(entered)
        await self._measurement(search=begun_before)
        await self._reward(search=begun_before)
        done = msgspec.structs.replace(progress, state=DONE, used=used)
        await self._timed("memory put", self._memory.put(self._run_id, GUARD_KEY, done))
        did.runs["resumed" if begun_before else "replayed"] += 1

    @property
    def _run_id(self) -> str:
        return self._run.plan.run_id

    async def _begin(self) -> tuple[GuardedProgress, bool]:
        """The run's progress, and whether somebody had begun it before."""
        present = await self._read_progress()
        if present is not None:
            return present, True
        progress = GuardedProgress(
            state=REPLAYING,
            digest=self._run.plan.digest,
            project_id=self._target.project_id,
            kpi_id=self._target.kpi_id,
            spine_after=None if self._last is None else self._last.cursor,
            spine_position=0 if self._last is None else self._last.position,
        )
        put = self._memory.put(self._run_id, GUARD_KEY, progress, if_absent=True)
        try:
            await self._timed("memory put", put)
        except PreconditionFailed:
            # Somebody else replays the same file at this moment; each write of both recognises the other's.
            present = await self._read_progress()
            if present is None:
                raise
            return present, True
        return progress, False

    async def _read_progress(self) -> GuardedProgress | None:
        return await read_progress(self._memory, self._run_id)

    def _found_all(self, progress: GuardedProgress) -> None:
        run, did = self._run, self._tally.did
        did.find("decisions", len(run.calls))
        did.find("ledger entries", progress.used + (run.cost is not None))
        did.find("measurements", 1)
        did.find("rewards", 1)
        did.runs["already there"] += 1

    # --- what an earlier process left ---

    async def _decided(self, progress: GuardedProgress) -> dict[str, Event]:
        """The run's decisions that stand on the spine, by subject."""
        dataset = self._run.labels["dataset"]
        events = self._client.events.each(
            after=progress.spine_after, event_type="safety", run_id=self._run_id
        )
        found: dict[str, Event] = {}
        async for event in events:
            said = event.payload
            if said is not None and said["asked"].get("dataset") == dataset and not said["dry_run"]:
                found.setdefault(said["subject"], event)
        return found

    async def _entered(self) -> frozenset[str]:
        """The notes of the run's entries in the ledger."""
        entries = self._client.budget.each(run_id=self._run_id)
        return frozenset([entry.note async for entry in entries if entry.note is not None])

    # --- a call ---

    async def _settled(self, call: GuardedCall, before: Event | None, entered: frozenset[str]) -> bool:
        """Have the call decided and, where it may happen, one unit used; whether it may."""
        if before is None:
            decision = await self._evaluate(call)
            passed, details = decision.passed, decision.details
            gate, reason_code = decision.gate, decision.reason_code
        else:
            payload: dict[str, Any] = before.payload or {}
            passed, details = payload["result"] == "pass", payload["details"]
            gate, reason_code = payload["gate"], payload["reason_code"]
            self._tally.did.find("decisions", 1)
        if not passed:
            self._tally.refused[gate or "", reason_code, call.action] += 1
            return False
        if call.subject in entered:
            self._tally.did.find("ledger entries", 1)
        else:
            await self._use(call, details.get("budget", {}).get("reservation_id"))
            self._tally.did.written["ledger entries"] += 1
        return True

    async def _evaluate(self, call: GuardedCall) -> Decision:
        client = self._client.bound(step_id=call.step_id)
        evaluate = client.gates.evaluate(
            call.action,
            subject=call.subject,
            details=call.details,
            cost=call.cost,
            parent_event_id=call.event_id,
            idempotency_key=f"{KEYS}-gates-{call.event_id}",
        )
        decision = await self._timed("gates evaluate", evaluate)
        self._tally.did.written["decisions"] += 1
        return decision

    async def _use(self, call: GuardedCall, reservation_id: str | None) -> None:
        """One unit: of what was reserved, or else, or where that is kept no longer, on its own."""
        client = self._client.bound(step_id=call.step_id)
        if reservation_id is not None:
            settle = client.budget.settle(
                reservation_id,
                cost=ZERO,
                units=1,
                note=call.subject,
                idempotency_key=f"{KEYS}-settle-{call.event_id}",
            )
            try:
                await self._timed("budget settle", settle)
            except NotFound:
                pass
            else:
                return
        usage = NewUsage(tool=call.tool, units=1, cost=ZERO, currency=CURRENCY, note=call.subject)
        key = f"{KEYS}-use-{call.event_id}"
        await self._timed("budget record", client.budget.record(usage, idempotency_key=key))

    # --- the run ---

    async def _cost(self, entered: frozenset[str]) -> None:
        """What the run cost, as one entry; a run whose cost the file does not have leaves none."""
        if self._run.cost is None:
            return
        if self._run.place in entered:
            self._tally.did.find("ledger entries", 1)
            return
        usage = NewUsage(units=0, cost=self._run.cost, currency=CURRENCY, note=self._run.place)
        key = f"{KEYS}-cost-{self._run_id}"
        await self._timed("budget record", self._client.budget.record(usage, idempotency_key=key))
        self._tally.did.written["ledger entries"] += 1

    async def _measurement(self, *, search: bool) -> None:
        """1 for a run that succeeded, 0 for one that failed."""
        if search and await self._measured.has(self._run.labels):
            self._tally.did.find("measurements", 1)
            return
        measure = self._client.kpis.measure(
            self._target.kpi_id,
            float(self._run.succeeded),
            labels=self._run.labels,
            idempotency_key=f"{KEYS}-outcome-{self._run_id}",
        )
        await self._timed("kpi measure", measure)
        self._tally.did.written["measurements"] += 1

    async def _reward(self, *, search: bool) -> None:
        reward = self._run.reward
        assert reward.event_id is not None
        if search and await self._stands(reward.event_id):
            self._tally.did.find("rewards", 1)
            return
        await self._timed("spine append", self._client.events.append([reward]))
        self._tally.did.written["rewards"] += 1

    async def _stands(self, event_id: str) -> bool:
        try:
            await self._timed("spine get", self._client.events.get(event_id))
        except NotFound:
            return False
        return True

    async def _timed(self, kind: str, call: Awaitable[T]) -> T:
        return await self._tally.did.timed(kind, call)


async def read_progress(memory: Memory, run_id: str) -> GuardedProgress | None:
    """How far a run's replay is, None where it was not begun. Raises Conflict for something else there."""
    try:
        entry = await memory.get(run_id, GUARD_KEY)
    except NotFound:
        return None
    try:
        return msgspec.convert(entry.value, GuardedProgress)
    except msgspec.ValidationError as error:
        raise Conflict("the run's session memory holds something else", field=GUARD_KEY) from error
