"""A home for each test, once on every document driver that runs on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from engines.clock import Clock
from engines.drivers.registry import document_driver
from engines.ports.documents import DocumentDriver
from tests.stores.home import Home


@pytest.fixture(params=["sqlite", "postgres"])
def open_driver(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Clock], DocumentDriver]:
    """Opens the test's one database, again and again if asked."""
    module = document_driver(request.param)
    if request.param == "sqlite":
        config = {"path": str(tmp_path / "home.db")}
    else:
        config = {"url": request.getfixturevalue("postgres_database")}

    def open_it(clock: Clock) -> DocumentDriver:
        return module.open_driver(msgspec.convert(config, module.Config), {}, clock)

    return open_it


@pytest.fixture
async def home(open_driver: Callable[[Clock], DocumentDriver]) -> AsyncIterator[Home]:
    home = Home(open_driver)
    await home.driver.provision()
    yield home
    await home.close()
