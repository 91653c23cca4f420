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

from engines.core.commits import Turn
from engines.core.idempotency import Request, marker_put
from engines.core.place import Place
from engines.errors import Conflict
from engines.ids import Ids
from engines.ports.documents import ABSENT, OPS_MAX, Doc, Match, Op, Put
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
        self._puts[key] = Put(key, body, when, expires_at=expires_at)

    def mark(self, request: Request, *, created: bool, answer: str) -> None:
        """Leave the marker of an Idempotency-Key."""
        self._puts[request.key] = marker_put(request, now=self.now_s, created=created, answer=answer)

    def tell(self, context: RequestContext, payload: dict[str, Any]) -> None:
        """Have the spine told, once this is written: as versions of the ledger, so in their order."""
        self.told += 1
        head = self.head
        head.messages += 1
        put = self._announcements.message(context, head.ledger_id, head.messages, EVENT_TYPE, payload)
        self._puts[put.key] = put

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
        self._cells[key] = Cell(cell.day, use, cell.sums.plus(sums), self.head.position)

    def ops(self, turn: Turn | None) -> list[Op]:
        """The atomic write: the head first."""
        head = msgspec.structs.replace(self.head, commits=self.head.commits + 1, at_ms=self.at_ms, turn=turn)
        cells = self._cells
        self._cells = {}
        for key, cell in cells.items():
            self.put(key, CELL.encode(cell))
        self.put(HEAD_KEY, HEAD.encode(head))
        return [self._puts.pop(HEAD_KEY), *self._puts.values()]
