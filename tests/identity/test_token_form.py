"""Attacks on the verifier by a token's form: whatever two readers could take apart differently is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from engines.identity.jose import TOKEN_BYTES_MAX
from tests.identity.judging import accepted, refused
from tests.identity.signing import (
    b64,
    sealed,
    token,
)
from tests.identity.world import World

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
