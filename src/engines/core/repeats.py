"""Repeats: how an append that was made before is recognised.

Owns the markers of client ids and the answer that an idempotency marker keeps, and what one request knows of
both. Leaves when they are looked up to `core/committer.py`. A request with neither ids of its own nor an
Idempotency-Key has no `Repeats` and costs nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from engines.codec import Codec
from engines.core.commits import EventIds
from engines.core.idempotency import Request, first_answer, marker_put
from engines.core.keys import join
from engines.errors import Conflict
from engines.ports.documents import ABSENT, Doc, Put


class IdMarker(msgspec.Struct, frozen=True, tag_field="schema", tag="event-id/1", omit_defaults=True):
    """Where and when a client's id was first appended, and what a repeat must equal (None once redacted)."""

    position: int
    at: int
    digest: str | None = None


class Answer(msgspec.Struct, frozen=True, tag_field="schema", tag="appended/1"):
    """What an idempotency marker keeps: when, and the positions as runs (first, count).

    The event ids follow from the positions and the request, which is the same one.
    """

    at: int
    runs: list[tuple[int, int]]


ID_MARKER: Final = Codec(IdMarker)
_ANSWER: Final = Codec(Answer)


def marker_key(event_id: str) -> str:
    return join("i", event_id)


class Repeats(msgspec.Struct, eq=False):
    """The ids of one request's events, its Idempotency-Key, and which of them were found.

    `event_ids`, `digests`: of each distinct event, None where the log mints the id. `order`: for each entry
    of the request the index of its event, where an id stood in it twice. `looked_before`: the segment
    before which they were looked up.
    """

    event_ids: list[str | None]
    digests: list[str | None]
    order: list[int] | None
    request: Request | None
    count: int
    known: dict[str, IdMarker] = {}
    looked_before: int = 0

    def fresh(self) -> list[int]:
        """The indices of the events that are not known to stand in the log."""
        return [index for index, event_id in enumerate(self.event_ids) if event_id not in self.known]

    def marker_keys(self) -> list[str]:
        """Where the markers stand, if they do."""
        keys = [marker_key(own) for own in self.event_ids if own is not None and own not in self.known]
        return keys if self.request is None else [*keys, self.request.key]

    def place(self, first: int) -> tuple[int, ...]:
        """The position of each entry, if the fresh events begin at `first`."""
        positions: list[int] = []
        for event_id in self.event_ids:
            marker = None if event_id is None else self.known.get(event_id)
            positions.append(first if marker is None else marker.position)
            first += marker is None
        return tuple(positions if self.order is None else [positions[index] for index in self.order])

    def ids_at(self, positions: Sequence[int], ids: EventIds) -> tuple[str, ...]:
        """The id of each entry."""
        order = range(len(self.event_ids)) if self.order is None else self.order
        return tuple(
            self.event_ids[index] or ids.at(position)
            for index, position in zip(order, positions, strict=True)
        )

    def puts(self, first: int, at: int, *, now_s: float) -> list[Put]:
        """The markers that go beside a commit in which the fresh events begin at `first`."""
        puts: list[Put] = []
        for position, index in enumerate(self.fresh(), first):
            if (event_id := self.event_ids[index]) is not None:
                marker = IdMarker(position, at, self.digests[index])
                puts.append(Put(marker_key(event_id), ID_MARKER.encode(marker), ABSENT))
        if self.request is not None:
            answer = _ANSWER.encode(Answer(at, _runs(self.place(first))))
            puts.append(marker_put(self.request, now=now_s, created=True, answer=answer))
        return puts

    def replay(self, docs: Mapping[str, Doc]) -> tuple[tuple[int, ...], int] | None:
        """Positions and time of the first answer, if `docs` has it. Raises IdempotencyKeyReused."""
        if self.request is None or (doc := docs.get(self.request.key)) is None:
            return None
        return replayed_answer(doc, self.request)

    def recall(self, docs: Mapping[str, Doc]) -> int | None:
        """Take note of the ids that `docs` has; when the first was appended, if now all are known.

        Raises Conflict for a known id with other contents.
        """
        known = dict(self.known)
        for event_id, digest in zip(self.event_ids, self.digests, strict=True):
            if event_id is None or (doc := docs.get(marker_key(event_id))) is None:
                continue
            marker = ID_MARKER.decode(doc.body)
            if marker.digest not in (None, digest):
                raise Conflict("this event_id was appended before with other contents", field="event_id")
            known.setdefault(event_id, marker)
        self.known = known
        first = self.event_ids[0]
        return known[first].at if first is not None and not self.fresh() else None


def replayed_answer(doc: Doc, request: Request) -> tuple[tuple[int, ...], int]:
    """Positions and time of a request's first answer, from its marker. Raises IdempotencyKeyReused."""
    answer = _ANSWER.decode(bytes(first_answer(doc, request).answer).decode())
    return tuple(at for first, count in answer.runs for at in range(first, first + count)), answer.at


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Positions as (first, count) of each run of successive ones."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and position == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((position, 1))
    return runs
