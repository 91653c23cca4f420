"""Tables, session memory, the blackboard and notes: what each keeps, and how it answers."""

import time
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made, until
from tests.contract.wire import problem, record

NOTE_FIELDS = {
    "note_id",
    "tenant_id",
    "mode",
    "user_id",
    "surface_id",
    "title",
    "content",
    "tags",
    "source",
    "timestamps",
    "etag",
    "content_type",
}
VALUES: list[Any] = [
    None,
    True,
    0,
    -1.5,
    "",
    "é\U0001f600",
    [],
    {},
    {"a": [1, {"b": None}]},
    {"value": {"value": 1}},
]
VALUED = ["/tables/t/p/{}", "/memory/s/{}", "/blackboard/r/{}"]


@pytest.mark.parametrize("path", VALUED)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_any_json(tenant: Tenant, path: str, value: Any) -> None:
    path = path.format(fresh("v"))
    assert record(tenant["member"].put(path, {"value": value}, if_none_match="*"), 201)["value"] == value
    assert record(tenant["member"].get(path))["value"] == value


@pytest.mark.parametrize("path", VALUED)
@pytest.mark.parametrize("body", [{}, {"Value": 1}, [], 1, None, "value"])
def test_a_body_without_a_value_is_400(tenant: Tenant, path: str, body: Any) -> None:
    content = b"null" if body is None else body
    problem(tenant["member"].put(path.format(fresh("v")), content, if_none_match="*"), 400, "Invalid")


@pytest.mark.parametrize("path", VALUED)
def test_a_record_is_stamped_with_its_identity_and_provenance(tenant: Tenant, path: str) -> None:
    headers = {"x_run_id": "run-7", "x_step_id": "2", "x_surface_id": "canvas"}
    made_record = record(
        tenant["member"].put(path.format(fresh("v")), {"value": 1}, if_none_match="*", **headers), 201
    )
    assert made_record["tenant_id"] == tenant.tenant_id
    assert made_record["user_id"] == tenant.users["member"]
    assert (made_record["mode"], made_record["env"], made_record["surface_id"]) == ("lab", "prod", "canvas")
    if "blackboard" not in path:  # there the path's run is the record's
        assert (made_record["run_id"], made_record["step_id"]) == ("run-7", "2")


@pytest.mark.parametrize("path", VALUED)
def test_what_is_not_there_is_404(tenant: Tenant, path: str) -> None:
    problem(tenant["member"].get(path.format("missing")), 404, "NotFound")


# --- tables ---


def test_tables_and_partitions_are_apart(tenant: Tenant) -> None:
    member = tenant["member"]
    for table, pk in (("ta", "p"), ("ta", "q"), ("tb", "p")):
        made(member.put(f"/tables/{table}/{pk}/s", {"value": table + pk}))
    assert [item["value"] for item in member.items("/tables/ta/p")] == ["tap"]
    assert member.get("/tables/tb/p/s").body["value"] == "tbp"
    shown = member.get("/tables/ta/q/s").body
    assert (shown["table"], shown["pk"], shown["sk"]) == ("ta", "q", "s")


def test_every_member_of_a_tenant_shares_its_tables(tenant: Tenant) -> None:
    made(tenant["member"].put("/tables/shared/p/s", {"value": 1}))
    assert tenant["viewer"].get("/tables/shared/p/s").body["value"] == 1
    changed = record(tenant["agent"].put("/tables/shared/p/s", {"value": 2}))
    assert changed["user_id"] == tenant.users["agent"]


def test_a_replacement_keeps_created_at_and_moves_updated_at(tenant: Tenant) -> None:
    first = tenant["member"].put("/tables/times/p/s", {"value": 1}).body
    time.sleep(0.01)
    second = tenant["member"].put("/tables/times/p/s", {"value": 2}).body
    assert first["created_at"] == second["created_at"] == first["updated_at"] < second["updated_at"]


def test_keys_that_are_prefixes_of_each_other_are_apart(tenant: Tenant) -> None:
    member = tenant["member"]
    for pk, sk in (("a", "b"), ("a", "b.c"), ("a.b", "c"), ("a", "b~"), ("a", "b-"), ("a~", "b")):
        made(member.put(f"/tables/prefix/{pk}/{sk}", {"value": [pk, sk]}))
    for pk, sk in (("a", "b"), ("a", "b.c"), ("a.b", "c"), ("a", "b~"), ("a", "b-"), ("a~", "b")):
        assert member.get(f"/tables/prefix/{pk}/{sk}").body["value"] == [pk, sk]
    assert {item["sk"] for item in member.items("/tables/prefix/a")} == {"b", "b.c", "b~", "b-"}


