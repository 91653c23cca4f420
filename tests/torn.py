"""Reads of several documents that are not of one moment, as DynamoDB's batch reads are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest

from engines.ports.documents import Doc


def torn(
    driver: object,
    monkeypatch: pytest.MonkeyPatch,
    between: Callable[[], Awaitable[object]],
    *,
    of: str = "",
) -> None:
    """The next read of several keys reads the last of them, then something lands, then the others.

    `of`: what the names of the partitions begin with whose reads are meant.
    """
    get = driver.get  # type: ignore[attr-defined]

    async def read_in_two(partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        if len(keys) == 1 or not partition.startswith(of):
            return await get(partition, keys)  # type: ignore[no-any-return]
        monkeypatch.undo()
        last = await get(partition, keys[-1:])
        await between()
        return {**last, **await get(partition, keys[:-1])}

    monkeypatch.setattr(driver, "get", read_in_two)
