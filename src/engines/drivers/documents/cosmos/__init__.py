"""Azure Cosmos DB (NoSQL API): one container, one logical partition for each partition of the waist.

Owns what a backend record of it holds, and the six verbs. A write is one transactional batch. Cosmos DB
conditions on its own `_etag`, so the driver remembers (key, version) -> `_etag`; what it remembers may be
too old, so a native conflict is judged by reading once more, and is a Conflict only if the version differs.
Leaves the item to `items.py`, and the client, the account and the translation of errors to `account.py`.

Not run on Azure yet: DESCRIPTION says what was proven on what.
"""

from __future__ import annotations

import base64
import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from engines.clock import Clock
from engines.drivers.documents.cosmos.items import (
    INDEXING_POLICY,
    Item,
    check_standing,
    culprits,
    document,
    documents_between,
    documents_of,
    is_live,
    operation,
    standings_of,
)
from engines.errors import BackendRefused, Conflict, Invalid, OutcomeUnknown, Unavailable
from engines.ports.documents import (
    PAGE_BYTES,
    SCAN_LIMIT_MAX,
    Always,
    Delete,
    Doc,
    DriverDescription,
    Match,
    Op,
    Page,
    Put,
)
from engines.ports.secrets import Secret

if TYPE_CHECKING:
    from engines.drivers.documents.cosmos.account import Account

# One entry takes about 300 bytes.
ETAGS_MAX: Final = 20_000
# Others change the documents of a write between the look at them and the write, or delete what it deletes.
ATTEMPTS_MAX: Final = 8
# A scan ends its page after so many items, of which all may have lapsed without being hidden yet.
SCANNED_MAX: Final = 2 * SCAN_LIMIT_MAX
AUTOSCALE_RUS_STEP: Final = 1_000

_ROLE: Final = {
    "RoleName": "Engines",
    "Type": "CustomRole",
    "AssignableScopes": ["/"],
    "Permissions": [
        {
            "DataActions": [
                "Microsoft.DocumentDB/databaseAccounts/readMetadata",
                "Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers/executeQuery",
                "Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers/items/create",
                "Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers/items/read",
                "Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers/items/replace",
                "Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers/items/upsert",
                "Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers/items/delete",
            ]
        }
    ],
}

_POLICY: Final = f"""# To run with an identity instead of the key, on a container that is there. role.json:
{json.dumps(_ROLE, indent=2)}
az cosmosdb sql role definition create --account-name ACCOUNT --resource-group GROUP --body @role.json
az cosmosdb sql role assignment create --account-name ACCOUNT --resource-group GROUP \\
  --role-definition-id ID --principal-id PRINCIPAL --scope /dbs/DATABASE/colls/CONTAINER
# To provision, which takes the key; or without it, by an administrator:
az cosmosdb sql database create --account-name ACCOUNT --resource-group GROUP --name DATABASE
az cosmosdb sql container create --account-name ACCOUNT --resource-group GROUP --database-name DATABASE \\
  --name CONTAINER --partition-key-path /pk --partition-key-version 2 --ttl -1 \\
  --idx '{json.dumps(INDEXING_POLICY)}'"""

