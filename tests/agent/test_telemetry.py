"""Rules of counted tokens: none is lost or counted twice, and the sums are those of what was counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engines.agent import telemetry
from engines.agent.stores import AgentStores
from engines.agent.telemetry import COUNT_MAX, DAYS_MAX, MODELS_MAX, Telemetry, TokensInput, TokensQuery
from engines.clock import timestamp
from engines.errors import Conflict, Forbidden, IdempotencyKeyReused, Invalid, OutcomeUnknown
from engines.testing.faults import Fault, FaultPlan
from tests.agent.talking import ADA, BOB, begun, person
from tests.stores.home import Home
from tests.stores.subjects import keyed

DAY_S = 24 * 3600


@pytest.fixture
def counters(agent: AgentStores) -> Telemetry:
    return agent.telemetry


def took(tokens_in: int = 0, tokens_out: int = 0, **members: Any) -> TokensInput:
    return TokensInput(
        **{"provider": "p", "model": "m", "tokens_in": tokens_in, "tokens_out": tokens_out, **members}
    )


async def total(counters: Telemetry, **query: Any) -> tuple[int, int, int]:
    """Calls, tokens in and tokens out."""
    sums = (await counters.report(ADA, TokensQuery(**query))).total
    return sums.calls, sums.tokens_in, sums.tokens_out


async def test_counts_add_up_by_model_session_and_day(home: Home, counters: Telemetry) -> None:
    await counters.count(ADA, took(10, 1, session_id="s1", tokens_cached=4))
    await counters.count(ADA, took(20, 2, session_id="s1", model="n"))
    await counters.count(ADA, took(40, 4, session_id="s2", calls=3))
    home.clock.advance(DAY_S)
    last = (await counters.count(ADA, took(80, 8, session_id="s1"))).record
    await counters.count(ADA, took(160, 16))
    await home.reopen()

    def shown(report: Any, *names: str) -> dict[tuple[Any, ...], tuple[int, int]]:
        return {
            tuple(getattr(group, name) for name in names): (group.calls, group.tokens_in)
            for group in report.groups
        }

    report = await counters.report(ADA, TokensQuery())
    assert (report.total.calls, report.total.tokens_in, report.total.tokens_out) == (7, 310, 31)
    assert report.total.tokens_cached == 4
    assert shown(report, "provider", "model") == {("p", "m"): (6, 290), ("p", "n"): (1, 20)}
    by_session = await counters.report(ADA, TokensQuery(by="session"))
    assert shown(by_session, "session_id") == {(None,): (1, 160), ("s1",): (3, 110), ("s2",): (3, 40)}
    by_day = await counters.report(ADA, TokensQuery(by="day"))
    assert list(shown(by_day, "day").values()) == [(5, 70), (2, 240)]
    assert by_day.groups[1].day == last.day
    assert await total(counters, session_id="s1") == (3, 110, 11)
    assert await total(counters, since=last.day) == (2, 240, 24)
    assert await total(counters, since=by_day.groups[0].day, until=by_day.groups[0].day) == (5, 70, 7)


async def test_the_requests_own_session_is_taken_where_none_is_named(counters: Telemetry) -> None:
    bound = person("ada", session_id="bound")
    assert (await counters.count(bound, took(1))).record.session_id == "bound"
    assert (await counters.count(bound, took(1, session_id="named"))).record.session_id == "named"
    assert (await counters.count(ADA, took(1))).record.session_id is None


async def test_of_many_at_once_none_is_lost(home: Home, counters: Telemetry) -> None:
    home.faults.plan = FaultPlan(pause_s_max=0.002, write_lost_applied=0.2, write_refused=0.1)

    async def counted(number: int) -> None:
        """Repeated until it is answered: who got no answer may have been counted."""
        while True:
            try:
                await counters.count(ADA, took(number, model=f"m{number % 3}"), request=keyed(str(number)))
            except OutcomeUnknown:
                continue
            return

    await asyncio.gather(*map(counted, range(12)))
    home.faults.plan = FaultPlan()
    assert await total(counters) == (12, sum(range(12)), 0)


async def test_a_repeat_counts_once(home: Home, counters: Telemetry) -> None:
    home.faults.script(Fault.LOST_APPLIED)
    first = await counters.count(ADA, took(5), request=keyed("t"))
    await counters.count(ADA, took(1))
    again = await counters.count(ADA, took(5), request=keyed("t"))
    assert (again.record, again.replayed) == (first.record, True)
    with pytest.raises(IdempotencyKeyReused):
        await counters.count(ADA, took(6), request=keyed("t", b"other"))
    assert await total(counters) == (2, 6, 0)


async def test_they_are_their_users_alone(counters: Telemetry) -> None:
    await counters.count(BOB, took(7))
    await counters.count(person("ada", tenant_id="t_two"), took(7))
    await counters.count(person("ada2"), took(7))
    assert await total(counters) == (0, 0, 0)
    with pytest.raises(Forbidden):
        await counters.count(person("ada", "viewer"), took(1))
    await counters.report(person("ada", "viewer"), TokensQuery())


async def test_they_outlive_their_session(agent: AgentStores) -> None:
    session = await begun(agent)
    await agent.telemetry.count(ADA, took(9, session_id=session.session_id))
    await agent.sessions.delete(ADA, session.session_id)
    assert await total(agent.telemetry, session_id=session.session_id) == (1, 9, 0)


@pytest.mark.parametrize(
    ("told", "field"),
    [
        (took(-1), "tokens_in"),
        (took(COUNT_MAX + 1), "tokens_in"),
        (took(0, -1), "tokens_out"),
        (took(1, tokens_cached=2), "tokens_cached"),
        (took(1, calls=0), "calls"),
        (took(1, model=""), "model"),
        (took(1, session_id="a b"), "session_id"),
    ],
)
async def test_a_count_that_is_none_is_refused(counters: Telemetry, told: TokensInput, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        await counters.count(ADA, told)
    assert refused.value.field == field
    assert await total(counters) == (0, 0, 0)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (TokensQuery(since="yesterday"), "since"),
        (TokensQuery(until="2026-02-30"), "until"),
        (TokensQuery(until="20261121"), "until"),
        (TokensQuery(since="2026-11-22", until="2026-11-21"), "until"),
        (TokensQuery(since="2025-01-01", until="2026-11-21"), "since"),
        (TokensQuery(session_id="a b"), "session_id"),
    ],
)
async def test_days_that_are_none_are_refused(counters: Telemetry, query: TokensQuery, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        await counters.report(ADA, query)
    assert refused.value.field == field


async def test_the_longest_and_the_earliest_report(counters: Telemetry) -> None:
    leap = await counters.report(ADA, TokensQuery(since="2024-01-01", until="2024-12-31"))
    assert (leap.since, leap.until) == ("2024-01-01", "2024-12-31")
    assert DAYS_MAX == 366
    earliest = await counters.report(ADA, TokensQuery(until="0001-01-01"))
    assert earliest.since == "0001-01-01"


async def test_a_session_counts_no_more_models_than_fit(counters: Telemetry) -> None:
    for number in range(MODELS_MAX):
        await counters.count(ADA, took(1, model=f"m{number}"))
    with pytest.raises(Conflict):
        await counters.count(ADA, took(1, model="one more"))
    await counters.count(ADA, took(1, model="m0"))
    await counters.count(ADA, took(1, model="one more", session_id="another"))
    assert await total(counters) == (MODELS_MAX + 2, MODELS_MAX + 2, 0)


@pytest.mark.parametrize("limit", ["LOOKED_AT_MAX", "SCANS_MAX"])
async def test_more_counters_than_are_read_at_once_ask_for_less(
    counters: Telemetry, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(telemetry, "SCAN_LIMIT_MAX", 2)
    monkeypatch.setattr(telemetry, limit, {"LOOKED_AT_MAX": 4, "SCANS_MAX": 2}[limit])
    for number in range(4):
        await counters.count(ADA, took(1, session_id=f"s{number}"))
    assert await total(counters) == (4, 4, 0)
    await counters.count(ADA, took(1, session_id="s4"))
    with pytest.raises(Invalid) as refused:
        await counters.report(ADA, TokensQuery())
    assert refused.value.field == "since"
    assert await total(counters, session_id="s4") == (1, 1, 0)


async def test_of_one_session_a_year_is_read_without_the_others(home: Home, counters: Telemetry) -> None:
    for _ in range(3):
        await counters.count(ADA, took(1, session_id="s1"))
        await counters.count(ADA, took(1, session_id="s2"))
        home.clock.advance(100 * DAY_S)
    since = timestamp(home.clock.now() - (DAYS_MAX - 1) * DAY_S)[:10]
    home.driver.calls.clear()
    assert await total(counters, since=since, session_id="s1") == (3, 3, 0)
    assert home.driver.calls == ["get"] * 4
