"""The rules of a write of several documents: all or nothing, whichever op it fails at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import pytest_asyncio

from engines.ports.documents import ABSENT, ALWAYS, OPS_MAX, Delete, Doc, DocumentDriver, Match, Op, Put
from engines.testing.documents.harness import PARTITION, bodies, fresh_write_id, put, refused, write

# What a batch meets: `here` and `there` stand at a version, `gone` does not stand.
NEIGHBOURS: dict[str, Callable[[str], Op]] = {
    "put over a document": lambda _: put("kb_here", "new"),
    "put of a new document": lambda _: put("kb_new", "new"),
    "put under absent": lambda _: put("kb_new", "new", ABSENT),
    "put under match": lambda version: put("kb_here", "new", Match(version)),
    "delete": lambda _: Delete("kb_here", ALWAYS),
    "delete of a missing document": lambda _: Delete("kb_gone", ALWAYS),
    "delete under match": lambda version: Delete("kb_here", Match(version)),
}
FAILING: dict[str, Callable[[str], Op]] = {
    "put under absent": lambda key: put(f"{key}_there", "new", ABSENT),
    "put under match of another version": lambda key: put(f"{key}_there", "new", Match("0" * 32)),
    "put under match of a missing document": lambda key: put(f"{key}_gone", "new", Match("0" * 32)),
    "delete under match of another version": lambda key: Delete(f"{key}_there", Match("0" * 32)),
    "delete under match of a missing document": lambda key: Delete(f"{key}_gone", Match("0" * 32)),
}
# Before, between and after the neighbours in key order, which is the order in which a driver may work.
PLACES = ("ka", "kbb", "kc")

Everything = Callable[[], Awaitable[dict[str, Doc]]]


@pytest.mark.asyncio
class TestBatchConditions:
    """Every condition beside every kind of op."""

    @pytest_asyncio.fixture
    async def version(self, driver: DocumentDriver) -> str:
        """The version of everything that stands before the batch."""
        return await write(driver, put("kb_here", "old"), *(put(f"{place}_there", "old") for place in PLACES))

    @pytest_asyncio.fixture
    async def everything(self, driver: DocumentDriver) -> Everything:
        async def read() -> dict[str, Doc]:
            page = await driver.scan(PARTITION, above="A", below="~", limit=1_000, reverse=False)
            assert page.resume is None
            return {doc.key: doc for doc in page.docs}

        return read

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("failing", FAILING)
    @pytest.mark.parametrize("neighbour", NEIGHBOURS)
    async def test_a_false_condition_anywhere_leaves_everything_as_it_was(
        self,
        driver: DocumentDriver,
        version: str,
        everything: Everything,
        neighbour: str,
        failing: str,
        place: str,
    ) -> None:
        before = await everything()
        culprit = FAILING[failing](place)
        batch = [NEIGHBOURS[neighbour](version), culprit, put("kz_last")]
        for ops in (batch, batch[::-1]):
            assert await refused(driver, *ops) == (culprit.key,)
        assert await everything() == before

    @pytest.mark.parametrize("neighbour", NEIGHBOURS)
    async def test_with_true_conditions_every_op_is_applied(
        self, driver: DocumentDriver, version: str, neighbour: str
    ) -> None:
        op = NEIGHBOURS[neighbour](version)
        ops = [
            op,
            put("ka_there", "new", Match(version)),
            put("ka_new", "new", ABSENT),
            Delete("kc_there", Match(version)),
        ]
        write_id = await write(driver, *ops)
        keys = [op.key, "ka_there", "ka_new", "kc_there"]
        found = await driver.get(PARTITION, keys)
        expected = {op.key for op in ops if isinstance(op, Put)}
        assert set(found) == expected
        assert {(doc.body, doc.version) for doc in found.values()} == {("new", write_id)}

    async def test_with_several_false_conditions_only_true_culprits_are_named(
        self, driver: DocumentDriver, version: str, everything: Everything
    ) -> None:
        before = await everything()
        culprits = [FAILING[name](place) for name in FAILING for place in PLACES if "missing" not in name]
        culprits = list({op.key: op for op in culprits}.values())
        named = await refused(driver, put("kb_here", "new", Match(version)), *culprits, put("kz_last"))
        assert set(named) <= {op.key for op in culprits}
        assert await everything() == before


@pytest.mark.asyncio
class TestBatch:
    async def test_delete_of_missing_key_inside_a_batch_succeeds(self, driver: DocumentDriver) -> None:
        await write(driver, Delete("ka", ALWAYS), put("kb", "1", ABSENT), Delete("kc", ALWAYS))
        assert await bodies(driver, "ka", "kb", "kc") == {"kb": "1"}

    async def test_a_batch_of_nothing_but_deletes_of_missing_keys_succeeds(
        self, driver: DocumentDriver
    ) -> None:
        await write(driver, *(Delete(f"k{number}", ALWAYS) for number in range(OPS_MAX)))

    async def test_one_hundred_ops_are_one_write(self, driver: DocumentDriver) -> None:
        keys = [f"k{number:03d}" for number in range(OPS_MAX)]
        version = await write(driver, *(put(key, key, ABSENT) for key in reversed(keys)))
        found = await driver.get(PARTITION, keys)
        assert {doc.version for doc in found.values()} == {version}
        assert await refused(driver, *(put(key, key, ABSENT) for key in keys))
        await write(driver, *(put(key, "2", Match(version)) for key in keys))
        assert set((await bodies(driver, *keys)).values()) == {"2"}

    async def test_every_document_keeps_its_own_fields(self, driver: DocumentDriver) -> None:
        write_id = fresh_write_id()
        far = 4_000_000_000
        ops = (
            put("kc", '"c"', ABSENT),
            put("ka", '"a"', expires_at=far),
            put("kb", '"b"', write_id="b" * 32, expires_at=far + 1),
            put("kd", '"d"', ABSENT, write_id="d" * 32),
        )
        await driver.write(PARTITION, ops, write_id=write_id)
        found = await driver.get(PARTITION, ["ka", "kb", "kc", "kd"])
        assert found == {
            "ka": Doc("ka", '"a"', write_id, far),
            "kb": Doc("kb", '"b"', "b" * 32, far + 1),
            "kc": Doc("kc", '"c"', write_id, None),
            "kd": Doc("kd", '"d"', "d" * 32, None),
        }

    async def test_another_partition_with_the_same_keys_is_untouched(self, driver: DocumentDriver) -> None:
        other = f"{PARTITION}0"
        await write(driver, put("ka", "1"), put("kb", "1"), partition=other)
        await write(driver, put("ka", "2", ABSENT), Delete("kb", ALWAYS), put("kc", "2", ABSENT))
        assert set(await driver.get(other, ["ka", "kb", "kc"])) == {"ka", "kb"}
