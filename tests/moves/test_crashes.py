"""Movers and writers are killed and stopped in the middle: nothing acknowledged is lost or there twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import engines
from engines.control.tables import MOVES
from engines.core.listing import Window
from engines.wiring import ControlPlane, open_control_plane
from tests.backends import backend_at
from tests.moves.conftest import OWNER, Open, ended, hold_up, make_deployment, reached

ROOT = Path(__file__).resolve().parents[2]
LEASE_S = 3.0
DAY_S = 86_400
PHASES = ("prepare", "copy", "follow", "fence", "verify", "switch", "settle", "done")


class Writing:
    """What one writing process said: which notes must be there, and which change may be."""

    def __init__(self, user_id: str, process: Process) -> None:
        self.user_id = user_id
        self.process = process
        self.notes: dict[str, str] = {}
        self.trying: dict[str, Any] | None = None
        self.longest_s = 0.0
        self.unknown = False
        self.changes = 0
        self.move_id = ""
        self._heard = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            with contextlib.suppress(json.JSONDecodeError):  # Cut off by the kill.
                self._take(json.loads(line))
            self._heard.set()

    def _take(self, said: dict[str, Any]) -> None:
        if "trying" in said:
            self.trying = said
        elif "done" in said:
            self.notes[said["note_id"]] = said["done"]
            self.trying = None
            self.changes += 1
            self.longest_s = max(self.longest_s, said["took_s"])
        elif "unknown" in said:
            self.unknown = True
        elif "moving" in said:
            self.move_id = said["moving"]

    async def has_written(self, count: int) -> None:
        await self._until(lambda: self.changes >= count)

    async def has_begun_to_move(self) -> str:
        await self._until(lambda: bool(self.move_id))
        return self.move_id

    async def _until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not is_so():
                self._heard.clear()
                await self._heard.wait()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading

    async def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()
        await self._reading

    async def check(self, process: engines.Engines) -> None:
        """Every note is there once, as its last acknowledged change or the one under way left it."""
        context = msgspec.structs.replace(OWNER, user_id=self.user_id)
        listed = await process.notes.list(context, window=Window(limit=1_000))
        assert listed.after is None
        contents = {note.note_id: note.content for note in listed.items}
        assert len(set(contents.values())) == len(contents)
        tried = self.trying["trying"] if self.trying else None
        for note_id, content in self.notes.items():
            assert contents[note_id] in (content, tried)
        assert {contents[note_id] for note_id in contents.keys() - self.notes.keys()} <= {tried}


@contextlib.asynccontextmanager
async def writing(url: str, *arguments: str) -> AsyncIterator[Writing]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.moves.process", url, *arguments),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    written = Writing(arguments[0], child)
    try:
        yield written
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT)
        await written.kill()


async def has_come_to(control: ControlPlane, move_id: str, phase: str) -> None:
    """Returns once the phase is seen, or passed."""
    async with asyncio.timeout(30):
        seen = "prepare"
        while PHASES.index(seen) < PHASES.index(phase):
            seen = (await control.store.get(MOVES, move_id)).record.phase


@pytest.mark.crash
@pytest.mark.parametrize("phase", ["prepare", "copy", "fence", "switch", "settle"])
async def test_a_mover_that_is_killed_is_followed_by_another(
    control_plane_url: str, open_process: Open, phase: str
) -> None:
    """The first process is alone, so it is the mover; it is killed once the phase is seen, or passed."""
    first = writing(control_plane_url, "u_1", "b")
    async with open_control_plane(control_plane_url) as control, first as killed:
        move_id = await killed.has_begun_to_move()
        await has_come_to(control, move_id, phase)
        await killed.kill()
    async with writing(control_plane_url, "u_2") as second:
        await second.has_written(5)
        observer = await open_process()
        move, progress = await ended(observer, move_id)
        assert move.phase == "done", progress
        await second.has_written(second.changes + 5)
        await second.end()
        assert not second.unknown
        await second.check(observer)
        await killed.check(observer)


@pytest.mark.crash
async def test_a_mover_that_is_killed_is_followed_after_one_lease_though_its_clock_was_ahead(
    control_plane_url: str, open_process: Open
) -> None:
    """Who follows it waits for its lease as it saw it, not until an instant by the dead one's clock."""
    first = writing(control_plane_url, "u_1", "b", str(DAY_S))
    async with open_control_plane(control_plane_url) as control, first as killed:
        move_id = await killed.has_begun_to_move()
        await has_come_to(control, move_id, "copy")
        await killed.kill()
        assert not (await control.store.get(MOVES, move_id)).record.ended
    observer = await open_process()
    # A lease, and what a busy machine takes for the phases behind it.
    move, progress = await ended(observer, move_id, timeout_s=5 * LEASE_S)
    assert move.phase == "done", progress
    await killed.check(observer)


@pytest.mark.crash
async def test_changes_wait_for_a_process_that_is_stopped_no_longer_than_its_lease(
    new_postgres_database: Callable[[], str],
    stack: contextlib.AsyncExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what the stopped one was doing is not acknowledged once it goes on.

    On PostgreSQL: a process that is stopped within a transaction of SQLite holds the lock of the file.
    """
    url = new_postgres_database()
    await make_deployment(
        url, backend_at(new_postgres_database(), "a"), backend_at(new_postgres_database(), "b")
    )
    observer = await stack.enter_async_context(engines.open(url))
    # Begun alone, so that this process is the mover, and stays in the phase in which the other stops.
    compared = asyncio.Event()
    hold_up(monkeypatch, "compare", compared)
    stored = await observer.moves.start(OWNER, "notes_store", "b")
    await reached(observer, stored.record.move_id, "follow")
    async with writing(url, "u_stopped") as stopped, writing(url, "u_going_on") as going_on:
        await asyncio.gather(stopped.has_written(10), going_on.has_written(10))
        stopped.process.send_signal(signal.SIGSTOP)
        compared.set()
        move, progress = await ended(observer, stored.record.move_id)
        assert move.phase == "done", progress
        # A lease, and what a busy machine takes for the phases behind it.
        assert going_on.longest_s < 2 * LEASE_S
        stopped.process.send_signal(signal.SIGCONT)
        await going_on.has_written(going_on.changes + 5)
        await going_on.end()
        await stopped.end()
        await stopped.check(observer)
        await going_on.check(observer)
