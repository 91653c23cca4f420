"""The outbox: what a change must tell the log arrives there once, whatever breaks in between.

Each rule was broken on purpose and seen to be caught: an entry removed before its delivery, delivery under a
fresh id, `first_attempt` true after a take-over, no removal, a failing group that ends the round, no bound,
a page removed only as a whole, a turn without end, a portion as large after a failure, a later page that
overtakes what was left of an earlier one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from engines.clock import Clock, SystemClock
from engines.core import outbox
from engines.core.documents import Documents
from engines.core.keys import within
from engines.core.lease import DURATION_S, Lease
from engines.core.log import Entry as LogEntry
from engines.core.log import Log
from engines.core.outbox import (
    DELIVERY_TIMEOUT_S,
    PAUSE_S,
    PORTION_BYTES_MAX,
    PORTION_MAX,
    Backlog,
    Deliver,
    Entry,
    Relay,
    outbox_put,
)
from engines.errors import OutcomeUnknown, Throttled, Unavailable
from engines.ids import Ids
from engines.ports.documents import ALWAYS, Put
from engines.testing.clock import ManualClock
from engines.testing.faults import Fault
from tests.core.conftest import NewDocuments

PARTITION = "work.t_system.global.0"
CLOCK = SystemClock()


class Spine:
    """A real log as the receiver; `refused` groups stand for a backend that is down."""

    def __init__(self, documents: Documents, *, segment_size: int = 50_000) -> None:
        self.refused: set[str] = set()
        self.documents = documents
        self.segment_size = segment_size
        self.logs: dict[str, Log] = {}

    def log(self, group: str) -> Log:
        if group not in self.logs:
            self.logs[group] = Log(
                self.documents,
                kind="event_spine",
                tenant_id=group,
                env="prod",
                stream="spine",
                ids=Ids(CLOCK),
                clock=CLOCK,
                shard_partition=f"event_spine.{group}.prod.0",
                segment_size_default=self.segment_size,
            )
        return self.logs[group]

    async def deliver(self, group: str, entries: Sequence[Entry], *, first_attempt: bool) -> None:
        if group in self.refused:
            raise Unavailable("down")
        for entry in entries:
            if first_attempt or await self.log(group).find(entry.event_id) is None:
                await self.log(group).append([LogEntry(entry.body, entry.event_id)])

    async def bodies(self, group: str) -> list[str | None]:
        return [event.body for event in (await self.log(group).list_after(0, limit=1000)).events]

    async def close(self) -> None:
        for log in self.logs.values():
            await log.close()


def relay_on(documents: Documents, spine: Spine, *, holder: str, clock: Clock = CLOCK) -> Relay:
    return relay_to(documents, spine.deliver, holder=holder, clock=clock)


def relay_to(documents: Documents, deliver: Deliver, *, holder: str = "one", clock: Clock = CLOCK) -> Relay:
    lease = Lease(documents, PARTITION, "outbox", holder=holder, clock=CLOCK)
    return Relay(documents, PARTITION, deliver, lease=lease, clock=clock)


def handing(take: Callable[[str, list[str]], Awaitable[None]]) -> Deliver:
    """A receiver that is given a group's messages, and nothing else."""

    async def deliver(group: str, entries: Sequence[Entry], *, first_attempt: bool) -> None:
        del first_attempt
        await take(group, [entry.body for entry in entries])

    return deliver


async def change(documents: Documents, group: str, number: int, version: int = 1) -> None:
    """A record and its message in one write."""
    key = f"r!things!{number:04d}"
    message = outbox_put(group, key, version, f'{{"number":{number}}}', salt="salt")
    await documents.write(PARTITION, [Put(key, "{}", ALWAYS), message])


async def waiting(documents: Documents) -> int:
    above, below = within("o")
    return len((await documents.scan(PARTITION, above=above, below=below)).docs)


