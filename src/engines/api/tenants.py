"""Tenants, members, users and modes over HTTP."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.fields import idempotency_key_of
from engines.api.reply import deleted_reply
from engines.api.views import (
    ControlList,
    ListQuery,
    Page,
    changes_of,
    partial,
    repeats_path,
    shown,
    stored_reply,
)
from engines.control.records import Id, Membership, Mode, Tenant, TenantId, User
from engines.ports.documents import BackendClass
from engines.scope import check_tenant_id

router = Router("tenants, users and modes", is_limited=False)

TenantView = shown(Tenant)
TenantPatch: Any = partial(Tenant)
MembershipView = shown(Membership, without=("began_at_version",))
UserView = shown(User)
ModeView = shown(Mode)
MEMBER = "/tenants/{tenant_id}/members/{user_id}"


class MemberInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of an invitation, or of a change of role. The ids may repeat the path's."""

    role: Id
    tenant_id: TenantId | None = None
    user_id: Id | None = None


class ModeInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a mode allows. `mode` may repeat the path's."""

    mode: Id | None = None
    allowed_classes: tuple[BackendClass, ...]
    optional_kinds: tuple[str, ...] = ()
    per_tenant_kinds: tuple[str, ...] = ()


def _tenant_of(call: Call) -> str:
    """The path's tenant. Its pattern is narrower than the shell's for ids; Invalid, whoever asks."""
    return check_tenant_id(call.id("tenant_id"))


# --- tenants ---


@router.post("/tenants", body=Tenant, reply=TenantView, statuses=(201,), has_etag=True)
async def create_tenant(call: Call) -> Sendable:
    """Create a tenant; t_system's admins alone."""
    context = await call.context()
    tenant = await call.body(Tenant)
    stored = await call.engines.tenants.create(context, tenant, request=call.request(context))
    return stored_reply(TenantView, stored)


@router.get("/tenants", query=ListQuery, reply=Page[TenantView])  # type: ignore[valid-type]
async def list_tenants(call: Call) -> Sendable:
    """Every tenant for t_system's admins, the caller's own for others."""
    context = await call.context()
    page = ControlList(context, call.query(ListQuery), "tenants")
    listing = await call.engines.tenants.list(
        context, after=page.after, limit=page.limit, descending=page.descending
    )
    return page.reply(TenantView, listing)


@router.get("/tenants/{tenant_id}", reply=TenantView, has_etag=True)
async def get_tenant(call: Call) -> Sendable:
    """One tenant."""
    return stored_reply(TenantView, await call.engines.tenants.get(await call.context(), _tenant_of(call)))


@router.patch(
    "/tenants/{tenant_id}", body=TenantPatch, reply=TenantView, has_etag=True, conditions="required"
)
async def patch_tenant(call: Call) -> Sendable:
    """Replace some members of a tenant. Its mode is t_system's to change."""
    context = await call.context()
    changes = changes_of(await call.body(TenantPatch))
    repeats_path(call, "tenant_id", changes.get("tenant_id"))
    stored = await call.engines.tenants.patch(
        context,
        _tenant_of(call),
        changes,
        condition=call.condition(),
        request=call.request(context),
    )
    return stored_reply(TenantView, stored)


# --- members ---


@router.put(MEMBER, body=MemberInput, reply=MembershipView, has_etag=True)
async def put_member(call: Call) -> Sendable:
    """Invite a user, or change a member's role. A membership counts once its user has accepted it."""
    context = await call.context()
    member = await call.body(MemberInput)
    repeats_path(call, "tenant_id", member.tenant_id)
    repeats_path(call, "user_id", member.user_id)
    stored = await call.engines.members.put(
        context,
        _tenant_of(call),
        call.id("user_id"),
        member.role,
        condition=call.condition(),
        request=call.request(context),
    )
    return stored_reply(MembershipView, stored)


@router.get(MEMBER, reply=MembershipView, has_etag=True)
async def get_member(call: Call) -> Sendable:
    """One membership."""
    stored = await call.engines.members.get(await call.context(), _tenant_of(call), call.id("user_id"))
    return stored_reply(MembershipView, stored)


@router.delete(MEMBER)
async def revoke_member(call: Call) -> Sendable:
    """End a membership. Its keys and tokens stop working within a second."""
    context = await call.context()
    stored = await call.engines.members.revoke(
        context,
        _tenant_of(call),
        call.id("user_id"),
        condition=call.condition(),
        request=call.request(context),
    )
    return deleted_reply(replayed=stored.replayed)


@router.post(f"{MEMBER}/accept", reply=MembershipView, has_etag=True, access="principal")
async def accept_membership(call: Call) -> Sendable:
    """Accept an invitation; the invited user's alone. The invitation is the permission."""
    tenant_id, user_id = _tenant_of(call), call.id("user_id")
    principal = await call.principal(tenant_id=tenant_id, user_id=user_id)
    key = idempotency_key_of(call.fields)
    stored = await call.engines.members.accept(
        principal.user_id,
        tenant_id,
        request_id=call.request_id,
        request=None if key is None else call.identified(key, tenant_id, "", principal.user_id),
    )
    return stored_reply(MembershipView, msgspec.structs.replace(stored, created=False))


# --- users and modes ---


@router.post("/users", body=User, reply=UserView, statuses=(201,), has_etag=True)
async def create_user(call: Call) -> Sendable:
    """Create a user and bind identities to them; t_system's admins alone."""
    context = await call.context()
    user = await call.body(User)
    stored = await call.engines.users.create(context, user, request=call.request(context))
    return stored_reply(UserView, stored)


@router.get("/users", query=ListQuery, reply=Page[UserView])  # type: ignore[valid-type]
async def list_users(call: Call) -> Sendable:
    """Every user; t_system's admins alone."""
    context = await call.context()
    page = ControlList(context, call.query(ListQuery), "users")
    listing = await call.engines.users.list(
        context, after=page.after, limit=page.limit, descending=page.descending
    )
    return page.reply(UserView, listing)


@router.get("/modes/{mode}", reply=ModeView, has_etag=True)
async def get_mode(call: Call) -> Sendable:
    """What a mode allows."""
    await call.context()
    return stored_reply(ModeView, await call.engines.modes.get(call.id("mode")))


@router.put("/modes/{mode}", body=ModeInput, reply=ModeView, has_etag=True)
async def put_mode(call: Call) -> Sendable:
    """Say what a mode allows; t_system's admins alone."""
    context = await call.context()
    body = await call.body(ModeInput)
    repeats_path(call, "mode", body.mode)
    mode = Mode(
        mode=call.id("mode"),
        allowed_classes=body.allowed_classes,
        optional_kinds=body.optional_kinds,
        per_tenant_kinds=body.per_tenant_kinds,
    )
    stored = await call.engines.modes.put(
        context, mode, condition=call.condition(), request=call.request(context)
    )
    return stored_reply(ModeView, stored)
