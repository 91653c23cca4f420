"""The kit as somebody else uses it: the example of its docstring, as it stands, in a project of its own."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import engines.testing.documents as kit

ENGINES = Path(kit.__file__).parents[3]
RUN_TIMEOUT_S = 90.0
SOUND = """
from engines.drivers.documents.sqlite import Config, open_driver

def MyDriver(directory, clock):
    return open_driver(Config(path=str(directory / "mine.db")), {}, clock)
"""
# Forgets the condition of every write that holds one op.
UNSOUND = (
    SOUND
    + """
import msgspec
from engines.ports.documents import ALWAYS

class Careless:
    def __init__(self, driver):
        self._driver = driver
        self.get, self.scan, self.close = driver.get, driver.scan, driver.close
        self.provision, self.reclaim = driver.provision, driver.reclaim

    async def write(self, partition, ops, *, write_id):
        if len(ops) == 1:
            ops = [msgspec.structs.replace(ops[0], when=ALWAYS)]
        await self._driver.write(partition, ops, write_id=write_id)

def MyDriver(directory, clock, sound=MyDriver):
    return Careless(sound(directory, clock))
"""
)


def example() -> str:
    """The first indented block of the kit's docstring."""
    assert kit.__doc__ is not None
    block = re.search(r"(?m)^(    import pytest\n(?:    .*\n|\n)+)", kit.__doc__)
    assert block is not None
    return textwrap.dedent(block[1])


def run(directory: Path, driver: str) -> str:
    (directory / "my_driver.py").write_text(driver)
    (directory / "test_mine.py").write_text("from my_driver import MyDriver\n" + example())
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rsf", "--strict-markers", "-p", "no:cacheprovider"),
            *("--rootdir", str(directory), "-k", "TestPut or TestGet or TestNetwork or TestServerCrash"),
        ],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ENGINES), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_example_in_the_docstring_runs_on_a_driver_from_outside(tmp_path: Path) -> None:
    output = run(tmp_path, SOUND)
    assert re.search(r"\n\d+ passed, \d+ skipped", output), output
    assert "the harness offers no network to disturb" in output
    assert "the harness offers no server to kill" in output
    assert "PytestAssertRewriteWarning" not in output
    assert "PytestUnknownMarkWarning" not in output


@pytest.mark.slow
def test_the_example_finds_a_driver_that_forgets_conditions(tmp_path: Path) -> None:
    output = run(tmp_path, UNSOUND)
    assert "test_put_under_absent_creates_once" in output
    assert re.search(r"\n\d+ failed", output), output
