"""Announcements: how the change of a tenant's record reaches the tenant's spine.

A store writes the record and an outbox document in one atomic write; this module says what stands in that
document, appends it to the spine soon after, and removes it. A crash in between repeats the append under the
same event id, which the spine recognises: nothing is lost and nothing is doubled. Whatever a process left
behind is delivered by another, by the pledge that the process made before its change (`core/pledges.py`).

Owns the message, the tasks that deliver, and what happens where the spine cannot be reached: changes go on
until `WAITING_MAX` messages wait in one partition. Leaves what a message says to its store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, Final, Protocol

import msgspec
import structlog

from engines.clock import Clock
from engines.codec import Codec, decode_json, encode_json
from engines.core.documents import Documents
from engines.core.keys import SEPARATOR, within
from engines.core.outbox import (
    DELIVERY_TIMEOUT_S,
    SALT_CHARS,
    WAITING_MAX,
    event_id_of,
    in_portions,
    outbox_put,
)
from engines.core.place import Place, Places
from engines.errors import EnginesError, Throttled, Unavailable
from engines.ids import Ids
from engines.ports.documents import ALWAYS, Delete, Doc, Put
from engines.scope import RequestContext
from engines.stores.event_records import SystemEvent

PAUSE_S: Final = 0.5
PAUSE_MAX_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 2.0
# Messages that are removed in one write, which has room for what a move adds to it.
DELIVERED_MAX: Final = 64
# Places whose messages are delivered at once by one process.
DELIVERIES_AT_ONCE: Final = 16
_GROUP: Final = "spine"

log = structlog.get_logger(__name__)


class Spine(Protocol):
    """Where messages end: `EventSpine`."""

    async def append_system(
        self, context: RequestContext, events: list[SystemEvent], *, look_everywhere: bool = False
    ) -> Any: ...


class Promises(Protocol):
    """A durable word that messages of a place will be delivered: `core.pledges.Pledges`."""

    async def make(self, name: str, *, owner: str) -> None: ...

    def keep(self, name: str) -> None: ...

    async def withdraw(self, names: list[str]) -> None: ...


class _Where(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that decides where a kind of a tenant lies, as a pledge names it."""

    kind: str
    tenant_id: str
    mode: str
    env: str
    os_id: str
    surface_id: str
    app_id: str | None = None
    project_id: str | None = None


class _Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="schema", tag="announcement/1"
):
    """One waiting event, and the context in which it happened."""

    event_type: str
    payload: msgspec.Raw
    user_id: str
    run_id: str
    step_id: str
    trace_id: str
    span_id: str
    surface_id: str
    app_id: str | None = None
    project_id: str | None = None
    thread_id: str | None = None
    parent_event_id: str | None = None


class _Delivery:
    """The partitions of one place in which messages may wait, and how its last attempts went."""

    __slots__ = ("failures", "partitions", "task", "where")

    def __init__(self, where: _Where) -> None:
        self.where = where
        # The partition, and whether its messages may have been delivered before.
        self.partitions: dict[str, bool] = {}
        self.failures = 0
        self.task: asyncio.Task[None] | None = None


_MESSAGES: Final = Codec(_Message)
_WHERES: Final = msgspec.json.Decoder(_Where)