async def test_every_message_is_delivered_in_order_and_removed(new_documents: NewDocuments) -> None:
    documents, _ = await new_documents()
    spine = Spine(documents)
    for number in range(250):
        await change(documents, "t_a", number)
    relay = relay_on(documents, spine, holder="one")
    assert await relay.deliver_waiting() == 250
    assert await spine.bodies("t_a") == [f'{{"number":{number}}}' for number in range(250)]
    assert await waiting(documents) == 0
    await spine.close()


async def test_a_relay_that_dies_between_delivery_and_removal_doubles_nothing(
    new_documents: NewDocuments,
) -> None:
    documents, faulty = await new_documents()
    spine = Spine((await new_documents())[0])
    for number in range(3):
        await change(documents, "t_a", number)
    dying = relay_on(documents, spine, holder="one")
    held = faulty.hold_next_write()  # The removal never leaves.
    round_ = asyncio.create_task(dying.deliver_waiting())
    await held.arrived()
    round_.cancel()
    assert len(await spine.bodies("t_a")) == 3
    assert await waiting(documents) == 3
    other, _ = await new_documents()
    await relay_on(other, spine, holder="two").deliver_waiting()
    assert await spine.bodies("t_a") == [f'{{"number":{number}}}' for number in range(3)]
    assert await waiting(other) == 0
    held.release()
    await spine.close()


async def test_a_message_delivered_long_before_its_removal_is_found_behind_more_than_a_segment(
    new_documents: NewDocuments,
) -> None:
    documents, faulty = await new_documents()
    spine = Spine((await new_documents())[0], segment_size=5)
    await change(documents, "t_a", 0)
    relay = relay_on(documents, spine, holder="one")
    faulty.script(Fault.LOST_UNAPPLIED)
    with pytest.raises(OutcomeUnknown):  # Delivered, and the removal is lost.
        await relay.deliver_waiting()
    for number in range(30):  # Six segments go by.
        await spine.log("t_a").append([LogEntry(f'{{"other":{number}}}', None)])
    await relay_on(documents, spine, holder="two").deliver_waiting()
    assert (await spine.bodies("t_a")).count('{"number":0}') == 1
    await spine.close()


async def test_two_relays_at_once_double_nothing(new_documents: NewDocuments) -> None:
    first, _ = await new_documents()
    second, _ = await new_documents()
    spine, same_spine = Spine(first), Spine(second)
    for number in range(120):
        await change(first, "t_a", number)
    await asyncio.gather(
        relay_on(first, spine, holder="one").deliver_waiting(),
        relay_on(second, same_spine, holder="two").deliver_waiting(),
    )
    assert sorted(await spine.bodies("t_a"), key=str) == sorted(
        (f'{{"number":{number}}}' for number in range(120)), key=str
    )
    await spine.close()
    await same_spine.close()


async def test_a_group_that_cannot_be_delivered_waits_alone(new_documents: NewDocuments) -> None:
    documents, _ = await new_documents()
    clock = ManualClock()
    spine = Spine(documents)
    spine.refused.add("t_b")
    for number in range(150):
        await change(documents, "t_b", number)
    await change(documents, "t_a", 1000)
    await change(documents, "t_c", 2000)
    relay = relay_on(documents, spine, holder="one", clock=clock)
    assert await relay.deliver_waiting() == 2
    assert await spine.bodies("t_a") == ['{"number":1000}']
    assert await spine.bodies("t_c") == ['{"number":2000}']
    spine.refused.clear()
    assert await relay.deliver_waiting() == 0, "it is left alone for its pause"
    clock.advance(PAUSE_S)
    assert await relay.deliver_waiting() == 150
    await spine.close()


async def test_a_group_whose_receiver_hangs_delays_no_other(new_documents: NewDocuments) -> None:
    documents, _ = await new_documents()
    spine = Spine(documents)
    reached = asyncio.Event()

    async def deliver(group: str, entries: Sequence[Entry], *, first_attempt: bool) -> None:
        if group == "t_a":
            await asyncio.Event().wait()
        await spine.deliver(group, entries, first_attempt=first_attempt)
        reached.set()

    await change(documents, "t_a", 1)
    await change(documents, "t_b", 2)
    relay = relay_to(documents, deliver)
    pass_ = asyncio.create_task(relay.deliver_waiting())
    async with asyncio.timeout(DELIVERY_TIMEOUT_S / 2):
        await reached.wait()
    assert await spine.bodies("t_b") == ['{"number":2}']
    assert not pass_.done()
    assert await pass_ == 1
    assert await waiting(documents) == 1
    await spine.close()


