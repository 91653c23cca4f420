"""`python -m bench`: run comparisons, print the table, keep the figures.

Owns the options and which comparisons there are. `script/bench` runs this in an environment of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from bench import costs, gating, guarding, report, sharing
from bench.appending import append_postgres, append_sqlite
from bench.backends import NotRun
from bench.budgets import budget_postgres
from bench.calling import sdk_cosmos, sdk_dynamodb, sdk_firestore
from bench.flags import flags_in_process, flags_ofrep
from bench.ingesting import ingest_postgres, ingest_sqlite
from bench.limiting import limits_postgres, limits_sqlite
from bench.measure import Result
from bench.memory import memory_growth, memory_idle
from bench.metering import METERED
from bench.moving import move_events, move_notes
from bench.reading import list_after_postgres, list_after_sqlite
from bench.recorder import append_recorder
from bench.resolving import resolving
from bench.serving import http_postgres, http_sqlite
from bench.stage import FULL, QUICK, TINY, Sizes, Stage
from engines.clock import SystemClock, timestamp
from engines.drivers.registry import DOCUMENT_DRIVERS

TABLE_CHARS: Final = 170
ROOT: Final = Path(__file__).resolve().parent.parent
COMPARISONS: Final[Mapping[str, Callable[[Stage], list[Result]]]] = {
    "append-postgres": append_postgres,
    "append-sqlite": append_sqlite,
    "recorder": append_recorder,
    "ingest-postgres": ingest_postgres,
    "ingest-sqlite": ingest_sqlite,
    **{f"ingest-guarded-{driver}": guarding.comparison(driver) for driver in guarding.LABELS},
    "http-postgres": http_postgres,
    "http-sqlite": http_sqlite,
    "limits-postgres": limits_postgres,
    "limits-sqlite": limits_sqlite,
    "budget-postgres": budget_postgres,
    "resolve": resolving,
    "flags-in-process": flags_in_process,
    "flags-ofrep": flags_ofrep,
    **{f"gates-{driver}": gating.comparison(driver) for driver in gating.LABELS},
    "list-after-postgres": list_after_postgres,
    "list-after-sqlite": list_after_sqlite,
    "sdk-dynamodb": sdk_dynamodb,
    "sdk-firestore": sdk_firestore,
    "sdk-cosmos": sdk_cosmos,
    **{f"cost-{name}": costs.comparison(name) for name in METERED},
    "move-notes": move_notes,
    "move-events": move_events,
    **{f"processes-{name}": sharing.comparison(name) for name in DOCUMENT_DRIVERS},
    "memory-idle": memory_idle,
    "memory-growth": memory_growth,
}
# A million requests take longer than all the rest: only where it is named.
ONLY_WHEN_NAMED: Final = ("memory-growth",)
WHOLE_MOVES: Final = {"move_notes": 100_000, "move_events": 200_000}
SIZES: Final[Mapping[str, Sizes]] = {sizes.name: sizes for sizes in (FULL, QUICK, TINY)}


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_CHARS)
    if options.page is not None:
        report.write_page(options.page, report.read_json(options.page.with_suffix(".json")))
        return 0
    sizes = QUICK if options.quick else SIZES[options.size]
    if options.full:
        sizes = msgspec.structs.replace(sizes, **WHOLE_MOVES)
    names = options.only or [name for name in COMPARISONS if name not in ONLY_WHEN_NAMED]
    load_before, began_at = os.getloadavg()[0], timestamp(SystemClock().now())
    commit = report.commit(ROOT)  # Before the figures, which are kept in it, make it another.
    results: list[Result] = []
    for found in run(names, sizes, console):
        results += found
        if options.json is None:
            continue
        made_by = report.Run(
            at=began_at,
            command=report.command_line(arguments),
            sizes=sizes.name,
            commit=commit,
            machine=report.machine(),
            load_before=load_before,
            load_after=os.getloadavg()[0],
        )
        kept = report.merged(options.json, [report.Kept(result, made_by) for result in found])
        report.write_json(options.json, kept)
    report.print_table(results, console)
    return 0


def run(names: Sequence[str], sizes: Sizes, console: Console) -> Iterator[Sequence[Result]]:
    """The results of each comparison named, in order. What cannot run here is said, and left out."""
    with Stage(sizes) as stage:
        for name in names:
            try:
                with console.status(f"{name} ({sizes.name})"):
                    found = COMPARISONS[name](stage)
            except NotRun as error:
                console.print(f"not run: {name}: {error}")
            else:
                yield found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="script/bench",
        description="Ratios of Engines to bare loops and to other programs, each within one run. A figure "
        "that misses its goal is shown so, and changes nothing about the exit status.",
    )
    parser.add_argument("--quick", action="store_true", help="about a minute: shorter rounds, fewer of them")
    parser.add_argument(
        "--full", action="store_true", help="move 100,000 notes and 200,000 events, whatever the size"
    )
    parser.add_argument("--size", choices=list(SIZES), default=FULL.name, help="how much a run does")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(COMPARISONS),
        metavar="NAME",
        help=f"one comparison; may be repeated. There are {', '.join(COMPARISONS)}; without this, all but "
        f"{', '.join(ONLY_WHEN_NAMED)}",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="keep the figures there, in place of earlier ones of their names",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE.md",
        help="run nothing; put the table of what was kept in FILE.json between the marks of that page",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
