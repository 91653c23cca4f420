"""Feature flags over HTTP, as any OpenFeature provider asks for them (OFREP 0.3.0).

Both calls are reads, whatever their method: who may read definitions may evaluate, and no key makes a repeat
of one. Leaves the bodies of errors to `api/ofrep_errors.py`.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from engines.api.call import Call
from engines.api.endpoint import Router, Sendable
from engines.api.ofrep_errors import FLAGS_PATH, EvaluationFailure
from engines.api.reply import JSON, Reply, json_reply
from engines.stores.flag_rules import Evaluation, Reason

# What a context says is looked at by every flag: it is smaller than other bodies may be.
CONTEXT_BYTES_MAX: Final = 64 * 1024
_ETAG_BYTES: Final = 16

router = Router("flags")


class EvaluationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The evaluation context: what is known of whoever sees the flag; `targetingKey` names them."""

    context: dict[str, Any] = {}


class BulkQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What an event stream told the client of the flags. There is nothing here to validate with it."""

    flag_config_etag: str | None = None
    flag_config_last_modified: str | None = None


class EvaluationOrFailure(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One of many: an Evaluation, or with `errorCode` an EvaluationFailure."""

    key: str
    reason: Reason | UnsetType = UNSET
    variant: str | UnsetType = UNSET
    value: Any = UNSET
    metadata: dict[str, str | bool | int | float] = {}
    error_code: str | UnsetType = UNSET
    error_details: str | UnsetType = UNSET


class BulkEvaluation(msgspec.Struct, frozen=True):
    """What every flag says, by key."""

    flags: tuple[EvaluationOrFailure, ...]


@router.post(
    FLAGS_PATH + "/{key}",
    body=EvaluationRequest,
    reply=Evaluation,
    reads=True,
    body_bytes_max=CONTEXT_BYTES_MAX,
)
async def evaluate_flag(call: Call) -> Sendable:
    """Evaluate one flag. Without `value` in the answer the program that asks uses its own default."""
    request = await call.body(EvaluationRequest)
    evaluation = await call.engines.flags.evaluate(await call.context(), call.id("key"), request.context)
    if evaluation.reason != "ERROR":
        return json_reply(evaluation)
    return json_reply(_failure(evaluation), status=404 if evaluation.error_code == "FLAG_NOT_FOUND" else 400)


@router.post(
    FLAGS_PATH,
    body=EvaluationRequest,
    query=BulkQuery,
    reply=BulkEvaluation,
    statuses=(200, 304),
    has_etag=True,
    reads=True,
    body_bytes_max=CONTEXT_BYTES_MAX,
)
async def evaluate_flags(call: Call) -> Sendable:
    """Evaluate every flag of the surface. The ETag, sent as If-None-Match, stands for the whole answer."""
    call.query(BulkQuery)
    request = await call.body(EvaluationRequest)
    evaluations = await call.engines.flags.evaluate_all(await call.context(), request.context)
    shown = [one if one.reason != "ERROR" else _failure(one) for one in evaluations]
    body = msgspec.json.encode({"flags": shown})
    etag = f'"{hashlib.blake2b(body, digest_size=_ETAG_BYTES).hexdigest()}"'
    fields = ((b"etag", etag.encode()),)
    if _is_known(call.fields.get(b"if-none-match"), etag):
        return Reply(304, fields=fields)
    return Reply(200, body, (JSON, *fields))


def _failure(evaluation: Evaluation) -> EvaluationFailure:
    return EvaluationFailure(
        key=evaluation.key,
        error_code=str(evaluation.error_code),
        error_details=str(evaluation.error_details),
    )


def _is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether a client that says so has the answer (RFC 9110, section 13.1.2: weak tags count)."""
    tags = [] if if_none_match is None else [tag.strip() for tag in if_none_match.split(",")]
    return tags == ["*"] or etag in (tag.removeprefix("W/") for tag in tags)
