"""The reading of a surface's temperature over HTTP; its settings have the calls of every definition."""

from __future__ import annotations

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import json_reply
from engines.errors import ContextMismatch
from engines.scope import RequestContext, normalise_surface
from engines.stores.temperature import TemperatureReading

router = Router("temperature")
SURFACE: bytes = b"x-surface-id"


@router.get("/temperature/{surface_id}/reading", reply=TemperatureReading)
async def read_temperature(call: Call) -> Sendable:
    """A surface's temperature now, and what it was made from."""
    context = await _at(call, normalise_surface(call.id("surface_id")))
    return json_reply(await call.engines.temperatures.reading(context))


async def _at(call: Call, surface_id: str) -> RequestContext:
    """The caller's context on the surface that the path names, derived as if the request's header did.

    Raises ContextMismatch where that is not the caller's to name, or the header names another.
    """
    context = await call.context()
    if surface_id == context.surface_id:
        return context
    if SURFACE in dict(call.scope["headers"]):
        raise ContextMismatch("the path and the header name different surfaces", field="surface_id")
    headers = [*call.scope["headers"], (SURFACE, surface_id.encode())]
    try:
        return await call.engines.contexts.context_of(headers, request_id=context.request_id)
    except ContextMismatch as mismatch:
        raise ContextMismatch(mismatch.detail, field="surface_id") from mismatch
