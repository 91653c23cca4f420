"""A rotated secret is adopted under traffic: no restart and no failed write, where one password counts."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import engines
from engines.clock import SystemClock
from engines.control.bootstrap import apply_seed, bootstrap
from engines.control.records import Backend
from engines.core.listing import Window
from engines.core.secrets import Secrets
from engines.drivers.registry import secret_sources
from engines.errors import BackendRefused, OutcomeUnknown
from engines.ids import Ids
from engines.ports.documents import ABSENT, Put
from engines.ports.secrets import Secret
from engines.routing import rotation
from engines.routing.backends import Backends
from engines.routing.diagnostics import probe
from engines.stores.notes import NoteInput
from engines.wiring import open_control_plane
from tests.contexts import context
from tests.routing.conftest import SEED
from tests.servers.postgres import PostgresServer

WRITERS = 16
POOL_SIZE = 6
FIRST, SECOND, THIRD = "first-password", "second-password", "third-password"
PARTITION = "notes_store.t_a.prod.0"


class Rotated:
    """A database with a user of its own, and the file that says the user's password to Engines."""

    def __init__(self, server: PostgresServer, database: str, secrets_file: Path) -> None:
        self.server = server
        self.database = database
        self.user = f"u_{uuid.uuid4().hex}"
        self.secrets_file = secrets_file

    def in_source(self, password: str) -> None:
        """As a tool would write it: whole or not at all."""
        new = self.secrets_file.with_suffix(".new")
        new.write_text(json.dumps({"db": {"password": password}}))
        new.replace(self.secrets_file)

    async def in_database(self, password: str) -> None:
        await self._execute(f"ALTER ROLE {self.user} PASSWORD '{password}'")

    async def end_sessions(self) -> int:
        """End every session of the user; returns how many there were."""
        ended = await self._execute(
            f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{self.user}'"
        )
        return int(ended)

    async def sessions_left(self) -> int:
        """How many sessions of the user there are, once those that take their leave have had time to."""
        count = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{self.user}'"
        left = int(await self._execute(count))
        for _ in range(50):
            if left == 0:
                break
            await asyncio.sleep(0.1)
            left = int(await self._execute(count))
        return left

    async def _execute(self, statement: str) -> str:
        return await asyncio.to_thread(self.server.execute, statement, database=self.database)

    def record(self) -> Backend:
        return Backend(
            backend_id="data",
            driver="postgres",
            backend_class="server",
            config={
                "host": "127.0.0.1",
                "port": self.server.port,
                "database": self.database,
                "user": self.user,
                "pool_size": POOL_SIZE,
            },
            secrets={"password": "json:db/password"},
            offered_to="*",
        )


