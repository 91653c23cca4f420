"""Definitions: flows, graphs, flags and the like, each kind with the same methods.

Owns the calls that every kind has. Leaves verbs of single kinds to their own groups.

What every method may raise is what the server answers (`engines.errors`), Unavailable where it cannot be
reached, and for changes OutcomeUnknown where the reply was lost and repeating could not settle it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from engines.client.calls import NOTHING, Calls, Condition, Order
from engines.client.results import Definition, DefinitionDiff, Page


class Definitions:
    """One kind of definition, within the bound surface and project."""

    def __init__(self, calls: Calls, *path: str) -> None:
        self._calls = calls
        self._path = path

    async def create(
        self,
        json_blob: Mapping[str, Any],
        *,
        definition_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Definition:
        """A new definition; the server names it unless `definition_id` does.

        Raises Conflict (the id or the slug is taken).
        """
        body: dict[str, Any] = {"json_blob": json_blob}
        if definition_id is not None:
            body["id"] = definition_id
        return await self._calls.change(
            Definition, "POST", *self._path, body=body, idempotency_key=idempotency_key
        )

    async def get(self, definition_id: str, *, version: int | None = None) -> Definition:
        """The present version, or one that is kept. Raises NotFound."""
        query = {"version": version}
        return await self._calls.get(Definition, *self._path, definition_id, query=query)

    async def put(
        self,
        definition_id: str,
        json_blob: Mapping[str, Any],
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
    ) -> Definition:
        """The next version. Raises PreconditionFailed, and PreconditionRequired without a condition."""
        return await self._calls.change(
            Definition,
            "PUT",
            *(*self._path, definition_id),
            body={"json_blob": json_blob},
            condition=Condition(if_match, if_absent),
            idempotency_key=idempotency_key,
        )

    async def delete(
        self, definition_id: str, *, if_match: str | None = None, idempotency_key: str | None = None
    ) -> None:
        """Hide it behind a tombstone, which `restore` undoes. Raises NotFound, PreconditionFailed."""
        await self._calls.change(
            NOTHING,
            "DELETE",
            *(*self._path, definition_id),
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def page(
        self,
        *,
        limit: int | None = None,
        after: str | None = None,
        order: Order | None = None,
        app_id: str | None = None,
        user_id: str | None = None,
        slug: str | None = None,
        status: str | None = None,
    ) -> Page[Definition]:
        """One page, by id; with a filter it may be short or empty and still have `after`."""
        query = {
            "limit": limit,
            "after": after,
            "order": order,
            "app_id": app_id,
            "user_id": user_id,
            "slug": slug,
            "status": status,
        }
        return await self._calls.page(Definition, *self._path, query=query)

    def each(
        self,
        *,
        order: Order | None = None,
        app_id: str | None = None,
        user_id: str | None = None,
        slug: str | None = None,
        status: str | None = None,
    ) -> AsyncGenerator[Definition, None]:
        """Every definition that the filters let through."""
        query = {"order": order, "app_id": app_id, "user_id": user_id, "slug": slug, "status": status}
        return self._calls.each(Definition, *self._path, query=query)

    def versions(self, definition_id: str, *, order: Order | None = None) -> AsyncGenerator[Definition, None]:
        """Every version that is kept, tombstones among them."""
        parts = (*self._path, definition_id, "versions")
        return self._calls.each(Definition, *parts, query={"order": order})

    async def diff(
        self, definition_id: str, from_version: int | None = None, to_version: int | None = None
    ) -> DefinitionDiff:
        """What changed to the present version from the one before, or between two.

        More than about 1 MiB of changes are told as one, which replaces the whole. Raises NotFound.
        """
        query = {"from": from_version, "to": to_version}
        return await self._calls.get(DefinitionDiff, *self._path, definition_id, "diff", query=query)

    async def restore(
        self,
        definition_id: str,
        version: int,
        *,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> Definition:
        """What an earlier version says, as the next one. Raises NotFound, PreconditionFailed, Conflict."""
        return await self._calls.change(
            Definition,
            "POST",
            *(*self._path, definition_id, "restore"),
            body={"version": version},
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )

    async def copy(
        self,
        definition_id: str,
        *,
        env: str | None = None,
        surface_id: str | None = None,
        project_id: str | msgspec.UnsetType | None = msgspec.UNSET,
        target_id: str | None = None,
        version: int | None = None,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> Definition:
        """Copy it elsewhere in the tenant; `project_id=None` is no project.

        `if_match` is the target's ETag. Raises NotFound, Conflict (the target exists), PreconditionFailed.
        """
        named = {"env": env, "surface_id": surface_id, "id": target_id, "version": version}
        body: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        if project_id is not msgspec.UNSET:
            body["project_id"] = project_id
        return await self._calls.change(
            Definition,
            "POST",
            *(*self._path, definition_id, "copy"),
            body=body,
            condition=Condition(if_match),
            idempotency_key=idempotency_key,
        )
