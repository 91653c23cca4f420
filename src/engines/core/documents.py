"""Documents as every store sees them: validated, timed, retried where it is safe.

Owns the limits of the waist, the deadline of a call, write ids, and the only retry loop in Engines. Leaves
storage to a driver and partition names to `core/keys.py`.

A backend that does not answer is left alone for a moment (`core/circuit.py`).

What is retried: reads; writes that were not applied (`Unavailable`, `Throttled`); and writes whose reply was
lost, provided that one of their conditions turns false once they are applied, so that they cannot be
applied twice. Whether a lost write landed is settled by reading for its write id.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from engines.clock import Clock
from engines.codec import escaped_bytes
from engines.core.circuit import Circuit
from engines.core.keys import check_key, check_partition
from engines.errors import (
    BackendRefused,
    Conflict,
    EnginesError,
    OutcomeUnknown,
    Throttled,
    TooLarge,
    Unavailable,
)
from engines.ids import Ids
from engines.ports.documents import (
    BODY_BYTES_MAX,
    GET_KEYS_MAX,
    OPS_MAX,
    SCAN_LIMIT_MAX,
    WRITE_BYTES_MAX,
    Absent,
    Always,
    Doc,
    DocumentDriver,
    Op,
    Page,
    Put,
)

TIMEOUT_S: Final = 10.0
# Pauses between attempts are drawn flat from 0 to this, doubling up to the maximum.
RETRY_PAUSE_S: Final = 0.02
RETRY_PAUSE_MAX_S: Final = 0.5
# The part of a call's time that another attempt must have before it. One that is cut short at once would turn
# a refusal, which says what is wrong, into silence, and a write that was not applied into an unknown one.
ATTEMPT_SHARE: Final = 0.1

R = TypeVar("R")


class Documents:
    """One document backend. Safe for any number of concurrent calls on one event loop.

    Raises, beside what each method names: Throttled, Unavailable (nothing was applied), BackendRefused,
    Corrupt.
    """

    def __init__(
        self,
        driver: DocumentDriver,
        *,
        ids: Ids,
        clock: Clock,
        timeout_s: float = TIMEOUT_S,
        circuit: Circuit | None = None,
    ) -> None:
        self._driver = driver
        self._ids = ids
        self._clock = clock
        self._timeout_s = timeout_s
        self._circuit = circuit or Circuit(clock)

    def through(self, wrap: Callable[[DocumentDriver], DocumentDriver]) -> Documents:
        """The same documents by way of a driver around this one's, which stays this one's to close."""
        return Documents(
            wrap(self._driver),
            ids=self._ids,
            clock=self._clock,
            timeout_s=self._timeout_s,
            circuit=self._circuit,
        )

    def now(self) -> float:
        """Wall-clock seconds, from the same clock that judges expiry."""
        return self._clock.now()

    def new_write_id(self) -> str:
        """A version for a write whose documents must name it before it is made."""
        return self._ids.write_id()

    async def get(self, partition: str, key: str) -> Doc | None:
        """The live document at `key`, as of a moment after the call began."""
        return (await self.get_many(partition, (key,))).get(key)

    async def get_many(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        """The live documents among `keys`, which are distinct and at most `GET_KEYS_MAX`."""
        assert 0 < len(set(keys)) == len(keys) <= GET_KEYS_MAX
        assert check_partition(partition), partition
        assert all(map(check_key, keys)), keys
        return await self._read(lambda: self._driver.get(partition, keys))

    async def scan(
        self, partition: str, *, above: str, below: str, limit: int = SCAN_LIMIT_MAX, reverse: bool = False
    ) -> Page:
        """Live documents strictly between `above` and `below`, in key order or descending."""
        assert 0 < limit <= SCAN_LIMIT_MAX
        assert check_partition(partition), partition
        return await self._read(
            lambda: self._driver.scan(partition, above=above, below=below, limit=limit, reverse=reverse)
        )

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str | None = None) -> str:
        """Apply all ops or none; returns the version that every document put now has.

        Raises Conflict (a condition was false, nothing applied), TooLarge (past a limit of the waist, nothing
        applied), OutcomeUnknown (the reply was lost and reading could not settle it).
        """
        check_write(partition, ops)
        write_id = write_id or self._ids.write_id()
        deadline = self._clock.monotonic() + self._timeout_s
        uncertain = False
        for attempt in range(1_000):
            try:
                await self._write_once(partition, ops, write_id, deadline)
                return write_id
            except Conflict:
                if not uncertain:
                    raise
                return await self._settle(partition, ops, write_id)
            except OutcomeUnknown as lost:
                uncertain = True
                if await self._landed(partition, ops, write_id, lost):
                    return write_id
                if not _guards_itself(ops) or not await self._pause(attempt, deadline):
                    raise
            except (Throttled, Unavailable, BackendRefused) as refusal:
                if not await self._pause(attempt, deadline, refusal):
                    if uncertain:  # This attempt was not applied; that says nothing about the one before.
                        raise OutcomeUnknown("the reply to a write was lost") from refusal
                    raise
        raise AssertionError("a pause ends at the deadline")

    async def write_once(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        """One attempt, for callers that settle a lost reply themselves (the log)."""
        check_write(partition, ops)
        await self._write_once(partition, ops, write_id, self._clock.monotonic() + self._timeout_s)

    async def reclaim(self, limit: int) -> int:
        """Remove up to `limit` expired documents where the service does not; returns how many."""
        return await self._read(lambda: self._driver.reclaim(limit))

    async def close(self) -> None:
        await self._driver.close()

    async def _write_once(self, partition: str, ops: Sequence[Op], write_id: str, deadline: float) -> None:
        self._circuit.admit()
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                await self._driver.write(partition, ops, write_id=write_id)
        except TimeoutError as error:
            self._circuit.failed()
            raise OutcomeUnknown("the backend did not answer a write in time") from error
        except EnginesError as error:
            self._judge(error)
            raise
        self._circuit.succeeded()

    async def _landed(self, partition: str, ops: Sequence[Op], write_id: str, lost: OutcomeUnknown) -> bool:
        """Whether the lost write can be seen. False settles nothing: it may yet arrive.

        One document at the write's own id shows all. Versions that were given, as a mover does, show
        something only where nothing stood before, and where all of them are there.
        """
        own = {op.key: write_id for op in ops if isinstance(op, Put) and op.write_id is None}
        given = {op.key: op.write_id for op in ops if isinstance(op, Put) and isinstance(op.when, Absent)}
        versions = own or given
        if not versions:
            return False
        try:
            docs = await self.get_many(partition, tuple(versions))
        except EnginesError:
            raise lost from lost.__cause__
        seen = [key in docs and docs[key].version == version for key, version in versions.items()]
        return any(seen) if own else all(seen)

    async def _settle(self, partition: str, ops: Sequence[Op], write_id: str) -> str:
        """After a lost reply and a conflict: ours if a document of it stands, else nobody can tell."""
        lost = OutcomeUnknown("the reply to a write was lost, and the record has changed since")
        if await self._landed(partition, ops, write_id, lost):
            return write_id
        raise lost

    async def _read(self, call: Callable[[], Awaitable[R]]) -> R:
        deadline = self._clock.monotonic() + self._timeout_s
        for attempt in range(1_000):
            self._circuit.admit()
            try:
                async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                    found = await call()
            except TimeoutError as error:
                self._circuit.failed()
                raise Unavailable("the backend did not answer a read in time") from error
            except EnginesError as refusal:
                self._judge(refusal)
                if not isinstance(refusal, Throttled | Unavailable):
                    raise
                if not await self._pause(attempt, deadline, refusal):
                    raise
            else:
                self._circuit.succeeded()
                return found
        raise AssertionError("a pause ends at the deadline")

    def _judge(self, error: EnginesError) -> None:
        """Whether the backend answered."""
        if isinstance(error, Unavailable | OutcomeUnknown):
            self._circuit.failed()
        else:
            self._circuit.succeeded()

    async def _pause(self, attempt: int, deadline: float, refusal: Exception | None = None) -> bool:
        """Wait before another attempt; False, without waiting, where it would be refused or be too late."""
        if isinstance(refusal, BackendRefused) or self._circuit.is_open:
            return False
        longest_s = min(RETRY_PAUSE_MAX_S, RETRY_PAUSE_S * 2 ** min(attempt, 10))
        pause_s = random.uniform(0, longest_s)  # noqa: S311 (it spreads callers, it hides nothing)
        if isinstance(refusal, Throttled) and refusal.retry_after_s is not None:
            pause_s += refusal.retry_after_s
        if self._clock.monotonic() + pause_s + self._timeout_s * ATTEMPT_SHARE >= deadline:
            return False
        await asyncio.sleep(pause_s)
        return True


def check_write(partition: str, ops: Sequence[Op]) -> None:
    """Assert what stores promise; raise TooLarge for what users can cause."""
    assert check_partition(partition), partition
    assert len({op.key for op in ops}) == len(ops), "keys of one write are distinct"
    assert ops
    assert all(check_key(op.key) for op in ops), [op.key for op in ops]
    if len(ops) > OPS_MAX:
        raise TooLarge(f"one write holds at most {OPS_MAX} documents")
    bodies = [op.body for op in ops if isinstance(op, Put)]
    # No character takes more than four bytes, escaped or not, so most writes need no count.
    if 4 * sum(map(len, bodies)) + 2 * len(bodies) <= BODY_BYTES_MAX:
        return
    total = 0
    for body in bodies:
        size = escaped_bytes(body)
        total += size
        if size > BODY_BYTES_MAX:
            raise TooLarge(f"a document holds at most {BODY_BYTES_MAX} bytes")
    if total > WRITE_BYTES_MAX:
        raise TooLarge(f"one write holds at most {WRITE_BYTES_MAX} bytes")


def _guards_itself(ops: Sequence[Op]) -> bool:
    """Whether applying the write makes one of its own conditions false, so that it is not applied twice.

    What a condition guards against is an attempt that was given up and is delivered late, after a repeat of
    it was applied. A write is all or nothing, so one condition guards all of it:

    - Match guards for ever: no document ever has an earlier version again.
    - Absent guards for as long as the document stands. Where it was deleted or has expired in between, the
      late attempt finds it absent once more and puts it back. The window is what a backend needs to be done
      with an attempt that nobody waits for any more: on PostgreSQL a statement that was already sent, which
      `statement_timeout` ends; on SQLite none. A put that must not come back needs a Match in the same
      write, or something Absent that outlives the window: an idempotency marker, which stays for a day, or
      a commit of a log, which is never deleted that young.
    """
    return any(not isinstance(op.when, Always) for op in ops)
