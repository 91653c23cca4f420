"""The gate chain over HTTP: evaluations, what is switched off, what guards a call of ours, and the replay."""

from functools import partial
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, fresh, made, until
from tests.contract.wire import Caller, Reply, problem, record

REFUND = {"action": "refund.create", "subject": "order-7", "details": {"amount": "12.50"}}
STREAM = "/streams/s/events"
EVENT = {"event_type": "analytics", "payload": {}}
NEW = {"if_none_match": "*"}
DECISION = {
    "decision",
    "gate",
    "reason_code",
    "gate_status",
    "action",
    "subject",
    "dry_run",
    "details",
    "gates",
    "event_id",
    "position",
    "cursor",
}


@pytest.fixture
def house(cast: Cast) -> Tenant:
    return cast.tenant("viewer", "member", "agent", "admin", "owner")


def decided(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200, reply
    body: dict[str, Any] = reply.body
    assert set(body) == DECISION
    return body


def blocked(caller: Caller, **fields: Any) -> bool:
    decision: str = decided(caller.post("/gates/evaluate", {**REFUND, **fields}))["decision"]
    return decision == "block"


def safety(caller: Caller) -> list[dict[str, Any]]:
    return caller.items("/events?event_type=safety")


def test_an_evaluation_answers_what_stands_on_the_spine(house: Tenant) -> None:
    answer = decided(house["member"].having(x_run_id="run-9").post("/gates/evaluate", REFUND))
    assert (answer["decision"], answer["gate"], answer["reason_code"]) == ("pass", None, "passed")
    assert answer["gates"] is None
    (event,) = safety(house["viewer"])
    assert (event["event_id"], event["cursor"]) == (answer["event_id"], answer["cursor"])
    assert (event["run_id"], event["source"], event["user_id"]) == (
        "run-9",
        "system",
        house.users["member"],
    )
    payload = event["payload"]
    assert (payload["result"], payload["subject"], payload["asked"]) == (
        "pass",
        "order-7",
        {"amount": "12.50"},
    )


def test_what_is_switched_off_is_blocked_until_it_is_let_go_of(house: Tenant) -> None:
    admin, member = house["admin"], house["member"]
    assert problem(admin.get("/gates/kill-switch"), 404, "NotFound")
    body = {"switches": [{"action": "refund.*", "reason": "wrong amounts"}]}
    switch = record(admin.put("/gates/kill-switch", body), 201)
    assert (switch["engaged"], switch["switches"]) == (False, body["switches"])
    assert (switch["holder_id"], switch["tenant_id"]) == (house.tenant_id, house.tenant_id)
    assert record(house["viewer"].get("/gates/kill-switch")) == switch
    answer = decided(member.post("/gates/evaluate", REFUND))
    assert (answer["decision"], answer["gate"], answer["reason_code"]) == (
        "block",
        "kill_switch",
        "kill_switch_engaged",
    )
    assert answer["details"] == {
        "held_by": house.tenant_id,
        "off": "part",
        "action": "refund.*",
        "reason": "wrong amounts",
    }
    assert not blocked(member, action="book")
    record(house["owner"].put("/gates/kill-switch", {}, if_match=switch["etag"]))
    until(lambda: not blocked(member))


def test_an_admin_of_the_system_switches_off_a_tenant_that_cannot_let_go(house: Tenant) -> None:
    record(house.operator.put("/gates/kill-switch", {"engaged": True}), 201)
    until(lambda: blocked(house["member"]))
    problem(house["owner"].get("/gates/kill-switch"), 404, "NotFound")
    made(house["owner"].put("/gates/kill-switch", {"engaged": False}))
    assert decided(house["member"].post("/gates/evaluate", REFUND))["details"]["held_by"] == "t_system"
    record(house.operator.put("/gates/kill-switch", {}))
    until(lambda: not blocked(house["member"]))


def test_an_admin_of_the_system_switches_off_everybody(cast: Cast, house: Tenant) -> None:
    action = fresh("everybody")
    other = cast.tenant("member")
    body = {"switches": [{"action": action}]}
    assert cast.system_admin.put("/gates/kill-switch", body).status in (200, 201)
    for caller in (house["member"], other["member"]):
        until(partial(blocked, caller, action=action))
        assert not blocked(caller)
    record(cast.system_admin.put("/gates/kill-switch", {}))
    until(lambda: not blocked(house["member"], action=action))


def test_a_guarded_call_is_403_with_gate_and_reason_and_nothing_is_written(house: Tenant) -> None:
    member, admin = house["member"], house["admin"]
    made(member.post(STREAM, EVENT))
    assert safety(member) == []
    rule = {"action": "streams.append", "gates": ["kill_switch"]}
    config = record(admin.put("/gates/config/chat", {"rules": [rule]}), 201)
    assert (config["rules"], config["otherwise"], config["surface_id"]) == ([rule], "base", "chat")
    assert record(admin.get("/gates/config/chat")) == config
    until(lambda: member.post(STREAM, EVENT).status == 201 and len(safety(member)) == 1)
    made(admin.put("/gates/kill-switch", {"engaged": True}))
    until(lambda: member.post(STREAM, EVENT).status == 403)
    before = len(member.items(STREAM))
    said = problem(member.post(STREAM, EVENT), 403, "GateDenied")
    assert (said["gate"], said["reason_code"]) == ("kill_switch", "kill_switch_engaged")
    assert len(member.items(STREAM)) == before
    last = safety(member)[-1]["payload"]
    assert (last["action"], last["subject"], last["result"]) == ("streams.append", STREAM, "block")
    count = len(safety(member))
    problem(house["viewer"].post(STREAM, EVENT), 403, "Forbidden")
    assert len(safety(member)) == count, "who may not make the call at all is not judged"
    made(member.post("/events", EVENT))


def test_without_a_spine_it_is_503_and_a_block_for_both(cast: Cast, house: Tenant) -> None:
    member, admin = house["member"], house["admin"]
    made(admin.put("/gates/config/chat", {"rules": [{"action": "streams.*", "gates": ["kill_switch"]}]}))
    until(lambda: member.post(STREAM, EVENT).status == 201 and len(safety(member)) > 0)
    system = cast.system_admin
    found = system.get("/routes/event_spine/resolve")
    assert system.delete("/routes/event_spine", if_match=str(found.etag)).status == 204
    try:
        until(lambda: member.get("/events").status == 503)
        said = problem(member.post("/gates/evaluate", REFUND), 503, "MissingRoute")
        assert (said["decision"], said["resource_kind"]) == ("block", "event_spine")
        said = problem(member.post(STREAM, EVENT), 503, "MissingRoute")
        assert said["decision"] == "block"
    finally:
        body = {"backend_id": found.body["route"]["backend_id"]}
        made(system.put("/routes/event_spine", body, **NEW))
        until(lambda: member.get("/events").status == 200)


def test_a_repeat_under_a_key_is_the_first_decision(house: Tenant) -> None:
    member = house["member"]
    first = member.post("/gates/evaluate", REFUND, idempotency_key="k1")
    made(house["admin"].put("/gates/kill-switch", {"engaged": True}))
    until(lambda: blocked(member))
    again = member.post("/gates/evaluate", REFUND, idempotency_key="k1")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.body == first.body
    assert again.body["decision"] == "pass"
    elsewhere = member.having(x_surface_id="canvas")
    problem(elsewhere.post("/gates/evaluate", REFUND, idempotency_key="k1"), 409, "IdempotencyKeyReused")
    other = member.post("/gates/evaluate", {"action": "book"}, idempotency_key="k1")
    problem(other, 409, "IdempotencyKeyReused")


def test_an_explanation_shows_every_gates_inputs(house: Tenant) -> None:
    answer = decided(house["member"].post("/gates/evaluate?explain=true", REFUND))
    gate, firearms = answer["gates"]
    assert (firearms["gate"], firearms["inputs"]) == ("firearms", {"bound": False})
    assert (gate["gate"], gate["result"], gate["reason_code"]) == ("kill_switch", "pass", "passed")
    assert (gate["inputs"]["surface_id"], gate["inputs"]["action"]) == ("chat", "refund.create")
    problem(house["agent"].post("/gates/evaluate?explain=true", REFUND), 403, "Forbidden")
    assert decided(house["agent"].post("/gates/evaluate?explain=false", REFUND))["gates"] is None


def test_a_rehearsal_is_marked(house: Tenant) -> None:
    assert decided(house["member"].post("/gates/evaluate", {**REFUND, "dry_run": True}))["dry_run"] is True
    assert safety(house["member"])[-1]["payload"]["dry_run"] is True


def test_decisions_are_replayed_from_the_last_that_was_seen(house: Tenant) -> None:
    member = house["member"]
    answers = []
    for number in range(4):
        answers.append(decided(member.post("/gates/evaluate", {**REFUND, "subject": f"s{number}"})))
        made(member.post("/events", EVENT))
    after = answers[1]["cursor"]
    rest = member.get(f"/events?event_type=safety&after={after}").body["items"]
    assert [event["payload"]["subject"] for event in rest] == ["s2", "s3"]
    with member.stream("/events/stream", last_event_id=answers[1]["event_id"]) as frames:
        # The audit events of how the house was made go by the outbox, and may come between these.
        seen = (event for event in iter(frames.event, None) if event["event_type"] == "safety")
        assert [next(seen)["payload"]["subject"] for _ in rest] == ["s2", "s3"]


def test_safety_events_are_the_servers_alone(house: Tenant) -> None:
    problem(house["owner"].post("/events", {"event_type": "safety", "payload": {}}), 403, "Forbidden")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "action"),
        ({"action": "a b"}, "action"),
        ({"action": 5}, "action"),
        ({"action": "a", "nonesuch": 1}, "nonesuch"),
        ({"action": "a", "subject": ""}, "subject"),
        ({"action": "a", "details": []}, "details"),
        ({"action": "a", "dry_run": "yes"}, "dry_run"),
        ({"action": "a", "cost": {"amount": "-1", "currency": "USD"}}, "cost.amount"),
        ({"action": "a", "cost": {"amount": 1, "currency": "USD"}}, "cost.amount"),
        ({"action": "a", "cost": {"amount": "1"}}, "cost.currency"),
        ({"action": "a", "parent_event_id": "x"}, "parent_event_id"),
        ({"action": "a", "causality": {"trace": "x"}}, "causality.trace"),
    ],
    ids=repr,
)
def test_a_body_that_breaks_a_rule_is_400_and_nothing_is_recorded(
    tenant: Tenant, body: Any, field: str
) -> None:
    before = len(safety(tenant["member"]))
    said = problem(tenant["member"].post("/gates/evaluate", body), 400, "Invalid")
    assert said["field"] == field
    assert len(safety(tenant["member"])) == before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/gates/kill-switch", {"engaged": "yes"}),
        ("/gates/kill-switch", {"nonesuch": 1}),
        ("/gates/kill-switch", {"switches": [{}]}),
        ("/gates/kill-switch", {"switches": [{"action": "a*b"}]}),
        ("/gates/kill-switch", {"switches": [{"surface_id": "nonesuch"}]}),
        ("/gates/kill-switch", {"switches": [{"action": "a"}] * 101}),
        ("/gates/config/chat", {"rules": [{"action": "a", "gates": ["nonesuch"]}]}),
        ("/gates/config/chat", {"rules": [{"action": "a", "gates": ["kill_switch"] * 2}]}),
        ("/gates/config/chat", {"rules": [{"action": "a", "gates": []}] * 2}),
        ("/gates/config/chat", {"rules": [{"action": "a"}]}),
        ("/gates/config/chat", {"otherwise": "pass"}),
        ("/gates/config/chat", {"surface_id": "canvas"}),
    ],
    ids=repr,
)
def test_what_is_no_switch_and_no_configuration_is_400(tenant: Tenant, path: str, body: Any) -> None:
    problem(tenant["owner"].put(path, body), 400, "Invalid")
    problem(tenant["owner"].get(path), 404, "NotFound")


