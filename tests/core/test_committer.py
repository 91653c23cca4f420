"""What waits for a log while its backend is slow, throttles, hangs or loses replies: nobody for too long, and
not without bound. That nothing is lost or doubled meanwhile is the log's kit's (`engines.testing.log`)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from engines.clock import SystemClock
from engines.core.appends import EVENTS_MAX
from engines.core.committer import WAITING_BYTES_MAX
from engines.core.log import Entry
from engines.core.tail import Write
from engines.drivers.registry import document_driver
from engines.errors import EnginesError, OutcomeUnknown, Throttled
from engines.ports.documents import Doc, DocumentDriver, Op, Page
from engines.testing.clock import ManualClock
from engines.testing.faults import FaultyDriver
from engines.testing.log.harness import Watched, append, names, open_log
from engines.testing.log.lost import Post

SHORT_S = 0.2
# Somebody who waits this long is stuck.
STUCK_S = 20.0
SLOW_WRITE_S = 0.05


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[DocumentDriver]:
    clock = ManualClock()
    module = document_driver("sqlite")
    opened = module.open_driver(module.Config(path=str(tmp_path / "documents.db")), {}, clock)
    await opened.provision()
    yield opened
    await opened.close()


class Hanging(Watched):
    """While `hangs` is set no call is answered."""

    def __init__(self, driver: DocumentDriver) -> None:
        super().__init__(driver)
        self.hangs = False

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        if self.hangs:
            await asyncio.Event().wait()
        return await super().scan(partition, above=above, below=below, limit=limit, reverse=reverse)

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        if self.hangs:
            await asyncio.Event().wait()
        return await super().get(partition, keys)

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        if self.hangs:
            self.calls.clear()
            await asyncio.Event().wait()
        await super().write(partition, ops, write_id=write_id)


class Slow(Watched):
    """Each write takes its time."""

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        await asyncio.sleep(SLOW_WRITE_S)
        await super().write(partition, ops, write_id=write_id)


async def test_who_is_told_to_wait_for_longer_than_its_deadline_is_answered_at_its_deadline(
    driver: DocumentDriver,
) -> None:
    watched = Watched(driver)
    log = open_log(watched, timeout_s=SHORT_S)
    await append(log, "first")
    watched.fail_writes = [Throttled("too much", retry_after_s=10 * STUCK_S)]
    async with asyncio.timeout(STUCK_S):
        with pytest.raises(Throttled, match="too much"):
            await append(log, "refused")
        await append(log, "next")
        await log.close()
    assert await names(open_log(driver)) == ["first", "next"]


async def test_who_waits_no_more_waits_for_no_look_either(driver: DocumentDriver) -> None:
    hanging = Hanging(driver)
    log = open_log(hanging, timeout_s=SHORT_S)
    await append(log, "first")
    hanging.hangs = True
    with pytest.raises(OutcomeUnknown):
        await append(log, "in doubt")
    assert hanging.calls.total() == 0, "the tail was read before the caller was answered"
    hanging.hangs = False
    await append(log, "next")
    await log.close()
    assert await names(open_log(driver)) == ["first", "next"]


async def test_however_many_wait_a_backend_is_left_alone_for_as_long_as_it_asks(
    driver: DocumentDriver,
) -> None:
    watched = Watched(driver)
    log = open_log(watched, timeout_s=SHORT_S)
    await append(log, "first")
    watched.calls.clear()
    watched.fail_writes = [Throttled("too much", retry_after_s=10 * STUCK_S) for _ in range(1_000)]
    waiting = []
    for number in range(20):
        waiting.append(asyncio.ensure_future(append(log, str(number))))
        await asyncio.sleep(SHORT_S / 10)
    async with asyncio.timeout(STUCK_S):
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Throttled}
    assert watched.calls["write"] <= 3
    await log.close()


async def test_who_has_no_time_left_is_answered_while_the_tail_is_read(driver: DocumentDriver) -> None:
    hanging = Hanging(driver)
    limit_s = 5 * SHORT_S
    log = open_log(hanging, timeout_s=limit_s)
    await append(log, "first")
    hanging.hangs = True
    clock = SystemClock()
    waits_s: list[float] = []

    async def timed(name: str) -> None:
        began_s = clock.monotonic()
        with pytest.raises(EnginesError):
            await append(log, name)
        waits_s.append(clock.monotonic() - began_s)

    waiting = []
    for name in "abcd":
        waiting.append(asyncio.create_task(timed(name)))
        await asyncio.sleep(limit_s / 8)
    await asyncio.gather(*waiting)
    # A write that hangs and a look that hangs, one after the other, would be twice that.
    assert max(waits_s) < 1.5 * limit_s, waits_s
    hanging.hangs = False
    await log.close()


def _writes() -> list[Write]:
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, Write)]


async def test_a_backend_that_loses_every_reply_fills_no_memory(driver: DocumentDriver) -> None:
    post = Post(driver)
    log = open_log(post, timeout_s=0.1)
    await append(log, "first")
    post.keep = 1_000_000
    earlier = _writes()
    for number in range(20):
        with pytest.raises(EnginesError):
            await append(log, f"lost {number}")
    assert len(post.kept) >= 10
    # One append may be sent several times before its deadline; those of the last one may be held, no other's.
    held = [write for write in _writes() if write not in earlier]
    assert len({id(append) for write in held for append, _ in write.placed}) <= 1
    post.keep = 0
    lost = len(post.kept) // 2
    post.kept.rotate(-lost)
    assert await post.deliver() == "applied", "one lands of which this process remembers nothing"
    patient = open_log(post)
    assert (await append(patient, "other")).positions == (3,)
    found = await names(patient)
    assert (found[0], len(found), found[2]) == ("first", 3, "other")
    assert str(found[1]).startswith("lost ")
    assert (await append(log, "next")).positions == (4,)
    await patient.close()
    await log.close()


async def test_who_appends_more_than_a_log_takes_is_told_so_and_nobody_else_is_blamed(
    driver: DocumentDriver,
) -> None:
    log = open_log(Slow(driver), timeout_s=2 * SLOW_WRITE_S)
    await append(log, "first")
    large = '{"x":"' + "a" * 200_000 + '"}'
    # More than a tenure alone has commits, each of one request.
    calls = [log.append([Entry(large)]) for _ in range(50)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, EnginesError)]
    assert refused
    assert {type(error) for error in refused} == {Throttled}
    await log.close()


async def test_a_queue_of_very_small_events_is_bounded_by_what_they_take(driver: DocumentDriver) -> None:
    faulty = FaultyDriver(driver)
    log = open_log(faulty)
    await append(log, "first")
    held = faulty.hold_next_write()
    many = [Entry("{}")] * EVENTS_MAX
    waiting = [asyncio.ensure_future(log.append(many))]
    await held.arrived()
    fitting = WAITING_BYTES_MAX // (200 * EVENTS_MAX)
    waiting += [asyncio.ensure_future(log.append(many)) for _ in range(2 * fitting)]
    await asyncio.sleep(0)
    held.release()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    refused = sum(isinstance(outcome, Throttled) for outcome in outcomes)
    assert fitting <= refused < 2 * fitting
    await log.close()


async def test_two_who_take_turns_go_on_though_the_clock_stands_still(driver: DocumentDriver) -> None:
    clock = ManualClock()
    both = [open_log(driver, clock=clock) for _ in range(2)]
    async with asyncio.timeout(STUCK_S):
        for number in range(50):
            await asyncio.gather(*(append(log, f"{number} {place}") for place, log in enumerate(both)))
    assert (await both[0].verify()).ok
    for log in both:
        await log.close()
