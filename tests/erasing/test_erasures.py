"""A user is erased from a tenant: all that is theirs goes, nothing else, and whoever asks again goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

import engines
from engines.agent.messages import MessageInput
from engines.agent.telemetry import TokensQuery
from engines.control import subjects
from engines.control.records import Project, Surface
from engines.core.listing import Window
from engines.core.records import Condition
from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.errors import Conflict, Forbidden, NotFound, Throttled
from engines.routing import erasures
from engines.scope import RequestContext, RouteScope
from engines.stores import erasing
from engines.stores.budget_records import HEAD_KEY, UsageInput
from engines.stores.budget_summary import SummaryQuery
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.erasing import ERASED, Taken
from engines.stores.event_records import Event
from engines.stores.events import EventFilter
from engines.stores.notes import NoteInput
from tests.backends import session_backend
from tests.contexts import ADMIN, context
from tests.erasing.conftest import (
    ADA,
    APPENDED,
    BOB,
    NEW,
    OWNER,
    Found,
    Open,
    all_documents,
    decide,
    join,
    leave_everything,
    make_deployment,
    mentioning,
    sqlite_backend,
    told_documents,
)
from tests.moves.conftest import ended

NAME = ADA.user_id
AGENT_KINDS = ("session_store", "checkpoint_store", "trace_store", "agent_memory_store", "telemetry_store")
ALL = Window(limit=1_000)


async def erased(process: engines.Engines, user_id: str = NAME, *, call_s: float = 30.0) -> int:
    """The user is gone; after so many calls."""
    calls = 0
    while True:
        calls += 1
        stored = await process.erasures.erase(OWNER, user_id, call_s=call_s)
        erasure = stored.record.erasure
        assert erasure is not None
        if erasure.state == "erased":
            assert (erasure.found, erasure.step, erasure.after) == (0, None, None)
            return calls


async def events_of(process: engines.Engines, who: RequestContext) -> list[Event]:
    return list((await process.spine.list(who, EventFilter(user_id=who.user_id), window=ALL)).items)


def beside_the_spine(documents: Found) -> Found:
    """The spine's documents hold several people's events, and are told of every change meanwhile."""
    return {at: doc for at, doc in documents.items() if not at[1].startswith("event_spine")}


async def check_gone(process: engines.Engines) -> None:
    """Nothing that is stored says who Ada was, but the record that she left and was erased."""
    documents = await all_documents(process, OWNER)
    left = mentioning(documents, NAME)
    assert {at[1].split(".")[0] for at in left} <= {"event_spine"}
    assert await events_of(process, ADA) == []
    named = [
        event
        for event in (await process.spine.list(OWNER, EventFilter(), window=ALL)).items
        if NAME in msgspec.json.encode(event).decode()
    ]
    told = {(event.user_id, (event.payload or {})["action"]) for event in named}
    assert {who for who, _ in told} == {OWNER.user_id, ADMIN.user_id} or {who for who, _ in told} == {
        OWNER.user_id
    }
    assert {action.split(".")[0] for _, action in told} <= {"memberships", "keys", "data_subjects"}
    assert ("u1", "data_subjects.created") in told
    assert (await process.spine.verify(OWNER)).ok


@pytest.mark.parametrize("driver", DOCUMENT_DRIVERS)
async def test_all_of_a_users_goes_and_nothing_of_anybody_elses(
    driver: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite://{tmp_path}/control.db"
    await make_deployment(url, session_backend(request, driver, "a"), sqlite_backend(tmp_path, "b"))
    async with engines.open(url) as process:
        for who in (ADA, BOB):
            await join(process, who)
            await leave_everything(process, who)
        await decide(process)
        before = await told_documents(process, OWNER)
        bobs = await events_of(process, BOB)
        assert len(bobs) > APPENDED
        await erased(process)
        await check_gone(process)
        after = await all_documents(process, OWNER)
        touched = mentioning(before, NAME)
        untouched = {at: doc for at, doc in beside_the_spine(before).items() if at not in touched}
        # Of the budget's head only what it says of the policy, which she wrote.
        del untouched[next(at for at in untouched if at[2] == HEAD_KEY)]
        assert len(untouched) > 30
        for kind in AGENT_KINDS:
            theirs = {at: doc for at, doc in before.items() if at[1].startswith(f"{kind}.")}
            assert mentioning(theirs, NAME), kind
            assert mentioning({at: theirs[at] for at in theirs.keys() & untouched.keys()}, "bob"), kind
        assert {at: after.get(at) for at in untouched} == untouched
        assert (await events_of(process, BOB))[: len(bobs)] == bobs
        await _check_what_is_shared(process)


async def _check_what_is_shared(process: engines.Engines) -> None:
    summary = await process.budget.summary(OWNER, SummaryQuery(verify=True))
    assert summary.verification is not None
    assert summary.verification.ok
    assert (summary.total.entries, summary.total.cost) == (2, "2.50")
    entries = {entry.user_id: entry.note for entry in (await process.budget.usage(OWNER)).items}
    assert entries == {ERASED: ERASED, "bob": "bob's lunch"}
    await _check_conversations(process)
    row = await process.tables.get(OWNER, "people", "all", "bob")
    assert row.user_id == "bob"
    with pytest.raises(NotFound):
        await process.tables.get(OWNER, "people", "all", NAME)
    theme = await process.tables.get(OWNER, "config", "theme", f"by{len(NAME)}")
    assert (theme.user_id, theme.value) == (ERASED, {"dark": True})
    entry = await process.blackboard.get(OWNER, "run", f"key-{len(NAME)}")
    assert (entry.user_id, entry.value, entry.version) == (ERASED, None, 2)
    approvals = {one.requested_by: one.reason for one in (await process.approvals.list(OWNER)).items}
    assert approvals == {ERASED: ERASED, "bob": "bob asks"}
    assert (await process.budget.record(BOB, UsageInput(cost="1"))).record.position == 3
    rooms = process.realtime
    (bob,) = (await rooms.list(OWNER, "thread", "hers")).items
    assert (bob.user_id, bob.role, bob.created_by) == ("bob", "writer", ERASED)
    assert {one.user_id: one.created_by for one in (await rooms.list(OWNER, "canvas", "ours")).items} == {
        OWNER.user_id: OWNER.user_id,
        "eve": OWNER.user_id,
    }
    lock = (await process.definitions.get(BOB, SCHEMA_NAMED["strategy-locks"], "lock")).state
    assert lock is not None
    assert (lock["status"], lock["proposed_by"], lock["decided_by"]) == ("approved", ["bob"], ERASED)
    assert lock["review"]["reviewers"] == [ERASED, "eve"]


async def _check_conversations(process: engines.Engines) -> None:
    """Hers are gone; his are there, and go on."""
    agent = process.agent
    assert (await agent.sessions.list(ADA)).items == ()
    assert (await agent.memory.list(ADA, "long_term")).items == ()
    assert (await agent.telemetry.report(ADA, TokensQuery())).total.calls == 0
    first, fork = (await agent.sessions.list(BOB)).items
    assert (first.title, fork.title, fork.status) == ("first of bob", "first of bob", "active")
    for session in (first, fork):
        said = (await agent.messages.list(BOB, session.session_id)).items
        assert [message.content for message in said] == [f"bob said {number}" for number in range(3)]
        (saved,) = (await agent.checkpoints.list(BOB, session.session_id)).items
        assert (saved.state, saved.messages) == ({"of": "bob"}, 3)
    (turn,) = (await agent.traces.list(BOB, first.session_id)).items
    assert turn.attributes == {"of": "bob"}
    more = await agent.messages.append(BOB, fork.session_id, MessageInput(role="user", content="more"))
    assert more.record.number == 4
    assert (await agent.memory.get(BOB, "long_term", "k")).value == "bob likes tea"
    assert (await agent.telemetry.report(BOB, TokensQuery())).total.tokens_in == 10


async def test_what_is_interrupted_anywhere_goes_on_and_ends(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call is over after a few small pages; every other one is made by another process."""
    for name, size in (("PAGE_DOCS", 5), ("PAGE_EVENTS", 30), ("REDACTIONS_MAX", 8)):
        monkeypatch.setattr(erasing, name, size)
    process, other = await open_process(), await open_process()
    await join(process, ADA)
    await leave_everything(process, ADA)
    calls = 0
    while True:
        calls += 1
        stored = await (process, other)[calls % 2].erasures.erase(OWNER, NAME, call_s=0.0)
        assert stored.record.erasure is not None
        if stored.record.erasure.state == "erased":
            break
    assert calls > 5, "one call did nearly all of it"
    await check_gone(process)