DESCRIPTION: Final = DriverDescription(
    name="cosmos",
    backend_class="cloud",
    consistency="reads and writes in the one write region of an account with Bounded Staleness or Strong"
    " consistency, where a read sees every write before it; weaker accounts are refused",
    durability="acknowledged after a majority of the region's replicas; after the loss of the region, Bounded"
    " Staleness may have lost what its bound allows, Strong nothing",
    config={
        "endpoint": "the account's URI, https://ACCOUNT.documents.azure.com:443/, with no region in it",
        "database": "made by provisioning if it is missing",
        "container": "made by provisioning if it is missing; nobody else's items may lie in it",
        "autoscale_rus_max": "greatest throughput of a container that is made, in RU/s, a multiple of 1000;"
        " default none: for serverless accounts and databases with shared throughput; elsewhere the service"
        " then gives the container a fixed 400 RU/s",
    },
    secrets={
        "key": "the account's key; without it, azure-identity's default chain (managed identity, login)"
    },
    limits={
        "logical partition": "20 GB, and 10,000 RU/s of its physical partition",
        "write": "100 operations, 2 MB and 5 s a batch: all that the waist allows fits",
        "regions": "one region to write in; others may follow it for failover",
        "order of keys": "that of the index on id, which must be that of ASCII: each scan checks it",
        "expiry": "by the driver's clock at once; the service removes the item 15 minutes later",
    },
    costs={
        "get of one document": "2 RU for 1 KB, 10 for 64 KB (reads cost double under these consistencies)",
        "write of one document": "5 RU for 1 KB, 23 for 64 KB",
        "get of several, and scan": "a query: about 3 RU, and what the documents weigh",
        "source": "Understand request unit consumption,"
        " https://learn.microsoft.com/azure/cosmos-db/understand-request-unit-consumption; not measured here",
    },
    provisions="the database (with the key alone), and one container: partition key /pk, time to live on"
    " without a default, an index of id and pk only",
    policy=_POLICY,
    prerequisites=(
        "an Azure Cosmos DB account for NoSQL, Bounded Staleness or Strong by default, with one write region",
        "its key as a secret; or a managed identity with the role below, and a container made beforehand",
    ),
    example={
        "endpoint": "https://ACCOUNT.documents.azure.com:443/",
        "database": "engines",
        "container": "documents",
    },
    control_plane_url="cosmos://:PERCENT_ENCODED_KEY@HOST[:PORT]/DATABASE/CONTAINER",
    proven={
        "a wire-level server of our own": "the conformance kit, the log, moves, a disturbed network,"
        " replies to order, and in script/soak 200 times kill -9 of server, database or both under load, with"
        " 19,417 changes acknowledged and none lost or doubled: it shows our wiring and not Azure's"
        " behaviour",
        "Azure Cosmos DB": "not run; ENGINES_TEST_COSMOS_URL names an account or emulator to run the same"
        " tests against",
    },
)

