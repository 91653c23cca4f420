"""One account's container over azure-cosmos, and what its errors mean.

Owns the client (opened by the first call, with the SDK's retries off but for its look at the account), what
an account and a container must be like, creating them, and the one table that translates errors. Leaves
documents to `items.py` and the rules of a write to the driver.

All writes are transactional batches, one of a single operation too, because a batch is a POST. aiohttp,
beneath the SDK, sends a PUT or DELETE once more by itself when a kept connection turns out to be closed,
which would come back as a false conflict.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    DecodeError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
)
from azure.cosmos import PartitionKey, ThroughputProperties
from azure.cosmos.aio import ContainerProxy, CosmosClient
from azure.cosmos.documents import ConnectionPolicy
from azure.cosmos.exceptions import (
    CosmosBatchOperationError,
    CosmosHttpResponseError,
    CosmosResourceExistsError,
    CosmosResourceNotFoundError,
)

from engines.drivers.documents.cosmos.items import INDEXING_POLICY, Item, Operation, Parameters
from engines.errors import BackendRefused, EnginesError, OutcomeUnknown, Throttled, Unavailable

CONNECT_TIMEOUT_S: Final = 3.0
# The service gives up a request after 5 s ("Azure Cosmos DB service quotas", per-request limits).
READ_TIMEOUT_S: Final = 8.0
# Calls under way when the driver is closed have this long to end.
CLOSE_TIMEOUT_S: Final = 15.0
# A connection stays with the region that it was opened to, so after a change of the write region new ones are
# opened, but not for each call that meets it while the account's name still leads to the former region.
RECONNECT_PAUSE_S: Final = 15.0
# No call is waited for as long as this.
RETIRED_S: Final = 15.0
CALLS_MAX: Final = 10_000
PAGE_ITEMS_MAX: Final = 1_000
CONSISTENCIES: Final = ("BoundedStaleness", "Strong")
TTL_ON_WITHOUT_DEFAULT: Final = -1
# Of the first version only the first 101 bytes of a partition's name count.
PARTITION_KEY_VERSION: Final = 2

R = TypeVar("R")


class RegionChangedError(Unavailable):
    """Nothing was applied: the connection leads to a region that does not write any more."""

    code = Unavailable.code


class Account:
    """The container of one driver. Bound to the event loop of its first call."""

    def __init__(
        self, *, endpoint: str, key: str | None, database: str, container: str, autoscale_rus_max: int | None
    ) -> None:
        self._endpoint = endpoint
        self._key = key
        self._database = database
        self._name = container
        self._autoscale_rus_max = autoscale_rus_max
        self._client: CosmosClient | None = None
        self._credential: Any = None
        self._container: ContainerProxy | None = None
        self._opening = asyncio.Lock()
        self._calls = 0
        self._idle = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._connected_s = float("-inf")
        self._closed = False

    # --- what the driver asks for ---

    async def read(self, partition: str, key: str) -> Item | None:
        async def read(container: ContainerProxy) -> Item | None:
            try:
                return await container.read_item(key, partition_key=partition)
            except CosmosResourceNotFoundError as error:
                if _is_missing_owner(error):
                    raise
                return None

        return await self._call(read, lost=Unavailable)

    async def query(
        self, partition: str, query: tuple[str, Parameters], *, items_max: int, enough: Callable[[Item], bool]
    ) -> None:
        """Hand each item found to `enough`, page after page, until that is true or there are no more."""

        async def read(container: ContainerProxy) -> None:
            found: AsyncIterator[Item] = container.query_items(
                query=query[0],
                parameters=query[1],
                partition_key=partition,
                max_item_count=min(items_max, PAGE_ITEMS_MAX),
            )
            async for item in found:
                if enough(item):
                    return

        await self._call(read, lost=Unavailable)

    async def batch(self, partition: str, operations: Sequence[Operation]) -> list[Item]:
        """The result of each operation: all were applied, or one failed and every other one is a 424."""

        async def write(container: ContainerProxy) -> list[Item]:
            try:
                return await container.execute_item_batch(
                    list(operations), partition_key=partition, no_response=True
                )
            except CosmosBatchOperationError as error:
                results: list[Item] = error.operation_responses or []
                return results

        return await self._call(write, lost=OutcomeUnknown)

    def refusal(self, result: Item) -> EnginesError:
        """What the one failed operation of a batch says of all of it."""
        return of_status(
            int(result["statusCode"]),
            result.get("subStatusCode"),
            retry_after_ms=result.get("retryAfterMilliseconds"),
            lost=OutcomeUnknown,
        )

    def check_open(self) -> None:
        """Raises Unavailable after `close`."""
        if self._closed:
            raise Unavailable("the backend is closed")

    async def provision(self) -> None:
        """Create the database and the container where they are missing; somebody else may be first.

        Needs no right to create anything where everything is there.
        """

        async def create() -> None:
            client = await self._connected()
            database = client.get_database_client(self._database)
            container = database.get_container_client(self._name)
            try:
                found = await container.read()
            except CosmosResourceNotFoundError:
                await _unless_there(client.create_database(self._database))
                await _unless_there(self._create_container(database))
                found = await container.read()
            check_container(found)

        await self._guarded(create, lost=Unavailable)

    async def close(self) -> None:
        """Waits for the calls under way, which their timeouts end; later ones are Unavailable."""
        self._closed = True
        if self._calls:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), CLOSE_TIMEOUT_S)
        self._ending.set()
        client, self._client, self._container = self._client, None, None
        credential, self._credential = self._credential, None
        await asyncio.gather(_close(client, credential), *self._retiring)

    # --- connecting ---

    async def _call(self, call: Callable[[ContainerProxy], Awaitable[R]], *, lost: type[EnginesError]) -> R:
        container = self._container
        if container is None:
            container = await self._guarded(self._opened, lost=Unavailable)
        try:
            return await self._guarded(lambda: call(container), lost=lost)
        except RegionChangedError:
            self._leave(container)
            raise

    def _leave(self, container: ContainerProxy) -> None:
        """Let the next call connect, and look at the account, anew. Calls under way may end as they were."""
        since_s = asyncio.get_running_loop().time() - self._connected_s
        if self._container is not container or self._closed or since_s < RECONNECT_PAUSE_S:
            return
        retiring = asyncio.create_task(self._retire(self._client, self._credential))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        self._client = self._container = self._credential = None

    async def _retire(self, client: CosmosClient | None, credential: Any) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), RETIRED_S)
        await _close(client, credential)

    async def _guarded(self, call: Callable[[], Awaitable[R]], *, lost: type[EnginesError]) -> R:
        self.check_open()
        if self._calls >= CALLS_MAX:
            raise Throttled("too many calls wait for the service")
        self._calls += 1
        try:
            return await call()
        except (AzureError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise translate(error, lost=lost) from error
        except (AssertionError, RuntimeError, ValueError, AttributeError) as error:
            if not self._closed:
                raise
            raise lost("the backend was closed during the call") from error
        finally:
            self._calls -= 1
            if self._closed and not self._calls:
                self._idle.set()

    async def _opened(self) -> ContainerProxy:
        """The container, once it was seen to be one of ours."""
        client = await self._connected()
        container = client.get_database_client(self._database).get_container_client(self._name)
        check_container(await container.read())
        self._container = container
        return container

    async def _connected(self) -> CosmosClient:
        async with self._opening:
            if self._client is not None:
                return self._client
            credential = None if self._key else await asyncio.to_thread(_new_credential)
            client = self._new_client(self._key or credential)
            try:
                await client.__aenter__()
                check_account(await client.client_connection.GetDatabaseAccount(), self._endpoint)
            except BaseException:
                await _close(client, credential)
                raise
            self._client, self._credential = client, credential
            self._connected_s = asyncio.get_running_loop().time()
            return client

    def _new_client(self, credential: Any) -> CosmosClient:
        """Without endpoint discovery each request goes to the account's own name: to its write region."""
        policy = ConnectionPolicy()
        policy.RetryOptions._max_retry_attempt_count = 0
        return CosmosClient(
            self._endpoint,
            credential,
            connection_policy=policy,
            connection_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retry_total=0,
            retry_connect=0,
            retry_read=0,
            retry_status=0,
            enable_endpoint_discovery=False,
            enable_compact_utf8_item_writes=True,
        )

    async def _create_container(self, database: Any) -> None:
        throughput = self._autoscale_rus_max
        await database.create_container(
            self._name,
            partition_key=PartitionKey(path="/pk"),
            indexing_policy=dict(INDEXING_POLICY),
            default_ttl=TTL_ON_WITHOUT_DEFAULT,
            offer_throughput=throughput and ThroughputProperties(auto_scale_max_throughput=throughput),
        )


