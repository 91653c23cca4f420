"""Fixtures of the log's tests: the storage that the conformance tests use, in a database of its own."""

import os
from collections.abc import Iterator
from typing import Final

import msgspec
import pytest

from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.testing.documents import DocumentHarness
from tests.conformance.harnesses import HARNESSES
from tests.servers.postgres import PostgresServer

# Every call costs milliseconds of a server and an SDK. script/soak sets the variable, and repeats all.
SLOW_DRIVERS: Final = ("dynamodb", "firestore", "cosmos")
REPETITIONS_SHARE: Final = 1 / 8
ALL_REPETITIONS_VARIABLE: Final = "ENGINES_TEST_ALL_REPETITIONS"


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
    harness = HARNESSES[request.param](request)
    if request.param in SLOW_DRIVERS and not os.environ.get(ALL_REPETITIONS_VARIABLE):
        harness = msgspec.structs.replace(harness, repetitions_share=REPETITIONS_SHARE)
    return harness
