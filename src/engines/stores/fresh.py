"""Values that were read a moment ago: kept for as long as they may be used, and read once for all who wait.

Owns the age of what is kept, the one read under way for each key, and the bound on what is kept. Leaves what
is read to the stores. A value's age counts from when its read began, so that nothing that was changed longer
ago than `age_max_s` is missed. A value that cannot be read anew in that time is not there: whoever asks gets
the error, never what was read before.
"""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import msgspec

from engines.clock import Clock
from engines.errors import EnginesError, Unavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")


class _Kept(msgspec.Struct, Generic[V]):
    value: V
    began_s: float
    weight: int


class Fresh(Generic[K, V]):
    """Values by key, none older than `age_max_s` when it is handed out. On one event loop.

    Past `entries_max` entries, or `weight_max` of what `weigh` says of them together, those go that were not
    asked for the longest; that costs a read and nothing else.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        age_max_s: float,
        entries_max: int,
        weight_max: int,
        weigh: Callable[[V], int],
    ) -> None:
        self._clock = clock
        self._age_max_s = age_max_s
        self._entries_max = entries_max
        self._weight_max = weight_max
        self._weigh = weigh
        self._weight = 0
        self._kept: OrderedDict[K, _Kept[V]] = OrderedDict()
        self._reads: dict[K, asyncio.Task[_Kept[V]]] = {}

    def kept(self, key: K, default: D) -> V | D:
        """The value, if it was read lately enough; else `default`."""
        kept = self._kept.get(key)
        if kept is None or not self._is_fresh(kept):
            return default
        self._kept.move_to_end(key)
        return kept.value

    async def get(self, key: K, read: Callable[[V | None], Awaitable[V]]) -> V:
        """The value, read by `read` if need be, which is given what was read before, however old.

        Raises what `read` raises, and Unavailable where it takes longer than a value may be old.
        """
        kept = self._kept.get(key)
        if kept is not None and self._is_fresh(kept):
            self._kept.move_to_end(key)
            return kept.value
        under_way = self._reads.get(key)
        if under_way is None:
            under_way = self._reads[key] = asyncio.create_task(self._read(key, kept, read))
            under_way.add_done_callback(lambda _: self._reads.pop(key))
        try:
            found = await asyncio.shield(under_way)
        except EnginesError as error:
            raise copy.copy(error) from error
        except asyncio.CancelledError:
            if under_way.cancelled():
                raise Unavailable("the server is stopping") from None
            raise
        if not self._is_fresh(found):
            raise _too_slow()
        return found.value

    async def close(self) -> None:
        """End the reads under way; whoever waits for one is told so."""
        reads = list(self._reads.values())
        for task in reads:
            task.cancel()
        await asyncio.gather(*reads, return_exceptions=True)

    async def _read(
        self, key: K, before: _Kept[V] | None, read: Callable[[V | None], Awaitable[V]]
    ) -> _Kept[V]:
        began_s = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._age_max_s):
                value = await read(None if before is None else before.value)
        except TimeoutError as error:
            raise _too_slow() from error
        kept = _Kept(value, began_s, self._weigh(value))
        self._keep(key, kept)
        return kept

    def _keep(self, key: K, kept: _Kept[V]) -> None:
        self._drop(key)
        self._kept[key] = kept
        self._weight += kept.weight
        while len(self._kept) > self._entries_max or (
            self._weight > self._weight_max and len(self._kept) > 1
        ):
            self._drop(next(iter(self._kept)))

    def _drop(self, key: K) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._weight -= kept.weight

    def _is_fresh(self, kept: _Kept[V]) -> bool:
        return self._clock.monotonic() - kept.began_s < self._age_max_s


def _too_slow() -> Unavailable:
    return Unavailable("what was asked for could not be read in time", retry_after_s=1.0)
