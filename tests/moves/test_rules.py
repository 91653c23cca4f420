"""Who may move what where, what a plan says, and what becomes of a move that cannot arrive."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest

from engines.control.tables import MOVES
from engines.core.idempotency import identify
from engines.core.records import Condition
from engines.core.transfer import FENCE_KEY, PartitionTransfer
from engines.errors import BackendRefused, Conflict, Forbidden, Invalid, NotFound, Unavailable
from engines.scope import RouteScope
from engines.stores.notes import NoteInput
from tests.contexts import ADMIN, PERMISSIONS_OF, context
from tests.moves.conftest import NEW, OWNER, Open, ended, reached, sqlite_backend

ADMIN_FOR_A = msgspec.structs.replace(ADMIN, acting_on="t_a")
ANYTHING_THERE = Condition(versions=("*",))
MEMBER = context("t_a", roles=("member",), permissions=PERMISSIONS_OF["member"])


async def test_a_plan_says_what_would_be_moved_and_changes_nothing(open_process: Open) -> None:
    process = await open_process()
    for number in range(7):
        await process.notes.create(OWNER, NoteInput(content=str(number)))
    plan = await process.moves.plan(OWNER, "notes_store", "b")
    # The shards' layout is a document, too: one for each env.
    assert (plan.documents, plan.streams, plan.complete) == (9, 0, True)
    assert (plan.source_backend_id, plan.target_backend_id, plan.envs) == ("a", "b", ("prod", "dev"))
    assert (await process.moves.list(OWNER)).items == ()
    assert process.directory.moves == {}


async def test_a_plan_says_that_its_target_cannot_be_used(open_process: Open, tmp_path: Path) -> None:
    process = await open_process()
    await process.backends.put(ADMIN, sqlite_backend(tmp_path / "missing", "closed"), condition=NEW)
    with pytest.raises(BackendRefused):
        await process.moves.plan(OWNER, "notes_store", "closed")


async def test_only_who_may_write_routes_moves_and_only_where_it_is_offered(
    open_process: Open, tmp_path: Path
) -> None:
    process = await open_process()
    others = msgspec.structs.replace(sqlite_backend(tmp_path, "theirs"), offered_to=("t_b",))
    await process.backends.put(ADMIN, others, condition=NEW)
    with pytest.raises(Forbidden):
        await process.moves.start(MEMBER, "notes_store", "b")
    with pytest.raises(Invalid):
        await process.moves.start(OWNER, "notes_store", "theirs")
    with pytest.raises(Invalid):
        await process.moves.start(OWNER, "notes_store", "nowhere")
    with pytest.raises(Invalid):
        await process.moves.start(OWNER, "notes_store", "a")
    with pytest.raises(Invalid):
        await process.moves.start(OWNER, "control_plane_store", "b")
    with pytest.raises(Invalid):
        await process.moves.start(ADMIN, "notes_store", "b")
    assert process.directory.moves == {}


async def test_a_move_is_its_tenants_own(open_process: Open) -> None:
    process = await open_process()
    stored = await process.moves.start(ADMIN_FOR_A, "notes_store", "b")
    await ended(process, stored.record.move_id)
    with pytest.raises(NotFound):
        await process.moves.get(context("t_b"), stored.record.move_id)
    with pytest.raises(NotFound):
        await process.moves.retire(context("t_b"), stored.record.move_id)
    assert [one.record.move_id for one in (await process.moves.list(OWNER)).items] == [stored.record.move_id]
    assert (await process.moves.list(context("t_b"))).items == ()


async def test_while_a_kind_is_moved_its_routes_stay_and_no_second_move_begins(open_process: Open) -> None:
    process = await open_process()
    stored = await process.moves.start(OWNER, "notes_store", "b")
    with pytest.raises(Conflict, match=stored.record.move_id):
        await process.moves.start(OWNER, "notes_store", "b")
    with pytest.raises(Conflict, match=stored.record.move_id):
        await process.routes.put(
            OWNER, "notes_store", "a", scope=RouteScope(env="dev"), options={}, condition=NEW
        )
    await process.moves.start(OWNER, "memory_store", "b")  # Another kind is another matter.
    await ended(process, stored.record.move_id)


async def test_a_move_that_is_cancelled_leaves_nothing_on_the_target(open_process: Open) -> None:
    process = await open_process()
    made = await process.notes.create(OWNER, NoteInput(content="here"))
    stored = await process.moves.start(OWNER, "notes_store", "b")
    await reached(process, stored.record.move_id, "copy")
    cancelled = await process.moves.cancel(OWNER, stored.record.move_id)
    assert cancelled.record.phase == "cancel"
    move, _ = await ended(process, stored.record.move_id)
    assert (move.phase, move.reason) == ("cancelled", "cancel by u1")
    target = await process.router.place("notes_store", OWNER)
    assert target.backend_id == "a"
    copies = await process.router.open_backend("b")
    for name in await target.partitions():
        page = await copies.documents.scan(f"{name}.g1", above="a", below="zz")
        assert page.docs == ()
        assert await copies.documents.get(f"{name}.g1", FENCE_KEY) is None
    assert (await process.notes.get(OWNER, made.record.note_id)).content == "here"
    with pytest.raises(Conflict):
        await process.moves.cancel(OWNER, stored.record.move_id)
    with pytest.raises(Conflict):
        await process.moves.retire(OWNER, stored.record.move_id)
    again = await process.moves.start(OWNER, "notes_store", "b")
    assert again.record.target_generation == 2


async def test_a_target_that_no_process_can_open_ends_the_move(
    open_process: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.routing.mover.PREPARE_S_MAX", 1.0)
    process = await open_process()
    nowhere = sqlite_backend(tmp_path / "no such directory", "nowhere")
    await process.backends.put(ADMIN, nowhere, condition=NEW)
    stored = await process.moves.start(OWNER, "notes_store", "nowhere")
    async with asyncio.timeout(30):
        move, _ = await ended(process, stored.record.move_id)
    assert move.phase == "cancelled"
    assert "cannot be used" in (move.reason or "")
    record = (await process.routes.resolve(OWNER, "notes_store")).route
    assert record.backend_id == "a"
    await process.notes.create(OWNER, NoteInput(content="all goes on"))


async def test_a_default_of_the_systems_that_leads_elsewhere_is_not_hidden_by_a_move(
    open_process: Open,
) -> None:
    process = await open_process()
    await process.routes.put(
        ADMIN, "notes_store", "b", scope=RouteScope(surface_id="chat"), options={}, condition=NEW
    )
    with pytest.raises(Conflict, match="default of t_system"):
        await process.moves.start(OWNER, "notes_store", "a")


async def test_the_phases_of_a_move_are_on_the_tenants_spine(open_process: Open) -> None:
    process = await open_process()
    stored = await process.moves.start(OWNER, "notes_store", "b", retire=False)
    await ended(process, stored.record.move_id)
    told: list[int] = []
    async with asyncio.timeout(20):
        async for batch in await process.spine.follow(OWNER):
            payloads = [event.payload or {} for event in batch]
            told += [said["version"] for said in payloads if said.get("action", "").startswith(MOVES.name)]
            if len(told) == 8:
                break
    assert told == list(range(1, 9))
    assert (await process.moves.list(OWNER, descending=True)).items[0].record.phase == "done"
    retired = await process.moves.retire(OWNER, stored.record.move_id)
    assert retired.record.phase == "retire"
    with pytest.raises(Conflict):
        await process.moves.retire(OWNER, stored.record.move_id)


async def test_routes_written_after_a_move_lead_to_what_was_moved(open_process: Open) -> None:
    process = await open_process()
    made = await process.notes.create(OWNER, NoteInput(content="moved"))
    stored = await process.moves.start(OWNER, "notes_store", "b")
    await ended(process, stored.record.move_id)
    scope = RouteScope(surface_id="chat")
    await process.routes.put(OWNER, "notes_store", "b", scope=scope, options={}, condition=NEW)
    assert (await process.notes.get(OWNER, made.record.note_id)).content == "moved"
    await process.routes.put(OWNER, "notes_store", "a", scope=scope, options={}, condition=ANYTHING_THERE)
    with pytest.raises(NotFound):  # Elsewhere is elsewhere, and nowhere is what was left behind.
        await process.notes.get(OWNER, made.record.note_id)
    await process.routes.delete(OWNER, "notes_store", scope, condition=ANYTHING_THERE)
    assert (await process.notes.get(OWNER, made.record.note_id)).content == "moved"
    with pytest.raises(Conflict, match="left behind"):
        await process.routes.delete(OWNER, "notes_store", RouteScope(), condition=ANYTHING_THERE)


async def test_a_route_without_which_other_routes_lead_to_what_was_left_behind_stays(
    open_process: Open, tmp_path: Path
) -> None:
    process = await open_process()
    await process.backends.put(ADMIN, sqlite_backend(tmp_path, "c"), condition=NEW)
    await process.routes.put(OWNER, "notes_store", "c", scope=RouteScope(), options={}, condition=NEW)
    scope = RouteScope(surface_id="chat")
    await process.routes.put(OWNER, "notes_store", "a", scope=scope, options={}, condition=NEW)
    stored = await process.moves.start(OWNER, "notes_store", "b")
    await ended(process, stored.record.move_id)
    with pytest.raises(Conflict, match="left behind"):
        await process.routes.delete(OWNER, "notes_store", RouteScope(), condition=ANYTHING_THERE)


async def test_a_request_for_a_move_that_is_repeated_gets_its_first_answer(open_process: Open) -> None:
    process = await open_process()
    request = identify("move", "once", body=b"")
    stored = await process.moves.start(OWNER, "notes_store", "b", request=request)
    await ended(process, stored.record.move_id)
    again = await process.moves.start(OWNER, "notes_store", "b", request=request)
    assert again.record.move_id == stored.record.move_id


async def test_what_was_not_moved_is_not_removed(open_process: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """An env that the tenant did not have while it was moved, and has again."""
    monkeypatch.setattr("engines.routing.mover.RETIRE_AFTER_S", 0.0)
    process = await open_process()
    in_dev = msgspec.structs.replace(OWNER, env="dev")
    made = await process.notes.create(in_dev, NoteInput(content="kept"))
    source = await process.router.place("notes_store", in_dev)
    partitions = [str(name) for name in await source.partitions()]

    async def left() -> int:
        pages = [await source.documents.scan(name, above="a", below="zz") for name in partitions]
        return sum(made.record.note_id in doc.key for page in pages for doc in page.docs)

    assert await left() == 1
    await process.tenants.patch(OWNER, "t_a", {"envs": ["prod"]}, condition=ANYTHING_THERE)
    stored = await process.moves.start(OWNER, "notes_store", "b")
    move, _ = await ended(process, stored.record.move_id)
    assert (move.phase, move.envs) == ("done", ("prod",))
    await process.tenants.patch(OWNER, "t_a", {"envs": ["prod", "dev"]}, condition=ANYTHING_THERE)
    await process.moves.retire(OWNER, stored.record.move_id)
    move, _ = await ended(process, stored.record.move_id)
    assert move.phase == "retired"
    assert await left() == 1


async def test_what_lies_on_a_backend_that_is_gone_is_not_retired(open_process: Open, tmp_path: Path) -> None:
    process = await open_process()
    await process.backends.put(ADMIN, sqlite_backend(tmp_path, "c"), condition=NEW)
    await process.routes.put(OWNER, "notes_store", "c", scope=RouteScope(), options={}, condition=NEW)
    stored = await process.moves.start(OWNER, "notes_store", "b")
    await ended(process, stored.record.move_id)
    await process.backends.delete(ADMIN, "c", condition=ANYTHING_THERE)
    with pytest.raises(Conflict, match="not there any more"):
        await process.moves.retire(OWNER, stored.record.move_id)


async def test_what_cannot_be_removed_is_left_and_said(
    open_process: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the kind's routes would stay locked for ever."""
    monkeypatch.setattr("engines.routing.mover.RETIRE_AFTER_S", 0.0)
    monkeypatch.setattr("engines.routing.mover.PAUSE_AFTER_FAILURE_S", 0.1)
    monkeypatch.setattr("engines.routing.mover.REMOVAL_REFUSED_S", 0.5)
    process = await open_process()
    await process.backends.put(ADMIN, sqlite_backend(tmp_path, "c"), condition=NEW)
    await process.routes.put(OWNER, "notes_store", "c", scope=RouteScope(), options={}, condition=NEW)
    await process.notes.create(OWNER, NoteInput(content="moved"))
    stored = await process.moves.start(OWNER, "notes_store", "b")
    await ended(process, stored.record.move_id)
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db", timeout=10)) as connection:
        connection.execute("DROP TABLE documents")
    await process.moves.retire(OWNER, stored.record.move_id)
    move, _ = await ended(process, stored.record.move_id)
    assert move.phase == "done"
    assert "not everything could be removed" in (move.reason or "")
    assert process.directory.moves == {}


