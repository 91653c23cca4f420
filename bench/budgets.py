"""Reservations on one budget: 200 callers at once, a hard limit that just fits, and whether it was passed.

Each round has a limit of its own, of as much as is measured, and 200 more are asked for than it holds. The
rate is that of the reservations that were given. Each carries an Idempotency-Key, as the client's do. With
two `Engines` on one control plane there are two processes as far as the budget can tell, on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec
import uvloop

from bench.deployment import Deployment, prepare
from bench.measure import Goal, Result, Stopwatch, absolute
from bench.stage import Stage
from engines.core.idempotency import identify
from engines.errors import Conflict, Throttled
from engines.scope import RequestContext
from engines.stores.budget_policy import Limit, PolicyInput
from engines.stores.budget_records import ReservationInput
from engines.wiring import Engines, open_engines

SPENDERS = 200
# Longer than a run lasts: nothing lapses meanwhile.
TTL_S = 86_400


def budget_postgres(stage: Stage) -> list[Result]:
    """On PostgreSQL, by one process and by two."""
    return [
        uvloop.run(_reserving(stage, prepare(stage.new_database(), stage.new_directory()), processes))
        for processes in (1, 2)
    ]


async def _reserving(stage: Stage, deployment: Deployment, processes: int) -> Result:
    rates: list[float] = []
    over = 0
    async with contextlib.AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(open_engines(deployment.control_plane)) for _ in range(processes)
        ]
        headers = [(b"authorization", f"Bearer {deployment.token}".encode())]
        member = await opened[0].contexts.context_of(headers)
        context = msgspec.structs.replace(member, permissions=member.permissions | {"budget.policy"})
        count = SPENDERS * stage.sizes.reservations_each
        for number in range(stage.sizes.rounds + 1):
            # What earlier rounds hold counts against every limit.
            hard = count * (number + 1)
            limit = Limit(limit_id=f"{processes}-{number}", period="total", hard=str(hard))
            await opened[0].budget.put_policy(context, PolicyInput(currency="USD", limits=(limit,)))
            rate, given = await _round(opened, context, f"{processes}-{number}", count)
            over = max(over, given - count)
            if number > 0:
                rates.append(rate)
    return absolute(
        rates,
        name="budget-postgres" if processes == 1 else "budget-postgres-two",
        what=f"reservations on one budget, PostgreSQL, {SPENDERS} callers, "
        f"{'one process' if processes == 1 else 'two processes'}",
        unit="reservations/s",
        goal=Goal("at least", 500, "reservations/s"),
        notes={"reservations a round": count, "given beyond the limit": over},
    )


async def _round(
    opened: Sequence[Engines], context: RequestContext, name: str, count: int
) -> tuple[float, int]:
    """The rate, and how many were given."""
    given = 0
    left = count + SPENDERS
    watch = Stopwatch()
    seconds = 0.0

    async def spender(number: int) -> None:
        nonlocal given, left, seconds
        budget = opened[number % len(opened)].budget
        while left > 0:
            left -= 1
            request = identify(name, str(left), body=b"")
            said = ReservationInput(amount="1", ttl_seconds=TTL_S)
            try:
                await budget.reserve(context, said, request=request)
            except (Throttled, Conflict) as refusal:
                if refusal.reason_code is None:
                    raise
            else:
                given += 1
                seconds = watch.seconds()

    async with asyncio.TaskGroup() as group:
        for number in range(SPENDERS):
            group.create_task(spender(number))
    return given / seconds, given
