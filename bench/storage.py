"""Storage with ours open on it, and of two databases the bare side as well."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec

from bench.backends import Backend, sqlite_backend, url_backend
from bench.bare import Bare, BarePostgres, BareSqlite
from bench.stage import Stage
from engines.clock import SystemClock
from engines.core.documents import Documents
from engines.core.keys import partition
from engines.core.log import Log
from engines.ids import Ids
from engines.ports.documents import DocumentDriver

KIND = "event_spine"
TENANT = "t_bench"
ENV = "prod"


class Storage:
    """One database. `documents` is ours, `bare` the other side on the same database."""

    def __init__(self, documents: Documents, bare: Bare) -> None:
        self.documents = documents
        self.bare = bare

    def log(self, stream: str) -> Log:
        return new_log(self.documents, stream)


def new_log(documents: Documents, stream: str) -> Log:
    """The log of a stream on this storage, as a process opens it."""
    clock = SystemClock()
    return Log(
        documents,
        kind=KIND,
        tenant_id=TENANT,
        env=ENV,
        stream=stream,
        ids=Ids(clock),
        clock=clock,
        shard_partition=partition(KIND, TENANT, ENV, 0),
    )


class Database(msgspec.Struct, frozen=True):
    """A database by name; `other` says what the bare side is."""

    name: str
    label: str
    other: str
    open: Callable[[Stage], AbstractAsyncContextManager[Storage]]


def _open_postgres(stage: Stage) -> AbstractAsyncContextManager[Storage]:
    return open_postgres_at(stage.new_database())


@contextlib.asynccontextmanager
async def open_postgres_at(url: str) -> AsyncIterator[Storage]:
    """Ours and the bare side on an empty database."""
    async with open_backend(url_backend(url, "PostgreSQL")) as documents:
        bare = await BarePostgres.open(url)
        try:
            yield Storage(documents, bare)
        finally:
            await bare.close()


@contextlib.asynccontextmanager
async def _open_sqlite(stage: Stage) -> AsyncIterator[Storage]:
    path: Path = stage.new_directory() / "data.db"
    async with open_backend(sqlite_backend(path)) as documents:
        bare = await BareSqlite.open(path)
        try:
            yield Storage(documents, bare)
        finally:
            await bare.close()


def open_backend(backend: Backend) -> AbstractAsyncContextManager[Documents]:
    """Empty storage, provisioned."""
    return open_documents(backend.open())


@contextlib.asynccontextmanager
async def open_documents(driver: DocumentDriver) -> AsyncIterator[Documents]:
    """A driver's storage, provisioned; the driver is closed at the end."""
    clock = SystemClock()
    documents = Documents(driver, ids=Ids(clock), clock=clock)
    try:
        await driver.provision()
        yield documents
    finally:
        await documents.close()


POSTGRES = Database("postgres", "PostgreSQL", "asyncpg, one INSERT a commit", _open_postgres)
SQLITE = Database("sqlite", "SQLite", "sqlite3 behind a thread, one INSERT a commit", _open_sqlite)
