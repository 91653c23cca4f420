"""Idempotency keys: the marker that lets a repeated request find its first answer.

Owns the marker's document key, its stored form and how long it is kept. The marker is written in the
same atomic write as the request's effect (`core/records.py`, `core/log.py`), so either both exist or neither.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from engines.codec import Codec
from engines.core.keys import join
from engines.errors import IdempotencyKeyReused
from engines.ports.documents import ABSENT, Doc, Put

KEPT_S: Final = 24 * 3600
_SEPARATOR = b"\x00"


class Request(msgspec.Struct, frozen=True):
    """One state-changing request that carries an Idempotency-Key.

    `key` is the marker's document key; `digest` tells the same request from another one under that key.
    """

    key: str
    digest: str


class Marker(msgspec.Struct, frozen=True, tag_field="schema", tag="marker/1", omit_defaults=True):
    """What is kept of a request's first answer. `answer` is the stored record, or null for a deletion.

    The record's version is the marker's own: one write made both.
    """

    request: str
    created: bool = False
    answer: msgspec.Raw = msgspec.Raw(b"null")
    expires_at: int | None = None


_CODEC: Final = Codec(Marker)


def identify(*scope: str, body: bytes) -> Request:
    """The request that `scope` (tenant, env, user, method, path and the client's key) and `body` make.

    What tells one request from another under that key belongs into `body`: over HTTP that is the body, the
    query, and the surface, app and project that it is for.
    """
    key = hashlib.sha256(_SEPARATOR.join(part.encode() for part in scope)).hexdigest()
    return Request(key=join("k", key[:40]), digest=hashlib.sha256(body).hexdigest())


def marker_put(
    request: Request,
    *,
    now: float,
    created: bool = False,
    answer: str = "null",
    expires_at: int | None = None,
) -> Put:
    """The op that goes beside the effect. It conflicts where the request was answered before."""
    marker = Marker(
        request=request.digest, created=created, answer=msgspec.Raw(answer.encode()), expires_at=expires_at
    )
    return Put(request.key, _CODEC.encode(marker), ABSENT, expires_at=int(now) + KEPT_S)


def first_answer(doc: Doc, request: Request) -> Marker:
    """The marker at the request's key. Raises IdempotencyKeyReused where another request made it."""
    marker = _CODEC.decode(doc.body)
    if marker.request != request.digest:
        raise IdempotencyKeyReused(
            "this Idempotency-Key was used with another request", field="Idempotency-Key"
        )
    return marker
