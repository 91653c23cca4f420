"""`engines users`: people and agents, and what they left in a tenant.

In a lab they are made and listed as its system admin, erased and held as the owner, unless --as says."""

from __future__ import annotations

import sys

from cyclopts import App

from engines.cli.connection import DEFAULT, SYSTEM_ADMIN, Connection
from engines.cli.output import AsJson, console, print_json, print_record, print_records, print_table
from engines.client import DataSubject, UserIdentity

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


@app.command
async def erase(user_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """End a user's membership, and remove or redact everything that they left in the tenant.

    There is no way back. Interrupted, or beside another one, it goes on where it was. A hold stops it.
    """
    async with connection.client() as client:
        while _is_running(subject := await client.users.erase(user_id)):
            print(_progress(subject), file=sys.stderr, flush=True)
    if as_json:
        print_json(subject)
        return
    erasure = subject.erasure
    assert erasure is not None
    rows = [
        (kind, str(counts.removed), str(counts.rewritten), str(counts.redacted))
        for kind, counts in sorted(erasure.by_kind.items())
    ]
    if rows:
        print_table(("kind", "removed", "rewritten", "redacted"), rows)
    console().print(
        f"{user_id} is erased from {subject.tenant_id}: the last of {erasure.passes} passes found nothing."
    )


@app.command
async def erasure(user_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """Whether a user's data is held, and how far their erasure is."""
    async with connection.client() as client:
        print_record(await client.users.erasure(user_id), as_json=as_json)


@app.command
async def hold(
    user_id: str, /, *, reason: str, connection: Connection = DEFAULT, as_json: AsJson = False
) -> None:
    """Keep everything that a user left in the tenant: nothing erases it until the hold is lifted.

    Parameters
    ----------
    reason
        Why, for whoever wants to erase it.
    """
    async with connection.client() as client:
        print_record(await client.users.hold(user_id, reason=reason), as_json=as_json)


@app.command(name="lift-hold")
async def lift_hold(user_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """End a hold."""
    async with connection.client() as client:
        await client.users.lift_hold(user_id)
    if as_json:
        print_json({"user_id": user_id, "held": False})
    else:
        console().print(f"What {user_id} left is no longer held.")


def _is_running(subject: DataSubject) -> bool:
    return subject.erasure is not None and subject.erasure.state == "running"


def _progress(subject: DataSubject) -> str:
    """One state of an erasure in words."""
    erasure = subject.erasure
    assert erasure is not None
    done = sum(one.removed + one.rewritten + one.redacted for one in erasure.by_kind.values())
    at = "waiting for the last pass" if erasure.step is None else erasure.step
    return f"pass {erasure.passes}: {done} documents and events erased; {at}"
