"""Tokens: from the text of a JSON Web Token to claims that its issuer vouches for.

Owns the claims' rules, the match of algorithm, key and issuer, and the memory of tokens verified before, so
that a token costs its signature once. Every refusal is the same Unauthenticated for the caller; the reason
goes to the operator's log, without the token. Leaves the token's form to `jose.py` and keys to `key_ring.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog

from engines.clock import Clock
from engines.control.records import Issuer
from engines.errors import Invalid, Unauthenticated
from engines.identity.jose import ParsedToken, TokenRefused, parse_token
from engines.identity.key_ring import KeyRing
from engines.identity.key_sources import key_source
from engines.ports.secrets import SecretResolver
from engines.scope import check_env, check_id, check_tenant_id, normalise_surface

# Clocks of issuers differ from ours by seconds. Expiry gets no leeway: a token is dead when it says so.
LEEWAY_S: Final = 30.0
VERIFIED_MAX: Final = 10_000
ISSUERS_MAX: Final = 1_000
ISSUER_CHARACTERS_MAX: Final = 1_024
SUBJECT_CHARACTERS_MAX: Final = 256
AUDIENCES_MAX: Final = 100
INSTANT_MAX_S: Final = 2**53

# Half of a pair: JSON can write it, UTF-8 cannot.
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ASYMMETRIC: Final = frozenset({"RS256", "ES256", "EdDSA"})
_SHARED: Final = frozenset({"HS256"})
# Claims that bind: each is optional, and present it must look as such an id does.
_BINDINGS: Final[tuple[tuple[str, Callable[[str, str], str]], ...]] = (
    ("tenant_id", check_tenant_id),
    ("surface_id", normalise_surface),
    ("app_id", check_id),
    ("project_id", check_id),
    ("mode", check_id),
    ("env", check_env),
)

IssuerOf = Callable[[str], Awaitable[Issuer | None]]
log = structlog.get_logger(__name__)


def unauthenticated() -> Unauthenticated:
    """The one refusal, whatever its reason."""
    return Unauthenticated("a valid bearer token or API key is required")


class VerifiedToken(msgspec.Struct, frozen=True, kw_only=True):
    """What a trusted issuer said. `expires_at` is in epoch seconds."""

    iss: str
    sub: str
    expires_at: float
    tenant_id: str | None = None
    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    mode: str | None = None
    env: str | None = None


class _Remembered(msgspec.Struct, frozen=True):
    issuer: Issuer
    ring: KeyRing
    ring_version: int
    token: VerifiedToken


class TokenVerifier:
    """Verifies tokens of issuers that the control plane trusts."""

    def __init__(self, secrets: SecretResolver, clock: Clock) -> None:
        self._secrets = secrets
        self._clock = clock
        self._rings: OrderedDict[str, tuple[Issuer, KeyRing]] = OrderedDict()
        self._verified: OrderedDict[bytes, _Remembered] = OrderedDict()
        self.generation = 0
        """Grows whenever any issuer's keys become others; what is derived from tokens goes with it."""

    async def verify(self, text: str, issuer_of: IssuerOf) -> tuple[VerifiedToken, float]:
        """The token, and until when by the monotonic clock its keys need not be looked at again.

        Raises Unauthenticated, or Unavailable where the issuer's keys cannot be read.
        """
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
        try:
            remembered = self._verified.get(digest)
            if remembered is None or not await self._still_holds(remembered, issuer_of):
                remembered = await self._verify(text, issuer_of)
            # While that was awaited, other requests may have put it out of what is remembered.
            self._verified[digest] = remembered
            self._verified.move_to_end(digest)
            if len(self._verified) > VERIFIED_MAX:
                self._verified.popitem(last=False)
        except TokenRefused as reason:
            self._verified.pop(digest, None)
            log.info("a token was refused", reason=str(reason))
            raise unauthenticated() from None
        return remembered.token, remembered.ring.recheck_at

    async def close(self) -> None:
        for _, ring in self._rings.values():
            await ring.close()

    async def _still_holds(self, remembered: _Remembered, issuer_of: IssuerOf) -> bool:
        if remembered.token.expires_at <= self._clock.now():
            raise TokenRefused("expired")
        if await issuer_of(remembered.token.iss) != remembered.issuer:
            return False
        await remembered.ring.refresh()
        return remembered.ring.version == remembered.ring_version

    async def _verify(self, text: str, issuer_of: IssuerOf) -> _Remembered:
        parsed = parse_token(text)
        iss = _string(parsed.claims, "iss", ISSUER_CHARACTERS_MAX)
        issuer = await issuer_of(iss)
        if issuer is None or issuer.issuer != iss:
            raise TokenRefused("the issuer is not trusted")
        # The record decides which algorithms there are; a public key can then never serve as a shared secret.
        if parsed.alg not in (_ASYMMETRIC if issuer.hs256_secret is None else _SHARED):
            raise TokenRefused("the algorithm is none of the issuer's")
        ring = self._ring(issuer)
        version = await _check_signature(parsed, issuer, ring)
        token = _checked_claims(parsed.claims, iss, issuer.audience, self._clock.now())
        return _Remembered(issuer, ring, version, token)

    def _ring(self, issuer: Issuer) -> KeyRing:
        known = self._rings.get(issuer.issuer_id)
        if known is not None and known[0] == issuer:
            return known[1]
        ring = KeyRing(
            key_source(issuer, self._secrets),
            self._clock,
            issuer_id=issuer.issuer_id,
            on_change=self._keys_changed,
        )
        self._rings[issuer.issuer_id] = (issuer, ring)
        if len(self._rings) > ISSUERS_MAX:
            self._rings.popitem(last=False)
        return ring

    def _keys_changed(self) -> None:
        self.generation += 1


