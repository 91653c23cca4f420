"""OSes, surfaces, apps and projects over HTTP: four levels with the same four calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.engines import Engines
from engines.api.views import ControlList, ListQuery, Page, changes_of, partial, shown, stored_reply
from engines.control.products import Products
from engines.control.records import App, Os, Project, Surface

router = Router("products", is_limited=False)


def _mount(
    name: str,
    id_field: str,
    record_type: type[msgspec.Struct],
    level: Callable[[Engines], Products[Any]],
    *,
    who: str,
) -> None:
    """Add the calls of one level."""
    view = shown(record_type)
    patch: Any = partial(record_type)
    noun = record_type.__name__

    async def create(call: Call) -> Sendable:
        context = await call.context()
        record = await call.body(record_type)
        stored = await level(call.engines).create(context, record, request=call.request(context))
        return stored_reply(view, stored)

    async def list_all(call: Call) -> Sendable:
        context = await call.context()
        page = ControlList(context, call.query(ListQuery), name)
        listing = await level(call.engines).list(
            context, after=page.after, limit=page.limit, descending=page.descending
        )
        return page.reply(view, listing)

    async def get(call: Call) -> Sendable:
        return stored_reply(view, await level(call.engines).get(await call.context(), call.id(id_field)))

    async def change(call: Call) -> Sendable:
        context = await call.context()
        changes = changes_of(await call.body(patch))
        stored = await level(call.engines).patch(
            context,
            call.id(id_field),
            changes,
            condition=call.condition(),
            request=call.request(context),
        )
        return stored_reply(view, stored)

    create.__name__, list_all.__name__ = f"create_{noun.lower()}", f"list_{name}"
    get.__name__, change.__name__ = f"get_{noun.lower()}", f"patch_{noun.lower()}"
    create.__doc__ = f"{noun}: create one; {who}."
    list_all.__doc__ = f"{noun}: every one that the caller can see, by id."
    get.__doc__ = f"{noun}: read one."
    change.__doc__ = f"{noun}: replace some members; {who}."
    router.post(f"/{name}", body=record_type, reply=view, statuses=(201,), has_etag=True)(create)
    router.get(f"/{name}", query=ListQuery, reply=Page[view])(list_all)  # type: ignore[valid-type]
    router.get(f"/{name}/{{{id_field}}}", reply=view, has_etag=True)(get)
    router.patch(f"/{name}/{{{id_field}}}", body=patch, reply=view, has_etag=True)(change)


_mount("oses", "os_id", Os, lambda engines: engines.oses, who="t_system's admins alone")
_mount("surfaces", "surface_id", Surface, lambda engines: engines.surfaces, who="t_system's admins alone")
_mount("apps", "app_id", App, lambda engines: engines.apps, who="t_system's admins alone")
_mount("projects", "project_id", Project, lambda engines: engines.projects, who="admins of the tenant")
