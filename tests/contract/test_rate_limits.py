"""Rate limits over HTTP: a policy that is data, 429 with Retry-After, and nobody locked out of mending it."""

import time
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, Reply, problem

POLICY = "/rate-limits/policy"
LAB = {"backend_id": "lab"}
NEW = {"if_none_match": "*"}
# A test of this file takes less.
HURRY_S = 15.0


def limit(count: int, *per: str, **fields: Any) -> dict[str, Any]:
    """`count` an hour."""
    return {"name": "l", "per": per or ("tenant",), "limit": count, "window_seconds": 3600, **fields}


@pytest.fixture(autouse=True)
def early_in_an_hour() -> None:
    """No test meets two windows: they begin with the hour, by the clock of this machine."""
    left_s = 3600 - time.time() % 3600
    if left_s < HURRY_S:
        time.sleep(left_s)


@pytest.fixture
def house(cast: Cast) -> Tenant:
    return cast.tenant("owner", "admin", "member", "viewer")


def adopt(house: Tenant, *limits: dict[str, Any]) -> Reply:
    """Set the limits; the server that took them goes by them at once."""
    reply = house["owner"].put(POLICY, {"limits": list(limits)})
    assert reply.status in (200, 201), reply
    return reply


def spend(caller: Caller, path: str = "/notes", count: int = 30) -> int:
    """How many of so many reads were answered before the first refusal."""
    for number in range(count):
        reply = caller.get(path)
        if reply.status == 429:
            return number
        assert reply.status == 200, reply
    return count


def test_a_policy_is_a_versioned_record_of_the_tenant_and_env(house: Tenant) -> None:
    owner = house["owner"]
    problem(owner.get(POLICY), 404, "NotFound")
    first = made(owner.put(POLICY, {"limits": [limit(100)]}, **NEW))
    assert (first.body["tenant_id"], first.body["env"], first.body["version"]) == (house.tenant_id, "prod", 1)
    assert first.body["limits"] == [{**limit(100), "per": ["tenant"], "route": "*"}]
    assert first.body["etag"] == first.etag
    problem(owner.put(POLICY, {"limits": []}, **NEW), 412, "Conflict")
    second = owner.put(POLICY, {"limits": []}, if_match=str(first.etag))
    assert (second.status, second.body["version"], second.body["limits"]) == (200, 2, [])
    problem(owner.put(POLICY, {"limits": []}, if_match=str(first.etag)), 412, "Conflict")
    assert owner.get(POLICY).etag == second.etag


def test_each_env_has_a_policy_of_its_own(cast: Cast) -> None:
    house = cast.tenant("owner", envs=["prod", "dev"])
    dev = house["owner"].having(x_env="dev")
    made(dev.put(POLICY, {"limits": [limit(2)], "env": "dev", "tenant_id": house.tenant_id}))
    problem(house["owner"].get(POLICY), 404, "NotFound")
    assert spend(dev) == 2
    assert spend(house["owner"]) == 30


def test_past_a_limit_it_is_429_with_retry_after_and_the_fields_of_the_draft(house: Tenant) -> None:
    adopt(house, limit(3, "user", name="per-user"), limit(1_000, name="all"))
    assert spend(house["member"]) == 3
    refused = house["member"].get("/notes")
    said = problem(refused, 429, "Throttled")
    assert said["resource_kind"] == "rate_limit_store"
    assert "per-user" in said["detail"]
    assert 0 < int(refused.headers["Retry-After"]) <= 3600
    assert refused.headers["RateLimit-Policy"] == '"per-user";q=3;w=3600,"all";q=1000;w=3600'
    seconds = refused.headers["Retry-After"]
    assert refused.headers["RateLimit"] == f'"per-user";r=0;t={seconds},"all";r=997;t={seconds}'
    assert spend(house["viewer"]) == 3


def test_a_refused_change_changes_nothing(house: Tenant) -> None:
    adopt(house, limit(1, route="POST /notes"))
    made(house["member"].post("/notes", {"content": "one"}))
    problem(house["member"].post("/notes", {"content": "two"}), 429, "Throttled")
    assert [note["content"] for note in house["member"].items("/notes")] == ["one"]


def test_one_tenants_limits_are_no_others(cast: Cast, house: Tenant) -> None:
    adopt(house, limit(1))
    assert spend(house["member"]) == 1
    assert spend(cast.demo["member"]) == 30


def test_an_api_key_has_a_quota_of_its_own_and_a_token_none(house: Tenant) -> None:
    user = house.users["member"]
    first, second = house.key(user, "member"), house.key(user, "member")
    assert first.get("/me").body["key_id"] != second.get("/me").body["key_id"]
    assert house["member"].get("/me").body["key_id"] is None
    adopt(house, limit(2, "key"))
    assert spend(first) == 2
    assert spend(second) == 2
    assert spend(house["member"]) == 30


def test_a_limit_of_one_call_leaves_the_others_alone(house: Tenant) -> None:
    adopt(house, limit(1, route="GET /tables/{table}/{pk}"))
    assert spend(house["member"], "/tables/t/a") == 1
    assert spend(house["member"], "/tables/t/b") == 0
    assert spend(house["member"]) == 30


def test_who_met_the_limit_can_still_mend_it_and_everything_it_rests_on(house: Tenant) -> None:
    adopt(house, limit(1))
    owner = house["owner"]
    assert spend(owner) == 1
    for path in (
        "/me",
        POLICY,
        "/bootstrap",
        "/routes",
        "/routes/rate_limit_store/resolve",
        "/diagnostics/routes",
        "/keys",
        house.path(),
        "/health/live",
        "/health/ready",
    ):
        assert owner.get(path).status == 200, path
    key = made(owner.post("/keys", {"user_id": house.users["member"], "role": "member"})).body["key_id"]
    assert owner.delete(f"/keys/{key}").status == 204
    problem(owner.get("/notes"), 429, "Throttled")
    adopt(house, limit(1_000))
    until(lambda: owner.get("/notes").status == 200)


