"""PostgreSQL: one table, one round trip a write.

Owns what a backend record of it holds, and the six verbs. A write of one document is one plain statement, a
batch one call of a function that `provision` creates; both run in autocommit, so no session keeps state
between calls. Row locks are taken in key order, so batches do not deadlock. Leaves SQL to `statements.py`,
connections and the translation of errors to `sessions.py`.

Connect directly, not through PgBouncer: settings come with the session, and statements stay prepared in it.
Tested with PostgreSQL 15 and 18; everything used exists since 14.
"""

from __future__ import annotations

import ipaddress
import math
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from engines.clock import Clock
from engines.drivers.documents.postgres.sessions import (
    COMMAND_TIMEOUT_S,
    STATEMENT_TIMEOUT_S,
    WAIT_TIMEOUT_S,
    WAITING_MAX,
    Call,
    Session,
    Sessions,
    connect,
)
from engines.drivers.documents.postgres.statements import INSPECT, KINDS, PROVISION, STATEMENTS
from engines.errors import BackendRefused, Conflict, Invalid, OutcomeUnknown, Unavailable
from engines.ports.documents import PAGE_BYTES, Always, Doc, DriverDescription, Match, Op, Page, Put
from engines.ports.secrets import Secret

POOL_SIZE_MAX: Final = 1_000
RECLAIM_BATCH: Final = 1_000

