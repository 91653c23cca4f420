"""What is published of a definition that has drafts: kept, shown and let go."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from engines.core.listing import Window
from engines.core.records import Condition
from engines.core.versioned import version_key
from engines.errors import OutcomeUnknown
from engines.ports.documents import ALWAYS, Delete, Doc
from engines.scope import RequestContext
from engines.stores.definition_records import Definition, DefinitionFilter
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.definition_writes import anchor, key_of
from engines.testing.faults import Fault
from tests.stores.definitions_home import Told, page
from tests.stores.home import context

PAGES = SCHEMA_NAMED["pages"]
ABSENT = Condition(absent=True)
PRESENT = Condition(versions=("*",))
PUBLISHED = DefinitionFilter(status="published")
BY_SLUG = DefinitionFilter(status="published", slug="home")
ADA = context()
BOB = context(user_id="bob")


async def put(
    told: Told,
    title: str,
    status: str = "draft",
    *,
    mine: RequestContext | None = None,
    versions_kept: int = 1,
) -> Definition:
    """The next version of the page `p`."""
    told.home.options[PAGES.kind] = {"versions_kept": versions_kept}
    stands = (await told.definitions.list(ADA, PAGES)).items
    content = page("home", title=title, status=status)
    condition = PRESENT if stands else ABSENT
    return (await told.definitions.put(mine or ADA, PAGES, "p", content, condition=condition)).record


async def shown(told: Told) -> list[str]:
    """The titles of what is published; by its slug the same as of all."""
    lists = [(await told.definitions.list(ADA, PAGES, where)).items for where in (PUBLISHED, BY_SLUG)]
    assert lists[0] == lists[1]
    return [one.json_blob["title"] for one in lists[0]]


async def kept(told: Told) -> list[int]:
    return [one.version for one in (await told.definitions.versions(ADA, PAGES, "p")).items]


async def test_it_outlasts_the_drafts_and_goes_when_another_is_published(told: Told) -> None:
    await put(told, "Live", status="published")
    for number in range(3):
        await put(told, f"Draft {number}")
        assert await shown(told) == ["Live"]
    assert await kept(told) == [1, 4]
    assert (await told.definitions.get(ADA, PAGES, "p", version=1)).json_blob["title"] == "Live"
    assert (await told.definitions.diff(ADA, PAGES, "p", 1, 4)).changes
    await put(told, "Later", status="published")
    assert await shown(told) == ["Later"]
    assert await kept(told) == [5]
    await put(told, "Draft again")
    assert (await shown(told), await kept(told)) == (["Later"], [5, 6])


async def test_a_history_drops_what_is_older_and_younger_than_it(told: Told) -> None:
    await put(told, "Draft before")
    await put(told, "Live", status="published")
    for number in range(4):
        await put(told, f"Draft {number}", versions_kept=2)
    assert await kept(told) == [2, 5, 6]


async def test_one_that_is_no_longer_it_is_a_version_like_the_others(told: Told) -> None:
    for number in range(3):
        await put(told, f"Live {number}", status="published", versions_kept=2)
    assert (await shown(told), await kept(told)) == (["Live 2"], [2, 3])
    await put(told, "Draft", versions_kept=2)
    assert await kept(told) == [3, 4]


async def test_a_tombstone_ends_it(told: Told) -> None:
    await put(told, "Live", status="published")
    await put(told, "Draft")
    await told.definitions.delete(ADA, PAGES, "p", condition=PRESENT)
    assert (await shown(told), await kept(told)) == ([], [3])


async def test_it_is_restored_and_copied_like_any_version_that_is_kept(told: Told) -> None:
    live = await put(told, "Live", status="published")
    await put(told, "Draft")
    await put(told, "Draft")
    staging = context(env="staging")
    copy = await told.definitions.copy(ADA, PAGES, "p", staging, version=1)
    assert copy.record.json_blob == live.json_blob
    restored = await told.definitions.restore(ADA, PAGES, "p", 1)
    assert restored.record.json_blob == live.json_blob
    assert (await shown(told), await kept(told)) == (["Live"], [4])


@pytest.mark.parametrize("fault", [Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE])
async def test_a_lost_reply_takes_the_old_one_out_with_the_new_one_in_or_neither(
    told: Told, fault: Fault
) -> None:
    await put(told, "Live", status="published")
    await put(told, "Draft")
    told.home.faults.script(fault)
    try:
        await put(told, "Later", status="published")
    except OutcomeUnknown:
        await told.home.faults.late_writes_delivered()
    stands = (await shown(told), await kept(told))
    assert stands in ((["Live"], [1, 2]), (["Later"], [3]))


@pytest.mark.parametrize(
    ("where", "titles"),
    [
        (PUBLISHED, ["Later"]),
        (BY_SLUG, ["Later"]),
        # Whoever wrote the latest draft is whom a filter goes by.
        (msgspec.structs.replace(PUBLISHED, user_id="bob"), ["Later"]),
        (msgspec.structs.replace(PUBLISHED, user_id="ada"), []),
    ],
)
async def test_who_reads_while_another_is_published_sees_that_one(
    told: Told, monkeypatch: pytest.MonkeyPatch, where: DefinitionFilter, titles: list[str]
) -> None:
    await put(told, "Live", status="published")
    await put(told, "Draft", mine=BOB if where.user_id == "bob" else ADA)
    documents = told.home.documents
    read = documents.get_many

    async def after_another(partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        if any(key.startswith("v!") for key in keys):
            monkeypatch.undo()
            await put(told, "Later", status="published")
            await put(told, "Draft of a later one", mine=BOB)
        return await read(partition, keys)

    monkeypatch.setattr(documents, "get_many", after_another)
    listed = await told.definitions.list(ADA, PAGES, where)
    assert [one.json_blob["title"] for one in listed.items] == titles


async def test_where_it_is_missing_no_draft_is_shown_for_it(told: Told) -> None:
    """As servers left it that counted a published version among the others."""
    await put(told, "Live", status="published")
    await put(told, "Draft")
    place = await told.home.place(PAGES.kind, ADA)
    key = version_key(key_of(ADA, PAGES, "p"), 1)
    await place.documents.write(await place.partition(anchor(ADA, PAGES)), [Delete(key, ALWAYS)])
    assert await shown(told) == []


@pytest.mark.parametrize("descending", [False, True])
async def test_a_page_stops_by_what_it_shows(told: Told, *, descending: bool) -> None:
    names = [f"p{number:02}" for number in range(19)]
    for name in names:
        live = page(name, status="published", content="x" * 150_000)
        await told.definitions.put(ADA, PAGES, name, live, condition=ABSENT)
        if name != "p07":
            await told.definitions.put(ADA, PAGES, name, page(name), condition=PRESENT)
    found: list[str] = []
    after: str | None = None
    while True:
        window = Window(limit=1_000, after=after, descending=descending)
        listed = await told.definitions.list(ADA, PAGES, PUBLISHED, window=window)
        assert 0 < len(listed.items) <= 7
        assert {len(one.json_blob["content"]) for one in listed.items} == {150_000}
        found += [one.id for one in listed.items]
        after = listed.after
        if after is None:
            break
    assert found == (names[::-1] if descending else names)
