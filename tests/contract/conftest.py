"""One lab for the whole run, met from outside."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.cast import ROLES, Cast, Tenant
from tests.servers.lab import LabServer


@pytest.fixture(scope="session")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    directory: Path = tmp_path_factory.mktemp("contract")
    lab = LabServer(directory / "lab")
    try:
        lab.start()
        yield Cast(lab, directory)
    finally:
        lab.close()


@pytest.fixture(scope="module")
def tenant(cast: Cast) -> Tenant:
    """A tenant with a user in each role, the module's own."""
    return cast.tenant(*ROLES).settled(1 + 2 * len(ROLES))
