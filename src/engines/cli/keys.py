"""`engines keys`: API keys of a tenant. A key's secret is shown once, when it is made."""

from __future__ import annotations

from cyclopts import App

from engines.cli.connection import DEFAULT, Connection
from engines.cli.output import AsJson, console, print_json, print_record, print_records

COLUMNS = ("key_id", "user_id", "role", "name", "surface_id", "env", "revoked")

app = App(name="keys", help="API keys of a tenant.")


@app.command(name="list")
async def list_(*, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """Every key of the tenant, without its secret."""
    async with connection.client() as client:
        keys = [key async for key in client.keys.each()]
    print_records(keys, COLUMNS, as_json=as_json, empty="There are no keys.")


@app.command
async def create(
    user_id: str,
    /,
    *,
    role: str,
    name: str | None = None,
    surface: str | None = None,
    env: str | None = None,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Make a key for a member of the tenant.

    Parameters
    ----------
    role
        What the key may do; no more than the member's own role.
    name
        What it is for.
    surface
        The only surface on which it acts; without one its bearer may name any.
    env
        The only env in which it acts; without one its bearer may name any that the tenant declares.
    """
    async with connection.client() as client:
        key = await client.keys.create(user_id, role=role, name=name, surface_id=surface, env=env)
    print_record(key, as_json=as_json)
    if not as_json and key.key is None:
        console().print(
            "The answer that held the secret was lost, and it is told once. Revoke this key and make another."
        )


@app.command
async def revoke(key_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """End a key; within a second it opens nothing."""
    async with connection.client() as client:
        await client.keys.delete(key_id)
    if as_json:
        print_json({"key_id": key_id, "revoked": True})
    else:
        console().print(f"{key_id} is revoked.")