async def _check_signature(parsed: ParsedToken, issuer: Issuer, ring: KeyRing) -> int:
    """The version of the ring that verified it. Raises TokenRefused, Unavailable."""
    # A shared secret has no name; whatever the token calls it, there is the one.
    kid = parsed.kid if issuer.hs256_secret is None else None
    key = await ring.find(kid, parsed.alg)
    if key is None:
        raise TokenRefused("no key of the issuer has this name and algorithm")
    if not key.verifies(parsed.signing_input, parsed.signature):
        raise TokenRefused("the signature does not verify")
    return ring.version


def _checked_claims(claims: dict[str, Any], iss: str, audience: str, now: float) -> VerifiedToken:
    """Raises TokenRefused."""
    expires_at = _instant(claims, "exp")
    if expires_at is None:
        raise TokenRefused("exp is missing")
    if expires_at <= now:
        raise TokenRefused("expired")
    for claim in ("nbf", "iat"):
        instant = _instant(claims, claim)
        if instant is not None and instant > now + LEEWAY_S:
            raise TokenRefused(f"{claim} is in the future")
    if audience not in _audiences(claims):
        raise TokenRefused("made for another audience")
    return VerifiedToken(
        iss=iss,
        sub=_string(claims, "sub", SUBJECT_CHARACTERS_MAX),
        expires_at=expires_at,
        **{claim: _binding(claims, claim, check) for claim, check in _BINDINGS},
    )


def _audiences(claims: dict[str, Any]) -> list[str]:
    found = claims.get("aud")
    listed = [found] if isinstance(found, str) else found
    if (
        not isinstance(listed, list)
        or len(listed) > AUDIENCES_MAX
        or not all(isinstance(name, str) for name in listed)
    ):
        raise TokenRefused("aud is neither a string nor a list of strings")
    return listed


def _instant(claims: dict[str, Any], claim: str) -> float | None:
    if claim not in claims:
        return None
    value = claims[claim]
    # The comparison is false for NaN, and exact for an integer of any size.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= INSTANT_MAX_S:
        raise TokenRefused(f"{claim} is no number of seconds")
    return float(value)


def _string(claims: dict[str, Any], claim: str, characters_max: int) -> str:
    value = claims.get(claim)
    if not isinstance(value, str) or not 0 < len(value) <= characters_max or _SURROGATE.search(value):
        raise TokenRefused(f"{claim} is no text of 1 to {characters_max} characters")
    return value


def _binding(claims: dict[str, Any], claim: str, check: Callable[[str, str], str]) -> str | None:
    value = claims.get(claim)
    if value is None:
        return None
    if not isinstance(value, str):
        raise TokenRefused(f"{claim} is no string")
    try:
        return check(value, claim)
    except Invalid:
        raise TokenRefused(f"{claim} breaks its pattern") from None
