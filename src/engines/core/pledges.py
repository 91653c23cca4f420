"""Pledges: a process's durable word that it has something to finish, so that another does when it is gone.

Owns the document in which one process names its work, renewing it, and noticing the documents of processes
that renew theirs no more. A pledge is made before the work begins and dropped some time after it ended, so
whoever works at the same names again and again writes nothing for it. Leaves the work itself to its owner; it
must bear being done by two at once.

No two clocks are compared: a process trusts its own document for `TRUSTED_S` after the write of it began, and
takes another's for abandoned once it saw the same version of it for `ABANDONED_S`. What a process began to
write under a pledge and what arrives only after both have passed is found by the next work at that name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog

from engines.clock import Clock
from engines.codec import Codec
from engines.core.documents import Documents
from engines.core.keys import join, within
from engines.errors import Conflict, EnginesError, OutcomeUnknown, Throttled, Unavailable
from engines.ports.documents import ALWAYS, Delete, Match, Op, Put

RENEW_S: Final = 5.0
TRUSTED_S: Final = 15.0
# Longer than a pledge is trusted and a write may take after that.
ABANDONED_S: Final = 40.0
LOOK_S: Final = 10.0
# A name that was not worked at for so long is dropped.
IDLE_S: Final = 90.0
# Of one process; a document holds them all.
NAMES_MAX: Final = 1_000
# Of one owner, so that none takes the room of all.
OWNER_NAMES_MAX: Final = 200

log = structlog.get_logger(__name__)


class _Pledged(msgspec.Struct, frozen=True, tag_field="schema", tag="pledges/1"):
    process_id: str
    names: tuple[str, ...]


class _Seen(msgspec.Struct, frozen=True):
    version: str
    since_s: float


_CODEC: Final = Codec(_Pledged)


class Pledges:
    """The pledges of one process, in one partition of the control plane. Run by one task.

    `finish` does another's abandoned work: it raises EnginesError where it could not, and is asked again.
    """

    def __init__(
        self,
        documents: Documents,
        partition: str,
        *,
        process_id: str,
        clock: Clock,
        finish: Callable[[str], Awaitable[None]],
    ) -> None:
        self._documents = documents
        self._partition = partition
        self._process_id = process_id
        self._key = join("p", process_id)
        self._clock = clock
        self._finish = finish
        # When each name was last worked at.
        self._names: dict[str, float] = {}
        self._owners: dict[str, str] = {}
        self._written: frozenset[str] = frozenset()
        self._trusted_until_s = float("-inf")
        self._writing = asyncio.Lock()
        self._seen: dict[str, _Seen] = {}

    async def make(self, name: str, *, owner: str) -> None:
        """`name`, which is `owner`'s, is pledged when this returns. No I/O while it stands.

        Raises Throttled (too many names), Unavailable: then nothing may be begun.
        """
        now_s = self._clock.monotonic()
        if name not in self._names:
            of_owner = sum(known == owner for known in self._owners.values())
            if of_owner >= OWNER_NAMES_MAX or len(self._names) >= NAMES_MAX:
                raise Throttled("changes are announced in too many scopes at once", retry_after_s=RENEW_S)
        self._names[name], self._owners[name] = now_s, owner
        while not (name in self._written and self._clock.monotonic() < self._trusted_until_s):
            async with self._writing:  # Whoever waited finds that the write before it named them too.
                if not (name in self._written and self._clock.monotonic() < self._trusted_until_s):
                    await self._write_first()

    def keep(self, name: str) -> None:
        """The work at `name` is not over."""
        if name in self._owners:
            self._names[name] = self._clock.monotonic()

    async def run(self) -> None:
        """Renew, drop what is idle, and finish what others abandoned. Until cancelled."""
        looked_s = float("-inf")
        while True:
            try:
                await self._renew()
                if self._clock.monotonic() - looked_s >= LOOK_S:
                    looked_s = self._clock.monotonic()
                    await self.finish_abandoned()
            except EnginesError as error:
                log.warning("pledges wait", error=error.code)
            await asyncio.sleep(RENEW_S)

    async def withdraw(self, names: Sequence[str]) -> None:
        """On the way out: the work at these names is over; the others stay for whoever comes."""
        for name in names:
            self._names.pop(name, None)
            self._owners.pop(name, None)
        async with self._writing:
            await self._write()

    async def finish_abandoned(self) -> int:
        """Do the work of every process that renews no more; returns how many documents that were."""
        above, below = within("p")
        found: dict[str, _Seen] = {}
        finished = 0
        resume: str | None = above
        while resume is not None:
            page = await self._documents.scan(self._partition, above=resume, below=below)
            resume = page.resume
            for doc in page.docs:
                if doc.key == self._key:
                    continue
                seen = self._seen.get(doc.key)
                if seen is None or seen.version != doc.version:
                    seen = _Seen(doc.version, self._clock.monotonic())
                found[doc.key] = seen
                if self._clock.monotonic() - seen.since_s >= ABANDONED_S:
                    finished += await self._finish_all(doc.key, doc.version, _CODEC.decode(doc.body))
        self._seen = found
        return finished

    async def _finish_all(self, key: str, version: str, pledged: _Pledged) -> int:
        left: list[str] = []
        for name in pledged.names:
            try:
                await self._finish(name)
            except EnginesError as error:  # One tenant's trouble is not the others'.
                log.warning("an abandoned announcement waits", name=name, error=error.code)
                left.append(name)
        if left == list(pledged.names):
            return 0
        body = _CODEC.encode(_Pledged(pledged.process_id, tuple(left)))
        op: Op = Put(key, body, Match(version)) if left else Delete(key, Match(version))
        try:
            await self._documents.write(self._partition, [op])
        except Conflict:  # Its process is there after all, or another finished it too.
            return 0
        log.info("finished what a process left", process=pledged.process_id, left=len(left))
        return 0 if left else 1

    async def _renew(self) -> None:
        now_s = self._clock.monotonic()
        self._names = {name: at_s for name, at_s in self._names.items() if now_s - at_s < IDLE_S}
        self._owners = {name: self._owners[name] for name in self._names}
        if self._names or self._written:
            async with self._writing:
                await self._write()

    async def _write_first(self) -> None:
        try:
            await self._write()
        except OutcomeUnknown as unknown:  # Of the pledge, not of what it was for.
            raise Unavailable("a change could not be prepared; nothing was begun") from unknown

    async def _write(self) -> None:
        began_s = self._clock.monotonic()
        names = frozenset(self._names)
        # A name that is being dropped is not trusted from here on, whatever becomes of the write.
        self._written &= names
        if names:
            body = _CODEC.encode(_Pledged(self._process_id, tuple(sorted(names))))
            await self._documents.write(self._partition, [Put(self._key, body, ALWAYS)])
        else:
            await self._documents.write(self._partition, [Delete(self._key, ALWAYS)])
        self._written, self._trusted_until_s = names, began_s + TRUSTED_S
