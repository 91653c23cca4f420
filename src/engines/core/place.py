"""Places: where one kind of one tenant and env lives, as routing resolved it.

Owns how records spread over shards, and the `Places` port by which stores ask. Leaves resolving routes to
`routing/` and partition names to `core/keys.py`. Stores know no backend, only a place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import msgspec

from engines.codec import Codec
from engines.core.chain import Chain, chain_of
from engines.core.documents import Documents
from engines.core.keys import SHARD_COUNT_DEFAULT, join, partition, shard_of
from engines.errors import Conflict, Corrupt
from engines.ports.documents import ABSENT, Put
from engines.scope import RequestContext

LAYOUTS_CACHED_MAX: Final = 10_000
_LAYOUT_KEY: Final = join("m", "layout")


class Layout(msgspec.Struct, frozen=True, tag_field="schema", tag="layout/1"):
    """Over how many shards a kind of a tenant and env is spread; fixed for ever by the first use."""

    shards: int


_CODEC: Final = Codec(Layout)


class Layouts:
    """Shard counts, read or fixed once and then remembered. One instance a backend."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._cache: OrderedDict[str, int] = OrderedDict()

    async def shard_count(self, kind: str, tenant_id: str, env: str, *, generation: int = 0) -> int:
        first_shard = partition(kind, tenant_id, env, 0, generation=generation)
        known = self._cache.get(first_shard)
        if known is None:
            known = await self._read_or_fix(first_shard)
            self._cache[first_shard] = known
            if len(self._cache) > LAYOUTS_CACHED_MAX:
                self._cache.popitem(last=False)
        return known

    async def _read_or_fix(self, first_shard: str) -> int:
        doc = await self._documents.get(first_shard, _LAYOUT_KEY)
        if doc is None:
            try:
                body = _CODEC.encode(Layout(SHARD_COUNT_DEFAULT))
                await self._documents.write(first_shard, [Put(_LAYOUT_KEY, body, ABSENT)])
            except Conflict:  # Another process fixed it first; its number holds.
                doc = await self._documents.get(first_shard, _LAYOUT_KEY)
                if doc is None:
                    raise Corrupt("a layout was written and cannot be read") from None
        return SHARD_COUNT_DEFAULT if doc is None else _CODEC.decode(doc.body).shards


class Place:
    """One kind of one tenant and env on its backend.

    `generation` grows each time the kind is moved; it tells a log's copy from the log that was left behind.
    `accepts_changes` is False for the moment in which a move changes from one backend to the other,
    `is_moving` True for as long as one is under way: what can be made anew is left alone meanwhile.
    """

    __slots__ = (
        "_layouts",
        "accepts_changes",
        "backend_id",
        "documents",
        "env",
        "generation",
        "is_moving",
        "kind",
        "options",
        "tenant_id",
    )

    def __init__(
        self,
        *,
        kind: str,
        tenant_id: str,
        env: str,
        backend_id: str,
        documents: Documents,
        layouts: Layouts,
        options: Mapping[str, Any],
        generation: int = 0,
        accepts_changes: bool = True,
    ) -> None:
        self.kind = kind
        self.tenant_id = tenant_id
        self.env = env
        self.backend_id = backend_id
        self.documents = documents
        self.options = options
        self.generation = generation
        self.accepts_changes = accepts_changes
        self.is_moving = False
        self._layouts = layouts

    async def partition(self, anchor: str) -> str:
        """The partition in which everything anchored at `anchor` lies."""
        shard = shard_of(anchor, await self._shard_count())
        return partition(self.kind, self.tenant_id, self.env, shard, generation=self.generation)

    async def partitions(self) -> Sequence[str]:
        """All shards, for what iterates over everything: relay, move, erase, export, backup."""
        return [
            partition(self.kind, self.tenant_id, self.env, shard, generation=self.generation)
            for shard in range(await self._shard_count())
        ]

    async def chain(self, stream: str) -> Chain:
        """A stream's commits as they are stored here."""
        return chain_of(
            self.documents,
            stream,
            kind=self.kind,
            tenant_id=self.tenant_id,
            env=self.env,
            shards=await self._shard_count(),
            generation=self.generation,
        )

    async def _shard_count(self) -> int:
        return await self._layouts.shard_count(
            self.kind, self.tenant_id, self.env, generation=self.generation
        )


class Places(Protocol):
    """How a store finds where to read and write. Implemented by routing."""

    async def place(self, kind: str, context: RequestContext) -> Place:
        """Where `kind` lies. Raises MissingRoute, ForbiddenBackendClass, Unavailable (a stale view)."""
        ...

    def changing(self, kind: str, context: RequestContext) -> AbstractAsyncContextManager[Place]:
        """The same for a change, which happens within the block: a move waits for it, and it for a move.

        Also raises MissingRoute where the tenant's spine has no route; and at the end of a block that raised
        nothing OutcomeUnknown, where this process was out of touch for so long that a move may have gone on
        without it.
        """
        ...
