"""A guarded replay under kill -9: afterwards every call is decided once, used once, and the counts agree."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from engines.client import Engines as Client
from engines.drivers.registry import DOCUMENT_DRIVERS
from tests.backends import session_backend
from tests.cli.conftest import run_engines, start_engines
from tests.cli.guarding import run_of, set_up, write_runs
from tests.cli.lab import LabProcess

# The imports of a whole file, twice, on whatever else the machine does.
pytestmark = pytest.mark.timeout(300)

DECIDED_S = 200.0
POLL_S = 0.1


def arguments(lab: LabProcess, file: Path, dataset: str) -> tuple[str | Path, ...]:
    at = ("--lab", lab.directory, "--as", "member", "--dataset", dataset)
    return ("import", "agent-runs", file, *at, "--guarded", "--json")


def killed_at(lab: LabProcess, file: Path, dataset: str, *more: str, decisions: int) -> None:
    """Start the import, and end it by SIGKILL once so many decisions stand on the spine."""
    process = start_engines(*arguments(lab, file, dataset), *more)
    try:
        with Client(lab.file.url, lab.file.user("member").token, project_id=dataset) as client:
            deadline_s = time.monotonic() + DECIDED_S
            while True:
                has_ended = process.poll() is not None
                if decided(client) >= decisions:
                    break
                assert not has_ended, "it ended before it had decided so much"
                assert time.monotonic() < deadline_s
                time.sleep(POLL_S)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def decided(client: Client) -> int:
    """How many decisions stand; the set-up's rehearsals are none."""
    events = client.events.each(event_type="safety")
    return sum(not (event.payload or {})["dry_run"] for event in events)


def counts_of(guarded: dict[str, Any]) -> dict[str, str]:
    return {row["what"].rpartition(", ")[2]: row["server"] for row in guarded["agreement"]["counts"]}


def finish(lab: LabProcess, file: Path, dataset: str) -> dict[str, Any]:
    """Start it again, to its end, and compare."""
    done = run_engines(*arguments(lab, file, dataset), "--verify")
    assert done.code == 0, done.out[-3_000:] + done.err[-2_000:]
    guarded: dict[str, Any] = done.json["guarded"]
    assert guarded["agreement"]["agrees"] is True
    assert done.json["verified"]["difference_count"] == 0
    with Client(lab.file.url, lab.file.user("owner").token, project_id=dataset) as owner:
        verification = owner.budget.summary(verify=True).verification
    assert verification is not None
    assert verification.ok
    assert run_engines("events", "verify", "--lab", lab.directory).code == 0
    return guarded


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("driver", DOCUMENT_DRIVERS)
def test_a_replay_that_was_killed_goes_on_whatever_keeps_it(
    own_lab: LabProcess, tmp_path: Path, request: pytest.FixtureRequest, driver: str
) -> None:
    """All data of the tenant lies on the driver's server; refunds are not licensed."""
    backend = session_backend(request, driver, "guarded")
    runs = [run_of(n, "book_seat", "cancel_seat", cost=f"0.{n + 1:03}1") for n in range(8)]
    file = write_runs(tmp_path / "runs.json", runs)
    own_lab.start()
    own_lab.keep_on(backend)
    set_up(own_lab, driver, "--without", "refunds")
    killed_at(own_lab, file, driver, "--concurrency", "2", decisions=6)
    guarded = finish(own_lab, file, driver)
    assert guarded["already_there"]["decisions"] >= 6
    assert [one["gate"] for one in guarded["agreement"]["refusals"]] == ["firearms"]
    assert counts_of(guarded) == {
        "decisions on the spine": "16",
        "units in the ledger": "8",
        "entries in the ledger": "16",
        "cost in the ledger": "0.0368",
        "measurements in the KPI's window": "8",
        "the KPI's reading": "1.0",
        "rewards on the spine": "8",
    }


@pytest.mark.crash
@pytest.mark.slow
def test_the_counts_of_two_hundred_real_runs_agree_though_both_sides_are_killed(
    own_lab: LabProcess, recorded_runs: Path
) -> None:
    own_lab.start()
    set_up(own_lab, "airline")
    killed_at(own_lab, recorded_runs, "airline", decisions=500)
    own_lab.kill()
    own_lab.start()
    guarded = finish(own_lab, recorded_runs, "airline")
    assert guarded["already_there"]["decisions"] >= 500
    assert guarded["agreement"]["refusals"] == []
    assert counts_of(guarded) == {
        "decisions on the spine": "1164",
        "units in the ledger": "1164",
        "entries in the ledger": "1359",
        "cost in the ledger": "0.5031500000000000298",
        "measurements in the KPI's window": "200",
        "the KPI's reading": "0.42",
        "rewards on the spine": "200",
    }