async def test_a_call_that_is_cut_off_loses_nothing(open_process: Open) -> None:
    process = await open_process()
    await join(process, ADA)
    await leave_everything(process, ADA)
    for pause_s in (0.005, 0.02, 0.08):
        cut = asyncio.create_task(process.erasures.erase(OWNER, NAME))
        await asyncio.sleep(pause_s)
        cut.cancel()
        await asyncio.gather(cut, return_exceptions=True)
    await erased(process)
    await check_gone(process)


async def test_two_who_erase_at_once_both_end(open_process: Open) -> None:
    process, other = await open_process(), await open_process()
    await join(process, ADA)
    await leave_everything(process, ADA)
    await asyncio.gather(erased(process), erased(other))
    await check_gone(process)


async def test_the_membership_ends_first_and_what_was_under_way_is_found(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pass that began while a request of hers may have been under way proves that all is gone."""
    monkeypatch.setattr(subjects, "SETTLE_S", 2.0)
    process = await open_process()
    await join(process, ADA)
    began_s = process.clock.monotonic()
    under_way = asyncio.create_task(erased(process))
    generation = process.directory.generation
    while (await process.directory.membership("t_a", NAME)) is not None:
        await process.directory.changed(generation)
        generation = process.directory.generation
    late = await process.notes.create(ADA, NoteInput(content="let in before"))
    await under_way
    assert process.clock.monotonic() - began_s >= 2.0
    with pytest.raises(NotFound):
        await process.notes.get(ADA, late.record.note_id)
    with pytest.raises(NotFound):
        await process.members.get(OWNER, "t_a", NAME)


async def test_a_hold_stops_what_is_under_way_and_what_would_begin(open_process: Open) -> None:
    process = await open_process()
    await join(process, ADA)
    await leave_everything(process, ADA)
    for _ in range(3):
        await process.erasures.erase(OWNER, NAME, call_s=0.0)
    await process.subjects.hold(OWNER, NAME, "a case is pending")
    left = await told_documents(process, OWNER)
    with pytest.raises(Conflict, match="a case is pending") as refused:
        await process.erasures.erase(OWNER, NAME)
    assert refused.value.reason_code == subjects.LEGAL_HOLD
    assert beside_the_spine(await all_documents(process, OWNER)) == beside_the_spine(left)
    await process.subjects.lift(OWNER, NAME)
    await erased(process)
    await check_gone(process)


async def test_a_hold_that_comes_during_a_call_stops_it_at_its_next_page(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, other = await open_process(), await open_process()
    await join(process, ADA)
    await leave_everything(process, ADA)
    at_work = process.erasures._erasing
    take, taken = at_work.take, 0

    async def take_and_hold(*args: Any) -> Taken:
        nonlocal taken
        taken += 1
        is_first = taken == 1
        done = await take(*args)
        if is_first:
            await other.subjects.hold(OWNER, NAME, "wait")
        return done

    monkeypatch.setattr(at_work, "take", take_and_hold)
    with pytest.raises(Conflict) as refused:
        await process.erasures.erase(OWNER, NAME)
    assert refused.value.reason_code == subjects.LEGAL_HOLD
    assert taken <= erasures.STEPS_AT_ONCE
    assert len((await process.notes.list(ADA)).items) == 1
    assert len(await events_of(process, ADA)) > APPENDED


async def test_every_place_that_a_route_leads_to_is_looked_through(open_process: Open) -> None:
    process = await open_process()
    await join(process, ADA)
    await process.projects.create(OWNER, Project(project_id="p1", name="One"))
    await process.routes.put(
        OWNER, "notes_store", "b", scope=RouteScope(project_id="p1"), options={}, condition=NEW
    )
    elsewhere = msgspec.structs.replace(ADA, project_id="p1")
    dev = msgspec.structs.replace(ADA, env="dev")
    places = (ADA, elsewhere, dev)
    notes = [(who, await process.notes.create(who, NoteInput(content="x"))) for who in places]
    assert (await process.router.place("notes_store", elsewhere)).backend_id == "b"
    await erased(process)
    for who, note in notes:
        with pytest.raises(NotFound):
            await process.notes.get(who, note.record.note_id)


async def test_a_move_that_left_a_copy_is_retired_first_and_a_pass_beside_it_proves_nothing(
    open_process: Open,
) -> None:
    process = await open_process()
    await join(process, ADA)
    await leave_everything(process, ADA)
    begun = (await process.erasures.erase(OWNER, NAME, call_s=0.0)).record.erasure
    assert begun is not None
    moved = await process.moves.start(OWNER, "notes_store", "b")
    await ended(process, moved.record.move_id)
    with pytest.raises(Conflict, match=moved.record.move_id) as refused:
        await process.erasures.erase(OWNER, NAME)
    assert refused.value.reason_code == "not_retired"
    await process.moves.retire(OWNER, moved.record.move_id)
    generation = process.directory.generation
    while (await process.moves.get(OWNER, moved.record.move_id))[0].record.phase != "retired":
        await process.directory.changed(generation)
        generation = process.directory.generation
    # What is left of the pass finds nothing any more, but it began before the move.
    clean = msgspec.structs.replace(begun, found=0)
    assert await process.subjects.complete(OWNER, NAME, clean) is None
    await erased(process)
    await check_gone(process)


async def test_a_surface_of_another_mode_stands_in_nobodys_way(open_process: Open) -> None:
    process = await open_process()
    await join(process, ADA)
    surface = Surface(surface_id="shop", os_id="engines", name="Shop", mode="saas")
    await process.surfaces.create(ADMIN, surface)
    await process.notes.create(ADA, NoteInput(content="x"))
    await erased(process)


async def test_who_is_let_in_again_meanwhile_is_not_called_erased(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await open_process()
    await join(process, ADA)
    complete = process.subjects.complete
    let_in: list[Any] = []

    async def complete_late(*args: Any) -> Any:
        if not let_in:
            await process.members.put(OWNER, "t_a", NAME, "member")
            await process.members.accept(NAME, "t_a", request_id="r")
            let_in.append(await process.notes.create(ADA, NoteInput(content="back")))
            done = await complete(*args)
            assert done is None, "she belongs to the tenant"
            return done
        return await complete(*args)

    monkeypatch.setattr(process.subjects, "complete", complete_late)
    await erased(process, call_s=2.0)
    with pytest.raises(NotFound):
        await process.notes.get(ADA, let_in[0].record.note_id)


async def test_an_earlier_call_does_not_end_a_later_erasure(open_process: Open) -> None:
    process = await open_process()
    await join(process, ADA)
    earlier = (await process.subjects.begin(OWNER, NAME)).record.erasure
    assert earlier is not None
    await process.members.put(OWNER, "t_a", NAME, "member")
    later = (await process.subjects.begin(OWNER, NAME)).record.erasure
    assert later is not None
    assert later.final_from_s > earlier.final_from_s
    passed = msgspec.structs.replace(earlier, pass_began_s=process.clock.now())
    assert await process.subjects.complete(OWNER, NAME, passed) is None
    assert (await process.subjects.keep(OWNER, NAME, passed)).record.erasure == later


async def test_what_the_control_plane_is_still_to_tell_of_them_is_waited_for(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message of hers may be delivered after a pass read the spine: such a pass proves nothing."""
    process = await open_process()
    await join(process, ADA)
    await erased(process)
    counted = [1, 1, 0, 0, 0]

    async def waiting(*_: Any) -> int:
        return counted.pop(0)

    monkeypatch.setattr(process.subjects, "waiting", waiting)
    stored = await process.erasures.erase(OWNER, NAME, call_s=60.0)
    assert stored.record.erasure is not None
    assert (stored.record.erasure.state, stored.record.erasure.passes) == ("erased", 3)


async def test_one_tenant_has_one_at_a_time_and_a_process_few(open_process: Open) -> None:
    process = await open_process()
    await join(process, ADA)
    await join(process, BOB)
    first = asyncio.create_task(process.erasures.erase(OWNER, NAME))
    await asyncio.sleep(0)
    with pytest.raises(Throttled) as refused:
        await process.erasures.erase(OWNER, "bob")
    assert refused.value.retry_after_s
    await first
    await erased(process, "bob")


async def test_who_may(open_process: Open) -> None:
    process = await open_process()
    await join(process, ADA)
    for call in (process.erasures.erase, process.subjects.get, process.subjects.lift):
        with pytest.raises(Forbidden):
            await call(context("t_a", user_id="bob", roles=("member",), permissions=frozenset()), NAME)
    with pytest.raises(Forbidden):
        await process.subjects.hold(context("t_a", permissions=frozenset()), NAME, "x")
    may_revoke = context("t_a", permissions=OWNER.permissions - {"users.erase"})
    with pytest.raises(Forbidden, match="erase"):
        await process.erasures.erase(may_revoke, NAME)
    with pytest.raises(NotFound):
        await process.erasures.erase(OWNER, "nobody")
    with pytest.raises(NotFound):
        await process.erasures.erase(context("t_b"), NAME)
    with pytest.raises(Conflict, match="somebody else"):
        await process.erasures.erase(ADA, NAME)
    with pytest.raises(NotFound):
        await process.subjects.lift(OWNER, NAME)
    held = await process.subjects.hold(context("t_system", roles=("admin",), acting_on="t_a"), NAME, "x")
    assert held.record.tenant_id == "t_a"
    with pytest.raises(Conflict):
        await process.erasures.erase(OWNER, NAME)
    await process.subjects.lift(OWNER, NAME, condition=Condition(versions=(held.etag.strip('"'),)))


async def test_who_comes_back_can_be_erased_again_and_no_key_of_theirs_does(open_process: Open) -> None:
    process = await open_process()
    await join(process, ADA)
    for who in (ADA, BOB):
        if who is BOB:
            await join(process, BOB)
        made = await process.keys.create(
            OWNER, key_id=f"key{len(who.user_id)}", user_id=who.user_id, role="member", secret_sha256="0" * 64
        )
        assert made.record.user_id == who.user_id
    await erased(process)
    assert [key.record.user_id for key in (await process.keys.list(OWNER)).items] == ["bob"]
    await process.members.put(OWNER, "t_a", NAME, "member")
    await process.members.accept(NAME, "t_a", request_id="r")
    await leave_everything(process, ADA)
    await erased(process)
    await check_gone(process)
