"""`engines import agent-runs`: the same file becomes the same records, once, whoever starts it how often."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engines.client import Engines as Client
from engines.client import NewEvent, NewNote
from engines.client.agent_runs import MEMORY_KEY, Plan, plan_of, read_agent_runs
from engines.client.replay import BATCH_EVENTS_MAX, IMPORTING
from tests.cli.conftest import SAMPLE, Done, Engines, run_engines
from tests.cli.lab import LabProcess

COUNTS = {"memory entries": 4, "notes": 4, "spine events": 29, "thread events": 23, "tool results": 7}


@pytest.fixture
def dataset(request: pytest.FixtureRequest) -> str:
    """A name of the test's own, so that tests of one lab do not meet."""
    return str(request.node.name).replace("[", "-").replace("]", "")[-60:].lstrip("_")


@pytest.fixture
def plans(dataset: str) -> list[Plan]:
    return [plan_of(dataset, run) for run in read_agent_runs(SAMPLE)]


def options(lab: LabProcess, dataset: str, *more: str) -> tuple[str, ...]:
    at = ("--lab", str(lab.directory), "--as", "member")
    return ("import", "agent-runs", str(SAMPLE), "--dataset", dataset, "--json", *at, *more)


def client_of(lab: LabProcess, user: str = "member") -> Client:
    return Client(lab.file.url, lab.file.user(user).token)


def differences(done: Done) -> list[tuple[str, str]]:
    return sorted((found["kind"], found["what"]) for found in done.json["verified"]["differences"])


def test_every_run_message_call_result_and_outcome_is_written_and_compared(
    engines: Engines, lab: LabProcess, dataset: str
) -> None:
    done = engines(*options(lab, dataset, "--verify"))
    assert done.code == 0, done.out + done.err
    summary = done.json
    assert summary["runs"] == {"imported": 4}
    assert summary["written"] == COUNTS
    assert summary["already_there"] == {}
    assert summary["records"] == sum(COUNTS.values())
    assert summary["verified"]["compared"] == COUNTS
    assert summary["verified"]["difference_count"] == 0
    assert {call["call"] for call in summary["calls"]} >= {"spine append", "thread append", "note post"}
    assert all(call["p50_ms"] <= call["p99_ms"] for call in summary["calls"])
    assert summary["records_per_s"] > 0


def test_started_again_it_writes_nothing(engines: Engines, lab: LabProcess, dataset: str) -> None:
    engines(*options(lab, dataset))
    again = engines(*options(lab, dataset, "--verify"))
    assert again.code == 0
    assert again.json["runs"] == {"already there": 4}
    assert again.json["written"] == {}
    assert again.json["already_there"] == COUNTS
    assert again.json["verified"]["difference_count"] == 0


def test_records_stand_where_and_as_the_stores_say(
    engines: Engines, lab: LabProcess, dataset: str, plans: list[Plan]
) -> None:
    engines(*options(lab, dataset))
    plan = plans[0]
    with client_of(lab) as client:
        call = next(event for event in plan.events if event.event_type == "tool_call")
        assert call.event_id is not None
        stored = client.events.get(call.event_id)
        assert (stored.run_id, stored.step_id, stored.parent_event_id, stored.thread_id) == (
            plan.run_id,
            call.step_id,
            call.parent_event_id,
            plan.run_id,
        )
        assert (stored.user_id, stored.tenant_id, stored.route) == ("u_member", "t_demo", "event_spine")
        thread = list(client.streams.each(plan.run_id))
        assert [event.payload for event in thread] == [event.payload for event in plan.messages]
        assert {entry.key for entry in client.blackboard.each(plan.run_id)} == {
            result.key for result in plan.results
        }
        note = next(client.notes.each(tag=plan.run_tag))
        assert note.source.run_id == plan.run_id
        assert client.memory.get(plan.run_id, MEMORY_KEY).value["note_id"] == note.note_id


def test_a_limit_takes_the_first_runs_and_the_rest_follow(
    engines: Engines, lab: LabProcess, dataset: str
) -> None:
    assert engines(*options(lab, dataset, "--limit", "1")).json["runs"] == {"imported": 1}
    assert engines(*options(lab, dataset)).json["runs"] == {"already there": 1, "imported": 3}


