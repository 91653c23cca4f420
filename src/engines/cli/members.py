"""`engines members`: who belongs to a tenant."""

from __future__ import annotations

from cyclopts import App

from engines.cli.connection import DEFAULT, Connection
from engines.cli.output import AsJson, console, print_json, print_record

app = App(name="members", help="Who belongs to a tenant.")


@app.command
async def show(
    tenant_id: str, user_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False
) -> None:
    """One membership: its role, and whether the user has accepted it."""
    async with connection.client() as client:
        print_record(await client.members.get(tenant_id, user_id), as_json=as_json)


@app.command
async def invite(
    tenant_id: str,
    user_id: str,
    /,
    *,
    role: str,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Invite a user, or give a member another role. It counts once the user has accepted it.

    Parameters
    ----------
    role
        viewer, member, agent, admin or owner; no more than your own.
    """
    async with connection.client() as client:
        print_record(await client.members.put(tenant_id, user_id, role=role), as_json=as_json)


@app.command
async def accept(
    tenant_id: str, user_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False
) -> None:
    """Accept your own invitation."""
    async with connection.client(lab_user=user_id) as client:
        print_record(await client.members.accept(tenant_id, user_id), as_json=as_json)


@app.command
async def revoke(
    tenant_id: str, user_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False
) -> None:
    """End a membership; within a second it opens nothing."""
    async with connection.client() as client:
        await client.members.delete(tenant_id, user_id)
    if as_json:
        print_json({"tenant_id": tenant_id, "user_id": user_id, "revoked": True})
    else:
        console().print(f"{user_id} no longer belongs to {tenant_id}.")
