"""What a million events and a million notes cost on each cloud service, in the service's own units.

A part of each is done for real, on what answers for the service here; what our driver sends is counted and
priced by the drivers' own constants, and multiplied. Where the peer says what each request consumed, that is
the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import uvloop

from bench.appending import warm
from bench.backends import Backend
from bench.events import event_bodies
from bench.measure import Detail, Goal, Result, absolute, compared
from bench.metering import METERED, Meter
from bench.stage import APPENDERS, EVENT_BYTES, Stage
from bench.storage import new_log, open_documents
from engines.clock import SystemClock
from engines.core.documents import Documents
from engines.core.log import Entry
from engines.core.place import Layouts, Place
from engines.ids import Ids
from engines.scope import RequestContext
from engines.stores.notes import NoteInput, Notes
from tests.contexts import context

MILLION: Final = 1_000_000
USERS: Final = 100
AT_ONCE: Final = 16
# What the peer says and what we count may differ by how numbers are counted.
MODEL_GOAL: Final = Goal("within", 0.01)
COLUMNS: Final = (
    "what",
    "measured",
    "requests",
    "units",
    "× to a million",
    "units for a million",
    "reported by the peer",
)


class OnePlace:
    """Everything in one storage: what routing is to a deployment of one backend."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._layouts = Layouts(documents)

    async def place(self, kind: str, context: RequestContext) -> Place:
        return Place(
            kind=kind,
            tenant_id=context.tenant_id,
            env=context.env,
            backend_id="bench",
            documents=self._documents,
            layouts=self._layouts,
            options={},
        )

    @contextlib.asynccontextmanager
    async def changing(self, kind: str, context: RequestContext) -> AsyncIterator[Place]:
        yield await self.place(kind, context)


def comparison(driver: str) -> Callable[[Stage], list[Result]]:
    """What `--only cost-{driver}` runs."""
    return functools.partial(_run, driver)


def _run(driver: str, stage: Stage) -> list[Result]:
    return uvloop.run(_costs(stage.new_backend(driver), stage))


async def _costs(backend: Backend, stage: Stage) -> list[Result]:
    meter = Meter()
    bill = _Bill(backend, meter)
    events, notes = stage.sizes.cost_events, stage.sizes.cost_notes
    async with open_documents(METERED[backend.driver](backend, meter)) as documents:
        await _append(documents, events, bill)
        await _keep_notes(documents, notes, bill)
    return bill.results()


async def _append(documents: Documents, count: int, bill: _Bill) -> None:
    entries = [Entry(body) for body in event_bodies(count)]
    log = new_log(documents, "costs")
    await warm(log, entries)
    left = iter(entries)

    async def appender() -> None:
        for entry in left:
            await log.append((entry,))

    bill.begin()
    await asyncio.gather(*(appender() for _ in range(APPENDERS)))
    bill.add("append", f"events of {EVENT_BYTES} bytes appended by {APPENDERS} callers", count)
    await log.close()


async def _keep_notes(documents: Documents, count: int, bill: _Bill) -> None:
    clock = SystemClock()
    notes = Notes(OnePlace(documents), Ids(clock), clock)
    contents = event_bodies(count)
    made: list[tuple[RequestContext, str]] = []

    async def create(number: int) -> None:
        owner = _owner(number)
        change = await notes.create(owner, NoteInput(content=contents[number]))
        made.append((owner, change.record.note_id))

    async def get(number: int) -> None:
        owner, note_id = made[number]
        await notes.get(owner, note_id)

    # The shards' layout is read once by a process.
    await notes.create(_owner(0), NoteInput(content=contents[0]))
    bill.begin()
    await _each(create, count)
    bill.add("note-write", f"notes of {EVENT_BYTES} bytes written", count)
    bill.begin()
    await _each(get, count)
    bill.add("note-read", "notes read", count)


def _owner(number: int) -> RequestContext:
    return context("t_bench", user_id=f"u{number % USERS}")


async def _each(work: Callable[[int], Awaitable[None]], count: int) -> None:
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


class _Bill:
    """Collects what was metered, line by line."""

    def __init__(self, backend: Backend, meter: Meter) -> None:
        self._backend = backend
        self._meter = meter
        self._lines: list[dict[str, Any]] = []
        self._rows: list[tuple[str, ...]] = []

    def begin(self) -> None:
        self._meter.clear()

    def add(self, name: str, what: str, count: int) -> None:
        meter, factor = self._meter, MILLION / count
        requests = ", ".join(
            f"{number:,} {request} of {meter.bytes[request] / number:,.0f} bytes"
            for request, number in sorted(meter.requests.items())
        )
        self._rows.append(
            (
                what,
                f"{count:,}",
                requests,
                _units(meter.units, 1),
                f"{factor:g}",
                _units(meter.units, factor),
                _units(meter.reported, factor) or "nothing",
            )
        )
        for unit, used in meter.units.items():
            self._lines.append(
                {
                    "name": f"cost-{self._backend.driver}-{name}-{unit.replace(' ', '-')}".lower(),
                    "what": f"1,000,000 {what}, {self._backend.label}",
                    "unit": unit,
                    "ours": [used * factor],
                    "reported": [meter.reported[unit] * factor],
                }
            )

    def results(self) -> list[Result]:
        detail = Detail(f"Costs, {self._backend.label}", COLUMNS, tuple(self._rows))
        results = []
        for place, line in enumerate(self._lines):
            reported = line.pop("reported")
            ours = line.pop("ours")
            shown = detail if place == 0 else None
            if reported == [0]:
                results.append(absolute(ours, goal=None, detail=shown, **line))
            else:
                told = "as the peer reports"
                results.append(
                    compared(ours, reported, other_name=told, goal=MODEL_GOAL, detail=shown, **line)
                )
        return results


def _units(units: Any, factor: float) -> str:
    return ", ".join(f"{used * factor:,.0f} {unit}" for unit, used in sorted(units.items()))
