"""The benchmark runs: every comparison once, at a size that measures nothing."""

import asyncio
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from bench import report
from bench.__main__ import COMPARISONS, main
from bench.backends import NotRun, Servers
from bench.events import event_bodies
from bench.measure import Detail, Goal, Result, Spread, absolute, alternate, compared
from bench.metering import request_units
from bench.stage import EVENT_BYTES, TINY, Stage
from tests.servers.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Those of the cloud services' APIs, as a run of the benchmark has them."""
    started = Servers()
    yield started
    started.close()


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_comparison_runs_and_says_what_it_compared(
    name: str, postgres_server: PostgresServer, servers: Servers
) -> None:
    if name == "recorder" and importlib.util.find_spec("eventsourcing") is None:
        pytest.skip("eventsourcing is installed for script/bench alone")
    postgres_server.resume()
    postgres_server.start()
    with Stage(TINY, server=postgres_server, servers=servers) as stage:
        try:
            results = COMPARISONS[name](stage)
        except NotRun as error:
            pytest.skip(str(error))
    assert results
    for result in results:
        assert result.ours.median != 0 or result.unit in ("MiB", "%")
        assert (result.other is None) == (result.other_name is None)
        assert result.other is None or result.other.median > 0


def test_event_bodies_have_their_size_and_are_the_same_in_every_run() -> None:
    bodies = event_bodies(50)
    assert {len(body.encode()) for body in bodies} == {EVENT_BYTES}
    assert len(set(bodies)) == 50
    assert event_bodies(50) == bodies


def test_sides_take_turns_and_the_first_round_is_not_counted() -> None:
    turns: list[str] = []

    async def first(number: int) -> float:
        turns.append(f"a{number}")
        return number

    async def second(number: int) -> float:
        turns.append(f"b{number}")
        return number * 10

    assert asyncio.run(alternate(2, first, second)) == [[1, 2], [10, 20]]
    assert turns == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    result = a_result(ours=[10, 20, 90], other=[10, 40, 30])
    assert result.judged == Spread(1.0, 0.5, 3.0)
    assert result.ours == Spread(20, 10, 90)


def test_a_goal_that_is_only_just_reached_is_met() -> None:
    assert Goal("at least", 0.7).met_by(0.7)
    assert not Goal("at least", 0.7).met_by(0.69)
    assert Goal("at most", 1.3).met_by(1.3)
    assert not Goal("at most", 1.3).met_by(1.31)


def test_kept_figures_are_replaced_by_name_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    old, other, new = (
        report.Kept(a_result(name=name, ours=[figure], other=[1]), a_run())
        for name, figure in (("one", 1.0), ("two", 2.0), ("one", 3.0))
    )
    report.write_json(path, [old, other])
    report.write_json(path, report.merged(path, [new]))
    assert report.read_json(path) == [new, other]


def test_a_figure_that_misses_its_goal_is_shown_so(capsys: pytest.CaptureFixture[str]) -> None:
    missed = a_result(ours=[1], other=[2])
    report.print_table([missed], Console(width=200))
    assert "no" in capsys.readouterr().out.splitlines()[-2].split("│")[-2]
    assert "| **no** |" in report.markdown([report.Kept(missed, a_run())])


def test_what_is_within_its_goal_lies_on_either_side_of_one() -> None:
    goal = Goal("within", 0.01)
    assert [goal.met_by(figure) for figure in (0.98, 0.99, 1.01, 1.02)] == [False, True, True, False]


def test_a_figure_without_a_goal_is_told_and_not_judged() -> None:
    told = absolute([80], name="n", what="w", unit="RU", goal=None)
    assert told.met is None
    assert "| w | 80.0 RU | – | – | – | – |" in report.markdown([report.Kept(told, a_run())])


def test_processor_time_stands_beside_the_ratio() -> None:
    result = compared([3], [2], name="n", what="w", unit="µs", other_name="o", goal=None, cpu=[1.25])
    assert "| 1.50 (1.50–1.50); CPU 1.25 |" in report.markdown([report.Kept(result, a_run())])


def test_what_a_figure_was_made_from_stands_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    detail = Detail("Arithmetic", ("one", "two"), (("1,000", "2"),))
    result = absolute([80], name="n", what="w", unit="RU", goal=None, detail=detail)
    lines = report.markdown([report.Kept(result, a_run())]).splitlines()
    assert lines[lines.index("Arithmetic:") :][2:5] == ["| one | two |", "|---|---|", "| 1,000 | 2 |"]
    report.print_table([result], Console(width=200))
    assert "1,000" in capsys.readouterr().out


def test_a_comparison_whose_server_cannot_run_here_is_said_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "git").symlink_to(shutil.which("git") or "")
    monkeypatch.setenv("PATH", str(programs))  # There is no java in it.
    path = tmp_path / "kept.json"
    arguments = ["--size", "tiny", "--only", "sdk-firestore", "--only", "list-after-sqlite"]
    assert main([*arguments, "--json", str(path)]) == 0
    assert "not run: sdk-firestore: firestore: there is no java" in capsys.readouterr().out
    assert [kept.result.name for kept in report.read_json(path)] == ["list-after-sqlite"]


def test_request_units_lie_on_the_line_that_the_driver_describes() -> None:
    assert [request_units("get of one document", size) for size in (0, 1024, 65 * 512, 65_536)] == [
        2,
        2,
        6,
        10,
    ]
    assert request_units("write of one document", 65_536) == 23


def test_an_absolute_figure_is_judged_itself() -> None:
    result = absolute([80, 100, 95], name="n", what="w", unit="MiB", goal=Goal("at most", 90, "MiB"))
    assert result.judged.median == 95
    assert not result.met


def test_a_run_keeps_its_figures_with_the_command_that_made_them(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    arguments = ["--size", "tiny", "--only", "list-after-sqlite", "--json", str(path)]
    assert main(arguments) == 0
    (kept,) = report.read_json(path)
    assert kept.result.name == "list-after-sqlite"
    assert kept.run.command.startswith("script/bench --size tiny --only list-after-sqlite")


def test_the_table_in_the_documentation_is_the_one_that_the_kept_figures_make() -> None:
    assert report.markdown(report.read_json(KEPT)) in PAGE.read_text()


def a_result(ours: list[float], other: list[float], *, name: str = "n") -> Result:
    return compared(ours, other, name=name, what="w", unit="x/s", other_name="o", goal=Goal("at least", 0.7))


def a_run() -> report.Run:
    return report.Run(
        at="2026-01-01T00:00:00Z",
        command="script/bench",
        sizes="tiny",
        commit="0" * 12,
        machine={"cpus": 2, "cpu": "a cpu", "python": "3.11"},
        load_before=0.0,
        load_after=0.0,
    )
