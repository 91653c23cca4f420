"""What only DynamoDB does: partial batches, tokens, foreign tables, an SDK that would rather help itself."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiobotocore.session import AioSession

from engines.drivers.documents import dynamodb
from engines.drivers.documents.dynamodb import DESCRIPTION, Config, client
from engines.errors import (
    BackendRefused,
    Conflict,
    Corrupt,
    EnginesError,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)
from engines.ports.documents import (
    ABSENT,
    ALWAYS,
    BODY_BYTES_MAX,
    KEY_BYTES_MAX,
    PARTITION_BYTES_MAX,
    Delete,
    DocumentDriver,
    Match,
    Op,
)
from engines.ports.secrets import Secret
from engines.testing.clock import ManualClock
from engines.testing.documents.harness import PARTITION, bodies, fresh_write_id, get, put, read_keys, write
from engines.testing.documents.writes import text_of_size
from engines.wiring import open_control_plane
from tests.backends import DYNAMODB_CREDENTIALS
from tests.servers.dynamodb import DynamoServer
from tests.servers.dynamodb_relay import Answer, DynamoRelay, Request, Script, refusal, silence

REGION = "eu-central-1"
ANSWER_TIMEOUT_S = 20.0
SECRETS = {name: Secret(value) for name, value in DYNAMODB_CREDENTIALS.items()}
Open = Callable[..., DocumentDriver]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def table() -> str:
    return f"own_{uuid.uuid4().hex}"


@pytest_asyncio.fixture
async def relay(dynamodb_server: DynamoServer) -> AsyncIterator[DynamoRelay]:
    dynamodb_server.start()
    async with DynamoRelay(dynamodb_server.endpoint) as started:
        yield started


@pytest_asyncio.fixture
async def opened(relay: DynamoRelay, clock: ManualClock, table: str) -> AsyncIterator[Open]:
    """Opens a driver behind the relay; all are closed after the test."""
    drivers: list[DocumentDriver] = []

    def open_driver(secrets: dict[str, Secret] = SECRETS, **fields: Any) -> DocumentDriver:
        config = {"endpoint": relay.endpoint, "point_in_time_recovery": False, **fields}
        drivers.append(dynamodb.open_driver(Config(region=REGION, table=table, **config), secrets, clock))
        return drivers[-1]

    yield open_driver
    for driver in drivers:
        await driver.close()


@pytest_asyncio.fixture
async def driver(opened: Open) -> DocumentDriver:
    """Provisioned, and behind the relay."""
    provisioned = opened()
    await provisioned.provision()
    return provisioned


@pytest_asyncio.fixture
async def sdk(dynamodb_server: DynamoServer) -> AsyncIterator[Any]:
    """A client of somebody else's, straight to the server."""
    dynamodb_server.start()
    async with AioSession().create_client(
        "dynamodb",
        region_name=REGION,
        endpoint_url=dynamodb_server.endpoint,
        aws_access_key_id="other",
        aws_secret_access_key="other",  # pragma: allowlist secret
    ) as created:
        yield created


def only(operation: str, answer: Callable[[Request], Awaitable[Answer]]) -> Script:
    """`answer` for one operation, the real server's for all others."""

    async def script(request: Request) -> Answer:
        if request.operation == operation:
            return await answer(request)
        return await request.forward(request.body)

    return script


def always(answer: Answer) -> Script:
    async def script(_request: Request) -> Answer:
        return answer

    return script


