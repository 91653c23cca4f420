"""OSes, surfaces, apps and projects: the product levels as stored objects.

Owns their references to each other. OSes, surfaces and apps belong to t_system, projects to a tenant.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from engines.control.records import App, Os, Project, Surface
from engines.control.service import Service, actor, merged, require_in_tenant, require_system_admin
from engines.control.store import Listing, Stored, Table
from engines.control.tables import APPS, MODES, OSES, PROJECTS, SURFACES, surface_key
from engines.core.idempotency import Request
from engines.core.records import ANYTHING, Condition
from engines.errors import Conflict, Invalid, NotFound
from engines.scope import SYSTEM_TENANT, RequestContext, normalise_surface

T = TypeVar("T", bound=msgspec.Struct)


class Products(Generic[T]):
    """One product level. `check` folds names and refuses references to what does not exist."""

    def __init__(
        self,
        service: Service,
        table: Table[T],
        id_field: str,
        check: Callable[[T], Awaitable[T]],
        *,
        per_tenant: bool = False,
    ) -> None:
        self._service = service
        self._store = service.store
        self._table = table
        self._id_field = id_field
        self._check = check
        self._per_tenant = per_tenant

    async def create(
        self, context: RequestContext, record: T, *, request: Request | None = None
    ) -> Stored[T]:
        """Raises Forbidden, Conflict (the id or a name is taken), Invalid."""
        self._require_write(context)
        await self._service.admit(context)
        checked_id = self._fold(getattr(record, self._id_field))

        async def build(existing: T | None) -> T:
            if existing is not None:
                raise Conflict("a record with this id exists", field=self._id_field)
            return await self._check(record)

        return await self._store.put(
            self._table, self._ids(context, checked_id), build, actor=self._actor(context), request=request
        )

    async def get(self, context: RequestContext, record_id: str) -> Stored[T]:
        """By id; a surface also by any alias. Raises NotFound."""
        return await self._store.get(self._table, *self._ids(context, await self._resolved(record_id)))

    async def list(
        self, context: RequestContext, *, after: str | None = None, limit: int = 100, descending: bool = False
    ) -> Listing[T]:
        return await self._store.page(
            self._table, *self._ids(context)[:-1], after=after, limit=limit, descending=descending
        )

    async def patch(
        self,
        context: RequestContext,
        record_id: str,
        changes: Mapping[str, Any],
        *,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[T]:
        """Replace some members. Raises Forbidden, NotFound, Invalid, PreconditionFailed."""
        self._require_write(context)
        await self._service.admit(context)

        async def build(existing: T | None) -> T:
            if existing is None:
                raise NotFound("there is no such record")
            return await self._check(merged(existing, changes, fixed=(self._id_field,)))

        ids = self._ids(context, await self._resolved(record_id))
        return await self._store.put(
            self._table, ids, build, actor=self._actor(context), condition=condition, request=request
        )

    def _require_write(self, context: RequestContext) -> None:
        if self._per_tenant:
            require_in_tenant(context, "projects.write")
        else:
            require_system_admin(context)

    def _ids(self, context: RequestContext, record_id: str = "") -> Sequence[str]:
        return (context.target_tenant_id, record_id) if self._per_tenant else (record_id,)

    def _actor(self, context: RequestContext) -> Any:
        return actor(context, context.target_tenant_id if self._per_tenant else SYSTEM_TENANT)

    def _fold(self, record_id: str) -> str:
        return normalise_surface(record_id) if self._id_field == "surface_id" else record_id

    async def _resolved(self, record_id: str) -> str:
        if self._id_field != "surface_id":
            return record_id
        folded = normalise_surface(record_id)
        found = await self._store.resolve_index(surface_key(folded))
        return folded if found is None else str(found)


def oses(service: Service) -> Products[Os]:
    async def check(record: Os) -> Os:
        return record

    return Products(service, OSES, "os_id", check)


def surfaces(service: Service) -> Products[Surface]:
    async def check(surface: Surface) -> Surface:
        if await service.store.read(OSES, surface.os_id) is None:
            raise Invalid("there is no such OS", field="os_id")
        if surface.mode is not None and await service.store.read(MODES, surface.mode) is None:
            raise Invalid("there is no such mode", field="mode")
        for alias in surface.aliases:
            normalise_surface(alias, "aliases")
        return msgspec.structs.replace(surface, surface_id=normalise_surface(surface.surface_id))

    return Products(service, SURFACES, "surface_id", check)


def apps(service: Service) -> Products[App]:
    async def check(app: App) -> App:
        found = await service.store.resolve_index(surface_key(normalise_surface(app.surface_id)))
        if found is None:
            raise Invalid("there is no such surface", field="surface_id")
        return msgspec.structs.replace(app, surface_id=found)

    return Products(service, APPS, "app_id", check)


def projects(service: Service) -> Products[Project]:
    async def check(project: Project) -> Project:
        if project.app_id is not None and await service.store.read(APPS, project.app_id) is None:
            raise Invalid("there is no such app", field="app_id")
        return project

    return Products(service, PROJECTS, "project_id", check, per_tenant=True)
