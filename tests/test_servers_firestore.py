"""The Firestore that other tests stand on: durable, really killed when killed, gone when its owner is.

Requests are the service's own messages, of every kind of value: what it keeps is no matter of what our driver
writes.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import pytest
import pytest_asyncio

from engines.drivers.documents.firestore.messages import (
    BatchGetRequest,
    BatchGetResponse,
    CommitRequest,
    CommitResponse,
)
from tests.servers.firestore import FirestoreServer
from tests.servers.leash import descendants

ROOT = Path(__file__).resolve().parents[1]
GONE_TIMEOUT_S = 20.0
DATABASE = f"projects/{FirestoreServer.project}/databases/{FirestoreServer.database}"
OWNER = """
import os, time
from tests.servers.firestore import FirestoreServer
from tests.servers.leash import descendants
server = FirestoreServer()
server.start()
print(*descendants(os.getpid()), flush=True)
time.sleep(600)
"""
VALUES: Mapping[str, Any] = {
    "null": {"null_value": 0},
    "boolean": {"boolean_value": True},
    "integer": {"integer_value": -(2**63)},
    "double": {"double_value": -0.1},
    "timestamp": {"timestamp_value": {"seconds": 5, "nanos": 7_000}},
    "string": {"string_value": "żółć 🜚 \x00"},
    "bytes": {"bytes_value": b"\x00\xff"},
    "reference": {"reference_value": f"{DATABASE}/documents/a/b"},
    "point": {"geo_point_value": {"latitude": 52.5, "longitude": -13.25}},
    "array": {"array_value": {"values": [{"integer_value": 1}, {"string_value": "a"}]}},
    "map": {"map_value": {"fields": {"a": {"map_value": {"fields": {"b": {"double_value": 1.0}}}}}}},
}


class Client:
    """Commits and reads by the service's messages."""

    def __init__(self, channel: Any) -> None:
        self._commit = channel.unary_unary(
            "/google.firestore.v1.Firestore/Commit",
            request_serializer=CommitRequest.SerializeToString,
            response_deserializer=CommitResponse.FromString,
        )
        self._get = channel.unary_stream(
            "/google.firestore.v1.Firestore/BatchGetDocuments",
            request_serializer=BatchGetRequest.SerializeToString,
            response_deserializer=BatchGetResponse.FromString,
        )

    async def commit(self, *writes: Mapping[str, Any], **fields: Any) -> Any:
        request = CommitRequest(database=DATABASE, writes=writes, **fields)
        return await self._commit(request, wait_for_ready=True, timeout=30)

    async def get(self, *keys: str) -> dict[str, Any]:
        request = BatchGetRequest(database=DATABASE, documents=[name(key) for key in keys])
        return {
            reply.found.name: reply.found.fields
            async for reply in self._get(request, wait_for_ready=True, timeout=30)
            if reply.HasField("found")
        }


def name(key: str) -> str:
    return f"{DATABASE}/documents/things/{key}"


def update(key: str, fields: Mapping[str, Any], **others: Any) -> Mapping[str, Any]:
    return {"update": {"name": name(key), "fields": fields}, **others}


@pytest.fixture
def server(firestore_server: FirestoreServer) -> FirestoreServer:
    firestore_server.start()
    firestore_server.clear()
    return firestore_server


@pytest_asyncio.fixture
async def client(server: FirestoreServer) -> AsyncIterator[Client]:
    options = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.initial_reconnect_backoff_ms", 100)]
    async with grpc.aio.insecure_channel(server.endpoint, options=options) as channel:
        yield Client(channel)


async def restart(server: FirestoreServer) -> None:
    await asyncio.to_thread(server.kill9)
    assert not server.is_running()
    await asyncio.to_thread(server.start)


