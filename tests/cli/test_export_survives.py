"""The export under kill -9: of the command, of the server, of both, while events come and the tenant moves.

Whoever was killed, the files are to the byte those of an export that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from engines.client import Engines as Client
from engines.client import NewEvent, RetryPolicy
from engines.codec import encode_json
from tests.cli.conftest import run_engines, start_engines
from tests.cli.lab import LabProcess

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(400)]

SEED = int(os.environ.get("ENGINES_TEST_SEED", "20261"))
EVENTS = 1_200
PART_EVENTS = 8  # So many parts that a kill after one of them meets work.
KILLS = 5
FINISH_S = 120.0
PATIENT = RetryPolicy(attempts_max=1_000, deadline_s=60.0, pause_max_s=0.2)


class Exporting:
    """The command as a process, killed once it has told of so many parts."""

    def __init__(self, lab: LabProcess, directory: Path, *options: str) -> None:
        at = ("--part-events", str(PART_EVENTS), "--lab", lab.directory, "--json")
        self._arguments: tuple[str | Path, ...] = ("events", "export", directory, *options, *at)
        self.directory = directory
        self.process = start_engines(*self._arguments)

    def run_for(self, parts: int) -> bool:
        """Wait until it has told of so many more parts; False where it ended before."""
        assert self.process.stderr is not None
        return all(self.process.stderr.readline().startswith("part-") for _ in range(parts))

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def start(self) -> None:
        self.process = start_engines(*self._arguments)

    def finish(self) -> Any:
        out, err = self.process.communicate(timeout=FINISH_S)
        assert self.process.returncode == 0, err[-2_000:]
        return json.loads(out)


@contextmanager
def exporting(lab: LabProcess, directory: Path, *options: str) -> Iterator[Exporting]:
    one = Exporting(lab, directory, *options)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.kill()


@contextmanager
def client_of(lab: LabProcess, user: str = "member") -> Iterator[Client]:
    with Client(lab.file.url, lab.file.user(user).token, retry=PATIENT) as client:
        yield client


def fill(lab: LabProcess, count: int, first: int = 0) -> None:
    with client_of(lab) as client:
        for start in range(first, first + count, 500):
            numbers = range(start, min(start + 500, first + count))
            client.events.append([NewEvent(event_type="numbered", payload={"n": n}) for n in numbers])


@pytest.fixture
def filled(own_lab: LabProcess) -> LabProcess:
    own_lab.start()
    fill(own_lab, EVENTS)
    return own_lab


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def manifest_of(directory: Path) -> Any:
    return json.loads((directory / "manifest.json").read_text())


def content_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.glob("part-*")))


def expected_content(lab: LabProcess, upto: int) -> bytes:
    """What the spine's list says that the lines must be."""
    with client_of(lab, "owner") as client:
        lines = [encode_json(event) for event in client.events.each() if event.position <= upto]
    return "".join(f"{line}\n" for line in lines).encode()


def undisturbed(lab: LabProcess, directory: Path, *options: str) -> dict[str, bytes]:
    with exporting(lab, directory, *options) as one:
        one.finish()
    return files_of(directory)


@pytest.mark.parametrize("format_", ["jsonl", "parquet"])
def test_however_often_it_is_killed_the_files_are_the_same_to_the_byte(
    filled: LabProcess, tmp_path: Path, format_: str
) -> None:
    random = Random(SEED)
    expected = undisturbed(filled, tmp_path / "undisturbed", "--format", format_)
    kept: dict[str, bytes] = {}
    with exporting(filled, tmp_path / "killed", "--format", format_) as one:
        for _ in range(KILLS):
            assert one.run_for(random.randint(1, 15)), "the kill met no work"
            time.sleep(random.uniform(0, 0.01))  # Anywhere within the writing of a part.
            one.kill()
            named = {part["file"] for part in manifest_of(one.directory)["parts"]}
            now = {name: content for name, content in files_of(one.directory).items() if name in named}
            # What a manifest named once is never written again.
            assert {name: now[name] for name in kept} == kept
            assert len(now) > len(kept)
            kept = now
            assert run_engines("events", "export", one.directory, "--verify").code == 1
            one.start()
        one.finish()
    assert files_of(tmp_path / "killed") == expected
    assert run_engines("events", "export", tmp_path / "killed", "--verify").code == 0


