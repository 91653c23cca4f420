"""ETags, conditions and statuses of one record, alike for every kind of record that a client writes."""

from collections.abc import Callable

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made
from tests.contract.samples import (
    CONDITIONAL,
    DELETED,
    KINDS,
    MADE_BY_PUT,
    NAMED_BY_SERVER,
    UNCONDITIONAL,
    Sample,
)
from tests.contract.wire import problem, record

NEVER_AN_ETAG = '"0123456789abcdef0123456789abcdef"'


@pytest.fixture
def sample(cast: Cast, tenant: Tenant) -> Callable[[str], Sample]:
    return lambda name: Sample(cast, tenant, KINDS[name])


Make = Callable[[str], Sample]
every_kind = pytest.mark.parametrize("name", KINDS)


@every_kind
def test_what_creates_answers_201_with_the_record_and_its_etag(sample: Make, name: str) -> None:
    one = sample(name)
    etag = one.create()["etag"]
    assert etag.startswith('"')
    assert etag.endswith('"')
    read = one.read()
    assert (read.status, read.etag, read.body["etag"]) == (200, etag, etag)


@every_kind
def test_what_replaces_answers_200_with_the_record_and_a_new_etag(sample: Make, name: str) -> None:
    one = sample(name)
    first = one.create()
    second = record(one.write(if_match=first["etag"]), 200)
    if name != "route":  # its second body is its first
        assert second["etag"] != first["etag"]
    assert one.read().etag == second["etag"]


@every_kind
def test_if_match_with_an_older_etag_is_412_and_changes_nothing(sample: Make, name: str) -> None:
    one = sample(name)
    first = one.create()
    second = record(one.write(if_match=first["etag"]), 200)
    if second["etag"] == first["etag"]:
        first = {"etag": NEVER_AN_ETAG}
    problem(one.write(one.kind.second, if_match=first["etag"]), 412, "Conflict")
    assert one.read().etag == second["etag"]


@every_kind
def test_if_match_with_an_etag_of_nobodys_is_412(sample: Make, name: str) -> None:
    one = sample(name)
    one.create()
    for invented in (NEVER_AN_ETAG, '"x"', '""'):
        problem(one.write(if_match=invented), 412, "Conflict")


@every_kind
def test_if_match_on_a_missing_record_is_412(sample: Make, name: str) -> None:
    one = sample(name)
    problem(
        one.write(one.kind.first if one.kind.changed_by == "PUT" else None, if_match=NEVER_AN_ETAG),
        412,
        "Conflict",
    )
    assert one.read().status in (200 if name == "route" else 404, 404)


@every_kind
def test_if_none_match_star_on_an_existing_record_is_412(sample: Make, name: str) -> None:
    one = sample(name)
    first = one.create()
    reply = one.write(if_none_match="*")
    problem(reply, 412, "Conflict")
    assert one.read().etag == first["etag"]


@every_kind
def test_if_match_star_matches_what_exists(sample: Make, name: str) -> None:
    one = sample(name)
    one.create()
    assert one.write(if_match="*").status == 200


@pytest.mark.parametrize("name", MADE_BY_PUT)
def test_if_none_match_star_on_a_missing_record_creates(sample: Make, name: str) -> None:
    one = sample(name)
    record(one.write(one.kind.first, if_none_match="*"), 201)


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_without_a_condition_the_last_writer_wins(sample: Make, name: str) -> None:
    one = sample(name)
    one.create()
    last = record(one.write(), 200)
    assert one.read().etag == last["etag"]


@pytest.mark.parametrize("name", CONDITIONAL)
def test_where_a_condition_is_required_its_absence_is_428(sample: Make, name: str) -> None:
    one = sample(name)
    if one.kind.created_by == "PUT":
        problem(one.write(one.kind.first), 428, "PreconditionRequired")
    first = one.create()
    problem(one.write(), 428, "PreconditionRequired")
    assert one.read().etag == first["etag"]


@pytest.mark.parametrize("name", DELETED)
def test_a_delete_is_204_and_again_404(sample: Make, name: str) -> None:
    one = sample(name)
    first = one.create()
    headers = {"if_match": first["etag"]} if one.kind.conditional else {}
    reply = one.delete(**headers)
    assert (reply.status, reply.content) == (204, b"")
    if one.kind.conditional:
        problem(one.delete(), 428, "PreconditionRequired")
        problem(one.delete(if_match=first["etag"]), 412, "Conflict")
    else:
        problem(one.delete(), 404, "NotFound")
        problem(one.delete(if_match=first["etag"]), 412, "Conflict")
    if name not in ("route", "member"):
        problem(one.read(), 404, "NotFound")


