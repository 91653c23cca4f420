"""Attacks on the verifier, each with a token made by hand and signed by a real key.

Every refusal must be the same Unauthenticated, so that nobody learns from it how far a forgery got.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import structlog.testing

from engines.errors import Unauthenticated, Unavailable
from engines.identity.jose import TOKEN_BYTES_MAX
from engines.identity.tokens import LEEWAY_S
from tests.identity.signing import (
    PrivateKey,
    b64,
    ec_key,
    ed_key,
    jwk,
    public_pem,
    rsa_key,
    sealed,
    signature,
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


async def refused(world: World, text: str) -> None:
    """In its first sight and again: no refusal may be remembered as something better."""
    for _ in range(2):
        with structlog.testing.capture_logs() as logs, pytest.raises(Unauthenticated) as caught:
            await world.contexts.context(text)
        assert caught.value.detail == "a valid bearer token or API key is required"
        assert not caught.value.field
        # Neither the token nor what it decodes to, which is where a decoder's error would show it.
        hidden = [part for part in text.split(".") if len(part) > 20] + ["sub-ada"]
        assert not any(part in story_of(caught.value) + str(logs) for part in hidden)


def story_of(error: BaseException | None) -> str:
    """All that an error and what led to it hold."""
    told = ""
    while error is not None:
        told += f"{error!r} {vars(error)} {getattr(error, 'doc', '')} {getattr(error, 'object', '')}"
        error = error.__cause__ or error.__context__
    return told


async def accepted(world: World, text: str) -> None:
    """At first sight and again, from memory."""
    for _ in range(2):
        assert (await world.contexts.context(text)).user_id == "ada"


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


# --- form ---


@pytest.mark.parametrize("member", ["alg", "kid", "typ", "x"])
async def test_a_header_member_named_twice_is_refused(world: World, member: str) -> None:
    values = {"alg": "EdDSA", "kid": "k1", "typ": "JWT", "x": "y"}
    header = json.dumps(values)[:-1] + f', "{member}": "{values[member]}"}}'
    await refused(world, sealed("EdDSA", world.key, header, json.dumps(world.claims())))


@pytest.mark.parametrize("claim", ["sub", "iss", "aud", "exp", "tenant_id"])
async def test_a_claim_named_twice_is_refused(world: World, claim: str) -> None:
    claims = world.claims(tenant_id="t_one")
    payload = json.dumps(claims)[:-1] + f', "{claim}": {json.dumps(claims[claim])}}}'
    await refused(world, sealed("EdDSA", world.key, json.dumps({"alg": "EdDSA", "kid": "k1"}), payload))


async def test_a_member_named_twice_deep_inside_or_by_escapes_is_refused(world: World) -> None:
    header = json.dumps({"alg": "EdDSA", "kid": "k1"})
    for tail in (', "x": {"a": 1, "a": 2}}', r', "\u0073ub": "sub-bob"}'):
        await refused(world, sealed("EdDSA", world.key, header, json.dumps(world.claims())[:-1] + tail))


@pytest.mark.parametrize(
    "member",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"b64": True},
        {"zip": "DEF"},
        {"cty": "JWT"},
        {"enc": "A128GCM"},
        {"typ": "logout+jwt"},
        {"typ": "JWE"},
        {"typ": 5},
        {"typ": None},
    ],
)
async def test_header_members_that_change_the_meaning_are_refused(
    world: World, member: dict[str, Any]
) -> None:
    await refused(world, token("EdDSA", world.key, world.claims(), **{"kid": "k1", **member}))


@pytest.mark.parametrize("part", [0, 1, 2])
async def test_a_change_of_any_part_is_refused(world: World, part: int) -> None:
    text = world.token(tenant_id="t_one")
    await accepted(world, text)
    parts = text.split(".")
    content = bytearray(base64.urlsafe_b64decode(parts[part] + "=="))
    for position in range(0, len(content), 7):
        changed = content.copy()
        changed[position] ^= 1
        tampered = [*parts[:part], b64(bytes(changed)), *parts[part + 1 :]]
        await refused(world, ".".join(tampered))


async def test_the_signature_of_another_token_is_refused(world: World) -> None:
    mine, theirs = world.token("ada").split("."), world.token("bob").split(".")
    await refused(world, ".".join((*mine[:2], theirs[2])))


async def test_a_signature_has_one_spelling(world: World) -> None:
    """The last character of 64 bytes carries four bits that mean nothing: each other one is refused."""
    text = world.token()
    await accepted(world, text)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    group = alphabet.index(text[-1]) & ~0b1111
    twins = {text[:-1] + alphabet[group + low] for low in range(16)} - {text}
    assert len(twins) == 15
    for twin in twins:
        await refused(world, twin)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "=",
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text.replace(".", ".\n", 1),
        lambda text: text.replace(".", ". ", 1),
        lambda text: text + ".",
        lambda text: text + ".AAAA",
        lambda text: text + ".AAAA.AAAA",
        lambda text: text.replace(".", "", 1),
        lambda text: text.rsplit(".", 1)[0] + ".",
        lambda text: text.rsplit(".", 1)[0],
        lambda text: "." + text.split(".", 1)[1],
        lambda text: text[:10] + "+" + text[11:],
        lambda text: text[:10] + "é" + text[11:],
        lambda text: text[:10] + "\ud800" + text[11:],
        lambda text: text[:0],
        lambda text: text[:0] + "..",
        lambda text: "Bearer " + text,
    ],
)
async def test_odd_spellings_of_a_good_token_are_refused(world: World, change: Any) -> None:
    await refused(world, change(world.token()))


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"",
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"\xff\xfe",
        "\ufeff{}".encode(),
        '{"alg": "EdDSA"}'.encode("utf-16"),
        b"[" * 9000,
        b'{"a":' * 1500,
    ],
)
async def test_header_and_claims_are_json_objects_in_utf_8(world: World, text: bytes) -> None:
    header, payload = json.dumps({"alg": "EdDSA", "kid": "k1"}), json.dumps(world.claims())
    await refused(world, sealed("EdDSA", world.key, text, payload))
    await refused(world, sealed("EdDSA", world.key, header, text))


async def test_a_token_within_a_token_is_refused(world: World) -> None:
    header = json.dumps({"alg": "EdDSA", "kid": "k1"})
    await refused(world, sealed("EdDSA", world.key, header, world.token()))
    await refused(world, sealed("EdDSA", world.key, header, json.dumps(world.token())))


async def test_a_token_has_a_limit_of_size(world: World) -> None:
    spare = TOKEN_BYTES_MAX - len(world.token(pad=""))
    longest = world.token(pad="x" * (spare * 3 // 4 - 4))
    assert TOKEN_BYTES_MAX - 8 < len(longest) <= TOKEN_BYTES_MAX
    await accepted(world, longest)
    await refused(world, world.token(pad="x" * (spare * 3 // 4 + 4)))
    await refused(world, "a" * 10_000_000)


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
    from engines.identity.key_ring import KEYS_AGE_MAX_S

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
    await refused(world, world.token())
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
