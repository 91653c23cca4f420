"""What is wrong with a backend, told over HTTP before traffic finds it.

By `engines backends probe` and `engines doctor`: which kind, which backend, what to do. Nothing is written
there, and no secret is told.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
import pytest
from aiobotocore.session import get_session
from azure.cosmos import PartitionKey
from azure.cosmos.aio import CosmosClient

from engines.client import AsyncEngines
from engines.control.bootstrap import apply_seed
from engines.drivers.registry import document_driver, driver_of_url
from engines.wiring import open_control_plane
from tests.deployment.conftest import KEY, token
from tests.servers.cosmos import CosmosServer
from tests.servers.dynamodb import DynamoServer
from tests.servers.dynamodb_relay import Answer, DynamoRelay, Request, refusal
from tests.together.conftest import NewUrl
from tests.together.service import Service
from tests.together.test_service import check_unsaid, owned

TENANT: Final = "t_mixed"
KIND: Final = "notes_store"


class Bad(msgspec.Struct):
    """A backend with which something is wrong. `standing` tells what is there, before and after."""

    config: dict[str, Any]
    error: str
    remedy: str
    secrets: dict[str, str] = {}
    standing: Callable[[], Awaitable[Any]] | None = None
    after: Callable[[], Awaitable[None]] | None = None


class Place:
    """Where a case makes its mess."""

    def __init__(self, request: pytest.FixtureRequest, new_url: NewUrl, home: Path) -> None:
        self.request = request
        self.new_url = new_url
        self.home = home
        self.url = ""

    def config(self, driver: str) -> tuple[dict[str, Any], str | None]:
        self.url = self.new_url(driver)
        return document_driver(driver_of_url(self.url)).config_from_url(self.url)


# --- SQLite ---


async def missing_directory(place: Place) -> Bad:
    path = place.home / "nowhere" / "x.db"

    async def standing() -> bool:
        return path.parent.exists()

    return Bad({"path": str(path)}, "BackendRefused", "directory|file", standing=standing)


async def file_of_something_else(place: Place) -> Bad:
    path = place.home / "letter.txt"
    path.write_text("Dear reader, " * 1000)

    async def standing() -> bytes:
        return path.read_bytes()

    return Bad({"path": str(path)}, "BackendRefused", "file", standing=standing)


async def tables_of_somebody_else(place: Place) -> Bad:
    path = place.home / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE documents (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("INSERT INTO documents VALUES (1, 'theirs')")
    connection.close()

    async def standing() -> Any:
        with sqlite3.connect(path) as reader:
            schema = reader.execute("SELECT sql FROM sqlite_master WHERE name = 'documents'").fetchall()
            return schema, reader.execute("SELECT * FROM documents").fetchall()

    return Bad({"path": str(path)}, "BackendRefused", "file|table", standing=standing)


# --- PostgreSQL ---


async def wrong_password(place: Place) -> Bad:
    config, _ = place.config("postgres")
    return Bad(config, "BackendRefused", "password|credential", {"password": secrets.token_hex(16)})


async def missing_database(place: Place) -> Bad:
    config, password = place.config("postgres")
    there = {**config, "database": "nobody_made_this"}
    return Bad(there, "BackendRefused", "database", {"password": password or ""})


async def schema_of_somebody_else(place: Place) -> Bad:
    config, password = place.config("postgres")
    url = place.url
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE SCHEMA engines; CREATE TABLE engines.documents (id int, name text)")
    await connection.execute("INSERT INTO engines.documents VALUES (1, 'theirs')")
    await connection.close()

    async def standing() -> Any:
        reader = await asyncpg.connect(url)
        rows = await reader.fetch("SELECT * FROM engines.documents")
        columns = await reader.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'engines'"
        )
        await reader.close()
        return [tuple(row) for row in (*rows, *columns)]

    return Bad(config, "BackendRefused", "table|schema", {"password": password or ""}, standing)


# --- DynamoDB ---

_KEYS: Final = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": secrets.token_hex(20)}


async def region_that_does_not_exist(place: Place) -> Bad:  # noqa: ARG001
    config = {"region": "eu-nowhere-9", "table": "engines"}
    return Bad(config, "BackendRefused", "region", _KEYS)


async def table_of_somebody_else(place: Place) -> Bad:
    config, _ = place.config("dynamodb")

    def client() -> Any:
        return get_session().create_client(
            "dynamodb",
            region_name="eu-central-1",
            endpoint_url=config["endpoint"],
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )

    async with client() as sdk:
        await sdk.create_table(
            TableName=config["table"],
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        await sdk.put_item(TableName=config["table"], Item={"id": {"S": "theirs"}})

    async def standing() -> Any:
        async with client() as reader:
            return (await reader.scan(TableName=config["table"]))["Items"]

    return Bad(config, "BackendRefused", "name another table", _KEYS, standing)


async def refused_access_key(place: Place) -> Bad:
    """Answered in the service's place: the server here checks no credential."""
    config, _ = place.config("dynamodb")
    server: DynamoServer = place.request.getfixturevalue("dynamodb_server")
    relay = DynamoRelay(server.endpoint)
    await relay.__aenter__()

    async def refuse(request: Request) -> Answer:  # noqa: ARG001
        return refusal(
            "UnrecognizedClientException", "The security token included in the request is invalid."
        )

    relay.script = refuse

    async def after() -> None:
        await relay.__aexit__(None, None, None)

    return Bad(
        {**config, "endpoint": relay.endpoint}, "BackendRefused", "correct the secrets", _KEYS, after=after
    )