def test_case_matters_in_ids(tenant: Tenant) -> None:
    made(tenant["member"].put("/tables/case/p/Key", {"value": 1}))
    problem(tenant["member"].get("/tables/case/p/key"), 404, "NotFound")


def test_a_key_longer_than_440_bytes_is_400(tenant: Tenant) -> None:
    long = "a" * 128
    assert tenant["member"].put(f"/tables/{long}/{long}/{long}", {"value": 1}).status in (201, 400)


# --- session memory ---


@pytest.mark.parametrize("ttl", [0, -1, -(2**40), 2**60])
def test_a_ttl_of_zero_or_below_or_past_all_time_is_400(tenant: Tenant, ttl: int) -> None:
    path = f"/memory/ttl/{fresh('k')}"
    reply = tenant["member"].put(path, {"value": 1, "ttl_seconds": ttl})
    assert problem(reply, 400, "Invalid")["field"] == "ttl_seconds"
    problem(tenant["member"].get(path), 404)


def test_without_a_ttl_nothing_expires(tenant: Tenant) -> None:
    for body in ({"value": 1}, {"value": 1, "ttl_seconds": None}):
        made_record = tenant["member"].put(f"/memory/ttl/{fresh('k')}", body).body
        assert made_record.get("expires_at") is None


def test_memory_expires_when_asked_and_is_then_absent_everywhere(tenant: Tenant) -> None:
    member, key = tenant["member"], fresh("k")
    path = f"/memory/ttl-list/{key}"
    first = record(member.put(path, {"value": 1, "ttl_seconds": 1}), 201)
    assert first["expires_at"] is not None
    until(lambda: member.get(path).status == 404)
    assert key not in {item["key"] for item in member.items("/memory/ttl-list")}
    problem(member.put(path, {"value": 2}, if_match=first["etag"]), 412)
    problem(member.delete(path), 404, "NotFound")
    assert member.put(path, {"value": 2}, if_none_match="*").status == 201


def test_a_put_without_ttl_clears_an_earlier_one(tenant: Tenant) -> None:
    member, path = tenant["member"], f"/memory/ttl/{fresh('k')}"
    made(member.put(path, {"value": 1, "ttl_seconds": 2}))
    assert member.put(path, {"value": 2}).body.get("expires_at") is None
    time.sleep(2.2)
    assert member.get(path).body["value"] == 2


def test_sessions_are_apart_and_keyed_by_the_project(tenant: Tenant) -> None:
    member, project = tenant["member"], fresh("p")
    made(tenant["admin"].post("/projects", {"project_id": project, "name": "P"}))
    made(member.put("/memory/one/k", {"value": 1}))
    made(member.put("/memory/two/k", {"value": 2}))
    bound = member.having(x_project_id=project)
    problem(bound.get("/memory/one/k"), 404, "NotFound")
    made(bound.put("/memory/one/k", {"value": 3}))
    assert (member.get("/memory/one/k").body["value"], bound.get("/memory/one/k").body["value"]) == (1, 3)
    assert bound.get("/memory/one/k").body["project_id"] == project


# --- the blackboard ---


def test_blackboard_versions_count_from_1_and_stay(tenant: Tenant) -> None:
    member, path = tenant["member"], f"/blackboard/r/{fresh('k')}"
    etags = [record(member.put(path, {"value": 1}, if_none_match="*"), 201)["etag"]]
    for value in (2, 3):
        changed = record(member.put(path, {"value": value}, if_match=etags[-1]))
        assert changed["version"] == value
        etags.append(changed["etag"])
    for version in (1, 2, 3):
        old = record(member.get(f"{path}?version={version}"))
        assert (old["version"], old["value"], old["etag"]) == (version, version, etags[version - 1])
    assert member.get(path).body["version"] == 3
    assert [item["version"] for item in member.items(f"{path}/versions")] == [1, 2, 3]
    problem(member.get(f"{path}?version=4"), 404, "NotFound")


@pytest.mark.parametrize("bad", ["0", "-1", "x", "1.5", "", "99999999999999999999"])
def test_a_version_that_is_none_is_400_or_404(tenant: Tenant, bad: str) -> None:
    path = f"/blackboard/r/{fresh('k')}"
    made(tenant["member"].put(path, {"value": 1}, if_none_match="*"))
    reply = tenant["member"].get(f"{path}?version={bad}")
    problem(reply, 400 if not bad.isdigit() or len(bad) > 9 else reply.status)
    assert reply.status in (400, 404)


