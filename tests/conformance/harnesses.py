"""Storage for the conformance kit: one harness for each driver in the registry.

Owns how a test gets fresh storage of each kind. A driver that is in the registry and not here fails each test
of the kit, in words.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.clock import SystemClock
from engines.drivers.registry import document_driver
from engines.ports.documents import DocumentDriver
from engines.ports.secrets import Secret
from engines.testing.clock import ManualClock
from engines.testing.documents import DocumentHarness, Network, NotOffered, Process, Server
from tests.backends import DYNAMODB_CREDENTIALS
from tests.servers.cosmos import CosmosAccount, CosmosServer
from tests.servers.dynamodb import DynamoServer
from tests.servers.firestore import FirestoreServer
from tests.servers.postgres import PostgresServer

HarnessMaker = Callable[[pytest.FixtureRequest], DocumentHarness]


def sqlite_harness(request: pytest.FixtureRequest) -> DocumentHarness:
    directory: Path = request.getfixturevalue("tmp_path")
    clock = ManualClock()
    module = document_driver("sqlite")
    config = {"path": str(directory / "documents.db")}
    return DocumentHarness(
        clock=clock,
        open=lambda: module.open_driver(msgspec.convert(config, module.Config), {}, clock),
        server=NotOffered("SQLite has no server: its process is the client's"),
        network=NotOffered("SQLite has no network: it is a file"),
        process=_process("sqlite", config, {}),
    )


def postgres_harness(request: pytest.FixtureRequest) -> DocumentHarness:
    server: PostgresServer = request.getfixturevalue("postgres_server")
    database: str = request.getfixturevalue("conformance_database")
    clock = ManualClock()
    module = document_driver("postgres")
    url = f"{server.url(database)}?schema=kit_{uuid.uuid4().hex}&pool_size=6"
    config, password = module.config_from_url(url)
    secrets = {"password": password or ""}

    def open_at(host: str, port: int) -> DocumentDriver:
        there = {**config, "host": host, "port": port}
        return module.open_driver(msgspec.convert(there, module.Config), _secret(secrets), clock)

    address = (config["host"], config["port"])
    return DocumentHarness(
        clock=clock,
        open=lambda: open_at(*address),
        server=Server(
            kill=lambda: asyncio.to_thread(server.kill9), start=lambda: asyncio.to_thread(server.start)
        ),
        network=Network(address=address, open=open_at),
        process=_process("postgres", config, secrets),
    )


def cosmos_harness(request: pytest.FixtureRequest) -> DocumentHarness:
    """An account or an emulator, where there is one, is neither killed nor disturbed."""
    service: CosmosServer | CosmosAccount = request.getfixturevalue("cosmos_server")
    clock = ManualClock()
    module = document_driver("cosmos")
    config, key = module.config_from_url(service.url("conformance", f"kit_{uuid.uuid4().hex}"))
    secrets = {"key": key or ""}

    def open_at(host: str, port: int) -> DocumentDriver:
        there = {**config, "endpoint": f"http://{host}:{port}/"}
        return module.open_driver(msgspec.convert(there, module.Config), _secret(secrets), clock)

    server: Server | NotOffered = NotOffered("the account is somebody else's: it is not killed")
    network: Network | NotOffered = NotOffered("the account's network is not ours to disturb")
    if isinstance(service, CosmosServer):
        service.start()
        server = Server(
            kill=lambda: asyncio.to_thread(service.kill9), start=lambda: asyncio.to_thread(service.start)
        )
        network = Network(address=("127.0.0.1", service.port), open=open_at)
    return DocumentHarness(
        clock=clock,
        open=lambda: module.open_driver(msgspec.convert(config, module.Config), _secret(secrets), clock),
        server=server,
        network=network,
        process=_process("cosmos", config, secrets),
    )


def firestore_harness(request: pytest.FixtureRequest) -> DocumentHarness:
    server: FirestoreServer = request.getfixturevalue("firestore_server")
    server.start()
    server.clear()  # Its memory and its journal hold one test's documents.
    clock = ManualClock()
    module = document_driver("firestore")
    config = {
        "project": server.project,
        "database": server.database,
        "collection": f"kit_{uuid.uuid4().hex}",
        "endpoint": server.endpoint,
        "manage_indexes": False,
    }

    def open_at(host: str, port: int) -> DocumentDriver:
        there = {**config, "endpoint": f"{host}:{port}"}
        return module.open_driver(msgspec.convert(there, module.Config), {}, clock)

    address = ("127.0.0.1", server.port)
    return DocumentHarness(
        clock=clock,
        open=lambda: open_at(*address),
        server=Server(
            kill=lambda: asyncio.to_thread(server.kill9), start=lambda: asyncio.to_thread(server.start)
        ),
        network=Network(address=address, open=open_at),
        process=_process("firestore", config, {}),
    )


def dynamodb_harness(request: pytest.FixtureRequest) -> DocumentHarness:
    server: DynamoServer = request.getfixturevalue("dynamodb_server")
    server.start()
    clock = ManualClock()
    module = document_driver("dynamodb")
    config = {
        "region": "eu-central-1",
        "table": f"kit_{uuid.uuid4().hex}",
        "endpoint": server.endpoint,
        "pool_size": 6,
        "point_in_time_recovery": False,  # The server has none.
    }

    def open_at(host: str, port: int) -> DocumentDriver:
        there = {**config, "endpoint": f"http://{host}:{port}"}
        return module.open_driver(msgspec.convert(there, module.Config), _secret(DYNAMODB_CREDENTIALS), clock)

    return DocumentHarness(
        clock=clock,
        open=lambda: open_at(*server.address),
        server=Server(
            kill=lambda: asyncio.to_thread(server.kill9), start=lambda: asyncio.to_thread(server.start)
        ),
        network=Network(address=server.address, open=open_at),
        process=_process("dynamodb", config, DYNAMODB_CREDENTIALS),
    )


HARNESSES: Mapping[str, HarnessMaker] = {
    "sqlite": sqlite_harness,
    "postgres": postgres_harness,
    "dynamodb": dynamodb_harness,
    "firestore": firestore_harness,
    "cosmos": cosmos_harness,
}


def open_client(driver: str, config: dict[str, Any], secrets: dict[str, str]) -> DocumentDriver:
    """What another process calls to open a client."""
    module = document_driver(driver)
    return module.open_driver(msgspec.convert(config, module.Config), _secret(secrets), SystemClock())


def _process(driver: str, config: dict[str, Any], secrets: dict[str, str]) -> Process:
    return Process(
        function=f"{__name__}:{open_client.__name__}",
        arguments={"driver": driver, "config": config, "secrets": secrets},
    )


def _secret(values: Mapping[str, str]) -> dict[str, Secret]:
    return {name: Secret(value) for name, value in values.items()}
