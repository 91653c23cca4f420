"""One lab for all tests of the edge, each of which keeps to names of its own; and clients of it."""

import itertools
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.api.client import Client
from tests.servers.lab import LabServer


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    server = LabServer(tmp_path_factory.mktemp("edge") / "lab")
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def lab_port(lab: LabServer) -> int:
    return int(lab.url.rsplit(":", 1)[1])


@pytest.fixture
def lab_log(lab: LabServer) -> Path:
    """Everything that the lab has said."""
    return lab.output


@pytest.fixture
async def anyone(lab: LabServer) -> AsyncIterator[Client]:
    """A client without a credential."""
    async with Client(lab.url) as client:
        yield client


@pytest.fixture
def member(anyone: Client, lab: LabServer) -> Client:
    return anyone.bearing(lab.token("member"))


@pytest.fixture
def viewer(anyone: Client, lab: LabServer) -> Client:
    return anyone.bearing(lab.token("viewer"))


@pytest.fixture
def owner(anyone: Client, lab: LabServer) -> Client:
    return anyone.bearing(lab.token("owner"))


@pytest.fixture
def admin(anyone: Client, lab: LabServer) -> Client:
    """An admin of t_system."""
    return anyone.bearing(lab.token("system_admin"))


@pytest.fixture
def outsider(anyone: Client, lab: LabServer) -> Client:
    """A user who belongs to no tenant."""
    return anyone.bearing(lab.token(None))


@pytest.fixture
def fresh() -> Iterator[str]:
    """A name that no other test has."""
    return (f"x{uuid.uuid4().hex[:12]}{number}" for number in itertools.count())
