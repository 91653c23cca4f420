"""Rules of whose a note is, and of lists of notes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engines.core.listing import Window
from engines.errors import (
    ContextMismatch,
    Forbidden,
    Invalid,
    MissingRoute,
    NotFound,
)
from engines.stores.notes import (
    Note,
    NoteFilter,
    Notes,
)
from tests.stores.home import Home, context
from tests.stores.samples import note


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
