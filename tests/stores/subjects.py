"""Four stores seen as one: what is put at a name, got from it, and deleted.

Owns the adapters by which a rule that holds for tables, session and agent memory and blackboards is tested
once. The blackboard wants a condition with each write and has no deletion; `writes` says what to give it.
"""

from __future__ import annotations

from typing import Any

from engines.agent.memory import AgentMemory, AgentMemoryInput
from engines.core.idempotency import Request, identify
from engines.core.listing import START, Listed, Window
from engines.core.records import ANYTHING, Condition
from engines.scope import RequestContext
from engines.stores.blackboard import Blackboard, BlackboardInput
from engines.stores.memory import MemoryInput, SessionMemory
from engines.stores.scoped import Change, Deletion, Stamped
from engines.stores.tables import TableRowInput, Tables
from tests.stores.home import Home

KEY = "k"


class TablesSubject:
    name = "tables"
    separates = frozenset({"tenant_id", "env"})
    deletes = True
    creating = ANYTHING

    def __init__(self, home: Home) -> None:
        self.store = Tables(home, home.clock)

    async def put(self, context: RequestContext, value: Any, **options: Any) -> Change[Any]:
        given = options.pop("named", {})
        key = options.pop("key", KEY)
        return await self.store.put(context, "t", "pk", key, TableRowInput(value=value, **given), **options)

    async def get(self, context: RequestContext, key: str = KEY) -> Any:
        return await self.store.get(context, "t", "pk", key)

    async def delete(self, context: RequestContext, **options: Any) -> Deletion:
        return await self.store.delete(context, "t", "pk", KEY, **options)

    async def list(self, context: RequestContext, window: Window = START) -> Listed[Any]:
        return await self.store.list(context, "t", "pk", window=window)


class MemorySubject:
    name = "memory"
    separates = frozenset({"tenant_id", "env", "user_id", "project_id"})
    deletes = True
    creating = ANYTHING

    def __init__(self, home: Home) -> None:
        self.store = SessionMemory(home, home.clock)

    async def put(self, context: RequestContext, value: Any, **options: Any) -> Change[Any]:
        given = options.pop("named", {})
        key = options.pop("key", KEY)
        return await self.store.set(context, "s", key, MemoryInput(value=value, **given), **options)

    async def get(self, context: RequestContext, key: str = KEY) -> Any:
        return await self.store.get(context, "s", key)

    async def delete(self, context: RequestContext, **options: Any) -> Deletion:
        return await self.store.delete(context, "s", KEY, **options)

    async def list(self, context: RequestContext, window: Window = START) -> Listed[Any]:
        return await self.store.list(context, "s", window=window)


class AgentMemorySubject:
    name = "agent memory"
    separates = frozenset({"tenant_id", "env", "user_id"})
    deletes = True
    creating = ANYTHING

    def __init__(self, home: Home) -> None:
        self.store = AgentMemory(home, home.clock)

    async def put(self, context: RequestContext, value: Any, **options: Any) -> Change[Any]:
        given = options.pop("named", {})
        key = options.pop("key", KEY)
        return await self.store.set(
            context, "episodes", key, AgentMemoryInput(value=value, **given), **options
        )

    async def get(self, context: RequestContext, key: str = KEY) -> Any:
        return await self.store.get(context, "episodes", key)

    async def delete(self, context: RequestContext, **options: Any) -> Deletion:
        return await self.store.delete(context, "episodes", KEY, **options)

    async def list(self, context: RequestContext, window: Window = START) -> Listed[Any]:
        return await self.store.list(context, "episodes", window=window)


class BlackboardSubject:
    name = "blackboard"
    separates = frozenset({"tenant_id", "env", "project_id"})
    deletes = False
    creating = Condition(absent=True)

    def __init__(self, home: Home) -> None:
        self.store = Blackboard(home, home.clock)

    async def put(self, context: RequestContext, value: Any, **options: Any) -> Change[Any]:
        given = options.pop("named", {})
        key = options.pop("key", KEY)
        return await self.store.put(context, "r", key, BlackboardInput(value=value, **given), **options)

    async def get(self, context: RequestContext, key: str = KEY) -> Any:
        return await self.store.get(context, "r", key)

    async def delete(self, context: RequestContext, **options: Any) -> Deletion:
        raise NotImplementedError("a blackboard has no deletion")

    async def list(self, context: RequestContext, window: Window = START) -> Listed[Any]:
        return await self.store.list(context, "r", window=window)


Subject = TablesSubject | MemorySubject | AgentMemorySubject | BlackboardSubject
SUBJECTS: dict[str, type[Subject]] = {
    subject.name: subject for subject in (TablesSubject, MemorySubject, AgentMemorySubject, BlackboardSubject)
}


def at(record: Stamped) -> Condition:
    """If-Match with the record's own ETag."""
    return Condition(versions=(record.etag.strip('"'),))


def keyed(key: str, body: bytes = b"{}") -> Request:
    """The request that carries this Idempotency-Key."""
    return identify("t_one", "prod", "ada", "PUT", "/path", key, body=body)
