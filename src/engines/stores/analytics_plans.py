"""Plans of analytics requests: what was decided of one before anything of it was appended, and its results.

Owns the plan that a request with an Idempotency-Key leaves, how its events are made into parts, and what is
told of each. Leaves deciding and appending to `stores/analytics.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from engines.codec import Codec
from engines.core.idempotency import Request
from engines.core.keys import join
from engines.core.log import Entry
from engines.core.place import Place
from engines.errors import EnginesError, IdempotencyKeyReused
from engines.stores.analytics_events import GateStatus, GateVerdict
from engines.stores.attribution import ContractRef
from engines.stores.events import AppendedEvents

# A part fits into one request to the log however long the ids are that the context adds to each event.
PART_EVENTS_MAX: Final = 250
PART_BYTES_MAX: Final = 160 * 1024
# A thousand refusals of this size fit into one document, the plan.
FIELD_CHARS_MAX: Final = 80
DETAIL_CHARS_MAX: Final = 200
STORED: Final = 201


class ItemProblem(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Why one event was not taken in: the members of a problem document that are the event's own."""

    code: str
    detail: str
    field: str | None = None


class IngestedEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What became of one event. `status` is 201 where it stands on the spine, else its problem's."""

    status: int
    event_id: str | None = None
    position: int | None = None
    cursor: str | None = None
    gate_status: GateVerdict | None = None
    problem: ItemProblem | None = None


class Ingested(msgspec.Struct, frozen=True, kw_only=True):
    """The results in the order of the request. `replayed`: an identical request was taken in before."""

    events: tuple[IngestedEvent, ...]
    accepted: int
    refused: int
    replayed: bool = False


class Plan(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="analytics_plan/1", omit_defaults=True
):
    """What was decided about a request before anything of it was appended.

    `request` is its digest. `refused` goes by an event's place in the request; what the gates said in
    `gates` holds for all that were not refused; `parts` says how many of these make each part, in order.
    """

    request: str
    refused: dict[int, IngestedEvent] = {}
    gates: GateStatus | None = None
    contracts: dict[str, ContractRef] = {}
    parts: list[int] = []


PLAN: Final = Codec(Plan)


def parts_of(entries: Sequence[Entry]) -> Iterator[int]:
    """How many successive entries make each part."""
    count = size = 0
    for entry in entries:
        entry_size = 2 * len(entry.body.encode())
        is_full = count == PART_EVENTS_MAX or size + entry_size > PART_BYTES_MAX
        if count > 0 and (is_full or entry.event_id is not None):
            yield count
            count = size = 0
        if entry.event_id is not None:
            yield 1
            continue
        count, size = count + 1, size + entry_size
    if count > 0:
        yield count


async def standing_plan(place: Place, request: Request) -> Plan | None:
    """What was decided about the same request. Raises IdempotencyKeyReused."""
    doc = await place.documents.get(await place.partition(request.key), request.key)
    if doc is None:
        return None
    plan = PLAN.decode(doc.body)
    if plan.request != request.digest:
        raise IdempotencyKeyReused(
            "this Idempotency-Key was used with another request", field="Idempotency-Key"
        )
    return plan


def part_request(request: Request | None, number: int) -> Request | None:
    """By which the log knows one part of a request again."""
    if request is None:
        return None
    return Request(
        join("k", hashlib.sha256(f"{request.key} {number}".encode()).hexdigest()[:40]), request.digest
    )


def results_of(
    outcome: AppendedEvents | EnginesError, count: int, gates: GateStatus | None
) -> Sequence[IngestedEvent]:
    """What became of the `count` events of a part."""
    if isinstance(outcome, EnginesError):
        return [refusal_of(outcome)] * count
    gate_status = None if gates is None else gates.status
    return [
        IngestedEvent(
            status=STORED,
            event_id=event.event_id,
            position=event.position,
            cursor=event.cursor,
            gate_status=gate_status,
        )
        for event in outcome.events
    ]


def refusal_of(error: EnginesError) -> IngestedEvent:
    field = None if error.field is None else _shortened(error.field, FIELD_CHARS_MAX)
    problem = ItemProblem(error.code, _shortened(error.detail, DETAIL_CHARS_MAX), field)
    return IngestedEvent(status=error.status, problem=problem)


def _shortened(text: str, chars_max: int) -> str:
    """A name that a client chose may be as long as its request is."""
    return text[:chars_max].encode("ascii", "replace").decode()
