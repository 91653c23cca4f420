"""Attacks on the verifier: algorithms, keys and claims, each in a token made by hand and properly signed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engines.identity.tokens import LEEWAY_S
from tests.identity.judging import accepted, refused
from tests.identity.signing import (
    PrivateKey,
    b64,
    ec_key,
    ed_key,
    jwk,
    public_pem,
    rsa_key,
    sealed,
    token,
)
from tests.identity.world import AUDIENCE, HOUR_S, ISSUER, World, without

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


# --- what is right ---


@pytest.mark.parametrize("alg", KINDS)
async def test_each_algorithm_verifies_with_its_own_kind_of_key(three_keys: World, alg: str) -> None:
    key, kid = KINDS[alg]
    await accepted(three_keys, token(alg, key, three_keys.claims(), kid=kid))


async def test_a_shared_secret_verifies_by_its_handle(world: World) -> None:
    (world.path / "secrets.json").write_text(json.dumps({"issuer": SHARED}))
    await world.put_issuer(hs256_secret="json:issuer")
    await accepted(world, token("HS256", SHARED.encode(), world.claims()))
    await refused(world, token("HS256", b"x" * 32, world.claims()))


async def test_a_token_without_kid_means_the_only_key_of_its_algorithm(world: World) -> None:
    await accepted(world, token("EdDSA", world.key, world.claims()))
    world.publish(jwk(world.key, kid="k1"), jwk(ed_key("two"), kid="k2"))
    await world.pass_time(2)
    await refused(world, token("EdDSA", world.key, world.claims()))


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE]])
async def test_an_audience_may_be_a_string_or_a_list(world: World, audience: Any) -> None:
    await accepted(world, world.token(aud=audience))


@pytest.mark.parametrize("typ", ["JWT", "jwt", "at+jwt", "application/at+jwt"])
async def test_the_types_of_access_tokens_are_read(world: World, typ: str) -> None:
    await accepted(world, token("EdDSA", world.key, world.claims(), kid="k1", typ=typ))


async def test_members_that_point_to_other_keys_are_not_followed(world: World) -> None:
    """A token of our own issuer may carry them; they are simply never looked at."""
    extra = {"jku": "http://127.0.0.1:1/jwks", "x5u": "http://127.0.0.1:1/cert", "x5t": "AAAA"}
    await accepted(world, token("EdDSA", world.key, world.claims(), kid="k1", **extra))


# --- algorithms ---


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", " none", "none "])
@pytest.mark.parametrize("ending", ["", "AA"])
async def test_alg_none_is_refused_in_every_spelling(world: World, alg: str, ending: str) -> None:
    header = json.dumps({"alg": alg, "kid": "k1"})
    await refused(world, f"{b64(header.encode())}.{b64(json.dumps(world.claims()).encode())}.{ending}")


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("form", ["pem", "pem without its last line end", "jwk", "modulus"])
async def test_a_public_key_is_no_shared_secret(three_keys: World, alg: str, form: str) -> None:
    public = jwk(rsa_key(), kid="rsa")
    secrets = {
        "pem": public_pem(rsa_key()),
        "pem without its last line end": public_pem(rsa_key()).rstrip(),
        "jwk": json.dumps(public).encode(),
        "modulus": public["n"].encode(),
    }
    await refused(three_keys, token(alg, secrets[form], three_keys.claims(), kid="rsa"))


async def test_a_symmetric_key_in_a_key_set_is_not_used(world: World) -> None:
    world.publish(jwk(SHARED.encode(), kid="shared", alg="HS256"), jwk(world.key, kid="k1"))
    await refused(world, token("HS256", SHARED.encode(), world.claims(), kid="shared"))
    await accepted(world, world.token())


@pytest.mark.parametrize("alg", KINDS)
async def test_an_issuer_with_a_shared_secret_accepts_no_signature(world: World, alg: str) -> None:
    (world.path / "secrets.json").write_text(json.dumps({"issuer": public_pem(rsa_key()).decode()[:200]}))
    await world.put_issuer(hs256_secret="json:issuer")
    key, kid = KINDS[alg]
    await refused(world, token(alg, key, world.claims(), kid=kid))


@pytest.mark.parametrize("alg", ["PS256", "PS512", "RS384", "RS512"])
async def test_other_algorithms_of_the_right_key_are_refused(three_keys: World, alg: str) -> None:
    await refused(three_keys, token(alg, rsa_key(), three_keys.claims(), kid="rsa"))


@pytest.mark.parametrize("alg", KINDS)
@pytest.mark.parametrize("said", [*KINDS, "HS256"])
async def test_the_algorithm_must_be_the_keys_own(three_keys: World, alg: str, said: str) -> None:
    """Signed by one key, and said to be by another algorithm under that key's name."""
    if alg == said:
        return
    key, kid = KINDS[alg]
    header = json.dumps({"alg": said, "kid": kid})
    await refused(three_keys, sealed(alg, key, header, json.dumps(three_keys.claims())))


@pytest.mark.parametrize("alg", [None, 5, True, ["EdDSA"], {"a": 1}])
async def test_alg_must_be_a_string(world: World, alg: Any) -> None:
    await refused(
        world, sealed("EdDSA", world.key, json.dumps({"alg": alg, "kid": "k1"}), json.dumps(world.claims()))
    )


