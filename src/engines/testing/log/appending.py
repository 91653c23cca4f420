"""The rules of append: a request is one commit, answered once it is durable, and within limits."""

from __future__ import annotations

import asyncio

import pytest

from engines.core.appends import CLIENT_IDS_MAX, EVENT_BYTES_MAX, EVENTS_MAX, Entry
from engines.core.committer import WAITING_MAX
from engines.core.idempotency import identify
from engines.core.log import Log
from engines.errors import (
    BackendRefused,
    Conflict,
    EnginesError,
    OutcomeUnknown,
    Throttled,
    TooLarge,
    Unavailable,
)
from engines.ids import position_of
from engines.testing.faults import FaultyDriver, HeldWrite
from engines.testing.log.harness import TAG, Logs, Watched, append, client_id, entry, names

SOON_S = 10.0


async def holding(logs: Logs) -> tuple[Log, FaultyDriver, HeldWrite, asyncio.Future[object]]:
    """A warm log whose next commit, an event `held`, waits on the wire."""
    driver = logs.faulty()
    log = logs.open(driver)
    await append(log, "first")
    held = driver.hold_next_write()
    waiting: asyncio.Future[object] = asyncio.ensure_future(append(log, "held"))
    await held.arrived()
    return log, driver, held, waiting


async def ticks(count: int = 3) -> None:
    """Let tasks that are ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.asyncio
class TestAppend:
    async def test_positions_start_at_one_and_follow_each_other(self, logs: Logs) -> None:
        log = logs.open()
        assert (await append(log, "a")).positions == (1,)
        assert (await append(log, "b", "c")).positions == (2, 3)
        assert await names(logs.open()) == ["a", "b", "c"]

    async def test_an_id_the_log_mints_says_stream_and_position(self, logs: Logs) -> None:
        appended = await append(logs.open(), "a", "b")
        assert [position_of(event_id, TAG) for event_id in appended.event_ids] == [1, 2]

    async def test_a_request_is_one_commit(self, logs: Logs) -> None:
        log = logs.open()
        await asyncio.gather(*(append(log, *(f"{n}.{m}" for m in range(n))) for n in range(1, 30)))
        stored = await names(log)
        for commit in await logs.commits():
            assert str(stored[commit.first - 1]).endswith(".0"), "a request was cut"

    async def test_what_waits_while_a_commit_is_under_way_makes_the_next_one(self, logs: Logs) -> None:
        log, _, held, waiting = await holding(logs)
        more = asyncio.gather(*(append(log, f"n{n}") for n in range(50)))
        await ticks()
        held.release()
        await asyncio.gather(waiting, more)
        assert [len(commit.events) for commit in await logs.commits()] == [1, 1, 50]

    async def test_a_caller_is_answered_after_its_commit_is_durable(self, logs: Logs) -> None:
        _, _, held, waiting = await holding(logs)
        await ticks(10)
        assert not waiting.done()
        assert await names(logs.open()) == ["first"]
        held.release()
        await waiting
        assert await names(logs.open()) == ["first", "held"]

    async def test_a_lone_append_on_a_warm_log_is_one_write_and_no_read(self, logs: Logs) -> None:
        driver = Watched(logs.client())
        # Who is alone looks up after a while; by a clock that stands still no while passes.
        log = logs.open(driver, clock=logs.wall)
        await append(log, "warm")
        driver.calls.clear()
        for number in range(20):
            await append(log, f"n{number}")
        assert driver.calls == {"write": 20}

    async def test_an_idle_log_has_no_task(self, logs: Logs) -> None:
        log = logs.open()
        before = asyncio.all_tasks()
        await asyncio.gather(*(append(log, f"n{n}") for n in range(20)))
        await ticks()
        assert asyncio.all_tasks() <= before

    async def test_time_never_goes_back(self, logs: Logs) -> None:
        log = logs.open()
        first = await append(log, "a")
        logs.wall.jump(-3600)
        assert (await append(log, "b")).at_ms == first.at_ms
        assert (await append(logs.open(), "c")).at_ms == first.at_ms
        logs.wall.jump(+7200)
        assert (await append(log, "d")).at_ms == first.at_ms + 3_600_000
        assert (await log.verify()).ok

    async def test_any_text_is_kept_byte_for_byte(self, logs: Logs) -> None:
        texts = ['{"a": 1.0,  "b":[1 , 2]}', '{"ü":"\\u00fc \U0001f600 日本"}', "{}", '{"n":1e400,"n":2}']
        log = logs.open()
        await log.append([Entry(text) for text in texts])
        stored = await logs.open().list_after(0, limit=10)
        assert [event.body for event in stored.events] == texts
        assert (await log.verify()).ok


@pytest.mark.asyncio
class TestLimits:
    async def test_most_events_of_one_request(self, logs: Logs) -> None:
        log = logs.open()
        assert (await append(log, *map(str, range(EVENTS_MAX)))).positions[-1] == EVENTS_MAX
        with pytest.raises(TooLarge):
            await append(log, *map(str, range(EVENTS_MAX + 1)))
        assert (await log.head()).position == EVENTS_MAX

    @pytest.mark.parametrize("character", ["x", "é", "\U0001f600", '\\"', "\\\\"])
    async def test_most_bytes_of_one_request(self, logs: Logs, character: str) -> None:
        log = logs.open()
        for size, count in ((EVENT_BYTES_MAX, 4), (EVENT_BYTES_MAX // EVENTS_MAX * EVENTS_MAX, EVENTS_MAX)):
            fitting = [Entry(body) for body in _bodies(size, count, character)]
            await log.append(fitting)
        with pytest.raises(TooLarge):
            await log.append([Entry(body) for body in _bodies(EVENT_BYTES_MAX + 1, 4, "x")])
        assert (await log.head()).position == 4 + EVENTS_MAX
        assert (await log.verify()).ok

    async def test_most_ids_that_clients_bring_beside_an_idempotency_key(self, logs: Logs) -> None:
        log = logs.open()
        await append(log, "warm")
        entries = [entry(f"n{n}", client_id()) for n in range(CLIENT_IDS_MAX)]
        rest = [entry(f"m{n}") for n in range(EVENTS_MAX - CLIENT_IDS_MAX)]
        request = identify("many", body=b"1")
        appended = await log.append([*entries, *rest], request=request)
        assert (await log.append([*entries, *rest], request=request)).positions == appended.positions
        with pytest.raises(TooLarge):
            await log.append([*entries, entry("one more", client_id())])
        assert (await log.head()).position == 1 + EVENTS_MAX

    async def test_requests_that_together_are_too_much_for_one_commit_make_several(self, logs: Logs) -> None:
        log, _, held, waiting = await holding(logs)
        large = [Entry(body) for body in _bodies(EVENT_BYTES_MAX // 2 + 100, 1, "x")]
        marked = [entry(f"n{n}", client_id()) for n in range(60)]
        calls = [log.append(large), log.append(large), log.append(marked), append(log, *"abc")]
        more = asyncio.gather(*calls, log.append([entry(f"m{n}", client_id()) for n in range(60)]))
        await ticks()
        held.release()
        await asyncio.gather(waiting, more)
        assert [len(commit.events) for commit in await logs.commits()] == [1, 1, 1, 64, 60]

    async def test_a_full_queue_throttles_and_nothing_of_that_is_written(self, logs: Logs) -> None:
        log, _, held, waiting = await holding(logs)
        queued = [asyncio.ensure_future(append(log, f"n{n}")) for n in range(WAITING_MAX)]
        await ticks()
        with pytest.raises(Throttled):
            await append(log, "too many")
        held.release()
        await asyncio.gather(waiting, *queued)
        assert (await log.head()).position == 2 + WAITING_MAX


@pytest.mark.asyncio
class TestCancellation:
    async def test_a_cancelled_caller_does_not_undo_the_commit_under_way(self, logs: Logs) -> None:
        log, _, held, waiting = await holding(logs)
        waiting.cancel()
        await ticks()
        held.release()
        assert (await append(log, "next")).positions == (3,)
        assert await names(log) == ["first", "held", "next"]

    async def test_what_was_cancelled_in_the_queue_is_not_written(self, logs: Logs) -> None:
        log, _, held, waiting = await holding(logs)
        queued = [asyncio.ensure_future(append(log, name)) for name in "abc"]
        await ticks()
        queued[1].cancel()
        await ticks()
        held.release()
        await asyncio.gather(waiting, queued[0], queued[2])
        assert await names(log) == ["first", "held", "a", "c"]


@pytest.mark.asyncio
class TestNeighbours:
    async def test_a_bad_request_fails_alone(self, logs: Logs) -> None:
        log, _, held, waiting = await holding(logs)
        known = client_id()
        good = [append(log, name) for name in "abc"]
        bad = [
            append(log, *map(str, range(EVENTS_MAX + 1))),
            append(log, "expects", expected_position=77),
            log.append([entry("one", known), entry("other", known)]),
        ]
        calls = [asyncio.ensure_future(call) for pair in zip(good, bad, strict=True) for call in pair]
        await ticks()
        held.release()
        answers = await asyncio.gather(*calls, waiting, return_exceptions=True)
        refusals = [answer for answer in answers if isinstance(answer, BaseException)]
        assert [type(refusal) for refusal in refusals] == [TooLarge, Conflict, Conflict]
        assert await names(log) == ["first", "held", "a", "b", "c"]

    async def test_when_the_committer_dies_everybody_is_told_and_the_log_goes_on(self, logs: Logs) -> None:
        driver = Watched(logs.client())
        log = logs.open(driver)
        await append(log, "first")
        driver.fail_writes = [RuntimeError("a bug")]
        calls = [append(log, f"n{n}", *"abc" * 60) for n in range(5)]  # More than one commit holds.
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, _context: None)
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), SOON_S)
        loop.set_exception_handler(None)
        assert [type(answer) for answer in answers] == [OutcomeUnknown] * 2 + [Unavailable] * 3
        assert (await append(log, "next")).positions == (2,)

    async def test_each_caller_gets_an_exception_of_its_own(self, logs: Logs) -> None:
        driver = Watched(logs.client())
        log = logs.open(driver)
        await append(log, "first")
        driver.fail_writes = [BackendRefused("no permission")]
        answers = await asyncio.gather(*(append(log, f"n{n}") for n in range(5)), return_exceptions=True)
        assert all(isinstance(answer, BackendRefused) for answer in answers)
        assert len({id(answer) for answer in answers}) == 5
        assert (await append(log, "next")).positions == (2,)


@pytest.mark.asyncio
class TestExpectedPosition:
    async def test_the_tail_that_is_expected_is_required(self, logs: Logs) -> None:
        log = logs.open()
        assert (await append(log, "a", "b", expected_position=0)).positions == (1, 2)
        for wrong in (0, 1, 3):
            with pytest.raises(Conflict):
                await append(log, "x", expected_position=wrong)
        assert (await append(log, "c", expected_position=2)).positions == (3,)
        assert await names(log) == ["a", "b", "c"]

    async def test_a_tail_that_another_process_made_is_known_in_time(self, logs: Logs) -> None:
        log, other = logs.open(), logs.open()
        await append(log, "a")
        await append(other, "b")
        assert (await append(log, "c", expected_position=2)).positions == (3,)
        with pytest.raises(Conflict):
            await append(other, "x", expected_position=2)

    async def test_of_many_who_expect_one_tail_one_wins(self, logs: Logs) -> None:
        opened = [logs.open() for _ in range(3)]
        await append(opened[0], "first")
        calls = [append(log, f"n{n}", expected_position=1) for n, log in enumerate(opened * 4)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
        assert all(isinstance(a, Conflict) for a in answers if isinstance(a, BaseException))
        assert (await opened[0].head()).position == 2


@pytest.mark.asyncio
class TestClose:
    async def test_close_finishes_what_waits_and_refuses_what_comes(self, logs: Logs) -> None:
        log, _, held, waiting = await holding(logs)
        queued = asyncio.ensure_future(append(log, "queued"))
        await ticks()
        closing = asyncio.ensure_future(log.close())
        await ticks()
        with pytest.raises(EnginesError):
            await append(log, "late")
        assert not closing.done()
        held.release()
        await asyncio.wait_for(closing, SOON_S)
        await asyncio.gather(waiting, queued)
        assert await names(logs.open()) == ["first", "held", "queued"]


def _bodies(escaped_size: int, count: int, character: str) -> list[str]:
    """`count` texts that together have this size when they are escaped once more, filled with `character`."""
    bodies = []
    for number in range(count):
        size = escaped_size // count + (escaped_size % count if number == 0 else 0)
        frame = len('{"a":""}') + 4 + 2
        width = len(character.encode()) + character.count('"') + character.count("\\")
        repeats, rest = divmod(size - frame, width)
        bodies.append('{"a":"' + character * repeats + "x" * rest + '"}')
    return bodies
