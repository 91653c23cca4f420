"""Rules of appending events: repeats, permissions, the server's own events, streams."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from engines.core.idempotency import Request, identify
from engines.core.log import Head
from engines.errors import (
    Conflict,
    ContextMismatch,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    MissingRoute,
    NotFound,
    Throttled,
    TooLarge,
    Unavailable,
)
from engines.stores.events import (
    VERIFYING_MAX,
    Causality,
    EventSpine,
    EventStreams,
    SystemEvent,
)
from engines.testing.faults import Fault
from tests.stores.home import EVERYTHING, Home, context
from tests.stores.samples import OWN_ID, event, everything


def keyed(key: str, body: bytes = b"{}") -> Request:
    return identify("t_one", "prod", "ada", "POST", "/events", key, body=body)


class TestAppend:
    async def test_positions_are_gapless_and_every_answer_says_where(self, spine: EventSpine) -> None:
        answers = [await spine.append(context(), [event()] * count) for count in (1, 3, 2)]
        appended = [item for answer in answers for item in answer.events]
        assert [item.position for item in appended] == [1, 2, 3, 4, 5, 6]
        shown = await everything(spine)
        assert [(item.event_id, item.position, item.cursor) for item in shown] == [
            (item.event_id, item.position, item.cursor) for item in appended
        ]

    async def test_many_at_once_are_all_there_once(self, spine: EventSpine) -> None:
        await asyncio.gather(
            *(spine.append(context(), [event(payload={"n": number})]) for number in range(50))
        )
        shown = await everything(spine)
        assert [item.position for item in shown] == list(range(1, 51))
        assert sorted(item.payload["n"] for item in shown if item.payload) == list(range(50))

    async def test_five_hundred_events_are_admitted_and_one_more_is_not(self, spine: EventSpine) -> None:
        assert len((await spine.append(context(), [event(payload={})] * 500)).events) == 500
        with pytest.raises(TooLarge):
            await spine.append(context(), [event(payload={})] * 501)
        with pytest.raises(Invalid) as refusal:
            await spine.append(context(), [])
        assert refusal.value.field == "events"

    async def test_an_append_past_its_bytes_is_too_large_and_writes_nothing(self, spine: EventSpine) -> None:
        with pytest.raises(TooLarge):
            await spine.append(context(), [event(payload={"a": "x" * 131_072})] * 2)
        assert await everything(spine) == ()
        await spine.append(context(), [event(payload={"a": "x" * 131_072})])

    async def test_the_deepest_payload_is_admitted_and_one_level_more_is_not(self, spine: EventSpine) -> None:
        def nested(levels: int) -> dict[str, Any]:
            return {"a": nested(levels - 1)} if levels > 1 else {}

        await spine.append(context(), [event(payload=nested(63))])
        with pytest.raises(Invalid):
            await spine.append(context(), [event(payload=nested(64))])

    async def test_without_a_spine_nothing_is_appended_anywhere(
        self, home: Home, spine: EventSpine, streams: EventStreams
    ) -> None:
        home.missing.add("event_spine")
        with pytest.raises(MissingRoute):
            await spine.append(context(), [event()])
        with pytest.raises(MissingRoute):
            await streams.append(context(), "s", [event()])

    async def test_a_closed_store_takes_nothing(self, spine: EventSpine) -> None:
        await spine.append(context(), [event()])
        await spine.close()
        with pytest.raises(Unavailable):
            await spine.append(context(), [event()])


class TestGet:
    @pytest.mark.parametrize(
        "event_id",
        ["00000000-0001-8000-8000-000000000000", OWN_ID, "nothing", "00000000000180008000000000000000"],
    )
    async def test_an_event_that_is_not_there_is_not_found(self, spine: EventSpine, event_id: str) -> None:
        with pytest.raises(NotFound):
            await spine.get(context(), event_id)
        await spine.append(context(), [event()])
        with pytest.raises(NotFound):
            await spine.get(context(), event_id)

    async def test_a_malformed_id_is_invalid(self, spine: EventSpine) -> None:
        with pytest.raises(Invalid) as refusal:
            await spine.get(context(), "../1")
        assert refusal.value.field == "event_id"

    async def test_another_tenants_or_envs_event_is_not_found(self, spine: EventSpine) -> None:
        minted = (await spine.append(context(), [event(), event(event_id=OWN_ID)])).events
        for other in ({"tenant_id": "t_two"}, {"env": "dev"}):
            await spine.append(context(**other), [event(), event()])
            for item in minted:
                with pytest.raises(NotFound):
                    await spine.get(context(**other), item.event_id)


class TestRepeats:
    async def test_the_same_request_again_gets_its_first_answer(self, spine: EventSpine) -> None:
        first = await spine.append(context(), [event(), event()], request=keyed("k"))
        await spine.append(context(), [event()])
        again = await spine.append(context(), [event(), event()], request=keyed("k"))
        assert again.replayed
        assert not first.replayed
        assert again.events == first.events
        assert len(await everything(spine)) == 3

    async def test_another_body_under_the_same_key_is_refused(self, spine: EventSpine) -> None:
        await spine.append(context(), [event()], request=keyed("k"))
        with pytest.raises(IdempotencyKeyReused):
            await spine.append(context(), [event()], request=keyed("k", b"other"))

    async def test_requests_at_once_under_one_key_append_once(self, spine: EventSpine) -> None:
        answers = await asyncio.gather(
            *(spine.append(context(), [event()], request=keyed("k")) for _ in range(6))
        )
        assert len({answer.events for answer in answers}) == 1
        assert len(await everything(spine)) == 1

    async def test_a_repeat_is_known_after_a_restart(self, home: Home, spine: EventSpine) -> None:
        first = await spine.append(context(), [event()], request=keyed("k"))
        await spine.close()
        await home.reopen()
        reopened = EventSpine(home, home.ids, home.clock)
        assert (await reopened.append(context(), [event()], request=keyed("k"))).events == first.events
        assert len(await everything(reopened)) == 1
        await reopened.close()

    @pytest.mark.parametrize("fault", [Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE, Fault.REFUSED])
    async def test_whatever_happens_to_the_reply_an_append_is_there_once(
        self, home: Home, spine: EventSpine, fault: Fault
    ) -> None:
        await spine.append(context(), [event(payload={"n": 0})])
        home.faults.script(fault)
        await spine.append(context(), [event(payload={"n": 1})])
        await home.faults.late_writes_delivered()
        assert home.faults.seen[fault] == 1
        assert [item.payload for item in await everything(spine)] == [{"n": 0}, {"n": 1}]

    async def test_a_cancelled_append_leaves_the_log_usable(self, home: Home, spine: EventSpine) -> None:
        await spine.append(context(), [event()])
        held = home.faults.hold_next_write()
        task = asyncio.create_task(spine.append(context(), [event(event_id=OWN_ID)]))
        await held.arrived()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.release()
        await spine.append(context(), [event(event_id=OWN_ID)])
        assert [item.position for item in await everything(spine)] == [1, 2]


class TestAnswered:
    """What was appended under a request, found without appending."""

    TOLD = SystemEvent(event_type="safety", payload={"n": 1})

    async def test_what_was_appended_is_found_and_what_was_not_is_not(self, spine: EventSpine) -> None:
        assert await spine.answered(context(), keyed("k1")) is None
        appended = await spine.append_system(context(), [self.TOLD, self.TOLD], request=keyed("k1"))
        found = await spine.answered(context(), keyed("k1"))
        assert found is not None
        assert [item.event_id for item in found] == [item.event_id for item in appended.events]
        assert found[0].payload == {"n": 1}
        assert await spine.answered(context(), keyed("k2")) is None
        with pytest.raises(IdempotencyKeyReused):
            await spine.answered(context(), keyed("k1", b"{1}"))

    async def test_a_repeat_appends_nothing_and_says_so(self, spine: EventSpine) -> None:
        first = await spine.append_system(context(), [self.TOLD], request=keyed("k1"))
        again = await spine.append_system(context(), [self.TOLD], request=keyed("k1"))
        assert (first.replayed, again.replayed) == (False, True)
        assert again.events == first.events
        assert len(await everything(spine)) == 1

    async def test_it_is_found_across_segments_and_after_a_restart(self, home: Home) -> None:
        size = 5
        spine = EventSpine(home, home.ids, home.clock, segment_size_default=size)
        await spine.append_system(context(), [self.TOLD], request=keyed("k1"))
        for _ in range(size + 2):
            await spine.append(context(), [event()])
        for _ in range(2):
            found = await spine.answered(context(), keyed("k1"))
            assert found is not None
            assert found[0].position == 1
            await spine.close()
            await home.reopen()
            spine = EventSpine(home, home.ids, home.clock)
        await spine.close()


class TestPermissions:
    async def test_each_permission_is_asked_for(self, spine: EventSpine, streams: EventStreams) -> None:
        def lacking(permission: str) -> Any:
            return context(permissions=EVERYTHING - {permission})

        for call in (
            spine.append(lacking("events.write"), [event()]),
            spine.get(lacking("events.read"), OWN_ID),
            spine.list(lacking("events.read")),
            spine.follow(lacking("events.read")),
            spine.verify(lacking("events.verify")),
            spine.export(lacking("export")),
            streams.append(lacking("streams.write"), "s", [event()]),
            streams.list(lacking("streams.read"), "s"),
            streams.follow(lacking("streams.read"), "s"),
        ):
            with pytest.raises(Forbidden):
                await call

    async def test_data_is_never_reached_from_another_tenant(self, spine: EventSpine) -> None:
        acting = context(tenant_id="t_system", roles=("admin",), acting_on="t_one")
        calls = [call(acting) for call in (spine.list, spine.export, spine.verify)]
        for call in (spine.append(acting, [event()]), *calls):
            with pytest.raises(ContextMismatch):
                await call


class TestVerify:
    async def test_a_head_kept_elsewhere_is_still_held(self, spine: EventSpine) -> None:
        await spine.append(context(), [event()] * 3)
        head = (await spine.verify(context())).head
        await spine.append(context(), [event()])
        found = await spine.verify(context(), expected=head)
        assert found.ok
        assert (found.head.position, found.event_count, found.commit_count) == (4, 4, 2)

    async def test_a_head_that_never_was_is_told(self, spine: EventSpine) -> None:
        await spine.append(context(), [event()] * 3)
        for expected in (Head(3, "0" * 64), Head(9, "0" * 64)):
            found = await spine.verify(context(), expected=expected)
            assert not found.ok
            assert found.reason

    async def test_an_empty_spine_verifies(self, spine: EventSpine) -> None:
        found = await spine.verify(context())
        assert found.ok
        assert found.head.position == 0


class TestSystemEvents:
    async def test_the_servers_events_say_system_and_need_no_permission(self, spine: EventSpine) -> None:
        server = context(permissions=frozenset(), trace_id="0" * 32, span_id="0" * 16)
        await spine.append_system(server, [SystemEvent(event_type="audit", payload={"what": "é"})])
        (shown,) = await everything(spine)
        assert (shown.event_type, shown.source, shown.payload) == ("audit", "system", {"what": "é"})
        assert shown.causality == Causality()
        assert shown.user_id == "ada"

    async def test_a_message_delivered_again_is_there_once(self, spine: EventSpine) -> None:
        message = SystemEvent(
            event_type="audit", payload={"n": 1}, event_id=str(uuid.uuid5(uuid.NAMESPACE_OID, "1"))
        )
        first = await spine.append_system(context(), [message])
        again = await spine.append_system(context(mode="enterprise", run_id="later"), [message])
        assert again.events == first.events
        assert len(await everything(spine)) == 1

    async def test_a_message_from_long_ago_is_found_where_everything_is_looked_through(
        self, home: Home
    ) -> None:
        spine = EventSpine(home, home.ids, home.clock, segment_size_default=4)
        messages = [
            SystemEvent(event_type="audit", payload={"n": number}, event_id=str(uuid.uuid4()))
            for number in range(3)
        ]
        first = await spine.append_system(context(), messages[:2])
        for _ in range(5):
            await spine.append(context(), [event()] * 4)
        again = await spine.append_system(
            context(), [messages[2], messages[0], messages[1]], look_everywhere=True
        )
        assert [item.position for item in again.events] == [23, 1, 2]
        assert again.events[1:] == first.events
        await spine.close()

    async def test_only_what_was_written_since_is_looked_through(self, home: Home) -> None:
        spine = EventSpine(home, home.ids, home.clock, segment_size_default=4)
        early, late = (
            SystemEvent(event_type="audit", payload={"n": number}, event_id=str(uuid.uuid4()))
            for number in range(2)
        )
        await spine.append_system(context(), [early])
        for _ in range(30):
            await spine.append(context(), [event()] * 4)
        home.clock.advance(7_200)
        since_ms = int(home.clock.now() * 1_000)
        (first,) = (await spine.append_system(context(), [late])).events
        for _ in range(3):
            await spine.append(context(), [event()] * 4)
        reads: list[int] = []
        for _ in range(2):
            home.driver.calls.clear()
            again = await spine.append_system(context(), [late], look_everywhere=True, since_ms=since_ms)
            assert again.events == (first,)
            reads.append(len(home.driver.calls))
        assert reads[1] <= 7 < reads[0] < 30, "where to begin is sought once"
        found = await spine.append_system(context(), [early], look_everywhere=True)
        assert found.events[0].position == 1
        await spine.close()

    async def test_the_servers_events_go_on_where_changes_are_refused(
        self, home: Home, spine: EventSpine
    ) -> None:
        home.missing.add("notes_store")
        await spine.append_system(context(), [SystemEvent(event_type="safety", payload={})])
        assert len(await everything(spine)) == 1


class TestStreams:
    async def test_a_stream_is_a_log_of_its_own(self, spine: EventSpine, streams: EventStreams) -> None:
        for name in ("a", "b", "spine", "a.0"):
            (appended,) = (await streams.append(context(), name, [event(payload={"in": name})])).events
            assert appended.position == 1
        for name in ("a", "b", "spine", "a.0"):
            (shown,) = (await streams.list(context(), name)).items
            assert shown.payload == {"in": name}
            assert shown.route == "event_stream"
        assert await everything(spine) == ()
        assert (await streams.list(context(), "never")).items == ()

    async def test_streams_are_a_tenants_and_envs(self, streams: EventStreams) -> None:
        await streams.append(context(), "s", [event()])
        for other in ({"tenant_id": "t_two"}, {"env": "dev"}):
            assert (await streams.list(context(**other), "s")).items == ()
        for same in ({"user_id": "bob"}, {"project_id": "p1"}, {"surface_id": "canvas"}):
            assert len((await streams.list(context(**same), "s")).items) == 1

    async def test_an_expected_position_guards_the_tail(self, streams: EventStreams) -> None:
        await streams.append(context(), "s", [event()] * 2, expected_position=0)
        with pytest.raises(Conflict):
            await streams.append(context(), "s", [event()], expected_position=0)
        with pytest.raises(Conflict):
            await streams.append(context(), "s", [event()], expected_position=3)
        with pytest.raises(Invalid) as refusal:
            await streams.append(context(), "s", [event()], expected_position=-1)
        assert refusal.value.field == "expected_position"
        answer = await streams.append(context(), "s", [event()], expected_position=2)
        assert answer.events[0].position == 3

    async def test_of_those_who_expect_one_tail_one_wins(self, streams: EventStreams) -> None:
        outcomes = await asyncio.gather(
            *(streams.append(context(), "s", [event()], expected_position=0) for _ in range(5)),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 4
        assert len((await streams.list(context(), "s")).items) == 1

    @pytest.mark.parametrize("stream_id", ["", "../s", "a!b", "x" * 129, "a b"])
    async def test_a_malformed_stream_id_is_invalid(self, streams: EventStreams, stream_id: str) -> None:
        for call in (
            streams.append(context(), stream_id, [event()]),
            streams.list(context(), stream_id),
            streams.follow(context(), stream_id),
        ):
            with pytest.raises(Invalid) as refusal:
                await call
            assert refusal.value.field == "stream_id"

    async def test_the_longest_names_make_a_stream(self, streams: EventStreams) -> None:
        longest = context(tenant_id="t_" + "x" * 62, env="e" * 32)
        await streams.append(longest, "s" * 128, [event()])
        assert len((await streams.list(longest, "s" * 128)).items) == 1


class TestVerifying:
    async def test_one_at_a_time_of_a_tenant_and_a_few_of_all(self, spine: EventSpine) -> None:
        tenants = [f"t_{number}" for number in range(VERIFYING_MAX + 1)]
        for tenant_id in tenants:
            await spine.append(context(tenant_id=tenant_id), [event()])
        for _ in range(2):  # Whoever was done has given their slot back.
            own = await asyncio.gather(*(spine.verify(context()) for _ in range(3)), return_exceptions=True)
            assert sorted(type(found).__name__ for found in own) == [
                "LogVerification",
                "Throttled",
                "Throttled",
            ]
            calls = (spine.verify(context(tenant_id=tenant_id)) for tenant_id in tenants)
            found = await asyncio.gather(*calls, return_exceptions=True)
            refused = [answer for answer in found if isinstance(answer, Throttled)]
            assert len(refused) == 1
            assert refused[0].retry_after_s is not None
