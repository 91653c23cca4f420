"""Budgets: what is recorded, what it costs, what is refused and what is told."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from engines.core.listing import Window
from engines.core.records import Condition
from engines.errors import (
    ContextMismatch,
    Forbidden,
    Invalid,
    MissingRoute,
    NotFound,
    PreconditionFailed,
    Throttled,
    TooLarge,
    Unavailable,
)
from engines.stores import budget_totals
from engines.stores.budget import AGE_MAX_S, UsageFilter
from engines.stores.budget_policy import PolicyInput, Price
from engines.stores.budget_records import ReservationInput, SettlementInput, UsageInput
from tests.contexts import PERMISSIONS_OF
from tests.stores.budget_home import ADA, VERIFIED, Spender, hard
from tests.stores.home import Home, context

BOUND = context(project_id="p1")
OTHERS = context(tenant_id="t_two", user_id="eve")


class TestUsage:
    async def test_an_entry_says_what_was_said_and_who_and_where(self, spender: Spender) -> None:
        mine = context(project_id="p1", app_id="a1", run_id="run-9", step_id="3")
        said = UsageInput(
            provider="openai",
            model="gpt-4o",
            tool="search",
            tokens_in=11,
            tokens_out=7,
            cost="0.000123",
            currency="EUR",
            occurred_at="2026-01-01T00:00:00Z",
            note="first",
        )
        entry = (await spender.budget.record(mine, said)).record
        assert (entry.position, entry.cost, entry.currency, entry.units) == (1, "0.000123", "EUR", 1)
        assert (entry.tokens_in, entry.tokens_out, entry.note) == (11, 7, "first")
        assert (entry.run_id, entry.step_id, entry.surface_id) == ("run-9", "3", "chat")
        assert (entry.app_id, entry.project_id, entry.user_id) == ("a1", "p1", "ada")
        assert entry.occurred_at == "2026-01-01T00:00:00Z"
        assert entry.recorded_at == "2027-01-15T08:00:00.000Z"
        listed = (await spender.budget.usage(ADA)).items
        assert [msgspec.structs.replace(one, cursor="") for one in listed] == [entry]

    async def test_every_digit_is_kept(self, spender: Spender) -> None:
        large, small = "9" * 28, "0." + "0" * 27 + "1"
        for cost in (large, small, large):
            await spender.use(cost)
        summary = await spender.reconciled()
        assert summary.total.cost == "1" + "9" * 27 + "8." + "0" * 27 + "1"

    @pytest.mark.parametrize(
        ("cost", "rule"),
        [
            ("-1", "not negative"),
            ("-0.5", "not negative"),
            ("NaN", "finite"),
            ("sNaN", "finite"),
            ("-Infinity", "finite"),
            ("inf", "finite"),
            ("1" * 29, "28 digits"),
            ("0." + "1" * 29, "28 digits"),
            ("1E28", "28 digits"),
            ("1E-29", "28 digits"),
            ("0E999", "28 digits"),
            ("1e+4", None),
            ("", "Expected"),
            ("1,5", "decimal number"),
            ("٣", "decimal number"),
            (" 1", "decimal number"),
            ("+1", "decimal number"),
            ("0x1", "decimal number"),
        ],
    )
    async def test_an_amount_is_a_decimal_number_of_28_digits(
        self, home: Home, spender: Spender, cost: str, rule: str | None
    ) -> None:
        if rule is None:
            assert (await spender.use(cost)).cost == "10000"
            return
        with pytest.raises(Invalid, match=rule) as refusal:
            await spender.use(cost)
        assert refusal.value.field == "cost"
        assert home.driver.calls == []

    @pytest.mark.parametrize(
        ("said", "field"),
        [
            ({"currency": "XYZ"}, "currency"),
            ({"currency": "usd"}, "currency"),
            ({"currency": "US"}, "currency"),
            ({"tokens_in": -1}, "tokens_in"),
            ({"tokens_out": 2**53}, "tokens_out"),
            ({"units": 1.5}, "units"),
            ({"cost": 1.5}, "cost"),
            ({"cost": Decimal(1)}, "cost"),
            ({"occurred_at": "yesterday"}, "occurred_at"),
            ({"occurred_at": "2026-02-30T00:00:00Z"}, "occurred_at"),
            ({"provider": ""}, "provider"),
            ({"provider": "\ud800"}, None),
            ({"model": "m" * 129}, "model"),
            ({"note": "n" * 501}, "note"),
            ({"corrects": "17"}, "corrects"),
        ],
    )
    async def test_bad_fields_are_named_and_nothing_is_read_or_written(
        self, home: Home, spender: Spender, said: dict[str, Any], field: str | None
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await spender.use(**said)
        assert refusal.value.field == field
        assert home.driver.calls == []

    async def test_what_is_yet_to_come_is_not_recorded(self, spender: Spender) -> None:
        await spender.use(occurred_at="2027-01-15T08:04:59Z")
        with pytest.raises(Invalid) as refusal:
            await spender.use(occurred_at="2027-01-15T08:06:00Z")
        assert refusal.value.field == "occurred_at"
        assert (await spender.reconciled()).total.entries == 1

    async def test_a_budget_has_one_currency_fixed_by_its_first_use(self, spender: Spender) -> None:
        with pytest.raises(Invalid) as refusal:
            await spender.use(currency=None)
        assert refusal.value.field == "currency"
        await spender.use(currency="EUR")
        assert (await spender.use(currency=None)).currency == "EUR"
        for refused in (
            spender.use(currency="USD"),
            spender.reserve(currency="USD"),
            spender.limit(hard("1"), currency="USD"),
        ):
            with pytest.raises(Invalid) as refusal:
                await refused
            assert refusal.value.field == "currency"

    async def test_a_reservation_fixes_the_currency_and_a_policy_alone_does_not(
        self, spender: Spender
    ) -> None:
        await spender.limit(currency="EUR")
        await spender.limit(currency="USD")
        await spender.reserve()
        with pytest.raises(Invalid) as refusal:
            await spender.limit(currency="EUR")
        assert refusal.value.field == "currency"

    async def test_the_ledger_is_listed_by_position_and_any_entry_can_be_gone_on_from(
        self, spender: Spender
    ) -> None:
        for number in range(7):
            mine = context(project_id=f"p{number % 2}", run_id=f"run-{number % 3}")
            await spender.use(str(number), mine, tool=f"t{number % 2}")
        first = await spender.budget.usage(ADA, window=Window(limit=3))
        assert [entry.position for entry in first.items] == [1, 2, 3]
        behind = await spender.budget.usage(ADA, window=Window(after=first.items[1].cursor))
        assert [entry.position for entry in behind.items] == [3, 4, 5, 6, 7]
        descending = await spender.budget.usage(ADA, window=Window(descending=True))
        assert [entry.position for entry in descending.items] == [7, 6, 5, 4, 3, 2, 1]
        for where, positions in (
            (UsageFilter(run_id="run-1"), [2, 5]),
            (UsageFilter(project_id="p1"), [2, 4, 6]),
            (UsageFilter(tool="t0", run_id="run-0"), [1, 7]),
            (UsageFilter(surface_id="Chat"), [1, 2, 3, 4, 5, 6, 7]),
        ):
            found = await spender.budget.usage(ADA, where)
            assert [entry.position for entry in found.items] == positions
        of_project = await spender.budget.usage(context(project_id="p1"))
        assert [entry.position for entry in of_project.items] == [2, 4, 6]
        with pytest.raises(ContextMismatch):
            await spender.budget.usage(context(project_id="p1"), UsageFilter(project_id="p0"))

    async def test_tenants_and_envs_are_apart(self, spender: Spender) -> None:
        entry = await spender.use("5")
        await spender.limit(hard("5"))
        for other in (OTHERS, context(env="dev")):
            assert (await spender.budget.usage(other)).items == ()
            assert (await spender.budget.summary(other)).total.cost == "0"
            with pytest.raises(NotFound):
                await spender.budget.policy(other)
            with pytest.raises(NotFound) as refusal:
                await spender.use("1", other, corrects=entry.usage_id)
            assert refusal.value.field == "corrects"
            await spender.use("7", other)
            with pytest.raises(NotFound):  # Though there is an entry at that position now.
                await spender.use("1", other, corrects=entry.usage_id)
        assert (await spender.left())[0] == 5


class TestCorrections:
    async def test_a_correction_adds_the_difference_and_names_the_entry(self, spender: Spender) -> None:
        await spender.limit(hard("100"))
        wrong = await spender.use("10", context(project_id="p1"), tokens_in=5, model="m")
        right = await spender.use("2.5", corrects=wrong.usage_id, tokens_in=1, note="read wrongly")
        assert (right.adds.cost, right.adds.tokens_in, right.adds.units) == ("-7.5", -4, 0)
        assert (right.model, right.project_id, right.corrects) == ("m", "p1", wrong.usage_id)
        assert (await spender.left())[0] == Decimal("2.5")
        again = await spender.use("3", corrects=wrong.usage_id)
        assert (again.adds.cost, again.adds.tokens_in, again.tokens_in) == ("0.5", 0, 1)
        summary = await spender.reconciled()
        assert (summary.total.cost, summary.total.tokens_in, summary.total.units) == ("3.0", 1, 1)
        assert summary.total.entries == 3
        assert [(line.value, line.cost) for line in summary.by["project"]] == [("p1", "3.0")]
        first = (await spender.budget.usage(ADA)).items[0]
        assert first.cost == "10", "what was recorded stays as it was"

    async def test_what_cannot_be_corrected(self, spender: Spender) -> None:
        entry = await spender.use("1", context(project_id="p1"), model="m")
        correction = await spender.use("2", corrects=entry.usage_id)
        for said, field in (
            ({"corrects": correction.usage_id}, "corrects"),
            ({"corrects": entry.usage_id, "provider": "other"}, "provider"),
            ({"corrects": entry.usage_id, "model": "other"}, "model"),
            ({"corrects": entry.usage_id, "cost": None}, "cost"),
        ):
            with pytest.raises(Invalid) as refusal:
                await spender.use(**{"cost": "1"} | said)
            assert refusal.value.field == field
        nowhere = f"00000000-00ff{entry.usage_id[13:]}"
        for usage_id in (nowhere, "5f2f1e3c-6f0e-5b39-9c8a-1d1b8d7c0a44"):
            with pytest.raises(NotFound):
                await spender.use(corrects=usage_id)
        with pytest.raises(NotFound):
            await spender.use("1", context(project_id="p2"), corrects=entry.usage_id)
        assert (await spender.reconciled()).total.entries == 2

    async def test_who_does_not_set_the_limits_takes_nothing_back(self, home: Home, spender: Spender) -> None:
        entry = await spender.use("10")
        await spender.quiet()
        home.driver.calls.clear()
        for role in ("member", "agent"):
            plain = context(roles=(role,), permissions=PERMISSIONS_OF[role])
            with pytest.raises(Forbidden):
                await spender.use("1", plain, corrects=entry.usage_id)
        assert home.driver.calls == []
        admin = context(roles=("admin",), permissions=PERMISSIONS_OF["admin"])
        assert (await spender.use("1", admin, corrects=entry.usage_id)).adds.cost == "-9"
        await spender.reconciled()

    async def test_an_entry_that_was_priced_is_priced_anew_at_its_own_time(self, spender: Spender) -> None:
        early = Price(provider="openai", input_per_million="2", valid_until="2027-01-15T08:30:00Z")
        late = Price(provider="openai", input_per_million="9", valid_from="2027-01-15T08:30:00Z")
        await spender.limit(prices=(early, late))
        entry = await spender.use(None, tokens_in=1_000_000)
        await spender.advance(3_600)
        right = await spender.use(None, corrects=entry.usage_id, tokens_in=3_000_000)
        assert (right.cost, right.adds.cost) == ("6", "4")


class TestPrices:
    PRICES = (
        Price(provider="openai", input_per_million="2.5", output_per_million="10"),
        Price(provider="openai", model="small", input_per_million="0.15", output_per_million="0.6"),
        Price(provider="openai", tool="search", per_unit="0.01"),
        Price(
            provider="old",
            per_unit="1",
            valid_from="2026-01-01T00:00:00Z",
            valid_until="2027-01-01T00:00:00Z",
        ),
        Price(provider="old", per_unit="3", valid_from="2027-01-01T00:00:00Z"),
    )

    @pytest.mark.parametrize(
        ("said", "cost"),
        [
            ({"tokens_in": 1, "tokens_out": 1}, "0.0000125"),
            ({"tokens_in": 3_000_000}, "7.5"),
            ({"tokens_in": 1, "model": "small"}, "0.00000015"),
            ({"tool": "search", "units": 7}, "0.07"),
            ({"provider": "old"}, "3"),
            ({"provider": "old", "occurred_at": "2026-12-31T23:59:59.999Z"}, "1"),
            ({"provider": "old", "occurred_at": "2027-01-01T00:00:00Z"}, "3"),
        ],
    )
    async def test_the_price_in_force_at_the_time_of_the_use_says_its_cost(
        self, spender: Spender, said: dict[str, Any], cost: str
    ) -> None:
        await spender.limit(prices=self.PRICES)
        entry = await spender.use(None, **said)
        assert (entry.cost, entry.is_priced) == (cost, True)

    @pytest.mark.parametrize(
        ("said", "field"),
        [
            ({"provider": "unknown"}, "cost"),
            ({"provider": None}, "cost"),
            ({"provider": "old", "occurred_at": "2025-12-31T23:59:59Z"}, "cost"),
            ({"tool": "search", "tokens_in": 1}, "tokens_in"),
            ({"units": 0}, "cost"),
            ({}, "cost"),
        ],
    )
    async def test_what_has_no_price_is_refused_and_never_free(
        self, spender: Spender, said: dict[str, Any], field: str
    ) -> None:
        await spender.limit(prices=self.PRICES)
        with pytest.raises(Invalid) as refusal:
            await spender.use(None, **said)
        assert refusal.value.field == field
        assert (await spender.reconciled()).total.entries == 0

    async def test_a_computed_cost_has_28_digits_as_well(self, spender: Spender) -> None:
        await spender.limit(prices=(Price(provider="openai", per_unit="9" * 28),))
        with pytest.raises(Invalid, match="28 digits"):
            await spender.use(None, units=2)


class TestPolicies:
    @pytest.mark.parametrize(
        ("limit", "field"),
        [
            ({"hard": None}, "hard"),
            ({"hard": "-1"}, "hard"),
            ({"hard": "NaN"}, "hard"),
            ({"hard": "1", "soft": "2"}, "soft"),
            ({"limit_id": "a b"}, "limit_id"),
            ({"project_id": "/"}, "project_id"),
            ({"surface_id": "?"}, "surface_id"),
            ({"period": "week"}, "period"),
            (
                {"valid_from": "2027-01-02T00:00:00Z", "valid_until": "2027-01-01T00:00:00Z"},
                "valid_until",
            ),
            (
                {"valid_from": "2027-01-01T00:00:00Z", "valid_until": "2027-01-01T00:00:00Z"},
                "valid_until",
            ),
            ({"valid_until": "2027-13-01T00:00:00Z"}, "valid_until"),
        ],
    )
    async def test_a_limit_that_breaks_a_rule_is_refused_by_its_field(
        self, home: Home, spender: Spender, limit: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await spender.limit(hard("1", limit_id="good"), hard("1", **limit))
        assert refusal.value.field == f"limits[1].{field}"
        assert home.driver.calls == []

    @pytest.mark.parametrize(
        ("price", "field"),
        [
            ({}, "per_unit"),
            ({"per_unit": "-1"}, "per_unit"),
            ({"input_per_million": "1" * 29}, "input_per_million"),
            ({"per_unit": "1", "valid_from": "soon"}, "valid_from"),
            (
                {
                    "per_unit": "1",
                    "valid_from": "2027-02-01T00:00:00Z",
                    "valid_until": "2027-01-01T00:00:00Z",
                },
                "valid_until",
            ),
            ({"per_unit": "1", "valid_from": "2026-06-01T00:00:00Z"}, "valid_from"),
        ],
    )
    async def test_a_price_that_breaks_a_rule_is_refused_by_its_field(
        self, home: Home, spender: Spender, price: dict[str, Any], field: str
    ) -> None:
        standing = Price(provider="p", per_unit="1", valid_until="2026-07-01T00:00:00Z")
        with pytest.raises(Invalid) as refusal:
            await spender.limit(prices=(standing, Price(**{"provider": "p"} | price)))
        assert refusal.value.field == f"prices[1].{field}"
        assert home.driver.calls == []

    async def test_two_limits_of_one_name_are_refused(self, spender: Spender) -> None:
        with pytest.raises(Invalid) as refusal:
            await spender.limit(hard("1"), hard("2"))
        assert refusal.value.field == "limits[1].limit_id"

    async def test_an_unknown_currency_is_refused(self, spender: Spender) -> None:
        with pytest.raises(Invalid) as refusal:
            await spender.limit(currency="DOL")
        assert refusal.value.field == "currency"

    async def test_a_policy_is_versioned_and_told_and_replaced_under_a_condition(
        self, spender: Spender
    ) -> None:
        with pytest.raises(NotFound):
            await spender.budget.policy(ADA)
        said = PolicyInput(currency="USD", limits=(hard("10", surface_id="SQUARED²"),))
        absent = Condition(absent=True)
        first = await spender.budget.put_policy(ADA, said, condition=absent)
        assert (first.created, first.record.version) == (True, 1)
        assert first.record.limits[0].surface_id == "squared2"
        with pytest.raises(PreconditionFailed):
            await spender.budget.put_policy(ADA, said, condition=absent)
        at = Condition(versions=(first.etag.strip('"'),))
        second = await spender.budget.put_policy(ADA, PolicyInput(currency="EUR"), condition=at)
        assert (second.created, second.record.version) == (False, 2)
        with pytest.raises(PreconditionFailed):
            await spender.budget.put_policy(ADA, said, condition=at)
        assert await spender.budget.policy(ADA) == second.record
        told = await spender.told(2, "policy")
        assert [(event["version"], event["currency"]) for event in told] == [(1, "USD"), (2, "EUR")]

    async def test_a_new_limit_counts_what_was_spent_in_its_period_before(self, spender: Spender) -> None:
        await spender.use("1")  # 08:00
        await spender.advance(3_600 - 1)
        await spender.use("2", context(project_id="p1"))  # 08:59:59
        await spender.advance(1)
        await spender.use("4", context(project_id="p1"), provider="other")  # 09:00
        await spender.limit(
            *(hard("100", limit_id=period, period=period) for period in ("hour", "day", "month", "total")),
            hard("100", limit_id="project", project_id="p1"),
            hard("100", limit_id="both", project_id="p1", provider="openai", period="month"),
            hard("100", limit_id="hourly", project_id="p1", period="hour"),
        )
        spent = {limit.limit_id: Decimal(limit.spent) for limit in (await spender.budget.summary(ADA)).limits}
        assert spent == {
            "hour": 4,
            "day": 7,
            "month": 7,
            "total": 7,
            "project": 6,
            "both": 2,
            "hourly": 4,
        }
        await spender.reconciled()

    async def test_whoever_invents_names_keeps_nobody_from_limiting_them(
        self, spender: Spender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More different uses than a summary holds, at the end of a month and on the day behind it."""
        await spender.advance(17 * 86_400 - 8 * 3_600 - 1)  # 2027-01-31T23:59:59
        await asyncio.gather(*(spender.use("1", model=f"invented-{number}") for number in range(51)))
        await spender.use("2", provider="other")
        await spender.advance(1)
        await asyncio.gather(*(spender.use("4", model=f"invented-{number}") for number in range(51)))
        with monkeypatch.context() as lowered:
            lowered.setattr(budget_totals, "CELLS_MAX", 50)
            lowered.setattr(budget_totals, "SCAN_LIMIT_MAX", 20)
            with pytest.raises(TooLarge) as refusal:
                await spender.budget.summary(ADA)
            assert refusal.value.field == "since"
            await spender.limit(
                *(hard("1", limit_id=period, period=period) for period in ("day", "month", "total")),
                hard("1", limit_id="openai", provider="openai"),
            )
            with pytest.raises(Throttled):
                await spender.reserve("1")
        summary = await spender.reconciled()
        spent = {limit.limit_id: Decimal(limit.spent) for limit in summary.limits}
        assert spent == {"day": 204, "month": 204, "total": 257, "openai": 255}

    async def test_another_amount_keeps_what_a_limit_has_counted_and_holds(self, spender: Spender) -> None:
        await spender.limit(hard("10"))
        await spender.use("3")
        held = await spender.reserve("5")
        await spender.limit(hard("20"))
        assert await spender.left() == (3, 5)
        await spender.limit(hard("4"))
        with pytest.raises(Throttled):
            await spender.reserve("0.01")
        settled = await spender.settle(held, "5")
        assert settled.record.over_limits == ("all",)
        await spender.reconciled()

    async def test_a_policy_that_says_too_much_is_too_large(self, spender: Spender) -> None:
        with pytest.raises(Invalid) as refusal:
            await spender.limit(*(hard("1", limit_id=f"l{number}") for number in range(51)))
        assert refusal.value.field == "limits"


