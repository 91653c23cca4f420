"""Rate limits: how many calls a tenant admits in a window, by user, surface, API key and route.

Owns what a limit is, which limits a call meets, and admitting it under all of them or none. Counters are
durable (`core/quota.py`): all processes together never admit more than the limit in a window.

- Limits are control-plane data, which every process adopts within a second and has in memory. Only counters
  lie in `rate_limit_store`. So a tenant without limits needs no such store, and costs no I/O; a tenant with
  limits whose store has no route or does not answer gets MissingRoute or Unavailable, and is never unlimited.
- The counters of a tenant and env lie in one place, where its default surface leads without app and project:
  else a call on another surface would find another counter, and so another quota.
- A limit that is changed begins with what its window's counter says is taken, under its name, as long as its
  window and what it counts by stay the same. Blocks in memory are dropped.
- In memory there are so many counters of a tenant and env, and so many in all. At the bound one of the same
  tenant and env goes, the one whose block was taken longest ago: the rest of its block is lost, and its next
  call takes another. Where the tenant has none, what belongs to the tenant that was seen first goes.

Calls of control-plane records are not counted (`api/endpoint.py`): who may mend a limit, a route or a key is
never kept from it by the limit. Leaves keeping and changing limits to `control/rate_limits.py`.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import hashlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from engines import catalogue
from engines.clock import Clock
from engines.codec import canonical_json
from engines.core.place import Places
from engines.core.quota import Quota
from engines.errors import OutcomeUnknown, Throttled, Unavailable
from engines.scope import RequestContext

LIMITS_MAX: Final = 32
LIMIT_MAX: Final = 1_000_000_000
WINDOW_SECONDS_MAX: Final = 24 * 3600
# What a counter takes in memory is less than 1 KiB.
QUOTAS_PER_TENANT_MAX: Final = 10_000
QUOTAS_MAX: Final = 100_000
TENANTS_MAX: Final = 50_000
LEASE_TIMEOUT_S: Final = 10.0
# Units that others take while a call wakes up are leased again, so often.
ATTEMPTS_MAX: Final = 32
RETRY_S: Final = 1.0

ANY_CALL: Final = "*"
ACTION_PREFIX: Final = "action:"
ANY_ACTION: Final = "action:*"

Dimension = Literal["tenant", "user", "surface", "key", "route"]
_FIELDS: Final = {"user": "user_id", "surface": "surface_id", "key": "key_id"}


class RateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """At most `limit` calls in each window of `window_seconds`, for each of what `per` names together.

    `route`: `*` for every call over HTTP, one call as `GET /notes/{note_id}`, or a guarded action as
    `action:NAME` or `action:*`. `per`: `tenant` alone is one counter for all; `key` counts only calls with an
    API key.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,63}\Z")]
    per: Annotated[tuple[Dimension, ...], Meta(min_length=1, max_length=4)]
    route: Annotated[
        str,
        Meta(
            max_length=256,
            pattern=r"^(\*|(GET|POST|PUT|PATCH|DELETE) /[A-Za-z0-9._~/{}-]*"
            r"|action:(\*|[A-Za-z0-9][A-Za-z0-9._~:@|+-]{0,127}))\Z",
        ),
    ] = ANY_CALL
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)]
    window_seconds: Annotated[int, Meta(ge=1, le=WINDOW_SECONDS_MAX)]

    def is_about(self, route: str) -> bool:
        """Whether a call of this route, or a guarded action, is counted."""
        if self.route == ANY_CALL:
            return not route.startswith(ACTION_PREFIX)
        return self.route == route or (self.route == ANY_ACTION and route.startswith(ACTION_PREFIX))


class Standing(msgspec.Struct, frozen=True):
    """What this process knows of one limit that a call met. Other processes may have taken of `remaining`."""

    limit: RateLimit
    remaining: int
    resets_in_s: float


class Admission(msgspec.Struct, frozen=True):
    """Whether a call may go on. `refused_by` is the limit that said no; then nothing was counted.

    `at_s`: the instant (epoch seconds) that was judged, in whose windows the call was counted. `met` are the
    limits that it met, with their counters, which go on counting; `standings` reads them.
    """

    refused_by: RateLimit | None = None
    retry_after_s: float | None = None
    met: Sequence[tuple[RateLimit, Quota]] = ()
    at_s: float = 0.0

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Of each limit that the call met and whose window is known, as it is when this is asked."""
        return tuple(
            Standing(limit, quota.remaining, quota.ends_s - self.at_s)
            for limit, quota in self.met
            if quota.is_current(self.at_s)
        )

    def check(self) -> None:
        """Raises Throttled where the call was refused."""
        if self.refused_by is not None:
            limit = self.refused_by
            raise Throttled(
                f"the limit {limit.name} admits {limit.limit} calls in {limit.window_seconds} s",
                resource_kind=catalogue.RATE_LIMITS,
                retry_after_s=self.retry_after_s,
            )


UNLIMITED: Final = Admission()


class Policies(Protocol):
    """Which limits stand, as this process knows it. Implemented by the control plane."""

    @property
    def generation(self) -> int:
        """Grows whenever a limit may have changed. Raises Unavailable where the view may be out of date."""
        ...

    async def limits(self, tenant_id: str, env: str) -> Sequence[RateLimit]:
        """Those of a tenant and env. Raises Unavailable."""
        ...

    async def home(self, context: RequestContext) -> RequestContext:
        """The context in which the tenant's counters lie, whatever surface, app and project are bound."""
        ...