DESCRIPTION: Final = DriverDescription(
    name="postgres",
    backend_class="server",
    consistency="reads and writes on the primary; a read sees every commit before it",
    durability="commit, with synchronous_commit at least local: acknowledged after the WAL was flushed",
    config={
        "host": "host name or address, or the directory of a Unix socket",
        "port": "default 5432",
        "database": "must exist, with encoding UTF8",
        "user": "needs CREATE on the database for provisioning, else only rights on the schema's objects",
        "schema": "default engines; two deployments share a database under two schemas",
        "pool_size": "connections of one process at most, default 10",
        "tls": "verify-full, require (no check of the certificate) or disable; default verify-full, on"
        " loopback addresses and Unix sockets disable",
        "tls_ca_file": "certificates to trust instead of the system's",
    },
    secrets={"password": "the user's password, where the server asks for one"},
    limits={
        "calls that wait for a connection": f"{WAITING_MAX:,} a process, {WAIT_TIMEOUT_S:g} s each",
        "statement": f"{STATEMENT_TIMEOUT_S:g} s",
        "poolers": "none in between: the driver is a pool itself",
    },
    costs={"write": "one round trip and one flush of the WAL", "get and scan": "one round trip"},
    provisions="the schema, with one table, one index and one function; never the database or the user",
    policy="""-- To provision:
GRANT CREATE ON DATABASE your_database TO engines;
-- To run on a schema that somebody else provisioned:
GRANT USAGE ON SCHEMA engines TO engines;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA engines TO engines;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA engines TO engines;""",
    prerequisites=(
        "PostgreSQL 14 or later, with an empty or shared database whose encoding is UTF8",
        "a user with CREATE on the database, or a schema that somebody else provisioned",
        "a direct connection to the primary, with no pooler in between",
        "the user's password where the server can resolve a handle to it",
    ),
    example={"host": "db.example.com", "database": "engines", "user": "engines"},
    control_plane_url="postgresql://USER:PASSWORD@HOST[:PORT]/DATABASE[?schema=NAME]",
    proven={
        "PostgreSQL 18, a real server": "the conformance kit, the log, moves, TLS, a disturbed network,"
        " and in script/soak 200 times kill -9 of server, database or both under load, with 57,018 changes"
        " acknowledged and none lost or doubled",
        "managed services of clouds": "not run",
    },
)

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
URL_SCHEMES: Final = ("postgresql", "postgres")
TlsMode = Literal["verify-full", "require", "disable"]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a backend record of this driver holds. The password is a secret and no part of it."""

    host: str
    port: int = 5432
    database: str
    user: str
    schema: str = "engines"
    pool_size: int = 10
    tls: TlsMode | None = None
    tls_ca_file: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.schema) or self.schema.startswith("pg_"):
            raise ValueError("schema is a plain lower-case name of at most 63 characters")
        if not 1 <= self.pool_size <= POOL_SIZE_MAX:
            raise ValueError(f"pool_size is 1 to {POOL_SIZE_MAX}")
        if not 1 <= self.port <= 65_535:
            raise ValueError("port is 1 to 65535")

    def tls_mode(self) -> TlsMode:
        return self.tls or ("disable" if _is_local(self.host) else "verify-full")


def _is_local(host: str) -> bool:
    if host == "localhost" or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def config_from_url(url: str) -> tuple[dict[str, Any], str | None]:
    """`postgresql://user:password@host:port/database?schema=…&tls=…` as a record's config, and the password.

    Parameters are the other fields of `Config`. Raises Invalid, which repeats nothing of the URL: a password
    with a slash in it may stand where one expects the port.
    """
    try:
        parts = urlsplit(url)
        found = (("host", parts.hostname), ("port", parts.port), ("user", parts.username))
        given = {name: unquote(str(value)) for name, value in found if value is not None}
        given |= {"database": unquote(parts.path[1:]), **dict(parse_qsl(parts.query))}
        password = None if parts.password is None else unquote(parts.password)
    except ValueError:
        raise _bad_url("host and port cannot be told apart") from None
    if parts.scheme not in URL_SCHEMES or not given["database"] or not given.get("user"):
        raise _bad_url("user, host and database are needed")
    try:
        config = msgspec.convert(given, Config, strict=False)
    except msgspec.ValidationError:
        fields = ", ".join(field for field in Config.__struct_fields__ if field not in given)
        raise _bad_url(f"a parameter is not one of {fields}, or has a value that it cannot have") from None
    return {key: value for key, value in msgspec.to_builtins(config).items() if value is not None}, password


def _bad_url(reason: str) -> Invalid:
    return Invalid(
        f"this is no postgresql://user:password@host:port/database: {reason}", field="control_plane"
    )


def open_driver(config: Config, secrets: Mapping[str, Secret], clock: Clock) -> PostgresDocuments:
    """Opens nothing yet: connections come with the first calls."""
    return PostgresDocuments(config, secrets.get("password"), clock)


class PostgresDocuments:
    """`DocumentDriver` on one schema. Bound to the event loop of its first call."""

    def __init__(self, config: Config, password: Secret | None, clock: Clock) -> None:
        self._clock = clock
        self._schema = config.schema
        self._sql = {name: text.format(schema=config.schema) for name, text in STATEMENTS.items()}
        self._sessions = Sessions(_connector(config, password), config.pool_size)

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        if len(keys) == 1:
            call = Call(self._sql["get_one"], (partition, keys[0], self._now()))
        else:
            call = Call(self._sql["get"], (partition, keys, self._now()))
        rows, _ = await self._sessions.run(call, lost=Unavailable)
        return {row[0]: Doc(row[0], row[1], row[2], row[3]) for row in rows}

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        sql = self._sql["scan_down" if reverse else "scan_up"]
        arguments = (partition, above, below, self._now(), limit + 1)
        rows, _ = await self._sessions.run(Call(sql, arguments), lost=Unavailable)
        docs = tuple(Doc(row[0], row[1], row[2], row[3]) for row in rows[:limit])
        ended = len(rows) <= limit and (not rows or rows[-1][4] < PAGE_BYTES)
        return Page(docs, resume=None if ended else docs[-1].key)

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        impossible = [op.key for op in ops if isinstance(op.when, Match) and not _is_version(op.when.version)]
        if impossible:
            raise _conflict(impossible)
        if len(ops) == 1:
            await self._write_one(partition, ops[0], write_id)
        else:
            await self._write_batch(partition, sorted(ops, key=lambda op: op.key), write_id)

    async def _write_one(self, partition: str, op: Op, write_id: str) -> None:
        name = KINDS[type(op), type(op.when)].statement
        arguments: tuple[Any, ...] = (partition, op.key)
        if isinstance(op, Put):
            arguments += (op.body, op.write_id or write_id, op.expires_at)
        if not isinstance(op.when, Always):
            arguments += (self._now(),)
        if isinstance(op.when, Match):
            arguments += (op.when.version,)
        _, status = await self._sessions.run(Call(self._sql[name], arguments), lost=OutcomeUnknown)
        if status.endswith(" 0") and not isinstance(op.when, Always):
            raise _conflict([op.key])

    async def _write_batch(self, partition: str, ops: Sequence[Op], write_id: str) -> None:
        puts = [op if isinstance(op, Put) else None for op in ops]
        arguments = (
            partition,
            self._now(),
            "".join(KINDS[type(op), type(op.when)].letter for op in ops),
            [op.key for op in ops],
            [op.when.version if isinstance(op.when, Match) else None for op in ops],
            [put and put.body for put in puts],
            [put and (put.write_id or write_id) for put in puts],
            [None if put is None or put.expires_at is None else str(put.expires_at) for put in puts],
        )
        rows, _ = await self._sessions.run(Call(self._sql["write"], arguments), lost=OutcomeUnknown)
        if rows[0][0]:
            raise _conflict(rows[0][0])

    async def provision(self) -> None:
        """Needs no right to create anything where everything is there, and touches nothing of others."""

        async def inspect(session: Session) -> str:
            found: str = await session.connection.fetchval(INSPECT, self._schema, timeout=COMMAND_TIMEOUT_S)
            return found

        async def create(session: Session) -> None:
            found = await inspect(session)
            if found in ("foreign", "unordered"):
                # A name is looked up as of now, its columns as of the statement's begin: what somebody else
                # made in between seems to have none.
                found = await inspect(session)
            if found == "missing":
                script = PROVISION.format(schema=self._schema)
                await session.connection.execute(script, timeout=COMMAND_TIMEOUT_S)
            elif found == "unordered":
                raise BackendRefused("the table documents does not order its keys by bytes")
            elif found == "foreign":
                raise BackendRefused(
                    f"documents or documents_expiry in schema {self._schema} is somebody else's: its columns"
                    " or its primary key are not this driver's; choose another schema"
                )
            else:
                assert found == "complete", found

        await self._sessions.run(create, lost=Unavailable)

    async def reclaim(self, limit: int) -> int:
        """Documents that somebody writes at this moment are passed over; the next call finds them."""
        removed = 0
        while removed < limit:
            batch = min(limit - removed, RECLAIM_BATCH)
            call = Call(self._sql["reclaim"], (self._now(), batch))
            _, status = await self._sessions.run(call, lost=Unavailable)
            count = int(status.rpartition(" ")[2])
            removed += count
            if count < batch:
                break
        return removed

    async def close(self) -> None:
        await self._sessions.close()

    def _now(self) -> int:
        """Whole seconds decide as fractions would: `expires_at` is whole."""
        return math.floor(self._clock.now())


def _conflict(keys: Sequence[str]) -> Conflict:
    return Conflict("a condition did not hold", keys=keys)


def _is_version(text: str) -> bool:
    """Whether a put may have given this version to a document; the server refuses some text that none has."""
    return text.isascii() and text.isprintable()


def _connector(config: Config, password: Secret | None) -> Callable[[], Awaitable[Any]]:
    """Connects by `config`. The trusted certificates are read once, by the first connection."""
    tls: ssl.SSLContext | Literal[False] | None = None

    async def connect_by_config() -> Any:
        nonlocal tls
        if tls is None:
            tls = _tls(config)
        return await connect(
            host=config.host,
            port=config.port,
            database=config.database,
            user=config.user,
            password=password.reveal() if password else "",
            tls=tls,
        )

    return connect_by_config


def _tls(config: Config) -> ssl.SSLContext | Literal[False]:
    mode = config.tls_mode()
    if mode == "disable":
        return False
    try:
        context = ssl.create_default_context(cafile=config.tls_ca_file)
    except OSError as error:
        raise BackendRefused("the certificates of tls_ca_file cannot be read") from error
    if mode == "require":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
