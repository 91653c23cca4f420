"""Several worker processes behind one port."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.test_lab import free_port
from tests.servers.leash import LeashedProcess

ENGINES = str(Path(sys.executable).with_name("engines"))
WORKERS = 2
PATIENCE_S = 20.0


class Served:
    """`engines serve` with its workers."""

    def __init__(self, control_plane: str, key: str, log: Path) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.key = key
        self.log = log
        argv = [
            ENGINES,
            "serve",
            "--control-plane",
            control_plane,
            "--port",
            str(port),
            "--workers",
            str(WORKERS),
        ]
        self.process = LeashedProcess(argv, env=dict(os.environ), log=log)
        wait_until(lambda: self.status("/health/ready") == 200)

    def status(self, path: str) -> int:
        """Each call is a connection of its own, so any worker may take it."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.key}"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (urllib.error.URLError, ConnectionError):
            return 0

    def workers(self) -> set[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(pid) for pid in children if "spawn_main" in command_of(int(pid))}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    url = f"sqlite://{tmp_path}/control.db"
    said = subprocess.run(
        [ENGINES, "init", "--control-plane", url], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    (key,) = [line for line in said.splitlines() if line.startswith("ek_")]
    server = Served(url, key, tmp_path / "serve.log")
    try:
        yield server
    finally:
        if server.process.is_running():
            server.process.kill(PATIENCE_S)


def test_init_again_changes_nothing_and_shows_no_key(served: Served, tmp_path: Path) -> None:
    again = subprocess.run(
        [ENGINES, "init", "--control-plane", f"sqlite://{tmp_path}/control.db"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "ek_" not in again.stdout
    assert "nothing was changed" in again.stdout
    assert served.status("/me") == 200


def test_every_worker_adopts_a_change_of_routes(served: Served) -> None:
    """How soon, in polls of the directory: tests/control/test_directory.py."""
    assert {served.status("/notes") for _ in range(20)} == {200}
    request = urllib.request.Request(f"{served.url}/routes/notes_store", method="DELETE")
    request.add_header("Authorization", f"Bearer {served.key}")
    request.add_header("If-Match", "*")
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        assert reply.status == 204
    wait_until(lambda: {served.status("/notes") for _ in range(40)} == {503})


def test_a_worker_that_is_killed_is_replaced_and_the_rest_go_on(served: Served) -> None:
    before = served.workers()
    assert len(before) == WORKERS
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in served.workers() and len(served.workers()) == WORKERS)
    wait_until(lambda: {served.status("/me") for _ in range(10)} == {200})


def test_workers_end_with_the_process_that_started_them(served: Served) -> None:
    workers = served.workers()
    os.kill(served.process.pid, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in workers))


def test_a_signal_ends_all_of_it(served: Served) -> None:
    workers = served.workers()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE_S) == 0
    assert not any(is_alive(pid) for pid in workers)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    return "spawn_main" in command_of(pid)
