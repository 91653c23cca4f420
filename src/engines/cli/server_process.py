"""A lab's server as a child process: started, killed, started again.

Owns the child and nothing else: no other process is ever signalled. Whoever starts one ends it with the
block.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from engines.errors import Unavailable

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 15.0
ERROR_BYTES_SHOWN: Final = 2_000


class LabServer:
    """`engines lab` on one directory and port."""

    def __init__(self, directory: Path, port: int) -> None:
        self._command = (sys.executable, "-m", "engines", "lab", "--dir", str(directory), "--port", str(port))
        self._process: asyncio.subprocess.Process | None = None
        self._rest: list[asyncio.Task[None]] = []

    @property
    def process_id(self) -> int | None:
        """Of the child that runs now."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Returns once the server has said where it listens. Raises Unavailable where it does not."""
        assert self._process is None
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await self._process.stdout.readline()
        except TimeoutError as error:
            raise Unavailable(f"the lab did not start within {START_TIMEOUT_S:g} s") from error
        if not line:
            raise Unavailable(f"the lab did not start: {await self._last_words()}")
        # What it says later is of no use here, and must not fill a pipe that it would then wait for.
        pipes = (self._process.stdout, self._process.stderr)
        self._rest = [asyncio.create_task(_passed_over(pipe)) for pipe in pipes if pipe is not None]

    async def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is closed."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that is not enough."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        rest, self._rest = self._rest, []
        await asyncio.gather(*rest)

    async def _last_words(self) -> str:
        assert self._process is not None
        assert self._process.stderr is not None
        told = await self._process.stderr.read(ERROR_BYTES_SHOWN)
        return told.decode(errors="replace").strip() or "it said nothing"


async def _passed_over(pipe: asyncio.StreamReader) -> None:
    """Read to the end and keep nothing."""
    while await pipe.read(ERROR_BYTES_SHOWN):
        pass


@contextlib.asynccontextmanager
async def lab_server(directory: Path, port: int) -> AsyncIterator[LabServer]:
    """A started server that is stopped with the block."""
    server = LabServer(directory, port)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()
