"""The soak: what takes too long for script/test. `python -m tests.soak --help`.

Owns its parts, the time they have, the report and the exit status: 0 where everything that was asked for ran
and held, 1 where something failed, 2 where nothing failed and something did not run. Leaves the cycles of
kills to `crashes.py`, a move under load to `tests/moves/under_load.py`, the log's histories to its kit, and
questions asked at random to the tests of the API's description.

Each part is bounded by an equal share of `--minutes`, and each driver by an equal share of its part. What the
time or this machine does not allow is named as *not run*. A failure is repeated with the seed that the first
line says, on the backend that failed: script/soak --seed S --backends NAME.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from engines.drivers.registry import DOCUMENT_DRIVERS
from tests.api.test_description import FUZZ_SEED_VARIABLE
from tests.backends import UNAVAILABLE, Server, make_running, new_backend, open_server
from tests.log.conftest import ALL_REPETITIONS_VARIABLE
from tests.moves.under_load import move_under_load
from tests.servers.cosmos import WIRE_ALONE, is_wire_alone
from tests.soak.crashes import Tally, crash_cycles

ROOT: Final = Path(__file__).resolve().parents[2]
PARTS: Final = ("crashes", "pairs", "histories", "fuzz")
CYCLES_DEFAULT: Final = 200
# Of these seeds, the one of the run and those behind it, each asks the API other questions.
FUZZ_SEEDS_DEFAULT: Final = 10
PAIR_TIMEOUT_S: Final = 300.0
SAY_EVERY_S: Final = 30.0
FAILED: Final = 1
INCOMPLETE: Final = 2

Pair = tuple[str, str]


class Row(msgspec.Struct, frozen=True):
    """One line of the summary. `outcome` is ok, FAILED or not run; `detail` says how much, or why."""

    part: str
    what: str
    outcome: str
    took_s: float
    detail: str


class Soak:
    """One run. Servers start with the first part that needs them and live to the end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rows: list[Row] = []
        self._options = options
        self._servers: dict[str, Server | None] = {}
        self._unavailable: dict[str, str] = {}

    def close(self) -> None:
        for server in self._servers.values():
            if server is not None:
                server.close()

    # --- the parts ---

    def run(self, ends_s: float) -> None:
        """Every part that was asked for. An interruption ends it, and what is left counts as not run."""
        parts: Sequence[str] = self._options.parts
        try:
            for place, part in enumerate(parts):
                now_s = time.monotonic()
                getattr(self, part)(now_s + (ends_s - now_s) / (len(parts) - place))
        except KeyboardInterrupt:
            self._add(Row("all", "the rest", "not run", 0.0, "interrupted"))

    def crashes(self, ends_s: float) -> None:
        drivers: list[str] = self._options.backends
        for place, driver in enumerate(drivers):
            now_s = time.monotonic()
            until_s = now_s + (ends_s - now_s) / (len(drivers) - place)
            self._timed("crashes", driver, [driver], lambda: self._cycles(driver, until_s))  # noqa: B023

    def pairs(self, ends_s: float) -> None:
        for source, target in self._options.pairs:
            what = f"{source} to {target}"
            if time.monotonic() >= ends_s:
                self._add(Row("pairs", what, "not run", 0.0, "no time was left"))
                continue
            self._timed("pairs", what, [source, target], lambda: self._move(source, target))  # noqa: B023

    def histories(self, ends_s: float) -> None:
        for driver in self._options.backends:
            if time.monotonic() >= ends_s:
                self._add(Row("histories", driver, "not run", 0.0, "no time was left"))
                continue
            self._timed("histories", driver, [driver], lambda: self._play(driver, ends_s))  # noqa: B023

    def fuzz(self, ends_s: float) -> None:
        first: int = self._options.seed
        for seed in range(first, first + self._options.fuzz_seeds):
            if time.monotonic() >= ends_s:
                self._add(Row("fuzz", f"seed {seed}", "not run", 0.0, "no time was left"))
                continue
            self._timed("fuzz", f"seed {seed}", [], lambda: self._ask(seed, ends_s))  # noqa: B023

    def _cycles(self, driver: str, until_s: float) -> str:
        tally = Tally()
        wanted: int = self._options.cycles
        said_s = time.monotonic()

        def go_on() -> bool:
            nonlocal said_s
            if time.monotonic() - said_s > SAY_EVERY_S:
                said_s = time.monotonic()
                say(f"crashes on {driver}: {tally.cycles} of {wanted} cycles held")
            return time.monotonic() < until_s

        make_running(self._servers[driver])
        try:
            asyncio.run(
                crash_cycles(
                    driver,
                    self._servers[driver],
                    seed=self._options.seed,
                    cycles=wanted,
                    tally=tally,
                    go_on=go_on,
                )
            )
        except KeyboardInterrupt:
            say(f"crashes on {driver}: {tally.cycles} cycles held until the interruption")
            raise
        except Exception:
            say(f"crashes on {driver}: cycle {tally.cycles + 1} failed")
            raise
        if tally.cycles < wanted:
            left = wanted - tally.cycles
            self._add(Row("crashes", driver, "not run", 0.0, f"{left} of {wanted} cycles: no time was left"))
        killed = ", ".join(f"{what} {count}" for what, count in sorted(tally.kills.items()))
        return f"{tally.cycles} cycles, {tally.changes} changes acknowledged, killed: {killed or 'nobody'}"

    def _move(self, source: str, target: str) -> str:
        with tempfile.TemporaryDirectory(prefix="engines-soak-") as name:
            directory = Path(name)
            for driver in (source, target):
                make_running(self._servers[driver])
            a = new_backend(source, self._servers[source], directory, "a")
            b = new_backend(target, self._servers[target], directory, "b")
            move = move_under_load(f"sqlite://{directory}/control.db", a, b, seed=self._options.seed)
            done = asyncio.run(asyncio.wait_for(move, PAIR_TIMEOUT_S))
        return f"{done.changes} changes, {done.events} events, the longest took {done.longest_s:.1f} s"

    def _play(self, driver: str, ends_s: float) -> str:
        """The log's kit with all its repetitions."""
        chosen = ("tests/log/test_log.py", "-k", f"(Histories or Processes) and {driver}")
        return _tested(chosen, {ALL_REPETITIONS_VARIABLE: "1"}, ends_s)

    def _ask(self, seed: int, ends_s: float) -> str:
        """The API's fuzz, with questions of this seed."""
        chosen = ("tests/api/test_description.py", "-k", "fuzz")
        return _tested(chosen, {FUZZ_SEED_VARIABLE: str(seed)}, ends_s)

    # --- the report ---

    def _timed(self, part: str, what: str, drivers: Sequence[str], work: Callable[[], str]) -> None:
        for driver in drivers:
            if not self._is_running(driver):
                self._add(Row(part, what, "not run", 0.0, f"no {driver}: {self._unavailable[driver]}"))
                return
        began_s = time.monotonic()
        try:
            outcome, detail = "ok", work()
        except subprocess.TimeoutExpired:
            outcome, detail = "not run", "no time was left to end it"
        except Exception as error:  # noqa: BLE001 (whatever it is, the other parts run all the same)
            traceback.print_exc()
            outcome, detail = "FAILED", f"{_first(error)}; repeat with --seed {self._options.seed}"
        self._add(Row(part, what, outcome, round(time.monotonic() - began_s, 1), detail))

    def _is_running(self, driver: str) -> bool:
        if driver not in self._servers and driver not in self._unavailable:
            try:
                self._servers[driver] = open_server(driver)
            except UNAVAILABLE as error:
                self._unavailable[driver] = str(error)
        return driver in self._servers

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        say(f"{row.part}, {row.what}: {row.outcome}, {row.detail}")


