"""A home for each test, on SQLite and on PostgreSQL: a file of its own, a schema of its own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from engines.clock import Clock
from engines.drivers.registry import document_driver
from engines.ports.documents import DocumentDriver
from engines.ports.secrets import Secret
from engines.stores.events import EventSpine, EventStreams
from tests.servers.postgres import PostgresServer
from tests.stores.home import Home


@pytest.fixture(scope="module")
def shared_database(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of one PostgreSQL database for a module: making one costs more than a test does."""
    name = f"stores_{uuid.uuid4().hex}"
    postgres_server.resume()
    postgres_server.start()
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgres"])
def open_driver(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Clock], DocumentDriver]:
    """Opens the test's one database, again and again if asked."""
    module = document_driver(request.param)
    if request.param == "sqlite":
        url = f"sqlite://{tmp_path}/home.db"
    else:
        url = f"{request.getfixturevalue('shared_database')}?schema=s{uuid.uuid4().hex}"
    config, password = module.config_from_url(url)
    secrets = {} if password is None else {"password": Secret(password)}

    def open_it(clock: Clock) -> DocumentDriver:
        return module.open_driver(msgspec.convert(config, module.Config), secrets, clock)

    return open_it


@pytest.fixture
async def home(open_driver: Callable[[Clock], DocumentDriver]) -> AsyncIterator[Home]:
    home = Home(open_driver)
    await home.driver.provision()
    yield home
    await home.close()


@pytest.fixture
async def spine(home: Home) -> AsyncIterator[EventSpine]:
    spine = EventSpine(home, home.ids, home.clock)
    yield spine
    await spine.close()


@pytest.fixture
async def streams(home: Home) -> AsyncIterator[EventStreams]:
    streams = EventStreams(home, home.ids, home.clock)
    yield streams
    await streams.close()
