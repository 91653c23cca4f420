"""The two doors to what is served: the client over HTTP, and the stores in process.

Owns what a row of the tables of records and logs consists of, and how the doors differ. Leaves the rows to
`records.py` and `logs.py` beside it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec

import engines
from engines.client import (
    AsyncEngines,
)
from engines.core.idempotency import Request, identify
from engines.core.records import Condition
from engines.scope import RequestContext

Payload = Mapping[str, Any]


class Seen(NamedTuple):
    """What a record says, and its ETag as the server gave it."""

    value: Any
    etag: str


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """One record through one door. `put` and `delete` take what the client's own methods take."""

    put: Callable[..., Awaitable[Seen]]
    get: Callable[[], Awaitable[Seen]]
    listed: Callable[[], Awaitable[list[Any]]] | None = None
    versions: Callable[[], Awaitable[list[Any]]] | None = None
    delete: Callable[..., Awaitable[Any]] | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A record, two things that it may say, and which of the spine's payloads are about it, if any are."""

    name: str
    kind: str
    client: Callable[[AsyncEngines], Door]
    process: Callable[[engines.Engines, RequestContext], Door]
    first: Any = 1
    second: Any = 2
    told: Callable[[Payload], bool] | None = None
    # A record that the server names is made again and again.
    is_named_by_server: bool = False


class LogDoor(msgspec.Struct, frozen=True, kw_only=True):
    """One log through one door. `append` takes a number and a key; `listed` gives the numbers, in order."""

    append: Callable[[int, str], Awaitable[Any]]
    listed: Callable[[], Awaitable[list[int]]]


class Log(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    kind: str
    client: Callable[[AsyncEngines], LogDoor]
    process: Callable[[engines.Engines, RequestContext], LogDoor]
    # What has to be there before anything is appended.
    prepare: Callable[[AsyncEngines], Awaitable[Any]] | None = None


# --- how the doors differ ---


def asked(how: Mapping[str, Any]) -> dict[str, Any]:
    """What a store is told, where the client is told `if_match`, `if_absent` and `idempotency_key`."""
    told: dict[str, Any] = {}
    if how.get("if_absent"):
        told["condition"] = Condition(absent=True)
    if how.get("if_match"):
        told["condition"] = Condition(versions=(how["if_match"].strip('"'),))
    if how.get("idempotency_key"):
        told["request"] = under(how["idempotency_key"])
    return told


def under(key: str) -> Request:
    return identify("test", key, body=b"")


def by_client(
    group: Any, *key: str, shows: Callable[[Any], Any], has_versions: bool = False, deletes: bool = True
) -> Door:
    """A group of the client whose methods take the record's key; a list takes all of it but the end."""

    async def put(value: Any, **how: Any) -> Seen:
        record = await group.put(*key, value, **how)
        return Seen(shows(record), record.etag)

    async def get() -> Seen:
        record = await group.get(*key)
        return Seen(shows(record), record.etag)

    async def listed() -> list[Any]:
        return [shows(record) async for record in group.each(*key[:-1])]

    async def versions() -> list[Any]:
        return [shows(record) async for record in group.versions(*key)]

    return Door(
        put=put,
        get=get,
        listed=listed,
        versions=versions if has_versions else None,
        delete=partial(group.delete, *key) if deletes else None,
    )


def in_process(
    store: Any,
    who: RequestContext,
    *key: Any,
    body: Callable[[Any], Any],
    shows: Callable[[Any], Any],
    has_versions: bool = False,
    deletes: bool = True,
) -> Door:
    """A store whose methods take the context and the record's key."""
    write = store.set if hasattr(store, "set") else store.put

    async def put(value: Any, **how: Any) -> Seen:
        change = await write(who, *key, body(value), **asked(how))
        return Seen(shows(change.record), change.etag)

    async def get() -> Seen:
        record = await store.get(who, *key)
        return Seen(shows(record), record.etag)

    async def listed() -> list[Any]:
        return [shows(record) for record in (await store.list(who, *key[:-1])).items]

    async def versions() -> list[Any]:
        return [shows(record) for record in (await store.versions(who, *key)).items]

    async def delete(**how: Any) -> None:
        await store.delete(who, *key, **asked(how))

    return Door(
        put=put,
        get=get,
        listed=listed,
        versions=versions if has_versions else None,
        delete=delete if deletes else None,
    )


def one(
    put: Callable[..., Awaitable[Any]], get: Callable[[], Awaitable[Any]], shows: Callable[[Any], Any]
) -> Door:
    """What there is one of: a policy, a switch. `put` takes what the client's does."""

    async def seen(record: Any) -> Seen:
        return Seen(shows(getattr(record, "record", record)), record.etag)

    async def write(value: Any, **how: Any) -> Seen:
        return await seen(await put(value, **how))

    async def read() -> Seen:
        return await seen(await get())

    return Door(put=write, get=read)


def value_of(record: Any) -> Any:
    return record.value


def blob_of(record: Any) -> Any:
    return record.json_blob
