"""`engines routes move` and `engines moves`, against a lab of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Engines
from tests.cli.lab import LabProcess

SECOND = (
    "backends",
    "put",
    "second",
    "--driver",
    "sqlite",
    "--class",
    "host_local",
    "--offered-to",
    "t_demo",
)


@pytest.fixture
def lab(own_lab: LabProcess, engines: Engines, tmp_path: Path) -> LabProcess:
    """A lab with a second backend."""
    own_lab.start()
    config = json.dumps({"path": str(tmp_path / "second.db")})
    assert engines(*SECOND, "--config", config, "--lab", own_lab.directory).code == 0
    return own_lab


def test_a_kind_is_moved_and_what_was_left_behind_removed(lab: LabProcess, engines: Engines) -> None:
    at = ("--lab", lab.directory)
    imported = engines("import", "agent-runs", "examples/agent-runs.json", *at, "--json")
    assert imported.code == 0, imported.err
    planned = engines("routes", "move", "--kind", "notes_store", "--to", "second", "--dry-run", *at, "--json")
    assert planned.json["documents"] > imported.json["written"]["notes"]
    assert engines("moves", "list", *at).out.strip() == "Nothing was ever moved."
    for kind in ("notes_store", "event_spine"):
        moved = engines("routes", "move", "--kind", kind, "--to", "second", *at)
        assert moved.code == 0, moved.err
        assert moved.out.startswith("done: ")
        assert "changes waited" in moved.out
    listed = engines("moves", "list", *at, "--json")
    assert [(move["resource_kind"], move["phase"]) for move in listed.json["items"]] == [
        ("event_spine", "done"),
        ("notes_store", "done"),
    ]
    shown = engines("moves", "show", listed.json["items"][1]["move_id"], *at, "--json").json
    assert shown["progress"]["documents"] == planned.json["documents"]
    checked = engines("import", "agent-runs", "examples/agent-runs.json", *at, "--verify", "--json")
    assert checked.json["verified"]["difference_count"] == 0
    assert checked.json["written"].get("notes", 0) == 0
    assert engines("events", "verify", *at).code == 0
    cancelled = engines("moves", "cancel", shown["move_id"], *at)
    assert (cancelled.code, "not taken back" in cancelled.err) == (1, True)


def test_a_move_that_is_begun_is_watched_by_another_command(lab: LabProcess, engines: Engines) -> None:
    at = ("--lab", lab.directory)
    begun = engines(
        "routes",
        "move",
        "--tenant",
        "t_demo",
        "--kind",
        "tabular_store",
        "--to",
        "second",
        "--detach",
        *at,
        "--json",
    )
    assert begun.json["phase"] == "prepare"
    watched = engines("moves", "watch", begun.json["move_id"], *at, "--json")
    assert (watched.code, watched.json["phase"]) == (0, "done")


def test_a_move_to_nowhere_says_which_field_is_wrong(lab: LabProcess, engines: Engines) -> None:
    refused = engines("routes", "move", "--kind", "notes_store", "--to", "nowhere", "--lab", lab.directory)
    assert refused.code == 1
    assert "backend_id" in refused.err
