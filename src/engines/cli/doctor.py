"""`engines doctor`: whether every required kind can be used, found out by using it.

Owns the examination and its report: the server's health, who the caller is, and for each kind its route, a
write, reading it back, after a kill -9 too where the doctor may do that, and removing it. Leaves what is
written to `cli/probes.py`. A lab's directory that nobody serves is served by the doctor itself, and killed
half-way; a running server is never touched.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from yarl import URL

from engines.cli.connection import DEFAULT, Connection, read_lab
from engines.cli.output import FAILED, OK, AsJson, console, print_json, print_table
from engines.cli.probes import NAME, PROBES, Probe
from engines.cli.server_process import LabServer, lab_server
from engines.client import NO_RETRY, AsyncEngines, KindState, Me, RetryPolicy
from engines.clock import SystemClock
from engines.errors import EnginesError, Unavailable
from engines.ids import Ids

DEADLINE_S: Final = 20.0
READY: Final = "ready"
RESERVED: Final = "reserved"
PASSED: Final = "ok"
BROKEN: Final = "failed"
NOT_RUN: Final = "not run"
KEPT: Final = "kept"
READ_ONLY: Final = "read only"
NO_RESTART: Final = "a running server is not the doctor's to kill; --lab DIR on a stopped lab shows it"


class KindReport(msgspec.Struct, kw_only=True):
    """One kind: its route's state, what became of each step, and as `detail` what went wrong first."""

    resource_kind: str
    route: str
    backend_id: str | None = None
    write: str = NOT_RUN
    read: str = NOT_RUN
    restart: str = NOT_RUN
    delete: str = NOT_RUN
    ok: bool = False
    detail: str | None = None

    def judge(self) -> None:
        """Set `ok`: the route is ready and no step went wrong."""
        self.ok = self.route == READY and BROKEN not in (self.write, self.read, self.restart, self.delete)


class Report(msgspec.Struct, kw_only=True):
    """The whole examination."""

    url: str
    ok: bool
    lab: bool
    tenant_id: str
    user_id: str
    roles: tuple[str, ...]
    restarted: bool
    kinds: list[KindReport]


async def doctor(*, connection: Connection = DEFAULT, as_json: AsJson = False) -> int:
    """Write, read back and delete on every required kind, and report.

    With --lab DIR, where nobody serves DIR: starts the lab, writes, kills it with SIGKILL, starts it again
    and reads what was written. It leaves one small record each on logs and the blackboard, which keep
    everything.
    """
    if connection.lab is not None and not await _is_served(connection.lab):
        report = await _examine_stopped_lab(connection, connection.lab)
    else:
        report = await _examine(connection)
    if as_json:
        print_json(report)
    else:
        _print(report)
    return OK if report.ok else FAILED


async def _is_served(directory: Path) -> bool:
    async with AsyncEngines(read_lab(directory).url, retry=NO_RETRY) as client:
        try:
            await client.diagnostics.live()
        except Unavailable:
            return False
        return True


async def _examine(connection: Connection) -> Report:
    async with _client(connection) as client:
        me, kinds, mark = await _begin(client)
        await _write_and_read(client, kinds, mark)
        await _each(client, kinds, mark, "delete", _delete)
    return _report(client.url, me, kinds, restarted=False)


async def _examine_stopped_lab(connection: Connection, directory: Path) -> Report:
    port = URL(read_lab(directory).url).port or 0
    async with lab_server(directory, port) as server:
        # Read again for each start: a lab writes fresh tokens.
        async with _client(connection) as client:
            me, kinds, mark = await _begin(client)
            await _write_and_read(client, kinds, mark)
        first = server.process_id
        await _restart(server)
        async with _client(connection) as client:
            await client.diagnostics.ready()
            await _each(client, kinds, mark, "restart", _read)
            await _each(client, kinds, mark, "delete", _delete)
        restarted = server.process_id != first
    return _report(client.url, me, kinds, restarted=restarted)


async def _restart(server: LabServer) -> None:
    await server.kill()
    await server.start()


def _client(connection: Connection) -> AsyncEngines:
    return connection.client(retry=RetryPolicy(deadline_s=DEADLINE_S))


async def _begin(client: AsyncEngines) -> tuple[Me, list[KindReport], str]:
    await client.diagnostics.live()
    await client.diagnostics.ready()
    me = await client.me()
    states = await client.diagnostics.routes()
    # What is reserved cannot be used, and nothing requires it.
    kinds = [_begun(state) for state in states if state.state != RESERVED]
    mark = str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:{NAME}:{Ids(SystemClock()).record_id()}"))
    return me, kinds, mark


def _begun(state: KindState) -> KindReport:
    return KindReport(
        resource_kind=state.resource_kind,
        route=state.state,
        backend_id=state.backend_id,
        detail=state.detail,
    )


Step = Callable[[Probe, AsyncEngines, str], Awaitable[str]]


async def _write(probe: Probe, client: AsyncEngines, mark: str) -> str:
    await probe.write(client, mark)
    return READ_ONLY if probe.reads_only else PASSED


async def _read(probe: Probe, client: AsyncEngines, mark: str) -> str:
    await probe.read(client, mark)
    return PASSED


async def _delete(probe: Probe, client: AsyncEngines, mark: str) -> str:
    await probe.delete(client, mark)
    if probe.reads_only:
        return READ_ONLY
    return KEPT if probe.leaves else PASSED


async def _write_and_read(client: AsyncEngines, kinds: Sequence[KindReport], mark: str) -> None:
    await _each(client, kinds, mark, "write", _write)
    await _each(client, kinds, mark, "read", _read)


async def _each(client: AsyncEngines, kinds: Sequence[KindReport], mark: str, name: str, step: Step) -> None:
    """One step on every kind that has a probe and was written.

    What goes wrong is the kind's, not the doctor's.
    """
    for kind in kinds:
        probe = PROBES.get(kind.resource_kind)
        if probe is None or (name != "write" and kind.write in (NOT_RUN, BROKEN)):
            continue
        try:
            outcome = await step(probe, client, mark)
        except EnginesError as error:
            outcome = BROKEN
            kind.detail = kind.detail or f"{name}: {error.code}: {error.detail}"
        setattr(kind, name, outcome)


def _report(url: str, me: Me, kinds: list[KindReport], *, restarted: bool) -> Report:
    for kind in kinds:
        kind.judge()
    return Report(
        url=url,
        ok=bool(kinds) and all(kind.ok for kind in kinds),
        lab=me.lab,
        tenant_id=me.tenant_id,
        user_id=me.user_id,
        roles=me.roles,
        restarted=restarted,
        kinds=kinds,
    )


def _print(report: Report) -> None:
    out = console()
    label = " (lab: host-local storage)" if report.lab else ""
    roles = ", ".join(report.roles)
    out.print(f"{report.url} is ready{label}; you are {report.user_id} in {report.tenant_id} ({roles}).\n")
    columns = ("kind", "route", "backend", "write", "read", "after kill -9", "delete", "detail")
    rows = [
        [
            kind.resource_kind,
            kind.route,
            kind.backend_id or "",
            kind.write,
            kind.read,
            kind.restart,
            kind.delete,
            kind.detail or "",
        ]
        for kind in report.kinds
    ]
    print_table(columns, rows)
    if not report.restarted:
        out.print(f"\nRestart not run: {NO_RESTART}.")
    out.print("\nEvery required kind can be used." if report.ok else "\nNot every required kind can be used.")
