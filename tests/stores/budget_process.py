"""A process that spends until it is killed: `python -m tests.stores.budget_process DRIVER CONFIG NAME`.

It reserves and settles with several callers at once, and prints the id of each reservation and, once that was
acknowledged, what it was settled for. Its parent kills it in the midst of that.
"""

from __future__ import annotations

import asyncio
import json
import sys
from decimal import Decimal

import msgspec

from engines.drivers.registry import document_driver
from engines.ports.secrets import Secret
from tests.stores.budget_home import Spender
from tests.stores.home import Home
from tests.stores.ticking import ticking

CALLERS = 16


def say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def home_at(url: str) -> Home:
    """The database at a control plane's URL."""
    name = url.partition(":")[0].replace("postgresql", "postgres")
    module = document_driver(name)
    config, password = module.config_from_url(url)
    secrets = {} if password is None else {"password": Secret(password)}
    return Home(lambda clock: module.open_driver(msgspec.convert(config, module.Config), secrets, clock))


async def spend(url: str, name: str) -> None:
    home = home_at(url)
    spender = Spender(home, name)
    time = asyncio.create_task(ticking(home.clock))
    say(ready=True)

    async def caller(number: int) -> None:
        count = 0
        while True:
            count += 1
            cost = Decimal(number * 1_000 + count).scaleb(-6)
            reservation = await spender.reserve("1", tool=f"tool-{number}")
            say(reserved=reservation.reservation_id)
            settled = (await spender.settle(reservation, format(cost, "f"))).record
            say(settled=reservation.reservation_id, usage_id=settled.usage_id, cost=settled.settled_cost)

    await asyncio.gather(time, *map(caller, range(CALLERS)))


if __name__ == "__main__":
    asyncio.run(spend(*sys.argv[1:]))
