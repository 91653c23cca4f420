"""What is PostgreSQL's own: its pool, its locks, its plans, its privileges, its errors."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio

from engines.drivers.documents.postgres import Config, PostgresDocuments, config_from_url, open_driver
from engines.drivers.documents.postgres import sessions as sessions_module
from engines.drivers.documents.postgres.sessions import (
    COMMAND_TIMEOUT_S,
    STATEMENT_TIMEOUT_S,
    WAIT_TIMEOUT_S,
    Call,
)
from engines.drivers.documents.postgres.statements import INSPECT, STATEMENTS
from engines.errors import (
    BackendRefused,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)
from engines.ports.documents import ABSENT, ALWAYS, Delete, Match, Op
from engines.ports.secrets import Secret
from engines.testing.clock import ManualClock
from engines.testing.documents.harness import PARTITION, bodies, fill, get, put, read_keys, refused, write
from tests.servers.postgres import PostgresServer

SCHEMA = "engines"


def open_at(url: str, **fields: Any) -> PostgresDocuments:
    config, password = config_from_url(url)
    secrets = {} if password is None else {"password": Secret(password)}
    return open_driver(msgspec.convert({**config, **fields}, Config), secrets, ManualClock())


_OURS = (
    'CREATE TABLE engines.documents (partition text COLLATE "C" NOT NULL, key text COLLATE "C" NOT NULL,'
    " body text NOT NULL, version text NOT NULL, expires_at bigint, PRIMARY KEY (partition, key))"
)


@pytest_asyncio.fixture
async def driver(postgres_database: str) -> AsyncIterator[PostgresDocuments]:
    opened = open_at(postgres_database, pool_size=4)
    await opened.provision()
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def admin(postgres_database: str) -> AsyncIterator[asyncpg.Connection]:
    """The superuser's own connection, beside the driver."""
    connection = await asyncpg.connect(postgres_database)
    yield connection
    await connection.close()


async def server_pids(admin: asyncpg.Connection, state: str = "%") -> list[int]:
    await admin.execute("SELECT pg_stat_clear_snapshot()")
    rows = await admin.fetch(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'engines'"
        " AND datname = current_database() AND state LIKE $1",
        state,
    )
    return [row["pid"] for row in rows]


async def lock_waits(admin: asyncpg.Connection) -> int:
    await admin.execute("SELECT pg_stat_clear_snapshot()")
    count: int = await admin.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'engines'"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
    )
    return count


async def until_waiting(admin: asyncpg.Connection, count: int = 1) -> None:
    """Returns once that many of the driver's statements wait for a lock."""
    async with asyncio.timeout(20):
        while await lock_waits(admin) < count:  # noqa: ASYNC110 (the server has no event to give)
            await asyncio.sleep(0.005)


async def until_none(admin: asyncpg.Connection, state: str = "%") -> None:
    """Returns once the driver has no session in that state any more."""
    async with asyncio.timeout(10):
        while await server_pids(admin, state):  # noqa: ASYNC110 (the server has no event to give)
            await asyncio.sleep(0.005)


# --- what an operator has to mend ---


