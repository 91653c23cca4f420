"""Rules of following a log, and of a route that changes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from engines.core.listing import Window
from engines.errors import Gone, Invalid, MissingRoute, Unavailable
from engines.stores.events import EventSpine, EventStreams
from tests.stores.home import Home, context
from tests.stores.samples import COUNT, OWN_ID, numbered, numbers


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