def test_a_blackboard_write_never_overwrites_silently(tenant: Tenant) -> None:
    path = f"/blackboard/r/{fresh('k')}"
    first = record(tenant["member"].put(path, {"value": 1}, if_none_match="*"), 201)
    problem(tenant["agent"].put(path, {"value": 2}), 428, "PreconditionRequired")
    problem(tenant["agent"].put(path, {"value": 2}, if_none_match="*"), 412)
    assert record(tenant["agent"].put(path, {"value": 2}, if_match=first["etag"]))["version"] == 2
    problem(tenant["member"].put(path, {"value": 3}, if_match=first["etag"]), 412)
    assert tenant["viewer"].get(path).body["value"] == 2


def test_a_blackboard_is_a_runs_and_a_projects(tenant: Tenant) -> None:
    member, project, key = tenant["member"], fresh("p"), fresh("k")
    made(tenant["admin"].post("/projects", {"project_id": project, "name": "P"}))
    made(member.put(f"/blackboard/run-a/{key}", {"value": 1}, if_none_match="*"))
    problem(member.get(f"/blackboard/run-b/{key}"), 404)
    problem(member.get(f"/blackboard/run-a/{key}", x_project_id=project), 404)
    shown = member.get(f"/blackboard/run-a/{key}").body
    assert (shown["run_id"], shown["key"]) == ("run-a", key)


def test_the_routes_options_bound_a_keys_size_and_versions(cast: Cast) -> None:
    house = cast.tenant("owner", "member")
    options = tuple(cast.nobody.get("/openapi.json").body["paths"])
    assert options
    reply = house["owner"].put(
        "/routes/blackboard_store",
        {"backend_id": "lab", "options": {"value_bytes_max": 100, "versions_kept": 2}},
        if_none_match="*",
    )
    if reply.status == 400:
        pytest.fail(f"the names of these options are told by nothing but this: {reply.body}")
    path = f"/blackboard/r/{fresh('k')}"

    def bounded() -> bool:
        return house["member"].put(path, {"value": "a" * 200}, if_none_match="*").status == 413

    until(bounded)
    etag = made(house["member"].put(path, {"value": 1}, if_none_match="*")).etag
    for value in (2, 3, 4):
        etag = house["member"].put(path, {"value": value}, if_match=str(etag)).etag
    assert len(house["member"].items(f"{path}/versions")) == 2
    problem(house["member"].get(f"{path}?version=1"), 404)


# --- notes ---


def test_a_note_has_the_contracts_model(tenant: Tenant) -> None:
    body = {
        "title": "T",
        "content": "# c",
        "tags": ["a", "b"],
        "source": {"created_by": "agent", "agent_id": "a1", "run_id": "r"},
    }
    note = record(tenant["member"].post("/notes", body), 201)
    assert set(note) >= NOTE_FIELDS
    assert {name: note[name] for name in body} == body
    assert note["content_type"] == "markdown"
    assert set(note["timestamps"]) == {"created_at", "updated_at"}
    assert note["timestamps"]["created_at"] == note["timestamps"]["updated_at"]
    assert record(tenant["member"].get(f"/notes/{note['note_id']}")) == note


def test_a_notes_source_says_user_or_agent_by_the_caller(tenant: Tenant) -> None:
    for role, author in (("member", "user"), ("agent", "agent")):
        assert made(tenant[role].post("/notes", {"content": "x"})).body["source"]["created_by"] == author


@pytest.mark.parametrize(
    ("content_type", "content", "status"),
    [
        ("markdown", "# x", 201),
        ("text", "x", 201),
        ("json", {"a": [1]}, 201),
        ("json", "x", 201),
        ("json", None, 201),
        ("json", 7, 201),
        ("markdown", {"a": 1}, 400),
        ("text", None, 400),
        ("text", 7, 400),
        ("html", "x", 400),
        ("", "x", 400),
        (None, "x", 400),
    ],
)
def test_content_is_text_or_any_json_where_its_type_is_json(
    tenant: Tenant, content_type: str, content: Any, status: int
) -> None:
    reply = tenant["member"].post("/notes", {"content": content, "content_type": content_type})
    assert reply.status == status, reply
    if status == 201:
        assert tenant["member"].get(f"/notes/{reply.body['note_id']}").body["content"] == content