@pytest.mark.parametrize("concurrency", ["1", "64"])
def test_any_concurrency_writes_the_same(
    engines: Engines, lab: LabProcess, dataset: str, concurrency: str
) -> None:
    done = engines(*options(lab, dataset, "--verify", "--concurrency", concurrency))
    assert (done.code, done.json["written"]) == (0, COUNTS)


@pytest.mark.parametrize("concurrency", ["0", "65"])
def test_a_concurrency_out_of_bounds_is_refused(
    engines: Engines, lab: LabProcess, dataset: str, concurrency: str
) -> None:
    assert engines(*options(lab, dataset, "--concurrency", concurrency)).code == 1


def test_several_at_once_double_nothing(lab: LabProcess, dataset: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(run_engines, *options(lab, dataset, "--verify")) for _ in range(3)]
        results = [one.result() for one in running]
    # Whoever verified before the others were done may have seen less; nobody may have seen more or other.
    for done in results:
        assert {what for _, what in differences(done)} <= {"missing"} or done.code == 0, done.out
    last = run_engines(*options(lab, dataset, "--verify"))
    assert last.code == 0, last.out


# --- a run that was begun and not ended ---


class Begun:
    """What an import that died at some point of a run had written, made through the same API."""

    def __init__(self, client: Client, plan: Plan) -> None:
        self.client = client.bound(run_id=plan.run_id, thread_id=plan.run_id, session_id=plan.run_id)
        self.plan = plan

    def write(self, steps: int) -> None:
        """The first `steps` of a run's writes, in their order, one event a step where it is events."""
        plan, client = self.plan, self.client
        last = client.events.last()
        progress = {
            "state": IMPORTING,
            "digest": plan.digest,
            "facts": plan.facts,
            "spine_after": None if last is None else last.cursor,
            "spine_position": 0 if last is None else last.position,
            "note_id": None,
        }
        writes: list[Any] = [lambda: client.memory.put(plan.run_id, MEMORY_KEY, progress, if_absent=True)]
        writes += [lambda event=event: client.streams.append(plan.run_id, [event]) for event in plan.messages]
        writes += [lambda event=event: client.events.append([event]) for event in plan.events]
        writes += [
            lambda result=result: client.blackboard.put(plan.run_id, result.key, result.value, if_absent=True)
            for result in plan.results
        ]
        # Under another key than the import's: as after the 24 hours for which a key is kept.
        writes.append(lambda: client.notes.create(plan.note, idempotency_key=f"earlier-{plan.run_id}"))
        for write in writes[:steps]:
            write()

    def count(self, steps: int) -> Counter[str]:
        """What stands after `steps` of them."""
        plan = self.plan
        kinds = ["memory entries"] + ["thread events"] * len(plan.messages)
        kinds += ["spine events"] * len(plan.events) + ["tool results"] * len(plan.results) + ["notes"]
        return Counter(kinds[:steps])

    @property
    def steps(self) -> int:
        return self.count(10**6).total()


def test_wherever_a_run_was_left_it_is_taken_up_there(
    engines: Engines, lab: LabProcess, dataset: str
) -> None:
    """Every point of every run: after each single write. Long after, so that no idempotency key remembers.

    What was there is found by looking, and not sent again: the log knows an id again for a while only.
    """
    runs = read_agent_runs(SAMPLE)
    with client_of(lab) as client:
        for cut in range(Begun(client, plan_of(dataset, runs[0])).steps + 1):
            name = f"cut-{cut}-{dataset}"[:60]
            there: Counter[str] = Counter()
            for begun in [Begun(client, plan_of(name, run)) for run in runs]:
                begun.write(cut)
                there += begun.count(cut)
            done = engines(*options(lab, name, "--verify"))
            assert done.code == 0, f"left after {cut} writes: {done.out}"
            assert done.json["already_there"] == there, f"left after {cut} writes"
            assert done.json["written"] == Counter(COUNTS) - there, f"left after {cut} writes"


# --- what --verify sees ---


def test_a_note_written_twice_is_told(
    engines: Engines, lab: LabProcess, dataset: str, plans: list[Plan]
) -> None:
    engines(*options(lab, dataset))
    with client_of(lab) as client:
        second = client.notes.create(plans[0].note)
    done = engines(*options(lab, dataset, "--verify"))
    assert done.code == 1
    assert differences(done) == [("note", "doubled")]
    assert done.json["verified"]["differences"][0]["record_id"] == second.note_id


