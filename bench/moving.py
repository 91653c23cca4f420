"""A kind of a tenant is moved between PostgreSQL and DynamoDB, there and back, while it is written to.

One process of a deployment serves the writes and works on the move, as any server process does. Writes come
at a steady rate, whether those before them were answered or not, and each is timed from when it was due: a
pause is felt by every write that falls into it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

import msgspec
import uvloop

import engines
from bench import backends
from bench.events import event_bodies
from bench.measure import Goal, Result, Stopwatch, absolute, compared
from bench.stage import Stage
from engines import catalogue
from engines.control.bootstrap import Seed, apply_seed, bootstrap
from engines.control.records import Backend, Move
from engines.core.records import Condition
from engines.drivers.registry import document_driver
from engines.errors import EnginesError
from engines.routing.moves import Progress
from engines.scope import RequestContext
from engines.stores.event_records import NewEvent
from engines.stores.notes import NoteInput
from engines.wiring import open_control_plane
from tests.contexts import ADMIN, context

WRITES_PER_S: Final = 200
TENANT: Final = "t_bench"
USERS: Final = 64
STREAM: Final = "main"
EVENTS_A_REQUEST: Final = 100
NOTES_AT_ONCE: Final = 32
# Five seconds' worth. On a machine that cannot keep the rate, more would only make each of them slower.
UNDER_WAY_MAX: Final = 1_000
MOVE_TIMEOUT_S: Final = 1_800.0
# From when changes wait until they go to the target, while every process answers.
PAUSE_GOAL: Final = Goal("at most", 500, "ms")
SEED: Final[Seed] = {
    "tenants": [
        {"tenant_id": TENANT, "name": "Bench", "mode": "saas", "envs": ["prod"], "default_surface_id": "chat"}
    ],
}
OWNER: Final = context(TENANT, mode="saas", lab=False)
OPERATOR: Final = msgspec.structs.replace(ADMIN, mode="system", lab=False)

Write = Callable[[int], Awaitable[object]]


class Moved(msgspec.Struct, frozen=True):
    """What became of one move, and of the writes beside it."""

    seconds: float
    progress: Progress
    before_ms: list[float]
    during_ms: list[float]
    failed: int


def move_notes(stage: Stage) -> list[Result]:
    return uvloop.run(_move(stage, catalogue.NOTES))


def move_events(stage: Stage) -> list[Result]:
    return uvloop.run(_move(stage, catalogue.EVENT_STREAM))


async def _move(stage: Stage, kind: str) -> list[Result]:
    sizes = stage.sizes
    async with _deployment(stage) as opened:
        if kind == catalogue.NOTES:
            await _fill_notes(opened, sizes.move_notes)
            write, what = _note_writer(opened), f"{sizes.move_notes:,} notes"
        else:
            await _fill_stream(opened, sizes.move_events)
            write, what = _event_writer(opened), f"a stream of {sizes.move_events:,} events"
        results: list[Result] = []
        for target, way in (("b", "PostgreSQL → DynamoDB"), ("a", "DynamoDB → PostgreSQL")):
            moved = await _under_writes(opened, kind, target, write, before_s=sizes.move_before_s)
            results += _results(kind, way, what, moved, count=_count(stage, kind))
        return results


def _count(stage: Stage, kind: str) -> int:
    return stage.sizes.move_notes if kind == catalogue.NOTES else stage.sizes.move_events


@contextlib.asynccontextmanager
async def _deployment(stage: Stage) -> AsyncIterator[engines.Engines]:
    """A control plane on PostgreSQL, the tenant's data on another database of it, DynamoDB beside them."""
    url = stage.new_database()
    a = _record(stage.new_backend("postgres"), "a")
    b = _record(stage.new_backend("dynamodb"), "b")
    async with open_control_plane(url) as control:
        await bootstrap(control.store, control.record, data=a, host_local=False)
        await apply_seed(control.store, SEED)
    async with engines.open(url) as opened:
        await opened.backends.put(OPERATOR, b, condition=Condition(absent=True))
        yield opened


def _record(backend: backends.Backend, backend_id: str) -> Backend:
    """As a control plane holds it: secrets are in the environment, and the record names them."""
    handles = {}
    for name, value in backend.secrets.items():
        variable = f"ENGINES_SECRET_BENCH_{backend_id}_{name}".upper()
        os.environ[variable] = value
        handles[name] = f"env:{variable}"
    return Backend(
        backend_id=backend_id,
        driver=backend.driver,
        backend_class=document_driver(backend.driver).DESCRIPTION.backend_class,
        config=dict(backend.config),
        secrets=handles,
        offered_to="*",
    )


async def _fill_notes(opened: engines.Engines, count: int) -> None:
    write, numbers = _note_writer(opened), iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await write(number)

    await asyncio.gather(*(worker() for _ in range(NOTES_AT_ONCE)))


