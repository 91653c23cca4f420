"""Definitions over HTTP: statuses, conditions, scopes, and what a change is known by."""

from typing import Any

import pytest

from tests.contract.cast import Tenant, fresh, made, until
from tests.contract.wire import problem, record
from tests.stores.definition_samples import REFUSED, SAMPLES

PATHS = {name: "/" + name.replace("firearms-", "firearms/") for name in SAMPLES}
IDS = {"temperature": "floors"}


@pytest.mark.parametrize("name", SAMPLES)
def test_each_kind_is_written_read_listed_deleted_and_restored(tenant: Tenant, name: str) -> None:
    owner, sample = tenant["owner"], SAMPLES[name]
    path = f"{PATHS[name]}/{IDS.get(name) or fresh('d')}"
    first = record(owner.put(path, {"json_blob": sample.first}, if_none_match="*"), 201)
    assert first["version"] == 1
    problem(owner.put(path, {"json_blob": sample.second}), 428, "PreconditionRequired")
    problem(owner.put(path, {"json_blob": sample.second}, if_none_match="*"), 412, "Conflict")
    second = record(owner.put(path, {"json_blob": sample.second}, if_match=first["etag"]), 200)
    assert (second["version"], second["json_blob"]) == (2, sample.second)
    assert record(owner.get(path))["json_blob"] == sample.second
    assert record(owner.get(f"{path}?version=1"))["json_blob"] == sample.first
    assert first["id"] in [item["id"] for item in owner.items(PATHS[name])]
    assert owner.get(f"{path}/diff").body["changes"]
    assert owner.delete(path, if_match=second["etag"]).status == 204
    problem(owner.get(path), 404, "NotFound")
    problem(owner.delete(path, if_match="*"), 412, "Conflict")
    assert [item["version"] for item in owner.items(f"{path}/versions")] == [1, 2, 3]
    restored = record(owner.post(f"{path}/restore", {"version": 2}), 200)
    assert (restored["version"], restored["json_blob"]) == (4, sample.second)


@pytest.mark.parametrize(("name", "blob", "field"), REFUSED)
def test_what_breaks_a_rule_is_400_and_names_its_field(
    tenant: Tenant, name: str, blob: Any, field: str
) -> None:
    path = f"{PATHS[name]}/{IDS.get(name) or fresh('d')}"
    reply = tenant["owner"].put(path, {"json_blob": blob}, if_none_match="*")
    assert problem(reply, 400, "Invalid")["field"] == f"json_blob{'.' if field else ''}{field}"


@pytest.mark.parametrize(
    "body", [{}, {"blob": {}}, {"json_blob": {}, "version": 1}, {"json_blob": {}, "id": 7}]
)
def test_another_body_is_400(tenant: Tenant, body: Any) -> None:
    problem(tenant["member"].post("/flows", body), 400, "Invalid")


def test_html_in_a_title_is_kept_as_text(tenant: Tenant) -> None:
    title = '<script>alert("x")</script> & more'
    seo = record(tenant["member"].post("/seo", {"json_blob": {"title": title}}), 201)
    assert record(tenant["member"].get(f"/seo/{seo['id']}"))["json_blob"]["title"] == title


def test_a_graph_of_100_000_nodes_is_too_large(tenant: Tenant) -> None:
    nodes = [{"id": f"n{number}"} for number in range(100_000)]
    reply = tenant["member"].post("/graphs", {"json_blob": {"nodes": nodes, "edges": []}})
    problem(reply, 413, "TooLarge")


def test_versions_that_never_were_are_404_and_malformed_ones_400(tenant: Tenant) -> None:
    member = tenant["member"]
    flow = record(member.post("/flows", {"json_blob": {}}), 201)["id"]
    problem(member.get(f"/flows/{flow}?version=2"), 404, "NotFound")
    problem(member.get(f"/flows/{flow}?version=0"), 400, "Invalid")
    problem(member.get(f"/flows/{flow}/diff?from=1&to=7"), 404, "NotFound")
    problem(member.post(f"/flows/{flow}/restore", {"version": 9}), 404, "NotFound")
    problem(member.get("/flows/never"), 404, "NotFound")
    problem(member.get("/flows/never/versions"), 404, "NotFound")


def test_what_is_anothers_is_not_there(tenant: Tenant, cast: Any) -> None:
    flow = record(tenant["member"].post("/flows", {"json_blob": {}}), 201)["id"]
    other = cast.tenant("member")
    problem(other["member"].get(f"/flows/{flow}"), 404, "NotFound")
    problem(other["member"].delete(f"/flows/{flow}", if_match="*"), 412, "Conflict")
    assert record(tenant["member"].get(f"/flows/{flow}"))["version"] == 1


def test_a_copy_goes_where_its_caller_may_go_and_nowhere_else(tenant: Tenant) -> None:
    member = tenant["member"]
    flow = record(member.post("/flows", {"json_blob": {}}), 201)
    copy = record(member.post(f"/flows/{flow['id']}/copy", {"surface_id": "canvas"}), 201)
    assert (copy["surface_id"], copy["copied_from"]["id"]) == ("canvas", flow["id"])
    problem(member.post(f"/flows/{flow['id']}/copy", {"surface_id": "canvas"}), 409, "Conflict")
    again = record(
        member.post(f"/flows/{flow['id']}/copy", {"surface_id": "canvas"}, if_match=copy["etag"]), 200
    )
    assert again["version"] == 2
    for target in ({"env": "nowhere"}, {"project_id": "nobodys"}, {"surface_id": "none"}):
        reply = member.post(f"/flows/{flow['id']}/copy", target)
        assert reply.status in (400, 403), reply


def test_a_repeat_under_its_key_is_the_first_answer(tenant: Tenant) -> None:
    key = fresh("key")
    first = made(tenant["member"].post("/flows", {"json_blob": {"name": "a"}}, idempotency_key=key))
    again = tenant["member"].post("/flows", {"json_blob": {"name": "a"}}, idempotency_key=key)
    assert (again.status, again.replayed, again.body) == (201, True, first.body)
    other = tenant["member"].post("/flows", {"json_blob": {"name": "b"}}, idempotency_key=key)
    problem(other, 409, "IdempotencyKeyReused")


def test_the_spine_knows_every_version_and_whose_it_was(tenant: Tenant) -> None:
    member = tenant["member"]
    flow = record(member.post("/flows", {"json_blob": {}}, x_run_id="run-9"), 201)
    record(member.put(f"/flows/{flow['id']}", {"json_blob": {"name": "x"}}, if_match=flow["etag"]))

    def told() -> list[Any]:
        events = member.items("/events?event_type=audit")
        mine = [event for event in events if event["payload"].get("id") == flow["id"]]
        return mine if len(mine) == 2 else []

    first, second = until(told)
    assert (first["payload"]["action"], second["payload"]["action"]) == ("created", "changed")
    assert (first["user_id"], first["run_id"], first["source"]) == (
        tenant.users["member"],
        "run-9",
        "system",
    )


def test_a_temperature_has_three_settings_and_no_other(tenant: Tenant) -> None:
    reply = tenant["owner"].put("/temperature/roofs", {"json_blob": {"values": {}}}, if_none_match="*")
    assert problem(reply, 400, "Invalid")["field"] == "id"
