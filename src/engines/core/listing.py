"""Lists of records: one page of the documents under a prefix, in key order, filtered, with a cursor.

Owns where a page stops and what its cursor says. A page stops at its limit, at about 1 MiB, and, filtered,
after so many documents looked at that a caller is better answered with what was found. Leaves the
meaning of a document to its store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

from engines.core.cursor import Cursors
from engines.core.documents import Documents
from engines.core.keys import within
from engines.errors import Invalid
from engines.ports.documents import PAGE_BYTES, SCAN_LIMIT_MAX, Doc

T = TypeVar("T")

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1_000
LOOKED_AT_MAX: Final = 10_000
# Each reads at most about 1 MiB; documents of 1 kB and less meet `LOOKED_AT_MAX` first.
SCANS_MAX: Final = 24


class Listed(msgspec.Struct, Generic[T], frozen=True):
    """One page. `after` goes on from its end; None, and only None, means that there is nothing more."""

    items: tuple[T, ...]
    after: str | None


class Window(msgspec.Struct, frozen=True):
    """The part of a list that a caller asks for."""

    limit: int = LIMIT_DEFAULT
    after: str | None = None
    descending: bool = False

    def checked(self) -> Window:
        """Raises Invalid for a limit outside 1 to `LIMIT_MAX`."""
        if not 1 <= self.limit <= LIMIT_MAX:
            raise Invalid(f"a limit is a whole number from 1 to {LIMIT_MAX}", field="limit")
        return self


START: Final = Window()


async def list_records(
    documents: Documents,
    partition: str,
    prefix: tuple[str, ...],
    read: Callable[[Doc], T | None],
    *,
    cursors: Cursors,
    window: Window,
    selective: bool = False,
    first: str | None = None,
) -> Listed[T]:
    """The records under `prefix`; `read` makes one of its document, or None to leave it out.

    `selective` says that many are left out, so that larger scans pay; `first`, a document key, that whatever
    stands before it is. Raises Invalid for a limit out of bounds and for a cursor of another list.
    """
    window.checked()
    above, below = within(*prefix)
    after = None if window.after is None else cursors.key(above, window.after)
    page = _PageBuilder[T](window.limit)
    for _ in range(SCANS_MAX):
        found = await documents.scan(
            partition,
            above=max(above, first or above, above if after is None or window.descending else after),
            below=below if after is None or not window.descending else after,
            limit=SCAN_LIMIT_MAX if selective else window.limit,
            reverse=window.descending,
        )
        for doc in found.docs:
            item = read(doc)
            if item is not None and page.full:
                return page.stopped_after(cursors.of_key(above, after or above))
            page.look_at(doc, item)
            after = doc.key
        if found.resume is None:
            return page.ended()
        after = found.resume
        if page.full or page.looked_at >= LOOKED_AT_MAX:
            break
    assert after is not None
    return page.stopped_after(cursors.of_key(above, after))


class _PageBuilder(Generic[T]):
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: list[T] = []
        self._bytes = 0
        self.looked_at = 0

    @property
    def full(self) -> bool:
        return len(self._items) == self._limit or self._bytes >= PAGE_BYTES

    def look_at(self, doc: Doc, item: T | None) -> None:
        self.looked_at += 1
        if item is not None:
            self._items.append(item)
            self._bytes += len(doc.body)

    def stopped_after(self, cursor: str) -> Listed[T]:
        return Listed(tuple(self._items), cursor)

    def ended(self) -> Listed[T]:
        return Listed(tuple(self._items), None)
