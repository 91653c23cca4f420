"""The rules of `kill -9`: what was acknowledged is there, what was not is whole or absent."""

from __future__ import annotations

import asyncio

import pytest

from engines.errors import OutcomeUnknown, Unavailable
from engines.ports.documents import ABSENT, DocumentDriver
from engines.testing.documents.harness import (
    PARTITION,
    DocumentHarness,
    Process,
    Server,
    fresh_write_id,
    get,
    offered,
    put,
    read_keys,
    write,
)
from engines.testing.documents.network import recover
from engines.testing.documents.process import BATCH, begin, writing_process

ACKNOWLEDGED_BEFORE_KILL = 40
WRITING_TIMEOUT_S = 60.0


async def write_until_lost(driver: DocumentDriver, name: str, outcomes: dict[str, bool]) -> None:
    """Batches named by their outcome: acknowledged (True) or unknown (False); ends at the first error."""
    for number in range(10_000):
        batch = f"{name}.{number}"
        try:
            await write(driver, *(put(f"k{batch}.{letter}", "1", ABSENT) for letter in BATCH))
        except Unavailable:
            return
        except OutcomeUnknown:
            outcomes[batch] = False
            return
        outcomes[batch] = True


async def acknowledged(outcomes: dict[str, bool], count: int) -> None:
    """Returns once that many batches were acknowledged."""
    async with asyncio.timeout(WRITING_TIMEOUT_S):
        while sum(outcomes.values()) < count:  # noqa: ASYNC110 (several writers share the one count)
            await asyncio.sleep(0.002)


async def assert_kept(driver: DocumentDriver, outcomes: dict[str, bool]) -> None:
    """Acknowledged batches are whole, unknown ones whole or absent, and there are no others."""
    stored = await read_keys(driver, above="k", below="l")
    counts: dict[str, int] = {}
    for key in stored:
        batch = key[1:-2]
        counts[batch] = counts.get(batch, 0) + 1
    assert set(counts.values()) <= {len(BATCH)}
    assert {batch for batch, acknowledged in outcomes.items() if acknowledged} <= set(counts)
    assert set(counts) <= set(outcomes)


@pytest.mark.asyncio
class TestServerCrash:
    @pytest.fixture
    def server(self, harness: DocumentHarness) -> Server:
        return offered(harness.server)

    async def test_acknowledged_writes_outlive_the_server_and_the_client_goes_on(
        self, driver: DocumentDriver, server: Server
    ) -> None:
        outcomes: dict[str, bool] = {}
        writers = [asyncio.create_task(write_until_lost(driver, f"w{n}", outcomes)) for n in range(4)]
        await acknowledged(outcomes, ACKNOWLEDGED_BEFORE_KILL)
        try:
            await server.kill()
            await asyncio.gather(*writers)
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await get(driver, "k1")
                with pytest.raises(Unavailable):
                    await write(driver, put("m1"))
        finally:
            await server.start()
        await recover(driver)
        await assert_kept(driver, outcomes)
        assert await get(driver, "m1") is None


@pytest.mark.asyncio
class TestClientCrash:
    @pytest.fixture
    def process(self, harness: DocumentHarness) -> Process:
        return offered(harness.process)

    async def test_acknowledged_writes_outlive_the_client_that_made_them(
        self, driver: DocumentDriver, process: Process
    ) -> None:
        acknowledged: list[str] = []
        async with writing_process(process, "child") as child, asyncio.timeout(WRITING_TIMEOUT_S):
            await begin(child)
            assert child.stdout is not None
            while len(acknowledged) < ACKNOWLEDGED_BEFORE_KILL and (line := await child.stdout.readline()):
                acknowledged.append(line.decode().strip())
            child.kill()
            acknowledged += [line.decode().strip() async for line in child.stdout if line.endswith(b"\n")]
        assert len(acknowledged) >= ACKNOWLEDGED_BEFORE_KILL, "the other process did not write"
        await settle(driver, set(acknowledged))
        stored = {key[1:-2] for key in await read_keys(driver, above="k", below="l")}
        await assert_kept(driver, dict.fromkeys(stored, False) | dict.fromkeys(acknowledged, True))
        assert len(stored) <= len(acknowledged) + 1, "one write at most was under way"

    async def test_a_killed_client_leaves_nothing_locked(
        self, driver: DocumentDriver, process: Process
    ) -> None:
        async with writing_process(process, "child") as child, asyncio.timeout(WRITING_TIMEOUT_S):
            await begin(child)
            assert child.stdout is not None
            name = (await child.stdout.readline()).decode().strip()
            child.kill()
        number = int(name.rpartition(".")[2])
        async with asyncio.timeout(WRITING_TIMEOUT_S):
            for later in range(number, number + 20):
                keys = [f"kchild.{later}.{letter}" for letter in BATCH]
                await driver.write(PARTITION, [put(key, "2") for key in keys], write_id=fresh_write_id())
        assert len(await read_keys(driver, above="k", below="l")) >= 20 * len(BATCH)


async def settle(driver: DocumentDriver, acknowledged: set[str]) -> None:
    """Returns once a write that the killed process had sent has been carried out or dropped."""
    async with asyncio.timeout(WRITING_TIMEOUT_S):
        before: list[str] = []
        while not before or before != (now := await read_keys(driver, above="k", below="l")):
            before = await read_keys(driver, above="k", below="l")
            await asyncio.sleep(0.05)
        assert acknowledged <= {key[1:-2] for key in now}
