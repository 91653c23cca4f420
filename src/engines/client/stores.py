"""The stores of a tenant's records: tables, session memory, blackboards, notes and who may join a room.

Owns each store's paths, parameters and types. Leaves conditions, keys and pages to `client/calls.py`, and the
logs to `client/logs.py`.

What every method may raise is what the server answers (`engines.errors`), Unavailable where it cannot be
reached, and for changes OutcomeUnknown where the reply was lost and repeating could not settle it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from engines.client.calls import NOTHING, Calls, Condition, Order
from engines.client.results import BlackboardEntry, MemoryEntry, NewNote, Note, Page, RoomMember, TableRow


class Tables:
    """JSON rows by table, partition key and sort key."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def put(
        self,
        table: str,
        pk: str,
        sk: str,
        value: Any,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> TableRow:
        """Create or replace; the last writer wins unless a condition is given. Raises PreconditionFailed."""
        return await self._calls.change(
            TableRow,
            "PUT",
            *("tables", table, pk, sk),
            body={"value": value},
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def get(self, table: str, pk: str, sk: str) -> TableRow:
        """One row. Raises NotFound."""
        return await self._calls.get(TableRow, "tables", table, pk, sk)

    async def delete(
        self,
        table: str,
        pk: str,
        sk: str,
        *,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Raises NotFound, PreconditionFailed."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("tables", table, pk, sk),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def page(
        self,
        table: str,
        pk: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
    ) -> Page[TableRow]:
        """One page of the rows of a partition, by sort key."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(TableRow, "tables", table, pk, query=query)

    def each(self, table: str, pk: str, *, order: Order | None = None) -> AsyncGenerator[TableRow, None]:
        """Every row of a partition."""
        return self._calls.each(TableRow, "tables", table, pk, query={"order": order})


class Memory:
    """What a user's sessions remember."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def put(
        self,
        session_id: str,
        key: str,
        value: Any,
        *,
        ttl_seconds: int | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> MemoryEntry:
        """Create or replace.

        Without `ttl_seconds` it stays until it is deleted, whatever was asked before.
        """
        body = {"value": value} if ttl_seconds is None else {"value": value, "ttl_seconds": ttl_seconds}
        return await self._calls.change(
            MemoryEntry,
            "PUT",
            *("memory", session_id, key),
            body=body,
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def get(self, session_id: str, key: str) -> MemoryEntry:
        """One entry. Raises NotFound, also for one that has expired."""
        return await self._calls.get(MemoryEntry, "memory", session_id, key)

    async def delete(
        self,
        session_id: str,
        key: str,
        *,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Raises NotFound, PreconditionFailed."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("memory", session_id, key),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def page(
        self,
        session_id: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
    ) -> Page[MemoryEntry]:
        """One page of a session's entries, by key."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(MemoryEntry, "memory", session_id, query=query)

    def each(self, session_id: str, *, order: Order | None = None) -> AsyncGenerator[MemoryEntry, None]:
        """Every entry of a session."""
        return self._calls.each(MemoryEntry, "memory", session_id, query={"order": order})


class Blackboard:
    """State that the agents of one run share; every write says what it expects to replace."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def put(
        self,
        run_id: str,
        key: str,
        value: Any,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> BlackboardEntry:
        """Write the next version. Raises PreconditionFailed, and PreconditionRequired without a condition."""
        return await self._calls.change(
            BlackboardEntry,
            "PUT",
            *("blackboard", run_id, key),
            body={"value": value},
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def get(self, run_id: str, key: str, *, version: int | None = None) -> BlackboardEntry:
        """The present entry, or an earlier version while it is kept. Raises NotFound."""
        return await self._calls.get(BlackboardEntry, "blackboard", run_id, key, query={"version": version})

    async def page(
        self,
        run_id: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
    ) -> Page[BlackboardEntry]:
        """One page of a run's entries, by key."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(BlackboardEntry, "blackboard", run_id, query=query)

    def each(self, run_id: str, *, order: Order | None = None) -> AsyncGenerator[BlackboardEntry, None]:
        """Every entry of a run."""
        return self._calls.each(BlackboardEntry, "blackboard", run_id, query={"order": order})

    def versions(
        self, run_id: str, key: str, *, order: Order | None = None
    ) -> AsyncGenerator[BlackboardEntry, None]:
        """Every version of one entry that is kept."""
        parts = ("blackboard", run_id, key, "versions")
        return self._calls.each(BlackboardEntry, *parts, query={"order": order})


class Notes:
    """What the user keeps, theirs alone."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def create(self, note: NewNote, *, idempotency_key: str | None = None) -> Note:
        """A new note; the server names it."""
        return await self._calls.change(Note, "POST", "notes", body=note, idempotency_key=idempotency_key)

    async def get(self, note_id: str) -> Note:
        """One note. Raises NotFound."""
        return await self._calls.get(Note, "notes", note_id)

    async def replace(
        self,
        note_id: str,
        note: NewNote,
        *,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> Note:
        """New contents for a note that exists. Raises NotFound, PreconditionFailed."""
        return await self._calls.change(
            Note,
            "PUT",
            *("notes", note_id),
            body=note,
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def delete(
        self, note_id: str, *, if_match: str | None = None, idempotency_key: str | None = None
    ) -> None:
        """Raises NotFound, PreconditionFailed."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("notes", note_id),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def page(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        surface_id: str | None = None,
        project_id: str | None = None,
        tag: str | None = None,
    ) -> Page[Note]:
        """One page, by creation; with a filter it may be short or empty and still have `after`."""
        query = {
            "limit": limit,
            "after": after,
            "order": order,
            "surface_id": surface_id,
            "project_id": project_id,
            "tag": tag,
        }
        return await self._calls.page(Note, "notes", query=query)

    def each(
        self,
        *,
        order: Order | None = None,
        surface_id: str | None = None,
        project_id: str | None = None,
        tag: str | None = None,
    ) -> AsyncGenerator[Note, None]:
        """Every note that the filters let through."""
        query = {"order": order, "surface_id": surface_id, "project_id": project_id, "tag": tag}
        return self._calls.each(Note, "notes", query=query)


class Realtime:
    """Who may join a thread or a canvas; `room_kind` is `"thread"` or `"canvas"`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def put(
        self,
        room_kind: str,
        room_id: str,
        user_id: str,
        role: str,
        *,
        ttl_seconds: int | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> RoomMember:
        """Let a user in, or change their role: `"host"`, `"writer"` or `"reader"`.

        Without `ttl_seconds` the membership does not lapse. Raises Forbidden (no host of the room),
        PreconditionFailed, Conflict (the last host; a room that is full).
        """
        body = {"role": role} if ttl_seconds is None else {"role": role, "ttl_seconds": ttl_seconds}
        return await self._calls.change(
            RoomMember,
            "PUT",
            *("realtime", room_kind, room_id, "members", user_id),
            body=body,
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def get(self, room_kind: str, room_id: str, user_id: str) -> RoomMember:
        """Whether a user may join, and as what. Raises NotFound for who may not."""
        return await self._calls.get(RoomMember, "realtime", room_kind, room_id, "members", user_id)

    async def delete(
        self,
        room_kind: str,
        room_id: str,
        user_id: str,
        *,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Leave, or let a member out. Raises NotFound, Forbidden, PreconditionFailed, Conflict."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *("realtime", room_kind, room_id, "members", user_id),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def page(
        self,
        room_kind: str,
        room_id: str,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
    ) -> Page[RoomMember]:
        """One page of a room's members, by user id."""
        query = {"limit": limit, "after": after, "order": order}
        return await self._calls.page(RoomMember, "realtime", room_kind, room_id, "members", query=query)

    def each(
        self, room_kind: str, room_id: str, *, order: Order | None = None
    ) -> AsyncGenerator[RoomMember, None]:
        """Every member of a room."""
        parts = ("realtime", room_kind, room_id, "members")
        return self._calls.each(RoomMember, *parts, query={"order": order})
