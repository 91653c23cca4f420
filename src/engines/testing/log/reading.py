"""The rules of reading: pages, single events, times, followers, and that nothing is ever skipped."""

from __future__ import annotations

import asyncio

import pytest

from engines.core import log as log_module
from engines.core.appends import Entry
from engines.core.log import Batch, Log, StoredEvent
from engines.errors import Invalid
from engines.ids import event_id_at
from engines.ports.documents import PAGE_BYTES
from engines.testing.log.harness import TAG, Logs, Watched, append, client_id, entry, name_of, names

SOON_S = 10.0


@pytest.mark.asyncio
class TestListing:
    async def test_an_empty_log_has_no_events_and_ends(self, logs: Logs) -> None:
        log = logs.open()
        for batch in (await log.list_after(0, limit=10), await log.list_before(None, limit=10)):
            assert batch == Batch((), end=True)
        assert (await log.head()).position == 0
        assert await log.find(event_id_at(TAG, 1)) is None
        assert await log.seek(0) == 1
        assert (await log.verify()).ok

    @pytest.mark.parametrize("cold", [True, False])
    async def test_a_cursor_past_the_end_is_invalid(self, logs: Logs, *, cold: bool) -> None:
        log = logs.open()
        await append(log, *"abc")
        log = logs.open() if cold else log
        assert (await log.list_after(3, limit=1)) == Batch((), end=True)
        for past in (4, 49_999, 50_000, 10**12):
            with pytest.raises(Invalid):
                await log.list_after(past, limit=1)
            with pytest.raises(Invalid):
                await log.list_before(past + 1, limit=1)

    async def test_a_page_stops_at_about_a_mebibyte(self, logs: Logs) -> None:
        log = logs.open()
        body = '{"a":"' + "x" * 60_000 + '"}'
        for _ in range(10):
            await log.append([Entry(body)] * 4)
        for batch in (await log.list_after(0, limit=1_000), await log.list_before(None, limit=1_000)):
            size = sum(len(str(event.body)) for event in batch.events)
            assert PAGE_BYTES <= size <= PAGE_BYTES + 4 * 60_100
            assert not batch.end

    async def test_a_page_from_the_boundary_of_a_commit_is_one_read(self, logs: Logs) -> None:
        writer = logs.open()
        for number in range(30):
            await append(writer, *(f"{number}.{index}" for index in range(10)))
        driver = Watched(logs.client())
        log = logs.open(driver)
        await log.list_after(0, limit=100)
        driver.calls.clear()
        assert len((await log.list_after(100, limit=100)).events) == 100
        assert driver.calls == {"scan": 1}

    async def test_redacted_events_keep_their_place_and_id(self, logs: Logs) -> None:
        log, own = logs.open(), client_id()
        await log.append([entry("a"), entry("b", own), entry("c")])
        await log.redact(2)
        event = (await log.list_after(1, limit=1)).events[0]
        assert (event.position, event.event_id, event.body) == (2, own, None)
        assert await log.find(own) == event
        assert await names(log) == ["a", None, "c"]


@pytest.mark.asyncio
class TestFind:
    async def test_an_event_is_found_by_its_id_in_any_segment(self, logs: Logs) -> None:
        log = logs.open(segment_size=3)
        ids = [client_id() if n % 2 else None for n in range(40)]
        for number, own in enumerate(ids):
            await log.append([entry(f"{number}", own)])
        for event in (await log.list_after(0, limit=1_000)).events:
            for other in (log, logs.open(logs.driver)):
                assert await other.find(event.event_id) == event
                assert await other.find(event.event_id.upper()) == event

    async def test_what_is_no_events_id_is_not_found(self, logs: Logs) -> None:
        log = logs.open()
        await log.append([entry("a", client_id()), entry("b")])
        strangers = [event_id_at(TAG, 1), event_id_at(TAG, 3), event_id_at(TAG + 1, 2), client_id()]
        for event_id in (*strangers, "", "x", "1", "\x00", "!" * 600, "../../c!1"):
            assert await log.find(event_id) is None


