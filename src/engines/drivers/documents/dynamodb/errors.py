"""What the errors of aiobotocore, botocore and DynamoDB mean.

Owns the tables that translate each of them once. Two questions decide: did the service answer, and if it
did not, had anything been sent? The SDK is bad at the second: aiobotocore calls a connection that broke in
the middle of a reply an `EndpointConnectionError`, as if it had never come about; what it wraps tells which.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

from engines.errors import (
    BackendRefused,
    Conflict,
    EnginesError,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)

SDK_ERRORS: Final = (
    sdk.BotoCoreError,
    sdk.ClientError,
    ResponseParserError,
    aiohttp.ClientError,
    OSError,
)

_CREDENTIALS = "DynamoDB knows no such access key: correct the secrets, or what the SDK's own chain finds"
_CLOCK = "DynamoDB finds the signature expired or not yet valid: set this host's clock"
_EXPIRED = "the session token has expired: renew it, or let the SDK's own chain fetch one"
_RIGHTS = "the credentials may not do this: grant the policy that documentation gives for the driver"
_TABLE = "the table is missing: provision it, or correct region and table in the backend's record"
_REQUEST = (
    "DynamoDB refused the request as invalid: the table is not one of ours, or the endpoint is no DynamoDB"
)

# The service's answers by their code: nothing was applied, but where it is OutcomeUnknown. The waist has no
# code for a request that is too large: core keeps every request within the service's limits.
CODES: Final[Mapping[str, tuple[type[EnginesError], str]]] = {
    "ConditionalCheckFailedException": (Conflict, "a condition did not hold"),
    # Contention that nobody conditioned on: another transaction, or another region of a global table.
    **dict.fromkeys(
        ("TransactionConflictException", "ReplicatedWriteConflictException"),
        (Unavailable, "another transaction holds the document"),
    ),
    # An earlier attempt of the same write is under way, or was seen with another request.
    **dict.fromkeys(
        ("TransactionInProgressException", "IdempotentParameterMismatchException"),
        (OutcomeUnknown, "an earlier attempt of this write may have been applied"),
    ),
    **dict.fromkeys(
        (
            "ThrottlingException",
            "Throttling",
            "ProvisionedThroughputExceededException",
            "RequestLimitExceeded",
            "LimitExceededException",
        ),
        (Throttled, "the table or one of its partitions has reached its throughput"),
    ),
    **dict.fromkeys(
        (
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "InvalidSignatureException",
            "SignatureDoesNotMatch",
            "IncompleteSignature",
            "IncompleteSignatureException",
            "MissingAuthenticationToken",
            "MissingAuthenticationTokenException",
            "OptInRequired",
        ),
        (BackendRefused, _CREDENTIALS),
    ),
    **dict.fromkeys(
        ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"), (BackendRefused, _CLOCK)
    ),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException"), (BackendRefused, _EXPIRED)),
    **dict.fromkeys(("AccessDenied", "AccessDeniedException"), (BackendRefused, _RIGHTS)),
    **dict.fromkeys(("ResourceNotFoundException", "TableNotFoundException"), (BackendRefused, _TABLE)),
    "ResourceInUseException": (BackendRefused, "the table is being created, changed or deleted"),
    "ItemCollectionSizeLimitExceededException": (
        BackendRefused,
        "the table has a local secondary index, which bounds a partition to 10 GB: remove the index",
    ),
    "UnknownOperationException": (BackendRefused, "the endpoint does not offer an operation of DynamoDB"),
    "ContinuousBackupsUnavailableException": (BackendRefused, "backups are not yet enabled for the table"),
    **dict.fromkeys(("ValidationException", "SerializationException"), (BackendRefused, _REQUEST)),
}

# Why a transaction was cancelled, which is said op by op; the first of these that is among them decides.
REASONS: Final[Mapping[str, str]] = {
    "ConditionalCheckFailed": "ConditionalCheckFailedException",
    "ItemCollectionSizeLimitExceeded": "ItemCollectionSizeLimitExceededException",
    "AccessDenied": "AccessDeniedException",
    "ValidationError": "ValidationException",
    "ProvisionedThroughputExceeded": "ProvisionedThroughputExceededException",
    "ThrottlingError": "ThrottlingException",
    "TransactionConflict": "TransactionConflictException",
    "ReplicatedWriteConflict": "ReplicatedWriteConflictException",
}

# How the service begins what it says of a signature whose time is wrong.
_SKEWED: Final = ("Signature expired", "Signature not yet current")

# What the SDK raises of itself; the most specific class decides. OutcomeUnknown stands for an end at which
# the request may have been sent. Whatever else botocore raises comes before, and asks for an operator.
CLIENT_ERRORS: Final[Mapping[type[BaseException], type[EnginesError]]] = {
    sdk.HTTPClientError: OutcomeUnknown,
    sdk.ConnectionError: OutcomeUnknown,
    sdk.ConnectTimeoutError: Unavailable,
    sdk.ProxyConnectionError: Unavailable,
    sdk.SSLError: Unavailable,
    sdk.ChecksumError: OutcomeUnknown,
    sdk.IncompleteReadError: OutcomeUnknown,
    sdk.BotoCoreError: BackendRefused,
    sdk.ClientError: BackendRefused,
    ResponseParserError: OutcomeUnknown,
    aiohttp.ClientError: OutcomeUnknown,
    OSError: OutcomeUnknown,
}

_LOST: Final[Mapping[type[EnginesError], str]] = {
    OutcomeUnknown: "the reply of DynamoDB to a write was lost",
    Unavailable: "DynamoDB could not be asked",
    BackendRefused: "the SDK could not ask DynamoDB: correct the credentials or the backend's record",
}


def translate(error: Any, *, lost: type[EnginesError], keys: Sequence[str] = ()) -> EnginesError:
    """`lost` is what a missing answer means: OutcomeUnknown for a write, else Unavailable. `keys` are
    those of the ops that were sent, in their order."""
    if isinstance(error, sdk.ClientError):
        found, detail = _answer(error, keys)
        if found is Conflict:
            return Conflict(detail, keys=_culprits(error, keys))
    else:
        found = _unanswered(error)
        detail = _words(error, found)
    if found is OutcomeUnknown and lost is not OutcomeUnknown:
        found, detail = lost, _LOST[lost]
    return found(detail)


def code_of(error: BaseException | None) -> str:
    """The code of the service's answer from which an error was translated; empty for none."""
    cause = error.__cause__ if isinstance(error, EnginesError) else error
    response: Mapping[str, Any] = getattr(cause, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _answer(error: sdk.ClientError, keys: Sequence[str]) -> tuple[type[EnginesError], str]:
    code = code_of(error)
    if code == "TransactionCanceledException":
        code = _reason(error, keys)
    message = error.response.get("Error", {}).get("Message") or ""
    if code == "InvalidSignatureException" and message.startswith(_SKEWED):
        code = "RequestExpired"
    if code in CODES:
        return CODES[code]
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    # AWS on its 500: "the operation may have succeeded"; of its 503 it says nothing, so nothing is known.
    if status >= 500 or status in (0, 408):
        return OutcomeUnknown, _LOST[OutcomeUnknown]
    if status == 429:
        return CODES["ThrottlingException"]
    return BackendRefused, "DynamoDB refused the request with a code that the driver does not know"


def _reasons(error: sdk.ClientError) -> list[str]:
    given: list[dict[str, Any]] = error.response.get("CancellationReasons") or []
    return [str(reason.get("Code")) for reason in given]


def _reason(error: sdk.ClientError, keys: Sequence[str]) -> str:
    """The code that decides. A Conflict needs reasons that can be told to keys."""
    reasons = _reasons(error)
    if len(reasons) != len(keys):
        return "TransactionCanceledException"
    return next(
        (code for reason, code in REASONS.items() if reason in reasons), "TransactionCanceledException"
    )


def _culprits(error: sdk.ClientError, keys: Sequence[str]) -> list[str]:
    reasons = _reasons(error)
    if not reasons:
        return list(keys)
    return [key for key, reason in zip(keys, reasons, strict=True) if reason == "ConditionalCheckFailed"]


def _unanswered(error: BaseException) -> type[EnginesError]:
    found = next(CLIENT_ERRORS[kind] for kind in type(error).__mro__ if kind in CLIENT_ERRORS)
    wrapped = getattr(error, "kwargs", {}).get("error")
    if isinstance(error, sdk.SSLError) and isinstance(wrapped, aiohttp.ClientConnectorCertificateError):
        return BackendRefused
    never_connected = (aiohttp.ClientConnectorError, socket.gaierror)
    if isinstance(error, sdk.EndpointConnectionError) and isinstance(wrapped, never_connected):
        return Unavailable
    return found


def is_unknown_host(error: BaseException) -> bool:
    """Whether the endpoint's name has no address."""
    wrapped = getattr(error, "kwargs", {}).get("error")
    return isinstance(wrapped, (aiohttp.ClientConnectorDNSError, socket.gaierror))


def _words(error: BaseException, found: type[EnginesError]) -> str:
    if found is BackendRefused and isinstance(error, sdk.SSLError | ssl.SSLError):
        return "the endpoint's certificate is not trusted"
    return _LOST[found]
