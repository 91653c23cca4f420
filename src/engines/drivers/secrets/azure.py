"""`azure:VAULT/NAME`: secrets in Azure Key Vault, in the public cloud.

Owns asking a vault for a secret's newest version. The credential is what azure-identity's default chain
finds. One GET does not need the vendor's client of Key Vault, so azure-identity gives the token and aiohttp,
which is there anyway, asks.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engines.clock import Clock, SystemClock
from engines.drivers.secrets.web import get
from engines.errors import BackendRefused, Invalid
from engines.ports.secrets import Secret, SecretSource

ENDPOINT: Final = "https://{vault}.vault.azure.net"
SCOPE: Final = "https://vault.azure.net/.default"
API_VERSION: Final = "7.4"
TIMEOUT_S: Final = 10.0
# A token is renewed this long before it ends.
TOKEN_REST_S: Final = 300
# A secret has at most 25 KB, and JSON may take six bytes for one.
REPLY_BYTES_MAX: Final = 256 * 1024

_NAME: Final = re.compile(r"([A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9])/([A-Za-z0-9-]{1,127})")
# What an operator does, by the status of the reply.
_REMEDIES: Final[Mapping[int, str]] = {
    401: "the process's Azure credential is not accepted by the vault; check its tenant",
    403: "grant the process Key Vault Secrets User on it, enable the secret, and let the vault's firewall in",
    404: "there is no such secret in the vault",
    429: "the vault throttles; ask less often",
}


class _Reply(msgspec.Struct):
    value: str


def open_source(places: Mapping[str, str]) -> SecretSource:
    """`places["azure_endpoint"]` is a URL to ask in the place of a vault's own; `{vault}` is its name."""
    return AzureSecrets(places.get("azure_endpoint", ENDPOINT), SystemClock())


class AzureSecrets:
    """`SecretSource` on the vaults that the process may read. Keeps its token, and nothing open."""

    def __init__(self, endpoint: str, clock: Clock) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._clock = clock
        self._token = ""
        self._token_ends_at = 0.0
        self._renewing = asyncio.Lock()

    async def resolve(self, name: str) -> Secret:
        match = _NAME.fullmatch(name)
        if match is None:
            raise Invalid("a handle of scheme azure is azure:VAULT/NAME", field="secrets")
        handle = f"azure:{name}"
        async with self._renewing:
            if self._clock.now() >= self._token_ends_at - TOKEN_REST_S:
                self._token, self._token_ends_at = await _new_token(handle)
        url = f"{self._endpoint.replace('{vault}', match[1])}/secrets/{match[2]}?api-version={API_VERSION}"
        status, body = await get(
            url,
            {"Authorization": f"Bearer {self._token}"},
            handle,
            timeout_s=TIMEOUT_S,
            bytes_max=REPLY_BYTES_MAX,
            silence="the vault did not answer; check its name and the network",
        )
        if status == 401:
            self._token_ends_at = 0.0
        if status != 200:
            remedy = _REMEDIES.get(status, f"the vault answered {status}")
            raise BackendRefused(f"the secret {handle} cannot be read: {remedy}")
        text = _text(body)
        if not text:
            raise BackendRefused(f"the secret {handle} is empty")
        return Secret(text)


async def _new_token(handle: str) -> tuple[str, float]:
    """A token and when it ends, in seconds since the epoch."""
    identity = await asyncio.to_thread(_identity, handle)
    from azure.core.exceptions import AzureError

    try:
        async with asyncio.timeout(TIMEOUT_S), identity.DefaultAzureCredential() as credential:
            token = await credential.get_token(SCOPE)
    except (AzureError, OSError, ValueError) as error:  # TimeoutError is an OSError.
        raise BackendRefused(
            f"the secret {handle} cannot be read: the process has no Azure credential that works;"
            " give it a managed identity"
        ) from error
    return token.token, token.expires_on


def _identity(handle: str) -> Any:
    """azure-identity, whose import takes too long for an event loop."""
    try:
        import azure.identity.aio
    except ModuleNotFoundError as error:
        raise BackendRefused(
            f"the secret {handle} cannot be read: pip install 'engines[azure-secrets]'"
        ) from error
    return azure.identity.aio


def _text(body: bytes) -> str | None:
    """None where there is none. A decoder's error may hold the text, so it may not become a context."""
    try:
        return msgspec.json.decode(body, type=_Reply).value
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
