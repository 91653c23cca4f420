"""Append requests: one caller's events on their way into a commit, and the answer to it.

Owns the limits of a request, what is prepared of it before it queues, and its positions once it is placed.
Leaves packing and writing to `core/committer.py`. A request is checked here, before the queue, so one bad
request cannot fail its neighbours.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from engines.codec import Codec, escaped_bytes
from engines.core.commits import (
    ID_MARKER,
    SALT_BYTES,
    EventIds,
    IdMarker,
    canonical_client_id,
    item_text,
    leaf_digest,
    leaf_line,
    marker_key,
)
from engines.core.idempotency import Request, first_answer, marker_put
from engines.errors import Conflict, EnginesError, Invalid, TooLarge
from engines.ids import Ids
from engines.ports.documents import ABSENT, OPS_MAX, Doc, Put

EVENTS_MAX: Final = 500
# Counted as `escaped_bytes` of each event's text. What a commit adds to its events stays below the rest of
# the 384 KiB that a document may hold: at most 107 bytes an event and 300 for itself.
EVENT_BYTES_MAX: Final = 256 * 1024
# The commit and the request's own marker take two of the ops of a write.
CLIENT_IDS_MAX: Final = OPS_MAX - 2


class Entry(msgspec.Struct, frozen=True):
    """One event to append. `body`: the text of a JSON object, kept byte for byte.

    `event_id`: a client's own id, a canonical UUID whose version is not 8; the body then says it too.
    `digest`: what a repeat under that id must equal; by default a digest of the body.
    """

    body: str
    event_id: str | None = None
    digest: str | None = None


class Appended(msgspec.Struct, frozen=True):
    """Where a request's events stand, in its order. An id that was known has its first position.

    `at_ms`: when they were written. `replayed`: an identical request with this Idempotency-Key did it before.
    """

    first: int
    event_ids: tuple[str, ...]
    positions: tuple[int, ...]
    at_ms: int
    replayed: bool = False


class _Answer(msgspec.Struct, frozen=True, tag_field="schema", tag="appended/1"):
    """What an idempotency marker keeps of `Appended`; the ids follow from the positions and the request."""

    at: int
    runs: list[tuple[int, int]]


_ANSWER: Final = Codec(_Answer)


class Append:
    """One request in the queue. Made by `prepare`."""

    __slots__ = (
        "client_ids",
        "deadline_s",
        "expected_position",
        "future",
        "in_doubt",
        "known",
        "looked_before",
        "order",
        "request",
        "size",
        "unique",
    )

    def __init__(
        self,
        unique: list[_Prepared],
        *,
        order: tuple[int, ...] | None,
        client_ids: int,
        size: int,
        request: Request | None,
        expected_position: int | None,
        deadline_s: float,
    ) -> None:
        self.unique = unique
        self.order = order  # For each entry the index of its event, where an id stood twice in the request.
        self.client_ids = client_ids
        self.size = size
        self.request = request
        self.expected_position = expected_position
        self.deadline_s = deadline_s
        self.future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        # Ids that were found, with where; the segment before which ids were looked up; whether a write of it
        # lost its reply.
        self.known: dict[str, IdMarker] = {}
        self.looked_before = 0
        self.in_doubt = False

    def fresh(self) -> list[_Prepared]:
        """The events that are not known to stand in the log."""
        if not self.known:
            return self.unique
        return [event for event in self.unique if event.event_id not in self.known]

    def place(self, first: int) -> tuple[int, ...]:
        """The position of each entry, if the fresh events begin at `first`."""
        if not self.known:
            positions = tuple(range(first, first + len(self.unique)))
        else:
            positions = tuple(self._place_beside_known(first))
        return positions if self.order is None else tuple(positions[index] for index in self.order)

    def _place_beside_known(self, first: int) -> Sequence[int]:
        positions: list[int] = []
        for event in self.unique:
            marker = None if event.event_id is None else self.known.get(event.event_id)
            if marker is None:
                positions.append(first)
                first += 1
            else:
                positions.append(marker.position)
        return positions

    def marker_keys(self) -> list[str]:
        """The keys under which this request or its ids may stand already."""
        if self.client_ids == 0 and self.request is None:
            return []
        keys = [marker_key(event.event_id) for event in self.fresh() if event.event_id is not None]
        return keys if self.request is None else [*keys, self.request.key]

    def marker_puts(self, first: int, at: int, now_s: float) -> list[Put]:
        """The markers that go beside a commit in which the fresh events begin at `first`."""
        puts: list[Put] = []
        if self.client_ids:
            for position, event in enumerate(self.fresh(), first):
                if event.event_id is not None:
                    marker = IdMarker(position, at, event.digest)
                    puts.append(Put(marker_key(event.event_id), ID_MARKER.encode(marker), ABSENT))
        if self.request is not None:
            answer = _ANSWER.encode(_Answer(at, _runs(self.place(first))))
            puts.append(marker_put(self.request, now=now_s, created=True, answer=answer))
        return puts

    def settle(self, positions: tuple[int, ...], at: int, ids: EventIds, *, replayed: bool = False) -> None:
        """Answer the caller, if it still waits."""
        if not self.future.done():
            event_ids = self._event_ids(positions, ids)
            self.future.set_result(Appended(positions[0], event_ids, positions, at, replayed))

    def fail(self, error: EnginesError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def recall(self, docs: dict[str, Doc], ids: EventIds) -> None:
        """Take note of markers found, and answer the request if they say all of it."""
        try:
            if self.request is not None and (doc := docs.get(self.request.key)) is not None:
                answer = _ANSWER.decode(bytes(first_answer(doc, self.request).answer).decode())
                self.settle(_positions(answer.runs), answer.at, ids, replayed=True)
                return
            for event in self.fresh() if self.client_ids else ():
                if event.event_id is not None and (doc := docs.get(marker_key(event.event_id))) is not None:
                    self._recall_event(event, ID_MARKER.decode(doc.body))
        except EnginesError as error:
            self.fail(error)
            return
        if len(self.known) == len(self.unique):
            first = self.known[str(self.unique[0].event_id)]
            self.settle(self.place(0), first.at, ids)

    def _recall_event(self, event: _Prepared, marker: IdMarker) -> None:
        if marker.digest is not None and marker.digest != event.digest:
            raise Conflict("this event_id was appended before with other contents", field="event_id")
        self.known = {**self.known, str(event.event_id): marker}

    def _event_ids(self, positions: tuple[int, ...], ids: EventIds) -> tuple[str, ...]:
        if self.client_ids == 0:
            return tuple(map(ids.at, positions))
        order = range(len(self.unique)) if self.order is None else self.order
        own = [self.unique[index].event_id for index in order]
        return tuple(own[index] or ids.at(position) for index, position in enumerate(positions))


class _Prepared(msgspec.Struct, frozen=True, gc=False):
    """An event as it will be stored, whatever its position."""

    item: str
    leaf_line: str
    event_id: str | None
    digest: str | None


def prepare(
    entries: Sequence[Entry],
    *,
    expected_position: int | None,
    request: Request | None,
    ids: Ids,
    deadline_s: float,
) -> Append:
    """Check a request and make everything of it that does not depend on its position.

    Raises TooLarge past a limit, Conflict for one id with two contents, Invalid for an id that is not a
    client's.
    """
    assert entries, "a request has at least one event"
    if len(entries) > EVENTS_MAX:
        raise TooLarge(f"one request appends at most {EVENTS_MAX} events")
    salts = ids.token(SALT_BYTES * len(entries))
    unique: list[_Prepared] = []
    index_by_id: dict[str, int] = {}
    order: list[int] = []
    size = 0
    for entry in entries:
        body, event_id = entry.body, entry.event_id
        if event_id is not None and (index := index_by_id.get(event_id)) is not None:
            if unique[index].digest != _entry_digest(entry):
                raise Conflict("one event_id stands in a request with two contents", field="event_id")
            order.append(index)
            continue
        assert body[:1] + body[-1:] == "{}", "a JSON object's text, without space around it"
        size += escaped_bytes(body)
        salt = salts[len(unique) * SALT_BYTES : (len(unique) + 1) * SALT_BYTES]
        order.append(len(unique))
        digest = None
        if event_id is not None:
            digest = _register(entry, event_id, index_by_id, len(unique))
        line = leaf_line(leaf_digest(salt, body.encode()), event_id)
        unique.append(_Prepared(item_text(body, salt.hex(), event_id), line, event_id, digest))
    if size > EVENT_BYTES_MAX:
        raise TooLarge(
            f"one request appends at most {EVENT_BYTES_MAX} bytes, with quotes and backslashes counted twice"
        )
    if len(index_by_id) > CLIENT_IDS_MAX:
        raise TooLarge(f"at most {CLIENT_IDS_MAX} events of one request may bring their own event_id")
    return Append(
        unique,
        order=tuple(order) if len(unique) < len(entries) else None,
        client_ids=len(index_by_id),
        size=size,
        request=request,
        expected_position=expected_position,
        deadline_s=deadline_s,
    )


def _register(entry: Entry, event_id: str, index_by_id: dict[str, int], index: int) -> str:
    if canonical_client_id(event_id) != event_id:
        raise Invalid(
            "a client's event_id is a UUID in its canonical form, not of version 8", field="event_id"
        )
    index_by_id[event_id] = index
    return _entry_digest(entry)


def _entry_digest(entry: Entry) -> str:
    return entry.digest or hashlib.sha256(entry.body.encode()).hexdigest()


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Positions as (first, count) of each run of successive ones."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and position == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((position, 1))
    return runs


def _positions(runs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(position for first, count in runs for position in range(first, first + count))
