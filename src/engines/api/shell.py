"""What surrounds every request: its id, the rule for its path, and the account of it.

Owns the outermost ASGI layer: the request id, the header fields that every answer carries, and for each
request one line of the log and its metrics. The log names the route's template, never the path, query, body
or credential. Leaves routing to `api/dispatch.py` and running a call to `api/call.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from engines.api.body import Receive
from engines.api.call import Call, Scope, problem_of
from engines.api.dispatch import Dispatch
from engines.api.engines import Engines
from engines.api.logs import Account
from engines.api.metrics import Metrics
from engines.api.paths import check_path
from engines.api.reply import Send
from engines.api.stream import follower_slots
from engines.errors import EnginesError
from engines.scope import check_id

Tell = Callable[[Account], None]

UNROUTED: Final = "(none)"
"""The route of a request that has none, in log and metrics."""
_EVERY_ANSWER: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_LAB: Final = (b"x-engines-lab", b"true")

log = structlog.get_logger("engines.access")


class Shell:
    """The app that a server runs."""

    def __init__(self, dispatch: Dispatch, engines: Engines, metrics: Metrics, tell: Tell) -> None:
        self._dispatch = dispatch
        self._engines = engines
        self._metrics = metrics
        self._tell = tell
        self._followers = follower_slots()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "lifespans and websockets are turned off where the server is set up"
        clock = self._engines.clock
        began = clock.monotonic()
        call = Call(
            self._engines,
            self._metrics,
            scope,
            receive,
            send,
            common_fields=self._fields,
            followers=self._followers,
            limited_routes=self._dispatch.limited_routes,
        )
        try:
            await self._answer(call)
        finally:
            self._account(call, clock.monotonic() - began)

    async def _answer(self, call: Call) -> None:
        try:
            self._name(call)
            check_path(call.scope["raw_path"])
            runner, parameters = self._dispatch.find(call.scope["method"], call.scope["path"])
        except EnginesError as error:
            await (await problem_of(call, error)).send(call)
            return
        await runner.run(call, parameters)

    def _name(self, call: Call) -> None:
        """The client's id for the request, or a new one. Raises Invalid for one that is none."""
        given = call.fields.get(b"x-request-id")
        if given is not None:
            try:
                call.request_id = check_id(given, "X-Request-Id")
                return
            except EnginesError:
                call.request_id = self._new_id()
                raise
        call.request_id = self._new_id()

    def _new_id(self) -> str:
        return self._engines.ids.token(16).hex()

    def _fields(self, call: Call) -> list[tuple[bytes, bytes]]:
        fields = [*_EVERY_ANSWER, *call.limit_fields, (b"x-request-id", call.request_id.encode())]
        context = call.known_context
        if context is not None:
            fields.append((b"traceparent", f"00-{context.trace_id}-{context.span_id}-01".encode()))
        caller = call.known_caller
        if self._engines.directory.lab or (caller is not None and caller.lab):
            fields.append(_LAB)
        return fields

    def _account(self, call: Call, duration_s: float) -> None:
        endpoint, context = call.endpoint, call.known_context
        method = call.scope["method"]
        route = UNROUTED if endpoint is None else endpoint.path
        is_stream = endpoint is not None and endpoint.is_stream
        self._metrics.count(method, route, call.status, duration_s, is_stream=is_stream)
        self._tell(
            Account(
                method=method,
                route=route,
                status=call.status,
                duration_ms=round(duration_s * 1000, 3),
                tenant_id=None if context is None else context.tenant_id,
                request_id=call.request_id,
            )
        )


def tell_structlog(account: Account) -> None:
    """One entry of the log, wherever structlog was told to put it."""
    log.info("request", **msgspec.structs.asdict(account))
