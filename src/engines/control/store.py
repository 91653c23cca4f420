"""Control-plane storage: versioned, audited records in one partition, and the feed of their changes.

Owns how one change is written: in one atomic write stand the record's new head, its immutable version, its
index entries, the next entry of the change feed, one outbox message for each tenant concerned and the
idempotency marker. Feed entries form a chain (each is created under Absent at the next number), so a
follower that has seen number n has missed nothing before it.

Everything stands in one partition because uniqueness (an identity, an alias), the feed and a route's checks
span records. That bounds a control plane to one logical partition of its backend: 20 GB on Cosmos, some
five million tenants, and about a hundred changes a second. In which order changes are made
`control/turns.py` says. Leaves rules and permissions to the services.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from engines.catalogue import CONTROL_PLANE
from engines.clock import timestamp
from engines.codec import Codec, decode_json, encode_json
from engines.control.change_feed import feed_key, feed_number, feed_ops, touched_keys
from engines.control.turns import Turns
from engines.core.documents import Documents
from engines.core.idempotency import Request, marker_put
from engines.core.keys import join, partition, record_key, within
from engines.core.listing import LOOKED_AT_MAX, SCANS_MAX
from engines.core.outbox import SALT_CHARS, Backlog, outbox_put
from engines.core.records import ANYTHING, Condition, Written, replayed, replayed_or_raise
from engines.core.versioned import oldest_after, version_ops
from engines.errors import Conflict, Corrupt, EnginesError, NotFound, PreconditionFailed, Throttled
from engines.ports.documents import ABSENT, ALWAYS, SCAN_LIMIT_MAX, Delete, Doc, Match, Op, Put
from engines.scope import SYSTEM_TENANT

PARTITION: Final = partition(CONTROL_PLANE, SYSTEM_TENANT, "global", 0)
VERSIONS_KEPT: Final = 1_000
# A change is repeated when another process took its number in the feed, or its record.
RACES_MAX: Final = 64
RACES_RETRY_S: Final = 1.0

T = TypeVar("T", bound=msgspec.Struct)


class Envelope(msgspec.Struct, frozen=True, tag_field="schema", tag="control/1", omit_defaults=True):
    """A record as stored, in its head and in each version. A deleted record keeps its head, so that its
    version numbers go on and a default that was deleted is not seeded again."""

    version: int
    oldest: int
    created_at: str
    updated_at: str
    updated_by: str
    record: msgspec.Raw
    deleted: bool = False


class Stored(msgspec.Struct, Generic[T], frozen=True):
    """A record with its bookkeeping."""

    record: T
    version: int
    etag: str
    created_at: str
    updated_at: str
    updated_by: str
    created: bool = False
    replayed: bool = False
    deleted: bool = False


class Actor(msgspec.Struct, frozen=True):
    """Who changes something, for the audit. `tenants`: whose spines are told; `about`: what no id says."""

    user_id: str
    tenant_id: str
    request_id: str
    tenants: tuple[str, ...]
    about: Mapping[str, str] | None = None


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """One page; `after` is the key part to go on from."""

    items: tuple[Stored[T], ...]
    after: str | None


class Table(Generic[T]):
    """One kind of record. `indexes` gives the further keys that lead to it: unique, or made so by its id."""

    def __init__(
        self, name: str, type_: type[T], *, indexes: Callable[[T], Mapping[str, str]] | None = None
    ) -> None:
        self.name = name
        self.type = type_
        self.indexes: Callable[[T], Mapping[str, str]] = indexes or (lambda _: {})
        self._decoder = msgspec.json.Decoder(type_)

    def key(self, *ids: str) -> str:
        return record_key("r", self.name, *ids)

    def prefix(self, *ids: str) -> tuple[str, ...]:
        return ("r", self.name, *ids)

    def decode(self, raw: msgspec.Raw) -> T:
        try:
            return self._decoder.decode(raw)
        except (msgspec.DecodeError, ValueError) as error:
            raise Corrupt(f"a stored record of {self.name} does not decode") from error


_ENVELOPES: Final = Codec(Envelope)


class _Change(msgspec.Struct, Generic[T], frozen=True):
    """One change as it was asked for; each attempt at it begins anew."""

    table: Table[T]
    key: str
    build: Callable[[T | None], Awaitable[T]]
    actor: Actor
    condition: Condition
    request: Request | None
    deleting: bool = False


class ControlStore:
    """Reads and changes control-plane records. Knows nothing of who may."""

    def __init__(self, documents: Documents, backlog: Backlog) -> None:
        self.documents = documents
        self._backlog = backlog
        self._turns = Turns()
        self._tail = 0
        self.on_change: Callable[[], Awaitable[None]] = self.advance
        """Awaited after each change of this process, so that directory and relay look at once. It must not
        raise: the change has been made."""

    # --- reading ---

    async def read(self, table: Table[T], *ids: str) -> Stored[T] | None:
        """The live record, straight from the store."""
        doc = await self.documents.get(PARTITION, table.key(*ids))
        stored = None if doc is None else _open(table, doc)
        return None if stored is None or stored.deleted else stored

    async def read_many(self, table: Table[T], wanted: Sequence[tuple[str, ...]]) -> list[Stored[T] | None]:
        """The live records with these ids, at most `GET_KEYS_MAX` distinct ones, in one read."""
        keys = [table.key(*ids) for ids in wanted]
        docs = await self.documents.get_many(PARTITION, keys)
        found = [_open(table, docs[key]) if key in docs else None for key in keys]
        return [None if stored is None or stored.deleted else stored for stored in found]

    async def get(self, table: Table[T], *ids: str) -> Stored[T]:
        """The same; raises NotFound."""
        stored = await self.read(table, *ids)
        if stored is None:
            raise NotFound("there is no such record")
        return stored

    async def page(
        self, table: Table[T], *ids: str, after: str | None = None, limit: int = 100, descending: bool = False
    ) -> Listing[T]:
        """Live records below `ids`, by key. `after` is an earlier listing's.

        Deleted records keep their heads, so a page may be short, or empty, and have `after`: it ends where
        so many documents were looked at as a page of any list looks at.
        """
        prefix = table.prefix(*ids)
        above, below = within(*prefix)
        if after is not None:
            above, below = (above, join(*prefix, after)) if descending else (join(*prefix, after), below)
        items: list[Stored[T]] = []
        last_key = ""
        looked_at = 0
        wanted = min(SCAN_LIMIT_MAX, limit + 1)
        for _ in range(SCANS_MAX):
            page = await self.documents.scan(
                PARTITION, above=above, below=below, limit=wanted, reverse=descending
            )
            for doc in page.docs:
                stored = _open(table, doc)
                if not stored.deleted:
                    if len(items) == limit:
                        return Listing(tuple(items), _tail_of(last_key, prefix))
                    items.append(stored)
                    last_key = doc.key
            if page.resume is None:
                return Listing(tuple(items), None)
            looked_at += len(page.docs)
            above, below = (above, page.resume) if descending else (page.resume, below)
            if looked_at >= LOOKED_AT_MAX:
                break
            wanted = SCAN_LIMIT_MAX  # Many were deleted.
        return Listing(tuple(items), _tail_of(below if descending else above, prefix))

    async def resolve_index(self, key: str) -> Any:
        """What an index entry holds, or None."""
        doc = await self.documents.get(PARTITION, key)
        return None if doc is None else decode_json(doc.body)

    async def scan_index(
        self, *prefix: str, after: str | None = None, limit: int = 1000, descending: bool = False
    ) -> list[str]:
        """The last parts of the index keys below `prefix`."""
        entries, _ = await self.page_of_index(*prefix, after=after, limit=limit, descending=descending)
        return [name for name, _ in entries]

    async def page_of_index(
        self, *prefix: str, after: str | None = None, limit: int = 1000, descending: bool = False
    ) -> tuple[list[tuple[str, Any]], str | None]:
        """The last parts of the index keys below `prefix` with what they hold, and the `after` of more."""
        above, below = within(*prefix)
        if after is not None:
            above, below = (above, join(*prefix, after)) if descending else (join(*prefix, after), below)
        page = await self.documents.scan(
            PARTITION, above=above, below=below, limit=min(limit, SCAN_LIMIT_MAX), reverse=descending
        )
        entries = [(_tail_of(doc.key, prefix), decode_json(doc.body)) for doc in page.docs]
        return entries, None if page.resume is None else _tail_of(page.resume, prefix)

    async def versions(
        self, table: Table[T], *ids: str, after: str | None = None, limit: int = 100, descending: bool = False
    ) -> Listing[T]:
        """Every version kept, deletions included, in order."""
        prefix = ("v", table.key(*ids))
        above, below = within(*prefix)
        if after is not None:
            above, below = (above, join(*prefix, after)) if descending else (join(*prefix, after), below)
        page = await self.documents.scan(PARTITION, above=above, below=below, limit=limit, reverse=descending)
        items = tuple(_open(table, doc) for doc in page.docs)
        return Listing(items, None if page.resume is None else _tail_of(page.resume, prefix))

    # --- changing ---

    async def put(
        self,
        table: Table[T],
        ids: Sequence[str],
        build: Callable[[T | None], Awaitable[T]],
        *,
        actor: Actor,
        condition: Condition = ANYTHING,
        request: Request | None = None,
        mends: bool = False,
    ) -> Stored[T]:
        """Create or replace. `build` is given the live record and may refuse; a lost race calls it anew.

        Where `build` gives back the very record that it was given nothing is written, and the record is
        answered as it stands. `build` itself changes nothing here: it is called within this change's turn.

        `mends`: the audit may be waiting for this very change, so a full backlog does not hold it up, nor
        do its tenant's other changes.

        What `build` reads of other records holds when the change is written: any change in between takes the
        next number of the feed, and the race is lost.

        Raises what `build` raises, PreconditionFailed, Conflict (an index entry is another record's),
        Throttled (the audit backlog is full, too many of the tenant's changes wait, or other processes took
        every turn; nothing was written), IdempotencyKeyReused.
        """
        change = _Change(table, table.key(*ids), build, actor, condition, request)
        return await self._change(change, mends=mends)

    async def seed(self, table: Table[T], ids: Sequence[str], record: T, *, actor: Actor) -> None:
        """Create a record that never existed; one that was changed or deleted since stays so."""

        async def build(_: T | None) -> T:
            return record

        if await self.documents.get(PARTITION, table.key(*ids)) is None:
            try:
                await self.put(table, ids, build, actor=actor, condition=Condition(absent=True))
            except PreconditionFailed:  # Another process seeded it meanwhile.
                return

    async def delete(
        self,
        table: Table[T],
        ids: Sequence[str],
        *,
        actor: Actor,
        condition: Condition = ANYTHING,
        request: Request | None = None,
        check: Callable[[T], Awaitable[T | None]] | None = None,
    ) -> Stored[T]:
        """Remove; its versions stay. Raises NotFound, PreconditionFailed, and what `check` raises.

        `check` may give the record that the last version shows.
        """

        async def refuse_missing(existing: T | None) -> T:
            if existing is None:
                raise NotFound("there is no such record")
            last = None if check is None else await check(existing)
            return last or existing

        change = _Change(table, table.key(*ids), refuse_missing, actor, condition, request, deleting=True)
        return await self._change(change, mends=False)

    async def _change(self, change: _Change[T], *, mends: bool) -> Stored[T]:
        for tenant_id in change.actor.tenants:
            await self._backlog.admit(tenant_id, mends=mends)
        async with self._turns.hold((change.actor.tenant_id, mends)):
            for _ in range(RACES_MAX):
                started_s = self._turns.now()
                made = await self._attempt(change)
                if made is not None:
                    break
                await self._turns.lost(started_s)
            else:
                # No Conflict: that would say that the caller's own condition failed.
                raise Throttled(
                    "other processes took every turn to change the control plane; nothing was written",
                    retry_after_s=RACES_RETRY_S,
                )
        stored, is_written = made
        if is_written:
            await self.on_change()
        return stored

    async def _attempt(self, change: _Change[T]) -> tuple[Stored[T], bool] | None:
        """What the change came to, and whether that was written; None where another process was faster."""
        table, key, request = change.table, change.key, change.request
        # What is read from here on holds at this number: who follows the feed moves the tail meanwhile.
        tail = await self._advanced()
        keys = (key,) if request is None else (key, request.key)
        found = await self.documents.get_many(PARTITION, keys)
        if request is not None and request.key in found:
            return _replay(table, replayed(key, found[request.key], request)), False
        head = found.get(key)
        before = None if head is None else _ENVELOPES.decode(head.body)
        live = None if before is None or before.deleted else before
        existing = None if live is None else table.decode(live.record)
        try:
            change.condition.check(head if live is not None else None)
            record = await change.build(existing)
        except EnginesError as refusal:
            first = await replayed_or_raise(refusal, self.documents, PARTITION, key, request)
            return _replay(table, first), False
        if record is existing and head is not None and not change.deleting:
            return _open(table, head), False
        actor, now_s = change.actor, self.documents.now()
        envelope = _envelope(before, record, actor, timestamp(now_s), deleting=change.deleting)
        try:
            indexes = await self._index_ops(table, existing, None if change.deleting else record)
        except Conflict:
            if await self.documents.get_many(PARTITION, keys) == found:
                raise
            # Who took the name since the first read may be this same request, or this record.
            return None
        ops = [
            *_head_ops(key, head, envelope),
            *indexes,
            *feed_ops(tail + 1, [key, *(op.key for op in indexes)]),
        ]
        salt = self.documents.new_write_id()[-SALT_CHARS:]
        ops += _audit_ops(table, key, envelope, actor, existing, record, salt=salt)
        if request is not None:
            answer = _ENVELOPES.encode(envelope)
            ops.append(marker_put(request, now=now_s, created=live is None, answer=answer))
        try:
            version = await self.documents.write(PARTITION, ops)
        except Conflict:
            return None
        return _stored(table, envelope, version, created=live is None), True

    async def _index_ops(self, table: Table[T], before: T | None, after: T | None) -> list[Op]:
        """Entries in and out. Raises Conflict where an entry belongs to another record."""
        old = {} if before is None else table.indexes(before)
        new = {} if after is None else table.indexes(after)
        added = [key for key in new if key not in old]
        if added:
            taken = await self.documents.get_many(PARTITION, added)
            if taken:
                raise Conflict(f"another record of {table.name} has one of these names", keys=tuple(taken))
        return [
            *(Delete(key, ALWAYS) for key in old if key not in new),
            *(
                Put(key, encode_json(value), ABSENT if key not in old else ALWAYS)
                for key, value in new.items()
                if old.get(key) != value
            ),
        ]

    # --- the feed ---

    async def advance(self) -> None:
        """Learn the feed's tail. Cheap where nothing changed: one scan that finds nothing."""
        await self._advanced()

    async def _advanced(self) -> int:
        """The same; returns the tail."""
        tail, _ = await self.changes_after(self._tail)
        self._tail = max(self._tail, tail)
        return tail

    async def changes_after(self, number: int) -> tuple[int, Sequence[str] | None]:
        """The tail, and the keys touched since `number`; None where that is no longer known."""
        touched: list[str] = []
        above, below = within("c")
        complete = number > 0
        if number > 0:
            above = feed_key(number)
        else:
            newest = await self.documents.scan(PARTITION, above=above, below=below, limit=1, reverse=True)
            return (feed_number(newest.docs[0].key) if newest.docs else 0), None
        while True:
            page = await self.documents.scan(PARTITION, above=above, below=below)
            for doc in page.docs:
                complete = complete and feed_number(doc.key) == number + 1
                number = feed_number(doc.key)
                touched.extend(touched_keys(doc.body))
            if page.resume is None:
                return number, touched if complete else None
            above = page.resume


def _tail_of(key: str, prefix: Sequence[str]) -> str:
    return key[len(join(*prefix)) + 1 :]


def _envelope(
    before: Envelope | None, record: msgspec.Struct, actor: Actor, now: str, *, deleting: bool
) -> Envelope:
    version = 1 if before is None else before.version + 1
    return Envelope(
        version=version,
        oldest=1 if before is None else oldest_after(version, kept=VERSIONS_KEPT, oldest=before.oldest),
        created_at=now if before is None or before.deleted else before.created_at,
        updated_at=now,
        updated_by=actor.user_id,
        record=msgspec.Raw(msgspec.json.encode(record)),
        deleted=deleting,
    )


def _head_ops(key: str, head: Doc | None, envelope: Envelope) -> Sequence[Op]:
    body = _ENVELOPES.encode(envelope)
    oldest = 1 if head is None else _ENVELOPES.decode(head.body).oldest
    return (
        Put(key, body, ABSENT if head is None else Match(head.version)),
        *version_ops(key, body, envelope.version, kept=VERSIONS_KEPT, oldest=oldest),
    )


def _audit_ops(
    table: Table[T], key: str, envelope: Envelope, actor: Actor, before: T | None, after: T, *, salt: str
) -> Sequence[Op]:
    """One message a tenant concerned. It names the fields that changed and no value: some are handles."""
    fields = after.__struct_fields__
    changed = [name for name in fields if before is None or getattr(before, name) != getattr(after, name)]
    action = "deleted" if envelope.deleted else "created" if before is None else "replaced"
    body = encode_json(
        {
            "action": f"{table.name}.{action}",
            "record": key.split("!", 2)[2].replace("!", "/"),
            "version": envelope.version,
            "changed": [] if envelope.deleted else changed,
            "actor": {"user_id": actor.user_id, "tenant_id": actor.tenant_id},
            "request_id": actor.request_id,
            "at": envelope.updated_at,
            **({} if actor.about is None else {"about": actor.about}),
        }
    )
    return [
        outbox_put(tenant_id, key, envelope.version, body, salt=salt)
        for tenant_id in dict.fromkeys(actor.tenants)
    ]


def _open(table: Table[T], doc: Doc) -> Stored[T]:
    return _stored(table, _ENVELOPES.decode(doc.body), doc.version)


def _stored(
    table: Table[T], envelope: Envelope, version: str, *, created: bool = False, replayed: bool = False
) -> Stored[T]:
    return Stored(
        record=table.decode(envelope.record),
        version=envelope.version,
        etag=f'"{version}"',
        created_at=envelope.created_at,
        updated_at=envelope.updated_at,
        updated_by=envelope.updated_by,
        created=created,
        replayed=replayed,
        deleted=envelope.deleted,
    )


def _replay(table: Table[T], first: Written) -> Stored[T]:
    envelope = _ENVELOPES.decode(first.doc.body)
    return _stored(table, envelope, first.doc.version, created=first.created, replayed=True)
