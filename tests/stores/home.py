"""Where store tests happen: real databases, a clock moved by hand, and faults on the way when asked for.

Owns `Home`, the plumbing between a store and one real driver: `Places` that leads every kind to it, so that
these tests are about stores. Routing has tests of its own. What is stored here is stored for good: a test
can close everything and open it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from engines.core.documents import Documents
from engines.core.place import Layouts, Place
from engines.errors import MissingRoute
from engines.ids import Ids
from engines.ports.documents import Doc, DocumentDriver, Op, Page
from engines.scope import RequestContext
from engines.testing.clock import ManualClock
from engines.testing.faults import FaultyDriver
from tests.contexts import PERMISSIONS_OF

EVERYTHING = PERMISSIONS_OF["owner"]

A_CONTEXT = RequestContext(
    tenant_id="t_one",
    mode="saas",
    env="prod",
    user_id="ada",
    roles=("member",),
    permissions=EVERYTHING,
    os_id="os",
    surface_id="chat",
    run_id="run-1",
    step_id="0",
    request_id="req-1",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    span_id="b7ad6b7169203331",
    lab=False,
    sources={},
)


def context(**changes: Any) -> RequestContext:
    """Ada's context in t_one, with `changes`."""
    return msgspec.structs.replace(A_CONTEXT, **changes)


class CountingDriver:
    """A driver that also counts what passes through it; a test may ask how many round trips a call made."""

    def __init__(self, driver: DocumentDriver) -> None:
        self._driver = driver
        self.calls: list[str] = []

    async def get(self, partition: str, keys: Any) -> dict[str, Doc]:
        self.calls.append("get")
        return await self._driver.get(partition, keys)

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        self.calls.append("scan")
        return await self._driver.scan(partition, above=above, below=below, limit=limit, reverse=reverse)

    async def write(self, partition: str, ops: Any, *, write_id: str) -> None:
        self.calls.append("write")
        operations: list[Op] = list(ops)
        await self._driver.write(partition, operations, write_id=write_id)

    async def provision(self) -> None:
        await self._driver.provision()

    async def reclaim(self, limit: int) -> int:
        return await self._driver.reclaim(limit)

    async def close(self) -> None:
        await self._driver.close()


class Home:
    """One database behind every kind. `options` are the route's, by kind; `missing` kinds have no route."""

    def __init__(self, open_driver: Callable[[ManualClock], DocumentDriver]) -> None:
        self.clock = ManualClock()
        self.ids = Ids(self.clock)
        self.options: dict[str, dict[str, Any]] = {}
        self.missing: set[str] = set()
        self.generation = 0
        self.backend_id = "first"
        self._open_driver = open_driver
        self._open()

    def _open(self) -> None:
        self.faults = FaultyDriver(self._open_driver(self.clock))
        self.driver = CountingDriver(self.faults)
        self.documents = Documents(self.driver, ids=self.ids, clock=self.clock)
        self.layouts = Layouts(self.documents)

    async def reopen(self) -> None:
        """Everything in memory is gone; the database stays."""
        await self.close()
        self.ids = Ids(self.clock)
        self._open()

    async def close(self) -> None:
        await self.documents.close()

    async def place(self, kind: str, context: RequestContext) -> Place:
        if kind in self.missing:
            raise MissingRoute("no route", resource_kind=kind)
        return Place(
            kind=kind,
            tenant_id=context.tenant_id,
            env=context.env,
            backend_id=self.backend_id,
            documents=self.documents,
            layouts=self.layouts,
            options=self.options.get(kind, {}),
            generation=self.generation,
        )

    async def left(self, kind: str, tenant_id: str, env: str, *, backend_id: str, generation: int) -> Place:
        return Place(
            kind=kind,
            tenant_id=tenant_id,
            env=env,
            backend_id=backend_id,
            documents=self.documents,
            layouts=self.layouts,
            options={},
            generation=generation,
        )

    @contextlib.asynccontextmanager
    async def changing(self, kind: str, context: RequestContext) -> AsyncIterator[Place]:
        await self.place("event_spine", context)
        yield await self.place(kind, context)
