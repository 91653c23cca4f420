"""What may be written as a backend or a route, and by whom."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engines.control.records import Backend
from engines.control.store import PARTITION
from engines.core.keys import join
from engines.core.outbox import WAITING_MAX
from engines.core.records import ANYTHING, Condition
from engines.errors import (
    Conflict,
    ContextMismatch,
    Forbidden,
    ForbiddenBackendClass,
    Invalid,
    MissingRoute,
    PreconditionFailed,
    PreconditionRequired,
    Reserved,
    Throttled,
)
from engines.ports.documents import ABSENT, OPS_MAX, SCAN_LIMIT_MAX, Put
from engines.routing.diagnostics import probe
from engines.scope import RouteScope
from tests.contexts import ADMIN, context
from tests.routing.conftest import NewProcess, Process, sqlite_backend

NEW = Condition(absent=True)
ANY = Condition(versions=("*",))


async def put(
    process: Process,
    who: object,
    *,
    kind: str = "notes_store",
    backend_id: str = "lab",
    scope: RouteScope | None = None,
    options: dict[str, object] | None = None,
    condition: Condition = NEW,
) -> None:
    await process.routes.put(
        who,  # type: ignore[arg-type]
        kind,
        backend_id,
        scope=scope or RouteScope(),
        options=options or {},
        condition=condition,
    )


def batched(keys: list[str]) -> Iterator[list[str]]:
    """As many at once as one write takes."""
    return (keys[start : start + OPS_MAX] for start in range(0, len(keys), OPS_MAX))


async def test_a_route_needs_a_condition(new_process: NewProcess) -> None:
    process = await new_process()
    with pytest.raises(PreconditionRequired):
        await put(process, context(), condition=ANYTHING)
    await put(process, context())
    with pytest.raises(PreconditionFailed):
        await put(process, context())
    with pytest.raises(PreconditionRequired):
        await process.routes.delete(context(), "notes_store", RouteScope(), condition=ANYTHING)


async def test_an_owner_routes_only_to_what_is_offered(new_process: NewProcess, tmp_path: Path) -> None:
    process = await new_process()
    await process.records.put(ADMIN, sqlite_backend("theirs", tmp_path, ("t_b",)), condition=NEW)
    for backend_id in ("theirs", "control", "no-such-backend"):
        with pytest.raises(Invalid) as caught:
            await put(process, context(), backend_id=backend_id)
        assert caught.value.detail == "no backend of this id is offered to you"
    await put(process, context("t_b"), backend_id="theirs")


async def test_a_backend_in_use_is_neither_deleted_nor_withdrawn(
    new_process: NewProcess, tmp_path: Path
) -> None:
    process = await new_process()
    await process.records.put(ADMIN, sqlite_backend("b1", tmp_path), condition=NEW)
    await put(process, context(), backend_id="b1")
    with pytest.raises(Conflict):
        await process.records.delete(ADMIN, "b1", condition=ANY)
    with pytest.raises(Conflict):
        await process.records.put(ADMIN, sqlite_backend("b1", tmp_path, ("t_b",)), condition=ANY)
    await process.routes.delete(context(), "notes_store", RouteScope(), condition=ANY)
    await process.records.put(ADMIN, sqlite_backend("b1", tmp_path, ("t_b",)), condition=ANY)
    await process.records.delete(ADMIN, "b1", condition=ANY)


async def test_a_route_of_any_owner_keeps_a_backend_from_being_withdrawn(
    new_process: NewProcess, tmp_path: Path
) -> None:
    """However many routes of others lead there: more than one scan of the waist gives."""
    process = await new_process()
    documents = process.control.documents
    await process.records.put(ADMIN, sqlite_backend("b1", tmp_path), condition=NEW)
    keys = [join("i", "routed", "b1", "t_a", "notes_store", "-", "-", f"e{n}") for n in range(SCAN_LIMIT_MAX)]
    for part in batched(keys):
        await documents.write(PARTITION, [Put(key, '"t_a"', ABSENT) for key in part])
    await put(process, context("t_b"), backend_id="b1")
    with pytest.raises(Conflict, match="t_b"):
        await process.records.put(ADMIN, sqlite_backend("b1", tmp_path, ("t_a",)), condition=ANY)


async def test_a_spine_for_which_too_many_messages_wait_can_be_given_another_route(
    new_process: NewProcess,
) -> None:
    process = await new_process()
    documents = process.control.documents
    waiting = [join("o", "t_a", "test", f"{number:010d}") for number in range(WAITING_MAX)]
    for part in batched(waiting):
        await documents.write(PARTITION, [Put(key, "{}", ABSENT) for key in part])
    with pytest.raises(Throttled):
        await put(process, context())
    await put(process, context(), kind="event_spine")


async def test_only_those_who_may_write_backends_and_defaults_do(
    new_process: NewProcess, tmp_path: Path
) -> None:
    process = await new_process()
    member = context(permissions=frozenset({"routes.read"}), roles=("member",))
    with pytest.raises(Forbidden):
        await process.records.put(context(), sqlite_backend("b1", tmp_path), condition=NEW)
    with pytest.raises(Forbidden):
        await put(process, member)
    with pytest.raises(Forbidden):
        await put(process, context("t_system", roles=("member",)))
    await put(process, msgspec.structs.replace(ADMIN, acting_on="t_a"))


async def test_a_scope_names_at_most_one_level_and_only_what_is_there(new_process: NewProcess) -> None:
    process = await new_process()
    for who, scope, expected in (
        (context(), RouteScope(app_id="app1", surface_id="chat"), Invalid),
        (context(), RouteScope(mode="lab"), Invalid),
        (ADMIN, RouteScope(project_id="p1"), Invalid),
        (context(), RouteScope(surface_id="nowhere"), Invalid),
        (context(), RouteScope(app_id="nope"), Invalid),
        (ADMIN, RouteScope(mode="nope"), Invalid),
        (context(), RouteScope(project_id="p2"), ContextMismatch),
        (context(), RouteScope(project_id="none"), ContextMismatch),
        (context(), RouteScope(env="staging"), ContextMismatch),
    ):
        with pytest.raises(expected):
            await put(process, who, scope=scope)


async def test_kinds_are_known_by_name_or_alias_and_reserved_ones_stay_so(new_process: NewProcess) -> None:
    process = await new_process()
    await put(process, context(), kind="maybes")
    assert (await process.routes.resolve(context(), "notes_store")).route.tenant_id == "t_a"
    with pytest.raises(Invalid):
        await put(process, context(), kind="no_such_kind")
    with pytest.raises(Reserved):
        await put(process, context(), kind="pii_vault")


async def test_options_are_those_of_the_kind_within_their_bounds(new_process: NewProcess) -> None:
    process = await new_process()
    wrong: list[dict[str, object]] = [
        {"anything": 1},
        {"versions_kept": 0},
        {"versions_kept": "5"},
        {"versions_kept": True},
    ]
    for options in wrong:
        with pytest.raises(Invalid):
            await put(process, context(), kind="blackboard_store", options=options)
    await put(process, context(), kind="blackboard_store", options={"versions_kept": 5})
    assert (await process.router.place("blackboard_store", context())).options == {"versions_kept": 5}


async def test_a_forbidden_class_is_refused_when_written(new_process: NewProcess) -> None:
    process = await new_process()
    with pytest.raises(ForbiddenBackendClass):
        await put(process, ADMIN, scope=RouteScope(mode="saas"))


async def test_a_backend_record_holds_no_secret_and_only_what_its_driver_reads(
    new_process: NewProcess, tmp_path: Path
) -> None:
    process = await new_process()
    path = {"path": str(tmp_path / "x.db")}
    wrong = [
        Backend(backend_id="b", driver="nope", backend_class="server"),
        Backend(backend_id="b", driver="sqlite", backend_class="server", config=path),
        Backend(backend_id="b", driver="sqlite", backend_class="host_local", config={}),
        Backend(backend_id="b", driver="sqlite", backend_class="host_local", config={**path, "more": 1}),
        Backend(
            backend_id="b",
            driver="sqlite",
            backend_class="host_local",
            config=path,
            secrets={"password": "env:A"},
        ),
        Backend(backend_id="b", driver="postgres", backend_class="server", config={"password": "open"}),
        Backend(
            backend_id="b",
            driver="postgres",
            backend_class="server",
            config={"host": "h", "database": "d", "user": "u"},
            secrets={"password": "the password itself"},
        ),
    ]
    for backend in wrong:
        with pytest.raises(Invalid):
            await process.records.put(ADMIN, backend, condition=NEW)


async def test_the_control_planes_own_routes_and_backend_stay(new_process: NewProcess) -> None:
    process = await new_process()
    for kind in ("control_plane_store", "routing_registry_store"):
        with pytest.raises(Forbidden):
            await process.routes.delete(ADMIN, kind, RouteScope(), condition=ANY)
        with pytest.raises(Invalid):
            await put(process, ADMIN, kind=kind, condition=ANY)
    control = await process.records.get(ADMIN, "control")
    with pytest.raises(Forbidden):
        await process.records.put(ADMIN, control.record, condition=ANY)


async def test_without_a_spine_only_the_route_that_mends_it_can_be_written(new_process: NewProcess) -> None:
    process = await new_process()
    await process.routes.delete(ADMIN, "event_spine", RouteScope(), condition=ANY)
    with pytest.raises(MissingRoute):
        await put(process, context())
    await put(process, context(), kind="event_spine")
    await put(process, context())


async def test_history_shows_every_version_and_the_deletion(new_process: NewProcess) -> None:
    process = await new_process()
    await put(process, context())
    await process.routes.delete(context(), "notes_store", RouteScope(), condition=ANY)
    await put(process, context())
    history = await process.routes.history(context(), "notes_store", RouteScope())
    assert [(item.version, item.deleted) for item in history.items] == [(1, False), (2, True), (3, False)]


async def test_a_probe_says_what_is_wrong_and_leaves_nothing(new_process: NewProcess, tmp_path: Path) -> None:
    process = await new_process()
    found = await probe(process.backends, sqlite_backend("lab", tmp_path))
    assert found.ok
    broken = await probe(process.backends, sqlite_backend("broken", tmp_path / "missing"))
    assert (broken.ok, broken.error) == (False, "BackendRefused")
    documents = (await process.backends.open(sqlite_backend("lab", tmp_path))).documents
    assert (await documents.scan("probe.t_system.global.0", above="a", below="z")).docs == ()


async def test_a_spine_whose_backend_cannot_be_opened_does_not_keep_it_from_being_mended(
    new_process: NewProcess, tmp_path: Path
) -> None:
    process = await new_process()
    await process.records.put(ADMIN, sqlite_backend("broken", tmp_path / "missing"), condition=NEW)
    await put(process, context(), kind="event_spine", backend_id="broken")
    await put(process, context())
    await process.routes.delete(context(), "event_spine", RouteScope(), condition=ANY)
