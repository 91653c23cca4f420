"""Fixtures of the command line's tests: labs, commands in this process, and the recorded runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from engines.cli.main import run
from tests.cli.lab import LabProcess

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "examples" / "agent-runs.json"
# Recorded runs that lie beside the checkout and are not part of it.
RECORDED_PLACES = (
    os.environ.get("ENGINES_TEST_AGENT_RUNS", ""),
    "../shared/data/agent-runs/gpt-4o-airline.json",
)
COMMAND_TIMEOUT_S = 60.0


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Engines = Callable[..., Done]


@pytest.fixture(autouse=True)
def no_settings_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ENGINES_") and not name.startswith("ENGINES_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabProcess]:
    """A lab that the tests of one module share."""
    process = LabProcess(tmp_path_factory.mktemp("lab") / "data")
    process.start()
    yield process
    process.kill()
    _check_log(process)


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[LabProcess]:
    """A lab of one test's own, not started."""
    process = LabProcess(tmp_path / "lab")
    yield process
    process.kill()
    _check_log(process)


def _check_log(process: LabProcess) -> None:
    """No request of any test may have met a bug of the server's."""
    before, traceback, after = process.log.partition("Traceback")
    assert not traceback, before[-1_000:] + traceback + after[:5_000]


@pytest.fixture
def engines(capsys: pytest.CaptureFixture[str]) -> Engines:
    """Run one command in this process."""

    def command(*arguments: str | Path) -> Done:
        capsys.readouterr()
        try:
            code = run([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return Done(code, said.out, said.err)

    return command


def start_engines(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The command as a process of its own; end it."""
    return subprocess.Popen(
        [sys.executable, "-m", "engines", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_engines(*arguments: str | Path, **options: Any) -> Done:
    """The command as a process of its own, to its end."""
    process = start_engines(*arguments, **options)
    try:
        out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return Done(process.returncode, out, err)


@pytest.fixture(scope="session")
def recorded_runs() -> Path:
    """Runs of a real agent. Where they are not beside the checkout the test is *not run*."""
    for place in RECORDED_PLACES:
        path = ROOT / place
        if place and path.is_file():
            return path.resolve()
    pytest.skip("no recorded runs: set ENGINES_TEST_AGENT_RUNS to a file of them")
