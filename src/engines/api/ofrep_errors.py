"""What goes wrong under `/ofrep`, in the words of the OpenFeature Remote Evaluation Protocol.

Owns OFREP's error bodies (open-feature/protocol, service/openapi.yaml 0.3.0): `key` where a flag was asked
for, `errorCode`, `errorDetails`. Statuses and header fields are those of every other call. Leaves evaluating
to `api/ofrep.py`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engines.api.reply import JSON, Reply, error_fields
from engines.errors import EnginesError, Invalid

PREFIX: Final = "/ofrep/"
FLAGS_PATH: Final = "/ofrep/v1/evaluate/flags"
_KEY_CHARS_MAX: Final = 128

_encode: Final = msgspec.json.Encoder().encode


class EvaluationFailure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Why there is no value. `errorCode` is OpenFeature's; `key` is the flag, where it is about one."""

    key: str | None = None
    error_code: str
    error_details: str


def is_ofrep(path: str) -> bool:
    """Whether the protocol speaks of this path, which need not exist."""
    return path.startswith(PREFIX)


def ofrep_error_reply(error: EnginesError, path: str, *, close: bool = False) -> Reply:
    """The answer to an error that was raised on purpose."""
    key = path.removeprefix(FLAGS_PATH + "/") if path.startswith(FLAGS_PATH + "/") else None
    failure = EvaluationFailure(
        key=key and key[:_KEY_CHARS_MAX], error_code=_code(error), error_details=error.detail
    )
    return Reply(error.status, _encode(failure), (JSON, *error_fields(error, close=close)))


def ofrep_internal_reply() -> Reply:
    """What a user learns of a bug of ours: the operator finds it under the request id."""
    failure = EvaluationFailure(error_code="GENERAL", error_details="something went wrong here")
    return Reply(500, _encode(failure), (JSON,))


def _code(error: EnginesError) -> str:
    if not isinstance(error, Invalid):
        return "GENERAL"
    if error.field is None:
        return "PARSE_ERROR"
    return "INVALID_CONTEXT" if error.field.split(".")[0] == "context" else "GENERAL"
