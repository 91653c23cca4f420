"""Which module may import which, and which names only one module may use: the house rules as tables.

Owns the tables and the reading of source by `ast`, without importing it. Leaves the verdict to
`tests/test_floors.py`.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"

FOUNDATION = frozenset({"errors", "clock", "ids", "codec", "scope", "catalogue", "settings"})
SERVICES = frozenset({"control", "routing", "identity", "safety", "agent"})
BELOW_SERVICES = FOUNDATION | {"ports", "core", "stores"}
BELOW_EDGES = BELOW_SERVICES | SERVICES

# A unit is a module or a folder directly below `engines`; the registry of the drivers is a unit of its own.
# What stands on a line may be imported by the unit that the line begins with, beside the unit itself.
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(FOUNDATION, FOUNDATION),
    "ports": FOUNDATION,
    "drivers": FOUNDATION | {"ports"},
    "drivers.registry": FOUNDATION | {"ports", "drivers"},
    "core": FOUNDATION | {"ports"},
    "stores": FOUNDATION | {"ports", "core"},
    "control": BELOW_SERVICES,
    "routing": BELOW_SERVICES | {"control", "drivers.registry"},
    "identity": BELOW_SERVICES | {"control"},
    "safety": BELOW_SERVICES | {"control", "routing", "identity"},
    "agent": BELOW_SERVICES | {"control", "routing", "identity", "safety"},
    "api": BELOW_EDGES,
    "cli": BELOW_EDGES | {"client"},
    "console": BELOW_EDGES,
    "client": FOUNDATION,
    "adapters": BELOW_EDGES | {"client"},
    "testing": FOUNDATION | {"ports", "core", "drivers.registry"},
    # The composition root sees every floor.
    "wiring": BELOW_EDGES | {"drivers", "drivers.registry", "api", "console", "adapters"},
    # engines/__init__.py: `engines.open` is the way in for programs, and loads the root on first use.
    "": FOUNDATION | {"wiring"},
}


class Import(NamedTuple):
    """`importer` imports `imported`, both full module names, at `line`."""

    importer: str
    imported: str
    line: int


# (importing module, imported unit) -> why this one is right. An entry that its module no longer needs fails.
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("engines.__main__", "cli"): "python -m engines is the command",
    # The commands that become a process of Engines; every other command is a client of one.
    ("engines.cli.backends", "drivers.registry"): "tells what a driver says of itself, which needs no server",
    ("engines.cli.init", "wiring"): "makes a control plane where no server runs yet",
    ("engines.cli.lab", "wiring"): "makes a lab where no server runs yet",
    ("engines.cli.serve", "wiring"): "puts the parts and the app into one process",
    ("engines.cli.serve", "api"): "puts the parts and the app into one process",
}

# What several drivers may stand on; every other module of a driver is that driver's alone.
SHARED_BY_DRIVERS = frozenset({"engines.drivers.secrets.web"})

# A name from outside -> the paths below src/engines that may use it; a path ending in / is a folder.
ONLY_IN: Mapping[str, tuple[str, ...]] = {
    # One SDK, one driver.
    "aiobotocore": ("drivers/documents/dynamodb/", "drivers/secrets/aws.py"),
    "asyncpg": ("drivers/documents/postgres/",),
    "botocore": ("drivers/documents/dynamodb/", "drivers/secrets/aws.py"),
    "sqlite3": ("drivers/documents/sqlite.py",),
    "mmh3": ("stores/flag_operators.py",),
    "openfeature": ("client/openfeature.py",),
    # One file format, one module.
    "pyarrow": ("client/export_formats.py",),
    # What belongs to the edges stays there.
    "uvicorn": ("api/", "cli/"),
    "cyclopts": ("cli/",),
    # The environment.
    "os.environ": ("settings.py", "drivers/secrets/environment.py", "testing/"),
    "os.environb": ("settings.py", "drivers/secrets/environment.py", "testing/"),
    "os.getenv": ("settings.py", "drivers/secrets/environment.py", "testing/"),
    # Time is read in one place, and injected everywhere else.
    "time.time": ("clock.py",),
    "time.time_ns": ("clock.py",),
    "time.monotonic": ("clock.py",),
    "time.monotonic_ns": ("clock.py",),
    "time.perf_counter": ("clock.py",),
    "time.perf_counter_ns": ("clock.py",),
    "datetime.datetime.now": ("clock.py",),
    "datetime.datetime.utcnow": ("clock.py",),
    "datetime.datetime.today": ("clock.py",),
    "datetime.date.today": ("clock.py",),
    # So are ids and secrets.
    "os.urandom": ("ids.py", "wiring.py"),
    "uuid.uuid1": ("ids.py",),
    "uuid.uuid4": ("ids.py", "testing/"),  # The kits play clients, who choose ids of their own.
    "secrets.token_bytes": ("ids.py",),
    "secrets.token_hex": ("ids.py",),
    "secrets.token_urlsafe": ("ids.py",),
}


def modules(source: Path = SOURCE) -> dict[str, Path]:
    """Every module of the package by its full name."""
    found: dict[str, Path] = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def unit_of(module: str) -> str:
    """`engines.core.log` -> `core`; `engines` itself is the empty unit."""
    parts = module.split(".")[1:]
    if parts[:2] == ["drivers", "registry"]:
        return "drivers.registry"
    return parts[0] if parts else ""


def imports_of(module: str, text: str, known: Iterable[str]) -> Iterator[Import]:
    """What `module` imports of this package, inside functions and under TYPE_CHECKING too."""
    names = frozenset(known)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [name if name in names else str(node.module) for name in whole]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == "engines":
                yield Import(module, target, node.lineno)


def is_allowed(found: Import) -> bool:
    """Whether the tables allow this import. Raises `KeyError` for a unit that has no floor yet."""
    importer, imported = unit_of(found.importer), unit_of(found.imported)
    if (found.importer, imported) in EXCEPTIONS or imported == "":
        return True
    if importer == imported == "drivers":
        return found.imported in SHARED_BY_DRIVERS or _driver(found.importer) == _driver(found.imported)
    return importer == imported or imported in MAY_IMPORT[importer]


def _driver(module: str) -> tuple[str, ...]:
    """The driver that a module belongs to, as (kind, name); a driver may be a folder of modules."""
    return tuple(module.split(".")[2:4])


def outside_names(text: str) -> Iterator[tuple[str, int]]:
    """Every name from other packages that the source uses, in full, such as `time.monotonic`, with its line.

    A name is followed from its import: `from time import monotonic as m` and `import time as t; t.monotonic`
    are both `time.monotonic`; a local variable called `time` is nothing.
    """
    tree = ast.parse(text)
    meaning: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                meaning[alias.asname or top] = alias.name if alias.asname else top
                yield from ((name, node.lineno) for name in _prefixes(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield from ((name, node.lineno) for name in _prefixes(f"{node.module}.{alias.name}"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (full := _dotted(node, meaning)):
            yield full, node.lineno


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _dotted(node: ast.expr, meaning: Mapping[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return meaning.get(node.id)
    if isinstance(node, ast.Attribute) and (left := _dotted(node.value, meaning)):
        return f"{left}.{node.attr}"
    return None


def may_use(name: str, path: str) -> bool:
    """Whether the module at `path`, relative to src/engines, may use a name from outside."""
    places = ONLY_IN.get(name)
    return places is None or any(path.startswith(p) if p.endswith("/") else path == p for p in places)
