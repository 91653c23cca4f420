"""Documents on each database, opened as often as a test wants processes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import pytest

from engines.clock import Clock, SystemClock
from engines.core.documents import Documents
from engines.ids import Ids
from engines.testing.faults import FaultPlan, FaultyDriver
from engines.wiring import open_driver

NewDocuments = Callable[..., Awaitable[tuple[Documents, FaultyDriver]]]


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/documents.db"
    return str(request.getfixturevalue("postgres_database"))


@pytest.fixture
async def new_documents(database_url: str) -> AsyncIterator[NewDocuments]:
    """Each call opens the database anew, as another process would; a test scripts its faults."""
    async with AsyncExitStack() as stack:

        async def make(clock: Clock | None = None) -> tuple[Documents, FaultyDriver]:
            chosen = clock or SystemClock()
            real, _ = open_driver(database_url, chosen)
            await real.provision()
            faulty = FaultyDriver(real, FaultPlan(), random=Random(1))
            documents = Documents(faulty, ids=Ids(chosen), clock=chosen)
            stack.push_async_callback(documents.close)
            return documents, faulty

        yield make
