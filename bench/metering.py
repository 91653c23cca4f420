"""Drivers that count what a service would charge, in its own units.

Owns a meter for each of the three services: each sits where our driver hands a request to the SDK, so that it
counts what is really sent, reads before a conditional write included. Sizes and prices of a unit come from
the drivers' own constants and descriptions. Leaves what is measured to `costs.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from bench.backends import Backend
from engines.clock import SystemClock
from engines.drivers.documents import cosmos, dynamodb, firestore
from engines.drivers.documents.cosmos.account import Account
from engines.drivers.documents.dynamodb.client import Client
from engines.drivers.documents.dynamodb.limits import READ_UNIT_BYTES, WRITE_UNIT_BYTES
from engines.drivers.documents.dynamodb.table import Table
from engines.drivers.documents.firestore.connection import Connection
from engines.drivers.documents.firestore.documents import BATCH_GET, COMMIT, RUN_QUERY, FirestoreDocuments
from engines.ports.documents import DocumentDriver
from engines.ports.secrets import Secret

KIBIBYTE: Final = 1024


class Meter:
    """What was used since it was last cleared: units, requests and bytes by name.

    `reported` is what the peer itself said that it was, by the same names; empty where it says nothing.
    """

    def __init__(self) -> None:
        self.units: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.reported: Counter[str] = Counter()

    def clear(self) -> None:
        for counts in (self.units, self.requests, self.bytes, self.reported):
            counts.clear()


class Metered(Protocol):
    """A driver with its meter."""

    def __call__(self, backend: Backend, meter: Meter) -> DocumentDriver: ...


# --- DynamoDB ---

WRITE_UNITS: Final = "write units"
READ_UNITS: Final = "read units"
_WRITES: Final = ("put_item", "delete_item", "transact_write_items")


class _MeteredClient(Client):
    """Also asks the service what each request consumed."""

    def __init__(self, meter: Meter, **settings: Any) -> None:
        super().__init__(**settings)
        self._meter = meter

    async def call(self, method: str, request: Mapping[str, Any], **options: Any) -> Any:
        if method not in _PRICES:
            return await super().call(method, request, **options)
        asked = {**request, "ReturnConsumedCapacity": "TOTAL"}
        answer = await super().call(method, asked, **options)
        name = WRITE_UNITS if method in _WRITES else READ_UNITS
        sizes = _PRICES[method](request, answer)
        per, factor = (WRITE_UNIT_BYTES, 1) if name == WRITE_UNITS else (READ_UNIT_BYTES, 1)
        if method == "transact_write_items":
            factor = 2
        self._meter.requests[method] += 1
        self._meter.bytes[method] += sum(sizes)
        self._meter.units[name] += sum(factor * max(1, math.ceil(size / per)) for size in sizes)
        told = answer["ConsumedCapacity"]
        for part in told if isinstance(told, list) else [told]:
            self._meter.reported[name] += round(part["CapacityUnits"])
        return answer


def _item_bytes(item: Mapping[str, Mapping[str, str]]) -> int:
    """Names and values, in UTF-8."""
    return sum(len(name) + len(text.encode()) for name, value in item.items() for text in value.values())


def _written(request: Mapping[str, Any], _: Any) -> list[int]:
    return [_item_bytes(request.get("Item") or request["Key"])]


def _written_together(request: Mapping[str, Any], answer: Any) -> list[int]:
    return [
        size for item in request["TransactItems"] for one in item.values() for size in _written(one, answer)
    ]


def _read(_: Any, answer: Any) -> list[int]:
    return [_item_bytes(answer.get("Item", {}))]


def _read_several(request: Mapping[str, Any], answer: Any) -> list[int]:
    found = [_item_bytes(item) for items in answer["Responses"].values() for item in items]
    asked = sum(len(part["Keys"]) for part in request["RequestItems"].values())
    return found + [0] * (asked - len(found))


def _read_range(_: Any, answer: Any) -> list[int]:
    """A range is charged for the sum of its items."""
    return [sum(_item_bytes(item) for item in answer["Items"])]


_PRICES: Final[Mapping[str, Callable[[Mapping[str, Any], Any], list[int]]]] = {
    "put_item": _written,
    "delete_item": _written,
    "transact_write_items": _written_together,
    "get_item": _read,
    "batch_get_item": _read_several,
    "query": _read_range,
}


def _open_dynamodb(backend: Backend, meter: Meter) -> DocumentDriver:
    config = backend.config
    client = _MeteredClient(
        meter,
        region=config["region"],
        endpoint=config["endpoint"],
        pool_size=50,
        secrets={name: Secret(value) for name, value in backend.secrets.items()},
    )
    table = Table(
        client.call,
        name=config["table"],
        region=config["region"],
        pinned_to_region=False,
        point_in_time_recovery=config["point_in_time_recovery"],
    )
    return dynamodb.DynamoDocuments(config["table"], client, table, SystemClock())


# --- Firestore ---

DOCUMENT_WRITES: Final = "document writes"
DOCUMENT_READS: Final = "document reads"


class _MeteredConnection(Connection):
    """Counts what our driver sends and the service streams back."""

    def __init__(self, meter: Meter, database: str, endpoint: str) -> None:
        super().__init__(database, endpoint, None)
        self._meter = meter

    async def call(self, method: str, request: Any, reply: Any, **options: Any) -> Any:
        answer = await super().call(method, request, reply, **options)
        if method == COMMIT:
            self._meter.requests["Commit"] += 1
            self._meter.bytes["Commit"] += request.ByteSize()
            self._meter.units[DOCUMENT_WRITES] += len(request.writes)
        return answer

    async def stream(
        self, method: str, request: Any, reply: Any, take: Callable[[Any], bool], *, route: str
    ) -> None:
        found = 0

        def count(message: Any) -> bool:
            nonlocal found
            found += method == RUN_QUERY and message.HasField("document")
            self._meter.bytes[name] += message.ByteSize()
            return take(message)

        name = method.rpartition("/")[2]
        await super().stream(method, request, reply, count, route=route)
        self._meter.requests[name] += 1
        read = len(request.documents) if method == BATCH_GET else max(1, found)
        self._meter.units[DOCUMENT_READS] += read


def _open_firestore(backend: Backend, meter: Meter) -> DocumentDriver:
    config = firestore.Config(**backend.config)
    driver = FirestoreDocuments(config, None, SystemClock())
    driver._connection = _MeteredConnection(meter, driver._layout.database, backend.config["endpoint"])
    return driver


# --- Cosmos DB ---

REQUEST_UNITS: Final = "RU"
_PRICE: Final = re.compile(r"([0-9]+) RU for 1 KB, ([0-9]+) for 64 KB")
_QUERY_PRICE: Final = re.compile(r"about ([0-9]+) RU")


def request_units(operation: str, size: int) -> float:
    """Between the two sizes that the driver's description gives, along a straight line; 1 KB at least."""
    found = _PRICE.search(cosmos.DESCRIPTION.costs[operation])
    assert found is not None, "the description says what 1 KB and 64 KB cost"
    least, most = (int(price) for price in found.groups())
    return least + (most - least) * (max(size, KIBIBYTE) / KIBIBYTE - 1) / 63


