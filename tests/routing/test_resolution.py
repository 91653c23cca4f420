"""Resolution: which route wins, and what happens where none does."""

import asyncio
import threading
from pathlib import Path

import pytest

from engines.clock import SystemClock
from engines.control.directory import AGE_MAX_S
from engines.control.records import Backend
from engines.control.store import PARTITION
from engines.core.records import Condition
from engines.errors import BackendRefused, ForbiddenBackendClass, MissingRoute, Unavailable
from engines.ports.documents import ABSENT, Put
from engines.routing import diagnostics
from engines.routing.backends import PROBE_TIMEOUT_S, Backends
from engines.routing.router import Where, where
from engines.scope import RouteScope
from engines.testing.clock import ManualClock
from tests.contexts import ADMIN, context
from tests.routing.conftest import NewProcess, Process, sqlite_backend

NEW = Condition(absent=True)
ANY = Condition(versions=("*",))
# How soon is told by tests/control/test_directory.py.
PATIENCE_S = 30.0


async def add_backend(process: Process, backend: Backend) -> None:
    await process.records.put(ADMIN, backend, condition=NEW)


async def route(process: Process, who: object, backend_id: str, **scope: str) -> None:
    await process.routes.put(
        who,  # type: ignore[arg-type]
        "notes_store",
        backend_id,
        scope=RouteScope(**scope),
        options={},
        condition=NEW,
    )


async def test_the_tenants_own_most_specific_route_wins_then_t_systems(
    new_process: NewProcess, tmp_path: Path
) -> None:
    process = await new_process()
    owner = context()
    # From the least specific to the most: each new one wins over all before it.
    steps: list[tuple[object, dict[str, str]]] = [
        (ADMIN, {"env": "dev"}),
        (ADMIN, {"mode": "lab"}),
        (ADMIN, {"mode": "lab", "env": "dev"}),
        (ADMIN, {"surface_id": "chat"}),
        (ADMIN, {"surface_id": "chat", "env": "dev"}),
        (ADMIN, {"app_id": "app1"}),
        (ADMIN, {"app_id": "app1", "env": "dev"}),
        (owner, {}),
        (owner, {"env": "dev"}),
        (owner, {"surface_id": "chat"}),
        (owner, {"surface_id": "chat", "env": "dev"}),
        (owner, {"app_id": "app1"}),
        (owner, {"app_id": "app1", "env": "dev"}),
        (owner, {"project_id": "p1"}),
        (owner, {"project_id": "p1", "env": "dev"}),
    ]
    asked = Where(tenant_id="t_a", mode="lab", env="dev", surface_id="chat", app_id="app1", project_id="p1")
    resolution = await process.router.resolve("notes_store", asked)
    assert resolution.route.backend_id == "lab"
    for number, (who, scope) in enumerate(steps):
        await add_backend(process, sqlite_backend(f"b{number}", tmp_path))
        await route(process, who, f"b{number}", **scope)
        resolution = await process.router.resolve("notes_store", asked)
        assert resolution.route.backend_id == f"b{number}", (scope, resolution)
    assert [look.found for look in resolution.looked_at] == [True]
    other = Where(tenant_id="t_b", mode="lab", env="prod", surface_id="canvas")
    assert (await process.router.resolve("notes_store", other)).route.backend_id == "b1"


async def test_no_route_is_missing_and_says_where_it_looked_and_how_to_add_one(
    new_process: NewProcess,
) -> None:
    process = await new_process()
    await process.routes.delete(ADMIN, "notes_store", RouteScope(), condition=ANY)
    with pytest.raises(MissingRoute) as caught:
        await process.router.place("notes_store", context())
    assert caught.value.resource_kind == "notes_store"
    assert caught.value.scope is not None
    assert caught.value.scope["tenant_id"] == "t_a"
    assert "t_a default" in caught.value.detail
    assert "t_system mode=lab" in caught.value.detail
    assert "engines routes put notes_store --tenant t_a" in caught.value.detail


async def test_a_deleted_default_is_not_put_back_by_the_next_start(new_process: NewProcess) -> None:
    process = await new_process()
    await process.routes.delete(ADMIN, "notes_store", RouteScope(), condition=ANY)
    again = await new_process()
    with pytest.raises(MissingRoute):
        await again.router.place("notes_store", context())


async def test_without_a_spine_route_no_change_may_be_made_and_reads_go_on(new_process: NewProcess) -> None:
    process = await new_process()
    await process.routes.delete(ADMIN, "event_spine", RouteScope(), condition=ANY)
    await process.router.place("notes_store", context())
    with pytest.raises(MissingRoute) as caught:
        await process.router.place_for_change("notes_store", context())
    assert caught.value.resource_kind == "event_spine"


