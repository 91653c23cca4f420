"""Budgets from outside: recorded, limited, reserved, settled, added up and told."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, made, until
from tests.contract.wire import problem, record

TOTAL = {"limit_id": "all", "period": "total", "hard": "10"}


@pytest.fixture
def house(cast: Cast) -> Tenant:
    """A budget of the test's own."""
    return cast.tenant("member", "admin", "viewer")


def limited(house: Tenant, *limits: dict[str, Any], **said: Any) -> dict[str, Any]:
    body = {"currency": "USD", "limits": list(limits or (TOTAL,)), **said}
    reply = house["admin"].put("/budget/policy", body)
    return record(reply, reply.status)


def reserved(house: Tenant, amount: str = "1", **said: Any) -> dict[str, Any]:
    return record(house["member"].post("/budget/reservations", {"amount": amount, **said}), 201)


def test_a_use_is_recorded_listed_added_up_and_told(house: Tenant) -> None:
    member = house["member"]
    body = {
        "provider": "openai",
        "model": "gpt-4o",
        "tool": "search",
        "tokens_in": 1200,
        "tokens_out": 80,
        "cost": "0.0038",
        "currency": "USD",
    }
    entry = record(member.post("/budget/usage", body, x_run_id="run-7", x_step_id="2"), 201)
    assert {name: entry[name] for name in body} == body
    assert (entry["run_id"], entry["step_id"], entry["user_id"]) == ("run-7", "2", house.users["member"])
    (listed,) = member.items("/budget/usage?provider=openai&run_id=run-7")
    assert {**listed, "cursor": ""} == {**entry, "cursor": ""}
    assert member.items("/budget/usage?provider=other") == []
    assert member.get(f"/budget/usage?after={listed['cursor']}").body == {"items": [], "after": None}
    summary = house["viewer"].get("/budget/summary").body
    assert (summary["total"]["cost"], summary["total"]["tokens_in"], summary["currency"]) == (
        "0.0038",
        1200,
        "USD",
    )
    assert set(summary["by"]) == {"provider", "model", "tool", "project", "surface", "app", "day"}
    assert [line["value"] for line in summary["by"]["model"]] == ["gpt-4o"]
    verified = house["admin"].get("/budget/summary?by=tool&verify=true").body
    assert verified["verification"] == {"ok": True, "entries": 1, "ledger_cost": "0.0038"}
    (told,) = until(lambda: member.items("/events?event_type=budget"))
    assert (told["payload"]["usage_id"], told["run_id"]) == (entry["usage_id"], "run-7")
    assert told["source"] == "system"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("usage", {"cost": "-1", "currency": "USD"}, "cost"),
        ("usage", {"cost": "NaN", "currency": "USD"}, "cost"),
        ("usage", {"cost": 0.5, "currency": "USD"}, "cost"),
        ("usage", {"cost": "1" * 29, "currency": "USD"}, "cost"),
        ("usage", {"cost": "1", "currency": "QQQ"}, "currency"),
        ("usage", {"cost": "1"}, "currency"),
        ("usage", {"currency": "USD"}, "cost"),
        ("usage", {"cost": "1", "currency": "USD", "tokens_in": -1}, "tokens_in"),
        ("usage", {"cost": "1", "currency": "USD", "corrects": "x"}, "corrects"),
        ("reservations", {"amount": "-1"}, "amount"),
        ("reservations", {"amount": "1", "currency": "QQQ"}, "currency"),
        ("reservations", {"amount": "1", "currency": "USD", "ttl_seconds": 0}, "ttl_seconds"),
        ("policy", {"currency": "QQQ"}, "currency"),
        ("policy", {"currency": "USD", "limits": [{**TOTAL, "period": "week"}]}, "limits[0].period"),
        ("policy", {"currency": "USD", "limits": [{**TOTAL, "hard": "NaN"}]}, "limits[0].hard"),
        (
            "policy",
            {
                "currency": "USD",
                "limits": [
                    {
                        **TOTAL,
                        "valid_from": "2027-01-01T00:00:00Z",
                        "valid_until": "2026-01-01T00:00:00Z",
                    }
                ],
            },
            "limits[0].valid_until",
        ),
        ("summary?since=2026-02-01&until=2026-01-01", None, "until"),
        ("summary?since=2026-02-30", None, "since"),
        ("summary?by=colour", None, "by"),
    ],
)
def test_bad_input_is_400_names_the_field_and_writes_nothing(
    house: Tenant, path: str, body: Any, field: str
) -> None:
    method = "GET" if body is None else "PUT" if path == "policy" else "POST"
    reply = house["admin"].call(method, f"/budget/{path}", body)
    assert problem(reply, 400, "Invalid")["field"] == field
    assert house["member"].items("/budget/usage") == []
    problem(house["member"].get("/budget/policy"), 404, "NotFound")
    assert house["member"].get("/budget/summary").body["position"] == 0


