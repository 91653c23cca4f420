"""`engines events export`: what it takes away, under which rules, and what it says of its files."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import engines as engines_package
from engines.client import Engines as Client
from engines.client import Event, NewEvent
from engines.client.agent_runs import read_agent_runs
from engines.client.export_formats import COLUMNS
from engines.codec import encode_json
from tests.cli.conftest import SAMPLE, Engines
from tests.cli.lab import LabProcess

REWARDS = "rl"
PART_EVENTS = 40
RUN = "task-0-0"


def rewards_of(runs: Path) -> list[NewEvent]:
    """What each recorded run was rewarded with."""
    return [
        NewEvent(
            event_type=REWARDS,
            run_id=f"task-{run.task_id}-{run.trial}",
            source="tool",
            occurred_at="2024-06-01t12:00:00.1234567+02:00",
            payload={
                "kind": "reward",
                "value": run.reward,
                "terminated": True,
                "details": {"task_id": run.task_id, "trial": run.trial, "info": run.info},
            },
        )
        for run in read_agent_runs(runs)
    ]


def append(client: Client, events: Sequence[NewEvent]) -> None:
    for start in range(0, len(events), 50):
        client.events.append(events[start : start + 50])


@pytest.fixture(scope="module")
def filled(lab: LabProcess) -> LabProcess:
    """A spine with rewards, many times over, and events of other types, users and projects."""
    sample = rewards_of(SAMPLE)
    rewards = sample * (200 // len(sample))
    with Client(lab.file.url, lab.file.user("owner").token) as owner:
        owner.projects.create({"project_id": "p1", "name": "P"})
        owner.events.append([NewEvent(event_type="message", payload={"text": "💡\n", "n": 2**64 - 1})])
        for event in rewards[::40]:
            owner.bound(project_id="p1").events.append([event])
    with Client(lab.file.url, lab.file.user("member").token) as member:
        append(member, rewards)
        member.events.append([NewEvent(event_type="message", payload={})])
    with Client(lab.file.url, lab.file.user("owner").token) as owner:
        # The audit event of p1 comes through the outbox, at a time of its own; after it nothing is appended.
        next(event for event in owner.events.follow() if event.event_type == "audit")
    return lab


@pytest.fixture
def listed(filled: LabProcess) -> Iterator[Callable[..., list[Event]]]:
    """What `GET /events` shows."""
    with Client(filled.file.url, filled.file.user("owner").token) as client:

        def every(**filters: Any) -> list[Event]:
            return list(client.events.each(**filters))

        yield every


def parts_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("part-*"))


def lines_of(directory: Path) -> list[Any]:
    return [json.loads(line) for part in parts_of(directory) for line in part.read_bytes().splitlines()]


def manifest_of(directory: Path) -> Any:
    return json.loads((directory / "manifest.json").read_text())


# --- what is in it ---


def test_every_event_is_a_line_as_the_list_shows_it(
    engines: Engines, filled: LabProcess, listed: Callable[..., list[Event]], tmp_path: Path
) -> None:
    done = engines(
        "events", "export", tmp_path / "x", "--part-events", PART_EVENTS, "--lab", filled.directory, "--json"
    )
    assert done.code == 0, done.err
    expected = [encode_json(event) for event in listed()]
    content = b"".join(part.read_bytes() for part in parts_of(tmp_path / "x"))
    assert content.decode().split("\n")[:-1] == expected
    assert (done.json["event_count"], done.json["new_events"]) == (len(expected), len(expected))
    assert done.err.count("part-") == len(parts_of(tmp_path / "x")) == done.json["new_parts"] > 5


def test_the_manifest_says_what_each_part_holds(
    engines: Engines, filled: LabProcess, listed: Callable[..., list[Event]], tmp_path: Path
) -> None:
    at = ("--lab", filled.directory)
    engines("events", "export", tmp_path / "x", "--part-events", PART_EVENTS, *at)
    manifest = manifest_of(tmp_path / "x")
    events = {event.position: event for event in listed()}
    head = engines("events", "verify", *at, "--json").json["head"]
    assert {name: manifest["head"][name] for name in head} == head
    assert manifest["head"]["cursor"] == events[head["position"]].cursor
    assert (manifest["tenant_id"], manifest["env"], manifest["filters"]) == ("t_demo", "prod", {})
    assert manifest["is_complete"] is True
    position = 0
    for part in manifest["parts"]:
        content = (tmp_path / "x" / part["file"]).read_bytes()
        positions = [json.loads(line)["position"] for line in content.splitlines()]
        assert positions == list(range(position + 1, position + 1 + len(positions)))
        assert (part["first_position"], part["last_position"]) == (positions[0], positions[-1])
        assert part["event_count"] == len(positions) <= PART_EVENTS
        assert (part["byte_count"], part["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert part["cursor"] == events[positions[-1]].cursor
        position = positions[-1]
    assert position == head["position"] == manifest["event_count"]


@pytest.mark.parametrize(
    ("options", "filters"),
    [
        (["--type", REWARDS], {"event_type": REWARDS}),
        (["--run", RUN], {"run_id": RUN}),
        (["--user", "u_member"], {"user_id": "u_member"}),
        (["--project", "p1"], {"project_id": "p1"}),
        (["--type", REWARDS, "--user", "u_owner"], {"event_type": REWARDS, "user_id": "u_owner"}),
        (["--type", "nobody_wrote_this"], {"event_type": "nobody_wrote_this"}),
        (["--until", "2020-01-01T00:00:00Z"], {"until": "2020-01-01T00:00:00Z"}),
    ],
)
def test_filters_let_through_what_they_let_through_in_a_list(
    engines: Engines,
    filled: LabProcess,
    listed: Callable[..., list[Event]],
    tmp_path: Path,
    options: list[str],
    filters: dict[str, str],
) -> None:
    done = engines("events", "export", tmp_path / "x", *options, "--lab", filled.directory)
    assert done.code == 0, done.err
    expected = [event.position for event in listed(**filters)]
    assert [line["position"] for line in lines_of(tmp_path / "x")] == expected
    assert bool(expected) is (options[-1] not in ("nobody_wrote_this", "2020-01-01T00:00:00Z"))
    assert manifest_of(tmp_path / "x")["filters"] == filters
    assert engines("events", "export", tmp_path / "x", "--verify").code == 0


def test_since_and_until_cut_at_times_of_the_server(
    engines: Engines, filled: LabProcess, listed: Callable[..., list[Event]], tmp_path: Path
) -> None:
    events = listed()
    middle = events[len(events) // 2].timestamp
    at = ("--lab", filled.directory)
    engines("events", "export", tmp_path / "before", "--until", middle, *at)
    engines("events", "export", tmp_path / "after", "--since", middle, *at)
    before, after = lines_of(tmp_path / "before"), lines_of(tmp_path / "after")
    assert all(line["timestamp"] < middle for line in before)
    assert all(line["timestamp"] >= middle for line in after)
    assert [line["position"] for line in (*before, *after)] == [event.position for event in events]


def test_the_rewards_of_two_hundred_real_runs_are_all_there(
    engines: Engines, own_lab: LabProcess, recorded_runs: Path, tmp_path: Path
) -> None:
    own_lab.start()
    with Client(own_lab.file.url, own_lab.file.user("member").token) as member:
        append(member, rewards_of(recorded_runs))
    options = ("--type", REWARDS, "--format", "parquet")
    engines("events", "export", tmp_path / "x", *options, "--lab", own_lab.directory)
    table = pq.read_table(parts_of(tmp_path / "x")[0])
    payloads = [json.loads(text) for text in table["payload"].to_pylist()]
    runs = json.loads(recorded_runs.read_text())
    assert len(payloads) == len(runs) == 200
    assert sum(payload["value"] for payload in payloads) == sum(run["reward"] for run in runs)
    assert [payload["details"]["info"] for payload in payloads] == [run["info"] for run in runs]


def test_parquet_has_the_same_events_in_typed_columns(
    engines: Engines, filled: LabProcess, listed: Callable[..., list[Event]], tmp_path: Path
) -> None:
    options = ("--format", "parquet", "--part-events", 100)
    done = engines("events", "export", tmp_path / "x", *options, "--lab", filled.directory)
    assert done.code == 0, done.err
    parts = parts_of(tmp_path / "x")
    assert len(parts) > 1
    types = {field.name: str(field.type).replace("tz=", "") for field in pq.read_schema(parts[0])}
    assert types == {name: column.kind for name, column in COLUMNS.items()}
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    events = listed()
    assert len(rows) == len(events)
    for row, event in zip(rows, events, strict=True):
        for name in set(COLUMNS) - {"timestamp", "occurred_at", "payload", "trace_id", "span_id"}:
            assert row[name] == getattr(event, name), name
        assert json.loads(row["payload"]) == event.payload
        assert row["timestamp"] == datetime.fromisoformat(event.timestamp)
        assert event.causality is not None
        assert (row["trace_id"], row["span_id"]) == (event.causality.trace_id, event.causality.span_id)
        if event.occurred_at is None:
            assert row["occurred_at"] is None
        else:
            assert row["occurred_at"] == datetime(2024, 6, 1, 10, 0, 0, 123456, tzinfo=UTC)
    assert engines("events", "export", tmp_path / "x", "--verify").code == 0


def test_what_parquet_needs_is_said_before_anything_is_written(
    engines: Engines, filled: LabProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = engines("events", "export", tmp_path / "x", "--format", "parquet", "--lab", filled.directory)
    assert done.code == 1
    assert "pip install 'engines[parquet]'" in done.err
    assert not list((tmp_path / "x").iterdir())


# --- once more, and later ---


def test_the_same_export_twice_is_the_same_to_the_byte(
    engines: Engines, filled: LabProcess, tmp_path: Path
) -> None:
    for format_ in ("jsonl", "parquet"):
        for name in ("one", "two"):
            options = ("--format", format_, "--part-events", PART_EVENTS, "--lab", filled.directory)
            assert engines("events", "export", tmp_path / format_ / name, *options).code == 0
        one, two = (sorted((tmp_path / format_ / name).iterdir()) for name in ("one", "two"))
        assert [path.name for path in one] == [path.name for path in two]
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_a_later_run_adds_what_is_new_and_leaves_what_is_there(
    engines: Engines, filled: LabProcess, listed: Callable[..., list[Event]], tmp_path: Path
) -> None:
    at = ("--lab", filled.directory, "--json")
    engines("events", "export", tmp_path / "x", "--type", REWARDS, "--part-events", 90, *at)
    before = {path.name: path.read_bytes() for path in parts_of(tmp_path / "x")}
    first = manifest_of(tmp_path / "x")
    nothing = engines("events", "export", tmp_path / "x", *at).json
    assert (nothing["new_events"], nothing["new_parts"]) == (0, 0)
    assert manifest_of(tmp_path / "x") == first
    with Client(filled.file.url, filled.file.user("member").token) as member:
        member.events.append([NewEvent(event_type="message", payload={})])
    # Nothing that the filters let through came, and the head moves on all the same.
    assert engines("events", "export", tmp_path / "x", *at).json["new_events"] == 0
    assert manifest_of(tmp_path / "x")["earlier_head"] == first["head"]
    with Client(filled.file.url, filled.file.user("member").token) as member:
        member.events.append([NewEvent(event_type=REWARDS, payload={"kind": "reward", "value": 7})] * 3)
    again = engines("events", "export", tmp_path / "x", *at).json
    assert (again["new_events"], again["new_parts"]) == (3, 1)
    now = {path.name: path.read_bytes() for path in parts_of(tmp_path / "x")}
    assert {name: now[name] for name in before} == before
    expected = [event.position for event in listed(event_type=REWARDS)]
    assert [line["position"] for line in lines_of(tmp_path / "x")] == expected
    assert engines("events", "export", tmp_path / "x", "--verify").code == 0


async def redact(lab: LabProcess, position: int) -> None:
    """Remove an event's text for ever; the lab is stopped."""
    async with engines_package.open(f"sqlite:///{lab.directory / 'control.db'}") as opened:
        context = await opened.contexts.context(lab.file.user("owner").token)
        place = await opened.router.place("event_spine", context)
        async with opened.spine._logs._using(place, "spine") as log:
            await log.redact(position)


