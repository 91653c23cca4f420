"""Analytics and the gates: events are kept whatever these say, and say what they said at first."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from engines.errors import (
    IdempotencyKeyReused,
    Unavailable,
)
from engines.scope import RequestContext
from engines.stores.analytics import (
    Analytics,
    GateStatus,
)
from engines.stores.analytics_plans import PART_EVENTS_MAX
from engines.stores.events import EventSpine
from tests.stores.analytics_home import FAILED, Gates, Kept, everything, gated, keyed, seen
from tests.stores.home import Home, context


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
