"""A wire-level server for the Cosmos DB driver: it shows OUR WIRING and not Azure's behaviour.

It speaks the few requests of the NoSQL API that the driver and its tests send, and answers 400 to everything
else, so that a change of the SDK or the driver is seen. Items lie in SQLite (WAL, synchronous=FULL), one
transaction a request. It imports nothing of this repository: it is run as a file.

The shapes of requests and replies come from Microsoft's documentation; each place names its page. `/_wire/…`
is no part of Cosmos DB: tests order replies with it and ask what was sent.

    python cosmos_wire.py PORT DATABASE_FILE KEY
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import sqlite3
import sys
import time
import uuid
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import web

# "Azure Cosmos DB service quotas", https://learn.microsoft.com/azure/cosmos-db/concepts-limits
ITEM_BYTES_MAX: Final = 2 * 1024 * 1024
BATCH_BYTES_MAX: Final = 2 * 1024 * 1024
BATCH_OPS_MAX: Final = 100
ID_BYTES_MAX: Final = 1023
PARTITION_KEY_BYTES_MAX: Final = 2048
PAGE_BYTES_MAX: Final = 4 * 1024 * 1024
PAGE_ITEMS_MAX: Final = 1000
# "Access control on Azure Cosmos DB resources",
# https://learn.microsoft.com/rest/api/cosmos-db/access-control-on-cosmosdb-resources
CLOCK_SKEW_S_MAX: Final = 15 * 60

# Every x-ms- header that the SDK sends here; another one is a request that nobody has looked at.
HEADERS_KNOWN: Final = frozenset(
    {
        "x-ms-date",
        "x-ms-version",
        "x-ms-consistency-level",
        "x-ms-activity-id",
        "x-ms-client-id",
        "x-ms-cosmos-sdk-supportedcapabilities",
        "x-ms-thinclient-proxy-resource-type",
        "x-ms-thinclient-proxy-operation-type",
        "x-ms-documentdb-query-iscontinuationexpected",
        "x-ms-documentdb-partitionkey",
        "x-ms-documentdb-isquery",
        "x-ms-max-item-count",
        "x-ms-continuation",
        "x-ms-cosmos-is-batch-request",
        "x-ms-cosmos-batch-atomic",
        "x-ms-cosmos-batch-continue-on-error",
        "x-ms-documentdb-is-upsert",
        "x-ms-cosmos-intended-collection-rid",
        "x-ms-cosmos-offer-autopilot-settings",
        "x-ms-cosmos-correlated-activityid",
    }
)

_FIELDS: Final = r"SELECT ((?:c\.[a-z_]+)(?:, c\.[a-z_]+)*) FROM c WHERE "
_RANGE: Final = re.compile(_FIELDS + r"c\.id > @above AND c\.id < @below ORDER BY c\.id (ASC|DESC)")
_KEYS: Final = re.compile(_FIELDS + r"c\.id IN \((@key\d+(?:, @key\d+)*)\)")

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS databases (id TEXT PRIMARY KEY, rid TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS containers (
    database TEXT NOT NULL, id TEXT NOT NULL, rid TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (database, id)
);
CREATE TABLE IF NOT EXISTS items (
    container TEXT NOT NULL, pk TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, etag TEXT NOT NULL,
    lapses_at INTEGER, PRIMARY KEY (container, pk, id)
) WITHOUT ROWID;
"""


