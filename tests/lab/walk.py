"""A page of commands, run word by word in one shell.

Owns reading commands and what they print out of a page's ```console blocks, running them against a lab, and
comparing. A `…` of the page stands for anything. What no two runs share, such as ids and times, is compared
by its form alone, and white space, by which a page lays a long line out, not at all.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
RUN_S = 150
# What another read has cached is at most this old; whoever reads a page is slower.
READ_S = 1.1
PAGE_URL = "http://127.0.0.1:8080"

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "\x1e"
# In this order: a digest is hexadecimal too, and a UUID holds groups of digits.
_FORMS = (
    ("UUID", r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
    ("TIME", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"),
    ("DIGEST", r"\b[0-9a-f]{64}\b"),
    ("HEX", r"\b[0-9a-f]{32}\b"),
    ("SPAN", r"\b[0-9a-f]{16}\b"),
    ("CURSOR", r'(?<="cursor":")[^"]+'),
    ("CURSOR", r'(?<="after":")[^"]+'),
    ("POSITION", r'(?<="position":)\d+'),
)


class Step(NamedTuple):
    """One command as the page has it, and what it prints there."""

    command: str
    prints: str


def steps_of(page: str) -> list[Step]:
    """Every command of the page's console blocks, in order."""
    return [step for block in _BLOCK.findall(page) for step in _steps(block.splitlines())]


def _steps(lines: Sequence[str]) -> Iterator[Step]:
    position = 0
    while position < len(lines):
        line = lines[position]
        assert line.startswith("$ "), f"a block begins with a command: {line}"
        command = [line.removeprefix("$ ")]
        position += 1
        while not _is_whole("\n".join(command)):
            command.append(lines[position])
            position += 1
        prints: list[str] = []
        while position < len(lines) and not lines[position].startswith("$ "):
            prints.append(lines[position])
            position += 1
        yield Step("\n".join(command), "\n".join(prints))


def _is_whole(command: str) -> bool:
    try:
        shlex.split(command)
    except ValueError:
        return False
    return not command.endswith("\\")


def run(steps: Sequence[Step], directory: Path, url: str) -> list[str]:
    """What each command prints, in a checkout's stead at `directory`, whose lab listens at `url`."""
    examples = directory / "examples"
    if not examples.exists():
        examples.symlink_to(ROOT / "examples")
    program = directory / ".venv" / "bin" / "engines"
    program.parent.mkdir(parents=True, exist_ok=True)
    if not program.exists():
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m engines "$@"\n')
        program.chmod(0o755)
    script = "".join(
        f"sleep {READ_S}\nprintf '{_MARK}'\n{step.command.replace(PAGE_URL, url)}\n" for step in steps
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=RUN_S,
    )
    return done.stdout.split(_MARK)[1:]


def is_as_printed(said: str, printed: str) -> bool:
    """Whether what was printed is what the page says."""
    pattern = ".*".join(map(re.escape, _formed(said).split("…")))
    return re.fullmatch(pattern, _formed(printed), re.DOTALL) is not None


def _formed(text: str) -> str:
    for name, form in _FORMS:
        text = re.sub(form, name, text)
    return re.sub(r"\s+", "", text)
