"""`engines doctor`: it finds out by using, restarts what it may, and fails where one kind does."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engines.cli.probes import PROBES
from engines.client import Engines as Client
from tests.cli.conftest import Engines, start_engines
from tests.cli.lab import LabProcess

WAIT_S = 60.0


def test_every_kind_of_a_running_server_is_used_and_none_is_restarted(
    engines: Engines, lab: LabProcess
) -> None:
    done = engines("doctor", "--lab", lab.directory, "--json")
    assert done.code == 0, done.out
    report = done.json
    assert (report["ok"], report["lab"], report["restarted"]) == (True, True, False)
    assert {kind["resource_kind"] for kind in report["kinds"]} == set(PROBES)
    for kind in report["kinds"]:
        assert (kind["ok"], kind["route"], kind["read"], kind["restart"]) == (True, "ready", "ok", "not run")
        assert kind["write"] in {"ok", "read only"}
        assert kind["delete"] in {"ok", "kept", "read only"}


def test_it_says_by_name_what_it_did_not_run(engines: Engines, lab: LabProcess) -> None:
    done = engines("doctor", "--lab", lab.directory)
    assert done.code == 0
    assert "Restart not run" in done.out


@pytest.mark.crash
def test_a_stopped_lab_is_started_killed_and_started_again(engines: Engines, own_lab: LabProcess) -> None:
    own_lab.start()
    url = own_lab.file.url
    own_lab.stop()
    done = engines("doctor", "--lab", own_lab.directory, "--json")
    assert done.code == 0, done.out + done.err
    report = done.json
    assert report["restarted"] is True
    assert all(kind["restart"] == "ok" for kind in report["kinds"])
    assert report["url"] == url
    # Nobody listens any more: the doctor has stopped what it started, and only that.
    assert engines("tenants", "list", "--lab", own_lab.directory).code == 1


def test_what_could_be_removed_is_removed(engines: Engines, lab: LabProcess) -> None:
    engines("doctor", "--lab", lab.directory)
    with Client(lab.file.url, lab.file.user("owner").token) as client:
        assert not list(client.notes.each())
        assert not list(client.tables.each("engines-doctor", "engines-doctor"))
        assert not list(client.sessions.each())
        assert not list(client.agent_memory.each("summaries"))


def test_a_kind_without_a_route_fails_and_the_others_are_still_tried(
    engines: Engines, own_lab: LabProcess
) -> None:
    own_lab.start()
    admin = ("--lab", own_lab.directory, "--as", "system_admin")
    assert engines("routes", "delete", "notes_store", *admin).code == 0
    done = engines("doctor", "--lab", own_lab.directory, "--json")
    assert done.code == 1
    kinds = {kind["resource_kind"]: kind for kind in done.json["kinds"]}
    notes = kinds.pop("notes_store")
    assert (notes["ok"], notes["route"], notes["write"], notes["read"]) == (
        False,
        "missing",
        "failed",
        "not run",
    )
    assert notes["detail"]
    assert all(kind["ok"] for kind in kinds.values())
    assert "Not every required kind" in engines("doctor", "--lab", own_lab.directory).out


def test_a_role_that_may_not_write_fails_by_name(engines: Engines, lab: LabProcess) -> None:
    done = engines("doctor", "--lab", lab.directory, "--as", "viewer", "--json")
    assert done.code == 1
    notes = next(kind for kind in done.json["kinds"] if kind["resource_kind"] == "notes_store")
    assert notes["detail"].startswith("write: Forbidden: ")


def test_a_directory_that_is_no_lab_is_refused(engines: Engines, tmp_path: Path) -> None:
    assert engines("doctor", "--lab", tmp_path).code == 1


def test_a_lab_that_cannot_start_is_told_with_its_reason(engines: Engines, own_lab: LabProcess) -> None:
    own_lab.start()
    own_lab.stop()
    (own_lab.directory / "control.db").write_bytes(b"this is no database" * 1_000)
    done = engines("doctor", "--lab", own_lab.directory)
    assert done.code == 1
    assert "did not start" in done.err


@pytest.mark.crash
def test_an_interrupted_doctor_leaves_no_server_behind(own_lab: LabProcess) -> None:
    own_lab.start()
    own_lab.stop()
    process = start_engines("doctor", "--lab", own_lab.directory)
    deadline_s = time.monotonic() + WAIT_S
    while not _listening(own_lab) and time.monotonic() < deadline_s:
        assert process.poll() is None, "the doctor ended before its server listened"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=WAIT_S)
    assert "Traceback" not in out + err
    assert not _listening(own_lab)


def _listening(lab: LabProcess) -> bool:
    address = urlsplit(lab.file.url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0
