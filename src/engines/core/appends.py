"""Append requests: one caller's events on their way into a commit, and the answer to it.

Owns the limits of a request and all of it that can be prepared before it queues. Leaves packing and writing
to `core/committer.py`, recognising what was appended before to `core/repeats.py`. A request is checked
here, before the queue, so one bad request cannot fail its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final

import msgspec

from engines.codec import escaped_bytes
from engines.core.commits import SALT_BYTES, EventIds, canonical_client_id, item_text, leaf_line
from engines.core.idempotency import Request
from engines.core.repeats import Repeats
from engines.errors import Conflict, EnginesError, Invalid, TooLarge
from engines.ids import Ids
from engines.ports.documents import OPS_MAX, Doc

EVENTS_MAX: Final = 500
# Counted as `codec.escaped_bytes` of each event's text. What a commit adds to its events stays below the
# rest of the 384 KiB that a document may hold: at most 107 bytes an event and 600 for itself.
EVENT_BYTES_MAX: Final = 256 * 1024
# The commit and the request's own marker take two of the ops of a write.
CLIENT_IDS_MAX: Final = OPS_MAX - 2
# Of an entry that waits: its salt, its line of the digest and the objects around them, as measured.
ENTRY_BYTES: Final = 220
_SALTS_A_DRAW: Final = 64


class Entry(msgspec.Struct, frozen=True):
    """One event to append. `body`: the text of a JSON object, kept byte for byte.

    `event_id`: a client's own id, a canonical UUID whose version is not 8; the body then says it too.
    `digest`: what a repeat under that id must equal; by default a digest of the body.
    """

    body: str
    event_id: str | None = None
    digest: str | None = None


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Where a request's events stand, in its order. An id that was known has its first position.

    `first`: the first entry's position. `at_ms`: when they were written. `replayed`: an identical request
    with this Idempotency-Key did it before.
    """

    first: int
    event_ids: tuple[str, ...]
    positions: tuple[int, ...]
    at_ms: int
    replayed: bool = False