class TestSpine:
    async def test_every_entry_is_an_event_with_the_callers_provenance(self, spender: Spender) -> None:
        mine = context(project_id="p1", run_id="run-7", step_id="2", user_id="bob")
        entry = await spender.use("0.5", mine, tokens_in=3)
        (payload,) = await spender.told(1)
        assert payload["usage_id"] == entry.usage_id
        assert (payload["cost"], payload["tokens_in"], payload["currency"]) == ("0.5", 3, "USD")
        event = (await spender.spine.list(ADA)).items[0]
        assert (event.event_type, event.source, event.user_id) == ("budget", "system", "bob")
        assert (event.project_id, event.run_id, event.step_id) == ("p1", "run-7", "2")

    async def test_entries_are_told_in_their_order(self, spender: Spender) -> None:
        await asyncio.gather(*(spender.use(str(number)) for number in range(60)))
        told = await spender.told(60)
        assert [event["position"] for event in told] == list(range(1, 61))

    async def test_those_that_waited_for_the_spine_are_told_once_and_in_their_order(
        self, spender: Spender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        away = asyncio.Event()

        async def is_away(*_: object, **__: object) -> None:
            away.set()
            raise Unavailable("the spine is away")

        monkeypatch.setattr(spender.spine, "append_system", is_away)
        await asyncio.gather(*(spender.use(str(number)) for number in range(100)))
        await away.wait()
        monkeypatch.undo()
        told = await spender.told(100)
        assert [event["position"] for event in told] == list(range(1, 101))


class TestChecks:
    async def test_a_check_says_which_limit_refuses_with_one_read(self, home: Home, spender: Spender) -> None:
        unlimited = await spender.budget.check(ADA, Decimal(1))
        assert (unlimited.passes, unlimited.has_policy) == (True, False)
        await spender.limit(hard("10", soft="1"), hard("2", limit_id="p", project_id="p1", period="day"))
        await spender.use("1.5", BOUND)
        await spender.reserve("4")
        await spender.quiet()
        home.driver.calls.clear()
        assert (await spender.budget.check(ADA, Decimal("4.5"))).passes
        refused = await spender.budget.check(ADA, Decimal("4.51"))
        assert (refused.passes, refused.limit_id, refused.left) == (False, "all", Decimal("4.5"))
        refused = await spender.budget.check(BOUND, Decimal("0.51"))
        assert (refused.limit_id, refused.reason_code, refused.soft_limits) == ("p", "hard_limit", ("all",))
        assert home.driver.calls == ["get"] * 3
        with pytest.raises(Invalid):
            await spender.budget.check(ADA, Decimal("NaN"))

    async def test_a_check_in_another_currency_is_refused_as_its_reservation_would_be(
        self, spender: Spender
    ) -> None:
        await spender.limit(hard("10"))
        for check in (spender.budget.check, spender.budget.recent_check):
            assert (await check(ADA, Decimal(10), currency="USD")).passes
            with pytest.raises(Invalid, match="kept in USD"):
                await check(ADA, Decimal(10), currency="JPY")

    async def test_what_is_asked_again_within_a_second_is_read_once_for_each_budget(
        self, home: Home, spender: Spender
    ) -> None:
        await spender.limit(hard("10"))
        await spender.budget.check(OTHERS, Decimal(1))
        await spender.quiet()
        home.driver.calls.clear()
        asked = [spender.budget.recent_check(ADA, Decimal(10)) for _ in range(20)]
        assert all(check.passes for check in await asyncio.gather(*asked))
        assert not (await spender.budget.recent_check(ADA, Decimal(11))).passes
        assert home.driver.calls == ["get"]
        assert not (await spender.budget.recent_check(OTHERS, Decimal(11))).has_policy
        assert home.driver.calls == ["get"] * 2
        await spender.use("4")
        home.clock.advance(AGE_MAX_S)
        refused = await spender.budget.recent_check(ADA, Decimal(7))
        assert (refused.passes, refused.limit_id, refused.left) == (False, "all", Decimal(6))

    async def test_what_lapsed_meanwhile_is_room_though_nothing_was_read(
        self, home: Home, spender: Spender
    ) -> None:
        await spender.limit(hard("10"))
        await spender.reserve("10", ttl_seconds=1)
        home.clock.advance(0.5)
        assert not (await spender.budget.recent_check(ADA, Decimal(1))).passes
        home.clock.advance(AGE_MAX_S - 0.25)
        await spender.quiet()
        home.driver.calls.clear()
        assert (await spender.budget.recent_check(ADA, Decimal(10))).passes
        assert home.driver.calls == []


class TestRights:
    async def test_each_call_asks_for_its_permission(self, home: Home, spender: Spender) -> None:
        budget, nobody = spender.budget, context(permissions=frozenset({"budget.write"}))
        reader = context(permissions=frozenset({"budget.read"}))
        for refused in (
            budget.usage(nobody),
            budget.summary(nobody),
            budget.policy(nobody),
            budget.put_policy(nobody, PolicyInput(currency="USD")),
            budget.record(reader, UsageInput(cost="1", currency="USD")),
            budget.reserve(reader, ReservationInput(amount="1")),
            budget.settle(reader, "r", SettlementInput()),
            budget.release(reader, "r"),
            spender.budget.summary(reader, VERIFIED),
        ):
            with pytest.raises(Forbidden):
                await refused
        with pytest.raises(ContextMismatch) as refusal:
            await budget.record(ADA, UsageInput(cost="1", currency="USD", project_id="p1"))
        assert refusal.value.field == "project_id"
        assert home.driver.calls == []

    async def test_without_a_route_nothing_is_allowed(self, home: Home, spender: Spender) -> None:
        await spender.limit(hard("10"))
        reservation = await spender.reserve("1")
        home.missing.add("budget_store")
        for refused in (
            spender.use("1"),
            spender.reserve("1"),
            spender.settle(reservation, "1"),
            spender.release(reservation),
            spender.limit(hard("100")),
            spender.budget.check(ADA, Decimal(1)),
            spender.budget.recent_check(ADA, Decimal(1)),
            spender.budget.summary(ADA),
            spender.budget.usage(ADA),
            spender.budget.policy(ADA),
        ):
            with pytest.raises(MissingRoute):
                await refused
