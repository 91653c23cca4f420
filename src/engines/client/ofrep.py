"""What feature flags say, over the OpenFeature Remote Evaluation Protocol.

Owns the calls and their types. Leaves defining flags to the definitions' own group, and being a provider of
the OpenFeature SDK to `client/openfeature.py`.

A failure that the protocol has a code for carries it as the error's `reason_code`: FLAG_NOT_FOUND with
NotFound, PARSE_ERROR, INVALID_CONTEXT or GENERAL with Invalid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engines.client.calls import Calls, decoded
from engines.client.results import Evaluation, Evaluations

_FLAGS: Final = ("ofrep", "v1", "evaluate", "flags")
_NOT_MODIFIED: Final = 304


class Ofrep:
    """Evaluations in the bound tenant, env and surface."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def evaluate(self, key: str, context: Mapping[str, Any]) -> Evaluation:
        """What one flag says to whom `context` describes. Raises NotFound, Invalid."""
        reply = await self._calls.ask(*_FLAGS, key, body={"context": context})
        return decoded(Evaluation, reply.body)

    async def evaluate_all(
        self, context: Mapping[str, Any], *, known_etag: str | None = None
    ) -> Evaluations | None:
        """What every flag says; None where that is still what had `known_etag`. Raises Invalid, TooLarge."""
        reply = await self._calls.ask(*_FLAGS, body={"context": context}, known_etag=known_etag)
        if reply.status == _NOT_MODIFIED:
            return None
        found = decoded(Evaluations, reply.body)
        return msgspec.structs.replace(found, etag=reply.headers.get("ETag", ""))
