"""The waist: three verbs through which everything durable that is a document goes.

Owns the value types, the `DocumentDriver` protocol and the limits that core guarantees to a driver. It
is small because five very different databases must mean the same by it. Leaves validation, retries
and write ids to `core/documents.py`, and storage to the drivers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

OPS_MAX: Final = 100
BODY_BYTES_MAX: Final = 384 * 1024
WRITE_BYTES_MAX: Final = 1024 * 1024
GET_KEYS_MAX: Final = 100
SCAN_LIMIT_MAX: Final = 1_000
# A page stops after the document with which its bodies reach this size.
PAGE_BYTES: Final = 1024 * 1024
KEY_BYTES_MAX: Final = 512
PARTITION_BYTES_MAX: Final = 256


class Always(msgspec.Struct, frozen=True, tag=True):
    """Unconditional."""


class Absent(msgspec.Struct, frozen=True, tag=True):
    """There is no live document: none, or an expired one."""


class Match(msgspec.Struct, frozen=True, tag=True):
    """There is a document, at exactly this version."""

    version: str


ALWAYS: Final = Always()
ABSENT: Final = Absent()


class Doc(msgspec.Struct, frozen=True):
    """A stored document. `version` is the write id of the put that made it; `expires_at` epoch seconds."""

    key: str
    body: str
    version: str
    expires_at: int | None = None


class Put(msgspec.Struct, frozen=True):
    """Replace or create. `write_id` overrides the write's own; the mover alone sets it."""

    key: str
    body: str
    when: Always | Absent | Match
    expires_at: int | None = None
    write_id: str | None = None


class Delete(msgspec.Struct, frozen=True):
    """Remove. Under `Always` a missing document is no error."""

    key: str
    when: Always | Match


Op = Put | Delete


class Page(msgspec.Struct, frozen=True):
    """Some documents in key order (descending if asked). `resume` is the key to go on from, exclusive.

    `None`, and only `None`, means the end; a page may be short or empty and have more behind it.
    """

    docs: tuple[Doc, ...]
    resume: str | None = None


class DocumentDriver(Protocol):
    """One document database.

    Core guarantees: 1 to `OPS_MAX` ops with distinct keys; a body of at most `BODY_BYTES_MAX` and a write of
    at most `WRITE_BYTES_MAX`, both counted by `codec.escaped_bytes`; at most `GET_KEYS_MAX` distinct keys a
    get; 1 <= limit <= `SCAN_LIMIT_MAX`; keys of at most `KEY_BYTES_MAX` and partitions of at most
    `PARTITION_BYTES_MAX` bytes of printable ASCII (0x21 to 0x7E) without `/ \\ ? #`, starting with a letter;
    `write_id` fresh for each write. A body is JSON text.

    Every verb raises only `Conflict` (write), `Throttled`, `Unavailable`, `OutcomeUnknown` (write),
    `BackendRefused` or `Corrupt`. `Unavailable` from a write says that nothing was applied and nothing will
    be: it is raised only when nothing was sent or the server answered that it rolled back. Every other
    break is `OutcomeUnknown`. The client library's own retries of writes are off.

    A cancelled call leaves the driver usable; a cancelled write may or may not have been applied.
    """

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        """The live documents among `keys`. Sees every write acknowledged before the call began."""
        ...

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        """Live documents with above < key < below, in byte order of keys, or descending if `reverse`.

        Sees every write acknowledged before the call began. `resume` replaces `above` (`below` if `reverse`).
        """
        ...

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        """Apply all ops or none. A false condition raises Conflict with at least one true culprit's key.

        Each document put gets `write_id` (or its op's own) as its version.
        """
        ...

    async def provision(self) -> None:
        """Create what the driver stores in, where it is missing. Idempotent, also when run twice at once."""
        ...

    async def reclaim(self, limit: int) -> int:
        """Remove at most `limit` expired documents; returns how many. 0 where the service does it."""
        ...

    async def close(self) -> None:
        """Release connections and threads. Calls after it raise Unavailable."""
        ...


BackendClass = Literal["cloud", "server", "host_local"]
"""`cloud` services, `server`s on the network, and `host_local` files, which a lab alone may use."""


class DriverDescription(msgspec.Struct, frozen=True):
    """What documentation and operators need to know of a driver; constants in its module.

    `costs` are in the service's own units, by operation; `provisions` is what `provision` creates; `policy`
    is the least privilege that the driver runs with, to copy. `prerequisites` is what an operator has before
    a backend is put; `example` a config to start from; `control_plane_url` the form of URL that
    `config_from_url` reads; `proven` what was run against what, and what was not.
    """

    name: str
    backend_class: BackendClass
    consistency: str
    durability: str
    config: dict[str, str]
    secrets: dict[str, str]
    limits: dict[str, str]
    costs: dict[str, str]
    provisions: str
    policy: str
    prerequisites: tuple[str, ...] = ()
    example: dict[str, Any] = msgspec.field(default_factory=dict)
    control_plane_url: str = ""
    proven: dict[str, str] = msgspec.field(default_factory=dict)
