"""Rules of the notes store."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from engines.core.idempotency import Request, identify
from engines.core.listing import Window
from engines.core.records import RECORD_BYTES_MAX, Condition
from engines.errors import (
    ContextMismatch,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    MissingRoute,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    TooLarge,
)
from engines.stores.notes import (
    TAG_CHARS_MAX,
    TAGS_MAX,
    TITLE_CHARS_MAX,
    Note,
    NoteFilter,
    NoteInput,
    Notes,
    NoteSourceInput,
)
from engines.testing.faults import Fault
from tests.stores.home import Home, context


@pytest.fixture
def notes(home: Home) -> Notes:
    return Notes(home, home.ids, home.clock)


def note(content: Any = "milk", **fields: Any) -> NoteInput:
    return NoteInput(content=content, **fields)


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


class TestOwnership:
    @pytest.mark.parametrize(
        "other", [{"user_id": "bob"}, {"user_id": "ad"}, {"tenant_id": "t_two"}, {"env": "staging"}]
    )
    async def test_for_anyone_else_a_note_is_not_there(self, notes: Notes, other: dict[str, str]) -> None:
        made = (await notes.create(context(), note())).record
        stranger = context(**other)
        with pytest.raises(NotFound):
            await notes.get(stranger, made.note_id)
        with pytest.raises(NotFound):
            await notes.replace(stranger, made.note_id, note("mine"))
        with pytest.raises(NotFound):
            await notes.delete(stranger, made.note_id)
        assert (await notes.list(stranger)).items == ()
        assert await notes.get(context(), made.note_id) == made

    async def test_a_note_is_found_by_id_whatever_surface_or_project_is_bound(self, notes: Notes) -> None:
        made = (await notes.create(context(project_id="p1"), note())).record
        assert await notes.get(context(surface_id="canvas", project_id="p2"), made.note_id) == made

    async def test_each_permission_is_asked_for(self, home: Home, notes: Notes) -> None:
        reader = context(permissions=frozenset({"notes.read"}))
        writer = context(permissions=frozenset({"notes.write"}))
        for call in (
            notes.create(reader, note()),
            notes.replace(reader, "x", note()),
            notes.delete(reader, "x"),
            notes.get(writer, "x"),
            notes.list(writer),
        ):
            with pytest.raises(Forbidden):
                await call
        assert home.driver.calls == []

    async def test_data_is_never_reached_from_another_tenant(self, notes: Notes) -> None:
        with pytest.raises(ContextMismatch):
            await notes.list(context(tenant_id="t_system", roles=("admin",), acting_on="t_one"))

    async def test_identity_in_a_body_that_is_the_callers_is_accepted(self, notes: Notes) -> None:
        own = note(
            tenant_id="t_one", mode="saas", env="prod", user_id="ada", surface_id="Chat", project_id="p1"
        )
        assert (await notes.create(context(project_id="p1"), own)).record.surface_id == "chat"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("tenant_id", "t_two"),
            ("mode", "lab"),
            ("env", "dev"),
            ("user_id", "bob"),
            ("surface_id", "canvas"),
            ("app_id", "app"),
            ("project_id", "p1"),
        ],
    )
    async def test_identity_in_a_body_that_is_not_the_callers_is_refused(
        self, home: Home, notes: Notes, name: str, value: str
    ) -> None:
        with pytest.raises(ContextMismatch) as refusal:
            await notes.create(context(), msgspec.structs.replace(note(), **{name: value}))
        assert refusal.value.field == name
        assert home.driver.calls == []

    async def test_without_a_spine_nothing_is_written_and_reading_goes_on(
        self, home: Home, notes: Notes
    ) -> None:
        made = (await notes.create(context(), note())).record
        home.missing.add("event_spine")
        for call in (
            notes.create(context(), note()),
            notes.replace(context(), made.note_id, note()),
            notes.delete(context(), made.note_id),
        ):
            with pytest.raises(MissingRoute):
                await call
        assert await notes.get(context(), made.note_id) == made


async def collect(notes: Notes, where: NoteFilter, **window: Any) -> list[Note]:
    found: list[Note] = []
    after: str | None = None
    for _ in range(100):
        page = await notes.list(context(), where, window=Window(after=after, **window))
        found += page.items
        if page.after is None:
            return found
        after = page.after
    raise AssertionError("a list ends")


class TestList:
    async def make(self, notes: Notes, count: int = 7) -> list[Note]:
        return [
            (
                await notes.create(
                    context(
                        surface_id=("chat", "squared2")[number % 2], project_id=("p1", None)[number % 3 == 0]
                    ),
                    note(str(number), tags=(f"t{number % 2}", "all")),
                )
            ).record
            for number in range(count)
        ]

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 1_000])
    @pytest.mark.parametrize("descending", [False, True])
    async def test_pages_give_every_note_once_in_order_of_creation(
        self, notes: Notes, limit: int, *, descending: bool
    ) -> None:
        made = await self.make(notes)
        found = await collect(notes, NoteFilter(), limit=limit, descending=descending)
        assert found == (made[::-1] if descending else made)

    async def test_a_page_that_ends_with_the_list_has_no_cursor(self, notes: Notes) -> None:
        await self.make(notes, 4)
        first = await notes.list(context(), window=Window(limit=2))
        second = await notes.list(context(), window=Window(limit=2, after=first.after))
        assert first.after is not None
        assert len(second.items) == 2
        assert second.after is None
        assert (await notes.list(context(), NoteFilter(tag="t1"), window=Window(limit=2))).after is None

    @pytest.mark.parametrize(
        ("where", "kept"),
        [
            (NoteFilter(user_id="ada"), [0, 1, 2, 3, 4, 5, 6]),
            (NoteFilter(surface_id="SQUARED²"), [1, 3, 5]),
            (NoteFilter(surface_id="Squared 2"), [1, 3, 5]),
            (NoteFilter(project_id="p1"), [1, 2, 4, 5]),
            (NoteFilter(tag="t0"), [0, 2, 4, 6]),
            (NoteFilter(surface_id="chat", project_id="p1", tag="all"), [2, 4]),
            (NoteFilter(tag="none"), []),
        ],
    )
    @pytest.mark.parametrize("limit", [1, 100])
    async def test_filters_choose(self, notes: Notes, where: NoteFilter, kept: list[int], limit: int) -> None:
        made = await self.make(notes)
        assert await collect(notes, where, limit=limit) == [made[number] for number in kept]

    async def test_the_bound_project_is_a_filter(self, notes: Notes) -> None:
        made = await self.make(notes)
        bound = context(project_id="p1")
        assert (await notes.list(bound)).items == tuple(made[number] for number in (1, 2, 4, 5))
        assert (await notes.list(bound, NoteFilter(project_id="p1"))).items == (await notes.list(bound)).items
        with pytest.raises(ContextMismatch) as refusal:
            await notes.list(bound, NoteFilter(project_id="p2"))
        assert refusal.value.field == "project_id"

    async def test_another_users_notes_are_forbidden_and_not_merely_empty(self, notes: Notes) -> None:
        with pytest.raises(Forbidden) as refusal:
            await notes.list(context(), NoteFilter(user_id="bob"))
        assert refusal.value.field == "user_id"

    async def test_a_filter_that_is_no_identifier_is_invalid(self, notes: Notes) -> None:
        for where in (NoteFilter(user_id="a/b"), NoteFilter(surface_id="!"), NoteFilter(project_id="")):
            with pytest.raises(Invalid):
                await notes.list(context(), where)

    @pytest.mark.parametrize("limit", [0, -1, 1_001])
    async def test_a_limit_out_of_bounds_is_invalid(self, notes: Notes, limit: int) -> None:
        with pytest.raises(Invalid) as refusal:
            await notes.list(context(), window=Window(limit=limit))
        assert refusal.value.field == "limit"

    @pytest.mark.parametrize("stranger", [{"user_id": "bob"}, {"tenant_id": "t_two"}, {"env": "dev"}])
    async def test_a_cursor_of_another_list_is_invalid(self, notes: Notes, stranger: dict[str, str]) -> None:
        await self.make(notes, 2)
        after = (await notes.list(context(), window=Window(limit=1))).after
        with pytest.raises(Invalid) as refusal:
            await notes.list(context(**stranger), window=Window(after=after))
        assert refusal.value.field == "after"

    async def test_a_cursor_keeps_its_place_over_a_restart_and_a_deletion(
        self, home: Home, notes: Notes
    ) -> None:
        made = await self.make(notes, 5)
        after = (await notes.list(context(), window=Window(limit=2))).after
        await notes.delete(context(), made[1].note_id)
        await home.reopen()
        page = await Notes(home, home.ids, home.clock).list(context(), window=Window(after=after))
        assert page.items == tuple(made[2:])

    async def test_a_page_stops_at_about_one_mebibyte(self, notes: Notes) -> None:
        for _ in range(6):
            await notes.create(context(), note("x" * 240_000))
        page = await notes.list(context())
        assert len(page.items) == 5
        assert page.after is not None


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
