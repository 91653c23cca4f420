"""The rules of a write of one document: puts, deletes, and bodies that come back byte by byte."""

from __future__ import annotations

import json

import pytest

from engines.codec import escaped_bytes
from engines.ports.documents import (
    ABSENT,
    ALWAYS,
    BODY_BYTES_MAX,
    KEY_BYTES_MAX,
    PARTITION_BYTES_MAX,
    Delete,
    DocumentDriver,
    Match,
)
from engines.testing.documents.harness import (
    ALLOWED,
    PARTITION,
    DocumentHarness,
    bodies,
    get,
    put,
    refused,
    write,
)

# No backend could have given these to a document; a caller can send them all the same.
IMPOSSIBLE_VERSIONS = {
    "empty": "",
    "of another backend": '"0x8DBC5A7F0E6B9D0"',
    "NUL": "a\x00b",
    "not ASCII": "ünïcode",
    "half a character": "\ud800",
    "SQL": "' OR '1'='1",
    "long": "f" * 10_000,
    "upper case": "F" * 32,
}


@pytest.mark.asyncio
class TestPut:
    async def test_version_is_the_write_id(self, driver: DocumentDriver) -> None:
        first = await write(driver, put("k1", "1"))
        doc = await get(driver, "k1")
        assert doc is not None
        assert doc.version == first
        second = await write(driver, put("k1", "2", Match(first)))
        doc = await get(driver, "k1")
        assert doc is not None
        assert (doc.body, doc.version) == ("2", second)

    async def test_write_id_of_an_op_overrides_that_of_its_write(self, driver: DocumentDriver) -> None:
        await write(driver, put("k1", "1", write_id="d" * 32))
        await write(driver, put("k2", "2", ABSENT, write_id="e" * 32))
        await write(driver, put("k1", "3", Match("d" * 32), write_id="f" * 32))
        found = await driver.get(PARTITION, ["k1", "k2"])
        assert {key: doc.version for key, doc in found.items()} == {"k1": "f" * 32, "k2": "e" * 32}

    async def test_put_under_always_creates_and_replaces(self, driver: DocumentDriver) -> None:
        await write(driver, put("k1", "1"))
        await write(driver, put("k1", "2"))
        assert await bodies(driver, "k1") == {"k1": "2"}

    async def test_put_under_absent_creates_once(self, driver: DocumentDriver) -> None:
        await write(driver, put("k1", "1", ABSENT))
        assert await refused(driver, put("k1", "2", ABSENT)) == ("k1",)
        assert await bodies(driver, "k1") == {"k1": "1"}

    async def test_put_under_match_replaces_exactly_that_version(self, driver: DocumentDriver) -> None:
        first = await write(driver, put("k1", "1"))
        second = await write(driver, put("k1", "2", Match(first)))
        assert await refused(driver, put("k1", "3", Match(first))) == ("k1",)
        await write(driver, put("k1", "4", Match(second)))
        assert await bodies(driver, "k1") == {"k1": "4"}

    async def test_put_under_match_of_a_missing_document_conflicts(self, driver: DocumentDriver) -> None:
        assert await refused(driver, put("k1", "1", Match("a" * 32))) == ("k1",)
        assert await bodies(driver, "k1") == {}

    @pytest.mark.parametrize("version", IMPOSSIBLE_VERSIONS.values(), ids=IMPOSSIBLE_VERSIONS.keys())
    async def test_a_version_that_no_document_can_have_is_a_conflict(
        self, driver: DocumentDriver, version: str
    ) -> None:
        await write(driver, put("k1", "1"))
        assert await refused(driver, put("k1", "2", Match(version))) == ("k1",)
        assert await refused(driver, Delete("k1", Match(version))) == ("k1",)
        assert await refused(driver, put("k2"), put("k1", "2", Match(version))) == ("k1",)
        assert await refused(driver, put("k2"), Delete("k1", Match(version))) == ("k1",)
        assert await bodies(driver, "k1", "k2") == {"k1": "1"}

    async def test_an_expiry_is_replaced_with_its_document(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        first = await write(driver, put("k1", "1", expires_at=int(harness.clock.now()) + 10))
        await write(driver, put("k1", "2", Match(first)))
        harness.clock.advance(11)
        assert await bodies(driver, "k1") == {"k1": "2"}

    async def test_the_longest_keys_and_partitions_fit_together(self, driver: DocumentDriver) -> None:
        partition = "p" + "~" * (PARTITION_BYTES_MAX - 1)
        keys = [("k" + ALLOWED * 6)[: KEY_BYTES_MAX - 1] + last for last in "!~"]
        await write(driver, *(put(key) for key in keys), partition=partition)
        assert set(await driver.get(partition, keys)) == set(keys)
        page = await driver.scan(partition, above=keys[0], below="~", limit=10, reverse=False)
        assert [doc.key for doc in page.docs] == keys[1:]


@pytest.mark.asyncio
class TestDelete:
    async def test_delete_under_always_removes(self, driver: DocumentDriver) -> None:
        await write(driver, put("k1"))
        await write(driver, Delete("k1", ALWAYS))
        assert await bodies(driver, "k1") == {}
        await write(driver, put("k1", "2", ABSENT))
        assert await bodies(driver, "k1") == {"k1": "2"}

    async def test_delete_under_always_of_a_missing_document_succeeds(self, driver: DocumentDriver) -> None:
        await write(driver, Delete("k1", ALWAYS))
        assert await bodies(driver, "k1") == {}

    async def test_delete_under_match_removes_exactly_that_version(self, driver: DocumentDriver) -> None:
        first = await write(driver, put("k1", "1"))
        second = await write(driver, put("k1", "2"))
        assert await refused(driver, Delete("k1", Match(first))) == ("k1",)
        assert await bodies(driver, "k1") == {"k1": "2"}
        await write(driver, Delete("k1", Match(second)))
        assert await bodies(driver, "k1") == {}

    async def test_delete_under_match_of_a_missing_document_conflicts(self, driver: DocumentDriver) -> None:
        version = await write(driver, put("k1"))
        await write(driver, Delete("k1", ALWAYS))
        assert await refused(driver, Delete("k1", Match(version))) == ("k1",)
        assert await refused(driver, Delete("k2", Match(version))) == ("k2",)

    async def test_a_document_made_again_has_another_version(self, driver: DocumentDriver) -> None:
        version = await write(driver, put("k1", "1"))
        await write(driver, Delete("k1", ALWAYS))
        await write(driver, put("k1", "1"))
        assert await refused(driver, put("k1", "2", Match(version))) == ("k1",)


BODIES = {
    "spaces and order of members": '{ "b" : 1 ,\n\t"a":1, "b":2 }',
    "numbers as written": "[1.0, 1, 1e400, -0, 0.1000, 123456789012345678901234567890]",
    "escapes as written": '"\\u0041\\/\\u00e9\\ud83d\\ude00"',
    "an escaped NUL": '{"\\u0000": "a\\u0000b"}',
    "half a character, escaped": '"\\ud800"',
    "other scripts": json.dumps("żółć 漢字 العربية 🜚 \u2028\u2029\ufeff\uffff\U0010ffff", ensure_ascii=False),
    "quotes and backslashes": json.dumps("\\\"'`$$;--{}%s$1\\\\"),
    "text of no meaning to a database": '"NULL"',
    "empty": '""',
    "nothing": "null",
    "the least": "0",
}


def text_of_size(character: str, size: int) -> str:
    """A JSON string of `character`s that counts exactly `size` escaped bytes, filled up with `x`."""
    count = (size - escaped_bytes('""')) // (escaped_bytes(f'"{character}"') - escaped_bytes('""'))
    body = character * count
    return '"' + body + "x" * (size - escaped_bytes(f'"{body}"')) + '"'


@pytest.mark.asyncio
class TestBodies:
    @pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
    async def test_a_body_comes_back_byte_by_byte(self, driver: DocumentDriver, body: str) -> None:
        await write(driver, put("k1", body))
        await write(driver, put("k2", body, ABSENT), put("k3", body))
        page = await driver.scan(PARTITION, above="k", below="l", limit=10, reverse=False)
        assert [doc.body for doc in page.docs] == [body] * 3
        assert await bodies(driver, "k1", "k2", "k3") == dict.fromkeys(("k1", "k2", "k3"), body)

    @pytest.mark.parametrize("character", ["x", "ż", "漢", "🜚", "\\u0000", '\\"', "\\\\"])
    async def test_a_body_of_the_greatest_size_fits_in_any_script(
        self, driver: DocumentDriver, character: str
    ) -> None:
        body = text_of_size(character, BODY_BYTES_MAX)
        assert escaped_bytes(body) == BODY_BYTES_MAX
        await write(driver, put("k1", body))
        await write(driver, put("k2", body, ABSENT), put("k3"))
        found = await driver.get(PARTITION, ["k1", "k2"])
        assert [doc.body == body for doc in found.values()] == [True, True]
