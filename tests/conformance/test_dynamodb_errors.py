"""What DynamoDB's errors mean, and what a record of its backend may hold. No server is needed.

The shapes of the answers are those that botocore makes of what the service says; `recorded` fills them in.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp.client_reqrep import ConnectionKey
from botocore import exceptions as sdk
from botocore.loaders import Loader
from botocore.model import ServiceModel

from engines.drivers.documents.dynamodb import DESCRIPTION, Config, config_from_url
from engines.drivers.documents.dynamodb.errors import CODES, REASONS, translate
from engines.drivers.documents.dynamodb.limits import ITEM_BYTES_MAX, OVERHEAD_BYTES_MAX
from engines.errors import (
    BackendRefused,
    Conflict,
    EnginesError,
    Invalid,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)
from engines.ports.documents import BODY_BYTES_MAX

KEYS = ("k1", "k2", "k3")
OPERATIONS = (
    *("GetItem", "BatchGetItem", "Query", "PutItem", "DeleteItem", "TransactWriteItems"),
    *("DescribeTable", "CreateTable", "DescribeTimeToLive", "UpdateTimeToLive"),
    *("DescribeContinuousBackups", "UpdateContinuousBackups"),
)


def recorded(code: str, message: str = "hunter2", *, status: int = 400, **fields: Any) -> sdk.ClientError:
    response: Any = {
        "Error": {"Message": message, "Code": code},
        "ResponseMetadata": {
            "RequestId": "01A1FE17517778D2A55230C1347FF5E101A1FE17517778D2A552",
            "HTTPStatusCode": status,
            "HTTPHeaders": {"content-type": "application/x-amz-json-1.0"},
            "MaxAttemptsReached": True,
            "RetryAttempts": 0,
        },
        **fields,
    }
    return sdk.ClientError(response, "TransactWriteItems")


def cancelled(*reasons: str) -> sdk.ClientError:
    return recorded(
        "TransactionCanceledException",
        f"Transaction cancelled, please refer cancellation reasons for specific reasons {list(reasons)}",
        CancellationReasons=[{"Code": code} for code in reasons],
    )


def connection_error(cause: Exception) -> sdk.EndpointConnectionError:
    return sdk.EndpointConnectionError(endpoint_url="http://192.0.2.1", error=cause)


ADDRESS = ConnectionKey(
    "192.0.2.1", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
)


class TestAnswers:
    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("ConditionalCheckFailedException", Conflict),
            ("TransactionConflictException", Unavailable),
            ("ReplicatedWriteConflictException", Unavailable),
            ("TransactionInProgressException", OutcomeUnknown),
            ("IdempotentParameterMismatchException", OutcomeUnknown),
            ("ProvisionedThroughputExceededException", Throttled),
            ("ThrottlingException", Throttled),
            ("RequestLimitExceeded", Throttled),
            ("UnrecognizedClientException", BackendRefused),
            ("InvalidSignatureException", BackendRefused),
            ("MissingAuthenticationTokenException", BackendRefused),
            ("ExpiredTokenException", BackendRefused),
            ("AccessDeniedException", BackendRefused),
            ("ResourceNotFoundException", BackendRefused),
            ("ItemCollectionSizeLimitExceededException", BackendRefused),
            ("ValidationException", BackendRefused),
            ("SerializationException", BackendRefused),
            ("NeverHeardOfException", BackendRefused),
        ],
    )
    def test_an_answer_means_what_its_code_says(self, code: str, expected: type[EnginesError]) -> None:
        assert type(translate(recorded(code), lost=OutcomeUnknown, keys=["k1"])) is expected

    @pytest.mark.parametrize(
        ("code", "status"),
        [
            ("InternalServerError", 500),
            ("InternalFailure", 500),
            ("ServiceUnavailable", 503),
            ("502", 502),
            ("504", 504),
            ("RequestTimeout", 408),
        ],
    )
    def test_a_server_that_failed_has_not_said_that_it_rolled_back(self, code: str, status: int) -> None:
        error = recorded(code, status=status)
        assert type(translate(error, lost=OutcomeUnknown)) is OutcomeUnknown
        assert type(translate(error, lost=Unavailable)) is Unavailable

    def test_a_proxy_that_throttles_is_throttled(self) -> None:
        assert type(translate(recorded("429", status=429), lost=OutcomeUnknown)) is Throttled

    def test_every_code_of_the_operations_that_are_used_is_in_the_table(self) -> None:
        model = ServiceModel(Loader().load_service_model("dynamodb", "service-2"), "dynamodb")
        codes = {
            shape.error_code
            for operation in OPERATIONS
            for shape in model.operation_model(operation).error_shapes
        }
        assert len(codes) > 12
        # The one is read by its reasons, the other by its status.
        assert codes - set(CODES) == {"TransactionCanceledException", "InternalServerError"}

    @pytest.mark.parametrize(
        ("code", "message", "remedy"),
        [
            ("RequestTimeTooSkewed", "", "clock"),
            ("InvalidSignatureException", "Signature expired: 20261121T1 is now earlier than", "clock"),
            ("InvalidSignatureException", "Signature not yet current: 20261121T1 is still later", "clock"),
            ("InvalidSignatureException", "The request signature we calculated does not match", "access key"),
            ("UnrecognizedClientException", "The security token is invalid.", "access key"),
            ("ExpiredTokenException", "The security token included is expired", "renew"),
            ("AccessDeniedException", "User is not authorized", "policy"),
            ("ResourceNotFoundException", "Requested resource not found", "provision"),
        ],
    )
    def test_a_refusal_names_its_remedy(self, code: str, message: str, remedy: str) -> None:
        translated = translate(recorded(code, message), lost=Unavailable)
        assert type(translated) is BackendRefused
        assert remedy in translated.detail

    def test_no_detail_repeats_what_the_service_said(self) -> None:
        for code in (*CODES, "Unheard", "TransactionCanceledException"):
            assert "hunter2" not in str(translate(recorded(code), lost=OutcomeUnknown, keys=["k1"]))


class TestCancellations:
    @pytest.mark.parametrize(
        ("reasons", "expected"),
        [
            (("None", "ConditionalCheckFailed", "None"), ("k2",)),
            (("ConditionalCheckFailed", "None", "ConditionalCheckFailed"), ("k1", "k3")),
            (("TransactionConflict", "None", "ConditionalCheckFailed"), ("k3",)),
            (("ThrottlingError", "ConditionalCheckFailed", "ValidationError"), ("k2",)),
            (("TransactionConflict", "None", "None"), Unavailable),
            (("TransactionConflict", "ThrottlingError", "None"), Throttled),
            (("None", "ProvisionedThroughputExceeded", "None"), Throttled),
            (("TransactionConflict", "ValidationError", "None"), BackendRefused),
            (("ItemCollectionSizeLimitExceeded", "None", "ThrottlingError"), BackendRefused),
            (("None", "SomethingNew", "None"), BackendRefused),
            (("None", "None", "None"), BackendRefused),
        ],
    )
    def test_a_cancelled_transaction_is_judged_op_by_op(
        self, reasons: tuple[str, ...], expected: tuple[str, ...] | type[EnginesError]
    ) -> None:
        translated = translate(cancelled(*reasons), lost=OutcomeUnknown, keys=KEYS)
        if isinstance(expected, tuple):
            assert isinstance(translated, Conflict)
            assert translated.keys == expected
        else:
            assert type(translated) is expected

    def test_reasons_that_cannot_be_told_to_keys_blame_none(self) -> None:
        error = cancelled("ConditionalCheckFailed")
        assert type(translate(error, lost=OutcomeUnknown, keys=KEYS)) is BackendRefused

    def test_every_reason_has_a_meaning(self) -> None:
        assert set(REASONS.values()) <= set(CODES)


def botocore_errors(kind: type[Exception] = sdk.BotoCoreError) -> Iterator[type[Exception]]:
    for below in kind.__subclasses__():
        yield below
        yield from botocore_errors(below)


class TestBrokenCalls:
    def test_every_exception_class_of_botocore_has_a_meaning(self) -> None:
        kinds = set(botocore_errors())
        assert len(kinds) > 60
        for kind in kinds:
            translated = translate(kind.__new__(kind), lost=OutcomeUnknown)
            if issubclass(kind, (sdk.HTTPClientError, sdk.ConnectionError)):
                assert isinstance(translated, (OutcomeUnknown, Unavailable)), kind

    @pytest.mark.parametrize("lost", [OutcomeUnknown, Unavailable])
    @pytest.mark.parametrize(
        "error",
        [
            sdk.ReadTimeoutError(endpoint_url="", error=aiohttp.SocketTimeoutError()),
            sdk.ConnectionClosedError(endpoint_url="", error=aiohttp.ServerDisconnectedError()),
            sdk.HTTPClientError(error=RuntimeError()),
            sdk.ChecksumError(checksum_type="crc32", expected_checksum=1, actual_checksum=2),
            # aiohttp's name for a reset after the request was sent, which aiobotocore then renames.
            connection_error(aiohttp.ClientOSError(104, "Connection reset by peer")),
            aiohttp.ClientPayloadError(),
            TimeoutError(),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_a_call_that_broke_after_sending_means_what_the_call_was(
        self, error: Exception, lost: type[EnginesError]
    ) -> None:
        assert type(translate(error, lost=lost)) is lost

    @pytest.mark.parametrize(
        "error",
        [
            connection_error(aiohttp.ClientConnectorError(ADDRESS, ConnectionRefusedError(111, "refused"))),
            connection_error(aiohttp.ClientConnectorDNSError(ADDRESS, OSError(-2, "unknown name"))),
            sdk.ConnectTimeoutError(endpoint_url="", error=aiohttp.ConnectionTimeoutError()),
            sdk.ProxyConnectionError(proxy_url="", error=None),
        ],
        ids=["refused", "no address", "timeout", "proxy"],
    )
    def test_a_connection_that_never_came_about_is_unavailable_to_a_write(self, error: Exception) -> None:
        assert type(translate(error, lost=OutcomeUnknown)) is Unavailable

    @pytest.mark.parametrize(
        "error",
        [
            sdk.NoCredentialsError(),
            sdk.PartialCredentialsError(provider="explicit", cred_var="aws_secret_access_key"),
            sdk.CredentialRetrievalError(provider="p", error_msg="hunter2"),
            sdk.TokenRetrievalError(provider="p", error_msg="hunter2"),
            sdk.ParamValidationError(report="hunter2"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_what_the_sdk_refuses_before_sending_is_an_operators_work(self, error: Exception) -> None:
        translated = translate(error, lost=OutcomeUnknown)
        assert type(translated) is BackendRefused
        assert "credentials" in translated.detail
        assert "hunter2" not in translated.detail

    def test_a_certificate_that_is_not_trusted_is_an_operators_work(self) -> None:
        cause = aiohttp.ClientConnectorCertificateError(ADDRESS, Exception("self-signed"))
        error = sdk.SSLError(endpoint_url="", error=cause)
        translated = translate(error, lost=OutcomeUnknown)
        assert type(translated) is BackendRefused
        assert "certificate" in translated.detail


class TestConfig:
    def test_a_url_becomes_a_config(self) -> None:
        config, password = config_from_url(
            "dynamodb://eu-central-1/prod.control?endpoint=http://127.0.0.1:8000&pool_size=7"
            "&point_in_time_recovery=false"
        )
        assert password is None
        assert config == {
            "region": "eu-central-1",
            "table": "prod.control",
            "endpoint": "http://127.0.0.1:8000",
            "pool_size": 7,
            "point_in_time_recovery": False,
            "pinned_to_region": False,
        }
        assert Config(**config).pool_size == 7

    @pytest.mark.parametrize(
        "url",
        [
            "dynamodb://eu-central-1",
            "dynamodb:///prod",
            "dynamodb://hunter2@eu-central-1/prod",
            "dynamodb://a:hunter2@eu-central-1/prod",  # pragma: allowlist secret
            "dynamodb://eu-central-1:8000/prod",
            "dynamodb://eu-central-1/prod?endpoint=hunter2",
            "dynamodb://eu-central-1/prod?hunter2=1",
            "dynamodb://eu-central-1/prod?pool_size=0",
            "dynamodb://eu-central-1/prod?pool_size=hunter2",
            "dynamodb://eu-central-1/p",
            "dynamodb://[eu-central-1/hunter2",
            "sqlite:///hunter2",
        ],
    )
    def test_a_bad_url_is_invalid_and_not_repeated(self, url: str) -> None:
        with pytest.raises(Invalid) as caught:
            config_from_url(url)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize(
        "wrong",
        [
            {"region": "Frankfurt"},
            {"region": "eu-central-1.evil.example"},
            {"region": ""},
            {"table": "ab"},
            {"table": "a" * 256},
            {"table": "a/b"},
            {"endpoint": "127.0.0.1:8000"},
            {"endpoint": "http://user:pass@host"},  # pragma: allowlist secret
            {"endpoint": "http://host/path"},
            {"endpoint": "http://host?query"},
            {"pool_size": 0},
            {"pool_size": 1_001},
            {"access_key_id": "AKIA"},
            {"secret_access_key": "hunter2"},  # pragma: allowlist secret
        ],
        ids=str,
    )
    def test_what_a_record_may_not_hold_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"region": "eu-central-1", "table": "prod", **wrong}, Config)

    @pytest.mark.parametrize("region", ["eu-central-1", "us-gov-west-1", "cn-north-1", "ap-southeast-7"])
    def test_regions_of_every_partition_are_names(self, region: str) -> None:
        assert Config(region=region, table="prod").region == region


class TestDescription:
    def test_the_greatest_document_fits_into_an_item(self) -> None:
        assert BODY_BYTES_MAX + OVERHEAD_BYTES_MAX <= ITEM_BYTES_MAX
        assert f"{ITEM_BYTES_MAX:,}" in DESCRIPTION.limits["item"]

    def test_the_policy_is_json_that_names_one_table(self) -> None:
        policy = json.loads(DESCRIPTION.policy)
        assert {statement["Resource"] for statement in policy["Statement"]} == {
            "arn:aws:dynamodb:REGION:ACCOUNT:table/TABLE"
        }
        allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
        # A transaction is allowed by what it consists of.
        assert allowed == {f"dynamodb:{name}" for name in OPERATIONS if name != "TransactWriteItems"}


WITHOUT_SDK = """
import sys
sys.modules.update(aiobotocore=None, botocore=None)
from engines.clock import SystemClock
from engines.drivers.documents.dynamodb import DESCRIPTION, Config, open_driver
print(DESCRIPTION.name)
try:
    open_driver(Config(region="eu-central-1", table="prod"), {}, SystemClock())
except Exception as error:
    print(type(error).__name__, error)
"""


def test_without_the_sdk_the_driver_is_described_and_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SDK], capture_output=True, text=True, check=True, timeout=60
    )
    described, refused = done.stdout.splitlines()
    assert described == "dynamodb"
    assert refused.startswith("BackendRefused")
    assert "pip install 'engines[dynamodb]'" in refused
