"""DynamoDB: one table, one request a write.

Owns what a backend record of it holds, and the six verbs. A write of one document is a conditional PutItem or
DeleteItem, a batch one TransactWriteItems. Every read is consistent. Leaves items and requests to `items.py`,
sending and the translation of errors to `client.py` and `errors.py`, provisioning to `table.py`, and the
numbers to `limits.py`.

The SDK is imported by `open_driver`, so what is described here can be read without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from engines.clock import Clock
from engines.drivers.documents.dynamodb.items import (
    KEY,
    live_doc,
    primary_key,
    range_request,
    write_request,
)
from engines.drivers.documents.dynamodb.limits import (
    ITEM_BYTES_MAX,
    OVERHEAD_BYTES_MAX,
    PARTITION_READ_UNITS_PER_S,
    PARTITION_WRITE_UNITS_PER_S,
    POOL_SIZE_MAX,
    READ_UNIT_BYTES,
    TOKEN_LENGTH_MAX,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_OPS_MAX,
    WAIT_TIMEOUT_S,
    WAITING_MAX,
    WRITE_UNIT_BYTES,
)
from engines.errors import BackendRefused, Conflict, Invalid, OutcomeUnknown, Throttled, Unavailable
from engines.ports.documents import BODY_BYTES_MAX, Absent, Doc, DriverDescription, Match, Op, Page
from engines.ports.secrets import Secret

if TYPE_CHECKING:
    from engines.drivers.documents.dynamodb.client import Client
    from engines.drivers.documents.dynamodb.table import Table

DESCRIPTION: Final = DriverDescription(
    name="dynamodb",
    backend_class="cloud",
    consistency="strongly consistent reads in one region; a read sees every write acknowledged before it",
    durability="acknowledged after the service stored it in two of three availability zones",
    config={
        "region": "the one region that is read and written, such as eu-central-1",
        "table": "the table's name; two deployments share a region under two tables",
        "endpoint": "https://host of a VPC endpoint or http://host:port of a local server, else the region's",
        "pool_size": "connections of one process at most, default 50",
        "point_in_time_recovery": "whether provisioning switches it on, default true; false for a local"
        " server that has none",
        "pinned_to_region": "default false: a table replicated to other regions is refused. true says that"
        " every writer of this global table uses this region",
    },
    secrets={
        "access_key_id": "of a user or role; without it the SDK's own chain finds credentials",
        "secret_access_key": "goes with access_key_id",
        "session_token": "for temporary credentials alone; nobody renews those given here",
    },
    limits={
        "item": f"{ITEM_BYTES_MAX:,} bytes with keys and names; a body of {BODY_BYTES_MAX:,} always fits,"
        f" beside at most {OVERHEAD_BYTES_MAX:,} bytes of the rest",
        "batch": f"{TRANSACTION_OPS_MAX} documents and {TRANSACTION_BYTES_MAX:,} bytes",
        "partition": f"{PARTITION_WRITE_UNITS_PER_S:,} write and {PARTITION_READ_UNITS_PER_S:,} read"
        " units a second",
        "calls that wait for a connection": f"{WAITING_MAX:,} a process, {WAIT_TIMEOUT_S:g} s each",
        "expired documents": "absent at once; swept by the service within days, and stored until then",
        "global tables": "one region alone; never with strong consistency between regions, which has no"
        " transactions",
    },
    costs={
        "write of one document": f"1 write unit for each {WRITE_UNIT_BYTES:,} bytes begun, of the larger of"
        " what stood there and what is written",
        "write of a batch": f"2 write units for each {WRITE_UNIT_BYTES:,} bytes begun of each document",
        "refused condition": "the write units of the document that stands there, at least 1; in a batch"
        " twice",
        "get": f"1 read unit for each {READ_UNIT_BYTES:,} bytes begun of each document, 1 for a missing one",
        "scan": f"1 read unit for each {READ_UNIT_BYTES:,} bytes begun of all that is read, expired ones too,"
        " and the document behind a page",
        "expiry": "nothing",
        "point-in-time recovery": "by the size of the table, each month",
    },
    provisions="the table, billed on demand, with its time to live and point-in-time recovery",
    policy="""{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "Run",
      "Effect": "Allow",
      "Action": [
        "dynamodb:GetItem",
        "dynamodb:BatchGetItem",
        "dynamodb:Query",
        "dynamodb:PutItem",
        "dynamodb:DeleteItem",
        "dynamodb:DescribeTable",
        "dynamodb:DescribeTimeToLive",
        "dynamodb:DescribeContinuousBackups"
      ],
      "Resource": "arn:aws:dynamodb:REGION:ACCOUNT:table/TABLE"
    },
    {
      "Sid": "Provision",
      "Effect": "Allow",
      "Action": [
        "dynamodb:CreateTable",
        "dynamodb:UpdateTimeToLive",
        "dynamodb:UpdateContinuousBackups"
      ],
      "Resource": "arn:aws:dynamodb:REGION:ACCOUNT:table/TABLE"
    }
  ]
}""",
    prerequisites=(
        "an AWS account, and a region whose endpoint the server reaches",
        "a role with the policy below that the SDK's chain finds (EC2, ECS, EKS)",
        "or a user with that policy, whose access key is two secrets",
        "nothing else: the table is made by provisioning, or by you with the same keys",
    ),
    example={"region": "eu-central-1", "table": "engines"},
    control_plane_url="dynamodb://REGION/TABLE[?endpoint=URL]",
    proven={
        "dynoxide 1.2.1, a real server of the DynamoDB API": "the conformance kit, the log, moves,"
        " a disturbed network, and in script/soak 200 times kill -9 of server, database or both under load,"
        " with 16,130 changes acknowledged and none lost or doubled",
        "a relay that answers in the server's place": "throttling, internal errors, partial batches, refused"
        " credentials, global tables",
        "Amazon DynamoDB": "not run: quotas, latency and the policy rest on its documentation",
    },
)

_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-[0-9]{1,2}")
_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?/?")
URL_SCHEME: Final = "dynamodb"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a backend record of this driver holds. Credentials are secrets and no part of it."""

    region: str
    table: str
    endpoint: str | None = None
    pool_size: int = 50
    point_in_time_recovery: bool = True
    pinned_to_region: bool = False

    def __post_init__(self) -> None:
        if not _REGION.fullmatch(self.region):
            raise ValueError("region is a name such as eu-central-1")
        if not _TABLE.fullmatch(self.table):
            raise ValueError("table is 3 to 255 letters, digits, hyphens, underscores and dots")
        if self.endpoint is not None and not _ENDPOINT.fullmatch(self.endpoint):
            raise ValueError("endpoint is https://host or http://host, with a port where it needs one")
        if not 1 <= self.pool_size <= POOL_SIZE_MAX:
            raise ValueError(f"pool_size is 1 to {POOL_SIZE_MAX}")


