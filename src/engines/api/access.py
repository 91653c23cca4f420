"""API keys and trusted issuers over HTTP."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import deleted_reply, record_reply
from engines.api.views import ControlList, ListQuery, Page, repeats_path, shown, stored_reply, view_of
from engines.control.records import ApiKey, Env, Id, Issuer, Name, Origins, TenantId, Text
from engines.errors import ContextMismatch, Invalid
from engines.identity.jwks import KeysRefused
from engines.identity.key_sources import check_jwks_url
from engines.identity.keys import mint_key

router = Router("keys and issuers", is_limited=False)

KeyView: Any = shown(ApiKey, without=("secret_sha256", "membership"))
IssuerView = shown(Issuer)


class KeyInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whom a new key stands for, and as what. `tenant_id` may repeat the context's.

    `origins`: of a key of the role `beacon`, whose pages may send beacons with it. `surface_id` and
    `env`: where alone it acts; without them its bearer may name any surface, and any env of the tenant's.
    """

    user_id: Id
    role: Id
    name: Name | None = None
    origins: Origins = ()
    surface_id: Text | None = None
    env: Env | None = None
    tenant_id: TenantId | None = None


class IssuerInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whose tokens are believed, and where its keys are: exactly one of the last three."""

    issuer_id: Id | None = None
    issuer: Text
    audience: Text
    jwks_file: Text | None = None
    jwks_url: Text | None = None
    hs256_secret: Text | None = None


NewKeyView: Any = msgspec.defstruct(
    "NewKeyView", [("key", str | None, None)], bases=(KeyView,), frozen=True, kw_only=True
)
NewKeyView.__doc__ = "A new key. `key` is shown in the first answer alone."


@router.post("/keys", body=KeyInput, reply=NewKeyView, statuses=(201,), has_etag=True)
async def create_key(call: Call) -> Sendable:
    """Make an API key for a member of the tenant.

    The secret is in this answer and nowhere else; the same request again, under its Idempotency-Key, is
    answered without it.
    """
    context = await call.context()
    body = await call.body(KeyInput)
    if body.tenant_id not in (None, context.target_tenant_id):
        raise ContextMismatch("the body names another tenant than the request's", field="tenant_id")
    minted = mint_key(call.engines.ids)
    stored = await call.engines.keys.create(
        context,
        key_id=minted.key_id,
        secret_sha256=minted.secret_sha256,
        user_id=body.user_id,
        role=body.role,
        name=body.name,
        origins=body.origins,
        surface_id=body.surface_id,
        env=body.env,
        request=call.request(context),
    )
    shown_key = msgspec.structs.asdict(view_of(KeyView, stored))
    record = NewKeyView(**shown_key, key=None if stored.replayed else minted.key)
    return record_reply(record, stored.etag, created=True, replayed=stored.replayed)


@router.get("/keys", query=ListQuery, reply=Page[KeyView])
async def list_keys(call: Call) -> Sendable:
    """The tenant's keys, without their secrets."""
    context = await call.context()
    page = ControlList(context, call.query(ListQuery), "keys")
    listing = await call.engines.keys.list(
        context, after=page.after, limit=page.limit, descending=page.descending
    )
    return page.reply(KeyView, listing)


@router.delete("/keys/{key_id}")
async def revoke_key(call: Call) -> Sendable:
    """Revoke a key. It stops working everywhere within a second."""
    context = await call.context()
    stored = await call.engines.keys.revoke(
        context, call.id("key_id"), condition=call.condition(), request=call.request(context)
    )
    return deleted_reply(replayed=stored.replayed)


@router.put("/issuers/{issuer_id}", body=IssuerInput, reply=IssuerView, has_etag=True)
async def put_issuer(call: Call) -> Sendable:
    """Say whose tokens are believed; t_system's admins alone."""
    context = await call.context()
    body = await call.body(IssuerInput)
    repeats_path(call, "issuer_id", body.issuer_id)
    issuer = Issuer(**{**msgspec.structs.asdict(body), "issuer_id": call.id("issuer_id")})
    if issuer.jwks_url is not None:
        _check_address(issuer.jwks_url)
    stored = await call.engines.issuers.put(
        context, issuer, condition=call.condition(), request=call.request(context)
    )
    return stored_reply(IssuerView, stored)


@router.get("/issuers/{issuer_id}", reply=IssuerView, has_etag=True)
async def get_issuer(call: Call) -> Sendable:
    """One trusted issuer; t_system's admins alone."""
    return stored_reply(
        IssuerView, await call.engines.issuers.get(await call.context(), call.id("issuer_id"))
    )


@router.delete("/issuers/{issuer_id}")
async def delete_issuer(call: Call) -> Sendable:
    """Stop believing an issuer; t_system's admins alone."""
    context = await call.context()
    stored = await call.engines.issuers.delete(
        context, call.id("issuer_id"), condition=call.condition(), request=call.request(context)
    )
    return deleted_reply(replayed=stored.replayed)


def _check_address(url: str) -> None:
    """Raises Invalid for an address that would be refused each time its keys are wanted."""
    try:
        check_jwks_url(url)
    except KeysRefused as refused:
        raise Invalid(str(refused), field="jwks_url") from refused
