"""One issuer's keys, kept fresh.

Owns when a source is read again, that concurrent readers share one reading, and what holds while it cannot
be read: the keys at hand serve on until they are `KEYS_AGE_MAX_S` old. A token that names an unknown key
makes the source be read again, because keys rotate; but no more often than the source allows, so that a
flood of invented names is no flood of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from engines.clock import Clock
from engines.errors import Unavailable
from engines.identity.jwks import KeySet, KeysRefused, VerifyingKey
from engines.identity.key_sources import KeySource

KEYS_AGE_MAX_S: Final = 6 * 3600.0
LOAD_TIMEOUT_S: Final = 6.0
# After a reading that failed.
RETRY_S: Final = 5.0

_NEVER: Final = float("-inf")
log = structlog.get_logger(__name__)


class KeyRing:
    """The present keys of one issuer. `on_change` is called whenever they become others."""

    def __init__(
        self, source: KeySource, clock: Clock, *, issuer_id: str, on_change: Callable[[], None]
    ) -> None:
        self._source = source
        self._clock = clock
        self._issuer_id = issuer_id
        self._on_change = on_change
        self._keys: KeySet | None = None
        self._loaded_at = _NEVER
        self._attempted_at = _NEVER
        self._failed = False
        self._loading: asyncio.Task[None] | None = None
        self.version = 0
        """Grows whenever the keys become others: what was verified with the old ones is verified anew."""

    @property
    def recheck_at(self) -> float:
        """Until then, by the monotonic clock, what was verified with these keys need not be looked at."""
        return min(self._due_at, self._loaded_at + KEYS_AGE_MAX_S)

    async def refresh(self) -> None:
        """Read the source again where that is due. Raises Unavailable where no keys can be had."""
        if self._clock.monotonic() >= self._due_at:
            reading = self._begin()
            if self._source.is_local or not self._has_keys:
                await asyncio.shield(reading)
        elif not self._has_keys and self._loading is not None:
            await asyncio.shield(self._loading)
        if not self._has_keys:
            raise Unavailable("the keys of the token's issuer cannot be read", retry_after_s=RETRY_S)

    async def find(self, kid: str | None, alg: str) -> VerifyingKey | None:
        """The key that a token names. Raises Unavailable where the issuer may have it and cannot be asked."""
        await self.refresh()
        assert self._keys is not None
        key = self._keys.find(kid, alg)
        if key is None and self._may_look_again():
            await asyncio.shield(self._begin())
            key = self._keys.find(kid, alg)
        if key is None and self._failed:
            raise Unavailable("the keys of the token's issuer cannot be read", retry_after_s=RETRY_S)
        return key

    async def close(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])

    @property
    def _due_at(self) -> float:
        return self._attempted_at + (RETRY_S if self._failed else self._source.refresh_s)

    @property
    def _has_keys(self) -> bool:
        return self._clock.monotonic() < self._loaded_at + KEYS_AGE_MAX_S

    def _may_look_again(self) -> bool:
        """A reading under way may always be waited for; it is the same request to the issuer."""
        waited_s = self._clock.monotonic() - self._attempted_at
        return self._loading is not None or waited_s >= self._source.look_again_s

    def _begin(self) -> asyncio.Task[None]:
        """The reading under way, or a new one. It belongs to the ring: a cancelled caller leaves it be."""
        if self._loading is None:
            self._attempted_at = self._clock.monotonic()
            self._loading = asyncio.create_task(self._load())
        return self._loading

    async def _load(self) -> None:
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                keys = await self._source.load()
        except (KeysRefused, TimeoutError) as error:
            self._failed = True
            log.warning("an issuer's keys cannot be read", issuer_id=self._issuer_id, reason=str(error))
        except Exception:
            # A fault of ours is a failed reading like any other: the next one is due after `RETRY_S`.
            self._failed = True
            log.exception("an issuer's keys cannot be read", issuer_id=self._issuer_id)
        else:
            self._failed = False
            self._loaded_at = began
            if self._keys is None or keys.identity != self._keys.identity:
                self._keys = keys
                self.version += 1
                self._on_change()
        finally:
            self._loading = None
