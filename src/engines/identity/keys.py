"""API keys: `ek_<id>_<secret>`.

Owns their form, making one and checking a secret against its stored hash. Leaves the record, which holds the
hash and never the secret, to `control/access.py`, and what a key is bound to, to `derivation.py`.

The secret has 256 random bits, so a plain SHA-256 protects it as well as a slow hash would, and is fast.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from engines.control.records import ApiKey
from engines.ids import Ids

PREFIX: Final = "ek_"
SECRET_BYTES: Final = 32

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# 62**43 > 256**32
_SECRET_CHARACTERS: Final = 43
_KEY: Final = re.compile(rf"ek_([0-9a-f]{{32}})_([0-9A-Za-z]{{{_SECRET_CHARACTERS}}})")
_NO_DIGEST: Final = "0" * 64


class MintedKey:
    """A new key: `key` is shown once to whoever asked for it; `secret_sha256` is what is stored."""

    __slots__ = ("key", "key_id", "secret_sha256")

    def __init__(self, key_id: str, secret: str) -> None:
        self.key_id = key_id
        self.key = f"{PREFIX}{key_id}_{secret}"
        self.secret_sha256 = _digest(secret)

    def __repr__(self) -> str:
        return f"MintedKey({self.key_id})"


def mint_key(ids: Ids) -> MintedKey:
    """A key whose id sorts by the time of its making."""
    return MintedKey(ids.record_id().replace("-", ""), _base62(ids.token(SECRET_BYTES)))


def parse_key(text: str) -> tuple[str, str] | None:
    """(id, secret), or None for what is no key."""
    match = _KEY.fullmatch(text)
    return None if match is None else (match[1], match[2])


def is_secret_of(record: ApiKey | None, secret: str) -> bool:
    """In constant time, and in about the same where there is no such key."""
    expected = _NO_DIGEST if record is None else record.secret_sha256
    matches = hmac.compare_digest(_digest(secret), expected)
    return matches and record is not None and not record.revoked


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _base62(content: bytes) -> str:
    """All characters that a double click selects; always of one length, leading zeros included."""
    number = int.from_bytes(content)
    digits = []
    for _ in range(_SECRET_CHARACTERS):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    assert number == 0
    return "".join(reversed(digits))
