"""Announcements: nothing that changed goes untold, nothing is told twice, whoever dies and whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engines.core import pledges
from engines.core.place import Place
from engines.core.pledges import ABANDONED_S
from engines.core.records import Condition
from engines.errors import OutcomeUnknown, PreconditionFailed, Throttled, Unavailable
from engines.ports.documents import ABSENT, Put
from engines.stores import announcements
from engines.stores.announcement_records import where_of
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.events import NewEvent
from engines.testing.clock import ManualClock
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan
from tests.stores.definitions_home import Told
from tests.stores.home import Home, context

FLOWS = SCHEMA_NAMED["flows"]
ADA = context()
FLOW = DefinitionInput(json_blob={"nodes": [{"id": "a"}]})


class Away:
    """A spine that cannot be reached."""

    async def append_system(self, *_: Any, **__: Any) -> Any:
        raise Unavailable("the spine's backend is away")


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Looks again and again; the test's own time limit ends it."""
    while True:
        if await holds():
            return
        await asyncio.sleep(0.01)


async def removed(home: Home) -> bool:
    return await waiting(home) == 0


async def failed_once(told: Told) -> bool:
    return any(delivery.failures for delivery in told.announcements._deliveries.values())


async def ticking(clock: ManualClock) -> None:
    """Time passes: two processes on one spine wait for each other by the clock."""
    while True:
        clock.advance(0.01)
        await asyncio.sleep(0.01)


async def waiting(home: Home) -> int:
    """How many messages stand in the database."""
    place = await home.place(FLOWS.kind, ADA)
    pages = [
        await home.documents.scan(partition, above="o!", below='o"') for partition in await place.partitions()
    ]
    return sum(len(page.docs) for page in pages)


async def delivered_by(process: Told, place: Place) -> None:
    """What a process does once it has changed a record of each partition."""
    for partition in await place.partitions():
        await process.announcements._deliver(where_of(ADA, place), partition, repeated=False)


async def test_what_is_told_is_removed(told: Told) -> None:
    await told.definitions.create(ADA, FLOWS, FLOW)
    await told.told(1)
    await until(lambda: removed(told.home))


async def test_what_a_process_left_behind_is_told_by_another(told: Told) -> None:
    await told.announcements.close()  # It changes, and dies before it tells.
    await told.definitions.create(ADA, FLOWS, FLOW)
    assert (await waiting(told.home), await told.events()) == (1, [])
    other = Told(told.home, "two")
    await other.pledges.finish_abandoned()
    told.home.clock.advance(ABANDONED_S)
    assert await other.pledges.finish_abandoned() == 1
    assert len(await other.told(1)) == 1
    assert await waiting(told.home) == 0
    await other.close()


async def test_what_was_told_and_not_removed_is_not_told_again(told: Told) -> None:
    """The process that finishes another's work loses the reply to the removal."""
    await told.definitions.create(ADA, FLOWS, FLOW)
    await told.told(1)
    await told.announcements.close()
    await told.definitions.create(ADA, FLOWS, FLOW)
    other = Told(told.home, "two")
    await other.pledges.finish_abandoned()
    told.home.clock.advance(ABANDONED_S)
    told.home.faults.script(Fault.NONE, Fault.LOST_UNAPPLIED)  # The append, the removal.
    assert await other.pledges.finish_abandoned() == 0
    assert (await waiting(told.home), len(await other.events())) == (1, 2)
    assert await other.pledges.finish_abandoned() == 1
    assert (await waiting(told.home), len(await other.events())) == (0, 2)
    await other.close()


async def test_what_was_told_long_ago_and_not_removed_is_not_told_again(home: Home) -> None:
    """The spine recognises an event id for a segment; what others left may be older."""
    dead, heir = Told(home, "dead", segment_size=3), Told(home, "heir", segment_size=3)
    await dead.announcements.close()
    await dead.definitions.create(ADA, FLOWS, FLOW)
    await heir.pledges.finish_abandoned()
    home.clock.advance(ABANDONED_S)
    # The layout and the meta document of the spine come before its first append; then the removal is lost.
    home.faults.script(*[Fault.NONE] * 3, Fault.LOST_UNAPPLIED)
    assert await heir.pledges.finish_abandoned() == 0
    assert (await waiting(home), len(await heir.events())) == (1, 1)
    for number in range(9):
        await heir.spine.append(ADA, [NewEvent(event_type="rl", payload={"number": number})])
    assert await heir.pledges.finish_abandoned() == 1
    assert (await waiting(home), len(await heir.events())) == (0, 1)
    await heir.close()
    await dead.spine.close()


