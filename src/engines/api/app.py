"""The app: every router mounted, inside the shell.

Owns mounting. Litestar routes; what it routes to is an endpoint as an ASGI app, because that costs half of
what Litestar's own decoding and encoding do (16 µs a call, not 33 µs, on two slow cores), and because what is
raised has one shape. Leaves calls to their routers and running one to `api/call.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Final, cast

import structlog
from litestar import Litestar, Request, Response
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
from engines.api.shell import Shell
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


def create_app(engines: Engines) -> Shell:
    """The ASGI app over an open `Engines`, which outlives it."""
    endpoints = [endpoint for router in ROUTERS for endpoint in router.endpoints]
    endpoints += openapi.router_for(endpoints).endpoints
    return Shell(cast("Any", _litestar(endpoints)), engines, Metrics())


def _litestar(endpoints: Iterable[Endpoint]) -> Litestar:
    by_path = groupby(sorted(endpoints, key=_path), key=_path)
    return Litestar(
        [handler for path, group in by_path for handler in _handlers(path, list(group))],
        exception_handlers={Exception: _unrouted},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )


def _path(endpoint: Endpoint) -> str:
    return endpoint.path


def _handlers(path: str, endpoints: Sequence[Endpoint]) -> list[HTTPRouteHandler]:
    """One for each method, and one for OPTIONS, to which Litestar would give an answer of its own."""
    template = path.replace("}", ":str}")
    handlers = [_handler(template, endpoint.method, Runner(endpoint)) for endpoint in endpoints]
    methods = [endpoint.method for endpoint in endpoints]
    if "OPTIONS" not in methods:
        handlers.append(_handler(template, "OPTIONS", _Refusal(methods)))
    return handlers


def _handler(template: str, method: str, app: Any) -> HTTPRouteHandler:
    def answer() -> ASGIApp:
        return cast("ASGIApp", app)

    # The status is the app's own; this one only keeps Litestar from checking the annotation against 204.
    return HTTPRouteHandler(template, http_method=cast("Any", method), sync_to_thread=False, status_code=200)(
        answer
    )


class _Refusal:
    """An endpoint for a method that the path does not have."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = sorted(allowed)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        call: Call = scope[CALL]
        await problem_reply(_not_allowed(self._allowed), call.request_id).send(send)


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
        allowed = (error.headers or {}).get("allow", "").split(", ")
        return problem_reply(_not_allowed(sorted({*allowed} - {"OPTIONS"})), request_id)
    if isinstance(error, NotFoundException):
        return problem_reply(NotFound("there is no such path"), request_id)
    if isinstance(error, HTTPException) and error.status_code == Invalid.status:
        return problem_reply(Invalid("this is no host", field="Host"), request_id)
    log.error("unexpected error while routing", request_id=request_id, exc_info=error)
    return internal_problem_reply(request_id)


def _not_allowed(allowed: Sequence[str]) -> MethodNotAllowed:
    return MethodNotAllowed(f"this path has {', '.join(allowed)}", allowed=allowed)