def test_another_tenants_ids_are_nobodys(cast: Cast, house: Tenant) -> None:
    entry = record(house["member"].post("/budget/usage", {"cost": "1", "currency": "USD"}), 201)
    held = reserved(house)
    other = cast.tenant("admin")["admin"]
    made(other.post("/budget/usage", {"cost": "5", "currency": "USD"}))
    correction = {"cost": "0", "corrects": entry["usage_id"]}
    assert problem(other.post("/budget/usage", correction), 404, "NotFound")["field"] == "corrects"
    path = f"/budget/reservations/{held['reservation_id']}"
    problem(other.post(f"{path}/settle", {"cost": "1"}), 404, "NotFound")
    problem(other.post(f"{path}/release"), 404, "NotFound")
    assert len(other.items("/budget/usage")) == 1


def test_a_correction_is_a_new_entry_by_who_sets_the_limits(house: Tenant) -> None:
    member = house["member"]
    entry = record(member.post("/budget/usage", {"cost": "10", "currency": "USD"}), 201)
    body = {"cost": "2.5", "corrects": entry["usage_id"]}
    problem(member.post("/budget/usage", body), 403, "Forbidden")
    assert member.get("/budget/summary").body["position"] == 1
    given = {"idempotency_key": "correct-1"}
    correction = record(house["admin"].post("/budget/usage", body, **given), 201)
    again = house["admin"].post("/budget/usage", body, **given)
    assert (again.replayed, again.body) == (True, correction)
    assert (correction["cost"], correction["adds"]["cost"]) == ("2.5", "-7.5")
    assert [one["cost"] for one in member.items("/budget/usage")] == ["10", "2.5"]
    assert Decimal(member.get("/budget/summary").body["total"]["cost"]) == Decimal("2.5")


def test_the_policy_is_a_versioned_record_with_an_optional_condition(house: Tenant) -> None:
    admin = house["admin"]
    first = record(admin.put("/budget/policy", {"currency": "USD"}, if_none_match="*"), 201)
    problem(admin.put("/budget/policy", {"currency": "USD"}, if_none_match="*"), 412)
    second = record(admin.put("/budget/policy", {"currency": "EUR"}, if_match=first["etag"]))
    assert (first["version"], second["version"]) == (1, 2)
    problem(admin.put("/budget/policy", {"currency": "USD"}, if_match=first["etag"]), 412)
    third = record(admin.put("/budget/policy", {"currency": "USD"}))
    assert record(house["viewer"].get("/budget/policy")) == third


def test_a_price_in_force_says_the_cost(house: Tenant) -> None:
    old = {"provider": "p", "per_unit": "1", "valid_until": "2026-01-01T00:00:00Z"}
    new = {"provider": "p", "per_unit": "2", "valid_from": "2026-01-01T00:00:00Z"}
    limited(house, prices=[old, new])
    for at, cost in (("2025-12-31T23:59:59Z", "3"), ("2026-01-01T00:00:00Z", "6")):
        body = {"provider": "p", "units": 3, "occurred_at": at}
        assert record(house["member"].post("/budget/usage", body), 201)["cost"] == cost


def test_what_does_not_fit_is_429_with_the_time_to_wait_or_409_where_waiting_does_not_help(
    house: Tenant,
) -> None:
    limited(house, TOTAL, {"limit_id": "hourly", "period": "hour", "hard": "3"})
    member = house["member"]
    reserved(house, "2", ttl_seconds=600)
    reply = member.post("/budget/reservations", {"amount": "2"})
    said = problem(reply, 429, "Throttled")
    assert (said["reason_code"], said["scope"]) == (
        "hard_limit",
        {"limit_id": "hourly", "period": "hour"},
    )
    assert 0 < int(reply.headers["Retry-After"]) <= 3_600
    said = problem(member.post("/budget/reservations", {"amount": "11"}), 409, "Conflict")
    assert said["reason_code"] == "hard_limit"
    left = {limit["limit_id"]: limit["left"] for limit in member.get("/budget/summary").body["limits"]}
    assert left == {"all": "8", "hourly": "1"}


def test_a_limit_that_was_taken_away_and_put_again_is_passed_by_nobody(house: Tenant) -> None:
    limited(house)
    made(house["member"].post("/budget/usage", {"cost": "2", "currency": "USD"}))
    held = [reserved(house, "4")]
    record(house["admin"].put("/budget/policy", {"currency": "USD"}))
    made(house["member"].post("/budget/usage", {"cost": "1", "currency": "USD"}))
    held.append(reserved(house, "2"))
    limited(house)
    (standing,) = house["viewer"].get("/budget/summary").body["limits"]
    assert (standing["spent"], standing["held"], standing["left"]) == ("3", "6", "1")
    problem(house["member"].post("/budget/reservations", {"amount": "2"}), 429, "Throttled")
    for one in held:
        record(house["member"].post(f"/budget/reservations/{one['reservation_id']}/release"))
    assert house["viewer"].get("/budget/summary").body["limits"][0]["left"] == "7"


