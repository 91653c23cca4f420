"""`engines routes`: which backend holds what. A tenant's own for its owner, t_system's for its admins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from cyclopts import App, Parameter

from engines.catalogue import kind_named
from engines.cli import moves
from engines.cli.connection import DEFAULT, Connection
from engines.cli.output import AsJson, console, print_json, print_record, print_records
from engines.client import AsyncEngines, Route, RouteScope
from engines.errors import Invalid, NotFound
from engines.scope import normalise_surface

COLUMNS = ("resource_kind", "tenant_id", "scope", "backend_id", "options", "version")

app = App(name="routes", help="Which backend holds what.")
app.command(moves.move)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Scope:
    """Where a route applies within its owner: at most one of the first four, and an env."""

    surface: str | None = None
    "Only on this surface."

    app: str | None = None
    "Only in this app."

    project: str | None = None
    "Only in this project."

    mode: str | None = None
    "Only for tenants in this mode (t_system's routes)."

    route_env: str | None = None
    "Only in this env."

    def route_scope(self) -> RouteScope:
        return RouteScope(
            surface_id=None if self.surface is None else normalise_surface(self.surface, "surface"),
            app_id=self.app,
            project_id=self.project,
            mode=self.mode,
            env=self.route_env,
        )


EVERYWHERE: Final = Scope()


@app.command(name="list")
async def list_(*, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """The owner's routes. Where there are none, t_system's defaults apply: see resolve."""
    async with connection.client() as client:
        routes = [route async for route in client.routes.each()]
    print_records(routes, COLUMNS, as_json=as_json, empty="No routes of its own: t_system's defaults apply.")


@app.command
async def put(
    kind: str,
    backend_id: str,
    /,
    *,
    scope: Scope = EVERYWHERE,
    option: tuple[str, ...] | None = None,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Route a kind to a backend: a new route, or the existing one of this scope as it stands now.

    Parameters
    ----------
    kind
        Such as notes_store or event_spine.
    backend_id
        A backend that is offered to the tenant.
    option
        NAME=NUMBER, such as versions_kept=10; repeat it for more.
    """
    async with connection.client() as client:
        existing = await _existing(client, kind, scope.route_scope())
        route = await client.routes.put(
            kind,
            backend_id,
            scope=scope.route_scope(),
            options=_options(option or ()),
            if_match=None if existing is None else existing.etag,
            if_absent=existing is None,
        )
    print_record(route, as_json=as_json)


@app.command
async def delete(
    kind: str,
    /,
    *,
    scope: Scope = EVERYWHERE,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Remove the route of this scope as it stands now."""
    async with connection.client() as client:
        existing = await _existing(client, kind, scope.route_scope())
        if existing is None:
            raise NotFound("there is no such route; engines routes list shows what there is")
        await client.routes.delete(kind, scope=scope.route_scope(), if_match=existing.etag)
    if as_json:
        print_json({"resource_kind": existing.resource_kind, "deleted": True})
    else:
        console().print(f"The route of {existing.resource_kind} to {existing.backend_id} is gone.")


@app.command
async def resolve(kind: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """Which route answers for a kind, and every scope that was looked at before it."""
    async with connection.client() as client:
        found = await client.routes.resolve(kind)
    if as_json:
        print_json(found)
        return
    print_record(found.route, as_json=False)
    console().print("\nLooked at:")
    print_records(found.looked_at, ("tenant_id", "scope", "found"), as_json=False, empty="nothing")


@app.command
async def history(
    kind: str,
    /,
    *,
    scope: Scope = EVERYWHERE,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Every version of one route, deletions included."""
    async with connection.client() as client:
        versions = [route async for route in client.routes.history(kind, scope=scope.route_scope())]
    columns = (*COLUMNS, "deleted", "updated_at", "updated_by")
    print_records(versions, columns, as_json=as_json, empty="There never was such a route.")


async def _existing(client: AsyncEngines, kind: str, scope: RouteScope) -> Route | None:
    """The route of this kind, or alias of one, and scope."""
    name = kind_named(kind, "kind").name
    async for route in client.routes.each():
        if route.resource_kind == name and route.scope == scope:
            return route
    return None


def _options(given: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            options[name] = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise Invalid("an option is NAME=NUMBER", field="option") from error
        if not equals:
            raise Invalid("an option is NAME=NUMBER", field="option")
    return options
