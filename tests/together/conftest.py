"""One deployment whose tenants lie on every document backend at once.

Owns fresh storage of each driver, as the URL that a control plane would have and as a backend's record, and a
deployment on all of them, each behind a network that a test may disturb. Leaves what happens there to the
tests.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import pytest

import engines
from engines.control.bootstrap import Seed, apply_seed, bootstrap
from engines.control.records import Backend
from engines.core.records import Condition
from engines.drivers.registry import DOCUMENT_DRIVERS, document_driver, driver_of_url
from engines.scope import RouteScope
from engines.testing.proxy import FaultProxy
from engines.wiring import open_control_plane
from tests.contexts import ADMIN, context
from tests.servers.cosmos import CosmosAccount, CosmosServer
from tests.servers.dynamodb import DynamoServer
from tests.servers.firestore import FirestoreServer

DRIVERS: Final = tuple(DOCUMENT_DRIVERS)
NETWORKED: Final = tuple(name for name in DRIVERS if name != "sqlite")
DATA_KINDS: Final = (
    "event_spine",
    "event_stream",
    "tabular_store",
    "memory_store",
    "blackboard_store",
    "notes_store",
    "page_content_store",
    "budget_store",
)
# What the mixed tenant leaves where t_system says, so that it has one kind on each backend.
NOT_MIXED: Final = ("event_stream", "page_content_store", "budget_store")
# Each kind of this tenant lies on a backend of its own, as far as there are so many.
MIXED: Final = {
    kind: DRIVERS[number % len(DRIVERS)]
    for number, kind in enumerate(kind for kind in DATA_KINDS if kind not in NOT_MIXED)
}
NEW: Final = Condition(absent=True)

NewUrl = Callable[[str], str]


def tenant_of(driver: str) -> str:
    """The tenant all of whose data lies on this driver's backend."""
    return f"t_{driver}"


def seed(mode: str = "lab") -> Seed:
    tenants = [*map(tenant_of, DRIVERS), "t_mixed"]
    return {
        "tenants": [
            {"tenant_id": tenant_id, "name": tenant_id, "mode": mode, "default_surface_id": "chat"}
            for tenant_id in tenants
        ]
    }


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the SDKs' own chains find credentials; the servers here do not check them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path, credentials: None) -> NewUrl:  # noqa: ARG001
    """Fresh storage of a driver, as the URL of a control plane on it."""

    def url(driver: str) -> str:
        name = f"kit_{uuid.uuid4().hex}"
        if driver == "sqlite":
            return f"sqlite://{tmp_path}/{name}.db"
        if driver == "postgres":
            return str(request.getfixturevalue("new_postgres_database")())
        if driver == "dynamodb":
            dynamodb: DynamoServer = request.getfixturevalue("dynamodb_server")
            dynamodb.start()
            endpoint = quote(dynamodb.endpoint, safe="")
            return f"dynamodb://eu-central-1/{name}?endpoint={endpoint}&point_in_time_recovery=false"
        if driver == "firestore":
            firestore: FirestoreServer = request.getfixturevalue("firestore_server")
            firestore.start()
            place = f"{firestore.project}/{quote(firestore.database)}"
            return f"firestore://{place}?collection={name}&endpoint={firestore.endpoint}&manage_indexes=false"
        cosmos: CosmosServer | CosmosAccount = request.getfixturevalue("cosmos_server")
        if isinstance(cosmos, CosmosServer):
            cosmos.start()
        return cosmos.url("together", name)

    return url


def record_at(url: str, backend_id: str, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """What a control plane's URL describes, as a backend; its password goes into the environment."""
    driver = driver_of_url(url)
    module = document_driver(driver)
    config, password = module.config_from_url(url)
    variable = f"ENGINES_SECRET_TEST_{backend_id.upper()}"
    secrets = {}
    if password is not None:
        monkeypatch.setenv(variable, password)
        secrets = {next(iter(module.DESCRIPTION.secrets)): f"env:{variable}"}
    return Backend(
        backend_id=backend_id,
        driver=driver,
        backend_class=module.DESCRIPTION.backend_class,
        config=config,
        secrets=secrets,
        offered_to="*",
    )


def address_of(record: Backend) -> tuple[str, int]:
    """Where a record's server listens."""
    if record.driver == "postgres":
        return record.config["host"], record.config["port"]
    host, _, port = record.config["endpoint"].removeprefix("http://").rstrip("/").rpartition(":")
    return host, int(port)


def moved_to(record: Backend, address: tuple[str, int]) -> Backend:
    """The same record, by way of another address."""
    host, port = address
    there: dict[str, Any]
    if record.driver == "postgres":
        there = {"host": host, "port": port}
    elif record.driver == "firestore":
        there = {"endpoint": f"{host}:{port}"}
    else:
        there = {"endpoint": f"http://{host}:{port}"}
    return msgspec.structs.replace(record, config={**record.config, **there})


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


class Deployment(msgspec.Struct, frozen=True):
    """A control plane whose tenants are routed to every backend, and the network before each backend."""

    url: str
    records: dict[str, Backend]
    networks: dict[str, FaultProxy]


async def deploy(
    control_url: str, new_url: NewUrl, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> Deployment:
    """Nothing runs yet but the servers, and nothing is open."""
    async with open_control_plane(control_url) as control:
        await bootstrap(control.store, control.record, host_local=control.host_local)
        await apply_seed(control.store, seed())
    records: dict[str, Backend] = {}
    networks: dict[str, FaultProxy] = {}
    for driver in DRIVERS:
        record = record_at(new_url(driver), driver, monkeypatch)
        if driver in NETWORKED:
            networks[driver] = await stack.enter_async_context(FaultProxy(address_of(record)))
            record = moved_to(record, networks[driver].address)
        records[driver] = record
    async with engines.open(control_url) as process:
        await route_all(process, records)
    return Deployment(control_url, records, networks)


async def route_all(process: engines.Engines, records: dict[str, Backend]) -> None:
    """Each driver's tenant on its backend, and the mixed tenant's kinds on all of them."""
    for record in records.values():
        await process.backends.put(ADMIN, record, condition=NEW)
    routes = [(tenant_of(driver), kind, driver) for driver in records for kind in DATA_KINDS]
    routes += [("t_mixed", kind, driver) for kind, driver in MIXED.items()]
    for tenant_id, kind, backend_id in routes:
        await process.routes.put(
            context(tenant_id), kind, backend_id, scope=RouteScope(), options={}, condition=NEW
        )


@pytest.fixture
async def deployment(new_url: NewUrl, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """The control plane is on SQLite, beside the fault."""
    return await deploy(new_url("sqlite"), new_url, stack, monkeypatch)
