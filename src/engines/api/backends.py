"""Backends over HTTP; t_system's admins alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import deleted_reply, json_reply
from engines.api.views import ControlList, ListQuery, Page, repeats_path, shown, stored_reply
from engines.control.records import OFFERED_TO_MAX, Backend, Id, TenantId, Text
from engines.ports.documents import BackendClass
from engines.routing.diagnostics import Probe

router = Router("backends", is_limited=False)
BackendView = shown(Backend)


class BackendInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One database. `secrets` maps the driver's names to handles, never to secrets."""

    backend_id: Id | None = None
    driver: Id
    backend_class: BackendClass = msgspec.field(name="class")
    config: dict[str, Any] = {}
    secrets: dict[str, Text] = {}
    offered_to: Literal["*"] | Annotated[tuple[TenantId, ...], Meta(max_length=OFFERED_TO_MAX)] = ()


@router.put(
    "/backends/{backend_id}", body=BackendInput, reply=BackendView, has_etag=True, conditions="required"
)
async def put_backend(call: Call) -> Sendable:
    """Create or replace a backend."""
    context = await call.context()
    body = await call.body(BackendInput)
    repeats_path(call, "backend_id", body.backend_id)
    backend = Backend(**{**msgspec.structs.asdict(body), "backend_id": call.id("backend_id")})
    stored = await call.engines.backends.put(
        context, backend, condition=call.condition(), request=call.request(context)
    )
    return stored_reply(BackendView, stored)


@router.get("/backends", query=ListQuery, reply=Page[BackendView])  # type: ignore[valid-type]
async def list_backends(call: Call) -> Sendable:
    """Every backend."""
    context = await call.context()
    page = ControlList(context, call.query(ListQuery), "backends")
    listing = await call.engines.backends.list(
        context, after=page.after, limit=page.limit, descending=page.descending
    )
    return page.reply(BackendView, listing)


@router.get("/backends/{backend_id}", reply=BackendView, has_etag=True)
async def get_backend(call: Call) -> Sendable:
    """One backend."""
    stored = await call.engines.backends.get(await call.context(), call.id("backend_id"))
    return stored_reply(BackendView, stored)


@router.delete("/backends/{backend_id}", conditions="required")
async def delete_backend(call: Call) -> Sendable:
    """Delete a backend that no route leads to."""
    context = await call.context()
    stored = await call.engines.backends.delete(
        context, call.id("backend_id"), condition=call.condition(), request=call.request(context)
    )
    return deleted_reply(replayed=stored.replayed)


@router.post("/backends/{backend_id}/probe", reply=Probe, is_idempotent=False)
async def probe_backend(call: Call) -> Sendable:
    """Write, read back and delete on the real thing; it leaves nothing behind."""
    return json_reply(await call.engines.backends.probe(await call.context(), call.id("backend_id")))
