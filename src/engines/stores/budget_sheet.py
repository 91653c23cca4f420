"""A sheet: one commit of a budget while it is being made.

Owns the working copy of everything that the changes of one commit read and write, and turns it into the
ops of one atomic write. Each document is written under the version that was read, so a sheet made of
documents that did not stand together at one moment is a Conflict. Leaves what a change does to
`stores/budget_changes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import msgspec

from engines.codec import escaped_bytes
from engines.core.commits import Turn
from engines.core.idempotency import Request, marker_put
from engines.core.place import Place
from engines.errors import Conflict
from engines.ids import Ids
from engines.ports.documents import ABSENT, BODY_BYTES_MAX, OPS_MAX, WRITE_BYTES_MAX, Doc, Match, Op, Put
from engines.scope import RequestContext
from engines.stores.budget_accounts import Accounts
from engines.stores.budget_policy import Dimensions, Policy
from engines.stores.budget_records import (
    CELL,
    HEAD,
    HEAD_KEY,
    POLICY,
    POLICY_KEY,
    Cell,
    Head,
    Sums,
    cell_key,
    day_of,
)

# While a tenant is moved the mover's journal takes an op, and the head takes one always.
CHANGE_OPS_MAX: Final = OPS_MAX - 2
# More than one of several changes puts, as stored: a settlement of the longest fields, which passes all the
# limits that a policy holds, hard and soft, takes 180 kB. A policy is a commit of its own.
CHANGE_BYTES_MAX: Final = 256 * 1024
# What a sheet may hold and take one change more; the head takes what one document may.
FULL_BYTES: Final = WRITE_BYTES_MAX - BODY_BYTES_MAX - CHANGE_BYTES_MAX
EVENT_TYPE: Final = "budget"


class Announcements(Protocol):
    """How a change tells the spine: by a message in the change's own atomic write, delivered from there."""

    def announcing(
        self, context: RequestContext, place: Place, partition: str
    ) -> AbstractAsyncContextManager[None]:
        """The block of a write that holds messages. Raises Throttled while too many wait."""
        ...

    def message(
        self, context: RequestContext, record_key: str, version: int, event_type: str, payload: dict[str, Any]
    ) -> Put:
        """The op beside the change. The key, which a record of the tenant has once, tells messages apart."""
        ...


class Sheet:
    """`docs` are what was read, the head and the policy among them. `write_id` is that of the write to be."""

    def __init__(
        self, docs: Mapping[str, Doc], announcements: Announcements, ids: Ids, *, now_s: float, write_id: str
    ) -> None:
        """Raises Conflict where head and policy were not read at one moment."""
        self.docs = dict(docs)
        self.write_id = write_id
        self._announcements = announcements
        head = docs.get(HEAD_KEY)
        self.head = Head(ledger_id=ids.write_id()) if head is None else HEAD.decode(head.body)
        policy = docs.get(POLICY_KEY)
        if (None if policy is None else policy.version) != self.head.policy:
            raise Conflict("the policy was replaced meanwhile", keys=(HEAD_KEY,))
        self.policy: Policy | None = None if policy is None else POLICY.decode(policy.body).record
        self.at_ms = max(int(now_s * 1000), self.head.at_ms)
        self.accounts = Accounts(self.head, self.policy, self.at_ms)
        self._puts: dict[str, Put] = {}
        self._cells: dict[str, Cell] = {}
        # As stored. What is put again counts again, which errs on the safe side.
        self._bytes = 0
        # How many messages it holds.
        self.told = 0

    @property
    def now_s(self) -> float:
        return self.at_ms / 1000

    @property
    def is_blank(self) -> bool:
        """Nothing is to be written."""
        return not self._puts

    def has_room(self, ops: int) -> bool:
        """For one change more, however much it says."""
        if self._bytes > FULL_BYTES:
            return False
        return len(self._puts) + len(self._cells) + ops <= CHANGE_OPS_MAX

    def writes(self, key: str) -> bool:
        return key in self._puts

    def body(self, key: str) -> str | None:
        """What stands at `key`, or will once this is written. The key was among those read."""
        put = self._puts.get(key)
        if put is not None:
            return put.body
        doc = self.docs.get(key)
        return None if doc is None else doc.body

    def put(self, key: str, body: str, *, expires_at: int | None = None) -> None:
        doc = self.docs.get(key)
        when = ABSENT if doc is None else Match(doc.version)
        self._add(Put(key, body, when, expires_at=expires_at))

    def mark(self, request: Request, *, created: bool, answer: str) -> None:
        """Leave the marker of an Idempotency-Key."""
        self._add(marker_put(request, now=self.now_s, created=created, answer=answer))

    def tell(self, context: RequestContext, payload: dict[str, Any]) -> None:
        """Have the spine told, once this is written: as versions of the ledger, so in their order."""
        self.told += 1
        head = self.head
        head.messages += 1
        self._add(self._announcements.message(context, head.ledger_id, head.messages, EVENT_TYPE, payload))

    def cell(self, use: Dimensions) -> str:
        """Where today's totals of this use stand."""
        return cell_key(day_of(self.at_ms), use)

    def count(self, use: Dimensions, sums: Sums) -> None:
        """Add to today's totals of this use, whose document was read."""
        key = self.cell(use)
        cell = self._cells.get(key)
        if cell is None:
            doc = self.docs.get(key)
            cell = Cell(day_of(self.at_ms), use, Sums(), 0) if doc is None else CELL.decode(doc.body)
        counted = Cell(cell.day, use, cell.sums.plus(sums), self.head.position)
        self._cells[key] = counted
        self._bytes += escaped_bytes(CELL.encode(counted))

    def ops(self, turn: Turn | None) -> list[Op]:
        """The atomic write: the head first."""
        head = msgspec.structs.replace(self.head, commits=self.head.commits + 1, at_ms=self.at_ms, turn=turn)
        cells = self._cells
        self._cells = {}
        for key, cell in cells.items():
            self.put(key, CELL.encode(cell))
        self.put(HEAD_KEY, HEAD.encode(head))
        return [self._puts.pop(HEAD_KEY), *self._puts.values()]

    def _add(self, put: Put) -> None:
        self._puts[put.key] = put
        self._bytes += escaped_bytes(put.body)
