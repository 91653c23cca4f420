"""The app: every router mounted, inside the shell.

Owns which calls there are. Leaves calls to their routers, finding one to `api/dispatch.py` and running it to
`api/call.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engines.api import (
    access,
    agent_memory,
    analytics,
    approvals,
    backends,
    blackboard,
    budget,
    definitions,
    diagnostics,
    events,
    gates,
    kpis,
    me,
    memory,
    moves,
    notes,
    ofrep,
    openapi,
    products,
    rate_limits,
    realtime,
    reserved,
    routes,
    sessions,
    strategy_locks,
    subjects,
    tables,
    telemetry,
    temperature,
    tenants,
)
from engines.api.dispatch import Dispatch
from engines.api.endpoint import Router
from engines.api.engines import Engines
from engines.api.metrics import Metrics
from engines.api.shell import Shell, Tell, tell_structlog

ROUTERS: Final[Sequence[Router]] = (
    me.router,
    tenants.router,
    products.router,
    access.router,
    backends.router,
    routes.router,
    moves.router,
    diagnostics.router,
    events.router,
    tables.router,
    memory.router,
    blackboard.router,
    notes.router,
    analytics.router,
    budget.router,
    *definitions.ROUTERS,
    ofrep.router,
    rate_limits.router,
    gates.router,
    strategy_locks.router,
    approvals.router,
    kpis.router,
    temperature.router,
    realtime.router,
    sessions.router,
    agent_memory.router,
    telemetry.router,
    subjects.router,
    reserved.router,
)


def create_app(
    engines: Engines, *, tell: Tell = tell_structlog, routers: Sequence[Router] = ROUTERS
) -> Shell:
    """The ASGI app over an open `Engines`, which outlives it. `tell` is given the account of each request."""
    endpoints = [endpoint for router in routers for endpoint in router.endpoints]
    endpoints += openapi.router_for(endpoints).endpoints
    projectors = (engines.spine.projector, engines.analytics.projector)
    return Shell(Dispatch(endpoints), engines, Metrics(projectors), tell)
