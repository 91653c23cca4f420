"""Calls as data: what each takes and answers, from which both its decoding and its documentation are made.

Owns the declaration of a call and the collection of a router's calls. Leaves running one to `api/call.py`,
mounting it to `api/app.py` and its description to `api/openapi.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from engines.api.body import BODY_BYTES_MAX

Conditions = Literal["none", "optional", "required"]
Access = Literal["context", "principal", "public"]
CHANGING_METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Sendable(Protocol):
    """What a handler answers with: a `Reply`, or a stream."""

    async def send(self, call: Any, /) -> None: ...


Handler = Callable[[Any], Awaitable[Sendable]]


class Guarded(msgspec.Struct, frozen=True):
    """A call that gates may guard, as data says: under which name, and what the caller must be allowed.

    The permission comes first: who may not make the call at all uses up nobody's quota.
    """

    action: str
    permission: str


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One call. `reply` is the type of a success's body; `statuses` are a success's, the usual one first.

    `type_of` says which type a decoded body is to have, where `body` is one of several.
    `access`: a context is derived before the handler runs, a principal by the handler itself, or neither.
    `guarded`: the gates are asked between the context and the handler.
    `accepts`: the media types of a body, which is JSON in any of them.
    `answers_any_method`: it also answers every method for which its path has no endpoint.
    `reads`: it changes nothing, though its method is POST because it takes a body.
    `is_limited`: rate limits count it. Calls of control-plane records are not counted: who may mend a limit,
    its counters' route, or a key that was stolen must not be kept from it by the limit.
    `is_stored_whole`: one record holds what the body says, as it stands.
    `payloads`: what the payload of an event has to be, by event type; `body` leaves it open.
    """

    method: str
    path: str
    handler: Handler
    tag: str
    summary: str
    description: str
    body: Any = None
    type_of: Callable[[Any], Any] | None = None
    query: type[msgspec.Struct] | None = None
    reply: Any = None
    statuses: tuple[int, ...] = (200,)
    has_etag: bool = False
    conditions: Conditions = "none"
    access: Access = "context"
    is_limited: bool = True
    guarded: Guarded | None = None
    is_stream: bool = False
    is_idempotent: bool = False
    ignores_input: bool = False
    answers_any_method: bool = False
    reads: bool = False
    body_bytes_max: int = BODY_BYTES_MAX
    is_stored_whole: bool = False
    media_type: str = "application/json"
    accepts: tuple[str, ...] = ("application/json",)
    payloads: Mapping[str, Sequence[type[msgspec.Struct]]] = {}

    @property
    def changes(self) -> bool:
        """Whether the call may change something."""
        return self.method in CHANGING_METHODS and not self.reads

    @property
    def route(self) -> str:
        """Method and template, as a rate limit names it."""
        return f"{self.method} {self.path}"

    @property
    def parameters(self) -> tuple[str, ...]:
        """The path's parameters in order."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))


class Router:
    """The calls of one store or service. Each is a function from a call to what it answers."""

    def __init__(self, tag: str, *, is_limited: bool = True) -> None:
        self.tag = tag
        self._is_limited = is_limited
        self.endpoints: list[Endpoint] = []

    def get(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """A read. `options` are `Endpoint`'s fields."""
        return self.add("GET", path, **options)

    def post(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """A change under a name that the server makes, or an action."""
        return self.add("POST", path, **options)

    def put(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Create or replace, unless `statuses` says otherwise."""
        return self.add("PUT", path, **{"statuses": (200, 201), "conditions": "optional", **options})

    def patch(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Replace some members."""
        return self.add("PATCH", path, **{"conditions": "optional", **options})

    def delete(self, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Remove."""
        return self.add("DELETE", path, **{"statuses": (204,), "conditions": "optional", **options})

    def add(self, method: str, path: str, **options: Any) -> Callable[[Handler], Handler]:
        """Any method."""
        changes = method in CHANGING_METHODS and not options.get("reads", False)
        options = {"is_idempotent": changes, "is_limited": self._is_limited, **options}

        def add(handler: Handler) -> Handler:
            summary, _, description = (handler.__doc__ or "").strip().partition("\n\n")
            endpoint = Endpoint(
                method=method,
                path=path,
                handler=handler,
                tag=self.tag,
                summary=" ".join(summary.split()).removesuffix("."),
                description=" ".join(description.split()),
                **options,
            )
            self.endpoints.append(endpoint)
            return handler

        return add
