"""What each store promises, on each backend: with two processes at once, and replies that are lost.

The rules of each store are tested beside it, on two of the backends. Here is what its promise rests on and
backends differ in: conditional writes over several documents, and what came of a write that nobody answered.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Final, TypeVar

import pytest
import pytest_asyncio

from engines.clock import Clock
from engines.core.listing import Window
from engines.core.records import Condition
from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.errors import Conflict, Forbidden, OutcomeUnknown, PreconditionFailed, Throttled, Unavailable
from engines.ports.documents import DocumentDriver
from engines.stores import realtime_rooms
from engines.stores.analytics import Analytics, NewAnalyticsEvent
from engines.stores.attribution_contracts import ContractDefinitions
from engines.stores.budget_records import ReservationInput, SettlementInput
from engines.stores.definition_records import Definition, DefinitionFilter, DefinitionInput
from engines.stores.definition_schemas import SCHEMA_NAMED
from engines.stores.kpi_records import MeasurementInput
from engines.stores.kpis import Kpis
from engines.stores.realtime import RealtimeRegistry
from engines.stores.realtime_rooms import RoomMemberInput
from engines.stores.scoped import Change
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan
from engines.wiring import open_driver as open_url
from tests.backends import DYNAMODB_CREDENTIALS, new_url, session_server
from tests.contexts import PERMISSIONS_OF
from tests.safety.house import House, asked
from tests.stores.budget_home import ADA, Spender, hard
from tests.stores.definitions_home import Told
from tests.stores.home import Home, context
from tests.stores.subjects import keyed
from tests.stores.ticking import ticking

T = TypeVar("T")
PAGES: Final = SCHEMA_NAMED["pages"]
FLOWS: Final = SCHEMA_NAMED["flows"]
KPIS: Final = SCHEMA_NAMED["kpis"]
ALL: Final = Window(limit=1_000)
SLUGS = 3
WRITERS = 4
TURNS = 3
SPENDERS = 12
LIMIT = 5
SENDERS = 4
# Met first, whatever chance then decides.
SCRIPT: Final = (Fault.LOST_APPLIED, Fault.LATE, Fault.LOST_UNAPPLIED, Fault.REFUSED)
FAULTS: Final = FaultPlan(
    write_refused=0.05, write_lost_unapplied=0.05, write_lost_applied=0.15, write_late=0.05, read_refused=0.02
)


@pytest.fixture(params=DOCUMENT_DRIVERS)
def open_driver(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Clock], DocumentDriver]:
    """In place of the folder's: every driver."""
    for name, value in DYNAMODB_CREDENTIALS.items():
        monkeypatch.setenv(f"AWS_{name.upper()}", value)
    url = new_url(request.param, session_server(request, request.param), tmp_path)
    return lambda clock: open_url(url, clock)[0]


@pytest_asyncio.fixture(autouse=True)
async def time_that_passes(home: Home) -> AsyncIterator[None]:
    """Processes wait for each other by the clock."""
    time = asyncio.create_task(ticking(home.clock))
    yield
    home.faults.plan = NO_FAULTS
    time.cancel()


@pytest_asyncio.fixture
async def two(home: Home) -> AsyncIterator[tuple[Told, Told]]:
    pair = Told(home, "one"), Told(home, "two")
    yield pair
    for told in pair:
        await told.close()


async def answered(call: Callable[[], Awaitable[T]]) -> T:
    """Asked again until somebody says what came of it."""
    while True:
        try:
            return await call()
        except (Unavailable, OutcomeUnknown):
            continue


async def made(call: Callable[[], Awaitable[T]]) -> T:
    """The same of a change whose answer is lost on its way to who asked: it is asked for once more."""
    await answered(call)
    return await answered(call)


async def healed(home: Home) -> None:
    """No fault from here on, and each of those that were scripted was met."""
    home.faults.plan = NO_FAULTS
    await home.faults.late_writes_delivered()
    assert all(home.faults.seen[fault] for fault in SCRIPT)


def break_down(home: Home) -> None:
    home.faults.script(*SCRIPT)
    home.faults.plan = FAULTS