class TestRequests:
    async def test_every_read_is_consistent_and_nothing_is_asked_twice(
        self, driver: DocumentDriver, relay: DynamoRelay
    ) -> None:
        await write(driver, put("k1"), put("k2"))
        relay.seen.clear()
        await bodies(driver, "k1")
        await bodies(driver, "k1", "k2")
        await driver.scan(PARTITION, above="A", below="~", limit=10, reverse=True)
        assert relay.operations() == ["GetItem", "BatchGetItem", "Query"]
        for request in relay.seen:
            [described] = request.body.get("RequestItems", {"": request.body}).values()
            assert described["ConsistentRead"] is True

    async def test_a_write_is_one_request(self, driver: DocumentDriver, relay: DynamoRelay) -> None:
        relay.seen.clear()
        version = await write(driver, put("k1"))
        await write(driver, put("k1", "2", Match(version)))
        await write(driver, Delete("k1", ALWAYS))
        await write(driver, put("k1", "3", ABSENT), Delete("k2", ALWAYS))
        assert relay.operations() == ["PutItem", "PutItem", "DeleteItem", "TransactWriteItems"]

    async def test_the_policy_allows_all_that_is_asked_and_nothing_else(
        self, opened: Open, relay: DynamoRelay
    ) -> None:
        driver = opened()
        await driver.provision()
        await write(driver, put("k1"))
        await write(driver, Delete("k1", ALWAYS))
        await bodies(driver, "k1", "k2")
        await bodies(driver, "k1")
        await read_keys(driver)
        with pytest.raises(BackendRefused):
            await opened(point_in_time_recovery=True).provision()
        policy = json.loads(DESCRIPTION.policy)
        allowed = {action[9:] for statement in policy["Statement"] for action in statement["Action"]}
        # The server refuses even to describe backups, so none is switched on.
        assert allowed - set(relay.operations()) == {"UpdateContinuousBackups"}
        assert set(relay.operations()) <= allowed

    async def test_a_page_reads_one_more_than_it_gives_and_no_more(
        self, driver: DocumentDriver, relay: DynamoRelay
    ) -> None:
        await write(driver, *(put(f"k{number}") for number in range(9)))
        scanned: list[int] = []

        async def count(request: Request) -> Answer:
            answer = await request.forward(request.body)
            scanned.append(json.loads(answer.body)["ScannedCount"])
            return answer

        relay.script = only("Query", count)
        for reverse in (False, True):
            page = await driver.scan(PARTITION, above="k2", below="k6", limit=2, reverse=reverse)
            assert [doc.key for doc in page.docs] == (["k5", "k4"] if reverse else ["k3", "k4"])
        assert scanned == [3, 3]
        page = await driver.scan(PARTITION, above="k2", below="k2!", limit=2, reverse=False)
        assert (page.docs, page.resume, scanned[2:]) == ((), None, [0])

    async def test_the_greatest_document_under_the_longest_names_is_stored(
        self, driver: DocumentDriver
    ) -> None:
        partition, key = "p" * PARTITION_BYTES_MAX, "k" * KEY_BYTES_MAX
        for character in ("x", "ż", "漢", "🜚"):
            body = text_of_size(character, BODY_BYTES_MAX)
            await write(driver, put(key, body, expires_at=4_000_000_000), partition=partition)
            found = await get(driver, key, partition)
            assert found is not None
            assert found.body == body


class TestPartialBatches:
    async def test_keys_that_were_not_processed_are_asked_for_again(
        self, driver: DocumentDriver, relay: DynamoRelay, table: str
    ) -> None:
        keys = [f"k{number:02d}" for number in range(25)]
        await write(driver, *(put(key, key) for key in keys))

        async def ten_at_most(request: Request) -> Answer:
            wanted = request.body["RequestItems"][table]
            now, later = wanted["Keys"][:10], wanted["Keys"][10:]
            answer = await request.forward({"RequestItems": {table: {**wanted, "Keys": now}}})
            body = json.loads(answer.body)
            body["UnprocessedKeys"] = {table: {**wanted, "Keys": later}} if later else {}
            return Answer(json.dumps(body).encode())

        relay.script = only("BatchGetItem", ten_at_most)
        relay.seen.clear()
        assert await bodies(driver, *keys) == {key: key for key in keys}
        assert relay.operations() == ["BatchGetItem"] * 3

    async def test_a_batch_that_gets_nowhere_is_throttled(
        self, driver: DocumentDriver, relay: DynamoRelay
    ) -> None:
        async def nothing(request: Request) -> Answer:
            body = {"Responses": {}, "UnprocessedKeys": request.body["RequestItems"]}
            return Answer(json.dumps(body).encode())

        relay.script = only("BatchGetItem", nothing)
        relay.seen.clear()
        with pytest.raises(Throttled):
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await bodies(driver, "k1", "k2")
        assert relay.operations() == ["BatchGetItem"]


