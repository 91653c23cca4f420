"""A deployment of several processes, with backends between which a tenant can be moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import engines
from engines.control.bootstrap import Seed, apply_seed, bootstrap
from engines.control.records import Backend, Move
from engines.core.records import Condition
from engines.core.transfer import PartitionTransfer
from engines.routing.moves import Progress
from engines.wiring import open_control_plane
from tests.contexts import ADMIN, context

SEED: Seed = {
    "tenants": [
        {
            "tenant_id": "t_a",
            "name": "A",
            "mode": "lab",
            "envs": ["prod", "dev"],
            "default_surface_id": "chat",
        },
        {"tenant_id": "t_b", "name": "B", "mode": "lab", "envs": ["prod"], "default_surface_id": "chat"},
    ],
}
OWNER = context("t_a")
NEW = Condition(absent=True)

Open = Callable[[], Awaitable[engines.Engines]]


def sqlite_backend(directory: Path, backend_id: str) -> Backend:
    return Backend(
        backend_id=backend_id,
        driver="sqlite",
        backend_class="host_local",
        config={"path": str(directory / f"{backend_id}.db")},
        offered_to="*",
    )


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


@pytest.fixture
async def control_plane_url(tmp_path: Path) -> str:
    """A lab whose default backend is `a`; all may route to `b`, too. Everything on SQLite."""
    url = f"sqlite://{tmp_path}/control.db"
    await make_deployment(url, sqlite_backend(tmp_path, "a"), sqlite_backend(tmp_path, "b"))
    return url


async def make_deployment(url: str, a: Backend, b: Backend) -> None:
    """A control plane whose tenants are led to `a`, and may be moved to `b`."""
    async with open_control_plane(url) as control:
        await bootstrap(control.store, control.record, data=a, host_local=True)
        await apply_seed(control.store, SEED)
    async with engines.open(url) as opened:
        await opened.backends.put(ADMIN, b, condition=NEW)


@pytest.fixture
def open_process(control_plane_url: str, stack: AsyncExitStack) -> Open:
    """Each call is another process of the deployment, in this one."""
    return lambda: stack.enter_async_context(engines.open(control_plane_url))


async def ended(process: engines.Engines, move_id: str, *, timeout_s: float = 60.0) -> tuple[Move, Progress]:
    """The move once it has ended."""
    async with asyncio.timeout(timeout_s):
        while True:
            generation = process.directory.generation
            stored, progress = await process.moves.get(OWNER, move_id)
            if stored.record.ended:
                return stored.record, progress
            await process.directory.changed(generation)


async def reached(process: engines.Engines, move_id: str, phase: str, *, timeout_s: float = 30.0) -> Move:
    """The move once it is in this phase."""
    async with asyncio.timeout(timeout_s):
        while True:
            move = next((m for m in process.directory.moves.values() if m.move_id == move_id), None)
            if move is not None and move.phase == phase:
                return move
            await process.directory.changed(process.directory.generation)


def hold_up(monkeypatch: pytest.MonkeyPatch, name: str, until: asyncio.Event) -> None:
    """One step of the mover takes as long as the test wants."""
    step = getattr(PartitionTransfer, name)

    async def later(transfer: PartitionTransfer) -> None:
        await until.wait()
        await step(transfer)

    monkeypatch.setattr(PartitionTransfer, name, later)
