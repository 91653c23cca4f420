"""Reads that are not of one moment: several keys at once on some drivers, and one read after another on all.

Owns making that happen where a repeated request would meet its first attempt as it lands.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest

from engines.core.documents import Documents
from engines.ports.documents import Doc

_MARKER = "k!"


def torn(
    documents: Documents, monkeypatch: pytest.MonkeyPatch, between: Callable[[], Awaitable[object]]
) -> None:
    """The next read of an idempotency marker and more reads the marker, then `between` is, then the rest."""
    read = documents.get_many

    async def read_in_two(partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        markers = [key for key in keys if key.startswith(_MARKER)]
        others = [key for key in keys if key not in markers]
        if not markers or not others:
            return await read(partition, keys)
        monkeypatch.undo()
        early = await read(partition, markers)
        await between()
        return {**early, **await read(partition, others)}

    monkeypatch.setattr(documents, "get_many", read_in_two)
