"""`engines tenants`: the isolation boundaries. In a lab as its system admin, unless --as says."""

from __future__ import annotations

from cyclopts import App

from engines.cli.connection import DEFAULT, SYSTEM_ADMIN, Connection
from engines.cli.output import AsJson, print_record, print_records

COLUMNS = ("tenant_id", "name", "mode", "envs", "default_env", "default_surface_id")

app = App(name="tenants", help="The isolation boundaries.")


@app.command(name="list")
async def list_(*, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """All of them for an admin of t_system, your own for others."""
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        tenants = [tenant async for tenant in client.tenants.each()]
    print_records(tenants, COLUMNS, as_json=as_json, empty="There are no tenants.")


@app.command
async def show(tenant_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """One tenant."""
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        print_record(await client.tenants.get(tenant_id), as_json=as_json)


@app.command
async def create(
    tenant_id: str,
    /,
    *,
    name: str,
    mode: str,
    surface: str = "chat",
    env: tuple[str, ...] = ("prod",),
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Make a tenant.

    Parameters
    ----------
    tenant_id
        t_ and then lower-case letters, digits, _ or -.
    name
        What people call it.
    mode
        saas, enterprise or lab: which backend classes it may use.
    surface
        Its default surface.
    env
        An env that it declares; repeat it for more. The first is the default.
    """
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        tenant = await client.tenants.create(
            tenant_id, name=name, mode=mode, default_surface_id=surface, envs=env
        )
    print_record(tenant, as_json=as_json)


@app.command
async def set_mode(
    tenant_id: str, mode: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False
) -> None:
    """Change what a tenant's backends may be. Its data stays where it is, and visible."""
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        tenant = await client.tenants.get(tenant_id)
        tenant = await client.tenants.patch(tenant_id, {"mode": mode}, if_match=tenant.etag)
    print_record(tenant, as_json=as_json)


@app.command
async def rename(
    tenant_id: str, name: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False
) -> None:
    """Change what people call it."""
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        tenant = await client.tenants.get(tenant_id)
        tenant = await client.tenants.patch(tenant_id, {"name": name}, if_match=tenant.etag)
    print_record(tenant, as_json=as_json)