class RateLimits:
    """Admits calls. Every process that serves a tenant has one; they share the tenant's counters."""

    def __init__(self, places: Places, policies: Policies, clock: Clock) -> None:
        self._places = places
        self._policies = policies
        self._clock = clock
        self._tenants: dict[tuple[str, str], _Limited] = {}
        # All counters, the one whose block was taken longest ago first, and whose each is.
        self._quotas: dict[Quota, _Limited] = {}
        self._leases: dict[Quota, asyncio.Task[None]] = {}

    async def admit(self, context: RequestContext, route: str, *, count: bool = True) -> Admission:
        """Whether the call may go on, under all limits that it meets; then each has counted it.

        `route` is `GET /notes/{note_id}` for a call over HTTP, or `action:NAME`. With `count=False` it is
        judged and not counted, for a rehearsal. Without I/O but for a lease now and then.

        Raises MissingRoute, ForbiddenBackendClass, Throttled (by the store), Unavailable, BackendRefused,
        Corrupt, and never OutcomeUnknown: a call that is not admitted has not begun.
        """
        generation = self._policies.generation
        limited = self._tenants.get((context.tenant_id, context.env))
        if limited is None or limited.generation != generation:
            limited = await self._adopted(context, generation)
        met: list[_Met] = []
        for rule in limited.rules_of(route):
            value = rule.value(context)
            if value is None:
                continue
            if rule.by_route:
                value = (value, route)
            quota = rule.quotas.get(value)
            if quota is None:
                quota = self._new_quota(limited, rule, value)
            met.append((rule.limit, quota))
        if not met:
            return UNLIMITED
        now_s = self._clock.now()
        for _, quota in met:
            if not quota.has_one(now_s):
                return await self._admit_by_lease(context, met, count=count)
        return _admitted(met, now_s, count=count)

    async def close(self) -> None:
        """End the leases under way."""
        leases = list(self._leases.values())
        for lease in leases:
            lease.cancel()
        await asyncio.gather(*leases, return_exceptions=True)

    # --- leases ---

    async def _admit_by_lease(
        self, context: RequestContext, met: Sequence[_Met], *, count: bool
    ) -> Admission:
        for _ in range(ATTEMPTS_MAX):
            now_s = self._clock.now()
            for limit, quota in met:
                if quota.is_spent(now_s):
                    return Admission(limit, quota.ends_s - now_s, met, now_s)
            lacking = [quota for _, quota in met if not quota.has_one(now_s)]
            if not lacking:
                return _admitted(met, now_s, count=count)
            await self._leased(context, lacking)
        raise Unavailable("the counters of a rate limit are in great demand", retry_after_s=RETRY_S)

    async def _leased(self, context: RequestContext, lacking: Sequence[Quota]) -> None:
        """Wait for a lease of each, whoever began it. Raises as `admit`."""
        home = await self._policies.home(context)
        leases = [self._leases.get(quota) or self._begin(home, quota) for quota in lacking]
        for quota in lacking:
            quota.waiting += 1
        try:
            await asyncio.wait(leases)
        finally:
            for quota in lacking:
                quota.waiting -= 1
        for lease in leases:
            if lease.cancelled():
                raise Unavailable("the server is stopping", retry_after_s=RETRY_S)
            error = lease.exception()
            if error is not None:
                raise copy.copy(error) from error

    def _begin(self, home: RequestContext, quota: Quota) -> asyncio.Task[None]:
        limited = self._quotas.pop(quota, None)
        if limited is not None:  # Now it is the last to go, of all and of its tenant's.
            self._quotas[quota] = limited
            limited.quotas[quota] = limited.quotas.pop(quota)
        lease = self._leases[quota] = asyncio.create_task(self._lease(home, quota))
        lease.add_done_callback(functools.partial(self._ended, quota))
        return lease

    async def _lease(self, home: RequestContext, quota: Quota) -> None:
        try:
            async with asyncio.timeout(LEASE_TIMEOUT_S):
                await quota.lease(lambda: self._places.changing(catalogue.RATE_LIMITS, home), self._clock)
        except (OutcomeUnknown, TimeoutError) as error:
            # Whatever became of the write, the call that waits for it has not begun.
            raise Unavailable("the counter of a rate limit does not answer", retry_after_s=RETRY_S) from error

    def _ended(self, quota: Quota, lease: asyncio.Task[None]) -> None:
        del self._leases[quota]
        if not lease.cancelled():
            lease.exception()  # It counts as seen: perhaps nobody waits any more.

    # --- what is known of a tenant ---

    async def _adopted(self, context: RequestContext, generation: int) -> _Limited:
        """The tenant's limits as they stand, with the counters that they had where they are the same."""
        key = (context.tenant_id, context.env)
        limits = tuple(await self._policies.limits(*key))
        known = self._tenants.get(key)
        if known is not None and (known.limits == limits or known.generation > generation):
            known.generation = max(known.generation, generation)
            return known
        if known is not None:
            self._forget(key)
        elif len(self._tenants) >= TENANTS_MAX:
            self._forget(next(iter(self._tenants)))
        limited = self._tenants[key] = _Limited(limits, generation)
        return limited

    def _forget(self, key: tuple[str, str]) -> None:
        for quota in self._tenants.pop(key).quotas:
            del self._quotas[quota]

    def _new_quota(self, limited: _Limited, rule: _Rule, value: _Value) -> Quota:
        if len(limited.quotas) >= QUOTAS_PER_TENANT_MAX:
            self._drop(next(iter(limited.quotas)))
        elif len(self._quotas) >= QUOTAS_MAX:
            self._drop(next(iter(self._quotas)))
        limit = rule.limit
        quota = Quota(limit.name, _anchor(limit, value), limit=limit.limit, window_s=limit.window_seconds)
        rule.quotas[value] = quota
        limited.quotas[quota] = (rule, value)
        self._quotas[quota] = limited
        return quota

    def _drop(self, quota: Quota) -> None:
        rule, value = self._quotas.pop(quota).quotas.pop(quota)
        del rule.quotas[value]


