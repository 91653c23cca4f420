"""The control plane: tenants, people, products, credentials.

Owns paths, parameters and types of these records. Leaves backends and routes to `client/routing.py`; who may
call what is the server's to say (Forbidden). Records that many people change are replaced under `if_match`
only.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from engines.client.calls import NOTHING, Calls, Condition, Order
from engines.client.control_results import (
    ApiKey,
    DataSubject,
    Issuer,
    Membership,
    Mode,
    RateLimit,
    RateLimitPolicy,
    Tenant,
    User,
    UserIdentity,
)
from engines.client.results import Page

T = TypeVar("T")


class Collection(Generic[T]):
    """Records under one path: made, read, listed and changed in part. `fields` are a record's own members."""

    def __init__(self, calls: Calls, path: str, kind: type[T]) -> None:
        self._calls = calls
        self._path = path
        self._kind = kind

    async def create(self, fields: Mapping[str, Any], *, idempotency_key: str | None = None) -> T:
        """Raises Conflict where the id is taken, Invalid, Forbidden."""
        return await self._calls.change(
            self._kind, "POST", self._path, body=dict(fields), idempotency_key=idempotency_key
        )

    async def get(self, record_id: str) -> T:
        """One record. Raises NotFound."""
        return await self._calls.get(self._kind, self._path, record_id)

    async def page(
        self, *, limit: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Page[T]:
        """One page, by name."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(self._kind, self._path, query=query)

    def each(self, *, order: Order | None = None) -> AsyncGenerator[T, None]:
        """Every record."""
        return self._calls.each(self._kind, self._path, query={"order": order})

    async def patch(
        self,
        record_id: str,
        changes: Mapping[str, Any],
        *,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> T:
        """Replace some members. Raises NotFound, PreconditionFailed, Invalid."""
        return await self._calls.change(
            self._kind,
            "PATCH",
            *(self._path, record_id),
            body=dict(changes),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )


class Tenants:
    """The isolation boundaries; t_system's admins make them."""

    def __init__(self, calls: Calls) -> None:
        self._all: Collection[Tenant] = Collection(calls, "tenants", Tenant)

    async def create(
        self,
        tenant_id: str,
        *,
        name: str,
        mode: str,
        default_surface_id: str,
        envs: Sequence[str] = ("prod",),
        default_env: str | None = None,
        idempotency_key: str | None = None,
    ) -> Tenant:
        """Raises Conflict where the id is taken. `default_env` is the first of `envs` unless given."""
        fields = {
            "tenant_id": tenant_id,
            "name": name,
            "mode": mode,
            "envs": list(envs),
            "default_env": default_env or envs[0],
            "default_surface_id": default_surface_id,
        }
        return await self._all.create(fields, idempotency_key=idempotency_key)

    async def get(self, tenant_id: str) -> Tenant:
        """Raises ContextMismatch for a tenant that is not the caller's."""
        return await self._all.get(tenant_id)

    async def page(
        self, *, limit: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Page[Tenant]:
        """All of them for a t_system admin, the caller's own for others."""
        return await self._all.page(limit=limit, after=after, order=order)

    def each(self, *, order: Order | None = None) -> AsyncGenerator[Tenant, None]:
        """Every tenant that the caller may see."""
        return self._all.each(order=order)

    async def patch(
        self,
        tenant_id: str,
        changes: Mapping[str, Any],
        *,
        if_match: str,
        idempotency_key: str | None = None,
    ) -> Tenant:
        """Change some members of the tenant as it was read.

        Raises PreconditionFailed, Forbidden (the mode).
        """
        return await self._all.patch(tenant_id, changes, if_match=if_match, idempotency_key=idempotency_key)


class Users:
    """People and agents; t_system's admins write them."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._all: Collection[User] = Collection(calls, "users", User)

    async def create(
        self,
        user_id: str,
        *,
        name: str | None = None,
        identities: Sequence[UserIdentity] = (),
        idempotency_key: str | None = None,
    ) -> User:
        """Raises Conflict where the id or an identity is taken."""
        fields: dict[str, Any] = {"user_id": user_id, "identities": list(identities)}
        if name is not None:
            fields["name"] = name
        return await self._all.create(fields, idempotency_key=idempotency_key)

    async def page(
        self, *, limit: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Page[User]:
        """One page, by id."""
        return await self._all.page(limit=limit, after=after, order=order)

    def each(self, *, order: Order | None = None) -> AsyncGenerator[User, None]:
        """Every user."""
        return self._all.each(order=order)

    async def erase(self, user_id: str) -> DataSubject:
        """End the user's membership, and remove or redact what they left in the caller's tenant.

        A call works for some ten seconds. Call again while `erasure.state` is `running`: it goes on where
        it was. Raises Conflict (`reason_code` `legal_hold` or `not_retired`; the caller's own data),
        Forbidden, NotFound (never a member).
        """
        return await self._calls.change(DataSubject, "POST", "users", user_id, "erase")

    async def erasure(self, user_id: str) -> DataSubject:
        """Whether the user's data is held, and how far their erasure is. Raises NotFound for neither."""
        return await self._calls.get(DataSubject, "users", user_id, "erase")

    async def hold(
        self, user_id: str, *, reason: str, if_match: str | None = None, idempotency_key: str | None = None
    ) -> DataSubject:
        """Keep all that the user left in the tenant: nothing erases it until the hold is lifted."""
        return await self._calls.change(
            DataSubject,
            "PUT",
            *("users", user_id, "hold"),
            body={"reason": reason},
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def lift_hold(
        self, user_id: str, *, if_match: str | None = None, idempotency_key: str | None = None
    ) -> None:
        """End the hold. Raises NotFound where there is none."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("users", user_id, "hold"),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )


class Members:
    """Who belongs to a tenant: invited by its admins, accepted by the user alone."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def put(
        self,
        tenant_id: str,
        user_id: str,
        *,
        role: str,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> Membership:
        """Invite, or change the role of a member.

        Raises Forbidden for a role that may more than the caller.
        """
        return await self._calls.change(
            Membership,
            "PUT",
            *("tenants", tenant_id, "members", user_id),
            body={"role": role},
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def get(self, tenant_id: str, user_id: str) -> Membership:
        """One membership. Raises NotFound."""
        return await self._calls.get(Membership, "tenants", tenant_id, "members", user_id)

    async def accept(self, tenant_id: str, user_id: str, *, idempotency_key: str | None = None) -> Membership:
        """The invited user's own answer. Raises ContextMismatch where nobody invited them."""
        return await self._calls.change(
            Membership,
            "POST",
            *("tenants", tenant_id, "members", user_id, "accept"),
            idempotency_key=idempotency_key,
        )

    async def delete(
        self,
        tenant_id: str,
        user_id: str,
        *,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Revoke: within a second no token or key of theirs reaches the tenant. Raises NotFound."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("tenants", tenant_id, "members", user_id),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )


class Keys:
    """API keys of the caller's tenant."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._all: Collection[ApiKey] = Collection(calls, "keys", ApiKey)

    async def create(
        self,
        user_id: str,
        *,
        role: str,
        name: str | None = None,
        origins: Sequence[str] = (),
        surface_id: str | None = None,
        env: str | None = None,
        idempotency_key: str | None = None,
    ) -> ApiKey:
        """A new key. Its `key` is told once: where a lost reply had to be asked for again it is None, and
        then the way on is to revoke this key and make another.

        `origins`: of a key of the role `beacon`, whose pages may send beacons with it. `surface_id`
        and `env`: where alone it acts; without them its bearer may name any surface, and any env of the
        tenant's.
        """
        fields: dict[str, Any] = {"user_id": user_id, "role": role}
        if name is not None:
            fields["name"] = name
        if origins:
            fields["origins"] = origins
        if surface_id is not None:
            fields["surface_id"] = surface_id
        if env is not None:
            fields["env"] = env
        return await self._all.create(fields, idempotency_key=idempotency_key)

    async def page(
        self, *, limit: int | None = None, after: str | None = None, order: Order | None = None
    ) -> Page[ApiKey]:
        """One page, without secrets."""
        return await self._all.page(limit=limit, after=after, order=order)

    def each(self, *, order: Order | None = None) -> AsyncGenerator[ApiKey, None]:
        """Every key, without secrets."""
        return self._all.each(order=order)

    async def delete(self, key_id: str, *, idempotency_key: str | None = None) -> None:
        """Revoke: within a second it opens nothing. Raises NotFound."""
        await self._calls.change(NOTHING, "DELETE", "keys", key_id, idempotency_key=idempotency_key)


class Modes:
    """What each mode allows."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def get(self, mode: str) -> Mode:
        """One mode. Raises NotFound."""
        return await self._calls.get(Mode, "modes", mode)

    async def put(
        self,
        mode: str,
        *,
        allowed_classes: Sequence[str],
        optional_kinds: Sequence[str] = (),
        per_tenant_kinds: Sequence[str] = (),
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> Mode:
        """Create or replace. Raises Forbidden, ForbiddenBackendClass (host_local outside lab)."""
        body = {
            "allowed_classes": list(allowed_classes),
            "optional_kinds": list(optional_kinds),
            "per_tenant_kinds": list(per_tenant_kinds),
        }
        return await self._calls.change(
            Mode,
            "PUT",
            *("modes", mode),
            body=body,
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )


class Issuers:
    """Whose tokens are believed."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def get(self, issuer_id: str) -> Issuer:
        """One issuer. Raises NotFound."""
        return await self._calls.get(Issuer, "issuers", issuer_id)

    async def put(
        self,
        issuer_id: str,
        *,
        issuer: str,
        audience: str,
        jwks_file: str | None = None,
        jwks_url: str | None = None,
        hs256_secret: str | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> Issuer:
        """Create or replace, with exactly one place of keys; `hs256_secret` is a handle, never the secret."""
        keys = {"jwks_file": jwks_file, "jwks_url": jwks_url, "hs256_secret": hs256_secret}
        body = {"issuer": issuer, "audience": audience}
        return await self._calls.change(
            Issuer,
            "PUT",
            *("issuers", issuer_id),
            body=body | {name: value for name, value in keys.items() if value is not None},
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def delete(
        self, issuer_id: str, *, if_match: str | None = None, idempotency_key: str | None = None
    ) -> None:
        """Raises NotFound."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("issuers", issuer_id),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )


class RateLimits:
    """How many calls the caller's tenant admits; a call past a limit is Throttled."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def get(self) -> RateLimitPolicy:
        """The limits of the tenant and env. Raises NotFound where none were ever set."""
        return await self._calls.get(RateLimitPolicy, "rate-limits", "policy")

    async def put(
        self,
        limits: Sequence[RateLimit],
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> RateLimitPolicy:
        """Set all of them at once; they hold within a second.

        Raises Forbidden, Invalid, PreconditionFailed.
        """
        return await self._calls.change(
            RateLimitPolicy,
            "PUT",
            *("rate-limits", "policy"),
            body={"limits": list(limits)},
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )
