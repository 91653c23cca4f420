"""SQLite: the embedded default of a lab, and the executable specification of `ports/documents.py`.

Owns one database file in WAL mode with synchronous=FULL, one writer thread and one reader thread. The writer
takes every write that waits into one transaction (group commit) and answers after the commit. Several
processes may share the file; a lock that stays busy is Unavailable.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from engines.clock import Clock
from engines.errors import (
    BackendRefused,
    Conflict,
    Corrupt,
    EnginesError,
    Invalid,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)
from engines.ports.documents import (
    PAGE_BYTES,
    Absent,
    Always,
    Delete,
    Doc,
    DriverDescription,
    Match,
    Op,
    Page,
    Put,
)
from engines.ports.secrets import Secret

BUSY_TIMEOUT_S: Final = 5.0
# Switching a new file to WAL ignores the timeout: this often, after this pause, it is tried again.
OPEN_TRIES_MAX: Final = 100
OPEN_PAUSE_S: Final = 0.05
# Writes that one transaction takes; more would only delay the first of them.
GROUP_WRITES_MAX: Final = 256
WAITING_MAX: Final = 10_000

DESCRIPTION: Final = DriverDescription(
    name="sqlite",
    backend_class="host_local",
    consistency="serialisable; a read sees every commit before it",
    durability="WAL, synchronous=FULL: acknowledged after fsync",
    config={"path": "the database file, an absolute path; its directory must exist"},
    secrets={},
    limits={
        "writers": "one at a time per file",
        "hosts": "one: the file must not lie on a network file system",
    },
    costs={"write": "one fsync of the log, shared by every write that waits for it"},
    provisions="the file, with one table and one index; never the directory",
    policy="read and write the file's directory: SQLite keeps its log beside the file",
    prerequisites=(
        "a directory on a local disk that the server's user may write to; no network file system",
        "a tenant in mode lab: no other mode allows the class host_local",
    ),
    example={"path": "/var/lib/engines/data.db"},
    control_plane_url="sqlite:///PATH",
    proven={
        "SQLite, as Python brings it": "the conformance kit, the log, moves, and in script/soak 200 times"
        " kill -9 of the process under load, with 65,667 changes acknowledged and none lost or doubled; it"
        " has no network that could be disturbed",
    },
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    partition TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, version TEXT NOT NULL, expires_at INTEGER,
    PRIMARY KEY (partition, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS documents_expiry ON documents (expires_at) WHERE expires_at IS NOT NULL;
"""
_PUT = (
    "INSERT INTO documents (partition, key, body, version, expires_at) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (partition, key) DO UPDATE"
    " SET body = excluded.body, version = excluded.version, expires_at = excluded.expires_at"
)
_DELETE = "DELETE FROM documents WHERE partition = ? AND key = ?"
_COLUMNS = "key, body, version, expires_at"
_LIVE = "(expires_at IS NULL OR expires_at > ?)"
_RECLAIM = (
    "DELETE FROM documents WHERE (partition, key) IN"
    " (SELECT partition, key FROM documents WHERE expires_at <= ? LIMIT ?)"
)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backend record of this driver holds."""

    path: str

    def __post_init__(self) -> None:
        # A relative path means another file wherever a process is started, and `:memory:` means none at all:
        # each connection would have a database of its own, whose writes are acknowledged and lost.
        if not self.path.startswith("/") or self.path.endswith("/"):
            raise ValueError("path is the absolute path of a file")


def open_driver(config: Config, secrets: Mapping[str, Secret], clock: Clock) -> SqliteDocuments:  # noqa: ARG001
    """Opens nothing yet: threads and connections come with the first call."""
    return SqliteDocuments(Path(config.path), clock)


def config_from_url(url: str) -> tuple[dict[str, str], None]:
    """`sqlite:///absolute/path.db` as a backend record's config. Raises Invalid."""
    path = unquote(url.removeprefix("sqlite://"))
    if not path.startswith("/") or path.endswith("/"):
        raise Invalid("a SQLite URL is sqlite:// and an absolute path", field="control_plane")
    return {"path": path}, None