class Append(msgspec.Struct, eq=False):
    """One request in the queue. Made by `Preparation`."""

    items: list[str]
    lines: list[str]
    # Bytes once escaped, or for a small request an upper bound of them that costs no count.
    size: int
    deadline_s: float
    future: asyncio.Future[Appended]
    expected_position: int | None = None
    repeats: Repeats | None = None
    # Whether a write of it lost its reply and may yet land.
    in_doubt: bool = False

    @property
    def held_bytes(self) -> int:
        """What it takes of this process's memory while it waits."""
        return self.size + ENTRY_BYTES * len(self.items)

    def place(self, first: int) -> tuple[int, ...]:
        """The position of each entry, if what is new of it begins at `first`."""
        if self.repeats is not None:
            return self.repeats.place(first)
        return (first,) if len(self.items) == 1 else tuple(range(first, first + len(self.items)))

    def settle(self, positions: tuple[int, ...], at: int, ids: EventIds, *, replayed: bool = False) -> None:
        """Answer the caller, if it still waits."""
        if self.future.done():
            return
        if self.repeats is not None:
            event_ids = self.repeats.ids_at(positions, ids)
        else:
            event_ids = tuple(map(ids.at, positions))
        self.future.set_result(Appended(positions[0], event_ids, positions, at, replayed))

    def fail(self, error: EnginesError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def recall(self, docs: dict[str, Doc], ids: EventIds) -> None:
        """Take note of markers found, and answer the request if they say all of it."""
        if self.repeats is None:
            return
        try:
            if (first := self.repeats.replay(docs)) is not None:
                self.settle(*first, ids, replayed=True)
            elif (at := self.repeats.recall(docs)) is not None:
                self.settle(self.repeats.place(0), at, ids)
        except EnginesError as error:
            self.fail(error)


class Preparation:
    """Checks requests and makes everything of them that does not depend on their position.

    Belongs to the event loop of its first call.
    """

    __slots__ = ("_create_future", "_ids", "_salts")

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        self._create_future: Callable[[], asyncio.Future[Appended]] | None = None
        self._salts: list[tuple[bytes, str]] = []

    def prepare(
        self,
        entries: Sequence[Entry],
        *,
        deadline_s: float,
        expected_position: int | None = None,
        request: Request | None = None,
    ) -> Append:
        """Raises TooLarge, Conflict (one id with two contents), Invalid (an id that is not a client's)."""
        if not 0 < len(entries) <= EVENTS_MAX:
            raise TooLarge(f"one request appends 1 to {EVENTS_MAX} events")
        repeats = None
        if request is not None or _has_client_ids(entries):
            entries, repeats = _distinct(entries, request)
        items: list[str] = []
        lines: list[str] = []
        size = 0
        for entry in entries:
            body = entry.body
            assert body[0] == "{", "a JSON object's text, without space around it"
            assert body[-1] == "}", "a JSON object's text, without space around it"
            data = body.encode()
            size += 2 * len(data) + 2  # No byte takes more than two once it is escaped.
            salt, salt_text = (self._salts or self._draw()).pop()
            items.append(item_text(body, salt_text, entry.event_id))
            lines.append(leaf_line(sha256(salt + data).hexdigest(), entry.event_id))
        if size > EVENT_BYTES_MAX:
            size = _exact_size(entries)
        if self._create_future is None:
            self._create_future = asyncio.get_running_loop().create_future
        return Append(items, lines, size, deadline_s, self._create_future(), expected_position, repeats)

    def _draw(self) -> list[tuple[bytes, str]]:
        """Salts are drawn many at a time: a system call for each costs as much as its digest."""
        drawn = self._ids.token(SALT_BYTES * _SALTS_A_DRAW)
        salts = [drawn[start : start + SALT_BYTES] for start in range(0, len(drawn), SALT_BYTES)]
        self._salts = [(salt, salt.hex()) for salt in salts]
        return self._salts


def _exact_size(entries: Sequence[Entry]) -> int:
    """Raises TooLarge."""
    size = sum(escaped_bytes(entry.body) for entry in entries)
    if size > EVENT_BYTES_MAX:
        raise TooLarge(
            f"one request appends at most {EVENT_BYTES_MAX} bytes, quotes and backslashes counted twice"
        )
    return size


def _has_client_ids(entries: Sequence[Entry]) -> bool:
    for entry in entries:  # noqa: SIM110 (a generator for each append costs more than the append's digest)
        if entry.event_id is not None:
            return True
    return False


def _distinct(entries: Sequence[Entry], request: Request | None) -> tuple[list[Entry], Repeats]:
    """The entries without repeats of an id among them, and what makes a repeat of the request recognised."""
    distinct: list[Entry] = []
    digests: list[str | None] = []
    order: list[int] = []
    index_by_id: dict[str, int] = {}
    for entry in entries:
        digest = None if entry.event_id is None else _digest(entry)
        index = len(distinct)
        if entry.event_id is not None:
            index = index_by_id.setdefault(entry.event_id, index)
        order.append(index)
        if index == len(distinct):
            distinct.append(entry)
            digests.append(digest)
        elif digests[index] != digest:
            raise Conflict("one event_id stands in a request with two contents", field="event_id")
    if len(index_by_id) > CLIENT_IDS_MAX:
        raise TooLarge(f"at most {CLIENT_IDS_MAX} events of one request may bring their own event_id")
    repeats = Repeats(
        [entry.event_id for entry in distinct],
        digests,
        order if len(distinct) < len(entries) else None,
        request,
        count=len(index_by_id) + (request is not None),
    )
    return distinct, repeats


def _digest(entry: Entry) -> str:
    assert entry.event_id is not None
    if canonical_client_id(entry.event_id) != entry.event_id:
        raise Invalid("an event_id is a UUID in its canonical form, not of version 8", field="event_id")
    return entry.digest or sha256(entry.body.encode()).hexdigest()
