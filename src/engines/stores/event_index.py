"""The indices of the spine: which of its events are of a run, of a user, of a type.

Owns what is written of an event, reading events by a view, and projecting one block after another. By what
events are found is said by `Views`: the spine's own are here, a store's with the store.
An index is whole up to its checkpoint; the tail behind it is read from the log, so a list knows every event
that was acknowledged, whatever the state of the index. What the index says is only where to look: each event
is read from the log and judged there. Leaves the form of entries to `core/index.py`, the checkpoint to
`core/feed.py`, where an index lies to `stores/index_homes.py`, when to project to `stores/projector.py`,
filters and pages to `stores/event_pages.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from engines.clock import Clock
from engines.core.index import Index
from engines.core.lease import Lease, Sightings
from engines.core.log import PAGE_EVENTS_MAX, Log, Sealed, StoredEvent
from engines.core.place import Place, Places
from engines.errors import Conflict, Corrupt, EnginesError, Invalid
from engines.ids import Ids
from engines.ports.documents import PAGE_BYTES
from engines.scope import RequestContext, check_id
from engines.stores.event_records import StoredBody, stored_body
from engines.stores.index_homes import IndexHome
from engines.stores.open_logs import OpenLogs
from engines.stores.projector import Projector, Turn

# Blocks projected in one turn, after which others have theirs.
TURN_BLOCKS: Final = 4
# Events of no interest that are read rather than asking the backend once more.
STRETCH_GAP: Final = 16
STRETCHES_AT_ONCE: Final = 8


class Views(msgspec.Struct, frozen=True):
    """By what events are found. `names`: most telling first, since of a filter by several the first leads.

    `values`: the views and values of one event; those that are no ids are passed over, since nobody can ask
    for them and they may not stand in a key.
    """

    names: tuple[str, ...]
    values: Callable[[StoredBody], Iterable[tuple[str, str]]]


class IndexStatus(msgspec.Struct, frozen=True):
    """How far the index has come. `lag`: events behind it, which filtered lists look through one by one."""

    position: int
    head: int
    lag: int
    block: int


class Terms(msgspec.Struct, frozen=True):
    """By what an event is found: views and values. Of a block only these are held, not its events."""

    position: int
    values: tuple[tuple[str, str], ...]


class Part(msgspec.Struct, frozen=True):
    """Some events in the order asked for. `reached`: up to there, included, nothing was left out."""

    events: tuple[StoredEvent, ...]
    reached: int


class View:
    """The events of one value, up to `projected`, as they stand in one log."""

    def __init__(self, log: Log, index: Index, name: str, value: str, projected: int) -> None:
        self.projected = projected
        self._log = log
        self._index = index
        self._name = name
        self._value = value

    async def after(self, position: int, *, limit: int) -> Part:
        """At most `limit` events behind `position`, ascending; fewer, or none, where it takes long."""
        found = await self._index.above(self._name, self._value, position, up_to=self.projected)
        return await self._read(found.positions[:limit], found.reached, is_cut=len(found.positions) > limit)

    async def before(self, position: int, *, limit: int) -> Part:
        """The same before `position`, descending."""
        found = await self._index.below(self._name, self._value, position)
        return await self._read(found.positions[:limit], found.reached, is_cut=len(found.positions) > limit)

    async def _read(self, positions: Sequence[int], reached: int, *, is_cut: bool) -> Part:
        """The events at `positions`, of which the last are left for another time where they are large."""
        events: list[StoredEvent] = []
        stretches = list(_stretches(positions))
        size = 0
        for start in range(0, len(stretches), STRETCHES_AT_ONCE):
            some = stretches[start : start + STRETCHES_AT_ONCE]
            whole = True
            for stretch, read in zip(some, await asyncio.gather(*map(self._stretch, some)), strict=True):
                if whole:  # Behind one that was left off in the middle nothing follows.
                    events += read
                    size += _size_of(read)
                    whole = len(read) == len(stretch)
            if size >= PAGE_BYTES:
                break
        is_cut = is_cut or len(events) < len(positions)
        return Part(tuple(events), events[-1].position if is_cut else reached)

    async def _stretch(self, positions: Sequence[int]) -> list[StoredEvent]:
        """The events of one stretch in its order, and the last of them not once they fill a page."""
        wanted, last = frozenset(positions), positions[-1]
        is_down = positions[0] > last
        read, at = (
            (self._log.list_before, positions[0] + 1) if is_down else (self._log.list_after, positions[0] - 1)
        )
        found: list[StoredEvent] = []
        size = 0
        while at != last and size < PAGE_BYTES:
            batch = await read(at, limit=abs(last - at))
            if not batch.events:
                raise Corrupt("the index knows of events that the log does not have: make the index anew")
            of_interest = [event for event in batch.events if event.position in wanted]
            found += of_interest
            size += _size_of(of_interest)
            at = batch.events[-1].position
        return found


def _of_every_event(body: StoredBody) -> Iterator[tuple[str, str]]:
    yield "run_id", body.run_id
    yield "user_id", body.user_id
    yield "event_type", body.event_type


OF_EVERY_EVENT: Final = Views(("run_id", "user_id", "event_type"), _of_every_event)


class EventIndex:
    """The indices, by the same views, of all spines that this process knows of."""

    def __init__(
        self,
        kind: str,
        stream: str,
        places: Places,
        logs: OpenLogs,
        ids: Ids,
        clock: Clock,
        *,
        home: IndexHome,
        views: Views = OF_EVERY_EVENT,
        block_default: int,
    ) -> None:
        """`block_default`: events in a block of an index that is not there yet, as `home` makes it."""
        self._kind = kind
        self._stream = stream
        self._places = places
        self._logs = logs
        self._clock = clock
        self._holder = ids.write_id()
        self._sightings = Sightings(clock)
        self._home = home
        self._views = views
        self._block_default = block_default
        self.projector = Projector(self.turn, clock)

    # --- reading ---

    async def view(
        self, context: RequestContext, place: Place, log: Log, wanted: Mapping[str, str | None]
    ) -> View | None:
        """The view for a filter by those values; None where it names none, or nothing is projected yet."""
        for name in self._views.names:
            if (value := wanted.get(name)) is not None:
                index = await self._home.find(context, place)
                projected = await index.projected()
                return View(log, index, name, value, projected) if projected > 0 else None
        return None

    async def status(self, context: RequestContext) -> IndexStatus:
        """How far the index of the context's spine has come."""
        place = await self._places.place(self._kind, context)
        async with self._logs.use(place, self._stream) as log:
            index = await self._home.find(context, place)
            position = await index.projected()  # First: the head that is read then is not before it.
            head = (await log.head()).position
        return IndexStatus(position, head, head - position, index.layout.block)

    # --- projecting ---

    def appended(self, context: RequestContext, first: int, last: int) -> None:
        """Events were appended: where they end a block, it is to be projected."""
        block = self._block_default
        if last // block > (first - 1) // block:
            self.projector.notice(_key(context), context)

    def missed(self, context: RequestContext, looked_at: int) -> None:
        """A list looked through that many events of the log: where that makes a block, it is due."""
        if looked_at >= self._block_default:
            self.projector.notice(_key(context), context)

    async def restart(self, context: RequestContext) -> IndexStatus:
        """Make the index of the context's spine anew; meanwhile lists look through the log.

        Raises Conflict where a block was just finished: call again.
        """
        place = await self._places.place(self._kind, context)
        async with self._home.changing(context, place) as index:
            await index.create()
            await index.feed().restart()
        self.projector.notice(_key(context), context)
        return await self.status(context)

    async def turn(self, context: RequestContext) -> Turn:
        """Project some blocks, if no other process does.

        While the spine is being moved nothing is projected, so no move has to wait for an index of its log.
        """
        place = await self._places.place(self._kind, context)
        if place.is_moving:
            return Turn.TAKEN
        async with self._home.changing(context, place) as index:
            lease = Lease(
                index.documents,
                index.root,
                index.work,
                holder=self._holder,
                clock=self._clock,
                sightings=self._sightings,
            )
            if not await lease.acquire():
                return Turn.TAKEN
        try:
            for _ in range(TURN_BLOCKS):
                if not await self.step(context):
                    return Turn.DONE
        except Conflict:  # Another process was at it all the same, or it is made anew.
            return Turn.TAKEN
        finally:
            with contextlib.suppress(EnginesError):
                await lease.release()
        return Turn.MORE

    async def step(self, context: RequestContext) -> bool:
        """Project the next block; False where none is whole. Raises Conflict where another process did it."""
        place = await self._places.place(self._kind, context)
        try:
            async with (
                self._home.changing(context, place) as index,
                self._logs.use(place, self._stream) as log,
            ):
                await index.create()
                keep = functools.partial(terms_of, views=self._views)
                return await index.feed().advance(log, keep, functools.partial(_project, index))
        except Sealed:
            self._logs.drop(place, self._stream)
            raise


