"""`engines users`: people and agents. In a lab as its system admin, unless --as says."""

from __future__ import annotations

from cyclopts import App

from engines.cli.connection import DEFAULT, SYSTEM_ADMIN, Connection
from engines.cli.output import AsJson, print_record, print_records
from engines.client import UserIdentity

app = App(name="users", help="People and agents.")


@app.command(name="list")
async def list_(*, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """Every user."""
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        users = [user async for user in client.users.each()]
    print_records(users, ("user_id", "name", "identities"), as_json=as_json, empty="There are no users.")


@app.command
async def create(
    user_id: str,
    /,
    *,
    name: str | None = None,
    identity: tuple[tuple[str, str], ...] | None = None,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Make a user.

    Parameters
    ----------
    user_id
        The id under which Engines knows the user.
    name
        What people call them.
    identity
        ISSUER SUBJECT: who a trusted issuer's tokens say they are; repeat it for more.
    """
    identities = [UserIdentity(iss, sub) for iss, sub in identity or ()]
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        user = await client.users.create(user_id, name=name, identities=identities)
    print_record(user, as_json=as_json)
