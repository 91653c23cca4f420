"""Random histories of a log: several writers, bad connections, repeats, readers; then the books are checked.

Owns one seeded history (`check_history`) and what must be true after it. Every writer has a driver of its
own, as another process would; between it and the database stands `engines.testing.faults`. Leaves scripted
cases to the other modules here.

What must be true, whatever was refused, lost, late or cancelled:
- positions are 1, 2, 3, … without gap; a reader that pages while others write sees exactly the final log;
- an acknowledged event stands at the position that was acknowledged, once;
- an event whose append was refused stands nowhere; one whose outcome is unknown stands at most once;
- a client's id that was appended again after fewer than a segment's size of events stands once, and every
  acknowledgement of it names a place where it stands; the same holds for an Idempotency-Key;
- an append that expected a position begins right behind it;
- the chain verifies, times never go back, and find, seek and descending lists agree with the ascending one.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Final

import msgspec

from engines.clock import Clock, SystemClock
from engines.codec import decode_json, encode_json
from engines.core.idempotency import Request, identify
from engines.core.log import Appended, Entry, Head, Log, StoredEvent
from engines.errors import EnginesError, OutcomeUnknown
from engines.ports.documents import DocumentDriver
from engines.testing.faults import FaultPlan, FaultyDriver
from engines.testing.log.harness import open_log

HISTORY_TIMEOUT_S: Final = 60.0


class HistoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How much happens in one history."""

    segment_size: int = 7
    tasks_per_writer: int = 3
    requests_per_task: int = 8
    events_max: int = 4
    client_id_chance: float = 0.4
    repeat_chance: float = 0.4
    request_chance: float = 0.25
    expect_chance: float = 0.1
    cancel_chance: float = 0.06
    # Long enough that a fault seldom exhausts it, short enough that some histories see it exhausted.
    timeout_s: float = 5.0
    faults: FaultPlan = FaultPlan(
        write_refused=0.08,
        write_lost_unapplied=0.06,
        write_lost_applied=0.10,
        write_late=0.08,
        read_refused=0.03,
        late_s_max=0.03,
        pause_s_max=0.002,
    )


class Attempt(msgspec.Struct):
    """One call of append, and what its caller was told."""

    tokens: list[str]
    client_ids: list[str | None]
    request: Request | None
    expected_position: int | None
    appended: Appended | None = None
    error: EnginesError | None = None
    cancelled: bool = False

    @property
    def may_stand(self) -> bool:
        """Whether its events may stand in the log, as far as the caller knows."""
        return self.appended is not None or self.cancelled or isinstance(self.error, OutcomeUnknown)


def plan_for(seed: int) -> HistoryPlan:
    """Different shapes for different seeds: where boundaries are crossed, how many write, how bad it is."""
    random = Random(seed)
    size = random.choice((2, 3, 7, 7, 11, 40, 10_000))
    quiet = FaultPlan(pause_s_max=0.002) if random.random() < 0.15 else HistoryPlan().faults
    return HistoryPlan(segment_size=size, events_max=min(4, size), faults=quiet)


class _DriftingClock:
    """A wall clock that somebody sets, in either direction, by up to a minute."""

    def __init__(self, wall: Clock, random: Random) -> None:
        self._wall = wall
        self._random = random
        self._offset_s = 0.0

    def now(self) -> float:
        if self._random.random() < 0.02:
            self._offset_s = self._random.uniform(-60, 60)
        return self._wall.now() + self._offset_s

    def monotonic(self) -> float:
        return self._wall.monotonic()


