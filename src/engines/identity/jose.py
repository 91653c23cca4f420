"""The compact form of a signed token, taken apart strictly.

Owns what a token must look like before anything in it is believed: three parts of canonical base64url, a
header and claims that are JSON objects in UTF-8 with no member named twice, and header members that change
the meaning of a signature refused. Leaves keys to `jwks.py`, claims to `tokens.py` and the signature
arithmetic to joserfc.

Strictness is the point. A token that two readers could take apart differently is refused, because the other
reader is whoever issued it.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any, Final

import msgspec

TOKEN_BYTES_MAX: Final = 16 * 1024
KID_CHARACTERS_MAX: Final = 256

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")
# A token made for another purpose says so in `typ` (RFC 8725, section 3.11); these say: an access token.
_TYPES: Final = frozenset({"jwt", "application/jwt", "at+jwt", "application/at+jwt"})
# `crit` names extensions that a reader must understand, and none is understood here. `b64` and `zip` change
# how the payload is read; `cty` says that the payload is itself a token.
_REFUSED_MEMBERS: Final = ("crit", "b64", "zip", "cty", "enc")


class TokenRefused(Exception):
    """The token does not verify. The reason is for the operator's log and holds nothing of the token."""


class ParsedToken(msgspec.Struct, frozen=True):
    """A token taken apart; nothing in it is proven yet."""

    alg: str
    kid: str | None
    claims: dict[str, Any]
    signing_input: bytes
    signature: bytes


def parse_token(token: str) -> ParsedToken:
    """Raises TokenRefused."""
    if len(token) > TOKEN_BYTES_MAX:
        raise TokenRefused(f"longer than {TOKEN_BYTES_MAX} bytes")
    parts = token.split(".")
    if len(parts) != 3:
        raise TokenRefused(f"{len(parts)} parts and not 3")
    header = _object(_decoded(parts[0], "header"), "header")
    claims = _object(_decoded(parts[1], "payload"), "payload")
    signature = _decoded(parts[2], "signature")
    return ParsedToken(
        alg=_checked_alg(header),
        kid=_checked_kid(header),
        claims=claims,
        signing_input=f"{parts[0]}.{parts[1]}".encode(),
        signature=signature,
    )


def _checked_alg(header: dict[str, Any]) -> str:
    for member in _REFUSED_MEMBERS:
        if member in header:
            raise TokenRefused(f"the header has {member}")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise TokenRefused("typ is not an access token's")
    alg = header.get("alg")
    if not isinstance(alg, str):
        raise TokenRefused("alg is no string")
    return alg


def _checked_kid(header: dict[str, Any]) -> str | None:
    """A name to look up in a dictionary, and nothing else: never a path, an address or part of a query."""
    if "kid" not in header:
        return None
    kid = header["kid"]
    if not isinstance(kid, str) or not 0 < len(kid) <= KID_CHARACTERS_MAX:
        raise TokenRefused("kid is no string of a key's name")
    return kid


def _decoded(part: str, name: str) -> bytes:
    """Canonical base64url alone: a signature has one spelling, so a cached token has no twin."""
    if not _BASE64URL.fullmatch(part):
        raise TokenRefused(f"the {name} is not base64url")
    try:
        decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError as error:
        raise TokenRefused(f"the {name} is not base64url") from error
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != part.encode():
        raise TokenRefused(f"the {name} is not canonical base64url")
    return decoded


def _object(text: bytes, name: str) -> dict[str, Any]:
    value = _json(text)
    if not isinstance(value, dict):
        raise TokenRefused(f"the {name} is no JSON object")
    return value


def _json(text: bytes) -> Any:
    """None where it is none. A decoder's error holds the text, so it may not become a context."""
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise TokenRefused("a member is named twice")
    return found


def _refuse_constant(_: str) -> None:
    raise TokenRefused("NaN or Infinity is no JSON")