def config_from_url(url: str) -> tuple[dict[str, Any], None]:
    """`dynamodb://REGION/TABLE?endpoint=…` as a record's config. Parameters are the other fields of `Config`.

    Credentials have no place in it: a control plane's come from the SDK's own chain. Raises Invalid, which
    repeats nothing of the URL.
    """
    try:
        parts = urlsplit(url)
        given = {
            "region": parts.hostname or "",
            "table": unquote(parts.path[1:]),
            **dict(parse_qsl(parts.query)),
        }
        if parts.scheme != URL_SCHEME or parts.netloc != given["region"]:
            raise ValueError
        config = msgspec.convert(given, Config, strict=False)
    except ValueError:
        raise Invalid(
            "this is no dynamodb://region/table?endpoint=https://host; credentials come from the SDK's own"
            f" chain, and parameters are {', '.join(Config.__struct_fields__[2:])}",
            field="control_plane",
        ) from None
    return {key: value for key, value in msgspec.to_builtins(config).items() if value is not None}, None


def open_driver(config: Config, secrets: Mapping[str, Secret], clock: Clock) -> DynamoDocuments:
    """Opens nothing yet: the client comes with the first call. Raises BackendRefused without the SDK."""
    try:
        from engines.drivers.documents.dynamodb.client import Client
        from engines.drivers.documents.dynamodb.table import Table
    except ModuleNotFoundError as error:
        raise BackendRefused(
            "the driver dynamodb is not installed: pip install 'engines[dynamodb]'"
        ) from error
    client = Client(
        region=config.region, endpoint=config.endpoint, pool_size=config.pool_size, secrets=secrets
    )
    table = Table(
        client.call,
        name=config.table,
        region=config.region,
        pinned_to_region=config.pinned_to_region,
        point_in_time_recovery=config.point_in_time_recovery,
    )
    return DynamoDocuments(config.table, client, table, clock)