async def test_a_move_whose_last_step_failed_arrives_all_the_same(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some partitions are finished then, which nobody may claim again."""
    process = await open_process()
    await process.notes.create(OWNER, NoteInput(content="here"))
    finish, failures = PartitionTransfer.finish, iter([Unavailable("not now"), Unavailable("nor now")])

    async def finish_or_fail(transfer: PartitionTransfer) -> None:
        await finish(transfer)
        for failure in failures:
            raise failure

    monkeypatch.setattr(PartitionTransfer, "finish", finish_or_fail)
    stored = await process.moves.start(OWNER, "notes_store", "b")
    move, progress = await ended(process, stored.record.move_id, timeout_s=30)
    assert move.phase == "done", progress


async def test_a_move_between_backends_on_which_no_round_is_short_goes_on(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where even an empty round takes long, repeating it brings the fence no nearer."""
    monkeypatch.setattr("engines.routing.mover.ROUND_S", 0.0)
    monkeypatch.setattr("engines.routing.mover.ROUNDS_MAX", 1_000_000)
    process = await open_process()
    await process.notes.create(OWNER, NoteInput(content="here"))
    stored = await process.moves.start(OWNER, "notes_store", "b")
    move, progress = await ended(process, stored.record.move_id, timeout_s=20)
    assert move.phase == "done", progress
