"""Credentials: from a bearer token or an API key to the user it proves and what it binds.

Owns the one authentication path. Leaves the token to `tokens.py`, the key's form to `keys.py`, and what the
user may be in this request to `derivation.py`.
"""

from __future__ import annotations

from typing import Final

import msgspec
import structlog

from engines.control.directory import Directory
from engines.errors import Forbidden
from engines.identity.keys import PREFIX, is_secret_of, parse_key
from engines.identity.tokens import TokenVerifier, unauthenticated

FOREVER: Final = float("inf")

log = structlog.get_logger(__name__)


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A proven user, and what the credential binds. `role`: an API key's; a token's comes by membership.

    `membership`: at which version that one began for which an API key was made; a later one is not its own.
    `expires_at` is in epoch seconds; `recheck_at`, by the monotonic clock, is when its keys are due.
    """

    kind: str
    user_id: str
    key_id: str | None = None
    made_by: tuple[str, ...] = ()
    role: str | None = None
    membership: int | None = None
    tenant_id: str | None = None
    surface_id: str | None = None
    app_id: str | None = None
    project_id: str | None = None
    mode: str | None = None
    env: str | None = None
    expires_at: float = FOREVER
    recheck_at: float = FOREVER


async def proven(text: str, directory: Directory, verifier: TokenVerifier) -> Credential:
    """Raises Unauthenticated, Forbidden (a valid token of somebody who is no user here), Unavailable."""
    if text.startswith(PREFIX):
        return await _by_key(text, directory)
    return await _by_token(text, directory, verifier)


async def _by_key(text: str, directory: Directory) -> Credential:
    parsed = parse_key(text)
    record = None if parsed is None else await directory.api_key(parsed[0])
    if parsed is None or not is_secret_of(record, parsed[1]) or record is None:
        log.info("an API key was refused", known=record is not None)
        raise unauthenticated()
    return Credential(
        kind="api key",
        user_id=record.user_id,
        key_id=record.key_id,
        made_by=record.made_by,
        role=record.role,
        membership=record.membership,
        tenant_id=record.tenant_id,
        surface_id=record.surface_id,
        env=record.env,
    )


async def _by_token(text: str, directory: Directory, verifier: TokenVerifier) -> Credential:
    token, recheck_at = await verifier.verify(text, directory.issuer_of)
    user = await directory.user_of_identity(token.iss, token.sub)
    if user is None:
        raise Forbidden("the token is valid, and nobody here is bound to its subject")
    return Credential(
        kind="token",
        user_id=user.user_id,
        tenant_id=token.tenant_id,
        surface_id=token.surface_id,
        app_id=token.app_id,
        project_id=token.project_id,
        mode=token.mode,
        env=token.env,
        expires_at=token.expires_at,
        recheck_at=recheck_at,
    )
