"""`engines backends`: databases as data. In a lab as its system admin, unless --as says."""

from __future__ import annotations

from typing import Any

import msgspec
from cyclopts import App

from engines.cli.connection import DEFAULT, SYSTEM_ADMIN, Connection
from engines.cli.output import FAILED, OK, AsJson, print_record, print_records
from engines.client import AsyncEngines, Backend
from engines.client.control_results import BackendClass
from engines.errors import Invalid, NotFound

COLUMNS = ("backend_id", "driver", "class", "offered_to", "config")

app = App(name="backends", help="Databases as data.")


@app.command(name="list")
async def list_(*, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """Every backend."""
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        backends = [backend async for backend in client.backends.each()]
    print_records(backends, COLUMNS, as_json=as_json, empty="There are no backends.")


@app.command
async def describe(backend_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> None:
    """One backend: its driver, its configuration and the handles of its secrets."""
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        print_record(await client.backends.get(backend_id), as_json=as_json)


@app.command
async def put(
    backend_id: str,
    /,
    *,
    driver: str,
    class_: BackendClass,
    config: str = "{}",
    secret: dict[str, str] | None = None,
    offered_to: tuple[str, ...] | None = None,
    connection: Connection = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Add a backend, or replace one as it stands now.

    Parameters
    ----------
    driver
        sqlite, postgres, or another that the server has.
    class_
        cloud, server or host_local, as the driver says.
    config
        A JSON object, as the driver's documentation describes it. No secrets.
    secret
        --secret.NAME HANDLE: where the server finds a secret; never the secret itself.
    offered_to
        A tenant whose owner may route to it; repeat it for more. * offers it to all.
    """
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        existing = await _existing(client, backend_id)
        backend = await client.backends.put(
            backend_id,
            driver=driver,
            backend_class=class_,
            config=_object(config),
            secrets=secret,
            offered_to="*" if "*" in (offered_to or ()) else offered_to or (),
            if_match=None if existing is None else existing.etag,
            if_absent=existing is None,
        )
    print_record(backend, as_json=as_json)


@app.command
async def probe(backend_id: str, /, *, connection: Connection = DEFAULT, as_json: AsJson = False) -> int:
    """Write, read back and delete on the real thing. Fails where the backend does."""
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        found = await client.backends.probe(backend_id)
    print_record(found, as_json=as_json)
    return OK if found.ok else FAILED


async def _existing(client: AsyncEngines, backend_id: str) -> Backend | None:
    try:
        return await client.backends.get(backend_id)
    except NotFound:
        return None


def _object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Invalid(f"a JSON object: {error}", field="config") from error