@pytest.mark.asyncio
class TestSeek:
    async def test_the_first_event_at_or_after_a_time(self, logs: Logs) -> None:
        log = logs.open(segment_size=5)
        times: list[int] = []
        for number in range(30):
            times += [(await append(log, *"ab"[: 1 + number % 2])).at_ms] * (1 + number % 2)
            if number % 3 == 0:
                logs.wall.advance(1.5)
        for at_ms in sorted({time + shift for time in times for shift in (-1, 0, 1)}):
            wanted = next((n + 1 for n, time in enumerate(times) if time >= at_ms), len(times) + 1)
            assert await log.seek(at_ms) == wanted
        assert await log.seek(0) == 1
        assert await log.seek(2**60) == len(times) + 1


class Following:
    """A follower at work: what it has seen so far."""

    def __init__(self, log: Log, after: int = 0) -> None:
        self.seen: list[StoredEvent] = []
        self._more = asyncio.Event()
        self.task = asyncio.ensure_future(self._collect(log, after))

    async def _collect(self, log: Log, after: int) -> None:
        async for batch in log.follow(after):
            assert batch.events
            self.seen += batch.events
            self._more.set()

    async def until(self, count: int, timeout_s: float = SOON_S) -> list[str | None]:
        async with asyncio.timeout(timeout_s):
            while len(self.seen) < count:
                self._more.clear()
                await self._more.wait()
        return [name_of(event) for event in self.seen]


@pytest.mark.asyncio
class TestFollow:
    async def test_it_begins_behind_the_cursor_and_goes_on_as_events_come(self, logs: Logs) -> None:
        log = logs.open(segment_size=3)
        await append(log, *"abc")
        await append(log, *"de")
        following = Following(log, 2)
        assert await following.until(3) == ["c", "d", "e"]
        for number in range(20):
            await append(log, f"{number}")
        assert await following.until(23) == ["c", "d", "e", *map(str, range(20))]

    async def test_an_append_of_this_process_wakes_it_at_once(
        self, logs: Logs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("POLL_S_MIN", "POLL_S_MAX"):
            monkeypatch.setattr(log_module, name, 3_600.0)  # By itself it would look in an hour.
        log = logs.open()
        await append(log, "a")
        following = Following(log)
        await following.until(1)
        await append(log, "b")
        assert await following.until(2) == ["a", "b"]

    async def test_an_append_of_another_process_is_seen(self, logs: Logs) -> None:
        following = Following(logs.open())
        other = logs.open()
        for number in range(3):
            await append(other, f"{number}")
            await following.until(number + 1)

    async def test_a_follower_of_a_quiet_log_asks_seldom(self, logs: Logs) -> None:
        driver = Watched(logs.client())
        log = logs.open(driver)
        await append(log, "a")
        following = Following(log)
        await following.until(1)
        driver.calls.clear()
        await asyncio.sleep(3.0)
        assert driver.calls.total() <= 10

    async def test_it_ends_when_the_log_is_closed(self, logs: Logs) -> None:
        log = logs.open()
        await append(log, "a")
        following = Following(log)
        await following.until(1)
        await log.close()
        await asyncio.wait_for(following.task, SOON_S)

    async def test_a_follower_that_is_given_up_leaves_nothing_behind(self, logs: Logs) -> None:
        log = logs.open()
        await append(log, "a")
        before = asyncio.all_tasks()
        following = Following(log)
        await following.until(1)
        following.task.cancel()
        await asyncio.wait((following.task,))
        assert asyncio.all_tasks() <= before
        assert (await append(log, "b")).positions == (2,)


@pytest.mark.asyncio
class TestVisibility:
    async def test_nothing_is_skipped_while_an_append_is_held_back_and_later_ones_commit(
        self, logs: Logs
    ) -> None:
        """Where positions come from a sequence, the held one would appear behind what a reader has passed."""
        slow_driver = logs.faulty()
        slow, fast, reader = logs.open(slow_driver), logs.open(), logs.open()
        await append(slow, "first")
        held = slow_driver.hold_next_write()
        waiting = asyncio.ensure_future(append(slow, "held back"))
        await held.arrived()
        seen: list[str | None] = []
        following = Following(logs.open())
        for number in range(10):
            await append(fast, f"{number}")
            batch = await reader.list_after(len(seen), limit=3)
            seen += [name_of(event) for event in batch.events]
        held.release()
        await waiting
        await append(fast, "last")
        while more := (await reader.list_after(len(seen), limit=3)).events:
            seen += [name_of(event) for event in more]
        everything = ["first", *map(str, range(10)), "held back", "last"]
        assert seen == await names(logs.open()) == everything
        assert await following.until(len(everything)) == everything
