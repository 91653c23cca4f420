"""Rules of pages of records."""

from __future__ import annotations

import pytest

from engines.core.cursor import Cursors, list_scope
from engines.core.listing import LOOKED_AT_MAX, Listed, Window, list_records
from engines.ports.documents import ALWAYS, Delete, Doc, Put
from tests.stores.home import Home

PARTITION = "tabular_store.t_one.prod.0"
CURSORS: Cursors = list_scope("tabular_store", "t_one", "prod", "a")


async def fill(home: Home, count: int, prefix: str = "t!a!") -> list[str]:
    keys = [f"{prefix}{number:05d}" for number in range(count)]
    for start in range(0, count, 100):
        await home.documents.write(PARTITION, [Put(key, '"x"', ALWAYS) for key in keys[start : start + 100]])
    return keys


async def page(
    home: Home, *, after: str | None = None, limit: int = 100, descending: bool = False, every: int = 1
) -> Listed[str]:
    def read(doc: Doc) -> str | None:
        return doc.key if int(doc.key[-5:]) % every == every - 1 else None

    return await list_records(
        home.documents,
        PARTITION,
        ("t", "a"),
        read,
        cursors=CURSORS,
        window=Window(limit=limit, after=after, descending=descending),
        selective=every > 1,
    )


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7])
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("descending", [False, True])
async def test_every_page_but_the_last_is_full_and_the_last_says_so(
    home: Home, count: int, every: int, *, descending: bool
) -> None:
    keys = await fill(home, count)
    await fill(home, 3, "t!a-!")
    await fill(home, 3, "t!A!")
    wanted = [key for key in keys if int(key[-5:]) % every == every - 1]
    wanted = wanted[::-1] if descending else wanted
    found: list[str] = []
    after: str | None = None
    for _ in range(count + 1):
        listed = await page(home, after=after, limit=3, descending=descending, every=every)
        found += listed.items
        after = listed.after
        assert listed.items or not wanted, "a cursor promises that there is more"
        if after is None:
            break
        assert len(listed.items) == 3
    assert after is None
    assert found == wanted


async def test_a_list_that_ends_with_its_page_has_no_cursor(home: Home) -> None:
    await fill(home, 6)
    for limit in (2, 3, 6):
        after: str | None = None
        for _ in range(6 // limit):
            listed = await page(home, after=after, limit=limit)
            after = listed.after
        assert after is None


async def test_a_filtered_page_looks_at_so_many_documents_and_no_more(home: Home) -> None:
    keys = await fill(home, LOOKED_AT_MAX + 5)
    home.driver.calls.clear()
    listed = await page(home, every=LOOKED_AT_MAX + 3)
    assert listed.items == ()
    assert listed.after is not None
    assert home.driver.calls == ["scan"] * 10
    listed = await page(home, after=listed.after, every=LOOKED_AT_MAX + 3)
    assert listed.items == (keys[LOOKED_AT_MAX + 2],)
    assert listed.after is None


async def test_a_page_of_documents_that_were_all_deleted_since_goes_on(home: Home) -> None:
    keys = await fill(home, 4)
    first = await page(home, limit=2)
    await home.documents.write(PARTITION, [Delete(key, ALWAYS) for key in keys[1:3]])
    assert (await page(home, after=first.after)).items == (keys[3],)


async def test_one_page_without_a_filter_is_one_read(home: Home) -> None:
    await fill(home, 10)
    home.driver.calls.clear()
    await page(home, limit=5)
    await page(home, limit=100)
    assert home.driver.calls == ["scan", "scan"]
