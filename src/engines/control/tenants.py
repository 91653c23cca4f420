"""Tenants, users and memberships.

Owns who may create and change them, the lab's rule on modes, and the life of a membership: invited by the
tenant's admin, accepted by the user alone, revoked by either side's admin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from engines.catalogue import kind_named
from engines.control.records import Membership, Mode, Tenant, User
from engines.control.service import (
    Service,
    actor,
    merged,
    require_in_tenant,
    require_system_admin,
    require_tenant,
)
from engines.control.store import Actor, ControlStore, Listing, Stored
from engines.control.tables import MEMBERSHIPS, MODES, ROLES, TENANTS, USERS, surface_key
from engines.core.idempotency import Request
from engines.core.records import ANYTHING, Condition
from engines.errors import (
    Conflict,
    ContextMismatch,
    Forbidden,
    ForbiddenBackendClass,
    Invalid,
    NotFound,
)
from engines.scope import SYSTEM_TENANT, RequestContext, normalise_surface

LAB_MODE = "lab"


class Tenants:
    """The isolation boundaries."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    async def create(
        self, context: RequestContext, tenant: Tenant, *, request: Request | None = None
    ) -> Stored[Tenant]:
        """Raises Forbidden, Conflict (taken), Invalid, ForbiddenBackendClass (another mode in a lab)."""
        require_system_admin(context)
        await self._service.admit(context)

        async def build(existing: Tenant | None) -> Tenant:
            if existing is not None:
                raise Conflict("a tenant with this id exists", field="tenant_id")
            return await self._checked(tenant)

        return await self._store.put(
            TENANTS, [tenant.tenant_id], build, actor=actor(context, tenant.tenant_id), request=request
        )

    async def get(self, context: RequestContext, tenant_id: str) -> Stored[Tenant]:
        require_tenant(context, tenant_id)
        return await self._store.get(TENANTS, tenant_id)

    async def list(
        self, context: RequestContext, *, after: str | None = None, limit: int = 100, descending: bool = False
    ) -> Listing[Tenant]:
        """All for an admin of t_system, the caller's own for others."""
        if context.is_system_admin:
            return await self._store.page(TENANTS, after=after, limit=limit, descending=descending)
        return Listing((await self._store.get(TENANTS, context.tenant_id),), None)

    async def patch(
        self,
        context: RequestContext,
        tenant_id: str,
        changes: Mapping[str, Any],
        *,
        condition: Condition,
        request: Request | None = None,
    ) -> Stored[Tenant]:
        """An owner changes all but the mode. Raises PreconditionRequired, Forbidden, Invalid, NotFound."""
        require_tenant(context, tenant_id)
        require_in_tenant(context, "tenant.write")
        condition.required()
        await self._service.admit(context)

        async def build(existing: Tenant | None) -> Tenant:
            if existing is None:
                raise NotFound("there is no such tenant")
            tenant = merged(existing, changes, fixed=("tenant_id",))
            if tenant.mode != existing.mode:
                require_system_admin(context)
            return await self._checked(tenant)

        return await self._store.put(
            TENANTS, [tenant_id], build, actor=actor(context, tenant_id), condition=condition, request=request
        )

    async def _checked(self, tenant: Tenant) -> Tenant:
        if tenant.default_env not in tenant.envs:
            raise Invalid("default_env is not one of envs", field="default_env")
        if len(set(tenant.envs)) != len(tenant.envs):
            raise Invalid("an env is named twice", field="envs")
        if await self._store.read(MODES, tenant.mode) is None:
            raise Invalid("there is no such mode", field="mode")
        if tenant.mode != LAB_MODE and await in_lab(self._store):
            raise ForbiddenBackendClass(
                "the control plane of this deployment is host-local: every tenant's mode is lab", field="mode"
            )
        surface_id = normalise_surface(tenant.default_surface_id, "default_surface_id")
        found = await self._store.resolve_index(surface_key(surface_id))
        if found is None:
            raise Invalid("there is no such surface", field="default_surface_id")
        return msgspec.structs.replace(tenant, default_surface_id=found)