async def test_a_slug_is_one_definitions_whoever_asks_at_once(two: tuple[Told, Told]) -> None:
    def create(slug: int, number: int) -> Awaitable[Change[Definition]]:
        body = DefinitionInput(json_blob={"slug": f"s{slug}", "content": number})
        return two[number % 2].definitions.create(ADA, PAGES, body)

    for slug in range(SLUGS):
        outcomes = await asyncio.gather(
            *(create(slug, number) for number in range(WRITERS)), return_exceptions=True
        )
        won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert [type(one) for one in outcomes if isinstance(one, BaseException)] == [Conflict] * (WRITERS - 1)
        found = await two[slug % 2].definitions.list(ADA, PAGES, DefinitionFilter(slug=f"s{slug}"))
        assert [page.id for page in found.items] == [won[0].record.id]
    assert len((await two[0].definitions.list(ADA, PAGES)).items) == SLUGS


async def test_no_version_is_lost_doubled_or_untold(home: Home, two: tuple[Told, Told]) -> None:
    """Each writer counts up what it read; who is too late reads again."""
    first = DefinitionInput(json_blob={"nodes": [{"id": "a"}], "count": 0})
    await two[0].definitions.put(ADA, FLOWS, "f", first, condition=Condition(absent=True))
    break_down(home)

    async def count_up(number: int) -> None:
        mine, turns = two[number % 2].definitions, 0
        while turns < TURNS:
            read = await answered(lambda: mine.get(ADA, FLOWS, "f"))
            body = DefinitionInput(json_blob={**read.json_blob, "count": read.json_blob["count"] + 1})
            condition = Condition(versions=(read.etag.strip('"'),))
            request = keyed(f"{number}-{read.version}")
            try:
                await made(
                    lambda: mine.put(ADA, FLOWS, "f", body, condition=condition, request=request)  # noqa: B023
                )
            except (PreconditionFailed, Conflict):
                continue
            turns += 1

    await asyncio.gather(*map(count_up, range(WRITERS)))
    await healed(home)
    last = WRITERS * TURNS + 1
    versions = (await two[0].definitions.versions(ADA, FLOWS, "f", window=ALL)).items
    assert [(one.version, one.json_blob["count"]) for one in versions] == [(n + 1, n) for n in range(last)]
    assert [payload["version"] for payload in await two[0].told(last)] == list(range(1, last + 1))


async def test_no_hard_limit_is_passed(home: Home) -> None:
    two = Spender(home, "one"), Spender(home, "two")
    await two[0].limit(hard(str(LIMIT)))
    break_down(home)

    async def spend(number: int) -> bool:
        budget, said = two[number % 2].budget, ReservationInput(amount="1", currency="USD", ttl_seconds=3_600)
        try:
            held = await made(lambda: budget.reserve(ADA, said, request=keyed(f"r{number}")))
        except (Throttled, Conflict) as refusal:
            if refusal.reason_code != "hard_limit":
                raise
            return False
        cost, id_ = SettlementInput(cost="1"), held.record.reservation_id
        await made(lambda: budget.settle(ADA, id_, cost, request=keyed(f"s{number}")))
        return True

    done = sum(await asyncio.gather(*map(spend, range(SPENDERS))))
    # One at a time meets faults whatever those at once shared.
    for number in range(SPENDERS, SPENDERS + len(SCRIPT)):
        done += await spend(number)
    await healed(home)
    assert done == LIMIT, "every unit was given out, and none twice"
    summary = await two[1].reconciled()
    assert (summary.total.entries, Decimal(summary.total.cost)) == (LIMIT, Decimal(LIMIT))
    assert await two[0].left() == (LIMIT, 0)
    told = await two[0].told(LIMIT)
    assert len({event["usage_id"] for event in told}) == len(told) == LIMIT
    for spender in two:
        await spender.close()


async def test_no_analytics_event_is_dropped_or_doubled(home: Home, two: tuple[Told, Told]) -> None:
    stores = [
        Analytics(home, told.spine, ContractDefinitions(told.definitions, home.clock), home.clock)
        for told in two
    ]
    break_down(home)

    async def send(sender: int) -> None:
        for turn in range(TURNS):
            numbers = [sender * 100 + turn * 10 + index for index in range(5)]
            events = [NewAnalyticsEvent(event_type="page_view", payload={"n": n}) for n in numbers]
            request, store = keyed(f"{sender}-{turn}"), stores[sender % 2]
            while (
                await made(lambda: store.ingest(ADA, events, request=request))  # noqa: B023
            ).refused:
                pass

    await asyncio.gather(*map(send, range(SENDERS)))
    await healed(home)
    listed = (await stores[0].list(ADA, window=ALL)).items
    found = Counter((event.payload or {})["n"] for event in listed)
    assert set(found) == {
        s * 100 + t * 10 + n for s in range(SENDERS) for t in range(TURNS) for n in range(5)
    }
    assert set(found.values()) == {1}


