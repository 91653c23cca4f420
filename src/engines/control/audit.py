"""Audit: what the control plane and the edge tell a tenant's spine.

Owns turning an outbox message or a refusal into an event of type `audit` on the spine of the tenant that it
concerns. Leaves relaying to `core/outbox.py` and counting refusals to `identity/refusals.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from engines.codec import decode_json
from engines.control.directory import Directory
from engines.core.appends import CLIENT_IDS_MAX
from engines.core.outbox import PORTION_MAX, Entry
from engines.errors import Unavailable
from engines.ids import Ids
from engines.scope import RequestContext
from engines.stores.event_records import SystemEvent
from engines.stores.events import EventSpine

_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
assert PORTION_MAX <= CLIENT_IDS_MAX, "a portion is one append"


class Audit:
    """Appends the server's own audit events."""

    def __init__(self, directory: Directory, spine: EventSpine, ids: Ids) -> None:
        self._directory = directory
        self._spine = spine
        self._ids = ids

    async def deliver(self, group: str, entries: Sequence[Entry], *, first_attempt: bool) -> None:
        """For the relay; a group is a tenant. Raises what the spine raises; then the messages wait."""
        # One append, which looks for all that were told before at once: a relay has little time.
        at = await self._context(group, "system", "audit")
        events = [_event(entry, at) for entry in entries]
        await self._spine.append_system(at, events, look_everywhere=not first_attempt)

    async def refused(
        self, tenant_id: str, user_id: str, request_id: str, payload: Mapping[str, Any]
    ) -> None:
        """A refusal by the edge, on the caller's own spine."""
        context = await self._context(tenant_id, user_id, request_id)
        await self._spine.append_system(context, [SystemEvent(event_type="audit", payload=dict(payload))])

    async def _context(self, tenant_id: str, user_id: str, request_id: str) -> RequestContext:
        """The server itself at work for a tenant: it may do nothing that needs a permission."""
        tenant = await self._directory.tenant(tenant_id)
        if tenant is None:
            raise Unavailable("the tenant of an audit message is not known yet")
        surface = await self._directory.surface(tenant.default_surface_id)
        return RequestContext(
            tenant_id=tenant_id,
            mode=tenant.mode,
            env=tenant.default_env,
            user_id=user_id,
            roles=(),
            permissions=frozenset(),
            os_id="" if surface is None else surface.os_id,
            surface_id=tenant.default_surface_id,
            run_id=request_id,
            step_id="0",
            request_id=request_id,
            trace_id=_NO_TRACE,
            span_id=_NO_SPAN,
            lab=tenant.mode == "lab",
            sources={},
        )


def _event(entry: Entry, at: RequestContext) -> SystemEvent:
    message = decode_json(entry.body)
    request_id = message["request_id"]
    whose = msgspec.structs.replace(
        at, user_id=message["actor"]["user_id"], run_id=request_id, request_id=request_id
    )
    return SystemEvent(event_type="audit", payload=message, event_id=entry.event_id, whose=whose)
