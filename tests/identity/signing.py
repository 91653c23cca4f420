"""Tokens made by hand, so that a test can make any token, well formed or not.

Owns real keys of every kind and the parts of a compact token. Nothing here is shared with what verifies.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

HASHES: Final = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
DIGESTS: Final = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | bytes


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def number(value: int, length: int | None = None) -> str:
    return b64(value.to_bytes(length or (value.bit_length() + 7) // 8))


@functools.cache
def rsa_key(name: str = "one", bits: int = 2048) -> rsa.RSAPrivateKey:
    """Made once for each name: it takes a while."""
    del name
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@functools.cache
def ec_key(name: str = "one", curve: str = "P-256") -> ec.EllipticCurvePrivateKey:
    del name
    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "secp256k1": ec.SECP256K1()}
    return ec.generate_private_key(curves[curve])


@functools.cache
def ed_key(name: str = "one") -> ed25519.Ed25519PrivateKey:
    del name
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def jwk(key: PrivateKey, **members: Any) -> dict[str, Any]:
    """The public half as a JSON Web Key."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        public = {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        point = key.public_key().public_numbers()
        curves = {"secp256r1": ("P-256", 32), "secp384r1": ("P-384", 48), "secp256k1": ("secp256k1", 32)}
        name, length = curves[key.curve.name]
        public = {"kty": "EC", "crv": name, "x": number(point.x, length), "y": number(point.y, length)}
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        public = {"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key().public_bytes_raw())}
    else:
        public = {"kty": "oct", "k": b64(key)}
    return {**public, **members}


def jwks(*keys: Mapping[str, Any]) -> str:
    return json.dumps({"keys": keys})


def signature(alg: str, key: PrivateKey, message: bytes) -> bytes:
    """By whatever algorithm a test asks for, with whatever key."""
    family, size = alg[:2], alg[2:]
    if family == "HS":
        assert isinstance(key, bytes)
        return hmac.new(key, message, DIGESTS[size]).digest()
    if family == "RS":
        assert isinstance(key, rsa.RSAPrivateKey)
        return key.sign(message, padding.PKCS1v15(), HASHES[size])
    if family == "PS":
        assert isinstance(key, rsa.RSAPrivateKey)
        mask = padding.PSS(padding.MGF1(HASHES[size]), HASHES[size].digest_size)
        return key.sign(message, mask, HASHES[size])
    if family == "ES":
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(HASHES["256"])))
        length = (key.curve.key_size + 7) // 8
        return r.to_bytes(length) + s.to_bytes(length)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return key.sign(message)


def sealed(alg: str, key: PrivateKey, header_text: str | bytes, payload_text: str | bytes) -> str:
    """A token of exactly these texts, signed properly whatever they say."""
    parts = [text.encode() if isinstance(text, str) else text for text in (header_text, payload_text)]
    signed = ".".join(b64(part) for part in parts)
    return f"{signed}.{b64(signature(alg, key, signed.encode()))}"


def token(alg: str, key: PrivateKey, claims: Mapping[str, Any], **header: Any) -> str:
    """A proper token; `header` adds to, or replaces, its header's members."""
    return sealed(alg, key, json.dumps({"alg": alg, "typ": "JWT", **header}), json.dumps(claims))
