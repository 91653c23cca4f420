"""Participation: what a process must do so that a tenant can be moved under it.

Owns this process's lease, a document in the control plane that lapses, in which it says which phases of which
moves it has adopted; the changes it has under way; and the rule that a change is acknowledged only while the
lease holds, and after a lapse only once the moves were read again. Leaves what a phase means to
`routing/router.py` and the moves to `routing/mover.py`.

A mover goes on once every process has adopted a phase, or its lease has lapsed: so nothing that is
acknowledged later was done under an earlier phase. A phase counts as adopted when every change of that
tenant and kind that began before it is over. No two clocks are compared: each side measures from what it saw.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog

from engines.clock import Clock
from engines.codec import Codec
from engines.control.directory import Directory
from engines.control.records import Move
from engines.control.store import PARTITION
from engines.core.documents import Documents
from engines.core.keys import join, within
from engines.core.lease import DRIFT
from engines.errors import EnginesError, Unavailable
from engines.ports.documents import ALWAYS, Delete, Doc, Put

# While nothing moves, and while something does: how long a lease lasts, and how often it is renewed.
LEASE_S: Final = 15.0
LEASE_MOVING_S: Final = 3.0
RENEW_S: Final = 5.0
RENEW_MOVING_S: Final = 0.75
RENEW_TIMEOUT_S: Final = 2.0
# A lease that nobody renews is removed in the end; by then it has lapsed for everybody.
KEPT_S: Final = 3600

Pair = tuple[str, str]
log = structlog.get_logger(__name__)


class _Standing(msgspec.Struct, frozen=True, tag_field="schema", tag="process/1"):
    """What a process says of itself. `adopted`: the epoch of each move; `trouble`: why it cannot go along."""

    process_id: str
    lease_s: float
    adopted: dict[str, int]
    trouble: dict[str, str] = {}


_CODEC: Final = Codec(_Standing)


# A change under way: of which tenant and kind, under which tenure it began, and what was known then.
Change = tuple[Pair, int, int]


class Participation:
    """This process's part. `open_target` is tried as a move begins: whether its target can be reached."""

    def __init__(self, documents: Documents, directory: Directory, *, process_id: str, clock: Clock) -> None:
        self.open_target: Callable[[str], Awaitable[object]] = _open_nothing
        self._documents = documents
        self._directory = directory
        self._process_id = process_id
        self._clock = clock
        self._key = join("l", "process", process_id)
        self._held_until_s = self._held_until_wall_s = float("-inf")
        # Grows whenever a lapsed lease is renewed: what began before is not acknowledged, and what was known
        # before `_regained_s` is not gone by.
        self._tenure = 0
        self._regained_s = float("-inf")
        self._under_way: dict[Pair, dict[tuple[int, int], int]] = {}
        # The epoch of each move, and the directory's generation when it was seen first.
        self._seen: dict[str, tuple[int, int]] = {}
        # Tenants and kinds whose move waits for changes under way.
        self._awaited: set[Pair] = set()
        # Targets that are being opened, by move.
        self._opening: dict[str, asyncio.Future[object]] = {}
        self._said: dict[str, int] = {}
        self._trouble: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._lapsed = False
        directory.on_moves = self._wake.set

    # --- changes ---

    def enter(self, pair: Pair) -> Change:
        """A change of this tenant and kind begins, under what is known now. Raises what `check` raises."""
        self.check()
        begun = (self._tenure, self._directory.generation)
        counts = self._under_way.setdefault(pair, {})
        counts[begun] = counts.get(begun, 0) + 1
        return pair, *begun

    def leave(self, change: Change) -> bool:
        """It is over; whether it may be acknowledged: else a move may have gone on without this process."""
        pair, tenure, generation = change
        counts = self._under_way[pair]
        begun = (tenure, generation)
        counts[begun] -= 1
        if counts[begun] == 0:
            del counts[begun]
            if not counts:
                del self._under_way[pair]
            if pair in self._awaited:
                self._wake.set()
        return self._tenure == tenure and self._holds()

    def check(self) -> None:
        """Raises Unavailable where a move may have gone on without this process."""
        if not self._holds():
            self._lapsed = True  # It is renewed at once: a clock that was set ends it, too.
            self._wake.set()
            raise Unavailable("this process is out of touch with the control plane", retry_after_s=1.0)
        if self._directory.heard_s < self._regained_s:
            raise Unavailable("this process reads what it missed of the control plane", retry_after_s=0.5)

    def _holds(self) -> bool:
        """By either clock: a machine may have been asleep."""
        return self._clock.monotonic() < self._held_until_s and self._clock.now() < self._held_until_wall_s

    # --- the lease ---

    async def register(self) -> None:
        """Take the lease, before the directory is read for the first time. Raises what the store raises.

        A short one: whether something is being moved is not known yet, and the start may fail.
        """
        await self._renew(LEASE_MOVING_S)

    async def run(self) -> None:
        """Renew the lease and adopt phases until cancelled; then the lease is given up."""
        due_s = 0.0
        try:
            while True:
                try:
                    async with asyncio.timeout(max(0.0, due_s - self._clock.monotonic())):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
                if self._adopt() or self._lapsed or self._clock.monotonic() >= due_s:
                    self._lapsed = False
                    await self._renew_and_log()
                    moving = bool(self._directory.moves)
                    due_s = self._clock.monotonic() + (RENEW_MOVING_S if moving else RENEW_S)
        finally:
            for opening in self._opening.values():
                opening.cancel()
            await asyncio.gather(*self._opening.values(), return_exceptions=True)
            await asyncio.shield(self.release())

    def _has_opened(self, move: Move, trouble: dict[str, str]) -> bool:
        """Whether this process can use a move's target; it is opened beside the renewals of the lease."""
        opening = self._opening.get(move.move_id)
        if opening is None:
            opening = asyncio.ensure_future(self.open_target(move.target_backend_id))
            opening.add_done_callback(lambda _: self._wake.set())
            self._opening[move.move_id] = opening
        if not opening.done():
            return False
        error = None if opening.cancelled() else opening.exception()
        if error is None:
            return True
        del self._opening[move.move_id]
        trouble[move.move_id] = f"{type(error).__name__}: {getattr(error, 'detail', '')}"
        return False

    def _adopt(self) -> bool:
        """Look which phases are adopted by now; whether there is anything new to say."""
        moves = list(self._directory.moves.values())
        generation = self._directory.generation
        seen = self._seen
        self._seen = {
            move.move_id: seen[move.move_id]
            if seen.get(move.move_id, (0, 0))[0] == move.epoch
            else (move.epoch, generation)
            for move in moves
        }
        trouble: dict[str, str] = {}
        self._awaited = set()
        for move_id in self._opening.keys() - self._seen.keys():
            self._opening.pop(move_id).cancel()
        said: dict[str, int] = {}
        for move in moves:
            if move.phase == "prepare" and not self._has_opened(move, trouble):
                continue
            pair = (move.tenant_id, move.resource_kind)
            since = self._seen[move.move_id][1]
            # What began under an earlier tenure is not acknowledged, so nobody need wait for it.
            under_way = (begun for tenure, begun in self._under_way.get(pair, ()) if tenure == self._tenure)
            if all(begun >= since for begun in under_way):
                said[move.move_id] = move.epoch
            else:
                self._awaited.add(pair)
        is_new = (said, trouble) != (self._said, self._trouble)
        self._said, self._trouble = said, trouble
        return is_new

    async def _renew_and_log(self) -> None:
        try:
            async with asyncio.timeout(RENEW_TIMEOUT_S):
                await self._renew(LEASE_MOVING_S if self._directory.moves else LEASE_S)
        except (EnginesError, TimeoutError) as error:
            log.warning("the process's lease was not renewed", error=type(error).__name__)

    async def _renew(self, lease_s: float) -> None:
        began_s, began_wall_s = self._clock.monotonic(), self._clock.now()
        standing = _Standing(self._process_id, lease_s, self._said, self._trouble)
        put = Put(self._key, _CODEC.encode(standing), ALWAYS, expires_at=int(began_wall_s) + KEPT_S)
        await self._documents.write(PARTITION, [put])
        if not self._holds():
            self._tenure += 1
            self._regained_s = self._clock.monotonic()
        self._held_until_s, self._held_until_wall_s = began_s + lease_s, began_wall_s + lease_s

    async def release(self) -> None:
        """Give the lease up; whoever moves need not wait for it to lapse."""
        self._held_until_s = float("-inf")
        try:
            await self._documents.write(PARTITION, [Delete(self._key, ALWAYS)])
        except EnginesError as error:  # It lapses.
            log.warning("the process's lease was not given up", error=error.code)


