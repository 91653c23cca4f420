"""A control plane's store on each database, and views of it as other processes have them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from engines.wiring import ControlPlane, open_control_plane

Another = Callable[[], Awaitable[ControlPlane]]


@pytest.fixture(params=["sqlite", "postgres"])
def control_plane_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/control.db"
    return str(request.getfixturevalue("postgres_database"))


@pytest.fixture
async def processes() -> AsyncIterator[AsyncExitStack]:
    """Closes whatever a test opens."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def another(control_plane_url: str, processes: AsyncExitStack) -> Another:
    """Each call opens the control plane anew, as another process would."""

    async def open_another() -> ControlPlane:
        return await processes.enter_async_context(open_control_plane(control_plane_url))

    return open_another
