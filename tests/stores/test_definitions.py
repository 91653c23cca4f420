"""Definitions: versions, conditions, slugs, tombstones, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from engines import catalogue
from engines.core.idempotency import Request, identify
from engines.core.listing import Window
from engines.core.records import ANYTHING, Condition
from engines.errors import (
    Conflict,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    MissingRoute,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    PreconditionRequired,
    TooLarge,
)
from engines.ports.documents import Doc
from engines.stores.definition_records import Definition, DefinitionFilter, DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED, SCHEMAS, Schema
from engines.stores.scoped import Change, Deletion
from engines.testing.faults import Fault
from tests.contexts import PERMISSIONS_OF
from tests.stores.definition_samples import REFUSED, SAMPLES
from tests.stores.definitions_home import Told, page
from tests.stores.home import context
from tests.stores.subjects import keyed
from tests.torn import torn

FLOWS = SCHEMA_NAMED["flows"]
PAGES = SCHEMA_NAMED["pages"]
GUARDING = [
    schema
    for schema in SCHEMAS
    if schema.kind in (catalogue.KPIS, catalogue.TEMPERATURES, catalogue.FIREARMS)
]
ABSENT = Condition(absent=True)
PRESENT = Condition(versions=("*",))
ADA = context()
BOB = context(user_id="bob")


def flow(name: str = "one") -> DefinitionInput:
    return DefinitionInput(json_blob={"name": name, "nodes": [{"id": "a"}], "edges": []})


def at(record: Definition) -> Condition:
    return Condition(versions=(record.etag.strip('"'),))


def before_slugs_are_read(
    told: Told, monkeypatch: pytest.MonkeyPatch, change: Callable[[], Awaitable[Change[Definition]]]
) -> list[Change[Definition]]:
    """Between the next change's two reads this one is made; the list will have it."""
    made: list[Change[Definition]] = []
    documents = told.home.documents
    read = documents.get_many

    async def after_another(partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        if any(key.startswith("u!") for key in keys):
            monkeypatch.undo()
            made.append(await change())
        return await read(partition, keys)

    monkeypatch.setattr(documents, "get_many", after_another)
    return made


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
class TestEveryKind:
    async def test_it_has_versions_a_history_a_tombstone_and_comes_back(
        self, told: Told, schema: Schema
    ) -> None:
        store, sample = told.definitions, SAMPLES[schema.name]
        first_id = schema.ids[0] if schema.ids else "d1"
        first = await store.put(
            ADA, schema, first_id, DefinitionInput(json_blob=sample.first), condition=ABSENT
        )
        assert (first.created, first.record.version, first.record.created_by) == (True, 1, "ada")
        second = await store.put(
            BOB, schema, first_id, DefinitionInput(json_blob=sample.second), condition=at(first.record)
        )
        assert (second.created, second.record.version, second.record.user_id) == (False, 2, "bob")
        assert (second.record.created_by, second.record.created_at) == ("ada", first.record.created_at)
        assert (await store.get(ADA, schema, first_id)).json_blob == sample.second
        assert (await store.get(ADA, schema, first_id, version=1)).json_blob == sample.first
        assert [one.id for one in (await store.list(ADA, schema)).items] == [first_id]
        assert (await store.diff(ADA, schema, first_id, 1, 2)).changes
        await store.delete(ADA, schema, first_id, condition=at(second.record))
        with pytest.raises(NotFound):
            await store.get(ADA, schema, first_id)
        assert (await store.list(ADA, schema)).items == ()
        tombstone = await store.get(ADA, schema, first_id, version=3)
        assert (tombstone.deleted, tombstone.json_blob) == (True, None)
        restored = await store.restore(BOB, schema, first_id, 1)
        assert (restored.record.version, restored.record.restored_from) == (4, 1)
        assert (await store.get(ADA, schema, first_id)).json_blob == sample.first
        history = (await store.versions(ADA, schema, first_id)).items
        assert [(one.version, one.user_id, one.deleted) for one in history] == [
            (1, "ada", False),
            (2, "bob", False),
            (3, "ada", True),
            (4, "bob", False),
        ]

    async def test_every_version_is_told_to_the_spine_in_order(self, told: Told, schema: Schema) -> None:
        store, sample = told.definitions, SAMPLES[schema.name]
        first_id = schema.ids[0] if schema.ids else "d1"
        first = await store.put(
            ADA, schema, first_id, DefinitionInput(json_blob=sample.first), condition=ABSENT
        )
        await store.delete(BOB, schema, first_id, condition=at(first.record))
        payloads = await told.told(2, event_type=schema.event_type)
        assert [(one["action"], one["id"], one["version"]) for one in payloads] == [
            ("created", first_id, 1),
            ("deleted", first_id, 2),
        ]
        assert {one["definition"] for one in payloads} == {schema.name}
        assert [event.user_id for event in await told.events(event_type=schema.event_type)] == ["ada", "bob"]


@pytest.mark.parametrize(("name", "blob", "field"), REFUSED)
async def test_what_breaks_a_rule_is_refused_by_its_field_and_nothing_is_written(
    told: Told, name: str, blob: Any, field: str
) -> None:
    schema = SCHEMA_NAMED[name]
    definition_id = schema.ids[0] if schema.ids else "d1"
    with pytest.raises(Invalid) as caught:
        await told.definitions.put(
            ADA, schema, definition_id, DefinitionInput(json_blob=blob), condition=ABSENT
        )
    assert caught.value.field == f"json_blob{'.' if field and field[0] != '[' else ''}{field}"
    assert "write" not in told.home.driver.calls


class TestConditions:
    async def test_a_write_without_one_is_refused(self, told: Told) -> None:
        with pytest.raises(PreconditionRequired):
            await told.definitions.put(ADA, FLOWS, "f", flow())
        first = await told.definitions.create(ADA, FLOWS, flow())
        with pytest.raises(PreconditionRequired):
            await told.definitions.delete(ADA, FLOWS, first.record.id)

    async def test_of_two_writers_over_one_version_one_learns(self, told: Told) -> None:
        first = await told.definitions.create(ADA, FLOWS, flow())
        outcomes = await asyncio.gather(
            *(
                told.definitions.put(
                    ADA, FLOWS, first.record.id, flow(str(number)), condition=at(first.record)
                )
                for number in range(8)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 7
        assert (await told.definitions.get(ADA, FLOWS, first.record.id)).version == 2

    async def test_a_name_is_taken_once(self, told: Told) -> None:
        named = DefinitionInput(json_blob=flow().json_blob, id="f1")
        await told.definitions.create(ADA, FLOWS, named)
        with pytest.raises(Conflict):
            await told.definitions.create(ADA, FLOWS, named)
        with pytest.raises(PreconditionFailed):
            await told.definitions.put(ADA, FLOWS, "f1", flow(), condition=ABSENT)

    async def test_a_tombstone_is_no_longer_there_to_match(self, told: Told) -> None:
        first = await told.definitions.create(ADA, FLOWS, flow())
        await told.definitions.delete(ADA, FLOWS, first.record.id, condition=at(first.record))
        for condition in (at(first.record), Condition(versions=("*",))):
            with pytest.raises(PreconditionFailed):
                await told.definitions.put(ADA, FLOWS, first.record.id, flow(), condition=condition)
        again = await told.definitions.put(ADA, FLOWS, first.record.id, flow("new"), condition=ABSENT)
        assert (again.created, again.record.version) == (True, 3)

    async def test_a_repeat_under_its_key_gets_the_first_answer(self, told: Told) -> None:
        request = identify("t", "e", "u", "PUT", "/flows/f", "key", body=b"1")
        first = await told.definitions.put(ADA, FLOWS, "f", flow(), condition=ABSENT, request=request)
        again = await told.definitions.put(ADA, FLOWS, "f", flow(), condition=ABSENT, request=request)
        assert (again.replayed, again.record, again.created) == (True, first.record, True)
        other = identify("t", "e", "u", "PUT", "/flows/f", "key", body=b"2")
        with pytest.raises(IdempotencyKeyReused):
            await told.definitions.put(ADA, FLOWS, "f", flow(), condition=ABSENT, request=other)
        assert len(await told.told(1)) == 1

    async def test_a_repeat_that_meets_its_first_as_it_lands_gets_its_answer(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def create(request: Request) -> Change[Definition]:
            given = DefinitionInput(json_blob=flow().json_blob, id="f")
            return await told.definitions.create(ADA, FLOWS, given, request=request)

        torn(told.home.documents, monkeypatch, lambda: create(keyed("c")))
        made = await create(keyed("c"))
        assert (made.replayed, made.created, made.record.version) == (True, True, 1)

        def decided(former: Definition) -> dict[str, Any]:
            if former.state:
                raise Conflict("this was decided before")
            return {"by": "ada"}

        async def decide(request: Request) -> Change[Definition]:
            return await told.definitions.change_state(ADA, FLOWS, "f", decided, request=request)

        torn(told.home.documents, monkeypatch, lambda: decide(keyed("d")))
        assert (await decide(keyed("d"))).replayed
        with pytest.raises(Conflict, match="decided before"):
            await decide(keyed("another"))

        async def delete(request: Request) -> Deletion:
            return await told.definitions.delete(ADA, FLOWS, "f", condition=PRESENT, request=request)

        torn(told.home.documents, monkeypatch, lambda: delete(keyed("e")))
        assert (await delete(keyed("e"))).replayed
        with pytest.raises(PreconditionFailed):
            await delete(keyed("another delete"))
        assert [event["action"] for event in await told.told(3)] == ["created", "changed", "deleted"]

    async def test_so_does_one_whose_source_is_gone_by_then(self, told: Told) -> None:
        told.home.options[FLOWS.kind] = {"versions_kept": 2}
        made = await told.definitions.put(ADA, FLOWS, "f", flow("one"), condition=ABSENT)
        await told.definitions.put(ADA, FLOWS, "f", flow("two"), condition=at(made.record))
        copies = [
            await told.definitions.copy(ADA, FLOWS, "f", ADA, target_id="g", version=1, request=keyed("c"))
        ]
        restored = [await told.definitions.restore(ADA, FLOWS, "f", 1, request=keyed("r"))]
        with pytest.raises(NotFound):  # The restored version pushed it out.
            await told.definitions.get(ADA, FLOWS, "f", version=1)
        copies.append(
            await told.definitions.copy(ADA, FLOWS, "f", ADA, target_id="g", version=1, request=keyed("c"))
        )
        restored.append(await told.definitions.restore(ADA, FLOWS, "f", 1, request=keyed("r")))
        for first, again in (copies, restored):
            assert (again.record, again.replayed, first.replayed) == (first.record, True, False)


class TestSlugs:
    async def test_one_slug_is_one_definitions(self, told: Told) -> None:
        await told.definitions.create(ADA, PAGES, page("about"))
        with pytest.raises(Conflict) as caught:
            await told.definitions.create(ADA, PAGES, page("about"))
        assert caught.value.field == "json_blob.slug"

    @pytest.mark.parametrize("differs", [{"project_id": "p1"}, {"surface_id": "canvas"}, {"env": "staging"}])
    async def test_in_another_scope_it_is_free(self, told: Told, differs: dict[str, str]) -> None:
        await told.definitions.create(ADA, PAGES, page("about"))
        await told.definitions.create(context(**differs), PAGES, page("about"))

    async def test_of_a_race_for_a_slug_one_wins(self, told: Told) -> None:
        outcomes = await asyncio.gather(
            *(told.definitions.create(ADA, PAGES, page("about")) for _ in range(12)), return_exceptions=True
        )
        won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert len(won) == 1
        assert {type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)} == {Conflict}
        found = await told.definitions.list(ADA, PAGES, DefinitionFilter(slug="about"))
        assert [one.id for one in found.items] == [won[0].record.id]

    async def test_a_slug_that_the_same_request_took_meanwhile_is_its_own(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        request = identify("t", "e", "u", "POST", "/pages", "key", body=b"1")
        faster = before_slugs_are_read(
            told, monkeypatch, lambda: told.definitions.create(ADA, PAGES, page("about"), request=request)
        )
        slower = await told.definitions.create(ADA, PAGES, page("about"), request=request)
        (first,) = faster
        assert (slower.record, slower.replayed, first.replayed) == (first.record, True, False)
        assert len((await told.definitions.list(ADA, PAGES)).items) == 1

    @pytest.mark.parametrize("is_exact", [True, False])
    async def test_a_slug_that_its_own_definition_took_meanwhile_is_a_lost_race(
        self, told: Told, monkeypatch: pytest.MonkeyPatch, *, is_exact: bool
    ) -> None:
        first = await told.definitions.create(ADA, PAGES, page("one"))
        id_, condition = first.record.id, at(first.record) if is_exact else PRESENT
        faster = before_slugs_are_read(
            told,
            monkeypatch,
            lambda: told.definitions.put(ADA, PAGES, id_, page("two"), condition=PRESENT),
        )
        slower = told.definitions.put(ADA, PAGES, id_, page("two"), condition=condition)
        if is_exact:
            with pytest.raises(PreconditionFailed):
                await slower
        else:
            assert (await slower).record.version == 3
        assert [change.record.version for change in faster] == [2]

    async def test_a_new_slug_frees_the_old_one_and_so_does_a_deletion(self, told: Told) -> None:
        first = await told.definitions.create(ADA, PAGES, page("one"))
        moved = await told.definitions.put(
            ADA, PAGES, first.record.id, page("two"), condition=at(first.record)
        )
        await told.definitions.create(ADA, PAGES, page("one"))
        await told.definitions.delete(ADA, PAGES, first.record.id, condition=at(moved.record))
        await told.definitions.create(ADA, PAGES, page("two"))
        with pytest.raises(Conflict):
            await told.definitions.restore(ADA, PAGES, first.record.id, 1)

    async def test_readers_see_what_was_published_while_a_draft_is_written(self, told: Told) -> None:
        live = await told.definitions.create(ADA, PAGES, page("home", title="Live", status="published"))
        await told.definitions.put(
            ADA, PAGES, live.record.id, page("home-2", title="Draft"), condition=at(live.record)
        )
        published = DefinitionFilter(slug="home", status="published")
        assert [
            one.json_blob["title"] for one in (await told.definitions.list(ADA, PAGES, published)).items
        ] == ["Live"]
        everything = await told.definitions.list(ADA, PAGES, DefinitionFilter(status="published"))
        assert [one.json_blob["title"] for one in everything.items] == ["Live"]
        drafts = await told.definitions.list(ADA, PAGES, DefinitionFilter(status="draft"))
        assert [one.json_blob["title"] for one in drafts.items] == ["Draft"]
        for taken in ("home", "home-2"):
            with pytest.raises(Conflict):
                await told.definitions.create(ADA, PAGES, page(taken))

    async def test_what_was_never_published_is_not_found_among_the_published(self, told: Told) -> None:
        await told.definitions.create(ADA, PAGES, page("home"))
        for where in (
            DefinitionFilter(status="published"),
            DefinitionFilter(slug="home", status="published"),
        ):
            assert (await told.definitions.list(ADA, PAGES, where)).items == ()


class TestCopies:
    async def test_a_copy_says_where_it_comes_from_and_replaces_only_when_told(self, told: Told) -> None:
        source = await told.definitions.create(ADA, FLOWS, flow("source"))
        staging = context(env="staging", project_id="p1")
        copy = await told.definitions.copy(ADA, FLOWS, source.record.id, staging)
        origin = copy.record.copied_from
        assert origin is not None
        assert (origin.id, origin.version, origin.env) == (source.record.id, 1, "prod")
        assert (await told.definitions.get(staging, FLOWS, source.record.id)).json_blob["name"] == "source"
        with pytest.raises(Conflict):
            await told.definitions.copy(ADA, FLOWS, source.record.id, staging)
        again = await told.definitions.copy(ADA, FLOWS, source.record.id, staging, condition=at(copy.record))
        assert again.record.version == 2

    async def test_a_deleted_one_is_not_copied_but_a_version_of_it_is_not_found_either(
        self, told: Told
    ) -> None:
        source = await told.definitions.create(ADA, FLOWS, flow())
        await told.definitions.delete(ADA, FLOWS, source.record.id, condition=at(source.record))
        with pytest.raises(NotFound):
            await told.definitions.copy(ADA, FLOWS, source.record.id, context(env="staging"))


class TestBounds:
    async def test_versions_past_the_routes_limit_are_dropped(self, told: Told) -> None:
        told.home.options[FLOWS.kind] = {"versions_kept": 3}
        record = (await told.definitions.create(ADA, FLOWS, flow())).record
        for number in range(5):
            change = await told.definitions.put(
                ADA, FLOWS, record.id, flow(str(number)), condition=at(record)
            )
            record = change.record
        kept = (await told.definitions.versions(ADA, FLOWS, record.id)).items
        assert [one.version for one in kept] == [4, 5, 6]
        with pytest.raises(NotFound):
            await told.definitions.get(ADA, FLOWS, record.id, version=3)

    async def test_a_graph_past_the_size_limit_is_too_large(self, told: Told) -> None:
        nodes = [{"id": f"n{number}"} for number in range(100_000)]
        with pytest.raises(TooLarge):
            await told.definitions.create(
                ADA, SCHEMA_NAMED["graphs"], DefinitionInput(json_blob={"nodes": nodes, "edges": []})
            )
        assert (await told.definitions.list(ADA, SCHEMA_NAMED["graphs"])).items == ()

    async def test_a_list_goes_on_behind_its_cursor_and_passes_over_tombstones(self, told: Told) -> None:
        for number in range(7):
            named = DefinitionInput(json_blob=flow().json_blob, id=f"f{number}")
            record = (await told.definitions.create(ADA, FLOWS, named)).record
            if number == 3:
                await told.definitions.delete(ADA, FLOWS, record.id, condition=at(record))
        found: list[str] = []
        after: str | None = None
        while True:
            listed = await told.definitions.list(ADA, FLOWS, window=Window(limit=2, after=after))
            found += [one.id for one in listed.items]
            after = listed.after
            if after is None:
                break
        assert found == ["f0", "f1", "f2", "f4", "f5", "f6"]


class TestPermission:
    async def test_who_may_not_write_writes_nothing(self, told: Told) -> None:
        viewer = context(permissions=frozenset({"definitions.read"}))
        calls: list[Callable[[], Any]] = [
            lambda: told.definitions.create(viewer, FLOWS, flow()),
            lambda: told.definitions.put(viewer, FLOWS, "f", flow(), condition=ABSENT),
            lambda: told.definitions.delete(viewer, FLOWS, "f", condition=ABSENT),
            lambda: told.definitions.restore(viewer, FLOWS, "f", 1),
            lambda: told.definitions.copy(viewer, FLOWS, "f", viewer),
        ]
        for call in calls:
            with pytest.raises(Forbidden):
                await call()
        assert "write" not in told.home.driver.calls

    @pytest.mark.parametrize("role", ["member", "agent"])
    async def test_who_is_judged_by_a_definition_does_not_write_it(self, told: Told, role: str) -> None:
        judged = context(roles=(role,), permissions=PERMISSIONS_OF[role])
        assert len(GUARDING) == 6
        for schema in GUARDING:
            sample = SAMPLES[schema.name]
            name = schema.ids[0] if schema.ids else "d"
            stands = await told.definitions.put(
                ADA, schema, name, DefinitionInput(json_blob=sample.first), condition=ABSENT
            )
            follows = at(stands.record)
            changed = DefinitionInput(json_blob=sample.second)
            for refused in (
                told.definitions.create(judged, schema, changed),
                told.definitions.put(judged, schema, name, changed, condition=follows),
                told.definitions.delete(judged, schema, name, condition=follows),
                told.definitions.restore(judged, schema, name, 1),
                told.definitions.copy(judged, schema, name, msgspec.structs.replace(judged, env="dev")),
            ):
                with pytest.raises(Forbidden):
                    await refused
            assert (await told.definitions.get(judged, schema, name)).json_blob == sample.first

    async def test_without_a_route_nothing_happens(self, told: Told) -> None:
        told.home.missing = {FLOWS.kind}
        for call in (
            told.definitions.create(ADA, FLOWS, flow()),
            told.definitions.get(ADA, FLOWS, "f"),
            told.definitions.list(ADA, FLOWS),
        ):
            with pytest.raises(MissingRoute):
                await call


class TestLostReplies:
    @pytest.mark.parametrize("fault", [Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE])
    async def test_a_version_whose_reply_was_lost_is_there_once_and_told_once(
        self, told: Told, fault: Fault
    ) -> None:
        first = await told.definitions.create(ADA, FLOWS, flow())
        await told.told(1)
        told.home.faults.script(fault)
        try:
            await told.definitions.put(ADA, FLOWS, first.record.id, flow("two"), condition=at(first.record))
        except OutcomeUnknown:
            await told.home.faults.late_writes_delivered()
        present = await told.definitions.get(ADA, FLOWS, first.record.id)
        payloads = await told.told(present.version)
        assert [one["version"] for one in payloads] == list(range(1, present.version + 1))


async def test_any_condition_but_the_targets_own_is_about_the_source(told: Told) -> None:
    """`ANYTHING` means that the target must be new, never that it may be overwritten."""
    source = await told.definitions.create(ADA, FLOWS, flow("a"))
    await told.definitions.copy(ADA, FLOWS, source.record.id, context(env="staging"), condition=ANYTHING)
    with pytest.raises(PreconditionFailed):
        await told.definitions.copy(
            ADA, FLOWS, source.record.id, context(env="staging"), condition=at(source.record)
        )
