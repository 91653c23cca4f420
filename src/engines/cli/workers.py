"""Several worker processes on one listening socket.

Owns starting them, replacing one that dies, and ending them all: on a signal, and also when this process is
killed, because each watches for that. Leaves what a worker does to `cli/serve.py`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import socket
import sys
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Final

from engines.cli.serve import SHUTDOWN_S, Served, run
from engines.clock import SystemClock
from engines.errors import EnginesError

# A worker that gives up sooner than this after its start would only give up again. One that was killed is
# replaced in any case.
LIFETIME_MIN_S: Final = 5.0

_CLOCK = SystemClock()
_spawn = multiprocessing.get_context("spawn")


class _Stop(BaseException):
    """A signal asked for the end."""


def supervise(what: Served, listener: socket.socket, *, workers: int) -> None:
    """Keep `workers` processes running until SIGINT or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    started: dict[SpawnProcess, float] = {}
    try:
        for _ in range(workers):
            _start(what, listener, started)
        while True:
            multiprocessing.connection.wait([worker.sentinel for worker in started])
            _replace_dead(what, listener, started)
    except _Stop:
        return
    finally:
        _end_all(list(started))


def _start(what: Served, listener: socket.socket, started: dict[SpawnProcess, float]) -> None:
    worker = _spawn.Process(target=_work, args=(what, listener), name="engines-worker")
    worker.start()
    started[worker] = _CLOCK.monotonic()


def _replace_dead(what: Served, listener: socket.socket, started: dict[SpawnProcess, float]) -> None:
    for worker in [worker for worker in started if not worker.is_alive()]:
        lifetime_s = _CLOCK.monotonic() - started.pop(worker)
        if lifetime_s < LIFETIME_MIN_S and (worker.exitcode or 0) >= 0:
            sys.exit(f"engines: a worker ended after {lifetime_s:.1f} s with code {worker.exitcode}")
        _start(what, listener, started)


def _end_all(workers: list[SpawnProcess]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(SHUTDOWN_S + 1)
        if worker.is_alive():
            worker.kill()
            worker.join()


def _work(what: Served, listener: socket.socket) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    try:
        run(what, listener, _say_nothing, parent=parent.sentinel)
    except EnginesError as error:
        sys.exit(f"engines: {error.detail}")


async def _say_nothing(_: object, __: str) -> None:
    """The supervisor has said where."""


def _stop(_: int, __: FrameType | None) -> None:
    raise _Stop
