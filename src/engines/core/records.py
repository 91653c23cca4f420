"""Records: one document each, with an ETag, conditions and idempotency.

Owns what PUT, POST and DELETE mean for a single record whatever its store: who wins when two write at
once, which condition failed, what a repeated request gets. Leaves the record's contents and key to its store.

Every change is a conditional write of what was read. A caller's own condition is judged against what was
read; a race that the caller did not ask about is read again and repeated, so the last writer wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from engines.codec import escaped_bytes
from engines.core.documents import Documents
from engines.core.idempotency import Request, first_answer, marker_put
from engines.errors import (
    Conflict,
    EnginesError,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    TooLarge,
)
from engines.ports.documents import ABSENT, Delete, Doc, Match, Op, Put

# A head, its immutable version and the idempotency marker each hold the record, in one write of 1 MiB.
RECORD_BYTES_MAX: Final = 256 * 1024
# Each lost race means that another writer won; this many in a row is contention to be told of.
RACES_MAX: Final = 32


class Condition(msgspec.Struct, frozen=True):
    """What a caller expects to replace. `versions` is If-Match (`"*"` for any); `absent` If-None-Match: *."""

    versions: tuple[str, ...] = ()
    absent: bool = False

    def check(self, doc: Doc | None) -> None:
        """Raises PreconditionFailed."""
        if self.absent and doc is not None:
            raise PreconditionFailed("the record exists", field="If-None-Match")
        if self.versions and (doc is None or not {doc.version, "*"} & set(self.versions)):
            raise PreconditionFailed("the record is not at this version", field="If-Match")

    def required(self) -> Condition:
        """Raises PreconditionRequired where nothing is expected."""
        if not self.versions and not self.absent:
            raise PreconditionRequired("say If-Match with the record's ETag, or If-None-Match: * to create")
        return self


ANYTHING: Final = Condition()


class Draft(msgspec.Struct, frozen=True):
    """A record about to be written, and the documents that must be written with it or not at all."""

    body: str
    expires_at: int | None = None
    also: Sequence[Op] = ()


class Written(msgspec.Struct, frozen=True):
    """A record as a write left it; its version is the ETag. `replayed`: an identical request made it."""

    doc: Doc
    created: bool
    replayed: bool = False


async def create(
    documents: Documents, partition: str, key: str, draft: Draft, *, request: Request | None = None
) -> Written:
    """Write a record whose key is new. One round trip, or one more under an Idempotency-Key.

    Raises Conflict where the key is taken, TooLarge, IdempotencyKeyReused.
    """
    if request is not None:
        doc = await documents.get(partition, request.key)
        if doc is not None:
            return replayed(key, doc, request)
    try:
        return await write(documents, partition, key, draft, replaced=None, created=True, request=request)
    except Conflict:
        doc = None if request is None else await documents.get(partition, request.key)
        if request is None or doc is None:
            raise
        return replayed(key, doc, request)


async def replace(
    documents: Documents,
    partition: str,
    key: str,
    build: Callable[[Doc | None], Draft],
    *,
    condition: Condition = ANYTHING,
    request: Request | None = None,
    is_live: Callable[[Doc], bool] | None = None,
) -> Written:
    """Create or replace. `build` makes the record from the one that stands, anew for each lost race.

    `is_live` is for stores whose records lapse between the whole seconds of the waist: where it says no,
    nothing stands. Raises what `build` raises, PreconditionFailed, TooLarge, IdempotencyKeyReused, and
    Conflict after `RACES_MAX` lost races.
    """
    lost: Conflict | None = None
    for _ in range(RACES_MAX):
        doc, marker_doc = await _read(documents, partition, key, request)
        if request is not None and marker_doc is not None:
            return replayed(key, marker_doc, request)
        standing = _if_live(doc, is_live)
        try:
            condition.check(standing)
            draft = build(standing)
        except EnginesError as refusal:
            return await replayed_or_raise(refusal, documents, partition, key, request)
        created = standing is None
        try:
            return await write(
                documents, partition, key, draft, replaced=doc, created=created, request=request
            )
        except Conflict as conflict:
            lost = conflict
    assert lost is not None
    raise lost


async def remove(
    documents: Documents,
    partition: str,
    key: str,
    *,
    condition: Condition = ANYTHING,
    request: Request | None = None,
    also: Callable[[Doc], Sequence[Op]] | None = None,
    is_live: Callable[[Doc], bool] | None = None,
) -> bool:
    """Delete a record; True where a repeated request finds that its first did.

    Raises NotFound, PreconditionFailed (also for a missing record under If-Match), IdempotencyKeyReused,
    Conflict after `RACES_MAX` lost races.
    """
    lost: Conflict | None = None
    for _ in range(RACES_MAX):
        doc, marker_doc = await _read(documents, partition, key, request)
        if request is not None and marker_doc is not None:
            first_answer(marker_doc, request)
            return True
        doc = _if_live(doc, is_live)
        try:
            condition.check(doc)
            if doc is None:
                raise NotFound("there is no such record")
        except EnginesError as refusal:
            return (await replayed_or_raise(refusal, documents, partition, key, request)).replayed
        ops: list[Op] = [Delete(key, Match(doc.version)), *(also(doc) if also else ())]
        if request is not None:
            ops.append(marker_put(request, now=documents.now()))
        try:
            await documents.write(partition, ops)
        except Conflict as conflict:
            lost = conflict
        else:
            return False
    assert lost is not None
    raise lost


def too_large() -> TooLarge:
    return TooLarge(
        f"a record holds at most {RECORD_BYTES_MAX} bytes, with quotes and backslashes counted twice"
    )


def etag(doc: Doc) -> str:
    """The header's value, quotes included."""
    return f'"{doc.version}"'


