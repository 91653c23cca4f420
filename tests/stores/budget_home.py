"""Processes that spend from one budget: everything that `Budget` stands on, for real.

Owns putting the parts together on one `Home`, the amounts that tests write, and waiting for what was told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from engines.core.pledges import Pledges
from engines.ids import Ids
from engines.scope import RequestContext
from engines.stores.announcements import Announcements
from engines.stores.budget import Budget, ReservationFilter
from engines.stores.budget_amounts import total
from engines.stores.budget_policy import Limit, PolicyInput, Price
from engines.stores.budget_records import (
    ANCHOR,
    Reservation,
    ReservationInput,
    SettlementInput,
    UsageEntry,
    UsageInput,
)
from engines.stores.budget_summary import Summary, SummaryQuery
from engines.stores.events import EventFilter, EventSpine
from engines.stores.scoped import Change
from tests.stores.home import Home, context

PLEDGES = "pledges"
ADA = context()
VERIFIED = SummaryQuery(verify=True)


class Spender:
    """One process: its spine, its announcements and its budget."""

    def __init__(self, home: Home, name: str = "one") -> None:
        self.home = home
        ids = Ids(home.clock)
        self.spine = EventSpine(home, ids, home.clock)
        self.announcements = Announcements(home, self.spine, home.ids, home.clock)
        self.pledges = self.announcements.promises = Pledges(
            home.documents, PLEDGES, process_id=name, clock=home.clock, finish=self.announcements.finish
        )
        self.budget = Budget(home, self.announcements, ids, home.clock)

    async def close(self) -> None:
        await self.budget.close()
        await self.announcements.close()
        await self.spine.close()

    async def limit(self, *limits: Limit, prices: Sequence[Price] = (), currency: str = "USD") -> None:
        """Replace the policy."""
        said = PolicyInput(currency=currency, limits=limits, prices=tuple(prices))
        await self.budget.put_policy(ADA, said)

    async def use(self, cost: str | None = "1", mine: RequestContext = ADA, **said: Any) -> UsageEntry:
        """Record a use, in dollars."""
        usage = UsageInput(**{"cost": cost, "currency": "USD", "provider": "openai"} | said)
        return (await self.budget.record(mine, usage)).record

    async def reserve(self, amount: str = "1", mine: RequestContext = ADA, **said: Any) -> Reservation:
        reservation = ReservationInput(**{"amount": amount, "currency": "USD", "provider": "openai"} | said)
        return (await self.budget.reserve(mine, reservation)).record

    async def settle(self, reservation: Reservation, cost: str | None, **said: Any) -> Change[Reservation]:
        settlement = SettlementInput(cost=cost, **said)
        return await self.budget.settle(ADA, reservation.reservation_id, settlement)

    async def release(self, reservation: Reservation) -> Change[Reservation]:
        return await self.budget.release(ADA, reservation.reservation_id)

    async def holding(self) -> list[str]:
        """The ids of the reservations that hold an amount now."""
        listed = await self.budget.reservations(ADA, ReservationFilter(holding=True))
        return [reservation.reservation_id for reservation in listed.items]

    async def left(self, limit_id: str = "all") -> tuple[object, object]:
        """What the limit says was spent and is held: numbers, equal to others whatever zeros they end in."""
        summary = await self.budget.summary(ADA)
        found = next(limit for limit in summary.limits if limit.limit_id == limit_id)
        return Decimal(found.spent), Decimal(found.held)

    async def reconciled(self) -> Summary:
        """The summary, whose ledger says the same to the last digit."""
        summary = await self.budget.summary(ADA, VERIFIED)
        assert summary.verification is not None
        assert summary.verification.ok, summary.verification
        assert summary.verification.ledger_cost == summary.total.cost
        for lines in summary.by.values():
            assert total(*(Decimal(line.cost) for line in lines)) == Decimal(summary.total.cost)
        return summary

    async def told(self, count: int, kind: str = "usage") -> list[dict[str, Any]]:
        """The payloads of the spine's `budget` events of a kind, once there are `count`."""
        while len(found := await self.events(kind)) < count:  # noqa: ASYNC110 (another task tells it)
            await asyncio.sleep(0.01)
        return found

    async def quiet(self) -> None:
        """Returns once everything was told, and nothing is under way."""
        place = await self.home.place("budget_store", ADA)
        partition = await place.partition(ANCHOR)
        scan = partial(self.home.documents.scan, partition, above="o!", below='o"')
        while (await scan()).docs:  # noqa: ASYNC110 (another task removes them)
            await asyncio.sleep(0.01)

    async def advance(self, seconds: float) -> None:
        """Time passes, once nothing is under way that a jump of the clock would cut off."""
        await self.quiet()
        self.home.clock.advance(seconds)

    async def events(self, kind: str = "usage") -> list[dict[str, Any]]:
        listed = await self.spine.list(ADA, EventFilter(event_type="budget"))
        assert listed.after is None
        return [
            event.payload
            for event in listed.items
            if event.payload is not None and event.payload["kind"] == kind
        ]


def hard(amount: str, **fields: Any) -> Limit:
    return Limit(**{"limit_id": "all", "period": "total", "hard": amount} | fields)


def soft(amount: str, **fields: Any) -> Limit:
    return Limit(**{"limit_id": "all", "period": "total", "soft": amount} | fields)
