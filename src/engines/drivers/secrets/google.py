"""`google:PROJECT/SECRET` and `google:PROJECT/SECRET/VERSION`: secrets in Google Secret Manager.

Owns asking for a version, the latest unless the handle names one; a handle that names one never rotates. The
credential is the process's Application Default one. One GET does not need the vendor's gRPC client and its
generated messages, so google-auth gives the token and aiohttp, which is there anyway, asks.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engines.drivers.secrets.web import get
from engines.errors import BackendRefused, Invalid
from engines.ports.secrets import Secret, SecretSource

ENDPOINT: Final = "https://secretmanager.googleapis.com"
SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
TIMEOUT_S: Final = 10.0
TOKEN_TIMEOUT_S: Final = 5.0
# A secret has at most 64 KiB, a third more in base64.
REPLY_BYTES_MAX: Final = 128 * 1024

_NAME: Final = re.compile(r"([a-z0-9-]{1,63})/([A-Za-z0-9_-]{1,255})(?:/([A-Za-z0-9_-]{1,63}))?")
# What an operator does, by the status of the reply.
_REMEDIES: Final[Mapping[int, str]] = {
    400: "the version is disabled or destroyed, or the name is wrong",
    401: "the process's Google credential is not accepted; renew it",
    403: "grant the process roles/secretmanager.secretAccessor on it, and enable the Secret Manager API",
    404: "there is no such project, secret or version",
    429: "the service throttles; ask less often or raise the quota",
}


class _Payload(msgspec.Struct):
    data: str


class _Reply(msgspec.Struct):
    payload: _Payload


def open_source(places: Mapping[str, str]) -> SecretSource:
    """`places["google_endpoint"]` is a URL to ask in the place of the public one."""
    return GoogleSecrets(places.get("google_endpoint", ENDPOINT))


class GoogleSecrets:
    """`SecretSource` on the projects that the process may read. Keeps its credential, and nothing open."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._credential: Any = None
        self._renewing = asyncio.Lock()

    async def resolve(self, name: str) -> Secret:
        match = _NAME.fullmatch(name)
        if match is None:
            raise Invalid(
                "a handle of scheme google is google:PROJECT/SECRET or google:PROJECT/SECRET/VERSION",
                field="secrets",
            )
        handle, version = f"google:{name}", match[3] or "latest"
        path = f"/v1/projects/{match[1]}/secrets/{match[2]}/versions/{version}:access"
        headers = await self._authorised(handle)
        status, body = await get(
            self._endpoint + path,
            headers,
            handle,
            timeout_s=TIMEOUT_S,
            bytes_max=REPLY_BYTES_MAX,
            silence="the service did not answer; check the network",
        )
        if status == 401:
            self._credential = None
        if status != 200:
            remedy = _REMEDIES.get(status, f"the service answered {status}")
            raise BackendRefused(f"the secret {handle} cannot be read: {remedy}")
        text = _text(body)
        if not text:
            raise BackendRefused(f"the secret {handle} is empty, or not UTF-8 text")
        return Secret(text)

    async def _authorised(self, handle: str) -> dict[str, str]:
        """The headers that show who asks."""
        async with self._renewing:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    self._credential = await asyncio.to_thread(_renewed, self._credential, handle)
            except TimeoutError as error:
                raise _no_credential(handle) from error
        headers: dict[str, str] = {}
        self._credential.apply(headers)
        return headers


def _renewed(credential: Any, handle: str) -> Any:
    """The credential with a token that is valid. The library blocks, so this runs in a thread."""
    try:
        import google.auth
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request
    except ImportError as error:
        raise BackendRefused(
            f"the secret {handle} cannot be read: pip install 'engines[google-secrets]'"
        ) from error
    try:
        if credential is None:
            credential, _ = google.auth.default(scopes=[SCOPE])
        if not credential.valid:
            credential.refresh(functools.partial(Request(), timeout=TOKEN_TIMEOUT_S))
    except (GoogleAuthError, OSError) as error:  # A file may be nobody's to read.
        raise _no_credential(handle) from error
    return credential


def _no_credential(handle: str) -> BackendRefused:
    return BackendRefused(
        f"the secret {handle} cannot be read: the process has no Google credential that works;"
        " give it a service account"
    )


def _text(body: bytes) -> str | None:
    """None where there is none. A decoder's error may hold the text, so it may not become a context."""
    try:
        data = msgspec.json.decode(body, type=_Reply).payload.data
        return base64.b64decode(data, validate=True).decode()
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