# --- keys ---


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/dev/null",
        "file:///etc/passwd",
        "http://127.0.0.1:1/key",
        "k1' OR '1'='1",
        "k1' UNION SELECT 'x",
        "k1\x00",
        "K1",
        " k1",
        "",
        "x" * 257,
        5,
        True,
        None,
        ["k1"],
        {"k1": "k1"},
    ],
)
async def test_kid_is_a_name_in_a_dictionary_and_nothing_else(world: World, kid: Any) -> None:
    await refused(world, token("EdDSA", world.key, world.claims(), kid=kid))
    # An empty file, as a key, is what `/dev/null` as a path would give.
    await refused(world, token("HS256", b"\0", world.claims(), kid=kid))


async def test_an_unknown_key_is_refused(world: World) -> None:
    await refused(world, token("EdDSA", ed_key("stranger"), world.claims(), kid="k9"))


async def test_another_key_under_a_known_name_is_refused(world: World) -> None:
    await refused(world, token("EdDSA", ed_key("stranger"), world.claims(), kid="k1"))


async def test_a_key_that_the_token_brings_along_is_not_used(world: World) -> None:
    stranger = ed_key("stranger")
    for kid in ("k1", "k9"):
        await refused(
            world, token("EdDSA", stranger, world.claims(), kid=kid, jwk=jwk(stranger, kid=kid), x5c=["AAAA"])
        )


async def test_the_key_of_another_issuer_is_refused(world: World) -> None:
    other = world.path / "other.json"
    other.write_text(json.dumps({"keys": [jwk(ed_key("other"), kid="k2")]}))
    await world.put_issuer(issuer_id="other", issuer="https://other.test/", jwks_file=str(other))
    await refused(world, token("EdDSA", ed_key("other"), world.claims(), kid="k2"))
    # And the other issuer vouches for its own subjects alone, whatever they are called.
    claims = world.claims(iss="https://other.test/")
    with pytest.raises(Exception, match="nobody here is bound") as caught:
        await world.contexts.context(token("EdDSA", ed_key("other"), claims, kid="k2"))
    assert type(caught.value).__name__ == "Forbidden"


# --- claims ---


@pytest.mark.parametrize(
    "iss",
    [
        "https://issuer.test",
        "https://ISSUER.test/",
        " https://issuer.test/",
        "https://issuer.test/\x00",
        "https://evil.test/",
        "",
        5,
        [ISSUER],
        None,
        "\ud800",
        "x" * 2000,
    ],
)
async def test_the_issuer_matches_exactly(world: World, iss: Any) -> None:
    await refused(world, world.token(iss=iss))


@pytest.mark.parametrize(
    "aud",
    ["other", "engines2", "Engines", ["other"], [], [[AUDIENCE]], {AUDIENCE: 1}, 5, None, "", [5, AUDIENCE]],
)
async def test_a_token_for_another_audience_is_refused(world: World, aud: Any) -> None:
    await refused(world, world.token(aud=aud))


@pytest.mark.parametrize("sub", ["", 5, None, ["sub-ada"], True, "x" * 257, "\udfff"])
async def test_the_subject_is_a_short_string(world: World, sub: Any) -> None:
    await refused(world, world.token(sub=sub))


async def test_expiry_is_required(world: World) -> None:
    await refused(
        world,
        sealed("EdDSA", world.key, json.dumps({"alg": "EdDSA", "kid": "k1"}), without(world.claims(), "exp")),
    )


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", ['"1900000000"', "true", "null", "[1900000000]", "1e999", "1" + "0" * 400])
async def test_instants_are_numbers(world: World, claim: str, value: str) -> None:
    payload = without(world.claims(), claim)[:-1] + f', "{claim}": {value}}}'
    await refused(world, sealed("EdDSA", world.key, json.dumps({"alg": "EdDSA", "kid": "k1"}), payload))


async def test_a_token_ends_at_its_expiry_to_the_second_without_leeway(world: World) -> None:
    text = world.token()
    await world.pass_time(HOUR_S - 0.5)
    await accepted(world, text)
    await world.pass_time(0.5)
    await refused(world, text)


async def test_an_expired_token_is_refused_at_first_sight(world: World) -> None:
    await refused(world, world.token(exp=int(world.clock.now())))
    await refused(world, world.token(exp=-1))


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_a_token_may_be_ahead_by_the_leeway_and_no_more(world: World, claim: str) -> None:
    now = world.clock.now()
    await accepted(world, world.token(**{claim: now + LEEWAY_S}))
    early = world.token(**{claim: now + LEEWAY_S + 1})
    await refused(world, early)
    await world.pass_time(1)
    await accepted(world, early)


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("tenant_id", "t_ONE"),
        ("tenant_id", "one"),
        ("tenant_id", ["t_one"]),
        ("tenant_id", 5),
        ("tenant_id", ""),
        ("surface_id", "a/b"),
        ("surface_id", {}),
        ("app_id", "../x"),
        ("project_id", "x" * 129),
        ("mode", ""),
        ("env", "PROD"),
    ],
)
async def test_a_claim_that_binds_has_the_pattern_of_what_it_binds(
    world: World, claim: str, value: Any
) -> None:
    await refused(world, world.token(**{claim: value}))