class Traffic:
    """Writers that create one note after the other, and what became of each."""

    def __init__(self, opened: engines.Engines) -> None:
        self.opened = opened
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []
        self.failures: list[Exception] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()
        self._stopping = False

    async def more(self, count: int) -> None:
        """Until `count` further calls came to an end, or one failed."""
        target = self._ended() + count
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended() >= target or bool(self.failures))
        assert not any(task.done() for task in self._tasks)

    def _ended(self) -> int:
        return len(self.acknowledged) + len(self.unknown) + len(self.failures)

    async def __aenter__(self) -> "Traffic":
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """A write that was begun is seen to its end, so that what became of it is known."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _write(self, writer: int) -> None:
        who = context(user_id=f"u{writer}")
        count = 0
        while not self._stopping:
            content = f"{writer}/{count}"
            count += 1
            try:
                await self.opened.notes.create(who, NoteInput(content=content))
                self.acknowledged.append(content)
            except OutcomeUnknown:
                self.unknown.append(content)
            except Exception as error:  # noqa: BLE001 (whatever it is, the test tells it)
                self.failures.append(error)
            async with self._changed:
                self._changed.notify_all()


@pytest.fixture
def rotated(
    postgres_server: PostgresServer, new_postgres_database: Callable[[], str], tmp_path: Path
) -> Iterator[Rotated]:
    database = urlsplit(new_postgres_database()).path[1:]
    made = Rotated(postgres_server, database, tmp_path / "secrets.json")
    made.in_source(FIRST)
    postgres_server.execute(f"CREATE ROLE {made.user} LOGIN PASSWORD '{FIRST}'")
    postgres_server.execute(f'GRANT CREATE ON DATABASE "{database}" TO {made.user}')
    yield made
    postgres_server.execute(f"DROP OWNED BY {made.user} CASCADE", database=database)
    postgres_server.execute(f"DROP ROLE {made.user}")


@pytest.fixture
async def opened(rotated: Rotated, tmp_path: Path) -> AsyncIterator[engines.Engines]:
    url = f"sqlite://{tmp_path}/control.db"
    async with open_control_plane(url) as control:
        await bootstrap(control.store, control.record, data=rotated.record(), host_local=True)
        await apply_seed(control.store, SEED)
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(engines.open(url, secrets={"file": str(rotated.secrets_file)}))


async def stored(opened: engines.Engines) -> list[str]:
    """The content of every note that is there."""
    found: list[str] = []
    for writer in range(WRITERS):
        who = context(user_id=f"u{writer}")
        after: str | None = None
        while True:
            page = await opened.notes.list(who, window=Window(limit=200, after=after))
            found.extend(note.content for note in page.items)
            after = page.after
            if after is None:
                break
    return found


def check(traffic: Traffic, found: list[str]) -> None:
    """Every acknowledged note is there once; what nobody can tell is there once or not."""
    assert traffic.failures == []
    assert len(set(found)) == len(found)
    assert set(traffic.acknowledged) <= set(found)
    assert set(found) - set(traffic.acknowledged) <= set(traffic.unknown)


async def test_a_password_is_rotated_at_its_source_and_then_at_the_database(
    rotated: Rotated, opened: engines.Engines
) -> None:
    async with Traffic(opened) as traffic:
        await traffic.more(200)
        rotated.in_source(SECOND)
        await traffic.more(50)
        await rotated.in_database(SECOND)
        assert await rotated.end_sessions() > 0
        await traffic.more(400)
    assert len(traffic.unknown) <= POOL_SIZE
    check(traffic, await stored(opened))


async def test_a_password_is_rotated_at_the_database_some_seconds_before_its_source(
    rotated: Rotated, opened: engines.Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can connect meanwhile: what is refused waits, and is repeated."""
    monkeypatch.setattr(rotation, "LOOK_PAUSE_S", 0.5)
    async with Traffic(opened) as traffic:
        await traffic.more(200)
        await rotated.in_database(SECOND)
        assert await rotated.end_sessions() > 0
        await asyncio.sleep(1.5 * rotation.LOOK_PAUSE_S)  # The second look, too, finds the former value.
        rotated.in_source(SECOND)
        await traffic.more(400)
    assert len(traffic.unknown) <= POOL_SIZE
    check(traffic, await stored(opened))


async def test_rotations_one_upon_the_other_are_adopted(rotated: Rotated, opened: engines.Engines) -> None:
    """Back to the first value in the end: a look between may never see another one."""
    async with Traffic(opened) as traffic:
        await traffic.more(100)
        for password in (SECOND, THIRD, FIRST):
            rotated.in_source(password)
            await rotated.in_database(password)
            await rotated.end_sessions()
        await traffic.more(400)
    check(traffic, await stored(opened))


# --- one backend, looked at closely ---


class Counted:
    """`SecretResolver` that counts, and can be held after it has looked."""

    def __init__(self, secrets: Secrets) -> None:
        self.count = 0
        self.resolved = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        self._secrets = secrets

    async def resolve(self, handle: str) -> Secret:
        self.count += 1
        secret = await self._secrets.resolve(handle)
        self.resolved.set()
        await self.release.wait()
        return secret


class One:
    """One backend as a process has it open."""

    def __init__(self, backends: Backends, record: Backend, resolver: Counted) -> None:
        self.backends = backends
        self.record = record
        self.resolver = resolver

    async def write(self) -> None:
        documents = (await self.backends.open(self.record)).documents
        await documents.write(PARTITION, [Put(f"n!{uuid.uuid4().hex}", "1", ABSENT)])

    async def problem(self) -> str | None:
        return (await self.backends.open(self.record)).problem


