"""What goes back: a status, a body and header fields, ready to be sent.

Owns the forms that all calls share: one record with its ETag, a page, nothing, and the problem document of an
error. Leaves which one a call answers with to its router.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import HTTPStatus
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import msgspec

from engines.errors import EnginesError, MethodNotAllowed, OutcomeUnknown, Unauthenticated
from engines.stores.rate_limits import Standing

if TYPE_CHECKING:
    from engines.api.call import Call

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HeaderFields = Sequence[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
PROBLEM: Final = (b"content-type", b"application/problem+json")
CLOSE: Final = (b"connection", b"close")
REPLAYED: Final = (b"idempotency-replayed", b"true")
PROBLEM_TYPE_PREFIX: Final = "urn:engines:problem:"

# These say nothing of a body's length: RFC 9110, sections 8.6 and 15.
_WITHOUT_BODY: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_encode: Final = msgspec.json.Encoder().encode
_WORD_START: Final = re.compile(r"(?<!^)(?=[A-Z])")


class Reply(msgspec.Struct, frozen=True):
    """One complete answer. `fields` come beside the length."""

    status: int
    body: bytes = b""
    fields: HeaderFields = ()

    @property
    def length_field(self) -> tuple[bytes, bytes]:
        return (b"content-length", b"%d" % len(self.body))

    async def send(self, call: Call) -> None:
        """Answer the call."""
        fields = self.fields if self.status in _WITHOUT_BODY else (*self.fields, self.length_field)
        await call.answer(self.status, fields, self.body)


NOTHING: Final = Reply(204)


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, rename={"kind": "type"}):
    """Problem details (RFC 9457). `code` says what to do next; `field` is where the request breaks a rule."""

    kind: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    field: str | None = None
    resource_kind: str | None = None
    scope: dict[str, str] | None = None
    gate: str | None = None
    reason_code: str | None = None
    outcome: str | None = None
    decision: str | None = None


def record_reply(
    record: Any, etag: str, *, created: bool = False, replayed: bool = False, location: str | None = None
) -> Reply:
    """One record with its ETag, which is the header's value, quotes included."""
    fields = [JSON, (b"etag", etag.encode())]
    if location is not None:
        fields.append((b"location", location.encode()))
    if replayed:
        fields.append(REPLAYED)
    return Reply(201 if created else 200, _encode(record), fields)


def json_reply(value: Any, *, status: int = 200, replayed: bool = False) -> Reply:
    """Anything else as JSON."""
    return Reply(status, _encode(value), (JSON, REPLAYED) if replayed else (JSON,))


def deleted_reply(*, replayed: bool = False) -> Reply:
    """It is gone."""
    return Reply(204, fields=(REPLAYED,)) if replayed else NOTHING


def problem_reply(error: EnginesError, request_id: str, *, close: bool = False) -> Reply:
    """The problem document of an error that was raised on purpose."""
    problem = Problem(
        kind=PROBLEM_TYPE_PREFIX + error.code,
        title=title_of(error.code),
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
        field=error.field,
        resource_kind=error.resource_kind,
        scope=None if error.scope is None else dict(error.scope),
        gate=error.gate,
        reason_code=error.reason_code,
        outcome="unknown" if isinstance(error, OutcomeUnknown) else None,
        decision=error.decision,
    )
    return Reply(error.status, _encode(problem), (PROBLEM, *error_fields(error, close=close)))


def error_fields(error: EnginesError, *, close: bool = False) -> HeaderFields:
    """What the answer to an error says beside its body, whatever form that has."""
    fields: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        fields.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after_s))))
    if isinstance(error, Unauthenticated):
        fields.append((b"www-authenticate", b'Bearer realm="engines"'))
    if isinstance(error, MethodNotAllowed):
        fields.append((b"allow", ", ".join(error.allowed).encode()))
    if close:
        fields.append(CLOSE)
    return fields


def internal_problem_reply(request_id: str) -> Reply:
    """What a user learns of a bug of ours: that there is one, and the id under which the log tells more."""
    problem = Problem(
        kind=PROBLEM_TYPE_PREFIX + "Internal",
        title="Internal",
        status=500,
        detail="something went wrong here; the operator finds it under the request id",
        code="Internal",
        request_id=request_id,
    )
    return Reply(500, _encode(problem), (PROBLEM,))


def title_of(code: str) -> str:
    """`MissingRoute` -> `Missing route`."""
    return _WORD_START.sub(" ", code).capitalize()


def limit_fields(standings: Sequence[Standing]) -> HeaderFields:
    """What a refused client is told of the rate limits that its call met.

    As draft-ietf-httpapi-ratelimit-headers-10 has it. Of `r` other processes may have taken some; `t` is
    rounded up: after it there is a new window. With each answer they would cost more than the counting does.
    """
    policies = ",".join(
        [f'"{one.limit.name}";q={one.limit.limit};w={one.limit.window_seconds}' for one in standings]
    )
    left = ",".join([f'"{one.limit.name}";r={one.remaining};t={ceil(one.resets_in_s)}' for one in standings])
    return ((b"ratelimit-policy", policies.encode()), (b"ratelimit", left.encode()))