def _new_credential() -> Any:
    """In a thread: the import takes too long for an event loop."""
    from azure.identity.aio import DefaultAzureCredential

    return DefaultAzureCredential()


async def _close(client: CosmosClient | None, credential: Any) -> None:
    for opened in (client, credential):
        if opened is not None:
            await opened.close()


async def _unless_there(creation: Awaitable[Any]) -> None:
    try:
        await creation
    except CosmosResourceExistsError:  # Somebody else was first.
        return


def check_account(account: Any, endpoint: str) -> None:
    """Raises BackendRefused for an account on which a read may miss a write that was acknowledged before.

    In the region that writes, Bounded Staleness reads as Strong does: "Consistency levels in Azure Cosmos
    DB", https://learn.microsoft.com/azure/cosmos-db/consistency-levels
    """
    consistency = (account.ConsistencyPolicy or {}).get("defaultConsistencyLevel")
    if consistency not in CONSISTENCIES:
        raise BackendRefused(
            f"the account's default consistency is {consistency}: set it to BoundedStaleness or Strong"
        )
    if account._EnableMultipleWritableLocations or len(account.WritableLocations) > 1:
        raise BackendRefused("the account writes in several regions: switch multi-region writes off")
    writable, readable = (
        {_host_and_port(str(region["databaseAccountEndpoint"])) for region in regions}
        for regions in (account.WritableLocations, account.ReadableLocations)
    )
    if _host_and_port(endpoint) in readable - writable:
        raise BackendRefused("the endpoint is that of a region for reading: give the account's own URI")


