"""Entries of the control plane's change feed: which documents the change with each number touched.

Owns their keys and text, and how many are kept. Leaves writing and following them to `control/store.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from engines.codec import Codec
from engines.core.keys import join
from engines.ports.documents import ABSENT, ALWAYS, Delete, Op, Put

# A follower that is further behind than this starts over with empty caches.
FEED_KEPT: Final = 10_000


class _Touched(msgspec.Struct, frozen=True, tag_field="schema", tag="change/1"):
    """A feed entry: the document keys that a change touched."""

    keys: tuple[str, ...]


_FEED: Final = Codec(_Touched)


def feed_ops(number: int, keys: Sequence[str]) -> Sequence[Op]:
    """The feed's entry `number` in, and what is past the kept ones out."""
    entry = Put(feed_key(number), _FEED.encode(_Touched(tuple(keys))), ABSENT)
    if number <= FEED_KEPT:
        return (entry,)
    return (entry, Delete(feed_key(number - FEED_KEPT), ALWAYS))


def touched_keys(body: str) -> Sequence[str]:
    """What a stored entry names. Raises Corrupt."""
    return _FEED.decode(body).keys


def feed_key(number: int) -> str:
    return join("c", f"{number:020d}")


def feed_number(key: str) -> int:
    return int(key.rsplit("!", 1)[1])
