"""One request, as the function that answers it sees it.

Owns deriving its context once, decoding its body, query and conditions as its endpoint declares them, and
turning whatever is raised into a problem document. Leaves deriving to `identity/` and answers to routers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import structlog

from engines.api.body import ClientGone, Receive, check_media_type, check_storable, decode_body, read_body
from engines.api.endpoint import Endpoint, Guarded, Sendable
from engines.api.fields import Fields, condition_of, idempotency_key_of
from engines.api.metrics import Metrics
from engines.api.ofrep_errors import is_ofrep, ofrep_error_reply, ofrep_internal_reply
from engines.api.paths import QueryDecoder, parse_query
from engines.api.protocol import ANSWER
from engines.api.reply import HeaderFields, Send, internal_problem_reply, limit_fields, problem_reply
from engines.core.idempotency import Request, identify
from engines.core.records import Condition
from engines.core.slots import Slots
from engines.errors import (
    ContextMismatch,
    Corrupt,
    EnginesError,
    Forbidden,
    Invalid,
    RequestTimeout,
    TooLarge,
    Unavailable,
)
from engines.scope import RequestContext

if TYPE_CHECKING:
    from engines.api.engines import Engines
    from engines.identity.context import Principal

STATUS_CLIENT_GONE: Final = 499
# What a key may do that stands in a page for everybody to read: it is good for nothing else.
PUBLISHED: Final = frozenset({"analytics.beacon"})
"""In the log alone: nobody was there to be answered."""
STOPPING_RETRY_S: Final = 1.0

Scope = MutableMapping[str, Any]
T = TypeVar("T")
Q = TypeVar("Q", bound=msgspec.Struct)
log = structlog.get_logger(__name__)


class Call:
    """A request under way. `engines` is all that it may ask."""

    __slots__ = (
        "_body",
        "_common_fields",
        "_context",
        "_principal",
        "_send",
        "abandons_body",
        "endpoint",
        "engines",
        "fields",
        "followers",
        "limit_fields",
        "limited_routes",
        "metrics",
        "parameters",
        "receive",
        "request_id",
        "runner",
        "scope",
        "status",
    )

    def __init__(
        self,
        engines: Engines,
        metrics: Metrics,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        common_fields: Callable[[Call], HeaderFields],
        followers: Slots,
        limited_routes: frozenset[str],
    ) -> None:
        self.engines = engines
        self.metrics = metrics
        self.scope = scope
        self.receive = receive
        self._send = send
        self._common_fields = common_fields
        self.followers = followers
        self.limited_routes = limited_routes
        self.limit_fields: HeaderFields = ()
        self.fields = Fields(scope["headers"])
        self.request_id = ""
        self.endpoint: Endpoint | None = None
        self.runner: Runner
        self.parameters: Mapping[str, str]
        self.abandons_body = False
        self.status = STATUS_CLIENT_GONE
        self._context: RequestContext | None = None
        self._principal: Principal | None = None
        self._body = b""

    @property
    def known_context(self) -> RequestContext | None:
        """The context, if it has been derived."""
        return self._context

    @property
    def known_caller(self) -> RequestContext | Principal | None:
        """Whoever has been found to be calling."""
        return self._context or self._principal

    async def context(self) -> RequestContext:
        """Who asks, and where. Raises Unauthenticated, ContextMismatch, Forbidden, Invalid, Unavailable."""
        if self._context is None:
            contexts = self.engines.contexts
            self._context = await contexts.context_of(self.scope["headers"], request_id=self.request_id)
        return self._context

    async def published_context(self, key: str, named: Mapping[str, str]) -> RequestContext:
        """The same where no header can say it: by a key that stands in the query, and what else does.

        `named`: by the names of the context's fields.
        """
        headers = [(b"authorization", b"Bearer " + key.encode())]
        headers += [(b"x-" + name.replace("_", "-").encode(), text.encode()) for name, text in named.items()]
        self._context = await self.engines.contexts.context_of(headers, request_id=self.request_id)
        return self._context

    async def principal(self, *, tenant_id: str, user_id: str) -> Principal:
        """The user whom the path names, and nobody else, outside any tenant. Raises as `context` does."""
        self._principal = await self.engines.contexts.principal_of(
            self.scope["headers"], tenant_id=tenant_id, user_id=user_id, request_id=self.request_id
        )
        return self._principal

    def id(self, name: str) -> str:
        """A parameter of the path; the shell has checked that it is an id."""
        return self.parameters[name]

    async def body(self, type_: type[T]) -> T:
        """The body, of the type that the endpoint declares.

        Raises UnsupportedMediaType, TooLarge, RequestTimeout, Invalid.
        """
        assert type_ is self.runner.endpoint.body
        decoded: T = await self.any_body()
        return decoded

    async def optional_body(self, type_: type[T]) -> T:
        """The same where every member may be left out: no body is one without members."""
        return await self.body(type_) if self._has_body else type_()

    async def any_body(self) -> Any:
        """The body, where the endpoint declares several types."""
        assert self.runner.type_of is not None
        check_media_type(self.fields, self.runner.endpoint.accepts)
        await self._read()
        if self.runner.endpoint.is_stored_whole:
            check_storable(self._body)
        return decode_body(self._body, self.runner.type_of)

    def query(self, type_: type[Q]) -> Q:
        """The query as its endpoint declares it. Raises Invalid."""
        assert self.runner.query_decoder is not None
        assert type_ is self.runner.endpoint.query
        decoded: Q = self.runner.query_decoder.decode(self.scope["query_string"])
        return decoded

    def condition(self) -> Condition:
        """What the client expects to replace. Raises Invalid."""
        return condition_of(self.fields)

    def request(self, context: RequestContext) -> Request | None:
        """The idempotent request that this is, once its body is read; None without a key. Raises Invalid.

        Its surface, app and project belong to what it asks for, as its body does: elsewhere the same body is
        about other records.
        """
        key = idempotency_key_of(self.fields)
        if key is None:
            return None
        who = (context.target_tenant_id, context.env, context.user_id)
        where = (context.surface_id, context.app_id or "", context.project_id or "")
        return self.identified(key, *who, where=where)

    def identified(self, key: str, *who: str, where: Sequence[str] = ()) -> Request:
        """The request that `key` names among those of `who` to this path."""
        body = b"\n".join((self._body, self.scope["query_string"], *(part.encode() for part in where)))
        return identify(*who, self.scope["method"], self.scope["path"], key, body=body)

    async def answer(self, status: int, fields: HeaderFields, body: bytes) -> None:
        """Send one whole answer, with the fields that every answer has."""
        self.status = status
        fields = (*fields, *self._common_fields(self))
        whole = self.scope.get(ANSWER)
        if whole is not None:
            await whole(status, fields, body)
            return
        await self._send({"type": "http.response.start", "status": status, "headers": fields})
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, fields: HeaderFields) -> None:
        """The head of an answer whose body comes in pieces."""
        self.status = status
        fields = (*fields, *self._common_fields(self))
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def write(self, piece: bytes, *, is_last: bool = False) -> None:
        """A piece of the body. Waits while the client takes less than it is sent."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": not is_last})

    async def refuse_input(self) -> None:
        """Raises Invalid for a body or a parameter that the endpoint does not declare."""
        endpoint = self.runner.endpoint
        if endpoint.query is None and self.scope["query_string"]:
            for name in parse_query(self.scope["query_string"]):
                raise Invalid("there is no such parameter", field=name)
        if endpoint.body is None and self._has_body:
            await self._read()
            if self._body.strip(b" \t\r\n") not in (b"", b"{}"):
                raise Invalid("this call takes no body")

    @property
    def _has_body(self) -> bool:
        length = self.fields.get(b"content-length")
        return length not in (None, "0") or self.fields.has(b"transfer-encoding")

    async def _read(self) -> None:
        try:
            bytes_max = self.runner.endpoint.body_bytes_max
            self._body = await read_body(self.fields, self.receive, bytes_max=bytes_max)
        except (TooLarge, RequestTimeout):
            self.abandons_body = True
            raise


