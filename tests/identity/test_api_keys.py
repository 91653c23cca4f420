"""API keys: their form, their secret, and how soon they end."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.clock import SystemClock
from engines.control.records import ApiKey
from engines.control.tables import KEYS
from engines.errors import ContextMismatch, Forbidden, Unauthenticated
from engines.identity.keys import is_secret_of, mint_key, parse_key
from engines.ids import Ids
from tests.contexts import PERMISSIONS_OF
from tests.identity.judging import context_of
from tests.identity.world import ACTOR, World


async def test_a_key_acts_as_its_user_in_its_tenant_with_its_role(world: World) -> None:
    key = await world.mint("t_two", "bob", "agent")
    context = await world.contexts.context(key)
    assert (context.tenant_id, context.user_id, context.roles) == ("t_two", "bob", ("agent",))
    assert context.sources["tenant_id"] == context.sources["roles"] == "api key"
    role = await world.directory.role("agent")
    assert role is not None
    assert context.permissions == frozenset(role.permissions)


async def test_a_key_that_is_bound_to_a_surface_acts_there_and_nowhere_else(world: World) -> None:
    key = await world.mint("t_two", "bob", "agent", surface_id="squared2")
    bound = await world.contexts.context(key)
    assert (bound.surface_id, bound.sources["surface_id"]) == ("squared2", "api key")
    assert (await context_of(world, key, x_surface_id="SQUARED²")).surface_id == "squared2"
    for other in ("chat", "nonesuch"):
        with pytest.raises(ContextMismatch) as refusal:
            await context_of(world, key, x_surface_id=other)
        assert refusal.value.field == "X-Surface-Id"
    free = await world.mint("t_two", "bob", "agent")
    assert (await context_of(world, free, x_surface_id="squared2")).surface_id == "squared2"


async def test_a_key_that_is_bound_to_an_env_acts_in_no_other(world: World) -> None:
    free = await world.mint("t_one", "ada", "member")
    default = (await context_of(world, free)).env
    for env in ("dev", "prod"):
        key = await world.mint("t_one", "ada", "member", env=env)
        bound = await context_of(world, key)
        assert (bound.env, bound.sources["env"]) == (env, "api key")
        assert (await context_of(world, free, x_env=env)).env == env
        with pytest.raises(ContextMismatch) as refusal:
            await context_of(world, key, x_env="prod" if env == "dev" else "dev")
        assert refusal.value.field == "X-Env"
    assert default == "prod"


async def test_a_minted_key_is_ek_id_secret_and_only_its_hash_is_kept() -> None:
    minted = mint_key(Ids(SystemClock()))
    match = re.fullmatch(r"ek_([0-9a-f]{32})_([0-9A-Za-z]{43})", minted.key)
    assert match is not None
    assert match[1] == minted.key_id
    assert minted.secret_sha256 == hashlib.sha256(match[2].encode()).hexdigest()
    assert match[2] not in repr(minted)
    assert parse_key(minted.key) == (match[1], match[2])


async def test_key_ids_sort_by_the_time_of_their_making(world: World) -> None:
    made = []
    for _ in range(5):
        made.append(mint_key(world.ids).key_id)
        world.clock.advance(0.002)
    assert made == sorted(made)


@given(st.binary(min_size=32, max_size=32))
def test_every_secret_has_one_length_and_no_separator(content: bytes) -> None:
    minted = mint_key(Ids(SystemClock(), lambda count: content[:count]))
    assert parse_key(minted.key) == (minted.key_id, minted.key.rpartition("_")[2])


def test_different_bytes_make_different_secrets() -> None:
    def secret_of(content: bytes) -> str:
        return mint_key(Ids(SystemClock(), lambda count: content[-count:])).key[-43:]

    assert len({secret_of(bytes(31) + bytes([byte])) for byte in range(256)}) == 256
    assert secret_of(bytes(32)) == "0" * 43


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key + "\n",
        lambda key: " " + key,
        lambda key: key.upper(),
        lambda key: key.replace("ek_", "EK_"),
        lambda key: key.replace("_", "-"),
        lambda key: "ek_" + "0" * 32 + key[35:],
        lambda key: key[:36],
        lambda key: key[:36] + "é" * 43,
        lambda key: key[:36] + "\ud800" * 43,
        lambda key: key[:3] + "../" + key[6:],
        lambda key: key[:3] + "_" + key[36:],
        lambda key: key[:0] + "ek_",
        lambda key: key[:0] + "ek__",
        lambda key: key * 2,
    ],
)
async def test_a_key_that_is_not_exactly_right_is_refused(world: World, change: object) -> None:
    assert callable(change)
    key = await world.mint("t_one", "ada", "member")
    await world.contexts.context(key)
    with pytest.raises(Unauthenticated):
        await world.contexts.context(change(key))


async def test_a_secret_with_another_keys_id_is_refused(world: World) -> None:
    mine, theirs = await world.mint("t_one", "ada", "member"), await world.mint("t_two", "eve", "member")
    with pytest.raises(Unauthenticated):
        await world.contexts.context(mine[:35] + theirs[35:])


async def test_the_stored_hash_is_no_secret(world: World) -> None:
    """Whoever reads the control plane's database has no key by it."""
    key = await world.mint("t_one", "ada", "member")
    record = await world.directory.api_key(key[3:35])
    assert record is not None
    for taken in (record.secret_sha256, record.secret_sha256[:43]):
        with pytest.raises(Unauthenticated):
            await world.contexts.context(f"ek_{record.key_id}_{taken}")


