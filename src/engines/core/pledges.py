"""Pledges: a process's durable word that it has something to finish, so that another does when it is gone.

Owns the documents in which one process names its work, renewing them, and noticing the documents of processes
that renew theirs no more. A pledge is made before the work begins and dropped some time after it ended, so
whoever works at the same names again and again writes nothing for it. Leaves the work itself to its owner; it
must bear being done by two at once.

No two clocks are compared: a process trusts a document of its own for `TRUSTED_S` after the write of it
began, and takes another's for abandoned once it saw the same version of it for `ABANDONED_S`. What a process
began to write under a pledge and what arrives only after both have passed is found by the next work at that
name.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog

from engines.clock import Clock
from engines.codec import Codec, escaped_bytes
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
# Of one process, and of one owner, so that none takes the room of all.
NAMES_MAX: Final = 20_000
OWNER_NAMES_MAX: Final = 200
# Of one document; the next ones hold the rest.
DOCUMENT_NAMES_MAX: Final = 500
DOCUMENT_BYTES_MAX: Final = 128 * 1024

log = structlog.get_logger(__name__)


class _Pledged(msgspec.Struct, frozen=True, tag_field="schema", tag="pledges/1"):
    process_id: str
    names: tuple[str, ...]


class _Seen(msgspec.Struct, frozen=True):
    version: str
    since_s: float


_CODEC: Final = Codec(_Pledged)


class _Document:
    """Some names of one process, written together. `names`: when each was last worked at."""

    def __init__(self, documents: Documents, partition: str, key: str, process_id: str, clock: Clock) -> None:
        self.key = key
        self.names: dict[str, float] = {}
        self._bytes = 0
        self._documents = documents
        self._partition = partition
        self._process_id = process_id
        self._clock = clock
        self._written: frozenset[str] = frozenset()
        self._trusted_until_s = float("-inf")
        self._writing = asyncio.Lock()

    def has_room(self, name: str) -> bool:
        return (
            len(self.names) < DOCUMENT_NAMES_MAX and self._bytes + escaped_bytes(name) <= DOCUMENT_BYTES_MAX
        )

    def add(self, name: str) -> None:
        self.names[name] = self._clock.monotonic()
        self._bytes += escaped_bytes(name)

    def drop(self, name: str) -> None:
        del self.names[name]
        self._bytes -= escaped_bytes(name)

    async def make(self, name: str) -> None:
        """`name`, which is one of the names, stands in the document when this returns."""
        while not self._is_trusted(name):
            async with self._writing:  # Whoever waited finds that the write before it named them too.
                if name not in self.names:
                    raise Unavailable("this process is ending")
                if not self._is_trusted(name):
                    await self._write_first()

    async def renew(self) -> None:
        """Write it anew; one that holds nothing goes."""
        async with self._writing:
            if self.names or self._written:
                await self._write()

    def _is_trusted(self, name: str) -> bool:
        return name in self._written and self._clock.monotonic() < self._trusted_until_s

    async def _write_first(self) -> None:
        try:
            await self._write()
        except OutcomeUnknown as unknown:  # Of the pledge, not of what it was for.
            raise Unavailable("a change could not be prepared; nothing was begun") from unknown

    async def _write(self) -> None:
        began_s = self._clock.monotonic()
        names = frozenset(self.names)
        # A name that is being dropped is not trusted from here on, whatever becomes of the write.
        self._written &= names
        if names:
            body = _CODEC.encode(_Pledged(self._process_id, tuple(sorted(names))))
            await self._documents.write(self._partition, [Put(self.key, body, ALWAYS)])
        else:
            await self._documents.write(self._partition, [Delete(self.key, ALWAYS)])
        self._written, self._trusted_until_s = names, began_s + TRUSTED_S


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
        self._clock = clock
        self._finish = finish
        # In the order in which they were begun; a name goes into the first that has room.
        self._own: list[_Document] = []
        self._homes: dict[str, _Document] = {}
        self._owners: dict[str, str] = {}
        self._owned: Counter[str] = Counter()
        self._seen: dict[str, _Seen] = {}

    async def make(self, name: str, *, owner: str) -> None:
        """`name`, which is `owner`'s, is pledged when this returns. No I/O while it stands.

        Raises Throttled (too many names), Unavailable: then nothing may be begun.
        """
        home = self._homes.get(name)
        if home is None:
            if self._owned[owner] >= OWNER_NAMES_MAX or len(self._homes) >= NAMES_MAX:
                raise Throttled("changes are announced in too many places at once", retry_after_s=RENEW_S)
            home = self._homes[name] = self._with_room(name)
            home.add(name)
            self._owners[name] = owner
            self._owned[owner] += 1
        home.names[name] = self._clock.monotonic()
        await home.make(name)

    def keep(self, name: str) -> None:
        """The work at `name` is not over."""
        if (home := self._homes.get(name)) is not None:
            home.names[name] = self._clock.monotonic()

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
        homes = {id(home): home for name in names if (home := self._drop(name)) is not None}
        await asyncio.gather(*(home.renew() for home in homes.values()))

    async def finish_abandoned(self) -> int:
        """Do the work of every process that renews no more; returns how many documents that were."""
        above, below = within("p")
        found: dict[str, _Seen] = {}
        own = {document.key for document in self._own}
        finished = 0
        resume: str | None = above
        while resume is not None:
            page = await self._documents.scan(self._partition, above=resume, below=below)
            resume = page.resume
            for doc in page.docs:
                if doc.key in own:
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
        for home in self._own:
            for name in [name for name, at_s in home.names.items() if now_s - at_s >= IDLE_S]:
                self._drop(name)
        # All of them, whatever becomes of one.
        outcomes = await asyncio.gather(*(home.renew() for home in self._own), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    def _with_room(self, name: str) -> _Document:
        for home in self._own:
            if home.has_room(name):
                return home
        key = join("p", self._process_id, *([str(len(self._own))] if self._own else []))
        home = _Document(self._documents, self._partition, key, self._process_id, self._clock)
        self._own.append(home)
        return home

    def _drop(self, name: str) -> _Document | None:
        """Forget a name; the document that held it, which still says so."""
        home = self._homes.pop(name, None)
        if home is not None:
            home.drop(name)
            owner = self._owners.pop(name)
            self._owned[owner] -= 1
            if not self._owned[owner]:
                del self._owned[owner]
        return home
