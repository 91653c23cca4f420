"""Where an issuer's keys come from: a file, an address, or a shared secret.

Owns reading each within limits of size and time, and which addresses are fetched at all: https, or http to
this host. A redirect is not followed, because the record says whom to believe and a reply does not. Leaves
when to look again to `key_ring.py`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import stat
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from engines.control.records import Issuer
from engines.errors import EnginesError
from engines.identity.jwks import KeySet, KeysRefused, key_set_of_jwks, key_set_of_secret
from engines.ports.secrets import SecretResolver

JWKS_BYTES_MAX: Final = 256 * 1024
FETCH_TIMEOUT_S: Final = 5.0
FILE_REFRESH_S: Final = 1.0
SECRET_REFRESH_S: Final = 5.0
URL_REFRESH_S: Final = 300.0
# However many tokens name keys that nobody knows, the issuer is asked no more often than this.
URL_LOOK_AGAIN_S: Final = 10.0


class KeySource(Protocol):
    """Where one issuer's keys are kept."""

    refresh_s: float
    """How old what was read may grow before it is read again."""
    look_again_s: float
    """The least time between two readings, when a token names a key that is not known."""
    is_local: bool
    """Whether reading is quick enough for a request to wait for it while other keys are at hand."""

    async def load(self) -> KeySet:
        """Raises KeysRefused."""
        ...


class FileKeys:
    """A JSON Web Key Set in a local file. Parsed again only when its bytes have changed."""

    refresh_s = FILE_REFRESH_S
    look_again_s = FILE_REFRESH_S
    is_local = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: tuple[bytes, KeySet] | None = None

    async def load(self) -> KeySet:
        text = await asyncio.to_thread(_read_file, self._path)
        if self._last is None or self._last[0] != text:
            self._last = (text, key_set_of_jwks(text))
        return self._last[1]


class SecretKeys:
    """A secret that the issuer shares with us, by its handle."""

    refresh_s = SECRET_REFRESH_S
    look_again_s = SECRET_REFRESH_S
    is_local = True

    def __init__(self, handle: str, secrets: SecretResolver) -> None:
        self._handle = handle
        self._secrets = secrets

    async def load(self) -> KeySet:
        try:
            secret = await self._secrets.resolve(self._handle)
        except EnginesError as error:
            raise KeysRefused(error.detail) from error
        return key_set_of_secret(secret.reveal())


class UrlKeys:
    """A JSON Web Key Set at an address."""

    refresh_s = URL_REFRESH_S
    look_again_s = URL_LOOK_AGAIN_S
    is_local = False

    def __init__(self, url: str) -> None:
        self._url = url

    async def load(self) -> KeySet:
        check_jwks_url(self._url)
        return key_set_of_jwks(await _fetch(self._url))


def key_source(issuer: Issuer, secrets: SecretResolver) -> KeySource:
    """The one source that the record names; the control plane keeps records with exactly one."""
    if issuer.jwks_file is not None:
        return FileKeys(Path(issuer.jwks_file))
    if issuer.jwks_url is not None:
        return UrlKeys(issuer.jwks_url)
    assert issuer.hs256_secret is not None
    return SecretKeys(issuer.hs256_secret, secrets)


def check_jwks_url(url: str) -> None:
    """Raises KeysRefused for an address whose answer anybody on the way could have written."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise KeysRefused("the address is no URL") from error
    if not host or parts.username is not None or parts.password is not None:
        raise KeysRefused("the address has no host, or holds a credential")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_this_host(host)):
        raise KeysRefused("the address is neither https nor http to this host")


def _is_this_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_file(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise KeysRefused("the key file is no file")
            text = file.read(JWKS_BYTES_MAX + 1)
    except OSError as error:
        raise KeysRefused("the key file cannot be read") from error
    if len(text) > JWKS_BYTES_MAX:
        raise KeysRefused(f"the key file exceeds {JWKS_BYTES_MAX} bytes")
    return text


async def _fetch(url: str) -> bytes:
    """The body of a plain 200. A session for each fetch: there is one every few minutes."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
    # A compressed body could grow past every limit when it is opened: none is asked for, and none is opened.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    try:
        async with (
            aiohttp.ClientSession(
                timeout=timeout, headers=headers, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise KeysRefused(f"the issuer answered {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(16 * 1024):
                body += chunk
                if len(body) > JWKS_BYTES_MAX:
                    raise KeysRefused(f"the issuer's answer exceeds {JWKS_BYTES_MAX} bytes")
            return bytes(body)
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError.
        raise KeysRefused("the issuer did not answer") from error
