"""What a request becomes: tenant, user, mode, env, surface, app, project and provenance, case by case."""

from __future__ import annotations

import msgspec
import pytest

from engines.control.records import User, UserIdentity
from engines.control.tables import TENANTS, USERS
from engines.errors import (
    ContextMismatch,
    Forbidden,
    TenantRequired,
    Unauthenticated,
)
from tests.identity.judging import context_of
from tests.identity.signing import token
from tests.identity.world import ISSUER, World

# --- the tenant ---


async def test_the_only_accepted_membership_is_the_tenant(world: World) -> None:
    context = await context_of(world)
    assert (context.tenant_id, context.roles, context.acting_on) == ("t_one", ("owner",), None)
    assert context.sources["tenant_id"] == context.sources["roles"] == "membership"


async def test_several_memberships_and_none_named_is_tenant_required(world: World) -> None:
    with pytest.raises(TenantRequired) as caught:
        await context_of(world, world.token("bob"))
    assert caught.value.field == "X-Tenant-Id"


@pytest.mark.parametrize(("tenant_id", "role"), [("t_one", "viewer"), ("t_two", "admin")])
async def test_the_header_chooses_among_memberships(world: World, tenant_id: str, role: str) -> None:
    context = await context_of(world, world.token("bob"), x_tenant_id=tenant_id)
    assert (context.tenant_id, context.roles) == (tenant_id, (role,))
    assert context.sources["tenant_id"] == "header X-Tenant-Id"


@pytest.mark.parametrize(("tenant_id", "role"), [("t_one", "viewer"), ("t_two", "admin")])
async def test_the_claim_binds_the_tenant(world: World, tenant_id: str, role: str) -> None:
    context = await context_of(world, world.token("bob", tenant_id=tenant_id))
    assert (context.tenant_id, context.roles) == (tenant_id, (role,))
    assert context.sources["tenant_id"] == "token claim tenant_id"


@pytest.mark.parametrize("user_id", ["zoe", "ivy", "rex"])
async def test_no_accepted_membership_is_forbidden(world: World, user_id: str) -> None:
    """Invited and revoked memberships do not count."""
    with pytest.raises(Forbidden) as caught:
        await context_of(world, world.token(user_id))
    assert not isinstance(caught.value, ContextMismatch)


async def test_a_membership_counts_from_its_acceptance_to_its_end(world: World) -> None:
    text = world.token("ivy")
    await world.join("t_one", "ivy", "member", "accepted")
    assert (await context_of(world, text)).tenant_id == "t_one"
    await world.join("t_one", "ivy", "member", "revoked")
    with pytest.raises(Forbidden):
        await context_of(world, text)


async def test_a_changed_role_holds_for_the_next_request(world: World) -> None:
    assert "notes.write" in (await context_of(world)).permissions
    await world.join("t_one", "ada", "viewer")
    context = await context_of(world)
    assert context.roles == ("viewer",)
    assert "notes.write" not in context.permissions


# --- the user ---


async def test_a_valid_token_of_an_unknown_subject_is_forbidden(world: World) -> None:
    with pytest.raises(Forbidden) as caught:
        await context_of(world, world.token(sub="nobody"))
    assert not isinstance(caught.value, ContextMismatch)


async def test_the_user_is_bound_by_issuer_and_subject_together(world: World) -> None:
    """The same subject of another issuer is somebody else, and so is a subject that is a user's id."""
    other = world.path / "other.json"
    other.write_text(world.jwks_path.read_text())
    await world.put_issuer(issuer_id="other", issuer="https://other.test/", jwks_file=str(other))
    theirs = token("EdDSA", world.key, world.claims(iss="https://other.test/"), kid="k1")
    for text in (theirs, world.token(sub="ada")):
        with pytest.raises(Forbidden):
            await context_of(world, text)
    identity = UserIdentity("https://other.test/", "sub-ada")
    await world.put(
        USERS, ["eve"], User(user_id="eve", identities=(UserIdentity(ISSUER, "sub-eve"), identity))
    )
    assert (await context_of(world, theirs)).user_id == "eve"
    assert (await context_of(world)).user_id == "ada"


async def test_nobody_is_anybody_without_a_credential(world: World) -> None:
    with pytest.raises(Unauthenticated):
        await world.contexts.context(None, {"x-tenant-id": "t_one", "x-user-id": "ada"})


# --- an admin of t_system ---


@pytest.mark.parametrize("user_id", ["sam", "sue"])
async def test_an_admin_of_t_system_acts_on_a_tenant_that_it_names(world: World, user_id: str) -> None:
    context = await context_of(world, world.token(user_id), x_tenant_id="t_two")
    assert (context.tenant_id, context.acting_on, context.target_tenant_id) == ("t_system", "t_two", "t_two")
    assert context.is_system_admin
    with pytest.raises(ContextMismatch):
        context.require_data("notes.read")


async def test_a_member_who_is_also_admin_of_t_system_reaches_the_own_tenant_as_member(world: World) -> None:
    context = await context_of(world, world.token("sue"), x_tenant_id="t_one")
    assert (context.tenant_id, context.acting_on, context.roles) == ("t_one", None, ("member",))
    bound = await context_of(world, world.token("sue", tenant_id="t_system"), x_tenant_id="t_one")
    assert (bound.tenant_id, bound.acting_on, bound.roles) == ("t_system", "t_one", ("owner",))


async def test_a_key_of_t_system_acts_by_its_own_role(world: World) -> None:
    admin, viewer = (
        await world.mint("t_system", "sam", "admin"),
        await world.mint("t_system", "sam", "viewer"),
    )
    assert (await context_of(world, admin, x_tenant_id="t_two")).acting_on == "t_two"
    with pytest.raises(ContextMismatch):
        await context_of(world, viewer, x_tenant_id="t_two")