async def test_what_another_process_told_and_did_not_remove_is_not_told_again(home: Home) -> None:
    """Whoever changes a record beside it finds the message, a segment and more after its event."""
    dead, heir = Told(home, "dead", segment_size=3), Told(home, "heir", segment_size=3)
    await dead.announcements.close()
    await dead.definitions.create(ADA, FLOWS, FLOW)
    place = await home.place(FLOWS.kind, ADA)
    home.faults.script(*[Fault.NONE] * 3, Fault.LOST_UNAPPLIED)  # As above: killed at the removal.
    with pytest.raises(OutcomeUnknown):
        await delivered_by(dead, place)
    for number in range(9):
        await heir.spine.append(ADA, [NewEvent(event_type="rl", payload={"number": number})])
    await delivered_by(heir, place)
    assert (await waiting(home), len(await heir.events())) == (0, 1)
    await heir.close()
    await dead.spine.close()


async def test_what_a_process_tells_late_may_have_been_told_by_another(home: Home) -> None:
    slow, quick = Told(home, "slow", segment_size=3), Told(home, "quick", segment_size=3)
    await slow.announcements.close()
    await slow.definitions.create(ADA, FLOWS, FLOW)
    place = await home.place(FLOWS.kind, ADA)
    home.faults.script(*[Fault.NONE] * 3, Fault.LOST_UNAPPLIED)
    with pytest.raises(OutcomeUnknown):
        await delivered_by(quick, place)
    for number in range(9):
        await quick.spine.append(ADA, [NewEvent(event_type="rl", payload={"number": number})])
    home.clock.advance(announcements.OWN_S)
    await delivered_by(slow, place)
    assert (await waiting(home), len(await quick.events())) == (0, 1)
    await quick.close()
    await slow.spine.close()


async def test_what_waits_where_no_route_leads_anywhere_any_more_is_told(told: Told) -> None:
    well, told.announcements._spine = told.announcements._spine, Away()
    await told.definitions.create(ADA, FLOWS, FLOW)
    await until(lambda: failed_once(told))
    told.home.missing.add(FLOWS.kind)
    told.announcements._spine = well
    assert len(await told.told(1)) == 1
    told.home.missing.clear()
    await until(lambda: removed(told.home))


async def test_an_event_says_the_mode_of_its_own_change_whoever_came_next(told: Told) -> None:
    well, told.announcements._spine = told.announcements._spine, Away()
    await told.definitions.create(context(mode="enterprise"), FLOWS, FLOW)
    await told.definitions.create(ADA, FLOWS, FLOW)
    await until(lambda: failed_once(told))
    told.announcements._spine = well
    await told.told(2)
    assert sorted(event.mode for event in await told.events()) == ["enterprise", ADA.mode]


async def test_scopes_of_one_place_take_one_pledge(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pledges, "OWNER_NAMES_MAX", 1)
    for number in range(5):
        await told.definitions.create(context(project_id=f"p{number}"), FLOWS, FLOW)
    await told.told(5)


async def test_what_is_cut_off_on_the_way_out_stays_pledged(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "CLOSE_TIMEOUT_S", 0.1)
    await told.definitions.create(ADA, FLOWS, FLOW)
    await told.told(1)
    await until(lambda: removed(told.home))
    change, append = told.home.faults.hold_next_write(), told.home.faults.hold_next_write()
    change.release()
    await told.definitions.create(ADA, FLOWS, FLOW)
    await append.arrived()
    await told.announcements.close()
    page = await told.home.documents.scan("pledges", above="p!", below='p"')
    assert len(page.docs) == 1
    append.release()


async def test_what_was_moved_before_it_was_told_is_told_where_it_is(home: Home) -> None:
    dead = Told(home, "dead")
    await dead.announcements.close()
    await dead.definitions.create(ADA, FLOWS, FLOW)
    before = await home.place(FLOWS.kind, ADA)
    home.generation = 1
    after = await home.place(FLOWS.kind, ADA)
    for source, target in zip(await before.partitions(), await after.partitions(), strict=True):
        page = await home.documents.scan(source, above="o!", below='o"')
        for doc in page.docs:
            await home.documents.write(target, [Put(doc.key, doc.body, ABSENT)])
            heir = Told(home, "heir")
            heir.announcements.promises = heir.pledges
            where = where_of(ADA, before)
            await heir.announcements._deliver(where, source, repeated=False)
            assert len(await heir.events()) == 1
            assert not (await home.documents.scan(target, above="o!", below='o"')).docs
            await heir.close()
            return
    pytest.fail("nothing waited")


