"""Rate limits in tests: processes on one database, each with a clock of its own, and limits set by hand."""

from __future__ import annotations

import msgspec

from engines import catalogue
from engines.scope import RequestContext
from engines.stores.rate_limits import RateLimit, RateLimits
from tests.stores.home import Home, context

READ_NOTE = "GET /notes/{note_id}"


class Limits:
    """`stores.rate_limits.Policies` whose limits a test sets; every tenant's surface is `chat`."""

    def __init__(self, *limits: RateLimit) -> None:
        self.generation = 1
        self.by_tenant: dict[str, tuple[RateLimit, ...]] = {}
        self.set(*limits)

    def set(self, *limits: RateLimit, tenant_id: str = "t_one") -> None:
        self.by_tenant[tenant_id] = limits
        self.generation += 1

    async def limits(self, tenant_id: str, env: str) -> tuple[RateLimit, ...]:  # noqa: ARG002
        return self.by_tenant.get(tenant_id, ())

    async def home(self, context: RequestContext) -> RequestContext:
        return msgspec.structs.replace(context, surface_id="chat", app_id=None, project_id=None)


def a_limit(limit: int, *per: str, window_seconds: int = 60, **fields: str) -> RateLimit:
    """`limit` a minute for each of `per`, or for the tenant."""
    name = fields.pop("name", "-".join(per) or "tenant")
    return msgspec.convert(
        {
            "name": name,
            "per": per or ("tenant",),
            "limit": limit,
            "window_seconds": window_seconds,
            **fields,
        },
        RateLimit,
    )


def limited(home: Home, *limits: RateLimit) -> RateLimits:
    """A process with these limits."""
    return RateLimits(home, Limits(*limits), home.clock)


async def admitted(
    limits: RateLimits, count: int, *, who: RequestContext | None = None, route: str = READ_NOTE
) -> int:
    """How many of `count` calls, one after the other, were admitted."""
    admissions = [await limits.admit(who or context(), route) for _ in range(count)]
    return sum(admission.refused_by is None for admission in admissions)


def to_next_window(*homes: Home, window_s: int = 60) -> None:
    for home in homes:
        home.clock.advance(window_s - home.clock.now() % window_s)


async def counters(home: Home) -> int:
    """How many counters lie in the store, those that have expired and were not reclaimed left out."""
    place = await home.place(catalogue.RATE_LIMITS, context())
    found = 0
    for partition in await place.partitions():
        found += len((await home.documents.scan(partition, above="q!", below='q"')).docs)
    return found
