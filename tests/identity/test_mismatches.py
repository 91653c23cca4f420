"""Whoever names an identity that is not theirs is refused, wherever they name it, and in one way.

Every combination of where a tenant can be named is tried, and each answer is worked out here a second time,
from the words of the contract alone.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from engines.errors import ContextMismatch, EnginesError, Forbidden, TenantRequired
from engines.identity.refusals import RefusedContext
from engines.stores.scoped import IdentityFields, check_body
from tests.identity.world import PEOPLE, World

TENANTS = (None, "t_one", "t_two", "t_system", "t_nowhere")
# (header, claim, a value that names nothing, one that names what is not the caller's)
OTHERS = [
    ("x-tenant-id", "tenant_id", "t_nowhere", "t_two"),
    ("x-surface-id", "surface_id", "nowhere", None),
    ("x-mode", "mode", "nowhere", "enterprise"),
    ("x-env", "env", "nowhere", None),
    ("x-app-id", "app_id", "nowhere", "mail"),
    ("x-project-id", "project_id", "nowhere", "theirs"),
]


def accepted(user_id: str) -> dict[str, str]:
    return {tenant: role for tenant, role, status in PEOPLE[user_id] if status == "accepted"}


def expected(user_id: str, bound: str | None, named: str | None) -> Any:
    """(own tenant, acting on), or the error, by `Requests` of the contract."""
    own = accepted(user_id)
    if bound is not None and bound not in own:
        return ContextMismatch
    tenant = bound or (named if named in own else None)
    if tenant is None and named is None:
        if len(own) != 1:
            return TenantRequired if own else Forbidden
        tenant = next(iter(own))
    if named is None or named == tenant:
        return (tenant, None)
    is_system_admin = own.get("t_system") in ("admin", "owner") and tenant in (None, "t_system")
    if is_system_admin and named != "t_nowhere":
        return ("t_system", named)
    return ContextMismatch


async def outcome(world: World, credential: str, headers: dict[str, str]) -> Any:
    try:
        context = await world.contexts.context(credential, headers)
    except EnginesError as error:
        return ContextMismatch if isinstance(error, ContextMismatch) else type(error)
    return (context.tenant_id, context.acting_on)


@pytest.mark.parametrize("user_id", PEOPLE)
async def test_every_claim_and_header_together_give_what_the_contract_says(
    world: World, user_id: str
) -> None:
    for bound, named in itertools.product(TENANTS, TENANTS):
        claims = {} if bound is None else {"tenant_id": bound}
        headers = {} if named is None else {"x-tenant-id": named}
        found = await outcome(world, world.token(user_id, **claims), headers)
        assert found == expected(user_id, bound, named), (bound, named)


@pytest.mark.parametrize("user_id", [name for name in PEOPLE if accepted(name)])
async def test_every_key_and_header_together_give_what_the_contract_says(world: World, user_id: str) -> None:
    for tenant_id, role in accepted(user_id).items():
        key = await world.mint(tenant_id, user_id, role)
        for named in TENANTS:
            headers = {} if named is None else {"x-tenant-id": named}
            assert await outcome(world, key, headers) == expected(user_id, tenant_id, named), (
                tenant_id,
                named,
            )


@pytest.mark.parametrize("user_id", ["ada", "bob", "sam", "sue"])
async def test_a_body_may_repeat_the_context_and_nothing_else(world: World, user_id: str) -> None:
    """Every claim, header and tenant in the body: what the first two make is all that the third may name."""
    for bound, named, said in itertools.product(TENANTS, TENANTS, TENANTS):
        claims = {} if bound is None else {"tenant_id": bound}
        headers = {} if named is None else {"x-tenant-id": named}
        made = expected(user_id, bound, named)
        if not isinstance(made, tuple):
            continue
        context = await world.contexts.context(world.token(user_id, **claims), headers)
        body = IdentityFields(tenant_id=said)
        if said in (None, made[0]):
            check_body(context, body)
        else:
            with pytest.raises(ContextMismatch) as caught:
                check_body(context, body)
            assert caught.value.field == "tenant_id"


@pytest.mark.parametrize(("header", "claim", "missing", "another"), OTHERS)
@pytest.mark.parametrize("where", ["header", "claim"])
async def test_what_is_not_yours_is_refused_the_same_whether_it_exists_or_not(
    world: World, header: str, claim: str, missing: str, another: str | None, where: str
) -> None:
    seen = set()
    for value in filter(None, (missing, another)):
        claims = {claim: value} if where == "claim" else {}
        headers = {header: value} if where == "header" else {}
        with pytest.raises(ContextMismatch) as caught:
            await world.contexts.context(world.token(**claims), headers)
        refused = caught.value
        seen.add((type(refused), refused.status, refused.code, refused.detail, refused.field))
        assert (refused.field or "").lower() == (claim if where == "claim" else header)
    assert len(seen) == 1
    assert next(iter(seen))[1:3] == (403, "ContextMismatch")


@pytest.mark.parametrize(
    ("header", "claim", "claimed", "named"),
    [
        ("x-surface-id", "surface_id", "squared2", "chat"),
        ("x-env", "env", "dev", "prod"),
        ("x-project-id", "project_id", "plain", "penned"),
        ("x-tenant-id", "tenant_id", "t_one", "t_two"),
        ("x-mode", "mode", "saas", "enterprise"),
    ],
)
async def test_a_header_never_overrides_a_claim(
    world: World, header: str, claim: str, claimed: str, named: str
) -> None:
    text = world.token("ada", **{claim: claimed})
    with pytest.raises(ContextMismatch):
        await world.contexts.context(text, {header: named})
    context = await world.contexts.context(text, {header: claimed})
    assert getattr(context, claim) == claimed
    assert context.sources[claim].startswith(("token claim", "tenant"))


async def test_an_app_in_a_header_never_overrides_the_claims(world: World) -> None:
    text = world.token(surface_id="desk", app_id="mail")
    with pytest.raises(ContextMismatch):
        await world.contexts.context(text, {"x-app-id": "phone"})
    assert (await world.contexts.context(text, {"x-app-id": "mail"})).app_id == "mail"


async def test_another_user_in_a_header_is_refused(world: World) -> None:
    assert (await world.contexts.context(world.token(), {"x-user-id": "ada"})).user_id == "ada"
    for other in ("bob", "nobody", "sub-ada"):
        with pytest.raises(ContextMismatch) as caught:
            await world.contexts.context(world.token(), {"x-user-id": other})
        assert caught.value.field == "X-User-Id"


async def test_an_env_that_the_tenant_does_not_declare_is_refused_although_another_does(world: World) -> None:
    for env in ("staging", "nowhere"):
        with pytest.raises(ContextMismatch):
            await world.contexts.context(world.token(), {"x-env": env})


async def test_the_mode_of_the_tenant_is_a_mismatch_where_the_surface_narrows_it(world: World) -> None:
    with pytest.raises(ContextMismatch):
        await world.contexts.context(world.token(), {"x-surface-id": "strict", "x-mode": "saas"})


@pytest.mark.parametrize(
    ("user_id", "claims", "named", "told"),
    [
        ("ada", {}, "t_two", "t_one"),
        ("ada", {"tenant_id": "t_two"}, None, "t_one"),
        ("bob", {}, "t_system", "t_system"),
        ("bob", {"tenant_id": "t_two"}, "t_one", "t_two"),
        ("zoe", {}, "t_one", "t_system"),
        ("ivy", {}, "t_one", "t_system"),
        ("vic", {}, "t_one", "t_system"),
    ],
)
async def test_a_refusal_says_whose_spine_is_told_of_whom(
    world: World, user_id: str, claims: dict[str, str], named: str | None, told: str
) -> None:
    headers = {} if named is None else {"x-tenant-id": named}
    with pytest.raises(RefusedContext) as caught:
        await world.contexts.context(world.token(user_id, **claims), headers, request_id="req-1")
    refusal = caught.value.refusal
    assert (refusal.tenant_id, refusal.user_id, refusal.request_id) == (told, user_id, "req-1")
    assert refusal.named == (named or claims.get("tenant_id"))


# --- the answer to an invitation ---


async def answer(
    world: World, user_id: str, path: tuple[str, str], headers: dict[str, str] | None = None, **claims: str
) -> Any:
    return await world.contexts.principal(
        world.token(user_id, **claims), headers or {}, tenant_id=path[0], user_id=path[1]
    )


@pytest.mark.parametrize("user_id", ["ivy", "zoe", "bob"])
async def test_an_invited_user_needs_no_membership_to_answer(world: World, user_id: str) -> None:
    principal = await answer(
        world, user_id, ("t_one", user_id), {"x-request-id": "r", "x-tenant-id": "t_one"}
    )
    assert (principal.user_id, principal.request_id) == (user_id, "r")


async def test_nobody_answers_for_another(world: World) -> None:
    for user_id in ("ada", "sam", "eve"):
        with pytest.raises(RefusedContext) as caught:
            await answer(world, user_id, ("t_one", "ivy"))
        assert caught.value.field == "user_id"


async def test_an_answer_names_one_tenant(world: World) -> None:
    for headers, claims in (({"x-tenant-id": "t_two"}, {}), ({}, {"tenant_id": "t_two"})):
        with pytest.raises(RefusedContext):
            await answer(world, "ivy", ("t_one", "ivy"), headers, **claims)
    await answer(world, "ivy", ("t_one", "ivy"), tenant_id="t_one")


async def test_an_answer_from_asgi_headers_is_judged_alike(world: World) -> None:
    headers = [(b"authorization", f"Bearer {world.token('ivy')}".encode())]
    principal = await world.contexts.principal_of(headers, tenant_id="t_one", user_id="ivy")
    assert principal.tenant_id == "t_system"
    with pytest.raises(RefusedContext):
        await world.contexts.principal_of(headers, tenant_id="t_one", user_id="ada")
