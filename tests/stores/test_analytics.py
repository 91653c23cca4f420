"""Rules of analytics: item by item, kept whatever the gates say, repeated safely, found by what they are."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

import msgspec
import pytest

from engines import catalogue
from engines.core.idempotency import Request, identify
from engines.core.index import Layout
from engines.core.listing import Window
from engines.errors import (
    ContextMismatch,
    EnginesError,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    MissingRoute,
    OutcomeUnknown,
    TooLarge,
    Unavailable,
)
from engines.scope import RequestContext
from engines.stores.analytics import (
    EVENTS_MAX,
    PLATFORMS_MAX,
    Analytics,
    AnalyticsEvent,
    AnalyticsFilter,
    EventGate,
    GateStatus,
    Ingested,
    NewAnalyticsEvent,
)
from engines.stores.analytics_plans import PART_EVENTS_MAX
from engines.stores.attribution import AttributionContract, ContractInForce, ContractRef
from engines.stores.events import EventSpine, NewEvent
from engines.testing.faults import Fault, FaultPlan
from tests.stores.home import Home, context

SMALL = Layout(block=10, segment_blocks=3, shards=2)
WEB = {
    "platform": "web",
    "utm_template": {"utm_source": "newsletter", "utm_campaign": "{campaign}_{month}"},
    "allowed_fields": ["page_url", "payload.button"],
    "allowed_hosts": ["example.com"],
}


class Kept:
    """The contracts of one test, by platform."""

    def __init__(self) -> None:
        self.contracts: dict[str, ContractInForce] = {}
        self.asked: list[str] = []

    def put(self, blob: dict[str, Any], version: int = 1) -> None:
        contract = msgspec.convert(blob, AttributionContract)
        self.contracts[contract.platform] = ContractInForce(ContractRef("c", version), contract)

    async def contract_in_force(self, _: RequestContext, platform: str) -> ContractInForce | None:
        self.asked.append(platform)
        return self.contracts.get(platform)


FAILED = GateStatus(status="fail", gate="budget", reason_code="cost_not_told")


class Gates:
    """Gates that say what they were told to say, raise it, or never answer."""

    def __init__(self, says: GateStatus | Exception | None = None, *, hangs: bool = False) -> None:
        self.says = says
        self.hangs = hangs
        self.asked: list[tuple[int, Request | None]] = []
        self.came = asyncio.Event()

    async def judge(self, _: RequestContext, *, count: int, request: Request | None) -> GateStatus | None:
        self.asked.append((count, request))
        self.came.set()
        if self.hangs:
            await asyncio.Event().wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@pytest.fixture
def contracts() -> Kept:
    return Kept()


@pytest.fixture
async def small(home: Home) -> AsyncIterator[EventSpine]:
    spine = EventSpine(home, home.ids, home.clock, index_layout_default=SMALL)
    yield spine
    await spine.close()


@pytest.fixture
def analytics(home: Home, small: EventSpine, contracts: Kept) -> Analytics:
    return Analytics(home, small, contracts, home.clock)


def gated(home: Home, spine: EventSpine, gate: EventGate) -> Analytics:
    return Analytics(home, spine, Kept(), home.clock, gate=gate)


def seen(number: int = 0, **fields: Any) -> NewAnalyticsEvent:
    return NewAnalyticsEvent(**{"event_type": "page_view", "payload": {"n": number}} | fields)


def keyed(key: str = "k", body: bytes = b"{}") -> Request:
    return identify("t_one", "prod", "ada", "POST", "/analytics/events", key, body=body)


async def collect(
    analytics: Analytics, where: AnalyticsFilter, *, limit: int = 100, descending: bool = False
) -> list[AnalyticsEvent]:
    found: list[AnalyticsEvent] = []
    after: str | None = None
    for _ in range(1_000):
        window = Window(limit=limit, after=after, descending=descending)
        page = await analytics.list(context(), where, window=window)
        found += page.items
        after = page.after
        if after is None:
            return found
    raise AssertionError("a list ends")


async def everything(analytics: Analytics) -> list[AnalyticsEvent]:
    return await collect(analytics, AnalyticsFilter(), limit=1_000)


def numbers(events: Sequence[AnalyticsEvent]) -> list[int]:
    return [event.payload["n"] for event in events if event.payload is not None]


def statuses(ingested: Ingested) -> list[int]:
    return [event.status for event in ingested.events]


async def project(analytics: Analytics) -> None:
    while await analytics._index.step(context()):
        pass


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


class TestGates:
    @pytest.mark.parametrize(
        ("says", "shown"),
        [
            (None, (None, None, None, None)),
            (GateStatus(status="pass"), ("pass", None, None, None)),
            (FAILED, ("fail", "budget", "cost_not_told", None)),
            (RuntimeError("secret words"), ("error", None, None, "RuntimeError")),
            (Unavailable("secret words"), ("error", None, None, "Unavailable")),
        ],
    )
    async def test_events_are_kept_with_what_the_gates_said_and_if_they_fail(
        self,
        home: Home,
        small: EventSpine,
        says: GateStatus | Exception | None,
        shown: tuple[str | None, ...],
    ) -> None:
        analytics = gated(home, small, Gates(says))
        ingested = await analytics.ingest(context(), [seen(number) for number in range(3)])
        assert (ingested.accepted, [event.gate_status for event in ingested.events]) == (3, [shown[0]] * 3)
        for event in await everything(analytics):
            found = (event.gate_status, event.gate, event.gate_reason_code, event.gate_error)
            assert found == shown
        assert "secret words" not in str([event.payload for event in (await small.list(context())).items])

    async def test_they_are_asked_once_about_what_is_left_of_a_request(
        self, home: Home, small: EventSpine
    ) -> None:
        gates = Gates(FAILED)
        analytics = gated(home, small, gates)
        events = [seen(0), seen(1, platform="a b"), seen(2, event_id=str(uuid.uuid4())), seen(3)]
        ingested = await analytics.ingest(context(), events)
        assert [event.gate_status for event in ingested.events] == ["fail", None, "fail", "fail"]
        assert gates.asked == [(3, None)]
        await analytics.ingest(context(), [seen(0, platform="a b")])
        assert len(gates.asked) == 1, "nothing was left to ask about"

    async def test_a_repeat_has_what_was_said_at_first(self, home: Home, small: EventSpine) -> None:
        gates = Gates(FAILED)
        analytics = gated(home, small, gates)
        events = [seen(number) for number in range(2 * PART_EVENTS_MAX)]
        first = await analytics.ingest(context(), events, request=keyed())
        gates.says = GateStatus(status="pass")
        again = await analytics.ingest(context(), events, request=keyed())
        ungated = await Analytics(home, small, Kept(), home.clock).ingest(context(), events, request=keyed())
        assert first.events == again.events == ungated.events
        assert gates.asked == [(len(events), keyed())]
        assert {event.gate_status for event in await everything(analytics)} == {"fail"}

    async def test_what_a_broken_off_request_appends_later_says_the_same(
        self, home: Home, small: EventSpine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gates = Gates(FAILED)
        analytics = gated(home, small, gates)

        async def broken(_: RequestContext, parts: Any) -> Any:
            return [Unavailable("gone") for _ in parts]

        with monkeypatch.context() as patched:
            patched.setattr(small, "append_parts", broken)
            with pytest.raises(Unavailable):
                await analytics.ingest(context(), [seen()], request=keyed())
        gates.says = GateStatus(status="pass")
        await analytics.ingest(context(), [seen()], request=keyed())
        (event,) = await everything(analytics)
        assert (event.gate_status, event.gate, len(gates.asked)) == ("fail", "budget", 1)

    async def test_of_two_at_once_under_a_key_one_says_what_holds_for_both(
        self, home: Home, small: EventSpine
    ) -> None:
        one, other = gated(home, small, Gates(FAILED)), gated(home, small, Gates(GateStatus(status="pass")))
        events = [seen(number) for number in range(3)]
        both = await asyncio.gather(
            one.ingest(context(), events, request=keyed()), other.ingest(context(), events, request=keyed())
        )
        assert both[0].events == both[1].events
        stored = [event.gate_status for event in await everything(one)]
        assert stored == [event.gate_status for event in both[0].events]

    async def test_a_key_that_decided_about_another_request_is_no_verdict(
        self, home: Home, small: EventSpine
    ) -> None:
        analytics = gated(home, small, Gates(IdempotencyKeyReused("reused", field="Idempotency-Key")))
        with pytest.raises(IdempotencyKeyReused):
            await analytics.ingest(context(), [seen()], request=keyed())
        assert await everything(analytics) == []

    async def test_gates_that_do_not_answer_hold_events_up_and_do_not_lose_them(
        self, home: Home, small: EventSpine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("engines.stores.analytics.GATES_TIMEOUT_S", 0.01)
        analytics = gated(home, small, Gates(hangs=True))
        ingested = await analytics.ingest(context(), [seen(0), seen(1)])
        assert [event.gate_status for event in ingested.events] == ["error", "error"]
        assert [event.gate_error for event in await everything(analytics)] == ["TimeoutError"] * 2

    async def test_a_caller_that_goes_away_is_no_verdict(self, home: Home, small: EventSpine) -> None:
        gates = Gates(hangs=True)
        analytics = gated(home, small, gates)
        call = asyncio.create_task(analytics.ingest(context(), [seen(0)]))
        await gates.came.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await everything(analytics) == []


class TestRepeats:
    async def test_the_same_request_again_gets_its_first_answer_and_appends_nothing(
        self, home: Home, analytics: Analytics, contracts: Kept
    ) -> None:
        contracts.put(WEB)
        events = [
            *(seen(number) for number in range(PART_EVENTS_MAX + 5)),
            seen(900, platform="web", payload={}, utm_source="other"),
            seen(901, event_id=str(uuid.uuid4())),
        ]
        first = await analytics.ingest(context(), events, request=keyed())
        assert (first.replayed, first.refused) == (False, 1)
        again = await analytics.ingest(context(request_id="another"), events, request=keyed())
        assert again.replayed
        assert again.events == first.events
        assert len(await everything(analytics)) == first.accepted
        await home.reopen()
        reopened = Analytics(home, EventSpine(home, home.ids, home.clock), contracts, home.clock)
        assert (await reopened.ingest(context(), events, request=keyed())).events == first.events

    async def test_a_repeat_is_judged_as_it_was_at_first_though_the_contract_has_changed(
        self, analytics: Analytics, contracts: Kept
    ) -> None:
        contracts.put(WEB)
        events = [
            seen(0, platform="web", payload={}, utm_source="newsletter"),
            seen(1, platform="web", payload={}, utm_source="other"),
        ]
        first = await analytics.ingest(context(), events, request=keyed())
        for source in ("other", "third"):
            contracts.put(WEB | {"utm_template": {"utm_source": source}}, version=2)
            again = await analytics.ingest(context(), events, request=keyed())
            assert again.events == first.events
            assert statuses(again) == [201, 400]
        assert len(await everything(analytics)) == 1

    async def test_another_body_under_the_same_key_is_refused(self, analytics: Analytics) -> None:
        await analytics.ingest(context(), [seen(0)], request=keyed())
        with pytest.raises(IdempotencyKeyReused):
            await analytics.ingest(context(), [seen(1)], request=keyed(body=b"other"))
        assert numbers(await everything(analytics)) == [0]

    async def test_a_request_of_which_nothing_was_taken_in_leaves_its_key_free(
        self, analytics: Analytics
    ) -> None:
        assert (await analytics.ingest(context(), [seen(0, platform="a b")], request=keyed())).accepted == 0
        assert (await analytics.ingest(context(), [seen(0)], request=keyed(body=b"other"))).accepted == 1

    async def test_requests_at_once_under_one_key_act_once(
        self, home: Home, small: EventSpine, contracts: Kept
    ) -> None:
        """Two processes; they judge by different contracts, and only one judgement counts."""
        other = Kept()
        other.put(WEB)
        stores = [
            Analytics(home, small, contracts, home.clock),
            Analytics(home, EventSpine(home, home.ids, home.clock), other, home.clock),
        ]
        events = [seen(number, platform="web", utm_source=f"s{number}") for number in range(20)]
        events += [seen(number) for number in range(20, 40)]
        answers = await asyncio.gather(
            *(stores[number % 2].ingest(context(), events, request=keyed()) for number in range(6))
        )
        assert all(answer.events == answers[0].events for answer in answers)
        assert len(await everything(stores[0])) == answers[0].accepted
        assert [answer.replayed for answer in answers].count(False) == 1

    async def test_an_id_of_its_own_is_known_again_and_a_stranger_under_it_is_refused_alone(
        self, analytics: Analytics
    ) -> None:
        own = str(uuid.uuid4())
        first = await analytics.ingest(context(), [seen(0), seen(1, event_id=own), seen(2)])
        again = await analytics.ingest(context(run_id="later"), [seen(1, event_id=own), seen(3)])
        assert again.events[0] == first.events[1]
        stranger = await analytics.ingest(context(), [seen(4), seen(5, event_id=own), seen(6)])
        assert statuses(stranger) == [201, 409, 201]
        assert stranger.events[1].problem is not None
        assert stranger.events[1].problem.field == "event_id"
        assert numbers(await everything(analytics)) == [0, 1, 2, 3, 4, 6]


class TestFaults:
    @pytest.mark.parametrize("fault", [Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE, Fault.REFUSED])
    @pytest.mark.parametrize("write", range(3))
    async def test_a_write_whose_reply_is_lost_is_made_once(
        self, home: Home, analytics: Analytics, fault: Fault, write: int
    ) -> None:
        await analytics.ingest(context(), [seen(-1)])
        events = [seen(number) for number in range(PART_EVENTS_MAX + 10)]
        home.faults.script(*[Fault.NONE] * write, fault)
        ingested = await analytics.ingest(context(), events, request=keyed())
        await home.faults.late_writes_delivered()
        assert ingested.accepted == len(events)
        again = await analytics.ingest(context(), events, request=keyed())
        assert again.events == ingested.events
        assert numbers(await everything(analytics)) == [-1, *range(len(events))]

    async def test_a_part_that_fails_says_so_and_the_same_request_appends_what_is_missing(
        self, analytics: Analytics, small: EventSpine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if the process had died between two commits of one request."""
        events = [seen(number) for number in range(3 * PART_EVENTS_MAX)]
        whole = small.append_parts

        async def broken(who: RequestContext, parts: Any) -> Any:
            done = await whole(who, [parts[0], parts[2]])
            return [done[0], Unavailable("gone"), done[1]]

        monkeypatch.setattr(small, "append_parts", broken)
        first = await analytics.ingest(context(), events, request=keyed())
        monkeypatch.undo()
        assert statuses(first) == [201] * PART_EVENTS_MAX + [503] * PART_EVENTS_MAX + [201] * PART_EVENTS_MAX
        assert (first.accepted, first.refused) == (2 * PART_EVENTS_MAX, PART_EVENTS_MAX)
        again = await analytics.ingest(context(), events, request=keyed())
        assert again.accepted == len(events)
        assert again.events[:PART_EVENTS_MAX] == first.events[:PART_EVENTS_MAX]
        assert again.events[-PART_EVENTS_MAX:] == first.events[-PART_EVENTS_MAX:]
        assert sorted(numbers(await everything(analytics))) == list(range(len(events)))

    async def test_where_nothing_could_be_appended_the_reason_is_raised(
        self, analytics: Analytics, small: EventSpine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(_: RequestContext, parts: Any) -> Any:
            return [Unavailable("gone"), *[OutcomeUnknown("lost")] * (len(parts) - 1)]

        monkeypatch.setattr(small, "append_parts", broken)
        with pytest.raises(OutcomeUnknown):
            await analytics.ingest(context(), [seen(number) for number in range(300)])

    @pytest.mark.parametrize("seed", range(3))
    async def test_under_many_faults_nothing_acknowledged_is_lost_and_nothing_doubled(
        self, home: Home, analytics: Analytics, seed: int
    ) -> None:
        await analytics.ingest(context(), [seen(-1)])
        home.faults.plan = FaultPlan(
            write_refused=0.1,
            write_lost_unapplied=0.05,
            write_lost_applied=0.15,
            write_late=0.1,
            read_refused=0.05,
            late_s_max=0.005,
            pause_s_max=0.001,
        )
        home.faults._random.seed(seed)

        async def send(sender: int) -> None:
            for batch in range(5):
                number = sender * 1_000 + batch * 100
                events = [seen(number + index) for index in range(30)]
                request = keyed(f"{sender}-{batch}", body=str(number).encode())
                while True:
                    try:
                        ingested = await analytics.ingest(context(), events, request=request)
                    except (Unavailable, OutcomeUnknown):
                        continue
                    if ingested.refused == 0:
                        break

        await asyncio.gather(*map(send, range(4)))
        await home.faults.late_writes_delivered()
        home.faults.plan = FaultPlan()
        wanted = [
            sender * 1_000 + batch * 100 + index
            for sender in range(4)
            for batch in range(5)
            for index in range(30)
        ]
        assert sorted(numbers(await everything(analytics))) == [-1, *wanted]


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