class DynamoDocuments:
    """`DocumentDriver` on one table. Bound to the event loop of its first call."""

    def __init__(self, name: str, client: Client, table: Table, clock: Clock) -> None:
        self._name = name
        self._client = client
        self._table = table
        self._clock = clock

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        if len(keys) == 1:
            items = await self._get_one(partition, keys[0])
        else:
            items = await self._get_several(partition, keys)
        now = self._now()
        docs = (live_doc(item, now) for item in items)
        return {doc.key: doc for doc in docs if doc is not None}

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        """A page is what one query reads: at most 1 MiB, and shorter by the expired documents in it."""
        # One more than the page holds: a cursor that leads to nothing would break the promise of every list.
        request = range_request(
            self._name, partition, above=above, below=below, limit=limit + 1, reverse=reverse
        )
        if request is None:
            return Page(())
        answer = await self._client.call("query", request, lost=Unavailable)
        items, last = answer["Items"], answer.get("LastEvaluatedKey")
        if len(items) > limit:
            items, last = items[:limit], items[limit - 1]
        now = self._now()
        docs = tuple(doc for item in items if (doc := live_doc(item, now)) is not None)
        return Page(docs, resume=None if last is None else last[KEY]["S"])

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        impossible = [op.key for op in ops if isinstance(op.when, Match) and not _is_version(op.when.version)]
        if impossible:
            raise Conflict("a condition did not hold", keys=impossible)
        now = self._now()
        requests = [write_request(self._name, partition, op, write_id, now) for op in ops]
        keys = [op.key for op in ops]
        if len(requests) == 1:
            kind, request = requests[0]
            await self._client.call(_METHODS[kind], request, lost=OutcomeUnknown, keys=keys)
            return
        transaction = {
            "TransactItems": [{kind: request} for kind, request in requests],
            "ClientRequestToken": _token(write_id, ops, now),
        }
        await self._client.call("transact_write_items", transaction, lost=OutcomeUnknown, keys=keys)

    async def provision(self) -> None:
        await self._table.provision()

    async def reclaim(self, limit: int) -> int:  # noqa: ARG002 (the service sweeps by itself)
        self._client.assert_open()
        return 0

    async def close(self) -> None:
        await self._client.close()

    async def _get_one(self, partition: str, key: str) -> list[Any]:
        request = {"TableName": self._name, "Key": primary_key(partition, key), "ConsistentRead": True}
        answer = await self._client.call("get_item", request, lost=Unavailable)
        return [answer["Item"]] if "Item" in answer else []

    async def _get_several(self, partition: str, keys: Sequence[str]) -> list[Any]:
        """An answer ends at 16 MB, or sooner under load; each round gets nearer to the end or is the last."""
        items: list[Any] = []
        wanted = [primary_key(partition, key) for key in keys]
        while wanted:
            request = {"RequestItems": {self._name: {"Keys": wanted, "ConsistentRead": True}}}
            answer = await self._client.call("batch_get_item", request, lost=Unavailable)
            items += answer["Responses"].get(self._name, ())
            left = answer.get("UnprocessedKeys", {}).get(self._name, {}).get("Keys", [])
            if len(left) == len(wanted):
                raise Throttled("the table or one of its partitions has reached its throughput")
            wanted = left
        return items

    def _now(self) -> int:
        """Whole seconds decide as fractions would: `expires_at` is whole."""
        return math.floor(self._clock.now())


_METHODS: Final = {"Put": "put_item", "Delete": "delete_item"}


def _token(write_id: str, ops: Sequence[Op], now: int) -> str:
    """What makes the service apply the same transaction once, for ten minutes.

    The service refuses a token that comes back with another request, and `Absent` puts the present second
    into a request: with its last digits a repetition in a later second has a token of its own. Its conditions
    tell then whether the first attempt landed.
    """
    token = f"{write_id}{now % 10_000:04d}" if any(isinstance(op.when, Absent) for op in ops) else write_id
    assert len(token) <= TOKEN_LENGTH_MAX
    return token


def _is_version(text: str) -> bool:
    """Whether a put may have given this version to a document; the service refuses some other text."""
    return text.isascii() and text.isprintable()
