"""The bare loops that ours is held against: one statement a row, and nothing else.

Owns a held asyncpg connection, and a sqlite3 connection behind one thread, each inserting rows of the same
shape into a table of the same shape in the same database, with the same durability. Neither knows
conditions, retries, deadlines or errors.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import asyncpg

# partition, key, body, version, expires_at
Row = tuple[str, str, str, str, int | None]

_COLUMNS = "(partition, key, body, version, expires_at)"


class Bare(Protocol):
    """One row, one commit, on one connection that is held."""

    async def insert(self, row: Row) -> None: ...

    async def written_by_us(self, partition: str) -> list[Row]:
        """The rows that Engines wrote to a partition, in key order."""
        ...

    async def close(self) -> None: ...


class BarePostgres:
    """A prepared INSERT in autocommit on a connection of its own."""

    def __init__(self, connection: Any, statement: Any) -> None:
        self._connection = connection
        self._statement = statement

    @classmethod
    async def open(cls, url: str) -> Self:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE public.bare (LIKE engines.documents INCLUDING ALL)")
        return cls(
            connection,
            await connection.prepare(f"INSERT INTO public.bare {_COLUMNS} VALUES ($1, $2, $3, $4, $5)"),
        )

    async def insert(self, row: Row) -> None:
        await self._statement.fetch(*row)

    async def written_by_us(self, partition: str) -> list[Row]:
        rows = await self._connection.fetch(
            "SELECT partition, key, body, version, expires_at FROM engines.documents"
            " WHERE partition = $1 ORDER BY key",
            partition,
        )
        return [tuple(row) for row in rows]

    async def close(self) -> None:
        await self._connection.close()


class BareSqlite:
    """An INSERT in autocommit on one thread, which answers through the loop: any async use of sqlite3."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[str, Sequence[Any], asyncio.Future[list[Any]]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: Path) -> Self:
        opened = cls(path)
        await opened._call(
            "CREATE TABLE bare (partition TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL,"
            " version TEXT NOT NULL, expires_at INTEGER, PRIMARY KEY (partition, key)) WITHOUT ROWID"
        )
        await opened._call("CREATE INDEX bare_expiry ON bare (expires_at) WHERE expires_at IS NOT NULL")
        return opened

    async def insert(self, row: Row) -> None:
        await self._call(f"INSERT INTO bare {_COLUMNS} VALUES (?, ?, ?, ?, ?)", row)

    async def written_by_us(self, partition: str) -> list[Row]:
        return await self._call(
            "SELECT partition, key, body, version, expires_at FROM documents"
            " WHERE partition = ? ORDER BY key",
            (partition,),
        )

    async def close(self) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _call(self, sql: str, arguments: Sequence[Any] = ()) -> list[Any]:
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self._jobs.put((sql, arguments, future))
        return await future

    def _serve(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        while (job := self._jobs.get()) is not None:
            sql, arguments, future = job
            rows = connection.execute(sql, arguments).fetchall()
            self._loop.call_soon_threadsafe(future.set_result, rows)
        connection.close()
