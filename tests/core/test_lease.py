"""Leases: one holder at a time, taken over when it lapses, whatever anybody's wall clock says.

Each rule was broken on purpose and seen to be caught: judging by `until`, no sighting that outlives an
attempt, a reader's own duration for another's lease, a sighting that a renewal does not end, no bound on
sightings, no `until` for earlier versions, a stored lease without a duration that is free at once, no drift.
"""

import asyncio
import json

import pytest

from engines.core import lease as leases
from engines.core.lease import DRIFT, DURATION_S, Lease, Sightings
from engines.ports.documents import ALWAYS, Put
from engines.testing.clock import START_S, ManualClock
from engines.testing.faults import Fault
from tests.core.conftest import NewDocuments

PARTITION = "work.t_a.prod.0"
DAY_S = 86_400.0
LAPSED_S = DURATION_S * DRIFT


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
    clock.advance(LAPSED_S)
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


@pytest.mark.parametrize("ahead_s", [DAY_S, 45.0, 0.0, -45.0, -DAY_S])
async def test_a_dead_holder_is_followed_after_one_lease_whatever_its_clock_said(
    new_documents: NewDocuments, ahead_s: float
) -> None:
    clocks = ManualClock(START_S + ahead_s), ManualClock()
    dead, heir = [
        Lease((await new_documents(clock))[0], PARTITION, "relay", holder=f"h{number}", clock=clock)
        for number, clock in enumerate(clocks)
    ]
    assert await dead.acquire()
    assert not await heir.acquire()
    assert heir.refused_for_s == LAPSED_S
    clocks[1].advance(DURATION_S)  # It may hold it still, and its clock be a little slower.
    assert not await heir.acquire()
    assert 0 < heir.refused_for_s <= LAPSED_S - DURATION_S
    clocks[1].advance(LAPSED_S - DURATION_S)
    assert await heir.acquire()


@pytest.mark.parametrize("ahead_s", [DAY_S, DURATION_S, -DAY_S])
async def test_who_has_another_wall_clock_robs_nobody_and_is_not_kept_waiting(
    new_documents: NewDocuments, ahead_s: float
) -> None:
    right, wrong = ManualClock(), ManualClock(START_S + ahead_s)
    holder = Lease((await new_documents(right))[0], PARTITION, "relay", holder="one", clock=right)
    other = Lease((await new_documents(wrong))[0], PARTITION, "relay", holder="two", clock=wrong)
    for _ in range(10):
        assert await holder.acquire()
        assert not await other.acquire()
        for clock in (right, wrong):
            clock.advance(DURATION_S * 3 / 4)
        assert not await other.acquire()
    assert (holder.held, holder.continued) == (True, True)
    wrong.advance(LAPSED_S)
    assert await other.acquire()
    assert not await holder.acquire()


async def test_a_wall_clock_that_is_set_while_a_lease_is_watched_changes_nothing(
    new_documents: NewDocuments,
) -> None:
    clock = ManualClock()
    documents, _ = await new_documents(clock)
    one = Lease(documents, PARTITION, "relay", holder="one", clock=clock)
    two = Lease(documents, PARTITION, "relay", holder="two", clock=clock)
    assert await one.acquire()
    for jump_s in (DAY_S, -2 * DAY_S, DAY_S):
        clock.jump(jump_s)
        assert (one.held, await two.acquire()) == (True, False)
    clock.jump(-DAY_S)
    clock.advance(LAPSED_S)
    assert await two.acquire()


async def test_what_was_seen_outlives_the_attempt_and_a_renewal_ends_it(new_documents: NewDocuments) -> None:
    clock = ManualClock()
    documents, _ = await new_documents(clock)
    sightings = Sightings(clock)

    async def attempt() -> bool:
        """By a lease that is made anew, under another name each time, as movers do."""
        name = f"two-{clock.monotonic()}"
        lease = Lease(documents, PARTITION, "relay", holder=name, clock=clock, sightings=sightings)
        return await lease.acquire()

    one = Lease(documents, PARTITION, "relay", holder="one", clock=clock)
    assert await one.acquire()
    assert not await attempt()
    clock.advance(DURATION_S * 3 / 4)
    assert await one.acquire()
    clock.advance(DURATION_S * 3 / 4)
    assert not await attempt()
    clock.advance(LAPSED_S - 0.1)
    assert not await attempt()
    clock.advance(0.2)
    assert await attempt()


async def test_a_lease_lasts_as_long_as_its_holder_said(new_documents: NewDocuments) -> None:
    clock = ManualClock()
    documents, _ = await new_documents(clock)
    long = Lease(documents, PARTITION, "relay", holder="one", clock=clock, duration_s=4 * DURATION_S)
    two = Lease(documents, PARTITION, "relay", holder="two", clock=clock)
    assert await long.acquire()
    assert not await two.acquire()
    clock.advance(2 * DURATION_S)
    assert (long.held, await two.acquire()) == (True, False)
    clock.advance(4 * LAPSED_S - 2 * DURATION_S)
    assert await two.acquire()


@pytest.mark.parametrize("until_s", [START_S + DAY_S, START_S - DAY_S])
async def test_a_lease_that_an_earlier_version_wrote_lasts_one_duration(
    new_documents: NewDocuments, until_s: float
) -> None:
    clock = ManualClock()
    documents, _ = await new_documents(clock)
    body = json.dumps({"schema": "lease/1", "holder": "before", "until": until_s})
    await documents.write(PARTITION, [Put("l!relay", body, ALWAYS)])
    lease = Lease(documents, PARTITION, "relay", holder="one", clock=clock)
    assert not await lease.acquire()
    clock.advance(LAPSED_S)
    assert await lease.acquire()
    # Its processes, which may still run, find in ours what they look for.
    doc = await documents.get(PARTITION, "l!relay")
    assert doc is not None
    said = json.loads(doc.body)
    assert (said["schema"], said["holder"], said["until"]) == ("lease/1", "one", clock.now() + DURATION_S)


async def test_of_many_leases_of_others_the_one_looked_at_longest_ago_is_forgotten(
    new_documents: NewDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "SIGHTINGS_MAX", 2)
    clock = ManualClock()
    documents, _ = await new_documents(clock)
    sightings = Sightings(clock)

    async def attempt(name: str) -> bool:
        lease = Lease(documents, PARTITION, name, holder="two", clock=clock, sightings=sightings)
        return await lease.acquire()

    for name in ("a", "b", "c"):
        assert await Lease(documents, PARTITION, name, holder="one", clock=clock).acquire()
    for name in ("a", "b", "a", "c"):
        assert not await attempt(name)
    clock.advance(LAPSED_S)
    assert [await attempt(name) for name in ("a", "b")] == [True, False]
