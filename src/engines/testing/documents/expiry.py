"""The rules of expiry: an expired document is absent at once, whatever sweeps it away later."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engines.errors import Conflict
from engines.ports.documents import ABSENT, ALWAYS, Delete, DocumentDriver, Match, Op
from engines.testing.documents.harness import (
    DocumentHarness,
    bodies,
    fresh_write_id,
    get,
    put,
    read_keys,
    refused,
    write,
)

LIFE_S = 60
# On a lapsed document these succeed or conflict, as the backend finds it; what they may not do is half of it.
MATCHING: dict[str, Callable[[str], Op]] = {
    "put": lambda version: put("k1", "2", Match(version)),
    "delete": lambda version: Delete("k1", Match(version)),
}


async def write_lapsed(driver: DocumentDriver, harness: DocumentHarness, *keys: str) -> str:
    """Documents that have expired, and still lie in the database."""
    expires_at = int(harness.clock.now()) + LIFE_S
    version = await write(driver, *(put(key, "1", expires_at=expires_at) for key in keys))
    harness.clock.advance(LIFE_S + 1)
    return version


@pytest.mark.asyncio
class TestExpiry:
    async def test_a_document_lives_until_its_second_and_not_in_it(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        harness.clock.jump(0.5 - harness.clock.now() % 1)
        expires_at = int(harness.clock.now()) + 2
        await write(driver, put("k1", "1", expires_at=expires_at))
        harness.clock.advance(1.25)
        assert (await bodies(driver, "k1"), await read_keys(driver)) == ({"k1": "1"}, ["k1"])
        harness.clock.jump(expires_at - harness.clock.now())
        assert (await bodies(driver, "k1"), await read_keys(driver)) == ({}, [])
        harness.clock.advance(0.25)
        assert (await bodies(driver, "k1"), await read_keys(driver)) == ({}, [])

    async def test_an_expired_document_is_absent_to_every_read(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        await write_lapsed(driver, harness, "k1", "k2")
        await write(driver, put("k3"))
        assert set(await bodies(driver, "k1", "k2", "k3")) == {"k3"}
        assert await get(driver, "k1") is None
        assert await read_keys(driver) == ["k3"]
        assert await read_keys(driver, reverse=True) == ["k3"]

    async def test_a_document_put_with_a_past_expiry_is_absent(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        await write(driver, put("k1", "1", expires_at=int(harness.clock.now()) - 1))
        await write(driver, put("k1", "2", ABSENT, expires_at=1), put("k2", "2", ABSENT))
        assert await bodies(driver, "k1", "k2") == {"k2": "2"}

    async def test_absent_holds_over_an_expired_document(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        await write_lapsed(driver, harness, "k1")
        version = await write(driver, put("k1", "2", ABSENT))
        found = await get(driver, "k1")
        assert found is not None
        assert (found.body, found.version, found.expires_at) == ("2", version, None)
        assert await refused(driver, put("k1", "3", ABSENT)) == ("k1",)

    async def test_absent_holds_over_expired_documents_inside_a_batch(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        await write_lapsed(driver, harness, "k1", "k3")
        await write(driver, put("k4", "live"))
        ops = [put(f"k{number}", "2", ABSENT) for number in (1, 2, 3)]
        assert await refused(driver, *ops, put("k4", "2", ABSENT)) == ("k4",)
        assert await read_keys(driver) == ["k4"]
        await write(driver, *ops)
        assert await bodies(driver, "k1", "k2", "k3") == dict.fromkeys(("k1", "k2", "k3"), "2")

    async def test_always_replaces_and_removes_expired_documents(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        await write_lapsed(driver, harness, "k1", "k2", "k3", "k4")
        await write(driver, put("k1", "2"))
        await write(driver, Delete("k2", ALWAYS))
        await write(driver, put("k3", "2"), Delete("k4", ALWAYS))
        assert await bodies(driver, "k1", "k2", "k3", "k4") == {"k1": "2", "k3": "2"}

    @pytest.mark.parametrize("batch", [False, True], ids=["alone", "in a batch"])
    @pytest.mark.parametrize("kind", MATCHING)
    async def test_match_on_a_lapsed_document_succeeds_or_conflicts_whole(
        self, driver: DocumentDriver, harness: DocumentHarness, kind: str, *, batch: bool
    ) -> None:
        version = await write_lapsed(driver, harness, "k1")
        ops = [MATCHING[kind](version), *([put("k2", "2", ABSENT)] if batch else [])]
        culprits: tuple[str, ...] = ()
        try:
            await write(driver, *ops)
        except Conflict as conflict:
            culprits = conflict.keys
        applied = {op.key: "2" for op in ops if not isinstance(op, Delete)}
        assert culprits in ((), ("k1",))
        assert await bodies(driver, "k1", "k2") == ({} if culprits else applied)

    @pytest.mark.parametrize("kind", MATCHING)
    async def test_match_of_another_version_on_a_lapsed_document_conflicts(
        self, driver: DocumentDriver, harness: DocumentHarness, kind: str
    ) -> None:
        await write_lapsed(driver, harness, "k1")
        assert await refused(driver, MATCHING[kind](fresh_write_id())) == ("k1",)

    async def test_a_live_document_with_an_expiry_is_there_for_every_condition(
        self, driver: DocumentDriver, harness: DocumentHarness
    ) -> None:
        expires_at = int(harness.clock.now()) + LIFE_S
        version = await write(driver, put("k1", "1", expires_at=expires_at))
        assert await refused(driver, put("k1", "2", ABSENT)) == ("k1",)
        assert await refused(driver, put("k0"), put("k1", "2", ABSENT)) == ("k1",)
        version = await write(driver, put("k1", "2", Match(version), expires_at=expires_at))
        await write(driver, put("k2"), Delete("k1", Match(version)))
        assert await read_keys(driver) == ["k2"]
