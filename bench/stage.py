"""What a comparison is given: its sizes, real servers, a directory for files.

Owns the sizes by name, the servers' life, and removing what was made. Leaves schemas and clients to the
comparisons, and what storage on a server is to `backends.py`.
"""

from __future__ import annotations

import itertools
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from bench.backends import Backend, Servers, sqlite_backend, url_backend
from tests.servers.postgres import PostgresServer

EVENT_BYTES: Final = 400
APPENDERS: Final = 32
CONNECTIONS: Final = 32
SEED: Final = 20_261_121
# Checkpoints are seldom, so that one of them does not fall into the round of one side; fsync and all else
# that makes a commit durable is as in production.
POSTGRES_SETTINGS: Final = {"max_wal_size": "8GB", "checkpoint_timeout": "30min"}
MEMORY_DIRECTORY: Final = Path("/dev/shm")


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much a run does."""

    name: str
    rounds: int
    appends_each: int  # of each appender, in a round
    lone_appends: int
    recorder_appends_each: int  # of each of the other recorder's appenders, in a round
    route_resolutions: int
    flag_evaluations: int
    reservations_each: int  # of each of 200 spenders, in a round
    list_events_few: int
    list_events_many: int
    list_reads: int
    http_requests: int  # in a round
    memory_requests: int
    memory_warm_requests: int
    sdk_rounds: int  # short and many: the servers' disks and other processes disturb single ones
    sdk_calls: int  # of each side, in a round
    sdk_appends: int
    cost_events: int
    cost_notes: int
    move_notes: int
    move_events: int
    move_before_s: float  # of writes, before the move begins
    process_rounds: int
    process_seconds: float
    process_counts: tuple[int, ...]


FULL: Final = Sizes(
    name="full",
    rounds=11,
    appends_each=600,
    lone_appends=1_500,
    recorder_appends_each=50,
    route_resolutions=20_000,
    flag_evaluations=50_000,
    reservations_each=20,
    list_events_few=10_000,
    list_events_many=1_000_000,
    list_reads=300,
    http_requests=6_000,
    memory_requests=1_000_000,
    memory_warm_requests=100_000,
    sdk_rounds=51,
    sdk_calls=40,
    sdk_appends=10,
    cost_events=10_000,
    cost_notes=10_000,
    move_notes=10_000,
    move_events=20_000,
    move_before_s=10.0,
    process_rounds=3,
    process_seconds=3.0,
    process_counts=(1, 2, 4, 8),
)
QUICK: Final = Sizes(
    name="quick",
    rounds=5,
    appends_each=200,
    lone_appends=400,
    recorder_appends_each=15,
    route_resolutions=5_000,
    flag_evaluations=20_000,
    reservations_each=5,
    list_events_few=10_000,
    list_events_many=100_000,
    list_reads=100,
    http_requests=1_500,
    memory_requests=20_000,
    memory_warm_requests=10_000,
    sdk_rounds=15,
    sdk_calls=20,
    sdk_appends=5,
    cost_events=2_000,
    cost_notes=1_000,
    move_notes=2_000,
    move_events=5_000,
    move_before_s=5.0,
    process_rounds=1,
    process_seconds=2.0,
    process_counts=(1, 8),
)
TINY: Final = Sizes(
    name="tiny",
    rounds=1,
    appends_each=3,
    lone_appends=5,
    recorder_appends_each=1,
    route_resolutions=50,
    flag_evaluations=50,
    reservations_each=1,
    list_events_few=200,
    list_events_many=1_000,
    list_reads=5,
    http_requests=64,
    memory_requests=200,
    memory_warm_requests=100,
    sdk_rounds=1,
    sdk_calls=5,
    sdk_appends=2,
    cost_events=64,
    cost_notes=20,
    move_notes=40,
    move_events=80,
    move_before_s=0.3,
    process_rounds=1,
    process_seconds=0.3,
    process_counts=(1, 2),
)


class Stage:
    """One run of the benchmark. A server starts with the first storage that is asked for on it."""

    def __init__(
        self, sizes: Sizes, *, server: PostgresServer | None = None, servers: Servers | None = None
    ) -> None:
        """`server`, `servers`: running ones to use, which stay; by default this run has its own."""
        self.sizes = sizes
        self._given_servers = servers
        self._own_servers: Servers | None = None
        self._given = server
        self._own: PostgresServer | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="engines-bench-")
        self._in_memory = tempfile.TemporaryDirectory(
            prefix="engines-bench-", dir=MEMORY_DIRECTORY if MEMORY_DIRECTORY.is_dir() else None
        )
        self._numbers = itertools.count(1)
        self._databases: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._given is not None:
            for name in self._databases:
                self._given.drop_database(name)
        if self._own is not None:
            self._own.close()
        if self._own_servers is not None:
            self._own_servers.close()
        self._directory.cleanup()
        self._in_memory.cleanup()

    def new_database(self) -> str:
        """The URL of an empty PostgreSQL database."""
        name = f"bench_{uuid.uuid4().hex}"
        url = self._server().create_database(name)
        self._databases.append(name)
        return url

    def new_backend(self, driver: str) -> Backend:
        """Empty storage of this driver. Raises NotRun where its server cannot run on this machine."""
        if driver == "sqlite":
            return sqlite_backend(self.new_directory() / "data.db")
        if driver == "postgres":
            return url_backend(self.new_database(), "PostgreSQL")
        if self._given_servers is not None:
            return self._given_servers.new_backend(driver)
        if self._own_servers is None:
            self._own_servers = Servers()
        return self._own_servers.new_backend(driver)

    def new_directory(self) -> Path:
        return self._new_directory(self._directory.name)

    def new_log_directory(self) -> Path:
        """For the logs of servers: in memory where there is such a place.

        What collects a service's log is a pipe as a rule; a file on the disk on which the other side waits
        for fsync would hold up whoever writes to it.
        """
        return self._new_directory(self._in_memory.name)

    def _new_directory(self, parent: str) -> Path:
        path = Path(parent) / str(next(self._numbers))
        path.mkdir(mode=0o700)
        return path

    def _server(self) -> PostgresServer:
        if self._given is not None:
            return self._given
        if self._own is None:
            self._own = PostgresServer(settings=POSTGRES_SETTINGS)
            self._own.start()
        return self._own
