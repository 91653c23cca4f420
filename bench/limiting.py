"""What rate limits cost: notes read over HTTP by a tenant with three limits, beside one without any.

Both tenants are served by one process, and the load goes to one and then to the other, in short rounds. The
limits are so high that nothing is refused; their blocks are leased as they are at any limit.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import Final

from bench.deployment import TENANT, Deployment, ServerProcess, engines_server, prepare
from bench.load import Job, Load, Request
from bench.measure import Goal, Result, compared
from bench.serving import NOTES_READ, create_notes, note_body
from bench.stage import CONNECTIONS, Stage
from engines.control.records import RateLimitPolicy
from engines.control.store import Actor
from engines.control.tables import RATE_LIMITS
from engines.scope import SYSTEM_TENANT
from engines.stores.rate_limits import LIMIT_MAX, RateLimit
from engines.wiring import open_control_plane

LIMITED: Final = "t_limited"
TENANTS: Final = (LIMITED, TENANT)
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
    rounds, count = stage.sizes.sdk_rounds, max(CONNECTIONS, stage.sizes.http_requests // 3)
    with engines_server(deployment, stage.new_log_directory()) as server, Load() as load:
        sides = [_Side(server, load, _job(server.port, deployment, tenant, count)) for tenant in TENANTS]
        for number in range(rounds + 1):
            # The one that goes first finds the machine as the one before left it: they take turns at it.
            for side in sides if number % 2 else reversed(sides):
                side.run(number)
    return [
        compared(
            sides[0].wall_us,
            sides[1].wall_us,
            name=f"limits-get-{name}",
            what=f"GET /notes/{{id}} under three rate limits, {label}, one worker, {CONNECTIONS} connections",
            unit="µs",
            other_name="the same without a limit",
            goal=Goal("at most", 1.05),
            cpu=[mine / other for mine, other in zip(sides[0].cpu_us, sides[1].cpu_us, strict=True)],
            notes={
                "requests a round": count,
                "CPU µs of the server, ours": round(statistics.median(sides[0].cpu_us), 1),
                "CPU µs of the server, the other": round(statistics.median(sides[1].cpu_us), 1),
            },
        )
    ]


class _Side:
    """One tenant's reads: microseconds a request, and what of it the server computed."""

    def __init__(self, server: ServerProcess, load: Load, job: Job) -> None:
        self.wall_us: list[float] = []
        self.cpu_us: list[float] = []
        self._server = server
        self._load = load
        self._job = job

    def run(self, number: int) -> None:
        before_s = self._server.cpu_seconds()
        report = self._load.run(self._job)
        cpu_s = self._server.cpu_seconds() - before_s
        if number > 0:
            self.wall_us.append(1e6 / report.rate)
            self.cpu_us.append(1e6 * cpu_s / self._job.count)


def _job(port: int, deployment: Deployment, tenant: str, count: int) -> Job:
    token = deployment.tokens[tenant]
    ids = create_notes(port, token, [note_body(number) for number in range(NOTES_READ)])
    reads = [Request("GET", f"/notes/{note_id}") for note_id in ids]
    return Job(port=port, token=token, requests=reads, count=count, connections=CONNECTIONS)


async def _set_limits(url: str) -> None:
    policy = RateLimitPolicy(tenant_id=LIMITED, env="prod", limits=_LIMITS)
    async with open_control_plane(url) as control:
        await control.store.seed(RATE_LIMITS, [LIMITED, "prod"], policy, actor=_ACTOR)
