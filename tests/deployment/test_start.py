"""What must stand before a process serves, and what it says it is."""

from pathlib import Path

import pytest

import engines
from engines.control.bootstrap import bootstrap
from engines.control.records import Mode, Role
from engines.control.store import Actor, ControlStore
from engines.control.tables import MODES, ROLES, ROUTES, TENANTS, route_ids
from engines.core.records import Condition
from engines.errors import Forbidden, ForbiddenBackendClass, Invalid, MissingRoute, NotFound
from engines.scope import RouteScope
from engines.wiring import open_control_plane
from tests.deployment.conftest import Open, token

ACTOR = Actor(user_id="u", tenant_id="t_system", request_id="r", tenants=("t_system",))


async def delete_default(store: ControlStore, kind: str) -> None:
    await store.delete(ROUTES, route_ids("t_system", kind, RouteScope()), actor=ACTOR)


async def starts(url: str) -> bool:
    async with engines.open(url):
        return True


async def test_a_database_that_is_no_control_plane_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="engines init"):
        await starts(f"sqlite://{tmp_path}/empty.db")


async def test_a_url_of_no_known_scheme_is_refused() -> None:
    for url in ("mysql://x/y", "control.db", "sqlite://relative.db", ""):
        with pytest.raises(Invalid):
            await starts(url)


async def test_outside_a_lab_a_required_kind_without_a_default_refuses_the_start(
    postgres_database: str,
) -> None:
    async with open_control_plane(postgres_database) as control:
        await bootstrap(control.store, control.record, host_local=False)
        assert await starts(postgres_database)
        await delete_default(control.store, "notes_store")
        with pytest.raises(MissingRoute) as caught:
            await starts(postgres_database)
        assert caught.value.resource_kind == "notes_store"
        await bootstrap(control.store, control.record, host_local=False)
        with pytest.raises(MissingRoute):
            await starts(postgres_database)


async def test_an_older_deployment_gains_what_roles_may_do_since_and_keeps_what_it_has(
    postgres_database: str,
) -> None:
    async with open_control_plane(postgres_database) as control:
        await bootstrap(control.store, control.record, host_local=False)

        async def older(_: Role | None) -> Role:
            return Role(role="viewer", permissions=("events.read", "of_its_own"))

        await control.store.put(ROLES, ["viewer"], older, actor=ACTOR)
        await bootstrap(control.store, control.record, host_local=False)
        permissions = (await control.store.get(ROLES, "viewer")).record.permissions
        assert permissions[:2] == ("events.read", "of_its_own")
        assert {"definitions.read", "notes.read"} <= set(permissions)
        version = (await control.store.get(ROLES, "viewer")).version
        await bootstrap(control.store, control.record, host_local=False)
        assert (await control.store.get(ROLES, "viewer")).version == version


async def test_admins_of_an_older_deployment_go_on_defining_kpis_and_its_members_do_not(
    control_plane_url: str,
) -> None:
    async with open_control_plane(control_plane_url) as control:
        await bootstrap(control.store, control.record, host_local=control.host_local)
        for role in ("owner", "admin", "member", "agent"):
            stored = (await control.store.get(ROLES, role)).record.permissions
            known = tuple(name for name in stored if name != "kpis.define")

            async def older(_: Role | None, role: str = role, known: tuple[str, ...] = known) -> Role:
                return Role(role=role, permissions=known)

            await control.store.put(ROLES, [role], older, actor=ACTOR)
        await bootstrap(control.store, control.record, host_local=control.host_local)
        may = {
            role: "kpis.define" in (await control.store.get(ROLES, role)).record.permissions
            for role in ("owner", "admin", "member", "agent")
        }
        assert may == {"owner": True, "admin": True, "member": False, "agent": False}


async def test_a_kind_that_every_mode_marks_optional_or_per_tenant_is_not_required(
    postgres_database: str,
) -> None:
    async with open_control_plane(postgres_database) as control:
        await bootstrap(control.store, control.record, host_local=False)
        await delete_default(control.store, "notes_store")
        for mode in (
            Mode(mode="saas", allowed_classes=("server",), optional_kinds=("notes_store",)),
            Mode(mode="enterprise", allowed_classes=("server",), per_tenant_kinds=("notes_store",)),
            Mode(mode="system", allowed_classes=("server",), optional_kinds=("notes_store",)),
        ):

            async def build(_: Mode | None, mode: Mode = mode) -> Mode:
                return mode

            await control.store.put(MODES, [mode.mode], build, actor=ACTOR)
        assert await starts(postgres_database)


async def test_a_default_of_a_class_that_a_mode_forbids_refuses_the_start(postgres_database: str) -> None:
    async with open_control_plane(postgres_database) as control:
        await bootstrap(control.store, control.record, host_local=False)

        async def build(_: Mode | None) -> Mode:
            return Mode(mode="enterprise", allowed_classes=("cloud",))

        await control.store.put(MODES, ["enterprise"], build, actor=ACTOR)
        with pytest.raises(ForbiddenBackendClass):
            await starts(postgres_database)


async def test_a_host_local_control_plane_makes_a_lab_and_a_server_does_not(
    open_deployment: Open, control_plane_url: str
) -> None:
    deployment = await open_deployment()
    is_lab = control_plane_url.startswith("sqlite")
    assert deployment.directory.lab is is_lab
    context = await deployment.contexts.context(token("owner"), {})
    assert context.lab is is_lab
    async with open_control_plane(control_plane_url) as control:
        system = await control.store.get(TENANTS, "t_system")
    assert system.record.mode == ("lab" if is_lab else "system")


async def test_an_owner_cannot_change_the_mode(open_deployment: Open, control_plane_url: str) -> None:
    if control_plane_url.startswith("sqlite"):
        return  # A lab refuses every other mode, whoever asks: tests/control/test_services.py.
    deployment = await open_deployment()
    owner = await deployment.contexts.context(token("owner"), {})
    admin = await deployment.contexts.context(token("admin"), {"x-tenant-id": "t_a"})
    anything = Condition(versions=("*",))
    with pytest.raises(Forbidden):
        await deployment.tenants.patch(owner, "t_a", {"mode": "enterprise"}, condition=anything)
    changed = await deployment.tenants.patch(admin, "t_a", {"mode": "enterprise"}, condition=anything)
    assert changed.record.mode == "enterprise"


async def test_an_error_inside_the_block_leaves_it_as_it_is(
    open_deployment: Open, control_plane_url: str
) -> None:
    await open_deployment()

    async def read_what_is_not_there() -> None:
        async with engines.open(control_plane_url) as deployment:
            member = await deployment.contexts.context(token("member"), {})
            await deployment.notes.get(member, "no-such-note")

    with pytest.raises(NotFound):
        await read_what_is_not_there()
