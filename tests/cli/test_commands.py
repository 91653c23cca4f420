"""Every command against a running lab: what people see, what programs read, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engines.cli.main import _COMMANDS
from engines.drivers.registry import DOCUMENT_DRIVERS, document_driver
from engines.ports.documents import DriverDescription
from tests.cli.conftest import Engines, run_engines, start_engines
from tests.cli.lab import LabProcess

# --- how a command ends ---


def test_help_is_told_without_importing_any_command() -> None:
    code = (
        "import sys; from engines.cli.main import run\n"
        "try: run(['--help'])\n"
        "except SystemExit as e: assert not e.code\n"
        "slow = ('aiohttp', 'uvicorn', 'engines.wiring', 'engines.client')\n"
        "loaded = [name for name in sys.modules if name.startswith(slow)]\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name, *_ in _COMMANDS)


@pytest.mark.parametrize("name", [name for name, *_ in _COMMANDS])
def test_every_command_explains_itself(engines: Engines, name: str) -> None:
    done = engines(name, "--help")
    assert done.code == 0
    assert "Usage" in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["tenants", "nope"],
        ["tenants", "create"],
        ["tenants", "show", "t_a", "--nope"],
        ["events", "tail", "--count", "many"],
        ["import", "agent-runs"],
    ],
)
def test_a_wrong_call_ends_with_2(engines: Engines, arguments: list[str]) -> None:
    done = engines(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err


def test_a_refusal_ends_with_1_and_says_what_to_do_next(engines: Engines, lab: LabProcess) -> None:
    done = engines("users", "list", "--lab", lab.directory, "--as", "viewer")
    assert done.code == 1
    assert done.out == ""
    problem, request, hint = done.err.splitlines()
    assert problem.startswith("engines: Forbidden: ")
    assert request.startswith("request id: ")
    assert hint.startswith("next: ")


def test_a_refusal_is_one_json_object_for_programs(engines: Engines, lab: LabProcess) -> None:
    done = engines("routes", "resolve", "nope", "--lab", lab.directory, "--json")
    assert done.code == 1
    told = json.loads(done.err)
    assert told["code"] == "Invalid"
    assert told["field"] == "resource_kind"
    assert told["request_id"]


def test_a_server_that_is_not_there_is_said_to_be(engines: Engines) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        done = engines("doctor", "--url", url, "--token", "x")
    assert done.code == 1
    assert "Unavailable" in done.err
    assert "is the server running?" in done.err


def test_python_m_engines_is_the_command(lab: LabProcess) -> None:
    done = run_engines("tenants", "show", "t_demo", "--json", "--lab", lab.directory)
    assert (done.code, done.json["tenant_id"]) == (0, "t_demo")


def test_a_reader_that_goes_away_ends_the_command_quietly(lab: LabProcess) -> None:
    process = start_engines("tenants", "list", "--lab", lab.directory)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


# --- where the server is, and who asks ---


def test_address_and_token_come_from_the_environment(
    engines: Engines, lab: LabProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINES_URL", lab.file.url)
    monkeypatch.setenv("ENGINES_TOKEN", lab.file.user("owner").token)
    assert engines("tenants", "list", "--json").json["items"][0]["tenant_id"] == "t_demo"


def test_options_override_the_environment(
    engines: Engines, lab: LabProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINES_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("ENGINES_TOKEN", "wrong")
    url, token = lab.file.url, lab.file.user("owner").token
    assert engines("tenants", "list", "--url", url, "--token", token).code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say where the server is"),
        (["--url", "http://127.0.0.1:1"], "say who asks"),
        (["--url", "nowhere", "--token", "x"], "URL"),
        (["--as", "owner"], "--lab too"),
        (["--lab", "/nowhere/at/all"], "cannot be read"),
    ],
)
def test_a_connection_that_cannot_be_made_says_what_is_missing(
    engines: Engines, arguments: list[str], said: str
) -> None:
    done = engines("tenants", "list", *arguments)
    assert done.code == 1
    assert said in done.err


def test_a_lab_brings_both_or_neither(engines: Engines, lab: LabProcess) -> None:
    done = engines("tenants", "list", "--lab", lab.directory, "--token", "x")
    assert done.code == 1
    assert "leave out" in done.err


def test_a_user_of_the_lab_is_named_by_id_or_role(engines: Engines, lab: LabProcess) -> None:
    for name in ("u_member", "member"):
        assert engines("tenants", "list", "--lab", lab.directory, "--as", name).code == 0
    done = engines("tenants", "list", "--lab", lab.directory, "--as", "nobody")
    assert done.code == 1
    assert "u_member" in done.err


def test_a_lab_file_that_is_none_is_said_to_be_one(engines: Engines, tmp_path: Path) -> None:
    (tmp_path / "lab.json").write_text('{"url": 5}')
    done = engines("tenants", "list", "--lab", tmp_path)
    assert done.code == 1
    assert "no lab file" in done.err


# --- the control plane ---


def test_tenants_are_made_shown_listed_and_changed(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", lab.directory)
    made = engines(
        *("tenants", "create", "t_made", "--name", "Made", "--mode", "lab"),
        *("--env", "prod", "--env", "dev", "--json", *at),
    )
    assert made.code == 0
    assert made.json["envs"] == ["prod", "dev"]
    assert engines("tenants", "show", "t_made", "--json", *at).json == made.json
    listed = engines("tenants", "list", "--json", *at).json
    assert "t_made" in [tenant["tenant_id"] for tenant in listed["items"]]
    assert engines("tenants", "rename", "t_made", "Renamed", "--json", *at).json["name"] == "Renamed"
    refused = engines("tenants", "set-mode", "t_made", "saas", *at)
    assert refused.code == 1
    assert "ForbiddenBackendClass" in refused.err
    again = engines("tenants", "create", "t_made", "--name", "Made", "--mode", "lab", *at)
    assert again.code == 1
    assert "Conflict" in again.err


def test_a_person_reads_a_table(engines: Engines, lab: LabProcess) -> None:
    done = engines("tenants", "list", "--lab", lab.directory)
    head, *rows = done.out.splitlines()
    assert head.split()[:2] == ["tenant", "id"]
    assert any(row.startswith("t_demo") for row in rows)
    assert "{" not in head


def test_users_are_made_with_identities(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", lab.directory, "--json")
    made = engines(
        *("users", "create", "u_made", "--name", "Made"),
        *("--identity", "https://issuer.example", "s-1", "--identity", "https://issuer.example", "s-2", *at),
    )
    assert made.code == 0, made.err
    assert [identity["sub"] for identity in made.json["identities"]] == ["s-1", "s-2"]
    assert "u_made" in [user["user_id"] for user in engines("users", "list", *at).json["items"]]


def test_a_member_is_invited_accepts_and_is_revoked(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", lab.directory, "--json")
    member = ("t_demo", "u_outsider")
    assert engines("members", "invite", *member, "--role", "viewer", *at).json["status"] == "invited"
    assert engines("members", "accept", *member, *at).json["status"] == "accepted"
    assert engines("members", "show", *member, *at).json["role"] == "viewer"
    assert engines("members", "revoke", *member, *at).json["revoked"] is True
    assert engines("members", "revoke", *member, *at).code == 1


def test_a_user_is_held_and_erased(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", lab.directory)
    assert engines("users", "create", "u_leaver", *at).code == 0
    engines("members", "invite", "t_demo", "u_leaver", "--role", "viewer", *at)
    held = engines("users", "hold", "u_leaver", "--reason", "a case is pending", *at, "--json")
    assert held.json["hold"]["reason"] == "a case is pending"
    refused = engines("users", "erase", "u_leaver", *at)
    assert (refused.code, "a case is pending" in refused.err) == (1, True)
    assert engines("users", "lift-hold", "u_leaver", *at, "--json").json["held"] is False
    assert engines("users", "lift-hold", "u_leaver", *at).code == 1
    done = engines("users", "erase", "u_leaver", *at)
    assert (done.code, "u_leaver is erased from t_demo" in done.out) == (0, True), done.err
    assert "pass " in done.err, "it said nothing while it waited"
    assert engines("users", "erasure", "u_leaver", *at, "--json").json["erasure"]["state"] == "erased"
    assert engines("members", "show", "t_demo", "u_leaver", *at).code == 1


def test_a_key_is_made_opens_and_is_revoked(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", lab.directory, "--json")
    said = ("u_member", "--role", "member", "--name", "ci", "--surface", "chat")
    made = engines("keys", "create", *said, *at).json
    assert (made["key"][:3], made["surface_id"]) == ("ek_", "chat")
    with_key = ("--url", lab.file.url, "--token", made["key"], "--json")
    assert engines("tenants", "list", *with_key).json["items"][0]["tenant_id"] == "t_demo"
    listed = engines("keys", "list", *at).json["items"]
    assert [key["key"] for key in listed if key["key_id"] == made["key_id"]] == [None]
    assert engines("keys", "revoke", made["key_id"], *at).code == 0
    assert "Unauthenticated" in _until_refused(engines, with_key)


def _until_refused(engines: Engines, options: tuple[str, ...]) -> str:
    """Revocation holds within a second."""
    for _ in range(40):
        done = engines("tenants", "list", *options)
        if done.code:
            return done.err
    return ""


def test_backends_are_added_described_and_probed(engines: Engines, lab: LabProcess, tmp_path: Path) -> None:
    at = ("--lab", lab.directory, "--json")
    put = ("backends", "put", "second", "--driver", "sqlite", "--class", "host_local")
    config = ("--config", json.dumps({"path": str(tmp_path / "second.db")}))
    made = engines(*put, *config, "--offered-to", "t_demo", *at)
    assert made.code == 0, made.err
    assert made.json["offered_to"] == ["t_demo"]
    assert engines(*put, *config, "--offered-to", "*", *at).json["offered_to"] == "*"
    assert engines("backends", "describe", "second", *at).json["version"] == 2
    assert engines("backends", "probe", "second", *at).json["ok"] is True
    assert "second" in [backend["backend_id"] for backend in engines("backends", "list", *at).json["items"]]
    assert engines(*put, "--config", "[1]", *at).code == 1


def test_a_described_backend_shows_what_its_driver_says(
    engines: Engines, lab: LabProcess, tmp_path: Path
) -> None:
    at = ("--lab", lab.directory)
    config = json.dumps({"path": str(tmp_path / "described.db")})
    put = ("backends", "put", "described", "--driver", "sqlite", "--class", "host_local", "--config", config)
    assert engines(*put, *at).code == 0
    about = document_driver("sqlite").DESCRIPTION
    told = engines("backends", "describe", "described", "--json", *at).json
    assert msgspec.convert(told["driver_description"], DriverDescription) == about
    assert told["config"] == {"path": str(tmp_path / "described.db")}
    shown = engines("backends", "describe", "described", *at).out
    for said in (*about.limits.values(), *about.costs.values(), about.consistency, about.policy):
        assert said in shown


@pytest.mark.parametrize("name", DOCUMENT_DRIVERS)
def test_a_driver_is_described_without_a_server(engines: Engines, name: str) -> None:
    about = document_driver(name).DESCRIPTION
    told = engines("backends", "drivers", name, "--json").json
    assert msgspec.convert(told, DriverDescription) == about
    shown = engines("backends", "drivers", name).out
    for table in (about.config, about.secrets, about.limits, about.costs, about.proven):
        assert all(said in shown for said in table.values())
    assert about.policy in shown
    listed = engines("backends", "drivers", "--json").json["items"]
    assert name in [each["name"] for each in listed]
    assert name in engines("backends", "drivers").out


def test_a_driver_that_is_not_there_is_refused_with_those_that_are(engines: Engines) -> None:
    done = engines("backends", "drivers", "oracle")
    assert done.code == 1
    assert all(name in done.err for name in DOCUMENT_DRIVERS)


def test_a_backend_that_does_not_answer_fails_its_probe(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", lab.directory, "--json")
    config = json.dumps({"path": str(lab.directory / "missing" / "folder" / "x.db")})
    put = ("backends", "put", "broken", "--driver", "sqlite", "--class", "host_local", "--config", config)
    assert engines(*put, *at).code == 0
    done = engines("backends", "probe", "broken", *at)
    assert done.code == 1
    assert done.json["ok"] is False


def test_a_route_is_put_resolved_replaced_and_deleted(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", lab.directory, "--json")
    made = engines("routes", "put", "blackboard_store", "lab", "--option", "versions_kept=3", *at)
    assert made.code == 0, made.err
    again = engines("routes", "put", "blackboard_store", "lab", "--option", "versions_kept=4", *at)
    assert again.json["version"] == 2
    chat = engines("routes", "put", "blackboard_store", "lab", "--surface", "SQUARED²", *at).json
    assert chat["scope"] == {"surface_id": "squared2"}
    resolved = engines("routes", "resolve", "blackboard_store", *at).json
    assert resolved["route"]["options"] == {"versions_kept": 4}
    assert "created_at" not in resolved["route"], (
        "who asks where a kind lies is told no stamps, not empty ones"
    )
    assert [looked["tenant_id"] for looked in resolved["looked_at"]]
    assert len(engines("routes", "list", *at).json["items"]) == 2
    assert engines("routes", "delete", "blackboard_store", "--surface", "squared2", *at).code == 0
    assert engines("routes", "delete", "blackboard_store", *at).code == 0
    assert engines("routes", "delete", "blackboard_store", *at).code == 1
    versions = engines("routes", "history", "blackboard_store", *at).json["items"]
    assert [version["deleted"] for version in versions] == [False, False, True]


@pytest.mark.parametrize("option", ["versions_kept", "versions_kept=", "versions_kept=many", "=3"])
def test_an_option_of_a_route_is_a_name_and_a_number(engines: Engines, lab: LabProcess, option: str) -> None:
    assert (
        engines("routes", "put", "notes_store", "lab", "--option", option, "--lab", lab.directory).code == 1
    )


def test_the_alias_of_a_kind_finds_its_route(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", lab.directory, "--json")
    assert engines("routes", "put", "maybes", "lab", *at).json["resource_kind"] == "notes_store"
    assert engines("routes", "put", "maybes", "lab", *at).json["version"] == 2
    assert engines("routes", "delete", "maybes_store", *at).code == 0


def test_an_interrupt_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    """A command that waits for a server that never answers, and Ctrl-C."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = start_engines("tenants", "list", "--url", url, "--token", "x", cwd=tmp_path)
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1), "it asked, so now it waits"
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, err) == ("", "")
