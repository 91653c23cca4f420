"""What is special to Cosmos DB: requests are sent once, statuses have a meaning, etags grow old.

These show our wiring and not Azure's behaviour: most need a service that answers as told, which only the
wire-level server does.
"""

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import azure.core.exceptions
import azure.cosmos._base
import azure.cosmos.exceptions
import msgspec
import pytest
import pytest_asyncio
from azure.cosmos import PartitionKey
from azure.cosmos.aio import ContainerProxy, CosmosClient

from engines.drivers.documents import cosmos
from engines.drivers.documents.cosmos import Config, CosmosDocuments, config_from_url, open_driver
from engines.drivers.documents.cosmos.account import translate
from engines.drivers.documents.cosmos.items import CLOCK_SKEW_S, TTL_S_MAX
from engines.errors import (
    BackendRefused,
    Corrupt,
    EnginesError,
    Invalid,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)
from engines.ports.documents import (
    ABSENT,
    ALWAYS,
    BODY_BYTES_MAX,
    KEY_BYTES_MAX,
    OPS_MAX,
    PARTITION_BYTES_MAX,
    WRITE_BYTES_MAX,
    Delete,
    Match,
)
from engines.ports.secrets import Secret
from engines.testing.clock import ManualClock
from engines.testing.documents.harness import PARTITION, bodies, get, put, write
from tests.servers.cosmos import CosmosAccount, CosmosServer

BATCH_BYTES_MAX = 2 * 1024 * 1024


@pytest.fixture
def wire(cosmos_server: CosmosServer | CosmosAccount) -> Iterator[CosmosServer]:
    """The wire-level server, asked nothing yet and ordered nothing after."""
    if not isinstance(cosmos_server, CosmosServer):
        pytest.skip("an account or emulator cannot be told what to answer")
    cosmos_server.start()
    yield cosmos_server
    cosmos_server.account(consistency="BoundedStaleness", write_regions=1)


class Place:
    """One test's container: its URL, our clients of it, and the SDK's own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = ManualClock()
        config, self.key = config_from_url(url)
        self.config = msgspec.convert(config, Config)

    def open(self, key: str | None = None) -> CosmosDocuments:
        return open_driver(self.config, {"key": Secret(key or self.key or "")}, self.clock)


@pytest.fixture
def place(cosmos_server: CosmosServer | CosmosAccount) -> Place:
    return Place(cosmos_server.url("special", f"c_{uuid.uuid4().hex}"))


@pytest_asyncio.fixture
async def driver(place: Place) -> AsyncIterator[CosmosDocuments]:
    """A provisioned client that has done one call of each kind."""
    opened = place.open()
    await opened.provision()
    await write(opened, put("warm"))
    await get(opened, "warm")
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def sdk(place: Place) -> AsyncIterator[CosmosClient]:
    async with CosmosClient(place.config.endpoint, place.key or "") as client:
        yield client


@pytest_asyncio.fixture
async def container(sdk: CosmosClient, place: Place, driver: CosmosDocuments) -> ContainerProxy:
    """The driver's container, as the SDK sees it."""
    del driver
    return sdk.get_database_client(place.config.database).get_container_client(place.config.container)


WRITE_ENDS: dict[int | str, type[EnginesError]] = {
    400: BackendRefused,
    401: BackendRefused,
    403: BackendRefused,
    408: OutcomeUnknown,
    410: OutcomeUnknown,
    413: BackendRefused,
    429: Throttled,
    449: Unavailable,
    500: OutcomeUnknown,
    502: OutcomeUnknown,
    503: OutcomeUnknown,
    "reset": OutcomeUnknown,
}
READ_ENDS = {
    status: Unavailable if error is OutcomeUnknown else error for status, error in WRITE_ENDS.items()
}


