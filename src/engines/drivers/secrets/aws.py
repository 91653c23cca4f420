"""`aws:NAME` and `aws:NAME#member`: secrets in AWS Secrets Manager, whole or one member of a JSON object.

Owns asking the service for the secret's present version (AWSCURRENT). NAME is a secret's name or its ARN,
whose region then counts. Region and credentials else come from the SDK's default chain, and from nowhere in
Engines. The SDK is aiobotocore, which the DynamoDB driver needs as well.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engines.errors import BackendRefused, Invalid
from engines.ports.secrets import Secret, SecretSource

CONNECT_TIMEOUT_S: Final = 3.0
READ_TIMEOUT_S: Final = 5.0
TIMEOUT_S: Final = 10.0
ATTEMPTS_MAX: Final = 2
# The service's own limit.
SECRET_BYTES_MAX: Final = 64 * 1024

_HANDLE: Final = re.compile(r"([A-Za-z0-9/_+=.@:-]+)(?:#(.+))?")
_ARN: Final = re.compile(r"arn:[a-z-]+:secretsmanager:([a-z0-9-]+):[0-9]+:secret:.+")

_CREDENTIALS: Final = "the process's AWS credentials are not accepted; renew them"
# What an operator does, by the service's error code.
_REMEDIES: Final[Mapping[str, str]] = {
    "ResourceNotFoundException": "there is none of this name in this region and account",
    "AccessDeniedException": "allow the process secretsmanager:GetSecretValue on it, kms:Decrypt on its key",
    "DecryptionFailure": "allow the process kms:Decrypt on the secret's key",
    "InvalidRequestException": "it is marked deleted; restore it",
    "ThrottlingException": "the service throttles; ask less often or raise the quota",
    **dict.fromkeys(
        (
            "ExpiredTokenException",
            "InvalidClientTokenId",
            "InvalidSignatureException",
            "UnrecognizedClientException",
        ),
        _CREDENTIALS,
    ),
}


def open_source(places: Mapping[str, str]) -> SecretSource:
    """`places["aws_endpoint"]` is a URL to ask in the place of the region's own."""
    return AwsSecrets(places.get("aws_endpoint"))


class AwsSecrets:
    """`SecretSource` on one account's Secrets Manager. Nothing is open between two calls."""

    def __init__(self, endpoint: str | None) -> None:
        self._endpoint = endpoint
        self._session: Any = None

    async def resolve(self, name: str) -> Secret:
        match = _HANDLE.fullmatch(name)
        if match is None:
            raise Invalid("a handle of scheme aws is aws:NAME or aws:NAME#member", field="secrets")
        handle, member = f"aws:{name}", match[2]
        reply = await self._asked(match[1], handle)
        text = reply.get("SecretString")
        if member is not None and isinstance(text, str):
            text = _member(text, member)
        if not isinstance(text, str) or not text:
            what = "has no text" if member is None else "is no JSON object with a string of this name"
            raise BackendRefused(f"the secret {handle} {what}")
        if len(text.encode()) > SECRET_BYTES_MAX:
            raise BackendRefused(f"the secret {handle} exceeds {SECRET_BYTES_MAX} bytes")
        return Secret(text)

    async def _asked(self, secret_id: str, handle: str) -> Mapping[str, Any]:
        """The service's reply. Raises BackendRefused."""
        if self._session is None:
            self._session = await asyncio.to_thread(_new_session, handle)
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            async with asyncio.timeout(TIMEOUT_S), self._client(secret_id) as client:
                reply: Mapping[str, Any] = await client.get_secret_value(SecretId=secret_id)
                return reply
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            remedy = _REMEDIES.get(code, f"the service answered {code}")
            raise BackendRefused(f"the secret {handle} cannot be read: {remedy}") from error
        except (BotoCoreError, OSError, ValueError) as error:  # TimeoutError is an OSError.
            remedy = _cannot_ask(error)
            raise BackendRefused(f"the secret {handle} cannot be read: {remedy}") from error

    def _client(self, secret_id: str) -> Any:
        """An asynchronous context manager. Its model is loaded by the first one alone, in a thread."""
        from aiobotocore.config import AioConfig

        arn = _ARN.fullmatch(secret_id)
        config = AioConfig(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"total_max_attempts": ATTEMPTS_MAX, "mode": "standard"},
            # Where secrets are is said by the bootstrap's places alone.
            ignore_configured_endpoint_urls=True,
            warm_up_loader_caches=True,
        )
        return self._session.create_client(
            "secretsmanager", region_name=arn and arn[1], endpoint_url=self._endpoint, config=config
        )


def _new_session(handle: str) -> Any:
    """Importing the SDK takes a third of a second."""
    try:
        from aiobotocore.session import get_session
    except ModuleNotFoundError as error:
        raise BackendRefused(
            f"the secret {handle} cannot be read: pip install 'engines[aws-secrets]'"
        ) from error
    return get_session()


def _cannot_ask(error: Exception) -> str:
    """What an operator does where the service was not reached."""
    from botocore.exceptions import NoCredentialsError, NoRegionError, PartialCredentialsError

    if isinstance(error, NoRegionError):
        return "no region is configured; set AWS_DEFAULT_REGION or name the secret by its ARN"
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "the process has no AWS credentials; give it a role or a profile"
    return "the service did not answer; check the region and the network"


def _member(text: str, name: str) -> Any:
    """None where it is none. A decoder's error may hold the text, so it may not become a context."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return found.get(name) if isinstance(found, dict) else None
