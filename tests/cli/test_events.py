"""`engines events`: following across a server that dies, and a head that nobody can rewrite behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engines.client import Engines as Client
from engines.client import NewEvent, RetryPolicy
from tests.cli.conftest import Engines, start_engines
from tests.cli.lab import LabProcess

WAIT_S = 30.0
PATIENT = RetryPolicy(attempts_max=1_000, deadline_s=WAIT_S, pause_max_s=0.2)


def client_of(lab: LabProcess) -> Client:
    return Client(lab.file.url, lab.file.user("member").token, retry=PATIENT)


def append(client: Client, *numbers: int, event_type: str = "analytics") -> list[str]:
    events = [NewEvent(event_type=event_type, payload={"n": number}) for number in numbers]
    return [appended.cursor for appended in client.events.append(events)]


class Tail:
    """`engines events tail` as a process, and what it has printed so far."""

    def __init__(self, lab: LabProcess, *options: str) -> None:
        self.process = start_engines("events", "tail", "--json", "--lab", lab.directory, *options)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def numbers(self, count: int) -> list[int]:
        """The numbers of the test's events, once there are so many."""
        deadline_s = time.monotonic() + WAIT_S
        while len(self._numbers()) < count and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return self._numbers()

    def _numbers(self) -> list[int]:
        events = [json.loads(line) for line in list(self.lines)]
        return [event["payload"]["n"] for event in events if event["payload"] and "n" in event["payload"]]

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C: how it ended, and what it said on standard error."""
        os.kill(self.process.pid, signal.SIGINT)
        return self._ended()

    def _ended(self) -> tuple[int, str]:
        assert self.process.stderr is not None
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        with self.process.stderr as stream:
            said = stream.read()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code, said


@contextmanager
def tailing(lab: LabProcess, *options: str) -> Iterator[Tail]:
    tail = Tail(lab, *options)
    try:
        yield tail
    finally:
        if tail.process.poll() is None:
            tail.process.send_signal(signal.SIGKILL)
            tail._ended()


@pytest.mark.crash
def test_following_survives_a_kill_of_the_server_without_loss_or_repeat(own_lab: LabProcess) -> None:
    own_lab.start()
    with client_of(own_lab) as client:
        first = append(client, 0)[0]
        with tailing(own_lab, "--after", first) as tail:
            append(client, 1, 2)
            assert tail.numbers(2) == [1, 2]
            for start in (3, 6, 9):
                own_lab.kill()
                own_lab.start()
                append(client, start, start + 1, start + 2)
            assert tail.numbers(11) == list(range(1, 12))
            assert tail.interrupt() == (0, "")


def test_following_begins_with_what_comes_next(lab: LabProcess) -> None:
    with client_of(lab) as client:
        append(client, 100)
        with tailing(lab, "--type", "marker") as tail:
            # It has begun once it prints an event that came after the command was started.
            deadline_s = time.monotonic() + WAIT_S
            while not tail.lines and time.monotonic() < deadline_s:
                append(client, 101, event_type="marker")
                append(client, 102)
                time.sleep(0.05)
            assert set(tail.numbers(1)) == {101}
            assert tail.interrupt() == (0, "")


def test_what_is_there_is_printed_once_and_it_ends(engines: Engines, lab: LabProcess) -> None:
    with client_of(lab) as client:
        first = append(client, 1, 2, 3)[0]
    at = ("--lab", lab.directory, "--json", "--no-follow")
    lines = engines("events", "tail", "--after", first, *at).out.splitlines()
    assert [json.loads(line)["payload"] for line in lines] == [{"n": 2}, {"n": 3}]


def test_since_begins_with_the_first_event_of_that_time(engines: Engines, lab: LabProcess) -> None:
    with client_of(lab) as client:
        append(client, 11)
        cursor = append(client, 12)[0]
        last = client.events.last()
        assert last is not None
        assert last.cursor == cursor
        append(client, 13)
    at = ("--lab", lab.directory, "--json", "--no-follow")
    lines = engines("events", "tail", "--since", last.timestamp, *at).out.splitlines()
    numbers = [json.loads(line)["payload"].get("n") for line in lines]
    assert numbers[-2:] == [12, 13]
    assert all(json.loads(line)["timestamp"] >= last.timestamp for line in lines)


def test_it_stops_after_so_many(engines: Engines, lab: LabProcess) -> None:
    with client_of(lab) as client:
        first = append(client, 21, 22, 23, 24)[0]
    at = ("--lab", lab.directory, "--after", first, "--count", "2")
    assert len(engines("events", "tail", *at, "--json").out.splitlines()) == 2
    shown = engines("events", "tail", *at).out.splitlines()
    assert len(shown) == 2
    assert "analytics" in shown[0]
    assert '{"n":22}' in shown[0]


@pytest.mark.parametrize(
    "options",
    [
        ["--since", "2026-01-01T00:00:00Z", "--after", "x"],
        ["--count", "0"],
        ["--since", "yesterday", "--no-follow"],
        ["--after", "invented", "--no-follow"],
    ],
)
def test_a_place_that_is_none_is_refused(engines: Engines, lab: LabProcess, options: list[str]) -> None:
    done = engines("events", "tail", "--lab", lab.directory, *options)
    assert done.code == 1
    assert "Invalid" in done.err


def test_an_earlier_head_still_holds_and_an_invented_one_does_not(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", lab.directory)
    with client_of(lab) as client:
        append(client, 31)
        before = engines("events", "verify", "--json", *at).json
        assert before["ok"] is True
        append(client, 32)
    head = f"{before['head']['position']}:{before['head']['digest']}"
    again = engines("events", "verify", "--expect", head, "--json", *at)
    assert again.code == 0
    assert again.json["head"]["position"] > before["head"]["position"]
    other = f"{before['head']['position']}:{'0' * 64}"
    broken = engines("events", "verify", "--expect", other, "--json", *at)
    assert broken.code == 1
    assert broken.json["ok"] is False
    assert engines("events", "verify", "--expect", head, *at).out.count(before["head"]["digest"]) <= 1


@pytest.mark.parametrize("head", ["", "5", "x:y", ":abc"])
def test_a_head_is_a_position_and_a_digest(engines: Engines, lab: LabProcess, head: str) -> None:
    done = engines("events", "verify", "--expect", head, "--lab", lab.directory)
    assert done.code == 1
    assert "POSITION:DIGEST" in done.err


def test_the_head_that_people_read_can_be_given_back(engines: Engines, lab: LabProcess) -> None:
    shown = engines("events", "verify", "--lab", lab.directory)
    head = next(line.split()[1] for line in shown.out.splitlines() if line.startswith("head"))
    assert engines("events", "verify", "--expect", head, "--lab", lab.directory).code == 0


def test_a_viewer_may_not_verify(engines: Engines, lab: LabProcess) -> None:
    assert "Forbidden" in engines("events", "verify", "--lab", lab.directory, "--as", "viewer").err


def test_the_index_is_told_and_made_anew(engines: Engines, lab: LabProcess) -> None:
    at = ("--lab", lab.directory, "--json")
    with client_of(lab) as client:
        append(client, *range(500))
        append(client, *range(500))
        deadline_s = time.monotonic() + WAIT_S
        while (told := engines("events", "project", *at).json)["position"] == 0:
            assert time.monotonic() < deadline_s, told
        assert told["position"] % told["block"] == 0
        assert told["lag"] == told["head"] - told["position"]
        assert engines("events", "project", "--rebuild", *at).json["head"] == told["head"]
        while engines("events", "project", *at).json["position"] != told["position"]:
            assert time.monotonic() < deadline_s, told


def test_following_as_a_process_is_quiet_about_its_end(lab: LabProcess) -> None:
    process = start_engines("events", "tail", "--lab", lab.directory, "--no-follow", "--after", "")
    try:
        out, err = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert "Traceback" not in out + err
