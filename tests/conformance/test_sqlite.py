"""What is SQLite's own: one file, one writer thread, and other processes at the same file."""

# ruff: noqa: ASYNC240 (the files are small and the test waits for nothing else)

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engines.drivers.documents.sqlite import (
    Config,
    SqliteDocuments,
    _run_writes,
    _translate,
    config_from_url,
    open_driver,
)
from engines.errors import BackendRefused, Corrupt, Invalid, OutcomeUnknown, Unavailable
from engines.ports.documents import ABSENT
from engines.testing.clock import ManualClock
from engines.testing.documents.harness import bodies, get, put, read_keys, write

NOT_STORABLE = (put("k2", '"\ud800"'), put("k2", expires_at=2**70))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "documents.db"


@pytest_asyncio.fixture
async def driver(path: Path) -> AsyncIterator[SqliteDocuments]:
    opened = open_driver(Config(path=str(path)), {}, ManualClock())
    yield opened
    await opened.close()


class TestFile:
    async def test_a_new_file_that_another_process_holds_is_opened_when_it_lets_go(
        self, driver: SqliteDocuments, path: Path
    ) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # Beside it, a switch to WAL fails at once, whatever the timeout.
        other.execute("CREATE TABLE other (n)")
        opening = asyncio.create_task(driver.provision())
        await asyncio.wait([opening], timeout=0.2)
        assert not opening.done()
        other.execute("COMMIT")
        other.close()
        await opening
        await write(driver, put("k1"))

    async def test_what_is_acknowledged_is_synchronised_and_in_the_write_ahead_log(
        self, driver: SqliteDocuments
    ) -> None:
        modes = await driver._writer.call(
            lambda connection: [
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
            ]
        )
        assert modes == ["wal", 2]

    async def test_a_writer_elsewhere_that_does_not_end_makes_writes_unavailable_and_reads_go_on(
        self, driver: SqliteDocuments, path: Path
    ) -> None:
        await write(driver, put("k1", "1"))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(write(driver, put("k1", "2")))
        assert await bodies(driver, "k1") == {"k1": "1"}
        with pytest.raises(Unavailable):
            await writing
        other.execute("ROLLBACK")
        other.close()
        await write(driver, put("k1", "3"))
        assert await bodies(driver, "k1") == {"k1": "3"}

    async def test_a_file_that_is_no_database_is_refused(self, driver: SqliteDocuments, path: Path) -> None:
        path.write_text("these are not the bytes of a database, and there are more than a header has" * 20)
        with pytest.raises(BackendRefused):
            await get(driver, "k1")
        with pytest.raises(BackendRefused):
            await write(driver, put("k1"))

    async def test_damage_in_the_file_is_corrupt(self, driver: SqliteDocuments, path: Path) -> None:
        for number in range(50):
            await write(driver, put(f"k{number}", f'"{"x" * 4000}"'))
        await driver.close()
        content = bytearray(path.read_bytes())
        content[4096:] = b"\x5a" * (len(content) - 4096)
        path.write_bytes(content)
        again = open_driver(Config(path=str(path)), {}, ManualClock())
        with pytest.raises(Corrupt):
            await read_keys(again)
        await again.close()

    async def test_a_missing_directory_is_refused(self, tmp_path: Path) -> None:
        client = open_driver(Config(path=str(tmp_path / "gone" / "documents.db")), {}, ManualClock())
        with pytest.raises(BackendRefused):
            await client.provision()
        await client.close()


class TestGroup:
    @pytest.mark.parametrize("bad", NOT_STORABLE, ids=["half a character", "an endless life"])
    async def test_a_value_that_cannot_be_stored_fails_its_write_whole_and_not_the_writer(
        self, driver: SqliteDocuments, bad: object
    ) -> None:
        with pytest.raises(BackendRefused):
            await write(driver, put("k1", "1", ABSENT), bad)  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            await write(driver, put("k3", "1"))
            assert await read_keys(driver) == ["k3"]

    async def test_calls_that_fail_together_each_have_an_exception_of_their_own(self, tmp_path: Path) -> None:
        client = open_driver(Config(path=str(tmp_path / "gone" / "documents.db")), {}, ManualClock())
        failures = await asyncio.gather(
            *(write(client, put(f"k{number}")) for number in range(5)), return_exceptions=True
        )
        await client.close()
        assert {type(failure) for failure in failures} == {BackendRefused}
        assert len({id(failure) for failure in failures}) == 5


class TestFault:
    """What no statement brings about: memory or the stack at its end."""

    @pytest.mark.parametrize("fault", [MemoryError, RecursionError, SystemExit])
    async def test_all_that_wait_are_answered_and_the_next_calls_succeed(
        self, driver: SqliteDocuments, fault: type[BaseException]
    ) -> None:
        def fail(_: sqlite3.Connection) -> None:
            raise fault

        async with asyncio.timeout(10):
            for lane in (driver._reader, driver._writer):
                answers = await asyncio.gather(*(lane.call(fail) for _ in range(5)), return_exceptions=True)
                assert {type(answer) for answer in answers} == {Unavailable}
                assert all(isinstance(answer.__cause__, fault) for answer in answers)
            await write(driver, put("k1"))
            assert await read_keys(driver) == ["k1"]

    async def test_what_shares_its_transaction_is_not_applied(self, driver: SqliteDocuments) -> None:
        def put_and_fail(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO documents (partition, key, body, version) VALUES ('p', 'k', '1', 'v')"
            )
            raise MemoryError

        with pytest.raises(Unavailable):
            await driver._writer.call(put_and_fail)
        assert await driver.get("p", ["k"]) == {}

    async def test_a_fault_after_the_commit_leaves_the_outcome_unknown(self, path: Path) -> None:
        class FailsAfterCommit(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                cursor = super().execute(sql, *arguments)
                if sql == "COMMIT":
                    raise MemoryError
                return cursor

        connection = sqlite3.connect(path, isolation_level=None, factory=FailsAfterCommit)
        with pytest.raises(sqlite3.OperationalError) as caught:
            _run_writes(connection, [])
        assert isinstance(_translate(caught.value), OutcomeUnknown)
        connection.close()


class TestConfig:
    @pytest.mark.parametrize("path", [":memory:", "", "relative.db", "file:/a.db", "/directory/"])
    def test_a_path_that_names_no_one_file_is_no_config(self, path: str) -> None:
        with pytest.raises(ValueError, match="absolute path"):
            Config(path=path)

    def test_a_url_names_an_absolute_path(self) -> None:
        assert config_from_url("sqlite:///var/lib/a%20b.db") == ({"path": "/var/lib/a b.db"}, None)

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite://relative.db", "sqlite:///directory/", "sqlite:"])
    def test_a_url_without_a_file_is_invalid(self, url: str) -> None:
        with pytest.raises(Invalid):
            config_from_url(url)
