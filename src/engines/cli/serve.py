"""`engines serve`: one worker process behind one port, or several.

Owns binding the port and serving in this process until a signal ends it. Leaves several processes to
`cli/workers.py`, what is served to `api/app.py` and how it is put together to `wiring.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import uvicorn
import uvloop

from engines.api.app import ROUTERS, create_app
from engines.api.endpoint import Router
from engines.api.logs import Lines
from engines.api.protocol import BoundedProtocol
from engines.clock import SystemClock
from engines.errors import Invalid
from engines.settings import Settings, read_settings
from engines.wiring import Engines, open_engines

BACKLOG: Final = 2048
GC_THRESHOLDS: Final = (10_000, 20, 20)
KEEP_ALIVE_S: Final = 75
# Streams end themselves when the server stops; this bounds a client that does not read.
SHUTDOWN_S: Final = 5

Announce = Callable[[Engines, str], Awaitable[None]]


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker needs to know. Plain data, because workers are new processes."""

    control_plane: str
    secrets: Mapping[str, str]
    host: str
    port: int


def served(settings: Settings) -> Served:
    """Raises Invalid where the control plane is not named."""
    if settings.control_plane is None:
        raise Invalid("say where the control plane is: --control-plane URL or ENGINES_CONTROL_PLANE")
    places = {"file": settings.secrets_file, "directory": settings.secrets_dir}
    return Served(
        control_plane=settings.control_plane,
        secrets={name: place for name, place in places.items() if place is not None},
        host=settings.host,
        port=settings.port,
    )


def serve(
    *,
    control_plane: str | None = None,
    secrets_file: str | None = None,
    secrets_dir: str | None = None,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
) -> None:
    """Serve an initialised control plane until SIGINT or SIGTERM. Options override ENGINES_* variables."""
    given = {
        "control_plane": control_plane,
        "secrets_file": secrets_file,
        "secrets_dir": secrets_dir,
        "host": host,
        "port": port,
        "workers": workers,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = msgspec.structs.replace(read_settings(), **chosen)
    what = served(settings)
    if settings.workers < 1:
        raise Invalid("at least one worker", field="workers")
    with bind(what.host, what.port) as listener:
        if settings.workers == 1:
            run(what, listener)
        else:
            from engines.cli.workers import supervise

            print(f"Engines listens on {url_of(listener)} with {settings.workers} workers", flush=True)
            supervise(what, listener, workers=settings.workers)


def bind(host: str, port: int) -> socket.socket:
    """Listen. Raises Invalid where the port is taken or may not be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Invalid(f"cannot listen on {host}:{port}: {error.strerror}", field="port") from error
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    what: Served,
    listener: socket.socket,
    announce: Announce | None = None,
    *,
    parent: int | None = None,
    routers: Sequence[Router] = ROUTERS,
) -> None:
    """Serve in this process until a signal ends it, or `parent` (a file descriptor) becomes readable."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(what, listener, announce or _say_where, parent, routers))


def _spare_the_collector() -> None:
    """What stands now stands until the end, and a request leaves no cycles: the collector looks less often.

    With Python's own thresholds it takes a tenth of the time of a small request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _serve(
    what: Served,
    listener: socket.socket,
    announce: Announce,
    parent: int | None,
    routers: Sequence[Router],
) -> None:
    lines = Lines(sys.stderr.buffer, SystemClock())
    lines.configure_structlog()
    async with open_engines(what.control_plane, secrets=what.secrets) as engines:
        config = uvicorn.Config(
            create_app(engines, tell=lines.account, routers=routers),
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        _spare_the_collector()
        server = _Server(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _end, server)
        if parent is not None:
            loop.add_reader(parent, _end_with_parent, server, parent)
        await announce(engines, url_of(listener))
        await server.serve(sockets=[listener])
    lines.flush()


class _Server(uvicorn.Server):
    """uvicorn's, but for signals: it would raise them again once it has stopped, and that would end the
    process before everything behind the server is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _end(server: uvicorn.Server) -> None:
    """Stop; asked twice, do not wait for requests under way."""
    server.force_exit = server.should_exit
    server.should_exit = True


def _end_with_parent(server: uvicorn.Server, parent: int) -> None:
    asyncio.get_running_loop().remove_reader(parent)
    server.should_exit = True


async def _say_where(engines: Engines, url: str) -> None:
    label = " (lab: host-local storage, for trying things out)" if engines.directory.lab else ""
    print(f"Engines listens on {url}{label}", flush=True)
