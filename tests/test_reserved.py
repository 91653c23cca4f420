"""The reserved kinds have a shape and nothing behind it: nothing in the package names or needs them."""

import re

import pytest

from engines.catalogue import KINDS, RESERVED, SERVED, kind_named
from engines.control.bootstrap import read_seed
from engines.errors import Reserved
from tests.checks.floors import SOURCE, imports_of, modules

NAMES = ("pii_vault", "nexus", "tool_registry", "canvas_registry", "connector_execution")
PACKAGE = SOURCE / "engines"
# Where their names stand, and what answers for them.
CATALOGUE = "engines.catalogue"
ROUTER = "engines.api.reserved"
# The edge mounts the router; the catalogue's table of them is told by diagnostics and by the router.
MAY_IMPORT_ROUTER = {"engines.api.app"}
MAY_IMPORT_TABLE = {ROUTER, "engines.api.diagnostics", "engines.routing.diagnostics"}


def test_the_reserved_kinds_are_these_and_none_is_served() -> None:
    assert tuple(kind.name for kind in RESERVED) == NAMES
    assert not set(RESERVED) & set(SERVED)
    assert {kind.name for kind in KINDS} >= set(NAMES)
    assert not any(kind.aliases or kind.options for kind in RESERVED)


@pytest.mark.parametrize("name", NAMES)
def test_a_reserved_kind_cannot_be_routed(name: str) -> None:
    with pytest.raises(Reserved):
        kind_named(name)


def test_nothing_but_the_catalogue_names_a_reserved_kind() -> None:
    named = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(NAMES)})(?![A-Za-z0-9])", re.IGNORECASE)
    naming = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".json") and named.search(path.read_text())
    }
    assert naming == {"catalogue.py"}


def test_nothing_imports_them_but_what_mounts_their_router_and_tells_of_them() -> None:
    known = modules()
    router_users, table_users = set(), set()
    for module, path in known.items():
        text = path.read_text()
        imported = {found.imported for found in imports_of(module, text, known)}
        if ROUTER in imported:
            router_users.add(module)
        if CATALOGUE in imported and re.search(r"\bRESERVED\b", text):
            table_users.add(module)
    assert router_users == MAY_IMPORT_ROUTER
    assert table_users == MAY_IMPORT_TABLE


def test_no_role_may_do_anything_with_them() -> None:
    granted = {permission for role in read_seed("system")["roles"] for permission in role["permissions"]}
    assert granted
    assert not [permission for permission in granted if permission.split(".")[0] in NAMES]