# What a limit counts by, of one call: the values of what `per` names.
_Value = Any
_Met = tuple[RateLimit, Quota]


class _Rule:
    """One limit, made ready, and its counters by what they count.

    `value` reads of a context what the limit counts by, but for the route; None where it counts no such call.
    """

    __slots__ = ("by_route", "limit", "quotas", "value")

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self.by_route = "route" in limit.per
        self.value = _reader(limit.per)
        self.quotas: dict[_Value, Quota] = {}


def _reader(per: Sequence[Dimension]) -> Callable[[RequestContext], _Value]:
    fields = [_FIELDS[dimension] for dimension in sorted(per) if dimension in _FIELDS]
    if not fields:
        return attrgetter("tenant_id")
    if fields == ["key_id"] or "key" not in per:
        return attrgetter(*fields)
    read = attrgetter(*fields)
    return lambda context: None if context.key_id is None else read(context)


class _Limited:
    """The limits of one tenant and env as adopted at `generation`, and the counters of its calls."""

    __slots__ = ("_actions", "_calls", "_named", "generation", "limits", "quotas")

    def __init__(self, limits: tuple[RateLimit, ...], generation: int) -> None:
        self.limits = limits
        self.generation = generation
        self.quotas: dict[Quota, tuple[_Rule, _Value]] = {}
        rules = [_Rule(limit) for limit in limits]
        self._calls = tuple(rule for rule in rules if rule.limit.route == ANY_CALL)
        self._actions = tuple(rule for rule in rules if rule.limit.route == ANY_ACTION)
        named = {limit.route for limit in limits} - {ANY_CALL, ANY_ACTION}
        self._named = {route: tuple(rule for rule in rules if rule.limit.is_about(route)) for route in named}

    def rules_of(self, route: str) -> tuple[_Rule, ...]:
        """Those that a call of the route meets."""
        named = self._named.get(route)
        if named is not None:
            return named
        return self._actions if route.startswith(ACTION_PREFIX) else self._calls


def _anchor(limit: RateLimit, value: _Value) -> str:
    """The counter's name in its place: a digest, so that no document about a user says who that is."""
    named = canonical_json([limit.name, limit.window_seconds, sorted(limit.per), value])
    return hashlib.sha256(named.encode()).hexdigest()[:40]


def _admitted(met: Sequence[_Met], now_s: float, *, count: bool) -> Admission:
    if count:
        for _, quota in met:
            quota.left -= 1
    return Admission(None, None, met, now_s)