def test_a_redacted_event_keeps_its_place_and_the_export_follows_up(
    engines: Engines, own_lab: LabProcess, tmp_path: Path
) -> None:
    own_lab.start()
    at = ("--lab", own_lab.directory)
    with Client(own_lab.file.url, own_lab.file.user("member").token) as member:
        member.events.append([NewEvent(event_type="message", payload={"n": n}) for n in range(5)])
    assert engines("events", "export", tmp_path / "before", *at).code == 0
    before = lines_of(tmp_path / "before")
    assert own_lab.stop() == 0
    asyncio.run(redact(own_lab, before[2]["position"]))
    own_lab.start()
    for format_ in ("jsonl", "parquet"):
        assert engines("events", "export", tmp_path / format_, "--format", format_, *at).code == 0
        assert check(engines, tmp_path / format_) == (0, "")
    lines = lines_of(tmp_path / "jsonl")
    assert lines[:2] == before[:2]
    assert lines[3:5] == before[3:5]
    assert (lines[2]["position"], lines[2]["event_id"]) == (before[2]["position"], before[2]["event_id"])
    assert (lines[2]["event_type"], lines[2]["payload"]) == ("redacted", None)
    row = pq.read_table(parts_of(tmp_path / "parquet")[0]).to_pylist()[2]
    assert (row["event_type"], row["payload"], row["user_id"]) == ("redacted", None, None)
    # By type it is none of its own type any more; what was taken away before is not called back.
    assert engines("events", "export", tmp_path / "typed", "--type", "message", *at).code == 0
    assert [line["payload"]["n"] for line in lines_of(tmp_path / "typed")] == [0, 1, 3, 4]
    assert engines("events", "export", tmp_path / "before", *at).code == 0
    assert lines_of(tmp_path / "before")[2] == before[2]


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--format", "parquet"], "format"),
        (["--type", "message"], "event_type"),
        (["--user", "u_member"], "user_id"),
        (["--since", "2020-01-01T00:00:00Z"], "since"),
        (["--part-events", "7"], "part_events"),
        (["--env", "dev"], "env"),
    ],
)
def test_a_directory_holds_one_export(
    engines: Engines, filled: LabProcess, tmp_path: Path, options: list[str], field: str
) -> None:
    at = ("--lab", filled.directory, "--json")
    with Client(filled.file.url, filled.file.user("system_admin").token) as admin:
        tenant = admin.tenants.get("t_demo")
        if "dev" not in tenant.envs:
            admin.tenants.patch("t_demo", {"envs": [*tenant.envs, "dev"]}, if_match=tenant.etag)
    assert engines("events", "export", tmp_path / "x", "--type", REWARDS, *at).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    done = engines("events", "export", tmp_path / "x", *options, *at)
    assert (done.code, json.loads(done.err)["field"]) == (1, field)
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--part-events", "0"], "part_events"),
        (["--part-events", "1000001"], "part_events"),
        (["--since", "yesterday"], "since"),
        (["--type", "BAD"], "event_type"),
        (["--as", "member"], "the role does not grant export"),
        (["--as", "viewer"], "the role does not grant export"),
        (["--verify", "--type", REWARDS], "verify"),
        (["--verify"], "holds no export"),
    ],
)
def test_a_wrong_call_fails_and_leaves_no_export(
    engines: Engines, filled: LabProcess, tmp_path: Path, options: list[str], said: str
) -> None:
    done = engines("events", "export", tmp_path / "x", *options, "--lab", filled.directory)
    assert done.code == 1
    assert said in done.err
    assert not (tmp_path / "x").exists() or not list((tmp_path / "x").iterdir())