def _tested(chosen: Sequence[str], variables: Mapping[str, str], ends_s: float) -> str:
    """A run of pytest with servers of its own: its last line. Raises AssertionError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *chosen],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=max(1.0, ends_s - time.monotonic()),
        check=False,
    )
    last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
    assert done.returncode == 0, done.stdout[-4_000:]
    return last


def _first(error: BaseException) -> str:
    """What a group of errors, or an error of many lines, begins with."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _table(rows: Sequence[Row]) -> str:
    cells = [("part", "what", "outcome", "s", "detail")]
    cells += [(row.part, row.what, row.outcome, f"{row.took_s:.1f}", row.detail) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*padded, row[4]]).rstrip())
    return "\n".join(lines)


def _drivers(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in DOCUMENT_DRIVERS]:
        raise argparse.ArgumentTypeError(f"no driver is named {', '.join(unknown)}")
    return names


def _pairs(text: str) -> list[Pair]:
    """`sqlite:postgres,…`"""
    pairs = []
    for pair in filter(None, text.split(",")):
        source, colon, target = pair.partition(":")
        if not colon or source not in DOCUMENT_DRIVERS or target not in DOCUMENT_DRIVERS:
            raise argparse.ArgumentTypeError(
                f"{pair} is not SOURCE:TARGET, two of {', '.join(DOCUMENT_DRIVERS)}"
            )
        pairs.append((source, target))
    return pairs


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=CYCLES_DEFAULT, help="kills on each backend")
    parser.add_argument("--backends", type=_drivers, default=list(DOCUMENT_DRIVERS), help="names, by commas")
    parser.add_argument("--pairs", type=_pairs, help="SOURCE:TARGET,…; default: all pairs of --backends")
    parser.add_argument("--fuzz-seeds", type=int, default=FUZZ_SEEDS_DEFAULT, help="rounds of the fuzz")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS, help=",".join(PARTS))
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="the most that all of it may take")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--json", action="store_true", help="the summary as JSON instead of a table")
    options = parser.parse_args(arguments)
    if set(options.parts) - set(PARTS):
        parser.error(f"--parts are of {', '.join(PARTS)}")
    if options.pairs is None:
        options.pairs = list(itertools.product(options.backends, repeat=2))
    return options


def _summary(options: argparse.Namespace, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "seed": options.seed,
        "cosmos": WIRE_ALONE if is_wire_alone() else "an account or Microsoft's emulator",
        "rows": msgspec.to_builtins(rows),
    }


def main() -> int:
    options = _options()
    say(f"seed {options.seed}; {WIRE_ALONE if is_wire_alone() else 'Cosmos DB is real'}")
    ends_s = time.monotonic() + options.minutes * 60
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # As Ctrl-C: what was begun is ended.
    with contextlib.closing(Soak(options)) as soak:
        soak.run(ends_s)
    print(json.dumps(_summary(options, soak.rows), indent=2) if options.json else _table(soak.rows))
    outcomes = {row.outcome for row in soak.rows}
    return FAILED if "FAILED" in outcomes else INCOMPLETE if "not run" in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
