"""Keys that verify signatures: one algorithm a key, decided by the key and never by the token.

Owns which keys are believed (RSA of 2,048 to 8,192 bits for RS256, P-256 for ES256, Ed25519 for EdDSA, a
shared secret of at least 32 bytes for HS256) and reading them from a JSON Web Key Set (RFC 7517). Leaves
where a set comes from to `key_sources.py` and keeping it fresh to `key_ring.py`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from engines.identity.jose import KID_CHARACTERS_MAX

KEYS_MAX: Final = 100
RSA_BITS_MIN: Final = 2_048
# Verifying costs time with the size of the key, and anyone may ask for it.
RSA_BITS_MAX: Final = 8_192
RSA_EXPONENT_MAX: Final = 2**32
# RFC 7518, section 3.2: a key of the size of the hash output or larger.
SECRET_BYTES_MIN: Final = 32

# Key type and curve -> (algorithm, class, the members that make the public key).
_KINDS: Final[Mapping[tuple[str, str | None], tuple[str, type[Any], tuple[str, ...]]]] = {
    ("RSA", None): ("RS256", RSAKey, ("n", "e")),
    ("EC", "P-256"): ("ES256", ECKey, ("crv", "x", "y")),
    ("OKP", "Ed25519"): ("EdDSA", OKPKey, ("crv", "x")),
}

log = structlog.get_logger(__name__)


class KeysRefused(Exception):
    """What should hold keys holds none that can be believed."""


class VerifyingKey:
    """One public key or shared secret, for one algorithm."""

    __slots__ = ("_key", "_model", "alg", "identity")

    def __init__(self, alg: str, key: Key) -> None:
        self.alg = alg
        self.identity = key.thumbprint()
        """Equal for equal keys, and says nothing about a secret one could use."""
        self._key = key
        self._model = JWSRegistry.algorithms[alg]
        self._model.check_key(key)

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        try:
            return self._model.verify(signing_input, signature, self._key)
        except (JoseError, ValueError):
            return False


class KeySet:
    """The keys of one issuer, by (kid, alg). Immutable."""

    def __init__(self, keys: Mapping[tuple[str | None, str], VerifyingKey]) -> None:
        self._keys = dict(keys)
        self.identity = frozenset((kid, alg, key.identity) for (kid, alg), key in self._keys.items())

    def find(self, kid: str | None, alg: str) -> VerifyingKey | None:
        """The key of that name and algorithm; for a token that names none, the only one of the algorithm."""
        if kid is not None:
            return self._keys.get((kid, alg))
        fitting = [key for key in self._keys.values() if key.alg == alg]
        return fitting[0] if len(fitting) == 1 else None


def key_set_of_secret(secret: str) -> KeySet:
    """The one key of an issuer that shares a secret. Raises KeysRefused for one that could be guessed."""
    content = secret.encode()
    if len(content) < SECRET_BYTES_MIN:
        raise KeysRefused(f"a shared secret has at least {SECRET_BYTES_MIN} bytes")
    try:
        key = VerifyingKey("HS256", OctKey.import_key(content))
    except (JoseError, ValueError):
        raise KeysRefused("the shared secret is no key of this kind") from None
    return KeySet({(None, "HS256"): key})


def key_set_of_jwks(text: bytes) -> KeySet:
    """The usable keys of a set; others are passed over, as RFC 7517, section 5 says. Raises KeysRefused."""
    listed = _listed(text)
    if not isinstance(listed, list) or len(listed) > KEYS_MAX:
        raise KeysRefused(f"not a JSON Web Key Set of at most {KEYS_MAX} keys")
    found: dict[tuple[str | None, str], VerifyingKey] = {}
    ambiguous: set[tuple[str | None, str]] = set()
    for entry in listed:
        try:
            name, key = _key_of(entry)
        except KeysRefused as reason:
            log.info("a key of a set is passed over", reason=str(reason))
            continue
        if name in found and found[name].identity != key.identity:
            ambiguous.add(name)
        found[name] = key
    for name in ambiguous:
        log.warning("two keys of a set have one name and neither is used", kid=name[0], alg=name[1])
        del found[name]
    if not found:
        raise KeysRefused("no key of the set can be used")
    return KeySet(found)


def _listed(text: bytes) -> Any:
    """None where there is no list. A decoder's error may hold the text, so it may not become a context."""
    try:
        return msgspec.json.decode(text)["keys"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return None


def _key_of(entry: Any) -> tuple[tuple[str | None, str], VerifyingKey]:
    """Raises KeysRefused for a key that is not of a kind believed here, or not for verifying signatures."""
    if not isinstance(entry, dict):
        raise KeysRefused("no object")
    kid, curve, kind = entry.get("kid"), entry.get("crv"), entry.get("kty")
    if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= KID_CHARACTERS_MAX):
        raise KeysRefused("kid is no name")
    if not isinstance(kind, str) or not isinstance(curve, str | None) or (kind, curve) not in _KINDS:
        raise KeysRefused("kty and crv are of no kind believed here")
    alg, key_class, members = _KINDS[kind, curve]
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or entry.get("alg", alg) != alg:
        raise KeysRefused("use or alg says that it is for something else")
    if not isinstance(operations, list) or "verify" not in operations:
        raise KeysRefused("key_ops says that it is for something else")
    # Of a set that shows private members, only the public ones are taken.
    public = {"kty": kind, **{member: entry.get(member) for member in members}}
    try:
        if kind == "RSA":
            _check_rsa(public)
        return (kid, alg), VerifyingKey(alg, key_class.import_key(public))
    except (JoseError, ValueError, TypeError, KeyError, OverflowError, AttributeError):
        raise KeysRefused("its members make no key") from None


def _check_rsa(public: Mapping[str, Any]) -> None:
    modulus, exponent = _integer(public["n"]), _integer(public["e"])
    if not RSA_BITS_MIN <= modulus.bit_length() <= RSA_BITS_MAX:
        raise KeysRefused(f"an RSA key has {RSA_BITS_MIN} to {RSA_BITS_MAX} bits")
    if exponent < 3 or exponent % 2 == 0 or exponent > RSA_EXPONENT_MAX:
        raise KeysRefused("the exponent of an RSA key is odd and from 3 to 2**32")


def _integer(text: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
