"""The rules of `provision`, `reclaim` and `close`, and of what a driver does not offer."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from engines.errors import Conflict, Unavailable
from engines.ports.documents import ABSENT, ALWAYS, Delete, DocumentDriver
from engines.testing.documents.harness import (
    PARTITION,
    DocumentHarness,
    bodies,
    get,
    offered,
    put,
    read_keys,
    write,
)
from engines.testing.documents.process import begin, writing_process

PROCESSES = 5
PROCESS_TIMEOUT_S = 60.0
VERBS = {"get", "scan", "write", "provision", "reclaim", "close"}


@pytest.mark.asyncio
class TestProvision:
    async def test_provisioning_again_keeps_every_document(self, driver: DocumentDriver) -> None:
        version = await write(driver, put("k1", "1"))
        await driver.provision()
        found = await get(driver, "k1")
        assert found is not None
        assert (found.body, found.version) == ("1", version)

    async def test_several_clients_may_provision_fresh_storage_at_once(
        self, harness: DocumentHarness
    ) -> None:
        clients = [harness.open() for _ in range(4)]
        try:
            await asyncio.gather(*(client.provision() for client in clients))
            for number, client in enumerate(clients):
                await write(client, put(f"k{number}", "1", ABSENT), put(f"m{number}", "1", ABSENT))
            assert len(await read_keys(clients[0])) == 2 * len(clients)
        finally:
            for client in clients:
                await client.close()

    async def test_several_processes_may_provision_fresh_storage_at_once(
        self, harness: DocumentHarness
    ) -> None:
        process = offered(harness.process)
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(PROCESS_TIMEOUT_S):
            starting = (
                writing_process(process, f"child{number}", batches=1, provision=True)
                for number in range(PROCESSES)
            )
            children = await asyncio.gather(*map(stack.enter_async_context, starting))
            await asyncio.gather(*(begin(child) for child in children))
            for number, child in enumerate(children):
                assert child.stdout is not None
                assert await child.stdout.readline() == f"child{number}.0\n".encode()
                assert await child.wait() == 0

    async def test_one_client_may_provision_twice_at_once(self, harness: DocumentHarness) -> None:
        client = harness.open()
        try:
            await asyncio.gather(client.provision(), client.provision())
            await write(client, put("k1"))
        finally:
            await client.close()


@pytest.mark.asyncio
class TestReclaim:
    """A service that sweeps by itself answers 0 and has nothing left to prove."""

    async def test_reclaim_removes_expired_documents_alone_and_says_how_many(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        now = int(harness.clock.now())
        await write(driver, *(put(f"ka{n}", expires_at=now + 10) for n in range(5)))
        await write(driver, *(put(f"kb{n}", expires_at=now + 30) for n in range(5)), put("kc"))
        await write(driver, put("ka5", expires_at=now + 10), partition=f"{PARTITION}0")
        harness.clock.advance(20)
        assert await driver.reclaim(100) in (0, 6)
        assert await driver.reclaim(100) == 0
        assert await read_keys(driver) == [*(f"kb{n}" for n in range(5)), "kc"]
        harness.clock.jump(-20)
        assert set(await read_keys(driver)) >= {*(f"kb{n}" for n in range(5)), "kc"}

    async def test_reclaim_removes_no_more_than_its_limit(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        lapses = int(harness.clock.now()) + 10
        await write(driver, *(put(f"k{n}", expires_at=lapses) for n in range(7)))
        harness.clock.advance(20)
        counts = [await driver.reclaim(3) for _ in range(4)]
        assert counts in ([3, 3, 1, 0], [0, 0, 0, 0])

    async def test_reclaiming_at_once_counts_every_document_once(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        lapses = int(harness.clock.now()) + 10
        for start in range(0, 300, 100):
            await write(driver, *(put(f"k{start + n:03d}", expires_at=lapses) for n in range(100)))
        harness.clock.advance(20)
        other = harness.open()
        try:
            counts = await asyncio.gather(*(client.reclaim(200) for client in (driver, other) * 2))
        finally:
            await other.close()
        assert sum(counts) + await driver.reclaim(1_000) in (0, 300)

    async def test_reclaim_leaves_a_document_that_was_put_again(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        for turn in range(10):
            lapses = int(harness.clock.now()) + 10
            await write(driver, *(put(f"k{n}", "old", expires_at=lapses) for n in range(20)))
            harness.clock.advance(20)
            keys = [f"k{n}" for n in range(20)]
            again = (write(driver, put(key, str(turn), ABSENT)) for key in keys)
            await asyncio.gather(driver.reclaim(100), *again, driver.reclaim(100))
            assert await bodies(driver, *keys) == dict.fromkeys(keys, str(turn))
            await write(driver, *(Delete(key, ALWAYS) for key in keys))


@pytest.mark.asyncio
class TestClose:
    async def test_calls_after_close_are_unavailable(self, harness: DocumentHarness) -> None:
        client = harness.open()
        await client.provision()
        await write(client, put("k1"))
        await client.close()
        calls = (
            lambda: client.get(PARTITION, ["k1"]),
            lambda: client.scan(PARTITION, above="A", below="~", limit=1, reverse=False),
            lambda: client.write(PARTITION, [put("k2")], write_id="a" * 32),
            client.provision,
            lambda: client.reclaim(1),
        )
        for call in calls:
            with pytest.raises(Unavailable):
                await call()

    async def test_close_twice_and_before_first_use_is_harmless(self, harness: DocumentHarness) -> None:
        client = harness.open()
        await client.close()
        await client.close()

    async def test_a_write_under_way_at_close_is_either_acknowledged_or_refused(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        client = harness.open()
        keys = [f"k{number}" for number in range(20)]
        writes = [asyncio.create_task(write(client, put(key), put(f"m{key}"))) for key in keys]
        await asyncio.sleep(0)
        await client.close()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(result) for result in results} <= {str, Unavailable}
        written = {key for key, result in zip(keys, results, strict=True) if isinstance(result, str)}
        assert set(await read_keys(driver)) == written | {f"m{key}" for key in written}


@pytest.mark.asyncio
class TestSurface:
    async def test_the_verbs_are_all_that_a_driver_offers(self, driver: DocumentDriver) -> None:
        assert {name for name in dir(driver) if not name.startswith("_")} == VERBS

    async def test_a_conflict_is_raised_only_under_a_condition(self, driver: DocumentDriver) -> None:
        keys = [f"k{number}" for number in range(8)]

        async def write_all(order: int) -> str | Exception:
            try:
                return await write(driver, *(put(key, str(order)) for key in keys[:: 1 if order % 2 else -1]))
            except Unavailable as contention:
                return contention
            except Conflict:
                pytest.fail("nobody set a condition")

        results = await asyncio.gather(*(write_all(order) for order in range(40)))
        assert any(isinstance(result, str) for result in results)
        assert len(set((await bodies(driver, *keys)).values())) == 1
