"""An agent's sessions over HTTP, from beginning to end: what is said, saved, forked, traced and counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any

import pytest

from tests.contract.cast import Cast, Tenant, made, until
from tests.contract.wire import Caller, problem, record

BEGUN, ENDED = "2026-11-21T14:00:00.000Z", "2026-11-21T14:00:02.500Z"
# What the routes of a new tenant keep is in the thousands; what is here is quick to reach.
KEPT = 3
AREAS = {"session_store", "checkpoint_store", "trace_store", "agent_memory_store", "telemetry_store"}


def begin(caller: Caller, **fields: Any) -> str:
    """A new session; its path."""
    return f"/sessions/{record(caller.post('/sessions', fields), 201)['session_id']}"


def say(caller: Caller, session: str, *contents: Any) -> list[dict[str, Any]]:
    """The messages, as they were answered."""
    path = f"{session}/messages"
    return [record(caller.post(path, {"role": "user", "content": said}), 201) for said in contents]


def save(caller: Caller, session: str, state: Any, **fields: Any) -> dict[str, Any]:
    return record(caller.post(f"{session}/checkpoints", {"state": state, **fields}), 201)


def trace(caller: Caller, session: str, name: str = "turn", **fields: Any) -> dict[str, Any]:
    body = {"name": name, "started_at": BEGUN, "ended_at": ENDED, **fields}
    return record(caller.post(f"{session}/traces", body), 201)


def contents(caller: Caller, session: str) -> list[Any]:
    return [item["content"] for item in caller.items(f"{session}/messages")]


def test_a_conversation_is_kept_as_it_was_said(tenant: Tenant) -> None:
    member = tenant["member"]
    session = begin(member, title="Refunds", metadata={"channel": "web"})
    shown = record(member.get(session))
    assert (shown["title"], shown["metadata"], shown["status"]) == ("Refunds", {"channel": "web"}, "active")
    assert (shown["user_id"], shown["tenant_id"]) == (tenant.users["member"], tenant.tenant_id)
    assert "forked_from" not in shown
    calls = [{"id": "c1", "name": "look_up", "arguments": {"order": 7}}]
    bodies: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where is my order?", "name": "ada", "metadata": {"lang": "en"}},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": {"state": "lost"}, "tool_call_id": "c1"},
        {"role": "assistant", "content": [{"type": "text", "text": "It is lost."}]},
    ]
    answered = [record(member.post(f"{session}/messages", body), 201) for body in bodies]
    assert [message["number"] for message in answered] == [1, 2, 3, 4, 5]
    listed = member.items(f"{session}/messages")
    assert listed == answered
    for body, message in zip(bodies, listed, strict=True):
        assert {name: message[name] for name in body} == body
        assert message["session_id"] == shown["session_id"]
    assert record(member.get(session)) == shown, "what is said does not change the session's record"


def test_what_two_say_at_once_is_numbered_without_a_gap(tenant: Tenant) -> None:
    member = tenant["member"]
    session = begin(member)
    with ThreadPoolExecutor(6) as pool:
        answered = [one for (one,) in pool.map(lambda n: say(member, session, n), range(12))]
    assert sorted(message["number"] for message in answered) == list(range(1, 13))
    listed = member.items(f"{session}/messages")
    assert [message["number"] for message in listed] == list(range(1, 13))
    assert {message["number"]: message["content"] for message in answered} == {
        message["number"]: message["content"] for message in listed
    }


def test_a_title_is_changed_by_whoever_saw_the_last_one(tenant: Tenant) -> None:
    member = tenant["member"]
    session = begin(member, title="One", metadata={"a": 1})
    first = record(member.get(session))
    second = record(member.patch(session, {"title": "Two"}, if_match=first["etag"]))
    assert (second["title"], second["metadata"]) == ("Two", {"a": 1})
    assert second["created_at"] == first["created_at"] <= second["updated_at"]
    problem(member.patch(session, {"title": "Three"}, if_match=first["etag"]), 412, "Conflict")
    third = record(member.patch(session, {"metadata": {"b": 2}}, if_match=second["etag"]))
    assert (third["title"], third["metadata"]) == ("Two", {"b": 2})
    assert record(member.get(session)) == third
    for body in ({"status": "deleting"}, {"session_id": "another"}, {"forked_from": None}):
        problem(member.patch(session, body), 400, "Invalid")
    assert record(member.get(session)) == third


def test_a_fork_goes_on_from_a_checkpoint_and_outlives_what_it_was_made_from(tenant: Tenant) -> None:
    member = tenant["member"]
    session = begin(member, title="First", metadata={"a": 1})
    say(member, session, "one", "two")
    state = save(member, session, {"step": 2}, label="before three")
    assert (state["number"], state["messages"], state["label"]) == (1, 2, "before three")
    say(member, session, "three")
    save(member, session, {"step": 3})
    trace(member, session)
    forking = f"/checkpoints/{state['checkpoint_id']}/fork"
    fork = record(member.post(forking, {"title": "Second"}, idempotency_key="fork"), 201)
    path = f"/sessions/{fork['session_id']}"
    assert (fork["title"], fork["metadata"], fork["status"]) == ("Second", {"a": 1}, "active")
    assert fork["forked_from"] == {
        "session_id": state["session_id"],
        "checkpoint_id": state["checkpoint_id"],
    }
    assert record(member.get(path)) == fork
    before = member.items(f"{session}/messages")
    copies = member.items(f"{path}/messages")
    own = {"message_id", "session_id", "cursor", "etag"}
    assert [{name: message[name] for name in message.keys() - own} for message in copies] == [
        {name: message[name] for name in message.keys() - own} for message in before[:2]
    ]
    assert {message["session_id"] for message in copies} == {fork["session_id"]}
    assert not {message["cursor"] for message in copies} & {message["cursor"] for message in before}
    (first,) = member.items(f"{path}/checkpoints")
    assert (first["state"], first["label"], first["messages"], first["number"]) == (
        {"step": 2},
        "before three",
        2,
        1,
    )
    assert member.items(f"{path}/traces") == []
    (third,) = say(member, path, "otherwise")
    assert third["number"] == 3
    assert contents(member, session) == ["one", "two", "three"]
    assert member.delete(session).status == 204
    assert contents(member, path) == ["one", "two", "otherwise"]
    assert member.items(f"{path}/checkpoints") == [first]
    again = record(member.post(f"/checkpoints/{first['checkpoint_id']}/fork", {}), 201)
    assert contents(member, f"/sessions/{again['session_id']}") == ["one", "two"]
    problem(member.post(forking, {}), 404, "NotFound")
    made(member.post(f"{path}/checkpoints", {"state": "later"}))
    assert member.patch(path, {"title": "Third"}).status == 200
    repeated = member.post(forking, {"title": "Second"}, idempotency_key="fork")
    assert (record(repeated, 201), repeated.replayed) == (fork, True)


def test_a_fork_copies_more_than_one_write_can(tenant: Tenant) -> None:
    """Six messages of a fifth of a mebibyte each; one write takes less than one."""
    member = tenant["member"]
    session = begin(member)
    said = [f"{number}{'a' * 200_000}" for number in range(6)]
    say(member, session, *said)
    state = save(member, session, None)
    fork = record(member.post(f"/checkpoints/{state['checkpoint_id']}/fork", {}), 201)
    assert contents(member, f"/sessions/{fork['session_id']}") == said


def test_a_fork_of_a_beginning_has_nothing_but_its_state(tenant: Tenant) -> None:
    member = tenant["member"]
    session = begin(member, title="T")
    state = save(member, session, [])
    say(member, session, "later")
    fork = record(member.post(f"/checkpoints/{state['checkpoint_id']}/fork", {}), 201)
    assert (fork["title"], fork["status"]) == ("T", "active")
    assert contents(member, f"/sessions/{fork['session_id']}") == []
    assert [one["state"] for one in member.items(f"/sessions/{fork['session_id']}/checkpoints")] == [[]]


def test_a_trace_has_its_spans_and_a_list_leaves_them_out(tenant: Tenant) -> None:
    member = tenant["member"]
    session = begin(member)
    steps: list[dict[str, Any]] = [
        {"span_id": "b", "name": "tool", "parent_span_id": "a", "status": "error", "attributes": {"n": 1}},
        {"span_id": "a", "name": "model"},
        {"span_id": "c", "name": "model", "parent_span_id": "a"},
    ]
    spans = [{**step, "started_at": BEGUN, "ended_at": ENDED} for step in steps]
    told = trace(member, session, "first", status="error", attributes={"k": [1]}, spans=spans)
    trace(member, session, "second")
    assert told["span_count"] == 3
    kept = record(member.get(f"/traces/{told['trace_id']}"))
    assert kept == told
    assert kept["spans"] == spans
    assert (kept["name"], kept["status"], kept["attributes"]) == ("first", "error", {"k": [1]})
    assert (kept["started_at"], kept["ended_at"]) == (BEGUN, ENDED)
    listed = member.items(f"{session}/traces")
    assert [(one["name"], one["span_count"]) for one in listed] == [("first", 3), ("second", 0)]
    assert not any("spans" in one for one in listed)
    assert listed[0] == {name: kept[name] for name in kept if name != "spans"}


def test_the_newest_are_kept_as_many_as_the_routes_say(cast: Cast) -> None:
    house = cast.tenant("member", "owner")
    member = house["member"]
    for kind, option in (("checkpoint_store", "checkpoints_kept"), ("trace_store", "traces_kept")):
        route = {"backend_id": "lab", "options": {option: KEPT}}
        made(house["owner"].put(f"/routes/{kind}", route, if_none_match="*"))

    def bounded() -> bool:
        other = begin(member)
        for number in range(KEPT + 1):
            save(member, other, number)
            trace(member, other)
        return all(len(member.items(f"{other}/{part}")) == KEPT for part in ("checkpoints", "traces"))

    until(bounded)
    session = begin(member)
    states = [save(member, session, number) for number in range(KEPT + 2)]
    traces = [trace(member, session, str(number)) for number in range(KEPT + 2)]
    assert member.items(f"{session}/checkpoints") == states[-KEPT:]
    assert [one["name"] for one in member.items(f"{session}/traces")] == ["2", "3", "4"]
    problem(member.get(f"/checkpoints/{states[0]['checkpoint_id']}"), 404, "NotFound")
    problem(member.post(f"/checkpoints/{states[0]['checkpoint_id']}/fork", {}), 404, "NotFound")
    problem(member.get(f"/traces/{traces[1]['trace_id']}"), 404, "NotFound")
    assert record(member.get(f"/checkpoints/{states[-1]['checkpoint_id']}")) == states[-1]


def test_a_deleted_session_is_gone_with_all_that_was_in_it(tenant: Tenant) -> None:
    member = tenant["member"]
    other, gone = begin(member), begin(member)
    for path in (other, gone):
        say(member, path, "one", "two")
        save(member, path, 1)
        trace(member, path)
    (state,) = member.items(f"{gone}/checkpoints")
    (turn,) = member.items(f"{gone}/traces")
    tokens = {"provider": "p", "model": "m", "tokens_in": 3, "session_id": gone.rpartition("/")[2]}
    made(member.post("/telemetry/tokens", tokens))
    first = record(member.get(gone))
    problem(member.delete(gone, if_match=record(member.get(other))["etag"]), 412, "Conflict")
    assert contents(member, gone) == ["one", "two"]
    assert member.delete(gone, if_match=first["etag"]).status == 204
    calls: list[tuple[str, str, Any]] = [
        ("GET", gone, None),
        ("PATCH", gone, {"title": "x"}),
        ("DELETE", gone, None),
        ("GET", f"{gone}/messages", None),
        ("POST", f"{gone}/messages", {"role": "user", "content": "x"}),
        ("GET", f"{gone}/checkpoints", None),
        ("POST", f"{gone}/checkpoints", {"state": 1}),
        ("GET", f"/checkpoints/{state['checkpoint_id']}", None),
        ("POST", f"/checkpoints/{state['checkpoint_id']}/fork", {}),
        ("GET", f"{gone}/traces", None),
        ("POST", f"{gone}/traces", {"name": "t", "started_at": BEGUN, "ended_at": ENDED}),
        ("GET", f"/traces/{turn['trace_id']}", None),
    ]
    for method, path, body in calls:
        problem(member.call(method, path, body), 404, "NotFound")
    assert first["session_id"] not in {item["session_id"] for item in member.items("/sessions")}
    assert contents(member, other) == ["one", "two"]
    assert len(member.items(f"{other}/checkpoints")) == len(member.items(f"{other}/traces")) == 1
    groups = member.get("/telemetry/tokens?by=session").body["groups"]
    counted = {group.get("session_id"): group["tokens_in"] for group in groups}
    assert counted[first["session_id"]] == 3, "what was counted of it stays"


def test_bootstrap_says_of_which_of_it_there_is_something_of_the_callers(cast: Cast) -> None:
    house = cast.tenant("member", "owner")
    member = house["member"]

    def ready(caller: Caller) -> set[str]:
        areas = caller.get("/bootstrap").body["areas"]
        states = {area["area"]: area["state"] for area in areas if area["area"] in AREAS}
        assert set(states) == AREAS
        return {area for area, state in states.items() if state == "ready"}

    assert ready(member) == set()
    session = begin(member)
    assert ready(member) == {"session_store"}
    save(member, session, 1)
    trace(member, session)
    made(member.put("/agent-memory/episodes/k", {"value": 1}))
    made(member.post("/telemetry/tokens", {"provider": "p", "model": "m"}))
    assert ready(member) == AREAS
    assert ready(house["owner"]) == set(), "what is another user's is nothing of the caller's"
    assert member.delete(session).status == 204
    assert ready(member) == {"agent_memory_store", "telemetry_store"}


def test_agent_memory_is_kept_by_tier_and_key(tenant: Tenant) -> None:
    agent = tenant["agent"]
    for tier in ("episodes", "long_term", "summaries"):
        first = record(agent.put(f"/agent-memory/{tier}/k", {"value": {"of": tier}}, if_none_match="*"), 201)
        assert (first["tier"], first["key"], first["value"]) == (tier, "k", {"of": tier})
        problem(agent.put(f"/agent-memory/{tier}/k", {"value": 0}, if_none_match="*"), 412, "Conflict")
    second = record(agent.put("/agent-memory/long_term/k", {"value": 2}))
    assert agent.items("/agent-memory/long_term") == [second]
    assert agent.delete("/agent-memory/long_term/k", if_match=second["etag"]).status == 204
    problem(agent.get("/agent-memory/long_term/k"), 404, "NotFound")
    assert [one["value"] for one in agent.items("/agent-memory/episodes")] == [{"of": "episodes"}]


# Provider, model, session, and tokens in, out and cached.
COUNTED = [
    ("p", "large", "s1", 100, 10, 40),
    ("p", "large", "s1", 50, 5, 0),
    ("p", "large", "s2", 7, 1, 7),
    ("p", "small", "s1", 3, 2, 0),
    ("q", "large", None, 11, 0, 1),
]
MEMBERS = ("tokens_in", "tokens_out", "tokens_cached")


def added(*rows: tuple[str, str, str | None, int, int, int]) -> dict[str, int]:
    """What a report says of these calls."""
    sums = {name: sum(int(str(row[3 + place])) for row in rows) for place, name in enumerate(MEMBERS)}
    return {"calls": len(rows), **sums}


@pytest.fixture(scope="module")
def counting(cast: Cast) -> Caller:
    """A member who has counted what COUNTED says, and nothing else."""
    member = cast.tenant("member")["member"]
    for provider, model, session, *tokens in COUNTED:
        body = {"provider": provider, "model": model, **dict(zip(MEMBERS, tokens, strict=True))}
        bound = {} if session is None else {"session_id": session}
        answered = record(member.post("/telemetry/tokens", {**body, **bound}), 201)
        assert answered.get("session_id") == session
    return member


def test_a_report_says_by_model_session_and_day_what_was_counted(counting: Caller) -> None:
    large, also_large, second, small, unbound = COUNTED
    report = counting.get("/telemetry/tokens").body
    assert (report["by"], report["total"]) == ("model", added(*COUNTED))
    assert report["groups"] == [
        {"provider": "p", "model": "large", **added(large, also_large, second)},
        {"provider": "p", "model": "small", **added(small)},
        {"provider": "q", "model": "large", **added(unbound)},
    ]
    assert date.fromisoformat(report["until"]) - date.fromisoformat(report["since"]) == timedelta(days=29)
    assert counting.get("/telemetry/tokens?by=session").body["groups"] == [
        {"session_id": None, **added(unbound)},
        {"session_id": "s1", **added(large, also_large, small)},
        {"session_id": "s2", **added(second)},
    ]
    days = counting.get("/telemetry/tokens?by=day").body["groups"]
    assert {name: sum(day[name] for day in days) for name in report["total"]} == report["total"]
    assert all(report["since"] <= day["day"] <= report["until"] for day in days)


def test_a_report_is_of_one_session_and_of_the_days_that_were_asked_for(counting: Caller) -> None:
    large, also_large, _, small, _ = COUNTED
    one = counting.get("/telemetry/tokens?session_id=s1").body
    assert one["total"] == added(large, also_large, small)
    today = date.fromisoformat(one["until"])
    # The last of them may have been counted on the day after the first.
    near = counting.get(f"/telemetry/tokens?since={today - timedelta(days=1)}&until={today}").body
    assert near["total"] == added(*COUNTED)
    two = timedelta(days=2)
    for days in (f"until={today - two}", f"since={today + two}&until={today + two}"):
        other = counting.get(f"/telemetry/tokens?{days}").body
        assert (other["total"], other["groups"]) == (added(), [])


def test_tokens_are_counted_for_the_session_that_the_request_names(cast: Cast) -> None:
    member = cast.tenant("member")["member"].having(x_session_id="bound")
    tokens = {"provider": "p", "model": "m", "tokens_out": 2, "calls": 4}
    assert record(member.post("/telemetry/tokens", tokens), 201)["session_id"] == "bound"
    other = record(member.post("/telemetry/tokens", {**tokens, "session_id": "told"}), 201)
    assert other["session_id"] == "told"
    (counted,) = other["models"]
    assert (counted["calls"], counted["tokens_out"], counted["tokens_in"]) == (4, 2, 0)


def test_what_several_count_at_once_is_all_counted(cast: Cast) -> None:
    member = cast.tenant("member")["member"]
    tokens = {"provider": "p", "model": "m", "tokens_in": 5, "tokens_cached": 5}
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: member.post("/telemetry/tokens", tokens), range(12)))
    assert {reply.status for reply in replies} == {201}, replies
    total = member.get("/telemetry/tokens").body["total"]
    assert total == {"calls": 12, "tokens_in": 60, "tokens_out": 0, "tokens_cached": 60}
