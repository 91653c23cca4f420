"""A lab in a directory of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.lab import LabServer


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabServer]:
    server = LabServer(tmp_path / "lab")
    try:
        yield server
    finally:
        server.close()
