"""The mover: takes one kind of one tenant from one backend to another, phase by phase, while it is used.

Owns the order of the phases, what must be true before the next one begins, and what happens when something
fails. Leaves copying to `core/transfer.py`, what a phase means to readers and writers to `routing/router.py`,
and who may start, cancel or retire a move to `routing/moves.py`.

    prepare   every process journals what it changes          (reads and changes: source)
    copy      everything is copied
    follow    what changed meanwhile is copied, both sides are compared
    fence     changes wait; the last of the journal is drained (reads: source)
    verify    what was drained since the comparison is compared
    switch    reads go to the target; changes wait until nobody reads the source any more
    settle    changes go to the target; the routes are rewritten

Each phase is a change of the move's record, adopted by every process before the next begins, so a mover that
dies is followed by another that goes on from the record. Until `switch` all can be taken back: a failure
behind the fence opens it again. From `switch` on there is only forward.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec
import structlog

from engines.clock import Clock
from engines.control.directory import Directory
from engines.control.records import MOVE_ENDED, Move, MovePhase, Route
from engines.control.store import Actor, ControlStore
from engines.control.tables import MOVES, ROUTES, TENANTS, route_ids
from engines.core.transfer import PartitionTransfer, Superseded, Tally
from engines.core.trimming import seal
from engines.errors import BackendRefused, Conflict, EnginesError, Unavailable
from engines.ids import Ids
from engines.routing.backends import Backends, OpenBackend
from engines.routing.moves import Progress, Progresses
from engines.routing.participation import Observer
from engines.routing.router import Resolution, Where, at_home, source_of
from engines.routing.routes import own_routes
from engines.routing.sides import AT_ONCE, PARTITIONS_AT_ONCE, Sides, Stream, each
from engines.scope import RouteScope

# How often the processes are asked whether they have adopted a phase.
ADOPTION_POLL_S: Final = 0.02
# Past it the fence is opened again: changes wait no longer than one lease of a process that is dead.
FENCE_S_MAX: Final = 4.5
# A process that cannot use the target by then ends the move.
PREPARE_S_MAX: Final = 45.0
# A round of following that is shorter than this leaves little for the fence.
ROUND_S: Final = 0.15
# A round that takes more than this share of the one before is as short as these backends make it.
ROUND_SHRINKS: Final = 0.9
ROUNDS_MAX: Final = 200
PAUSE_AFTER_FAILURE_S: Final = 2.0
# What was read from the source before the switch may take as long as any call.
RETIRE_AFTER_S: Final = 15.0
REPORT_S: Final = 0.5
# A move on which nothing arrives for so long, while it fails, is taken back: its journal grows all the time.
HOPELESS_S: Final = 1_800.0
# What is to be removed from a backend that is gone, or refuses, is left there after so long.
REMOVAL_REFUSED_S: Final = 60.0
# A move whose last round never fits behind the fence would stop its tenant's changes again and again.
FENCES_MAX: Final = 10
# Who the audit says entered a phase.
MOVER: Final = "engines-mover"

Resolve = Callable[[str, Where], Awaitable[Resolution]]
log = structlog.get_logger(__name__)


class Mover:
    """One move, from the phase in which its record stands."""

    def __init__(
        self,
        move_id: str,
        *,
        store: ControlStore,
        directory: Directory,
        backends: Backends,
        observer: Observer,
        resolve: Resolve,
        ids: Ids,
        clock: Clock,
    ) -> None:
        self._move_id = move_id
        self._resolve = resolve
        self._store = store
        self._directory = directory
        self._backends = backends
        self._clock = clock
        self._mover_id = ids.write_id()
        self._observer = observer
        self._progresses = Progresses(store.documents)
        self._progress = Progress()
        self._tally = Tally()
        self._sides: Sides | None = None
        self._fences = 0
        # In which phase so much was done, and since when.
        self._standstill: tuple[MovePhase, int, float] = ("prepare", -1, 0.0)
        self._paused_at_s: float | None = None

    async def run(self) -> None:
        """Until the move has ended. Raises Superseded where the record went on without this mover."""
        if (progress := await self._progresses.read(self._move_id)) is not None:
            self._progress = progress
            self._tally = Tally(progress.documents, progress.bytes, progress.repaired)
        steps: dict[MovePhase, Callable[[Move], Awaitable[None]]] = {
            "prepare": self._prepare,
            "copy": self._copy,
            "follow": self._follow,
            "fence": self._fence,
            "verify": self._verify,
            "switch": self._switch,
            "settle": self._settle,
            "retire": self._retire,
            "cancel": self._cancel,
        }
        async with self._reporting():
            while not (move := await self._read()).ended:
                try:
                    await steps[move.phase](move)
                except Superseded:
                    raise
                except EnginesError as error:
                    await self._after_failure(move, error)

    # --- the phases ---

    async def _prepare(self, move: Move) -> None:
        """The tenant gets a route of its own, so that nothing but this move changes where the kind lies."""
        if not await self._pin(move):
            await self._enter(move, "cancel", reason="the kind does not lie at the source any more")
            return
        deadline_s = self._clock.monotonic() + PREPARE_S_MAX
        while True:
            waiting, trouble = await self._observer.look(move)
            if waiting == 0:
                await self._enter(move, "copy", envs=await self._envs(move))
                return
            if self._clock.monotonic() > deadline_s:
                said = "; ".join(sorted(set(trouble.values()))) or "a process does not answer"
                await self._enter(move, "cancel", reason=f"the target cannot be used: {said}")
                return
            await asyncio.sleep(ADOPTION_POLL_S)

    async def _copy(self, move: Move) -> None:
        sides = await self._open(move)
        self._progress.partitions = len(sides.partitions)
        self._progress.partitions_done = sum(transfer.is_copied for transfer in sides.partitions)
        await each(sides.partitions, self._copy_partition, PARTITIONS_AT_ONCE)
        await sides.follow_logs()
        await self._enter(move, "follow")

    async def _copy_partition(self, transfer: PartitionTransfer) -> None:
        if not transfer.is_copied:
            await transfer.copy()
            self._progress.partitions_done += 1
        await transfer.drain()

    async def _follow(self, move: Move) -> None:
        """Catch up, compare everything, catch up again: what is left for the fence is one short round."""
        if self._fences >= FENCES_MAX:
            await self._enter(move, "cancel", reason=f"the last round did not fit in {FENCE_S_MAX:g} s")
            return
        if self._fences:
            await asyncio.sleep(min(30.0, PAUSE_AFTER_FAILURE_S * self._fences))
        sides = await self._open(move)
        await self._catch_up(sides)
        await each(sides.partitions, PartitionTransfer.compare, PARTITIONS_AT_ONCE)
        await sides.compare_logs()
        await self._catch_up(sides)
        self._paused_at_s = self._clock.monotonic()
        await self._enter(move, "fence")

    async def _fence(self, move: Move) -> None:
        self._fences += 1
        async with self._behind_the_fence(move) as sides:
            await self._adopted(move)
            await self._round(sides)
        await self._enter(move, "verify")

    async def _verify(self, move: Move) -> None:
        async with self._behind_the_fence(move) as sides:
            await self._round(sides)
            await each(sides.partitions, PartitionTransfer.compare_touched, AT_ONCE)
            await sides.compare_logs()
            envs = sides.envs
        await self._enter(move, "switch", envs=envs)

    async def _switch(self, move: Move) -> None:
        """Nobody changes the target before the last process has left the source: no read is out of date."""
        await self._adopted(move)
        await self._enter(move, "settle")
        if self._paused_at_s is not None:
            self._progress.pause_ms = round((self._clock.monotonic() - self._paused_at_s) * 1000, 1)

    async def _settle(self, move: Move) -> None:
        """Routes lead to the target of themselves; what was left behind ends in a seal."""
        for route in await self._routes_to_source(move):
            await self._rewrite(move, route)
        await self._adopted(move)
        # Not claimed: a partition that an interrupted try has finished is claimed by nobody any more.
        sides = self._sides or await self._look(move, await self._moved_envs(move))
        await each(await sides.streams(sides.source), self._seal, AT_ONCE)
        await each(sides.partitions, PartitionTransfer.finish, PARTITIONS_AT_ONCE)
        await self._enter(move, "retire" if move.retire else "done")

    async def _retire(self, move: Move) -> None:
        """What was moved is removed where it lay before; an env that came later never lay there."""
        await asyncio.sleep(RETIRE_AFTER_S)
        sides = await self._look(move, await self._moved_envs(move))
        await sides.remove(sides.source)
        await self._enter(move, "retired")

    async def _cancel(self, move: Move) -> None:
        await self._adopted(move)
        await self._remove_journal(move)
        if move.envs:  # Else nothing was begun at the target, which may not even be there.
            sides = await self._look(move, move.envs)
            await sides.remove(sides.target)
        await self._enter(move, "cancelled")

    async def _after_failure(self, move: Move, error: EnginesError) -> None:
        """Behind the fence changes wait, so it is opened; elsewhere the phase is tried again."""
        log.warning("a move is held up", move=move.move_id, phase=move.phase, error=error.code)
        self._progress.error = f"{error.code}: {error.detail}"
        self._sides = None
        if move.phase in ("fence", "verify"):
            await self._enter(move, "follow")
        elif move.phase in ("copy", "follow") and self._is_hopeless(move.phase, HOPELESS_S):
            await self._enter(move, "cancel", reason=f"nothing was copied for long: {error.code}")
        elif move.phase in ("cancel", "retire") and self._is_hopeless(
            move.phase, REMOVAL_REFUSED_S if isinstance(error, BackendRefused) else HOPELESS_S
        ):
            end: MovePhase = "cancelled" if move.phase == "cancel" else "done"
            await self._enter(move, end, reason=f"not everything could be removed: {error.detail}")
        else:
            await asyncio.sleep(PAUSE_AFTER_FAILURE_S)

    def _is_hopeless(self, phase: MovePhase, limit_s: float) -> bool:
        """Whether so long nothing was copied or removed in this phase that it is not to be tried any more."""
        now_s, done = self._clock.monotonic(), self._tally.documents + self._tally.removed
        if (phase, done) != self._standstill[:2]:
            self._standstill = (phase, done, now_s)
        return now_s - self._standstill[2] > limit_s

    # --- what a phase is made of ---

    async def _catch_up(self, sides: Sides) -> None:
        """Until a round is short, or no shorter than the one before: an empty one, too, takes its time."""
        before_s = float("inf")
        for _ in range(ROUNDS_MAX):
            began_s = self._clock.monotonic()
            await self._round(sides)
            took_s = self._clock.monotonic() - began_s
            if took_s < ROUND_S or took_s > ROUND_SHRINKS * before_s:
                return
            before_s = took_s

    async def _round(self, sides: Sides) -> None:
        """Drain every journal once and follow every log to its end."""
        drained = await each(sides.partitions, PartitionTransfer.drain, AT_ONCE)
        self._progress.lag = sum(drained) + await sides.follow_logs()

    @contextlib.asynccontextmanager
    async def _behind_the_fence(self, move: Move) -> AsyncIterator[Sides]:
        """Changes wait. A mover that finds the fence closed knows not what was compared, and opens it."""
        if self._sides is None:
            raise Unavailable("another mover closed the fence")
        assert self._paused_at_s is not None
        try:
            async with asyncio.timeout(self._paused_at_s + FENCE_S_MAX - self._clock.monotonic()):
                if self._sides.envs != await self._envs(move):
                    raise Unavailable("the tenant has another env")
                yield self._sides
        except TimeoutError as error:
            raise Unavailable("the last round behind the fence took too long") from error

    async def _adopted(self, move: Move) -> None:
        """Until every process has adopted the phase, or its lease has lapsed."""
        while True:
            waiting, _ = await self._observer.look(move)
            if waiting == 0:
                return
            await asyncio.sleep(ADOPTION_POLL_S)

    async def _seal(self, stream: Stream) -> None:
        await seal(stream.chain, clock=self._clock)

    # --- the record ---

    async def _read(self) -> Move:
        return (await self._store.get(MOVES, self._move_id)).record

    async def _enter(
        self,
        move: Move,
        phase: MovePhase,
        *,
        reason: str | None = None,
        envs: tuple[str, ...] | None = None,
    ) -> None:
        """The next phase; every process adopts it. Raises Superseded where the record is another by now."""

        async def build(existing: Move | None) -> Move:
            if existing is None or existing.epoch != move.epoch:
                raise Superseded("the move went on without this mover")
            return msgspec.structs.replace(
                existing,
                phase=phase,
                epoch=move.epoch + 1,
                reason=reason or existing.reason,
                envs=existing.envs if envs is None else envs,
            )

        self._progress.error = reason
        if phase in MOVE_ENDED:
            await self._report()
        await self._store.put(MOVES, [move.move_id], build, actor=_actor(move), mends=True)

    async def _pin(self, move: Move) -> bool:
        """Where t_system's default led to the source, the tenant's own does now.

        False where it leads elsewhere: it was changed before the move held the tenant's routes.
        """
        scope = RouteScope()
        ids = route_ids(move.tenant_id, move.resource_kind, scope)
        tenant = (await self._store.get(TENANTS, move.tenant_id)).record

        async def leads_to_source() -> bool:
            await self._directory.refresh()
            route = (await self._resolve(move.resource_kind, at_home(tenant))).route
            return (route.backend_id, route.generation) == source_of(move)

        if not await leads_to_source():
            return False
        if await self._store.read(ROUTES, *ids) is not None:
            return True

        async def build(existing: Route | None) -> Route:
            if not await leads_to_source():  # Asked anew for each change that came between.
                raise Conflict("the kind does not lie at the source any more")
            return existing or Route(
                tenant_id=move.tenant_id,
                resource_kind=move.resource_kind,
                scope=scope,
                backend_id=move.source_backend_id,
                options=move.options,
                generation=move.source_generation,
            )

        try:
            await self._store.put(ROUTES, ids, build, actor=_actor(move), mends=True)
        except Conflict:
            return await leads_to_source()
        return True

    async def _routes_to_source(self, move: Move) -> list[Route]:
        return [
            route
            for route in await own_routes(self._store, move.tenant_id, move.resource_kind)
            if (route.backend_id, route.generation) == source_of(move)
        ]

    async def _rewrite(self, move: Move, route: Route) -> None:
        async def build(existing: Route | None) -> Route:
            return msgspec.structs.replace(
                existing or route, backend_id=move.target_backend_id, generation=move.target_generation
            )

        ids = route_ids(move.tenant_id, move.resource_kind, route.scope)
        await self._store.put(ROUTES, ids, build, actor=_actor(move), mends=True)

    # --- the two sides ---

    async def _open(self, move: Move) -> Sides:
        """Both sides, with every partition of the target claimed for this mover."""
        if self._sides is None:
            envs = await self._envs(move)
            if not set(envs) <= set(move.envs):
                # What is begun is known to whoever takes it back.
                await self._enter(move, move.phase, envs=tuple(dict.fromkeys((*move.envs, *envs))))
                raise Unavailable("the tenant has another env")
            sides = await self._look(move, envs)
            await sides.claim()
            # Whoever goes on from a later phase claims too, and ends this one: earlier than that, this tells.
            if (await self._read()).epoch != move.epoch:
                raise Superseded("the move went on without this mover")
            self._sides = sides
        return self._sides

    async def _look(self, move: Move, envs: tuple[str, ...]) -> Sides:
        source = await self._backend(move.source_backend_id)
        target = await self._backend(move.target_backend_id)
        sides = Sides(move, source, target, envs, self._tally, self._mover_id)
        await sides.learn()
        return sides

    async def _remove_journal(self, move: Move) -> None:
        """Processes journal from `prepare` on, in whatever env there is."""
        source = await self._backend(move.source_backend_id)
        envs = tuple(dict.fromkeys((*move.envs, *await self._envs(move))))
        sides = Sides(move, source, source, envs, self._tally)
        await sides.learn()
        await sides.remove_journal()

    async def _backend(self, backend_id: str) -> OpenBackend:
        record = await self._directory.backend(backend_id)
        if record is None:
            raise BackendRefused(f"the backend {backend_id} of a move is not there")
        return await self._backends.open(record)

    async def _envs(self, move: Move) -> tuple[str, ...]:
        return (await self._store.get(TENANTS, move.tenant_id)).record.envs

    async def _moved_envs(self, move: Move) -> tuple[str, ...]:
        """Those of `switch`, which a record of an earlier version does not name."""
        return move.envs or await self._envs(move)

    # --- progress ---

    @contextlib.asynccontextmanager
    async def _reporting(self) -> AsyncIterator[None]:
        """Write the progress beside the block, and once more at its end."""

        async def report() -> None:
            while True:
                await self._report()
                await asyncio.sleep(REPORT_S)

        reporter = asyncio.create_task(report())
        try:
            yield
        finally:
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)
            await self._report()

    async def _report(self) -> None:
        self._progress.measure(self._tally, self._clock)
        with contextlib.suppress(EnginesError):  # The next one says it.
            await self._progresses.write(self._move_id, self._progress)


def _actor(move: Move) -> Actor:
    """The mover itself; the tenant's spine is told of each phase."""
    return Actor(user_id=MOVER, tenant_id=move.tenant_id, request_id=move.move_id, tenants=(move.tenant_id,))