async def _fill_stream(opened: engines.Engines, count: int) -> None:
    # Not made anew for each: seconds without the loop would make the process's view of the routes too old.
    events = _new_events(EVENTS_A_REQUEST)
    for start in range(0, count, EVENTS_A_REQUEST):
        await opened.streams.append(OWNER, STREAM, events[: count - start])


def _note_writer(opened: engines.Engines) -> Write:
    contents = itertools.cycle(event_bodies(1_000))

    def write(number: int) -> Awaitable[object]:
        owner: RequestContext = msgspec.structs.replace(OWNER, user_id=f"u{number % USERS}")
        return opened.notes.create(owner, NoteInput(content=next(contents)))

    return write


def _event_writer(opened: engines.Engines) -> Write:
    events = itertools.cycle(_new_events(1_000))
    return lambda _: opened.streams.append(OWNER, STREAM, [next(events)])


def _new_events(count: int) -> list[NewEvent]:
    bodies = (msgspec.json.decode(body) for body in event_bodies(count))
    return [NewEvent(event_type="tool_call", payload=body["payload"]) for body in bodies]


class _Writes:
    """Writes at a steady rate. `took_ms`: from when each was due until it was answered.

    `failed`: refused, or not begun because `UNDER_WAY_MAX` others were under way.
    """

    def __init__(self, write: Write) -> None:
        self.took_ms: list[float] = []
        self.failed = 0
        self._write = write
        self._watch = Stopwatch()
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled; what is under way then is waited for."""
        try:
            for number in itertools.count():
                due_s = number / WRITES_PER_S
                await asyncio.sleep(max(0.0, due_s - self._watch.seconds()))
                if len(self._under_way) >= UNDER_WAY_MAX:
                    self.failed += 1
                    continue
                task = asyncio.create_task(self._one(number, due_s))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
        finally:
            await asyncio.gather(*self._under_way)

    async def _one(self, number: int, due_s: float) -> None:
        try:
            await self._write(number)
        except EnginesError:
            self.failed += 1
        self.took_ms.append((self._watch.seconds() - due_s) * 1_000)


async def _under_writes(
    opened: engines.Engines, kind: str, target: str, write: Write, *, before_s: float
) -> Moved:
    writes = _Writes(write)
    writing = asyncio.create_task(writes.run())
    await asyncio.sleep(before_s)
    before_ms = writes.took_ms[:]
    watch = Stopwatch()
    stored = await opened.moves.start(OWNER, kind, target)
    move, progress = await _ended(opened, stored.record.move_id)
    seconds = watch.seconds()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    if move.phase != "done":
        raise RuntimeError(f"the move ended as {move.phase}: {progress.error}")
    return Moved(seconds, progress, before_ms, writes.took_ms[len(before_ms) :], writes.failed)


async def _ended(opened: engines.Engines, move_id: str) -> tuple[Move, Progress]:
    """Raises TimeoutError for a move that does not end."""
    async with asyncio.timeout(MOVE_TIMEOUT_S):
        while True:
            stored, progress = await opened.moves.get(OWNER, move_id)
            if stored.record.ended:
                return stored.record, progress
            await opened.directory.changed(opened.directory.generation)


def _results(kind: str, way: str, what: str, moved: Moved, *, count: int) -> list[Result]:
    progress = moved.progress
    name = f"move-{kind.replace('_', '-')}-{'there' if way.startswith('Post') else 'back'}"
    under = f"{what}, {way}, under {WRITES_PER_S} writes/s"
    assert progress.pause_ms is not None
    return [
        absolute(
            [progress.documents / moved.seconds],
            name=f"{name}-rate",
            what=f"move of {under}",
            unit="documents/s",
            goal=None,
            notes={
                "documents": progress.documents,
                "records": count,
                "seconds": round(moved.seconds, 1),
                "repaired": progress.repaired,
            },
        ),
        compared(
            [_p99(moved.during_ms)],
            [_p99(moved.before_ms)],
            name=f"{name}-p99",
            what=f"p99 of the writes during that move, {way}",
            unit="ms",
            other_name="before it",
            goal=None,
            notes={
                "added ms": round(_p99(moved.during_ms) - _p99(moved.before_ms), 1),
                "longest ms": round(max(moved.during_ms), 1),
                "writes": len(moved.during_ms),
                "failed": moved.failed,
            },
        ),
        absolute(
            [progress.pause_ms],
            name=f"{name}-pause",
            what=f"pause of writes in that move, {way}",
            unit="ms",
            goal=PAUSE_GOAL,
        ),
    ]


def _p99(figures: Sequence[float]) -> float:
    return sorted(figures)[math.ceil(0.99 * len(figures)) - 1]
