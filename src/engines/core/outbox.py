"""The outbox: what a change must tell the spine, written in the same atomic write as the change.

Owns the waiting documents (`o!{group}!{record key}!{version}!{salt}`), the bound on how many may wait, and
the relay that delivers and removes them. A crash between delivery and removal repeats the delivery under the
same event id, so the receiver recognises it: nothing is lost and nothing is doubled. Leaves what delivery is
to its user; the first is the control plane's audit.

A group (a tenant) whose delivery fails waits alone: the relay passes it over until its pause has ended. What
waits is delivered and removed in small portions, so that a slow receiver gets ahead whatever waits for it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

import msgspec
import structlog

from engines.clock import Clock
from engines.core.documents import Documents
from engines.core.keys import SEPARATOR, join, within
from engines.core.lease import Lease
from engines.errors import EnginesError, Throttled
from engines.ports.documents import ABSENT, ALWAYS, OPS_MAX, Delete, Doc, Put

# Waiting documents of one group, past which its changes are Throttled.
WAITING_MAX: Final = 10_000
# Beyond it, those of changes that mend what the others wait for.
MENDING_MAX: Final = 100
BATCH_MAX: Final = OPS_MAX
# Messages of a group that are delivered, and then removed, together. Their bytes, as an append counts them:
# half of what one takes, as an event says more than its message.
PORTION_MAX: Final = 25
PORTION_BYTES_MAX: Final = 128 * 1024
# Of a waiting document's salt: 64 random bits.
SALT_CHARS: Final = 16
# How often a relay looks without being told, and how long it leaves a group whose delivery failed.
POLL_S: Final = 1.0
PAUSE_S: Final = 1.0
PAUSE_MAX_S: Final = 30.0
COUNT_AGE_MAX_S: Final = 1.0
# Of a portion. What takes longer is tried again later: a delivery that was cut off is recognised by its event
# ids. A group that took as long in one pass has its next turn in the next.
DELIVERY_TIMEOUT_S: Final = 5.0

_NAMESPACE: Final = uuid.UUID("5f2f1e3c-6f0e-5b39-9c8a-1d1b8d7c0a44")
_PREFIX: Final = "o"

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Entry(msgspec.Struct, frozen=True):
    """One waiting message. `event_id` is the same at every attempt; `body` is the user's own JSON text."""

    group: str
    event_id: str
    body: str
    key: str


class Deliver(Protocol):
    """How a group's messages reach their receiver: at most PORTION_MAX of them, in their order."""

    def __call__(self, group: str, entries: Sequence[Entry], *, first_attempt: bool) -> Awaitable[None]: ...


def outbox_put(group: str, record_key: str, version: int, body: str, *, salt: str) -> Put:
    """The op that goes beside the change at `record_key`, of which this is version `version`.

    `salt`: random, a few characters that a key may have. The event's id is made of the key; who could know it
    beforehand could put an event of their own under it, and the change would seem told.
    """
    return Put(join(_PREFIX, group, record_key, f"{version:010d}", salt), body, ABSENT)


class Backlog:
    """How many documents of each group wait: counted at most once a second, where some were written."""

    def __init__(
        self, documents: Documents, partition: str, clock: Clock, *, waiting_max: int = WAITING_MAX
    ) -> None:
        self._documents = documents
        self._partition = partition
        self._clock = clock
        self._waiting_max = waiting_max
        self._counted: dict[str, tuple[float, int]] = {}

    async def admit(self, group: str, *, mends: bool = False) -> None:
        """Raises Throttled while too many of the group's messages wait. `mends`: the change may end that."""
        counted_at, count = self._counted.get(group, (float("-inf"), 0))
        now = self._clock.monotonic()
        if now - counted_at > COUNT_AGE_MAX_S:
            count = await self._count(group)
            self._forget_old(now)
        self._counted[group] = (now if now - counted_at > COUNT_AGE_MAX_S else counted_at, count + 1)
        if count >= self._waiting_max + (MENDING_MAX if mends else 0):
            raise Throttled(
                f"{count} messages wait for the event spine; mend its route or backend", retry_after_s=PAUSE_S
            )

    async def _count(self, group: str) -> int:
        above, below = within(_PREFIX, group)
        count = 0
        resume: str | None = above
        while resume is not None and count < self._waiting_max + MENDING_MAX:
            page = await self._documents.scan(self._partition, above=resume, below=below)
            count += len(page.docs)
            resume = page.resume
        return count

    def _forget_old(self, now: float) -> None:
        for group in [g for g, (at, _) in self._counted.items() if now - at > COUNT_AGE_MAX_S]:
            del self._counted[group]


