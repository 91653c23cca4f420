"""What a request becomes: tenant, user, mode, env, surface, app, project and provenance, case by case."""

from __future__ import annotations

import msgspec
import pytest

from engines.control.records import Tenant, User, UserIdentity
from engines.control.tables import TENANTS, USERS
from engines.errors import (
    ContextMismatch,
    Forbidden,
    Invalid,
    TenantRequired,
    Unauthenticated,
    Unavailable,
)
from engines.identity.context import TEMPLATE_KEY_BYTES_MAX, Contexts
from engines.scope import RequestContext
from tests.identity.signing import token
from tests.identity.world import HOUR_S, ISSUER, World


async def context_of(world: World, credential: str | None = None, **headers: str) -> RequestContext:
    """`x_tenant_id="t_one"` is the header X-Tenant-Id."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await world.contexts.context(credential or world.token(), named)


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


# --- what varies with each request ---


async def test_ids_are_made_where_none_are_sent(world: World) -> None:
    first, second = await context_of(world), await context_of(world)
    assert first.run_id == first.request_id != second.request_id
    assert first.step_id == "0"
    assert first.thread_id is first.session_id is None
    assert len({first.trace_id, second.trace_id, first.span_id, second.span_id}) == 4
    assert (len(first.trace_id), len(first.span_id)) == (32, 16)
    assert first.sources["run_id"] == "request id"


async def test_ids_that_are_sent_are_taken(world: World) -> None:
    sent = {
        "x_run_id": "run-1",
        "x_step_id": "7",
        "x_thread_id": "th",
        "x_session_id": "se",
        "x_request_id": "req~1",
    }
    context = await context_of(world, **sent)
    assert context.run_id == "run-1"
    assert context.step_id == "7"
    assert context.thread_id == "th"
    assert context.session_id == "se"
    assert context.request_id == "req~1"
    assert context.sources["thread_id"] == "header X-Thread-Id"
    assert context.sources["request_id"] == "header X-Request-Id"
    only_request = await context_of(world, x_request_id="req~2")
    assert only_request.run_id == only_request.request_id == "req~2"


async def test_what_one_request_says_is_not_said_by_the_next(world: World) -> None:
    before = await context_of(world)
    await context_of(world, x_run_id="run-1", x_thread_id="th")
    after = await context_of(world)
    assert after.thread_id is None
    assert after.run_id == after.request_id
    assert after.sources == before.sources


async def test_the_edges_request_id_holds(world: World) -> None:
    context = await world.contexts.context(world.token(), {"x-request-id": "sent"}, request_id="sent")
    assert (context.request_id, context.run_id) == ("sent", "sent")
    assert (await world.contexts.context(world.token(), request_id="made")).request_id == "made"


@pytest.mark.parametrize(
    "header",
    ["x-run-id", "x-step-id", "x-thread-id", "x-session-id", "x-request-id", "x-app-id", "x-project-id"],
)
@pytest.mark.parametrize("value", ["", "a b", "../x", "-a", "a" * 129, "a\n", "é", "a!b"])
async def test_a_bad_pattern_is_invalid_and_names_the_header(world: World, header: str, value: str) -> None:
    for _ in range(2):
        with pytest.raises(Invalid) as caught:
            await world.contexts.context(world.token(), {header: value})
        assert (caught.value.field or "").lower() == header


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-tenant-id", "one"),
        ("x-tenant-id", "t_One"),
        ("x-tenant-id", "t_" + "a" * 63),
        ("x-tenant-id", ""),
        ("x-env", "Prod"),
        ("x-env", ""),
        ("x-mode", ""),
        ("x-surface-id", ""),
        ("x-surface-id", "a/b"),
        ("x-surface-id", "a" * 65),
        ("x-user-id", "a b"),
    ],
)
async def test_a_bad_identity_is_invalid_and_names_the_header(world: World, header: str, value: str) -> None:
    with pytest.raises(Invalid) as caught:
        await world.contexts.context(world.token(), {header: value})
    assert not isinstance(caught.value, ContextMismatch)
    assert (caught.value.field or "").lower() == header


async def test_a_header_sent_twice_is_invalid(world: World) -> None:
    authorization = (b"authorization", f"Bearer {world.token()}".encode())
    for name in (b"x-tenant-id", b"x-run-id", b"x-request-id"):
        with pytest.raises(Invalid, match="twice"):
            await world.contexts.context_of([authorization, (name, b"t_one"), (name, b"t_one")])
    with pytest.raises(Unauthenticated):
        await world.contexts.context_of([authorization, authorization])


@pytest.mark.parametrize(
    "value",
    [None, b"", b"Bearer", b"Bearer ", b"Basic YTpi", b"Token x", b"Bearer\tx", b"Bearer \xff", b"Bearer  "],
)
async def test_only_a_bearer_credential_is_one(world: World, value: bytes | None) -> None:
    headers = [] if value is None else [(b"authorization", value)]
    with pytest.raises(Unauthenticated):
        await world.contexts.context_of(headers)


# --- traces ---

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    "value",
    [
        f"00-{TRACE}-b7ad6b7169203331-01",
        f"00-{TRACE}-b7ad6b7169203331-00",
        f"cc-{TRACE}-b7ad6b7169203331-01",
        f"cc-{TRACE}-b7ad6b7169203331-01-what-comes-later",
    ],
)
async def test_a_trace_is_continued_with_a_span_of_our_own(world: World, value: str) -> None:
    context = await context_of(world, traceparent=value)
    assert context.trace_id == TRACE
    assert context.span_id != "b7ad6b7169203331"
    assert context.sources["trace_id"] == "header traceparent"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        f"00-{TRACE.upper()}-b7ad6b7169203331-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-b7ad6b7169203331-01-more",
        f"ff-{TRACE}-b7ad6b7169203331-01",
        f"00-{TRACE}-b7ad6b7169203331",
        f"00-{TRACE}-b7ad6b7169203331-0",
        f"00-{TRACE}-b7ad6b7169203331-01x",
        f" 00-{TRACE}-b7ad6b7169203331-01",
        f"00-{TRACE[:-1]}-b7ad6b7169203331-01",
        "é" * 55,
    ],
)
async def test_a_malformed_trace_begins_a_new_one(world: World, value: str) -> None:
    context = await context_of(world, traceparent=value)
    assert context.trace_id != TRACE
    assert len(context.trace_id) == 32
    assert context.sources["trace_id"] == "generated"


async def test_two_traces_are_none(world: World) -> None:
    trace = (b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode())
    headers = [(b"authorization", f"Bearer {world.token()}".encode()), trace, trace]
    assert (await world.contexts.context_of(headers)).trace_id != TRACE


# --- what is remembered ---


async def test_a_context_seen_before_asks_nothing_of_the_control_plane(world: World) -> None:
    text = world.token()
    first = await context_of(world, text, x_project_id="plain")
    await world.driver.close()
    again = await context_of(world, text, x_project_id="plain", x_run_id="run-2")
    assert (again.tenant_id, again.project_id, again.run_id) == (first.tenant_id, "plain", "run-2")


async def test_contexts_of_different_headers_are_told_apart(world: World) -> None:
    text = world.token("bob")
    for _ in range(2):
        assert (await context_of(world, text, x_tenant_id="t_one")).tenant_id == "t_one"
        assert (await context_of(world, text, x_tenant_id="t_two")).tenant_id == "t_two"
        assert (await context_of(world, text, x_tenant_id="t_two", x_env="dev")).env == "dev"
        with pytest.raises(TenantRequired):
            await context_of(world, text)


async def test_a_value_under_another_header_is_another_request(world: World) -> None:
    await context_of(world, x_env="dev")
    with pytest.raises(ContextMismatch):
        await context_of(world, x_mode="dev")


async def test_a_remembered_context_ends_with_its_token(world: World) -> None:
    text = world.token()
    await context_of(world, text)
    await world.pass_time(HOUR_S - 1)
    await context_of(world, text)
    await world.pass_time(1)
    with pytest.raises(Unauthenticated):
        await context_of(world, text)


async def test_a_process_that_hears_nothing_of_the_control_plane_refuses(world: World) -> None:
    text = world.token()
    await context_of(world, text)
    world.clock.advance(3)
    await context_of(world, text)
    world.clock.advance(0.1)
    with pytest.raises(Unavailable):
        await context_of(world, text)
    with pytest.raises(Unavailable):
        await world.contexts.principal(text, tenant_id="t_one", user_id="ada")


async def test_the_memory_of_contexts_is_bounded(world: World) -> None:
    contexts = Contexts(world.directory, world.verifier, world.ids, world.clock, templates_max=3)
    tokens = [world.token(jti=str(number)) for number in range(5)]
    for text in tokens:
        await contexts.context(text)
    assert len(contexts._templates) == 3
    await contexts.context(world.token(pad="x" * TEMPLATE_KEY_BYTES_MAX))
    assert len(contexts._templates) == 3
    for text in tokens:
        assert (await contexts.context(text)).user_id == "ada"


async def test_a_removed_tenant_is_forbidden_and_not_an_error(world: World) -> None:
    record = Tenant(tenant_id="t_gone", name="Gone", mode="saas", default_surface_id="chat")
    await world.put(TENANTS, ["t_gone"], record)
    await world.join("t_gone", "eve", "member")
    await context_of(world, world.token("eve", tenant_id="t_gone"))
    from tests.identity.world import ACTOR

    await world.store.delete(TENANTS, ["t_gone"], actor=ACTOR)
    with pytest.raises(Forbidden):
        await context_of(world, world.token("eve", tenant_id="t_gone"))