class Runner:
    """Runs one endpoint. Whatever happens inside ends in an answer of the contract's shape."""

    __slots__ = ("_limited_as", "_reads_all_input", "endpoint", "query_decoder", "type_of")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._limited_as = endpoint.route if endpoint.is_limited else None
        self.type_of = endpoint.type_of
        if endpoint.body is not None and endpoint.type_of is None:
            self.type_of = lambda _: endpoint.body
        self.query_decoder: QueryDecoder[Any] | None = (
            None if endpoint.query is None else QueryDecoder(endpoint.query)
        )
        self._reads_all_input = endpoint.ignores_input or None not in (self.type_of, self.query_decoder)

    async def run(self, call: Call, parameters: Mapping[str, str]) -> None:
        """Answer the call, whose path has these parameters."""
        call.endpoint = self.endpoint
        call.runner = self
        call.parameters = parameters
        try:
            answer = await self._answer(call)
        except ClientGone:
            return
        await answer.send(call)

    async def _ask_gates(self, call: Call, context: RequestContext, guarded: Guarded) -> None:
        """Raises Forbidden, ContextMismatch, GateDenied, and what keeps a decision from being recorded."""
        context.require_data(guarded.permission)
        await call.engines.gates.guard(context, guarded.action, subject=call.scope["path"])

    async def _answer(self, call: Call) -> Sendable:
        try:
            if self.endpoint.access == "context":
                await self._let_in(call, await call.context())
            call.fields.check()
            if not self._reads_all_input:
                await call.refuse_input()
            return await self.endpoint.handler(call)
        except EnginesError as error:
            return await problem_of(call, error)
        except ClientGone:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not this request was ended but work that it waited for: what that belongs to is being closed.
            return await problem_of(
                call, Unavailable("the server is stopping", retry_after_s=STOPPING_RETRY_S)
            )
        except Exception:
            log.exception("unexpected error", request_id=call.request_id, route=self.endpoint.path)
            if is_ofrep(call.scope["path"]):
                return ofrep_internal_reply()
            return internal_problem_reply(call.request_id)

    async def _let_in(self, call: Call, context: RequestContext) -> None:
        """Raises what keeps the caller from the handler: a key's purpose, a limit, a gate."""
        if context.permissions == PUBLISHED:
            raise Forbidden("a published key is for the beacon alone")
        await self._admit(call, context)
        if self.endpoint.guarded is not None:
            await self._ask_gates(call, context, self.endpoint.guarded)

    async def _admit(self, call: Call, context: RequestContext) -> None:
        """Raises Throttled where a limit of the tenant refuses the call."""
        if self._limited_as is None:
            return
        admission = await call.engines.rate_limits.admit(context, self._limited_as)
        if admission.refused_by is not None:
            call.limit_fields = limit_fields(admission.standings)
            admission.check()


async def problem_of(call: Call, error: EnginesError) -> Sendable:
    """The answer to an error: told to the caller, and where it is not the caller's doing, to the log."""
    if isinstance(error, ContextMismatch):
        await call.engines.refusals.record(error, call.known_caller)
    elif error.status >= 500:
        report = log.exception if isinstance(error, Corrupt) else log.warning
        report("request failed", **_facts(call, error))
    path = call.scope["path"]
    if is_ofrep(path):
        return ofrep_error_reply(error, path, close=call.abandons_body)
    return problem_reply(error, call.request_id, close=call.abandons_body)


def _facts(call: Call, error: EnginesError) -> Mapping[str, Any]:
    """What the operator needs: the code, and the chain of causes by type and sentence."""
    causes: list[str] = []
    cause = error.__cause__
    while cause is not None and len(causes) < 8:
        causes.append(f"{type(cause).__name__}: {cause}"[:500])
        cause = cause.__cause__ or cause.__context__
    return {
        "code": error.code,
        "detail": error.detail,
        "causes": causes,
        "request_id": call.request_id,
        "route": None if call.endpoint is None else call.endpoint.path,
    }
