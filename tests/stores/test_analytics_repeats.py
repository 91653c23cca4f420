"""Analytics repeated, lost half-way and under faults: each event once, with its first answer."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from engines.errors import (
    IdempotencyKeyReused,
    OutcomeUnknown,
    Unavailable,
)
from engines.scope import RequestContext
from engines.stores.analytics import (
    Analytics,
)
from engines.stores.analytics_plans import PART_EVENTS_MAX
from engines.stores.events import EventSpine
from engines.testing.faults import Fault, FaultPlan
from tests.stores.analytics_home import WEB, Kept, everything, keyed, numbers, seen, statuses
from tests.stores.home import Home, context


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
