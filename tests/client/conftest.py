"""Fixtures of the client's tests: a scripted server on loopback, a lab, and clients of both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest

from engines.client import AsyncEngines, RetryPolicy
from engines.testing.proxy import FaultProxy
from tests.cli.lab import LabProcess
from tests.client.loopback import Loopback, loopback

# Pauses short enough for a test, and a deadline that no passing test comes near.
QUICK = RetryPolicy(attempts_max=4, deadline_s=20.0, pause_first_s=0.001, pause_max_s=0.005)
RETRY = RetryPolicy(attempts_max=20, deadline_s=30.0, pause_first_s=0.01, pause_max_s=0.1)


@pytest.fixture
async def server() -> AsyncIterator[Loopback]:
    async with loopback() as listening:
        yield listening


@pytest.fixture
async def client(server: Loopback) -> AsyncIterator[AsyncEngines]:
    async with AsyncEngines(server.url, "token-1", retry=QUICK) as made:
        yield made


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabProcess]:
    """A real server that the tests of one module share."""
    process = LabProcess(tmp_path_factory.mktemp("lab") / "data")
    process.start()
    yield process
    process.kill()
    assert "Traceback" not in process.log, process.log[-5_000:]


def client_as(lab: LabProcess, user: str) -> AsyncEngines:
    return AsyncEngines(lab.file.url, lab.file.user(user).token, retry=RETRY)


@pytest.fixture
async def member(lab: LabProcess) -> AsyncIterator[AsyncEngines]:
    async with client_as(lab, "member") as client:
        yield client


@pytest.fixture
async def proxy(lab: LabProcess) -> AsyncIterator[FaultProxy]:
    """A network in front of the lab that loses replies when it is told to."""
    address = urlsplit(lab.file.url)
    assert address.hostname is not None
    assert address.port is not None
    async with FaultProxy((address.hostname, address.port)) as between:
        yield between


@pytest.fixture
async def far(lab: LabProcess, proxy: FaultProxy) -> AsyncIterator[AsyncEngines]:
    """A client of the same server, with the bad network in between."""
    host, port = proxy.address
    async with AsyncEngines(f"http://{host}:{port}", lab.file.user("member").token, retry=RETRY) as client:
        yield client
