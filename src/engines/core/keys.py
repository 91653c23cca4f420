"""Partition names and document keys: the one place where they are put together.

Owns the separator, the shard function and the limits on keys. A tenant leaves the process only as a
partition name that `partition` built. Leaves what a key means to the store that asks for it.
"""

from __future__ import annotations

import re
import zlib
from typing import Final

from engines.errors import Invalid
from engines.ports.documents import KEY_BYTES_MAX, PARTITION_BYTES_MAX

# No identifier contains it and it sorts below every character that one may contain, so that `a!` comes
# before `a-b!` exactly as `a` comes before `a-b`.
SEPARATOR: Final = "!"
_AFTER_SEPARATOR: Final = '"'
# `o!{key}!{version}` must still fit into a key.
RECORD_KEY_BYTES_MAX: Final = 440
SHARD_COUNT_DEFAULT: Final = 16
NO_PROJECT: Final = "-"

# A letter, then printable ASCII without the space and `/ \ ? #`.
_ADMISSIBLE: Final = re.compile(r"[A-Za-z][!\"$-.0->@-\[\]-~]*")


def join(*parts: str) -> str:
    """One document key of a type letter, an anchor and what tells records apart within it."""
    return SEPARATOR.join(parts)


def record_key(*parts: str) -> str:
    """`join` for a record. Raises Invalid where the parts together are too long to be kept."""
    key = SEPARATOR.join(parts)
    if len(key) > RECORD_KEY_BYTES_MAX:
        raise Invalid(f"the ids together are longer than {RECORD_KEY_BYTES_MAX} characters", field="key")
    return key


def within(*parts: str) -> tuple[str, str]:
    """The exclusive bounds (above, below) of all keys that `join(*parts, …)` can make."""
    prefix = SEPARATOR.join(parts)
    return prefix + SEPARATOR, prefix + _AFTER_SEPARATOR


def shard_of(anchor: str, shard_count: int) -> int:
    """The shard in which everything anchored at `anchor` lies."""
    return zlib.crc32(anchor.encode()) % shard_count


def partition(kind: str, tenant_id: str, env: str, shard: int | str, *, generation: int = 0) -> str:
    """`{kind}.{tenant}.{env}.{shard}`, and a generation from 1 where a log returned to a backend."""
    name = f"{kind}.{tenant_id}.{env}.{shard}"
    return name if generation == 0 else f"{name}.g{generation}"


def check_key(key: str) -> bool:
    """Whether the waist admits `key`."""
    return _admissible(key, KEY_BYTES_MAX)


def check_partition(name: str) -> bool:
    """Whether the waist admits `name`."""
    return _admissible(name, PARTITION_BYTES_MAX)


def _admissible(text: str, bytes_max: int) -> bool:
    return len(text) <= bytes_max and _ADMISSIBLE.fullmatch(text) is not None
