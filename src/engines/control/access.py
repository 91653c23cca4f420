"""API keys and trusted issuers: the two kinds of credential, as data.

Owns who may mint and revoke keys and what a key may be bound to. Leaves making and checking the secret to
`identity/keys.py`, which hands its hash in, and verifying tokens to `identity/tokens.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from engines.control.records import MADE_BY_MAX, ApiKey, Issuer
from engines.control.service import Service, actor, require_in_tenant, require_system_admin
from engines.control.store import Actor, Listing, Stored
from engines.control.tables import ISSUERS, KEYS, MEMBERSHIPS, TENANTS, surface_key
from engines.control.tenants import require_may_grant
from engines.core.idempotency import Request
from engines.core.records import ANYTHING, Condition
from engines.core.secrets import parse_handle
from engines.errors import Conflict, Forbidden, Invalid
from engines.ports.documents import SCAN_LIMIT_MAX
from engines.scope import RequestContext, normalise_surface

# May send beacons and do nothing else, so that a key of it may be seen.
BEACON_ROLE: Final = "beacon"
# No id is so: where no key stands, and every condition and sentence is that of a key that is not there.
_NOBODYS: Final = "-"


class Keys:
    """API keys of a tenant."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    async def create(
        self,
        context: RequestContext,
        *,
        key_id: str,
        secret_sha256: str,
        user_id: str,
        role: str,
        name: str | None = None,
        origins: Sequence[str] = (),
        surface_id: str | None = None,
        env: str | None = None,
        request: Request | None = None,
    ) -> Stored[ApiKey]:
        """Record a key whose secret the caller made.

        Raises Forbidden, Invalid (no accepted member, no such role, surface or env, origins for a key that
        is not published).
        """
        require_in_tenant(context, "keys.write")
        made_by = _makers(context, user_id)
        await self._service.admit(context)
        if origins and role != BEACON_ROLE:
            raise Invalid(f"only a key of the role {BEACON_ROLE} stands in pages", field="origins")
        tenant_id = context.target_tenant_id

        async def build(existing: ApiKey | None) -> ApiKey:
            if existing is not None:
                raise Conflict("a key with this id exists")
            await require_may_grant(self._store, context, role)
            membership = await self._store.read(MEMBERSHIPS, tenant_id, user_id)
            if membership is None or membership.record.status != "accepted":
                raise Invalid("the user is no accepted member of the tenant", field="user_id")
            # A key acts as its user, so nobody makes one for somebody who may do more than they.
            await require_may_grant(self._store, context, membership.record.role)
            return ApiKey(
                key_id=key_id,
                tenant_id=tenant_id,
                user_id=user_id,
                role=role,
                name=name,
                origins=tuple(origins),
                surface_id=None if surface_id is None else await self._surface(surface_id),
                env=None if env is None else await self._env(tenant_id, env),
                made_by=made_by,
                secret_sha256=secret_sha256,
                membership=membership.record.began_at_version,
            )

        who = _telling(actor(context, tenant_id), user_id, role)
        return await self._store.put(KEYS, [key_id], build, actor=who, request=request)

    async def _surface(self, spelling: str) -> str:
        found = await self._store.resolve_index(surface_key(normalise_surface(spelling)))
        if found is None:
            raise Invalid("there is no such surface", field="surface_id")
        return str(found)

    async def _env(self, tenant_id: str, env: str) -> str:
        tenant = await self._store.read(TENANTS, tenant_id)
        if tenant is None or env not in tenant.record.envs:
            raise Invalid("the tenant declares no such env", field="env")
        return env

    async def list(
        self, context: RequestContext, *, after: str | None = None, limit: int = 100, descending: bool = False
    ) -> Listing[ApiKey]:
        """The tenant's keys, by id."""
        require_in_tenant(context, "keys.write")
        prefix = ("i", "keys", context.target_tenant_id)
        limit = min(limit, SCAN_LIMIT_MAX - 1)
        key_ids = await self._store.scan_index(*prefix, after=after, limit=limit + 1, descending=descending)
        found = [await self._store.read(KEYS, key_id) for key_id in key_ids[:limit]]
        return Listing(
            tuple(stored for stored in found if stored is not None),
            key_ids[limit - 1] if len(key_ids) > limit else None,
        )

    async def revoke(
        self,
        context: RequestContext,
        key_id: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[ApiKey]:
        """It stops working everywhere within a second.

        Raises NotFound, PreconditionFailed; of another tenant's key whatever of a key that is nobody's.
        """
        require_in_tenant(context, "keys.write")
        await self._service.admit(context)
        tenant_id = context.target_tenant_id
        standing = await self._store.read(KEYS, key_id)
        who = actor(context, tenant_id)
        if standing is not None and standing.record.tenant_id != tenant_id:
            key_id = _NOBODYS
        elif standing is not None:
            who = _telling(who, standing.record.user_id, standing.record.role)

        async def check(existing: ApiKey) -> ApiKey:
            if existing.tenant_id != tenant_id:  # A key never changes hands; it was not there a moment ago.
                raise Conflict("the key is being made")
            await require_may_grant(self._store, context, existing.role)
            return msgspec.structs.replace(existing, revoked=True)

        return await self._store.delete(
            KEYS, [key_id], actor=who, condition=condition, request=request, check=check
        )


def _makers(context: RequestContext, user_id: str) -> tuple[str, ...]:
    """Everybody but the user themselves who may know the secret of a key for them. Raises Forbidden."""
    makers = dict.fromkeys((context.user_id, *context.key_made_by))
    makers.pop(user_id, None)
    if len(makers) > MADE_BY_MAX:
        raise Forbidden(f"the key would have gone through more than {MADE_BY_MAX} hands: sign in to make it")
    return tuple(makers)


def _telling(who: Actor, user_id: str, role: str) -> Actor:
    """The audit names whom a key stands for, and as what: its id says nothing."""
    return msgspec.structs.replace(who, about={"user_id": user_id, "role": role})


class Issuers:
    """Whose tokens are believed; t_system's admins alone decide it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    async def put(
        self,
        context: RequestContext,
        issuer: Issuer,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[Issuer]:
        """Raises Forbidden, Invalid (not one source of keys), Conflict (another record has the issuer)."""
        require_system_admin(context)
        await self._service.admit(context)
        sources = [issuer.jwks_file, issuer.jwks_url, issuer.hs256_secret]
        if sum(source is not None for source in sources) != 1:
            raise Invalid("give exactly one of jwks_file, jwks_url and hs256_secret", field="jwks_url")
        if issuer.hs256_secret is not None:
            parse_handle(issuer.hs256_secret)

        async def build(_: Issuer | None) -> Issuer:
            return issuer

        return await self._store.put(
            ISSUERS, [issuer.issuer_id], build, actor=actor(context), condition=condition, request=request
        )

    async def get(self, context: RequestContext, issuer_id: str) -> Stored[Issuer]:
        require_system_admin(context)
        return await self._store.get(ISSUERS, issuer_id)

    async def delete(
        self,
        context: RequestContext,
        issuer_id: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[Issuer]:
        require_system_admin(context)
        await self._service.admit(context)
        return await self._store.delete(
            ISSUERS, [issuer_id], actor=actor(context), condition=condition, request=request
        )
