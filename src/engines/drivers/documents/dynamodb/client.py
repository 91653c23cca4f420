"""One SDK client: opened once, on first use, and closed once.

Owns connecting with the record's credentials, the bound on calls at once and on those that wait, and that no
error of the SDK leaves untranslated. The SDK's own retries are off: a write that landed and is sent again
comes back as a false Conflict.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.loaders import Loader

from engines.drivers.documents.dynamodb.errors import SDK_ERRORS, is_unknown_host, translate
from engines.drivers.documents.dynamodb.limits import (
    CONNECT_TIMEOUT_S,
    KEEPALIVE_S,
    READ_TIMEOUT_S,
    WAIT_TIMEOUT_S,
    WAITING_MAX,
)
from engines.errors import BackendRefused, EnginesError, Throttled, Unavailable
from engines.ports.secrets import Secret

SERVICE: Final = "dynamodb"
USER_AGENT: Final = "engines"
SECRETS: Final[Mapping[str, str]] = {
    "access_key_id": "aws_access_key_id",
    "secret_access_key": "aws_secret_access_key",
    "session_token": "aws_session_token",
}


class Client:
    """At most `pool_size` calls at once. Bound to the event loop of its first call."""

    def __init__(
        self, *, region: str, endpoint: str | None, pool_size: int, secrets: Mapping[str, Secret]
    ) -> None:
        self._region = region
        self._endpoint = endpoint
        self._pool_size = pool_size
        self._secrets = secrets
        self._slots = asyncio.Semaphore(pool_size)
        self._waiting = 0
        self._closed = False
        self._opening = asyncio.Lock()
        self._opened = contextlib.AsyncExitStack()
        self._sdk: Any = None

    async def call(
        self, method: str, request: Mapping[str, Any], *, lost: type[EnginesError], keys: Sequence[str] = ()
    ) -> Any:
        """The service's answer. `keys` are those of the ops in `request`; without an answer raises `lost`."""
        await self._enter()
        try:
            sdk = self._sdk or await self._open()
            answer = await getattr(sdk, method)(**request)
        except SDK_ERRORS as error:
            raise await self._translated(error, lost, keys) from error
        finally:
            self._slots.release()
        # Whatever answers 200 passes for a success with the SDK, a gateway's page of welcome too.
        if "RequestId" not in answer["ResponseMetadata"]:
            raise lost("the answer did not come from DynamoDB")
        return answer

    async def close(self) -> None:
        """Waits for the calls under way; later ones are Unavailable."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S + READ_TIMEOUT_S):
                for _ in range(self._pool_size):
                    await self._slots.acquire()
        await self._opened.aclose()

    def assert_open(self) -> None:
        """Raises Unavailable after `close`."""
        if self._closed:
            raise Unavailable("the database is closed")

    async def _enter(self) -> None:
        self.assert_open()
        await (self._wait() if self._slots.locked() else self._slots.acquire())
        if self._closed:
            self._slots.release()
            self.assert_open()

    async def _wait(self) -> None:
        if self._waiting >= WAITING_MAX:
            raise Throttled("too many calls wait for the database")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_TIMEOUT_S):
                await self._slots.acquire()
        except TimeoutError as error:
            raise Unavailable("no connection to the database became free") from error
        finally:
            self._waiting -= 1

    async def _open(self) -> Any:
        """Once, whoever calls: several clients would have several pools."""
        async with self._opening:
            if self._sdk is None:
                self._sdk = await self._opened.enter_async_context(self._context())
        return self._sdk

    def _context(self) -> Any:
        config = AioConfig(
            # In this mode alone the SDK refuses a reply whose checksum is wrong.
            retries={"total_max_attempts": 1, "mode": "legacy"},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=self._pool_size,
            connector_args={"keepalive_timeout": KEEPALIVE_S},
            # The driver builds every request itself; the SDK need not check its types once more.
            parameter_validation=False,
            # Where data lies is said by the backend's record alone, not by a variable of one process.
            ignore_configured_endpoint_urls=True,
            # The SDK composes its own anew for each request, which is an eighth of what a read costs.
            user_agent=USER_AGENT,
            # In a thread, where it does not hold up the event loop.
            warm_up_loader_caches=True,
        )
        given = {SECRETS[name]: secret.reveal() for name, secret in self._secrets.items() if name in SECRETS}
        return _session().create_client(
            SERVICE, region_name=self._region, endpoint_url=self._endpoint, config=config, **given
        )

    async def _translated(
        self, error: BaseException, lost: type[EnginesError], keys: Sequence[str]
    ) -> EnginesError:
        if self._endpoint is None and is_unknown_host(error) and not await _is_known_region(self._region):
            return BackendRefused(
                "the backend's region is not one that the SDK knows, and has no endpoint: correct the record"
            )
        return translate(error, lost=lost, keys=keys)


def _session() -> AioSession:
    session = AioSession()
    session.register_component("data_loader", _loader())
    return session


@functools.cache
def _loader() -> Loader:
    """The SDK's descriptions of services: a quarter of a second of reading, so once for all clients."""
    return Loader()


async def _is_known_region(region: str) -> bool:
    """The SDK's list is as old as the SDK, so it is asked only where the region's endpoint has no address."""
    session = _session()
    for partition in session.get_available_partitions():
        if region in await session.get_available_regions(SERVICE, partition):
            return True
    return False
