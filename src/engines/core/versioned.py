"""Versioned records: a head that is replaced and the immutable versions it had, written together.

Owns the keys of versions, how many are kept and reading them back. Leaves the head's own meaning to its
store; the record itself carries its integer `version`, from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engines.core.documents import Documents
from engines.core.keys import join, within
from engines.ports.documents import ABSENT, ALWAYS, SCAN_LIMIT_MAX, Delete, Doc, Op, Page, Put

VERSIONS_KEPT_DEFAULT: Final = 100
# A lowered limit is caught up with over several writes, so that none exceeds the ops of one write.
PRUNED_PER_WRITE_MAX: Final = 20


def version_key(key: str, version: int) -> str:
    """Where version `version` of the record at `key` stands."""
    return join("v", key, f"{version:010d}")


def version_ops(
    key: str, body: str, version: int, *, kept: int = VERSIONS_KEPT_DEFAULT, oldest: int = 1
) -> Sequence[Op]:
    """The ops that go beside the head's: this version in, those past `kept` out.

    `oldest` is the lowest version that may still stand; the store keeps it in the head (`oldest_after`).
    """
    outdated = range(oldest, oldest_after(version, kept=kept, oldest=oldest))
    return (
        Put(version_key(key, version), body, ABSENT),
        *(Delete(version_key(key, number), ALWAYS) for number in outdated),
    )


def oldest_after(version: int, *, kept: int, oldest: int) -> int:
    """The lowest version that stands once `version` is written."""
    assert kept >= 1
    return min(max(oldest, version - kept + 1), oldest + PRUNED_PER_WRITE_MAX)


async def read_version(documents: Documents, partition: str, key: str, version: int) -> Doc | None:
    """One immutable version; None where it never was or is no longer kept."""
    return await documents.get(partition, version_key(key, version))


async def list_versions(
    documents: Documents, partition: str, key: str, *, after: str | None, limit: int, descending: bool = False
) -> Page:
    """Versions in order. `after` is a document key from an earlier page's `resume`."""
    assert 0 < limit <= SCAN_LIMIT_MAX
    above, below = within("v", key)
    if after is not None:
        above, below = (above, after) if descending else (after, below)
    return await documents.scan(partition, above=above, below=below, limit=limit, reverse=descending)
