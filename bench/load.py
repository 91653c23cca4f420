"""Load: so many HTTP/1.1 connections, each sending its next request once it has the answer to the last.

Run as a process of its own (`python -m bench.load`), so that it does not share an interpreter with what it
measures. It reads one job a line on stdin and writes one report a line on stdout, JSON both. Nothing is
pipelined. It parses of an answer what it must: the status and the length.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

import msgspec
import uvloop

# Whatever is asked, a server that answers fewer a second does not answer.
RATE_MIN = 100
START_TIMEOUT_S = 30.0


class Request(msgspec.Struct, frozen=True):
    """`target` with its query. A body is JSON text. `status`: the one that is right."""

    method: str
    target: str
    body: str = ""
    status: int = 200


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`count` requests in all, which go round through `requests`, over `connections`."""

    port: int
    token: str | None
    requests: list[Request]
    count: int
    connections: int


class Report(msgspec.Struct, frozen=True):
    """`seconds` from the first request to the last answer, connecting left out. `wrong`: what it was not."""

    seconds: float
    rate: float
    p50_ms: float
    p99_ms: float
    wrong: list[str]


class Load:
    """The process, as its parent sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def run(self, job: Job) -> Report:
        """Raises RuntimeError where an answer was not the right one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator ended")
        report = msgspec.json.decode(line, type=Report)
        if report.wrong:
            raise RuntimeError(f"wrong answers: {report.wrong}")
        return report


class _Run:
    """What the connections of a job share: the requests as bytes, what is left of them, what came back."""

    def __init__(self, job: Job) -> None:
        self._wire = [(_wire(request, job), request.status) for request in job.requests]
        self._count = job.count
        self._sent = 0
        self._open = job.connections
        self.latencies_s: list[float] = []
        self.wrong: list[str] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next(self) -> tuple[bytes, int] | None:
        if self._sent == self._count or self.wrong:
            return None
        request = self._wire[self._sent % len(self._wire)]
        self._sent += 1
        return request

    def refuse(self, why: str) -> None:
        self.wrong.append(why)

    def left(self) -> None:
        """A connection has nothing more to send."""
        self._open -= 1
        if self._open == 0 and not self.done.done():
            self.done.set_result(None)


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._expected = 0
        self._sent_s = 0.0
        self._active = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def start(self) -> None:
        self._active = True
        self._send()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end >= 0:
            length = _content_length(buffer, end)
            if length is None:
                self._stop(f"no length: {buffer[:200]!r}")
                return
            if len(buffer) >= end + 4 + length:
                self._buffer = b""
                self._answered(buffer)
                return
        self._buffer = buffer

    def connection_lost(self, exc: Exception | None) -> None:
        if self._active:
            self._stop(f"a connection was lost: {exc}")

    def _answered(self, answer: bytes) -> None:
        self._run.latencies_s.append(time.perf_counter() - self._sent_s)
        if int(answer[9:12]) != self._expected:
            self._stop(answer[:1_000].decode(errors="replace"))
        else:
            self._send()

    def _send(self) -> None:
        request = self._run.next()
        if request is None:
            self._stop(None)
            return
        wire, self._expected = request
        self._sent_s = time.perf_counter()
        assert self._transport is not None
        self._transport.write(wire)

    def _stop(self, why: str | None) -> None:
        self._active = False
        if why is not None:
            self._run.refuse(why)
        self._run.left()


def _wire(request: Request, job: Job) -> bytes:
    head = [f"{request.method} {request.target} HTTP/1.1", f"Host: 127.0.0.1:{job.port}"]
    if job.token is not None:
        head.append(f"Authorization: Bearer {job.token}")
    if request.body:
        head += ["Content-Type: application/json", f"Content-Length: {len(request.body.encode())}"]
    return (
        "\r\n".join([*head, "", request.body]).encode()
        if request.body
        else "\r\n".join([*head, "", ""]).encode()
    )


def _content_length(buffer: bytes, end: int) -> int | None:
    """None where the head names none. An answer of 204 has no body."""
    if buffer[9:12] == b"204":
        return 0
    head = buffer[:end].lower()
    at = head.find(b"content-length:")
    if at < 0:
        return None
    stop = head.find(b"\r\n", at)
    return int(head[at + 15 : stop if stop >= 0 else end])


async def _perform(job: Job) -> Report:
    run = _Run(job)
    loop = asyncio.get_running_loop()
    connections: list[_Connection] = []
    for _ in range(job.connections):
        _, connection = await loop.create_connection(lambda: _Connection(run), "127.0.0.1", job.port)
        connections.append(connection)
    began_s = time.perf_counter()
    for connection in connections:
        connection.start()
    try:
        async with asyncio.timeout(START_TIMEOUT_S + job.count / RATE_MIN):
            await run.done
    except TimeoutError:
        run.refuse(f"{len(run.latencies_s)} answers to {job.count} requests")
    seconds = time.perf_counter() - began_s
    for connection in connections:
        connection.close()
    latencies_ms = sorted(latency * 1000 for latency in run.latencies_s) or [0.0]
    return Report(
        seconds=seconds,
        rate=len(run.latencies_s) / seconds,
        p50_ms=latencies_ms[len(latencies_ms) // 2],
        p99_ms=latencies_ms[len(latencies_ms) * 99 // 100],
        wrong=run.wrong[:3],
    )


def main() -> None:
    for line in sys.stdin.buffer:
        report = uvloop.run(_perform(msgspec.json.decode(line, type=Job)))
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
