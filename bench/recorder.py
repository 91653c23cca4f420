"""Appending, beside the PostgreSQL recorder of the PyPI package `eventsourcing`.

Same server, same database, same event bodies, 32 callers who each append one event and wait for it. The
recorder is synchronous, so its callers are threads; its pool is left as its factory makes it. With its
database functions it takes no table lock, and a reader of its notification log can then miss events.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import uvloop

from bench.appending import append_rate
from bench.events import event_bodies
from bench.measure import Goal, Result, Stopwatch, alternate, compared
from bench.stage import APPENDERS, EVENT_BYTES, Stage
from bench.storage import Storage, open_postgres_at
from engines.core.log import Entry

WARM_APPENDS_EACH = 2
DEFAULT_SCHEMA = "recorder"
FUNCTIONS_SCHEMA = "recorder_functions"


def append_recorder(stage: Stage) -> list[Result]:
    return uvloop.run(_append_recorder(stage))


async def _append_recorder(stage: Stage) -> list[Result]:
    url = stage.new_database()
    await _make_schemas(url)
    with (
        _recorder(url, schema=DEFAULT_SCHEMA, functions=False) as default,
        _recorder(url, schema=FUNCTIONS_SCHEMA, functions=True) as with_functions,
    ):
        async with open_postgres_at(url) as storage:
            return await _compare(stage, storage, default, with_functions)


async def _make_schemas(url: str) -> None:
    connection = await asyncpg.connect(url)
    for schema in (DEFAULT_SCHEMA, FUNCTIONS_SCHEMA):
        await connection.execute(f"CREATE SCHEMA {schema}")
    await connection.close()


async def _compare(stage: Stage, storage: Storage, default: Any, with_functions: Any) -> list[Result]:
    entries = [Entry(body) for body in event_bodies(stage.sizes.appends_each * APPENDERS)]
    states = [entry.body.encode() for entry in entries]

    async def ours(number: int) -> float:
        return await append_rate(storage.log(f"recorder-{number}"), entries, stage.sizes.appends_each)

    async def theirs(_: int) -> float:
        return await _record_rate(default, states, stage.sizes.recorder_appends_each)

    async def theirs_with_functions(_: int) -> float:
        return await _record_rate(with_functions, states, stage.sizes.recorder_appends_each)

    mine, plain, fast = await alternate(stage.sizes.rounds, ours, theirs, theirs_with_functions)
    what = f"append, PostgreSQL, {EVENT_BYTES}-byte events, {APPENDERS} appenders"
    return [
        compared(
            mine,
            plain,
            name="append-recorder",
            what=what,
            unit="events/s",
            other_name="eventsourcing's recorder, by default",
            goal=Goal("at least", 15),
        ),
        compared(
            mine,
            fast,
            name="append-recorder-functions",
            what=what,
            unit="events/s",
            other_name="eventsourcing's recorder, with its database functions",
            goal=Goal("at least", 6),
        ),
    ]


@contextlib.contextmanager
def _recorder(url: str, *, schema: str, functions: bool) -> Iterator[Any]:
    from eventsourcing.postgres import PostgresFactory
    from eventsourcing.utils import Environment

    parts = urlsplit(url)
    settings = {
        "POSTGRES_DBNAME": parts.path[1:],
        "POSTGRES_HOST": parts.hostname or "",
        "POSTGRES_PORT": str(parts.port),
        "POSTGRES_USER": parts.username or "",
        "POSTGRES_PASSWORD": parts.password or "",
        "POSTGRES_SCHEMA": schema,
        "POSTGRES_ENABLE_DB_FUNCTIONS": "yes" if functions else "no",
    }
    factory = PostgresFactory(Environment("bench", settings))
    try:
        yield factory.application_recorder()
    finally:
        factory.close()


async def _record_rate(recorder: Any, states: list[bytes], each: int) -> float:
    """Events per second of `APPENDERS` threads."""
    return await asyncio.to_thread(_record_on_threads, recorder, states, each)


def _record_on_threads(recorder: Any, states: list[bytes], each: int) -> float:
    from eventsourcing.persistence import StoredEvent

    ready = threading.Barrier(APPENDERS + 1)
    failures: list[BaseException] = []

    def appender(number: int) -> None:
        try:
            originator = uuid.uuid4()
            events = [
                [
                    StoredEvent(
                        originator, version, "bench:Event", states[(number * each + version) % len(states)]
                    )
                ]
                for version in range(1, WARM_APPENDS_EACH + each + 1)
            ]
            for event in events[:WARM_APPENDS_EACH]:
                recorder.insert_events(event)
            ready.wait()
            for event in events[WARM_APPENDS_EACH:]:
                recorder.insert_events(event)
        except BaseException as error:
            failures.append(error)
            ready.abort()
            raise

    threads = [threading.Thread(target=appender, args=(number,)) for number in range(APPENDERS)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait()
    watch = Stopwatch()
    for thread in threads:
        thread.join()
    seconds = watch.seconds()
    if failures:
        raise failures[0]
    return APPENDERS * each / seconds