class Users:
    """People and agents; written by t_system's admins alone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    async def create(
        self, context: RequestContext, user: User, *, request: Request | None = None
    ) -> Stored[User]:
        """Raises Forbidden, Conflict (the id or an identity is taken)."""
        require_system_admin(context)
        await self._service.admit(context)

        async def build(existing: User | None) -> User:
            if existing is not None:
                raise Conflict("a user with this id exists", field="user_id")
            return user

        return await self._store.put(USERS, [user.user_id], build, actor=actor(context), request=request)

    async def list(
        self, context: RequestContext, *, after: str | None = None, limit: int = 100, descending: bool = False
    ) -> Listing[User]:
        require_system_admin(context)
        return await self._store.page(USERS, after=after, limit=limit, descending=descending)


class Members:
    """Memberships of one tenant."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    async def put(
        self,
        context: RequestContext,
        tenant_id: str,
        user_id: str,
        role: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[Membership]:
        """Invite, or change the role of a member.

        Raises Forbidden (also for a role that may more than the caller), NotFound (no such user), Invalid.
        """
        require_tenant(context, tenant_id)
        require_in_tenant(context, "members.write")
        await self._service.admit(context)

        async def build(existing: Membership | None) -> Membership:
            if await self._store.read(TENANTS, tenant_id) is None:
                raise NotFound("there is no such tenant")
            if await self._store.read(USERS, user_id) is None:
                raise NotFound("there is no such user")
            await require_may_grant(self._store, context, role)
            if existing is not None:
                await require_may_grant(self._store, context, existing.role)
                return msgspec.structs.replace(existing, role=role)
            return Membership(
                tenant_id=tenant_id,
                user_id=user_id,
                role=role,
                status="invited",
                began_at_version=await self._begins_at(tenant_id, user_id),
            )

        return await self._store.put(
            MEMBERSHIPS,
            [tenant_id, user_id],
            build,
            actor=actor(context, tenant_id),
            condition=condition,
            request=request,
        )

    async def _begins_at(self, tenant_id: str, user_id: str) -> int:
        """Tells a membership from the user's earlier ones, whose keys are none of it; 0 for the first."""
        last = await self._store.versions(MEMBERSHIPS, tenant_id, user_id, limit=1, descending=True)
        return last.items[0].version + 1 if last.items else 0

    async def get(self, context: RequestContext, tenant_id: str, user_id: str) -> Stored[Membership]:
        require_tenant(context, tenant_id)
        return await self._store.get(MEMBERSHIPS, tenant_id, user_id)

    async def revoke(
        self,
        context: RequestContext,
        tenant_id: str,
        user_id: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[Membership]:
        """End a membership; within a second none of its tokens or keys reaches the tenant.

        Its keys end with it, and stay ended where the user is invited anew.
        """
        require_tenant(context, tenant_id)
        require_in_tenant(context, "members.write")
        await self._service.admit(context)

        async def check(existing: Membership) -> Membership:
            await require_may_grant(self._store, context, existing.role)
            return msgspec.structs.replace(existing, status="revoked")

        return await self._store.delete(
            MEMBERSHIPS,
            [tenant_id, user_id],
            actor=actor(context, tenant_id),
            condition=condition,
            request=request,
            check=check,
        )

    async def accept(
        self, user_id: str, tenant_id: str, *, request_id: str, request: Request | None = None
    ) -> Stored[Membership]:
        """The invited user's own answer: the invitation is the permission. Raises ContextMismatch.

        Said again it changes nothing, and leaves no trace: any member may say it as often as they like.
        """

        async def build(existing: Membership | None) -> Membership:
            if existing is None:
                raise ContextMismatch("there is no invitation for you", field="tenant_id")
            if existing.status == "accepted":
                return existing
            return msgspec.structs.replace(existing, status="accepted")

        who = Actor(user_id=user_id, tenant_id=tenant_id, request_id=request_id, tenants=(tenant_id,))
        return await self._store.put(MEMBERSHIPS, [tenant_id, user_id], build, actor=who, request=request)


async def require_may_grant(store: ControlStore, context: RequestContext, role: str) -> None:
    """Nobody hands out, or takes away, more than they have. Raises Invalid (no such role) or Forbidden."""
    stored = await store.read(ROLES, role)
    if stored is None:
        raise Invalid("there is no such role", field="role")
    if not context.is_system_admin and not context.permissions.issuperset(stored.record.permissions):
        raise Forbidden("this role may do more than yours", field="role")


async def in_lab(store: ControlStore) -> bool:
    """Whether the control plane's own database is host-local, which is what makes a deployment a lab."""
    system = await store.read(TENANTS, SYSTEM_TENANT)
    return system is not None and system.record.mode == LAB_MODE


class Modes:
    """What each mode allows, as data."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    async def put(
        self,
        context: RequestContext,
        mode: Mode,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[Mode]:
        """Raises Forbidden, ForbiddenBackendClass (host_local outside lab), Conflict (a lab without it)."""
        require_system_admin(context)
        await self._service.admit(context)

        async def build(_: Mode | None) -> Mode:
            if "host_local" in mode.allowed_classes:
                if mode.mode != LAB_MODE:
                    raise ForbiddenBackendClass(
                        "host_local is allowed in mode lab only", field="allowed_classes"
                    )
            elif mode.mode == LAB_MODE and await in_lab(self._store):
                # Its spine is host-local: nothing could be changed any more, this mode included.
                raise Conflict(
                    "this deployment is a lab, whose own database is host-local: without host_local in mode"
                    " lab nobody could change anything in it, nor take this back",
                    field="allowed_classes",
                )
            # A start compares kinds by name: an alias or a slip of the pen here would mean nothing to it.
            marked = {
                field: tuple(kind_named(kind, field).name for kind in getattr(mode, field))
                for field in ("optional_kinds", "per_tenant_kinds")
            }
            return msgspec.structs.replace(mode, **marked)

        return await self._store.put(
            MODES, [mode.mode], build, actor=actor(context), condition=condition, request=request
        )

    async def get(self, mode: str) -> Stored[Mode]:
        """Anyone may know what a mode allows."""
        return await self._store.get(MODES, mode)
