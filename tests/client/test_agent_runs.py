"""Recorded runs become records: derived ids, parents, results, and batches within the server's limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.client import NewEvent
from engines.client.agent_runs import AgentRun, Plan, batches, dataset_of, plan_of, read_agent_runs
from engines.codec import encode_json, escaped_bytes
from engines.errors import Invalid

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "agent-runs.json"


def plans() -> list[Plan]:
    return [plan_of("sample", run) for run in read_agent_runs(SAMPLE)]


def call(call_id: str, name: str = "f") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}


def run_of(*traj: dict[str, Any]) -> AgentRun:
    return AgentRun(task_id=5, trial=2, reward=0.0, traj=list(traj))


def test_the_same_file_becomes_the_same_records_to_the_byte() -> None:
    assert encode_json(plans()) == encode_json(plans())


def test_ids_are_pinned() -> None:
    """Whoever changes how ids derive makes every import that was ever made a stranger to its file."""
    plan = plan_of("sample", run_of({"role": "assistant", "content": None, "tool_calls": [call("c")]}))
    assert plan.run_id == "fdfbbc0e-dd73-5f92-aba5-9ccc9c68a8da"
    assert [event.event_id for event in plan.events] == [
        "b3310b15-1ad5-5dfa-aced-47329fb97261",
        "4ce1d0b7-714b-5cc6-b66e-593a3ce43193",
    ]


def test_no_two_records_share_an_id() -> None:
    ids = [event.event_id for plan in plans() for event in plan.events] + [plan.run_id for plan in plans()]
    assert len(set(ids)) == len(ids)
    assert all(event_id is not None and event_id[14] == "5" for event_id in ids)


def test_ids_differ_by_dataset_task_trial_and_place() -> None:
    run = run_of({"role": "user", "content": "x"})
    others = [
        plan_of("a", run),
        plan_of("b", run),
        plan_of("a", AgentRun(task_id="5", trial=2, reward=0.0, traj=run.traj)),
        plan_of("a", AgentRun(task_id=5, trial=3, reward=0.0, traj=run.traj)),
    ]
    assert len({plan.run_id for plan in others}) == 4
    assert len({plan.events[0].event_id for plan in others}) == 4


def test_every_message_and_every_call_is_an_event_and_every_message_is_in_the_thread() -> None:
    for plan, run in zip(plans(), read_agent_runs(SAMPLE), strict=True):
        calls = sum(len(message.get("tool_calls") or []) for message in run.traj)
        assert len(plan.messages) == len(run.traj)
        assert len(plan.events) == len(run.traj) + calls
        said = [event.payload["message"] for event in plan.messages]
        assert said == run.traj
        assert all(event.run_id == event.thread_id == plan.run_id for event in plan.events)


def test_a_call_follows_its_message_and_an_answer_follows_its_call() -> None:
    plan = plans()[0]
    by_id = {event.event_id: event for event in plan.events}
    for event in plan.events:
        parent = by_id.get(event.parent_event_id)
        if event.event_type == "tool_call":
            assert parent is not None
            assert event.payload["tool_call"] in parent.payload["message"]["tool_calls"]
        elif event.payload["message"]["role"] == "tool":
            assert parent is not None
            assert parent.payload["tool_call"]["id"] == event.payload["message"]["tool_call_id"]
            assert parent.payload["tool_call"]["function"]["name"] == event.payload["message"]["name"]
        elif event is not plan.events[0]:
            assert parent is not None
            assert parent.payload["message_index"] == event.payload["message_index"] - 1


def test_an_id_that_repeats_across_messages_means_the_latest_call() -> None:
    plan = plan_of(
        "d",
        run_of(
            {"role": "assistant", "tool_calls": [call("same", "first")]},
            {"role": "tool", "tool_call_id": "same", "content": "1"},
            {"role": "assistant", "tool_calls": [call("same", "second")]},
            {"role": "tool", "tool_call_id": "same", "content": "2"},
        ),
    )
    assert [(result.key, result.value["content"]) for result in plan.results] == [
        ("call-0-0", "1"),
        ("call-2-0", "2"),
    ]


def test_an_id_that_repeats_within_a_message_is_answered_in_order() -> None:
    plan = plan_of(
        "d",
        run_of(
            {"role": "assistant", "tool_calls": [call("same"), call("same")]},
            {"role": "tool", "tool_call_id": "same", "content": "1"},
            {"role": "tool", "tool_call_id": "same", "content": "2"},
            {"role": "tool", "tool_call_id": "same", "content": "3"},
        ),
    )
    assert [result.key for result in plan.results] == ["call-0-0", "call-0-1", "message-3"]


def test_an_answer_to_no_call_is_kept_under_its_own_place() -> None:
    plan = plan_of(
        "d", run_of({"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": "?", "content": "y"})
    )
    assert plan.results[0].key == "message-1"
    assert plan.messages[1].parent_event_id == plan.messages[0].event_id


@pytest.mark.parametrize(
    ("role", "source"),
    [("user", "ui"), ("assistant", "agent"), ("system", "agent"), ("tool", "tool"), ("critic", "connector")],
)
def test_who_speaks_is_the_source(role: str, source: str) -> None:
    assert plan_of("d", run_of({"role": role, "content": "x"})).messages[0].source == source


def test_a_changed_run_has_another_digest_and_the_same_ids() -> None:
    before, after = (plan_of("d", run_of({"role": "user", "content": text})) for text in "ab")
    assert before.run_id == after.run_id
    assert before.digest != after.digest


def test_the_note_tells_the_outcome() -> None:
    won, lost = plans()[0].note, plans()[1].note
    assert won.title is not None
    assert lost.title is not None
    assert won.title.endswith("succeeded")
    assert lost.title.endswith("failed")
    assert won.tags is not None
    assert plans()[0].run_tag in won.tags


# --- the file ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no list of agent runs"),
        ("{}", "no list of agent runs"),
        ("[{}]", "task_id"),
        ('[{"task_id": 1, "trial": "x", "reward": 0, "traj": []}]', "trial"),
        ('[{"task_id": 1, "trial": 0, "reward": 0, "traj": ["text"]}]', "traj"),
        ('[{"task_id": 1, "trial": 0, "reward": NaN, "traj": []}]', "no list of agent runs"),
        (json.dumps([{"task_id": 1, "trial": 0, "reward": 0, "traj": []}] * 2), "twice"),
    ],
)
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "runs.json"
    path.write_text(text)
    with pytest.raises(Invalid, match=said) as raised:
        read_agent_runs(path)
    assert raised.value.field == "file"


def test_a_file_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        read_agent_runs(tmp_path / "runs.json")
    with pytest.raises(Invalid, match="cannot be read"):
        read_agent_runs(tmp_path)


def test_tool_calls_that_are_no_objects_are_refused() -> None:
    for calls in ({"id": 1}, ["text"]):
        with pytest.raises(Invalid):
            plan_of("d", run_of({"role": "assistant", "tool_calls": calls}))


def test_a_dataset_is_named_after_its_file_unless_told(tmp_path: Path) -> None:
    assert dataset_of(tmp_path / "gpt-4o-airline.json") == "gpt-4o-airline"
    assert dataset_of(tmp_path / "x.json", "mine") == "mine"
    for bad in ("", "a b", "x" * 61, "../x"):
        with pytest.raises(Invalid):
            dataset_of(tmp_path / "x.json", bad)


# --- batches ---


def events_of(count: int, text: str = "") -> list[NewEvent]:
    return [NewEvent(event_type="x", payload={"n": n, "text": text}) for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, 97, 98, 99, 196, 197])
def test_batches_hold_every_event_once_in_order_within_the_count(count: int) -> None:
    parts = list(batches(events_of(count), count_max=98, bytes_max=10**9))
    assert [event.payload["n"] for part in parts for event in part] == list(range(count))
    assert all(1 <= len(part) <= 98 for part in parts)
    assert len(parts) == -(-count // 98)


def test_batches_stay_within_their_bytes_as_the_server_counts_them() -> None:
    text = 'quoted "text" with \\ and ☃ ' * 400
    parts = list(batches(events_of(50, text), count_max=98, bytes_max=100_000))
    assert len(parts) > 5
    for part in parts:
        assert sum(escaped_bytes(encode_json(event)) for event in part) <= 100_000


def test_an_event_past_the_limit_goes_alone() -> None:
    large = NewEvent(event_type="x", payload={"text": "x" * 1_000})
    parts = list(batches([*events_of(2), large, *events_of(2)], count_max=98, bytes_max=4_000))
    assert [large] in [list(part) for part in parts]
