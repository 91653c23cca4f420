"""What kinds of definition do, over HTTP: locks, KPIs, temperatures, approvals."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, Reply, problem

NEW, ANY = {"if_none_match": "*"}, {"if_match": "*"}
LOCK = {"json_blob": {"allowed_actions": ["book_*"]}}
REVIEW = {"verdict": "pass", "reviewers": ["one", "two", "three"]}


def draft(caller: Caller, **members: Any) -> Reply:
    blob = {**LOCK["json_blob"], **members}
    return made(caller.put(f"/strategy-locks/{fresh('lock')}", {"json_blob": blob}, **NEW))


class TestLocks:
    @pytest.mark.parametrize("body", [None, {}, {"review": REVIEW, "note": "sound"}])
    def test_an_admin_approves_what_a_member_proposed(self, tenant: Tenant, body: Any) -> None:
        seen = draft(tenant["member"])
        path = f"/strategy-locks/{seen.body['id']}"
        reply = tenant["admin"].post(f"{path}/approve", body, if_match=str(seen.etag))
        assert reply.status == 200, reply
        assert (reply.body["state"]["status"], reply.body["version"]) == ("approved", 2)
        assert reply.body["state"].get("review") == (body or {}).get("review")
        assert reply.etag == reply.body["etag"] == tenant["viewer"].get(path).etag
        reply = tenant["admin"].post(f"{path}/reject", if_match=str(reply.etag))
        problem(reply, 409, "Conflict")

    def test_it_is_told_as_a_strategy_lock_event(self, tenant: Tenant) -> None:
        lock_id = draft(tenant["member"]).body["id"]
        tenant["owner"].post(f"/strategy-locks/{lock_id}/reject", {"note": "too wide"}, **ANY)

        def told() -> list[str]:
            events = tenant["viewer"].items("/events?event_type=strategy_lock")
            mine = [event["payload"] for event in events if event["payload"]["id"] == lock_id]
            return [payload["state"]["status"] for payload in mine]

        until(lambda: told() == ["draft", "rejected"])

    def test_nobody_decides_about_their_own_nor_without_the_role(self, tenant: Tenant) -> None:
        path = f"/strategy-locks/{draft(tenant['admin']).body['id']}"
        for verb in ("approve", "reject"):
            for role in ("admin", "viewer", "member", "agent"):
                problem(tenant[role].post(f"{path}/{verb}", {}, **ANY), 403, "Forbidden")
        assert tenant["owner"].post(f"{path}/approve", {}, **ANY).status == 200

    def test_a_key_decides_nothing_though_its_user_may(self, tenant: Tenant) -> None:
        path = f"/strategy-locks/{draft(tenant['member']).body['id']}"
        body = {"user_id": tenant.users["owner"], "role": "admin"}
        key = Caller(tenant.cast.url, made(tenant["owner"].post("/keys", body)).body["key"], {})
        until(lambda: key.get("/me").status == 200)
        problem(key.post(f"{path}/approve", {}, **ANY), 403, "Forbidden")
        assert tenant["owner"].post(f"{path}/approve", {}, **ANY).status == 200

    @pytest.mark.parametrize("verb", ["approve", "reject"])
    def test_nobody_decides_about_a_version_that_they_do_not_name(self, tenant: Tenant, verb: str) -> None:
        path = f"/strategy-locks/{draft(tenant['member']).body['id']}"
        problem(tenant["owner"].post(f"{path}/{verb}", {}), 428, "PreconditionRequired")
        assert tenant["owner"].get(path).body["state"]["status"] == "draft"

    def test_a_condition_is_held_and_a_repeat_is_replayed(self, tenant: Tenant) -> None:
        first = draft(tenant["member"])
        path, owner = f"/strategy-locks/{first.body['id']}", tenant["owner"]
        changed = {"json_blob": {"allowed_actions": ["*"]}}
        second = tenant["member"].put(path, changed, if_match=str(first.etag))
        problem(owner.post(f"{path}/approve", {}, if_match=str(first.etag)), 412, "Conflict")
        given = {"if_match": str(second.etag), "idempotency_key": fresh("k")}
        once = owner.post(f"{path}/approve", {}, **given)
        again = owner.post(f"{path}/approve", {}, **given)
        assert (once.status, again.status, again.replayed, again.body) == (200, 200, True, once.body)
        problem(owner.post(f"{path}/approve", {"note": "x"}, **given), 409, "IdempotencyKeyReused")

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"review": {"verdict": "maybe", "reviewers": ["a"]}}, "review.verdict"),
            ({"review": {"verdict": "fail", "reviewers": ["a"]}}, "review.verdict"),
            ({"review": {"verdict": "pass", "reviewers": []}}, "review.reviewers"),
            ({"review": {"verdict": "pass", "reviewers": ["a", "a"]}}, "review.reviewers"),
            ({"review": None, "extra": 1}, "extra"),
            ({}, "review"),
        ],
        ids=repr,
    )
    def test_what_breaks_a_rule_is_400_by_its_field(self, tenant: Tenant, body: Any, field: str) -> None:
        path = f"/strategy-locks/{draft(tenant['member'], three_wise=True).body['id']}"
        assert problem(tenant["owner"].post(f"{path}/approve", body, **ANY), 400, "Invalid")["field"] == field

    def test_another_tenants_lock_is_not_there(self, cast: Cast, tenant: Tenant) -> None:
        lock_id = draft(tenant["member"]).body["id"]
        other = cast.tenant("owner")["owner"]
        for asked in (lock_id, "nonesuch"):
            problem(other.post(f"/strategy-locks/{asked}/approve", {}, **ANY), 412, "Conflict")


class TestKpis:
    def kpi(self, tenant: Tenant, **members: Any) -> str:
        return str(made(tenant["admin"].post("/kpis", {"json_blob": members})).body["id"])

    def test_measurements_are_listed_and_make_a_reading(self, tenant: Tenant) -> None:
        path = f"/kpis/{self.kpi(tenant, aggregation='mean', floor=0.5, ceiling=1)}"
        assert tenant["viewer"].get(f"{path}/reading").body["status"] == "no_data"
        for value in (0.25, 0.75):
            made(tenant["agent"].post(f"{path}/measurements", {"value": value}))
        reply = made(tenant["agent"].post(f"{path}/measurements", {"value": 1, "labels": {"a": "b"}}))
        assert (reply.body["position"], reply.body["value"], reply.body["labels"]) == (3, 1, {"a": "b"})
        items = tenant["viewer"].items(f"{path}/measurements?limit=2")
        assert [item["value"] for item in items] == [0.25, 0.75, 1]
        assert items[2] == reply.body
        after = tenant["viewer"].get(f"{path}/measurements?after={items[0]['cursor']}").body["items"]
        assert after == items[1:]
        newest = tenant["viewer"].get(f"{path}/measurements?order=desc&limit=1").body["items"]
        assert newest == items[2:]
        reading = tenant["viewer"].get(f"{path}/reading").body
        assert (reading["value"], reading["status"], reading["count"]) == (2 / 3, "within", 3)
        assert (reading["first_position"], reading["last_position"]) == (1, 3)

    def test_a_viewer_reads_and_does_not_measure(self, tenant: Tenant) -> None:
        path = f"/kpis/{self.kpi(tenant)}"
        problem(tenant["viewer"].post(f"{path}/measurements", {"value": 1}), 403, "Forbidden")

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            (b'{"value": 1e999}', "value"),
            (b'{"value": 2e300}', "value"),
            ({"value": "1"}, "value"),
            ({"value": None}, "value"),
            ({}, "value"),
            ({"value": 1, "occurred_at": "now"}, "occurred_at"),
            ({"value": 1, "labels": {"a": 1}}, "labels[...]"),
            ({"value": 1, "at": 2}, "at"),
        ],
        ids=repr,
    )
    def test_what_breaks_a_rule_is_400_by_its_field(self, tenant: Tenant, body: Any, field: str) -> None:
        path = f"/kpis/{self.kpi(tenant)}/measurements"
        assert problem(tenant["member"].post(path, body), 400, "Invalid")["field"] == field
        problem(tenant["member"].post(path, b'{"value": NaN}'), 400, "Invalid")
        assert tenant["member"].get(path).body["items"] == []

    def test_a_repeat_is_replayed(self, tenant: Tenant) -> None:
        path, key = f"/kpis/{self.kpi(tenant)}/measurements", fresh("k")
        once = made(tenant["member"].post(path, {"value": 1}, idempotency_key=key))
        again = tenant["member"].post(path, {"value": 1}, idempotency_key=key)
        assert (again.status, again.replayed, again.body) == (201, True, once.body)
        problem(tenant["member"].post(path, {"value": 2}, idempotency_key=key), 409, "IdempotencyKeyReused")

    def test_another_surface_or_tenant_has_no_such_kpi(self, cast: Cast, tenant: Tenant) -> None:
        kpi_id = self.kpi(tenant)
        elsewhere = tenant["member"].having(x_surface_id="canvas")
        for caller in (elsewhere, cast.tenant("member")["member"]):
            problem(caller.get(f"/kpis/{kpi_id}/reading"), 404, "NotFound")
            problem(caller.get(f"/kpis/{kpi_id}/measurements"), 404, "NotFound")
            problem(caller.post(f"/kpis/{kpi_id}/measurements", {"value": 1}), 404, "NotFound")


class TestTemperature:
    def test_a_surfaces_temperature_is_read_and_says_what_is_missing(self, cast: Cast) -> None:
        house = cast.tenant("member", "admin")
        member, admin = house["member"], house["admin"]
        empty = member.get("/temperature/chat/reading")
        assert (empty.status, empty.body["temperature"]) == (200, None)
        assert empty.body["missing"] == [{"what": "weights"}]
        made(admin.put("/kpis/success", {"json_blob": {}}, **NEW))
        for setting, value in (("floors", 0), ("ceilings", 10), ("weights", 2)):
            made(admin.put(f"/temperature/{setting}", {"json_blob": {"values": {"success": value}}}, **NEW))
        lacking = member.get("/temperature/chat/reading").body
        assert (lacking["temperature"], lacking["missing"]) == (
            None,
            [{"what": "reading", "kpi_id": "success"}],
        )
        made(member.post("/kpis/success/measurements", {"value": 2.5}))
        body = member.get("/temperature/CHAT/reading").body
        assert (body["temperature"], body["missing"], body["surface_id"]) == (0.25, [], "chat")
        (part,) = body["kpis"]
        assert (part["heat"], part["reading"]["last_position"]) == (0.25, 1)

    def test_the_path_names_a_surface_that_is_the_callers_to_name(self, cast: Cast) -> None:
        house = cast.tenant("member")
        member = house["member"]
        assert member.get("/temperature/canvas/reading").body["surface_id"] == "canvas"
        bound = cast.as_user(house.users["member"], {"surface_id": "chat"})
        for caller, surface in (
            (bound, "canvas"),
            (bound, "nonesuch"),
            (member, "nonesuch"),
            (member.having(x_surface_id="chat"), "canvas"),
        ):
            said = problem(caller.get(f"/temperature/{surface}/reading"), 403, "ContextMismatch")
            assert said["field"] == "surface_id"


class TestApprovals:
    @pytest.fixture(scope="class")
    def action(self, cast: Cast, tenant: Tenant) -> str:
        """An action bound to a class of t_system's that is offered to the tenant."""
        action, class_id = fresh("refund"), fresh("payments")
        blob = {"risk_level": "high", "offered_to": [tenant.tenant_id]}
        made(cast.system_admin.put(f"/firearms/{class_id}", {"json_blob": blob}, **NEW))
        bound = {"class_id": class_id, "actions": [action]}
        made(cast.system_admin.put(f"/firearms/bindings/{class_id}", {"json_blob": bound}, **NEW))
        until(lambda: tenant["member"].post("/approvals", self.asking(action)).status != 400)
        return action

    def asking(self, action: str) -> dict[str, Any]:
        return {"action": action, "subject": fresh("order"), "reason": "broken", "context": {"n": 1}}

    def test_a_member_asks_and_an_admin_answers(self, tenant: Tenant, action: str) -> None:
        body = self.asking(action)
        asked = made(tenant["member"].post("/approvals", body))
        path = f"/approvals/{asked.body['approval_id']}"
        assert (asked.body["status"], asked.body["context"]) == ("pending", {"n": 1})
        problem(tenant["member"].post("/approvals", body), 409, "Conflict")
        waiting = tenant["viewer"].items(f"/approvals?status=pending&requested_by={tenant.users['member']}")
        assert asked.body in waiting
        for role in ("viewer", "member", "agent"):
            problem(tenant[role].post(f"{path}/answer", {"answer": "yes"}), 403, "Forbidden")
        given = {"idempotency_key": fresh("k"), "if_match": str(asked.etag)}
        reply = tenant["admin"].post(f"{path}/answer", {"answer": "yes", "note": "go"}, **given)
        assert (reply.status, reply.body["status"]) == (200, "granted")
        assert reply.body["answer"]["answered_by"] == tenant.users["admin"]
        again = tenant["admin"].post(f"{path}/answer", {"answer": "yes", "note": "go"}, **given)
        assert (again.status, again.replayed, again.body) == (200, True, reply.body)
        problem(tenant["owner"].post(f"{path}/answer", {"answer": "no"}), 409, "Conflict")
        assert tenant["member"].get(path).body == reply.body

        def told() -> list[str]:
            events = [event["payload"] for event in tenant["viewer"].items("/events?event_type=audit")]
            return [one["status"] for one in events if one.get("id") == asked.body["approval_id"]]

        until(lambda: told() == ["pending", "granted"])

    def test_nobody_answers_themselves(self, tenant: Tenant, action: str) -> None:
        asked = made(tenant["owner"].post("/approvals", self.asking(action)))
        path = f"/approvals/{asked.body['approval_id']}/answer"
        problem(tenant["owner"].post(path, {"answer": "yes"}), 403, "Forbidden")
        assert tenant["admin"].post(path, {"answer": "no"}).body["status"] == "refused"

    def test_a_key_for_somebody_else_is_no_second_pair_of_eyes(
        self, cast: Cast, tenant: Tenant, action: str
    ) -> None:
        maker, other = tenant.users["admin"], cast.user()
        tenant.join(other, "admin")
        body = {"user_id": other, "role": "admin"}
        first = made(tenant["admin"].post("/keys", body)).body
        through = Caller(cast.url, first["key"], {})
        second = made(through.post("/keys", {"user_id": tenant.users["member"], "role": "member"})).body
        assert (first["made_by"], second["made_by"]) == ([maker], [other, maker])
        key = Caller(cast.url, second["key"], {})
        assert key.get("/me").body["key_made_by"] == [other, maker]
        asked = made(key.post("/approvals", self.asking(action))).body
        assert (asked["requested_by"], asked["key_made_by"]) == (tenant.users["member"], [other, maker])
        path = f"/approvals/{asked['approval_id']}/answer"
        for caller in (through, tenant["admin"], cast.as_user(other)):
            problem(caller.post(path, {"answer": "yes"}), 403, "Forbidden")
        assert tenant["owner"].post(path, {"answer": "yes"}).body["status"] == "granted"

    def test_a_viewer_does_not_ask_and_another_tenant_sees_nothing(
        self, cast: Cast, tenant: Tenant, action: str
    ) -> None:
        problem(tenant["viewer"].post("/approvals", self.asking(action)), 403, "Forbidden")
        asked = made(tenant["member"].post("/approvals", self.asking(action)))
        other = cast.tenant("owner")["owner"]
        for approval_id in (asked.body["approval_id"], "nonesuch"):
            problem(other.get(f"/approvals/{approval_id}"), 404, "NotFound")
            problem(other.post(f"/approvals/{approval_id}/answer", {"answer": "yes"}), 404, "NotFound")
        assert other.get("/approvals").body["items"] == []

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"action": "harmless"}, "action"),
            ({"class_id": "other"}, "class_id"),
            ({"subject": ""}, "subject"),
            ({"ttl_seconds": 0}, "ttl_seconds"),
            ({"extra": 1}, "extra"),
        ],
        ids=repr,
    )
    def test_what_breaks_a_rule_is_400_by_its_field(
        self, tenant: Tenant, action: str, change: Any, field: str
    ) -> None:
        reply = tenant["member"].post("/approvals", {**self.asking(action), **change})
        assert problem(reply, 400, "Invalid")["field"] == field
