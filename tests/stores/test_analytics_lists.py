"""Lists of analytics: whole by any filter, however far the index has come, and found again after moves."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from engines.core.listing import Window
from engines.errors import (
    Forbidden,
    Invalid,
)
from engines.stores.analytics import (
    Analytics,
    AnalyticsEvent,
    AnalyticsFilter,
)
from engines.stores.events import EventSpine, NewEvent
from tests.stores.analytics_home import SMALL, collect, everything, numbers, project, seen
from tests.stores.home import Home, context


class TestLists:
    @pytest.mark.parametrize("projected", [0, 5, 100])
    @pytest.mark.parametrize("seed", range(2))
    async def test_lists_by_any_filter_are_whole_however_far_the_index_has_come(
        self, home: Home, analytics: Analytics, small: EventSpine, projected: int, seed: int
    ) -> None:
        random = Random(seed)
        number = 0
        while number < 120:
            if random.random() < 0.3:
                kind = random.choice(["rl", "analytics"])
                own: dict[str, Any] = {"n": number, "platform": random.choice(["web", 7]), "session_id": "s1"}
                await small.append(context(), [NewEvent(event_type=kind, payload=own)])
                number += 1
            batch = [
                seen(
                    number + index,
                    event_type=random.choice(["page_view", "click", "analytics"]),
                    platform=random.choice(["web", "ios", None]),
                    session_id=random.choice(["s1", "s2", "s3", None]),
                )
                for index in range(random.randrange(1, 8))
            ]
            await analytics.ingest(context(surface_id=random.choice(["chat", "canvas"])), batch)
            number += len(batch)
            home.clock.advance(1)
        for _ in range(projected):
            if not await analytics._index.step(context()):
                break
        assert (await analytics.index_status(context())).position >= min(projected, 10) * SMALL.block
        all_of_it = await everything(analytics)
        spine = (await small.list(context(), window=Window(limit=1_000))).items
        assert [event.position for event in all_of_it] == [
            event.position for event in spine if event.event_type == "analytics"
        ]
        for _ in range(25):
            where = AnalyticsFilter(
                session_id=random.choice(["s1", "s2", "nobody", None]),
                platform=random.choice(["web", "ios", None, None]),
                surface_id=random.choice(["chat", "CANVAS", None, None]),
                event_type=random.choice(["page_view", "click", None, None]),
                since=random.choice([None, None, random.choice(spine).timestamp]),
                until=random.choice([None, None, random.choice(spine).timestamp]),
            )
            chosen = [event for event in all_of_it if admits(where, event)]
            limit = random.choice([1, 7, 100])
            assert await collect(analytics, where, limit=limit) == chosen, where
            assert await collect(analytics, where, limit=limit, descending=True) == chosen[::-1], where

    async def test_a_list_reads_what_it_shows_and_not_the_whole_spine(
        self, home: Home, analytics: Analytics, small: EventSpine
    ) -> None:
        for _ in range(20):
            await small.append(context(), [NewEvent(event_type="rl", payload={})] * 100)
        await analytics.ingest(context(), [seen(number, session_id="s1") for number in range(10)])
        await project(analytics)
        home.driver.calls.clear()
        found = await collect(analytics, AnalyticsFilter(session_id="s1"))
        assert numbers(found) == list(range(10))
        indexed = len(home.driver.calls)
        assert indexed < 120
        assert (await analytics.index_status(context())).lag < SMALL.block

    @pytest.mark.parametrize(
        ("where", "field"),
        [
            (AnalyticsFilter(session_id="a/b"), "session_id"),
            (AnalyticsFilter(platform=""), "platform"),
            (AnalyticsFilter(surface_id="///"), "surface_id"),
            (AnalyticsFilter(event_type="Page"), "event_type"),
            (AnalyticsFilter(since="today"), "since"),
            (AnalyticsFilter(until="today"), "until"),
        ],
    )
    async def test_a_filter_that_no_event_can_match_is_invalid(
        self, analytics: Analytics, where: AnalyticsFilter, field: str
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await analytics.list(context(), where)
        assert refusal.value.field == field

    async def test_another_tenant_and_env_see_nothing(self, analytics: Analytics) -> None:
        await analytics.ingest(context(), [seen(0, session_id="s1")])
        for other in ({"tenant_id": "t_two"}, {"env": "dev"}):
            assert (await analytics.list(context(**other))).items == ()

    async def test_the_index_is_made_anew_where_the_spines_route_leads_elsewhere_and_serves_again_when_back(
        self, home: Home, analytics: Analytics
    ) -> None:
        await analytics.ingest(context(), [seen(number) for number in range(25)])
        await project(analytics)
        home.generation = 1  # Another log; and the store's own shards have moved as well.
        await analytics.ingest(context(), [seen(100)])
        assert (await analytics.index_status(context())).position == 0
        assert numbers(await everything(analytics)) == [100]
        home.generation = 0
        assert (await analytics.index_status(context())).position == 20
        assert numbers(await everything(analytics)) == list(range(25))

    async def test_an_index_of_one_log_is_not_taken_for_that_of_another(
        self, home: Home, analytics: Analytics
    ) -> None:
        """The spine's backend is another, the store's is not: the positions mean nothing any more."""
        await analytics.ingest(context(), [seen(number) for number in range(25)])
        await project(analytics)
        home.backend_id = "second"
        assert (await analytics.index_status(context())).position == 0
        home.backend_id = "first"
        assert (await analytics.index_status(context())).position == 20

    @pytest.mark.parametrize("cut", range(6))
    async def test_a_projection_that_was_cut_short_is_made_again_and_skips_nothing(
        self, home: Home, analytics: Analytics, cut: int
    ) -> None:
        await analytics.ingest(context(), [seen(number, session_id=f"s{number % 3}") for number in range(60)])
        for _ in range(cut):
            home.faults.hold_next_write().release()
        held = home.faults.hold_next_write()
        turn = asyncio.create_task(analytics._index.turn(context()))
        await held.arrived()
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)
        held.release()
        assert (await analytics.index_status(context())).position < 60
        await project(analytics)
        assert (await analytics.index_status(context())).position == 60
        for session in range(3):
            found = await collect(analytics, AnalyticsFilter(session_id=f"s{session}"))
            assert numbers(found) == list(range(session, 60, 3))

    async def test_rebuilding_takes_nothing_away(self, analytics: Analytics) -> None:
        await analytics.ingest(context(), [seen(number, session_id="s1") for number in range(30)])
        await project(analytics)
        with pytest.raises(Forbidden):
            await analytics.rebuild_index(context(permissions=frozenset({"analytics.read"})))
        assert (await analytics.rebuild_index(context())).position == 0
        assert numbers(await collect(analytics, AnalyticsFilter(session_id="s1"))) == list(range(30))
        await project(analytics)
        assert (await analytics.index_status(context())).position == 30
        assert numbers(await collect(analytics, AnalyticsFilter(session_id="s1"))) == list(range(30))


class TestOwnForms:
    @pytest.mark.parametrize(
        "payload",
        [
            {},
            {"platform": "web", "x": 1},
            {"platform": 7, "session_id": ["s"]},
            {"event_type": "page_view", "gate_status": "maybe"},
            {"contract": {"id": 1}},
            {"payload": [1]},
        ],
    )
    async def test_a_clients_own_analytics_event_is_shown_as_it_is(
        self, analytics: Analytics, small: EventSpine, payload: dict[str, Any]
    ) -> None:
        await small.append(context(), [NewEvent(event_type="analytics", payload=payload)])
        (event,) = await everything(analytics)
        assert event.payload == payload
        if payload.get("platform") == "web":
            assert (await collect(analytics, AnalyticsFilter(platform="web"))) == [event]


def admits(where: AnalyticsFilter, event: AnalyticsEvent) -> bool:
    surface = None if where.surface_id is None else where.surface_id.lower()
    return (
        where.session_id in (None, event.session_id)
        and where.platform in (None, event.platform)
        and surface in (None, event.surface_id)
        and where.event_type in (None, event.event_type)
        and (where.since is None or event.timestamp >= where.since)
        and (where.until is None or event.timestamp < where.until)
    )