def test_what_another_user_holds_is_freed_by_who_sets_the_limits_alone(cast: Cast, house: Tenant) -> None:
    limited(house)
    colleague = house.join(cast.user(), "member")
    held = [f"/budget/reservations/{reserved(house, '5')['reservation_id']}" for _ in range(2)]
    for path in held:
        problem(colleague.post(f"{path}/release"), 403, "Forbidden")
        problem(colleague.post(f"{path}/settle", {"cost": "0"}), 403, "Forbidden")
    problem(colleague.post("/budget/reservations", {"amount": "1"}), 429, "Throttled")
    by_key = house.key(house.users["member"], "agent")
    assert record(by_key.post(f"{held[0]}/settle", {"cost": "2"}))["settled_cost"] == "2"
    assert record(house["admin"].post(f"{held[1]}/release"))["state"] == "released"


def test_whoever_wants_to_know_what_holds_an_amount_finds_it(cast: Cast, house: Tenant) -> None:
    limited(house)
    made(house["admin"].post("/projects", {"project_id": "p1", "name": "P"}))
    colleague = house.join(cast.user(), "member")
    settled, ended, held = (reserved(house) for _ in range(3))
    path = "/budget/reservations"
    nothing = reserved(house, "0")
    hers = record(colleague.post(path, {"amount": "2"}, x_project_id="p1"), 201)
    record(house["member"].post(f"{path}/{settled['reservation_id']}/settle", {"cost": "1"}))
    record(house["member"].post(f"{path}/{ended['reservation_id']}/release"))
    viewer = house["viewer"]

    def found(query: str, **headers: str) -> list[str]:
        return [item["reservation_id"] for item in viewer.get(f"{path}?{query}", **headers).body["items"]]

    every = [item["state"] for item in viewer.items(path)]
    assert every == ["settled", "released", "held", "held", "held"]
    assert nothing["reservation_id"] in found("")
    assert found("holding=true") == [held["reservation_id"], hers["reservation_id"]]
    assert found(f"holding=true&user_id={house.users['member']}") == [held["reservation_id"]]
    assert found("project_id=p1") == found("", x_project_id="p1") == [hers["reservation_id"]]
    problem(viewer.get(f"{path}?project_id=p2", x_project_id="p1"), 403, "ContextMismatch")
    problem(viewer.get(f"{path}?holding=perhaps"), 400, "Invalid")
    reply = viewer.get(f"{path}/{hers['reservation_id']}")
    assert (record(reply), reply.etag) == (hers, hers["etag"])
    problem(viewer.get(f"{path}/{held['reservation_id']}", x_project_id="p1"), 404, "NotFound")
    problem(cast.tenant("owner")["owner"].get(f"{path}/{held['reservation_id']}"), 404, "NotFound")


def test_settling_and_releasing_again_changes_nothing(house: Tenant) -> None:
    limited(house)
    member = house["member"]
    settled, released = reserved(house, "4"), reserved(house, "6")
    path = f"/budget/reservations/{settled['reservation_id']}"
    said = {"cost": "4.5", "tokens_in": 7}
    found = record(member.post(f"{path}/settle", said))
    assert (found["state"], found["settled_cost"], found["over_limits"]) == ("settled", "4.5", ["all"])
    assert record(member.post(f"{path}/settle", said)) == found
    problem(member.post(f"{path}/settle", {"cost": "4"}), 409, "Conflict")
    problem(member.post(f"{path}/release"), 409, "Conflict")
    path = f"/budget/reservations/{released['reservation_id']}"
    for _ in range(2):
        assert record(member.post(f"{path}/release"))["state"] == "released"
    problem(member.post(f"{path}/settle", {"cost": "4"}), 409, "Conflict")
    (entry,) = member.items("/budget/usage")
    assert (entry["usage_id"], entry["tokens_in"]) == (found["usage_id"], 7)
    problem(member.post("/budget/reservations/nobodys/release"), 404, "NotFound")


def test_concurrent_callers_never_pass_a_hard_limit(house: Tenant) -> None:
    limited(house)
    member = house["member"]
    with ThreadPoolExecutor(40) as pool:
        replies = list(pool.map(lambda _: member.post("/budget/reservations", {"amount": "0.5"}), range(200)))
    assert sorted({reply.status for reply in replies}) == [201, 429]
    assert sum(reply.status == 201 for reply in replies) == 20
    (limit,) = member.get("/budget/summary").body["limits"]
    assert (Decimal(limit["held"]), Decimal(limit["left"])) == (Decimal(10), Decimal(0))


def test_a_soft_limit_that_is_passed_is_shown_and_told_once(house: Tenant) -> None:
    limited(house, {"limit_id": "early", "period": "day", "soft": "1"})
    member = house["member"]
    for cost, passed in (("1", []), ("0.01", ["early"]), ("5", ["early"])):
        entry = record(member.post("/budget/usage", {"cost": cost}), 201)
        assert entry.get("soft_limits", []) == passed

    def told() -> list[Any]:
        events = [event["payload"] for event in member.items("/events?event_type=budget")]
        done = sum(event["kind"] == "usage" for event in events) == 3
        return [event for event in events if event["kind"] == "soft_limit_passed"] if done else []

    (event,) = until(told)
    assert (event["limit_id"], event["spent"]) == ("early", "1.01")
