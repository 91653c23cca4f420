"""The six verbs on Firestore.

Owns conditions. `version` is the write id; the service conditions on its own token, update_time, which is
unique to one put of one document. The driver remembers (key, version) → token of what it read or wrote
lately; on a miss it reads first. A token may have gone stale (a restore or an import renews all of them), so
a refusal is judged by reading the conditioned documents once more: who has another version, or is there and
should not be, is a culprit; where there is none, the write is sent again with the tokens just read. A put
under Absent over a document that has expired is conditioned on that document's token, which replaces it in
the same commit.

A commit that is delivered late meets the same tokens: it fails once anything else was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from engines.clock import Clock
from engines.drivers.documents.firestore.connection import ConditionRefusedError, Connection
from engines.drivers.documents.firestore.messages import (
    BatchGetResponse,
    CommitResponse,
    Layout,
    RunQueryResponse,
    Stored,
    Token,
    stored,
)
from engines.drivers.documents.firestore.provisioning import provision_fields
from engines.errors import Conflict, OutcomeUnknown, Unavailable
from engines.ports.documents import PAGE_BYTES, Absent, Always, Doc, Match, Op, Page, Put
from engines.ports.secrets import Secret

if TYPE_CHECKING:
    from engines.drivers.documents.firestore import Config

COMMIT: Final = "/google.firestore.v1.Firestore/Commit"
BATCH_GET: Final = "/google.firestore.v1.Firestore/BatchGetDocuments"
RUN_QUERY: Final = "/google.firestore.v1.Firestore/RunQuery"
# How often one write is sent while the service refuses it and no condition is false: a stale token costs one,
# an expired document one, and one more for a change in between.
SENDS_MAX: Final = 4
TOKENS_MAX: Final = 16_384


class FirestoreDocuments:
    """`DocumentDriver` on one collection. Bound to the event loop of its first call."""

    def __init__(self, config: Config, service_account: Secret | None, clock: Clock) -> None:
        self._clock = clock
        self._manage_indexes = config.manage_indexes
        self._layout = Layout(config.project, config.database, config.collection)
        self._connection = Connection(self._layout.database, config.endpoint, service_account)
        self._tokens = _Tokens()

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        found = await self._read(partition, keys)
        now = self._clock.now()
        return {key: entry.doc for key, entry in found.items() if entry.is_live(now)}

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        if above >= below:
            return Page(())
        # One more than the page holds: a cursor that leads to nothing would break the promise of every list.
        request = self._layout.run_query(
            partition, above=above, below=below, limit=limit + 1, reverse=reverse
        )
        taken = _Taken(self._layout.prefix(partition), limit, self._clock.now())
        await self._connection.stream(RUN_QUERY, request, RunQueryResponse, taken.take, route="parent")
        return Page(tuple(taken.docs), resume=taken.resume)

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        tokens = await self._known_tokens(partition, ops)
        conditioned = [op for op in ops if not isinstance(op.when, Always)]
        for _ in range(SENDS_MAX):
            request = self._layout.commit(partition, ops, write_id, tokens)
            try:
                reply = await self._connection.call(
                    COMMIT,
                    request,
                    CommitResponse,
                    route="database",
                    lost=OutcomeUnknown,
                    conditioned=bool(conditioned),
                )
            except ConditionRefusedError:
                before, tokens = tokens, await self._judge(partition, conditioned)
                if tokens == before:
                    break
            else:
                self._remember(partition, ops, write_id, reply)
                return
        raise Unavailable("the database refused the write, and no condition is false any more")

    async def provision(self) -> None:
        """Creates neither project nor database; one read shows that they are there."""
        if self._manage_indexes:
            await provision_fields(self._connection, self._layout)
        await self._read("provision", ["provision"])

    async def reclaim(self, limit: int) -> int:  # noqa: ARG002
        """The TTL policy removes expired documents."""
        self._connection.check_open()
        return 0

    async def close(self) -> None:
        await self._connection.close()

    async def _read(self, partition: str, keys: Sequence[str]) -> dict[str, Stored]:
        """Documents by key, expired ones too."""
        request = self._layout.batch_get(partition, keys)
        prefix = self._layout.prefix(partition)
        found: dict[str, Stored] = {}

        def take(reply: Any) -> bool:
            if reply.HasField("found"):
                entry = stored(reply.found, prefix)
                found[entry.doc.key] = entry
                self._tokens.put(partition, entry.doc.key, entry.doc.version, entry.token)
            return True

        await self._connection.stream(BATCH_GET, request, BatchGetResponse, take, route="database")
        return found

    async def _known_tokens(self, partition: str, ops: Sequence[Op]) -> dict[str, Token]:
        """The token of each Match, read where it is not known. Raises Conflict for another version."""
        tokens: dict[str, Token] = {}
        unknown: list[Op] = []
        for op in ops:
            if isinstance(op.when, Match):
                token = self._tokens.get(partition, op.key, op.when.version)
                if token is None:
                    unknown.append(op)
                else:
                    tokens[op.key] = token
        return tokens | (await self._judge(partition, unknown) if unknown else {})

    async def _judge(self, partition: str, conditioned: Sequence[Op]) -> dict[str, Token]:
        """The tokens under which all conditions hold at this moment. Raises Conflict for the others."""
        found = await self._read(partition, [op.key for op in conditioned])
        now = self._clock.now()
        culprits = [op.key for op in conditioned if not _holds(op, found.get(op.key), now)]
        if culprits:
            raise Conflict("a condition did not hold", keys=culprits)
        return {key: entry.token for key, entry in found.items()}

    def _remember(self, partition: str, ops: Sequence[Op], write_id: str, reply: Any) -> None:
        for op, result in zip(ops, reply.write_results, strict=True):
            if isinstance(op, Put):
                time = result.update_time
                self._tokens.put(partition, op.key, op.write_id or write_id, (time.seconds, time.nanos))


def _holds(op: Op, entry: Stored | None, now: float) -> bool:
    """Match on an expired document holds: core reads `expires_at` first."""
    match op.when:
        case Absent():
            return entry is None or not entry.is_live(now)
        case Match(version):
            return entry is not None and entry.doc.version == version
        case _:
            return True


class _Taken:
    """A page as it comes in. `resume` is set where there is more, or may be, behind expired documents."""

    def __init__(self, prefix: str, limit: int, now: float) -> None:
        self.docs: list[Doc] = []
        self.resume: str | None = None
        self._prefix = prefix
        self._limit = limit
        self._now = now
        self._last: str | None = None
        self._count = self._bytes = 0

    def take(self, reply: Any) -> bool:
        if not reply.HasField("document"):
            return True
        entry = stored(reply.document, self._prefix)
        if len(self.docs) < self._limit and self._bytes < PAGE_BYTES:
            self._last = entry.doc.key
            self._count += 1
            self._bytes += len(entry.doc.body.encode())
            if entry.is_live(self._now):
                self.docs.append(entry.doc)
            if self._count <= self._limit:
                return True
        self.resume = self._last
        return False


class _Tokens:
    """The token of the newest version of a document that this driver has met; the oldest go first."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], tuple[str, Token]] = {}

    def get(self, partition: str, key: str, version: str) -> Token | None:
        entry = self._entries.get((partition, key))
        return entry[1] if entry is not None and entry[0] == version else None

    def put(self, partition: str, key: str, version: str, token: Token) -> None:
        self._entries.pop((partition, key), None)
        self._entries[partition, key] = (version, token)
        if len(self._entries) > TOKENS_MAX:
            del self._entries[next(iter(self._entries))]
