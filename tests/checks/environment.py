"""Who reads the process's environment: every way that Python source has of doing so.

Owns finding them by `ast`, without importing the source. Who may is said in `floors.py`, and the verdict is
left to `tests/test_environment.py`. What an SDK reads of itself, such as AWS's default chain, is no source of
ours.
"""

import ast
from collections.abc import Iterator

from tests.checks.floors import may_use

# However they are reached: as a name, an attribute, an import, or text that getattr is given.
READERS = frozenset(
    {
        "environ",
        "environb",
        "getenv",
        "getenvb",
        "expandvars",
        "expanduser",
        "getproxies",
        "getproxies_environment",
    }
)


def environment_reads(text: str) -> Iterator[tuple[str, int]]:
    """What in the source reads the environment, or may, each with its line."""
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name) and node.id in READERS:
            yield node.id, line
        elif isinstance(node, ast.Attribute) and node.attr in READERS:
            yield node.attr, line
        elif isinstance(node, ast.Constant) and node.value in READERS:
            yield str(node.value), line
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            yield from ((name, line) for name in sorted(names & READERS))
            if "*" in names:
                yield "*", line
        elif isinstance(node, ast.keyword) and node.arg == "trust_env" and not _is_false(node.value):
            yield "trust_env", node.value.lineno


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def may_read(path: str) -> bool:
    """Whether the module at `path`, relative to src/engines, may read the environment."""
    return may_use("os.environ", path)
