"""The rules of trimming and the seal: where a log begins, and where it ends."""

from __future__ import annotations

import asyncio

import pytest

from engines.core.log import Log, Sealed
from engines.core.tail import VIEW_S_MAX
from engines.errors import Gone
from engines.testing.log.harness import Logs, append, client_id, entry, name_of, names
from engines.testing.log.reading import SOON_S, Following
from engines.testing.log.tampering import SIZE, drop, written

DAY_S = 24 * 3600


@pytest.mark.asyncio
class TestTrim:
    async def test_nothing_younger_than_a_day_goes(self, logs: Logs) -> None:
        log, head = await written(logs)
        logs.wall.advance(DAY_S - 1)
        assert await log.trim(head.position) == 0
        assert len(await logs.commits()) == 25

    async def test_whole_old_commits_go_and_the_newest_stays(self, logs: Logs) -> None:
        log, head = await written(logs)
        everything = await logs.commits()
        logs.wall.advance(DAY_S + 1)
        for before in (2, 3, 9, 30, head.position, head.position + 100):
            floor = await log.trim(before)
            kept = [commit for commit in everything[:-1] if commit.last >= before] + everything[-1:]
            assert await logs.commits_above_floor() == kept
            assert floor == kept[0].first - 1
        assert (await append(log, "next")).positions == (head.position + 1,)
        assert (await logs.open().verify(head)).ok

    async def test_below_the_floor_everything_is_gone_and_above_it_everything_is_there(
        self, logs: Logs
    ) -> None:
        log, head = await written(logs)
        others = [logs.open(logs.driver) for _ in range(3)]
        stored = await names(log)
        old = (await log.list_after(0, limit=1)).events[0]
        for other in others[1:]:
            await other.head()
        await append(log, "fresh")
        logs.wall.advance(DAY_S + 1)
        floor = await log.trim(30)
        assert floor > SIZE
        for reading in (log, *others):
            for below in (0, 1, floor - 1):
                with pytest.raises(Gone):
                    await reading.list_after(below, limit=5)
            with pytest.raises(Gone):
                await reading.list_before(floor, limit=5)
            with pytest.raises(Gone):
                await reading.find(old.event_id)
            assert len((await reading.list_after(floor, limit=1_000)).events) == head.position + 1 - floor
            down = await reading.list_before(None, limit=1_000)
            assert (len(down.events), down.end) == (head.position + 1 - floor, True)
            assert await reading.seek(0) == floor + 1
        assert len(stored) == head.position

    async def test_a_follower_that_was_overtaken_by_the_floor_is_told(self, logs: Logs) -> None:
        log, _ = await written(logs)
        logs.wall.advance(DAY_S + 1)
        await log.trim(30)
        following = Following(logs.open(), 3)
        with pytest.raises(Gone):
            await following.task

    async def test_a_writer_that_slept_while_the_log_was_trimmed_past_it_does_not_write_below(
        self, logs: Logs
    ) -> None:
        asleep, awake = logs.open(segment_size=SIZE), logs.open()
        await append(asleep, "a")
        for number in range(40):
            await append(awake, f"{number}")
        logs.wall.advance(DAY_S + VIEW_S_MAX + 1)
        assert await awake.trim(41) == 40
        assert (await append(asleep, "b")).positions == (42,)
        assert (await logs.open().verify()).ok

    async def test_a_reader_that_slept_while_the_log_was_trimmed_past_it_is_told(self, logs: Logs) -> None:
        asleep, awake = logs.open(segment_size=SIZE), logs.open()
        await append(asleep, "a")
        for number in range(40):
            await append(awake, f"{number}")
        logs.wall.advance(DAY_S + 1)
        await awake.trim(41)
        with pytest.raises(Gone):
            await asleep.list_after(1, limit=1)

    async def test_where_a_restore_lost_the_end_the_log_goes_on_behind_what_is_left(self, logs: Logs) -> None:
        log = logs.open(segment_size=SIZE)
        for number in range(7):
            await append(log, f"{number}")
        logs.wall.advance(DAY_S + 1)
        assert await log.trim(3) == 2
        for commit in (await logs.commits())[-2:]:
            await drop(logs, commit)
        assert (await log.head()).position == 5
        logs.wall.advance(VIEW_S_MAX + 1)
        assert (await append(log, "next")).positions == (6,)
        assert (await logs.open().verify()).ok

    async def test_trims_at_once_agree(self, logs: Logs) -> None:
        _, head = await written(logs)
        logs.wall.advance(DAY_S + 1)
        trimming = (logs.open(logs.driver).trim(before) for before in (40, 9, 30, 20, 40))
        assert max(await asyncio.gather(*trimming)) == await logs.open().trim(40)
        assert (await logs.open().verify(head)).ok

    async def test_markers_outlive_their_events_for_as_long_as_they_are_promised(self, logs: Logs) -> None:
        log, own = logs.open(segment_size=SIZE), client_id()
        await log.append([entry("own", own)])
        for number in range(SIZE - 1):
            await append(log, f"{number}")
            logs.wall.advance(DAY_S + 1)
            await log.trim(SIZE)
            assert (await logs.open(logs.driver).append([entry("own", own)])).positions == (1,)

    async def test_markers_of_a_trimmed_commit_that_ran_into_the_next_segment_are_still_looked_up(
        self, logs: Logs
    ) -> None:
        log, own = logs.open(segment_size=4), client_id()
        await append(log, *"ab")
        await log.append([entry("c"), entry("d"), entry("e"), entry("own", own)])
        await append(log, *"gh")
        logs.wall.advance(DAY_S + 1)
        assert await log.trim(8) == 6
        assert (await logs.open().append([entry("own", own)])).positions == (6,)

    async def test_a_trim_that_was_interrupted_is_finished_by_the_next(self, logs: Logs) -> None:
        driver = logs.faulty()
        await written(logs)
        log = logs.open(driver)
        await log.head()
        logs.wall.advance(DAY_S + 1)
        left = len(await logs.commits())
        for writes in range(1, 5):
            holds = [driver.hold_next_write() for _ in range(writes)]
            task = asyncio.ensure_future(log.trim(38))
            for held in holds[:-1]:
                await asyncio.wait(
                    (asyncio.ensure_future(held.arrived()), task), return_when="FIRST_COMPLETED"
                )
                held.release()
            await asyncio.wait(
                (asyncio.ensure_future(holds[-1].arrived()), task), return_when="FIRST_COMPLETED"
            )
            task.cancel()
            await asyncio.wait((task,))
            for held in holds:
                held.release()
            driver = logs.faulty()
            log = logs.open(driver)
            assert (await logs.open(logs.driver).verify()).ok
        assert await logs.open(logs.driver).trim(38) > 0
        assert len(await logs.commits()) < left
        floor = await logs.open(logs.driver).trim(38)
        assert (await logs.commits_above_floor())[0].first == floor + 1
        assert len(await logs.commits()) == len(await logs.commits_above_floor())


