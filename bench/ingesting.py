"""Taking analytics events in, in batches of 100: against appending the very events that it wrote to a log.

Ours begins with events as a body's JSON was decoded. The other side is the log itself, on the same database,
given what ours wrote in the same batches by as many callers: it neither judges an event, nor knows fields or
contracts, nor makes the text of one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import uvloop

from bench.measure import Goal, Result, Stopwatch, alternate, compared
from bench.stage import Stage
from bench.storage import ENV, POSTGRES, SQLITE, TENANT, Database, Storage
from engines import catalogue
from engines.api.analytics import events_of
from engines.clock import SystemClock
from engines.core.commits import COMMITS_ABOVE, COMMITS_BELOW, decode_commit
from engines.core.idempotency import Request, identify
from engines.core.keys import partition
from engines.core.log import Entry
from engines.core.place import Layouts, Place
from engines.ids import Ids
from engines.ports.documents import Doc
from engines.scope import RequestContext
from engines.stores.analytics import Analytics
from engines.stores.attribution import AttributionContract, ContractInForce, ContractRef
from engines.stores.events import SPINE_STREAM, EventSpine

BATCH = 100
CALLERS = 8
# So many times those of the other comparisons of appends: a round of 60 ms mostly measures its beginning.
BATCHES = 4
WARM_EVENTS = 3
CONTRACT = AttributionContract(
    platform="web",
    utm_template={"utm_source": "newsletter", "utm_campaign": "{campaign}_{month}"},
    allowed_fields=("page_url", "payload.button"),
    allowed_hosts=("example.com",),
)


class _Contracts:
    """One contract, known without a read: how contracts are found is not what is compared."""

    async def contract_in_force(self, _: RequestContext, __: str) -> ContractInForce | None:
        return ContractInForce(ContractRef("web", 1), CONTRACT)


class _Places:
    """Every kind on one database, each round in an env of its own."""

    def __init__(self, storage: Storage) -> None:
        self._documents = storage.documents
        self._layouts = Layouts(storage.documents)

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


def ingest_postgres(stage: Stage) -> list[Result]:
    return uvloop.run(_ingest_on(POSTGRES, stage))


def ingest_sqlite(stage: Stage) -> list[Result]:
    return uvloop.run(_ingest_on(SQLITE, stage))


async def _ingest_on(database: Database, stage: Stage) -> list[Result]:
    async with database.open(stage) as storage:
        clock = SystemClock()
        ids = Ids(clock)
        places = _Places(storage)
        spine = EventSpine(places, ids, clock)
        analytics = Analytics(places, spine, _Contracts(), clock)
        try:
            return [
                await _compare(database, storage, stage, analytics, keyed=False),
                await _compare(database, storage, stage, analytics, keyed=True),
            ]
        finally:
            await spine.close()


async def _compare(
    database: Database, storage: Storage, stage: Stage, analytics: Analytics, *, keyed: bool
) -> Result:
    batches = BATCHES * max(1, stage.sizes.appends_each // BATCH)
    events = [page_view(number) for number in range(CALLERS * batches * BATCH)]
    written: list[Entry] = []
    word = "keyed" if keyed else "plain"

    async def ours(number: int) -> float:
        context = _context(f"{word}-{number}")
        await analytics.ingest(context, events_of(events[:WARM_EVENTS]))

        async def caller(index: int) -> None:
            for turn in range(batches):
                start = (index * batches + turn) * BATCH
                request = _request(f"{word}-{number}-{start}") if keyed else None
                batch = events_of(events[start : start + BATCH])
                told = await analytics.ingest(context, batch, request=request)
                assert told.accepted == BATCH

        rate = await rate_of(len(events), caller)
        written[:] = await _bodies(storage, context.env, len(events))
        return rate

    async def log(number: int) -> float:
        log = storage.log(f"ingest-{word}-{number}")
        await log.append(written[:WARM_EVENTS])

        async def caller(index: int) -> None:
            for batch in range(batches):
                start = (index * batches + batch) * BATCH
                await log.append(written[start : start + BATCH])

        rate = await rate_of(len(written), caller)
        await log.close()
        return rate

    rates = await alternate(stage.sizes.rounds, ours, log)
    size = round(sum(len(entry.body) for entry in written) / len(written))
    return compared(
        *rates,
        name=f"ingest-{database.name}" + ("-keyed" if keyed else ""),
        what=f"take in analytics events, {database.label}, batches of {BATCH} by {CALLERS} callers"
        + (", each with an Idempotency-Key" if keyed else ""),
        unit="events/s",
        other_name="the log, the same events in the same batches",
        goal=None if keyed else Goal("at least", 0.6),
        notes={"events a round": len(events), "bytes an event": size},
    )


async def rate_of(count: int, caller: Callable[[int], Coroutine[None, None, None]]) -> float:
    """`count` events by all callers at once, a second."""
    watch = Stopwatch()
    async with asyncio.TaskGroup() as group:
        for index in range(CALLERS):
            group.create_task(caller(index))
    return count / watch.seconds()


async def _bodies(storage: Storage, env: str, count: int) -> list[Entry]:
    """What stands on the spine of a round, without the first events."""
    entries: list[Entry] = []
    segment = partition(catalogue.EVENT_SPINE, TENANT, env, f"{SPINE_STREAM}.0")
    for doc in await _all(storage, segment):
        entries += [Entry(bytes(item.event).decode()) for item in decode_commit(doc.key, doc.body).events]
    assert len(entries) == count + WARM_EVENTS, "every event that was taken in is there"
    return entries[WARM_EVENTS:]


async def _all(storage: Storage, segment: str) -> list[Doc]:
    docs: list[Doc] = []
    resume: str | None = COMMITS_ABOVE
    while resume is not None:
        page = await storage.documents.scan(segment, above=resume, below=COMMITS_BELOW)
        docs += page.docs
        resume = page.resume
    return docs


def _request(key: str) -> Request:
    return identify(TENANT, ENV, "u_bench", "POST", "/analytics/events", key, body=key.encode())


def page_view(number: int) -> dict[str, Any]:
    """An event as a body's JSON was decoded."""
    return {
        "event_type": "page_view",
        "platform": "web",
        "session_id": f"s{number % 1_000}",
        "utm_source": "newsletter",
        "utm_campaign": "spring-sale_2026-11",
        "page_url": "https://example.com/products/17",
        "payload": {"button": number},
    }


def _context(env: str) -> RequestContext:
    return msgspec.structs.replace(CONTEXT, env=env)


CONTEXT = RequestContext(
    tenant_id=TENANT,
    mode="saas",
    env=ENV,
    user_id="u_bench",
    roles=("member",),
    permissions=frozenset({"analytics.write"}),
    os_id="engines",
    surface_id="chat",
    run_id="run-1",
    step_id="0",
    request_id="4f0e28d24f0e28d24f0e28d24f0e28d2",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    span_id="b7ad6b7169203331",
    lab=False,
    sources={},
)
