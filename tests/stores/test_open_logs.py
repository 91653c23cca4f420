"""Rules of open logs: shared, bounded, closed when idle, never closed in use."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from engines.api.stream import FOLLOWERS_MAX, FOLLOWERS_TENANT_MAX
from engines.core.log import Entry, Log
from engines.core.place import Place
from engines.errors import Throttled, Unavailable
from engines.stores.open_logs import IDLE_S_MAX, LOGS_OPEN_MAX, LOGS_TENANT_MAX, OpenLogs
from tests.stores.home import Home, context


@pytest.fixture
def logs(home: Home) -> OpenLogs:
    return OpenLogs(home.ids, home.clock, open_max=3, tenant_max=3)


async def place(home: Home) -> Place:
    return await home.place("event_stream", context())


async def touch(home: Home, logs: OpenLogs, stream: str) -> Log:
    async with logs.use(await place(home), stream) as log:
        return log


async def is_closed(log: Log) -> bool:
    await asyncio.sleep(0)  # Closing is a task of its own; let it begin.
    try:
        await log.append([Entry("{}")])
    except Unavailable:
        return True
    return False


async def test_a_stream_has_one_log_while_it_is_used(home: Home, logs: OpenLogs) -> None:
    first = await touch(home, logs, "a")
    assert await touch(home, logs, "a") is first
    assert await touch(home, logs, "b") is not first
    await logs.close()


async def test_of_too_many_the_longest_unused_is_closed(home: Home, logs: OpenLogs) -> None:
    opened = [await touch(home, logs, name) for name in "abc"]
    await touch(home, logs, "a")
    await touch(home, logs, "d")
    assert len(logs) == 3
    assert await is_closed(opened[1])
    assert not await is_closed(opened[0])
    await logs.close()


async def test_a_log_in_use_is_never_closed_and_the_rest_still_are(home: Home, logs: OpenLogs) -> None:
    async with AsyncExitStack() as held:
        used = [await held.enter_async_context(logs.use(await place(home), f"used-{n}")) for n in range(2)]
        for number in range(40):
            await touch(home, logs, f"once-{number}")
            assert len(logs) <= 3
        assert not any([await is_closed(log) for log in used])
    await logs.close()


async def test_where_all_are_in_use_another_stream_waits_until_one_is_not(home: Home, logs: OpenLogs) -> None:
    async with AsyncExitStack() as held:
        for name in "abc":
            await held.enter_async_context(logs.use(await place(home), name))
        with pytest.raises(Throttled) as caught:
            await touch(home, logs, "d")
        assert caught.value.retry_after_s is not None
        await touch(home, logs, "a")
        assert len(logs) == 3
    await touch(home, logs, "d")
    assert len(logs) == 3
    await logs.close()


def test_followers_leave_room_for_appends() -> None:
    assert FOLLOWERS_MAX <= LOGS_OPEN_MAX // 2
    assert FOLLOWERS_TENANT_MAX <= LOGS_TENANT_MAX // 2


async def test_a_tenant_that_has_its_share_in_use_waits_and_no_other_does(home: Home) -> None:
    assert LOGS_TENANT_MAX <= LOGS_OPEN_MAX // 4
    logs = OpenLogs(home.ids, home.clock, open_max=8, tenant_max=2)
    for name in "abcdef":  # Open ones that nobody uses are no part of the share.
        await touch(home, logs, name)
    other = await home.place("event_stream", context(tenant_id="t_two"))
    async with AsyncExitStack() as held:
        for name in ("a", "g", "g"):
            await held.enter_async_context(logs.use(await place(home), name))
        for name in ("b", "h"):  # One that is open, one that is not.
            with pytest.raises(Throttled) as caught:
                await touch(home, logs, name)
            assert caught.value.retry_after_s is not None
        logs.drop(await place(home), "a")  # Closed after its last user, and in use until then.
        with pytest.raises(Throttled):
            await touch(home, logs, "b")
        async with logs.use(other, "a"), logs.use(other, "b"):
            await touch(home, logs, "g")
    await touch(home, logs, "b")
    assert len(logs) <= 8
    await logs.close()


async def test_a_log_that_is_idle_too_long_is_closed(home: Home, logs: OpenLogs) -> None:
    first = await touch(home, logs, "a")
    home.clock.advance(IDLE_S_MAX)
    await touch(home, logs, "b")
    assert len(logs) == 2
    home.clock.advance(1)
    await touch(home, logs, "b")
    assert len(logs) == 1
    assert await is_closed(first)
    await logs.close()


async def test_dropping_a_log_in_use_closes_it_after_its_last_user(home: Home, logs: OpenLogs) -> None:
    where = await place(home)
    async with logs.use(where, "a") as log:
        logs.drop(where, "a")
        assert not await is_closed(log)
        assert await touch(home, logs, "a") is not log
    assert await is_closed(log)
    await logs.close()


async def test_closing_finishes_what_waits_and_refuses_what_comes(home: Home, logs: OpenLogs) -> None:
    where = await place(home)
    async with logs.use(where, "a") as log:
        held = home.faults.hold_next_write()
        append = asyncio.create_task(log.append([Entry("{}")]))
        await held.arrived()
        closing = asyncio.create_task(logs.close())
        held.release()
        assert (await append).positions == (1,)
        await closing
    with pytest.raises(Unavailable):
        async with logs.use(where, "a"):
            pass
