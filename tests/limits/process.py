"""A process that asks for ever whether a call is admitted: `python -m tests.limits.process URL`.

It prints the instant of each admission. Its parent kills it.
"""

from __future__ import annotations

import asyncio
import sys

import engines
from engines.errors import EnginesError
from tests.moves.conftest import OWNER

ROUTE = "GET /notes/{note_id}"
# What an admission is told by; the process's log goes the same way.
ADMITTED = "admitted at "
TASKS = 4
PAUSE_S = 0.002


async def ask(opened: engines.Engines) -> None:
    while True:
        try:
            admission = await opened.rate_limits.admit(OWNER, ROUTE)
        except EnginesError as error:
            sys.stdout.write(f"{error.code}: {error.detail}\n")
        else:
            if admission.refused_by is None:
                sys.stdout.write(f"{ADMITTED}{admission.at_s}\n")
        sys.stdout.flush()
        # What a call would do next; without it one task would leave the others no time.
        await asyncio.sleep(PAUSE_S)


async def main(url: str) -> None:
    async with engines.open(url) as opened:
        await asyncio.gather(*(ask(opened) for _ in range(TASKS)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
