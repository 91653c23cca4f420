"""Rules of following a log, and of a route that changes."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import Counter
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec
import pytest

from engines.core.cursor import list_scope
from engines.core.listing import Window
from engines.core.log import Batch, Log, StoredEvent
from engines.errors import Gone, Invalid, MissingRoute, Unavailable
from engines.scope import RequestContext
from engines.stores import event_records
from engines.stores.event_records import EventView, SaidEntries
from engines.stores.events import EventSpine, EventStreams
from engines.stores.open_logs import CATCH_UPS_TENANT_MAX
from tests.stores.home import Home, context
from tests.stores.samples import COUNT, OWN_ID, numbered, numbers

BIG: dict[str, Any] = {"a": [{}] * 78_000}
"""A payload of a quarter of a mebibyte that takes twenty times as much as objects."""


class TestText:
    async def test_it_is_the_event_as_it_is_shown(self, home: Home, filled: EventSpine) -> None:
        payload = {"text": "a\nb\u2028\u00e9", "number": 1.5, "none": None, "deep": [{"a": []}]}
        await filled.append(context(), [numbered(1, payload=payload, occurred_at="2026-11-21T14:00:00Z")])
        async with filled._logs._using(await home.place("event_spine", context()), "spine") as log:
            await log.redact(3)
        async with (
            aclosing(await filled.follow(context())) as batches,
            aclosing(await filled.follow_text(context())) as texts,
        ):
            shown, told = await anext(batches), await anext(texts)
        assert len(shown) == len(told) == COUNT + 1
        for event, one in zip(shown, told, strict=True):
            assert one.cursor == event.cursor
            assert one.text == msgspec.json.encode(event)

    def test_it_has_no_line_end_whatever_was_stored(self) -> None:
        entry = SaidEntries(context(), "message").entry(b'{"a":\r\n[1,\n2]}')
        stored = StoredEvent(1, OWN_ID, 0, entry.body)
        view = EventView(
            tenant_id="t_one",
            env="prod",
            route="event_spine",
            cursors=list_scope("event_spine", "t_one", "prod", "spine"),
        )
        assert view.text(stored).text == msgspec.json.encode(view.shown(stored))

    async def test_no_payload_is_decoded_for_it(
        self, filled: EventSpine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(event_records, "decode_json")
        async with aclosing(await filled.follow_text(context())) as texts:
            assert len(await anext(texts)) == COUNT

    async def test_readers_that_stall_have_one_batch_of_text_each_in_memory(
        self, streams: EventStreams
    ) -> None:
        for _ in range(12):
            await streams.append(context(), "s", [numbered(1, payload=BIG)])
        async with AsyncExitStack() as open_:
            followers = [
                await open_.enter_async_context(aclosing(await streams.follow_text(context(), "s")))
                for _ in range(8)
            ]
            tracemalloc.start()
            try:
                batches = [await anext(follower) for follower in followers]
                size = sum(len(event.text) for event in batches[0])
                _, peak = tracemalloc.get_traced_memory()
                for _ in range(50):  # What would be read ahead would be read now.
                    await asyncio.sleep(0.001)
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert all(0 < len(batch) < 12 for batch in batches)
            # A second batch each would make it 16. Beside theirs the driver and the log have one or two.
            assert held < (1.5 * len(followers) + 3) * size
            assert peak < (1.5 * len(followers) + 8) * size


class TestCatchingUp:
    async def test_so_many_followers_of_a_tenant_read_at_once_and_others_are_not_kept(
        self, streams: EventStreams, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        contexts = [context(), context(tenant_id="t_two")]
        for who in contexts:
            for name in ("s", "r"):
                await streams.append(who, name, [numbered(number) for number in range(3)])
        reading: Counter[str] = Counter()
        most: Counter[str] = Counter()
        read, let = Log._list_after, asyncio.Event()

        async def watched(log: Log, position: int, **options: Any) -> Batch:
            tenant_id = log._chain.address.tenant_id
            reading[tenant_id] += 1
            most[tenant_id] = max(most[tenant_id], reading[tenant_id])
            if len(reading) == 2:
                let.set()
            try:
                await let.wait()  # Ends only where both tenants read at the same time.
                await asyncio.sleep(0.01)
                return await read(log, position, **options)
            finally:
                reading[tenant_id] -= 1

        monkeypatch.setattr(Log, "_list_after", watched)

        async def follow(who: RequestContext, name: str) -> int:
            async with aclosing(await streams.follow_text(who, name)) as batches:
                return len(await anext(batches))

        async with asyncio.timeout(60):
            found = await asyncio.gather(*(follow(w, n) for w in contexts for n in ("s", "r") * 4))
        assert found == [3] * 16
        assert most == {"t_one": CATCH_UPS_TENANT_MAX, "t_two": CATCH_UPS_TENANT_MAX}

    async def test_whoever_is_at_the_end_is_told_at_once_though_others_catch_up(
        self, home: Home, streams: EventStreams
    ) -> None:
        await streams.append(context(), "s", [numbered(1)])
        place = await home.place("event_stream", context())
        async with (
            asyncio.timeout(60),
            streams._logs._using(place, "s") as log,
            AsyncExitStack() as held,
            aclosing(await streams.follow(context(), "s")) as batches,
        ):
            assert numbers(await anext(batches)) == [1]
            for _ in range(CATCH_UPS_TENANT_MAX):
                await held.enter_async_context(log._catch_ups)
            await streams.append(context(), "s", [numbered(2)])
            assert numbers(await anext(batches)) == [2]


class TestFollow:
    async def test_a_follower_gets_what_was_and_what_comes(self, filled: EventSpine) -> None:
        found: list[int] = []
        async with aclosing(await filled.follow(context())) as batches:
            async for batch in batches:
                found += numbers(batch)
                if len(found) == COUNT:
                    await filled.append(context(), [numbered(COUNT), numbered(COUNT + 1)])
                if len(found) == COUNT + 2:
                    break
        assert found == list(range(COUNT + 2))

    async def test_a_follower_goes_on_after_a_cursor_or_an_event_id(self, filled: EventSpine) -> None:
        await filled.append(context(), [numbered(COUNT, event_id=OWN_ID), numbered(COUNT + 1)])
        items = (await filled.list(context())).items
        for after in (items[COUNT].cursor, items[COUNT].event_id, OWN_ID.upper(), items[COUNT - 1].event_id):
            async with aclosing(await filled.follow(context(), after=after)) as batches:
                found = numbers(await anext(batches))
            assert found[-1] == COUNT + 1
            assert len(found) == (2 if after == items[COUNT - 1].event_id else 1)

    @pytest.mark.parametrize("after", ["", "nonsense", OWN_ID, "a" * 5_000])
    async def test_a_place_that_is_none_is_refused_before_following(
        self, filled: EventSpine, after: str
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await filled.follow(context(), after=after)
        assert refusal.value.field == "after"

    async def test_followers_of_one_log_all_get_everything(self, spine: EventSpine) -> None:
        async def follow() -> list[int]:
            found: list[int] = []
            async with aclosing(await spine.follow(context())) as batches:
                async for batch in batches:
                    found += numbers(batch)
                    if len(found) == 40:
                        return found
            return found

        followers = [asyncio.create_task(follow()) for _ in range(5)]
        await asyncio.gather(*(spine.append(context(), [numbered(number)]) for number in range(40)))
        found = await asyncio.gather(*followers)
        assert all(one == found[0] for one in found)
        assert sorted(found[0]) == list(range(40))

    async def test_a_follower_ends_when_the_store_closes(self, spine: EventSpine) -> None:
        await spine.append(context(), [numbered(1)])
        async with aclosing(await spine.follow(context())) as batches:
            assert numbers(await anext(batches)) == [1]
            closing = asyncio.create_task(spine.close())
            assert [batch async for batch in batches] == []
            await closing

    async def test_a_follower_that_is_cancelled_leaves_nothing_running(self, spine: EventSpine) -> None:
        await spine.append(context(), [numbered(1)])
        before = asyncio.all_tasks()
        seen = asyncio.Event()

        async def follow() -> None:
            async with aclosing(await spine.follow(context())) as batches:
                async for _ in batches:
                    seen.set()

        task = asyncio.create_task(follow())
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() <= before

    async def test_a_follower_notices_that_its_route_leads_elsewhere(
        self, home: Home, spine: EventSpine
    ) -> None:
        await spine.append(context(), [numbered(1)])
        async with aclosing(await spine.follow(context())) as batches:
            await anext(batches)
            home.backend_id = "elsewhere"
            with pytest.raises(Unavailable):
                await anext(batches)
        async with aclosing(await spine.follow(context())) as batches:
            waiting = asyncio.create_task(anext(batches))
            home.missing.add("event_spine")
            with pytest.raises(MissingRoute):
                await waiting

    async def test_a_follower_below_what_is_kept_is_told_at_once(
        self, home: Home, streams: EventStreams
    ) -> None:
        cursors = [
            (await streams.append(context(), "s", [numbered(number)] * 2)).events[0].cursor
            for number in range(4)
        ]
        home.clock.advance(25 * 3600)
        async with streams._logs._using(await home.place("event_stream", context()), "s") as log:
            assert await log.trim(5) == 4
        with pytest.raises(Gone):
            await streams.follow(context(), "s", after=cursors[0])
        with pytest.raises(Gone):
            await streams.list(context(), "s", window=Window(after=cursors[1]))
        assert [shown.position for shown in (await streams.list(context(), "s")).items] == [5, 6, 7, 8]
        backwards = await streams.list(context(), "s", window=Window(descending=True))
        assert [shown.position for shown in backwards.items] == [8, 7, 6, 5]
        assert backwards.after is None


class TestRoutes:
    async def test_a_log_whose_route_leads_elsewhere_is_another_log(
        self, home: Home, spine: EventSpine
    ) -> None:
        await spine.append(context(), [numbered(1)])
        home.generation = 1
        assert (await spine.list(context())).items == ()
        assert (await spine.append(context(), [numbered(2)])).events[0].position == 1
        home.generation = 0
        assert numbers((await spine.list(context())).items) == [1]

    async def test_a_backend_that_was_opened_anew_is_used(self, home: Home, spine: EventSpine) -> None:
        await spine.append(context(), [numbered(1)])
        await home.reopen()
        assert (await spine.append(context(), [numbered(2)])).events[0].position == 2
        assert numbers((await spine.list(context())).items) == [1, 2]

    async def test_a_sealed_log_is_opened_anew_once_its_route_leads_on(
        self, home: Home, spine: EventSpine
    ) -> None:
        await spine.append(context(), [numbered(1)])
        async with spine._logs._using(await home.place("event_spine", context()), "spine") as log:
            await log.seal()
        with pytest.raises(Unavailable):
            await spine.append(context(), [numbered(2)])
        assert len(spine._logs._logs) == 0
        home.generation = 1
        assert (await spine.append(context(), [numbered(2)])).events[0].position == 1
