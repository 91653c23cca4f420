"""The committer tells how long its looks at the tail took; `test_contention.py` has what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from engines.core import committer
from engines.core.contention import Contention
from engines.drivers.registry import document_driver
from engines.ports.documents import Doc, DocumentDriver, Op, Page
from engines.testing.clock import ManualClock
from engines.testing.log.harness import append, open_log

SCAN_S: Final = 0.04
WRITE_S: Final = 0.01
# More than a tenure holds.
APPENDS: Final = 40


class Slow:
    """A driver of whose calls each takes its time, by the clock that it moves."""

    def __init__(self, driver: DocumentDriver, clock: ManualClock) -> None:
        self._driver = driver
        self._clock = clock
        self.provision, self.reclaim, self.close = driver.provision, driver.reclaim, driver.close

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        return await self._driver.get(partition, keys)

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        self._clock.advance(SCAN_S)
        return await self._driver.scan(partition, above=above, below=below, limit=limit, reverse=reverse)

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        self._clock.advance(WRITE_S)
        await self._driver.write(partition, ops, write_id=write_id)


async def test_every_look_is_measured_at_first_after_a_lost_slot_and_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    looks: list[float] = []

    class Noting(Contention):
        def looked(self, started_s: float) -> None:
            looks.append(clock.monotonic() - started_s)
            super().looked(started_s)

    monkeypatch.setattr(committer, "Contention", Noting)
    module = document_driver("sqlite")
    driver = module.open_driver(module.Config(path=str(tmp_path / "documents.db")), {}, clock)
    await driver.provision()
    one, other = (open_log(Slow(driver, clock), clock=clock) for _ in range(2))
    try:
        await append(one, "first")
        assert looks == pytest.approx([SCAN_S], abs=2 * WRITE_S)  # It makes the stream's record too.
        await append(other, "first look")
        await append(one, "takes the slot")
        looks.clear()
        await append(other, "loses it")
        assert looks[0] == pytest.approx(SCAN_S)
        await append(one, "learns of it")
        looks.clear()
        for number in range(APPENDS):
            await append(one, str(number))
        assert looks[0] == pytest.approx(SCAN_S)
    finally:
        await one.close()
        await other.close()
        await driver.close()
