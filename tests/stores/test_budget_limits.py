"""Budgets: what is held, what is refused, when a period begins and what a soft limit says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from decimal import Decimal
from typing import Any

import pytest

from engines.codec import encode_json, escaped_bytes
from engines.errors import (
    Conflict,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    NotFound,
    Throttled,
)
from engines.ids import Ids, first_record_id
from engines.ports.documents import Op, Put
from engines.stores import budget_accounts
from engines.stores.budget_accounts import HOLDS_BYTES_MAX, Accounts, lapse_s
from engines.stores.budget_amounts import DIGITS_MAX
from engines.stores.budget_policy import LIMITS_MAX, NAME_CHARS_MAX, Dimensions, Limit, Policy, Price
from engines.stores.budget_records import (
    HEAD,
    HEAD_KEY,
    NOTE_CHARS_MAX,
    Head,
    ReservationInput,
    SettlementInput,
    Sums,
    UsageEntry,
    UsageInput,
)
from engines.stores.budget_sheet import CHANGE_BYTES_MAX, CHANGE_OPS_MAX, FULL_BYTES, Sheet
from engines.stores.scoped import Change, stamp
from tests.contexts import PERMISSIONS_OF
from tests.stores.budget_home import ADA, Spender, hard, soft
from tests.stores.home import Home, context
from tests.stores.subjects import keyed

BOUND = context(project_id="p1")
MEMBER = context(user_id="meg", permissions=PERMISSIONS_OF["member"])
COLLEAGUE = context(user_id="col", permissions=PERMISSIONS_OF["member"])
OTHERS = context(tenant_id="t_two", user_id="eve")


class TestReservations:
    async def test_what_is_held_is_not_there_for_others_and_comes_back(self, spender: Spender) -> None:
        await spender.limit(hard("10", period="day"))
        first, second = await spender.reserve("6"), await spender.reserve("4")
        assert first.limits == ("all",)
        with pytest.raises(Throttled):
            await spender.reserve("0.0000000001")
        await spender.release(first)
        assert await spender.left() == (0, 4)
        settled = (await spender.settle(second, "1.5", tokens_in=9)).record
        assert (settled.state, settled.settled_cost) == ("settled", "1.5")
        assert await spender.left() == (Decimal("1.5"), 0)
        entry = (await spender.budget.usage(ADA)).items[0]
        assert (entry.usage_id, entry.reservation_id) == (settled.usage_id, second.reservation_id)
        assert (entry.provider, entry.tokens_in, entry.cost) == ("openai", 9, "1.5")
        await spender.reserve("8.5")
        await spender.reconciled()

    async def test_every_limit_that_counts_it_must_have_room(self, spender: Spender) -> None:
        await spender.limit(
            hard("10", limit_id="tenant"),
            hard("5", limit_id="project", project_id="p1"),
            hard("3", limit_id="provider", provider="openai"),
            hard("2", limit_id="surface", surface_id="canvas"),
            hard("1", limit_id="app", app_id="a1"),
        )
        for mine, said, limit_id in (
            (context(app_id="a1"), {}, "app"),
            (context(surface_id="canvas"), {}, "surface"),
            (context(), {}, "provider"),
            (BOUND, {"provider": "other"}, "project"),
            (context(), {"provider": None}, "tenant"),
        ):
            room = {"app": "1", "surface": "2", "provider": "3", "project": "5", "tenant": "10"}[limit_id]
            with pytest.raises(Conflict) as refusal:
                await spender.reserve(f"{room}.01", mine, **said)
            assert refusal.value.scope == {"limit_id": limit_id, "period": "total"}
            assert refusal.value.reason_code == "hard_limit"
            await spender.release(await spender.reserve(room, mine, **said))
        assert {limit.held for limit in (await spender.budget.summary(ADA)).limits} == {"0"}

    async def test_an_abandoned_reservation_gives_its_amount_back_by_itself(self, spender: Spender) -> None:
        await spender.limit(hard("10"))
        first = await spender.reserve("10", ttl_seconds=30)
        assert first.expires_at == "2027-01-15T08:00:30.000Z"
        with pytest.raises(Throttled) as refusal:
            await spender.reserve("10")
        assert refusal.value.retry_after_s == 30
        await spender.advance(29.9)
        with pytest.raises(Throttled):
            await spender.reserve("10")
        assert await spender.holding() == [first.reservation_id]
        assert first_record_id(spender.home.clock.now() - 30) < first.reservation_id
        await spender.advance(0.1)
        assert await spender.holding() == []
        assert await spender.left() == (0, 0)
        second = await spender.reserve("10")
        await spender.release(first)
        assert await spender.left() == (0, 10), "what lapsed is not given back twice"
        await spender.release(second)

    async def test_a_use_is_recorded_though_its_reservation_lapsed_or_was_smaller(
        self, spender: Spender
    ) -> None:
        await spender.limit(hard("10"))
        late, small = await spender.reserve("6", ttl_seconds=1), await spender.reserve("4")
        await spender.advance(2)
        taken = await spender.reserve("6")
        assert (await spender.settle(late, "6")).record.over_limits == ("all",)
        assert (await spender.settle(small, "4.5")).record.over_limits == ("all",)
        await spender.release(taken)
        assert await spender.left() == (Decimal("10.5"), 0)
        assert (await spender.reconciled()).limits[0].left == "-0.5"

    async def test_a_settlement_without_a_cost_is_priced(self, spender: Spender) -> None:
        await spender.limit(hard("10"), prices=(Price(provider="openai", output_per_million="3"),))
        reservation = await spender.reserve("10")
        assert (await spender.settle(reservation, None, tokens_out=2_000_000)).record.settled_cost == "6"

    async def test_an_end_that_is_repeated_changes_nothing_and_another_is_refused(
        self, spender: Spender
    ) -> None:
        await spender.limit(hard("10"))
        settled, released = await spender.reserve("2"), await spender.reserve("3")
        first = await spender.settle(settled, "1.50", tokens_in=1)
        assert (await spender.settle(settled, "1.5", tokens_in=1)).record == first.record
        for cost, tokens in (("1.6", 1), ("1.5", 2), (None, 1)):
            with pytest.raises(Conflict):
                await spender.settle(settled, cost, tokens_in=tokens)
        with pytest.raises(Conflict):
            await spender.release(settled)
        once = await spender.release(released)
        assert (await spender.release(released)).record == once.record
        with pytest.raises(Conflict):
            await spender.settle(released, "1")
        assert await spender.left() == (Decimal("1.5"), 0)
        assert (await spender.reconciled()).total.entries == 1

    async def test_reservations_of_others_are_not_there(self, spender: Spender) -> None:
        await spender.limit(hard("10"))
        mine = await spender.reserve("2", BOUND)
        for other in (OTHERS, context(env="dev"), context(project_id="p2")):
            for ended in (
                spender.budget.release(other, mine.reservation_id),
                spender.budget.settle(other, mine.reservation_id, SettlementInput(cost="1", currency="USD")),
            ):
                with pytest.raises(NotFound):
                    await ended
        assert await spender.left() == (0, 2)

    async def test_a_reservation_is_ended_by_who_made_it_or_by_who_sets_the_limits(
        self, spender: Spender
    ) -> None:
        await spender.limit(hard("10"))
        mine, theirs = await spender.reserve("4", MEMBER), await spender.reserve("5", MEMBER)
        settlement = SettlementInput(cost="1")
        for other in (
            COLLEAGUE,
            context(user_id="bot", roles=("agent",), permissions=PERMISSIONS_OF["agent"]),
        ):
            for ended in (
                spender.budget.release(other, mine.reservation_id),
                spender.budget.settle(other, mine.reservation_id, settlement),
            ):
                with pytest.raises(Forbidden):
                    await ended
        assert await spender.left() == (0, 9)
        settled = await spender.budget.settle(MEMBER, mine.reservation_id, settlement)
        again = await spender.budget.settle(MEMBER, mine.reservation_id, settlement)
        assert (again.record, settled.record.user_id) == (settled.record, MEMBER.user_id)
        with pytest.raises(Forbidden):  # Nor is what became of it theirs to hear again.
            await spender.budget.settle(COLLEAGUE, mine.reservation_id, settlement)
        assert (await spender.release(theirs)).record.state == "released"
        assert await spender.left() == (1, 0)
        await spender.reconciled()

    async def test_ends_that_come_at_once_are_judged_each_by_its_own_user(self, spender: Spender) -> None:
        await spender.limit(hard("10"))
        held = [await spender.reserve("1", MEMBER) for _ in range(6)]
        ended = await asyncio.gather(
            *(spender.budget.release(who, one.reservation_id) for one in held for who in (COLLEAGUE, MEMBER)),
            return_exceptions=True,
        )
        assert [type(end) for end in ended] == [Forbidden, Change] * 6
        assert await spender.left() == (0, 0)

    @pytest.mark.parametrize(
        ("said", "field"),
        [
            ({"amount": "-1"}, "amount"),
            ({"amount": "nan"}, "amount"),
            ({"currency": "???"}, "currency"),
            ({"ttl_seconds": 0}, "ttl_seconds"),
            ({"ttl_seconds": 86_401}, "ttl_seconds"),
        ],
    )
    async def test_bad_reservations_are_refused_by_their_field(
        self, home: Home, spender: Spender, said: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(Invalid) as refusal:
            await spender.reserve(**said)
        assert refusal.value.field == field
        assert home.driver.calls == []

    async def test_a_repeat_under_a_key_gets_the_first_answer_and_takes_nothing(
        self, spender: Spender
    ) -> None:
        await spender.limit(hard("10"))
        said = ReservationInput(amount="4", currency="USD")
        first = await spender.budget.reserve(ADA, said, request=keyed("r"))
        again = await spender.budget.reserve(ADA, said, request=keyed("r"))
        assert (again.record, again.created, again.replayed) == (first.record, True, True)
        with pytest.raises(IdempotencyKeyReused):
            await spender.budget.reserve(ADA, said, request=keyed("r", b"other"))
        settlement = SettlementInput(cost="1")
        ended = await spender.budget.settle(ADA, first.record.reservation_id, settlement, request=keyed("s"))
        repeat = await spender.budget.settle(ADA, first.record.reservation_id, settlement, request=keyed("s"))
        assert (repeat.record, repeat.replayed) == (ended.record, True)
        assert await spender.left() == (1, 0)


class TestLimitsThatCome:
    """Whatever a policy brings counts what was spent in its period and what is held, whoever held it when."""

    async def test_a_limit_that_goes_and_comes_back_still_counts_what_is_held(self, spender: Spender) -> None:
        await spender.limit(hard("10", period="day"))
        await spender.use("1")
        before = await spender.reserve("4")
        await spender.limit()
        await spender.use("1")
        between = await spender.reserve("3")
        await spender.limit(hard("10", period="day"))
        assert await spender.left() == (2, 7)
        with pytest.raises(Throttled):
            await spender.reserve("1.01")
        await spender.settle(before, "4")
        await spender.release(between)
        assert await spender.left() == (6, 0)
        await spender.reserve("4")
        await spender.reconciled()

    @pytest.mark.parametrize(
        ("fields", "held"),
        [
            ({"limit_id": "renamed"}, 7),
            ({"period": "hour"}, 7),
            ({"period": "total"}, 7),
            ({"provider": "openai"}, 4),
            ({"project_id": "p1"}, 3),
            ({"surface_id": "canvas"}, 0),
        ],
    )
    async def test_a_limit_under_another_name_period_or_scope_counts_what_is_held_there(
        self, spender: Spender, fields: dict[str, str], held: int
    ) -> None:
        await spender.limit(hard("7", period="day"))
        await spender.reserve("4")
        await spender.reserve("3", BOUND, provider="other")
        limit = hard("10", **{"period": "day"} | fields)
        await spender.limit(limit)
        assert await spender.left(limit.limit_id) == (0, held)

    async def test_a_limit_that_becomes_hard_or_comes_into_force_counts_what_is_held(
        self, spender: Spender
    ) -> None:
        later = {"limit_id": "later", "valid_from": "2027-01-15T08:01:00Z"}
        await spender.limit(soft("10"), hard("6", **later))
        await spender.reserve("6")
        await spender.limit(hard("6"), hard("6", **later))
        with pytest.raises(Throttled) as refusal:
            await spender.reserve("1")
        assert refusal.value.scope == {"limit_id": "all", "period": "total"}
        await spender.limit(soft("10"), hard("6", **later))
        await spender.advance(60)
        with pytest.raises(Throttled) as refusal:
            await spender.reserve("1")
        assert refusal.value.scope == {"limit_id": "later", "period": "total"}

    async def test_what_lapsed_while_there_was_no_limit_is_held_no_longer(self, spender: Spender) -> None:
        first = await spender.reserve("4", ttl_seconds=30)
        await spender.reserve("3", ttl_seconds=60)
        await spender.advance(30)
        await spender.limit(hard("10"))
        assert await spender.left() == (0, 3)
        await spender.release(first)
        assert await spender.left() == (0, 3), "what lapsed is not given back twice"


class TestWhatHoldsTake:
    NAMED = Dimensions(provider="named")

    def test_uses_of_invented_names_end_in_one_that_lapses_by_the_quarter_hour(self) -> None:
        """However many come, with the longest names that a document can escape."""
        head = Head(ledger_id="0" * 32)
        limits = (hard("1000", provider="named"),)
        policy = Policy(
            **stamp(ADA), currency="USD", limits=limits, prices=(), version=1, created_at="", updated_at=""
        )
        accounts = Accounts(head, policy, 1_800_000_000_000)
        fine = 0
        for number in range(5_000):
            if not accounts.is_crowded:
                fine += 1
            provider = str(number) + '"' * (128 - len(str(number)))
            lapses_s = lapse_s(1_800_000_000, 1 + number % 60, crowded=accounts.is_crowded)
            held_for = accounts.held_for(Dimensions(provider=provider, model=provider, project_id="p"))
            assert accounts.has_room(held_for, lapses_s)
            accounts.hold(held_for, Decimal("9" * 28), lapses_s)
        assert escaped_bytes(HEAD.encode(head)) <= HOLDS_BYTES_MAX * 0.6
        assert [(one.use, list(one.held)) for one in head.holds[fine:]] == [(Dimensions(), [1_800_000_900])]
        assert accounts.held_for(self.NAMED) == self.NAMED, "what a limit counts is told apart"

    def test_what_does_not_fit_is_known_before_it_is_held(self) -> None:
        head = Head(ledger_id="0" * 32)
        accounts = Accounts(head, None, 1_800_000_000_000)
        lapses_s = 1_800_000_000
        while accounts.has_room(self.NAMED, lapses_s := lapses_s + 1):
            accounts.hold(self.NAMED, Decimal("9" * 28), lapses_s)
        assert escaped_bytes(HEAD.encode(head)) <= HOLDS_BYTES_MAX + 1_000
        assert accounts.has_room(self.NAMED, lapses_s - 1), "at a second that is there already"

    def test_a_head_of_the_version_before_is_read_without_what_its_accounts_held(self) -> None:
        body = (
            '{"schema":"budget-head/1","ledger_id":"l","position":7,"currency":"USD","is_used":true,"accounts":'
            '{"k":{"schema":"budget-account/1","starts_s":0,"spent":"3","held":{"1800000000":"9"}}}}'
        )
        head = HEAD.decode(body)
        assert (head.position, head.accounts["k"].spent, head.holds) == (7, Decimal(3), [])
        assert '"schema":"budget-head/2"' in HEAD.encode(head)

    async def test_nobody_is_kept_from_a_budget_by_what_others_reserve(self, spender: Spender) -> None:
        await asyncio.gather(
            *(
                spender.reserve(amount, ttl_seconds=86_400, provider=str(number) + "\\" * 120)
                for number in range(800)
                for amount in ("0", "0.0000000001")
            )
        )
        await spender.use("1")
        await spender.limit(hard("10"))
        await spender.settle(await spender.reserve("2"), "2")
        (status,) = (await spender.budget.summary(ADA)).limits
        assert Decimal(status.held) == 800 * Decimal("0.0000000001")

    async def test_past_what_has_room_nothing_more_is_held_until_something_ends(
        self, spender: Spender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await spender.limit(hard("100"))
        first = await spender.reserve(ttl_seconds=60)
        monkeypatch.setattr(budget_accounts, "HOLDS_BYTES_MAX", 450)
        second = await spender.reserve(provider="other", ttl_seconds=60)
        with pytest.raises(Throttled) as refusal:
            await spender.reserve(provider="third")
        assert (refusal.value.reason_code, refusal.value.retry_after_s) == (None, 60)
        assert await spender.left() == (0, 2)
        await spender.settle(first, "1")
        await spender.release(second)
        await spender.reserve(provider="third")


def bytes_beside_the_head(ops: Sequence[Op]) -> int:
    return sum(escaped_bytes(op.body) for op in ops if isinstance(op, Put) and op.key != HEAD_KEY)


class TestLongEntries:
    """What is said at its longest, escaped as a backend may store it, where all the limits are passed."""

    NAME = "\x01" * NAME_CHARS_MAX
    NOTE = "\x01" * NOTE_CHARS_MAX
    ID = "i" * 128
    MALLORY = context(
        user_id=ID, project_id=ID, app_id=ID, surface_id=ID, run_id=ID, step_id=ID, thread_id=ID
    )

    def limits(self, **amounts: str) -> list[Limit]:
        return [hard(**{"limit_id": f"{number:0128d}"} | amounts) for number in range(LIMITS_MAX)]

    async def test_those_of_one_user_are_nobody_elses_failure(self, spender: Spender) -> None:
        await spender.limit(*self.limits(amount="0.01"))
        said: dict[str, Any] = {"model": self.NAME, "tool": self.NAME, "note": self.NOTE}
        uses: list[Awaitable[Change[UsageEntry]]] = []
        for number in range(60):
            provider = f"{number:02d}{self.NAME[2:]}"
            usage = UsageInput(cost="1", currency="USD", provider=provider, **said)
            uses.append(spender.budget.record(self.MALLORY, usage, request=keyed(str(number))))
            if number % 5 == 0:
                uses.append(spender.budget.record(ADA, UsageInput(cost="1", currency="USD")))
        entries = [change.record for change in await asyncio.gather(*uses)]
        assert sorted(entry.position for entry in entries) == list(range(1, 73))
        assert {len(entry.over_limits) for entry in entries} == {LIMITS_MAX}
        assert (await spender.reconciled()).total.entries == 72

    async def test_a_write_with_room_takes_the_largest_change(
        self, home: Home, spender: Spender, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        amount = "0." + "1" * (DIGITS_MAX - 1)
        await spender.limit(*self.limits(amount=amount, soft=amount))
        held = await spender.budget.reserve(
            self.MALLORY,
            ReservationInput(
                amount=amount, currency="USD", provider=self.NAME, model=self.NAME, tool=self.NAME
            ),
        )
        settlement = SettlementInput(
            cost="9" * DIGITS_MAX, units=2**53 - 1, tokens_in=2**53 - 1, tokens_out=2**53 - 1, note=self.NOTE
        )
        write, writes = home.documents.write, []

        async def measured(partition: str, ops: Sequence[Op], **named: Any) -> str:
            writes.append((len(ops), bytes_beside_the_head(ops)))
            return await write(partition, ops, **named)

        monkeypatch.setattr(home.documents, "write", measured)
        await spender.budget.settle(
            self.MALLORY, held.record.reservation_id, settlement, request=keyed("largest")
        )
        count, size = max(writes)
        assert count == LIMITS_MAX + 6, "every soft limit is told"
        assert size <= CHANGE_BYTES_MAX

    @pytest.mark.parametrize("kind", ["put", "mark", "tell", "count"])
    def test_whatever_a_sheet_holds_takes_room(self, spender: Spender, kind: str) -> None:
        home, text = spender.home, '"' * 3_000
        sheet = Sheet({}, spender.announcements, Ids(home.clock), now_s=home.clock.now(), write_id="w")
        adds = {
            "put": lambda number: sheet.put(f"u!{number}", encode_json(text)),
            "mark": lambda number: sheet.mark(keyed(str(number)), created=True, answer=encode_json(text)),
            "tell": lambda number: sheet.tell(ADA, {"said": f"{number}{text}"}),
            "count": lambda number: sheet.count(Dimensions(provider=f"{number}{text}"), Sums()),
        }
        number = 0
        while sheet.has_room(1):
            adds[kind](number)
            number += 1
        ops = sheet.ops(None)
        assert len(ops) < CHANGE_OPS_MAX
        assert FULL_BYTES < bytes_beside_the_head(ops) < FULL_BYTES + 5 * len(text)


class TestPeriods:
    async def test_a_period_begins_anew_at_its_boundary_and_holds_go_with_it(self, spender: Spender) -> None:
        await spender.limit(hard("10", period="day"))
        await spender.advance(16 * 3_600 - 60)  # 23:59:00
        await spender.use("7")
        held = await spender.reserve("3", ttl_seconds=300)
        with pytest.raises(Throttled) as refusal:
            await spender.reserve("4")
        assert refusal.value.retry_after_s == 60
        await spender.advance(60)  # 00:00:00
        assert await spender.left() == (0, 3)
        with pytest.raises(Throttled):
            await spender.reserve("7.01")
        await spender.reserve("7")
        await spender.settle(held, "3")
        summary = await spender.reconciled()
        assert [(line.value, line.cost) for line in summary.by["day"]] == [
            ("2027-01-15", "7"),
            ("2027-01-16", "3"),
        ]
        assert (summary.limits[0].starts_at, summary.limits[0].ends_at) == (
            "2027-01-16T00:00:00.000Z",
            "2027-01-17T00:00:00.000Z",
        )

    async def test_months_end_when_they_do(self, spender: Spender) -> None:
        await spender.limit(hard("1", period="month"))
        await spender.use("1")
        with pytest.raises(Throttled) as refusal:
            await spender.reserve("1")
        assert refusal.value.retry_after_s == (16 * 24 + 16) * 3_600
        await spender.advance(refusal.value.retry_after_s)
        await spender.reserve("1")

    async def test_who_need_not_wait_is_told_so(self, spender: Spender) -> None:
        await spender.limit(hard("10", period="day"))
        with pytest.raises(Conflict):
            await spender.reserve("10.01")
        await spender.limit(hard("10"))
        await spender.use("10")
        with pytest.raises(Conflict):
            await spender.reserve("1")

    async def test_a_limit_refuses_in_its_own_time_alone(self, spender: Spender) -> None:
        window = {"valid_from": "2027-01-15T09:00:00Z", "valid_until": "2027-01-15T10:00:00Z"}
        await spender.limit(hard("5", period="day", **window))
        await spender.release(await spender.reserve("6"))
        await spender.use("4")
        await spender.advance(3_600)
        with pytest.raises(Throttled):
            await spender.reserve("1.01")
        await spender.advance(3_600)
        await spender.reserve("6")

    async def test_a_clock_that_goes_back_opens_no_period_again(self, spender: Spender) -> None:
        await spender.limit(hard("10", period="hour"))
        await spender.use("1")
        spender.home.clock.jump(-7_200)
        await spender.use("2")
        entries = (await spender.budget.usage(ADA)).items
        assert entries[1].recorded_at == entries[0].recorded_at
        assert (await spender.left())[0] == 3


class TestSoftLimits:
    async def test_passing_one_is_told_once_a_period_and_shown(self, spender: Spender) -> None:
        await spender.limit(soft("2", period="hour"), hard("100", limit_id="hard", soft="50"))
        assert (await spender.use("2")).soft_limits == ()
        assert (await spender.use("0.01")).soft_limits == ("all",)
        assert (await spender.use("1")).soft_limits == ("all",)
        reservation = await spender.reserve("90")
        assert reservation.soft_limits == ("all",)
        assert (await spender.settle(reservation, "60")).record.soft_limits == ("all", "hard")
        await spender.advance(3_600)
        assert (await spender.use("3")).soft_limits == ("all", "hard")
        told = await spender.told(3, "soft_limit_passed")
        assert [(event["limit_id"], event["starts_at"], event["spent"]) for event in told] == [
            ("all", "2027-01-15T08:00:00.000Z", "2.01"),
            ("hard", "1970-01-01T00:00:00.000Z", "63.01"),
            ("all", "2027-01-15T09:00:00.000Z", "3"),
        ]
        assert [limit.soft_passed for limit in (await spender.budget.summary(ADA)).limits] == [True, True]
