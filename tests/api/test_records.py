"""ETags, conditions, idempotency and lists, as every store answers them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from engines.api.fields import Fields, condition_of
from engines.core.records import Condition
from engines.errors import Invalid
from tests.api.client import Client

WRITABLE = {
    "a table's row": ("/tables/{name}/p/s", {"value": {"a": 1}}),
    "a memory entry": ("/memory/{name}/k", {"value": [1]}),
    "a blackboard entry": ("/blackboard/{name}/k", {"value": "x"}),
}


@pytest.fixture(params=list(WRITABLE.values()), ids=list(WRITABLE))
def record(request: pytest.FixtureRequest, fresh: Iterator[str]) -> tuple[str, Any]:
    path, body = request.param
    return path.format(name=next(fresh)), body


async def test_put_creates_with_201_and_replaces_with_200(member: Client, record: tuple[str, Any]) -> None:
    path, body = record
    created = await member("PUT", path, body, If_None_Match="*")
    assert created.status == 201
    assert created.json["value"] == body["value"]
    assert created.json["etag"] == created.etag
    replaced = await member("PUT", path, {"value": 2}, If_Match=created.etag)
    assert (replaced.status, replaced.json["value"]) == (200, 2)
    assert replaced.etag != created.etag
    read = await member("GET", path)
    assert (read.status, read.etag, read.json) == (200, replaced.etag, replaced.json)


async def test_a_condition_that_does_not_hold_is_412_and_writes_nothing(
    member: Client, record: tuple[str, Any]
) -> None:
    path, body = record
    missing = await member("PUT", path, body, If_Match='"0123"')
    missing.problem(412, "Conflict", "If-Match")
    (await member("PUT", path, body, If_Match="*")).problem(412, "Conflict", "If-Match")
    first = await member("PUT", path, body, If_None_Match="*")
    again = await member("PUT", path, {"value": "other"}, If_None_Match="*")
    again.problem(412, "Conflict", "If-None-Match")
    for tag in ('"0123"', f"W/{first.etag}", f'"0123", W/{first.etag}'):
        stale = await member("PUT", path, {"value": "other"}, If_Match=tag)
        stale.problem(412, "Conflict", "If-Match")
    assert (await member("GET", path)).etag == first.etag
    held = await member("PUT", path, body, If_Match=f'"0123", {first.etag}')
    assert held.status == 200
    assert (await member("PUT", path, body, If_Match="*")).status == 200


async def test_a_blackboard_entry_is_written_under_a_condition_alone(
    member: Client, fresh: Iterator[str]
) -> None:
    (await member("PUT", f"/blackboard/{next(fresh)}/k", {"value": 1})).problem(428, "PreconditionRequired")


async def test_last_writer_wins_where_no_condition_is_asked_for(member: Client, fresh: Iterator[str]) -> None:
    path = f"/memory/{next(fresh)}/k"
    answers = await asyncio.gather(*(member("PUT", path, {"value": number}) for number in range(8)))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert (await member("GET", path)).etag in {answer.etag for answer in answers}


async def test_delete_is_204_then_404_and_412_under_if_match(member: Client, fresh: Iterator[str]) -> None:
    path = f"/tables/{next(fresh)}/p/s"
    created = await member("PUT", path, {"value": 1})
    (await member("DELETE", path, If_Match='"0123"')).problem(412, "Conflict", "If-Match")
    deleted = await member("DELETE", path, If_Match=created.etag)
    assert (deleted.status, deleted.body) == (204, b"")
    assert "Content-Length" not in deleted.headers
    (await member("DELETE", path)).problem(404, "NotFound")
    (await member("DELETE", path, If_Match=created.etag)).problem(412, "Conflict", "If-Match")
    (await member("GET", path)).problem(404, "NotFound")


MALFORMED = [
    "",
    "abc",
    '"abc',
    'abc"',
    '"a" "b"',
    "W/abc",
    '"a\x7fb"',
    "*, *",
    '*, "a"',
    'w/"a"',
    ",",
    '"a"b',
]


@pytest.mark.parametrize("value", MALFORMED)
def test_entity_tags_that_are_none_are_invalid(value: str) -> None:
    for name in (b"if-match", b"if-none-match"):
        with pytest.raises(Invalid) as caught:
            condition_of(Fields([(name, value.encode("latin-1"))]))
        assert caught.value.field in ("If-Match", "If-None-Match")


@pytest.mark.parametrize(
    ("fields", "condition"),
    [
        ([], Condition()),
        ([(b"if-match", b"*")], Condition(versions=("*",))),
        ([(b"if-match", b'"a"')], Condition(versions=("a",))),
        ([(b"if-match", b' "a" ,\t"b,c" , ,')], Condition(versions=("a", "b,c"))),
        ([(b"if-match", b'"a"'), (b"if-match", b'"b"')], Condition(versions=("a", "b"))),
        ([(b"if-match", b'W/"a"')], Condition(versions=('W/"a"',))),
        ([(b"if-match", b'""')], Condition(versions=("",))),
        ([(b"if-none-match", b"*")], Condition(absent=True)),
        ([(b"if-match", b'"a"'), (b"if-none-match", b"*")], Condition(versions=("a",), absent=True)),
    ],
)
def test_conditions_are_read_as_lists_of_tags(
    fields: list[tuple[bytes, bytes]], condition: Condition
) -> None:
    assert condition_of(Fields(fields)) == condition


async def test_a_malformed_condition_is_400_on_any_change(member: Client, fresh: Iterator[str]) -> None:
    path = f"/memory/{next(fresh)}/k"
    (await member("PUT", path, {"value": 1}, If_Match="abc")).problem(400, "Invalid", "If-Match")
    tagged = await member("PUT", path, {"value": 1}, If_None_Match='"abc"')
    tagged.problem(400, "Invalid", "If-None-Match")
    (await member("DELETE", path, If_Match='"a" "b"')).problem(400, "Invalid", "If-Match")


# --- idempotency ---


async def test_the_same_request_again_is_answered_as_the_first_was(
    member: Client, fresh: Iterator[str]
) -> None:
    key = next(fresh)
    first = await member("POST", "/notes", {"content": "a"}, Idempotency_Key=key)
    again = await member("POST", "/notes", {"content": "a"}, Idempotency_Key=key)
    assert (again.status, again.body, again.etag) == (201, first.body, first.etag)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    other = await member("POST", "/notes", {"content": "b"}, Idempotency_Key=key)
    other.problem(409, "IdempotencyKeyReused", "Idempotency-Key")


async def test_a_key_belongs_to_one_path_method_and_user(
    member: Client, owner: Client, fresh: Iterator[str]
) -> None:
    key, session = next(fresh), next(fresh)
    answers = [
        await client(method, path, {"value": 1} if method == "PUT" else None, Idempotency_Key=key)
        for client in (member, owner)
        for path in (f"/memory/{session}/a", f"/memory/{session}/b")
        for method in ("PUT", "DELETE")
    ]
    assert [answer.status for answer in answers] == [201, 204] * 4
    assert not [answer for answer in answers if "Idempotency-Replayed" in answer.headers]


async def test_a_repeated_delete_is_answered_204_again(member: Client, fresh: Iterator[str]) -> None:
    key, path = next(fresh), f"/memory/{next(fresh)}/k"
    await member("PUT", path, {"value": 1})
    assert (await member("DELETE", path, Idempotency_Key=key)).status == 204
    again = await member("DELETE", path, Idempotency_Key=key)
    assert (again.status, again.headers["Idempotency-Replayed"]) == (204, "true")
    (await member("DELETE", path)).problem(404, "NotFound")


async def test_simultaneous_repeats_make_one_record(member: Client, fresh: Iterator[str]) -> None:
    key = next(fresh)
    answers = await asyncio.gather(
        *(member("POST", "/notes", {"content": "a"}, Idempotency_Key=key) for _ in range(8))
    )
    assert {answer.status for answer in answers} == {201}
    assert len({answer.json["note_id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 7


@pytest.mark.parametrize("key", ["", "k" * 256, "k\u00e9", "k\tk"])
async def test_an_idempotency_key_is_1_to_255_printable_ascii_characters(member: Client, key: str) -> None:
    answer = await member("POST", "/notes", {"content": "a"}, Idempotency_Key=key)
    answer.problem(400, "Invalid", "Idempotency-Key")


async def test_the_longest_key_is_a_key(member: Client, fresh: Iterator[str]) -> None:
    key = next(fresh).ljust(255, "~")
    assert (await member("POST", "/notes", {"content": "a"}, Idempotency_Key=key)).status == 201
    repeated = await member("POST", "/notes", {"content": "a"}, Idempotency_Key=key)
    assert repeated.headers["Idempotency-Replayed"] == "true"


# --- lists ---


async def test_a_list_is_paged_in_both_orders_without_loss(member: Client, fresh: Iterator[str]) -> None:
    table = next(fresh)
    names = [f"s{number:02d}" for number in range(25)]
    for name in names:
        assert (await member("PUT", f"/tables/{table}/p/{name}", {"value": name})).status == 201
    for order, expected in (("asc", names), ("desc", names[::-1])):
        for limit in (1, 7, 24, 25, 26, 1000):
            pages = [page async for page in paged(member, f"/tables/{table}/p", limit=limit, order=order)]
            found = [item["sk"] for page in pages for item in page]
            assert found == expected, (order, limit)
            assert all(len(page) == limit for page in pages[:-1])
            assert len(pages) == -(-25 // limit), (order, limit)


async def paged(client: Client, path: str, **query: Any) -> Any:
    after: str | None = None
    for _ in range(200):
        given = {**query, **({} if after is None else {"after": after})}
        answer = await client(
            "GET", f"{path}?" + "&".join(f"{name}={value}" for name, value in given.items())
        )
        assert answer.status == 200, answer.body
        assert set(answer.json) == {"items", "after"}
        yield answer.json["items"]
        after = answer.json["after"]
        if after is None:
            return
        assert set(after) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-")
    raise AssertionError("the list has no end")


async def test_a_cursor_belongs_to_its_list(member: Client, owner: Client, fresh: Iterator[str]) -> None:
    table = next(fresh)
    for sk in "abc":
        await member("PUT", f"/tables/{table}/p/{sk}", {"value": 1})
        await member("PUT", f"/memory/{table}/{sk}", {"value": 1})
    cursor = (await member("GET", f"/tables/{table}/p?limit=1")).json["after"]
    own = (await member("GET", f"/memory/{table}?limit=1")).json["after"]
    for client, path in (
        (member, f"/tables/{table}/q"),
        (member, f"/memory/{table}"),
        (member, "/notes"),
        (member, "/events"),
    ):
        (await client("GET", f"{path}?after={cursor}")).problem(400, "Invalid", "after")
    (await owner("GET", f"/memory/{table}?after={own}")).problem(400, "Invalid", "after")
    tampered = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
    (await member("GET", f"/tables/{table}/p?after={tampered}")).problem(400, "Invalid", "after")


CONTROL_LISTS = [
    "/tenants",
    "/users",
    "/oses",
    "/surfaces",
    "/apps",
    "/projects",
    "/keys",
    "/backends",
    "/routes",
]


@pytest.mark.parametrize("path", CONTROL_LISTS)
async def test_every_list_of_the_control_plane_has_the_same_shape(
    admin: Client, owner: Client, path: str
) -> None:
    client = owner if path in ("/projects", "/keys") else admin
    everything = [item async for page in paged(client, path, limit=1000) for item in page]
    for order, expected in (("asc", everything), ("desc", everything[::-1])):
        found = [item async for page in paged(client, path, limit=2, order=order) for item in page]
        assert found == expected
    (await client("GET", f"{path}?after=invented")).problem(400, "Invalid", "after")
    assert all(item["etag"].startswith('"') for item in everything)


async def test_a_cursor_of_one_control_list_is_no_cursor_of_another(admin: Client) -> None:
    cursor = (await admin("GET", "/routes?limit=1")).json["after"]
    (await admin("GET", f"/surfaces?after={cursor}")).problem(400, "Invalid", "after")


async def test_versions_of_a_blackboard_entry_are_listed_and_read(
    member: Client, fresh: Iterator[str]
) -> None:
    path = f"/blackboard/{next(fresh)}/k"
    etag = (await member("PUT", path, {"value": 1}, If_None_Match="*")).etag
    for value in (2, 3):
        etag = (await member("PUT", path, {"value": value}, If_Match=etag)).etag
    versions = (await member("GET", f"{path}/versions")).json["items"]
    assert [(item["version"], item["value"]) for item in versions] == [(1, 1), (2, 2), (3, 3)]
    assert (await member("GET", f"{path}?version=2")).json["value"] == 2
    (await member("GET", f"{path}?version=4")).problem(404, "NotFound")
    (await member("GET", f"{path}?version=0")).problem(400, "Invalid", "version")


async def test_notes_are_filtered(member: Client, fresh: Iterator[str]) -> None:
    tag = next(fresh)
    made = [
        (await member("POST", "/notes", {"content": str(number), "tags": [tag] if number % 2 else []})).json
        for number in range(6)
    ]
    found = [item["note_id"] async for page in paged(member, "/notes", tag=tag, limit=2) for item in page]
    assert found == [note["note_id"] for note in made[1::2]]
    newest = await member("GET", "/notes?order=desc&limit=1")
    assert newest.json["items"][0]["note_id"] == made[-1]["note_id"]
