"""Fixtures of the client's tests: a scripted server on loopback, a lab, and clients of both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from engines.client import AsyncEngines, RetryPolicy
from tests.cli.lab import LabProcess
from tests.client.loopback import Loopback, loopback

# Pauses short enough for a test, and a deadline that no passing test comes near.
QUICK = RetryPolicy(attempts_max=4, deadline_s=20.0, pause_first_s=0.001, pause_max_s=0.005)


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
