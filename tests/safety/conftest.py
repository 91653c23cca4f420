"""A house with one deployment's control plane and spine on one real database, for each test its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.safety.house import House
from tests.stores.conftest import home, open_driver, shared_database
from tests.stores.home import Home

__all__ = ["home", "open_driver", "shared_database"]


@pytest.fixture
async def house(home: Home) -> AsyncIterator[House]:
    house = House(home)
    await house.open()
    yield house
    await house.close()
