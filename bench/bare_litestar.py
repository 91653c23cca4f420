"""A notes service of Litestar and nothing else: the same statements, no token, no tenant, no route, no rule.

Started as `python -m bench.bare_litestar`, with the database's URL on the first line of stdin; says where
it listens on its first line. One worker, the same server, event loop and parser settings as `engines serve`
has by default.

On PostgreSQL it holds as many connections as a backend of Engines has by default, with the same session
settings, and lends them without asyncpg's pool. On SQLite it uses Engines' own driver, because no bare loop
commits what waits as one group, and the comparison is about what stands above the statements.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import asyncpg
import msgspec
import uvicorn
import uvloop
from litestar import Litestar, Response, get, post
from litestar.exceptions import NotFoundException

from engines.clock import SystemClock
from engines.drivers.documents import sqlite
from engines.drivers.documents.postgres import Config
from engines.drivers.documents.postgres.statements import MAKE_DURABLE, SESSION_SETTINGS, STATEMENTS
from engines.ports.documents import ABSENT, Put

PARTITION = "notes_store.t_bare.prod.0"
USER = "u_bare"


class NoteInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    content: Any
    title: str = ""
    content_type: str = "markdown"
    tags: tuple[str, ...] = ()


class Note(msgspec.Struct, frozen=True):
    note_id: str
    user_id: str
    title: str
    content: Any
    content_type: str
    tags: tuple[str, ...]
    created_at: str
    etag: str


class Storage(Protocol):
    async def get(self, key: str) -> tuple[str, str] | None:
        """A document's body and version."""
        ...

    async def create(self, key: str, body: str, version: str) -> None: ...


class PostgresStorage:
    """A stack of held connections, each with its two statements prepared."""

    def __init__(self, schema: str) -> None:
        self._read = STATEMENTS["get_one"].format(schema=schema)
        self._create = STATEMENTS["create"].format(schema=schema)
        self._idle: asyncio.LifoQueue[tuple[Any, Any]] = asyncio.LifoQueue()

    async def add(self, connection: Any) -> None:
        self._idle.put_nowait((await connection.prepare(self._read), await connection.prepare(self._create)))

    async def get(self, key: str) -> tuple[str, str] | None:
        statements = await self._idle.get()
        try:
            rows = await statements[0].fetch(PARTITION, key, int(time.time()))
        finally:
            self._idle.put_nowait(statements)
        return (rows[0][1], rows[0][2]) if rows else None

    async def create(self, key: str, body: str, version: str) -> None:
        statements = await self._idle.get()
        try:
            await statements[1].fetch(PARTITION, key, body, version, None, int(time.time()))
        finally:
            self._idle.put_nowait(statements)


class SqliteStorage:
    """Engines' driver: its writer thread commits what waits as one group."""

    def __init__(self, driver: sqlite.SqliteDocuments) -> None:
        self._driver = driver

    async def get(self, key: str) -> tuple[str, str] | None:
        doc = (await self._driver.get(PARTITION, (key,))).get(key)
        return None if doc is None else (doc.body, doc.version)

    async def create(self, key: str, body: str, version: str) -> None:
        await self._driver.write(PARTITION, (Put(key, body, ABSENT),), write_id=version)


@contextlib.asynccontextmanager
async def postgres_storage(url: str) -> AsyncIterator[Storage]:
    defaults = Config(host="", database="", user="")
    storage = PostgresStorage(defaults.schema)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(defaults.pool_size):
            connection = await asyncpg.connect(url, server_settings=dict(SESSION_SETTINGS))
            stack.push_async_callback(connection.close)
            await connection.execute(MAKE_DURABLE)
            await storage.add(connection)
        yield storage


@contextlib.asynccontextmanager
async def sqlite_storage(url: str) -> AsyncIterator[Storage]:
    config, _ = sqlite.config_from_url(url)
    driver = sqlite.open_driver(sqlite.Config(**config), {}, SystemClock())
    await driver.provision()
    try:
        yield SqliteStorage(driver)
    finally:
        await driver.close()


def application(storage: Storage) -> Litestar:
    encoder = msgspec.json.Encoder()

    @get("/notes/{note_id:str}")
    async def get_note(note_id: str) -> Response[bytes]:
        found = await storage.get(f"n!{USER}!{note_id}")
        if found is None:
            raise NotFoundException
        body, version = found
        return Response(body.encode(), media_type="application/json", headers={"ETag": f'"{version}"'})

    @post("/notes")
    async def create_note(data: NoteInput) -> Response[bytes]:
        version = os.urandom(16).hex()
        note = Note(
            note_id=str(uuid.uuid4()),
            user_id=USER,
            title=data.title,
            content=data.content,
            content_type=data.content_type,
            tags=data.tags,
            created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            etag=f'"{version}"',
        )
        body = encoder.encode(note)
        await storage.create(f"n!{USER}!{note.note_id}", body.decode(), version)
        return Response(body, status_code=201, media_type="application/json", headers={"ETag": note.etag})

    return Litestar([get_note, create_note], openapi_config=None, logging_config=None)


def opened(url: str) -> AbstractAsyncContextManager[Storage]:
    return sqlite_storage(url) if url.startswith("sqlite:") else postgres_storage(url)


async def serve(url: str, listener: socket.socket) -> None:
    async with opened(url) as storage:
        config = uvicorn.Config(
            application(storage),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        print(f"listens on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    url = sys.stdin.readline().strip()
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        uvloop.run(serve(url, listener))


if __name__ == "__main__":
    main()
