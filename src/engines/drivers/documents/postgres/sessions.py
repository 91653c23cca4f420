"""Connections to PostgreSQL, and what their errors mean.

Owns connecting, a pool for calls that leave no state in a session, and the table that translates every error
of asyncpg. asyncpg's own pool resets a connection whenever it is released, which costs nearly as much as a
lone insert; nothing here needs it, because all that runs are single statements in autocommit. A connection
goes back only after a complete reply, and is given up otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import asyncpg

from engines.drivers.documents.postgres.statements import CONFLICT_SQLSTATE, MAKE_DURABLE, SESSION_SETTINGS
from engines.errors import (
    BackendRefused,
    Conflict,
    Corrupt,
    EnginesError,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)

CONNECT_TIMEOUT_S: Final = 5.0
# The server ends a statement first and says so; the client gives up only on a server that says nothing.
STATEMENT_TIMEOUT_S: Final = 7.0
COMMAND_TIMEOUT_S: Final = 8.0
# A connection that was given up has this long to take its leave.
CLOSE_TIMEOUT_S: Final = 2.0
# How long, and in what number, calls wait for a connection while all are busy.
WAIT_TIMEOUT_S: Final = 8.0
WAITING_MAX: Final = 10_000
# The server's probes keep an idle connection known to whatever stands between, and end it when we are gone.
KEEPALIVE_S: Final = 30

R = TypeVar("R")
_Answer = tuple[list[asyncpg.Record], str]


class Session:
    """One connection, the statements prepared on it, and whether the present call was sent."""

    __slots__ = ("connection", "sent", "statements")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.statements: dict[str, Any] = {}
        self.sent = False


class Call:
    """One prepared statement with its arguments. Preparing is told from running: it can change nothing."""

    __slots__ = ("_arguments", "_sql")

    def __init__(self, sql: str, arguments: Sequence[Any]) -> None:
        self._sql = sql
        self._arguments = arguments

    async def __call__(self, session: Session) -> _Answer:
        statement = session.statements.get(self._sql)
        if statement is None:
            statement = await session.connection.prepare(self._sql, timeout=COMMAND_TIMEOUT_S)
            session.statements[self._sql] = statement
        session.sent = True
        rows = await statement.fetch(*self._arguments, timeout=COMMAND_TIMEOUT_S)
        return rows, statement.get_statusmsg()


class Sessions:
    """At most `size` connections, those being opened and those taking their leave included.

    The one used last is used next. A connection goes back only after a complete reply.
    """

    def __init__(self, connect: Callable[[], Awaitable[Any]], size: int) -> None:
        self._connect = connect
        self._size = size
        self._open = 0
        self._idle: list[Session] = []
        # In order of arrival. A result of None says that there is room for a new connection.
        self._waiting: dict[asyncio.Future[Session | None], None] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False
        self._empty = asyncio.Event()

    async def run(self, work: Callable[[Session], Awaitable[R]], *, lost: type[EnginesError]) -> R:
        """`work` on a connection of its own. An error after sending that is no reply becomes `lost`."""
        session = self._take_idle() or await self._take()
        session.sent = False
        try:
            result = await work(session)
        except SDK_ERRORS as error:
            translated = translate(error, lost=lost if session.sent else Unavailable)
            if isinstance(error, asyncpg.PostgresError) and error.sqlstate in _INTACT:
                self._give_back(session)
            else:
                self._leave(session)
            raise translated from error
        except BaseException:  # Cancelled: its reply may still come.
            self._leave(session)
            raise
        self._give_back(session)
        return result

    async def close(self) -> None:
        """Waits for the calls under way; later ones are Unavailable."""
        self._closed = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()
        while self._idle:
            self._leave(self._idle.pop())
        if self._open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(COMMAND_TIMEOUT_S + CLOSE_TIMEOUT_S):
                    await self._empty.wait()

    def _take_idle(self) -> Session | None:
        while self._idle:
            session = self._idle.pop()
            if not session.connection.is_closed():
                return session
            self._leave(session)
        return None

    async def _take(self) -> Session:
        give_up_at = asyncio.get_running_loop().time() + WAIT_TIMEOUT_S
        while True:
            session = self._take_idle() or await self._open_or_wait(give_up_at)
            if session is not None:
                return session

    async def _open_or_wait(self, give_up_at: float) -> Session | None:
        if self._closed:
            raise Unavailable("the database is closed")
        if self._open < self._size:
            try:
                async with asyncio.timeout_at(give_up_at):
                    return await self._open_session()
            except TimeoutError as error:
                raise _none_free() from error
        if len(self._waiting) >= WAITING_MAX:
            raise Throttled("too many calls wait for the database")
        return await self._wait(give_up_at)

    async def _wait(self, give_up_at: float) -> Session | None:
        """A bare timer and no `asyncio.timeout`, which costs a tenth of a read that waits here."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Session | None] = loop.create_future()
        timer = loop.call_at(give_up_at, _give_up, waiter)
        self._waiting[waiter] = None
        try:
            return await waiter
        except Unavailable:
            self._waiting.pop(waiter, None)
            raise
        except asyncio.CancelledError:
            self._waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on(waiter.result())
            raise
        finally:
            timer.cancel()

    async def _open_session(self) -> Session:
        self._open += 1
        try:
            return Session(await self._connect())
        except SDK_ERRORS as error:
            self._free_slot()
            raise translate(error, lost=Unavailable) from error
        except BaseException:
            self._free_slot()
            raise

    def _give_back(self, session: Session) -> None:
        if self._closed:
            self._leave(session)
        else:
            self._pass_on(session)

    def _pass_on(self, session: Session | None) -> None:
        """To who has waited longest; a connection that nobody waits for is idle."""
        while self._waiting:
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if not waiter.done():
                waiter.set_result(session)
                return
        if session is not None:
            self._idle.append(session)

    def _leave(self, session: Session) -> None:
        if session.connection.is_closed():
            session.connection.terminate()
            self._free_slot()
            return
        task = asyncio.create_task(self._disconnect(session))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _disconnect(self, session: Session) -> None:
        """Asks the server to cancel what still runs, whose locks others wait for, then disconnects."""
        try:
            with contextlib.suppress(*SDK_ERRORS):
                await session.connection.close(timeout=CLOSE_TIMEOUT_S)
        finally:
            session.connection.terminate()
            self._free_slot()

    def _free_slot(self) -> None:
        self._open -= 1
        assert 0 <= self._open < self._size
        if self._closed and not self._open:
            self._empty.set()
        self._pass_on(None)


