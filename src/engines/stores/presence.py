"""Presence: whether a kind holds anything at all for whoever asks.

Owns which document keys count for each kind, by one look into each shard. Leaves what the documents say to
their stores. Notes and memory belong to their user, so only that user's count.
"""

from __future__ import annotations

from engines import catalogue
from engines.core.keys import within
from engines.core.place import Places
from engines.scope import RequestContext
from engines.stores.definition_schemas import SCHEMAS


async def holds_anything(places: Places, kind: str, context: RequestContext) -> bool:
    """Raises MissingRoute, ForbiddenBackendClass, ContextMismatch, Forbidden, Unavailable, BackendRefused."""
    permission, prefix = _look(kind, context)
    if permission is not None:
        context.require_data(permission)
    place = await places.place(kind, context)
    if prefix is None:
        return True
    above, below = within(*prefix)
    for partition in await place.partitions():
        page = await place.documents.scan(partition, above=above, below=below, limit=1)
        if page.docs:
            return True
    return False


def _look(kind: str, context: RequestContext) -> tuple[str | None, tuple[str, ...] | None]:
    """The permission to read the kind, and what its keys begin with; None: it always holds something."""
    looks: dict[str, tuple[str, tuple[str, ...]]] = {
        catalogue.EVENT_SPINE: ("events.read", ("s",)),
        catalogue.EVENT_STREAM: ("streams.read", ("s",)),
        catalogue.TABLES: ("tables.read", ("t",)),
        catalogue.SESSION_MEMORY: ("memory.read", ("s", context.user_id)),
        catalogue.BLACKBOARD: ("blackboard.read", ("b",)),
        catalogue.NOTES: ("notes.read", ("n", context.user_id)),
        catalogue.RATE_LIMITS: ("rate_limits.read", ("q",)),
        catalogue.REALTIME: ("realtime.read", ("r",)),
        catalogue.SESSIONS: ("sessions.read", ("s", context.user_id)),
        catalogue.CHECKPOINTS: ("sessions.read", ("i", context.user_id)),
        catalogue.TRACES: ("sessions.read", ("i", context.user_id)),
        catalogue.AGENT_MEMORY: ("agent_memory.read", ("a", context.user_id)),
        catalogue.TELEMETRY: ("telemetry.read", ("c", context.user_id)),
        catalogue.BUDGET: ("budget.read", ("u",)),
        **{schema.kind: ("definitions.read", ("d",)) for schema in SCHEMAS},
    }
    return looks.get(kind, (None, None))
