"""What the log's kit is given, and the few words that its tests share.

Owns the fixture `logs`, which opens logs on one test's storage as several processes would, and helpers that
say nothing about any rule. The storage comes from the same fixture `harness` as that of
`engines.testing.documents`.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from random import Random
from typing import Any, Final

import pytest_asyncio

from engines.clock import Clock, SystemClock
from engines.codec import decode_json, encode_json
from engines.core.chain import Address, Chain
from engines.core.commits import COMMITS_ABOVE, COMMITS_BELOW, Commit, decode_commit
from engines.core.documents import Documents
from engines.core.keys import partition
from engines.core.log import Appended, Entry, Log, StoredEvent
from engines.ids import Ids, stream_tag
from engines.ports.documents import Doc, DocumentDriver, Op, Page
from engines.testing.documents.harness import DocumentHarness
from engines.testing.faults import NO_FAULTS, FaultPlan, FaultyDriver

KIND: Final = "event_stream"
TENANT_ID: Final = "t_kit"
ENV: Final = "test"
STREAM: Final = "main"
# What ids minted for the stream say of it: an id of another tenant, env or kind is a stranger.
TAG: Final = stream_tag(f"{KIND}.{TENANT_ID}.{ENV}.{STREAM}")
SHARD: Final = partition(KIND, TENANT_ID, ENV, 0)


class KitClock:
    """Wall-clock time as the test's storage sees it; deadlines run in real time."""

    def __init__(self, wall: Clock) -> None:
        self._wall = wall
        self._system = SystemClock()

    def now(self) -> float:
        return self._wall.now()

    def monotonic(self) -> float:
        return self._system.monotonic()


def open_log(
    driver: DocumentDriver,
    stream: str = STREAM,
    *,
    clock: Clock | None = None,
    segment_size: int = 50_000,
    timeout_s: float = 10.0,
) -> Log:
    """A log with ids and documents of its own, as another process has. The driver stays the caller's."""
    clock = clock or SystemClock()
    ids = Ids(clock)
    return Log(
        Documents(driver, ids=ids, clock=clock, timeout_s=timeout_s),
        kind=KIND,
        tenant_id=TENANT_ID,
        env=ENV,
        stream=stream,
        ids=ids,
        clock=clock,
        shard_partition=SHARD,
        segment_size_default=segment_size,
        timeout_s=timeout_s,
    )


class Watched:
    """A driver that counts its calls; `fail_writes` is raised by the next writes instead."""

    def __init__(self, driver: DocumentDriver) -> None:
        self.calls: Counter[str] = Counter()
        self.fail_writes: list[Exception] = []
        self._driver = driver
        self.provision, self.reclaim, self.close = driver.provision, driver.reclaim, driver.close

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        self.calls["get"] += 1
        return await self._driver.get(partition, keys)

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        self.calls["scan"] += 1
        return await self._driver.scan(partition, above=above, below=below, limit=limit, reverse=reverse)

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        self.calls["write"] += 1
        if self.fail_writes:
            raise self.fail_writes.pop(0)
        await self._driver.write(partition, ops, write_id=write_id)


class Logs:
    """Opens logs of one stream, each on a client of its own unless one is given."""

    def __init__(self, harness: DocumentHarness, driver: DocumentDriver) -> None:
        self.driver = driver
        self.clock = KitClock(harness.clock)
        self.wall = harness.clock
        self._harness = harness
        self._closers: list[Callable[[], Any]] = []

    def client(self) -> DocumentDriver:
        """Another client of the test's storage, as another process has it."""
        client = self._harness.open()
        self._closers.append(client.close)
        return client

    def faulty(self, plan: FaultPlan = NO_FAULTS, *, seed: int = 0) -> FaultyDriver:
        """A client on a bad way."""
        client = FaultyDriver(self._harness.open(), plan, random=Random(seed))
        self._closers.append(client.close)
        return client

    def open(
        self, driver: DocumentDriver | None = None, *, clock: Clock | None = None, **options: Any
    ) -> Log:
        log = open_log(driver or self.client(), clock=clock or self.clock, **options)
        self._closers.append(log.close)
        return log

    def repetitions(self, count: int, *, at_least: int = 1) -> int:
        """How many of `count` the harness wants."""
        return max(at_least, round(count * self._harness.repetitions_share))

    async def close(self) -> None:
        for close in reversed(self._closers):
            await close()

    # --- what stands in the storage ---

    def chain(self, stream: str = STREAM) -> Chain:
        ids = Ids(self.clock)
        documents = Documents(self.driver, ids=ids, clock=self.clock)
        address = Address(kind=KIND, tenant_id=TENANT_ID, env=ENV, stream=stream, shard_partition=SHARD)
        return Chain(documents, address, segment_size_default=2)

    async def commits(self, stream: str = STREAM) -> list[Commit]:
        """All commits, read straight from the storage, segment after segment."""
        chain = self.chain(stream)
        if not await chain.open():
            return []
        commits: list[Commit] = []
        tail = await chain.tail()
        for segment in range(0 if tail is None else chain.segment_of(tail.first) + 1):
            docs = await self.documents_in(chain.partition(segment))
            commits += [decode_commit(doc.key, doc.body) for doc in docs]
        return commits

    async def commits_above_floor(self, stream: str = STREAM) -> list[Commit]:
        """The commits that readers are given."""
        chain = self.chain(stream)
        await chain.open()
        return [commit for commit in await self.commits(stream) if commit.first > chain.floor.position]

    async def documents_in(
        self, partition: str, above: str = COMMITS_ABOVE, below: str = COMMITS_BELOW
    ) -> list[Doc]:
        docs: list[Doc] = []
        resume: str | None = above
        while resume is not None:
            page = await self.driver.scan(partition, above=resume, below=below, limit=1_000, reverse=False)
            docs += page.docs
            resume = page.resume
        return docs


@pytest_asyncio.fixture
async def logs(harness: DocumentHarness) -> AsyncIterator[Logs]:
    """Logs on the storage of one test; everything opened is closed after it."""
    driver = harness.open()
    await driver.provision()
    opened = Logs(harness, driver)
    yield opened
    await opened.close()
    await driver.close()


def entry(name: str, event_id: str | None = None) -> Entry:
    return Entry(encode_json({"name": name}), event_id)


async def append(log: Log, *names: str, **options: Any) -> Appended:
    """One request with an event for each name."""
    return await log.append([entry(name) for name in names], **options)


def name_of(event: StoredEvent) -> str | None:
    return None if event.body is None else str(decode_json(event.body)["name"])


async def names(log: Log) -> list[str | None]:
    """What stands in the log, read page by page; checks that positions have no gap."""
    events: list[StoredEvent] = []
    while True:
        batch = await log.list_after(len(events), limit=1_000)
        events += batch.events
        if not batch.events:
            break
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    return [name_of(event) for event in events]


def client_id() -> str:
    return str(uuid.uuid4())
