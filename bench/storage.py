"""The two databases of this benchmark, each with ours and the bare side open on it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec

from bench.bare import Bare, BarePostgres, BareSqlite
from bench.stage import Stage
from engines.clock import SystemClock
from engines.core.documents import Documents
from engines.core.keys import partition
from engines.core.log import Log
from engines.drivers.registry import document_driver, driver_of_url, url_secrets
from engines.ids import Ids

KIND = "event_spine"
TENANT = "t_bench"
ENV = "prod"


class Storage:
    """One database. `documents` is ours, `bare` the other side on the same database."""

    def __init__(self, documents: Documents, bare: Bare) -> None:
        self.documents = documents
        self.bare = bare
        self._clock = SystemClock()
        self._ids = Ids(self._clock)

    def log(self, stream: str) -> Log:
        return Log(
            self.documents,
            kind=KIND,
            tenant_id=TENANT,
            env=ENV,
            stream=stream,
            ids=self._ids,
            clock=self._clock,
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
    async with _documents(url) as documents:
        bare = await BarePostgres.open(url)
        try:
            yield Storage(documents, bare)
        finally:
            await bare.close()


@contextlib.asynccontextmanager
async def _open_sqlite(stage: Stage) -> AsyncIterator[Storage]:
    path: Path = stage.new_directory() / "data.db"
    async with _documents(f"sqlite://{path}") as documents:
        bare = await BareSqlite.open(path)
        try:
            yield Storage(documents, bare)
        finally:
            await bare.close()


@contextlib.asynccontextmanager
async def _documents(url: str) -> AsyncIterator[Documents]:
    clock = SystemClock()
    module = document_driver(driver_of_url(url))
    config, password = module.config_from_url(url)
    secrets = url_secrets(module, password)
    driver = module.open_driver(msgspec.convert(config, module.Config), secrets, clock)
    documents = Documents(driver, ids=Ids(clock), clock=clock)
    try:
        await driver.provision()
        yield documents
    finally:
        await documents.close()


POSTGRES = Database("postgres", "PostgreSQL", "asyncpg, one INSERT a commit", _open_postgres)
SQLITE = Database("sqlite", "SQLite", "sqlite3 behind a thread, one INSERT a commit", _open_sqlite)