class _History:
    """The state of one history under way."""

    def __init__(self, drivers: Sequence[DocumentDriver], seed: int, plan: HistoryPlan, clock: Clock) -> None:
        self.random = Random(seed)
        self.clock = _DriftingClock(clock, Random(seed))
        self.plan = plan
        self.stream = f"history-{seed}-{uuid.uuid4().hex[:8]}"
        self.attempts: list[Attempt] = []
        self.used: list[tuple[Request | None, list[str], list[str | None]]] = []
        self.faulty = [
            FaultyDriver(driver, plan.faults, random=Random(f"{seed}/{index}"))
            for index, driver in enumerate(drivers)
        ]
        self.logs = [self.open(driver) for driver in self.faulty]
        self.plain = self.open(drivers[0])
        self.done = asyncio.Event()

    def open(self, driver: DocumentDriver) -> Log:
        plan = self.plan
        return open_log(
            driver,
            self.stream,
            clock=self.clock,
            segment_size=plan.segment_size,
            timeout_s=plan.timeout_s,
        )

    # --- writers ---

    async def write(self, log: Log) -> None:
        for _ in range(self.plan.requests_per_task):
            attempt = self._next_attempt()
            self.attempts.append(attempt)
            await self._append(log, attempt)

    def _next_attempt(self) -> Attempt:
        random, plan = self.random, self.plan
        if self.used and random.random() < plan.repeat_chance:
            request, tokens, client_ids = random.choice(self.used[-6:])
            if request is not None and random.random() < 0.1:
                token = uuid.uuid4().hex
                another = Request(request.key, token)
                return Attempt([*tokens, token], [*client_ids, None], another, None)
            return Attempt(tokens, client_ids, request, None)
        count = random.randint(1, plan.events_max)
        tokens = [uuid.uuid4().hex for _ in range(count)]
        client_ids = [
            str(uuid.uuid4()) if random.random() < plan.client_id_chance else None for _ in range(count)
        ]
        request = None
        if random.random() < plan.request_chance:
            request = identify(self.stream, tokens[0], body=tokens[0].encode())
        if request is not None or None not in client_ids:
            self.used.append((request, tokens, client_ids))
        expected = None
        if random.random() < plan.expect_chance:
            expected = max((a.appended.positions[-1] for a in self.attempts if a.appended), default=0)
        return Attempt(tokens, client_ids, request, expected)

    async def _append(self, log: Log, attempt: Attempt) -> None:
        entries = [
            Entry(encode_json({"token": token, "id": client_id}), client_id)
            for token, client_id in zip(attempt.tokens, attempt.client_ids, strict=True)
        ]
        call = asyncio.ensure_future(
            log.append(entries, expected_position=attempt.expected_position, request=attempt.request)
        )
        if self.random.random() < self.plan.cancel_chance:
            await asyncio.sleep(self.random.uniform(0, 0.01))
            call.cancel()
        await asyncio.wait((call,))
        if call.cancelled():
            attempt.cancelled = True
        elif isinstance(error := call.exception(), EnginesError):
            attempt.error = error
        else:
            attempt.appended = call.result()

    # --- readers ---

    async def page(self) -> list[StoredEvent]:
        """Pages of random size from the beginning, while others write and until they are done."""
        log = self.open(self.random.choice(self.faulty))
        seen: list[StoredEvent] = []
        while True:
            was_done = self.done.is_set()
            after = seen[-1].position if seen else 0
            batch = await log.list_after(after, limit=self.random.randint(1, 9))
            seen += batch.events
            if was_done and not batch.events:
                return seen
            await asyncio.sleep(self.random.uniform(0, 0.005))

    async def follow(self) -> list[StoredEvent]:
        """Follow from the beginning until everything that stands was seen."""
        log = self.open(self.random.choice(self.faulty))
        seen: list[StoredEvent] = []
        end: list[int] = []

        async def collect() -> None:
            async for batch in log.follow(0):
                seen.extend(batch.events)
                if end and len(seen) >= end[0]:
                    return

        follower = asyncio.ensure_future(collect())
        await self.done.wait()
        end.append((await self.plain.head()).position)
        if len(seen) >= end[0]:
            await log.close()
        await asyncio.wait_for(follower, timeout=20)
        await log.close()
        return seen

    # --- the books ---

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            paging, following = group.create_task(self.page()), group.create_task(self.follow())
            async with asyncio.TaskGroup() as writers:
                for log in self.logs * self.plan.tasks_per_writer:
                    writers.create_task(self.write(log))
            for log in self.logs:  # What was cancelled may still be under way.
                await log.close()
            for driver in self.faulty:
                await driver.late_writes_delivered()
            self.done.set()
        paged, followed = paging.result(), following.result()
        events = await self._read_all()
        assert paged == events, "a paging reader saw something else than the log"
        assert followed == events, "a follower saw something else than the log"
        firsts = await self._firsts(len(events))
        self._check_acknowledged(events)
        self._check_once(events, firsts)
        self._check_repeats(events, firsts)
        await self._check_reads(events)

    async def _read_all(self) -> list[StoredEvent]:
        events: list[StoredEvent] = []
        while True:
            batch = await self.plain.list_after(len(events), limit=1_000)
            events += batch.events
            if not batch.events:
                break
        assert [event.position for event in events] == list(range(1, len(events) + 1)), "not gapless"
        assert [event.at_ms for event in events] == sorted(event.at_ms for event in events)
        return events

    async def _firsts(self, end: int) -> list[int]:
        """For each position the first position of its commit, at index position - 1."""
        firsts: list[int] = []
        while len(firsts) < end:
            head = await _commit_at(self.plain, len(firsts) + 1)
            firsts += [head[0]] * head[1]
        return firsts

    def _check_acknowledged(self, events: Sequence[StoredEvent]) -> None:
        for attempt in self.attempts:
            if attempt.appended is None:
                continue
            appended = attempt.appended
            assert len(appended.positions) == len(attempt.tokens)
            if attempt.expected_position is not None and not appended.replayed and None in attempt.client_ids:
                assert attempt.expected_position + 1 in appended.positions
            for index, position in enumerate(appended.positions):
                event = events[position - 1]
                assert _token(event) == attempt.tokens[index], f"{position} is not what was acknowledged"
                assert event.event_id == appended.event_ids[index]
                assert attempt.client_ids[index] in (None, event.event_id)

    def _check_once(self, events: Sequence[StoredEvent], firsts: Sequence[int]) -> None:
        """What was refused stands nowhere; what was sent once and without an id of its own stands once."""
        places = _places(events)
        allowed: set[str] = set()
        sent: dict[str, int] = defaultdict(int)
        for attempt in self.attempts:
            for token in attempt.tokens:
                sent[token] += 1
                if attempt.may_stand:
                    allowed.add(token)
        for token, positions in places.items():
            assert token in allowed, f"{positions} hold an event whose append was refused"
            if sent[token] == 1:
                assert len(positions) == 1, f"{positions} hold one event that was sent once"
        assert len(firsts) == len(events)

    def _check_repeats(self, events: Sequence[StoredEvent], firsts: Sequence[int]) -> None:
        """A repeat is recognised while fewer than a segment's size of events were appended since."""
        recognisable: dict[str, str] = {}
        for attempt in self.attempts:
            for token, client_id in zip(attempt.tokens, attempt.client_ids, strict=True):
                if client_id is not None:
                    recognisable[token] = "client id"
                elif attempt.request is not None and attempt.error is None:
                    recognisable[token] = "Idempotency-Key"
        for token, positions in _places(events).items():
            for earlier, later in pairwise(positions):
                since = firsts[later - 1] - 1 - earlier
                assert since >= self.plan.segment_size, (
                    f"{recognisable.get(token, 'nothing')} let {earlier} stand at {later} too"
                )

    async def _check_reads(self, events: Sequence[StoredEvent]) -> None:
        log = self.open(self.faulty[-1])
        head = await log.head()
        assert head.position == len(events)
        for expected in (None, head, Head(0, "0" * 64)):
            verification = await log.verify(expected)
            assert verification.ok, verification
            assert verification.event_count == len(events)
        assert list((await log.list_before(None, limit=1_000)).events) == list(events[::-1])[:1_000]
        for event in self.random.sample(list(events), min(5, len(events))):
            found = await log.find(event.event_id)
            assert found is not None
            assert _token(found) == _token(event)
            soonest = next(other.position for other in events if other.at_ms >= event.at_ms)
            assert await log.seek(event.at_ms) == soonest
        await log.close()


async def check_history(
    drivers: Sequence[DocumentDriver],
    seed: int,
    *,
    plan: HistoryPlan | None = None,
    clock: Clock | None = None,
) -> None:
    """Play one history, one writer a driver, and check the books. Raises AssertionError, naming the seed.

    `clock`: where the drivers judge expiry by another clock than the system's.
    """
    history = _History(drivers, seed, plan or plan_for(seed), clock or SystemClock())
    try:
        async with asyncio.timeout(HISTORY_TIMEOUT_S):
            await history.run()
    except (AssertionError, EnginesError, TimeoutError, BaseExceptionGroup) as error:
        size = history.plan.segment_size
        raise AssertionError(f"seed {seed}, {size} a segment: {error!r}") from error
    finally:
        for log in history.logs:
            await log.close()


async def _commit_at(log: Log, position: int) -> tuple[int, int]:
    """First position and length of the commit that holds `position`."""
    commit = await log._chain.holding(position)
    assert commit is not None
    return commit.first, len(commit.events)


def _token(event: StoredEvent) -> str:
    assert event.body is not None
    return str(decode_json(event.body)["token"])


def _places(events: Sequence[StoredEvent]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = defaultdict(list)
    for event in events:
        places[_token(event)].append(event.position)
    return places