async def half_a_credential(place: Place) -> Bad:
    config, _ = place.config("dynamodb")
    half = {"secret_access_key": _KEYS["secret_access_key"]}
    return Bad(config, "BackendRefused", "correct the credentials", half)


# --- Firestore ---


async def no_admin_api(place: Place) -> Bad:
    config, _ = place.config("firestore")
    return Bad({**config, "manage_indexes": True}, "BackendRefused", "manage_indexes")


async def key_that_is_none(place: Place) -> Bad:  # noqa: ARG001
    secret = json.dumps({"type": "service_account", "private_key": secrets.token_hex(30)})
    return Bad({"project": "demo-engines"}, "BackendRefused", "service_account", {"service_account": secret})


async def no_credential(place: Place) -> Bad:  # noqa: ARG001
    return Bad({"project": "demo-engines"}, "BackendRefused", "service_account|application default")


# --- Cosmos DB ---


async def wrong_key(place: Place) -> Bad:
    config, _ = place.config("cosmos")
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    return Bad(config, "BackendRefused", "key", {"key": key})


def account(place: Place, **facts: Any) -> Callable[[], Awaitable[None]]:
    """The account says this of itself until the case is over."""
    server = place.request.getfixturevalue("cosmos_server")
    if not isinstance(server, CosmosServer):
        pytest.skip("an account of somebody else's is not changed")
    server.account(**facts)

    async def after() -> None:
        server.account(consistency="BoundedStaleness", write_regions=1)

    return after


async def weaker_consistency(place: Place) -> Bad:
    config, key = place.config("cosmos")
    after = account(place, consistency="Session")
    return Bad(config, "BackendRefused", "BoundedStaleness or Strong", {"key": key or ""}, after=after)


async def several_write_regions(place: Place) -> Bad:
    config, key = place.config("cosmos")
    after = account(place, write_regions=2)
    return Bad(config, "BackendRefused", "switch multi-region writes off", {"key": key or ""}, after=after)


async def container_of_somebody_else(place: Place) -> Bad:
    config, key = place.config("cosmos")
    client = CosmosClient(config["endpoint"], key or "", enable_endpoint_discovery=False)
    async with client:
        database = await client.create_database_if_not_exists(config["database"])
        await database.create_container(config["container"], partition_key=PartitionKey(path="/theirs"))
    return Bad(config, "BackendRefused", "somebody else's; name another", {"key": key or ""})