@pytest.mark.crash
async def test_values_of_every_type_survive_kill9_and_the_port_stays(
    server: FirestoreServer, client: Client
) -> None:
    endpoint = server.endpoint
    await client.commit(update("k1", VALUES), update("k2", {"n": {"integer_value": 1}}))
    await client.commit(
        update("k1", {"late": {"boolean_value": True}}, update_mask={"field_paths": ["late"]})
    )
    await client.commit({"delete": name("k2")}, update("k3", {}))
    before = await client.get("k1", "k2", "k3")
    assert set(before) == {name("k1"), name("k3")}
    assert set(before[name("k1")]) == {*VALUES, "late"}
    await restart(server)
    assert server.endpoint == endpoint
    after = await client.get("k1", "k2", "k3")
    assert after == before


@pytest.mark.crash
async def test_a_write_whose_condition_held_is_repeated_and_one_that_was_refused_is_not(
    server: FirestoreServer, client: Client
) -> None:
    reply = await client.commit(update("k1", {"n": {"integer_value": 1}}, current_document={"exists": False}))
    time_of_it = reply.write_results[0].update_time
    condition = {"update_time": {"seconds": time_of_it.seconds, "nanos": time_of_it.nanos}}
    await client.commit(update("k1", {"n": {"integer_value": 2}}, current_document=condition))
    for refused in (condition, {"exists": False}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.commit(
                update("k1", {"n": {"integer_value": 3}}, current_document=refused), update("k2", {})
            )
        assert caught.value.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS)
    await restart(server)
    found = await client.get("k1", "k2")
    assert {key: fields["n"].integer_value for key, fields in found.items()} == {name("k1"): 2}


@pytest.mark.crash
async def test_a_record_cut_short_by_a_kill_is_dropped_with_nothing_before_it(
    server: FirestoreServer, client: Client
) -> None:
    for key in ("k1", "k2"):
        await client.commit(update(key, VALUES))
    await asyncio.to_thread(server.kill9)
    journal = server._journal()
    os.truncate(journal, journal.stat().st_size - 1)
    await asyncio.to_thread(server.start)
    assert set(await client.get("k1", "k2")) == {name("k1")}
    await client.commit(update("k3", {}))
    await restart(server)
    assert set(await client.get("k1", "k2", "k3")) == {name("k1"), name("k3")}


async def test_what_a_replay_would_not_repeat_is_refused(client: Client) -> None:
    transforms = [{"field_path": "at", "set_to_server_value": 1}]
    for call in (
        client.commit(update("k1", {}, update_transforms=transforms)),
        client.commit(update("k1", {}), transaction=b"any"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert await client.get("k1") == {}


async def test_clear_leaves_nothing_to_come_back(server: FirestoreServer, client: Client) -> None:
    await client.commit(update("k1", VALUES))
    server.clear()
    assert await client.get("k1") == {}
    await restart(server)
    assert await client.get("k1") == {}


@pytest.fixture
def owner(server: FirestoreServer) -> Iterator["subprocess.Popen[str]"]:
    """A process that owns a server, and has printed the ids of all below it."""
    assert server.is_running()
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True, process_group=0
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.crash
@pytest.mark.parametrize("group", [False, True], ids=["alone", "with its group"])
def test_an_owner_that_is_killed_leaves_no_process(owner: "subprocess.Popen[str]", *, group: bool) -> None:
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(pids) >= 4, "two servers, each with its leash"
    if group:
        os.killpg(owner.pid, signal.SIGKILL)
    else:
        owner.kill()
    owner.wait()
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "still there after 20 s"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """A zombie that nobody reaps holds nothing any more, and counts as gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.crash
def test_kill9_leaves_no_process_and_no_open_port(server: FirestoreServer) -> None:
    assert server.is_running()
    before = set(descendants(os.getpid()))
    with FirestoreServer() as other:
        ports = [int(endpoint.rpartition(":")[2]) for endpoint in (other.endpoint, other.emulator_endpoint)]
        own = set(descendants(os.getpid())) - before
        other.kill9()
        assert not own & set(descendants(os.getpid()))
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=1)
