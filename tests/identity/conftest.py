"""One world for each test: its own copy of a control plane that was made once."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.identity.world import World


@pytest.fixture(scope="session")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database file with everybody in it, closed."""
    path = tmp_path_factory.mktemp("cast")

    async def build() -> None:
        world = World(path)
        try:
            await world.build()
        finally:
            await world.close()

    asyncio.run(build())
    return path / "control.db"


@pytest.fixture
async def world(cast: Path, tmp_path: Path) -> AsyncIterator[World]:
    shutil.copy(cast, tmp_path / "control.db")
    world = World(tmp_path)
    await world.open()
    try:
        yield world
    finally:
        await world.close()
