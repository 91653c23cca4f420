"""Sequences: the records of one sort that a session has, numbered from 1 without a gap.

Owns their keys, the numbers, how many are kept and how all of them go. A head `h!{user}!{session}` says how
many there are; each record is a document of its own, `i!{user}!{session}!{number}`, in the head's
partition, which is the user's. One write makes the record and the head that counts it, under the condition
that the head is as it was read; so of two that append at once one gets the number, and the other reads the
head again.

A head can be closed: from then on nothing is appended, also not by who looked before. Leaves what a record
says to its store, and whether there is such a session to `agent/sessions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from engines.codec import Codec, escaped_bytes
from engines.core.documents import Documents
from engines.core.idempotency import Request, first_answer, marker_put
from engines.core.keys import record_key, within
from engines.core.place import Places
from engines.core.records import RACES_MAX, RECORD_BYTES_MAX, Written
from engines.errors import Conflict, EnginesError, NotFound, TooLarge
from engines.ports.documents import ABSENT, ALWAYS, OPS_MAX, Absent, Delete, Doc, Match, Op, Put
from engines.scope import RequestContext

# A closed head outlasts every request that looked for the session before: none takes minutes.
CLOSED_S: Final = 3_600
# How many one write removes, beside one that it adds, where fewer are kept than there were.
PRUNED_MAX: Final = 16
# Of one write: while its tenant is moved, that has room for one op less.
REMOVED_MAX: Final = OPS_MAX - 1
_DIGITS: Final = 10

# `filling`: records are copied into it, and nobody else may append yet.
State = Literal["open", "filling", "closed"]


class Head(msgspec.Struct, frozen=True, tag_field="schema", tag="sequence/1", omit_defaults=True):
    """How many records were ever appended, in how many bytes of text, and the number of the oldest kept."""

    count: int = 0
    size: int = 0
    oldest: int = 1
    state: State = "open"


class _Made(msgspec.Struct, frozen=True, tag_field="schema", tag="made/1"):
    """What a request made, as its marker has it: `number` of the user's session that the request names."""

    user_id: str
    number: int


HEAD: Final = Codec(Head)
_MADE: Final = Codec(_Made)


class Address(msgspec.Struct, frozen=True):
    """Whose sequence it is, and of which session."""

    user_id: str
    session_id: str

    @property
    def head(self) -> str:
        """The document key of the head."""
        return record_key("h", self.user_id, self.session_id)

    @property
    def prefix(self) -> tuple[str, ...]:
        """The parts with which the keys of all records begin."""
        return ("i", self.user_id, self.session_id)

    def item(self, number: int) -> str:
        """The document key of one record."""
        return record_key(*self.prefix, f"{number:0{_DIGITS}d}")


def address(context: RequestContext, session_id: str) -> Address:
    return Address(context.user_id, session_id)


def item_id(session_id: str, number: int) -> str:
    """By what a client calls a record: one read finds it, whatever session it is of."""
    return f"{session_id}.{number}"


def parts_of(text: str) -> tuple[str, int] | None:
    """The session and the number behind an `item_id`; None where it cannot be one."""
    session_id, _, digits = text.rpartition(".")
    if not session_id or not digits.isascii() or not digits.isdigit() or len(digits) > _DIGITS:
        return None
    number = int(digits)
    return (session_id, number) if item_id(session_id, number) == text and number > 0 else None


class Rules(msgspec.Struct, frozen=True):
    """How a sequence grows. `noun`: what it is of, in sentences.

    Past `kept` the oldest go; behind `count_max` records, or `bytes_max` of text, nothing is appended.
    `begins`: the first record makes the head.
    """

    noun: str
    kept: int | None = None
    count_max: int | None = None
    bytes_max: int | None = None
    begins: bool = False


async def append(
    documents: Documents,
    partition: str,
    at: Address,
    build: Callable[[int], str],
    *,
    rules: Rules,
    request: Request | None,
) -> Written:
    """Append the record that `build` makes for the number it gets; anew for each lost race.

    Raises NotFound (a session that is not there, or goes), Conflict (it is full, or is being copied, or
    others appended too often meanwhile), TooLarge, IdempotencyKeyReused.
    """
    keys = [at.head] if request is None else [at.head, request.key]
    lost: Conflict | None = None
    for _ in range(RACES_MAX):
        found = await documents.get_many(partition, keys)
        if request is not None and request.key in found:
            return await _replayed(documents, partition, at, found[request.key], request)
        doc = found.get(at.head)
        try:
            head = _open_head(doc, rules)
        except EnginesError as refusal:
            return await _replayed_or_raise(refusal, documents, partition, at, request)
        number = head.count + 1
        body = checked(build(number))
        grown, pruned = _grown(at, head, len(body), rules.kept)
        ops = [_head_put(at, doc, grown), Put(at.item(number), body, ABSENT), *pruned]
        if request is not None:
            made = _MADE.encode(_Made(at.user_id, number))
            ops.append(marker_put(request, now=documents.now(), created=True, answer=made))
        try:
            version = await documents.write(partition, ops)
        except Conflict as conflict:
            lost = conflict
        else:
            return Written(Doc(at.item(number), body, version, None), created=True)
    assert lost is not None
    raise lost


