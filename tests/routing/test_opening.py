"""Opening a backend is nobody else's matter."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.drivers.registry import document_driver
from engines.errors import Unavailable
from engines.testing.proxy import Behaviour, FaultProxy
from tests.backends import backend_at
from tests.routing.conftest import NewProcess, sqlite_backend


async def test_a_driver_that_takes_long_to_load_holds_up_nobody_else(
    new_process: NewProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await new_process()
    module = document_driver("sqlite")
    load = module.open_driver

    def load_slowly(*arguments: Any) -> Any:
        time.sleep(1.0)
        return load(*arguments)

    monkeypatch.setattr(module, "open_driver", load_slowly)
    opening = asyncio.create_task(process.backends.open(sqlite_backend("slow", tmp_path)))
    turns = 0
    while not opening.done():
        await asyncio.sleep(0.01)
        turns += 1
    await opening
    assert turns > 10, "the event loop stood still"


@pytest.mark.slow
async def test_once_a_backend_did_not_answer_only_one_caller_at_a_time_waits_for_it(
    new_process: NewProcess, postgres_database: str
) -> None:
    process = await new_process()
    record = backend_at(postgres_database, "silent")
    async with FaultProxy((record.config["host"], record.config["port"])) as network:
        host, port = network.address
        record = msgspec.structs.replace(record, config={**record.config, "host": host, "port": port})
        network.behave(Behaviour(hang=True))
        with pytest.raises(Unavailable):
            await process.backends.open(record)
        waiting = asyncio.create_task(process.backends.open(record))
        await asyncio.sleep(0)
        began_s = time.monotonic()
        for _ in range(10):
            with pytest.raises(Unavailable):
                await process.backends.open(record)
        assert time.monotonic() - began_s < 1.0
        assert not waiting.done()
        network.behave(Behaviour())
        opened = await waiting
        assert await process.backends.open(record) is opened
