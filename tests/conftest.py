"""What every test may ask for: real servers, and an honest account of what did not run.

Owns the PostgreSQL, DynamoDB, Firestore and Cosmos DB of the session, each started by the first test that
wants it and shared by all, with fresh databases or tables for each. A test may kill or stop such a server:
the next one that asks for a database or a table finds it running. Leaves fixtures of one area to that area's
own conftest.py.
"""

import gc
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from tests.servers.cosmos import WIRE_ALONE, CosmosAccount, CosmosServer, is_wire_alone, open_cosmos
from tests.servers.dynamodb import DynamoServer, DynamoUnavailableError
from tests.servers.firestore import FirestoreServer, FirestoreUnavailableError
from tests.servers.postgres import PostgresServer, PostgresUnavailableError


def pytest_configure() -> None:
    """SIGTERM ends the run as Ctrl-C does: fixtures stop what they started.

    Ctrl-C counts again even where the run was started in the background: a shell without job control has
    such a process and all its children ignore SIGINT, and tests interrupt both.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL. Where it cannot run the test is *not run*; in CI that is a failure."""
    server = PostgresServer()
    try:
        server.start()
    except (PostgresUnavailableError, TimeoutError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no PostgreSQL: {error}")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def firestore_server() -> Iterator[FirestoreServer]:
    """The session's Firestore emulator. Where Debian's package of it is missing, the test is *not run*."""
    server = FirestoreServer()
    try:
        server.start()
    except (FirestoreUnavailableError, TimeoutError) as error:
        server.close()
        pytest.skip(f"no Firestore emulator: {error}")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def dynamodb_server() -> Iterator[DynamoServer]:
    """The session's DynamoDB. Where it cannot be had, for want of npm, the test is *not run*."""
    server = DynamoServer()
    try:
        server.start()
    except (DynamoUnavailableError, TimeoutError) as error:
        pytest.skip(f"no DynamoDB server: {error}")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def new_postgres_database(postgres_server: PostgresServer) -> Iterator[Callable[[], str]]:
    """Each call makes an empty database and returns its URL; all are dropped after the test."""
    names: list[str] = []

    def make() -> str:
        postgres_server.resume()
        postgres_server.start()
        names.append(f"test_{uuid.uuid4().hex}")
        return postgres_server.create_database(names[-1])

    yield make
    postgres_server.resume()
    postgres_server.start()
    for name in names:
        postgres_server.drop_database(name)


@pytest.fixture
def postgres_database(new_postgres_database: Callable[[], str]) -> str:
    """The URL of one empty database, dropped after the test."""
    return new_postgres_database()


@pytest.fixture(scope="session")
def cosmos_server() -> Iterator[CosmosServer | CosmosAccount]:
    """The session's Cosmos DB: an account, Microsoft's emulator, or the wire-level server."""
    service = open_cosmos()
    try:
        yield service
    finally:
        service.close()


def pytest_collection_finish() -> None:
    """What was collected stays to the end: else every full collection of garbage walks it, for a third of a
    second in which no timer and no reply is served.
    """
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str | None:
    return WIRE_ALONE if is_wire_alone() else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """script/test says which of its checks failed before the tests; then the run as a whole has failed."""
    if _failed_checks() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what did not run, each with its reason, and the checks that failed before the tests."""
    lines = sorted({_not_run(report) for report in terminalreporter.getreports("skipped")})
    if is_wire_alone():
        lines.append(f"not run: {WIRE_ALONE}")
    if lines:
        terminalreporter.section("not run")
    for line in lines:
        terminalreporter.write_line(line)
    if failed := _failed_checks():
        terminalreporter.section("checks", red=True)
        terminalreporter.write_line(f"failed: {failed}")


def _failed_checks() -> str:
    return os.environ.get("ENGINES_TEST_FAILED_CHECKS", "")


def _not_run(report: pytest.TestReport | pytest.CollectReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return f"not run: {report.nodeid}: {reason.removeprefix('Skipped: ')}"
