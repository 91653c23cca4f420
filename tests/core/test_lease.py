"""Leases: one holder at a time, taken over when it lapses."""

import asyncio

from engines.core.lease import DURATION_S, Lease
from engines.testing.clock import ManualClock
from engines.testing.faults import Fault
from tests.core.conftest import NewDocuments

PARTITION = "work.t_a.prod.0"


async def test_of_many_who_ask_at_once_one_gets_it(new_documents: NewDocuments) -> None:
    clock = ManualClock()
    opened = [(await new_documents(clock))[0] for _ in range(4)]
    leases = [Lease(d, PARTITION, "relay", holder=f"h{n}", clock=clock) for n, d in enumerate(opened)]
    assert sum(await asyncio.gather(*(lease.acquire() for lease in leases))) == 1


async def test_a_holder_renews_and_knows_that_nobody_came_between(new_documents: NewDocuments) -> None:
    clock = ManualClock()
    documents, _ = await new_documents(clock)
    lease = Lease(documents, PARTITION, "relay", holder="one", clock=clock)
    assert (await lease.acquire(), lease.continued) == (True, False)
    clock.advance(DURATION_S / 3)
    assert (await lease.acquire(), lease.continued, lease.held) == (True, True, True)


async def test_a_lapsed_lease_is_taken_over_and_its_holder_learns_it(new_documents: NewDocuments) -> None:
    clock = ManualClock()
    documents, _ = await new_documents(clock)
    one = Lease(documents, PARTITION, "relay", holder="one", clock=clock)
    two = Lease(documents, PARTITION, "relay", holder="two", clock=clock)
    assert await one.acquire()
    assert not await two.acquire()
    clock.advance(DURATION_S + 0.1)
    assert not one.held
    assert await two.acquire()
    assert not two.continued
    assert not await one.acquire()


async def test_a_released_lease_is_free_at_once(new_documents: NewDocuments) -> None:
    clock = ManualClock()
    documents, _ = await new_documents(clock)
    one = Lease(documents, PARTITION, "relay", holder="one", clock=clock)
    two = Lease(documents, PARTITION, "relay", holder="two", clock=clock)
    assert await one.acquire()
    await one.release()
    assert not one.held
    assert await two.acquire()
    await one.release()  # Releasing what is another's by now takes nothing from it.
    assert await two.acquire()
    assert two.continued


async def test_a_holder_that_starts_again_under_its_name_does_not_trust_what_it_did_before(
    new_documents: NewDocuments,
) -> None:
    clock = ManualClock()
    documents, _ = await new_documents(clock)
    assert await Lease(documents, PARTITION, "relay", holder="one", clock=clock).acquire()
    again = Lease(documents, PARTITION, "relay", holder="one", clock=clock)
    assert await again.acquire()
    assert not again.continued


async def test_a_renewal_that_was_cancelled_and_landed_is_given_up_too(new_documents: NewDocuments) -> None:
    clock = ManualClock()
    documents, faulty = await new_documents(clock)
    lease = Lease(documents, PARTITION, "relay", holder="one", clock=clock)
    assert await lease.acquire()
    clock.advance(DURATION_S * 3 / 4)
    faulty.script(Fault.LATE)
    renewal = asyncio.create_task(lease.acquire())
    await asyncio.sleep(0)  # It has been sent.
    renewal.cancel()
    await asyncio.gather(renewal, return_exceptions=True)
    await faulty.late_writes_delivered()
    await lease.release()
    other, _ = await new_documents(clock)
    assert await Lease(other, PARTITION, "relay", holder="two", clock=clock).acquire()


async def test_a_lease_is_written_again_only_once_half_of_it_has_passed(new_documents: NewDocuments) -> None:
    clock = ManualClock()
    documents, faulty = await new_documents(clock)
    lease = Lease(documents, PARTITION, "relay", holder="one", clock=clock)
    assert await lease.acquire()
    clock.advance(DURATION_S / 4)
    written = faulty.seen.total()
    assert (await lease.acquire(), lease.continued, faulty.seen.total()) == (True, True, written)
    clock.advance(DURATION_S / 2)
    assert (await lease.acquire(), lease.continued, faulty.seen.total()) == (True, True, written + 1)
    clock.advance(DURATION_S * 3 / 4)
    assert lease.held
