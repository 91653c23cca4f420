"""What is committed installs and runs anywhere: hashed locks, no registry named, no path of one machine."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.checks.secrets import tracked_files

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

PIN = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.+!]*( ; [^\\]+)? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
COMMENT = re.compile(r"( {4})?#.*")

# In pieces, so that this file does not name them.
REGISTRY_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "npmjs" + ".org",
    "npmjs" + ".com",
    "crates" + ".io",
    "proxy" + ".golang.org",
    "conda" + ".anaconda.org",
]
MACHINE_PATH = re.compile(r"(?<![\w.$}/~-])/(?:home|root|Users|work|opt|private/tmp|tmp)/[\w.-]")


def texts() -> dict[str, str]:
    """Every committed or committable text file by its name."""
    found: dict[str, str] = {}
    for name in tracked_files(ROOT):
        content = (ROOT / name).read_bytes()
        if b"\0" not in content:
            found[name] = content.decode()
    return found


TEXTS = texts()
SCRIPTS = sorted(name for name, text in TEXTS.items() if text.startswith("#!"))
SHELL = sorted({name for name in SCRIPTS if "bash" in TEXTS[name].splitlines()[0]} | {"script/venv.sh"})


def test_every_file_is_text() -> None:
    assert set(map(str, tracked_files(ROOT))) == set(TEXTS)


def test_there_is_something_to_look_at() -> None:
    assert len(TEXTS) > 20
    assert [lock.name for lock in LOCKS] == ["bench.lock", "run.lock", "test.lock"]
    assert {"script/run", "script/test", "script/bench", "script/soak", "script/lock", ".ci/run"} <= set(
        SCRIPTS
    )


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_line_of_a_lock_is_a_pin_a_hash_or_a_comment(lock: Path) -> None:
    lines = lock.read_text().splitlines()
    wrong = [
        line for line in lines if not (PIN.fullmatch(line) or HASH.fullmatch(line) or COMMENT.fullmatch(line))
    ]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_of_a_lock_has_a_hash(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if not COMMENT.fullmatch(line)]
    bare = [
        line
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if PIN.fullmatch(line) and not HASH.fullmatch(following)
    ]
    assert not bare


def test_the_locks_agree_on_every_package_that_the_server_runs_on() -> None:
    run, *others = (pins(ROOT / "requirements" / f"{name}.lock") for name in ("run", "test", "bench"))
    for other in others:
        assert {name: version for name, version in other.items() if name in run} == run


def test_the_locks_hold_every_declared_dependency() -> None:
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    extras = project["optional-dependencies"]
    run = [*project["dependencies"], *extras["postgres"], *groups["build"]]
    declared = {
        "run": run,
        "test": [*run, *extras["testing"], *groups["test"]],
        "bench": [*run, *groups["bench"]],
    }
    for name, wanted in declared.items():
        names = {match.group().lower() for text in wanted if (match := re.match(r"[\w.-]+", text))}
        assert names <= set(pins(ROOT / "requirements" / f"{name}.lock")), (
            f"run script/lock ({name}.lock is old)"
        )


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("host", REGISTRY_HOSTS)
def test_no_file_names_a_package_registry(host: str) -> None:
    assert not [name for name, text in TEXTS.items() if host in text]


def test_no_file_holds_a_path_of_one_machine() -> None:
    wrong = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in TEXTS.items()
        if name != "LICENSE"
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_a_path_of_one_machine_would_be_seen() -> None:
    planted = [f"cd /{'home'}/someone", f'"/{"tmp"}/x"', f"(/{'root'}/x)"]
    assert all(MACHINE_PATH.search(line) for line in planted)
    assert not any(
        MACHINE_PATH.search(line) for line in ["GET /v1/tmp/x", "$root/tmp/x", "https://a.b/home/x"]
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_executed(name: str) -> None:
    assert os.access(ROOT / name, os.X_OK)
    staged = subprocess.run(
        ["git", "ls-files", "--stage", "--", name], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert not staged or staged.startswith("100755"), "git add --chmod=+x"


@pytest.mark.parametrize("name", SHELL)
def test_a_shell_script_parses_and_stops_at_the_first_error(name: str) -> None:
    done = subprocess.run(["bash", "-n", name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert name == "script/venv.sh" or "set -euo pipefail" in TEXTS[name]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", "-x", *SHELL], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port"],
        ["--port", "eight"],
        ["--port", "65536"],
        ["--port="],
        ["--port=-1"],
        ["--dir"],
        ["--dir", ""],
    ],
)
def test_script_run_refuses_a_bad_option_before_it_installs_anything(arguments: list[str]) -> None:
    done = subprocess.run(
        [ROOT / "script" / "run", *arguments],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("engines: --")


def test_script_run_explains_itself() -> None:
    done = subprocess.run(
        [ROOT / "script" / "run", "--help"], cwd="/", capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == 0
    assert {"--dir", "--port"} <= set(done.stdout.split())


def test_the_installed_package_brings_its_data_and_its_command() -> None:
    command = Path(sys.executable).parent / "engines"
    assert PROJECT["project"]["scripts"] == {"engines": "engines.cli.main:main"}
    assert command.is_file()
    assert (ROOT / "src" / "engines" / "py.typed").is_file()


def test_the_license_is_the_whole_apache_license() -> None:
    text = TEXTS["LICENSE"]
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
