"""Rate limits over HTTP: the policy of a tenant and env."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.views import shown, stored_reply
from engines.control.records import Env, RateLimitPolicy, TenantId
from engines.errors import ContextMismatch, Invalid
from engines.stores.rate_limits import ACTION_PREFIX, ANY_CALL, LIMITS_MAX, RateLimit

# Never limited, as all calls of control-plane records: who set a limit too low can mend it.
router = Router("rate limits", is_limited=False)

RateLimitPolicyView = shown(RateLimitPolicy)


class RateLimitPolicyInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All limits of a tenant and env, which it may repeat; an empty list takes every limit away."""

    limits: Annotated[tuple[RateLimit, ...], Meta(max_length=LIMITS_MAX)]
    tenant_id: TenantId | None = None
    env: Env | None = None


@router.get("/rate-limits/policy", reply=RateLimitPolicyView, has_etag=True)
async def get_rate_limits(call: Call) -> Sendable:
    """The rate limits of the tenant and env."""
    stored = await call.engines.rate_limit_policies.get(await call.context())
    return stored_reply(RateLimitPolicyView, stored)


@router.put("/rate-limits/policy", body=RateLimitPolicyInput, reply=RateLimitPolicyView, has_etag=True)
async def put_rate_limits(call: Call) -> Sendable:
    """Set the rate limits of the tenant and env, all at once; its admins and owners.

    They hold within a second, for every call that is no control-plane call. A call past one is answered 429
    with Retry-After.
    """
    context = await call.context()
    body = await call.body(RateLimitPolicyInput)
    if body.tenant_id not in (None, context.target_tenant_id):
        raise ContextMismatch("the body names another tenant than the request's", field="tenant_id")
    _check_routes(body.limits, call.limited_routes)
    stored = await call.engines.rate_limit_policies.put(
        context, body.limits, env=body.env, condition=call.condition(), request=call.request(context)
    )
    return stored_reply(RateLimitPolicyView, stored)


def _check_routes(limits: Sequence[RateLimit], limited_routes: frozenset[str]) -> None:
    """Raises Invalid for a limit that would never be met, which is no limit."""
    for number, limit in enumerate(limits):
        if limit.route == ANY_CALL or limit.route.startswith(ACTION_PREFIX):
            continue
        if limit.route not in limited_routes:
            raise Invalid(
                "no call that is counted is written so: GET /notes/{note_id} is one",
                field=f"limits[{number}].route",
            )
