"""What was derived before is found again, and only for as long as it holds."""

from __future__ import annotations

import pytest

from engines.control.records import Issuer, Tenant
from engines.control.tables import TENANTS
from engines.errors import (
    ContextMismatch,
    Forbidden,
    TenantRequired,
    Unauthenticated,
    Unavailable,
)
from engines.identity import tokens
from engines.identity.context import TEMPLATE_KEY_BYTES_MAX, Contexts
from engines.identity.key_sources import FILE_REFRESH_S
from tests.identity.judging import context_of
from tests.identity.world import ACTOR, HOUR_S, World

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


async def test_a_remembered_context_ends_with_its_token_between_two_looks_at_the_keys(
    world: World,
) -> None:
    text = world.token(exp=world.clock.now() + FILE_REFRESH_S / 2)
    await context_of(world, text)
    await world.pass_time(FILE_REFRESH_S / 2)
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
    remembered = set(contexts._templates)
    assert (await contexts.context(world.token(pad="x" * TEMPLATE_KEY_BYTES_MAX))).user_id == "ada"
    assert set(contexts._templates) == remembered
    for text in tokens:
        assert (await contexts.context(text)).user_id == "ada"


async def test_a_removed_tenant_is_forbidden_and_not_an_error(world: World) -> None:
    record = Tenant(tenant_id="t_gone", name="Gone", mode="saas", default_surface_id="chat")
    await world.put(TENANTS, ["t_gone"], record)
    await world.join("t_gone", "eve", "member")
    await context_of(world, world.token("eve", tenant_id="t_gone"))
    await world.store.delete(TENANTS, ["t_gone"], actor=ACTOR)
    with pytest.raises(Forbidden):
        await context_of(world, world.token("eve", tenant_id="t_gone"))


async def test_a_token_that_is_forgotten_while_it_is_looked_at_again_still_verifies(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "VERIFIED_MAX", 1)
    one, another = world.token(), world.token("bob")
    looks: list[str] = []

    async def issuer_of(iss: str) -> Issuer | None:
        looks.append(iss)
        if len(looks) == 2:
            await world.verifier.verify(another, world.directory.issuer_of)
        return await world.directory.issuer_of(iss)

    first, _ = await world.verifier.verify(one, issuer_of)
    again, _ = await world.verifier.verify(one, issuer_of)
    assert again == first
    assert len(looks) == 2
