"""Commits: what a log stores, byte by byte, and the digests that make tampering evident.

Owns the text of a log's documents (commits, the stream's own record, the floor), their keys, and event ids.
Leaves where they lie to `core/chain.py` and who writes them to `core/committer.py`.

    leaf   = sha256(salt + event)    salt: 16 random bytes; event: the stored text, byte exact
    digest = sha256("commit/1 {previous} {first} {count} {at}\\n", then "{leaf}\\n" or "{leaf} {id}\\n" each)

in lower-case hexadecimal and ASCII; `id` stands for a client's own id alone, for a minted one follows from
the position. Nothing in it is made by a backend, so a log keeps its digests through a move. A redacted
event keeps its leaf, and so the digest; without the salt its text cannot be guessed from the leaf.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Final

import msgspec

from engines.codec import Codec, encode_json
from engines.core.keys import join, within
from engines.errors import Corrupt, Unavailable
from engines.ids import event_id_at, stream_tag

# What precedes the first commit.
GENESIS: Final = "0" * 64
SALT_BYTES: Final = 16
_POSITION_DIGITS: Final = 20

COMMITS_ABOVE, COMMITS_BELOW = within("c")


class Sealed(Unavailable):
    """The log ended in a seal because it moves elsewhere: ask for its place again. Nothing was applied."""

    code = Unavailable.code


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event in a commit: `salt` and `event`, or `leaf` once redacted; `id` if a client's own."""

    id: str | None = None
    leaf: str | None = None
    salt: str | None = None
    event: msgspec.Raw = msgspec.Raw(b"")

    def leaf_digest(self) -> str:
        """What stands for the event in the commit's digest. Raises Corrupt for an item of neither form."""
        if self.leaf is not None and self.salt is None:
            return self.leaf
        if self.leaf is None and self.salt is not None and len(self.salt) == 2 * SALT_BYTES:
            try:
                return hashlib.sha256(bytes.fromhex(self.salt) + bytes(self.event)).hexdigest()
            except ValueError as error:
                raise Corrupt("an event's salt is not hexadecimal") from error
        raise Corrupt("a stored event is neither whole nor redacted")


class Turn(msgspec.Struct, frozen=True):
    """What a commit says to other writers: `core/contention.py` says what follows from it.

    `writers`: who had turns, the last first, beginning with the commit's own; `left_ms`: for how long that
    one means to go on, 0 at the end of its tenure.
    """

    writers: tuple[str, ...]
    left_ms: int


class Commit(msgspec.Struct, frozen=True, tag_field="schema", tag="commit/1", omit_defaults=True):
    """1 to n events at `first` and on, written at once at `at` (epoch milliseconds); none: a seal.

    `requests`: the keys of the idempotency markers that were written beside it, so that a copy finds them.
    `turn`: there where several processes write. The digest covers neither.
    """

    first: int
    at: int
    previous: str
    digest: str
    events: list[Item]
    requests: list[str] = []
    turn: Turn | None = None

    @property
    def last(self) -> int:
        """The position up to which the log reaches with this commit."""
        return self.first + len(self.events) - 1

    @property
    def is_seal(self) -> bool:
        return not self.events

    def computed_digest(self) -> str:
        """The digest that these contents have, whatever `digest` says. Raises Corrupt."""
        lines = [leaf_line(item.leaf_digest(), item.id) for item in self.events]
        return commit_digest(self.previous, self.first, self.at, lines)


class StreamRecord(msgspec.Struct, frozen=True, tag_field="schema", tag="stream/1"):
    """What is fixed for a stream before its first commit."""

    segment_size: int


class Floor(msgspec.Struct, frozen=True, tag_field="schema", tag="floor/1"):
    """Where a trimmed log begins: after `position`, on the digest and time of the last commit trimmed.

    Nothing is left in segments below `swept`.
    """

    position: int = 0
    digest: str = GENESIS
    at: int = 0
    swept: int = 0


COMMIT: Final = Codec(Commit)
STREAM: Final = Codec(StreamRecord)
FLOOR: Final = Codec(Floor)
NO_FLOOR: Final = Floor()


def commit_key(first: int) -> str:
    return f"c!{first:0{_POSITION_DIGITS}d}"


def stream_key(stream: str) -> str:
    return join("s", stream)


def floor_key(stream: str) -> str:
    return join("f", stream)


def decode_commit(key: str, body: str) -> Commit:
    """Raises Corrupt where the document does not decode or does not stand where it says."""
    commit = COMMIT.decode(body)
    if commit_key(commit.first) != key:
        raise Corrupt("a commit does not stand at its own position")
    return commit


def leaf_line(leaf: str, event_id: str | None) -> str:
    return f"{leaf}\n" if event_id is None else f"{leaf} {event_id}\n"


def commit_digest(previous: str, first: int, at: int, leaf_lines: Sequence[str]) -> str:
    head = f"commit/1 {previous} {first} {len(leaf_lines)} {at}\n"
    return hashlib.sha256((head + "".join(leaf_lines)).encode()).hexdigest()


def item_text(event: str, salt: str, event_id: str | None) -> str:
    """The stored form of one event. It is put together as text: encoding a Struct for each costs more."""
    if event_id is None:
        return f'{{"salt":"{salt}","event":{event}}}'
    return f'{{"id":"{event_id}","salt":"{salt}","event":{event}}}'


def commit_text(
    first: int,
    at: int,
    previous: str,
    digest: str,
    items: Sequence[str],
    requests: Sequence[str] = (),
    turn: Turn | None = None,
) -> str:
    """The stored form of a commit of items made by `item_text`."""
    quoted = ",".join(f'"{key}"' for key in requests)
    named = f',"requests":[{quoted}]' if requests else ""
    told = f',"turn":{encode_json(turn)}' if turn is not None else ""
    return (
        f'{{"schema":"commit/1","first":{first},"at":{at},"previous":"{previous}","digest":"{digest}",'
        f'"events":[{",".join(items)}]{named}{told}}}'
    )


def canonical_client_id(text: str) -> str | None:
    """The canonical form of a client's own event id, a UUID whose version is not 8; None for others."""
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        return None
    return None if parsed.version == 8 else str(parsed)


class EventIds:
    """The ids that one stream mints: `engines.ids.event_id_at`, with its constant part made once."""

    __slots__ = ("_block", "_prefix", "_suffix", "tag")

    def __init__(self, stream: str) -> None:
        self.tag = stream_tag(stream)
        self._suffix = event_id_at(self.tag, 1)[13:]
        self._block = -1
        self._prefix = ""

    def at(self, position: int) -> str:
        block = position >> 16
        if block != self._block:
            self._block, self._prefix = block, f"{block:08x}-"
        return f"{self._prefix}{position & 0xFFFF:04x}{self._suffix}"

    def of(self, item: Item, position: int) -> str:
        return self.at(position) if item.id is None else item.id
