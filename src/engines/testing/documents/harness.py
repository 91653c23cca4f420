"""What the conformance kit is given, and the few words that its tests share.

Owns `DocumentHarness` with its optional capabilities, the fixture `driver`, and helpers that say nothing of
any rule. Leaves the rules to the other modules here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, TypeVar

import msgspec
import pytest
import pytest_asyncio

from engines.clock import SystemClock
from engines.errors import Conflict
from engines.ids import Ids
from engines.ports.documents import ALWAYS, Absent, Always, Doc, DocumentDriver, Match, Op, Put
from engines.testing.clock import ManualClock

PARTITION: Final = "kit.t_one.prod.0"
# Below and above every key that begins with a letter.
FIRST: Final = "A"
LAST: Final = "~"
# What a partition or key may hold after its first character, a letter.
ALLOWED: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "/\\?#")

T = TypeVar("T")
_ids = Ids(SystemClock())


class NotOffered(msgspec.Struct, frozen=True):
    """In place of a capability: why the tests that need it do not run."""

    reason: str


class Server(msgspec.Struct, frozen=True):
    """The database's own process. `kill` is SIGKILL, and returns once it is gone; `start` serves its data."""

    kill: Callable[[], Awaitable[None]]
    start: Callable[[], Awaitable[None]]


class Network(msgspec.Struct, frozen=True):
    """Where the database listens, and a client of the test's storage that connects to another address."""

    address: tuple[str, int]
    open: Callable[[str, int], DocumentDriver]


class Process(msgspec.Struct, frozen=True):
    """How another process opens a client: `module:function`, called with `arguments`, which are JSON."""

    function: str
    arguments: Mapping[str, Any]

    def __repr__(self) -> str:
        """Without the arguments: they may hold a password, and pytest shows what a test is given."""
        return f"Process({self.function})"


class DocumentHarness(msgspec.Struct, frozen=True, kw_only=True):
    """One test's fresh storage.

    `open` makes one more client of it, not yet connected; the kit calls `provision` and `close`. Every client
    judges expiry by `clock`, but for those of other processes.

    `repetitions_share`, above 0 and at most 1, is for storage that is slow to test on: of what a test of
    `engines.testing.log` repeats at random (histories of other seeds, kills, appends that are counted) this
    share is done, and at least as much as the test needs. Every test runs, and tries its rule.
    """

    open: Callable[[], DocumentDriver]
    clock: ManualClock
    server: Server | NotOffered = NotOffered("the harness offers no server to kill")
    network: Network | NotOffered = NotOffered("the harness offers no network to disturb")
    process: Process | NotOffered = NotOffered("the harness does not say how another process opens a client")
    repetitions_share: float = 1.0


def offered(capability: T | NotOffered) -> T:
    """The capability, or the test ends here as not run."""
    if isinstance(capability, NotOffered):
        pytest.skip(capability.reason)
    return capability


@pytest_asyncio.fixture
async def driver(harness: DocumentHarness) -> AsyncIterator[DocumentDriver]:
    """A provisioned client, closed after the test."""
    opened = harness.open()
    await opened.provision()
    yield opened
    await opened.close()


def fresh_write_id() -> str:
    return _ids.write_id()


def put(key: str, body: str = "{}", when: Always | Absent | Match = ALWAYS, **fields: Any) -> Put:
    return Put(key, body, when, **fields)


async def write(driver: DocumentDriver, *ops: Op, partition: str = PARTITION) -> str:
    """Write under a fresh id, which is returned."""
    write_id = fresh_write_id()
    await driver.write(partition, ops, write_id=write_id)
    return write_id


async def get(driver: DocumentDriver, key: str, partition: str = PARTITION) -> Doc | None:
    return (await driver.get(partition, [key])).get(key)


async def bodies(driver: DocumentDriver, *keys: str) -> dict[str, str]:
    """What stands under `keys`, by key."""
    return {key: doc.body for key, doc in (await driver.get(PARTITION, keys)).items()}


async def refused(driver: DocumentDriver, *ops: Op) -> tuple[str, ...]:
    """The keys that a write which must conflict names."""
    with pytest.raises(Conflict) as caught:
        await write(driver, *ops)
    assert caught.value.keys, "a Conflict names a culprit"
    return caught.value.keys


async def fill(driver: DocumentDriver, keys: Sequence[str], *, partition: str = PARTITION) -> None:
    """A document for each of `keys`, whose body is the key's place."""
    ops = [put(key, str(place)) for place, key in enumerate(keys)]
    for start in range(0, len(ops), 100):
        await write(driver, *ops[start : start + 100], partition=partition)


async def read_keys(
    driver: DocumentDriver,
    *,
    above: str = FIRST,
    below: str = LAST,
    limit: int = 1_000,
    reverse: bool = False,
    limits: Random | None = None,
    partition: str = PARTITION,
) -> list[str]:
    """Page through a range to its end, with random limits up to `limit` if `limits` is given."""
    keys: list[str] = []
    while True:
        size = limits.randint(1, limit) if limits else limit
        page = await driver.scan(partition, above=above, below=below, limit=size, reverse=reverse)
        assert len(page.docs) <= size
        keys.extend(doc.key for doc in page.docs)
        if page.resume is None:
            return keys
        assert above < page.resume < below, "a page leads on"
        above, below = (above, page.resume) if reverse else (page.resume, below)