def test_an_unknown_format_is_a_wrong_call(engines: Engines, filled: LabProcess, tmp_path: Path) -> None:
    done = engines("events", "export", tmp_path / "x", "--format", "csv", "--lab", filled.directory)
    assert done.code == 2


def test_nothing_that_is_no_export_is_touched(engines: Engines, filled: LabProcess, tmp_path: Path) -> None:
    (tmp_path / ".notes.writing").write_text("mine")
    done = engines("events", "export", tmp_path, "--lab", filled.directory)
    assert (done.code, "holds something" in done.err) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == [".notes.writing"]
    (tmp_path / ".notes.writing").unlink()
    (tmp_path / "manifest.json").write_text('{"schema": "export/9"}')
    done = engines("events", "export", tmp_path, "--lab", filled.directory)
    assert (done.code, "no manifest of an export" in done.err) == (1, True)
    done = engines("events", "export", tmp_path / "manifest.json", "--lab", filled.directory)
    assert (done.code, "cannot be written to" in done.err) == (1, True)


def test_a_spine_that_is_not_the_one_that_was_exported_is_refused(
    engines: Engines, filled: LabProcess, tmp_path: Path
) -> None:
    at = ("--lab", filled.directory)
    engines("events", "export", tmp_path / "x", *at)
    manifest = manifest_of(tmp_path / "x")
    manifest["head"]["digest"] = "0" * 64
    (tmp_path / "x" / "manifest.json").write_text(json.dumps(manifest))
    done = engines("events", "export", tmp_path / "x", *at)
    assert (done.code, "Corrupt" in done.err) == (1, True)
    assert f"position {manifest['head']['position']}" in done.err


