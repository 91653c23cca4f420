"""Fixtures of the log's tests: the storage that the conformance tests use, in a database of its own."""

from collections.abc import Iterator

import pytest

from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.testing.documents import DocumentHarness
from tests.conformance.harnesses import HARNESSES
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="session")
def conformance_database(postgres_server: PostgresServer) -> Iterator[str]:
    """Where the harness of PostgreSQL makes its schemas; overrides the one of tests/conformance."""
    name = "log"
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
    return HARNESSES[request.param](request)
