"""Announcements: how the change of a tenant's record reaches the tenant's spine.

A store writes the record and an outbox document in one atomic write; this module appends it to the spine soon
after, and removes it. A crash in between repeats the append under the same event id, which the spine
recognises: nothing is lost and nothing is doubled. Whatever a process left behind is delivered by another, by
the pledge that the process made before its change (`core/pledges.py`).

One partition holds records of many scopes, whose spines may be different ones: each message goes to the spine
of the context in which it happened, and a spine that cannot be reached delays no other's. A message is looked
for on the spine before it is appended, unless this process wrote it just now. What waits at a place to which
no route leads any more is told from there.

Owns the tasks that deliver, and what happens where a spine cannot be reached: changes go on until
`WAITING_MAX` messages wait in one partition. Leaves what is written of a message to
`stores/announcement_records.py`, what it says to its store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

import structlog

from engines.catalogue import EVENT_SPINE
from engines.clock import Clock
from engines.codec import encode_json
from engines.core.documents import Documents
from engines.core.keys import SEPARATOR, within
from engines.core.outbox import DELIVERY_TIMEOUT_S, SALT_CHARS, WAITING_MAX, in_portions, outbox_put
from engines.core.place import Place, Places
from engines.errors import EnginesError, MissingRoute, Throttled, Unavailable
from engines.ids import Ids
from engines.ports.documents import ALWAYS, Delete, Doc, Op, Put
from engines.scope import RequestContext
from engines.stores.announcement_records import (
    WHERES,
    Waiting,
    Where,
    context_at,
    message_of,
    waiting_of,
    where_of,
)
from engines.stores.event_records import SystemEvent

PAUSE_S: Final = 0.5
PAUSE_MAX_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 2.0
# Messages that are removed in one write, which has room for what a move adds to it.
DELIVERED_MAX: Final = 64
# By how much clocks may differ: an event is looked for among those that were written since so long before.
CLOCKS_DIFFER_MS: Final = 3_600_000
# Places whose messages are delivered at once by one process.
DELIVERIES_AT_ONCE: Final = 16
# For how long after it wrote a message this process appends it without looking whether another did: meanwhile
# no spine takes more events than those among which it recognises an id by itself (50,000).
OWN_S: Final = 1.0
# Places whose pledges' names are remembered; past it they are made anew, which costs a write.
PLACES_MAX: Final = 20_000
_GROUP: Final = "spine"

# A backend and a generation; or a scope for which none could be told.
_Spine = tuple[str | int | None, ...]

log = structlog.get_logger(__name__)


class Spine(Protocol):
    """Where messages end: `EventSpine`."""

    async def append_system(
        self,
        context: RequestContext,
        events: list[SystemEvent],
        *,
        look_everywhere: bool = False,
        since_ms: int = 0,
    ) -> Any: ...


class PlacesLeft(Places, Protocol):
    """Where kinds lie, and where they lay."""

    async def left(self, kind: str, tenant_id: str, env: str, *, backend_id: str, generation: int) -> Place:
        """Where the kind lay under an earlier route, whatever routes say now.

        Raises BackendRefused (it is not there any more), Unavailable.
        """
        ...


class Promises(Protocol):
    """A durable word that messages of a place will be delivered: `core.pledges.Pledges`."""

    async def make(self, name: str, *, owner: str) -> None: ...

    def keep(self, name: str) -> None: ...

    async def withdraw(self, names: list[str]) -> None: ...


class _Delivery:
    """The partitions of one place in which messages may wait, and how its last attempts went."""

    __slots__ = ("failures", "partitions", "task", "where")

    def __init__(self, where: Where) -> None:
        self.where = where
        # The partition, and whether its messages may have been delivered before.
        self.partitions: dict[str, bool] = {}
        self.failures = 0
        self.task: asyncio.Task[None] | None = None


class Announcements:
    """The announcements of one process. `promises` is set before the first change (`wiring.py`)."""

    def __init__(self, places: PlacesLeft, spine: Spine, ids: Ids, clock: Clock) -> None:
        self.promises: Promises
        self._places = places
        self._spine = spine
        self._ids = ids
        self._clock = clock
        self._deliveries: dict[str, _Delivery] = {}
        # By kind, tenant, env, backend and generation.
        self._names: dict[tuple[str, str, str, str, int], str] = {}
        # When this process made each message that it did not try to tell yet, in that order.
        self._own: dict[str, float] = {}
        self._at_once = asyncio.Semaphore(DELIVERIES_AT_ONCE)
        self._closing = asyncio.Event()

    @contextlib.asynccontextmanager
    async def announcing(self, context: RequestContext, place: Place, partition: str) -> AsyncIterator[None]:
        """A block that writes records of `partition` with messages beside them; they are delivered after it.

        Raises Throttled while too many wait, and what making the pledge raises: then nothing was begun.
        """
        name = self._name_of(context, place)
        waiting = self._deliveries.get(name)
        if waiting is not None and waiting.failures:
            await _admit(place.documents, partition)
        await self.promises.make(name, owner=context.tenant_id)
        try:
            yield
        finally:  # After an error as well: the reply may be lost, and the change made.
            self._deliver_soon(name, partition, repeated=False)

    def message(
        self,
        context: RequestContext,
        record_key: str,
        version: int,
        event_type: str,
        payload: dict[str, Any],
        *,
        parent_event_id: str | None = None,
    ) -> Put:
        """The op that goes beside the change which made `version` of the record at `record_key`."""
        made_ms = int(self._clock.now() * 1_000)
        body = message_of(context, event_type, payload, parent_event_id=parent_event_id, made_ms=made_ms)
        salt = self._ids.write_id()[-SALT_CHARS:]
        put = outbox_put(_GROUP, record_key, version, body, salt=salt)
        self._note_own(put.key)
        return put

    async def finish(self, name: str) -> None:
        """Deliver whatever waits anywhere at a place that another process left. Raises what delivery does."""
        await self._deliver(WHERES.decode(name), None, repeated=True)

    async def close(self) -> None:
        """Deliver what is under way, for a moment; what is left, another process delivers."""
        self._closing.set()
        tasks = [delivery.task for delivery in self._deliveries.values() if delivery.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        done = [name for name, delivery in self._deliveries.items() if not delivery.partitions]
        if done:
            await self.promises.withdraw(done)

    def _deliver_soon(self, name: str, partition: str, *, repeated: bool) -> None:
        delivery = self._deliveries.get(name)
        if delivery is None:
            delivery = self._deliveries[name] = _Delivery(WHERES.decode(name))
        delivery.partitions[partition] = delivery.partitions.get(partition, False) or repeated
        if delivery.task is None and not self._closing.is_set():
            delivery.task = asyncio.create_task(self._run(name, delivery), name="announce")

    async def _run(self, name: str, delivery: _Delivery) -> None:
        """Until nothing waits at the place, or the process ends."""
        while delivery.partitions and not self._closing.is_set():
            partition, repeated = next(iter(delivery.partitions.items()))
            del delivery.partitions[partition]
            self.promises.keep(name)
            try:
                async with self._at_once:
                    await self._deliver(delivery.where, partition, repeated=repeated)
                delivery.failures = 0
            except EnginesError as error:
                delivery.partitions[partition] = True
                self.promises.keep(name)
                await self._pause(delivery, error)
            except BaseException:  # What was cut off is not delivered: its pledge stays.
                delivery.partitions[partition] = True
                delivery.task = None
                raise
        delivery.task = None
        if not delivery.partitions and self._deliveries.get(name) is delivery:
            del self._deliveries[name]

    async def _pause(self, delivery: _Delivery, error: Exception) -> None:
        pause_s = min(PAUSE_MAX_S, PAUSE_S * 2 ** min(delivery.failures, 10))
        delivery.failures += 1
        log.warning(
            "announcements wait",
            tenant=delivery.where.tenant_id,
            kind=delivery.where.kind,
            error=type(error).__name__,
            pause_s=pause_s,
        )
        # A process that ends has nothing to wait for: what is left, another one delivers.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._closing.wait()

    async def _deliver(self, where: Where, partition: str | None, *, repeated: bool) -> None:
        """Everything that waits in a partition of the place, or in all; where the kind lies elsewhere by now,
        everything there, to where it may have been moved, and everything that was left behind.
        """
        try:
            place = await self._places.place(where.kind, context_at(where))
        except MissingRoute:
            if where.backend_id is None:
                raise
            await self._deliver_left(where, where.backend_id)
            return
        present = await place.partitions()
        is_there = where.backend_id in (None, place.backend_id) and (
            partition in present if partition is not None else where.generation == place.generation
        )
        for one in (partition,) if is_there and partition is not None else present:
            await self._deliver_in(where, one, repeated=repeated or not is_there)
        if not is_there and where.backend_id is not None:
            await self._deliver_left(where, where.backend_id)

    async def _deliver_in(self, where: Where, partition: str, *, repeated: bool) -> None:
        """Everything that waits in one partition of where the kind lies now."""
        context = context_at(where)
        place = await self._places.place(where.kind, context)

        async def remove(ops: list[Op]) -> None:
            async with self._places.changing(where.kind, context) as now:
                if now.backend_id != place.backend_id or partition not in await now.partitions():
                    raise Unavailable("the messages were moved while they were delivered")
                await now.documents.write(partition, ops)

        await self._tell(where, place.documents, partition, remove, repeated=repeated)

    async def _deliver_left(self, where: Where, backend_id: str) -> None:
        """Everything that waits where the kind lay. Of what was moved from there the spine knows the ids."""
        # Others' routes may lead there still: their next change names the place by a context of its own.
        self._names.pop((where.kind, where.tenant_id, where.env, backend_id, where.generation), None)
        left = await self._places.left(
            where.kind, where.tenant_id, where.env, backend_id=backend_id, generation=where.generation
        )
        for partition in await left.partitions():

            async def remove(ops: list[Op], partition: str = partition) -> None:
                await left.documents.write(partition, ops)

            await self._tell(where, left.documents, partition, remove, repeated=True)

    async def _tell(
        self,
        where: Where,
        documents: Documents,
        partition: str,
        remove: Callable[[list[Op]], Awaitable[None]],
        *,
        repeated: bool,
    ) -> None:
        """Tell and remove what waits in a partition, in the order of the changes to each record.

        A spine that fails is left alone from there on, so that its messages keep their order; what it raised
        is raised once the others were told.
        """
        failed: dict[_Spine, EnginesError] = {}
        above, below = within("o", _GROUP)
        resume: str | None = above
        while resume is not None:
            page = await documents.scan(partition, above=resume, below=below, limit=DELIVERED_MAX)
            resume = page.resume
            told = await self._append_page(where, page.docs, failed, repeated=repeated)
            if told:
                await remove([Delete(doc.key, ALWAYS) for doc in told])
        for error in failed.values():
            raise error

    async def _append_page(
        self, where: Where, docs: Sequence[Doc], failed: dict[_Spine, EnginesError], *, repeated: bool
    ) -> Sequence[Doc]:
        """Append what may be; returns what stands on its spine now.

        Records at once, so that their events share commits; those of one record in its order, and together,
        so that a ledger with many of them is told as fast.
        """
        groups: dict[tuple[_Spine, str], list[Waiting]] = {}
        for doc in docs:
            waiting = waiting_of(where, doc)
            spine = await self._spine_of(waiting.context, failed)
            if spine not in failed:
                groups.setdefault((spine, doc.key.rsplit(SEPARATOR, 2)[0]), []).append(waiting)
        outcomes = await asyncio.gather(
            *(self._append(group, repeated=repeated) for group in groups.values()), return_exceptions=True
        )
        told: list[Doc] = []
        for ((spine, _), group), outcome in zip(groups.items(), outcomes, strict=True):
            if outcome is None:
                told += [waiting.doc for waiting in group]
            elif isinstance(outcome, EnginesError):
                failed[spine] = outcome
            else:
                raise outcome
        return told

    async def _spine_of(self, context: RequestContext, failed: dict[_Spine, EnginesError]) -> _Spine:
        """Which spine the context's events go to; where that cannot be said, it is among the failed."""
        try:
            place = await self._places.place(EVENT_SPINE, context)
        except EnginesError as error:
            spine: _Spine = (context.surface_id, context.app_id, context.project_id, context.mode)
            failed.setdefault(spine, error)
            return spine
        return place.backend_id, place.generation

    async def _append(self, group: Sequence[Waiting], *, repeated: bool) -> None:
        """Raises Unavailable where it takes too long: what was cut off is recognised by its event id."""
        for some in in_portions(group, lambda waiting: waiting.doc.body, count_max=DELIVERED_MAX):
            are_own = [self._is_own(waiting.doc.key) for waiting in some]
            events = [waiting.event for waiting in some]
            try:
                async with asyncio.timeout(DELIVERY_TIMEOUT_S):
                    await self._spine.append_system(
                        some[0].context,
                        events,
                        look_everywhere=repeated or not all(are_own),
                        since_ms=max(0, min(waiting.made_ms for waiting in some) - CLOCKS_DIFFER_MS),
                    )
            except TimeoutError as error:
                raise Unavailable("the event spine did not answer in time") from error

    def _note_own(self, key: str) -> None:
        now_s = self._clock.monotonic()
        while self._own and now_s - self._own[oldest := next(iter(self._own))] >= OWN_S:
            del self._own[oldest]
        self._own[key] = now_s

    def _is_own(self, key: str) -> bool:
        """Whether nobody else can have told this message so long ago that its spine forgot. Once for each."""
        made_s = self._own.pop(key, None)
        return made_s is not None and self._clock.monotonic() - made_s < OWN_S

    def _name_of(self, context: RequestContext, place: Place) -> str:
        """The pledge's name: one for each place, so that it takes no more however many scopes share it."""
        key = (place.kind, context.tenant_id, context.env, place.backend_id, place.generation)
        name = self._names.get(key)
        if name is None:
            if len(self._names) >= PLACES_MAX:
                self._names.clear()
            name = self._names[key] = encode_json(where_of(context, place))
        return name


async def _admit(documents: Documents, partition: str) -> None:
    """Raises Throttled where too many messages wait in the partition, whose spine cannot be reached."""
    above, below = within("o", _GROUP)
    count = 0
    resume: str | None = above
    while resume is not None and count < WAITING_MAX:
        page = await documents.scan(partition, above=resume, below=below)
        count += len(page.docs)
        resume = page.resume
    if count >= WAITING_MAX:
        raise Throttled(
            f"{count} messages wait for the event spine; mend its route or backend", retry_after_s=PAUSE_S
        )
