"""Who may change what in the control plane, and which references must hold."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from engines.clock import SystemClock
from engines.control.access import Issuers, Keys
from engines.control.bootstrap import bootstrap
from engines.control.directory import Directory
from engines.control.products import apps, projects, surfaces
from engines.control.records import (
    MADE_BY_MAX,
    App,
    Issuer,
    Mode,
    Project,
    Surface,
    Tenant,
    User,
    UserIdentity,
)
from engines.control.service import Service
from engines.control.store import Actor
from engines.control.subjects import DataSubjects
from engines.control.tables import KEYS, PROJECTS
from engines.control.tenants import Members, Modes, Tenants, Users
from engines.core.idempotency import identify
from engines.core.records import Condition
from engines.core.secrets import Secrets
from engines.drivers.registry import secret_sources
from engines.errors import (
    Conflict,
    ContextMismatch,
    EnginesError,
    Forbidden,
    ForbiddenBackendClass,
    Invalid,
    NotFound,
    PreconditionRequired,
)
from engines.ids import Ids
from engines.routing.backends import Backends
from engines.routing.participation import Participation
from engines.routing.router import Router
from engines.scope import RequestContext
from engines.wiring import open_control_plane
from tests.contexts import ADMIN, PERMISSIONS_OF, context

ANY = Condition(versions=("*",))
CLOCK = SystemClock()


@pytest.fixture
async def service(control_plane_url: str) -> AsyncIterator[Service]:
    """A lab with tenant t_a and its users u1 (owner) and u2 (invited)."""
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(open_control_plane(control_plane_url))
        await bootstrap(control.store, control.record, host_local=True)
        directory = Directory(control.store, CLOCK)
        await directory.refresh()
        control.store.on_change = directory.refresh
        backends = Backends(control.documents, Secrets(secret_sources()), ids=Ids(CLOCK), clock=CLOCK)
        participation = Participation(control.documents, directory, process_id="p", clock=CLOCK)
        made = Service(control.store, Router(directory, backends, participation))
        await Tenants(made).create(ADMIN, tenant("t_a"))
        for user_id in ("u1", "u2"):
            await Users(made).create(ADMIN, User(user_id=user_id))
            role = "owner" if user_id == "u1" else "member"
            await Members(made).put(ADMIN, "t_a", user_id, role)
        await Members(made).accept("u1", "t_a", request_id="r")
        yield made


def tenant(tenant_id: str, **changes: object) -> Tenant:
    made = Tenant(tenant_id=tenant_id, name="A", mode="lab", default_surface_id="chat")
    return msgspec.structs.replace(made, **changes)


def admin_of_a() -> RequestContext:
    return context(user_id="u1", roles=("admin",), permissions=PERMISSIONS_OF["admin"])


async def test_only_t_systems_admins_create_tenants_and_users(service: Service) -> None:
    for who in (context(), context("t_system", roles=("member",))):
        with pytest.raises(Forbidden):
            await Tenants(service).create(who, tenant("t_b"))
        with pytest.raises(Forbidden):
            await Users(service).create(who, User(user_id="u9"))


async def test_a_tenant_is_created_once_and_whole(service: Service) -> None:
    with pytest.raises(Conflict):
        await Tenants(service).create(ADMIN, tenant("t_a"))
    for changes, field in (
        ({"default_env": "dev"}, "default_env"),
        ({"envs": ("prod", "prod")}, "envs"),
        ({"mode": "nope"}, "mode"),
        ({"default_surface_id": "nowhere"}, "default_surface_id"),
    ):
        with pytest.raises(Invalid) as caught:
            await Tenants(service).create(ADMIN, tenant("t_b", **changes))
        assert caught.value.field == field


async def test_a_lab_takes_no_tenant_of_another_mode(service: Service) -> None:
    with pytest.raises(ForbiddenBackendClass):
        await Tenants(service).create(ADMIN, tenant("t_b", mode="saas"))
    with pytest.raises(ForbiddenBackendClass):
        await Tenants(service).patch(ADMIN, "t_a", {"mode": "saas"}, condition=ANY)


async def test_an_owner_changes_their_tenant_but_not_its_mode_or_id(service: Service) -> None:
    with pytest.raises(PreconditionRequired):
        await Tenants(service).patch(context(), "t_a", {"name": "New"}, condition=Condition())
    patched = await Tenants(service).patch(context(), "t_a", {"name": "New"}, condition=ANY)
    assert patched.record.name == "New"
    await Modes(service).put(ADMIN, Mode(mode="quiet", allowed_classes=("server",)))
    for changes in ({"mode": "quiet"}, {"tenant_id": "t_b"}, {"unknown": 1}, {"name": 5}):
        with pytest.raises((Forbidden, Invalid)):
            await Tenants(service).patch(context(), "t_a", changes, condition=ANY)
    with pytest.raises(Forbidden):
        await Tenants(service).patch(admin_of_a(), "t_a", {"name": "x"}, condition=ANY)


async def test_another_tenant_is_refused_the_same_whether_it_exists_or_not(service: Service) -> None:
    await Tenants(service).create(ADMIN, tenant("t_b"))
    for tenant_id in ("t_b", "t_nobody", "t_system"):
        with pytest.raises(ContextMismatch):
            await Tenants(service).get(context(), tenant_id)
        with pytest.raises(ContextMismatch):
            await Members(service).put(context(), tenant_id, "u2", "viewer")
    assert (await Tenants(service).get(ADMIN, "t_b")).record.tenant_id == "t_b"
    with pytest.raises(NotFound):
        await Tenants(service).get(ADMIN, "t_nobody")


async def test_a_membership_is_invited_accepted_and_revoked(service: Service) -> None:
    members = Members(service)
    assert (await members.get(context(), "t_a", "u2")).record.status == "invited"
    accepted = await members.accept("u2", "t_a", request_id="r")
    assert accepted.record.status == "accepted"
    # Said again it is answered and leaves no trace, or any viewer could fill the feed and the spine.
    assert await members.accept("u2", "t_a", request_id="r") == accepted
    changed = await members.put(context(), "t_a", "u2", "viewer")
    assert (changed.record.role, changed.record.status) == ("viewer", "accepted")
    await members.revoke(context(), "t_a", "u2")
    with pytest.raises(NotFound):
        await members.get(context(), "t_a", "u2")
    with pytest.raises(ContextMismatch):
        await members.accept("u2", "t_a", request_id="r")
    assert (await members.put(context(), "t_a", "u2", "member")).record.status == "invited"


async def test_nobody_accepts_for_another_or_without_an_invitation(service: Service) -> None:
    for user_id, tenant_id in (("u3", "t_a"), ("u2", "t_nobody"), ("u2", "t_system")):
        with pytest.raises(ContextMismatch):
            await Members(service).accept(user_id, tenant_id, request_id="r")


async def test_nobody_hands_out_or_takes_away_more_than_they_have(service: Service) -> None:
    members = Members(service)
    for user_id, role in (("u2", "owner"), ("u1", "viewer")):
        with pytest.raises(Forbidden):
            await members.put(admin_of_a(), "t_a", user_id, role)
    with pytest.raises(Forbidden):
        await members.revoke(admin_of_a(), "t_a", "u1")
    with pytest.raises(Invalid):
        await members.put(context(), "t_a", "u2", "no_such_role")
    with pytest.raises(NotFound):
        await members.put(context(), "t_a", "u9", "member")
    assert (await members.put(context(), "t_a", "u2", "owner")).record.role == "owner"


async def test_a_key_is_for_an_accepted_member_and_no_more_than_its_maker(service: Service) -> None:
    keys = Keys(service)
    owner = context()
    made = await keys.create(owner, key_id="k1", secret_sha256="0" * 64, user_id="u1", role="member")
    assert made.record.tenant_id == "t_a"
    with pytest.raises(Invalid):
        await keys.create(owner, key_id="k2", secret_sha256="0" * 64, user_id="u2", role="member")
    with pytest.raises(Forbidden):
        await keys.create(admin_of_a(), key_id="k3", secret_sha256="0" * 64, user_id="u1", role="owner")
    with pytest.raises(Forbidden):
        await keys.create(
            context(permissions=frozenset()), key_id="k4", secret_sha256="", user_id="u1", role="viewer"
        )
    assert [item.record.key_id for item in (await keys.list(owner)).items] == ["k1"]


async def test_a_key_names_everybody_through_whose_hands_it_went(service: Service) -> None:
    keys = Keys(service)

    async def made_by(key_id: str, *hands: str, user_id: str = "u1") -> tuple[str, ...]:
        who = context(user_id=user_id, key_id="k", key_made_by=hands)
        made = await keys.create(who, key_id=key_id, secret_sha256="0" * 64, user_id="u1", role="member")
        return made.record.made_by

    assert await made_by("k1") == ()
    assert await made_by("k2", "bob") == ("bob",)
    assert await made_by("k3", "bob", "u1", user_id="eve") == ("eve", "bob")
    hands = [f"h{number}" for number in range(MADE_BY_MAX)]
    assert await made_by("k4", *hands) == tuple(hands)
    with pytest.raises(Forbidden):
        await made_by("k5", *hands, user_id="eve")


async def test_a_key_is_bound_to_a_surface_and_an_env_that_are_there_and_stays_so(service: Service) -> None:
    keys, owner = Keys(service), context()
    given: dict[str, Any] = {"secret_sha256": "0" * 64, "user_id": "u1", "role": "member"}
    request = identify("t_a", "prod", "u1", "POST", "/keys", "k", body=b"1")
    made = await keys.create(owner, key_id="k1", **given, surface_id="CHAT", env="prod", request=request)
    assert (made.record.surface_id, made.record.env) == ("chat", "prod")
    again = await keys.create(owner, key_id="k2", **given, surface_id="CHAT", env="prod", request=request)
    assert (again.replayed, again.record) == (True, made.record)
    unknown: list[tuple[dict[str, Any], str]] = [
        ({"surface_id": "nonesuch"}, "surface_id"),
        ({"env": "nowhere"}, "env"),
    ]
    for bound, field in unknown:
        with pytest.raises(Invalid) as refusal:
            await keys.create(owner, key_id="k3", **given, **bound)
        assert refusal.value.field == field
    assert [item.record for item in (await keys.list(owner)).items] == [made.record]


async def test_another_tenants_key_is_not_found(service: Service) -> None:
    await Tenants(service).create(ADMIN, tenant("t_b"))
    keys = Keys(service)
    owner = context()
    await keys.create(owner, key_id="k1", secret_sha256="0" * 64, user_id="u1", role="member")
    with pytest.raises(NotFound):
        await keys.revoke(context("t_b"), "k1")
    assert (await keys.list(context("t_b"))).items == ()
    await keys.revoke(owner, "k1")
    with pytest.raises(NotFound):
        await keys.revoke(owner, "k1")
    versions = (await service.store.versions(KEYS, "k1")).items
    assert [(item.deleted, item.record.revoked) for item in versions] == [(False, False), (True, True)]


async def test_spellings_of_a_surface_are_one_and_belong_to_one(service: Service) -> None:
    made = surfaces(service)
    await made.create(
        ADMIN, Surface(surface_id="squared2", os_id="engines", name="S", aliases=("SQUARED²", "Squared 2"))
    )
    for spelling in ("SQUARED²", "squared2", "Squared 2"):
        assert (await made.get(context(), spelling)).record.surface_id == "squared2"
    for surface_id, aliases in (("SQUARED²", ()), ("cubed3", ("S Q U A R E D 2",))):
        with pytest.raises(Conflict):
            await made.create(
                ADMIN, Surface(surface_id=surface_id, os_id="engines", name="x", aliases=aliases)
            )
    with pytest.raises(NotFound):
        await made.get(context(), "cubed3")


async def test_references_must_hold(service: Service) -> None:
    for create in (
        surfaces(service).create(ADMIN, Surface(surface_id="s", os_id="none", name="x")),
        surfaces(service).create(ADMIN, Surface(surface_id="s", os_id="engines", name="x", mode="none")),
        apps(service).create(ADMIN, App(app_id="a", surface_id="none", name="x")),
        projects(service).create(context(), Project(project_id="p", app_id="none", name="x")),
    ):
        with pytest.raises(Invalid):
            await create


async def test_projects_are_a_tenants_own(service: Service) -> None:
    await Tenants(service).create(ADMIN, tenant("t_b"))
    made = projects(service)
    await made.create(context(), Project(project_id="p1", name="A's"))
    await made.create(context("t_b"), Project(project_id="p1", name="B's"))
    assert (await made.get(context(), "p1")).record.name == "A's"
    assert (await made.get(context("t_b"), "p1")).record.name == "B's"
    await made.patch(context(), "p1", {"name": "still A's"})
    assert [item.record.name for item in (await made.list(context("t_b"))).items] == ["B's"]
    with pytest.raises(Forbidden):
        await made.create(context(permissions=frozenset()), Project(project_id="p2", name="x"))


async def test_host_local_is_for_mode_lab_alone(service: Service) -> None:
    with pytest.raises(ForbiddenBackendClass):
        await Modes(service).put(ADMIN, Mode(mode="saas", allowed_classes=("host_local",)))


async def test_a_lab_cannot_lock_itself_out(service: Service) -> None:
    modes = Modes(service)
    with pytest.raises(Conflict, match="host-local"):
        await modes.put(ADMIN, Mode(mode="lab", allowed_classes=("cloud", "server")))
    await modes.put(ADMIN, Mode(mode="lab", allowed_classes=("host_local",), optional_kinds=("notes_store",)))
    assert (await modes.get("lab")).record.allowed_classes == ("host_local",)


async def test_an_issuer_has_one_source_of_keys_and_one_record(service: Service) -> None:
    issuers = Issuers(service)
    one = Issuer(
        issuer_id="i1", issuer="https://i.example", audience="engines", jwks_url="https://i.example/jwks"
    )
    await issuers.put(ADMIN, one)
    with pytest.raises(Conflict):
        await issuers.put(ADMIN, msgspec.structs.replace(one, issuer_id="i2"))
    for wrong in (
        msgspec.structs.replace(one, jwks_url=None),
        msgspec.structs.replace(one, hs256_secret="env:ENGINES_SECRET_X"),
    ):
        with pytest.raises(Invalid):
            await issuers.put(ADMIN, wrong)
    with pytest.raises(Forbidden):
        await issuers.put(context(), one)


async def test_two_admins_at_once_lose_no_change(service: Service) -> None:
    identities = [UserIdentity("iss", f"s{number}") for number in range(8)]
    results = await asyncio.gather(
        *(
            Users(service).create(ADMIN, User(user_id=f"v{number}", identities=(identity,)))
            for number, identity in enumerate(identities)
        ),
        return_exceptions=True,
    )
    assert not [result for result in results if isinstance(result, EnginesError)]
    listed = await Users(service).list(ADMIN, limit=1000)
    assert {f"v{number}" for number in range(8)} <= {item.record.user_id for item in listed.items}


@pytest.mark.parametrize("count", [0, 3])
async def test_what_a_user_changed_waits_until_the_spine_is_told(service: Service, count: int) -> None:
    subjects = DataSubjects(service, Members(service), Keys(service), CLOCK)

    async def build(_: Project | None) -> Project:
        return Project(project_id="p", name="P")

    for number in range(count + 2):
        who = "ada" if number < count else "bob"
        actor = Actor(user_id=who, tenant_id="t_a", request_id="r", tenants=("t_a", "t_b"))
        await service.store.put(PROJECTS, ["t_a", f"p{number}"], build, actor=actor)
    for tenant_id in ("t_a", "t_b"):
        assert await subjects.waiting(context(tenant_id), "ada") == count
        assert await subjects.waiting(context(tenant_id), "bob") == 2
    assert await subjects.waiting(context("t_c"), "ada") == 0