def test_a_note_that_is_lost_or_changed_is_told(
    engines: Engines, lab: LabProcess, dataset: str, plans: list[Plan]
) -> None:
    engines(*options(lab, dataset))
    with client_of(lab) as client:
        first = next(client.notes.each(tag=plans[0].run_tag))
        client.notes.delete(first.note_id)
        second = next(client.notes.each(tag=plans[1].run_tag))
        client.notes.replace(second.note_id, NewNote(title="other", content="", tags=plans[1].note.tags))
    assert differences(engines(*options(lab, dataset, "--verify"))) == [
        ("note", "different"),
        ("note", "missing"),
    ]


def test_an_event_too_many_on_spine_or_thread_is_told(
    engines: Engines, lab: LabProcess, dataset: str, plans: list[Plan]
) -> None:
    engines(*options(lab, dataset))
    run_id = plans[2].run_id
    extra = NewEvent(event_type="message", payload={}, run_id=run_id)
    with client_of(lab) as client:
        client.events.append([extra])
        client.streams.append(run_id, [extra])
    done = engines(*options(lab, dataset, "--verify"))
    assert done.code == 1
    assert differences(done) == [("spine event", "unexpected"), ("thread event", "unexpected")]


def test_a_result_that_was_changed_is_told(
    engines: Engines, lab: LabProcess, dataset: str, plans: list[Plan]
) -> None:
    engines(*options(lab, dataset))
    plan = plans[0]
    with client_of(lab) as client:
        first, second = plan.results[:2]
        entry = client.blackboard.get(plan.run_id, first.key)
        client.blackboard.put(plan.run_id, first.key, {"other": 1}, if_match=entry.etag)
        entry = client.blackboard.get(plan.run_id, second.key)
        client.blackboard.put(plan.run_id, second.key, second.value, if_match=entry.etag)
        client.blackboard.put(plan.run_id, "extra", 1, if_absent=True)
    assert differences(engines(*options(lab, dataset, "--verify"))) == [
        ("tool result", "different"),
        ("tool result", "doubled"),
        ("tool result", "unexpected"),
    ]


def test_session_memory_that_was_lost_is_told(
    engines: Engines, lab: LabProcess, dataset: str, plans: list[Plan]
) -> None:
    engines(*options(lab, dataset))
    with client_of(lab) as client:
        entry = client.memory.get(plans[0].run_id, MEMORY_KEY)
        client.memory.put(plans[0].run_id, MEMORY_KEY, {**entry.value, "facts": {}})
    done = engines(*options(lab, dataset, "--verify"))
    assert done.code == 1
    assert ("memory entry", "different") in differences(done)


# --- what it refuses ---


def test_other_contents_under_the_same_name_are_refused_run_by_run(
    engines: Engines, lab: LabProcess, dataset: str, tmp_path: Path
) -> None:
    engines(*options(lab, dataset))
    runs = json.loads(SAMPLE.read_text())
    runs[0]["traj"][1]["content"] = "something else"
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(runs))
    at = ("--lab", lab.directory, "--as", "member", "--json")
    done = engines("import", "agent-runs", changed, "--dataset", dataset, *at)
    assert done.code == 1
    assert done.json["runs"] == {"already there": 3, "failed": 1}
    assert [failure["code"] for failure in done.json["failures"]] == ["Conflict"]
    assert done.json["written"] == {}


def test_another_users_import_of_the_same_records_is_refused(
    engines: Engines, lab: LabProcess, dataset: str
) -> None:
    engines(*options(lab, dataset))
    other = ("--dataset", dataset, "--lab", lab.directory, "--as", "owner", "--json")
    done = engines("import", "agent-runs", SAMPLE, *other)
    assert done.code == 1
    assert done.json["runs"] == {"failed": 4}
    assert {failure["code"] for failure in done.json["failures"]} == {"Conflict"}
    mine = engines(*options(lab, dataset, "--verify"))
    assert mine.code == 0, mine.out


