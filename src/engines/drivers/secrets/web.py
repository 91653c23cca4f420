"""One GET of a secret over HTTP: bounded in time and size, and told to nobody else.

Owns the limits of such a request. Leaves addresses, credentials and what a status means to the sources that
use it.
"""

from __future__ import annotations

from collections.abc import Mapping

from engines.errors import BackendRefused


async def get(
    url: str, headers: Mapping[str, str], handle: str, *, timeout_s: float, bytes_max: int, silence: str
) -> tuple[int, bytes]:
    """Status and body; redirects are not followed. A session for each secret: there is one every half minute.

    Raises BackendRefused, naming the handle, for a body past `bytes_max` and, with the sentence `silence`,
    where no answer came within `timeout_s`.
    """
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(
                # A compressed body could grow past every limit when it is opened: none is asked for.
                headers={**headers, "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            body = bytearray()
            async for chunk in response.content.iter_chunked(16 * 1024):
                body += chunk
                if len(body) > bytes_max:
                    raise BackendRefused(f"the secret {handle} exceeds {bytes_max} bytes")
            return response.status, bytes(body)
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError.
        raise BackendRefused(f"the secret {handle} cannot be read: {silence}") from error
