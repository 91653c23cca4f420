"""Rules of tables."""

from __future__ import annotations

from typing import Any

import pytest

from engines.core.listing import Window
from engines.core.records import Condition
from engines.errors import Forbidden, Invalid, NotFound, PreconditionFailed
from engines.stores.tables import TableRowInput, Tables
from tests.stores.home import Home, context

ALL_ID_CHARACTERS = "aA0._~:@|+-"


@pytest.fixture
def tables(home: Home) -> Tables:
    return Tables(home, home.clock)


def row(value: Any) -> TableRowInput:
    return TableRowInput(value=value)


async def test_a_row_reads_as_it_was_put(home: Home, tables: Tables) -> None:
    change = await tables.put(context(), "rates", "eu", "vat", row({"de": 0.19, "ключ": ["💡", None]}))
    assert change.created
    home.clock.advance(1)
    assert await tables.get(context(), "rates", "eu", "vat") == change.record
    again = await tables.put(context(user_id="bob"), "rates", "eu", "vat", row(2))
    assert not again.created
    assert again.record.created_at == change.record.created_at
    assert again.record.updated_at > change.record.updated_at
    assert again.record.user_id == "bob"
    assert again.etag != change.etag


async def test_rows_of_one_pk_are_listed_by_sk_in_byte_order(tables: Tables) -> None:
    names = sorted(f"x{character}{tail}" for character in ALL_ID_CHARACTERS for tail in ("", "1"))
    for name in reversed(names):
        await tables.put(context(), "t", "pk", name, row(name))
    await tables.put(context(), "t", "pk-2", "x", row("another pk"))
    await tables.put(context(), "t-2", "pk", "x", row("another table"))
    found: list[str] = []
    after: str | None = None
    for _ in names:
        page = await tables.list(context(), "t", "pk", window=Window(limit=5, after=after))
        found += [item.sk for item in page.items]
        after = page.after
        if after is None:
            break
    assert found == names
    backwards = await tables.list(context(), "t", "pk", window=Window(descending=True))
    assert [item.sk for item in backwards.items] == names[::-1]


async def test_a_cursor_of_one_pk_is_invalid_for_another(tables: Tables) -> None:
    for pk in ("a", "b"):
        for sk in ("x", "y"):
            await tables.put(context(), "t", pk, sk, row(1))
    after = (await tables.list(context(), "t", "a", window=Window(limit=1))).after
    with pytest.raises(Invalid) as refusal:
        await tables.list(context(), "t", "b", window=Window(after=after))
    assert refusal.value.field == "after"


async def test_deleting_needs_the_row_and_its_condition(tables: Tables) -> None:
    version = (await tables.put(context(), "t", "a", "x", row(1))).etag.strip('"')
    await tables.put(context(), "t", "a", "x", row(2))
    with pytest.raises(PreconditionFailed):
        await tables.delete(context(), "t", "a", "x", condition=Condition(versions=(version,)))
    await tables.delete(context(), "t", "a", "x")
    with pytest.raises(NotFound):
        await tables.delete(context(), "t", "a", "x")
    with pytest.raises(NotFound):
        await tables.get(context(), "t", "a", "x")


async def test_tables_are_a_tenants_and_envs_and_shared_across_projects_and_users(tables: Tables) -> None:
    made = (await tables.put(context(project_id="p1"), "t", "a", "x", row(1))).record
    assert await tables.get(context(user_id="bob", surface_id="canvas"), "t", "a", "x") == made
    for other in ({"tenant_id": "t_two"}, {"env": "dev"}):
        with pytest.raises(NotFound):
            await tables.get(context(**other), "t", "a", "x")
        assert (await tables.list(context(**other), "t", "a")).items == ()


@pytest.mark.parametrize(
    "bad", ["", ".", "../x", "a/b", "a!b", "a b", "-a", "é", "a\n", "a\x00", "x" * 129, "a#b", "a?b"]
)
async def test_a_malformed_id_is_invalid_by_name(home: Home, tables: Tables, bad: str) -> None:
    for position, field in enumerate(("table", "pk", "sk")):
        names = ["t", "a", "x"]
        names[position] = bad
        with pytest.raises(Invalid) as refusal:
            await tables.get(context(), *names)
        assert refusal.value.field == field
    with pytest.raises(Invalid):
        await tables.list(context(), "t", bad)
    assert home.driver.calls == []


async def test_the_longest_ids_together_make_a_row(tables: Tables) -> None:
    names = ("t" * 128, "p" * 128, "s" * 128)
    await tables.put(context(), *names, row(1))
    assert [item.sk for item in (await tables.list(context(), *names[:2])).items] == [names[2]]


async def test_each_permission_is_asked_for(tables: Tables) -> None:
    reader = context(permissions=frozenset({"tables.read"}))
    writer = context(permissions=frozenset({"tables.write"}))
    for call in (
        tables.put(reader, "t", "a", "x", row(1)),
        tables.delete(reader, "t", "a", "x"),
        tables.get(writer, "t", "a", "x"),
        tables.list(writer, "t", "a"),
    ):
        with pytest.raises(Forbidden):
            await call
