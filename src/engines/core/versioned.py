"""Versioned records: a head that is replaced and the immutable versions it had, written together.

Owns the keys of versions, how many are kept and reading them back. Leaves the head's own meaning to its
store; the record itself carries its integer `version`, from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engines.core.documents import Documents
from engines.core.keys import join
from engines.ports.documents import ABSENT, ALWAYS, Delete, Doc, Op, Put

VERSIONS_KEPT_DEFAULT: Final = 100
# A version's number stands in its key in ten digits.
VERSION_MAX: Final = 10**10 - 1
# A lowered limit is caught up with over several writes, so that none exceeds the ops of one write.
PRUNED_PER_WRITE_MAX: Final = 20


def versions_prefix(key: str) -> tuple[str, str]:
    """What the keys of all versions of the record at `key` begin with, for `core.listing.list_records`."""
    return "v", key


def version_key(key: str, version: int) -> str:
    """Where version `version` of the record at `key` stands."""
    assert 1 <= version <= VERSION_MAX
    return join(*versions_prefix(key), f"{version:010d}")


def version_ops(
    key: str,
    body: str,
    version: int,
    *,
    kept: int = VERSIONS_KEPT_DEFAULT,
    oldest: int = 1,
    held_before: int | None = None,
    held: int | None = None,
) -> Sequence[Op]:
    """The ops that go beside the head's: this version in, those past `kept` out.

    `oldest` is the lowest version that may still stand; the store keeps it in the head (`oldest_after`).
    `held` is one that stays however old it is, `held_before` the one that stayed so until now.
    """
    outdated = {*range(oldest, oldest_after(version, kept=kept, oldest=oldest))}
    if held_before is not None and held_before < oldest:
        outdated.add(held_before)
    return (
        Put(version_key(key, version), body, ABSENT),
        *(Delete(version_key(key, number), ALWAYS) for number in sorted(outdated - {held})),
    )


def oldest_after(version: int, *, kept: int, oldest: int) -> int:
    """The lowest version that stands once `version` is written, but for one that is held."""
    assert kept >= 1
    return min(max(oldest, version - kept + 1), oldest + PRUNED_PER_WRITE_MAX)


async def read_version(documents: Documents, partition: str, key: str, version: int) -> Doc | None:
    """One immutable version; None where it never was or is no longer kept."""
    return await documents.get(partition, version_key(key, version))
