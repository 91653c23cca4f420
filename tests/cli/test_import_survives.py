"""The import under kill -9: of the server, of the client, of both, at random points.

Afterwards all is there, once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from engines.drivers.registry import DOCUMENT_DRIVERS
from tests.backends import session_backend
from tests.cli.conftest import SAMPLE, run_engines, start_engines
from tests.cli.lab import LabProcess

# Servers start many times over, and machines differ.
pytestmark = pytest.mark.timeout(400)

SEED = int(os.environ.get("ENGINES_TEST_SEED", "20260"))
# The whole of one test's disturbances; each is followed by a restart, so this bounds its time.
KILLS = 5
SYNTHETIC_RUNS = 40
FINISH_S = 120.0


class Importing:
    """An import as a process, killed and started again; and the same file under a next name, and a next."""

    def __init__(self, lab: LabProcess, file: Path) -> None:
        self._lab = lab
        self._file = file
        self.datasets = ["survives"]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        at = ("--lab", self._lab.directory, "--as", "member", "--dataset", self.datasets[-1], "--json")
        return start_engines("import", "agent-runs", self._file, *at)

    def go_on(self) -> None:
        """Where it is done, do it again under another name, so that the next kill meets work."""
        if self.ended:
            self.finish()
            self.datasets.append(f"survives-{len(self.datasets)}")
            self.process = self._start()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def restart(self) -> None:
        self.kill()
        self.process = self._start()

    def finish(self) -> None:
        out, err = self.process.communicate(timeout=FINISH_S)
        assert self.process.returncode == 0, out[-2_000:] + err[-2_000:]


@contextmanager
def importing(lab: LabProcess, file: Path) -> Iterator[Importing]:
    one = Importing(lab, file)
    try:
        yield one
    finally:
        if not one.ended:
            one.kill()


def synthetic(tmp_path: Path, count: int = SYNTHETIC_RUNS) -> Path:
    """The sample many times over: enough that a kill meets work under way."""
    runs = json.loads(SAMPLE.read_text())
    many = [{**run, "task_id": f"{run['task_id']}-{n}"} for n in range(count // len(runs)) for run in runs]
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(many))
    return path


def disturb(lab: LabProcess, one: Importing, random: Random, *, kills: int) -> None:
    """Kill and start again, now the server, now the client, now both, while there is work."""
    for _ in range(kills):
        one.go_on()
        time.sleep(random.uniform(0.05, 1.2))
        what = random.choice(["server", "client", "both"])
        if what == "both":
            one.kill()
        if what in ("server", "both"):
            lab.kill()
            time.sleep(random.uniform(0.0, 0.3))
            lab.start()
        if what in ("client", "both"):
            one.restart()


def check(lab: LabProcess, file: Path, one: Importing) -> None:
    """Everything is there, once. `one` is over."""
    for dataset in one.datasets:
        at = ("--lab", lab.directory, "--as", "member", "--dataset", dataset, "--json", "--verify")
        done = run_engines("import", "agent-runs", file, *at)
        assert done.code == 0, done.out[-3_000:] + done.err[-2_000:]
        assert set(done.json["runs"]) == {"already there"}
        assert done.json["written"] == {}
        assert done.json["verified"]["difference_count"] == 0
    assert run_engines("events", "verify", "--lab", lab.directory).code == 0


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("driver", DOCUMENT_DRIVERS)
def test_nothing_is_lost_or_doubled_whoever_is_killed_and_whatever_keeps_it(
    own_lab: LabProcess, tmp_path: Path, request: pytest.FixtureRequest, driver: str
) -> None:
    """All data of the tenant lies on the driver's server. A failure is repeated with ENGINES_TEST_SEED."""
    backend = session_backend(request, driver, "kept")
    file = synthetic(tmp_path)
    own_lab.start()
    own_lab.keep_on(backend)
    with importing(own_lab, file) as one:
        disturb(own_lab, one, Random(SEED), kills=KILLS)
        one.finish()
    check(own_lab, file, one)


@pytest.mark.crash
@pytest.mark.slow
def test_two_hundred_real_runs_survive_kills_of_server_and_client(
    own_lab: LabProcess, recorded_runs: Path
) -> None:
    own_lab.start()
    with importing(own_lab, recorded_runs) as one:
        disturb(own_lab, one, Random(SEED + 1), kills=2 * KILLS)
        one.finish()
    check(own_lab, recorded_runs, one)


@pytest.mark.crash
def test_an_import_waits_for_a_server_that_is_away_and_no_longer_than_told(
    own_lab: LabProcess, tmp_path: Path
) -> None:
    own_lab.start()
    own_lab.kill()
    at = ("--lab", own_lab.directory, "--as", "member", "--dataset", "survives", "--json")
    began_s = time.monotonic()
    done = run_engines("import", "agent-runs", synthetic(tmp_path), *at, "--wait-s", "2")
    assert done.code == 1
    assert "Unavailable" in done.err
    assert 1.5 < time.monotonic() - began_s < 20


@pytest.mark.crash
def test_an_interrupted_import_says_so_quietly_and_goes_on_when_started_again(
    own_lab: LabProcess, tmp_path: Path
) -> None:
    file = synthetic(tmp_path, 10 * SYNTHETIC_RUNS)  # Much is left when the first line comes.
    own_lab.start()
    with importing(own_lab, file) as one:
        assert one.process.stderr is not None
        assert "runs" in one.process.stderr.readline()
        one.process.send_signal(signal.SIGINT)
        _, err = one.process.communicate(timeout=30)
        assert one.process.returncode != 0
        assert err.splitlines()[-1].startswith("interrupted: ")
        assert "Traceback" not in err
        one.restart()
        one.finish()
    check(own_lab, file, one)
