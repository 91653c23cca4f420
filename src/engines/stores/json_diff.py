"""What changed between two JSON values, member by member.

Owns the comparison and how much it may say. Lists are compared position by position: what was inserted at the
front changes every position behind it, which is exact, though not the shortest way to say it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, Final, Literal

import msgspec

# Of the changes' JSON. Each says its whole path, so that one long name over a long list makes gigabytes.
CHANGES_BYTES_MAX: Final = 1024 * 1024
# So often a comparison lets others run: so many values take a few milliseconds.
_VALUES_AT_ONCE: Final = 1_000
_MISSING: Final = object()


class Difference(msgspec.Struct, frozen=True):
    """One change, in the words of JSON Patch (RFC 6902). `path` is a JSON Pointer (RFC 6901)."""

    op: Literal["add", "remove", "replace"]
    path: str
    before: Any = None
    after: Any = None


async def differences(before: Any, after: Any) -> tuple[Difference, ...]:
    """Every smallest value that differs; past `CHANGES_BYTES_MAX` of them one change, of the whole.

    Depth is that of the values, which are bounded when stored, and so is the size of the whole.
    """
    found: list[Difference] = []
    size = 0
    for number, difference in enumerate(_compared(before, after, ()), 1):
        if number % _VALUES_AT_ONCE == 0:
            await asyncio.sleep(0)
        if difference is None:
            continue
        found.append(difference)
        size += len(msgspec.json.encode(difference))
        if size > CHANGES_BYTES_MAX:
            return (Difference("replace", "", before, after),)
    return tuple(found)


def _compared(before: Any, after: Any, path: tuple[str, ...]) -> Iterator[Difference | None]:
    """What became of each value; a None after each, whatever it holds, where a long walk can pause."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            yield from _compared(before.get(name, _MISSING), after.get(name, _MISSING), (*path, name))
    elif isinstance(before, list) and isinstance(after, list):
        for index, pair in enumerate(zip_longest(before, after, fillvalue=_MISSING)):
            yield from _compared(*pair, (*path, str(index)))
    elif before is _MISSING:
        yield Difference("add", _pointer(path), after=after)
    elif after is _MISSING:
        yield Difference("remove", _pointer(path), before=before)
    elif before != after or isinstance(before, bool) is not isinstance(after, bool):
        yield Difference("replace", _pointer(path), before, after)
    yield None


def _pointer(path: tuple[str, ...]) -> str:
    """Made only for what differs: a path may be longer than all values together."""
    return "".join(f"/{name.replace('~', '~0').replace('/', '~1')}" for name in path)
