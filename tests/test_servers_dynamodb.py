"""The DynamoDB server of the tests: durable over kill -9, and gone with whoever wanted it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.config import Config
from botocore.session import Session

from tests.servers import dynamodb
from tests.servers.dynamodb import DynamoServer, DynamoUnavailableError

WAIT_TIMEOUT_S = 30.0
OWNER = """
import time
from tests.servers.dynamodb import DynamoServer
with DynamoServer() as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def own_server(dynamodb_server: DynamoServer) -> Iterator[DynamoServer]:
    """A server that the test may do anything to; `dynamodb_server` shows that one runs here."""
    assert dynamodb_server.is_running()
    with DynamoServer() as server:
        yield server


def tables(server: DynamoServer, *, create: str | None = None) -> list[str]:
    client = Session().create_client(
        "dynamodb",
        region_name="eu-central-1",
        endpoint_url=server.endpoint,
        aws_access_key_id="local",
        aws_secret_access_key="local",  # pragma: allowlist secret
        config=Config(retries={"total_max_attempts": 1}),
    )
    if create:
        client.create_table(
            TableName=create,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
    names: list[str] = client.list_tables()["TableNames"]
    client.close()
    return names


@pytest.mark.crash
def test_acknowledged_changes_survive_kill9_and_the_endpoint_stays(own_server: DynamoServer) -> None:
    before = own_server.endpoint
    assert tables(own_server, create="kept") == ["kept"]
    own_server.kill9()
    assert not own_server.is_running()
    own_server.start()
    assert own_server.endpoint == before
    assert tables(own_server) == ["kept"]


def test_close_removes_every_file_and_the_next_start_is_empty(own_server: DynamoServer) -> None:
    tables(own_server, create="gone")
    own_server.close()
    own_server.start()
    assert tables(own_server) == []


@pytest.mark.crash
def test_kill9_of_the_owner_ends_the_server_and_removes_its_files(
    dynamodb_server: DynamoServer, tmp_path: Path
) -> None:
    assert dynamodb_server.is_running()
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": root, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    ) as owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        assert list(tmp_path.iterdir())
        owner.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while Path(f"/proc/{server}").exists() or list(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_an_archive_that_is_not_the_pinned_one_is_not_run(
    dynamodb_server: DynamoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dynamodb_server.is_running()
    with tempfile.TemporaryDirectory() as cache:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        monkeypatch.setattr(dynamodb, "SHA512", "another")
        with pytest.raises(DynamoUnavailableError):
            DynamoServer().start()
        assert not [path for path in Path(cache).rglob("*") if path.is_file()]