def test_it_ends_where_it_began_to_and_the_next_run_follows_up(filled: LabProcess, tmp_path: Path) -> None:
    random = Random(SEED + 1)
    done = threading.Event()

    def append() -> None:
        number = EVENTS
        while not done.is_set():
            fill(filled, 10, number)
            number += 10

    appending = threading.Thread(target=append)
    appending.start()
    try:
        with exporting(filled, tmp_path / "x") as one:
            assert one.run_for(2)
            head = manifest_of(one.directory)["head"]
            for _ in range(KILLS):
                assert one.run_for(random.randint(1, 15))
                one.kill()
                one.start()
            one.finish()
        assert manifest_of(tmp_path / "x")["head"] == head
        assert content_of(tmp_path / "x") == expected_content(filled, head["position"])
    finally:
        done.set()
        appending.join()
    with exporting(filled, tmp_path / "x") as one:
        later = one.finish()["head"]["position"]
    assert later > head["position"]
    assert content_of(tmp_path / "x") == expected_content(filled, later)
    assert run_engines("events", "export", tmp_path / "x", "--verify").code == 0


def test_a_server_that_dies_is_waited_for(filled: LabProcess, tmp_path: Path) -> None:
    random = Random(SEED + 2)
    expected = undisturbed(filled, tmp_path / "undisturbed")
    with exporting(filled, tmp_path / "killed") as one:
        for number in range(4):
            assert one.run_for(random.randint(1, 20)), "the kill met no work"
            if number % 2:
                one.kill()
            filled.kill()
            filled.start()
            if number % 2:
                one.start()
        one.finish()
    assert files_of(tmp_path / "killed") == expected


def test_a_move_of_the_spine_in_between_changes_nothing(filled: LabProcess, tmp_path: Path) -> None:
    at = ("--lab", filled.directory)
    config = json.dumps({"path": str(tmp_path / "second.db")})
    put = ("put", "second", "--driver", "sqlite", "--class", "host_local", "--offered-to", "t_demo")
    assert run_engines("backends", *put, "--config", config, *at).code == 0
    with exporting(filled, tmp_path / "moved") as one:
        assert one.run_for(5)
        one.process.send_signal(signal.SIGSTOP)
        moved = run_engines("routes", "move", "--kind", "event_spine", "--to", "second", *at)
        assert moved.code == 0, moved.err
        one.process.send_signal(signal.SIGCONT)
        assert one.run_for(5), "the move met no work"
        one.kill()
        one.start()
        head = one.finish()["head"]["position"]
    assert content_of(tmp_path / "moved") == expected_content(filled, head)


def test_two_exports_to_one_directory_do_not_meet(filled: LabProcess, tmp_path: Path) -> None:
    with exporting(filled, tmp_path / "x") as one:
        assert one.run_for(1)
        one.process.send_signal(signal.SIGSTOP)
        other = run_engines("events", "export", tmp_path / "x", "--lab", filled.directory)
        assert (other.code, "another export" in other.err) == (1, True)
        one.process.send_signal(signal.SIGCONT)
        one.finish()
    assert run_engines("events", "export", tmp_path / "x", "--verify").code == 0


def test_interrupted_it_says_how_to_go_on(filled: LabProcess, tmp_path: Path) -> None:
    with exporting(filled, tmp_path / "x") as one:
        assert one.run_for(3)
        one.process.send_signal(signal.SIGINT)
        _, err = one.process.communicate(timeout=FINISH_S)
        assert one.process.returncode == 130
        assert "interrupted: " in err.splitlines()[-1]
        assert "Traceback" not in err
        assert not list((tmp_path / "x").glob(".*"))
        one.start()
        one.finish()


def test_a_full_disk_is_an_error_and_the_next_run_goes_on(filled: LabProcess, tmp_path: Path) -> None:
    expected = undisturbed(filled, tmp_path / "undisturbed")
    limited = 'ulimit -f 8; exec "$0" -m engines events export "$@"'  # In blocks of 1 KiB.
    command = ["bash", "-c", limited, sys.executable, str(tmp_path / "full")]
    options = ["--part-events", str(PART_EVENTS), "--lab", str(filled.directory)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=FINISH_S, check=False)
    assert done.returncode == 1
    assert "cannot be written to: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    with exporting(filled, tmp_path / "full") as one:
        one.finish()
    assert files_of(tmp_path / "full") == expected