def _give_up(waiter: asyncio.Future[Session | None]) -> None:
    if not waiter.done():
        waiter.set_exception(_none_free())


def _none_free() -> Unavailable:
    return Unavailable("no connection to the database became free")


async def connect(
    *, host: str, port: int, database: str, user: str, password: str, tls: ssl.SSLContext | Literal[False]
) -> Any:
    """An `asyncpg.Connection`. All that asyncpg would else take from the environment or a file is given.

    Raises what asyncpg raises, and BackendRefused for a database that cannot hold every document.
    """
    connection = await asyncpg.connect(
        host=host,
        port=port,
        database=database,
        user=user,
        password=password,
        ssl=tls,
        timeout=CONNECT_TIMEOUT_S,
        target_session_attrs="primary",
        server_settings={
            **SESSION_SETTINGS,
            "statement_timeout": f"{STATEMENT_TIMEOUT_S:g}s",
            "tcp_keepalives_idle": str(KEEPALIVE_S),
        },
    )
    try:
        if connection.get_settings().server_encoding != "UTF8":
            raise BackendRefused("the database's encoding is not UTF8")
        await connection.execute(MAKE_DURABLE, timeout=CONNECT_TIMEOUT_S)
    except BaseException:
        connection.terminate()
        raise
    return connection


