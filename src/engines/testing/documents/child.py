"""A process that writes until it is killed: `python -m engines.testing.documents.child`.

Reads one line of JSON from standard input (`function`, `arguments`, `partition`), writes batches of three and
prints the name of each batch after it was acknowledged.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any, Final

from engines.ports.documents import ABSENT, DocumentDriver, Put
from engines.testing.documents.crashes import BATCH
from engines.testing.documents.harness import fresh_write_id

# It is killed long before; where nobody kills it, it ends.
WRITES_MAX: Final = 20_000


async def write_batches(order: dict[str, Any]) -> None:
    module, _, function = order["function"].partition(":")
    driver: DocumentDriver = getattr(importlib.import_module(module), function)(**order["arguments"])
    for number in range(WRITES_MAX):
        name = f"child.{number}"
        ops = [Put(f"k{name}.{letter}", "1", ABSENT) for letter in BATCH]
        await driver.write(order["partition"], ops, write_id=fresh_write_id())
        sys.stdout.write(name + "\n")
        sys.stdout.flush()
    await driver.close()


if __name__ == "__main__":
    asyncio.run(write_batches(json.loads(sys.stdin.readline())))
