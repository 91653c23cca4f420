"""Analytics: item by item, kept with all that was said, judged by the contract in force."""

from __future__ import annotations

import pytest

from engines import catalogue
from engines.errors import (
    ContextMismatch,
    EnginesError,
    Forbidden,
    Invalid,
    MissingRoute,
    TooLarge,
)
from engines.stores.analytics import (
    EVENTS_MAX,
    PLATFORMS_MAX,
    Analytics,
    NewAnalyticsEvent,
)
from engines.stores.analytics_plans import PART_EVENTS_MAX
from engines.stores.attribution import ContractRef
from engines.stores.events import EventSpine
from tests.stores.analytics_home import WEB, Kept, everything, keyed, numbers, seen, statuses
from tests.stores.home import Home, context


class TestItems:
    async def test_an_event_stands_on_the_spine_with_all_that_was_said_and_all_that_the_context_says(
        self, analytics: Analytics, small: EventSpine
    ) -> None:
        fields = {
            "platform": "web",
            "request_id": "req-9",
            "run_id": "run-9",
            "step_id": "3",
            "utm_source": "s",
            "utm_medium": "m",
            "utm_campaign": "c",
            "utm_term": "t",
            "utm_content": "o",
            "page_url": "https://example.com/a?b",
            "page_title": "Ä & <b>",
            "referrer": "https://example.org/",
            "occurred_at": "2026-11-21T14:00:00Z",
            "source": "connector",
        }
        who = context(session_id="s1", project_id="p1", app_id="app", thread_id="th")
        ingested = await analytics.ingest(who, [seen(7, **fields)])
        assert (ingested.accepted, ingested.refused, statuses(ingested)) == (1, 0, [201])
        (shown,) = await everything(analytics)
        assert {name: getattr(shown, name) for name in fields} == fields
        assert (shown.session_id, shown.event_type, shown.payload) == ("s1", "page_view", {"n": 7})
        assert (shown.project_id, shown.app_id, shown.thread_id) == ("p1", "app", "th")
        assert (shown.contract, shown.gate_status, shown.gate_error) == (None, None, None)
        (told,) = ingested.events
        assert (told.event_id, told.position, told.cursor) == (shown.event_id, shown.position, shown.cursor)
        (event,) = (await small.list(context())).items
        assert (event.event_type, event.surface_id, event.run_id) == ("analytics", "chat", "run-9")
        assert event.payload is not None
        assert event.payload["event_type"] == "page_view"
        assert event.payload["utm_campaign"] == "c"

    async def test_one_that_breaks_a_rule_is_refused_by_field_and_its_neighbours_are_not(
        self, analytics: Analytics
    ) -> None:
        events = [
            seen(0),
            seen(1, platform="a b"),
            seen(2, session_id="a/b"),
            seen(3, occurred_at="today"),
            seen(4, utm_source=""),
            seen(5, page_url="x" * 2_049),
            seen(6, event_type="Page"),
            seen(7, event_id="nobody"),
            seen(8, payload={"n": 8, "deep": float("nan")}),
            seen(9),
        ]
        ingested = await analytics.ingest(context(), events)
        assert statuses(ingested) == [201, *[400] * 8, 201]
        fields = [event.problem.field for event in ingested.events if event.problem]
        assert fields == [
            *("platform", "session_id", "occurred_at", "utm_source"),
            *("page_url", "event_type", "event_id", "payload"),
        ]
        assert numbers(await everything(analytics)) == [0, 9]

    async def test_one_that_is_too_large_is_refused_alone(self, analytics: Analytics) -> None:
        large = seen(1, payload={"n": 1, "text": '"' * 40_000})
        ingested = await analytics.ingest(context(), [seen(0), large, seen(2)])
        assert statuses(ingested) == [201, 413, 201]
        assert numbers(await everything(analytics)) == [0, 2]

    async def test_a_name_that_a_client_chose_is_told_and_kept_short(self, analytics: Analytics) -> None:
        refused: list[NewAnalyticsEvent | EnginesError] = [Invalid("é" * 900, field="x" * 900)] * 999
        ingested = await analytics.ingest(context(), [*refused, seen(0)], request=keyed())
        assert (ingested.accepted, ingested.refused) == (1, 999)
        problem = ingested.events[0].problem
        assert problem is not None
        assert (len(problem.detail), len(problem.field or "")) == (200, 80)
        assert (await analytics.ingest(context(), [*refused, seen(0)], request=keyed())).replayed

    async def test_another_identity_refuses_the_whole_request(self, home: Home, analytics: Analytics) -> None:
        with pytest.raises(ContextMismatch) as refusal:
            await analytics.ingest(context(), [seen(0), seen(1, tenant_id="t_two")])
        assert refusal.value.field == "events[1].tenant_id"
        assert "write" not in home.driver.calls

    @pytest.mark.parametrize(("count", "error"), [(0, Invalid), (EVENTS_MAX + 1, TooLarge)])
    async def test_a_request_has_1_to_1000_events(
        self, analytics: Analytics, count: int, error: type[EnginesError]
    ) -> None:
        with pytest.raises(error) as refusal:
            await analytics.ingest(context(), [seen()] * count)
        assert refusal.value.field == "events"

    async def test_a_thousand_events_stand_in_their_order_in_few_commits(
        self, home: Home, analytics: Analytics
    ) -> None:
        await analytics.ingest(context(), [seen(-1)])
        home.driver.calls.clear()
        ingested = await analytics.ingest(context(), [seen(number) for number in range(EVENTS_MAX)])
        assert ingested.accepted == EVENTS_MAX
        positions = [event.position for event in ingested.events]
        assert positions == list(range(2, EVENTS_MAX + 2))
        assert home.driver.calls.count("write") <= 1 + EVENTS_MAX // PART_EVENTS_MAX
        assert numbers(await everything(analytics)) == list(range(-1, EVENTS_MAX))

    @pytest.mark.parametrize("chars", [200, 2_000, 20_000])
    async def test_large_events_are_split_over_requests_to_the_log(
        self, analytics: Analytics, chars: int
    ) -> None:
        events = [seen(number, payload={"n": number, "text": 'é"' * (chars // 2)}) for number in range(60)]
        assert (await analytics.ingest(context(), events)).accepted == 60
        assert numbers(await everything(analytics)) == list(range(60))

    async def test_without_a_route_it_is_a_missing_route(self, home: Home, analytics: Analytics) -> None:
        home.missing = {catalogue.ANALYTICS}
        for call in (
            analytics.ingest(context(), [seen()]),
            analytics.list(context()),
            analytics.index_status(context()),
        ):
            with pytest.raises(MissingRoute):
                await call
        home.missing = {catalogue.EVENT_SPINE}
        with pytest.raises(MissingRoute):
            await analytics.ingest(context(), [seen()])
        home.missing = set()
        assert await everything(analytics) == []

    @pytest.mark.parametrize(
        ("permissions", "works"),
        [
            ({"analytics.write"}, {"ingest"}),
            ({"analytics.read"}, {"list"}),
            ({"analytics.beacon"}, {"beacon"}),
            ({"analytics.beacon", "events.read"}, set()),
            ({"events.write", "events.read"}, set()),
        ],
    )
    async def test_permissions(self, analytics: Analytics, permissions: set[str], works: set[str]) -> None:
        who = context(permissions=frozenset(permissions))
        for name, call in {
            "ingest": analytics.ingest(who, [seen()]),
            "list": analytics.list(who),
            "beacon": analytics.ingest_beacon(who, [seen()]),
        }.items():
            if name in works:
                await call
            else:
                with pytest.raises(Forbidden):
                    await call


class TestContracts:
    async def test_values_are_validated_against_the_contract_in_force(
        self, analytics: Analytics, contracts: Kept
    ) -> None:
        contracts.put(WEB, version=3)
        events = [
            seen(0, platform="web", payload={}, utm_source="newsletter", utm_campaign="spring_2026"),
            seen(1, platform="web", payload={}, utm_source="Newsletter"),
            seen(2, platform="web", payload={}, utm_campaign="spring"),
            seen(3, platform="web", payload={}, utm_medium="email"),
            seen(4, platform="web", payload={}, page_title="T"),
            seen(5, platform="web", payload={"other": 1}),
            seen(6, platform="web", payload={"button": 1}, page_url="https://example.com/"),
        ]
        ingested = await analytics.ingest(context(), events)
        assert statuses(ingested) == [201, 400, 400, 400, 400, 400, 201]
        assert [event.problem.field for event in ingested.events if event.problem] == [
            *("utm_source", "utm_campaign", "utm_medium", "page_title", "payload.other"),
        ]
        kept = await everything(analytics)
        assert [event.contract for event in kept] == [ContractRef("c", 3)] * 2
        assert contracts.asked == ["web"]

    async def test_where_none_is_in_force_an_event_is_taken_in_and_shows_none(
        self, analytics: Analytics, contracts: Kept
    ) -> None:
        contracts.put(WEB)
        events = [seen(0, platform="ios", utm_source="anything"), seen(1, utm_source="anything")]
        assert (await analytics.ingest(context(), events)).accepted == 2
        assert [event.contract for event in await everything(analytics)] == [None, None]

    async def test_a_request_asks_for_few_contracts(self, analytics: Analytics, contracts: Kept) -> None:
        events = [seen(number, platform=f"p{number}") for number in range(PLATFORMS_MAX + 2)]
        ingested = await analytics.ingest(context(), events)
        assert statuses(ingested) == [201] * PLATFORMS_MAX + [400] * 2
        assert len(contracts.asked) == PLATFORMS_MAX