@pytest.mark.parametrize("field", ["note_id", "timestamps", "created_at", "etag", "owner"])
def test_a_client_cannot_say_what_the_server_says_of_a_note(tenant: Tenant, field: str) -> None:
    problem(tenant["member"].post("/notes", {"content": "x", field: "x"}), 400, "Invalid")


def test_a_put_replaces_a_note_whole_and_keeps_who_made_it_and_when(tenant: Tenant) -> None:
    first = made(tenant["member"].post("/notes", {"content": "1", "title": "T", "tags": ["a"]})).body
    time.sleep(0.01)
    second = record(tenant["member"].put(f"/notes/{first['note_id']}", {"content": "2"}))
    assert (second["content"], second["title"], second["tags"]) == ("2", "", [])
    assert second["timestamps"]["created_at"] == first["timestamps"]["created_at"]
    assert second["timestamps"]["updated_at"] > first["timestamps"]["updated_at"]


def test_notes_are_filtered_by_surface_project_and_tag_and_found_by_id_on_any_surface(
    cast: Cast,
) -> None:
    house = cast.tenant("member", "admin")
    made(house["admin"].post("/projects", {"project_id": "p1", "name": "P"}))
    member = house["member"]
    bound = {
        "chat": {},
        "canvas": {"x_surface_id": "canvas"},
        "squared": {"x_surface_id": "SQUARED²"},
        "project": {"x_project_id": "p1"},
    }
    made_ids = {
        name: made(member.post("/notes", {"content": name, "tags": [name, "all"]}, **headers)).body["note_id"]
        for name, headers in bound.items()
    }

    def found(query: str, **headers: str) -> set[str]:
        reply = member.having(**headers).items(f"/notes?{query}")
        return {item["content"] for item in reply}

    assert found("surface_id=canvas") == {"canvas"}
    assert found("surface_id=squared2") == {"squared"}
    assert found("project_id=p1") == {"project"}
    assert found("tag=canvas") == {"canvas"}
    assert found("tag=all") == set(bound)
    assert found("tag=none") == set()
    assert found("surface_id=chat&tag=all") == {"chat", "project"}
    for name in bound:
        assert member.get(f"/notes/{made_ids[name]}", x_surface_id="builder").status == 200


def test_a_surface_filter_takes_any_spelling(tenant: Tenant) -> None:
    made(tenant["member"].post("/notes", {"content": "sq"}, x_surface_id="squared2"))
    for spelling in ("SQUARED%C2%B2", "Squared%202", "squared2"):
        assert "sq" in {item["content"] for item in tenant["member"].items(f"/notes?surface_id={spelling}")}


def test_a_filter_on_a_surface_or_project_that_is_not_the_tenants_is_refused_or_empty(tenant: Tenant) -> None:
    for query in ("surface_id=nonesuch", "project_id=nonesuch"):
        reply = tenant["member"].get(f"/notes?{query}")
        assert reply.status in (200, 403), reply
        if reply.status == 200:
            assert reply.body["items"] == []


def test_a_note_id_is_a_uuid_of_the_servers(tenant: Tenant) -> None:
    import uuid

    note = made(tenant["member"].post("/notes", {"content": "x"})).body["note_id"]
    assert str(uuid.UUID(note)) == note


# --- reserved ---


@pytest.mark.parametrize(
    "kind", ["pii_vault", "nexus", "tool_registry", "canvas_registry", "connector_execution", "other"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_every_method_on_a_reserved_kind_is_501(tenant: Tenant, kind: str, method: str) -> None:
    reply = tenant["member"].call(
        method, f"/reserved/{kind}", {} if method in ("POST", "PUT", "PATCH") else None
    )
    problem(reply, 501, "Reserved")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_head_and_options_on_a_reserved_kind_are_501(tenant: Tenant, method: str) -> None:
    assert tenant["member"].call(method, "/reserved/nexus").status == 501


def test_a_reserved_call_with_any_body_is_501(tenant: Tenant) -> None:
    for body in (b"not json", b"[1, 2]", b'{"a": 1}'):
        problem(tenant["member"].post("/reserved/nexus", body), 501, "Reserved")
        problem(tenant["member"].post("/reserved/nexus", body, content_type="text/plain"), 501, "Reserved")


def test_a_reserved_kind_without_a_credential_is_401(cast: Cast) -> None:
    problem(cast.nobody.get("/reserved/nexus"), 401, "Unauthenticated")