async def test_no_decision_is_told_that_is_not_on_the_spine_once(home: Home) -> None:
    houses = House(home), House(home)
    for house in houses:
        await house.open()
    break_down(home)

    async def decide(number: int) -> list[str]:
        gates, told = houses[number % 2].gates, []
        for turn in range(TURNS):
            subject = f"{number}-{turn}"
            decided = await made(
                lambda: gates.evaluate(ADA, asked(subject=subject), request=keyed(subject))  # noqa: B023
            )
            told.append(decided.answer.event_id)
        return told

    told = [event_id for each in await asyncio.gather(*map(decide, range(SENDERS))) for event_id in each]
    await healed(home)
    events = await houses[0].decisions()
    assert sorted(event.event_id for event in events) == sorted(told)
    subjects = {(event.payload or {})["subject"] for event in events}
    assert len(subjects) == len(events) == SENDERS * TURNS
    for house in houses:
        await house.close()


async def test_a_room_is_never_overfull_without_a_host_or_untold(
    home: Home, two: tuple[Told, Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More come in at once than there is room for; then all who may say so leave at once."""
    monkeypatch.setattr(realtime_rooms, "MEMBERS_MAX", LIMIT)
    registries = [RealtimeRegistry(home, told.announcements, home.clock) for told in two]
    people = [context(user_id=f"u{n}", permissions=PERMISSIONS_OF["member"]) for n in range(SENDERS * 2)]
    host = RoomMemberInput(role="host")
    break_down(home)

    async def changed(call: Callable[[], Awaitable[object]]) -> int:
        try:
            await made(call)
        except (Conflict, Forbidden):
            return 0
        return 1

    async def come_in(number: int) -> int:
        who, registry = people[number].user_id, registries[number % 2]
        return await changed(
            lambda: registry.put(people[0], "thread", "t", who, host, request=keyed(f"in-{who}"))
        )

    async def leave(number: int) -> int:
        who, registry = people[number], registries[number % 2]
        return await changed(
            lambda: registry.delete(who, "thread", "t", who.user_id, request=keyed(f"out-{who.user_id}"))
        )

    assert await come_in(0) == 1
    entered = sum(await asyncio.gather(*map(come_in, range(1, len(people)))))
    inside = (await answered(lambda: registries[0].list(people[0], "thread", "t"))).items
    assert entered + 1 == len(inside) == LIMIT
    numbers = [int(one.user_id.removeprefix("u")) for one in inside]
    left = sum(await asyncio.gather(*map(leave, numbers)))
    await healed(home)
    stayed = (await registries[1].list(people[0], "thread", "t")).items
    assert (left, [one.role for one in stayed]) == (LIMIT - 1, ["host"])
    told = await two[0].told(LIMIT + left)
    assert [one["version"] for one in told] == list(range(1, LIMIT + left + 1))


async def test_no_measurement_is_lost_or_doubled(home: Home, two: tuple[Told, Told]) -> None:
    blob = DefinitionInput(json_blob={"aggregation": "sum"})
    await two[0].definitions.put(ADA, KPIS, "k", blob, condition=Condition(absent=True))
    stores = [Kpis(home, told.definitions, home.ids, home.clock) for told in two]
    break_down(home)

    async def measure(number: int) -> None:
        for turn in range(TURNS):
            said, request = MeasurementInput(value=10 * number + turn), keyed(f"{number}-{turn}")
            await made(lambda: stores[number % 2].measure(ADA, "k", said, request=request))  # noqa: B023

    await asyncio.gather(*map(measure, range(SENDERS)))
    await healed(home)
    wanted = [10 * number + turn for number in range(SENDERS) for turn in range(TURNS)]
    listed = (await stores[1].measurements(ADA, "k", window=ALL)).items
    assert sorted(int(one.value or 0) for one in listed) == wanted
    reading = await stores[0].reading(ADA, "k")
    assert (reading.value, reading.count) == (sum(wanted), len(wanted))
    for store in stores:
        await store.close()
