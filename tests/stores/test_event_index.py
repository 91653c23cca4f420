"""Rules of the spine's index: a filtered list is the full list, filtered, whatever happened to the index."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from random import Random

import pytest

from engines.core.index import Index, Layout
from engines.core.lease import DRIFT, DURATION_S
from engines.core.listing import LOOKED_AT_MAX, Window
from engines.core.log import StoredEvent
from engines.errors import BackendRefused, Conflict, EnginesError, OutcomeUnknown, Unavailable
from engines.scope import RequestContext
from engines.stores.event_index import terms_of
from engines.stores.events import Event, EventFilter, EventSpine
from engines.stores.projector import DUE_MAX, Projector, Turn
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan, HeldWrite
from tests.stores.home import Home, context
from tests.stores.samples import event, numbered, numbers

SMALL = Layout(block=5, segment_blocks=3, shards=2)
RUNS = ("run-0", "run-1", "run-12", "run")
USERS = ("ada", "bob", "a")
PAGES_MAX = 500
TYPES = ("message", "tool_call", "handoff")


def new_spine(home: Home, *, layout: Layout = SMALL, segment_size: int = 7) -> EventSpine:
    return EventSpine(
        home, home.ids, home.clock, segment_size_default=segment_size, index_layout_default=layout
    )


@pytest.fixture
async def small(home: Home) -> AsyncIterator[EventSpine]:
    spine = new_spine(home)
    yield spine
    await spine.close()


async def fill(spine: EventSpine, count: int, random: Random) -> None:
    """Append `count` events of random runs, users and types in random commits."""
    while count:
        size = min(count, random.randint(1, 4))
        batch = [
            numbered(count - at, event_type=random.choice(TYPES), run_id=random.choice(RUNS))
            for at in range(size)
        ]
        await spine.append(context(user_id=random.choice(USERS)), batch)
        count -= size


async def collect(
    spine: EventSpine, where: EventFilter, *, limit: int = 100, descending: bool = False
) -> list[Event]:
    found: list[Event] = []
    after: str | None = None
    for _ in range(PAGES_MAX):
        page = await spine.list(
            context(), where, window=Window(limit=limit, after=after, descending=descending)
        )
        assert len(page.items) <= limit
        found += page.items
        after = page.after
        if after is None:
            return found
    raise AssertionError("a list ends")


def admitted(events: list[Event], where: EventFilter) -> list[Event]:
    return [
        shown
        for shown in events
        if where.run_id in (None, shown.run_id)
        and where.user_id in (None, shown.user_id)
        and where.event_type in (None, shown.event_type)
        and (where.since is None or shown.timestamp >= where.since)
        and (where.until is None or shown.timestamp < where.until)
    ]


def a_filter(random: Random, events: list[Event]) -> EventFilter:
    some = [random.choice(("run_id", "user_id", "event_type"))]
    some += [name for name in ("run_id", "user_id", "event_type") if random.random() < 0.2]
    values = {"run_id": (*RUNS, "nobody"), "user_id": USERS, "event_type": TYPES}
    chosen = {name: random.choice(values[name]) for name in some}
    times = {
        name: random.choice(events).timestamp
        for name in ("since", "until")
        if events and random.random() < 0.2
    }
    return EventFilter(**chosen, **times)


async def project(spine: EventSpine) -> None:
    """Everything that is whole."""
    while await spine._index.step(context()):
        pass


async def index_of(home: Home, spine: EventSpine) -> Index:
    return await spine._index._home.find(context(), await home.place("event_spine", context()))


async def projected(spine: EventSpine, home: Home) -> int:
    return await (await index_of(home, spine)).projected()


async def check(spine: EventSpine, random: Random, *, lists: int = 4) -> None:
    """Lists by random filters against the whole log, which no index serves."""
    everything = await collect(spine, EventFilter(), limit=1_000)
    for _ in range(lists):
        where = a_filter(random, everything)
        limit = random.choice((1, 2, 3, 7, 100))
        expected = admitted(everything, where)
        assert await collect(spine, where, limit=limit) == expected, where
        assert await collect(spine, where, limit=limit, descending=True) == expected[::-1], where


@pytest.mark.parametrize("seed", range(6))
async def test_filtered_lists_equal_a_full_scan_whatever_happens(home: Home, seed: int) -> None:
    random = Random(seed)
    spines = [new_spine(home, segment_size=random.choice((4, 50)), layout=SMALL) for _ in range(2)]
    faults = FaultPlan(write_refused=0.1, write_lost_unapplied=0.1, write_lost_applied=0.1, write_late=0.1)
    for _ in range(25):
        home.clock.advance(10)  # A circuit that opened closes again.
        spine = random.choice(spines)
        act = random.choice(("append", "append", "project", "project", "check", "redact", "restart"))
        if act == "append":
            await fill(spine, random.randint(1, 12), random)
        elif act == "project":
            home.faults.plan = faults
            try:
                await spine._index.turn(context())
            except EnginesError:
                pass
            finally:
                home.faults.plan = NO_FAULTS
        elif act == "check":
            await check(spine, random)
        elif act == "redact":
            await redact_one(home, spine, random)
        elif random.random() < 0.3:
            await spine._index.restart(context())
    await home.faults.late_writes_delivered()
    home.clock.advance(60)
    await project(spines[0])
    for spine in spines:
        await check(spine, random, lists=10)
        await spine.close()


async def redact_one(home: Home, spine: EventSpine, random: Random) -> None:
    async with spine._logs._using(await home.place("event_spine", context()), "spine") as log:
        if tail := (await log.head()).position:
            await log.redact(random.randint(1, tail))


class TestLists:
    async def test_an_event_is_in_the_list_as_soon_as_it_is_acknowledged(self, small: EventSpine) -> None:
        """Once, whether it stands before the checkpoint or behind it."""
        for count in range(1, 23):
            await small.append(context(), [numbered(count, run_id="run-1"), numbered(count, run_id="other")])
            if count % 4 == 0:
                await project(small)
            for descending in (False, True):
                found = await collect(small, EventFilter(run_id="run-1"), limit=3, descending=descending)
                expected = list(range(1, count + 1))
                assert numbers(found) == (expected[::-1] if descending else expected)

    async def test_a_rare_event_is_found_without_looking_through_the_log(self, home: Home) -> None:
        spine = new_spine(home, layout=Layout(), segment_size=50_000)
        for _ in range((LOOKED_AT_MAX + 1_000) // 500):
            await spine.append(context(), [event(event_type="message")] * 500)
        await spine.append(context(), [numbered(1, event_type="tool_call")])
        where = EventFilter(event_type="tool_call")
        assert (await spine.list(context(), where)).items == ()
        await project(spine)
        home.driver.calls.clear()
        for descending in (False, True):
            page = await spine.list(context(), where, window=Window(descending=descending))
            assert (numbers(page.items), page.after) == ([1], None)
        assert len(home.driver.calls) < 20
        await spine.close()

    @pytest.mark.parametrize("descending", [False, True])
    async def test_a_page_costs_what_is_on_it(self, home: Home, *, descending: bool) -> None:
        """Not what else the index knows of the value."""
        spine = new_spine(home, layout=Layout(), segment_size=50_000)
        for _ in range(40):
            await spine.append(
                context(), [event(event_type="tool_call"), *[event(event_type="message")] * 49]
            )
        await project(spine)
        home.driver.calls.clear()
        window = Window(limit=2, descending=descending)
        page = await spine.list(context(), EventFilter(event_type="tool_call"), window=window)
        first = [1, 51] if not descending else [1_951, 1_901]
        assert [shown.position for shown in page.items] == first
        assert page.after is not None
        assert len(home.driver.calls) < 12
        await spine.close()

    async def test_a_list_backwards_looks_at_the_tail_alone(self, home: Home) -> None:
        """Otherwise it would call for an index that there is."""
        spine, reader = (new_spine(home, layout=Layout(), segment_size=50_000) for _ in range(2))
        for _ in range(3):
            await spine.append(context(), [event(event_type="message")] * 490)
        await project(spine)
        await reader.list(context(), EventFilter(run_id="nobody"), window=Window(descending=True))
        assert reader.projector.due == 0
        await spine.close()
        await reader.close()

    async def test_an_index_is_not_believed_about_events_that_were_redacted(
        self, home: Home, small: EventSpine
    ) -> None:
        await small.append(context(), [numbered(at, run_id="run-1") for at in range(5)])
        await project(small)
        async with small._logs._using(await home.place("event_spine", context()), "spine") as log:
            await log.redact(2)
        assert numbers(await collect(small, EventFilter(run_id="run-1"))) == [0, 2, 3, 4]
        await small._index.restart(context())
        await project(small)
        assert numbers(await collect(small, EventFilter(run_id="run-1"))) == [0, 2, 3, 4]

    def test_what_nobody_can_ask_for_has_no_entry(self) -> None:
        text = (
            '{"schema":"event/1","tenant_id":"t_one","mode":"saas","env":"prod","user_id":"ada",'
            '"surface_id":"chat","run_id":"a/b c","step_id":"0","event_type":"message","source":"ui",'
            '"payload":{}}'
        )
        assert terms_of(StoredEvent(1, "id", 0, text)).values == (
            ("user_id", "ada"),
            ("event_type", "message"),
        )
        assert terms_of(StoredEvent(2, "id", 0, None)).values == ()

    @pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
    async def test_a_view_holds_about_a_page_however_large_its_events_are(
        self, home: Home, *, descending: bool
    ) -> None:
        spine = new_spine(home, layout=Layout(block=8, segment_blocks=3, shards=2), segment_size=1_000)
        large = "x" * 200_000
        for number in range(48):
            what = event(payload={"n": number, "text": large}, run_id=f"run-{number % 2}")
            await spine.append(context(), [what])
        await project(spine)
        place = await home.place("event_spine", context())
        async with spine._logs._using(place, "spine") as log:
            view = await spine._index.view(context(), place, log, {"run_id": "run-1"})
            assert view is not None
            part = await (view.before(49, limit=1_000) if descending else view.after(0, limit=1_000))
        held = [at.position for at in part.events]
        assert 5 <= len(held) <= 12
        assert held == (list(range(48, 0, -2)) if descending else list(range(2, 49, 2)))[: len(held)]
        assert part.reached == held[-1]
        where = EventFilter(run_id="run-1")
        assert numbers(await collect(spine, where, descending=descending)) == (
            list(range(47, 0, -2)) if descending else list(range(1, 48, 2))
        )
        await spine.close()


class TestProjecting:
    async def test_killed_at_any_write_it_goes_on_and_skips_nothing(self, home: Home) -> None:
        """Among them the one between the postings and the checkpoint."""
        random = Random(1)
        kill_at = 0
        while True:
            spine = new_spine(home)
            await fill(spine, 5, random)
            if not await killed_at(home, spine, kill_at):
                break
            await check(spine, random)
            await spine.close()
            kill_at += 1
        assert kill_at >= 3  # Postings in two shards, then the checkpoint.
        await project(spine)
        assert await projected(spine, home) == 5 * (kill_at + 1)
        await check(spine, random, lists=10)
        await spine.close()

    async def test_two_at_once_skip_nothing(self, home: Home) -> None:
        random = Random(2)
        spines = [new_spine(home) for _ in range(2)]
        await fill(spines[0], 60, random)
        home.faults.plan = FaultPlan(pause_s_max=0.002)
        met = 0

        async def work(spine: EventSpine) -> None:
            nonlocal met
            while True:
                try:
                    if not await spine._index.step(context()):
                        return
                except Conflict:
                    met += 1

        await asyncio.gather(*map(work, spines))
        home.faults.plan = NO_FAULTS
        assert met > 0
        assert await projected(spines[0], home) == 60
        await check(spines[1], random, lists=10)
        for spine in spines:
            await spine.close()

    @pytest.mark.parametrize("paused_at", range(4))
    async def test_one_that_was_paused_over_a_takeover_moves_nothing_back(
        self, home: Home, paused_at: int
    ) -> None:
        """Behind the lease a turn writes a block's postings, its checkpoint, the next block's postings."""
        random = Random(paused_at)
        paused, other = new_spine(home), new_spine(home)
        await fill(paused, 30, random)
        await (await index_of(home, other)).create()
        held = hold_write(home, 1 + paused_at)
        turn = asyncio.create_task(paused._index.turn(context()))
        await held.arrived()
        assert await other._index.turn(context()) is Turn.TAKEN
        home.clock.advance(20)
        while await other._index.turn(context()) is Turn.MORE:
            pass
        assert await projected(other, home) == 30
        held.release()
        assert await turn in (Turn.TAKEN, Turn.DONE)
        assert await projected(other, home) == 30
        await check(other, random, lists=10)
        await paused.close()
        await other.close()

    async def test_what_one_that_died_left_is_taken_up_after_one_lease_though_its_clock_was_ahead(
        self, home: Home, small: EventSpine
    ) -> None:
        await fill(small, 12, Random(3))
        await (await index_of(home, small)).create()
        home.clock.jump(86_400)
        held = hold_write(home, 1)  # Behind the lease: it dies there.
        turn = asyncio.create_task(small._index.turn(context()))
        await held.arrived()
        home.clock.jump(-86_400)
        other = new_spine(home)
        turns = [await other._index.turn(context())]
        home.clock.advance(DURATION_S * DRIFT)
        turns.append(await other._index.turn(context()))
        turn.cancel()
        held.release()
        await asyncio.gather(turn, return_exceptions=True)
        assert turns == [Turn.TAKEN, Turn.DONE]
        assert await projected(other, home) == 10
        await other.close()

    async def test_a_rebuild_is_not_undone_by_one_that_was_under_way(
        self, home: Home, small: EventSpine
    ) -> None:
        random = Random(4)
        await fill(small, 12, random)
        await small._index.step(context())
        held = hold_write(home, 2)  # Two shards, then the checkpoint.
        step = asyncio.create_task(small._index.step(context()))
        await held.arrived()
        await new_spine(home)._index.restart(context())
        held.release()
        with pytest.raises(Conflict):
            await step
        assert await projected(small, home) == 0
        await check(small, random)

    @pytest.mark.parametrize("fault", [Fault.LOST_UNAPPLIED, Fault.LOST_APPLIED, Fault.LATE, Fault.FORBIDDEN])
    @pytest.mark.parametrize("write", range(4))
    async def test_a_write_whose_outcome_is_unknown_is_made_again(
        self, home: Home, small: EventSpine, fault: Fault, write: int
    ) -> None:
        random = Random(5)
        await fill(small, 12, random)
        home.faults.script(*[Fault.NONE] * write, fault)
        with contextlib.suppress(OutcomeUnknown, BackendRefused):
            await small._index.step(context())
        assert home.faults.seen[fault] == 1
        await check(small, random)
        await project(small)
        await home.faults.late_writes_delivered()
        assert await projected(small, home) == 10
        await check(small, random, lists=10)

    async def test_a_lost_posting_holds_the_checkpoint_back(self, home: Home, small: EventSpine) -> None:
        await fill(small, 5, Random(6))
        home.faults.script(Fault.NONE, Fault.LOST_UNAPPLIED)  # The layout, then a shard.
        with pytest.raises(OutcomeUnknown):
            await small._index.step(context())
        assert await projected(small, home) == 0

    async def test_the_layout_is_fixed_by_its_first_use(self, home: Home, small: EventSpine) -> None:
        random = Random(7)
        await fill(small, 20, random)
        await small._index.step(context())
        other = new_spine(home, layout=Layout(block=4, segment_blocks=2, shards=3))
        await project(other)
        assert await projected(other, home) == 20
        await check(other, random, lists=10)
        await check(small, random, lists=10)
        await other.close()


class TestProjector:
    async def test_a_backend_that_fails_and_heals_is_caught_up_with(
        self, home: Home, small: EventSpine
    ) -> None:
        random = Random(8)
        await fill(small, 53, random)
        assert small.projector.due == 1
        home.faults.script(Fault.FORBIDDEN, Fault.FORBIDDEN)
        async with running(small.projector):
            await until(lambda: small.projector.failures == 1)
            assert await projected(small, home) == 0
            await check(small, random)
            while small.projector.due:
                home.clock.advance(1)
                await asyncio.sleep(0.01)
        assert await projected(small, home) == 50
        await check(small, random)

    async def test_a_spine_without_a_whole_block_costs_nothing(self, home: Home, small: EventSpine) -> None:
        await small.append(context(), [numbered(1), numbered(2)])
        await collect(small, EventFilter(run_id="run-1"))
        async with running(small.projector):
            home.driver.calls.clear()
            await asyncio.sleep(0.05)
            assert (small.projector.due, home.driver.calls) == (0, [])

    async def test_a_list_that_looks_through_a_block_makes_it_due(
        self, home: Home, small: EventSpine
    ) -> None:
        """As after a restart, or a move: nobody in this process saw the appends."""
        await fill(small, 12, Random(9))
        other = new_spine(home)
        await other.list(context(), EventFilter(run_id="run-1"))
        async with running(other.projector):
            await until(lambda: other.projector.due == 0)
        assert await projected(other, home) == 10
        await other.close()

    async def test_one_that_hangs_or_fails_delays_no_other(self, home: Home) -> None:
        hanging, done = asyncio.Event(), asyncio.Event()

        async def turn(asker: RequestContext) -> Turn:
            if asker.tenant_id == "t_hangs":
                await hanging.wait()
            if asker.tenant_id == "t_fails":
                raise Unavailable("the backend is away")
            done.set()
            return Turn.DONE

        projector = Projector(turn, home.clock)
        for name in ("t_hangs", "t_fails", "t_works"):
            projector.notice((name,), context(tenant_id=name))
        async with running(projector):
            async with asyncio.timeout(5):
                await done.wait()
            await until(lambda: projector.due == 2 and projector.failures == 1)
            assert projector.lag_s == 0
            home.clock.advance(0.5)  # Less than the first pause after a failure.
            await asyncio.sleep(0.15)
            assert (projector.failures, projector.lag_s) == (1, 0.5)

    async def test_there_is_a_bound_on_what_is_remembered(self, home: Home) -> None:
        async def turn(_: RequestContext) -> Turn:
            return Turn.DONE

        projector = Projector(turn, home.clock)
        for number in range(DUE_MAX + 5):
            projector.notice((str(number),), context())
        assert projector.due == DUE_MAX


def hold_write(home: Home, number: int) -> HeldWrite:
    """The write after `number` more is held."""
    for _ in range(number):
        home.faults.hold_next_write().release()
    return home.faults.hold_next_write()


async def killed_at(home: Home, spine: EventSpine, number: int) -> bool:
    """A step that dies at its write after `number` others; False where it did not come so far."""
    held = hold_write(home, number)
    step = asyncio.create_task(spine._index.step(context()))
    arrived = asyncio.create_task(held.arrived())
    await asyncio.wait((step, arrived), return_when=asyncio.FIRST_COMPLETED)
    was_killed = not step.done()
    for task in (step, arrived):
        task.cancel()
    await asyncio.gather(step, arrived, return_exceptions=True)
    home.faults._holds.clear()
    return was_killed


@contextlib.asynccontextmanager
async def running(projector: Projector) -> AsyncIterator[None]:
    task = asyncio.create_task(projector.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 (the projector tells numbers, not news)
            await asyncio.sleep(0.01)