async def test_a_revoked_key_is_refused_as_soon_as_that_is_known(world: World) -> None:
    key = await world.mint("t_one", "ada", "member")
    await world.contexts.context(key)
    await world.store.delete(KEYS, [key[3:35]], actor=ACTOR)
    with pytest.raises(Unauthenticated):
        await world.contexts.context(key)


async def test_a_record_marked_as_revoked_is_refused() -> None:
    minted = mint_key(Ids(SystemClock()))
    secret = minted.key[-43:]

    def record(*, revoked: bool) -> ApiKey:
        return ApiKey(
            key_id=minted.key_id,
            tenant_id="t_one",
            user_id="ada",
            role="member",
            secret_sha256=minted.secret_sha256,
            revoked=revoked,
        )

    assert is_secret_of(record(revoked=False), secret)
    assert not is_secret_of(record(revoked=True), secret)
    assert not is_secret_of(None, secret)


# What is left of a key (its role, the membership's): the roles shown, and whose permissions they are.
MEETINGS = [
    ("admin", "viewer", ("viewer",), {"viewer"}),
    ("owner", "admin", ("admin",), {"admin"}),
    ("admin", "owner", ("admin",), {"admin"}),
    ("viewer", "owner", ("viewer",), {"viewer"}),
    ("agent", "member", ("agent",), {"agent"}),
    ("agent", "owner", ("agent",), {"agent"}),
    ("agent", "agent", ("agent",), {"agent"}),
    ("agent", "viewer", ("viewer", "agent"), {"viewer", "agent"}),
    ("member", "agent", ("agent",), {"agent"}),
    ("viewer", "agent", ("viewer", "agent"), {"viewer"}),
    ("admin", "agent", ("agent",), {"agent"}),
    ("owner", "scrape", (), {"owner", "scrape"}),
    ("nonesuch", "owner", (), {"nonesuch", "owner"}),
    ("admin", "nonesuch", (), {"nonesuch"}),
    ("beacon", "viewer", ("beacon",), {"beacon"}),
    ("scrape", "admin", ("scrape",), {"scrape"}),
]


@pytest.mark.parametrize(("asked", "held", "roles", "both"), MEETINGS)
async def test_a_key_may_what_its_role_and_its_users_both_grant(
    world: World, asked: str, held: str, roles: tuple[str, ...], both: set[str]
) -> None:
    key = await world.mint("t_one", "ada", asked)
    await world.join("t_one", "ada", held)
    context = await world.contexts.context(key)
    granted = [PERMISSIONS_OF.get(role, frozenset()) for role in both]
    assert context.roles == roles
    assert context.permissions == frozenset.intersection(*granted)
    is_whole = roles == (asked,)
    assert context.sources["roles"] == ("api key" if is_whole else "api key and membership")


async def test_whoever_is_demoted_is_demoted_with_their_keys_in_t_system_too(world: World) -> None:
    key = await world.mint("t_system", "sam", "admin")
    assert (await context_of(world, key, x_tenant_id="t_two")).is_system_admin
    await world.join("t_system", "sam", "viewer")
    context = await context_of(world, key)
    assert (context.is_system_admin, context.permissions) == (False, PERMISSIONS_OF["viewer"])
    with pytest.raises(ContextMismatch):
        await context_of(world, key, x_tenant_id="t_two")


async def test_whoever_is_promoted_has_no_more_by_a_key_than_its_role(world: World) -> None:
    key = await world.mint("t_system", "vic", "viewer")
    await world.join("t_system", "vic", "owner")
    context = await context_of(world, key)
    assert (context.is_system_admin, context.roles) == (False, ("viewer",))


@pytest.mark.parametrize("status", ["invited", "revoked"])
async def test_a_key_ends_with_its_users_membership(world: World, status: str) -> None:
    key = await world.mint("t_one", "ada", "member")
    await world.contexts.context(key)
    await world.join("t_one", "ada", "owner", status)
    with pytest.raises(Forbidden):
        await world.contexts.context(key)