class TestRefusals:
    async def test_a_wrong_password_is_refused(self, postgres_database: str) -> None:
        config, _ = config_from_url(postgres_database)
        for secrets in ({"password": Secret("wrong")}, {}):
            client = open_driver(Config(**config), secrets, ManualClock())
            with pytest.raises(BackendRefused):
                await client.provision()
            with pytest.raises(BackendRefused):
                await write(client, put("k1"))
            await client.close()

    async def test_a_missing_database_or_table_is_refused(self, postgres_database: str) -> None:
        for client in (open_at(postgres_database + "_gone"), open_at(postgres_database)):
            with pytest.raises(BackendRefused):
                await get(client, "k1")
            with pytest.raises(BackendRefused):
                await write(client, put("k1"), put("k2"))
            await client.close()

    async def test_a_database_that_cannot_hold_every_text_is_refused(
        self, postgres_server: PostgresServer
    ) -> None:
        name = f"latin_{uuid.uuid4().hex}"
        postgres_server.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        client = open_at(postgres_server.url(name))
        try:
            with pytest.raises(BackendRefused, match="UTF8"):
                await client.provision()
        finally:
            await client.close()
            postgres_server.drop_database(name)

    async def test_a_table_that_sorts_by_a_language_is_refused(
        self, postgres_database: str, admin: asyncpg.Connection
    ) -> None:
        await provisioned(postgres_database)
        await admin.execute('ALTER TABLE engines.documents ALTER key TYPE text COLLATE "default"')
        with pytest.raises(BackendRefused, match="order"):
            await provisioned(postgres_database)

    @pytest.mark.parametrize(
        "others",
        [
            "CREATE TABLE engines.documents (id bigint PRIMARY KEY, title text)",
            "CREATE VIEW engines.documents AS SELECT 1 AS key",
            _OURS.replace("expires_at bigint", "expires_at timestamptz"),
            _OURS.replace("body text NOT NULL", "body jsonb NOT NULL"),
            _OURS.replace("PRIMARY KEY (partition, key)", "PRIMARY KEY (key, partition)"),
            _OURS.replace("PRIMARY KEY (partition, key)", "PRIMARY KEY (key)"),
            _OURS.replace(", PRIMARY KEY (partition, key)", ""),
            _OURS.replace("expires_at bigint", "expires_at bigint, owner text NOT NULL"),
            "CREATE TABLE engines.other (n int); CREATE INDEX documents_expiry ON engines.other (n)",
        ],
    )
    async def test_somebody_elses_table_is_refused_and_left_as_it_is(
        self, postgres_database: str, admin: asyncpg.Connection, others: str
    ) -> None:
        await admin.execute(f"CREATE SCHEMA engines; {others}")
        objects = "SELECT count(*) FROM pg_class WHERE relnamespace = 'engines'::regnamespace"
        before = await admin.fetchval(objects)
        with pytest.raises(BackendRefused, match="somebody else's"):
            await provisioned(postgres_database)
        assert await admin.fetchval(objects) == before
        functions = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'engines'::regnamespace"
        assert await admin.fetchval(functions) == 0

    async def test_our_table_is_completed_and_a_column_that_needs_no_value_does_no_harm(
        self, postgres_database: str, admin: asyncpg.Connection
    ) -> None:
        await admin.execute(f"CREATE SCHEMA engines; {_OURS}; ALTER TABLE engines.documents ADD note text")
        client = open_at(postgres_database)
        await client.provision()
        await client.provision()
        await write(client, put("k1", "1"), put("k2", "2", ABSENT))
        assert await bodies(client, "k1", "k2") == {"k1": "1", "k2": "2"}
        await client.close()

    async def test_provisioning_needs_no_right_to_create_where_everything_is_there(
        self, postgres_database: str, admin: asyncpg.Connection
    ) -> None:
        await provisioned(postgres_database)
        role = f"modest_{uuid.uuid4().hex}"
        await admin.execute(
            f"CREATE ROLE {role} LOGIN PASSWORD 'modest'; GRANT USAGE ON SCHEMA engines TO {role};"
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON engines.documents TO {role}"
        )
        config, _ = config_from_url(postgres_database)
        modest = {"password": Secret("modest")}
        client = open_driver(Config(**{**config, "user": role}), modest, ManualClock())
        stranger = open_driver(Config(**{**config, "user": role, "schema": "other"}), modest, ManualClock())
        try:
            await client.provision()
            await write(client, put("k1"), put("k2", "1", ABSENT))
            with pytest.raises(BackendRefused):
                await stranger.provision()
        finally:
            await client.close()
            await stranger.close()
            await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")

    async def test_a_server_without_tls_is_not_used_where_tls_is_asked_for(
        self, postgres_database: str
    ) -> None:
        client = open_at(postgres_database, tls="require")
        with pytest.raises(Unavailable):
            await get(client, "k1")
        await client.close()


async def provisioned(url: str) -> None:
    client = open_at(url)
    try:
        await client.provision()
    finally:
        await client.close()


# --- batches and locks ---