async def _replayed(
    documents: Documents, partition: str, at: Address, marker: Doc, request: Request
) -> Written:
    """What the first request was answered; its marker names the record, which never changes.

    So what was said stands once, and goes with its session. Raises IdempotencyKeyReused, NotFound.
    """
    made = _MADE.decode(bytes(first_answer(marker, request).answer).decode())
    doc = await documents.get(partition, at.item(made.number))
    if doc is None:
        raise NotFound("what this request made is not kept any more")
    return Written(doc, created=True, replayed=True)


async def _replayed_or_raise(
    refusal: EnginesError, documents: Documents, partition: str, at: Address, request: Request | None
) -> Written:
    """As `core.records.replayed_or_raise`: the first request may have landed between two reads."""
    marker = None if request is None else await documents.get(partition, request.key)
    if request is None or marker is None:
        raise refusal
    return await _replayed(documents, partition, at, marker, request)


async def head_of(documents: Documents, partition: str, at: Address) -> tuple[Doc | None, Head]:
    """The head as it stands; an empty one where there is none."""
    doc = await documents.get(partition, at.head)
    return doc, Head() if doc is None else HEAD.decode(doc.body)


async def fill(
    documents: Documents, partition: str, at: Address, doc: Doc, head: Head, bodies: Sequence[str]
) -> None:
    """Add copies behind a head that is being filled. Raises Conflict where it is not as it was read."""
    assert head.state == "filling"
    items = [Put(at.item(head.count + n), body, ABSENT) for n, body in enumerate(bodies, start=1)]
    size = head.size + sum(map(len, bodies))
    filled = msgspec.structs.replace(head, count=head.count + len(bodies), size=size)
    await documents.write(partition, [_head_put(at, doc, filled), *items])


async def close(documents: Documents, partition: str, at: Address) -> None:
    """Nothing is appended from now on. What is closed already stays closed for as long again."""
    lost: Conflict | None = None
    for _ in range(RACES_MAX):
        doc, head = await head_of(documents, partition, at)
        body = HEAD.encode(msgspec.structs.replace(head, state="closed"))
        until_s = int(documents.now()) + CLOSED_S
        try:
            await documents.write(partition, [Put(at.head, body, _standing(doc), expires_at=until_s)])
        except Conflict as conflict:
            lost = conflict
        else:
            return
    assert lost is not None
    raise lost


async def remove(places: Places, kind: str, context: RequestContext, at: Address) -> None:
    """Remove all records of a closed sequence, some at a time; a repeat goes on where this one ended."""
    above, below = within(*at.prefix)
    while True:
        async with places.changing(kind, context) as place:
            partition = await place.partition(at.user_id)
            page = await place.documents.scan(partition, above=above, below=below, limit=REMOVED_MAX)
            if page.docs:
                await place.documents.write(partition, [Delete(doc.key, ALWAYS) for doc in page.docs])
        if page.resume is None:
            return
        above = page.resume


def checked(body: str) -> str:
    """The text of a record that is not too long. Raises TooLarge."""
    if escaped_bytes(body) > RECORD_BYTES_MAX:
        raise TooLarge(
            f"a record holds at most {RECORD_BYTES_MAX} bytes, with quotes and backslashes counted twice"
        )
    return body


def no_such_session() -> NotFound:
    return NotFound("there is no such session")


def still_copied() -> Conflict:
    return Conflict("this session is still being copied; repeat the fork to finish it")


def _open_head(doc: Doc | None, rules: Rules) -> Head:
    """The head behind which may be appended. Raises NotFound, Conflict."""
    if doc is None:
        if rules.begins:
            return Head()
        raise no_such_session()
    head = HEAD.decode(doc.body)
    if head.state == "closed":
        raise no_such_session()
    if head.state == "filling":
        raise still_copied()
    if rules.count_max is not None and head.count >= rules.count_max:
        raise Conflict(f"a session holds at most {rules.count_max} {rules.noun}; begin another one")
    if rules.bytes_max is not None and head.size >= rules.bytes_max:
        raise Conflict(f"a session's {rules.noun} take {rules.bytes_max} bytes at most; begin another one")
    return head


def _grown(at: Address, head: Head, size: int, kept: int | None) -> tuple[Head, list[Op]]:
    """The head behind one more record, and the removal of the oldest where that is one too many."""
    count, oldest = head.count + 1, head.oldest
    if kept is not None:
        oldest = max(oldest, min(count - kept + 1, oldest + PRUNED_MAX))
    pruned: list[Op] = [Delete(at.item(number), ALWAYS) for number in range(head.oldest, oldest)]
    return msgspec.structs.replace(head, count=count, size=head.size + size, oldest=oldest), pruned


def _head_put(at: Address, doc: Doc | None, head: Head) -> Op:
    return Put(at.head, HEAD.encode(head), _standing(doc))


def _standing(doc: Doc | None) -> Absent | Match:
    return ABSENT if doc is None else Match(doc.version)