class TestOneRequestACall:
    """Every retry of the SDK is off, and so is aiohttp's: a write that landed must not be sent again."""

    @pytest.mark.parametrize("keys", [["k1"], ["k1", "k2"]], ids=["alone", "in a batch"])
    @pytest.mark.parametrize("status", WRITE_ENDS)
    async def test_a_write_is_sent_once(
        self, wire: CosmosServer, driver: CosmosDocuments, status: int | str, keys: list[str]
    ) -> None:
        wire.seen()
        wire.order({"status": status, "headers": {"x-ms-retry-after-ms": "1"}})
        with pytest.raises(WRITE_ENDS[status]):
            await write(driver, *(put(key, "1", ABSENT) for key in keys))
        assert [request["method"] for request in wire.seen()] == ["POST"]
        assert await bodies(driver, *keys) == {}

    @pytest.mark.parametrize("status", WRITE_ENDS)
    async def test_so_is_a_replacement_and_a_removal(
        self, wire: CosmosServer, driver: CosmosDocuments, status: int | str
    ) -> None:
        version = await write(driver, put("k1", "1"))
        for op in (put("k1", "2", Match(version)), Delete("k1", Match(version)), Delete("k1", ALWAYS)):
            wire.seen()
            wire.order({"status": status})
            with pytest.raises(WRITE_ENDS[status]):
                await write(driver, op)
            assert len(wire.seen()) == 1
        assert await bodies(driver, "k1") == {"k1": "1"}

    @pytest.mark.parametrize("status", [status for status in READ_ENDS if status != "reset"])
    async def test_a_read_is_sent_once(
        self, wire: CosmosServer, driver: CosmosDocuments, status: int | str
    ) -> None:
        for keys in (["warm"], ["warm", "k1"]):
            wire.seen()
            wire.order({"status": status})
            with pytest.raises(READ_ENDS[status]):
                await driver.get(PARTITION, keys)
            assert len(wire.seen()) == 1

    async def test_a_reply_lost_after_the_write_landed_is_outcome_unknown_and_no_conflict(
        self, wire: CosmosServer, driver: CosmosDocuments
    ) -> None:
        version = await write(driver, put("k1", "1"))
        wire.seen()
        for op in (put("k1", "2", Match(version)), put("k2", "2", ABSENT), Delete("warm", ALWAYS)):
            wire.order({"status": "reset", "apply": True})
            with pytest.raises(OutcomeUnknown):
                await write(driver, op)
        assert len(wire.seen()) == 3
        assert await bodies(driver, "k1", "k2", "warm") == {"k1": "2", "k2": "2"}

    async def test_throttling_says_how_long(self, wire: CosmosServer, driver: CosmosDocuments) -> None:
        wire.order({"status": 429, "headers": {"x-ms-retry-after-ms": "250", "x-ms-substatus": "3200"}})
        with pytest.raises(Throttled) as caught:
            await write(driver, put("k1"))
        assert caught.value.retry_after_s == 0.25

    @pytest.mark.parametrize(("substatus", "remedy"), [(1014, "20 GB"), (5300, "with the key"), (0, "role")])
    async def test_what_is_forbidden_has_a_remedy(
        self, wire: CosmosServer, driver: CosmosDocuments, substatus: int, remedy: str
    ) -> None:
        wire.order({"status": 403, "headers": {"x-ms-substatus": str(substatus)}})
        with pytest.raises(BackendRefused, match=remedy):
            await write(driver, put("k1"))

    async def test_a_change_of_the_write_region_is_unavailable(
        self, wire: CosmosServer, driver: CosmosDocuments
    ) -> None:
        wire.seen()
        wire.order({"status": 403, "headers": {"x-ms-substatus": "3"}})
        with pytest.raises(Unavailable):
            await write(driver, put("k1"))
        assert len(wire.seen()) == 1

    async def test_after_a_change_of_the_write_region_the_account_is_looked_at_anew(
        self, wire: CosmosServer, driver: CosmosDocuments, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A kept connection would go on to lead to the region that only reads now."""
        monkeypatch.setattr(cosmos.account, "RECONNECT_PAUSE_S", 0.0)
        wire.order({"status": 403, "headers": {"x-ms-substatus": "3"}})
        with pytest.raises(Unavailable):
            await write(driver, put("k1", "1"))
        wire.account(consistency="Session")
        with pytest.raises(BackendRefused, match="Session"):
            await write(driver, put("k1", "1"))
        wire.account(consistency="Strong")
        await write(driver, put("k1", "1"))
        assert await bodies(driver, "k1") == {"k1": "1"}


def failed_batch(status: int, **more: Any) -> dict[str, Any]:
    """A batch of two whose second operation failed, in the form that the documentation shows."""
    return {"status": 207, "body": [{"statusCode": 424}, {"statusCode": status, **more}]}


class TestBatchResults:
    @pytest.mark.parametrize(
        ("status", "error"),
        [(413, BackendRefused), (449, Unavailable), (408, OutcomeUnknown), (500, OutcomeUnknown)],
    )
    async def test_the_one_that_failed_speaks_for_all(
        self, wire: CosmosServer, driver: CosmosDocuments, status: int, error: type[EnginesError]
    ) -> None:
        wire.seen()
        wire.order(failed_batch(status))
        with pytest.raises(error):
            await write(driver, put("k1"), put("k2"))
        assert len(wire.seen()) == 1

    async def test_throttling_of_one_operation_says_how_long(
        self, wire: CosmosServer, driver: CosmosDocuments
    ) -> None:
        wire.order(failed_batch(429, retryAfterMilliseconds=40))
        with pytest.raises(Throttled) as caught:
            await write(driver, put("k1"), put("k2"))
        assert caught.value.retry_after_s == 0.04

    async def test_contention_that_never_ends_and_no_condition_explains_is_unavailable(
        self, wire: CosmosServer, driver: CosmosDocuments
    ) -> None:
        wire.order(*[failed_batch(409)] * cosmos.ATTEMPTS_MAX)
        with pytest.raises(Unavailable):
            await write(driver, put("k1"), put("k2"))

    async def test_a_hundred_deletes_of_what_is_missing_take_two_requests(
        self, wire: CosmosServer, driver: CosmosDocuments
    ) -> None:
        wire.seen()
        await write(driver, *(Delete(f"k{number}", ALWAYS) for number in range(OPS_MAX)))
        assert len(wire.seen()) == 2


class TestEtags:
    async def test_a_version_that_was_seen_costs_one_request_and_another_a_read_before(
        self, wire: CosmosServer, driver: CosmosDocuments, place: Place
    ) -> None:
        version = await write(driver, put("k1", "1"))
        wire.seen()
        version = await write(driver, put("k1", "2", Match(version)))
        assert len(wire.seen()) == 1
        other = place.open()
        try:
            await get(other, "warm")
            wire.seen()
            version = await write(other, put("k1", "3", Match(version)))
            assert len(wire.seen()) == 2
        finally:
            await other.close()
        found = await get(driver, "k1")
        assert found is not None
        assert found.version == version
        wire.seen()
        await write(driver, put("k1", "4", Match(version)))
        assert len(wire.seen()) == 1, "a get remembers too"

    @pytest.mark.parametrize("neighbours", [(), (put("k2"),)], ids=["alone", "in a batch"])
    async def test_an_etag_that_grew_old_under_one_version_is_no_conflict(
        self, driver: CosmosDocuments, container: ContainerProxy, neighbours: tuple[Any, ...]
    ) -> None:
        """A restore, or a repeated write under one id, gives the same document another `_etag`."""
        version = await write(driver, put("k1", "1"))
        item = await container.read_item("k1", PARTITION)
        await container.upsert_item({name: value for name, value in item.items() if not name.startswith("_")})
        await write(driver, put("k1", "2", Match(version)), *neighbours)
        assert await bodies(driver, "k1") == {"k1": "2"}

    async def test_what_is_remembered_is_bounded(self) -> None:
        etags = cosmos._Etags()
        for number in range(cosmos.ETAGS_MAX + 1):
            etags.remember("p", f"k{number}", "v", str(number))
            etags.find("p", "k0", "v")
        assert etags.find("p", "k0", "v") == "0", "the last used stay"
        assert etags.find("p", "k1", "v") is None
        assert etags.find("p", f"k{cosmos.ETAGS_MAX}", "v") == str(cosmos.ETAGS_MAX)


class TestItems:
    async def test_an_item_says_what_the_document_is_and_when_the_service_removes_it(
        self, driver: CosmosDocuments, container: ContainerProxy, place: Place
    ) -> None:
        now = int(place.clock.now())
        version = await write(driver, put("k1", '{"a": 1}', expires_at=now + 60))
        await write(driver, put("k2"), put("k3", expires_at=now - 60), put("k4", expires_at=2**40))
        item = await container.read_item("k1", PARTITION)
        assert {name: value for name, value in item.items() if not name.startswith("_")} == {
            "id": "k1",
            "pk": PARTITION,
            "body": '{"a": 1}',
            "version": version,
            "exp": now + 60,
            "ttl": 60 + CLOCK_SKEW_S,
        }
        assert "ttl" not in await container.read_item("k2", PARTITION)
        assert (await container.read_item("k3", PARTITION))["ttl"] == CLOCK_SKEW_S
        assert (await container.read_item("k4", PARTITION))["ttl"] == TTL_S_MAX

    async def test_what_lapsed_and_is_not_hidden_yet_is_created_anew(
        self, driver: CosmosDocuments, container: ContainerProxy, place: Place
    ) -> None:
        await write(driver, put("k1", "old", expires_at=int(place.clock.now()) + 10))
        place.clock.advance(10)
        assert (await container.read_item("k1", PARTITION))["body"] == "old"
        await write(driver, put("k1", "new", ABSENT), put("k2"))
        assert await bodies(driver, "k1") == {"k1": "new"}

    async def test_other_scripts_are_sent_as_utf_8(self, wire: CosmosServer, driver: CosmosDocuments) -> None:
        body = json.dumps("漢字" * 10_000, ensure_ascii=False)
        for ops in ([put("k1", body)], [put("k1", body), put("k2")]):
            wire.seen()
            await write(driver, *ops)
            assert wire.seen()[0]["bytes"] < len(body.encode()) + 1_000

    async def test_the_greatest_write_fits_into_a_batch(
        self, wire: CosmosServer, driver: CosmosDocuments
    ) -> None:
        partition = "p" + "~" * (PARTITION_BYTES_MAX - 1)
        body = json.dumps("\\" * (WRITE_BYTES_MAX // OPS_MAX // 4 - 2))
        keys = [f"k{number:02d}".ljust(KEY_BYTES_MAX, "~") for number in range(OPS_MAX)]
        wire.seen()
        await write(driver, *(put(key, body, expires_at=2**40) for key in keys), partition=partition)
        assert WRITE_BYTES_MAX * 0.95 < wire.seen()[0]["bytes"] < BATCH_BYTES_MAX

    async def test_more_than_a_page_of_the_service_is_read_to_its_end(self, driver: CosmosDocuments) -> None:
        body = json.dumps("x" * (BODY_BYTES_MAX - 10))
        keys = [f"k{number:02d}" for number in range(20)]
        for key in keys:
            await write(driver, put(key, body))
        assert sorted(await driver.get(PARTITION, keys)) == keys

    @pytest.mark.parametrize(
        "item",
        [
            {"note": "mine"},
            {"body": 1, "version": "v"},
            {"body": "1"},
            {"body": "1", "version": "v", "exp": "soon"},
        ],
        ids=["other fields", "body", "version", "expiry"],
    )
    async def test_an_item_that_is_no_document_is_corrupt_and_named(
        self, driver: CosmosDocuments, container: ContainerProxy, item: dict[str, Any]
    ) -> None:
        await container.upsert_item({"id": "kforeign", "pk": PARTITION, **item})
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: driver.get(PARTITION, ["kforeign"]),
            lambda: driver.get(PARTITION, ["warm", "kforeign"]),
            lambda: driver.scan(PARTITION, above="k", below="l", limit=10, reverse=False),
        ]
        for call in calls:
            with pytest.raises(Corrupt, match="kforeign"):
                await call()
        if item.get("body") != 1:  # A condition is judged without the body.
            with pytest.raises(Corrupt, match="kforeign"):
                await write(driver, put("kforeign", "1", Match("v")))

    @pytest.mark.parametrize("reverse", [False, True])
    async def test_another_order_of_keys_than_that_of_bytes_is_refused(
        self, wire: CosmosServer, driver: CosmosDocuments, *, reverse: bool
    ) -> None:
        items = [{"id": key, "body": "1", "version": "v", "_etag": '"e"'} for key in ("ka", "kB", "kc")]
        wire.order({"status": 200, "body": {"Documents": items[::-1] if reverse else items}})
        with pytest.raises(BackendRefused, match="bytes"):
            await driver.scan(PARTITION, above="k", below="l", limit=10, reverse=reverse)

    async def test_a_scan_passes_over_so_many_lapsed_documents_and_then_ends_its_page(
        self, driver: CosmosDocuments, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cosmos, "SCANNED_MAX", 5)
        lapses = int(place.clock.now()) + 10
        await write(driver, *(put(f"k{n}", expires_at=lapses) for n in range(8)), put("k9"))
        place.clock.advance(11)
        page = await driver.scan(PARTITION, above="k", below="l", limit=10, reverse=False)
        assert (page.docs, page.resume) == ((), "k4")
        page = await driver.scan(PARTITION, above="k4", below="l", limit=10, reverse=False)
        assert ([doc.key for doc in page.docs], page.resume) == (["k9"], None)


class TestAccount:
    @pytest.mark.parametrize("consistency", ["Session", "ConsistentPrefix", "Eventual"])
    async def test_a_weaker_consistency_is_refused(
        self, wire: CosmosServer, place: Place, consistency: str
    ) -> None:
        wire.account(consistency=consistency)
        client = place.open()
        for call in (client.provision(), get(client, "k1"), write(client, put("k1"))):
            with pytest.raises(BackendRefused, match=f"{consistency}.*BoundedStaleness or Strong"):
                await call
        wire.account(consistency="Strong")
        await client.provision()
        await client.close()

    async def test_several_regions_that_write_are_refused(self, wire: CosmosServer, place: Place) -> None:
        wire.account(write_regions=2)
        client = place.open()
        with pytest.raises(BackendRefused, match="multi-region writes"):
            await client.provision()
        await client.close()

    async def test_an_endpoint_for_reading_is_refused(self, wire: CosmosServer, place: Place) -> None:
        wire.account(writes_at="http://192.0.2.1:1/")
        client = place.open()
        try:
            with pytest.raises(BackendRefused, match="own URI"):
                await client.provision()
        finally:
            wire.account(writes_at=None)
            await client.close()

    async def test_another_key_is_refused_with_a_remedy(self, place: Place) -> None:
        client = place.open("bm90IHRoZSBrZXk=")
        with pytest.raises(BackendRefused, match="key"):
            await client.provision()
        await client.close()

    async def test_a_clock_that_is_wrong_is_refused_with_a_remedy(
        self, driver: CosmosDocuments, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            azure.cosmos._base,
            "formatdate",
            lambda **_: "Thu, 01 Jan 2026 00:00:00 GMT",
        )
        with pytest.raises(BackendRefused, match="clock"):
            await get(driver, "warm")

    async def test_a_missing_container_is_refused_until_somebody_provisions_it(self, place: Place) -> None:
        client, other = place.open(), place.open()
        for call in (get(client, "k1"), write(client, put("k1"))):
            with pytest.raises(BackendRefused, match="provision"):
                await call
        await other.provision()
        await write(client, put("k1"))
        await client.close()
        await other.close()

    async def test_a_container_of_somebody_else_is_refused(self, sdk: CosmosClient, place: Place) -> None:
        database = await sdk.create_database_if_not_exists(place.config.database)
        await database.create_container(place.config.container, PartitionKey(path="/tenant"), default_ttl=-1)
        client = place.open()
        for call in (client.provision(), get(client, "k1")):
            with pytest.raises(BackendRefused, match="/pk"):
                await call
        await client.close()

    async def test_a_container_without_time_to_live_is_refused(self, sdk: CosmosClient, place: Place) -> None:
        database = await sdk.create_database_if_not_exists(place.config.database)
        await database.create_container(place.config.container, PartitionKey(path="/pk"))
        client = place.open()
        with pytest.raises(BackendRefused, match="time to live"):
            await client.provision()
        await client.close()

    async def test_a_container_that_would_delete_what_has_no_expiry_is_refused(
        self, sdk: CosmosClient, place: Place
    ) -> None:
        database = await sdk.create_database_if_not_exists(place.config.database)
        await database.create_container(place.config.container, PartitionKey(path="/pk"), default_ttl=86_400)
        client = place.open()
        for call in (client.provision(), get(client, "k1")):
            with pytest.raises(BackendRefused, match="without a default"):
                await call
        await client.close()

    async def test_a_container_whose_partitions_names_may_meet_is_refused(
        self, sdk: CosmosClient, place: Place
    ) -> None:
        database = await sdk.create_database_if_not_exists(place.config.database)
        await database.create_container(
            place.config.container, PartitionKey(path="/pk", version=1), default_ttl=-1
        )
        client = place.open()
        with pytest.raises(BackendRefused, match="version 1"):
            await client.provision()
        await client.close()

    async def test_what_is_provisioned(self, container: ContainerProxy) -> None:
        found = await container.read()
        assert found["partitionKey"]["paths"] == ["/pk"]
        assert found["partitionKey"]["version"] == 2, (
            "the first version hashes 101 bytes of a partition's name"
        )
        assert found["defaultTtl"] == -1
        assert {path["path"] for path in found["indexingPolicy"]["excludedPaths"]} >= {"/*"}

    async def test_a_frozen_service_is_given_up_and_closing_does_not_wait_for_ever(
        self, wire: CosmosServer, driver: CosmosDocuments, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("engines.drivers.documents.cosmos.account.CLOSE_TIMEOUT_S", 0.2)
        wire.suspend()
        try:
            reading = asyncio.create_task(get(driver, "warm"))
            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await driver.close()
            with pytest.raises(Unavailable):
                await reading
        finally:
            wire.resume()


class TestTranslation:
    def test_every_error_class_of_the_sdk_is_translated(self) -> None:
        kinds = {
            kind
            for module in (azure.core.exceptions, azure.cosmos.exceptions)
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, azure.core.exceptions.AzureError)
        }
        assert len(kinds) > 15
        for kind in kinds:
            error: Any = kind.__new__(kind)
            error.inner_exception = None
            error.status_code, error.sub_status, error.headers = 500, None, {}
            assert isinstance(translate(error, lost=OutcomeUnknown), EnginesError)

    def test_only_a_connection_that_was_never_made_says_that_nothing_was_sent(self) -> None:
        unsent = aiohttp.ClientConnectorError.__new__(aiohttp.ClientConnectorError)
        cases = {
            unsent: Unavailable,
            aiohttp.ServerDisconnectedError(): OutcomeUnknown,
            aiohttp.ClientOSError(104, "reset"): OutcomeUnknown,
        }
        for cause, expected in cases.items():
            error = azure.core.exceptions.ServiceRequestError("it broke")
            error.inner_exception = cause
            assert type(translate(error, lost=OutcomeUnknown)) is expected


class TestConfig:
    def test_a_url_names_account_database_and_container(self) -> None:
        account = "cosmos://:a%2Fb%3D%3D@acc.documents.azure.com:443"  # pragma: allowlist secret
        url = f"{account}/my%20db/items?autoscale_rus_max=4000"
        assert config_from_url(url) == (
            {
                "endpoint": "https://acc.documents.azure.com:443/",
                "database": "my db",
                "container": "items",
                "autoscale_rus_max": 4000,
            },
            "a/b==",
        )
        assert config_from_url("cosmos://127.0.0.1:8081/d/c?tls=disable") == (
            {"endpoint": "http://127.0.0.1:8081/", "database": "d", "container": "c"},
            None,
        )

    @pytest.mark.parametrize(
        "rest",
        [
            ":hunter2@h",
            ":hunter2@h/",
            ":hunter2@h/d",
            ":hunter2@h/d/c/e",
            ":hunter2@/d/c",
            ":hunter2@h:x/d/c",
            ":hunter2@h/d/c?surely=1",
            ":hunter2@h/d/c?tls=off",
            ":hunter2@h/d/c?autoscale_rus_max=1500",
            ":hunter2/==@h/d/c",
            ":hunter2@h//c",
        ],
    )
    def test_another_url_is_invalid_and_not_repeated(self, rest: str) -> None:
        with pytest.raises(Invalid) as caught:
            config_from_url(f"cosmos://{rest}")
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        "endpoint", ["", "acc.documents.azure.com", "https://u@h/", "https://h/d", "ftp://h"]
    )
    def test_an_endpoint_is_a_scheme_and_a_host(self, endpoint: str) -> None:
        with pytest.raises(msgspec.ValidationError, match="endpoint"):
            msgspec.convert({"endpoint": endpoint, "database": "d", "container": "c"}, Config)

    def test_a_key_is_base64_and_without_one_there_is_tls(self) -> None:
        config = Config(endpoint="http://127.0.0.1:1/", database="d", container="c")
        with pytest.raises(BackendRefused, match="base64"):
            open_driver(config, {"key": Secret("no key!")}, ManualClock())
        with pytest.raises(BackendRefused, match="TLS"):
            open_driver(config, {}, ManualClock())

    def test_without_the_sdk_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "azure.cosmos", None)
        monkeypatch.delitem(sys.modules, "engines.drivers.documents.cosmos.account", raising=False)
        config = Config(endpoint="https://h/", database="d", container="c")
        with pytest.raises(BackendRefused, match=r"engines\[cosmos\]"):
            open_driver(config, {}, ManualClock())


class TestWire:
    """The wire-level server is strict: it answers nothing that it does not know."""

    async def test_a_query_that_nobody_sends_is_refused(
        self, wire: CosmosServer, container: ContainerProxy
    ) -> None:
        del wire
        found = container.query_items("SELECT * FROM c", parameters=[], partition_key=PARTITION)
        with pytest.raises(azure.cosmos.exceptions.CosmosHttpResponseError, match="nobody sends"):
            await anext(aiter(found))

    async def test_a_request_without_a_signature_is_refused(self, wire: CosmosServer, place: Place) -> None:
        del wire
        async with aiohttp.ClientSession() as session, session.get(place.config.endpoint) as reply:
            assert reply.status == 401
