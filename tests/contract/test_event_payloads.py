"""Typed payloads over HTTP: refused by the member that breaks a rule, and free wherever no rule is."""

from typing import Any

import pytest

from tests.contract.cast import Tenant, made
from tests.contract.wire import problem

SAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("rl", {"kind": "reward", "value": 0.5, "terminated": True}),
    ("rlha", {"kind": "preference", "chosen": {"candidate_id": "a"}, "rejected": {"candidate_id": "b"}}),
    ("rlha", {"kind": "human_feedback", "score": 1, "scale": {"minimum": 0, "maximum": 1}}),
    ("tuning", {"kind": "trial", "study_id": "s", "trial_id": "1", "parameters": {"temperature": 0.2}}),
    ("tuning", {"kind": "parameters", "target": "agent", "parameters": {"temperature": 0.2}}),
    (
        "tuning",
        {"kind": "outcome", "study_id": "s", "trial_id": "1", "state": "completed", "metrics": {"a": 1}},
    ),
]
MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    ("rl", {"kind": "prize"}, "payload.kind"),
    ("rl", {"kind": "reward"}, "payload.value"),
    ("rl", {"kind": "reward", "value": "much"}, "payload.value"),
    ("rl", {"kind": "reward", "value": 1, "reward": 1}, "payload.reward"),
    ("rlha", {**SAMPLES[1][1], "rejected": {"candidate_id": "a"}}, "payload.rejected.candidate_id"),
    ("rlha", {"kind": "human_feedback"}, "payload"),
    ("rlha", {**SAMPLES[2][1], "score": 2}, "payload.score"),
    ("tuning", {**SAMPLES[3][1], "parameters": {}}, "payload.parameters"),
    ("tuning", {**SAMPLES[5][1], "metrics": {}}, "payload.metrics"),
]


@pytest.mark.parametrize(("event_type", "payload"), SAMPLES)
def test_a_typed_payload_is_taken_and_shown_as_it_was_sent(
    tenant: Tenant, event_type: str, payload: dict[str, Any]
) -> None:
    body = {"event_type": event_type, "payload": payload}
    event_id = made(tenant["agent"].post("/events", body)).body["events"][0]["event_id"]
    assert tenant["member"].get(f"/events/{event_id}").body["payload"] == payload


@pytest.mark.parametrize(("event_type", "payload", "field"), MALFORMED)
def test_a_malformed_payload_is_400_by_its_member_alone_or_in_a_batch(
    tenant: Tenant, event_type: str, payload: dict[str, Any], field: str
) -> None:
    before = tenant["member"].get("/events?order=desc&limit=1").body["items"]
    body = {"event_type": event_type, "payload": payload}
    assert problem(tenant["member"].post("/events", body), 400, "Invalid")["field"] == field
    batch = {"events": [{"event_type": "message", "payload": {}}, body]}
    assert problem(tenant["member"].post("/events", batch), 400, "Invalid")["field"] == f"events[1].{field}"
    assert tenant["member"].get("/events?order=desc&limit=1").body["items"] == before


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_a_number_that_is_not_finite_is_400(tenant: Tenant, number: bytes) -> None:
    body = b'{"event_type":"rl","payload":{"kind":"reward","value":' + number + b"}}"
    problem(tenant["member"].post("/events", body), 400, "Invalid")


def test_on_a_stream_the_payload_is_free(tenant: Tenant) -> None:
    made(tenant["member"].post("/streams/typed/events", {"event_type": "rl", "payload": {"n": 1}}))


def test_the_description_shows_every_kind(tenant: Tenant) -> None:
    document = tenant.cast.nobody.get("/openapi.json").body
    described = document["paths"]["/events"]["post"]["x-payloads"]
    found = {
        (event_type, name)
        for event_type, schema in described.items()
        for choice in schema["anyOf"]
        for name in document["components"]["schemas"][choice["$ref"].rsplit("/", 1)[1]]["properties"]["kind"][
            "enum"
        ]
    }
    assert found == {(event_type, payload["kind"]) for event_type, payload in SAMPLES}


# --- taking events away ---


def test_an_export_is_the_list_for_whoever_may_export(tenant: Tenant) -> None:
    made(tenant["member"].post("/events", {"event_type": "exported", "payload": {"n": 1}}))
    made(tenant["member"].post("/events", {"event_type": "exported", "payload": {"n": 2}}))
    query = "?event_type=exported&limit=1&order=desc"
    for role in ("admin", "owner"):
        assert tenant[role].get(f"/events/export{query}").body == tenant[role].get(f"/events{query}").body
    for role in ("viewer", "member", "agent"):
        problem(tenant[role].get("/events/export"), 403, "Forbidden")


@pytest.mark.parametrize("query", ["event_type=BAD", "since=x", "after=invented", "limit=0", "unknown=1"])
def test_an_export_of_nothing_that_is_there_is_400(tenant: Tenant, query: str) -> None:
    problem(tenant["admin"].get(f"/events/export?{query}"), 400, "Invalid")


def test_an_operator_reads_no_tenants_events_by_exporting_them(tenant: Tenant) -> None:
    problem(tenant.operator.get("/events/export"), 403)
