"""The rules under several writers at once, and under callers that go away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from engines.errors import Conflict, OutcomeUnknown, Unavailable
from engines.ports.documents import ABSENT, ALWAYS, Delete, DocumentDriver, Match, Op
from engines.testing.documents.harness import (
    PARTITION,
    DocumentHarness,
    bodies,
    fill,
    get,
    put,
    read_keys,
    refused,
    write,
)

WRITERS = 12
ROUNDS = 8
# Contention may be answered with Unavailable; a caller that repeats gets through.
REPEATS_MAX = 500
# After a call was cancelled the next ones succeed within this time.
RECOVERY_TIMEOUT_S = 20.0


async def write_in_time(driver: DocumentDriver, *ops: Op) -> str:
    """Write, again while the driver says that nothing was applied."""
    for _ in range(REPEATS_MAX):
        try:
            return await write(driver, *ops)
        except Unavailable:
            await asyncio.sleep(0.001)
    raise AssertionError("contention did not end")


async def race(
    driver: DocumentDriver, harness: DocumentHarness, *batches: Sequence[Op]
) -> list[str | Conflict]:
    """All batches at once over two clients: the write id of each, or its Conflict."""
    other = harness.open()

    async def attempt(place: int, ops: Sequence[Op]) -> str | Conflict:
        try:
            return await write_in_time((driver, other)[place % 2], *ops)
        except Conflict as conflict:
            return conflict

    try:
        return list(await asyncio.gather(*(attempt(place, ops) for place, ops in enumerate(batches))))
    finally:
        await other.close()


def assert_one_winner(results: list[str | Conflict], contested: str) -> str:
    winners = [result for result in results if isinstance(result, str)]
    losers = [result for result in results if isinstance(result, Conflict)]
    assert len(winners) == 1
    assert {conflict.keys for conflict in losers} == {(contested,)}
    return winners[0]


@pytest.mark.asyncio
class TestConcurrency:
    async def test_exactly_one_of_many_creators_wins(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        for turn in range(ROUNDS):
            key = f"k{turn}"
            results = await race(driver, harness, *([put(key, str(n), ABSENT)] for n in range(WRITERS)))
            found = await get(driver, key)
            assert found is not None
            assert found.version == assert_one_winner(results, key)

    async def test_exactly_one_of_many_writers_of_a_version_wins(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        version = await write(driver, put("k1", "0"))
        for turn in range(ROUNDS):
            when = Match(version)
            op: Op = put("k1", str(turn), when)
            results = await race(driver, harness, *([op] for _ in range(WRITERS)))
            version = assert_one_winner(results, "k1")
            found = await get(driver, "k1")
            assert found is not None
            assert found.version == version

    async def test_a_delete_and_a_put_of_one_version_have_one_winner(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        for turn in range(ROUNDS):
            key = f"k{turn}"
            version = await write(driver, put(key, "0"))
            ops: list[list[Op]] = [[Delete(key, Match(version))], [put(key, "1", Match(version))]]
            results = await race(driver, harness, *ops * 3)
            assert_one_winner(results, key)
            deleted = any(isinstance(result, str) for result in results[::2])
            assert (await get(driver, key) is None) == deleted

    async def test_of_batches_that_create_one_document_one_is_applied_whole(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        for turn in range(ROUNDS):
            contested, shared = f"kc{turn}", f"kb{turn}"
            batches: list[list[Op]] = [
                [
                    put(f"ka{turn}.{n}", str(n), ABSENT),
                    put(shared, str(n)),
                    put(contested, str(n), ABSENT),
                    put(f"kd{turn}.{n}", str(n), ABSENT),
                ]
                for n in range(WRITERS)
            ]
            winner = assert_one_winner(await race(driver, harness, *batches), contested)
            keys = {op.key for batch in batches for op in batch}
            found = await driver.get(PARTITION, sorted(keys))
            assert len(found) == 4
            assert {doc.version for doc in found.values()} == {winner}

    async def test_of_batches_at_one_version_one_is_applied_whole(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        version = await write(driver, put("kb", "0"), put("kc", "0"))
        for turn in range(ROUNDS):
            batches: list[list[Op]] = [
                [
                    put(f"ka{turn}.{n}", str(n), ABSENT),
                    put("kb", str(n), Match(version)),
                    put("kc", str(n)),
                ]
                for n in range(WRITERS)
            ]
            version = assert_one_winner(await race(driver, harness, *batches), "kb")
            assert {doc.version for doc in (await driver.get(PARTITION, ["kb", "kc"])).values()} == {version}
            created = await read_keys(driver, above=f"ka{turn}.", below=f"ka{turn}/")
            assert len(created) == 1

    async def test_a_counter_under_match_loses_no_count(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        await write(driver, put("k1", "0"))
        other = harness.open()

        async def count(client: DocumentDriver, turns: int) -> None:
            for _ in range(REPEATS_MAX):
                if not turns:
                    return
                found = await get(client, "k1")
                assert found is not None
                try:
                    op = put("k1", str(int(found.body) + 1), Match(found.version))
                    await write_in_time(client, op)
                except Conflict:
                    continue
                turns -= 1
            raise AssertionError("a writer starved")

        try:
            await asyncio.gather(*(count((driver, other)[n % 2], 10) for n in range(6)))
        finally:
            await other.close()
        assert await bodies(driver, "k1") == {"k1": "60"}

    @pytest.mark.parametrize("seed", range(2))
    async def test_transfers_between_documents_neither_make_nor_lose_anything(
        self, driver: DocumentDriver, seed: int
    ) -> None:
        random = Random(seed)
        accounts = [f"k{n}" for n in range(5)]
        await write(driver, *(put(key, "100") for key in accounts))

        async def transfer() -> None:
            done = 0
            while done < 8:
                pair = random.sample(accounts, 2)
                found = await driver.get(PARTITION, pair)
                source, target = (found[key] for key in pair)
                try:
                    await write_in_time(
                        driver,
                        put(source.key, str(int(source.body) - 7), Match(source.version)),
                        put(target.key, str(int(target.body) + 7), Match(target.version)),
                    )
                except Conflict:
                    continue
                done += 1

        await asyncio.gather(*(transfer() for _ in range(6)))
        assert sum(map(int, (await bodies(driver, *accounts)).values())) == 500

    async def test_many_calls_at_once_are_all_answered(self, driver: DocumentDriver) -> None:
        await fill(driver, ["m1"])
        writes = [write_in_time(driver, put(f"k{n:03d}", "1", ABSENT)) for n in range(150)]
        reads = [get(driver, "m1") for _ in range(150)]
        await asyncio.gather(*writes, *reads)
        assert len(await read_keys(driver, below="l")) == 150


@pytest.mark.asyncio
class TestCancellation:
    @pytest.mark.parametrize("seed", range(4))
    async def test_a_write_cancelled_at_any_moment_is_applied_whole_or_not_at_all(
        self, driver: DocumentDriver, seed: int
    ) -> None:
        random = Random(seed)
        batches = [[f"k{n}{letter}" for letter in "abc"] for n in range(60)]
        longest_s = random.choice((0.0005, 0.003, 0.02))
        results = await asyncio.gather(
            *(
                write_for(driver, random.uniform(0, longest_s), *(put(key, "1", ABSENT) for key in keys))
                for keys in batches
            )
        )
        await assert_usable(driver)
        for keys, acknowledged in zip(batches, results, strict=True):
            found = await driver.get(PARTITION, keys)
            assert len(found) in ((3,) if acknowledged else (0, 3))

    async def test_a_read_cancelled_at_any_moment_leaves_the_driver_usable(
        self, driver: DocumentDriver
    ) -> None:
        random = Random(0)
        body = '"' + "x" * 100_000 + '"'
        await write(driver, *(put(f"k{n}", body) for n in range(8)))

        async def read_for(seconds: float) -> None:
            try:
                async with asyncio.timeout(seconds):
                    await driver.scan(PARTITION, above="k", below="l", limit=100, reverse=False)
                    await driver.get(PARTITION, [f"k{n}" for n in range(8)])
            except TimeoutError:
                return

        await asyncio.gather(*(read_for(random.uniform(0, 0.02)) for _ in range(60)))
        await assert_usable(driver)
        assert set((await bodies(driver, *(f"k{n}" for n in range(8)))).values()) == {body}

    async def test_a_call_cancelled_before_it_began_changes_nothing(self, driver: DocumentDriver) -> None:
        task = asyncio.create_task(write(driver, put("k1")))
        task.cancel()
        await asyncio.wait([task])
        await assert_usable(driver)
        assert await bodies(driver, "k1") == {}

    async def test_others_are_answered_while_callers_go_away(self, driver: DocumentDriver) -> None:
        leaving = [asyncio.create_task(write(driver, put(f"ka{n}"), put(f"kb{n}"))) for n in range(100)]
        staying = [asyncio.create_task(write_in_time(driver, put(f"kc{n}", "1", ABSENT))) for n in range(50)]
        await asyncio.sleep(0.002)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*staying)
        await asyncio.wait(leaving)
        assert len(await read_keys(driver, above="kc")) == 50


async def write_for(driver: DocumentDriver, seconds: float, *ops: Op) -> bool:
    """Whether the write was acknowledged before its caller went away."""
    try:
        async with asyncio.timeout(seconds):
            await write(driver, *ops)
    except (TimeoutError, Unavailable, OutcomeUnknown):
        return False
    return True


async def assert_usable(driver: DocumentDriver) -> None:
    """Many calls at once succeed, and conditions still mean what they say."""
    async with asyncio.timeout(RECOVERY_TIMEOUT_S):
        await asyncio.gather(*(write_in_time(driver, put(f"z{n}", "1")) for n in range(40)))
        assert await refused(driver, put("z0", "2", ABSENT)) == ("z0",)
        await write_in_time(driver, *(Delete(f"z{n}", ALWAYS) for n in range(40)))
        assert await read_keys(driver, above="z") == []
