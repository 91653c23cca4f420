"""The two sides of a move: which partitions lie on each, and which streams.

Owns the names under which one kind of one tenant lies on the source and on the target, and doing something
with all of them at once. Leaves copying to `core/transfer.py` and when to copy to `routing/mover.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from engines.catalogue import kind_named
from engines.control.records import Move
from engines.core.chain import Chain, chain_of
from engines.core.documents import Documents
from engines.core.index import index_partitions
from engines.core.keys import partition
from engines.core.transfer import (
    LogTransfer,
    PartitionTransfer,
    Tally,
    empty,
    everything,
    segments,
    stream_names,
)
from engines.routing.backends import OpenBackend

# Partitions that are copied or compared whole; and streams, or partitions of which little is read.
PARTITIONS_AT_ONCE: Final = 4
AT_ONCE: Final = 32

T = TypeVar("T")
R = TypeVar("R")


class Stream(msgspec.Struct, frozen=True):
    """One stream of one side."""

    env: str
    name: str
    chain: Chain


class Side(msgspec.Struct, frozen=True):
    """One backend, and the generation under which the kind lies there."""

    documents: Documents
    generation: int


class Count(msgspec.Struct):
    """What lies somewhere. Where `complete` is false there is more."""

    documents: int = 0
    bytes: int = 0
    streams: int = 0
    events: int = 0
    complete: bool = True


class Sides:
    """Source and target: which partitions lie there, and which streams."""

    def __init__(
        self,
        move: Move,
        source: OpenBackend,
        target: OpenBackend,
        envs: tuple[str, ...],
        tally: Tally,
        mover_id: str = "",
    ) -> None:
        self.envs = envs
        self.source = Side(source.documents, move.source_generation)
        self.target = Side(target.documents, move.target_generation)
        self.partitions: list[PartitionTransfer] = []
        self._move = move
        self._layouts = source.layouts
        self._tally = tally
        self._mover_id = mover_id
        self._shards: dict[str, int] = {}
        kind = kind_named(move.resource_kind)
        self._has_streams = kind.family == "log" or kind.has_streams
        self._logs: dict[tuple[str, str], LogTransfer] = {}

    async def learn(self) -> None:
        """Over how many shards each env is spread, and so the partitions; a move keeps the number."""
        for env in self.envs:
            self._shards[env] = await self._layouts.shard_count(
                self._move.resource_kind, self._move.tenant_id, env, generation=self.source.generation
            )
        self.partitions = [
            PartitionTransfer(
                self.source.documents,
                self.target.documents,
                source_partition=self._shard(self.source, env, shard),
                target_partition=self._shard(self.target, env, shard),
                mover=self._mover_id,
                tally=self._tally,
            )
            for env, shards in self._shards.items()
            for shard in range(shards)
        ]

    async def claim(self) -> None:
        await each(self.partitions, PartitionTransfer.claim, PARTITIONS_AT_ONCE)

    async def follow_logs(self) -> int:
        """Follow every stream to its end; how many commits that were."""
        for stream in await self.streams(self.source):
            key = (stream.env, stream.name)
            if key not in self._logs:
                copy = self._chain(self.target, stream.env, stream.name)
                self._logs[key] = LogTransfer(stream.chain, copy, tally=self._tally)
        return sum(await each(list(self._logs.values()), LogTransfer.follow, AT_ONCE))

    async def compare_logs(self) -> None:
        await each(list(self._logs.values()), LogTransfer.compare, AT_ONCE)

    async def streams(self, side: Side) -> list[Stream]:
        """The streams that have a record on this side."""

        async def find(place: tuple[str, int]) -> list[Stream]:
            env, shard = place
            names = await stream_names(side.documents, self._shard(side, env, shard))
            return [Stream(env, name, self._chain(side, env, name)) for name in names]

        shards = self._shards.items() if self._has_streams else ()
        places = [(env, shard) for env, count in shards for shard in range(count)]
        return [stream for found in await each(places, find, AT_ONCE) for stream in found]

    async def count(self, *, until_s: float) -> Count:
        """What lies on the source, counted for so long at the most."""
        count = Count()
        try:
            async with asyncio.timeout(until_s):
                await self.learn()
                for env, shards in self._shards.items():
                    for shard in range(shards):
                        async for docs in everything(
                            self.source.documents, self._shard(self.source, env, shard)
                        ):
                            count.documents += len(docs)
                            count.bytes += sum(len(doc.body.encode()) for doc in docs)
                for stream in await self.streams(self.source):
                    count.streams += 1
                    if await stream.chain.open() and (last := await stream.chain.tail()) is not None:
                        count.events += last.last - stream.chain.floor.position
        except TimeoutError:
            count.complete = False
        return count

    async def remove(self, side: Side) -> None:
        """Remove everything from one side; the streams' records last, by which the rest is found."""
        for stream in await self.streams(side):
            for name in await index_partitions(stream.chain):
                await empty(side.documents, name, self._tally)
            for name in await segments(stream.chain):
                await empty(side.documents, name, self._tally)
        for env, shards in self._shards.items():
            for shard in range(shards):
                await empty(side.documents, self._shard(side, env, shard), self._tally)

    async def remove_journal(self) -> None:
        for env, shards in self._shards.items():
            for shard in range(shards):
                journalled = self._shard(self.source, env, shard)
                await empty(self.source.documents, journalled, self._tally, journal_only=True)

    def _shard(self, side: Side, env: str, shard: int) -> str:
        return partition(
            self._move.resource_kind, self._move.tenant_id, env, shard, generation=side.generation
        )

    def _chain(self, side: Side, env: str, name: str) -> Chain:
        return chain_of(
            side.documents,
            name,
            kind=self._move.resource_kind,
            tenant_id=self._move.tenant_id,
            env=env,
            shards=self._shards[env],
            generation=side.generation,
        )


async def each(items: Sequence[T], work: Callable[[T], Awaitable[R]], at_once: int) -> list[R]:
    """`work` on every item, some at a time. The first failure ends the others and is raised."""
    gate = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with gate:
            return await work(item)

    tasks = [asyncio.create_task(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