async def _open_nothing(_: str) -> None:
    """Where a process opens no backends."""


class Observer:
    """What a mover knows of the processes: who they are, and since when each was last heard of."""

    def __init__(self, documents: Documents, clock: Clock) -> None:
        self._documents = documents
        self._clock = clock
        self._heard: dict[str, tuple[str, float]] = {}

    async def listen(self) -> list[Doc]:
        """Hear every process once. Raises what the store raises."""
        docs = await self._leases()
        now_s = self._clock.monotonic()
        heard = self._heard
        self._heard = {
            doc.key: heard[doc.key]
            if heard.get(doc.key, ("", 0.0))[0] == doc.version
            else (doc.version, now_s)
            for doc in docs
        }
        return docs

    async def look(self, move: Move) -> tuple[int, dict[str, str]]:
        """How many processes have not yet adopted the move's phase, and what troubles them, by process.

        Raises what the store raises. A process whose lease has lapsed is not counted.
        """
        waiting, trouble = 0, {}
        docs = await self.listen()
        now_s = self._clock.monotonic()
        for doc in docs:
            heard_s = self._heard[doc.key][1]
            standing = _CODEC.decode(doc.body)
            if standing.adopted.get(move.move_id) == move.epoch:
                continue
            if now_s - heard_s > standing.lease_s * DRIFT:
                continue
            waiting += 1
            if (text := standing.trouble.get(move.move_id)) is not None:
                trouble[standing.process_id] = text
        return waiting, trouble

    async def _leases(self) -> list[Doc]:
        above, below = within("l", "process")
        docs: list[Doc] = []
        resume: str | None = above
        while resume is not None:
            page = await self._documents.scan(PARTITION, above=resume, below=below)
            docs += page.docs
            resume = page.resume
        return docs
