"""A tenant is moved from each kind of backend to another while it is used: a ring through all of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from engines.control.records import Backend
from engines.drivers.registry import DOCUMENT_DRIVERS
from tests.backends import session_backend
from tests.moves.under_load import move_under_load

RING = list(pairwise([*DOCUMENT_DRIVERS, next(iter(DOCUMENT_DRIVERS))]))


@pytest.fixture(params=RING, ids=lambda pair: f"{pair[0]} to {pair[1]}")
def backends(request: pytest.FixtureRequest) -> tuple[Backend, Backend]:
    source, target = request.param
    return session_backend(request, source, "a"), session_backend(request, target, "b")


async def test_nothing_is_lost_or_doubled_and_what_clients_hold_still_works(
    backends: tuple[Backend, Backend], tmp_path: Path
) -> None:
    await move_under_load(f"sqlite://{tmp_path}/control.db", *backends)