async def test_a_relay_that_is_killed_between_two_portions_has_kept_the_first(
    new_documents: NewDocuments,
) -> None:
    documents, faulty = await new_documents()
    spine = Spine((await new_documents())[0])
    for number in range(80):
        await change(documents, "t_a", number)
    first, second = faulty.hold_next_write(), faulty.hold_next_write()
    first.release()
    dying = asyncio.create_task(relay_on(documents, spine, holder="one").deliver_waiting())
    await second.arrived()  # The removal of the second portion, which was delivered, never leaves.
    dying.cancel()
    assert len(await spine.bodies("t_a")) == 2 * PORTION_MAX
    assert await waiting(documents) == 80 - PORTION_MAX
    other, _ = await new_documents()
    assert await relay_on(other, spine, holder="two").deliver_waiting() == 80 - PORTION_MAX
    assert await spine.bodies("t_a") == [f'{{"number":{number}}}' for number in range(80)]
    assert await waiting(other) == 0
    second.release()
    await spine.close()


async def test_a_receiver_too_slow_for_all_that_waits_is_told_all_of_it_in_order(
    new_documents: NewDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message takes so long that only a few can be delivered within the time limit."""
    monkeypatch.setattr(outbox, "DELIVERY_TIMEOUT_S", 0.1)
    documents, _ = await new_documents()
    clock = ManualClock()
    told: list[str] = []

    async def take(_group: str, bodies: list[str]) -> None:
        assert len(bodies) <= PORTION_MAX
        await asyncio.sleep(0.008 * len(bodies))  # A portion takes twice what it may: twelve are the most.
        clock.advance(0.008 * len(bodies))
        told.extend(bodies)

    for number in range(130):
        await change(documents, "t_a", number)
    relay = relay_to(documents, handing(take), clock=clock)
    for _ in range(100):
        before = len(told)
        await relay.deliver_waiting()
        assert await waiting(documents) == 130 - len(told), "what was delivered is removed"
        if len(told) in (before, 130):
            clock.advance(PAUSE_S)
        if len(told) == 130:
            break
    assert told == [f'{{"number":{number}}}' for number in range(130)]


async def test_a_group_that_takes_long_gives_others_their_turn_and_goes_on_at_once(
    new_documents: NewDocuments,
) -> None:
    documents, _ = await new_documents()
    clock = ManualClock()
    told: list[tuple[str, int]] = []

    async def take(group: str, bodies: list[str]) -> None:
        told.append((group, len(bodies)))
        if group == "t_a":
            clock.advance(DELIVERY_TIMEOUT_S)

    for number in range(150):
        await change(documents, "t_a", number)
    await change(documents, "t_b", 1000)
    relay = relay_to(documents, handing(take), clock=clock)
    assert await relay.deliver_waiting() == PORTION_MAX + 1
    assert told == [("t_a", PORTION_MAX), ("t_b", 1)]
    assert relay._wake.is_set(), "what was left has no pause to wait for"
    assert await relay.deliver_waiting() == PORTION_MAX


async def test_what_was_left_of_a_group_is_not_overtaken_by_later_pages_once_its_pause_is_over(
    new_documents: NewDocuments,
) -> None:
    documents, _ = await new_documents()
    clock = ManualClock()
    told: list[str] = []

    async def take(_group: str, bodies: list[str]) -> None:
        if clock.monotonic() == 0.0:
            raise Unavailable("down, for a moment")
        told.extend(bodies)

    async def take_others(group: str, bodies: list[str]) -> None:
        if group == "t_b":  # Takes as long as the pause of the group that failed beside it.
            await asyncio.sleep(0.05)
            clock.advance(2 * PAUSE_S)
        else:
            await take(group, bodies)

    # One page holds that of t_b and the first of t_c, the next the rest of t_c.
    await change(documents, "t_b", 0)
    for number in range(150):
        await change(documents, "t_c", number)
    relay = relay_to(documents, handing(take_others), clock=clock)
    assert await relay.deliver_waiting() == 1
    assert told == []
    assert await relay.deliver_waiting() == 150
    assert told == [f'{{"number":{number}}}' for number in range(150)]


async def test_after_a_failure_what_waits_before_a_bad_message_is_delivered(
    new_documents: NewDocuments,
) -> None:
    documents, _ = await new_documents()
    clock = ManualClock()
    told: list[str] = []

    async def take(_group: str, bodies: list[str]) -> None:
        if '{"number":5}' in bodies:
            raise Unavailable("never")
        told.extend(bodies)

    for number in range(10):
        await change(documents, "t_a", number)
    relay = relay_to(documents, handing(take), clock=clock)
    for _ in range(10):
        await relay.deliver_waiting()
        clock.advance(outbox.PAUSE_MAX_S)
    assert told == [f'{{"number":{number}}}' for number in range(5)]
    assert await waiting(documents) == 5


async def test_a_portion_fits_into_one_append_however_large_its_messages_are(
    new_documents: NewDocuments,
) -> None:
    documents, _ = await new_documents()
    portions: list[int] = []

    async def take(_group: str, bodies: list[str]) -> None:
        portions.append(len(bodies))

    body = f'{{"text":"{"x" * (PORTION_BYTES_MAX // 6)}"}}'  # Two escaped are two thirds, three too many.
    for number in range(5):
        message = outbox_put("t_a", f"r!things!{number}", 1, body, salt="salt")
        await documents.write(PARTITION, [message])
    await relay_to(documents, handing(take)).deliver_waiting()
    assert portions == [2, 2, 1]


async def test_a_relay_with_much_to_deliver_renews_its_lease_meanwhile(new_documents: NewDocuments) -> None:
    documents, _ = await new_documents()
    clock = ManualClock()
    lease = Lease(documents, PARTITION, "outbox", holder="one", clock=clock)
    portions: list[bool] = []

    async def take(_group: str, _bodies: list[str]) -> None:
        clock.advance(DURATION_S / 5)  # Four fifths of the lease go by with each page.
        portions.append(lease.held)

    for number in range(160):
        await change(documents, "t_a", number)
    assert await lease.acquire()
    await Relay(documents, PARTITION, handing(take), lease=lease, clock=CLOCK).deliver_waiting()
    assert len(portions) > 5
    assert all(portions)


async def test_past_the_bound_changes_are_throttled_until_messages_are_delivered(
    new_documents: NewDocuments,
) -> None:
    documents, _ = await new_documents()
    clock = ManualClock()
    backlog = Backlog(documents, PARTITION, clock, waiting_max=5)
    for number in range(5):
        await backlog.admit("t_a")
        await change(documents, "t_a", number)
    with pytest.raises(Throttled):
        await backlog.admit("t_a")
    await backlog.admit("t_b")
    spine = Spine(documents)
    await relay_on(documents, spine, holder="one").deliver_waiting()
    clock.advance(2.0)
    await backlog.admit("t_a")
    await spine.close()


async def test_a_running_relay_delivers_what_is_nudged_at_once_and_gives_up_its_lease_at_the_end(
    new_documents: NewDocuments,
) -> None:
    documents, _ = await new_documents()
    spine = Spine(documents)
    relay = relay_on(documents, spine, holder="one")
    running = asyncio.create_task(relay.run())
    await change(documents, "t_a", 7)
    relay.nudge()
    async with asyncio.timeout(5):
        async for batch in spine.log("t_a").follow(0):
            if batch.events:
                break
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await Lease(documents, PARTITION, "outbox", holder="two", clock=CLOCK).acquire()
    await spine.close()
