"""What changed between two JSON values, member by member.

Owns the comparison. Lists are compared position by position: what was inserted at the front changes every
position behind it, which is exact, though not the shortest way to say it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

_MISSING: Final = object()


class Difference(msgspec.Struct, frozen=True):
    """One change, in the words of JSON Patch (RFC 6902). `path` is a JSON Pointer (RFC 6901)."""

    op: Literal["add", "remove", "replace"]
    path: str
    before: Any = None
    after: Any = None


def differences(before: Any, after: Any, path: str = "") -> Iterator[Difference]:
    """Every smallest value that differs; depth is that of the values, which are bounded when stored."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            pointer = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
            yield from _member(before.get(name, _MISSING), after.get(name, _MISSING), pointer)
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            yield from _member(_at(before, index), _at(after, index), f"{path}/{index}")
    elif before != after or isinstance(before, bool) is not isinstance(after, bool):
        yield Difference("replace", path, before, after)


def _member(before: Any, after: Any, pointer: str) -> Iterator[Difference]:
    if before is _MISSING:
        yield Difference("add", pointer, after=after)
    elif after is _MISSING:
        yield Difference("remove", pointer, before=before)
    else:
        yield from differences(before, after, pointer)


def _at(values: list[Any], index: int) -> Any:
    return values[index] if index < len(values) else _MISSING