def test_a_blackboard_that_holds_something_else_is_not_overwritten(
    engines: Engines, lab: LabProcess, dataset: str, plans: list[Plan]
) -> None:
    plan = plans[0]
    with client_of(lab) as client:
        other = client.blackboard.put(plan.run_id, plan.results[0].key, "theirs", if_absent=True)
        done = engines(*options(lab, dataset))
        assert done.code == 1
        assert done.json["runs"] == {"failed": 1, "imported": 3}
        assert done.json["failures"][0]["code"] == "Conflict"
        # Started again it finds its own half, and still leaves what is not its own.
        assert engines(*options(lab, dataset)).json["runs"] == {"failed": 1, "already there": 3}
        assert client.blackboard.get(plan.run_id, plan.results[0].key).etag == other.etag


def test_a_role_that_may_not_write_is_told_once(engines: Engines, lab: LabProcess, dataset: str) -> None:
    viewer = ("--dataset", dataset, "--lab", lab.directory, "--as", "viewer")
    done = engines("import", "agent-runs", SAMPLE, *viewer)
    assert done.code == 1
    assert done.err.count("Forbidden") == 1


def test_an_event_past_the_servers_limit_fails_its_run_alone(
    engines: Engines, lab: LabProcess, dataset: str, tmp_path: Path
) -> None:
    runs = json.loads(SAMPLE.read_text())
    runs[2]["traj"][1]["content"] = "x" * 300_000
    large = tmp_path / "large.json"
    large.write_text(json.dumps(runs))
    at = ("--dataset", dataset, "--lab", lab.directory, "--as", "member", "--json")
    done = engines("import", "agent-runs", large, *at)
    assert done.code == 1
    assert done.json["runs"] == {"failed": 1, "imported": 3}
    assert done.json["failures"][0]["code"] == "TooLarge"


def test_a_run_of_more_events_than_one_append_takes_is_whole(
    engines: Engines, lab: LabProcess, dataset: str, tmp_path: Path
) -> None:
    said = [{"role": "user", "content": f"{n} ☃"} for n in range(3 * BATCH_EVENTS_MAX + 1)]
    long = tmp_path / "long.json"
    long.write_text(json.dumps([{"task_id": "t", "trial": 0, "reward": 1, "traj": said}]))
    at = ("--dataset", dataset, "--lab", lab.directory, "--as", "member", "--json", "--verify")
    done = engines("import", "agent-runs", long, *at)
    assert done.code == 0, done.out
    assert done.json["written"]["spine events"] == len(said)


def test_a_person_reads_a_summary(engines: Engines, lab: LabProcess, dataset: str) -> None:
    at = ("--dataset", dataset, "--lab", lab.directory, "--as", "member", "--verify")
    done = engines("import", "agent-runs", SAMPLE, *at)
    assert done.code == 0
    assert "spine append" in done.out
    assert "Everything is there once" in done.out
    assert "4 of 4 runs" in done.err


def test_a_file_that_is_none_is_refused_before_anything_is_sent(engines: Engines, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    done = engines("import", "agent-runs", tmp_path / "x.json", "--url", "http://127.0.0.1:1", "--token", "x")
    assert done.code == 1
    assert "no list of agent runs" in done.err


def test_the_example_that_a_reader_follows_runs(lab: LabProcess) -> None:
    example = [sys.executable, str(SAMPLE.with_name("agent_runs.py")), "--lab", str(lab.directory)]
    for state in ("imported", "already there"):
        done = subprocess.run(example, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert f"'{state}': 4" in done.stdout
        assert "differences: 0" in done.stdout
        assert "change_seat" in done.stdout
        assert "example: task 0, trial 0 succeeded" in done.stdout


@pytest.mark.slow
def test_two_hundred_real_runs_are_imported_once_and_compared(
    engines: Engines, lab: LabProcess, recorded_runs: Path
) -> None:
    at = ("--lab", lab.directory, "--as", "member", "--json", "--verify")
    done = engines("import", "agent-runs", recorded_runs, *at)
    assert done.code == 0, done.out[-3_000:]
    assert done.json["runs"] == {"imported": 200}
    assert done.json["written"] == {
        "memory entries": 200,
        "notes": 200,
        "spine events": 5_308 + 1_164,
        "thread events": 5_308,
        "tool results": 1_164,
    }
    assert done.json["verified"]["difference_count"] == 0
