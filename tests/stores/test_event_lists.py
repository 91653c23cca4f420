"""Rules of reading a log: pages, filters, time, cursors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engines.clock import timestamp
from engines.core.cursor import list_scope
from engines.core.listing import LOOKED_AT_MAX, Window
from engines.errors import Invalid
from engines.stores.events import Event, EventFilter, EventSpine, EventStreams, NewEvent
from tests.stores.home import Home, context
from tests.stores.samples import COUNT, numbered, numbers


async def collect(
    spine: EventSpine, where: EventFilter, *, limit: int = 100, descending: bool = False
) -> list[Event]:
    """The whole list; its only cursor that is None is the last."""
    found: list[Event] = []
    after: str | None = None
    for _ in range(2 * COUNT):
        window = Window(limit=limit, after=after, descending=descending)
        page = await spine.list(context(), where, window=window)
        assert len(page.items) <= limit
        found += page.items
        after = page.after
        if after is None:
            return found
    raise AssertionError("a list ends")


class TestPages:
    @pytest.mark.parametrize("limit", [1, 2, 5, COUNT - 1, COUNT, COUNT + 1, 1_000])
    async def test_pages_give_every_event_once_in_order(self, filled: EventSpine, limit: int) -> None:
        assert numbers(await collect(filled, EventFilter(), limit=limit)) == list(range(COUNT))
        backwards = await collect(filled, EventFilter(), limit=limit, descending=True)
        assert numbers(backwards) == list(range(COUNT))[::-1]

    async def test_a_page_that_ends_with_the_log_has_no_cursor(self, filled: EventSpine) -> None:
        for descending in (False, True):
            page = await filled.list(context(), window=Window(limit=COUNT, descending=descending))
            assert page.after is None
            assert len(page.items) == COUNT

    async def test_a_poller_keeps_its_place_by_the_cursor_of_any_item(self, filled: EventSpine) -> None:
        items = (await filled.list(context())).items
        for item in items:
            page = await filled.list(context(), window=Window(after=item.cursor))
            assert page.items == items[item.position :]
            page = await filled.list(context(), window=Window(after=item.cursor, descending=True))
            assert page.items == items[: item.position - 1][::-1]

    async def test_an_empty_log_has_an_empty_page(self, spine: EventSpine) -> None:
        for descending in (False, True):
            page = await spine.list(context(), window=Window(descending=descending))
            assert (page.items, page.after) == ((), None)

    async def test_a_page_stops_at_about_one_mebibyte(self, spine: EventSpine) -> None:
        for number in range(6):
            await spine.append(context(), [numbered(number, payload={"n": number, "text": "x" * 240_000})])
        for descending in (False, True):
            page = await spine.list(context(), window=Window(descending=descending))
            assert 4 <= len(page.items) <= 5
            assert page.after is not None

    @pytest.mark.parametrize("limit", [0, 1_001])
    async def test_a_limit_out_of_bounds_is_invalid(self, spine: EventSpine, limit: int) -> None:
        with pytest.raises(Invalid) as refusal:
            await spine.list(context(), window=Window(limit=limit))
        assert refusal.value.field == "limit"


class TestFilters:
    @pytest.mark.parametrize("limit", [1, 4, 100])
    @pytest.mark.parametrize(
        ("where", "admits"),
        [
            (EventFilter(event_type="tool_call"), lambda shown: shown.event_type == "tool_call"),
            (EventFilter(run_id="run-2"), lambda shown: shown.run_id == "run-2"),
            (EventFilter(user_id="bob"), lambda shown: shown.user_id == "bob"),
            (EventFilter(project_id="p1"), lambda shown: shown.project_id == "p1"),
            (EventFilter(run_id="nobody"), lambda shown: False),  # noqa: ARG005
            (
                EventFilter(event_type="message", user_id="ada", run_id="run-0"),
                lambda shown: (shown.event_type, shown.user_id, shown.run_id) == ("message", "ada", "run-0"),
            ),
        ],
    )
    async def test_filters_choose_in_either_direction(
        self, filled: EventSpine, where: EventFilter, admits: Callable[[Event], bool], limit: int
    ) -> None:
        chosen = [shown for shown in (await filled.list(context())).items if admits(shown)]
        assert await collect(filled, where, limit=limit) == chosen
        assert await collect(filled, where, limit=limit, descending=True) == chosen[::-1]

    @pytest.mark.parametrize("limit", [1, 3, 100])
    @pytest.mark.parametrize(
        ("since_s", "until_s"),
        [(0, None), (3, None), (None, 5), (3, 5), (5, 3), (2.5, 6.5), (99, None), (None, 0)],
    )
    async def test_since_is_included_and_until_is_not(
        self, filled: EventSpine, since_s: float | None, until_s: float | None, limit: int
    ) -> None:
        items = (await filled.list(context())).items
        begin_s = 1_800_000_000.0
        since = None if since_s is None else timestamp(begin_s + since_s)
        until = None if until_s is None else timestamp(begin_s + until_s)
        chosen = [
            shown
            for shown in items
            if (since is None or shown.timestamp >= since) and (until is None or shown.timestamp < until)
        ]
        where = EventFilter(since=since, until=until)
        assert await collect(filled, where, limit=limit) == chosen
        assert await collect(filled, where, limit=limit, descending=True) == chosen[::-1]

    async def test_a_cursor_from_before_since_skips_to_it(self, filled: EventSpine) -> None:
        items = (await filled.list(context())).items
        where = EventFilter(since=items[20].timestamp)
        expected = tuple(shown for shown in items if shown.timestamp >= items[20].timestamp)
        page = await filled.list(context(), where, window=Window(limit=50, after=items[0].cursor))
        assert page.items == expected
        where = EventFilter(until=items[3].timestamp)
        window = Window(limit=50, after=items[22].cursor, descending=True)
        page = await filled.list(context(), where, window=window)
        assert page.items == tuple(shown for shown in items if shown.timestamp < items[3].timestamp)[::-1]

    @pytest.mark.parametrize(
        ("where", "field"),
        [
            (EventFilter(event_type="RL"), "event_type"),
            (EventFilter(run_id="a/b"), "run_id"),
            (EventFilter(user_id=""), "user_id"),
            (EventFilter(project_id="x" * 129), "project_id"),
            (EventFilter(since="today"), "since"),
            (EventFilter(until="2026-02-30T00:00:00Z"), "until"),
            (EventFilter(since="0001-01-01T00:00:00"), "since"),
        ],
    )
    async def test_a_filter_that_no_event_can_match_is_invalid(
        self, spine: EventSpine, where: EventFilter, field: str
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await spine.list(context(), where)
        assert refusal.value.field == field

    @pytest.mark.parametrize("instant", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00"])
    async def test_the_ends_of_time_are_instants(self, filled: EventSpine, instant: str) -> None:
        found = await collect(filled, EventFilter(since=instant))
        assert len(found) == (COUNT if instant.startswith("0001") else 0)

    async def test_a_page_that_found_too_little_stops_looking_and_says_so(self, spine: EventSpine) -> None:
        empty = NewEvent(event_type="message", payload={})
        for _ in range(LOOKED_AT_MAX // 500):
            await spine.append(context(), [empty] * 500)
        await spine.append(context(), [numbered(1, event_type="tool_call")] * 2)
        where = EventFilter(event_type="tool_call")
        page = await spine.list(context(), where)
        assert page.items == ()
        assert page.after is not None
        page = await spine.list(context(), where, window=Window(after=page.after))
        assert [shown.position for shown in page.items] == [LOOKED_AT_MAX + 1, LOOKED_AT_MAX + 2]
        assert page.after is None


class TestCursors:
    @pytest.mark.parametrize("stranger", [{"tenant_id": "t_two"}, {"env": "dev"}])
    async def test_a_cursor_of_another_spine_is_invalid(
        self, spine: EventSpine, stranger: dict[str, str]
    ) -> None:
        cursor = (await spine.append(context(), [numbered(1)])).events[0].cursor
        await spine.append(context(**stranger), [numbered(1)])
        for call in (
            spine.list(context(**stranger), window=Window(after=cursor)),
            spine.follow(context(**stranger), after=cursor),
        ):
            with pytest.raises(Invalid) as refusal:
                await call
            assert refusal.value.field == "after"

    async def test_a_cursor_of_a_stream_fits_no_other_log(
        self, spine: EventSpine, streams: EventStreams
    ) -> None:
        await spine.append(context(), [numbered(1)])
        cursor = (await streams.append(context(), "a", [numbered(1)])).events[0].cursor
        for call in (
            spine.list(context(), window=Window(after=cursor)),
            streams.list(context(), "b", window=Window(after=cursor)),
        ):
            with pytest.raises(Invalid) as refusal:
                await call
            assert refusal.value.field == "after"

    async def test_a_cursor_past_the_end_is_invalid(self, spine: EventSpine) -> None:
        """As after a restore from a backup: what is behind it now was never seen."""
        await spine.append(context(), [numbered(1)])
        beyond = list_scope("event_spine", "t_one", "prod", "spine").of_position(7)
        for call in (
            spine.list(context(), window=Window(after=beyond)),
            spine.follow(context(), after=beyond),
        ):
            with pytest.raises(Invalid) as refusal:
                await call
            assert refusal.value.field == "after"

    async def test_a_cursor_keeps_its_place_over_a_restart(self, home: Home, filled: EventSpine) -> None:
        page = await filled.list(context(), window=Window(limit=10))
        await filled.close()
        await home.reopen()
        reopened = EventSpine(home, home.ids, home.clock)
        rest = await reopened.list(context(), window=Window(after=page.after))
        assert numbers(rest.items) == list(range(10, COUNT))
        await reopened.close()


class TestRedaction:
    async def test_a_redacted_event_keeps_its_place_and_tells_nothing(
        self, home: Home, spine: EventSpine
    ) -> None:
        await spine.append(context(), [numbered(0), numbered(1, run_id="secret"), numbered(2)])
        async with spine._logs._using(await home.place("event_spine", context()), "spine") as log:
            await log.redact(2)
        items = (await spine.list(context())).items
        assert [shown.position for shown in items] == [1, 2, 3]
        assert (items[1].event_type, items[1].payload, items[1].run_id) == ("redacted", None, "")
        assert items[1].timestamp == items[0].timestamp
        assert (await spine.get(context(), items[1].event_id)) == items[1]
        assert numbers((await spine.list(context(), EventFilter(user_id="ada"))).items) == [0, 2]
        assert (await spine.list(context(), EventFilter(run_id="secret"))).items == ()
        since = EventFilter(since=items[0].timestamp)
        assert len((await spine.list(context(), since)).items) == 3
        found = await spine.verify(context())
        assert found.ok
        assert found.redacted_count == 1