class SqliteDocuments:
    """`DocumentDriver` on one file. Bound to the event loop of its first call."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._reader = _Lane(path, "sqlite-reader", _run_reads)
        self._writer = _Lane(path, "sqlite-writer", _run_writes)

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        now = self._clock.now()
        return await self._reader.call(lambda connection: _get(connection, partition, keys, now))  # type: ignore[no-any-return]

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        now = self._clock.now()
        return await self._reader.call(  # type: ignore[no-any-return]
            lambda connection: _scan(
                connection, partition, above, below, limit=limit, reverse=reverse, now=now
            )
        )

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        now = self._clock.now()
        await self._writer.call(lambda connection: _write(connection, partition, ops, write_id, now))

    async def provision(self) -> None:
        """The schema is made by the first connection; this makes the first connection."""
        await self._writer.call(lambda _connection: None)

    async def reclaim(self, limit: int) -> int:
        now = self._clock.now()
        return await self._writer.call(  # type: ignore[no-any-return]
            lambda connection: connection.execute(_RECLAIM, (now, limit)).rowcount
        )

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()


# --- what runs on a connection ---


def _get(connection: sqlite3.Connection, partition: str, keys: Sequence[str], now: float) -> dict[str, Doc]:
    marks = ",".join("?" * len(keys))
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM documents WHERE partition = ? AND key IN ({marks}) AND {_LIVE}",  # noqa: S608
        (partition, *keys, now),
    )
    return {row[0]: Doc(*row) for row in rows}


def _scan(
    connection: sqlite3.Connection,
    partition: str,
    above: str,
    below: str,
    *,
    limit: int,
    reverse: bool,
    now: float,
) -> Page:
    order = "DESC" if reverse else "ASC"
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM documents"  # noqa: S608
        f" WHERE partition = ? AND key > ? AND key < ? AND {_LIVE} ORDER BY key {order} LIMIT ?",
        (partition, above, below, now, limit + 1),
    )
    docs: list[Doc] = []
    page_bytes = 0
    for row in rows:
        if len(docs) == limit or page_bytes >= PAGE_BYTES:
            return Page(tuple(docs), resume=docs[-1].key)
        docs.append(Doc(*row))
        page_bytes += len(row[1]) if row[1].isascii() else len(row[1].encode())
    return Page(tuple(docs))


def _write(
    connection: sqlite3.Connection, partition: str, ops: Sequence[Op], write_id: str, now: float
) -> None:
    """Inside the group's transaction: first all conditions, then all changes: a refusal changes nothing."""
    culprits = _culprits(connection, partition, ops, now)
    if culprits:
        raise Conflict("a condition did not hold", keys=culprits)
    for op in ops:
        if isinstance(op, Put):
            connection.execute(_PUT, (partition, op.key, op.body, op.write_id or write_id, op.expires_at))
        else:
            connection.execute(_DELETE, (partition, op.key))


def _culprits(connection: sqlite3.Connection, partition: str, ops: Sequence[Op], now: float) -> list[str]:
    conditioned = [op for op in ops if not isinstance(op.when, Always)]
    if not conditioned:
        return []
    found = _get(connection, partition, [op.key for op in conditioned], now)
    return [op.key for op in conditioned if not _holds(op, found.get(op.key))]


def _holds(op: Put | Delete, doc: Doc | None) -> bool:
    match op.when:
        case Absent():
            return doc is None
        case Match(version):
            return doc is not None and doc.version == version
        case _:
            return True


# --- the two threads ---

_Work = Callable[[sqlite3.Connection], Any]
_Job = tuple[_Work, "asyncio.Future[Any]"]
_Settlement = tuple["asyncio.Future[Any]", Any, BaseException | None]