async def _read(
    documents: Documents, partition: str, key: str, request: Request | None
) -> tuple[Doc | None, Doc | None]:
    keys = (key,) if request is None else (key, request.key)
    found = await documents.get_many(partition, keys)
    return found.get(key), found.get(keys[-1]) if request is not None else None


def _if_live(doc: Doc | None, is_live: Callable[[Doc], bool] | None) -> Doc | None:
    return doc if doc is None or is_live is None or is_live(doc) else None


async def write(
    documents: Documents,
    partition: str,
    key: str,
    draft: Draft,
    *,
    replaced: Doc | None,
    created: bool,
    request: Request | None,
) -> Written:
    """One attempt over `replaced`, with the marker of the request beside it. Raises Conflict, TooLarge."""
    if escaped_bytes(draft.body) > RECORD_BYTES_MAX:
        raise too_large()
    when = ABSENT if replaced is None else Match(replaced.version)
    ops: list[Op] = [Put(key, draft.body, when, expires_at=draft.expires_at), *draft.also]
    if request is not None:
        now = documents.now()
        ops.append(
            marker_put(request, now=now, created=created, answer=draft.body, expires_at=draft.expires_at)
        )
    version = await documents.write(partition, ops)
    return Written(Doc(key, draft.body, version, draft.expires_at), created)


def replayed(key: str, doc: Doc, request: Request) -> Written:
    """The first answer, from the marker that stands at the request's key. Raises IdempotencyKeyReused."""
    marker = first_answer(doc, request)
    record = Doc(key, bytes(marker.answer).decode(), doc.version, marker.expires_at)
    return Written(record, marker.created, replayed=True)


async def replayed_or_raise(
    refusal: EnginesError, documents: Documents, partition: str, key: str, request: Request | None
) -> Written:
    """The first answer where the marker stands by now, else `refusal`: for whatever looked for it before.

    What is read one after the other is not of one moment, nor need what a driver reads of several keys be.
    So a request that is landing may have shown what it did, which refuses its own repeat, and not yet its
    marker. One write made both: whoever saw the one finds the other now. Raises IdempotencyKeyReused too.
    """
    doc = None if request is None else await documents.get(partition, request.key)
    if request is None or doc is None:
        raise refusal
    return replayed(key, doc, request)