class Announcements:
    """The announcements of one process. `promises` is set before the first change (`wiring.py`)."""

    def __init__(self, places: Places, spine: Spine, ids: Ids, clock: Clock) -> None:
        self.promises: Promises
        self._places = places
        self._spine = spine
        self._ids = ids
        self._clock = clock
        self._deliveries: dict[str, _Delivery] = {}
        self._at_once = asyncio.Semaphore(DELIVERIES_AT_ONCE)
        self._closing = asyncio.Event()

    @contextlib.asynccontextmanager
    async def announcing(self, context: RequestContext, place: Place, partition: str) -> AsyncIterator[None]:
        """A block that writes records of `partition` with messages beside them; they are delivered after it.

        Raises Throttled while too many wait, and what making the pledge raises: then nothing was begun.
        """
        name = _name_of(context, place)
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
        message = _Message(
            event_type=event_type,
            payload=msgspec.Raw(encode_json(payload).encode()),
            user_id=context.user_id,
            run_id=context.run_id,
            step_id=context.step_id,
            trace_id=context.trace_id,
            span_id=context.span_id,
            surface_id=context.surface_id,
            app_id=context.app_id,
            project_id=context.project_id,
            thread_id=context.thread_id,
            parent_event_id=parent_event_id,
        )
        salt = self._ids.write_id()[-SALT_CHARS:]
        return outbox_put(_GROUP, record_key, version, _MESSAGES.encode(message), salt=salt)

    async def finish(self, name: str) -> None:
        """Deliver whatever waits anywhere at a place that another process left. Raises what delivery does."""
        where = _WHERES.decode(name)
        place = await self._places.place(where.kind, _context_at(where))
        for partition in await place.partitions():
            await self._deliver_in(where, partition, repeated=True)

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
            delivery = self._deliveries[name] = _Delivery(_WHERES.decode(name))
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

    async def _deliver(self, where: _Where, partition: str, *, repeated: bool) -> None:
        """Everything that waits in a partition, or wherever it was moved to since."""
        place = await self._places.place(where.kind, _context_at(where))
        present = await place.partitions()
        if partition in present:
            await self._deliver_in(where, partition, repeated=repeated)
            return
        for moved in present:
            await self._deliver_in(where, moved, repeated=True)

    async def _deliver_in(self, where: _Where, partition: str, *, repeated: bool) -> None:
        """Everything that waits in one partition, in the order of the changes to each record."""
        context = _context_at(where)
        above, below = within("o", _GROUP)
        resume: str | None = above
        while resume is not None:
            place = await self._places.place(where.kind, context)
            page = await place.documents.scan(partition, above=resume, below=below, limit=DELIVERED_MAX)
            resume = page.resume
            if not page.docs:
                return
            # Records at once, so that their events share commits; those of one record in its order, and
            # together, so that a ledger with many of them is told as fast.
            outcomes = await asyncio.gather(
                *(self._append(where, docs, repeated=repeated) for docs in _by_record(page.docs)),
                return_exceptions=True,
            )
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
            async with self._places.changing(where.kind, context) as place:
                if partition not in await place.partitions():
                    raise Unavailable("the messages were moved while they were delivered")
                await place.documents.write(partition, [Delete(doc.key, ALWAYS) for doc in page.docs])

    async def _append(self, where: _Where, docs: Sequence[Doc], *, repeated: bool) -> None:
        """Raises Unavailable where it takes too long: what was cut off is recognised by its event id."""
        context = _context_at(where)
        for some in in_portions(docs, count_max=DELIVERED_MAX):
            events = [_event_of(where, context, doc) for doc in some]
            try:
                async with asyncio.timeout(DELIVERY_TIMEOUT_S):
                    await self._spine.append_system(context, events, look_everywhere=repeated)
            except TimeoutError as error:
                raise Unavailable("the event spine did not answer in time") from error


def _event_of(where: _Where, context: RequestContext, doc: Doc) -> SystemEvent:
    """What a message becomes. Its id is not made of the partition's name, which changes as the kind moves."""
    message = _MESSAGES.decode(doc.body)
    return SystemEvent(
        event_type=message.event_type,
        payload=decode_json(bytes(message.payload)),
        event_id=event_id_of(f"{where.kind}.{where.tenant_id}.{where.env}", doc.key),
        parent_event_id=message.parent_event_id,
        whose=_context_of(context, message),
    )


def _by_record(docs: Sequence[Doc]) -> Collection[Sequence[Doc]]:
    records: dict[str, list[Doc]] = {}
    for doc in docs:
        records.setdefault(doc.key.rsplit(SEPARATOR, 2)[0], []).append(doc)
    return records.values()


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


def _name_of(context: RequestContext, place: Place) -> str:
    return encode_json(
        _Where(
            kind=place.kind,
            tenant_id=context.tenant_id,
            mode=context.mode,
            env=context.env,
            os_id=context.os_id,
            surface_id=context.surface_id,
            app_id=context.app_id,
            project_id=context.project_id,
        )
    )


def _context_at(where: _Where) -> RequestContext:
    """The server itself at work at a place: it may do nothing that needs a permission."""
    return RequestContext(
        tenant_id=where.tenant_id,
        mode=where.mode,
        env=where.env,
        user_id="system",
        roles=(),
        permissions=frozenset(),
        os_id=where.os_id,
        surface_id=where.surface_id,
        app_id=where.app_id,
        project_id=where.project_id,
        run_id="announcements",
        step_id="0",
        request_id="announcements",
        trace_id="0" * 32,
        span_id="0" * 16,
        lab=where.mode == "lab",
        sources={},
    )


def _context_of(context: RequestContext, message: _Message) -> RequestContext:
    """Whose change it was, so that the event says so."""
    return msgspec.structs.replace(
        context,
        user_id=message.user_id,
        run_id=message.run_id,
        step_id=message.step_id,
        trace_id=message.trace_id,
        span_id=message.span_id,
        surface_id=message.surface_id,
        app_id=message.app_id,
        project_id=message.project_id,
        thread_id=message.thread_id,
    )
