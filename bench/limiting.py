"""What rate limits cost: notes read over HTTP by a tenant with three limits, beside one without any.

Both tenants are served by one process, and the load goes to one and then to the other. The limits are so high
that nothing is refused; their blocks are leased as they are at any limit.
"""

from __future__ import annotations

import asyncio
from typing import Final

from bench.deployment import TENANT, Deployment, engines_server, prepare
from bench.load import Load, Request
from bench.measure import Goal, Result
from bench.serving import NOTES_READ, Target, alternating, create_notes, note_body
from bench.stage import CONNECTIONS, Stage
from engines.control.records import RateLimitPolicy
from engines.control.store import Actor
from engines.control.tables import RATE_LIMITS
from engines.scope import SYSTEM_TENANT
from engines.stores.rate_limits import LIMIT_MAX, RateLimit
from engines.wiring import open_control_plane

LIMITED: Final = "t_limited"
_ACTOR: Final = Actor(user_id="bench", tenant_id=SYSTEM_TENANT, request_id="bench", tenants=(SYSTEM_TENANT,))
_LIMITS: Final = (
    RateLimit(name="tenant", per=("tenant",), limit=LIMIT_MAX, window_seconds=60),
    RateLimit(name="user", per=("user",), limit=1_000_000, window_seconds=60),
    RateLimit(name="user-route", per=("user", "route"), limit=500_000, window_seconds=10),
)


def limits_postgres(stage: Stage) -> list[Result]:
    return _limits(stage, "postgres", "PostgreSQL", stage.new_database())


def limits_sqlite(stage: Stage) -> list[Result]:
    return _limits(stage, "sqlite", "SQLite", f"sqlite://{stage.new_directory()}/data.db")


def _limits(stage: Stage, name: str, label: str, url: str) -> list[Result]:
    deployment = prepare(url, stage.new_directory(), others=[LIMITED])
    asyncio.run(_set_limits(url))
    with engines_server(deployment, stage.new_log_directory()) as server, Load() as load:
        targets = [_target(server.port, deployment, tenant) for tenant in (LIMITED, TENANT)]
        return [
            alternating(
                load,
                targets,
                stage,
                lambda target: target.reads,
                name=f"limits-get-{name}",
                what=f"GET /notes/{{id}} under three rate limits, {label}, one worker, "
                f"{CONNECTIONS} connections",
                goal=Goal("at least", 0.95),
                other_name="the same without a limit",
            )
        ]


async def _set_limits(url: str) -> None:
    policy = RateLimitPolicy(tenant_id=LIMITED, env="prod", limits=_LIMITS)
    async with open_control_plane(url) as control:
        await control.store.seed(RATE_LIMITS, [LIMITED, "prod"], policy, actor=_ACTOR)


def _target(port: int, deployment: Deployment, tenant: str) -> Target:
    token = deployment.tokens[tenant]
    ids = create_notes(port, token, [note_body(number) for number in range(NOTES_READ)])
    return Target(port, token, [Request("GET", f"/notes/{note_id}") for note_id in ids], [])
