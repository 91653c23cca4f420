"""Many random histories (`history.py`), as many as the environment asks for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Final

import pytest

from engines.testing.log.harness import Logs
from engines.testing.log.history import check_history

# How many histories are played on each driver, and the first of their seeds.
SEEDS_VARIABLE: Final = "ENGINES_LOG_SEEDS"
FIRST_SEED_VARIABLE: Final = "ENGINES_LOG_FIRST_SEED"
SEEDS_DEFAULT: Final = 24
WRITERS: Final = 3
# One test plays a block of histories, some at a time: most of a history is waiting.
BLOCK: Final = 8
AT_ONCE: Final = 4


def blocks() -> list[range]:
    first = int(os.environ.get(FIRST_SEED_VARIABLE, "0"))
    seeds = range(first, first + int(os.environ.get(SEEDS_VARIABLE, str(SEEDS_DEFAULT))))
    return [seeds[start : start + BLOCK] for start in range(0, len(seeds), BLOCK)]


@pytest.mark.asyncio
@pytest.mark.property
class TestHistories:
    @pytest.mark.parametrize("seeds", blocks(), ids=lambda seeds: f"seeds {seeds[0]} to {seeds[-1]}")
    async def test_the_books_balance_after_refused_lost_late_and_cancelled_appends(
        self, logs: Logs, seeds: Sequence[int]
    ) -> None:
        clients = [logs.driver, *(logs.client() for _ in range(WRITERS - 1))]
        at_once = asyncio.Semaphore(AT_ONCE)

        async def check(seed: int) -> None:
            async with at_once:
                await check_history(clients, seed, clock=logs.clock)

        async with asyncio.TaskGroup() as group:
            for seed in seeds[: logs.repetitions(len(seeds))]:
                group.create_task(check(seed))
