"""Who am I: the context that the server derived, and where each of its fields came from."""

from __future__ import annotations

import msgspec

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.reply import json_reply

router = Router("me", is_limited=False)


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """The context's fields, as every store stamps them, and their `sources`."""

    tenant_id: str
    mode: str
    env: str
    user_id: str
    roles: tuple[str, ...]
    permissions: tuple[str, ...]
    os_id: str
    surface_id: str
    app_id: str | None
    project_id: str | None
    run_id: str
    step_id: str
    thread_id: str | None
    session_id: str | None
    request_id: str
    trace_id: str
    span_id: str
    acting_on: str | None
    key_id: str | None
    key_made_by: tuple[str, ...]
    lab: bool
    sources: dict[str, str]


@router.get("/me", reply=Me)
async def get_me(call: Call) -> Sendable:
    """Who the server takes the caller for."""
    fields = msgspec.structs.asdict(await call.context())
    return json_reply(Me(**{**fields, "permissions": tuple(sorted(fields["permissions"]))}))