async def _project(index: Index, block: Sequence[Terms]) -> None:
    entries: dict[tuple[str, str], list[int]] = {}
    for terms in block:
        for view_and_value in terms.values:
            entries.setdefault(view_and_value, []).append(terms.position)
    await index.write((block[0].position - 1) // index.layout.block, entries)


def terms_of(event: StoredEvent, views: Views = OF_EVERY_EVENT) -> Terms:
    """What an index says of an event; nothing of one that was redacted."""
    body = stored_body(event)
    values = () if body is None else views.values(body)
    return Terms(event.position, tuple((view, value) for view, value in values if _is_id(value)))


def _size_of(events: Sequence[StoredEvent]) -> int:
    return sum(len(event.body or "") for event in events)


def _is_id(value: str) -> bool:
    try:
        check_id(value, "value")
    except Invalid:
        return False
    return True


def _stretches(positions: Sequence[int]) -> Iterator[Sequence[int]]:
    """Successive parts of `positions` that are close together, each within one read of the log."""
    start = 0
    for end in range(1, len(positions) + 1):
        if end < len(positions) and (
            abs(positions[end] - positions[end - 1]) <= STRETCH_GAP
            and abs(positions[end] - positions[start]) < PAGE_EVENTS_MAX
        ):
            continue
        yield positions[start:end]
        start = end


def _key(context: RequestContext) -> tuple[str, ...]:
    """What routing looks at: contexts that differ in it may have different spines."""
    return (
        context.tenant_id,
        context.env,
        context.surface_id,
        context.app_id or "",
        context.project_id or "",
    )
