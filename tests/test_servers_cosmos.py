"""The wire-level server that the Cosmos DB driver is tested against: durable, and gone when its owner is."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from azure.cosmos import PartitionKey
from azure.cosmos.aio import ContainerProxy, CosmosClient

from engines.drivers.documents.cosmos import config_from_url
from tests.servers.cosmos import CosmosServer
from tests.servers.leash import descendants

ROOT = Path(__file__).resolve().parents[1]
GONE_TIMEOUT_S = 20.0
ITEM = {"id": "k1", "pk": "p"}

OWNER = """
import os, time
from tests.servers.cosmos import CosmosServer
from tests.servers.leash import descendants
with CosmosServer():
    print(*descendants(os.getpid()), flush=True)
    time.sleep(600)
"""


def test_it_is_gone_when_its_owner_is_killed() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    started = [int(pid) for pid in owner.stdout.readline().split()]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert len(started) == 2, "the leash and the server"
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert descendants(owner.pid) == []


async def test_what_it_acknowledged_survives_a_kill() -> None:
    with CosmosServer() as server:
        config, key = config_from_url(server.url("d", "c"))
        async with CosmosClient(config["endpoint"], key or "") as client:
            database = await client.create_database("d")
            container: ContainerProxy = await database.create_container("c", PartitionKey(path="/pk"))
            await container.create_item(ITEM)
            server.kill9()
            server.start()
            assert (await container.read_item("k1", "p"))["_etag"]
