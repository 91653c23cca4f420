"""Each service's own SDK, called directly: the other side of our drivers.

Owns three operations on each of three SDKs: read one document, replace it under a condition on what the last
replacement made, create one under the condition that there is none. They write fields as our drivers do, with
the same client settings, and know no limits, deadlines, tenants or errors of ours.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from azure.core import MatchConditions
from google.cloud.firestore import AsyncClient

from bench.backends import Backend
from engines.drivers.documents.cosmos.account import Account
from engines.drivers.documents.dynamodb.client import Client
from engines.ports.documents import Doc
from engines.ports.secrets import Secret

EMULATOR_VARIABLE: Final = "FIRESTORE_EMULATOR_HOST"


class BareSdk(Protocol):
    """One table, container or collection."""

    async def get(self, partition: str, key: str) -> None: ...

    async def replace(self, partition: str, doc: Doc) -> None:
        """Under the condition that nobody has changed it since `create` or `replace` was last called."""
        ...

    async def create(self, partition: str, doc: Doc) -> None: ...


class BareDynamo:
    """aiobotocore, one PutItem a write, with the condition expressions of our driver."""

    def __init__(self, sdk: Any, table: str) -> None:
        self._sdk = sdk
        self._table = table
        self._version = ""

    async def get(self, partition: str, key: str) -> None:
        found = await self._sdk.get_item(
            TableName=self._table, Key={"pk": {"S": partition}, "sk": {"S": key}}, ConsistentRead=True
        )
        assert "Item" in found

    async def replace(self, partition: str, doc: Doc) -> None:
        await self._sdk.put_item(
            TableName=self._table,
            Item=self._item(partition, doc),
            ConditionExpression="ver = :version",
            ExpressionAttributeValues={":version": {"S": self._version}},
        )
        self._version = doc.version

    async def create(self, partition: str, doc: Doc) -> None:
        await self._sdk.put_item(
            TableName=self._table,
            Item=self._item(partition, doc),
            ConditionExpression="attribute_not_exists(sk) OR exp <= :now",
            ExpressionAttributeValues={":now": {"N": str(int(time.time()))}},
        )
        self._version = doc.version

    def _item(self, partition: str, doc: Doc) -> dict[str, Any]:
        return {
            "pk": {"S": partition},
            "sk": {"S": doc.key},
            "body": {"S": doc.body},
            "ver": {"S": doc.version},
        }


class BareFirestore:
    """google-cloud-firestore's AsyncClient."""

    def __init__(self, client: AsyncClient, collection: str) -> None:
        self._client = client
        self._collection = collection
        self._updated: Any = None

    async def get(self, partition: str, key: str) -> None:
        found = await self._document(partition, key).get(retry=None)
        assert found.exists
        assert found.get("body")

    async def replace(self, partition: str, doc: Doc) -> None:
        option = self._client.write_option(last_update_time=self._updated)
        result = await self._document(partition, doc.key).update(_fields(doc), option=option, retry=None)
        self._updated = result.update_time

    async def create(self, partition: str, doc: Doc) -> None:
        result = await self._document(partition, doc.key).create(_fields(doc), retry=None)
        self._updated = result.update_time

    def _document(self, partition: str, key: str) -> Any:
        return self._client.document(self._collection, partition, self._collection, key)


def _fields(doc: Doc) -> dict[str, str]:
    return {"body": doc.body, "version": doc.version, "key": doc.key}


class BareCosmos:
    """azure-cosmos, one request for one item, whose answer does not repeat the item."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self._etag = ""

    async def get(self, partition: str, key: str) -> None:
        found = await self._container.read_item(key, partition_key=partition)
        assert found["body"]

    async def replace(self, partition: str, doc: Doc) -> None:
        answer = await self._container.replace_item(
            doc.key,
            _item(partition, doc),
            etag=self._etag,
            match_condition=MatchConditions.IfNotModified,
            no_response=True,
        )
        self._etag = answer.get_response_headers()["etag"]

    async def create(self, partition: str, doc: Doc) -> None:
        answer = await self._container.create_item(_item(partition, doc), no_response=True)
        self._etag = answer.get_response_headers()["etag"]


def _item(partition: str, doc: Doc) -> dict[str, str]:
    return {"id": doc.key, "pk": partition, "body": doc.body, "version": doc.version}


@contextlib.asynccontextmanager
async def _open_dynamodb(backend: Backend) -> AsyncIterator[BareSdk]:
    """The SDK's client as our driver makes it: another's settings would be compared as well."""
    secrets = {name: Secret(value) for name, value in backend.secrets.items()}
    config = backend.config
    ours = Client(region=config["region"], endpoint=config["endpoint"], pool_size=50, secrets=secrets)
    async with ours._context() as sdk:
        yield BareDynamo(sdk, config["table"])


@contextlib.asynccontextmanager
async def _open_firestore(backend: Backend) -> AsyncIterator[BareSdk]:
    """The library finds an emulator by a variable alone, and looks at it when a client is made."""
    before = os.environ.get(EMULATOR_VARIABLE)
    os.environ[EMULATOR_VARIABLE] = backend.config["endpoint"]
    try:
        client = AsyncClient(project=backend.config["project"], database=backend.config["database"])
    finally:
        if before is None:
            del os.environ[EMULATOR_VARIABLE]
        else:
            os.environ[EMULATOR_VARIABLE] = before
    try:
        yield BareFirestore(client, backend.config["collection"])
    finally:
        closing = client.close()  # type: ignore[no-untyped-call]
        if closing is not None:
            await closing


@contextlib.asynccontextmanager
async def _open_cosmos(backend: Backend) -> AsyncIterator[BareSdk]:
    """The SDK's client as our driver makes it."""
    config = backend.config
    ours = Account(
        endpoint=config["endpoint"],
        key=backend.secrets["key"],
        database=config["database"],
        container=config["container"],
        autoscale_rus_max=None,
    )
    async with ours._new_client(backend.secrets["key"]) as client:
        yield BareCosmos(
            client.get_database_client(config["database"]).get_container_client(config["container"])
        )


OPENERS: Final[dict[str, Callable[[Backend], AbstractAsyncContextManager[BareSdk]]]] = {
    "dynamodb": _open_dynamodb,
    "firestore": _open_firestore,
    "cosmos": _open_cosmos,
}
NAMES: Final = {
    "dynamodb": "aiobotocore",
    "firestore": "google-cloud-firestore",
    "cosmos": "azure-cosmos",
}


def open_sdk(backend: Backend) -> AbstractAsyncContextManager[BareSdk]:
    """On storage that our driver has provisioned."""
    return OPENERS[backend.driver](backend)
