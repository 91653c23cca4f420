"""Processes on one limit: killed and started again, on each backend, and while the counters are moved."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import engines
from engines import catalogue
from engines.control.records import Backend
from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.scope import RouteScope
from engines.stores.rate_limits import RateLimit
from tests.backends import session_backend
from tests.limits.process import ADMITTED
from tests.moves.conftest import NEW, OWNER, ended, make_deployment, sqlite_backend

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60
WINDOW_S = 2
KILLS = 2
START_TIMEOUT_S = 60.0
THE_LIMIT = RateLimit(name="all", per=("tenant",), limit=LIMIT, window_seconds=WINDOW_S)


class Asking:
    """One process, and how many calls it was told to admit in each window, in all of its lives."""

    def __init__(self, url: str) -> None:
        self.counts: Counter[int] = Counter()
        self._url = url
        self._process: Process
        self._reading: asyncio.Task[None]
        self._heard = asyncio.Event()

    async def start(self) -> None:
        """Returns once it was admitted for the first time."""
        self._heard.clear()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.limits.process", self._url),
            stdout=PIPE,
            stderr=DEVNULL,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )
        self._reading = asyncio.create_task(self._read(self._process))
        async with asyncio.timeout(START_TIMEOUT_S):
            await self._heard.wait()

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            told = line.decode()
            if told.startswith(ADMITTED) and told.endswith("\n"):
                self.counts[int(float(told.removeprefix(ADMITTED)) // WINDOW_S)] += 1
                self._heard.set()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reading


@contextlib.asynccontextmanager
async def asking(url: str, count: int) -> AsyncIterator[list[Asking]]:
    processes = [Asking(url) for _ in range(count)]
    try:
        await asyncio.gather(*(process.start() for process in processes))
        yield processes
    finally:
        await asyncio.gather(*(process.kill() for process in processes))


async def deploy(directory: Path, b: Backend) -> str:
    """A deployment on SQLite whose tenant t_a has the limit, with its counters on `b`."""
    url = f"sqlite://{directory}/control.db"
    await make_deployment(url, sqlite_backend(directory, "a"), b)
    async with engines.open(url) as opened:
        scope = RouteScope()
        await opened.routes.put(OWNER, catalogue.RATE_LIMITS, "b", scope=scope, options={}, condition=NEW)
        await opened.rate_limit_policies.put(OWNER, [THE_LIMIT])
    return url


def check(processes: list[Asking]) -> None:
    counts = sum((process.counts for process in processes), Counter[int]())
    print(dict(counts))
    assert max(counts.values()) <= LIMIT
    # Nobody waits for what was lost: in the windows in between nearly all was admitted.
    whole = [counts[window] for window in range(min(counts) + 1, max(counts))]
    assert sum(whole) >= LIMIT * len(whole) / 2


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.timeout(300)  # Three starts of a process, one after the other, each of which may take a minute.
@pytest.mark.parametrize("driver", list(DOCUMENT_DRIVERS))
async def test_processes_that_are_killed_never_admit_more_than_the_limit_together(
    request: pytest.FixtureRequest, tmp_path: Path, driver: str
) -> None:
    url = await deploy(tmp_path, session_backend(request, driver, "b"))
    source = random.Random(driver)
    async with asking(url, 3) as processes:
        for _ in range(KILLS):
            killed = source.choice(processes)
            await asyncio.sleep(source.uniform(0.3, WINDOW_S))
            await killed.kill()
            await killed.start()
    check(processes)


@pytest.mark.slow
@pytest.mark.crash
async def test_counters_that_are_moved_while_they_are_used_give_nothing_twice(tmp_path: Path) -> None:
    url = await deploy(tmp_path, sqlite_backend(tmp_path, "b"))
    async with engines.open(url) as observer, asking(url, 3) as processes:
        for target in ("a", "b"):
            stored = await observer.moves.start(OWNER, catalogue.RATE_LIMITS, target)
            move, progress = await ended(observer, stored.record.move_id)
            assert move.phase == "done", progress
            await asyncio.sleep(WINDOW_S)
    check(processes)
