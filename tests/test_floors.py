"""The floors of the house: imports point one way, an SDK stays in its driver, time is read in one place."""

import ast
from pathlib import Path

import pytest

from tests.checks.floors import (
    EXCEPTIONS,
    MAY_IMPORT,
    ROOT,
    SOURCE,
    Import,
    imports_of,
    is_allowed,
    may_use,
    modules,
    outside_names,
    unit_of,
)

MODULES = modules()
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_stands_on_a_floor() -> None:
    assert len(MODULES) > 10
    units = {unit_of(module) for module in MODULES} - {"__main__"}
    assert units <= set(MAY_IMPORT), "say in tests/checks/floors.py what the new unit may import"


def test_imports_point_downwards() -> None:
    wrong = [
        f"{named(path)}:{found.line}: {found.importer} imports {found.imported}"
        for module, path in MODULES.items()
        for found in imports_of(module, path.read_text(), MODULES)
        if not is_allowed(found)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_still_needed() -> None:
    used = {
        (found.importer, unit_of(found.imported))
        for module, path in MODULES.items()
        for found in imports_of(module, path.read_text(), MODULES)
    }
    idle = {key for key in EXCEPTIONS if key[0] in MODULES and f"engines.{key[1]}" in MODULES} - used
    assert not idle, f"these exceptions allow what nobody does: {idle}"


def test_a_name_with_one_home_is_used_nowhere_else() -> None:
    wrong = [
        f"{named(path)}:{line}: {name}"
        for path in MODULES.values()
        for name, line in outside_names(path.read_text())
        if not may_use(name, str(path.relative_to(SOURCE / "engines")))
    ]
    assert not wrong, "\n".join(wrong)


def test_a_file_can_be_read_in_one_sitting() -> None:
    counted = {named(path): path.read_text().count("\n") for path in MODULES.values()}
    assert not {name: lines for name, lines in counted.items() if lines > FILE_LINES_MAX}


def test_a_function_fits_a_screen() -> None:
    wrong = [
        f"{named(path)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not wrong, "\n".join(wrong)


def test_a_module_says_what_it_is_for() -> None:
    silent = [named(path) for path in MODULES.values() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def test_no_file_is_called_utils() -> None:
    vague = {"utils", "util", "helpers", "common", "misc"}
    assert not [named(path) for path in MODULES.values() if path.stem in vague or path.parent.name in vague]


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("engines.errors", "engines.ports.documents"),
        ("engines.ports.documents", "engines.core.log"),
        ("engines.core.log", "engines.drivers.documents.sqlite"),
        ("engines.core.log", "engines.drivers.registry"),
        ("engines.drivers.documents.sqlite", "engines.core.keys"),
        ("engines.drivers.documents.sqlite", "engines.drivers.documents.postgres"),
        ("engines.drivers.documents.sqlite", "engines.drivers.registry"),
        ("engines.drivers.secrets.google", "engines.drivers.secrets.azure"),
        ("engines.stores.notes", "engines.drivers.registry"),
        ("engines.stores.notes", "engines.control.records"),
        ("engines.control.records", "engines.routing.resolve"),
        ("engines.identity.tokens", "engines.routing.resolve"),
        ("engines.routing.resolve", "engines.drivers.documents.postgres"),
        ("engines.routing.resolve", "engines.api.app"),
        ("engines.api.app", "engines.cli.main"),
        ("engines.api.app", "engines.drivers.registry"),
        ("engines.api.app", "engines.wiring"),
        ("engines.cli.tables", "engines.wiring"),
        ("engines.client.http", "engines.core.keys"),
        ("engines.testing.documents", "engines.drivers.documents.sqlite"),
        ("engines.testing.documents", "engines.stores.notes"),
        ("engines.errors", "engines.wiring"),
        ("engines.wiring", "engines.cli.main"),
    ],
)
def test_an_import_against_the_floors_is_refused(importer: str, imported: str) -> None:
    assert not is_allowed(Import(importer, imported, 1))


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("engines.drivers.documents.sqlite", "engines.ports.documents"),
        ("engines.drivers.documents.cosmos.batch", "engines.drivers.documents.cosmos.errors"),
        ("engines.drivers.secrets.google", "engines.drivers.secrets.web"),
        ("engines.core.log", "engines.core.keys"),
        ("engines.routing.backends", "engines.drivers.registry"),
        ("engines.identity.tokens", "engines.control.records"),
        ("engines.cli.serve", "engines.wiring"),
        ("engines.testing.documents", "engines.drivers.registry"),
        ("engines.wiring", "engines.api.app"),
    ],
)
def test_an_import_along_the_floors_is_allowed(importer: str, imported: str) -> None:
    assert is_allowed(Import(importer, imported, 1))


@pytest.mark.parametrize(
    "text",
    [
        "import engines.wiring",
        "import engines.wiring as w",
        "from engines import wiring",
        "from engines.wiring import build",
        "def late():\n    from engines.wiring import build",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from engines import wiring",
    ],
)
def test_an_import_is_seen_however_it_is_written(text: str) -> None:
    (found,) = imports_of("engines.errors", text, ["engines", "engines.errors", "engines.wiring"])
    assert found.imported == "engines.wiring"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import time\ntime.monotonic()", "time.monotonic"),
        ("import time as t\nt.monotonic()", "time.monotonic"),
        ("from time import monotonic as m\nm()", "time.monotonic"),
        ("from datetime import datetime\ndatetime.now()", "datetime.datetime.now"),
        ("import datetime as d\nd.datetime.now()", "datetime.datetime.now"),
        ("import os\nos.environ['A']", "os.environ"),
        ("from os import getenv", "os.getenv"),
        ("import asyncpg.pool", "asyncpg"),
        ("def f():\n    import sqlite3", "sqlite3"),
        ("from uvicorn.config import Config", "uvicorn"),
    ],
)
def test_a_name_with_one_home_is_seen_however_it_is_written(text: str, name: str) -> None:
    used = {found for found, _ in outside_names(text)}
    assert name in used
    assert not may_use(name, "core/log.py")


def test_a_local_variable_is_not_mistaken_for_a_module() -> None:
    assert "time.time" not in {name for name, _ in outside_names("def f(time):\n    return time.time()")}
