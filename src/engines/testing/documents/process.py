"""Another process with a client of its own: `python -m engines.testing.documents.process`.

Owns starting it, what it does, and its death. The program reads one line of JSON from standard input, says
that it is ready, waits for a second line, provisions if it was told to, writes batches of three documents,
and prints the name of each batch once it was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from typing import Any, Final

from engines.ports.documents import ABSENT, DocumentDriver, Put
from engines.testing.documents.harness import PARTITION, Process, fresh_write_id

# One that is to be killed is killed long before; where nobody kills it, it ends.
BATCHES_MAX: Final = 20_000
BATCH: Final = ("a", "b", "c")


@contextlib.asynccontextmanager
async def writing_process(
    process: Process, name: str, *, batches: int = BATCHES_MAX, provision: bool = False
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that is ready to write batches `{name}.{number}`; killed at the end if it still runs."""
    order = {
        "function": process.function,
        "arguments": process.arguments,
        "name": name,
        "batches": batches,
        "provision": provision,
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", __name__),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        await _tell(child, json.dumps(order))
        assert child.stdout is not None
        assert await child.stdout.readline() == b"ready\n", "the other process could not open a client"
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def begin(child: asyncio.subprocess.Process) -> None:
    """Let a process that is ready begin."""
    await _tell(child, "begin")


async def _tell(child: asyncio.subprocess.Process, line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line.encode() + b"\n")
    await child.stdin.drain()


async def write_batches(order: dict[str, Any]) -> None:
    module, _, function = order["function"].partition(":")
    driver: DocumentDriver = getattr(importlib.import_module(module), function)(**order["arguments"])
    _say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    if order["provision"]:
        await driver.provision()
    for number in range(order["batches"]):
        batch = f"{order['name']}.{number}"
        ops = [Put(f"k{batch}.{letter}", "1", ABSENT) for letter in BATCH]
        await driver.write(PARTITION, ops, write_id=fresh_write_id())
        _say(batch)
    await driver.close()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(write_batches(json.loads(sys.stdin.readline())))
