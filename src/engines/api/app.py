"""The app: every router mounted, inside the shell.

Owns mounting. Litestar routes; what it routes to is an endpoint as an ASGI app, because that costs half of
what Litestar's own decoding and encoding do (16 µs a call, not 33 µs, on two slow cores), and because what is
raised has one shape. Leaves calls to their routers and running one to `api/call.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import structlog
from litestar import Litestar, Request, Response
from litestar.enums import HttpMethod
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from engines.api import (
    access,
    backends,
    blackboard,
    diagnostics,
    events,
    me,
    memory,
    notes,
    openapi,
    products,
    reserved,
    routes,
    tables,
    tenants,
)
from engines.api.call import CALL, Call, Runner
from engines.api.endpoint import Endpoint, Router
from engines.api.engines import Engines
from engines.api.metrics import Metrics
from engines.api.reply import Reply, internal_problem_reply, problem_reply
from engines.api.shell import Shell, Tell, tell_structlog
from engines.errors import EnginesError, Invalid, MethodNotAllowed, NotFound

ROUTERS: Final[Sequence[Router]] = (
    me.router,
    tenants.router,
    products.router,
    access.router,
    backends.router,
    routes.router,
    diagnostics.router,
    events.router,
    tables.router,
    memory.router,
    blackboard.router,
    notes.router,
    reserved.router,
)

log = structlog.get_logger(__name__)


def create_app(
    engines: Engines, *, tell: Tell = tell_structlog, routers: Sequence[Router] = ROUTERS
) -> Shell:
    """The ASGI app over an open `Engines`, which outlives it. `tell` is given the account of each request."""
    endpoints = [endpoint for router in routers for endpoint in router.endpoints]
    endpoints += openapi.router_for(endpoints).endpoints
    return Shell(cast("Any", _litestar(endpoints)), engines, Metrics(), tell)


def _litestar(endpoints: Iterable[Endpoint]) -> Litestar:
    by_path: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        by_path.setdefault(endpoint.path, []).append(endpoint)
    return Litestar(
        [_handler(path, _Path(group)) for path, group in by_path.items()],
        exception_handlers={Exception: _unrouted},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )


def _handler(path: str, app: _Path) -> HTTPRouteHandler:
    def answer() -> ASGIApp:
        return cast("ASGIApp", app)

    # The status is the app's own to say; Litestar wants one that does not contradict the annotation.
    return HTTPRouteHandler(
        path.replace("}", ":str}"), http_method=list(HttpMethod), sync_to_thread=False, status_code=200
    )(answer)


class _Path:
    """One path: the endpoint of the method, or 405 for a method that it does not have, OPTIONS included."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._runners = {endpoint.method: Runner(endpoint) for endpoint in endpoints}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        """The call has its own `receive` and `send`, which are the shell's and not wrapped by Litestar."""
        call: Call = scope[CALL]
        runner = self._runners.get(scope["method"])
        if runner is not None:
            await runner.run(call)
        else:
            await problem_reply(_not_allowed(self._runners), call.request_id).send(call.send)


def _unrouted(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The answer to what Litestar raised before any call ran."""
    call: Call = request.scope[CALL]  # type: ignore[typeddict-item]
    reply = _reply_to(error, call.request_id)
    return Response(
        reply.body,
        status_code=reply.status,
        headers={name.decode(): value.decode() for name, value in reply.fields},
        media_type="application/problem+json",
    )


def _reply_to(error: Exception, request_id: str) -> Reply:
    if isinstance(error, EnginesError):
        return problem_reply(error, request_id)
    if isinstance(error, MethodNotAllowedException):
        return problem_reply(MethodNotAllowed("no path has this method"), request_id)
    if isinstance(error, NotFoundException):
        return problem_reply(NotFound("there is no such path"), request_id)
    if isinstance(error, HTTPException) and error.status_code == Invalid.status:
        return problem_reply(Invalid("this is no host", field="Host"), request_id)
    log.error("unexpected error while routing", request_id=request_id, exc_info=error)
    return internal_problem_reply(request_id)


def _not_allowed(methods: Iterable[str]) -> MethodNotAllowed:
    allowed = sorted(methods)
    return MethodNotAllowed(f"this path has {', '.join(allowed)}", allowed=allowed)