class TestTokens:
    async def test_a_transaction_that_is_repeated_is_applied_once(self, driver: DocumentDriver) -> None:
        ops: list[Op] = [put("k1", "1"), Delete("k2", ALWAYS)]
        write_id = fresh_write_id()
        await driver.write(PARTITION, ops, write_id=write_id)
        await write(driver, put("k1", "2"))
        await driver.write(PARTITION, ops, write_id=write_id)
        assert await bodies(driver, "k1") == {"k1": "2"}

    async def test_a_transaction_repeated_in_a_later_second_is_judged_by_its_conditions(
        self, driver: DocumentDriver, clock: ManualClock
    ) -> None:
        """With one token for both it would be refused, for the second stands in the condition."""
        ops = [put("k1", "1", ABSENT), put("k2", "1")]
        write_id = fresh_write_id()
        await driver.write(PARTITION, ops, write_id=write_id)
        clock.advance(1)
        with pytest.raises(Conflict) as caught:
            await driver.write(PARTITION, ops, write_id=write_id)
        assert caught.value.keys == ("k1",)

    async def test_a_token_that_was_used_for_another_transaction_leaves_the_outcome_unknown(
        self, driver: DocumentDriver
    ) -> None:
        write_id = fresh_write_id()
        await driver.write(PARTITION, [put("k1"), put("k2")], write_id=write_id)
        with pytest.raises(OutcomeUnknown):
            await driver.write(PARTITION, [put("k1"), put("k3")], write_id=write_id)


class TestAnswersOnTheWire:
    """botocore reads these as it reads the service's; none is asked for twice."""

    @pytest.mark.parametrize(
        ("answer", "of_a_write", "of_a_read"),
        [
            (refusal("InternalServerError", status=500), OutcomeUnknown, Unavailable),
            (refusal("ServiceUnavailable", status=503), OutcomeUnknown, Unavailable),
            (Answer(b"<html>gateway</html>", 502, {}), OutcomeUnknown, Unavailable),
            (Answer(b"<html>welcome</html>", 200, {}), OutcomeUnknown, Unavailable),
            (Answer(b"{}", 200, {}), OutcomeUnknown, Unavailable),
            (refusal("ThrottlingException"), Throttled, Throttled),
            (refusal("ProvisionedThroughputExceededException"), Throttled, Throttled),
            (refusal("TransactionConflictException"), Unavailable, Unavailable),
            (refusal("AccessDeniedException"), BackendRefused, BackendRefused),
            (refusal("ExpiredTokenException"), BackendRefused, BackendRefused),
            (Answer(b"<html>not here</html>", 404, {}), BackendRefused, BackendRefused),
        ],
        ids=[
            "500",
            "503",
            "502",
            "200",
            "200 and JSON",
            "throttled",
            "throughput",
            "contended",
            "denied",
            "expired",
            "404",
        ],
    )
    async def test_a_failure_is_told_once_and_not_sent_again(
        self,
        driver: DocumentDriver,
        relay: DynamoRelay,
        answer: Answer,
        of_a_write: type[EnginesError],
        of_a_read: type[EnginesError],
    ) -> None:
        relay.script = always(answer)
        relay.seen.clear()
        for ops in ([put("k1")], [Delete("k1", ALWAYS)], [put("k1"), put("k2")]):
            with pytest.raises(of_a_write) as caught:
                await write(driver, *ops)
            assert type(caught.value) is of_a_write
        for keys in (["k1"], ["k1", "k2"]):
            with pytest.raises(of_a_read):
                await driver.get(PARTITION, keys)
        with pytest.raises(of_a_read):
            await read_keys(driver)
        assert len(relay.seen) == 6

    async def test_reasons_of_a_cancelled_transaction_name_keys(
        self, driver: DocumentDriver, relay: DynamoRelay
    ) -> None:
        reasons = [{"Code": "TransactionConflict"}, {"Code": "ConditionalCheckFailed"}, {"Code": "None"}]
        relay.script = always(refusal("TransactionCanceledException", CancellationReasons=reasons))
        with pytest.raises(Conflict) as caught:
            await write(driver, put("kb"), put("ka", "1", ABSENT), put("kc"))
        assert caught.value.keys == ("ka",)

    async def test_a_damaged_reply_is_no_answer(self, driver: DocumentDriver, relay: DynamoRelay) -> None:
        await write(driver, put("k1", '"whole"'))

        async def damage(request: Request) -> Answer:
            answer = await request.forward(request.body)
            return Answer(answer.body.replace(b"whole", b"fully") + b" ", answer.status, answer.headers)

        relay.script = damage
        with pytest.raises(Unavailable):
            await bodies(driver, "k1")
        with pytest.raises(OutcomeUnknown):
            await write(driver, put("k2"))

    async def test_a_server_that_says_nothing_leaves_a_writes_outcome_unknown(
        self, opened: Open, driver: DocumentDriver, relay: DynamoRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await write(driver, put("k1"))
        monkeypatch.setattr(client, "READ_TIMEOUT_S", 0.2)
        impatient = opened()
        relay.script = silence
        with pytest.raises(OutcomeUnknown):
            await write(impatient, put("k1", "2"))
        with pytest.raises(Unavailable):
            await bodies(impatient, "k1")


class TestForeignItems:
    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"body": {"S": "1"}},
            {"ver": {"S": "a"}},
            {"body": {"N": "1"}, "ver": {"S": "a"}},
            {"body": {"S": "1"}, "ver": {"S": "a"}, "exp": {"S": "soon"}},
            {"body": {"S": "1"}, "ver": {"S": "a"}, "exp": {"N": "1.5"}},
        ],
        ids=str,
    )
    async def test_an_item_that_is_no_document_is_corrupt_and_named(
        self, driver: DocumentDriver, sdk: Any, table: str, fields: dict[str, Any]
    ) -> None:
        await sdk.put_item(TableName=table, Item={"pk": {"S": PARTITION}, "sk": {"S": "k7"}, **fields})
        calls = (
            lambda: driver.get(PARTITION, ["k7"]),
            lambda: driver.get(PARTITION, ["k1", "k7"]),
            lambda: driver.scan(PARTITION, above="A", below="~", limit=10, reverse=False),
        )
        for call in calls:
            with pytest.raises(Corrupt, match="k7"):
                await call()


