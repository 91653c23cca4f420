"""An append whose transaction is held back inside PostgreSQL hides nothing and is not passed over."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from engines.testing.documents import DocumentHarness, Process
from engines.testing.log import logs
from engines.testing.log.harness import Logs, append, name_of, names
from engines.testing.log.reading import SOON_S, Following
from tests.conformance.harnesses import postgres_harness

__all__ = ["logs"]

LOCK = 4_242
HOLD = """
CREATE FUNCTION {schema}.hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.body LIKE '%held back%' THEN PERFORM pg_advisory_xact_lock({lock}); END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER hold {moment} INSERT ON {schema}.documents FOR EACH ROW EXECUTE FUNCTION {schema}.hold();
"""


@pytest.fixture
def harness(request: pytest.FixtureRequest) -> DocumentHarness:
    return postgres_harness(request)


@pytest_asyncio.fixture
async def session(harness: DocumentHarness) -> AsyncIterator[Any]:
    """A session of the test's own on the database of the harness."""
    assert isinstance(harness.process, Process)
    arguments = harness.process.arguments
    config = arguments["config"]
    connection = await asyncpg.connect(
        host=config["host"],
        port=config["port"],
        user=config["user"],
        database=config["database"],
        password=arguments["secrets"]["password"],
    )
    await connection.execute(f"SET search_path TO {config['schema']}")
    yield connection
    await connection.close()


async def hold_inside(session: Any, moment: str) -> None:
    """From now on a row that says so waits for a lock that `session` has."""
    schema = await session.fetchval("SELECT current_schema()")
    await session.execute("SELECT pg_advisory_lock($1::bigint)", LOCK)
    await session.execute(HOLD.format(schema=schema, moment=moment, lock=LOCK))


async def held(session: Any) -> None:
    """Returns once a transaction waits for the lock."""
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = $1::bigint"
    async with asyncio.timeout(SOON_S):
        while not await session.fetchval(query, LOCK):  # noqa: ASYNC110 (the server has no event for it)
            await asyncio.sleep(0.005)


async def test_later_appends_commit_while_a_transaction_waits_to_insert_and_nothing_is_skipped(
    logs: Logs, session: Any
) -> None:
    slow, fast, reader = logs.open(), logs.open(), logs.open()
    await append(slow, "first")
    await append(fast, "second")
    await hold_inside(session, "BEFORE")
    waiting = asyncio.ensure_future(append(slow, "held back"))
    await held(session)
    following = Following(logs.open())
    seen: list[str | None] = []
    for number in range(10):
        await append(fast, f"{number}")
        seen += [name_of(event) for event in (await reader.list_after(len(seen), limit=4)).events]
    assert not waiting.done()
    await session.execute("SELECT pg_advisory_unlock($1::bigint)", LOCK)
    assert (await waiting).positions == (13,)
    await append(fast, "last")
    while more := (await reader.list_after(len(seen), limit=4)).events:
        seen += [name_of(event) for event in more]
    everything = ["first", "second", *map(str, range(10)), "held back", "last"]
    assert seen == everything == await names(logs.open())
    assert await following.until(len(everything)) == everything


async def test_nobody_passes_a_transaction_that_has_its_slot_and_has_not_committed(
    logs: Logs, session: Any
) -> None:
    slow, fast, reader = logs.open(), logs.open(), logs.open()
    await append(slow, "first")
    await append(fast, "second")
    await slow.head()
    await hold_inside(session, "AFTER")
    waiting = asyncio.ensure_future(append(slow, "held back"))
    await held(session)
    behind = asyncio.ensure_future(append(fast, "behind"))
    await asyncio.wait((behind,), timeout=0.3)
    assert not behind.done()
    assert [name_of(event) for event in (await reader.list_after(0, limit=10)).events] == ["first", "second"]
    await session.execute("SELECT pg_advisory_unlock($1::bigint)", LOCK)
    await asyncio.gather(waiting, behind)
    assert await names(reader) == ["first", "second", "held back", "behind"]
