"""A process that writes definitions until it is killed: `python -m tests.stores.definitions_process URL`.

It prints the id and the version of each that was acknowledged.
"""

from __future__ import annotations

import asyncio
import sys

import engines
from engines.core.records import Condition
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from tests.contexts import context

AUTHORS = 6
TENANT = "t_a"


async def write(opened: engines.Engines, name: str) -> None:
    flows, etag = SCHEMA_NAMED["flows"], ""
    while True:
        condition = Condition(versions=(etag,)) if etag else Condition(absent=True)
        body = DefinitionInput(json_blob={"nodes": [{"id": "a"}]})
        change = await opened.definitions.put(context(TENANT), flows, name, body, condition=condition)
        etag = change.etag.strip('"')
        sys.stdout.write(f"{name} {change.record.version}\n")
        sys.stdout.flush()


async def main(url: str, prefix: str) -> None:
    async with engines.open(url) as opened:
        await asyncio.gather(*(write(opened, f"{prefix}{number}") for number in range(AUTHORS)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