@pytest.mark.parametrize("name", DELETED)
def test_a_delete_under_another_etag_is_412(sample: Make, name: str) -> None:
    one = sample(name)
    first = one.create()
    problem(one.delete(if_match=NEVER_AN_ETAG), 412, "Conflict")
    assert one.read().etag == first["etag"]


@pytest.mark.parametrize("name", [name for name in DELETED if name in MADE_BY_PUT and name != "member"])
def test_after_a_delete_a_put_creates_again(sample: Make, name: str) -> None:
    one = sample(name)
    first = one.create()
    assert one.delete(if_match=first["etag"]).status == 204
    second = one.create()
    assert second["etag"] != first["etag"]
    problem(one.write(if_match=first["etag"]), 412, "Conflict")


@pytest.mark.parametrize("name", ["table", "blackboard", "tenant", "route"])
@pytest.mark.parametrize("bad", ["x", 'W/"x', '"a" "b"', "é", "", ",", '"unclosed'])
def test_a_condition_that_is_none_is_400(sample: Make, name: str, bad: str) -> None:
    one = sample(name)
    first = one.create()
    reply = one.write(if_match=bad)
    assert reply.status in (400, 412, 428), reply
    assert one.read().etag == first["etag"]


@pytest.mark.parametrize("name", ["table", "blackboard", "project"])
def test_a_list_of_etags_matches_if_one_of_them_does(sample: Make, name: str) -> None:
    one = sample(name)
    first = one.create()
    assert one.write(if_match=f"{NEVER_AN_ETAG}, {first['etag']}").status == 200


@pytest.mark.parametrize("name", ["table", "blackboard", "project"])
def test_a_weak_etag_never_matches_if_match(sample: Make, name: str) -> None:
    one = sample(name)
    first = one.create()
    assert one.write(if_match=f"W/{first['etag']}").status in (400, 412)


@pytest.mark.parametrize(
    "name",
    [name for name, kind in KINDS.items() if kind.created_by == "POST" and name not in NAMED_BY_SERVER],
)
def test_a_second_record_of_the_same_id_is_409(sample: Make, name: str) -> None:
    one = sample(name)
    one.create()
    body = one.body(one.kind.first) | {str(one.kind.id_field): one.name}
    problem(one.caller.post(one.path.rpartition("/")[0], body), 409, "Conflict")


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.changed_by == "PATCH"])
def test_a_patch_replaces_only_the_members_that_it_names(sample: Make, name: str) -> None:
    one = sample(name)
    first = one.create()
    second = record(one.write(if_match=first["etag"]), 200)
    own = {*one.kind.second, "etag", "version", "updated_at", "updated_by", "created_at"}
    assert {key: value for key, value in first.items() if key not in own} == {
        key: value for key, value in second.items() if key not in own
    }
    assert {name: second[name] for name in one.kind.second} == one.kind.second


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.changed_by == "PATCH"])
def test_a_patch_cannot_change_the_id(sample: Make, name: str) -> None:
    one = sample(name)
    first = one.create()
    field = str(one.kind.id_field)
    reply = one.write({field: "t_another" if field == "tenant_id" else "another"}, if_match=first["etag"])
    assert reply.status in (400, 403), reply
    assert one.read().etag == first["etag"]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.changed_by == "PATCH"])
def test_a_patch_of_nothing_that_exists_is_404(sample: Make, name: str) -> None:
    one = sample(name)
    if one.kind.conditional:
        problem(one.write(if_match="*"), 412, "Conflict")
    else:
        problem(one.write(), 404, "NotFound")


def test_a_note_that_does_not_exist_cannot_be_put(tenant: Tenant) -> None:
    problem(tenant["member"].put("/notes/nobody-made-this", {"content": "x"}), 404, "NotFound")


def test_an_etag_is_kept_through_other_writes(tenant: Tenant) -> None:
    member = tenant["member"]
    path = f"/tables/t/p/{fresh('k')}"
    first = record(made(member.put(path, {"value": 1})), 201)
    made(member.put(f"/tables/t/p/{fresh('k')}", {"value": 1}))
    assert member.get(path).etag == first["etag"]


def test_two_writers_under_one_etag_have_one_winner(tenant: Tenant) -> None:
    from concurrent.futures import ThreadPoolExecutor

    member = tenant["member"]
    path = f"/tables/t/p/{fresh('k')}"
    etag = record(made(member.put(path, {"value": 0})), 201)["etag"]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda n: member.put(path, {"value": n}, if_match=etag), range(8)))
    assert sorted(reply.status for reply in replies) == [200] + [412] * 7


def test_an_items_etag_in_a_list_can_be_sent_back(tenant: Tenant) -> None:
    member = tenant["member"]
    made(member.put("/tables/etags/p/s", {"value": 1}))
    (item,) = member.get("/tables/etags/p").body["items"]
    assert member.put("/tables/etags/p/s", {"value": 2}, if_match=item["etag"]).status == 200
