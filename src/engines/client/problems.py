"""From a reply or a broken connection back to the error that the server meant.

Owns the table from `code` to the classes of `engines.errors`, what a reply without a problem document is
taken for, and the translation of aiohttp's errors. Leaves what to do about an error to `client/retry.py` and
the caller.

The question that decides is whether the request may have been applied. `Unavailable`: nothing was applied.
`OutcomeUnknown`: it was sent, or may have been, and nobody said what became of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

import aiohttp
import msgspec

from engines import errors
from engines.errors import Conflict, EnginesError, Gone, Invalid, OutcomeUnknown, Unavailable

PROBLEM_TYPE: Final = "application/problem+json"
JSON_TYPE: Final = "application/json"
DETAIL_CHARS_MAX: Final = 1_000


class Problem(msgspec.Struct, frozen=True):
    """A problem document (RFC 9457) as the server writes it.

    Members that are not known here are passed over.
    """

    detail: str = ""
    code: str = ""
    request_id: str | None = None
    field: str | None = None
    resource_kind: str | None = None
    scope: dict[str, str | None] | None = None
    gate: str | None = None
    reason_code: str | None = None
    outcome: str | None = None
    decision: str | None = None


def _codes(base: type[EnginesError]) -> dict[str, type[EnginesError]]:
    found = {base.__name__: base}
    for derived in base.__subclasses__():
        if derived.__module__ == errors.__name__:
            found |= _codes(derived)
    return found


CLASSES: Final[Mapping[str, type[EnginesError]]] = _codes(EnginesError)

# For a reply whose `code` says nothing to us. A status that several classes share stands for the widest of
# them; 502 and above come from something between us and the server, which cannot know whether the request
# went through, and what is left (a redirect, a status of another server's) is not ours to repeat.
_GATEWAY_STATUS_MIN: Final = 502
_BY_STATUS: Final[Mapping[int, type[EnginesError]]] = {
    400: Invalid,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    408: errors.RequestTimeout,
    409: Conflict,
    410: Gone,
    412: errors.PreconditionFailed,
    413: errors.TooLarge,
    415: errors.UnsupportedMediaType,
    428: errors.PreconditionRequired,
    429: errors.Throttled,
    431: errors.HeadersTooLarge,
    500: EnginesError,  # A bug of the server's, which repeating would only meet again.
    501: errors.Reserved,
}


def _class_of_status(status: int) -> type[EnginesError]:
    unknown = OutcomeUnknown if status >= _GATEWAY_STATUS_MIN else EnginesError
    return _BY_STATUS.get(status, unknown)


class Failure(msgspec.Struct, frozen=True, rename="camel"):
    """What the server answers under /ofrep instead (OFREP): OpenFeature's code and a sentence."""

    error_code: str
    error_details: str = ""


_problem_decoder: Final = msgspec.json.Decoder(Problem)
_failure_decoder: Final = msgspec.json.Decoder(Failure)


def error_of_reply(status: int, body: bytes, headers: Mapping[str, str]) -> EnginesError:
    """The error that a reply of status 400 and above stands for.

    OpenFeature's code is its `reason_code`, where the reply has one.
    """
    problem = Problem()
    media_type = headers.get("Content-Type", "")
    with contextlib.suppress(msgspec.DecodeError):
        if media_type.startswith(PROBLEM_TYPE):
            problem = _problem_decoder.decode(body)
        elif media_type.startswith(JSON_TYPE):
            failure = _failure_decoder.decode(body)
            problem = Problem(detail=failure.error_details, reason_code=failure.error_code)
    if problem.request_id is None:
        problem = msgspec.structs.replace(problem, request_id=headers.get("X-Request-Id"))
    return error_of_problem(problem, status=status, retry_after_s=_retry_after_s(headers))


def error_of_problem(problem: Problem, *, status: int, retry_after_s: float | None = None) -> EnginesError:
    """The class that the problem's code names, or the status where the code is not known."""
    if problem.outcome == "unknown":
        kind: type[EnginesError] = OutcomeUnknown
    else:
        kind = CLASSES.get(problem.code) or _class_of_status(status)
        if kind is Conflict and status == errors.PreconditionFailed.status:
            kind = errors.PreconditionFailed  # One code on the wire, two statuses.
    detail = problem.detail[:DETAIL_CHARS_MAX] or f"the server answered with status {status}"
    # Some classes take less than others; every one can be made of its sentence alone.
    error: EnginesError = kind(detail)
    error.field = problem.field
    error.resource_kind = problem.resource_kind
    error.scope = {name: value for name, value in (problem.scope or {}).items() if value is not None} or None
    error.gate = problem.gate
    error.reason_code = problem.reason_code
    error.decision = problem.decision
    error.retry_after_s = retry_after_s
    error.request_id = problem.request_id
    return error


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, as the server counts them.

    The form with a date is not written by it, and is passed over.
    """
    text = headers.get("Retry-After", "").strip()
    return float(text) if text.replace(".", "", 1).isdecimal() else None


@contextlib.contextmanager
def translated(*, changes: bool) -> Iterator[None]:
    """Raise what aiohttp and the socket raise as errors of ours.

    `changes`: the request changes state, so that a break after it was sent leaves its outcome unknown. A read
    has no outcome: whatever broke, it is Unavailable.
    """
    broken = OutcomeUnknown if changes else Unavailable
    try:
        yield
    except aiohttp.InvalidURL as error:
        raise Invalid("this is no URL of a server", field="url") from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        # No connection was made, or none was free in time: nothing was sent.
        raise Unavailable(f"the server cannot be reached: {_connect_reason(error)}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise broken(f"the connection broke before the answer was read: {_reason(error)}") from error


def _connect_reason(error: aiohttp.ClientError | TimeoutError) -> str:
    """In the system's words, where the system refused to connect."""
    if type(error) not in (aiohttp.ClientConnectorError, aiohttp.ClientConnectorDNSError):
        return _reason(error)
    assert isinstance(error, aiohttp.ClientConnectorError)
    number = error.os_error.errno
    said = os.strerror(number) if number and number > 0 else error.os_error.strerror
    return f"{error.host}:{error.port}: {said}" if said else _reason(error)


def _reason(error: BaseException) -> str:
    return str(error)[:DETAIL_CHARS_MAX] or type(error).__name__


def unreadable(what: Any) -> EnginesError:
    """An answer that is not what the contract says: another server, or another version of it."""
    return EnginesError(f"the server's answer is not what this client reads: {what}")
