"""What a process owes a mover: a lease that tells the truth, and nothing acknowledged without it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from engines.control.directory import Directory
from engines.control.records import Move
from engines.control.store import ControlStore
from engines.core.documents import Documents
from engines.core.lease import DRIFT
from engines.core.outbox import Backlog
from engines.drivers.registry import document_driver
from engines.errors import Unavailable
from engines.ids import Ids
from engines.ports.documents import ALWAYS, Doc, Put
from engines.routing.participation import LEASE_MOVING_S, Observer, Participation
from engines.stores.notes import NoteInput
from engines.testing.clock import ManualClock
from tests.moves.conftest import OWNER, Open, ended, hold_up, reached

PAIR = ("t_a", "notes_store")
MOVE = Move(
    move_id="m",
    tenant_id="t_a",
    resource_kind="notes_store",
    source_backend_id="a",
    source_generation=0,
    target_backend_id="b",
    target_generation=1,
)


class Parts(msgspec.Struct):
    clock: ManualClock
    documents: Documents
    directory: Directory
    participation: Participation


@pytest.fixture
async def parts(tmp_path: Path) -> Parts:
    clock = ManualClock()
    module = document_driver("sqlite")
    driver = module.open_driver(module.Config(path=str(tmp_path / "c.db")), {}, clock)
    documents = Documents(driver, ids=Ids(clock), clock=clock)
    store = ControlStore(documents, Backlog(documents, "none.t_a.prod.0", clock))
    directory = Directory(store, clock)
    participation = Participation(documents, directory, process_id="p", clock=clock)
    await participation.register()
    await directory.refresh()
    return Parts(clock, documents, directory, participation)


async def test_a_change_is_acknowledged_only_while_the_lease_holds(parts: Parts) -> None:
    change = parts.participation.enter(PAIR)
    parts.clock.advance(LEASE_MOVING_S - 0.1)
    assert parts.participation.leave(change)
    change = parts.participation.enter(PAIR)
    parts.clock.advance(0.2)
    assert not parts.participation.leave(change)
    with pytest.raises(Unavailable):
        parts.participation.enter(PAIR)


async def test_a_lease_that_lapsed_and_was_taken_again_acknowledges_nothing_from_before(parts: Parts) -> None:
    change = parts.participation.enter(PAIR)
    parts.clock.advance(LEASE_MOVING_S + 1)
    await parts.participation.register()
    assert not parts.participation.leave(change)


async def test_after_a_lapse_nothing_begins_before_the_moves_were_read_again(parts: Parts) -> None:
    """What was known before it may be a phase that a mover no longer waits for."""
    parts.clock.advance(LEASE_MOVING_S - 0.5)
    await parts.directory.refresh()
    parts.clock.advance(1)
    await parts.participation.register()
    with pytest.raises(Unavailable, match="missed"):
        parts.participation.enter(PAIR)
    await parts.directory.refresh()
    assert parts.participation.leave(parts.participation.enter(PAIR))


async def test_a_lease_that_is_renewed_in_time_goes_on(parts: Parts) -> None:
    change = parts.participation.enter(PAIR)
    for _ in range(3):
        parts.clock.advance(LEASE_MOVING_S * 0.7)
        await parts.participation.register()
    assert parts.participation.leave(change)


async def test_a_clock_that_jumps_ends_the_lease(parts: Parts) -> None:
    change = parts.participation.enter(PAIR)
    parts.clock.jump(LEASE_MOVING_S + 1)  # A machine that slept: its monotonic clock did not go on.
    assert not parts.participation.leave(change)


async def test_a_process_is_waited_for_until_its_lease_has_lapsed(parts: Parts) -> None:
    observer = Observer(parts.documents, parts.clock)
    assert await observer.look(MOVE) == (1, {})
    parts.clock.advance(LEASE_MOVING_S)
    assert await observer.look(MOVE) == (1, {})
    await parts.participation.register()  # Heard of again, so its lease begins anew.
    parts.clock.advance(LEASE_MOVING_S)
    assert await observer.look(MOVE) == (1, {})
    parts.clock.advance(LEASE_MOVING_S * DRIFT + 0.1)
    assert await observer.look(MOVE) == (0, {})


async def test_a_move_waits_for_changes_that_are_under_way(open_process: Open) -> None:
    process = await open_process()
    async with process.router.changing("notes_store", OWNER) as place:
        stored = await process.moves.start(OWNER, "notes_store", "b")
        with pytest.raises(TimeoutError):
            await reached(process, stored.record.move_id, "copy", timeout_s=1.5)
        assert place.backend_id == "a"
        other = await process.notes.create(OWNER, NoteInput(content="a later change waits for nothing"))
    await ended(process, stored.record.move_id)
    assert (await process.notes.get(OWNER, other.record.note_id)).etag == other.etag


async def test_changes_wait_behind_the_fence_and_reads_do_not(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await open_process()
    made = await process.notes.create(OWNER, NoteInput(content="here"))
    go_on = asyncio.Event()
    hold_up(monkeypatch, "compare_touched", go_on)
    stored = await process.moves.start(OWNER, "notes_store", "b")
    await reached(process, stored.record.move_id, "verify")
    assert (await process.notes.get(OWNER, made.record.note_id)).content == "here"
    change = asyncio.create_task(process.notes.create(OWNER, NoteInput(content="there")))
    done, _ = await asyncio.wait((change,), timeout=0.3)
    assert not done
    go_on.set()
    waited = await change
    await ended(process, stored.record.move_id)
    assert (await process.router.place("notes_store", OWNER)).backend_id == "b"
    assert (await process.notes.get(OWNER, waited.record.note_id)).content == "there"


async def test_the_fence_waits_for_a_change_that_began_before_it(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await open_process()
    compared = asyncio.Event()
    hold_up(monkeypatch, "compare", compared)
    stored = await process.moves.start(OWNER, "notes_store", "b")
    await reached(process, stored.record.move_id, "follow")
    async with process.router.changing("notes_store", OWNER) as place:
        compared.set()
        await reached(process, stored.record.move_id, "fence")
        with pytest.raises(TimeoutError):
            await reached(process, stored.record.move_id, "verify", timeout_s=0.5)
        partition = await place.partition("u1")
        version = await place.documents.write(partition, [Put("n!u1!late", '"late"', ALWAYS)])
    await ended(process, stored.record.move_id)
    there = await process.router.place("notes_store", OWNER)
    doc = await there.documents.get(await there.partition("u1"), "n!u1!late")
    assert (there.backend_id, doc) == ("b", Doc("n!u1!late", '"late"', version))