# --- errors ---

SDK_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

# Credentials, rights, missing objects, limits, values that do not fit, somebody's trigger.
_OPERATORS_WORK: Final = (
    *("03", "09", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23", "24", "27", "28", "2B", "2D"),
    *("2F", "34", "38", "39", "3B", "3D", "3F", "42", "44", "54", "F0", "HV", "P0"),
)
# What the server's reply says, by SQLSTATE or its first characters. An error is raised before the commit and
# undoes the statement. OutcomeUnknown stands where the session ended instead, perhaps after the commit.
SQLSTATES: Final[Mapping[str, type[EnginesError]]] = {
    CONFLICT_SQLSTATE: Conflict,
    "08": OutcomeUnknown,  # connection
    "57P": OutcomeUnknown,  # shutdown, crash, dropped database: the session ends, wherever it was
    "40003": OutcomeUnknown,  # statement completion unknown
    "40": Unavailable,  # deadlock, serialization: contention that nobody conditioned on
    "55": Unavailable,  # object in use, lock not available
    "57": Unavailable,  # cancelled, by statement_timeout as a rule
    "58": Unavailable,  # I/O beneath the server
    "25": Unavailable,  # read-only: a failover is under way
    "26": Unavailable,  # a prepared statement is gone
    "0A": Unavailable,  # a cached plan is no longer valid
    "72": Unavailable,  # snapshot too old
    "53": Throttled,  # memory, connections
    "53100": BackendRefused,  # disk full
    "XX": BackendRefused,  # internal error
    "XX001": Corrupt,
    "XX002": Corrupt,
    **dict.fromkeys(_OPERATORS_WORK, BackendRefused),
}

# What asyncpg raises of itself, and the operating system; the most specific class decides.
CLIENT_ERRORS: Final[Mapping[type[BaseException], type[EnginesError]]] = {
    asyncpg.InterfaceError: OutcomeUnknown,
    asyncpg.InternalClientError: OutcomeUnknown,
    asyncpg.ClientConfigurationError: BackendRefused,
    asyncpg.UnsupportedClientFeatureError: BackendRefused,
    asyncpg.UnsupportedServerFeatureError: BackendRefused,
    asyncpg.TargetServerAttributeNotMatched: Unavailable,  # a standby: a failover is under way
    ssl.SSLCertVerificationError: BackendRefused,
    OSError: OutcomeUnknown,
    TimeoutError: OutcomeUnknown,
    asyncpg.UnknownPostgresError: BackendRefused,
    asyncpg.PostgresError: BackendRefused,
}

# After these replies the session is as good as before.
_INTACT: Final = ("40001", "40P01", "57014", CONFLICT_SQLSTATE)

_DETAILS: Final[Mapping[type[EnginesError], str]] = {
    OutcomeUnknown: "the connection to the database was lost during a write",
    Unavailable: "the database could not be asked, or undid the statement",
    Throttled: "the database is out of memory or connections",
    BackendRefused: "the database refused: a credential, a right, a missing table or a full disk",
    Corrupt: "the database reports damaged data",
}


def meaning(error: BaseException) -> type[EnginesError]:
    """What an error of asyncpg or the network says about the statement, had it been sent."""
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is not None:
        for length in (5, 3, 2):
            if sqlstate[:length] in SQLSTATES:
                return SQLSTATES[sqlstate[:length]]
    return next(CLIENT_ERRORS[kind] for kind in type(error).__mro__ if kind in CLIENT_ERRORS)


def translate(error: Any, *, lost: type[EnginesError]) -> EnginesError:
    """`lost` is what a broken connection means: OutcomeUnknown for a sent write, else Unavailable."""
    found = meaning(error)
    if found is Conflict:
        return Conflict("a condition did not hold", keys=error.detail.split())
    if found is OutcomeUnknown:
        found = lost
    return found(_DETAILS[found])
