"""Rules of writing and reading one note."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engines.core.idempotency import Request, identify
from engines.core.records import RECORD_BYTES_MAX, Condition
from engines.errors import (
    ContextMismatch,
    IdempotencyKeyReused,
    Invalid,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    TooLarge,
)
from engines.stores.notes import (
    TAG_CHARS_MAX,
    TAGS_MAX,
    TITLE_CHARS_MAX,
    NoteInput,
    Notes,
    NoteSourceInput,
)
from engines.testing.faults import Fault
from tests.stores.home import Home, context
from tests.stores.samples import note


def keyed(key: str, body: bytes = b"{}") -> Request:
    return identify("t_one", "prod", "ada", "POST", "/notes", key, body=body)


def matching(etag: str) -> Condition:
    return Condition(versions=(etag.strip('"'),))


class TestCreate:
    async def test_a_note_shows_the_contract_s_data_model(self, notes: Notes) -> None:
        made = (await notes.create(context(), note(title="Shopping", tags=("home",)))).record
        assert made.tenant_id == "t_one"
        assert made.mode == "saas"
        assert made.user_id == "ada"
        assert made.surface_id == "chat"
        assert made.project_id is None
        assert made.title == "Shopping"
        assert made.content == "milk"
        assert made.content_type == "markdown"
        assert made.tags == ("home",)
        assert made.source.created_by == "user"
        assert made.source.run_id == "run-1"
        assert made.timestamps.created_at == made.timestamps.updated_at == "2027-01-15T08:00:00.000Z"

    async def test_what_create_returns_is_what_get_finds(self, notes: Notes) -> None:
        change = await notes.create(context(), note("Æther 💡 \x00 \u2028", title="ñ"))
        assert change.created
        assert not change.replayed
        assert change.etag == change.record.etag
        assert await notes.get(context(), change.record.note_id) == change.record

    async def test_creating_is_one_write_and_no_read(self, home: Home, notes: Notes) -> None:
        await notes.create(context(), note())
        home.driver.calls.clear()
        await notes.create(context(), note())
        assert home.driver.calls == ["write"]

    async def test_getting_is_one_read(self, home: Home, notes: Notes) -> None:
        note_id = (await notes.create(context(), note())).record.note_id
        home.driver.calls.clear()
        await notes.get(context(), note_id)
        assert home.driver.calls == ["get"]

    @pytest.mark.parametrize(
        "content", [None, 0, False, {"a": [1, {"b": None}]}, [], "text", 2**64 - 1, -(2**63), 0.1]
    )
    async def test_a_json_note_keeps_any_json(self, notes: Notes, content: Any) -> None:
        made = await notes.create(context(), note(content, content_type="json"))
        found = await notes.get(context(), made.record.note_id)
        assert found.content == content
        assert type(found.content) is type(content)

    @pytest.mark.parametrize("content_type", ["markdown", "text"])
    async def test_text_notes_hold_text_alone(self, notes: Notes, content_type: str) -> None:
        with pytest.raises(Invalid) as refusal:
            await notes.create(context(), note({"a": 1}, content_type=content_type))
        assert refusal.value.field == "content"

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"title": "x" * (TITLE_CHARS_MAX + 1)}, "title"),
            ({"tags": ("x",) * (TAGS_MAX + 1)}, "tags"),
            ({"tags": ("x" * (TAG_CHARS_MAX + 1),)}, "tags[0]"),
            ({"tags": ("",)}, "tags[0]"),
            ({"content_type": "html"}, "content_type"),
            ({"content": float("nan"), "content_type": "json"}, "content"),
            ({"content": 2**64, "content_type": "json"}, "content"),
            ({"source": NoteSourceInput(agent_id="../a")}, "source.agent_id"),
            ({"source": NoteSourceInput(run_id="a b")}, "source.run_id"),
            ({"source": NoteSourceInput(agent_id="x" * 129)}, "source.agent_id"),
            ({"source": NoteSourceInput(created_by="robot")}, "source.created_by"),  # type: ignore[arg-type]
        ],
    )
    async def test_what_breaks_a_rule_is_refused_by_field(
        self, home: Home, notes: Notes, fields: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await notes.create(context(), NoteInput(**{"content": "x"} | fields))
        assert refusal.value.field == field
        assert "write" not in home.driver.calls

    async def test_each_limit_itself_is_admitted(self, notes: Notes) -> None:
        tags = tuple(f"{number:0{TAG_CHARS_MAX}d}" for number in range(TAGS_MAX))
        made = await notes.create(context(), note(title="é" * TITLE_CHARS_MAX, tags=tags))
        assert (await notes.get(context(), made.record.note_id)).tags == tags

    async def test_a_note_past_the_size_of_a_record_is_too_large(self, notes: Notes) -> None:
        room = RECORD_BYTES_MAX - 1_000
        made = await notes.create(context(), note("é" * (room // 2)))
        assert len((await notes.get(context(), made.record.note_id)).content) == room // 2
        with pytest.raises(TooLarge):
            await notes.create(context(), note("é" * (RECORD_BYTES_MAX // 2)))

    async def test_a_lone_surrogate_is_refused_before_anything_is_written(
        self, home: Home, notes: Notes
    ) -> None:
        await notes.list(context())
        home.driver.calls.clear()
        with pytest.raises(Invalid):
            await notes.create(context(), note("\udc00"))
        assert home.driver.calls == []

    async def test_a_note_made_by_an_agent_says_so(self, notes: Notes) -> None:
        agent = context(user_id="bot-7", roles=("agent",))
        source = (await notes.create(agent, note())).record.source
        assert (source.created_by, source.agent_id, source.run_id) == ("agent", "bot-7", "run-1")

    async def test_an_agent_cannot_pass_for_a_user(self, notes: Notes) -> None:
        with pytest.raises(ContextMismatch) as refusal:
            await notes.create(context(roles=("agent",)), note(source=NoteSourceInput(created_by="user")))
        assert refusal.value.field == "source.created_by"

    async def test_a_user_may_name_the_agent_and_run_that_wrote_for_them(self, notes: Notes) -> None:
        told = NoteSourceInput(created_by="agent", agent_id="scribe", run_id="run-9")
        source = (await notes.create(context(), note(source=told))).record.source
        assert (source.created_by, source.agent_id, source.run_id) == ("agent", "scribe", "run-9")


class TestReplace:
    async def test_a_put_replaces_contents_and_keeps_what_the_note_is(self, home: Home, notes: Notes) -> None:
        made = (await notes.create(context(project_id="p1"), note(title="a", tags=("t",)))).record
        home.clock.advance(60)
        elsewhere = context(surface_id="canvas", run_id="run-2")
        change = await notes.replace(elsewhere, made.note_id, note("eggs"))
        assert not change.created
        left = await notes.get(context(), made.note_id)
        assert left == change.record
        assert (left.title, left.content, left.tags) == ("", "eggs", ())
        assert (left.surface_id, left.project_id, left.source) == ("chat", "p1", made.source)
        assert left.timestamps.created_at == made.timestamps.created_at
        assert left.timestamps.updated_at == "2027-01-15T08:01:00.000Z"
        assert left.run_id == "run-2"
        assert left.etag != made.etag

    async def test_a_put_never_makes_a_note(self, notes: Notes) -> None:
        with pytest.raises(NotFound):
            await notes.replace(context(), "019ff000-0000-7000-8000-000000000000", note())

    async def test_a_put_may_repeat_the_source_and_not_change_it(self, notes: Notes) -> None:
        made = (await notes.create(context(), note())).record
        same = NoteSourceInput(created_by="user", run_id="run-1")
        await notes.replace(context(run_id="run-2"), made.note_id, note(source=same))
        with pytest.raises(Invalid) as refusal:
            await notes.replace(context(), made.note_id, note(source=NoteSourceInput(created_by="agent")))
        assert refusal.value.field == "source"

    async def test_if_match_with_the_shown_etag_replaces(self, notes: Notes) -> None:
        made = (await notes.create(context(), note())).record
        change = await notes.replace(context(), made.note_id, note("2"), condition=matching(made.etag))
        with pytest.raises(PreconditionFailed):
            await notes.replace(context(), made.note_id, note("3"), condition=matching(made.etag))
        assert (await notes.get(context(), made.note_id)).etag == change.etag

    async def test_if_match_on_a_missing_note_fails_its_condition(self, notes: Notes) -> None:
        with pytest.raises(PreconditionFailed):
            await notes.replace(context(), "nobody", note(), condition=Condition(versions=("*",)))
        with pytest.raises(PreconditionFailed):
            await notes.delete(context(), "nobody", condition=Condition(versions=("*",)))

    async def test_without_a_condition_every_writer_succeeds_and_one_state_stands(self, notes: Notes) -> None:
        made = (await notes.create(context(), note())).record
        changes = await asyncio.gather(
            *(notes.replace(context(), made.note_id, note(str(number))) for number in range(8))
        )
        left = await notes.get(context(), made.note_id)
        assert left in [change.record for change in changes]
        assert len({change.etag for change in changes}) == 8


class TestDelete:
    async def test_a_deleted_note_is_gone(self, notes: Notes) -> None:
        note_id = (await notes.create(context(), note())).record.note_id
        assert not (await notes.delete(context(), note_id)).replayed
        with pytest.raises(NotFound):
            await notes.get(context(), note_id)
        with pytest.raises(NotFound):
            await notes.delete(context(), note_id)

    async def test_if_match_guards_a_deletion(self, notes: Notes) -> None:
        made = (await notes.create(context(), note())).record
        await notes.replace(context(), made.note_id, note("2"))
        with pytest.raises(PreconditionFailed):
            await notes.delete(context(), made.note_id, condition=matching(made.etag))
        assert (await notes.get(context(), made.note_id)).content == "2"


class TestRepeats:
    async def test_the_same_request_again_gets_its_first_answer(self, home: Home, notes: Notes) -> None:
        first = await notes.create(context(), note(), request=keyed("k"))
        home.clock.advance(5)
        again = await notes.create(context(), note(), request=keyed("k"))
        assert again.replayed
        assert again.created
        assert again.record == first.record
        assert len((await notes.list(context())).items) == 1

    async def test_another_body_under_the_same_key_is_refused(self, notes: Notes) -> None:
        await notes.create(context(), note(), request=keyed("k"))
        with pytest.raises(IdempotencyKeyReused):
            await notes.create(context(), note("other"), request=keyed("k", b"other"))

    async def test_a_repeat_answers_as_at_first_after_the_note_changed_or_went(self, notes: Notes) -> None:
        first = await notes.create(context(), note(), request=keyed("k"))
        await notes.replace(context(), first.record.note_id, note("new"))
        assert (await notes.create(context(), note(), request=keyed("k"))).record == first.record
        await notes.delete(context(), first.record.note_id)
        assert (await notes.create(context(), note(), request=keyed("k"))).record == first.record
        assert (await notes.list(context())).items == ()

    async def test_a_repeated_deletion_succeeds(self, notes: Notes) -> None:
        note_id = (await notes.create(context(), note())).record.note_id
        await notes.delete(context(), note_id, request=keyed("d"))
        assert (await notes.delete(context(), note_id, request=keyed("d"))).replayed

    async def test_requests_at_once_under_one_key_make_one_note(self, notes: Notes) -> None:
        changes = await asyncio.gather(
            *(notes.create(context(), note(), request=keyed("k")) for _ in range(8))
        )
        assert len({change.record.note_id for change in changes}) == 1
        assert [change.replayed for change in changes].count(False) == 1
        assert len((await notes.list(context())).items) == 1

    async def test_a_key_is_free_again_after_a_day(self, home: Home, notes: Notes) -> None:
        await notes.create(context(), note(), request=keyed("k"))
        home.clock.advance(24 * 3600 - 1)
        assert (await notes.create(context(), note(), request=keyed("k"))).replayed
        home.clock.advance(1)
        assert not (await notes.create(context(), note(), request=keyed("k"))).replayed

    async def test_keys_of_two_users_are_two_keys(self, notes: Notes) -> None:
        await notes.create(context(), note(), request=keyed("k"))
        theirs = identify("t_one", "prod", "bob", "POST", "/notes", "k", body=b"{}")
        assert not (await notes.create(context(user_id="bob"), note(), request=theirs)).replayed


class TestFaults:
    @pytest.mark.parametrize("fault", [Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.REFUSED, Fault.LATE])
    @pytest.mark.parametrize("request_key", [None, keyed("k")])
    async def test_whatever_happens_to_the_reply_one_note_is_made(
        self, home: Home, notes: Notes, fault: Fault, request_key: Request | None
    ) -> None:
        await notes.list(context())
        home.faults.script(fault)
        made = await notes.create(context(), note(), request=request_key)
        await home.faults.late_writes_delivered()
        assert home.faults.seen[fault] == 1
        assert (await notes.list(context())).items == (made.record,)

    async def test_a_cancelled_creation_is_made_whole_by_repeating_it(self, home: Home, notes: Notes) -> None:
        await notes.list(context())
        held = home.faults.hold_next_write()
        task = asyncio.create_task(notes.create(context(), note(), request=keyed("k")))
        await held.arrived()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        again = await notes.create(context(), note(), request=keyed("k"))
        assert (await notes.list(context())).items == (again.record,)

    async def test_a_deletion_whose_reply_was_lost_says_that_nobody_knows(
        self, home: Home, notes: Notes
    ) -> None:
        note_id = (await notes.create(context(), note())).record.note_id
        home.faults.script(Fault.LOST_APPLIED)
        with pytest.raises(OutcomeUnknown):
            await notes.delete(context(), note_id)
        with pytest.raises(NotFound):
            await notes.get(context(), note_id)

    async def test_notes_survive_a_restart_with_their_etags(self, home: Home, notes: Notes) -> None:
        made = (await notes.create(context(), note())).record
        await home.reopen()
        assert await Notes(home, home.ids, home.clock).get(context(), made.note_id) == made