CASES: Final[dict[str, tuple[Callable[[Place], Awaitable[Bad]], ...]]] = {
    "sqlite": (missing_directory, file_of_something_else, tables_of_somebody_else),
    "postgres": (wrong_password, missing_database, schema_of_somebody_else),
    "dynamodb": (
        region_that_does_not_exist,
        table_of_somebody_else,
        refused_access_key,
        half_a_credential,
    ),
    "firestore": (no_admin_api, key_that_is_none, no_credential),
    "cosmos": (wrong_key, weaker_consistency, several_write_regions, container_of_somebody_else),
}


@pytest.fixture(scope="module")
def secrets_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets") / "secrets.json"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, secrets_file: Path) -> Iterator[Service]:
    """One server for all cases, each of which has a backend of its own."""
    home = tmp_path_factory.mktemp("service")
    jwks = home / "jwks.json"
    jwks.write_text(json.dumps({"keys": [{**KEY.as_dict(private=False), "alg": "EdDSA", "use": "sig"}]}))
    url = f"sqlite://{home}/control.db"
    service = Service(home, url, {"ENGINES_SECRETS_FILE": str(secrets_file)})
    service.init()

    async def make() -> None:
        async with open_control_plane(url) as control:
            await apply_seed(control.store, owned(jwks))

    asyncio.run(make())
    service.start()
    yield service
    service.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "case"),
    [
        pytest.param(driver, case, id=f"{driver}-{case.__name__}")
        for driver, cases in CASES.items()
        for case in cases
    ],
)
async def test_it_is_found_before_traffic_finds_it(
    driver: str,
    case: Callable[[Place], Awaitable[Bad]],
    request: pytest.FixtureRequest,
    service: Service,
    secrets_file: Path,
    new_url: NewUrl,
    tmp_path: Path,
) -> None:
    bad = await case(Place(request, new_url, tmp_path))
    before = None if bad.standing is None else await bad.standing()
    await asyncio.to_thread(secrets_file.write_text, json.dumps(bad.secrets))
    backend_id = f"bad_{uuid.uuid4().hex[:8]}"
    handles = [part for name in bad.secrets for part in (f"--secret.{name}", f"json:{name}")]
    about = document_driver(driver).DESCRIPTION
    try:
        made = await asyncio.to_thread(
            service.engines,
            *("backends", "put", backend_id, "--driver", driver, "--class", about.backend_class),
            *("--config", json.dumps(bad.config), "--offered-to", "*"),
            *handles,
        )
        assert made.code == 0, made.err
        probed = await asyncio.to_thread(service.engines, "backends", "probe", backend_id, "--json")
        assert probed.code == 1
        told = probed.json
        assert (told["ok"], told["backend_id"], told["error"]) == (False, backend_id, bad.error), told
        assert contains(bad.remedy, told["detail"]), told["detail"]
        await check_doctor(service, backend_id, bad)
        if bad.standing is not None:
            assert await bad.standing() == before
        check_unsaid(service, *bad.secrets.values())
    finally:
        if bad.after is not None:
            await bad.after()


async def check_doctor(service: Service, backend_id: str, bad: Bad) -> None:
    """The kind that is routed there is reported with backend and remedy, and every other kind is well."""
    owner = token("owner")
    async with AsyncEngines(service.url, owner, tenant_id=TENANT) as client:
        routes = [route async for route in client.routes.each()]
        present = next((route.etag for route in routes if route.resource_kind == KIND), None)
        await client.routes.put(KIND, backend_id, if_match=present, if_absent=present is None)
    done = await asyncio.to_thread(service.engines, "doctor", "--json", "--tenant", TENANT, key=owner)
    assert done.code == 1
    kinds = {kind["resource_kind"]: kind for kind in done.json["kinds"]}
    bad_kind = kinds.pop(KIND)
    assert (bad_kind["ok"], bad_kind["backend_id"]) == (False, backend_id)
    assert bad_kind["route"] == "unreachable"
    assert contains(bad.remedy, bad_kind["detail"]), bad_kind["detail"]
    assert all(kind["ok"] for kind in kinds.values()), kinds


def contains(alternatives: str, text: str) -> bool:
    """Whether one of the words, parted by |, is in the text."""
    return any(word in text for word in alternatives.split("|"))
