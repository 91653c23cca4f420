"""Where the index of a log lies: beside the log, or in a store that has a route of its own.

Owns the two places, and what a change at each must heed. An index beside its log takes no part in moves: it
is made anew at the target, and what was left behind is removed with the log. An index in a store is part of
the store: it lies in the store's shards, so a move copies it, and every change is made as a change of that
store, which a move knows of. It carries the name of the log that it is of, by the log's backend and
generation: where the log's route leads elsewhere, or the log was moved, that is another index.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from engines.core.index import Index, Layout, beside_log
from engines.core.keys import shard_of
from engines.core.place import Place, Places
from engines.errors import Unavailable
from engines.scope import RequestContext

NAME_HEX_DIGITS: Final = 16
MOVING_RETRY_S: Final = 5.0


class IndexHome(Protocol):
    """Where the index of the log at `place` lies."""

    async def find(self, context: RequestContext, place: Place) -> Index:
        """For reading. Raises MissingRoute, ForbiddenBackendClass, Unavailable."""
        ...

    def changing(self, context: RequestContext, place: Place) -> AbstractAsyncContextManager[Index]:
        """For a change, which happens within the block. Also raises OutcomeUnknown at its end."""
        ...


class BesideLog:
    """An index that shares its log's backend, in partitions of its own."""

    def __init__(self, stream: str, *, layout_default: Layout) -> None:
        self._stream = stream
        self._layout_default = layout_default

    async def find(self, _: RequestContext, place: Place) -> Index:
        locate = beside_log(place.kind, place.tenant_id, place.env, self._stream, generation=place.generation)
        return Index(place.documents, locate, layout_default=self._layout_default)

    @contextlib.asynccontextmanager
    async def changing(self, context: RequestContext, place: Place) -> AsyncIterator[Index]:
        if place.is_moving:
            raise Unavailable(
                "the log is being moved; its index is made anew at the target", retry_after_s=MOVING_RETRY_S
            )
        yield await self.find(context, place)


class InStore:
    """An index in the shards of another kind of the same tenant and env."""

    def __init__(self, kind: str, stream: str, places: Places, *, layout_default: Layout) -> None:
        self._kind = kind
        self._stream = stream
        self._places = places
        self._layout_default = layout_default

    async def find(self, context: RequestContext, place: Place) -> Index:
        return await self._index(await self._places.place(self._kind, context), place)

    @contextlib.asynccontextmanager
    async def changing(self, context: RequestContext, place: Place) -> AsyncIterator[Index]:
        async with self._places.changing(self._kind, context) as store:
            yield await self._index(store, place)

    async def _index(self, store: Place, log: Place) -> Index:
        shards = await store.partitions()
        return Index(
            store.documents,
            lambda part: shards[shard_of(part, len(shards))],
            layout_default=self._layout_default,
            name=(f"{self._stream}-{_name_of(log)}",),
        )


def _name_of(log: Place) -> str:
    told = f"{log.backend_id} {log.generation}"
    return hashlib.sha256(told.encode()).hexdigest()[:NAME_HEX_DIGITS]
