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
from engines.stores.analytics import Analytics
from engines.stores.events import EventSpine, EventStreams
from engines.stores.notes import Notes
from tests.servers.postgres import PostgresServer
from tests.stores.analytics_home import SMALL, Kept
from tests.stores.budget_home import Spender
from tests.stores.definitions_home import Told
from tests.stores.home import Home, context
from tests.stores.samples import COUNT, numbered


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
async def told(home: Home) -> AsyncIterator[Told]:
    told = Told(home)
    yield told
    await told.close()


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


@pytest.fixture(params=[7, 50_000])
async def filled(home: Home, request: pytest.FixtureRequest) -> AsyncIterator[EventSpine]:
    """A spine of COUNT events, a second apart, in commits of 1, 2 and 3, in small segments or one."""
    spine = EventSpine(home, home.ids, home.clock, segment_size_default=request.param)
    number = 0
    while number < COUNT:
        batch = [
            numbered(index, event_type=("message", "tool_call")[index % 2], run_id=f"run-{index % 3}")
            for index in range(number, min(number + number % 3 + 1, COUNT))
        ]
        who = context(user_id=("ada", "bob")[number % 2], project_id=("p1", None)[number % 5 == 0])
        await spine.append(who, batch)
        home.clock.advance(1)
        number += len(batch)
    yield spine
    await spine.close()


@pytest.fixture
def notes(home: Home) -> Notes:
    return Notes(home, home.ids, home.clock)


@pytest.fixture
async def spender(home: Home) -> AsyncIterator[Spender]:
    spender = Spender(home)
    yield spender
    await spender.close()


@pytest.fixture
def contracts() -> Kept:
    return Kept()


@pytest.fixture
async def small(home: Home) -> AsyncIterator[EventSpine]:
    spine = EventSpine(home, home.ids, home.clock, index_layout_default=SMALL)
    yield spine
    await spine.close()


@pytest.fixture
def analytics(home: Home, small: EventSpine, contracts: Kept) -> Analytics:
    return Analytics(home, small, contracts, home.clock)
