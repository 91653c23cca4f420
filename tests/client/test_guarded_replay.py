"""A guarded replay before a scripted server: what it sends, and when what was reserved is kept no longer."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from engines.client import AsyncEngines
from engines.client.agent_runs import AgentRun, plan_of
from engines.client.guarded_replay import Target, guarded_replay
from engines.client.guarded_runs import guarded_run
from engines.clock import SystemClock
from engines.errors import Unavailable
from tests.client.loopback import Answer, Loopback, Received, Script, problem

CALL = {"id": "c", "type": "function", "function": {"name": "book", "arguments": "{}"}}
RUN = AgentRun(5, 2, 1.0, [{"role": "assistant", "content": None, "tool_calls": [CALL]}])
TARGET = Target("p", "p-success")

STAMP = {"tenant_id": "t", "mode": "lab", "env": "prod", "etag": '"1"', "version": 1}
DEFINITION = {**STAMP, "id": "p-success", "json_blob": {}}
ENTRY = {
    **STAMP,
    "usage_id": "u",
    "position": 1,
    "cost": "0",
    "currency": "USD",
    "adds": {"cost": "0"},
}
MEMORY = {**STAMP, "session_id": "s", "key": "guarded", "value": {}}
MEASUREMENT = {
    **STAMP,
    "measurement_id": "m",
    "kpi_id": "p-success",
    "value": 1.0,
    "position": 1,
    "cursor": "c",
}


def answers(received: Received, decision: Script) -> Script:
    """All goes well, but for the decision; and nothing is known of the reservation any more."""
    path = received.path.partition("?")[0]
    if path.endswith("/settle"):
        return problem(404, "NotFound")
    bodies: dict[str, Any] = {
        "/kpis/p-success": DEFINITION,
        "/budget/usage": ENTRY,
        "/kpis/p-success/measurements": MEASUREMENT,
    }
    if path == "/gates/evaluate":
        return decision
    if path == "/events" and received.method == "GET":
        return Answer(json={"items": [], "after": None})
    if path == "/events":
        return Answer(201, json={"events": [{"event_id": "e", "position": 1, "cursor": "c"}]})
    if path in bodies:
        return Answer(json=bodies[path])
    return Answer(json=MEMORY) if received.method == "PUT" else problem(404, "NotFound")


def decided(**fields: Any) -> Answer:
    return Answer(json={"decision": "pass", "details": {"budget": {"reservation_id": "r-1"}}, **fields})


async def replayed(client: AsyncEngines, server: Loopback, decision: Script) -> list[Received]:
    server.otherwise = lambda received: answers(received, decision)
    run = guarded_run("set", plan_of("set", RUN), Decimal("0.10"))
    await guarded_replay(client, [run], TARGET, clock=SystemClock())
    return server.received


async def test_a_unit_whose_reservation_is_kept_no_longer_is_recorded_on_its_own(
    client: AsyncEngines, server: Loopback
) -> None:
    received = await replayed(client, server, decided())
    used = [one.json for one in received if one.path == "/budget/usage"]
    note = "5/2/0.0"
    assert used == [
        {"tool": "book", "units": 1, "cost": "0", "currency": "USD", "note": note},
        {"units": 0, "cost": "0.10", "currency": "USD", "note": "5/2"},
    ]
    assert sum(one.path.endswith("/r-1/settle") for one in received) == 1


async def test_every_change_has_a_key_and_none_has_anothers(client: AsyncEngines, server: Loopback) -> None:
    received = await replayed(client, server, decided())
    keys = [
        one.headers["Idempotency-Key"]
        for one in received
        if one.method == "POST" and one.path != "/events" and "evaluate" not in one.path
    ]
    (asked,) = [one for one in received if one.path == "/gates/evaluate"]
    assert all(key.startswith("agent-run-") for key in (*keys, asked.headers["Idempotency-Key"]))
    assert len(keys) == len(set(keys)) == 4
    assert asked.headers["X-Project-Id"] == "p"
    assert asked.json["cost"] == {"amount": "0", "currency": "USD", "tool": "book"}


async def test_what_a_gate_refuses_takes_nothing(client: AsyncEngines, server: Loopback) -> None:
    refusal = decided(decision="block", gate="firearms", reason_code="unlicensed", details={})
    received = await replayed(client, server, refusal)
    assert [one.json["units"] for one in received if one.path == "/budget/usage"] == [0]


async def test_a_decision_that_cannot_be_recorded_ends_the_replay(
    client: AsyncEngines, server: Loopback
) -> None:
    """It is a block, and no event tells of it: the run is not done, and nothing is used."""
    with pytest.raises(Unavailable):
        await replayed(client, server, problem(503, "Unavailable", decision="block"))
    assert [one for one in server.received if one.path == "/budget/usage"] == []
