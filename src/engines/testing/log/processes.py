"""The rules of several processes on one log: none is starved, and none takes others with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

import pytest

from engines.testing.documents.harness import DocumentHarness, Process, offered
from engines.testing.log.harness import Logs, append, names
from engines.testing.log.process import appending_process, appends

PROCESSES: Final = 4
RUN_TIMEOUT_S: Final = 90.0
# Every one of four processes gets at least this part of what all append. An even share is a quarter; where
# the winner does not yield, the starved are left with less than a hundredth, on a busy machine too.
SHARE_MIN: Final = 0.04
SHARED_APPENDS: Final = 8_000
# Of fewer a share says little.
SHARED_APPENDS_MIN: Final = 2_000
KILLS: Final = 2
# Each process appends so many events between one kill and the next.
APPENDS_BETWEEN: Final = (20, 60)
REPEATED: Final = 5


@pytest.fixture
def process(harness: DocumentHarness) -> Process:
    return offered(harness.process)


@pytest.mark.asyncio
@pytest.mark.slow
class TestProcesses:
    async def test_each_of_four_processes_gets_its_share(self, logs: Logs, process: Process) -> None:
        counts: Counter[int] = Counter()
        enough = asyncio.Event()
        wanted = logs.repetitions(SHARED_APPENDS, at_least=SHARED_APPENDS_MIN)
        await append(logs.open(), "first")

        async def count(child: asyncio.subprocess.Process, number: int) -> None:
            async for _ in appends(child):
                # Before everybody is there, the others have more than their share.
                if len(counts) == PROCESSES or counts[number] == 0:
                    counts[number] += 1
                if counts.total() >= wanted:
                    enough.set()

        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(RUN_TIMEOUT_S):
            children = [
                await stack.enter_async_context(appending_process(process, f"p{n}", tasks=8))
                for n in range(PROCESSES)
            ]
            counting = [asyncio.ensure_future(count(child, n)) for n, child in enumerate(children)]
            await enough.wait()
            shares = {number: counted / counts.total() for number, counted in counts.items()}
            for child in children:
                child.kill()
            await asyncio.gather(*counting)
        assert min(shares.values()) >= SHARE_MIN, shares
        assert (await logs.open().verify()).ok

    @pytest.mark.crash
    @pytest.mark.parametrize("seed", range(2), ids=lambda seed: f"seed {seed}")
    async def test_what_was_acknowledged_stands_once_though_a_process_is_killed_and_repeats(
        self, logs: Logs, process: Process, seed: int
    ) -> None:
        random = Random(seed)
        account = Account()
        await append(logs.open(), "first")
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(RUN_TIMEOUT_S):

            async def start(number: int) -> asyncio.subprocess.Process:
                context = appending_process(process, f"p{number}", start=account.resume(number))
                child = await stack.enter_async_context(context)
                noting[number] = asyncio.ensure_future(account.note(child, number))
                return child

            noting: dict[int, asyncio.Future[None]] = {}
            children = [await start(number) for number in range(PROCESSES)]
            for _ in range(logs.repetitions(KILLS)):
                await account.more(range(PROCESSES), random.randint(*APPENDS_BETWEEN))
                victim = random.randrange(PROCESSES)
                children[victim].kill()
                await noting[victim]
                children[victim] = await start(victim)
            await account.more(range(PROCESSES), APPENDS_BETWEEN[1])
            for child in children:
                assert child.stdin is not None
                child.stdin.close()
            await asyncio.gather(*noting.values())
        account.check(await names(logs.open()))
        assert (await logs.open().verify()).ok


class Account:
    """What the processes were told: for each event the positions that were acknowledged."""

    def __init__(self) -> None:
        self._positions: dict[str, set[int]] = {}
        self._counts: Counter[int] = Counter()
        self._last: dict[tuple[int, int], int] = {}

    async def note(self, child: asyncio.subprocess.Process, number: int) -> None:
        async for name, position in appends(child):
            _, task, serial = name.split(".")
            self._positions.setdefault(name, set()).add(position)
            self._counts[number] += 1
            self._last[number, int(task)] = int(serial)

    async def more(self, numbers: Iterable[int], count: int) -> None:
        """Returns once each of these processes had that many more events acknowledged."""
        enough = {number: self._counts[number] + count for number in numbers}
        while any(self._counts[number] < least for number, least in enough.items()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # Several readers share the one account.

    def resume(self, number: int) -> int:
        """From where a process appends some events again that were acknowledged, and then goes on."""
        last = [serial for (process, _), serial in self._last.items() if process == number]
        return max(0, min(last, default=0) - REPEATED)

    def check(self, stored: Sequence[str | None]) -> None:
        """Every acknowledged event stands where it was said to; one with an id of its own stands once."""
        for name, positions in self._positions.items():
            assert {stored[position - 1] for position in positions} == {name}
        repeated = 0
        for name, count in Counter(map(str, stored)).items():
            own_id = name != "first" and int(name.split(".")[1]) % 2 == 0
            assert count == 1 or not own_id, f"{name} stands {count} times"
            assert count >= len(self._positions.get(name, ())), f"{name} was acknowledged more often"
            repeated += count > 1
        assert repeated, "no process appended again what it had appended before"