# --- checking it ---


@pytest.fixture
def exported(engines: Engines, filled: LabProcess, tmp_path: Path) -> Path:
    options = ("--part-events", PART_EVENTS, "--lab", filled.directory)
    assert engines("events", "export", tmp_path / "x", *options).code == 0
    return tmp_path / "x"


def check(engines: Engines, directory: Path) -> tuple[int, str]:
    done = engines("events", "export", directory, "--verify", "--json")
    assert done.json["ok"] is (done.code == 0)
    return done.code, "; ".join(done.json["problems"])


def test_an_export_is_checked_without_its_server(engines: Engines, exported: Path, tmp_path: Path) -> None:
    assert check(engines, exported) == (0, "")
    shutil.move(exported, tmp_path / "elsewhere")
    assert check(engines, tmp_path / "elsewhere") == (0, "")
    shown = engines("events", "export", tmp_path / "elsewhere", "--verify")
    digest = hashlib.sha256((tmp_path / "elsewhere" / "manifest.json").read_bytes()).hexdigest()
    assert digest in shown.out


def test_one_changed_byte_shows(engines: Engines, exported: Path) -> None:
    part = parts_of(exported)[2]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    code, problems = check(engines, exported)
    assert (code, "part-000003.jsonl is not what was written" in problems) == (1, True)
    shown = engines("events", "export", exported, "--verify")
    assert (shown.code, "part-000003.jsonl" in shown.out) == (1, True)


