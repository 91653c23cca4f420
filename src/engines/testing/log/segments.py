"""The rules of segments: where commits lie, how they are found again, and repeats across a boundary."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from random import Random
from typing import TypeVar

import pytest

from engines.core.idempotency import identify
from engines.errors import TooLarge
from engines.testing.log.harness import Logs, Watched, append, client_id, entry, names

SIZES = (2, 3, 7)
# Each is a case of its own; one after the other they would mostly wait.
STREAMS_AT_ONCE = 8


T = TypeVar("T")


def some(logs: Logs, cases: Sequence[T], random: Random) -> Sequence[T]:
    """As many cases as the harness wants; the first and the last are always among them."""
    between = random.sample(cases[1:-1], logs.repetitions(len(cases) - 2))
    return (cases[0], *between, cases[-1])


async def fill(logs: Logs, size: int, lengths: list[int]) -> list[str]:
    """One commit of each length."""
    log = logs.open(segment_size=size)
    for number, length in enumerate(lengths):
        await append(log, *(f"{number}.{index}" for index in range(length)))
    return [f"{number}.{index}" for number, length in enumerate(lengths) for index in range(length)]


@pytest.mark.asyncio
class TestSegments:
    @pytest.mark.parametrize("size", SIZES)
    async def test_commits_that_run_past_a_segments_end_are_found_from_every_position(
        self, logs: Logs, size: int
    ) -> None:
        random = Random(size)
        expected = await fill(logs, size, [random.randint(1, size) for _ in range(25)])
        log, end = logs.open(), len(expected)
        assert await names(log) == expected
        for position in some(logs, range(end + 1), random):
            for limit in (1, 3, 1_000):
                after = await log.list_after(position, limit=limit)
                wanted = list(range(position + 1, end + 1))[:limit]
                assert [event.position for event in after.events] == wanted
                assert after.end or len(wanted) == limit
                assert not after.end or not wanted or wanted[-1] == end
                before = await log.list_before(position + 1, limit=limit)
                wanted = list(range(position, 0, -1))[:limit]
                assert [event.position for event in before.events] == wanted
        for event in (await log.list_after(0, limit=1_000)).events:
            assert await log.find(event.event_id) == event
        assert (await log.verify(await log.head())).event_count == end

    @pytest.mark.parametrize("size", SIZES)
    async def test_a_commit_stands_in_the_segment_of_its_first_position(self, logs: Logs, size: int) -> None:
        await fill(logs, size, [size] * 8)
        chain = logs.chain()
        await chain.open()
        stood = 0
        for segment in range(20):
            for doc in await logs.documents_in(chain.partition(segment)):
                assert int(doc.key.removeprefix("c!")) // size == segment
                stood += 1
        assert stood == 8

    async def test_the_segment_size_is_stored_once_for_the_stream(self, logs: Logs) -> None:
        await fill(logs, 3, [1] * 5)
        other = logs.open(segment_size=1_000)
        await append(other, "sixth")
        assert (await logs.chain().open(), len(await names(logs.open()))) == (True, 6)
        assert [commit.first for commit in await logs.commits()] == [1, 2, 3, 4, 5, 6]

    async def test_writers_that_meet_on_a_new_stream_agree_on_its_segment_size(self, logs: Logs) -> None:
        opened = [logs.open(segment_size=size) for size in (2, 3, 5, 8)]
        await asyncio.gather(*(append(log, f"{n}") for n, log in enumerate(opened * 5)))
        assert len(await names(logs.open())) == 20
        assert (await logs.open().verify()).event_count == 20

    async def test_no_commit_is_longer_than_a_segment(self, logs: Logs) -> None:
        log = logs.open(segment_size=5)
        await append(log, *"abcde")
        with pytest.raises(TooLarge):
            await append(log, *"abcdef")
        await asyncio.gather(*(append(log, *"xyz") for _ in range(10)))
        assert max(len(commit.events) for commit in await logs.commits()) == 5

    @pytest.mark.parametrize("size", [2, 3])
    async def test_a_cold_writer_finds_the_tail_at_every_length(self, logs: Logs, size: int) -> None:
        for length in range(40):
            log = logs.open(logs.driver)
            assert (await log.head()).position == length
            assert (await append(logs.open(logs.driver, segment_size=size), f"{length}")).first == length + 1

    async def test_a_cold_start_reads_few_documents_of_many_segments(self, logs: Logs) -> None:
        await fill(logs, 2, [2] * 300)
        driver = Watched(logs.client())
        assert (await append(logs.open(driver), "next")).first == 601
        assert driver.calls["scan"] + driver.calls["get"] <= 24


@pytest.mark.asyncio
class TestRepeatsAcrossSegments:
    @pytest.mark.parametrize("size", SIZES)
    async def test_an_id_is_recognised_while_fewer_than_a_segment_were_appended_since(
        self, logs: Logs, size: int
    ) -> None:
        """Wherever it stands in its commit and its segment, and however far the commit ran on."""
        at_once = asyncio.Semaphore(STREAMS_AT_ONCE)

        async def check(before: int, length: int, place: int) -> None:
            async with at_once:
                await _check_own_id(logs, size, before, length, place)

        cases = [
            (before, length, place)
            for before, length in itertools.product(range(size), range(1, size + 1))
            for place in range(length)
        ]
        async with asyncio.TaskGroup() as group:
            for case in some(logs, cases, Random(size)):
                group.create_task(check(*case))

    @pytest.mark.parametrize("size", SIZES)
    async def test_a_key_is_recognised_while_fewer_than_a_segment_were_appended_since(
        self, logs: Logs, size: int
    ) -> None:
        for before in range(size):
            stream = f"s-{before}"
            log = logs.open(logs.driver, stream=stream, segment_size=size)
            for _ in range(before):
                await append(log, "before")
            request = identify(stream, body=b"")
            first = await append(log, *"ab"[:size], request=request)
            for _ in range(size):
                again = logs.open(logs.driver, stream=stream)
                appended = await append(again, *"ab"[:size], request=request)
                assert (appended.replayed, appended.positions) == (True, first.positions)
                await append(log, "since")

    async def test_a_writer_that_lagged_behind_a_boundary_looks_its_ids_up_again(self, logs: Logs) -> None:
        """Its first look was into a segment that was still open; the id came in, and the segment closed."""
        lagging, other = logs.open(segment_size=4), logs.open()
        await append(lagging, "a")
        own = client_id()
        await other.append([entry("own", own)])
        await append(other, "b")
        await append(other, "c")
        assert (await other.head()).position == 4
        assert (await lagging.append([entry("own", own), entry("new")])).positions == (2, 5)
        assert await names(other) == ["a", "own", "b", "c", "new"]

    async def test_a_writer_whose_write_met_the_boundary_looks_its_ids_up_in_the_closed_segment(
        self, logs: Logs
    ) -> None:
        driver = logs.faulty()
        slow, other = logs.open(driver, segment_size=4), logs.open()
        for number in range(4):
            await append(slow, f"{number}")
        own = client_id()
        held = driver.hold_next_write()
        waiting = asyncio.ensure_future(slow.append([entry("own", own)]))
        await held.arrived()
        await other.append([entry("own", own)])
        for number in range(3):
            await append(other, f"later {number}")
        held.release()
        assert (await waiting).positions == (5,)
        assert (await names(other)).count("own") == 1


async def _check_own_id(logs: Logs, size: int, before: int, length: int, place: int) -> None:
    """In a stream of the case's own, where `before` events stand before a commit of `length`."""
    stream = f"s-{before}-{length}-{place}"
    log = logs.open(logs.driver, stream=stream, segment_size=size)
    for _ in range(before):
        await append(log, "before")
    own = client_id()
    events = [entry("own", own) if n == place else entry("beside") for n in range(length)]
    first = await log.append(events)
    for since in range(length - place - 1, size):
        again = logs.open(logs.driver, stream=stream)
        for repeating in (log, again):
            appended = await repeating.append([entry("own", own)])
            assert appended.positions == (first.positions[place],), (before, length, place, since)
        await append(log, "since")
