"""Another process that appends to a log: `python -m engines.testing.log.process`.

Owns starting it, what it does, and its death. The program reads one line of JSON, appends from several
tasks at once, and prints `name position` for each event once that was acknowledged. It ends when its
standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
import uuid
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from typing import Any

from engines.core.log import Log
from engines.ports.documents import DocumentDriver
from engines.testing.documents.harness import Process
from engines.testing.log.harness import entry, open_log

# Where nobody ends it, it ends itself.
APPENDS_MAX = 50_000


@contextlib.asynccontextmanager
async def appending_process(
    process: Process, name: str, *, start: int = 0, tasks: int = 4, segment_size: int = 50_000
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process whose tasks append `{name}.{task}.{number}`, numbers from `start` on; killed at the end.

    Tasks of even number bring ids that follow from the name, so what is appended again stands once.
    """
    order = {
        "function": process.function,
        "arguments": process.arguments,
        "name": name,
        "start": start,
        "tasks": tasks,
        "segment_size": segment_size,
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
        assert child.stdin is not None
        child.stdin.write(json.dumps(order).encode() + b"\n")
        await child.stdin.drain()
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def appends(child: asyncio.subprocess.Process) -> AsyncIterator[tuple[str, int]]:
    """Name and position of each acknowledged event, until the process ends; a line cut short is none."""
    assert child.stdout is not None
    async for line in child.stdout:
        if line.endswith(b"\n"):
            name, _, position = line.decode().partition(" ")
            yield name, int(position)


async def _append(log: Log, name: str, start: int, *, own_ids: bool) -> None:
    for number in range(start, APPENDS_MAX):
        event = f"{name}.{number}"
        own = str(uuid.uuid5(uuid.NAMESPACE_OID, event)) if own_ids else None
        appended = await log.append([entry(event, own)])
        sys.stdout.write(f"{event} {appended.first}\n")
        sys.stdout.flush()


async def _run(order: dict[str, Any]) -> None:
    module, _, function = order["function"].partition(":")
    driver: DocumentDriver = getattr(importlib.import_module(module), function)(**order["arguments"])
    log = open_log(driver, segment_size=order["segment_size"])
    tasks = [
        asyncio.create_task(_append(log, f"{order['name']}.{task}", order["start"], own_ids=task % 2 == 0))
        for task in range(order["tasks"])
    ]
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait((ended, *tasks), return_when="FIRST_COMPLETED")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await log.close()
    await driver.close()


if __name__ == "__main__":
    asyncio.run(_run(json.loads(sys.stdin.readline())))