async def test_a_tenant_switches_from_one_backend_to_another_without_a_code_change(
    new_process: NewProcess, tmp_path: Path
) -> None:
    process = await new_process()
    before = await process.router.place("notes_store", context())
    partition = await before.partition("u1")
    await before.documents.write(partition, [Put("n!u1!a", '"before"', ABSENT)])
    await add_backend(process, sqlite_backend("other", tmp_path))
    await route(process, context(), "other")
    after = await process.router.place("notes_store", context())
    assert (before.backend_id, after.backend_id) == ("lab", "other")
    assert await after.documents.get(await after.partition("u1"), "n!u1!a") is None
    await process.routes.delete(context(), "notes_store", RouteScope(), condition=ANY)
    back = await process.router.place("notes_store", context())
    doc = await back.documents.get(partition, "n!u1!a")
    assert doc is not None
    assert (await process.router.place("notes_store", context("t_b"))).backend_id == "lab"


async def test_every_process_adopts_a_switch(new_process: NewProcess, tmp_path: Path) -> None:
    writer = await new_process()
    readers = [await new_process() for _ in range(3)]
    following = [asyncio.create_task(reader.directory.follow()) for reader in readers]
    for reader in readers:
        assert (await reader.router.place("notes_store", context())).backend_id == "lab"
    await add_backend(writer, sqlite_backend("other", tmp_path))
    await route(writer, context(), "other")
    async with asyncio.timeout(PATIENCE_S):
        for reader in readers:
            while (await reader.router.place("notes_store", context())).backend_id != "other":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    for task in following:
        task.cancel()


async def test_a_process_that_does_not_hear_from_the_control_plane_refuses_to_guess(
    new_process: NewProcess,
) -> None:
    clock = ManualClock()
    process = await new_process(clock)
    await process.router.place("notes_store", context())
    clock.advance(AGE_MAX_S + 0.1)
    with pytest.raises(Unavailable):
        await process.router.place("notes_store", context())
    await process.directory.refresh()
    await process.router.place("notes_store", context())


async def test_a_class_that_the_mode_no_longer_allows_is_forbidden_when_resolved(
    new_process: NewProcess,
) -> None:
    process = await new_process()
    with pytest.raises(ForbiddenBackendClass) as caught:
        await process.router.place("notes_store", context(mode="saas"))
    assert caught.value.scope == {"mode": "saas"}


async def test_the_report_names_each_state(new_process: NewProcess, tmp_path: Path) -> None:
    process = await new_process()
    await add_backend(process, sqlite_backend("nowhere", tmp_path / "missing"))
    await route(process, context(), "nowhere")
    await process.routes.delete(ADMIN, "memory_store", RouteScope(), condition=ANY)
    at = where(context())
    states = {report.resource_kind: report.state for report in await process.diagnostics.report(at)}
    assert states["notes_store"] == "unreachable"
    assert states["memory_store"] == "missing"
    assert states["event_spine"] == "ready"
    forbidden = where(context(mode="enterprise"))
    states = {report.resource_kind: report.state for report in await process.diagnostics.report(forbidden)}
    assert states["event_spine"] == "forbidden"


async def test_backends_are_asked_at_once_and_one_that_is_silent_holds_up_no_other(
    new_process: NewProcess,
) -> None:
    process = await new_process()
    arrived: asyncio.Queue[None] = asyncio.Queue()
    released = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.put_nowait(None)
        await released.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for name, kind in (("silent1", "notes_store"), ("silent2", "memory_store")):
            config = {"host": "127.0.0.1", "port": port, "user": "u", "database": name}
            silent = Backend(
                backend_id=name, driver="postgres", backend_class="server", config=config, offered_to="*"
            )
            await add_backend(process, silent)
            await process.routes.put(context(), kind, name, scope=RouteScope(), options={}, condition=NEW)
        reporting = asyncio.create_task(process.diagnostics.report(where(context())))
        async with asyncio.timeout(4):  # A connection is given up after five seconds.
            for _ in range(2):
                await arrived.get()
        released.set()
        states = {report.resource_kind: report.state for report in await reporting}
    assert [states[kind] for kind in ("notes_store", "memory_store", "event_spine")] == [
        "unreachable",
        "unreachable",
        "ready",
    ]