async def test_a_change_is_made_while_the_spine_cannot_be_reached_and_told_once_it_can(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "PAUSE_S", 0.01)
    monkeypatch.setattr(announcements, "PAUSE_MAX_S", 0.05)
    await told.spine.close()  # Its log takes nothing any more.
    record = (await told.definitions.create(ADA, FLOWS, FLOW)).record
    for _ in range(3):
        condition = Condition(versions=(record.etag.strip('"'),))
        record = (await told.definitions.put(ADA, FLOWS, record.id, FLOW, condition=condition)).record
    assert await waiting(told.home) == 4
    well = Told(told.home, "well")
    told.announcements._spine = well.spine
    assert [one["version"] for one in await well.told(4)] == [1, 2, 3, 4]
    await well.close()


async def test_a_process_that_ends_does_not_sit_out_a_pause(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "PAUSE_S", announcements.CLOSE_TIMEOUT_S)
    await told.spine.close()
    await told.definitions.create(ADA, FLOWS, FLOW)
    await until(lambda: failed_once(told))
    async with asyncio.timeout(announcements.CLOSE_TIMEOUT_S / 2):
        await told.announcements.close()
    assert await waiting(told.home) == 1


async def test_past_the_bound_changes_are_throttled(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "WAITING_MAX", 2)
    await told.spine.close()
    named = [DefinitionInput(json_blob=FLOW.json_blob, id=f"f{number}") for number in range(4)]
    for definition in named[:2]:
        await told.definitions.create(ADA, FLOWS, definition)
    await until(lambda: failed_once(told))
    with pytest.raises(Throttled):
        await told.definitions.create(ADA, FLOWS, named[2])
    assert len((await told.definitions.list(ADA, FLOWS)).items) == 2


@pytest.mark.property
@pytest.mark.parametrize("seed", range(4))
async def test_under_faults_every_version_is_told_once_and_in_order(
    told: Told, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(announcements, "PAUSE_S", 0.005)
    monkeypatch.setattr(announcements, "PAUSE_MAX_S", 0.02)
    told.home.faults._random.seed(seed)
    time_passes = asyncio.create_task(ticking(told.home.clock))
    other = Told(told.home, "two")
    ids = [f"f{number}" for number in range(6)]
    for name in ids:
        await told.definitions.create(ADA, FLOWS, DefinitionInput(json_blob=FLOW.json_blob, id=name))
    told.home.faults.plan = FaultPlan(
        write_refused=0.1, write_lost_applied=0.1, write_lost_unapplied=0.1, write_late=0.1, read_refused=0.1
    )
    for turn in range(5):
        process = (told, other)[turn % 2]
        for name in ids:
            present = await process.definitions.get(ADA, FLOWS, name)
            condition = Condition(versions=(present.etag.strip('"'),))
            with contextlib.suppress(OutcomeUnknown, PreconditionFailed, Unavailable):
                await process.definitions.put(ADA, FLOWS, name, FLOW, condition=condition)
    told.home.faults.plan = NO_FAULTS
    await told.home.faults.late_writes_delivered()
    reached = {name: (await told.definitions.get(ADA, FLOWS, name)).version for name in ids}
    payloads = await told.told(sum(reached.values()))
    for name in ids:
        versions = [one["version"] for one in payloads if one["id"] == name]
        assert versions == list(range(1, reached[name] + 1)), (seed, name)
    time_passes.cancel()
    await other.close()


async def test_messages_of_one_record_that_fill_several_appends_are_told_in_its_order(told: Told) -> None:
    sizes = (120_000, 10, 10, 120_000, 60_000, 10)
    texts = [str(number) * chars for number, chars in enumerate(sizes, start=1)]
    place = await told.home.place(FLOWS.kind, ADA)
    partition = await place.partition("anchor")
    messages = [
        told.announcements.message(ADA, "record", version, "audit", {"text": text})
        for version, text in enumerate(texts, start=1)
    ]
    async with told.announcements.announcing(ADA, place, partition):
        await place.documents.write(partition, messages)
    assert [payload["text"] for payload in await told.told(len(texts))] == texts