@pytest.mark.asyncio
class TestSeal:
    async def test_behind_a_seal_nobody_writes_and_everything_before_it_is_read(self, logs: Logs) -> None:
        log, head = await written(logs)
        other = logs.open()
        await append(other, "last")
        sealed = await log.seal()
        assert sealed.position == head.position + 1
        assert (await other.seal()).position == sealed.position
        for writer in (log, other, logs.open()):
            with pytest.raises(Sealed):
                await append(writer, "late")
            stored = await writer.list_after(0, limit=1_000)
            assert (len(stored.events), stored.end) == (sealed.position, False)
            with pytest.raises(Sealed):
                await writer.list_after(sealed.position, limit=1)
        verification = await logs.open().verify(head)
        assert (verification.ok, verification.sealed) == (True, True)
        for kept in (sealed, await logs.open().head()):
            assert (await logs.open().verify(kept)).ok

    async def test_no_late_write_passes_a_seal(self, logs: Logs) -> None:
        driver = logs.faulty()
        log = logs.open(driver)
        await append(log, "first")
        held = driver.hold_next_write()
        waiting = asyncio.ensure_future(append(log, "held"))
        await held.arrived()
        sealed = await logs.open().seal()
        held.release()
        with pytest.raises(Sealed):
            await waiting
        assert sealed.position == 1
        assert (await logs.open().verify()).event_count == 1

    async def test_a_seal_among_writers_loses_nothing_that_was_acknowledged(self, logs: Logs) -> None:
        opened = [logs.open(segment_size=7) for _ in range(3)]
        acknowledged: list[str] = []

        async def write(log: Log, name: str) -> None:
            for number in range(1_000):
                try:
                    await append(log, f"{name}.{number}")
                except Sealed:
                    return
                acknowledged.append(f"{name}.{number}")

        writers = asyncio.gather(*(write(log, f"{n}") for n, log in enumerate(opened * 2)))
        following = Following(logs.open())
        await following.until(40)
        sealed = await logs.open().seal()
        await writers
        with pytest.raises(Sealed):
            await asyncio.wait_for(following.task, SOON_S)
        assert len(following.seen) == sealed.position
        assert sorted(str(name_of(event)) for event in following.seen) == sorted(acknowledged)