def _host_and_port(url: str) -> tuple[str | None, int]:
    parts = urlsplit(url)
    return parts.hostname, parts.port or 443


def check_container(found: Mapping[str, Any]) -> None:
    """Raises BackendRefused for a container that was made for something else."""
    partition_key = found.get("partitionKey", {})
    if partition_key.get("paths") != ["/pk"]:
        raise BackendRefused("the container's partition key is not /pk: it is somebody else's; name another")
    if partition_key.get("version", 1) != PARTITION_KEY_VERSION:
        raise BackendRefused("the container's partition key is of version 1: make one with large keys")
    if "defaultTtl" not in found:
        raise BackendRefused("the container's time to live is off: switch it on, without a default")
    if found["defaultTtl"] != TTL_ON_WITHOUT_DEFAULT:
        raise BackendRefused(
            "the container's time to live has a default, which would delete what is to be kept: set it to on,"
            " without a default"
        )


# --- errors ---

# "HTTP status codes for Azure Cosmos DB",
# https://learn.microsoft.com/rest/api/cosmos-db/http-status-codes-for-cosmosdb
_OWNER_MISSING: Final = 1003
_SESSION_NOT_AVAILABLE: Final = 1002
_WRITE_FORBIDDEN: Final = 3
_PARTITION_FULL: Final = 1014
_NO_DATA_OPERATION: Final = 5300
_STATUSES: Final[Mapping[int, type[EnginesError]]] = {
    400: BackendRefused,
    401: BackendRefused,
    403: BackendRefused,
    404: BackendRefused,
    409: Unavailable,  # contention that nobody conditioned on
    412: Unavailable,
    413: BackendRefused,
    423: Unavailable,  # a container's throughput is being changed
    429: Throttled,
    449: Unavailable,  # "retry with": a transient conflict, nothing was applied
}
_REMEDIES: Final[Mapping[int, str]] = {
    400: "the service did not accept the request",
    401: "the service did not accept the key: give the account's present key, or set this machine's clock",
    403: "the service forbids it: this machine's clock is wrong, or a role assignment or a firewall rule is"
    " missing",
    404: "the database or the container is missing: provision the backend",
    413: "the service finds the request too large",
}
# "Diagnose and troubleshoot Azure Cosmos DB forbidden exceptions",
# https://learn.microsoft.com/azure/cosmos-db/troubleshoot-forbidden
_FORBIDDEN: Final[Mapping[int | None, str]] = {
    _PARTITION_FULL: "a logical partition is full: it holds 20 GB",
    _NO_DATA_OPERATION: "a token creates no database or container: provision with the key or the az tool",
}
_DETAILS: Final[Mapping[type[EnginesError], str]] = {
    OutcomeUnknown: "the reply to a write did not come",
    Unavailable: "the service could not be asked, or undid the write",
    BackendRefused: "the service refused: see its message",
}


def translate(error: BaseException, *, lost: type[EnginesError]) -> EnginesError:
    """`lost` is what a broken connection means: OutcomeUnknown for a write, else Unavailable."""
    if isinstance(error, CosmosHttpResponseError):
        retry_after_ms = (error.headers or {}).get("x-ms-retry-after-ms")
        return of_status(error.status_code, error.sub_status, retry_after_ms=retry_after_ms, lost=lost)
    if isinstance(error, ClientAuthenticationError):
        return BackendRefused("no credential: give the secret `key`, or a managed identity or login to Azure")
    if isinstance(error, ServiceRequestTimeoutError) or _is_unsent(error):
        return Unavailable("the service could not be connected to")
    if isinstance(error, DecodeError):
        return lost("the service's reply could not be read")
    return lost(_DETAILS[lost])


def of_status(
    status: int | None, substatus: int | None, *, retry_after_ms: Any, lost: type[EnginesError]
) -> EnginesError:
    """What a status says of a request, or of the operation for which a batch failed."""
    if status == 429:
        seconds = float(retry_after_ms) / 1000 if retry_after_ms is not None else None
        return Throttled("the container's throughput is used up", retry_after_s=seconds)
    if (status, substatus) in ((403, _WRITE_FORBIDDEN), (404, _SESSION_NOT_AVAILABLE)):
        return RegionChangedError("the account is changing its write region")
    if status == 403 and substatus in _FORBIDDEN:
        return BackendRefused(_FORBIDDEN[substatus])
    found = _STATUSES.get(status or 0, lost)
    return found(_REMEDIES.get(status or 0, _DETAILS[found]))


def _is_unsent(error: BaseException) -> bool:
    """The SDK's ServiceRequestError says no more than that something broke; its cause says where."""
    cause = error.inner_exception if isinstance(error, ServiceRequestError) else error
    return isinstance(cause, aiohttp.ClientConnectorError)


def _is_missing_owner(error: CosmosHttpResponseError) -> bool:
    return error.sub_status in (_OWNER_MISSING, _SESSION_NOT_AVAILABLE)
