"""The rules of `get` and `scan`."""

from __future__ import annotations

from random import Random

import pytest

from engines.ports.documents import (
    ALWAYS,
    BODY_BYTES_MAX,
    PAGE_BYTES,
    SCAN_LIMIT_MAX,
    Delete,
    Doc,
    DocumentDriver,
)
from engines.testing.documents.harness import (
    ALLOWED,
    FIRST,
    LAST,
    PARTITION,
    DocumentHarness,
    fill,
    get,
    put,
    read_keys,
    write,
)

OTHER_PARTITIONS = ("kit.t_one.prod.00", "kit.t_one.prod.", "kit.t_one.prod.1", "kit.t_ONE.prod.0")


def keys_of_every_character() -> list[str]:
    """Keys that differ in one character, in their length, and in two places at once."""
    letters = [character for character in ALLOWED if character.isalpha()]
    pairs = [f"m{first}{second}" for first in "!~-.Zz09" for second in ALLOWED]
    return sorted({*letters, *(f"k{character}" for character in ALLOWED), *pairs, "k", "kk", "kkk"})


@pytest.mark.asyncio
class TestGet:
    async def test_what_was_put_comes_back_exactly(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        expires_at = int(harness.clock.now()) + 60
        write_id = await write(driver, put("k1", '{"a": 1}', expires_at=expires_at))
        assert await driver.get(PARTITION, ["k1"]) == {"k1": Doc("k1", '{"a": 1}', write_id, expires_at)}

    async def test_missing_documents_are_left_out(self, driver: DocumentDriver) -> None:
        await write(driver, put("k1"))
        assert set(await driver.get(PARTITION, ["k0", "k1", "k2"])) == {"k1"}
        assert await driver.get(PARTITION, ["k0"]) == {}
        assert await driver.get("never.t_written.prod.0", ["k1"]) == {}

    async def test_one_hundred_keys_are_one_get(self, driver: DocumentDriver) -> None:
        keys = [f"k{number:03d}" for number in range(200)]
        await fill(driver, keys[::2])
        asked = keys[50:150]
        assert set(await driver.get(PARTITION, asked)) == set(asked[::2])

    async def test_keys_and_partitions_are_told_apart_by_every_byte(self, driver: DocumentDriver) -> None:
        for partition in OTHER_PARTITIONS:
            await write(driver, put("k1", f'"{partition}"'), partition=partition)
        await write(driver, put("k1", '"mine"'), put("K1", '"upper"'), put("k1!", '"longer"'))
        assert (await driver.get(PARTITION, ["k1", "K1"]))["k1"].body == '"mine"'
        for partition in OTHER_PARTITIONS:
            found = await driver.get(partition, ["k1", "K1", "k1!"])
            assert {key: doc.body for key, doc in found.items()} == {"k1": f'"{partition}"'}

    async def test_a_write_acknowledged_to_another_client_is_seen(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        reader = harness.open()
        try:
            for number in range(20):
                version = await write(driver, put("k1", str(number)))
                seen = await get(reader, "k1")
                assert seen is not None
                assert (seen.body, seen.version) == (str(number), version)
                page = await reader.scan(PARTITION, above=FIRST, below=LAST, limit=10, reverse=False)
                assert page.docs == (seen,)
        finally:
            await reader.close()


@pytest.mark.asyncio
class TestScan:
    async def test_both_bounds_are_exclusive_and_need_not_exist(self, driver: DocumentDriver) -> None:
        await fill(driver, ["ka", "kb", "kc", "kd"])
        for reverse in (False, True):
            order = -1 if reverse else 1
            expected = {("ka", "kd"): ["kb", "kc"], ("k", "kbb"): ["ka", "kb"], ("kb", "kc"): []}
            expected |= {("kc", "kb"): [], ("kb", "kb"): [], (FIRST, LAST): ["ka", "kb", "kc", "kd"]}
            for (above, below), keys in expected.items():
                assert await read_keys(driver, above=above, below=below, reverse=reverse) == keys[::order]

    async def test_documents_come_as_they_were_put(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        expires_at = int(harness.clock.now()) + 60
        write_id = await write(driver, put("ka", '{"n": 1}', expires_at=expires_at), put("kb", "2"))
        page = await driver.scan(PARTITION, above=FIRST, below=LAST, limit=10, reverse=False)
        assert page.docs == (Doc("ka", '{"n": 1}', write_id, expires_at), Doc("kb", "2", write_id, None))

    @pytest.mark.parametrize("reverse", [False, True], ids=["ascending", "descending"])
    async def test_keys_are_in_byte_order_for_every_allowed_character(
        self, driver: DocumentDriver, *, reverse: bool
    ) -> None:
        keys = keys_of_every_character()
        shuffled = Random(1).sample(keys, len(keys))
        await fill(driver, shuffled)
        assert await read_keys(driver, above="!", below="\x7f", reverse=reverse) == sorted(
            keys, key=str.encode, reverse=reverse
        )

    async def test_a_bound_of_every_allowed_character_cuts_at_its_byte(self, driver: DocumentDriver) -> None:
        keys = sorted(f"k{character}" for character in ALLOWED)
        await fill(driver, keys)
        for place, bound in enumerate(keys):
            page = await driver.scan(PARTITION, above=bound, below=LAST, limit=1, reverse=False)
            assert [doc.key for doc in page.docs] == keys[place + 1 : place + 2]
            page = await driver.scan(PARTITION, above=FIRST, below=bound, limit=1, reverse=True)
            assert [doc.key for doc in page.docs] == keys[:place][-1:]

    async def test_only_the_named_partition_is_read(self, driver: DocumentDriver) -> None:
        for partition in OTHER_PARTITIONS:
            await fill(driver, ["ka", "kz"], partition=partition)
        await fill(driver, ["kb"])
        assert await read_keys(driver) == ["kb"]
        assert await read_keys(driver, reverse=True) == ["kb"]


@pytest.mark.asyncio
class TestScanPages:
    @pytest.mark.parametrize("reverse", [False, True], ids=["ascending", "descending"])
    @pytest.mark.parametrize("seed", range(3))
    async def test_pages_of_random_size_give_every_document_once(
        self, driver: DocumentDriver, seed: int, *, reverse: bool
    ) -> None:
        random = Random(seed)
        keys = random.sample(keys_of_every_character(), 150)
        await fill(driver, keys)
        paged = await read_keys(driver, above="!", limit=20, reverse=reverse, limits=random)
        assert paged == sorted(keys, reverse=reverse)

    @pytest.mark.parametrize("reverse", [False, True], ids=["ascending", "descending"])
    async def test_a_limit_of_one_thousand_is_one_page(
        self, driver: DocumentDriver, *, reverse: bool
    ) -> None:
        keys = [f"k{number:05d}" for number in range(SCAN_LIMIT_MAX + 1)]
        await fill(driver, keys)
        page = await driver.scan(PARTITION, above=FIRST, below=LAST, limit=SCAN_LIMIT_MAX, reverse=reverse)
        expected = keys[:0:-1] if reverse else keys[:-1]
        assert [doc.key for doc in page.docs] == expected
        assert page.resume == expected[-1]
        assert len(await read_keys(driver, reverse=reverse)) == SCAN_LIMIT_MAX + 1

    @pytest.mark.parametrize("reverse", [False, True], ids=["ascending", "descending"])
    async def test_a_page_that_holds_all_there_is_says_that_it_is_the_end(
        self, driver: DocumentDriver, *, reverse: bool
    ) -> None:
        """Else a list of exactly so many ends in a cursor that leads to nothing."""
        await fill(driver, ["ka", "kb", "kc"])
        page = await driver.scan(PARTITION, above=FIRST, below=LAST, limit=3, reverse=reverse)
        assert len(page.docs) == 3
        assert page.resume is None

    async def test_a_limit_of_one_walks_the_whole_range(self, driver: DocumentDriver) -> None:
        await fill(driver, ["ka", "kb", "kc"])
        assert await read_keys(driver, limit=1) == ["ka", "kb", "kc"]
        assert await read_keys(driver, limit=1, reverse=True) == ["kc", "kb", "ka"]

    @pytest.mark.parametrize("reverse", [False, True], ids=["ascending", "descending"])
    @pytest.mark.parametrize("character", ["x", "漢"])
    async def test_a_page_of_large_bodies_is_about_one_mebibyte(
        self, driver: DocumentDriver, character: str, *, reverse: bool
    ) -> None:
        body = '"' + character * ((BODY_BYTES_MAX - 6) // len(character.encode())) + '"'
        keys = [f"k{number}" for number in range(9)]
        for key in keys:
            await write(driver, put(key, body))
        page = await driver.scan(PARTITION, above=FIRST, below=LAST, limit=1_000, reverse=reverse)
        assert 1 <= len(page.docs) <= (PAGE_BYTES + BODY_BYTES_MAX) // len(body.encode())
        assert page.resume is not None
        assert await read_keys(driver, reverse=reverse) == sorted(keys, reverse=reverse)

    async def test_a_page_goes_on_from_a_key_that_is_gone(self, driver: DocumentDriver) -> None:
        await fill(driver, ["ka", "kb", "kc", "kd"])
        page = await driver.scan(PARTITION, above=FIRST, below=LAST, limit=2, reverse=False)
        assert page.resume == "kb"
        await write(driver, Delete("kb", ALWAYS), put("kbb"))
        assert await read_keys(driver, above=page.resume) == ["kbb", "kc", "kd"]
        assert await read_keys(driver, below=page.resume, reverse=True) == ["ka"]

    async def test_a_page_past_many_expired_documents_leads_to_the_live_one(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        lapses = int(harness.clock.now()) + 10
        for start in (0, 100, 200):
            await write(driver, *(put(f"k{start + i:03d}", expires_at=lapses) for i in range(100)))
        await write(driver, put("kz"))
        harness.clock.advance(11)
        assert await read_keys(driver, limit=7) == ["kz"]
        assert await read_keys(driver, limit=7, reverse=True) == ["kz"]