@pytest.fixture
async def one(rotated: Rotated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[One]:
    monkeypatch.setattr(rotation, "LOOK_PAUSE_S", 0.05)
    monkeypatch.setattr(rotation, "PATIENCE_S", 0.5)
    clock = SystemClock()
    resolver = Counted(Secrets(secret_sources(file=str(rotated.secrets_file))))
    async with open_control_plane(f"sqlite://{tmp_path}/control.db") as control:
        backends = Backends(control.documents, resolver, ids=Ids(clock), clock=clock)
        yield One(backends, rotated.record(), resolver)
        await backends.close()


async def test_a_rotation_leaves_documents_and_layouts_as_they_are(rotated: Rotated, one: One) -> None:
    before = await one.backends.open(one.record)
    await one.write()
    rotated.in_source(SECOND)
    await rotated.in_database(SECOND)
    await one.backends.look_once()
    await rotated.end_sessions()
    await one.write()
    assert one.resolver.count == 2  # At the start, and for the look: no call was refused.
    after = await one.backends.open(one.record)
    assert after is before


async def test_a_wrong_value_replaces_nothing_until_it_is_right(
    rotated: Rotated, one: One, capsys: pytest.CaptureFixture[str]
) -> None:
    await one.write()
    rotated.in_source(SECOND)
    for _ in range(3):
        await one.backends.look_once()
    await rotated.end_sessions()
    await one.write()
    found = await probe(one.backends, one.record)
    assert found.ok
    assert found.detail == await one.problem() == "a changed secret does not work; the former one is in use"
    told = capsys.readouterr().out
    assert told.count("does not work") == 1
    assert not any(password in told for password in (FIRST, SECOND))
    await rotated.in_database(SECOND)
    await rotated.end_sessions()
    await one.write()
    assert await one.problem() is None


async def test_a_source_that_is_down_changes_nothing(rotated: Rotated, one: One) -> None:
    await one.write()
    rotated.secrets_file.unlink()
    await one.backends.look_once()
    assert await one.problem() == "a secret cannot be read again; the former one is in use"
    await rotated.end_sessions()
    await one.write()
    rotated.in_source(FIRST)
    await one.backends.look_once()
    assert await one.problem() is None


async def test_a_source_that_hangs_is_given_up(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    await one.write()
    monkeypatch.setattr(rotation, "LOOK_TIMEOUT_S", 0.1)
    one.resolver.release.clear()
    await one.backends.look_once()
    assert await one.problem() == "a secret cannot be read again; the former one is in use"
    await one.write()


async def test_calls_refused_together_share_one_look(rotated: Rotated, one: One) -> None:
    await one.write()
    rotated.in_source(SECOND)
    await rotated.in_database(SECOND)
    await rotated.end_sessions()
    await asyncio.gather(*(one.write() for _ in range(50)))
    assert one.resolver.count <= 3


async def test_a_refusal_that_no_secret_mends_is_raised_and_asks_the_source_now_and_then(
    rotated: Rotated, one: One, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.write()
    monkeypatch.setattr(rotation, "LOOK_PAUSE_S", 0.2)
    began = asyncio.get_running_loop().time()
    await asyncio.to_thread(rotated.server.execute, "DROP SCHEMA engines CASCADE", database=rotated.database)
    outcomes = await asyncio.gather(*(one.write() for _ in range(50)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BackendRefused}
    looks = one.resolver.count
    assert looks <= 2 + (asyncio.get_running_loop().time() - began) / 0.2
    with pytest.raises(BackendRefused):  # Patience is over: one look, and no more.
        await one.write()
    assert one.resolver.count <= looks + 1
    assert await one.problem() is None


@pytest.mark.parametrize("moment", ["while the source is asked", "while the new driver connects"])
async def test_closing_during_a_rotation_leaves_nothing_behind(
    rotated: Rotated, one: One, moment: str
) -> None:
    await one.write()
    rotated.in_source(SECOND)
    await rotated.in_database(SECOND)
    one.resolver.resolved.clear()
    if moment == "while the source is asked":
        one.resolver.release.clear()
    else:
        rotated.server.suspend()
    try:
        looking = asyncio.create_task(one.backends.look_once())
        await one.resolver.resolved.wait()
        await asyncio.sleep(0.05)  # A new connection waits for its first word, which nobody sees.
        await one.backends.close()
        await looking
    finally:
        rotated.server.resume()
    assert await rotated.sessions_left() == 0
    assert not [task for task in asyncio.all_tasks() if "_look" in repr(task) or "_close_later" in repr(task)]
