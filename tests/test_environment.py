"""No environment variable is read outside the bootstrap: where data lies, and whose it is, is data itself."""

import pytest

from tests.checks.environment import environment_reads, may_read
from tests.checks.floors import SOURCE, modules

MODULES = {str(path.relative_to(SOURCE / "engines")): path for path in modules().values()}


def test_only_the_bootstrap_reads_the_environment() -> None:
    assert len(MODULES) > 100
    wrong = [
        f"src/engines/{name}:{line}: {found}"
        for name, path in MODULES.items()
        if not may_read(name)
        for found, line in environment_reads(path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_the_bootstrap_is_two_files_and_the_kits() -> None:
    allowed = {name for name in MODULES if may_read(name) and not name.startswith("testing/")}
    assert allowed == {"settings.py", "drivers/secrets/environment.py"}
    for name in allowed:
        assert list(environment_reads(MODULES[name].read_text())), (
            f"{name} reads nothing: take it off the list"
        )


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.environ['A']",
        "import os as o\no.getenv('A')",
        "from os import environ",
        "from os import environ as e",
        "from os import getenv as g\ng('A')",
        "from os import *",
        "import posix\nposix.environ",
        "import os\ngetattr(os, 'environ')",
        "import os\nvars(os)['getenv']('A')",
        "import os\nos.environb",
        "import os.path\nos.path.expandvars('$A')",
        "from pathlib import Path\nPath('~').expanduser()",
        "def late():\n    import os\n    return os.environ.get('A')",
        "aiohttp.ClientSession(trust_env=True)",
        "aiohttp.ClientSession(trust_env=chosen)",
    ],
)
def test_a_read_is_seen_however_it_is_written(text: str) -> None:
    assert list(environment_reads(text))


@pytest.mark.parametrize(
    "text",
    [
        "environment = {}\nenvironment.get('A')",
        "def read(environment): return environment['environment']",
        "aiohttp.ClientSession(trust_env=False)",
        "import os\nos.urandom(1)",
    ],
)
def test_what_is_no_read_is_let_be(text: str) -> None:
    assert not list(environment_reads(text))
