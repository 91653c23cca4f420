"""What one place holds of a user, and how that goes.

Owns the rules, one document or event at a time:

- a document whose key says that it is the user's alone is removed: a note, an entry of session or agent
  memory, a session and all that belongs to it, a count of tokens, a row of a table that is called by the
  user's id, a posting of an index that lists the user's events;
- in every other record the user's id gives way to `ERASED` where a member of the record's own names a person
  (`user_id`, `created_by` and the like), and what the user wrote there in their own words is emptied
  (`_OWN_WORDS`); what a record holds for its tenant (values, contents, blobs) is not looked into;
- a room holds all its members: the user's membership is taken out of it, and those of others stay;
- an event that the user appended is redacted, and so is one of the server's that says what they asked for, or
  into which room they were let: its place and digest stay, so the log still verifies;
- a message that waits to become such an event is left, and counted: it is redacted once it was delivered.

A record that does not name the user keeps its bytes and its version. Leaves which places there are, in which
order and how far it is to `routing/erasures.py`, and who may ask to `control/subjects.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from engines import catalogue
from engines.clock import Clock
from engines.codec import decode_json, encode_json
from engines.core.documents import Documents
from engines.core.index import index_partitions
from engines.core.keys import SEPARATOR
from engines.core.place import Place, Places
from engines.core.transfer import EVERYTHING_ABOVE, EVERYTHING_BELOW, batches, stream_names
from engines.errors import Conflict, Corrupt, Unavailable
from engines.ids import Ids
from engines.ports.documents import Delete, Doc, Match, Op, Put
from engines.scope import RequestContext
from engines.stores.budget_records import HEAD, HEAD_KEY, POLICY_KEY
from engines.stores.open_logs import OpenLogs

# Stands where an id stood; no user can be called so.
ERASED: Final = "(erased)"
PAGE_DOCS: Final = 500
PAGE_EVENTS: Final = 1_000
# A page of a log ends with so many, since each may be a commit of its own; and so many are one change.
REDACTIONS_MAX: Final = 200
REDACTIONS_AT_ONCE: Final = 20
WRITE_OPS: Final = 50
WRITE_BYTES: Final = 512 * 1024

# Members of a record's own that name a person, or several.
_PEOPLE: Final = frozenset(
    {
        "user_id",
        "created_by",
        "updated_by",
        "requested_by",
        "key_made_by",
        "answered_by",
        "proposed_by",
        "decided_by",
        "reviewers",
    }
)
# Where a record's own members stand: in it, and in these members of it.
_OWN_PARTS: Final = ("record", "answer", "state", "review")
# Which parts of a key say whose a document is, by the key's first part.
_OWNERS: Final[Mapping[str, Mapping[str, slice]]] = {
    catalogue.NOTES: {"n": slice(1, 2)},
    catalogue.SESSION_MEMORY: {"s": slice(1, 2)},
    catalogue.TABLES: {"t": slice(2, 4)},
    catalogue.SESSIONS: {"s": slice(1, 2), "h": slice(1, 2), "i": slice(1, 2)},
    catalogue.CHECKPOINTS: {"h": slice(1, 2), "i": slice(1, 2)},
    catalogue.TRACES: {"h": slice(1, 2), "i": slice(1, 2)},
    catalogue.AGENT_MEMORY: {"a": slice(1, 2)},
    catalogue.TELEMETRY: {"c": slice(1, 2)},
}
# What another user keeps in these is theirs alone, and says what their agent wants it to: a state may hold
# members that are called as a record's own are.
_PRIVATE: Final = frozenset(
    {
        catalogue.SESSIONS,
        catalogue.CHECKPOINTS,
        catalogue.TRACES,
        catalogue.AGENT_MEMORY,
        catalogue.TELEMETRY,
    }
)
# What is emptied where a member of the same object names the user as its author.
_OWN_WORDS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    catalogue.BLACKBOARD: {"user_id": {"value": None}},
    catalogue.BUDGET: {"user_id": {"note": ERASED}},
    catalogue.FIREARMS: {
        "requested_by": {"subject": ERASED, "reason": ERASED, "context": {}},
        "answered_by": {"note": ERASED},
    },
    catalogue.STRATEGY_LOCKS: {
        "decided_by": {"note": ERASED},
        "reviewers": {"note": ERASED},
    },
}
# Whom an audit event is about, where that is not who made the change.
_ABOUT: Final = ("requested_by", "member_id")
# A grant is about a user, and says so in its blob.
_GRANTS: Final = "d!firearms-grants!", "v!d!firearms-grants!"
_ROOM: Final = "r!"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One partition of documents, or one log. `name` tells it from every other of the tenant, also later."""

    kind: str
    what: Literal["documents", "log"]
    target: str
    place: str

    @property
    def name(self) -> str:
        """In the order in which they are taken: what waits in a document may become an event meanwhile, and
        is met as the one or the other where documents come first."""
        return f"{'2' if self.what == 'log' else '1'} {self.place} {self.target}"


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What one page of a step came to. `after`: where the next begins; None where the step is done.

    `waiting`: what cannot go yet, because it was changed meanwhile or has to be delivered first.
    """

    after: str | None = None
    removed: int = 0
    rewritten: int = 0
    redacted: int = 0
    waiting: int = 0


class Erasing:
    """The rules, carried out on one place. Nothing here asks for a permission."""

    def __init__(self, places: Places, ids: Ids, clock: Clock) -> None:
        self._places = places
        self._logs = OpenLogs(ids, clock)

    async def close(self) -> None:
        await self._logs.close()

    async def steps(self, context: RequestContext, kind: str) -> list[Step]:
        """What there is to look through at the context's place of the kind."""
        place = await self._places.place(kind, context)
        partitions = list(await place.partitions())
        streams: list[str] = []
        known = catalogue.kind_named(kind)
        if known.family == "log" or known.has_streams:
            for partition in partitions:
                streams += await stream_names(place.documents, partition)
        if kind == catalogue.EVENT_SPINE:
            for stream in streams:
                partitions += await index_partitions(await place.chain(stream))
        named = name_of(place)
        return [
            *(Step(kind=kind, what="log", target=stream, place=named) for stream in streams),
            *(Step(kind=kind, what="documents", target=partition, place=named) for partition in partitions),
        ]

    async def take(self, context: RequestContext, step: Step, after: str | None, user_id: str) -> Taken:
        """Erase one page of a step. Repeating it finds what is left.

        Raises Unavailable (the kind went elsewhere), and what reading and writing raise.
        """
        if step.what == "log":
            return await self._take_events(context, step, after, user_id)
        return await self._take_documents(context, step, after, user_id)

    async def _take_documents(
        self, context: RequestContext, step: Step, after: str | None, user_id: str
    ) -> Taken:
        place = await self._places.place(step.kind, context)
        _check_same(place, step)
        page = await place.documents.scan(
            step.target, above=after or EVERYTHING_ABOVE, below=EVERYTHING_BELOW, limit=PAGE_DOCS
        )
        waiting = sum(_is_message_by(doc, user_id) for doc in page.docs)
        docs = (doc for doc in page.docs if not _is_kept_for_itself(doc.key))
        ops = [op for doc in docs if (op := erased(step.kind, doc, user_id)) is not None]
        removed = rewritten = 0
        for batch in batches(ops, ops_max=WRITE_OPS, bytes_max=WRITE_BYTES):
            try:
                async with self._changing(context, step) as place:
                    await _write(place.documents, step, batch)
            except Conflict:  # One of them was changed meanwhile: the next pass meets what it is then.
                waiting += len(batch)
            else:
                removed += sum(isinstance(op, Delete) for op in batch)
                rewritten += sum(isinstance(op, Put) for op in batch)
        return Taken(after=page.resume, removed=removed, rewritten=rewritten, waiting=waiting)

    async def _take_events(
        self, context: RequestContext, step: Step, after: str | None, user_id: str
    ) -> Taken:
        """The next page towards the log's beginning: what is appended meanwhile is the next pass's."""
        place = await self._places.place(step.kind, context)
        _check_same(place, step)
        before = None if after is None else int(after)
        async with self._logs.use(place, step.target) as log:
            batch = await log.list_before(before, limit=PAGE_EVENTS)
            found = [
                event.position
                for event in batch.events
                if event.body is not None and _is_by(event.body, user_id)
            ]
            some = found[:REDACTIONS_MAX]
            for start in range(0, len(some), REDACTIONS_AT_ONCE):
                async with self._changing(context, step):
                    await log.redact(*some[start : start + REDACTIONS_AT_ONCE])
        if len(found) > len(some):
            return Taken(after=str(some[-1]), redacted=len(some))
        is_done = batch.end or not batch.events
        return Taken(after=None if is_done else str(batch.events[-1].position), redacted=len(some))

    @contextlib.asynccontextmanager
    async def _changing(self, context: RequestContext, step: Step) -> AsyncIterator[Place]:
        """The place for one write; a move waits for it, so it is a short one."""
        async with self._places.changing(step.kind, context) as place:
            _check_same(place, step)
            yield place


