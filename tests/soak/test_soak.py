"""The soak itself: that it runs, that it notices a loss, and that it names what it left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.soak.crashes import Lab, Tally

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 100.0


def soak(*arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit status, and the outcome and detail of each row by its part."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--json", "--seed", "1", "--backends", "sqlite", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.stdout, done.stderr
    rows = json.loads(done.stdout)["rows"]
    return done.returncode, {row["part"]: (row["outcome"], row["detail"]) for row in rows}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    opened = Lab("sqlite", None, tmp_path)
    yield opened
    await opened.close()


@pytest.mark.crash
def test_what_holds_is_told_with_its_numbers() -> None:
    code, rows = soak("--cycles", "1", "--parts", "crashes,pairs")
    assert code == 0, rows
    assert rows["crashes"][1].startswith("1 cycles, ")
    assert rows["pairs"][0] == "ok"


def test_what_there_was_no_time_for_is_named_and_is_no_success() -> None:
    code, rows = soak("--minutes", "0", "--parts", "pairs,histories,fuzz")
    assert code == 2
    assert rows == dict.fromkeys(("pairs", "histories", "fuzz"), ("not run", "no time was left"))


@pytest.mark.crash
async def test_a_note_or_an_event_that_is_lost_or_doubled_ends_the_cycle(lab: Lab) -> None:
    tally = Tally()
    await lab.cycle("1.sqlite.0", tally)
    assert tally.cycles == 1
    writer = next(writer for writer in lab.writers if writer.events)
    name = next(iter(writer.events))
    writer.events[name] += 1
    with pytest.raises(AssertionError, match="where they were acknowledged"):
        await lab.check()
    del writer.events[name]
    with pytest.raises(AssertionError, match="where they were acknowledged"):
        await lab.check()
    note = next(note for writer in lab.writers for note in writer.notes.values())
    await lab.client.notes.delete(note.note_id)
    with pytest.raises(AssertionError, match="notes are lost"):
        await lab.check()
