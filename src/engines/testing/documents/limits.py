"""The limits of the waist, on a real driver: what is at the limit is stored, what is past it is refused.

`core/documents.py` refuses; the driver must be able to store all that core lets through.
"""

from __future__ import annotations

import pytest

from engines.codec import escaped_bytes
from engines.core.documents import Documents
from engines.errors import TooLarge
from engines.ids import Ids
from engines.ports.documents import (
    ABSENT,
    BODY_BYTES_MAX,
    GET_KEYS_MAX,
    OPS_MAX,
    WRITE_BYTES_MAX,
    DocumentDriver,
    Op,
)
from engines.testing.documents.harness import PARTITION, DocumentHarness, put, read_keys
from engines.testing.documents.writes import text_of_size


async def assert_too_large(documents: Documents, driver: DocumentDriver, ops: list[Op]) -> None:
    with pytest.raises(TooLarge):
        await documents.write(PARTITION, ops)
    assert await read_keys(driver) == []


@pytest.mark.asyncio
class TestLimits:
    @pytest.fixture
    def documents(self, driver: DocumentDriver, harness: DocumentHarness) -> Documents:
        return Documents(driver, ids=Ids(harness.clock), clock=harness.clock)

    async def test_one_hundred_ops_are_stored_and_one_more_is_refused(
        self, documents: Documents, driver: DocumentDriver
    ) -> None:
        ops: list[Op] = [put(f"k{number:03d}", "1", ABSENT) for number in range(OPS_MAX + 1)]
        await assert_too_large(documents, driver, ops)
        await documents.write(PARTITION, ops[:-1])
        keys = tuple(op.key for op in ops[:-1])
        assert len(keys) == GET_KEYS_MAX
        assert set(await documents.get_many(PARTITION, keys)) == set(keys)

    @pytest.mark.parametrize("character", ["x", '\\"', "漢", "\\u0000"])
    async def test_a_body_at_the_limit_is_stored_and_one_byte_more_is_refused(
        self, documents: Documents, driver: DocumentDriver, character: str
    ) -> None:
        body = text_of_size(character, BODY_BYTES_MAX)
        await assert_too_large(documents, driver, [put("k1", body[:-1] + 'x"')])
        await documents.write(PARTITION, [put("k1", body)])
        found = await documents.get(PARTITION, "k1")
        assert found is not None
        assert found.body == body

    async def test_a_write_at_the_limit_is_stored_and_one_byte_more_is_refused(
        self, documents: Documents, driver: DocumentDriver
    ) -> None:
        bodies = [text_of_size("漢", size) for size in (BODY_BYTES_MAX, BODY_BYTES_MAX)]
        rest = WRITE_BYTES_MAX - sum(map(escaped_bytes, bodies))
        bodies.append(text_of_size('\\"', rest))
        ops: list[Op] = [put(f"k{place}", body, ABSENT) for place, body in enumerate(bodies)]
        await assert_too_large(documents, driver, [*ops[:2], put("k2", bodies[2][:-1] + 'x"', ABSENT)])
        await documents.write(PARTITION, ops)
        found = await documents.get_many(PARTITION, ("k0", "k1", "k2"))
        assert [found[f"k{place}"].body == body for place, body in enumerate(bodies)] == [True] * 3

    async def test_a_thousand_bytes_in_each_of_one_hundred_documents_are_stored(
        self, documents: Documents
    ) -> None:
        size = WRITE_BYTES_MAX // OPS_MAX
        ops: list[Op] = [put(f"k{number:03d}", text_of_size("ż", size)) for number in range(OPS_MAX)]
        await documents.write(PARTITION, ops)
        found = await documents.get_many(PARTITION, tuple(op.key for op in ops))
        assert {escaped_bytes(doc.body) for doc in found.values()} == {size}