def name_of(place: Place) -> str:
    """Tells a place from every other of its tenant."""
    return f"{place.kind} {place.env} {place.backend_id} {place.generation}"


def erased(kind: str, doc: Doc, user_id: str) -> Op | None:
    """What becomes of a document that has to do with the user; None where it stays as it is."""
    if _is_theirs(kind, doc.key, user_id):
        return Delete(doc.key, Match(doc.version))
    if user_id not in doc.body:
        return None
    body = decode_json(doc.body)
    is_marker = doc.key.startswith("k" + SEPARATOR)
    # Nobody is left who may repeat that request. But into a room somebody else may have let them, who may.
    if is_marker and kind != catalogue.REALTIME and _names(body.get("answer"), "user_id", user_id):
        return Delete(doc.key, Match(doc.version))
    if kind in _PRIVATE:
        return None
    without = _without(body, user_id, _OWN_WORDS.get(kind, {}))
    if doc.key.startswith(_GRANTS):
        without["record"]["json_blob"] = _without(without["record"]["json_blob"], user_id, {})
    if kind == catalogue.REALTIME and doc.key.startswith(_ROOM):
        without["seats"] = {
            name: _without(seat, user_id, {}) for name, seat in body["seats"].items() if name != user_id
        }
    if without == body:
        return None
    return Put(doc.key, encode_json(without), Match(doc.version), expires_at=doc.expires_at)