class TestWhereABearerChooses:
    """A rule is its surface's: which that is a header says, unless the credential is bound to one."""

    @pytest.fixture
    def bearers(self, cast: Cast, house: Tenant) -> dict[str, Caller]:
        """An agent of its own rule on chat, by a free and a bound key, and by a bound token."""
        body = {"rules": [{"action": "refund.*", "gates": ["strategy_lock"]}]}
        assert house["owner"].put("/gates/config/chat", body).status == 201
        said = {"user_id": house.users["agent"], "role": "agent"}
        free, bound = (
            Caller(cast.url, made(house["owner"].post("/keys", {**said, **more})).body["key"], {})
            for more in ({}, {"surface_id": "CHAT", "env": "prod"})
        )
        token = cast.as_user(house.users["agent"], {"surface_id": "chat"})
        until(lambda: blocked(free) and blocked(bound) and blocked(token))
        return {"free": free, "key": bound, "token": token}

    def test_a_bound_key_and_a_bound_token_meet_their_surfaces_rules(
        self, house: Tenant, bearers: dict[str, Caller]
    ) -> None:
        assert not blocked(bearers["free"].having(x_surface_id="canvas"))
        for bound in (bearers["key"], bearers["token"]):
            elsewhere = bound.having(x_surface_id="canvas")
            said = problem(elsewhere.post("/gates/evaluate", REFUND), 403, "ContextMismatch")
            assert said["field"] == "X-Surface-Id"
        sources = bearers["key"].get("/me").body["sources"]
        assert (sources["surface_id"], sources["env"]) == ("api key", "api key")
        shown = [key["surface_id"] for key in house["owner"].items("/keys")]
        assert sorted(shown, key=str) == sorted([None, "chat"], key=str)

    def test_what_names_no_surface_holds_on_each(self, house: Tenant, bearers: dict[str, Caller]) -> None:
        elsewhere = bearers["free"].having(x_surface_id="canvas")
        owner = house["owner"]
        made(owner.put("/firearms/refunds", {"json_blob": {"risk_level": "low"}}, **NEW))
        binding = {"json_blob": {"class_id": "refunds", "actions": ["refund.*"]}}
        made(owner.put("/firearms/bindings/refunds", binding, **NEW))
        until(lambda: blocked(elsewhere))
        answer = decided(elsewhere.post("/gates/evaluate", REFUND))
        assert (answer["gate"], answer["reason_code"]) == ("firearms", "unlicensed")
        switch = {"switches": [{"action": "refund.*"}]}
        record(owner.put("/gates/kill-switch", switch), 201)
        until(lambda: decided(elsewhere.post("/gates/evaluate", REFUND))["gate"] == "kill_switch")

    @pytest.mark.parametrize(
        ("bound", "field"),
        [
            ({"surface_id": "nonesuch"}, "surface_id"),
            ({"surface_id": "!"}, "surface_id"),
            ({"env": "nowhere"}, "env"),
            ({"env": "PROD"}, "env"),
        ],
    )
    def test_a_key_is_bound_to_what_is_there(self, house: Tenant, bound: dict[str, str], field: str) -> None:
        body = {"user_id": house.users["agent"], "role": "agent", **bound}
        assert problem(house["owner"].post("/keys", body), 400, "Invalid")["field"] == field
        assert house["owner"].items("/keys") == []


def test_a_configuration_is_of_a_surface_that_is_there(tenant: Tenant) -> None:
    problem(tenant["owner"].put("/gates/config/nonesuch", {}), 404, "NotFound")
    problem(tenant["owner"].get("/gates/config/nonesuch"), 404, "NotFound")


def test_another_tenant_in_a_body_is_a_mismatch(tenant: Tenant) -> None:
    for reply in (
        tenant["owner"].put("/gates/kill-switch", {"tenant_id": "t_other"}),
        tenant["owner"].put("/gates/config/chat", {"tenant_id": "t_other"}),
        tenant["member"].post("/gates/evaluate", {"action": "a", "tenant_id": "t_other"}),
        tenant["member"].post("/gates/evaluate", {"action": "a", "user_id": "u_other"}),
        tenant.operator.post("/gates/evaluate", {"action": "a"}),
    ):
        problem(reply, 403, "ContextMismatch")


def test_a_change_of_a_switch_is_audited(house: Tenant) -> None:
    made(house["admin"].put("/gates/kill-switch", {"engaged": True}))

    def told() -> bool:
        events = house["viewer"].items("/events?event_type=audit")
        return any(event["payload"].get("action") == "kill_switches.created" for event in events)

    until(told)
