"""The channel to Firestore, and what its errors mean.

Owns credentials, one gRPC channel, and the table that translates every status. gRPC and the service's library
would repeat calls by themselves; both are kept from it, since a write that was repeated after it had landed
comes back as a false conflict. Leaves messages to `messages.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import google.auth
import google.auth.exceptions
import google.auth.transport.grpc
import google.auth.transport.requests
import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from google.oauth2 import service_account as _service_account

from engines.errors import (
    BackendRefused,
    Corrupt,
    EnginesError,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)
from engines.ports.documents import PAGE_BYTES
from engines.ports.secrets import Secret

SERVICE_ENDPOINT: Final = "firestore.googleapis.com:443"
SCOPE: Final = "https://www.googleapis.com/auth/datastore"
# Core gives up earlier; this ends a call that nobody waits for.
CALL_TIMEOUT_S: Final = 60.0
# How long `close` waits for the calls under way.
CLOSE_TIMEOUT_S: Final = 10.0
CALLS_MAX: Final = 10_000
OPTIONS: Final = (
    # gRPC's own repeats, those of calls that the server never saw too.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Else all channels of a process with one address share one connection and its troubles.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A window of one page from the start, in place of one that pings find out.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", PAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class ConditionRefusedError(Exception):
    """The service refused a conditioned write for one of its conditions, and does not say which."""


class Connection:
    """One channel, opened by the first call and bound to its event loop."""

    def __init__(self, database: str, endpoint: str | None, service_account: Secret | None) -> None:
        self._endpoint = endpoint
        self._service_account = service_account
        self._metadata = (
            ("google-cloud-resource-prefix", database),
            # An emulator judges security rules for whoever does not say that they own it.
            *((("authorization", "Bearer owner"),) if endpoint else ()),
        )
        self._channel: grpc.aio.Channel | None = None
        self._opening = asyncio.Lock()
        self._methods: dict[str, Any] = {}
        self._calls = 0
        self._closed = False
        self._idle = asyncio.Event()

    async def call(
        self,
        method: str,
        request: Any,
        reply: Any,
        *,
        route: str,
        lost: type[EnginesError],
        conditioned: bool = False,
    ) -> Any:
        """One request, one reply. An error that is no answer becomes `lost`.

        `route` is the field of the request by which the service finds the database. Raises
        ConditionRefusedError where the write is `conditioned` and refused for that.
        """
        async with self._under_way(lost, conditioned=conditioned):
            multicallable = self._methods.get(method) or await self._method(method, request, reply)
            metadata = self._metadata_of(request, route)
            return await multicallable(request, timeout=CALL_TIMEOUT_S, metadata=metadata)

    async def stream(
        self, method: str, request: Any, reply: Any, take: Callable[[Any], bool], *, route: str
    ) -> None:
        """One request, a stream of replies, each given to `take` until it says that it wants no more."""
        async with self._under_way(Unavailable, conditioned=False):
            multicallable = self._methods.get(method) or await self._method(
                method, request, reply, streams=True
            )
            metadata = self._metadata_of(request, route)
            call = multicallable(request, timeout=CALL_TIMEOUT_S, metadata=metadata)
            try:
                while (message := await call.read()) is not grpc.aio.EOF:
                    if not take(message):
                        return
            finally:
                call.cancel()

    def check_open(self) -> None:
        """Raises Unavailable once closed."""
        if self._closed:
            raise Unavailable("the database is closed")

    async def close(self) -> None:
        """Waits for the calls under way; later ones are Unavailable."""
        self._closed = True
        if self._calls:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._idle.wait()
        if self._channel is not None:
            await self._channel.close()

    def _metadata_of(self, request: Any, route: str) -> tuple[tuple[str, str], ...]:
        value = functools.reduce(getattr, route.split("."), request)
        return (*self._metadata, ("x-goog-request-params", f"{route}={quote(value, safe='/')}"))

    @contextlib.asynccontextmanager
    async def _under_way(self, lost: type[EnginesError], *, conditioned: bool) -> AsyncIterator[None]:
        self.check_open()
        if self._calls >= CALLS_MAX:
            raise Throttled("too many calls wait for the database")
        self._calls += 1
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if conditioned and error.code() in CONDITION_CODES:
                raise ConditionRefusedError from error
            raise translate(error, lost=lost) from error
        except (grpc.aio.UsageError, grpc.aio.InternalError) as error:
            raise lost("the channel to the database was closed or broke") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                # Not the caller's doing: `close` took the channel from a call that outlived its patience.
                raise lost("the channel to the database was closed") from None
            raise
        finally:
            self._calls -= 1
            if self._closed and not self._calls:
                self._idle.set()

    async def _method(self, method: str, request: Any, reply: Any, *, streams: bool = False) -> Any:
        async with self._opening:
            if self._channel is None:
                self._channel = await self._open()
        make = self._channel.unary_stream if streams else self._channel.unary_unary
        self._methods[method] = make(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        return self._methods[method]

    async def _open(self) -> grpc.aio.Channel:
        if self._endpoint is not None:
            return grpc.aio.insecure_channel(self._endpoint, options=OPTIONS)
        credentials = await asyncio.to_thread(_credentials, self._service_account)
        return grpc.aio.secure_channel(SERVICE_ENDPOINT, credentials, options=OPTIONS)


def _credentials(service_account: Secret | None) -> grpc.ChannelCredentials:
    """Blocks: looks into files, asks the metadata server. Raises BackendRefused, which repeats no secret."""
    found = _default_credentials() if service_account is None else _key_credentials(service_account)
    plugin = _AccessTokens(found, google.auth.transport.requests.Request())  # type: ignore[no-untyped-call]
    return grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(), grpc.metadata_call_credentials(plugin)
    )


class _AccessTokens(google.auth.transport.grpc.AuthMetadataPlugin):
    """Says of a token that cannot be had whether it was refused; gRPC hands on no more than a text."""

    def __call__(self, context: Any, callback: Any) -> None:
        try:
            super().__call__(context, callback)  # type: ignore[no-untyped-call]
        except google.auth.exceptions.RefreshError as error:
            unreachable = error.retryable or isinstance(
                error.__cause__, google.auth.exceptions.TransportError
            )
            raise RuntimeError("unreachable" if unreachable else CREDENTIAL_REFUSED) from error


def _default_credentials() -> Any:
    try:
        return google.auth.default(scopes=[SCOPE])[0]
    except (google.auth.exceptions.GoogleAuthError, OSError) as error:  # A file may be nobody's to read.
        raise BackendRefused(
            "there are no application default credentials: give the backend the secret service_account, or"
            " run `gcloud auth application-default login`"
        ) from error


def _key_credentials(service_account: Secret) -> Any:
    try:
        key = json.loads(service_account.reveal())
        return _service_account.Credentials.from_service_account_info(key, scopes=[SCOPE])  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, AttributeError, google.auth.exceptions.GoogleAuthError):
        # Its cause may quote the secret.
        raise BackendRefused("the secret service_account is no key of a service account") from None


# --- errors ---

CONDITION_CODES: Final = frozenset(
    {grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND}
)
# OutcomeUnknown stands for what is no answer; for a read it becomes Unavailable.
CODES: Final[Mapping[grpc.StatusCode, type[EnginesError]]] = {
    grpc.StatusCode.OK: OutcomeUnknown,
    grpc.StatusCode.CANCELLED: OutcomeUnknown,
    grpc.StatusCode.UNKNOWN: OutcomeUnknown,
    grpc.StatusCode.INVALID_ARGUMENT: BackendRefused,
    grpc.StatusCode.DEADLINE_EXCEEDED: OutcomeUnknown,
    grpc.StatusCode.NOT_FOUND: BackendRefused,
    grpc.StatusCode.ALREADY_EXISTS: BackendRefused,
    grpc.StatusCode.PERMISSION_DENIED: BackendRefused,
    grpc.StatusCode.UNAUTHENTICATED: BackendRefused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Throttled,
    grpc.StatusCode.FAILED_PRECONDITION: BackendRefused,
    grpc.StatusCode.ABORTED: Unavailable,  # contention that nobody conditioned on
    grpc.StatusCode.OUT_OF_RANGE: BackendRefused,
    grpc.StatusCode.UNIMPLEMENTED: BackendRefused,
    grpc.StatusCode.INTERNAL: OutcomeUnknown,
    grpc.StatusCode.UNAVAILABLE: OutcomeUnknown,
    grpc.StatusCode.DATA_LOSS: Corrupt,
}
# How gRPC begins the details of a call that it could not hand to any connection: nothing of it was sent. All
# else under UNAVAILABLE may be a connection that broke with the call on it, or the service's own answer.
NOT_SENT: Final = (
    "failed to connect to all addresses",
    "errors resolving",
    "DNS resolution failed",
)
# The same for a call without an access token, whose details end with the text of what was raised.
UNSENT_FOR_CREDENTIALS: Final = "Getting metadata from plugin failed"
CREDENTIAL_REFUSED: Final = "the credential was refused"

_DETAILS: Final[Mapping[type[EnginesError], str]] = {
    OutcomeUnknown: "the connection to the database was lost during a write",
    Unavailable: "the database could not be asked, or undid the write for contention",
    Throttled: "the database is past a quota or out of resources",
    Corrupt: "the database reports damaged data",
    BackendRefused: "the database refused the request",
}
REMEDIES: Final[Mapping[grpc.StatusCode, str]] = {
    grpc.StatusCode.NOT_FOUND: "there is no such project or database: create one with"
    " `gcloud firestore databases create --location=… --type=firestore-native`",
    grpc.StatusCode.PERMISSION_DENIED: "the credential may not do this, or the API is off: grant"
    " roles/datastore.user (to provision, roles/datastore.indexAdmin too) and run"
    " `gcloud services enable firestore.googleapis.com`",
    grpc.StatusCode.UNAUTHENTICATED: "the credential is not accepted: renew the service account's key",
    grpc.StatusCode.FAILED_PRECONDITION: "the database is not in native mode, or the index of the field key"
    " was switched off",
    grpc.StatusCode.UNIMPLEMENTED: "the endpoint does not have this method: for an emulator, set"
    " manage_indexes to false",
}


def translate(error: grpc.aio.AioRpcError, *, lost: type[EnginesError]) -> EnginesError:
    """Our error for a status; `lost` for what is no answer. Nothing of the service's text is repeated."""
    code, details = error.code(), error.details() or ""
    if details.startswith(UNSENT_FOR_CREDENTIALS):
        if details.endswith(CREDENTIAL_REFUSED):
            return BackendRefused(f"Firestore: {REMEDIES[grpc.StatusCode.UNAUTHENTICATED]}")
        return Unavailable("no access token for Firestore could be fetched")
    kind = CODES[code]
    if kind is OutcomeUnknown:
        not_sent = code is grpc.StatusCode.UNAVAILABLE and details.startswith(NOT_SENT)
        kind = Unavailable if not_sent else lost
    remedy = REMEDIES.get(code) if kind is BackendRefused else None
    return kind(f"Firestore: {remedy or _DETAILS[kind]}")