class Refusal(Exception):
    """An error reply: {"code": …, "message": …}, as in "HTTP status codes for Azure Cosmos DB",
    https://learn.microsoft.com/rest/api/cosmos-db/http-status-codes-for-cosmosdb
    """

    def __init__(self, status: int, message: str, substatus: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.substatus = substatus
        self.message = message


class Wire:
    """One account in one file."""

    def __init__(self, path: str, key: str) -> None:
        self._key = base64.b64decode(key)
        self._sqlite = sqlite3.connect(path, isolation_level=None)
        self._sqlite.execute("PRAGMA journal_mode = WAL")
        self._sqlite.execute("PRAGMA synchronous = FULL")
        self._sqlite.executescript(_SCHEMA)
        self.ordered: list[dict[str, Any]] = []
        self.seen: list[dict[str, Any]] = []
        self.account: dict[str, Any] = {"consistency": "BoundedStaleness", "write_regions": 1}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.path.startswith("/_wire/"):
            return self._steer(request.path, body)
        is_item = "/docs" in request.path
        if is_item:
            self.seen.append({"method": request.method, "path": request.path, "bytes": len(body)})
        if is_item and self.ordered:
            order = self.ordered.pop(0)
            if order.get("apply"):
                self._answer(request, body)
            if order["status"] == "reset":
                assert request.transport is not None
                request.transport.abort()
                return _json(200, {})
            return _json(order["status"], order.get("body", {}), order.get("headers"))
        try:
            return self._answer(request, body)
        except Refusal as refusal:
            return _json(
                refusal.status,
                {"code": str(refusal.status), "message": refusal.message},
                {"x-ms-substatus": str(refusal.substatus)},
            )

    def _steer(self, path: str, body: bytes) -> web.Response:
        if path == "/_wire/order":
            self.ordered += json.loads(body)
        elif path == "/_wire/forget":
            self.ordered.clear()
        elif path == "/_wire/account":
            self.account |= json.loads(body)
        elif path == "/_wire/seen":
            seen, self.seen = self.seen, []
            return _json(200, seen)
        return _json(200, {})

    # --- who asks, and for what ---

    def _answer(self, request: web.Request, body: bytes) -> web.Response:
        parts = [unquote(part) for part in request.rel_url.raw_path.strip("/").split("/") if part]
        self._check_headers(request, parts)
        match request.method, parts:
            case "GET", []:
                return _json(200, self._account(request))
            case "POST", ["dbs"]:
                return self._create_database(json.loads(body))
            case "GET", ["dbs", database]:
                return _json(200, {"id": database, "_rid": self._database_rid(database)})
            case "POST", ["dbs", database, "colls"]:
                return self._create_container(database, json.loads(body))
            case "GET", ["dbs", database, "colls", container]:
                return _json(200, self._container(database, container))
            case "POST", ["dbs", database, "colls", container, "docs"]:
                return self._post_items(request, self._container(database, container), body)
            case "GET", ["dbs", database, "colls", container, "docs", key]:
                return self._read_item(request, self._container(database, container), key)
            case "PUT", ["dbs", database, "colls", container, "docs", key]:
                return self._replace_item(request, self._container(database, container), key, body)
        raise Refusal(400, f"nobody sends {request.method} {request.path}")

    def _check_headers(self, request: web.Request, parts: list[str]) -> None:
        unknown = [
            name
            for name in map(str.lower, request.headers)
            if name.startswith("x-ms-") and name not in HEADERS_KNOWN
        ]
        if unknown:
            raise Refusal(400, f"unknown headers: {', '.join(unknown)}")
        date = request.headers.get("x-ms-date", "")
        kind, link = _resource(parts)
        text = f"{request.method.lower()}\n{kind}\n{link}\n{date.lower()}\n\n"
        signature = base64.b64encode(hmac.new(self._key, text.encode(), hashlib.sha256).digest()).decode()
        given = unquote(request.headers.get("authorization", ""))
        if not hmac.compare_digest(given.encode(), f"type=master&ver=1.0&sig={signature}".encode()):
            raise Refusal(401, "The input authorization token can't serve the request.")
        if abs(parsedate_to_datetime(date).timestamp() - time.time()) > CLOCK_SKEW_S_MAX:
            raise Refusal(403, "The authorization token is not valid at the current time.")

    def _account(self, request: web.Request) -> dict[str, Any]:
        """What GetDatabaseAccount of the SDK reads: azure/cosmos/aio/_cosmos_client_connection_async.py."""
        here = f"http://{request.host}/"
        regions = [
            {"name": f"Region {n}", "databaseAccountEndpoint": here}
            for n in range(self.account["write_regions"])
        ]
        written = regions
        if self.account.get("writes_at"):
            written = [{"name": "Elsewhere", "databaseAccountEndpoint": self.account["writes_at"]}]
        return {
            "_self": "",
            "id": "wire",
            "_rid": "wire",
            "_dbs": "//dbs/",
            "media": "//media/",
            "addresses": "//addresses/",
            "writableLocations": written,
            "readableLocations": regions,
            "enableMultipleWriteLocations": len(regions) > 1,
            "userConsistencyPolicy": {"defaultConsistencyLevel": self.account["consistency"]},
        }

    # --- databases and containers ---
    # "Create a database", https://learn.microsoft.com/rest/api/cosmos-db/create-a-database
    # "Create a collection", https://learn.microsoft.com/rest/api/cosmos-db/create-a-collection

    def _create_database(self, body: dict[str, Any]) -> web.Response:
        _only(body, {"id"})
        try:
            self._sqlite.execute("INSERT INTO databases VALUES (?, ?)", (body["id"], uuid.uuid4().hex[:8]))
        except sqlite3.IntegrityError:
            raise Refusal(409, "Resource with specified id or name already exists.") from None
        return _json(201, {"id": body["id"], "_rid": self._database_rid(body["id"])})

    def _database_rid(self, database: str) -> str:
        row = self._sqlite.execute("SELECT rid FROM databases WHERE id = ?", (database,)).fetchone()
        if row is None:
            raise Refusal(404, "Resource Not Found.", 1003)
        return str(row[0])

    def _create_container(self, database: str, body: dict[str, Any]) -> web.Response:
        self._database_rid(database)
        _only(body, {"id", "partitionKey", "indexingPolicy", "defaultTtl"})
        _only(body["partitionKey"], {"paths", "kind", "version"})
        try:
            self._sqlite.execute(
                "INSERT INTO containers VALUES (?, ?, ?, ?)",
                (database, body["id"], uuid.uuid4().hex[:12], json.dumps(body)),
            )
        except sqlite3.IntegrityError:
            raise Refusal(409, "Resource with specified id or name already exists.") from None
        return _json(201, self._container(database, body["id"]))

    def _container(self, database: str, container: str) -> dict[str, Any]:
        row = self._sqlite.execute(
            "SELECT rid, body FROM containers WHERE database = ? AND id = ?", (database, container)
        ).fetchone()
        if row is None:
            raise Refusal(404, "Resource Not Found.", 1003)
        return {
            **json.loads(row[1]),
            "_rid": row[0],
            "_self": f"dbs/{database}/colls/{container}/",
            "_etag": '"0"',
        }

    # --- items ---
    # "Create a document", https://learn.microsoft.com/rest/api/cosmos-db/create-a-document
    # "Get a document", https://learn.microsoft.com/rest/api/cosmos-db/get-a-document
    # "Replace a document", https://learn.microsoft.com/rest/api/cosmos-db/replace-a-document
    # "Query documents", https://learn.microsoft.com/rest/api/cosmos-db/query-documents

    def _post_items(self, request: web.Request, container: dict[str, Any], body: bytes) -> web.Response:
        partition = _partition(request)
        if request.headers.get("x-ms-documentdb-isquery") == "true":
            return self._query(request, container["_rid"], partition, json.loads(body))
        if request.headers.get("x-ms-cosmos-is-batch-request") == "True":
            return self._batch(request, container["_rid"], partition, body)
        kind = "Upsert" if request.headers.get("x-ms-documentdb-is-upsert") == "True" else "Create"
        op = {"operationType": kind, "resourceBody": json.loads(body), "size": len(body)}
        return self._one(container["_rid"], partition, op)

    def _replace_item(
        self, request: web.Request, container: dict[str, Any], key: str, body: bytes
    ) -> web.Response:
        op = {"operationType": "Replace", "id": key, "resourceBody": json.loads(body), "size": len(body)}
        if "If-Match" in request.headers:
            op["ifMatch"] = request.headers["If-Match"]
        return self._one(container["_rid"], _partition(request), op)

    def _one(self, container: str, partition: str, op: dict[str, Any]) -> web.Response:
        self._sqlite.execute("BEGIN IMMEDIATE")
        try:
            status, item = self._apply(container, partition, op)
        except BaseException:
            self._sqlite.execute("ROLLBACK")
            raise
        self._sqlite.execute("COMMIT")
        return _json(status, item, {"etag": item["_etag"]})

    def _read_item(self, request: web.Request, container: dict[str, Any], key: str) -> web.Response:
        item = self._find(container["_rid"], _partition(request), key)
        if item is None:
            raise Refusal(404, "Entity with the specified id does not exist in the system.")
        return _json(200, item, {"etag": item["_etag"]})

    def _query(
        self, request: web.Request, container: str, partition: str, query: dict[str, Any]
    ) -> web.Response:
        _only(query, {"query", "parameters"})
        values = {parameter["name"]: parameter["value"] for parameter in query["parameters"]}
        direction = "ASC"
        if found := _RANGE.fullmatch(query["query"]):
            direction = found[2]
            above, below = values.pop("@above"), values.pop("@below")
            rows = self._rows(container, partition, "id > ? AND id < ?", (above, below), direction)
        elif found := _KEYS.fullmatch(query["query"]):
            keys = [values.pop(name) for name in found[2].split(", ")]
            rows = self._rows(
                container, partition, f"id IN ({','.join('?' * len(keys))})", tuple(keys), direction
            )
        else:
            raise Refusal(400, f"nobody sends this query: {query['query']}")
        if values:
            raise Refusal(400, f"parameters that the query does not use: {sorted(values)}")
        fields = [field.removeprefix("c.") for field in found[1].split(", ")]
        return self._page(request, rows, fields, direction)

    def _page(
        self, request: web.Request, rows: list[dict[str, Any]], fields: list[str], direction: str
    ) -> web.Response:
        """A page ends at its count or its size; the continuation is the last id."""
        count_max = min(int(request.headers["x-ms-max-item-count"]), PAGE_ITEMS_MAX)
        if token := request.headers.get("x-ms-continuation"):
            last = base64.b64decode(token).decode()
            rows = [row for row in rows if (row["id"] > last if direction == "ASC" else row["id"] < last)]
        page: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            if len(page) == count_max or size >= PAGE_BYTES_MAX:
                break
            page.append({field: row[field] for field in fields if field in row})
            size += len(json.dumps(page[-1], ensure_ascii=False).encode())
        headers = {"x-ms-item-count": str(len(page))}
        if len(page) < len(rows):
            headers["x-ms-continuation"] = base64.b64encode(rows[len(page) - 1]["id"].encode()).decode()
        return _json(200, {"_rid": "wire", "Documents": page, "_count": len(page)}, headers)

    def _batch(self, request: web.Request, container: str, partition: str, body: bytes) -> web.Response:
        """All operations or none: 200, or 207 with one operation's own status and 424 for all others.

        "Transactional batch operations in Azure Cosmos DB",
        https://learn.microsoft.com/azure/cosmos-db/nosql/transactional-batch
        """
        if request.headers.get("x-ms-cosmos-batch-atomic") != "True":
            raise Refusal(400, "a batch is atomic here")
        if len(body) > BATCH_BYTES_MAX:
            raise Refusal(413, "Request size is too large")
        ops = json.loads(body)
        if not 0 < len(ops) <= BATCH_OPS_MAX:
            raise Refusal(400, "Batch request has more operations than what is supported.")
        results: list[dict[str, Any]] = []
        self._sqlite.execute("BEGIN IMMEDIATE")
        try:
            for op in ops:
                _only(op, {"operationType", "id", "resourceBody", "ifMatch"})
                status, item = self._apply(container, partition, op)
                result = {"statusCode": status, "requestCharge": 1.0, "eTag": item.get("_etag")}
                if request.headers.get("Prefer") != "return=minimal" and item:
                    result["resourceBody"] = item
                results.append(result)
        except Refusal as refusal:
            self._sqlite.execute("ROLLBACK")
            codes = [424] * len(ops)
            codes[len(results)] = refusal.status
            return _json(207, [{"statusCode": c, "subStatusCode": 0, "requestCharge": 1.0} for c in codes])
        except BaseException:
            self._sqlite.execute("ROLLBACK")
            raise
        self._sqlite.execute("COMMIT")
        return _json(200, results)

    def _apply(self, container: str, partition: str, op: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        kind = op["operationType"]
        key = op.get("id") or op["resourceBody"]["id"]
        found = self._find(container, partition, key)
        if kind == "Create" and found is not None:
            raise Refusal(409, "Entity with the specified id already exists in the system.")
        if kind in ("Replace", "Delete") and found is None:
            raise Refusal(404, "Entity with the specified id does not exist in the system.")
        if "ifMatch" in op and (found is None or found["_etag"] != op["ifMatch"]):
            raise Refusal(412, "One of the specified pre-condition is not met")
        if kind == "Delete":
            self._sqlite.execute(
                "DELETE FROM items WHERE container = ? AND pk = ? AND id = ?", (container, partition, key)
            )
            return 204, {}
        if kind not in ("Create", "Upsert", "Replace"):
            raise Refusal(400, f"nobody sends the operation {kind}")
        item = self._store(container, partition, key, dict(op["resourceBody"]))
        return 201 if found is None else 200, item

    def _store(self, container: str, partition: str, key: str, item: dict[str, Any]) -> dict[str, Any]:
        if item.get("id") != key or item.get("pk") != partition:
            raise Refusal(400, "id and partition key of the body must be those of the request")
        if not 0 < len(key.encode()) <= ID_BYTES_MAX or re.search(r"[/\\?#]", key):
            raise Refusal(400, "an id has 1 to 1023 bytes without / \\ ? #")
        ttl = item.get("ttl")
        if ttl is not None and (not isinstance(ttl, int) or not (ttl == -1 or 0 < ttl < 2**31)):
            raise Refusal(400, "ttl is -1 or a positive 32-bit number of seconds")
        now_s = int(time.time())
        item |= {"_rid": "wire", "_self": "wire", "_attachments": "attachments/", "_ts": now_s}
        item["_etag"] = f'"{uuid.uuid4()}"'
        text = json.dumps(item, ensure_ascii=False)
        if len(text.encode()) > ITEM_BYTES_MAX:
            raise Refusal(413, "Request size is too large")
        self._sqlite.execute(
            "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?)",
            (container, partition, key, text, item["_etag"], None if ttl in (None, -1) else now_s + ttl),
        )
        return item

    def _find(self, container: str, partition: str, key: str) -> dict[str, Any] | None:
        return next(iter(self._rows(container, partition, "id = ?", (key,), "ASC")), None)

    def _rows(
        self, container: str, partition: str, where: str, values: tuple[str, ...], direction: str
    ) -> list[dict[str, Any]]:
        """Items that their ttl has not hidden. "Time to Live (TTL) in Azure Cosmos DB",
        https://learn.microsoft.com/azure/cosmos-db/nosql/time-to-live
        """
        rows = self._sqlite.execute(
            f"SELECT body FROM items WHERE container = ? AND pk = ? AND {where}"
            f" AND (lapses_at IS NULL OR lapses_at > ?) ORDER BY id {direction}",
            (container, partition, *values, int(time.time())),
        )
        return [json.loads(row[0]) for row in rows]


def _resource(parts: list[str]) -> tuple[str, str]:
    """What the signature covers: the type, and the path of the resource, or of its parent for a POST."""
    if not parts:
        return "", ""
    if len(parts) % 2:
        return parts[-1], "/".join(parts[:-1])
    return parts[-2], "/".join(parts)


def _partition(request: web.Request) -> str:
    found = json.loads(request.headers.get("x-ms-documentdb-partitionkey", "null"))
    match found:
        case [str(value)] if len(value.encode()) <= PARTITION_KEY_BYTES_MAX:
            return value
    raise Refusal(400, "one partition key of text is needed")


def _only(body: Mapping[str, Any], names: set[str]) -> None:
    if extra := set(body) - names:
        raise Refusal(400, f"nobody sends {sorted(extra)}")


def _json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    activity = {"x-ms-activity-id": str(uuid.uuid4()), "x-ms-request-charge": "1"}
    content = json.dumps(body, ensure_ascii=False).encode()
    return web.Response(
        status=status, body=content, content_type="application/json", headers={**activity, **(headers or {})}
    )


def main(port: int, path: str, key: str) -> None:
    wire = Wire(path, key)
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", wire.handle)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
