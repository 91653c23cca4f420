"""Which keys an issuer may have, and that what was verified by a key ends with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engines.errors import Unavailable
from engines.identity.jwks import KeysRefused, key_set_of_jwks
from engines.identity.key_ring import KEYS_AGE_MAX_S
from tests.identity.judging import accepted, refused
from tests.identity.signing import (
    PrivateKey,
    b64,
    ec_key,
    ed_key,
    jwk,
    jwks,
    rsa_key,
    sealed,
    signature,
    token,
)
from tests.identity.world import HOUR_S, World

SHARED = "a shared secret that is long enough"
KINDS: dict[str, tuple[PrivateKey, str]] = {
    "RS256": (rsa_key(), "rsa"),
    "ES256": (ec_key(), "ec"),
    "EdDSA": (ed_key(), "ed"),
}


@pytest.fixture
async def three_keys(world: World) -> World:
    """The issuer has one key of each kind."""
    world.publish(*(jwk(key, kid=kid) for key, kid in KINDS.values()))
    return world


# --- what is remembered ---


async def test_a_verified_token_is_forgotten_with_its_key(world: World) -> None:
    text = world.token()
    await accepted(world, text)
    world.publish(jwk(ed_key("next"), kid="k2"))
    await world.pass_time(1)
    await refused(world, text)
    await accepted(world, token("EdDSA", ed_key("next"), world.claims(), kid="k2"))


async def test_a_verified_token_is_forgotten_with_its_issuer(world: World) -> None:
    text = world.token()
    await accepted(world, text)
    await world.put_issuer(audience="elsewhere")
    await refused(world, text)
    await world.put_issuer()
    await accepted(world, text)


async def test_keys_at_hand_serve_on_while_the_file_is_gone_and_not_for_ever(world: World) -> None:
    await accepted(world, world.token())
    world.jwks_path.rename(world.path / "away.json")
    await world.pass_time(HOUR_S)
    await accepted(world, world.token())
    await world.pass_time(KEYS_AGE_MAX_S)
    with pytest.raises(Unavailable):
        await world.contexts.context(world.token())
    (world.path / "away.json").rename(world.jwks_path)
    await world.pass_time(5)
    await accepted(world, world.token())


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"keys": 5}', '{"keys": []}', '{"keys": [5, {}]}', "\ud800"]
)
async def test_a_broken_key_file_is_no_reason_to_refuse_a_user_for_good(world: World, content: str) -> None:
    await accepted(world, world.token())
    world.jwks_path.write_bytes(content.encode(errors="surrogatepass"))
    await world.pass_time(2)
    await accepted(world, world.token())


@pytest.mark.parametrize("secret", ["short", "x" * 31, ""])
async def test_a_shared_secret_that_can_be_guessed_is_not_used(world: World, secret: str) -> None:
    (world.path / "secrets.json").write_text(json.dumps({"issuer": secret}))
    await world.put_issuer(hs256_secret="json:issuer")
    with pytest.raises(Unavailable):
        await world.contexts.context(token("HS256", secret.encode(), world.claims()))


async def test_a_rotated_shared_secret_is_seen_without_a_restart(world: World) -> None:
    (world.path / "secrets.json").write_text(json.dumps({"issuer": SHARED}))
    await world.put_issuer(hs256_secret="json:issuer")
    text = token("HS256", SHARED.encode(), world.claims())
    await accepted(world, text)
    (world.path / "secrets.json").write_text(json.dumps({"issuer": SHARED + "!"}))
    await world.pass_time(5)
    await refused(world, text)
    await accepted(world, token("HS256", (SHARED + "!").encode(), world.claims()))


# --- which keys are believed ---


@pytest.mark.parametrize(
    "entry",
    [
        lambda: jwk(rsa_key("short", 1024), kid="bad"),
        lambda: jwk(ec_key("one", "P-384"), kid="bad"),
        lambda: jwk(ec_key("one", "secp256k1"), kid="bad"),
        lambda: {**jwk(ec_key(), kid="bad"), "crv": "P-384"},
        lambda: jwk(rsa_key(), kid="bad", use="enc"),
        lambda: jwk(rsa_key(), kid="bad", alg="RS512"),
        lambda: jwk(rsa_key(), kid="bad", alg="HS256"),
        lambda: jwk(rsa_key(), kid="bad", key_ops=["encrypt"]),
        lambda: jwk(rsa_key(), kid="bad", key_ops={}),
        lambda: {**jwk(rsa_key(), kid="bad"), "e": "AQ"},
        lambda: {**jwk(rsa_key(), kid="bad"), "e": b64((2**40 + 1).to_bytes(6))},
        lambda: {**jwk(rsa_key(), kid="bad"), "n": 5},
        lambda: {**jwk(rsa_key(), kid="bad"), "n": "AA"},
        lambda: {**jwk(ec_key(), kid="bad"), "x": b64(b"\1" * 32)},
        lambda: {**jwk(ed_key(), kid="bad"), "x": b64(b"\1" * 31)},
        lambda: {**jwk(ed_key(), kid="bad"), "crv": "X25519"},
        lambda: {**jwk(ed_key(), kid="bad"), "kty": ["OKP"]},
        lambda: {**jwk(ed_key(), kid="bad"), "crv": ["Ed25519"]},
        lambda: jwk(ed_key(), kid=["bad"]),
    ],
)
async def test_a_key_that_is_not_believed_is_passed_over_and_the_others_serve(
    world: World, entry: Any
) -> None:
    bad = entry()
    with pytest.raises(KeysRefused):
        key_set_of_jwks(jwks(bad).encode())
    world.publish(bad, jwk(world.key, kid="k1"))
    await accepted(world, world.token())
    signers: dict[str, tuple[str, PrivateKey]] = {
        "RSA": ("RS256", rsa_key("short", 1024) if len(str(bad.get("n"))) < 300 else rsa_key()),
        "EC": ("ES256", ec_key("one", bad.get("crv")) if bad.get("crv") == "secp256k1" else ec_key()),
    }
    alg, key = signers.get(str(bad["kty"]), ("EdDSA", ed_key()))
    await refused(world, token(alg, key, world.claims(), kid="bad"))


async def test_an_es384_key_does_not_serve_es256(world: World) -> None:
    world.publish(jwk(ec_key("one", "P-384"), kid="p384"), jwk(world.key, kid="k1"))
    signed = sealed(
        "ES256",
        ec_key("one", "P-384"),
        json.dumps({"alg": "ES256", "kid": "p384"}),
        json.dumps(world.claims()),
    )
    await refused(world, signed)


async def test_two_different_keys_of_one_name_are_both_unusable(world: World) -> None:
    world.publish(jwk(world.key, kid="k1"), jwk(ed_key("two"), kid="k1"), jwk(ed_key("three"), kid="k3"))
    for name in ("one", "two"):
        await refused(world, token("EdDSA", ed_key(name), world.claims(), kid="k1"))
    await accepted(world, token("EdDSA", ed_key("three"), world.claims(), kid="k3"))


async def test_private_members_of_a_published_key_are_not_taken(world: World) -> None:
    private = ed_key("leaked")
    world.publish({**jwk(private, kid="k5"), "d": b64(private.private_bytes_raw())})
    await accepted(world, token("EdDSA", private, world.claims(), kid="k5"))


async def test_signature_arithmetic_edges_are_refused(three_keys: World) -> None:
    """All zero, r or s zero, too short, too long, DER: none of them verifies or breaks anything."""
    header = b64(json.dumps({"alg": "ES256", "kid": "ec"}).encode())
    signed = f"{header}.{b64(json.dumps(three_keys.claims()).encode())}"
    good = signature("ES256", ec_key(), signed.encode())
    for odd in (b"\0" * 64, good[:32] + b"\0" * 32, b"\0" * 32 + good[32:], good[:63], good + b"\0", b"0"):
        await refused(three_keys, f"{signed}.{b64(odd)}")
