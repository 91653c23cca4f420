"""Whatever bytes arrive, identity answers with a context or with an error of its own."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.errors import EnginesError, Invalid, Unauthenticated
from engines.identity.headers import NAMES
from engines.identity.jose import TokenRefused, parse_token
from engines.identity.jwks import KeysRefused, key_set_of_jwks
from engines.scope import RequestContext
from tests.identity.signing import sealed
from tests.identity.world import World

pytestmark = pytest.mark.property

EXAMPLES = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES_BELOW = [name.lower().encode() for name in NAMES]
LIKELY = st.sampled_from(
    [
        b"t_one",
        b"t_two",
        b"t_system",
        b"ada",
        b"saas",
        b"dev",
        b"chat",
        b"desk",
        b"plain",
        b"SQUARED\xb2",
        b"0",
    ]
)
VALUES = st.one_of(
    LIKELY, st.binary(max_size=80), st.text(max_size=40).map(lambda text: text.encode(errors="replace"))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """Hypothesis runs plain functions; all examples of this module share one event loop."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def open_world(
    runner: asyncio.Runner, cast: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    path = tmp_path_factory.mktemp("world")
    shutil.copy(cast, path / "control.db")
    world = World(path)
    runner.run(world.open())
    yield world
    runner.run(world.close())


def answered(
    world: World, runner: asyncio.Runner, headers: list[tuple[bytes, bytes]]
) -> RequestContext | None:
    try:
        return runner.run(world.contexts.context_of(headers))
    except EnginesError as error:
        if error.status not in (400, 401, 403):
            raise
        return None


@EXAMPLES
@given(headers=st.lists(st.tuples(st.sampled_from(NAMES_BELOW) | st.binary(max_size=20), VALUES), max_size=8))
def test_any_headers_with_a_good_token_are_answered(
    open_world: World, runner: asyncio.Runner, headers: list[tuple[bytes, bytes]]
) -> None:
    authorization = (b"authorization", f"Bearer {open_world.token()}".encode())
    context = answered(open_world, runner, [authorization, *headers])
    if context is not None:
        assert (context.tenant_id, context.user_id) == ("t_one", "ada")
        assert context.acting_on is None


@EXAMPLES
@given(headers=st.lists(st.tuples(st.sampled_from(NAMES_BELOW), VALUES), max_size=8), credential=st.binary())
def test_any_credential_that_was_not_issued_is_refused(
    open_world: World, runner: asyncio.Runner, headers: list[tuple[bytes, bytes]], credential: bytes
) -> None:
    with pytest.raises((Unauthenticated, Invalid)):
        runner.run(open_world.contexts.context_of([(b"authorization", b"Bearer " + credential), *headers]))


@EXAMPLES
@given(
    names=st.dictionaries(st.sampled_from([name.lower() for name in NAMES]), st.text()), credential=st.text()
)
def test_any_text_in_process_is_answered(
    open_world: World, runner: asyncio.Runner, names: dict[str, str], credential: str
) -> None:
    with pytest.raises(EnginesError) as caught:
        runner.run(open_world.contexts.context(credential, names))
    assert caught.value.status in (400, 401)


@EXAMPLES
@given(
    claims=st.dictionaries(
        st.sampled_from(["sub", "aud", "exp", "nbf", "iat", "tenant_id", "surface_id", "x"]), JSON
    )
)
def test_any_claims_signed_by_the_issuer_are_answered(
    open_world: World, runner: asyncio.Runner, claims: dict[str, Any]
) -> None:
    payload = json.dumps({**open_world.claims(), **claims})
    text = sealed("EdDSA", open_world.key, json.dumps({"alg": "EdDSA", "kid": "k1"}), payload)
    context = answered(open_world, runner, [(b"authorization", b"Bearer " + text.encode())])
    if context is not None:
        assert (context.tenant_id, context.user_id) == ("t_one", "ada")


@EXAMPLES
@given(header=JSON, payload=JSON, extra=st.text(max_size=5))
def test_any_token_is_taken_apart_or_refused(header: Any, payload: Any, extra: str) -> None:
    text = sealed("HS256", b"k", json.dumps(header), json.dumps(payload)) + extra
    try:
        parsed = parse_token(text)
    except TokenRefused:
        return
    assert not extra
    assert isinstance(parsed.claims, dict)


@EXAMPLES
@given(text=st.binary() | JSON.map(lambda value: json.dumps({"keys": value}).encode()))
def test_any_key_set_is_read_or_refused(text: bytes) -> None:
    with pytest.raises(KeysRefused):
        key_set_of_jwks(text)


MEMBER = (
    st.text(max_size=4)
    | st.integers()
    | st.none()
    | st.lists(st.text(max_size=3), max_size=2)
    | st.text("AQ_-", max_size=400)
)


@EXAMPLES
@given(
    entries=st.lists(
        st.fixed_dictionaries(
            {"kty": st.sampled_from(["RSA", "EC", "OKP", "oct", 5])},
            optional=dict.fromkeys(("kid", "n", "e", "x", "y", "use", "alg", "key_ops", "d", "k"), MEMBER)
            | {"crv": st.sampled_from(["P-256", "Ed25519", "P-384", 5])},
        ),
        max_size=4,
    )
)
def test_any_keys_are_used_or_passed_over(entries: list[dict[str, Any]]) -> None:
    try:
        found = key_set_of_jwks(json.dumps({"keys": entries}).encode())
    except KeysRefused:
        return
    assert found.find(None, "HS256") is None