async def test_an_admin_who_names_t_system_is_simply_at_home(world: World) -> None:
    context = await context_of(world, world.token("sam"), x_tenant_id="t_system")
    assert (context.tenant_id, context.acting_on) == ("t_system", None)


async def test_an_admin_of_t_system_cannot_act_on_what_is_no_tenant(world: World) -> None:
    for text in (world.token("sam"), world.token("sam", tenant_id="t_system")):
        with pytest.raises(ContextMismatch):
            await context_of(world, text, x_tenant_id="t_nowhere")


# --- surface, mode, OS ---


@pytest.mark.parametrize("spelling", ["squared2", "SQUARED²", "Squared 2", "sq2", "SQ 2"])
async def test_every_spelling_of_a_surface_binds_the_one(world: World, spelling: str) -> None:
    context = await context_of(world, x_surface_id=spelling)
    assert (context.surface_id, context.os_id) == ("squared2", "engines")
    assert context.sources["surface_id"] == "header X-Surface-Id"
    bound = await context_of(world, world.token(surface_id=spelling), x_surface_id="squared2")
    assert bound.surface_id == "squared2"
    assert bound.sources["surface_id"] == "token claim surface_id"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
async def test_a_surface_is_read_in_whichever_way_the_client_encodes_it(world: World, encoding: str) -> None:
    headers = [
        (b"authorization", f"bEaReR {world.token()}".encode()),
        (b"x-surface-id", "SQUARED²".encode(encoding)),
    ]
    assert (await world.contexts.context_of(headers)).surface_id == "squared2"


async def test_the_surface_defaults_to_the_tenants(world: World) -> None:
    context = await context_of(world)
    assert (context.surface_id, context.sources["surface_id"]) == ("chat", "tenant default")


async def test_a_surface_narrows_the_mode_and_never_widens_it(world: World) -> None:
    assert (await context_of(world)).mode == "saas"
    strict = await context_of(world, x_surface_id="strict")
    assert (strict.mode, strict.sources["mode"]) == ("cloud_only", "surface")
    wide = await context_of(world, x_surface_id="wide")
    assert (wide.mode, wide.sources["mode"]) == ("saas", "tenant")


async def test_a_tenant_in_lab_is_labelled_so_on_every_surface(world: World) -> None:
    assert not (await context_of(world)).lab
    await world.join("t_lab", "eve", "member")
    for surface in ("chat", "strict", "wide"):
        context = await context_of(world, world.token("eve"), x_tenant_id="t_lab", x_surface_id=surface)
        assert context.lab


async def test_a_lab_deployment_is_labelled_so_for_everybody(world: World) -> None:
    system = await world.directory.tenant("t_system")
    assert system is not None
    await world.put(TENANTS, ["t_system"], msgspec.structs.replace(system, mode="lab"))
    assert (await context_of(world)).lab


async def test_naming_the_mode_that_holds_is_accepted(world: World) -> None:
    assert (await context_of(world, x_mode="saas")).mode == "saas"
    assert (await context_of(world, world.token(mode="saas"))).mode == "saas"
    assert (await context_of(world, x_surface_id="strict", x_mode="cloud_only")).mode == "cloud_only"


# --- env, app, project ---


async def test_the_env_is_the_claims_then_the_headers_then_the_tenants(world: World) -> None:
    assert (await context_of(world)).sources["env"] == "tenant default"
    header = await context_of(world, x_env="dev")
    assert (header.env, header.sources["env"]) == ("dev", "header X-Env")
    claim = await context_of(world, world.token(env="dev"), x_env="dev")
    assert (claim.env, claim.sources["env"]) == ("dev", "token claim env")


async def test_the_app_is_the_claims_then_the_headers_then_the_surfaces(world: World) -> None:
    default = await context_of(world, x_surface_id="desk")
    assert (default.app_id, default.sources["app_id"]) == ("phone", "surface default")
    header = await context_of(world, x_surface_id="desk", x_app_id="mail")
    assert (header.app_id, header.sources["app_id"]) == ("mail", "header X-App-Id")
    claim = await context_of(world, world.token(app_id="mail", surface_id="desk"))
    assert (claim.app_id, claim.sources["app_id"]) == ("mail", "token claim app_id")
    assert (await context_of(world)).app_id is None


async def test_a_project_is_the_tenants_and_brings_its_app(world: World) -> None:
    plain = await context_of(world, x_project_id="plain")
    assert (plain.project_id, plain.app_id) == ("plain", None)
    penned = await context_of(world, world.token(project_id="penned"))
    assert (penned.project_id, penned.app_id) == ("penned", "pen")
    assert (penned.sources["project_id"], penned.sources["app_id"]) == ("token claim project_id", "project")
    named = await context_of(world, x_project_id="penned", x_app_id="pen")
    assert (named.app_id, named.sources["app_id"]) == ("pen", "header X-App-Id")


async def test_a_projects_app_comes_before_the_surfaces_default(world: World) -> None:
    context = await context_of(world, x_surface_id="desk", x_project_id="mailed")
    assert context.app_id == "mail"


async def test_a_project_whose_app_is_on_another_surface_is_refused(world: World) -> None:
    with pytest.raises(ContextMismatch) as caught:
        await context_of(world, x_surface_id="chat", x_project_id="mailed")
    assert caught.value.field == "X-Project-Id"


async def test_a_project_whose_app_is_not_the_bound_one_is_refused(world: World) -> None:
    with pytest.raises(ContextMismatch) as caught:
        await context_of(world, x_surface_id="desk", x_app_id="phone", x_project_id="mailed")
    assert caught.value.field == "X-Project-Id"
