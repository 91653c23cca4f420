"""Rate limits as data: one policy for each tenant and env, set by its admins and owners.

Owns the rules that a policy must meet, who may set it, and what `stores/rate_limits.py` asks of the control
plane. Leaves admitting calls to that store.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engines.control.directory import Directory
from engines.control.records import RateLimitPolicy
from engines.control.service import Service, actor, require_in_tenant
from engines.control.store import Stored
from engines.control.tables import RATE_LIMITS, TENANTS
from engines.core.idempotency import Request
from engines.core.records import ANYTHING, Condition
from engines.errors import ContextMismatch, Invalid, Unavailable
from engines.scope import RequestContext
from engines.stores.rate_limits import LIMITS_MAX, RateLimit
from engines.stores.scoped import validated

READ = "rate_limits.read"
WRITE = "rate_limits.write"


class RateLimitPolicies:
    """The policy of the tenant and env that a request is about.

    For an admin of t_system who acts on a tenant it is the one of that tenant's default env.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store

    async def put(
        self,
        context: RequestContext,
        limits: Sequence[RateLimit],
        *,
        env: str | None = None,
        condition: Condition = ANYTHING,
        request: Request | None = None,
    ) -> Stored[RateLimitPolicy]:
        """Set all limits at once; every process adopts them within a second. `env` may repeat whose they are.

        Raises Forbidden, Invalid with the `field` that breaks a rule, ContextMismatch, PreconditionFailed.
        """
        require_in_tenant(context, WRITE)
        _check(limits)
        await self._service.admit(context)
        tenant_id, own_env = context.target_tenant_id, await self._env(context)
        if env not in (None, own_env):
            raise ContextMismatch("the policy is one of another env", field="env")

        async def build(_: RateLimitPolicy | None) -> RateLimitPolicy:
            return RateLimitPolicy(tenant_id=tenant_id, env=own_env, limits=tuple(limits))

        return await self._store.put(
            RATE_LIMITS,
            [tenant_id, own_env],
            build,
            actor=actor(context, tenant_id),
            condition=condition,
            request=request,
        )

    async def get(self, context: RequestContext) -> Stored[RateLimitPolicy]:
        """Raises Forbidden, NotFound where none was ever set."""
        require_in_tenant(context, READ)
        return await self._store.get(RATE_LIMITS, context.target_tenant_id, await self._env(context))

    async def _env(self, context: RequestContext) -> str:
        if context.acting_on is None:
            return context.env
        return (await self._store.get(TENANTS, context.acting_on)).record.default_env


class AdoptedPolicies:
    """`stores.rate_limits.Policies`, from the directory: never more than a second old, or Unavailable."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    @property
    def generation(self) -> int:
        self._directory.check_fresh()
        return self._directory.generation

    async def limits(self, tenant_id: str, env: str) -> Sequence[RateLimit]:
        policy = await self._directory.rate_limit_policy(tenant_id, env)
        return () if policy is None else policy.limits

    async def home(self, context: RequestContext) -> RequestContext:
        tenant = await self._directory.tenant(context.tenant_id)
        if tenant is None:
            raise Unavailable("the tenant is not there any more")
        return msgspec.structs.replace(
            context,
            mode=tenant.mode,
            surface_id=tenant.default_surface_id,
            app_id=None,
            project_id=None,
        )


def _check(limits: Sequence[RateLimit]) -> None:
    """Raises Invalid for what the type of one limit cannot say, and for what was made in process."""
    if len(limits) > LIMITS_MAX:
        raise Invalid(f"a policy has at most {LIMITS_MAX} limits", field="limits")
    names: set[str] = set()
    for number, limit in enumerate(limits):
        field = f"limits[{number}]"
        validated(limit, field)
        if limit.name in names:
            raise Invalid("another limit has this name", field=f"{field}.name")
        names.add(limit.name)
        if len(set(limit.per)) != len(limit.per):
            raise Invalid("a limit counts by each of these once", field=f"{field}.per")
        if "tenant" in limit.per and len(limit.per) > 1:
            raise Invalid("every counter is the tenant's: tenant stands alone", field=f"{field}.per")
