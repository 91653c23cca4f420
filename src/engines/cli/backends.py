"""`engines backends`: databases as data. In a lab as its system admin, unless --as says."""

from __future__ import annotations

from typing import Any

import msgspec
from cyclopts import App

from engines.cli.connection import DEFAULT, SYSTEM_ADMIN, Connection
from engines.cli.output import (
    FAILED,
    OK,
    AsJson,
    console,
    print_json,
    print_record,
    print_records,
    print_table,
)
from engines.client import AsyncEngines, Backend
from engines.client.control_results import BackendClass
from engines.drivers.registry import DOCUMENT_DRIVERS, document_driver
from engines.errors import BackendRefused, Invalid, NotFound
from engines.ports.documents import DriverDescription

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
    """One backend: its configuration, the handles of its secrets, and its driver's limits and costs."""
    async with connection.client(lab_user=SYSTEM_ADMIN) as client:
        backend = await client.backends.get(backend_id)
    about = _described(backend.driver)
    if as_json:
        print_json({**msgspec.to_builtins(backend), "driver_description": about})
        return
    print_record(backend, as_json=False)
    if about is None:
        console().print(f"\nThe driver {backend.driver} is not known here, only to the server.")
    else:
        console().print()
        _print_driver(about)


@app.command
def drivers(name: str | None = None, /, *, as_json: AsJson = False) -> None:
    """What each driver of this installation is and costs, or all about one. No server is asked.

    Parameters
    ----------
    name
        Such as postgres.
    """
    if name is not None:
        about = document_driver(name).DESCRIPTION
        if as_json:
            print_json(about)
        else:
            _print_driver(about)
        return
    abouts = [document_driver(each).DESCRIPTION for each in DOCUMENT_DRIVERS]
    if as_json:
        print_json({"items": abouts})
        return
    rows = [[each.name, each.backend_class, each.consistency, each.durability] for each in abouts]
    print_table(("driver", "class", "consistency", "durability"), rows)


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
        One of engines backends drivers, or another that the server has.
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


def _described(driver: str) -> DriverDescription | None:
    try:
        return document_driver(driver).DESCRIPTION
    except (Invalid, BackendRefused):
        return None


def _print_driver(about: DriverDescription) -> None:
    """Single facts first, then each table under its name, then what is meant to be copied."""
    facts = ("name", "backend_class", "consistency", "durability", "provisions", "control_plane_url")
    print_table(("", ""), [[name.replace("_", " "), getattr(about, name)] for name in facts])
    for name in ("config", "secrets", "limits", "costs", "proven"):
        if table := getattr(about, name):
            console().print()
            print_table((name, " "), list(table.items()))
    if about.prerequisites:
        console().print()
        print_table(("prerequisites",), [[item] for item in about.prerequisites])
    console().print("\nThe least that it runs with:\n")
    console().print(about.policy, markup=False, highlight=False)


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