def described(table: str, **fields: Any) -> Answer:
    """A DescribeTable of the service's, recorded but for `fields`."""
    body = {
        "AttributeDefinitions": [
            {"AttributeName": "pk", "AttributeType": "S"},
            {"AttributeName": "sk", "AttributeType": "S"},
        ],
        "TableName": table,
        "KeySchema": [
            {"AttributeName": "pk", "KeyType": "HASH"},
            {"AttributeName": "sk", "KeyType": "RANGE"},
        ],
        "TableStatus": "ACTIVE",
        "TableArn": f"arn:aws:dynamodb:{REGION}:000000000000:table/{table}",
        "BillingModeSummary": {"BillingMode": "PAY_PER_REQUEST"},
        **fields,
    }
    return Answer(json.dumps({"Table": body}).encode())


class TestProvision:
    @pytest.mark.usefixtures("driver")
    async def test_what_is_in_place_needs_no_right_to_create(self, opened: Open, relay: DynamoRelay) -> None:
        relay.seen.clear()
        await opened().provision()
        assert relay.operations() == ["DescribeTable", "DescribeTimeToLive"]

    @pytest.mark.usefixtures("driver")
    async def test_it_makes_a_table_on_demand_whose_documents_expire(self, sdk: Any, table: str) -> None:
        found = (await sdk.describe_table(TableName=table))["Table"]
        assert found["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        expiry = (await sdk.describe_time_to_live(TableName=table))["TimeToLiveDescription"]
        assert expiry == {"TimeToLiveStatus": "ENABLED", "AttributeName": "exp"}

    @pytest.mark.parametrize(
        ("names", "types"),
        [
            (("id", "sk"), "SS"),
            (("pk", "key"), "SS"),
            (("pk", "sk"), "SN"),
            (("pk", "sk"), "BS"),
            (("pk",), "S"),
        ],
        ids=str,
    )
    async def test_a_table_of_another_shape_is_refused(
        self, opened: Open, sdk: Any, table: str, names: tuple[str, ...], types: str
    ) -> None:
        kinds = ("HASH", "RANGE")
        await sdk.create_table(
            TableName=table,
            KeySchema=[
                {"AttributeName": name, "KeyType": kind} for name, kind in zip(names, kinds, strict=False)
            ],
            AttributeDefinitions=[
                {"AttributeName": name, "AttributeType": kind}
                for name, kind in zip(names, types, strict=True)
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        with pytest.raises(BackendRefused, match="other keys"):
            await opened().provision()

    @pytest.mark.usefixtures("driver")
    async def test_a_table_that_expires_by_another_attribute_is_refused(
        self, opened: Open, sdk: Any, table: str
    ) -> None:
        for specification in (
            {"Enabled": False, "AttributeName": "exp"},
            {"Enabled": True, "AttributeName": "theirs"},
        ):
            await sdk.update_time_to_live(TableName=table, TimeToLiveSpecification=specification)
        with pytest.raises(BackendRefused, match="time to live"):
            await opened().provision()

    @pytest.mark.usefixtures("driver")
    async def test_a_replicated_table_is_refused_unless_it_is_pinned_to_the_region(
        self, opened: Open, relay: DynamoRelay, table: str
    ) -> None:
        replicas = [{"RegionName": REGION}, {"RegionName": "us-east-1"}]
        relay.script = only("DescribeTable", always(described(table, Replicas=replicas)))
        with pytest.raises(BackendRefused, match="pinned_to_region"):
            await opened().provision()
        await opened(pinned_to_region=True).provision()
        relay.script = only("DescribeTable", always(described(table, Replicas=replicas[:1])))
        await opened().provision()

    @pytest.mark.usefixtures("driver")
    async def test_a_global_table_without_transactions_is_refused_even_pinned(
        self, opened: Open, relay: DynamoRelay, table: str
    ) -> None:
        strong = described(table, MultiRegionConsistency="STRONG")
        relay.script = only("DescribeTable", always(strong))
        with pytest.raises(BackendRefused, match="transactions"):
            await opened(pinned_to_region=True).provision()

    async def test_a_table_is_waited_for_until_it_is_active(
        self, opened: Open, relay: DynamoRelay, table: str
    ) -> None:
        statuses = ["CREATING", "CREATING"]

        async def later(request: Request) -> Answer:
            answer = await request.forward(request.body)
            if answer.status == 200 and statuses:
                return described(table, TableStatus=statuses.pop())
            return answer

        relay.script = only("DescribeTable", later)
        driver = opened()
        await driver.provision()
        assert relay.operations().count("DescribeTable") == 4
        await write(driver, put("k1"))

    async def test_a_table_that_does_not_become_active_is_unavailable(
        self, opened: Open, relay: DynamoRelay, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dynamodb.table, "PAUSES_S_MAX", 0.15)
        relay.script = only("DescribeTable", always(described(table, TableStatus="CREATING")))
        with pytest.raises(Unavailable, match="not active"):
            await opened().provision()
        assert relay.operations() == ["DescribeTable"] * 3

    async def test_expiry_that_somebody_else_switches_on_at_this_moment_is_found_on(
        self, opened: Open, relay: DynamoRelay
    ) -> None:
        async def too_late(request: Request) -> Answer:
            await request.forward(request.body)
            return refusal("ValidationException", "TimeToLive is already enabled")

        relay.script = only("UpdateTimeToLive", too_late)
        await opened().provision()
        assert relay.operations()[-2:] == ["UpdateTimeToLive", "DescribeTimeToLive"]

    async def test_recovery_is_switched_on_once_the_service_offers_it(
        self, opened: Open, relay: DynamoRelay
    ) -> None:
        states = ["DISABLED", "DISABLED", "ENABLED"]
        refusals = [refusal("ContinuousBackupsUnavailableException")]

        async def script(request: Request) -> Answer:
            if request.operation == "UpdateContinuousBackups":
                return refusals.pop() if refusals else Answer(b"{}")
            if request.operation == "DescribeContinuousBackups":
                recovery = {"PointInTimeRecoveryStatus": states.pop(0)}
                found = {"ContinuousBackupsStatus": "ENABLED", "PointInTimeRecoveryDescription": recovery}
                return Answer(json.dumps({"ContinuousBackupsDescription": found}).encode())
            return await request.forward(request.body)

        relay.script = script
        await opened(point_in_time_recovery=True).provision()
        backups = [name for name in relay.operations() if "Backups" in name]
        assert backups == ["DescribeContinuousBackups", "UpdateContinuousBackups"] * 2 + backups[:1]

    async def test_an_endpoint_without_recovery_is_refused_with_the_remedy(self, opened: Open) -> None:
        with pytest.raises(BackendRefused, match="point_in_time_recovery to false"):
            await opened(point_in_time_recovery=True).provision()

    async def test_a_missing_table_is_an_operators_work(self, opened: Open) -> None:
        driver = opened()
        for call in (get(driver, "k1"), write(driver, put("k1")), write(driver, put("k1"), put("k2"))):
            with pytest.raises(BackendRefused, match="provision"):
                await call


class TestConnecting:
    async def test_a_region_that_does_not_exist_is_an_operators_work(self, table: str) -> None:
        driver = dynamodb.open_driver(Config(region="eu-nowhere-9", table=table), SECRETS, ManualClock())
        with pytest.raises(BackendRefused, match="region"):
            await write(driver, put("k1"))
        await driver.close()

    async def test_an_endpoint_without_an_address_is_unavailable(self, opened: Open) -> None:
        with pytest.raises(Unavailable):
            await write(opened(endpoint="http://nowhere.invalid"), put("k1"))

    async def test_half_of_a_credential_is_an_operators_work(self, opened: Open) -> None:
        with pytest.raises(BackendRefused, match="credentials"):
            await get(opened({"access_key_id": Secret("a")}), "k1")

    async def test_no_credential_at_all_is_an_operators_work(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(BackendRefused, match="credentials"):
            await get(opened({}), "k1")

    async def test_an_endpoint_of_the_environment_is_not_followed(
        self, relay: DynamoRelay, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The region has no endpoint of its own, so nothing is asked anywhere."""
        monkeypatch.setenv("AWS_ENDPOINT_URL", relay.endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", relay.endpoint)
        driver = dynamodb.open_driver(Config(region="eu-nowhere-9", table=table), SECRETS, ManualClock())
        with pytest.raises(BackendRefused):
            await get(driver, "k1")
        await driver.close()
        assert relay.seen == []

    async def test_a_records_secrets_come_before_the_environments(
        self, opened: Open, relay: DynamoRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-environment")
        await opened().provision()
        assert {request.access_key_id for request in relay.seen} == {"local"}
        relay.seen.clear()
        await opened({}).provision()
        assert {request.access_key_id for request in relay.seen} == {"of-the-environment"}

    async def test_a_control_plane_may_lie_in_a_table(
        self, relay: DynamoRelay, table: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-environment")
        url = f"dynamodb://{REGION}/{table}?endpoint={relay.endpoint}&point_in_time_recovery=false"
        async with open_control_plane(url) as plane:
            version = await plane.documents.write(PARTITION, [put("k1")])
        async with open_control_plane(url) as plane:
            found = await plane.documents.get(PARTITION, "k1")
            assert found is not None
            assert found.version == version

    @pytest.mark.usefixtures("driver")
    async def test_callers_at_once_share_one_client(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[str] = []
        create = AioSession.create_client

        def counted(self: AioSession, name: str, **options: Any) -> Any:
            made.append(name)
            return create(self, name, **options)

        monkeypatch.setattr(AioSession, "create_client", counted)
        fresh = opened()
        await asyncio.gather(*(get(fresh, f"k{number}") for number in range(20)))
        assert made == ["dynamodb"]


class TestWaiting:
    @pytest.mark.usefixtures("driver")
    async def test_calls_beyond_the_pool_wait_and_too_many_are_throttled(
        self, opened: Open, relay: DynamoRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "WAITING_MAX", 3)
        narrow = opened(pool_size=2)
        await get(narrow, "k1")
        arrived = asyncio.Semaphore(0)
        held = asyncio.Event()

        async def hold(request: Request) -> Answer:
            arrived.release()
            await held.wait()
            return await request.forward(request.body)

        relay.script = hold
        calls = [asyncio.create_task(get(narrow, "k1")) for _ in range(5)]
        for _ in range(2):
            await arrived.acquire()
        with pytest.raises(Throttled):
            await get(narrow, "k1")
        assert arrived.locked(), "no more than the pool's size is under way"
        held.set()
        assert await asyncio.gather(*calls) == [None] * 5

    @pytest.mark.usefixtures("driver")
    async def test_a_call_that_waits_too_long_was_not_sent(
        self, opened: Open, relay: DynamoRelay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "WAIT_TIMEOUT_S", 0.1)
        narrow = opened(pool_size=1)
        await get(narrow, "k1")
        arrived = asyncio.Event()

        async def hold(request: Request) -> Answer:
            arrived.set()
            return await silence(request)

        relay.script = hold
        silent = asyncio.create_task(get(narrow, "k1"))
        await arrived.wait()
        with pytest.raises(Unavailable, match="free"):
            await write(narrow, put("k1"))
        silent.cancel()
        await asyncio.wait([silent])
