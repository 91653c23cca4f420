"""A bad network on purpose: a TCP relay on loopback between a client and its server.

Owns `FaultProxy`. Both ends are real; only what lies between them misbehaves, as a test says at each moment.
Faults of one document write, without a network, are in `engines.testing.faults`.

    async with FaultProxy(server_address) as proxy:
        driver = open_at(*proxy.address)
        proxy.behave(Behaviour(reply_bytes_max=0))   # the next reply ends in a reset before its first byte
        proxy.behave(Behaviour())                    # all is well again
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Final, Self

import msgspec

CHUNK_BYTES: Final = 64 * 1024
# SO_LINGER on, zero seconds: closing sends RST instead of FIN.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What the network does, to connections that are open and to new ones. The default is nothing."""

    # Nothing is relayed in either direction until the behaviour changes.
    hang: bool = False
    # Requests reach the server, replies vanish; connections stay open.
    drop_replies: bool = False
    # Counted from now, over all connections: after this many bytes of replies the connection is reset.
    reply_bytes_max: int | None = None
    # The same for requests: a small number cuts one in its middle, before the server can act on it.
    request_bytes_max: int | None = None
    # Before each piece that is relayed.
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    # After the first connection was cut, all is well again.
    once: bool = False


WELL: Final = Behaviour()


class FaultProxy:
    """Relays from `address`, a free port of 127.0.0.1, to the server."""

    def __init__(self, server_address: tuple[str, int]) -> None:
        self._server_address = server_address
        self._behaviour = WELL
        self._changed = asyncio.Event()
        self._reply_bytes = 0
        self._request_bytes = 0
        self._listener: asyncio.Server | None = None
        self._port = 0
        self._relays: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()

    def behave(self, behaviour: Behaviour) -> None:
        """From now on, until the next call; counting starts again."""
        self._behaviour = behaviour
        self._reply_bytes = self._request_bytes = 0
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def accept(self) -> None:
        """Listen, on the same port as before."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Reset what is open and refuse new connections, as a host does whose server is down."""
        assert self._listener is not None
        self._listener.close()
        await self.reset()

    async def reset(self) -> None:
        """Reset every open connection, on both sides."""
        relays = tuple(self._relays)
        for relay in relays:
            relay.cancel()
        if relays:
            await asyncio.wait(relays)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        try:
            await self._relay(reader, writer)
        except (asyncio.CancelledError, OSError):  # Reset by the test, by one of the ends, or no server.
            pass
        finally:
            self._relays.discard(task)
            _reset(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._until_relaying()
        server_reader, server_writer = await asyncio.open_connection(*self._server_address)
        pumps = (
            asyncio.create_task(self._pump_requests(reader, server_writer)),
            asyncio.create_task(self._pump_replies(server_reader, writer)),
        )
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            _reset(server_writer)

    async def _pump_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._until_relaying()
            left = _left(self._behaviour.request_bytes_max, self._request_bytes, data)
            self._request_bytes += len(data)
            if not await self._pass(data, left, writer):
                return

    async def _pump_replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._until_relaying()
            if self._behaviour.drop_replies:
                continue
            left = _left(self._behaviour.reply_bytes_max, self._reply_bytes, data)
            self._reply_bytes += len(data)
            if not await self._pass(data, left, writer):
                return

    async def _pass(self, data: bytes, left: int, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on after the first `left` bytes of `data`."""
        delay_s = self._behaviour.delay_s
        if self._behaviour.bytes_per_s is not None:
            delay_s += len(data) / self._behaviour.bytes_per_s
        if delay_s:
            await asyncio.sleep(delay_s)
        writer.write(data[:left])
        await writer.drain()
        cut = left < len(data)
        if cut and self._behaviour.once:
            self.behave(WELL)
        return not cut

    async def _until_relaying(self) -> None:
        while self._behaviour.hang:
            await self._changed.wait()


def _left(bytes_max: int | None, count: int, data: bytes) -> int:
    return len(data) if bytes_max is None else max(0, bytes_max - count)


def _reset(writer: asyncio.StreamWriter) -> None:
    peer: socket.socket | None = writer.get_extra_info("socket")
    if peer is not None:
        with contextlib.suppress(OSError):  # Closed already.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
