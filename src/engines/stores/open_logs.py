"""Open logs: one `Log` for each stream that is in use, so that appends to it share commits.

Owns how many are open and for how long, and how many followers of a tenant catch up at a time. A stream that
a route leads elsewhere is another log. One that is in use is never closed here, so where all are, another
stream has to wait; so that no tenant makes the others wait, each has a share of those in use. Two logs open
on one stream would be right all the same, only slower.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from itertools import islice
from typing import Final
from weakref import WeakValueDictionary

from engines.clock import Clock
from engines.core.chain import SEGMENT_SIZE_DEFAULT
from engines.core.log import Log
from engines.core.place import Place
from engines.errors import Throttled, Unavailable
from engines.ids import Ids

# Past this the log that was used longest ago is closed; open logs hold no task and little memory. It is twice
# what followers can hold, so that appends always find room.
LOGS_OPEN_MAX: Final = 2_000
# Of those that one tenant may have in use at once: a quarter, and twice what its followers can hold.
LOGS_TENANT_MAX: Final = 500
# Of a tenant's followers, how many read at once what they are behind by. A read is a page of a mebibyte, and
# making events of it takes some milliseconds in which nobody else is served.
CATCH_UPS_TENANT_MAX: Final = 2
ALL_IN_USE_RETRY_S: Final = 1.0
IDLE_S_MAX: Final = 300.0
# Of those used longest ago, how many are looked at each time one is used.
LOOKED_AT: Final = 4

_Key = tuple[str, str, str, str, str, int]


class _Open:
    __slots__ = ("log", "place", "used_at_s", "users")

    def __init__(self, log: Log, place: Place) -> None:
        self.log = log
        self.place = place
        self.users = 0
        self.used_at_s = 0.0


class OpenLogs:
    """The open logs of one store."""

    def __init__(
        self,
        ids: Ids,
        clock: Clock,
        *,
        segment_size_default: int = SEGMENT_SIZE_DEFAULT,
        open_max: int = LOGS_OPEN_MAX,
        tenant_max: int = LOGS_TENANT_MAX,
    ) -> None:
        assert 0 < tenant_max <= open_max
        self._ids = ids
        self._clock = clock
        self._segment_size_default = segment_size_default
        self._open_max = open_max
        self._tenant_max = tenant_max
        # How many logs of each tenant are in use, those that were dropped meanwhile included.
        self._in_use: Counter[str] = Counter()
        # Of those tenants that have logs open; each log holds its own.
        self._catch_ups: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._open: OrderedDict[_Key, _Open] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    @contextlib.asynccontextmanager
    async def use(self, place: Place, stream: str) -> AsyncIterator[Log]:
        """The stream's log, which stays open within the block.

        Raises Throttled where the tenant has its share of logs in use, or every open log is in use and there
        may be no more; Unavailable after `close`.
        """
        opened = self._take(place, stream, await place.partition(stream))
        try:
            yield opened.log
        finally:
            self._give_back(opened)
            is_dropped = self._open.get(_key(place, stream)) is not opened
            if is_dropped and opened.users == 0 and not self._closed:
                self._close(opened)

    def drop(self, place: Place, stream: str) -> None:
        """Open it anew next time: it was found sealed."""
        opened = self._open.pop(_key(place, stream), None)
        if opened is not None and opened.users == 0:
            self._close(opened)

    async def close(self) -> None:
        """Finish the appends that wait, end the followers, take nothing more."""
        self._closed = True
        closing = [opened.log.close() for opened in self._open.values()]
        self._open.clear()
        await asyncio.gather(*closing, *self._closing)

    def _take(self, place: Place, stream: str, shard_partition: str) -> _Open:
        if self._closed:
            raise Unavailable("the store is closed")
        key = _key(place, stream)
        opened = self._open.get(key)
        if opened is not None and opened.place.documents is not place.documents:
            self.drop(place, stream)  # The backend was opened anew.
            opened = None
        if opened is None or opened.users == 0:
            self._check_share(place.tenant_id)
        if opened is None:
            self._make_room()
            opened = self._open[key] = _Open(self._new_log(place, stream, shard_partition), place)
        if opened.users == 0:
            self._in_use[place.tenant_id] += 1
        opened.users += 1
        self._open.move_to_end(key)
        self._close_unused()
        return opened

    def _give_back(self, opened: _Open) -> None:
        opened.users -= 1
        opened.used_at_s = self._clock.monotonic()
        if opened.users == 0:
            tenant_id = opened.place.tenant_id
            self._in_use[tenant_id] -= 1
            if not self._in_use[tenant_id]:
                del self._in_use[tenant_id]

    def _check_share(self, tenant_id: str) -> None:
        if self._in_use[tenant_id] >= self._tenant_max:
            raise Throttled(
                f"a tenant has at most {self._tenant_max} logs in use at a time",
                retry_after_s=ALL_IN_USE_RETRY_S,
            )

    def _new_log(self, place: Place, stream: str, shard_partition: str) -> Log:
        catch_ups = self._catch_ups.get(place.tenant_id)
        if catch_ups is None:
            catch_ups = self._catch_ups[place.tenant_id] = asyncio.Semaphore(CATCH_UPS_TENANT_MAX)
        return Log(
            place.documents,
            kind=place.kind,
            tenant_id=place.tenant_id,
            env=place.env,
            stream=stream,
            ids=self._ids,
            clock=self._clock,
            shard_partition=shard_partition,
            generation=place.generation,
            segment_size_default=self._segment_size_default,
            catch_ups=catch_ups,
        )

    def _make_room(self) -> None:
        """For one more: where there is none, close the log that nobody has used for longest."""
        if len(self._open) < self._open_max:
            return
        unused = next((key for key, opened in self._open.items() if opened.users == 0), None)
        if unused is None:
            raise Throttled(
                f"all {self._open_max} logs that may be open here are in use",
                retry_after_s=ALL_IN_USE_RETRY_S,
            )
        self._close(self._open.pop(unused))

    def _close_unused(self) -> None:
        """Of the logs used longest ago, close what was idle too long."""
        now_s = self._clock.monotonic()
        for key, opened in list(islice(self._open.items(), LOOKED_AT)):
            if opened.users > 0:
                self._open.move_to_end(key)
            elif now_s - opened.used_at_s > IDLE_S_MAX:
                del self._open[key]
                self._close(opened)

    def _close(self, opened: _Open) -> None:
        task = asyncio.create_task(opened.log.close(), name="close-log")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _key(place: Place, stream: str) -> _Key:
    return place.kind, place.tenant_id, place.env, stream, place.backend_id, place.generation