class TestLocks:
    async def test_batches_over_the_same_keys_never_deadlock(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        """New, present and vanishing keys in every order, without one repeat: a deadlock would raise."""
        before = await deadlocks(admin)
        keys = [f"k{number}" for number in range(12)]

        async def mix(seed: int) -> None:
            random = Random(seed)
            for _ in range(6):
                chosen = random.sample(keys, 8)
                await write(
                    driver,
                    *(put(key, str(seed)) for key in chosen[:5]),
                    *(Delete(key, ALWAYS) for key in chosen[5:]),
                )

        await asyncio.gather(*(mix(seed) for seed in range(8)))
        assert await deadlocks(admin) == before

    async def test_a_condition_that_turns_false_while_the_batch_waits_undoes_all_of_it(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        version = await write(driver, put("kc", "1"))
        contests: list[tuple[str, Op, str]] = [
            ("INSERT INTO engines.documents VALUES ($1, 'kb', '9', 'v', NULL)", put("kb", "1", ABSENT), "kb"),
            (
                "UPDATE engines.documents SET version = 'v' WHERE partition = $1 AND key = 'kc'",
                put("kc", "2", Match(version)),
                "kc",
            ),
            (
                "DELETE FROM engines.documents WHERE partition = $1 AND key = 'kc'",
                Delete("kc", Match("v")),
                "kc",
            ),
        ]
        for statement, contested, key in contests:
            async with held(admin, statement, PARTITION):
                batch = (put("ka", "1", ABSENT), contested, put("kd", "1", ABSENT), put("ke", "1"))
                writing = asyncio.create_task(refused(driver, *batch))
                await until_waiting(admin)
            assert await writing == (key,)
            assert await bodies(driver, "ka", "kd", "ke") == {}

    async def test_a_contest_that_is_rolled_back_does_not_refuse_the_batch(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        statement = "INSERT INTO engines.documents VALUES ($1, 'kb', '9', 'v', NULL)"
        async with held(admin, statement, PARTITION, commit=False):
            writing = asyncio.create_task(write(driver, put("ka", "1", ABSENT), put("kb", "1", ABSENT)))
            await until_waiting(admin)
        await writing
        assert await bodies(driver, "ka", "kb") == {"ka": "1", "kb": "1"}

    async def test_only_the_contested_keys_of_a_run_are_named(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        statement = "INSERT INTO engines.documents SELECT $1, unnest(ARRAY['kb', 'kd']), '9', 'v', NULL"
        async with held(admin, statement, PARTITION):
            batch = [put(key, "1", ABSENT) for key in ("ka", "kb", "kc", "kd", "ke")]
            writing = asyncio.create_task(refused(driver, *batch))
            await until_waiting(admin)
        assert await writing == ("kb", "kd")

    async def test_a_lock_held_for_too_long_is_unavailable_and_nothing_was_applied(
        self, driver: PostgresDocuments, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The server speaks first, also where this process stands still meanwhile.
        assert STATEMENT_TIMEOUT_S < COMMAND_TIMEOUT_S
        monkeypatch.setattr(sessions_module, "COMMAND_TIMEOUT_S", 60.0)
        await write(driver, put("kb", "1"))
        statement = "UPDATE engines.documents SET body = '9' WHERE partition = $1 AND key = 'kb'"
        async with held(admin, statement, PARTITION, commit=False):
            began = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable):
                await write(driver, put("ka"), put("kb", "2"))
            waited_s = asyncio.get_running_loop().time() - began
        assert waited_s > STATEMENT_TIMEOUT_S - 0.5
        assert await bodies(driver, "ka", "kb") == {"kb": "1"}

    async def test_reclaim_passes_over_what_somebody_writes(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        await write(driver, *(put(f"k{number}", "1", expires_at=1) for number in range(3)))
        statement = "UPDATE engines.documents SET body = '9' WHERE partition = $1 AND key = 'k1'"
        async with held(admin, statement, PARTITION):
            assert await driver.reclaim(10) == 2
        assert await driver.reclaim(10) == 1


class held:  # noqa: N801 (it is used as a verb)
    """The rows that `statement` touches stay locked inside; then it is committed, or rolled back."""

    def __init__(
        self, admin: asyncpg.Connection, statement: str, *arguments: str, commit: bool = True
    ) -> None:
        self._admin = admin
        self._statement = statement
        self._arguments = arguments
        self._commit = commit

    async def __aenter__(self) -> None:
        self._transaction = self._admin.transaction()
        await self._transaction.start()
        await self._admin.execute(self._statement, *self._arguments)

    async def __aexit__(self, *_: object) -> None:
        await (self._transaction.commit() if self._commit else self._transaction.rollback())


async def deadlocks(admin: asyncpg.Connection) -> int:
    await admin.execute("SELECT pg_stat_force_next_flush()")
    count: int = await admin.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    return count


# --- the pool ---


class TestPool:
    async def test_no_more_connections_are_opened_than_the_pool_has(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        await asyncio.gather(*(write(driver, put(f"k{number}")) for number in range(100)))
        assert len(await server_pids(admin)) == 4

    async def test_calls_one_after_another_use_one_connection(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        for number in range(10):
            await write(driver, put(f"k{number}"))
            await get(driver, f"k{number}")
        assert len(await server_pids(admin)) == 1

    async def test_a_cancelled_statement_is_cancelled_on_the_server_too(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        await write(driver, put("k1", "1"))
        statement = "UPDATE engines.documents SET body = '9' WHERE partition = $1 AND key = 'k1'"
        async with held(admin, statement, PARTITION):
            writing = asyncio.create_task(write(driver, put("k1", "2")))
            await until_waiting(admin)
            writing.cancel()
            await asyncio.wait([writing])
            await until_none(admin, "active")
        assert await bodies(driver, "k1") == {"k1": "9"}

    async def test_cancelled_calls_keep_no_room_in_the_pool(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        await write(driver, put("k1", "1"))
        statement = "UPDATE engines.documents SET body = '9' WHERE partition = $1 AND key = 'k1'"
        async with held(admin, statement, PARTITION):
            writing = [asyncio.create_task(write(driver, put("k1", "2"))) for _ in range(20)]
            await until_waiting(admin, 4)
            for task in writing:
                task.cancel()
            await asyncio.wait(writing)
            async with asyncio.timeout(10):
                await asyncio.gather(*(write(driver, put(f"m{number}")) for number in range(20)))
        assert len(await server_pids(admin)) <= 4

    async def test_a_connection_whose_call_was_cancelled_is_not_used_again(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        await write(driver, put("k1", "1"))
        (cancelled,) = await server_pids(admin)
        statement = "UPDATE engines.documents SET body = '9' WHERE partition = $1 AND key = 'k1'"
        async with held(admin, statement, PARTITION):
            writing = asyncio.create_task(write(driver, put("k1", "2")))
            await until_waiting(admin)
            writing.cancel()
            await asyncio.wait([writing])
        await write(driver, put("k1", "3"))
        await until_none(admin, "active")
        async with asyncio.timeout(10):
            while cancelled in await server_pids(admin):  # noqa: ASYNC110 (the server has no event to give)
                await asyncio.sleep(0.005)
        assert await bodies(driver, "k1") == {"k1": "3"}

    async def test_a_connection_handed_to_a_caller_who_just_left_goes_to_the_next(
        self, postgres_database: str
    ) -> None:
        client = open_at(postgres_database, pool_size=1)
        await client.provision()

        async def write_then_cancel_the_next() -> None:
            await write(client, put("k1"))
            second.cancel()  # In the same step in which it was handed the connection.

        first = asyncio.create_task(write_then_cancel_the_next())
        second = asyncio.create_task(write(client, put("k2")))
        await asyncio.wait([first, second])
        assert second.cancelled()
        async with asyncio.timeout(5):
            await write(client, put("k3"))
        await client.close()

    async def test_a_call_that_waits_too_long_for_a_connection_is_unavailable_and_keeps_no_place(
        self, postgres_database: str, admin: asyncpg.Connection
    ) -> None:
        client = open_at(postgres_database, pool_size=1)
        await client.provision()
        await write(client, put("k1", "1"))
        statement = "UPDATE engines.documents SET body = '9' WHERE partition = $1 AND key = 'k1'"
        async with held(admin, statement, PARTITION, commit=False):
            # The server ends the first after STATEMENT_TIMEOUT_S; the second then waits for the lock as long.
            writing = [asyncio.create_task(write(client, put("k1", "2"))) for _ in range(2)]
            await until_waiting(admin)
            began = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable, match="no connection"):
                await write(client, put("k2"))
            waited_s = asyncio.get_running_loop().time() - began
        assert WAIT_TIMEOUT_S - 0.5 < waited_s < WAIT_TIMEOUT_S + 20.0
        await asyncio.gather(*writing, return_exceptions=True)
        assert await bodies(client, "k1", "k2") == {"k1": "2"}
        await client.close()

    async def test_close_waits_for_the_calls_under_way(
        self, postgres_database: str, admin: asyncpg.Connection
    ) -> None:
        client = open_at(postgres_database)
        await client.provision()
        await write(client, put("k1", "1"))
        statement = "UPDATE engines.documents SET body = '9' WHERE partition = $1 AND key = 'k1'"
        async with held(admin, statement, PARTITION):
            writing = asyncio.create_task(write(client, put("k1", "2")))
            await until_waiting(admin)
            closing = asyncio.create_task(client.close())
            await asyncio.wait([closing], timeout=0.2)
            assert not closing.done()
        assert await writing
        await closing
        assert await admin.fetchval("SELECT body FROM engines.documents WHERE key = 'k1'") == "2"

    @pytest.mark.parametrize("batch", [False, True], ids=["alone", "in a batch"])
    async def test_a_session_ended_by_an_administrator_leaves_the_outcome_unknown(
        self, driver: PostgresDocuments, admin: asyncpg.Connection, *, batch: bool
    ) -> None:
        await write(driver, put("k1", "1"))
        statement = "UPDATE engines.documents SET body = '9' WHERE partition = $1 AND key = 'k1'"
        async with held(admin, statement, PARTITION):
            ops = [put("k1", "2"), *([put("k2")] if batch else [])]
            writing = asyncio.create_task(write(driver, *ops))
            await until_waiting(admin)
            for pid in await server_pids(admin, "active"):
                await admin.execute("SELECT pg_terminate_backend($1)", pid)
            with pytest.raises(OutcomeUnknown) as caught:
                await writing
        assert isinstance(caught.value.__cause__, asyncpg.PostgresConnectionError)
        assert await bodies(driver, "k1", "k2") == {"k1": "9"}

    async def test_idle_sessions_that_were_ended_are_not_used(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        await asyncio.gather(*(get(driver, "k1") for _ in range(20)))
        for pid in await server_pids(admin):
            await admin.execute("SELECT pg_terminate_backend($1, 5000)", pid)
        await asyncio.sleep(0.05)
        await asyncio.gather(*(write(driver, put(f"k{number}")) for number in range(20)))

    async def test_an_orderly_restart_of_the_server_is_survived(
        self, driver: PostgresDocuments, postgres_server: PostgresServer
    ) -> None:
        await fill(driver, ["ka", "kb"])
        await asyncio.to_thread(postgres_server.restart)
        assert await read_keys(driver) == ["ka", "kb"]
        await write(driver, put("kc", "1", ABSENT))

    async def test_a_server_with_no_connection_to_spare_throttles(
        self, postgres_database: str, admin: asyncpg.Connection
    ) -> None:
        role = f"crowded_{uuid.uuid4().hex}"
        await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'crowded' CONNECTION LIMIT 0")
        config, _ = config_from_url(postgres_database)
        client = open_driver(
            Config(**{**config, "user": role}), {"password": Secret("crowded")}, ManualClock()
        )
        with pytest.raises(Throttled):
            await get(client, "k1")
        await client.close()
        await admin.execute(f"DROP ROLE {role}")

    async def test_calls_past_the_longest_queue_are_throttled(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        await write(driver, put("k1", "1"))
        statement = "UPDATE engines.documents SET body = '9' WHERE partition = $1 AND key = 'k1'"
        async with held(admin, statement, PARTITION):
            waiting = [
                asyncio.create_task(write(driver, put("k1", "2")))
                for _ in range(4 + sessions_module.WAITING_MAX)
            ]
            await until_waiting(admin, 4)
            with pytest.raises(Throttled):
                await write(driver, put("k2"))
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        await write(driver, put("k2"))

    async def test_close_ends_every_session(self, postgres_database: str, admin: asyncpg.Connection) -> None:
        client = open_at(postgres_database)
        await client.provision()
        await asyncio.gather(*(write(client, put(f"k{number}")) for number in range(20)))
        await client.close()
        await until_none(admin)


# --- sessions ---


class TestSession:
    async def test_an_acknowledged_write_is_flushed_whatever_the_role_says(
        self, postgres_database: str, admin: asyncpg.Connection
    ) -> None:
        async def setting() -> str:
            client = open_at(postgres_database)
            call = Call("SELECT current_setting('synchronous_commit')", ())
            rows, _ = await client._sessions.run(call, lost=Unavailable)
            await client.close()
            return str(rows[0][0])

        database = await admin.fetchval("SELECT current_database()")
        for given, kept in (("off", "on"), ("remote_apply", "remote_apply"), ("local", "local")):
            await admin.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = {given}')
            assert await setting() == kept

    async def test_a_stricter_isolation_of_the_role_changes_no_outcome(
        self, postgres_database: str, admin: asyncpg.Connection
    ) -> None:
        database = await admin.fetchval("SELECT current_database()")
        await admin.execute(
            f"ALTER DATABASE \"{database}\" SET default_transaction_isolation = 'serializable'"
        )
        client = open_at(postgres_database, pool_size=8)
        await client.provision()
        await asyncio.gather(*(write(client, put("ka"), put(f"kb{number}")) for number in range(40)))
        assert len(await read_keys(client)) == 41
        await client.close()

    @pytest.mark.parametrize("name", ["get_one", "get", "scan_up", "scan_down", "replace", "delete"])
    async def test_every_statement_walks_an_index_whatever_statistics_say(
        self, driver: PostgresDocuments, admin: asyncpg.Connection, name: str
    ) -> None:
        """The plan is taken from the driver's own session, before anything was analysed."""
        sql = STATEMENTS[name].format(schema=SCHEMA)
        arguments: dict[str, Sequence[object]] = {
            "get_one": ("'p'", "'k'", 1),
            "get": ("'p'", "ARRAY['k','l']", 1),
            "scan_up": ("'p'", "'a'", "'z'", 1, 100),
            "scan_down": ("'p'", "'a'", "'z'", 1, 100),
            "replace": ("'p'", "'k'", "'b'", "'v'", "NULL", 1, "'w'"),
            "delete": ("'p'", "'k'"),
        }

        async def explain(session: Any) -> list[str]:
            await session.connection.execute(f"PREPARE plan AS {sql}")
            values = ", ".join(map(str, arguments[name]))
            rows = await session.connection.fetch(f"EXPLAIN EXECUTE plan ({values})")
            await session.connection.execute("DEALLOCATE plan")
            return [row[0] for row in rows]

        for rows in (0, 20_000):
            await admin.execute(
                "INSERT INTO engines.documents SELECT 'p', 'k' || n, repeat('x', 400), 'v', NULL"
                f" FROM generate_series(1, {rows}) AS n ORDER BY md5(n::text)"
            )
            plan = "\n".join(await driver._sessions.run(explain, lost=Unavailable))
            assert "documents_pkey" in plan, plan
            assert not [node for node in ("Seq Scan", "Bitmap", "Sort") if node in plan], plan

    async def test_nothing_of_the_environment_reaches_the_connection(
        self, postgres_database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {
            "PGPASSWORD": "wrong",
            "PGHOST": "192.0.2.1",
            "PGPORT": "1",
            "PGUSER": "nobody",
            "PGDATABASE": "nothing",
            "PGSSLMODE": "verify-full",
            "PGTARGETSESSIONATTRS": "standby",
        }.items():
            monkeypatch.setenv(name, value)
        await provisioned(postgres_database)
        config, password = config_from_url(postgres_database)
        monkeypatch.setenv("PGPASSWORD", password or "")
        client = open_driver(Config(**config), {}, ManualClock())
        with pytest.raises(BackendRefused):
            await get(client, "k1")
        await client.close()

    async def test_two_schemas_of_one_database_know_nothing_of_each_other(
        self, postgres_database: str, admin: asyncpg.Connection
    ) -> None:
        clients = [open_at(postgres_database, schema=schema) for schema in ("user", "other")]
        for number, client in enumerate(clients):
            await client.provision()
            await write(client, put("k1", str(number), ABSENT), put("k2", str(number), ABSENT))
        for number, client in enumerate(clients):
            assert await bodies(client, "k1", "k2") == {"k1": str(number), "k2": str(number)}
            assert await admin.fetchval(INSPECT, ("user", "other")[number]) == "complete"
            await client.close()

    async def test_a_table_made_anew_is_used_without_a_restart(
        self, driver: PostgresDocuments, admin: asyncpg.Connection
    ) -> None:
        await write(driver, put("k1"))
        await write(driver, put("k1"), put("k2"))
        await admin.execute("DROP SCHEMA engines CASCADE")
        with pytest.raises(BackendRefused):
            await get(driver, "k1")
        await driver.provision()
        await write(driver, put("k1", "1", ABSENT), put("k2", "1", ABSENT))
        assert await bodies(driver, "k1", "k2") == {"k1": "1", "k2": "1"}