async def _write(documents: Documents, step: Step, batch: Sequence[Op]) -> None:
    """A budget's head names the version of its policy, so the two are written together."""
    ops, write_id = list(batch), documents.new_write_id()
    if step.kind == catalogue.BUDGET and any(op.key == POLICY_KEY for op in batch):
        doc = await documents.get(step.target, HEAD_KEY)
        if doc is None:
            raise Corrupt("a budget has a policy and no head")
        head = HEAD.decode(doc.body)
        head.policy = write_id
        ops.append(Put(HEAD_KEY, HEAD.encode(head), Match(doc.version)))
    await documents.write(step.target, ops, write_id=write_id)


def _check_same(place: Place, step: Step) -> None:
    if name_of(place) != step.place:
        raise Unavailable("the kind went to another place meanwhile", retry_after_s=1.0)


def _is_theirs(kind: str, key: str, user_id: str) -> bool:
    if user_id not in key:
        return False
    letter, *_ = parts = key.split(SEPARATOR)
    if letter == "x":  # A posting: x!…!{view}!{value}!{block}.
        return parts[-3:-1] == ["user_id", user_id]
    owners = _OWNERS.get(kind, {}).get(letter)
    return owners is not None and user_id in parts[owners]


def _is_kept_for_itself(key: str) -> bool:
    """Journals of moves, and messages: their readers need them as they are."""
    return key.startswith(("j" + SEPARATOR, "o" + SEPARATOR))


def _is_message_by(doc: Doc, user_id: str) -> bool:
    return doc.key.startswith("o" + SEPARATOR) and _is_by(doc.body, user_id)


def _is_by(body: str, user_id: str) -> bool:
    """Whether the user appended an event, or the server says in it what they asked for."""
    if user_id not in body:
        return False
    event = decode_json(body)
    if _names(event, "user_id", user_id):
        return True
    if event.get("event_type") != "audit":
        return False
    return any(_names(event.get("payload"), member, user_id) for member in _ABOUT)


def _names(value: Any, member: str, user_id: str) -> bool:
    """Whether a record, or the one that it wraps, has the user at `member`."""
    if not isinstance(value, dict):
        return False
    return value.get(member) == user_id or _names(value.get("record"), member, user_id)


def _without(value: Any, user_id: str, own_words: Mapping[str, Mapping[str, Any]]) -> Any:
    """A record without the user."""
    if not isinstance(value, dict):
        return value
    emptied: dict[str, Any] = {}
    for member, words in own_words.items():
        if value.get(member) == user_id or user_id in _listed(value.get(member)):
            emptied.update((name, empty) for name, empty in words.items() if name in value)
    without: dict[str, Any] = {}
    for name, item in value.items():
        if name in emptied:
            without[name] = emptied[name]
        elif name in _PEOPLE:
            without[name] = _unnamed(item, user_id)
        else:
            without[name] = _without(item, user_id, own_words) if name in _OWN_PARTS else item
    return without


def _listed(item: Any) -> list[Any]:
    return item if isinstance(item, list) else []


def _unnamed(item: Any, user_id: str) -> Any:
    if isinstance(item, list):
        return [ERASED if each == user_id else each for each in item]
    return ERASED if item == user_id else item
