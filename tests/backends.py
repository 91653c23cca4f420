"""Backends on the tests' real servers: a record of each driver, on storage of its own.

Owns which server a driver needs, how that server is told of fresh storage, and where secrets go: into the
environment, under names that begin with `ENGINES_SECRET_TEST_`, so that a record holds handles only and a
child process that inherits them can open the backend. Leaves the servers' lives to `tests/servers`, and
their fixtures to `tests/conftest.py`. A driver that is in the registry and not here fails each test that goes
through the registry, in words.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from engines.control.records import Backend
from engines.drivers.registry import document_driver, driver_of_url, url_secrets
from tests.servers.cosmos import CosmosAccount, CosmosServer, open_cosmos
from tests.servers.dynamodb import DynamoServer, DynamoUnavailableError
from tests.servers.firestore import FirestoreServer, FirestoreUnavailableError
from tests.servers.postgres import PostgresServer, PostgresUnavailableError

SECRET_PREFIX = "ENGINES_SECRET_TEST_"
# Any will do: the server does not check signatures.
DYNAMODB_CREDENTIALS = {"access_key_id": "local", "secret_access_key": "local"}  # pragma: allowlist secret

Server = PostgresServer | DynamoServer | FirestoreServer | CosmosServer | CosmosAccount
# What keeps a server from running on this machine.
UNAVAILABLE = (PostgresUnavailableError, DynamoUnavailableError, FirestoreUnavailableError, TimeoutError)


def _sqlite(_: object, directory: Path, name: str) -> str:
    return f"sqlite://{directory}/{name}.db"


def _postgres(server: PostgresServer, _: Path, name: str) -> str:
    return f"{server.url()}?schema={name}&pool_size=6"


def _dynamodb(server: DynamoServer, _: Path, name: str) -> str:
    # The server has no point-in-time recovery.
    return (
        f"dynamodb://eu-central-1/{name}?endpoint={server.endpoint}&pool_size=12&point_in_time_recovery=false"
    )


def _firestore(server: FirestoreServer, _: Path, name: str) -> str:
    return f"firestore://{server.project}?collection={name}&endpoint={server.endpoint}&manage_indexes=false"


def _cosmos(server: CosmosServer | CosmosAccount, _: Path, name: str) -> str:
    return server.url("backends", name)


# The URL of fresh storage, by driver, on what runs the driver's server.
_URLS: Mapping[str, Callable[[Any, Path, str], str]] = {
    "sqlite": _sqlite,
    "postgres": _postgres,
    "dynamodb": _dynamodb,
    "firestore": _firestore,
    "cosmos": _cosmos,
}
_FIXTURES: Mapping[str, str] = {
    "postgres": "postgres_server",
    "dynamodb": "dynamodb_server",
    "firestore": "firestore_server",
    "cosmos": "cosmos_server",
}
_OPEN: Mapping[str, Callable[[], Server]] = {
    "postgres": PostgresServer,
    "dynamodb": DynamoServer,
    "firestore": FirestoreServer,
    "cosmos": open_cosmos,
}


def backend_at(url: str, backend_id: str, *, secrets: Mapping[str, str] | None = None) -> Backend:
    """What a control plane's URL describes, as a backend that is offered to all.

    The URL's password and `secrets` go into the environment; the record has their handles.
    """
    driver = driver_of_url(url)
    module = document_driver(driver)
    config, password = module.config_from_url(url)
    values = {name: secret.reveal() for name, secret in url_secrets(module, password).items()}
    handles = {}
    for name, value in (values | dict(secrets or {})).items():
        variable = f"{SECRET_PREFIX}{backend_id}_{name}".upper()
        os.environ[variable] = value
        handles[name] = f"env:{variable}"
    return Backend(
        backend_id=backend_id,
        driver=driver,
        backend_class=module.DESCRIPTION.backend_class,
        config=config,
        secrets=handles,
        offered_to="*",
    )


def new_url(driver: str, server: Server | None, directory: Path) -> str:
    """The same as a control plane's URL. DynamoDB's SDK looks for credentials in the environment."""
    return _URLS[driver](server, directory, f"kept_{uuid.uuid4().hex}")


def session_server(request: pytest.FixtureRequest, driver: str) -> Server | None:
    """The session's server of a driver, running. Where it cannot run, the test is *not run*."""
    server: Server | None = request.getfixturevalue(_FIXTURES[driver]) if driver in _FIXTURES else None
    make_running(server)
    return server


def new_backend(driver: str, server: Server | None, directory: Path, backend_id: str) -> Backend:
    """Storage that nobody has used, on `server` or, for a driver that has none, in `directory`."""
    url = new_url(driver, server, directory)
    return backend_at(url, backend_id, secrets=DYNAMODB_CREDENTIALS if driver == "dynamodb" else None)


def open_server(driver: str) -> Server | None:
    """A server of the caller's own, running; None for a driver that has none. Raises one of `UNAVAILABLE`."""
    if driver not in _OPEN:
        return None
    server = _OPEN[driver]()
    try:
        make_running(server)
    except BaseException:
        server.close()
        raise
    return server


def make_running(server: Server | None) -> None:
    """Start what was killed, wake what was stopped. What is somebody else's is left alone."""
    if isinstance(server, PostgresServer | CosmosServer):
        server.resume()
    if server is not None and not isinstance(server, CosmosAccount):
        server.start()


def session_backend(request: pytest.FixtureRequest, driver: str, backend_id: str) -> Backend:
    """Fresh storage on the session's server. Where that cannot run, the test is *not run*."""
    server = session_server(request, driver)
    return new_backend(driver, server, request.getfixturevalue("tmp_path"), backend_id)