def test_a_part_that_is_gone_or_too_many_shows(engines: Engines, exported: Path) -> None:
    parts_of(exported)[-1].rename(exported / "part-000099.jsonl")
    code, problems = check(engines, exported)
    assert code == 1
    assert "cannot be read" in problems
    assert "part-000099.jsonl is no part of the export" in problems


def leave_out_a_part(manifest: Any) -> None:
    gone = manifest["parts"].pop(1)
    manifest["event_count"] -= gone["event_count"]


def leave_out_the_end(manifest: Any) -> None:
    gone = manifest["parts"].pop()
    manifest["event_count"] -= gone["event_count"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest.update(event_count=7), "sum of its parts"),
        (leave_out_a_part, "do not follow"),
        (leave_out_the_end, "do not end where the head is"),
        (lambda manifest: manifest["head"].update(position=7), "do not end where the head is"),
        (lambda manifest: manifest.update(is_complete=False), "not finished"),
        (lambda manifest: manifest["parts"][0].update(file="../x/part-000001.jsonl"), "no name of a part"),
    ],
)
def test_a_manifest_that_does_not_agree_with_itself_shows(
    engines: Engines, exported: Path, change: Callable[[Any], None], said: str
) -> None:
    manifest = manifest_of(exported)
    change(manifest)
    (exported / "manifest.json").write_text(json.dumps(manifest))
    code, problems = check(engines, exported)
    assert code == 1
    assert said in problems