class _Lane:
    """One thread with one connection; takes what waits, answers it with one wake-up of the loop."""

    def __init__(
        self, path: Path, name: str, run: Callable[[sqlite3.Connection, list[_Job]], list[_Settlement]]
    ) -> None:
        self._path = path
        self._name = name
        self._run = run
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def call(self, work: _Work) -> Any:
        if self._closed:
            raise Unavailable("the database is closed")
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        if self._jobs.qsize() >= WAITING_MAX:
            raise Throttled("too many calls wait for the database")
        assert self._loop is asyncio.get_running_loop(), "a driver belongs to one event loop"
        future: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.put((work, future))
        return await future

    async def close(self) -> None:
        """Waits for what was already taken; later calls are Unavailable."""
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        connection: sqlite3.Connection | None = None
        while jobs := self._take():
            try:
                connection = connection or _connect(self._path)
                settlements = self._run(connection, jobs)
            except BaseException as error:  # noqa: BLE001
                # Memory at its end, say: if the lane ended too, whoever waits for it would wait for ever.
                # To each an exception of its own: whoever raises one changes it.
                settlements = [(future, None, _translate(error)) for _, future in jobs]
                if connection is not None and not isinstance(error, _FORESEEN):
                    connection.close()  # Nobody knows what state it is in.
                    connection = None
            self._answer(settlements)
        if connection is not None:
            connection.close()

    def _take(self) -> list[_Job]:
        """Whatever waits, at least one job; empty at the end."""
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == GROUP_WRITES_MAX:
                return jobs
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs
        if jobs:
            self._jobs.put(None)
        return jobs

    def _answer(self, settlements: list[_Settlement]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_settle, settlements)
        except RuntimeError:  # The loop was closed with calls under way: nobody waits for them any more.
            return


def _settle(settlements: list[_Settlement]) -> None:
    for future, value, error in settlements:
        if future.done():  # Its caller was cancelled.
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def _connect(path: Path) -> sqlite3.Connection:
    """Several processes may open a new file at once; all but one find it busy while it becomes what it is."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    for tries_left in reversed(range(OPEN_TRIES_MAX)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
            break
        except sqlite3.OperationalError as error:
            if not tries_left or _primary_code(error) not in _TRANSIENT:
                connection.close()
                raise
            time.sleep(OPEN_PAUSE_S)
    return connection


def _run_reads(connection: sqlite3.Connection, jobs: list[_Job]) -> list[_Settlement]:
    return [_attempt(connection, job) for job in jobs]


def _run_writes(connection: sqlite3.Connection, jobs: list[_Job]) -> list[_Settlement]:
    """All waiting writes in one transaction. A refused one leaves no trace; a broken one breaks the group."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        settlements = [_attempt(connection, job) for job in jobs]
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    try:
        connection.execute("COMMIT")
    except BaseException as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
            raise
        raise _LostCommit from error
    return settlements


class _LostCommit(sqlite3.OperationalError):
    """COMMIT failed and the transaction is no longer open: it may stand in the WAL."""


def _attempt(connection: sqlite3.Connection, job: _Job) -> _Settlement:
    work, future = job
    try:
        return future, work(connection), None
    except Conflict as conflict:
        return future, None, conflict


# What a statement or a value brings about. The connection is as good as before.
_FORESEEN = (sqlite3.Error, ValueError, OverflowError)
_TRANSIENT = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_NOMEM}


def _primary_code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _translate(error: BaseException) -> EnginesError:
    """Every error here came before COMMIT or with the transaction rolled back, but for `_LostCommit`."""
    if isinstance(error, _LostCommit):
        translated: EnginesError = OutcomeUnknown("the database failed while it committed")
    elif not isinstance(error, _FORESEEN):
        translated = Unavailable("the database's thread met a fault and begins anew")
    elif _primary_code(error) in _TRANSIENT:
        translated = Unavailable("the database is busy")
    elif _primary_code(error) == sqlite3.SQLITE_CORRUPT:
        translated = Corrupt("the database file is damaged")
    elif not isinstance(error, sqlite3.Error):
        translated = BackendRefused("a value cannot be stored in a database file")
    else:
        translated = BackendRefused("the database file cannot be used")
    translated.__cause__ = error
    return translated