def test_a_policy_holds_within_a_second_and_the_spine_is_told(house: Tenant) -> None:
    adopt(house, limit(1, "user"))
    assert spend(house["member"]) == 1
    adopt(house)

    def told() -> list[str]:
        events = house["admin"].items("/events?event_type=audit")
        return [event["payload"]["action"] for event in events if "rate_limits" in str(event["payload"])]

    until(lambda: told() == ["rate_limits.created", "rate_limits.replaced"])


@pytest.mark.parametrize("role", ["owner", "admin", "member", "viewer"])
def test_admins_and_owners_set_it_and_every_role_reads_it(house: Tenant, role: str) -> None:
    reply = house[role].put(POLICY, {"limits": []})
    if role in ("owner", "admin"):
        made(reply)
    else:
        problem(reply, 403, "Forbidden")
        made(house["owner"].put(POLICY, {"limits": []}))
    assert house[role].get(POLICY).status == 200


def test_an_admin_of_t_system_sets_it_for_a_tenant(cast: Cast, house: Tenant) -> None:
    made(house.operator.put(POLICY, {"limits": [limit(1)], "tenant_id": house.tenant_id}))
    assert house["owner"].get(POLICY).body["limits"][0]["limit"] == 1
    said = problem(house.operator.put(POLICY, {"limits": [], "tenant_id": "t_demo"}), 403, "ContextMismatch")
    assert said["field"] == "tenant_id"
    problem(house.operator.put(POLICY, {"limits": [], "env": "dev"}), 403, "ContextMismatch")
    problem(
        cast.demo["owner"].put(POLICY, {"limits": [], "tenant_id": house.tenant_id}), 403, "ContextMismatch"
    )


def test_the_same_request_again_is_answered_as_the_first_was(house: Tenant) -> None:
    key = fresh("key")
    first = made(house["owner"].put(POLICY, {"limits": [limit(5)]}, idempotency_key=key))
    again = house["owner"].put(POLICY, {"limits": [limit(5)]}, idempotency_key=key)
    assert (again.status, again.body, again.replayed) == (first.status, first.body, True)
    other = house["owner"].put(POLICY, {"limits": []}, idempotency_key=key)
    problem(other, 409, "IdempotencyKeyReused")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, None),
        ({"limits": [limit(0)]}, "limits[0].limit"),
        ({"limits": [limit(-1)]}, "limits[0].limit"),
        ({"limits": [limit(2**40)]}, "limits[0].limit"),
        ({"limits": [{**limit(1), "limit": 1.5}]}, "limits[0].limit"),
        ({"limits": [{**limit(1), "window_seconds": 0}]}, "limits[0].window_seconds"),
        ({"limits": [{**limit(1), "window_seconds": 86_401}]}, "limits[0].window_seconds"),
        ({"limits": [{**limit(1), "per": []}]}, "limits[0].per"),
        ({"limits": [limit(1, "planet")]}, "limits[0].per[0]"),
        ({"limits": [limit(1, "user", "user")]}, "limits[0].per"),
        ({"limits": [limit(1, "tenant", "user")]}, "limits[0].per"),
        ({"limits": [{**limit(1), "name": "A b"}]}, "limits[0].name"),
        ({"limits": [limit(1), limit(2)]}, "limits[1].name"),
        ({"limits": [limit(1, route="GET /nothing")]}, "limits[0].route"),
        ({"limits": [limit(1, route="GET /notes/n1")]}, "limits[0].route"),
        ({"limits": [limit(1, route="GET /me")]}, "limits[0].route"),
        ({"limits": [limit(1, route="/notes")]}, "limits[0].route"),
        ({"limits": [limit(1, colour="red")]}, None),
        ({"limits": [{**limit(1), "name": f"n{number}"} for number in range(33)]}, "limits"),
    ],
)
def test_a_policy_that_breaks_a_rule_is_400_with_its_field_and_nothing_is_written(
    tenant: Tenant, body: Any, field: str | None
) -> None:
    said = problem(tenant["owner"].put(POLICY, body), 400, "Invalid")
    if field is not None:
        assert said["field"] == field
    problem(tenant["owner"].get(POLICY), 404, "NotFound")


def test_without_a_route_a_limited_tenant_is_refused_and_an_unlimited_one_is_not(
    cast: Cast, house: Tenant
) -> None:
    system = cast.system_admin
    bare, limited = cast.tenant("member", "owner"), house
    adopt(limited, limit(1_000))
    route = system.get("/routes/rate_limit_store/resolve")
    assert system.delete("/routes/rate_limit_store", if_match=str(route.etag)).status == 204
    try:
        # The block that the process has in memory was taken before; what it admits is counted.
        until(lambda: limited["member"].get("/notes").status == 503)
        said = problem(limited["member"].get("/notes"), 503, "MissingRoute")
        assert said["resource_kind"] == "rate_limit_store"
        assert bare["member"].get("/notes").status == 200
        assert limited["owner"].get(POLICY).status == 200
        made(limited["owner"].put("/routes/rate_limit_store", LAB, **NEW))
        until(lambda: limited["member"].get("/notes").status == 200)
    finally:
        made(system.put("/routes/rate_limit_store", LAB, **NEW))
