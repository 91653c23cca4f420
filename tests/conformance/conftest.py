"""Fixtures of the conformance tests."""

from collections.abc import Iterator

import pytest

from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.testing.documents import DocumentHarness
from tests.conformance.harnesses import HARNESSES
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="session")
def conformance_database(postgres_server: PostgresServer) -> Iterator[str]:
    """One database for all tests here; each has a schema of its own in it."""
    name = "conformance"
    postgres_server.resume()
    postgres_server.start()
    postgres_server.drop_database(name)
    postgres_server.create_database(name)
    yield name
    postgres_server.resume()
    postgres_server.start()
    postgres_server.drop_database(name)


@pytest.fixture(params=DOCUMENT_DRIVERS)
def harness(request: pytest.FixtureRequest) -> DocumentHarness:
    """Fresh storage of each driver in turn."""
    make = HARNESSES.get(request.param)
    if make is None:
        pytest.fail(f"the driver {request.param} has no harness in tests/conformance/harnesses.py")
    return make(request)