async def test_asking_in_a_loop_probes_each_backend_once_in_a_while(
    new_process: NewProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    probed: list[str] = []

    async def counted(backends: Backends, record: Backend) -> diagnostics.Probe:
        probed.append(record.backend_id)
        return await probe(backends, record)

    probe = diagnostics.probe
    monkeypatch.setattr(diagnostics, "probe", counted)
    clock = ManualClock()
    process = await new_process(clock)
    at = where(context())
    await asyncio.gather(*(process.diagnostics.report(at) for _ in range(5)))
    assert sorted(probed) == ["control", "lab"]
    clock.advance(diagnostics.FINDING_S)
    await process.directory.refresh()
    await process.diagnostics.report(at)
    assert sorted(probed) == ["control", "control", "lab", "lab"]
    changed = sqlite_backend("lab", tmp_path / "missing")
    await process.records.put(ADMIN, changed, condition=ANY)
    states = {report.resource_kind: report.state for report in await process.diagnostics.report(at)}
    assert states["notes_store"] == "unreachable"
    assert len(probed) == 5


async def test_a_changed_backend_is_opened_anew_and_calls_on_the_old_one_end_well(
    new_process: NewProcess, tmp_path: Path
) -> None:
    process = await new_process()
    await add_backend(process, sqlite_backend("one", tmp_path))
    await route(process, context(), "one")
    old = await process.router.place("notes_store", context())
    moved = Backend(
        backend_id="one",
        driver="sqlite",
        backend_class="host_local",
        config={"path": str(tmp_path / "elsewhere.db")},
        offered_to="*",
    )
    await process.records.put(ADMIN, moved, condition=ANY)
    new = await process.router.place("notes_store", context())
    assert new.documents is not old.documents
    await old.documents.write(await old.partition("u1"), [Put("n!u1!late", "1", ABSENT)])


def drivers_since(before: set[threading.Thread]) -> list[str]:
    """The writers of SQLite drivers that were opened and not closed."""
    return [thread.name for thread in set(threading.enumerate()) - before if thread.name == "sqlite-writer"]


async def test_a_record_changed_while_its_backend_was_opened_leaves_no_driver_behind(
    new_process: NewProcess, tmp_path: Path
) -> None:
    process = await new_process()
    before = set(threading.enumerate())
    first, second = sqlite_backend("one", tmp_path), sqlite_backend("one", tmp_path / "..")
    opened = await asyncio.gather(process.backends.open(first), process.backends.open(second))
    assert opened[0].documents is not opened[1].documents
    assert len(drivers_since(before)) == 2
    await process.backends.close()
    assert drivers_since(before) == []


async def test_what_expired_is_removed_from_the_control_plane_too(new_process: NewProcess) -> None:
    """The markers of its own requests expire there, whether or not any store's data lies there."""
    process = await new_process()
    documents = process.control.documents
    await documents.write(PARTITION, [Put("k!lapsed", "1", ABSENT, expires_at=1)])
    await process.backends.reclaim_once()
    assert await documents.reclaim(1) == 0


async def test_resolving_what_was_seen_before_reads_nothing(new_process: NewProcess) -> None:
    process = await new_process(SystemClock())
    first = await process.router.place_for_change("notes_store", context())
    await process.control.documents.close()
    assert await process.router.place_for_change("notes_store", context()) is first


async def test_a_backend_that_hangs_costs_its_callers_one_time_limit_and_others_nothing(
    new_process: NewProcess, tmp_path: Path
) -> None:
    process = await new_process()
    accepted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    config = {"host": "127.0.0.1", "port": port, "database": "d", "user": "u"}
    hanging = Backend(
        backend_id="hanging", driver="postgres", backend_class="server", config=config, offered_to="*"
    )
    await add_backend(process, hanging)
    await add_backend(process, sqlite_backend("other", tmp_path))
    await route(process, context(), "hanging")
    await route(process, context("t_b"), "other")
    began = asyncio.get_running_loop().time()
    stuck = [asyncio.create_task(process.router.place("notes_store", context())) for _ in range(20)]
    while not accepted:  # noqa: ASYNC110 (the listener has no event to wait for)
        await asyncio.sleep(0.01)
    assert (await process.router.place("notes_store", context("t_b"))).backend_id == "other"
    assert not any(task.done() for task in stuck)
    outcomes = await asyncio.gather(*stuck, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {Unavailable, BackendRefused}
    assert asyncio.get_running_loop().time() - began < 2 * PROBE_TIMEOUT_S
    for writer in accepted:
        writer.close()
    silent.close()
