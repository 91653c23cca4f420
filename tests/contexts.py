"""Request contexts as identity would make them, for tests of what lies below identity."""

import msgspec

from engines.control.bootstrap import read_seed
from engines.scope import RequestContext

PERMISSIONS_OF = {row["role"]: frozenset(row["permissions"]) for row in read_seed("system")["roles"]}


def context(tenant_id: str = "t_a", **changes: object) -> RequestContext:
    """An owner of a tenant, as identity would make it."""
    base = RequestContext(
        tenant_id=tenant_id,
        mode="lab",
        env="prod",
        user_id="u1",
        roles=("owner",),
        permissions=PERMISSIONS_OF["owner"],
        os_id="engines",
        surface_id="chat",
        run_id="r1",
        step_id="0",
        request_id="r1",
        trace_id="0" * 32,
        span_id="0" * 16,
        lab=True,
        sources={},
    )
    return msgspec.structs.replace(base, **changes)


ADMIN = context("t_system", roles=("admin",))