class _MeteredAccount(Account):
    """Counts by the sizes of items as JSON; the wire-level server charges nothing that would tell more."""

    def __init__(self, meter: Meter, **settings: Any) -> None:
        super().__init__(**settings)
        self._meter = meter

    async def read(self, partition: str, key: str) -> Any:
        item = await super().read(partition, key)
        self._count("read", _json_bytes(item), request_units("get of one document", _json_bytes(item)))
        return item

    async def query(
        self, partition: str, query: Any, *, items_max: int, enough: Callable[[Any], bool]
    ) -> None:
        size = 0

        def count(item: Any) -> bool:
            nonlocal size
            size += _json_bytes(item)
            return enough(item)

        await super().query(partition, query, items_max=items_max, enough=count)
        found = _QUERY_PRICE.search(cosmos.DESCRIPTION.costs["get of several, and scan"])
        assert found is not None, "the description says what a query costs"
        weight = request_units("get of one document", size) - request_units("get of one document", 0)
        self._count("query", size, int(found.group(1)) + weight)

    async def batch(self, partition: str, operations: Sequence[Any]) -> Any:
        results = await super().batch(partition, operations)
        for operation in operations:
            size = _json_bytes(operation[1][-1])
            self._count(operation[0], size, request_units("write of one document", size))
        return results

    def _count(self, name: str, size: int, units: float) -> None:
        self._meter.requests[name] += 1
        self._meter.bytes[name] += size
        self._meter.units[REQUEST_UNITS] += units  # type: ignore[assignment]


def _json_bytes(item: Any) -> int:
    return len(json.dumps(item, ensure_ascii=False).encode())


def _open_cosmos(backend: Backend, meter: Meter) -> DocumentDriver:
    config = backend.config
    account = _MeteredAccount(
        meter,
        endpoint=config["endpoint"],
        key=backend.secrets["key"],
        database=config["database"],
        container=config["container"],
        autoscale_rus_max=None,
    )
    return cosmos.CosmosDocuments(account, SystemClock())


METERED: Final[Mapping[str, Metered]] = {
    "dynamodb": _open_dynamodb,
    "firestore": _open_firestore,
    "cosmos": _open_cosmos,
}
