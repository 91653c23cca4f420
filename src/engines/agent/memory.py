"""Agent memory: what an agent knows of its user beyond one session, in tiers.

Owns entries and their keys `a!{user}!{tier}!{key}`, anchored at the user. `episodes` tell what happened, a
day or an occasion each; `long_term` holds what stays true; `summaries` stand for attachments and sources
that are too long to read again. Leaves what to remember, and when to forget it, to the agent. What one
session must remember, also for a time only, is `stores/memory.py`'s; what was said in it
`agent/messages.py`'s.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import msgspec

from engines import catalogue
from engines.clock import Clock, timestamp
from engines.codec import Codec, check_json_value
from engines.core import records
from engines.core.cursor import list_scope
from engines.core.idempotency import Request
from engines.core.keys import record_key
from engines.core.listing import START, Listed, Window, list_records
from engines.core.place import Places
from engines.core.records import ANYTHING, Condition, Draft
from engines.errors import Invalid, NotFound
from engines.ports.documents import Doc
from engines.scope import RequestContext, check_id
from engines.stores.scoped import Change, Deletion, IdentityFields, Stamped, check_body, stamp, with_etag

READ: Final = "agent_memory.read"
WRITE: Final = "agent_memory.write"

Tier = Literal["episodes", "long_term", "summaries"]
TIERS: Final[tuple[str, ...]] = get_args(Tier)


class AgentMemoryInput(IdentityFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of PUT."""

    value: Any


class AgentMemoryEntry(Stamped, frozen=True, kw_only=True, omit_defaults=True):
    """An entry as it is stored and shown. Instants are RFC 3339."""

    tier: Tier
    key: str
    value: Any
    created_at: str
    updated_at: str


class _Stored(msgspec.Struct, frozen=True, tag_field="schema", tag="agent-memory/1"):
    record: AgentMemoryEntry


_CODEC: Final = Codec(_Stored)


class AgentMemory:
    """What is remembered for whoever asks. An entry of another user is not found.

    Every method raises Invalid (no such tier, a malformed id), Forbidden (the role does not grant it),
    ContextMismatch, MissingRoute, ForbiddenBackendClass, Throttled, Unavailable, BackendRefused, Corrupt;
    changes also OutcomeUnknown.
    """

    def __init__(self, places: Places, clock: Clock) -> None:
        self._places = places
        self._clock = clock

    async def get(self, context: RequestContext, tier: str, key: str) -> AgentMemoryEntry:
        """One read. Raises NotFound."""
        context.require_data(READ)
        document_key = _key(context, tier, key)
        place = await self._places.place(catalogue.AGENT_MEMORY, context)
        doc = await place.documents.get(await place.partition(context.user_id), document_key)
        if doc is None:
            raise NotFound("there is no such agent memory entry")
        return _shown(doc)

    async def set(
        self,
        context: RequestContext,
        tier: str,
        key: str,
        entry: AgentMemoryInput,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Change[AgentMemoryEntry]:
        """Create or replace, the last writer wins unless `condition` says otherwise.

        Raises Invalid, PreconditionFailed, TooLarge, IdempotencyKeyReused, Conflict.
        """
        context.require_data(WRITE)
        document_key = _key(context, tier, key)
        entry = check_body(context, entry)
        check_json_value(entry.value, "value")
        now = timestamp(self._clock.now())
        async with self._places.changing(catalogue.AGENT_MEMORY, context) as place:
            written = await records.replace(
                place.documents,
                await place.partition(context.user_id),
                document_key,
                lambda doc: _draft(context, entry, doc, tier=_tier(tier), key=key, now=now),
                condition=condition,
                request=request,
            )
        return Change(_shown(written.doc), written.created, written.replayed)

    async def delete(
        self,
        context: RequestContext,
        tier: str,
        key: str,
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Deletion:
        """Raises NotFound, PreconditionFailed, IdempotencyKeyReused, Conflict."""
        context.require_data(WRITE)
        document_key = _key(context, tier, key)
        async with self._places.changing(catalogue.AGENT_MEMORY, context) as place:
            partition = await place.partition(context.user_id)
            replayed = await records.remove(
                place.documents, partition, document_key, condition=condition, request=request
            )
        return Deletion(replayed)

    async def list(
        self, context: RequestContext, tier: str, *, window: Window = START
    ) -> Listed[AgentMemoryEntry]:
        """A tier's entries, by key. Raises Invalid (a limit or a cursor)."""
        context.require_data(READ)
        names = (context.user_id, _tier(tier))
        place = await self._places.place(catalogue.AGENT_MEMORY, context)
        return await list_records(
            place.documents,
            await place.partition(context.user_id),
            ("a", *names),
            _shown,
            cursors=list_scope(catalogue.AGENT_MEMORY, context.tenant_id, context.env, *names),
            window=window,
        )


def _tier(text: str) -> Tier:
    if text not in TIERS:
        raise Invalid(f"a tier is one of {', '.join(TIERS)}", field="tier")
    return text  # type: ignore[return-value]


def _key(context: RequestContext, tier: str, key: str) -> str:
    return record_key("a", context.user_id, _tier(tier), check_id(key, "key"))


def _draft(
    context: RequestContext, entry: AgentMemoryInput, doc: Doc | None, *, tier: Tier, key: str, now: str
) -> Draft:
    record = AgentMemoryEntry(
        **stamp(context),
        tier=tier,
        key=key,
        value=entry.value,
        created_at=now if doc is None else _shown(doc).created_at,
        updated_at=now,
    )
    return Draft(_CODEC.encode(_Stored(record)))


def _shown(doc: Doc) -> AgentMemoryEntry:
    return with_etag(_CODEC.decode(doc.body).record, doc.version)