_NAME = re.compile(r"[^/\\#?\t\r\n]{0,254}[^/\\#?\s]")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a backend record of this driver holds. The key is a secret and no part of it."""

    endpoint: str
    database: str
    container: str
    autoscale_rus_max: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^/@?#]+/?", self.endpoint):
            raise ValueError("endpoint is https:// and a host, with a port or none")
        if not _NAME.fullmatch(self.database) or not _NAME.fullmatch(self.container):
            raise ValueError("database and container are names of at most 255 characters without / \\ ? #")
        most = self.autoscale_rus_max
        if most is not None and (most < AUTOSCALE_RUS_STEP or most % AUTOSCALE_RUS_STEP):
            raise ValueError(f"autoscale_rus_max is a multiple of {AUTOSCALE_RUS_STEP}")


def config_from_url(url: str) -> tuple[dict[str, Any], str | None]:
    """`cosmos://:KEY@HOST[:PORT]/DATABASE/CONTAINER[?tls=disable]` as a record's config, and the key.

    The key is percent-encoded, since it may hold slashes; without one, azure-identity finds a credential.
    Raises Invalid, which repeats nothing of the URL.
    """
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
        key = unquote(parts.password) if parts.password else None
        names = [unquote(part) for part in parts.path[1:].split("/")]
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        tls: Literal["verify-full", "disable"] = msgspec.convert(
            options.pop("tls", "verify-full"), Literal["verify-full", "disable"]
        )
        scheme = "http" if tls == "disable" else "https"
        database, container = names
        given = {
            "endpoint": f"{scheme}://{parts.hostname or ''}{port}/",
            "database": database,
            "container": container,
        }
        config = msgspec.convert({**given, **options}, Config, strict=False)
    except (ValueError, msgspec.ValidationError):
        raise Invalid(
            "this is no cosmos://:KEY@HOST/DATABASE/CONTAINER with the key percent-encoded and, if need be,"
            " tls=disable or autoscale_rus_max",
            field="control_plane",
        ) from None
    return {name: value for name, value in msgspec.to_builtins(config).items() if value is not None}, key


def open_driver(config: Config, secrets: Mapping[str, Secret], clock: Clock) -> CosmosDocuments:
    """Opens nothing yet: the client comes with the first call. Raises BackendRefused without the SDK."""
    try:
        from engines.drivers.documents.cosmos.account import Account
    except ModuleNotFoundError as error:
        raise BackendRefused("the driver cosmos is not installed: pip install 'engines[cosmos]'") from error
    key = secrets["key"].reveal() if "key" in secrets else None
    if key is None and not config.endpoint.startswith("https:"):
        raise BackendRefused("without the secret `key` a token is sent, and none is sent without TLS")
    if key is not None and not _is_key(key):
        raise BackendRefused("the secret `key` is no account key: those are base64")
    account = Account(
        endpoint=config.endpoint,
        key=key,
        database=config.database,
        container=config.container,
        autoscale_rus_max=config.autoscale_rus_max,
    )
    return CosmosDocuments(account, clock)


def _is_key(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False


class CosmosDocuments:
    """`DocumentDriver` on one container. Bound to the event loop of its first call."""

    def __init__(self, account: Account, clock: Clock) -> None:
        self._account = account
        self._clock = clock
        self._etags = _Etags()

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        if len(keys) == 1:
            item = await self._account.read(partition, keys[0])
            items = [] if item is None else [item]
        else:
            items = await self._find(partition, documents_of(keys), len(keys))
        now = self._clock.now()
        found: dict[str, Doc] = {}
        for item in items:
            doc = document(item)
            if is_live(doc.expires_at, now):
                found[doc.key] = doc
                self._etags.remember(partition, doc.key, doc.version, item["_etag"])
        return found

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        page = _PageInMaking(limit, self._clock.now(), reverse=reverse)
        query = documents_between(above, below, reverse=reverse)
        await self._account.query(partition, query, items_max=limit + 1, enough=page.is_full_before)
        return page.made()

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        etags = self._remembered(partition, ops)
        if etags is None:
            etags = await self._judge(partition, ops)
        left = list(ops)
        for _ in range(ATTEMPTS_MAX):
            if not left:  # Deletes of what was gone already.
                return
            failed = await self._send(partition, left, etags, write_id)
            if failed is None:
                return
            if isinstance(failed, Delete) and isinstance(failed.when, Always):
                left = await self._without_missing(partition, left)
            else:
                self._forget(partition, ops)
                etags = await self._judge(partition, ops)
        raise Unavailable("others kept changing the documents of a write")

    async def provision(self) -> None:
        await self._account.provision()

    async def reclaim(self, limit: int) -> int:  # noqa: ARG002
        """The service removes what its `ttl` has ended."""
        self._account.check_open()
        return 0

    async def close(self) -> None:
        await self._account.close()

    # --- a write ---

    async def _send(
        self, partition: str, ops: Sequence[Op], etags: Mapping[str, str], write_id: str
    ) -> Op | None:
        """None, or the op that the service refused for what it found. Raises whatever else went wrong."""
        now = self._clock.now()
        operations = [
            operation(partition, op, etag=etags.get(op.key), write_id=write_id, now=now) for op in ops
        ]
        results = await self._account.batch(partition, operations)
        if len(results) != len(ops):
            raise OutcomeUnknown("the service did not say what became of each operation")
        for op, result in zip(ops, results, strict=True):
            status = int(result["statusCode"])
            if status in (404, 409, 412):
                return op
            if status >= 400 and status != 424:
                raise self._account.refusal(result)
        for op, result in zip(ops, results, strict=True):
            if isinstance(op, Put) and (etag := result.get("eTag")) is not None:
                self._etags.remember(partition, op.key, op.write_id or write_id, etag)
        return None

    async def _judge(self, partition: str, ops: Sequence[Op]) -> dict[str, str]:
        """The etag of each conditioned document as it stands, or Conflict."""
        conditioned = [op for op in ops if not isinstance(op.when, Always)]
        if not conditioned:
            return {}
        query = standings_of([op.key for op in conditioned])
        items = {item["id"]: item for item in await self._find(partition, query, len(conditioned))}
        for item in items.values():
            check_standing(item)
        found = culprits(conditioned, items, self._clock.now())
        if found:
            raise Conflict("a condition did not hold", keys=found)
        return {key: item["_etag"] for key, item in items.items()}

    async def _without_missing(self, partition: str, ops: Sequence[Op]) -> list[Op]:
        """One missing document fails a whole batch, so a delete that need not find one is left out of it."""
        deletes = [op.key for op in ops if isinstance(op, Delete) and isinstance(op.when, Always)]
        there = {item["id"] for item in await self._find(partition, standings_of(deletes), len(deletes))}
        return [op for op in ops if op.key not in deletes or op.key in there]

    def _remembered(self, partition: str, ops: Sequence[Op]) -> dict[str, str] | None:
        """The etags of the versions to match; None where one is not remembered."""
        etags: dict[str, str] = {}
        for op in ops:
            if isinstance(op.when, Match):
                etag = self._etags.find(partition, op.key, op.when.version)
                if etag is None:
                    return None
                etags[op.key] = etag
        return etags

    def _forget(self, partition: str, ops: Sequence[Op]) -> None:
        for op in ops:
            if isinstance(op.when, Match):
                self._etags.forget(partition, op.key, op.when.version)

    async def _find(self, partition: str, query: Any, items_max: int) -> list[Item]:
        items: list[Item] = []

        def collect(item: Item) -> bool:
            items.append(item)
            return False

        await self._account.query(partition, query, items_max=items_max, enough=collect)
        return items


class _Etags:
    """(partition, key, version) -> `_etag`, the last used kept. On one backend an entry never changes."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, str, str], str] = OrderedDict()

    def find(self, partition: str, key: str, version: str) -> str | None:
        etag = self._entries.get((partition, key, version))
        if etag is not None:
            self._entries.move_to_end((partition, key, version))
        return etag

    def remember(self, partition: str, key: str, version: str, etag: str) -> None:
        self._entries[partition, key, version] = etag
        self._entries.move_to_end((partition, key, version))
        if len(self._entries) > ETAGS_MAX:
            self._entries.popitem(last=False)

    def forget(self, partition: str, key: str, version: str) -> None:
        self._entries.pop((partition, key, version), None)


class _PageInMaking:
    """Takes items in key order until the page is full."""

    def __init__(self, limit: int, now: float, *, reverse: bool) -> None:
        self._limit = limit
        self._now = now
        self._reverse = reverse
        self._docs: list[Doc] = []
        self._bytes = 0
        self._scanned = 0
        self._last = ""
        self._resume: str | None = None

    def is_full_before(self, item: Item) -> bool:
        """Whether the page ended before `item`; else the item is in it, if it is live."""
        if len(self._docs) == self._limit or self._bytes >= PAGE_BYTES or self._scanned == SCANNED_MAX:
            self._resume = self._last
            return True
        doc = document(item)
        if self._last and (doc.key < self._last) != self._reverse:
            raise BackendRefused("the service orders ids otherwise than by their bytes")
        self._scanned += 1
        self._last = doc.key
        if is_live(doc.expires_at, self._now):
            self._docs.append(doc)
            self._bytes += len(doc.body) if doc.body.isascii() else len(doc.body.encode())
        return False

    def made(self) -> Page:
        return Page(tuple(self._docs), resume=self._resume)
