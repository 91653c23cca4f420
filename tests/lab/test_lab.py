"""The lab as a stranger meets it: started by one command, stopped, killed and started again."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

from tests.servers.lab import LabServer

PATIENCE_S = 10.0


def call(
    lab: LabServer, method: str, path: str, *, role: str | None = "owner", body: Any = None, **headers: str
) -> tuple[int, Message, Any]:
    request = urllib.request.Request(lab.url + path, method=method)
    request.add_header("Authorization", f"Bearer {lab.token(role)}")
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    if body is not None:
        request.add_header("Content-Type", "application/json")
        request.data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            text = reply.read()
            return reply.status, reply.headers, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def test_lab_json_has_a_token_for_each_role_and_each_works(lab: LabServer) -> None:
    lab.start()
    file = lab.file
    assert set(file) == {"url", "tenant_id", "users"}
    assert file["tenant_id"] == "t_demo"
    roles = {user["role"]: user["tenant_id"] for user in file["users"].values()}
    assert roles == {
        "owner": "t_demo",
        "member": "t_demo",
        "viewer": "t_demo",
        "system_admin": "t_system",
        None: None,
    }
    for role, tenant_id in roles.items():
        status, headers, me = call(lab, "GET", "/me", role=role)
        if role is None:
            assert (status, me["code"]) == (403, "Forbidden")
        else:
            assert (status, me["tenant_id"], me["lab"]) == (200, tenant_id, True)
            assert headers["X-Engines-Lab"] == "true"


def test_the_three_curl_lines_work_when_pasted(lab: LabServer) -> None:
    lab.start()
    lines = [line for line in lab.output.read_text().splitlines() if line.startswith("curl ")]
    assert len(lines) == 3
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        assert "code" not in json.loads(done.stdout), done.stdout


def test_it_says_that_it_is_a_lab_and_where_it_listens(lab: LabServer) -> None:
    lab.start()
    said = lab.output.read_text()
    assert lab.url in said
    assert "LAB" in said


def test_the_lab_starts_with_t_systems_default_routes_only(lab: LabServer) -> None:
    lab.start()
    assert call(lab, "GET", "/routes")[2]["items"] == []
    defaults = call(lab, "GET", "/routes", role="system_admin")[2]["items"]
    assert {route["resource_kind"] for route in defaults} >= {"event_spine", "notes_store", "memory_store"}


def test_data_and_tokens_survive_a_restart_on_another_port(lab: LabServer) -> None:
    lab.start()
    tokens = {role: lab.token(role) for role in ("owner", "member")}
    _, _, note = call(lab, "POST", "/notes", role="member", body={"content": "kept"})
    assert lab.stop() == 0
    again = LabServer(lab.directory, port=free_port())
    try:
        again.start()
        request = urllib.request.Request(f"{again.url}/notes/{note['note_id']}")
        request.add_header("Authorization", f"Bearer {tokens['member']}")
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            assert json.load(reply) == note
        assert again.stop() == 0
    finally:
        again.close()


def test_what_was_acknowledged_survives_kill_9(lab: LabServer) -> None:
    lab.start()
    kept = [call(lab, "POST", "/notes", body={"content": f"note {number}"})[2] for number in range(20)]
    lab.kill9()
    lab.start()
    for note in kept:
        assert call(lab, "GET", f"/notes/{note['note_id']}")[2] == note


def test_a_deleted_default_route_is_not_put_back_by_a_restart(lab: LabServer) -> None:
    lab.start()
    status, _, _ = call(lab, "DELETE", "/routes/notes_store", role="system_admin", If_Match="*")
    assert status == 204
    lab.stop()
    lab.start()
    status, _, problem = call(lab, "GET", "/notes")
    assert (status, problem["code"], problem["resource_kind"]) == (503, "MissingRoute", "notes_store")
    assert "engines routes put notes_store --tenant t_demo" in problem["detail"]


def test_signals_end_it_cleanly_even_with_a_stream_open(lab: LabServer) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        lab.start()
        request = urllib.request.Request(f"{lab.url}/events/stream")
        request.add_header("Authorization", f"Bearer {lab.token('owner')}")
        with urllib.request.urlopen(request, timeout=PATIENCE_S):
            began = time.monotonic()
            assert lab.stop(number) == 0
            assert time.monotonic() - began < PATIENCE_S


def test_a_kill_of_the_process_group_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "lab"
    output = tmp_path / "out"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("engines")), "lab", "--dir", str(directory), "--port", "0"],
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + 30
    while "Three things" not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    members = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and group_of(int(entry.name)) == process.pid
    ]
    assert process.pid in members
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_S)
    assert [pid for pid in members if group_of(pid) == process.pid] == []


def test_secrets_lie_in_files_that_only_their_owner_reads(lab: LabServer) -> None:
    lab.start()
    for name in ("lab.json", "signing-key.json"):
        assert stat.S_IMODE((lab.directory / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(lab.directory.stat().st_mode) == 0o700
    said = re.sub(re.escape(lab.token("owner")), "", lab.output.read_text())
    assert all(user["token"] not in said for user in lab.file["users"].values())


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = refused(tmp_path / "lab", taken.getsockname()[1])
    assert "cannot listen" in said


def test_a_directory_that_another_lab_serves_is_left_alone(lab: LabServer) -> None:
    lab.start()
    url, token = lab.url, lab.token("owner")
    assert f"a lab runs in {lab.directory}" in refused(lab.directory, 0)
    assert (lab.url, lab.token("owner")) == (url, token)
    lab.kill9()
    lab.start()


def refused(directory: Path, port: int) -> str:
    """What a lab says that does not start."""
    program = str(Path(sys.executable).with_name("engines"))
    done = subprocess.run(
        [program, "lab", "--dir", str(directory), "--port", str(port)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