class Relay:
    """Delivers one partition's waiting messages while it holds the lease. Run by one task.

    `deliver` must accept entries that it was given before; `first_attempt` says that no earlier one can have
    been made, which saves looking for it.
    """

    def __init__(
        self, documents: Documents, partition: str, deliver: Deliver, *, lease: Lease, clock: Clock
    ) -> None:
        self._documents = documents
        self._partition = partition
        self._deliver = deliver
        self._lease = lease
        self._clock = clock
        self._wake = asyncio.Event()
        self._paused: dict[str, tuple[float, float]] = {}
        self._drained = False

    def nudge(self) -> None:
        """Something was just written: look now."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; then the lease is given up."""
        try:
            while True:
                await self._round_and_log()
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
        finally:
            await asyncio.shield(self._lease.release())

    async def _round_and_log(self) -> None:
        try:
            if await self._lease.acquire():
                await self.deliver_waiting()
        except EnginesError as error:
            self._drained = False
            log.warning("outbox round failed", partition=self._partition, error=error.code)

    async def deliver_waiting(self) -> int:
        """One pass over everything that waits; returns how many messages were delivered."""
        delivered = 0
        # What waits when a holder begins, or after a failure, may have been delivered before.
        first_attempt = self._drained and self._lease.continued
        # Groups of which something was left: in this pass the rest of them would overtake it.
        left: set[str] = set()
        resume: str | None = _PREFIX + SEPARATOR
        below = within(_PREFIX)[1]
        while resume is not None:
            page = await self._documents.scan(self._partition, above=resume, below=below, limit=BATCH_MAX)
            resume = page.resume
            groups = _grouped(page.docs)
            left |= {group for group in groups if self._is_paused(group)}
            asked = {group: docs for group, docs in groups.items() if group not in left}
            # At once, so that a group whose receiver hangs delays no other.
            outcomes = await asyncio.gather(
                *(
                    self._deliver_group(group, docs, first_attempt=first_attempt)
                    for group, docs in asked.items()
                ),
                return_exceptions=True,
            )
            for (group, docs), outcome in zip(asked.items(), outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    raise outcome
                delivered += outcome
                if outcome < len(docs):
                    left.add(group)
            for group in left & groups.keys():
                if resume is not None:  # Pass over the rest of it, however long.
                    resume = max(resume, within(_PREFIX, group)[1])
            if not await self._lease.acquire():
                return delivered
            first_attempt = first_attempt and self._lease.continued
        self._drained = not left
        if any(not self._is_paused(group) for group in left):
            self.nudge()
        return delivered

    async def _deliver_group(self, group: str, docs: Sequence[Doc], *, first_attempt: bool) -> int:
        """Deliver and remove one portion after another; returns how many messages that were."""
        began_s = self._clock.monotonic()
        delivered = 0
        # After a failure one message, then more and more: those before a bad one, or few enough for a
        # receiver that is slow, arrive.
        count_max = 1 if group in self._paused else PORTION_MAX
        while delivered < len(docs) and self._clock.monotonic() - began_s < DELIVERY_TIMEOUT_S:
            portion = next(in_portions(docs[delivered:], lambda doc: doc.body, count_max=count_max))
            count_max = min(PORTION_MAX, 2 * count_max)
            if not await self._deliver_portion(
                group, portion, first_attempt=first_attempt and self._lease.held
            ):
                return delivered
            delivered += len(portion)
        return delivered

    async def _deliver_portion(self, group: str, docs: Sequence[Doc], *, first_attempt: bool) -> bool:
        """Whether it was delivered, and removed; else the group has its pause."""
        entries = [Entry(group, event_id_of(self._partition, doc.key), doc.body, doc.key) for doc in docs]
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT_S):
                await self._deliver(group, entries, first_attempt=first_attempt)
        except (EnginesError, TimeoutError) as error:
            self._pause(group)
            log.warning("outbox delivery waits", group=group, waiting=len(docs), error=type(error).__name__)
            return False
        self._paused.pop(group, None)
        await self._documents.write(self._partition, [Delete(doc.key, ALWAYS) for doc in docs])
        return True

    def _is_paused(self, group: str) -> bool:
        return self._paused.get(group, (0.0, 0.0))[0] > self._clock.monotonic()

    def _pause(self, group: str) -> None:
        pause_s = min(PAUSE_MAX_S, self._paused.get(group, (0.0, PAUSE_S / 2))[1] * 2)
        self._paused[group] = (self._clock.monotonic() + pause_s, pause_s)


def in_portions(items: Sequence[T], body_of: Callable[[T], str], *, count_max: int) -> Iterator[Sequence[T]]:
    """As many successive messages as surely fit into one append; one that is larger by itself."""
    start = size = 0
    for index, item in enumerate(items):
        item_size = 2 * len(body_of(item).encode())  # No byte takes more than two once it is escaped.
        size += item_size
        if index > start and (size > PORTION_BYTES_MAX or index - start == count_max):
            yield items[start:index]
            start, size = index, item_size
    yield items[start:]


def _grouped(docs: Sequence[Doc]) -> dict[str, list[Doc]]:
    groups: dict[str, list[Doc]] = {}
    for doc in docs:
        groups.setdefault(doc.key.split(SEPARATOR, 2)[1], []).append(doc)
    return groups


def event_id_of(place: str, key: str) -> str:
    """The id of the event that the waiting document at `key` becomes, the same at every attempt."""
    return str(uuid.uuid5(_NAMESPACE, f"{place}/{key}"))
