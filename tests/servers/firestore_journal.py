"""A gRPC pass-through that makes Google's Firestore emulator, which keeps everything in memory, durable.

`python -m tests.servers.firestore_journal PORT EMULATOR JOURNAL` serves on 127.0.0.1:PORT what the emulator
at EMULATOR answers. It appends each Commit that succeeded, request and reply, to JOURNAL, and answers after
the file is on the disk. At its start it commits what JOURNAL holds to an emulator that is empty.

Owns the journal. It knows nothing of documents: every value and every error passes as it is. Preconditions
are dropped on replay, for they held; update times change by it, as they do when a real database is restored.
A commit is seen by readers for the moment before it is on the disk. Commits with transforms or inside of
transactions are refused, since a replay would not repeat what they did.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from google.cloud.firestore_v1.types import firestore

SERVICE: Final = "google.firestore.v1.Firestore"
COMMIT: Final = f"/{SERVICE}/Commit"
STREAMS: Final = ("BatchGetDocuments", "RunQuery")
HEADER: Final = struct.Struct(">II")
# One commit of a replay: the service takes 10 MiB.
REPLAY_WRITES_MAX: Final = 500
REPLAY_BYTES_MAX: Final = 8 * 1024 * 1024
REPLAY_TIMEOUT_S: Final = 60.0
OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    # Its pings would be what a client hears first, before the request that they follow was read.
    ("grpc.http2.bdp_probe", 0),
)
OWNER: Final = (("authorization", "Bearer owner"),)
CommitRequest: Any = firestore.CommitRequest.pb()
CommitResponse: Any = firestore.CommitResponse.pb()


class Journal:
    """The file. Commits that wait for the disk together share one flush."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._path = path
        self._appended = self._flushed = 0
        self._flushing = asyncio.Lock()

    async def append(self, request: bytes, reply: bytes) -> None:
        record = HEADER.pack(len(request), len(reply)) + request + reply
        written = os.write(self._file, record)
        assert written == len(record), "the disk is full"
        self._appended += 1
        mine = self._appended
        async with self._flushing:
            if self._flushed < mine:
                covered = self._appended
                await asyncio.to_thread(os.fdatasync, self._file)
                self._flushed = covered

    def writes(self) -> list[Any]:
        """All writes in the order of their commits. A record that a kill cut short was never answered."""
        commits = []
        data = self._path.read_bytes()
        place = 0
        while place + HEADER.size <= len(data):
            request_size, reply_size = HEADER.unpack_from(data, place)
            begin = place + HEADER.size
            end = begin + request_size + reply_size
            if end > len(data):
                break
            reply = CommitResponse.FromString(data[begin + request_size : end])
            time = reply.commit_time
            commits.append(((time.seconds, time.nanos), place, data[begin : begin + request_size]))
            place = end
        os.truncate(self._path, place)
        requests = (CommitRequest.FromString(request) for _, _, request in sorted(commits))
        return [(request.database, write) for request in requests for write in request.writes]


def batches(writes: list[Any]) -> Iterator[Any]:
    """The writes without their preconditions, in order, as commits of the greatest size."""
    commit, size = None, 0
    for database, write in writes:
        write.ClearField("current_document")
        added = write.ByteSize()
        full = commit is not None and (
            commit.database != database
            or len(commit.writes) >= REPLAY_WRITES_MAX
            or size + added > REPLAY_BYTES_MAX
        )
        if full:
            yield commit
        if commit is None or full:
            commit, size = CommitRequest(database=database), 0
        commit.writes.append(write)
        size += added
    if commit is not None:
        yield commit


class PassThrough(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Hands calls to the emulator as bytes."""

    def __init__(self, channel: Any, journal: Journal) -> None:
        self._journal = journal
        self._channel = channel
        self._commit = channel.unary_unary(COMMIT)
        self._commits: set[asyncio.Task[bytes]] = set()

    def service(self, details: Any) -> Any:
        if details.method == COMMIT:
            return grpc.unary_unary_rpc_method_handler(self._pass_commit)
        if details.method in {f"/{SERVICE}/{name}" for name in STREAMS}:
            return grpc.unary_stream_rpc_method_handler(self._pass_stream(details.method))
        return None

    async def replay(self) -> None:
        for commit in batches(self._journal.writes()):
            await self._commit(commit.SerializeToString(), timeout=REPLAY_TIMEOUT_S, metadata=OWNER)

    async def _pass_commit(self, request: bytes, context: Any) -> bytes:
        commit = CommitRequest.FromString(request)
        if commit.transaction or any(w.update_transforms or w.HasField("transform") for w in commit.writes):
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, "transforms and transactions are not journaled"
            )
        # Goes on when the client goes away: what the emulator has done then is journaled all the same.
        task = asyncio.create_task(self._commit_and_journal(request))
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        try:
            return await asyncio.shield(task)
        except grpc.aio.AioRpcError as error:
            return await context.abort(error.code(), error.details())  # type: ignore[no-any-return]

    async def _commit_and_journal(self, request: bytes) -> bytes:
        reply: bytes = await self._commit(request, metadata=OWNER)
        await self._journal.append(request, reply)
        return reply

    def _pass_stream(self, method: str) -> Any:
        call = self._channel.unary_stream(method)

        async def run(request: bytes, context: Any) -> AsyncIterator[bytes]:
            try:
                async for reply in call(request, timeout=context.time_remaining(), metadata=OWNER):
                    yield reply
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details())

        return run


async def serve(port: int, emulator: str, journal: Path) -> None:
    async with grpc.aio.insecure_channel(emulator, options=OPTIONS) as channel:
        handler = PassThrough(channel, Journal(journal))
        await handler.replay()
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((handler,))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
