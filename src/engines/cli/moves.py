"""`engines moves` and `engines routes move`: a tenant's kind on its way to another backend.

Owns what is shown while one watches. The move itself is a server's work: it goes on when nobody watches.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from cyclopts import App

from engines.cli.connection import DEFAULT, Connection
from engines.cli.output import FAILED, OK, AsJson, console, print_json, print_record, print_records
from engines.client import AsyncEngines, Move

COLUMNS: Final = ("move_id", "resource_kind", "source_backend_id", "target_backend_id", "phase", "updated_at")
WATCH_S: Final = 0.25

app = App(name="moves", help="Kinds of a tenant on their way to another backend.")


async def move(
    *,
    kind: str,
    to: str,
    retire: bool = False,
    dry_run: bool = False,
    detach: bool = False,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> int:
    """Move everything of a kind to another backend, while it is used, and watch it.

    Ctrl-C ends the watching alone; `engines moves watch` takes it up again. Fails where it does not arrive.

    Parameters
    ----------
    kind
        Such as notes_store or event_spine.
    to
        A backend that is offered to the tenant.
    retire
        Remove what is left behind, once nobody reads it any more.
    dry_run
        Only say what would be moved.
    detach
        Begin, and do not watch.
    """
    async with connection.client() as client:
        if dry_run:
            print_record(await client.moves.plan(kind, to), as_json=as_json)
            return OK
        begun = await client.moves.start(kind, to, retire=retire)
        if detach:
            print_record(begun, as_json=as_json)
            return OK
        return await _watch(client, begun.move_id, as_json=as_json)


@app.command(name="list")
async def list_(*, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """The tenant's moves."""
    async with connection.client() as client:
        moves = [one async for one in client.moves.each()]
    print_records(moves, COLUMNS, as_json=as_json, empty="Nothing was ever moved.")


@app.command
async def show(move_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """One move, and how far it has come."""
    async with connection.client() as client:
        print_record(await client.moves.get(move_id), as_json=as_json)


@app.command
async def watch(move_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> int:
    """Watch a move until it has ended."""
    async with connection.client() as client:
        return await _watch(client, move_id, as_json=as_json)


@app.command
async def cancel(move_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> int:
    """Take a move back. Possible until readers have changed sides; then move the kind once more."""
    async with connection.client() as client:
        await client.moves.cancel(move_id)
        return await _watch(client, move_id, as_json=as_json, wanted="cancelled")


@app.command
async def retire(move_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> int:
    """Remove for ever what a move that is done left behind."""
    async with connection.client() as client:
        await client.moves.retire(move_id)
        return await _watch(client, move_id, as_json=as_json, wanted="retired")


async def _watch(client: AsyncEngines, move_id: str, *, as_json: bool, wanted: str | None = None) -> int:
    """Show each change on standard error, and the end on standard output."""
    shown = ""
    while not (present := await client.moves.get(move_id)).ended:
        line = _line(present)
        if line != shown:
            print(line, file=sys.stderr, flush=True)
            shown = line
        await asyncio.sleep(WATCH_S)
    if as_json:
        print_json(present)
    else:
        console().print(_line(present))
        if present.reason and present.phase == "cancelled":
            console().print(f"The move was taken back: {present.reason}")
    arrived = present.phase == wanted if wanted else present.phase in ("done", "retired")
    return OK if arrived else FAILED


def _line(present: Move) -> str:
    """One state of a move in words."""
    progress = present.progress
    parts = [f"{present.phase}: {progress.documents} documents, {progress.bytes / 1_000_000:.1f} MB"]
    # Who retires waits for readers and removes; nothing is copied any more.
    if present.phase not in ("retire", "retired"):
        parts.append(f"{progress.documents_per_s:.0f} a second")
    if present.phase == "copy" and progress.partitions:
        parts.append(f"{progress.partitions_done} of {progress.partitions} partitions")
    if progress.lag and not present.ended:
        parts.append(f"{progress.lag} changes behind")
    if progress.estimated_end is not None and not present.ended:
        parts.append(f"about done at {progress.estimated_end}")
    if progress.pause_ms is not None:
        parts.append(f"changes waited {progress.pause_ms:.0f} ms")
    if progress.error is not None and not present.ended:
        parts.append(progress.error)
    return ", ".join(parts)
