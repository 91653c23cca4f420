"""Typed calls: one place where a method of the client becomes a request, and a reply becomes a value.

Owns the headers of context, conditions and idempotency, and walking pages. Leaves the paths and types of each
store to its own module and the exchange itself to `client/transport.py`.

Every change carries an Idempotency-Key, minted here unless the caller brings one, so that a lost reply can be
answered by asking again: an unconditional PUT that were simply repeated might undo what somebody else wrote
in between, a repeated DELETE would say 404, and a repeated If-Match would say 412. An append whose events all
carry ids of their own needs none. `mint_keys=False` gives that up, and with it the repeats after a lost
reply.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from engines.client.problems import unreadable
from engines.client.results import Page
from engines.client.retry import Repeat
from engines.client.transport import Reply, Request, Transport, encode, target
from engines.ids import Ids

T = TypeVar("T")

Order: TypeAlias = Literal["asc", "desc"]
# What a method asks for that has no answer to decode.
NOTHING: Final = type(None)

PAGE_LIMIT: Final = 500
NO_BODY: Final = object()


class Condition(msgspec.Struct, frozen=True):
    """What a write expects to find: `if_match` an ETag as the server gave it, or `if_absent` nothing."""

    if_match: str | None = None
    if_absent: bool = False

    def headers(self) -> dict[str, str]:
        given: dict[str, str] = {}
        if self.if_match is not None:
            given["If-Match"] = self.if_match
        if self.if_absent:
            given["If-None-Match"] = "*"
        return given


ANYTHING: Final = Condition()


class Calls:
    """Requests in one context: `context` holds the headers that every one of them carries."""

    def __init__(
        self, transport: Transport, context: Mapping[str, str], *, ids: Ids, mint_keys: bool = True
    ) -> None:
        self.transport = transport
        self.context = dict(context)
        self._ids = ids
        self._mint_keys = mint_keys

    def bound(self, context: Mapping[str, str]) -> Calls:
        """The same connections with more context."""
        return Calls(self.transport, {**self.context, **context}, ids=self._ids, mint_keys=self._mint_keys)

    async def get(self, kind: type[T], *parts: str, query: Mapping[str, Any] | None = None) -> T:
        """GET one value."""
        request = Request(method="GET", target=target(*parts, query=query), headers=self.context)
        return decoded(kind, (await self.transport.send(request)).body)

    async def page(self, kind: type[T], *parts: str, query: Mapping[str, Any] | None = None) -> Page[T]:
        """GET one page of a list of `kind`."""
        request = Request(method="GET", target=target(*parts, query=query), headers=self.context)
        found: Page[T] = _page_decoder(kind, (await self.transport.send(request)).body)
        return found

    async def each(
        self, kind: type[T], *parts: str, query: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[T, None]:
        """Every item of a list, page after page, until the server says that there is no more."""
        wanted = {"limit": PAGE_LIMIT, **{name: value for name, value in (query or {}).items() if value}}
        while True:
            page = await self.page(kind, *parts, query=wanted)
            for item in page.items:
                yield item
            if page.after is None:
                return
            if page.after == wanted.get("after"):
                raise unreadable("a page leads back to itself")
            wanted["after"] = page.after

    async def ask(self, *parts: str, body: Any, known_etag: str | None = None) -> Reply:
        """POST a question that changes nothing. The reply is of status 304 where `known_etag` still holds."""
        headers = self.context if known_etag is None else {**self.context, "If-None-Match": known_etag}
        request = Request(method="POST", target=target(*parts), body=encode(body), headers=headers)
        return await self.transport.send(request)

    async def change(
        self,
        kind: type[T],
        method: str,
        *parts: str,
        body: Any = NO_BODY,
        query: Mapping[str, Any] | None = None,
        condition: Condition = ANYTHING,
        idempotency_key: str | None = None,
        repeat: Repeat = Repeat.APPLIED,
    ) -> T:
        """A request that changes state. `repeat` tells what it would do twice if no key went with it."""
        headers = {**self.context, **condition.headers()}
        key = idempotency_key
        if key is None and repeat is Repeat.APPLIED and self._mint_keys:
            key = self._ids.record_id()
        if key is not None:
            headers["Idempotency-Key"] = key
            repeat = Repeat.RECOGNISED
        request = Request(
            method=method,
            target=target(*parts, query=query),
            body=None if body is NO_BODY else encode(body),
            headers=headers,
            repeat=repeat,
        )
        return decoded(kind, (await self.transport.send(request)).body)


@functools.lru_cache(maxsize=256)
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _page_decoder(kind: Any, body: bytes) -> Any:
    return _decode(Page[kind], body)


def decoded(kind: type[T], body: bytes) -> T:
    """The value that a reply's body holds; nothing where `kind` is NoneType. Raises EnginesError."""
    if kind is type(None):
        return None
    value: T = _decode(kind, body)
    return value


def _decode(kind: Any, body: bytes) -> Any:
    try:
        return _decoder(kind).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(error) from error
