"""What the Cosmos DB driver is tested against: an account, Microsoft's emulator, or our wire-level server.

Owns the choice. `ENGINES_TEST_COSMOS_URL` names an account or a running emulator; else, where docker works,
Microsoft's vNext emulator is started; else `cosmos_wire.py`, which shows our wiring and not Azure's
behaviour, and every report says so. Only the wire-level server can be killed, started again and told what to
answer.
"""

import base64
import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from tests.servers.leash import LeashedProcess
from tests.servers.ports import free_port

WIRE = Path(__file__).with_name("cosmos_wire.py")
WIRE_ALONE = "Azure Cosmos DB itself: not run; the wire-level server shows our wiring"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02

EMULATOR_IMAGE = "mcr.microsoft.com/cosmosdb/linux/azure-cosmos-emulator:vnext-preview"
EMULATOR_PORT = 8081
EMULATOR_TIMEOUT_S = 120.0
# The emulator's one key, the same everywhere: "Azure Cosmos DB emulator",
# https://learn.microsoft.com/azure/cosmos-db/emulator#authentication
EMULATOR_KEY = (
    "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5"
    "DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="  # pragma: allowlist secret
)


class CosmosServer:
    """The wire-level server, on one port with one file. `start` after `kill9` serves the same items.

    Not for several threads at once.
    """

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="engines-cosmos-"))
        self._key = base64.b64encode(secrets.token_bytes(64)).decode()
        self._process: LeashedProcess | None = None
        self.port = free_port()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def url(self, database: str, container: str) -> str:
        key = quote(self._key, safe="")
        return f"cosmos://:{key}@127.0.0.1:{self.port}/{database}/{container}?tls=disable"

    def start(self) -> None:
        """Start and wait until it accepts connections. Raises `TimeoutError`."""
        if self._process is not None and self._process.is_running():
            return
        command = [sys.executable, str(WIRE), str(self.port), str(self._home / "items.db"), self._key]
        self._process = LeashedProcess(command, env={}, log=self._home / "log", remove=self._home)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.is_running():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(POLL_S)
        raise TimeoutError(f"the wire-level server did not start: {(self._home / 'log').read_text()[-2000:]}")

    def kill9(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill(STOP_TIMEOUT_S)
            self._process = None

    def suspend(self) -> None:
        """Freeze the server: connections stay open and nothing is answered until `resume`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill9()
        shutil.rmtree(self._home, ignore_errors=True)

    # --- what tests tell it ---

    def order(self, *replies: dict[str, Any]) -> None:
        """The next requests for items are answered so, in turn: `status` (a number, or "reset" for a broken
        connection), `body`, `headers`; with `apply` the request is carried out before.
        """
        self._steer("order", list(replies))

    def forget_orders(self) -> None:
        """From now on requests are answered as they are."""
        self._steer("forget", None)

    def account(self, **facts: Any) -> None:
        """What the account says of itself: `consistency`, `write_regions`; `writes_at` is another region."""
        self._steer("account", facts)

    def seen(self) -> list[dict[str, Any]]:
        """The requests for items since the last call: method, path, bytes of the body."""
        found: list[dict[str, Any]] = self._steer("seen", None)
        return found

    def _steer(self, what: str, body: Any) -> Any:
        address = f"http://127.0.0.1:{self.port}/_wire/{what}"
        request = urllib.request.Request(address, json.dumps(body).encode(), method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=STOP_TIMEOUT_S) as reply:
            return json.loads(reply.read())


class CosmosAccount:
    """An account or emulator that somebody else keeps, or the emulator that docker runs for this session."""

    def __init__(self, base_url: str, container: str | None = None) -> None:
        """`base_url` is a control plane's URL of it up to the path, `cosmos://:KEY@HOST[:PORT]`."""
        self._base_url, _, self._query = base_url.partition("?")
        self._container = container

    def url(self, database: str, container: str) -> str:
        return f"{self._base_url.rstrip('/')}/{database}/{container}" + (
            f"?{self._query}" if self._query else ""
        )

    def close(self) -> None:
        if self._container is not None:
            subprocess.run(["docker", "rm", "-f", self._container], check=True, capture_output=True)


def open_cosmos() -> CosmosServer | CosmosAccount:
    """The best that this machine offers, running."""
    if url := os.environ.get("ENGINES_TEST_COSMOS_URL"):
        return CosmosAccount(url)
    if docker_works():
        return _start_emulator()
    server = CosmosServer()
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server


@functools.cache
def docker_works() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def is_wire_alone() -> bool:
    """Whether tests here show our wiring only."""
    return not os.environ.get("ENGINES_TEST_COSMOS_URL") and not docker_works()


def _start_emulator() -> CosmosAccount:
    port = free_port()
    command = ["docker", "run", "-d", "--rm", "-p", f"127.0.0.1:{port}:{EMULATOR_PORT}", EMULATOR_IMAGE]
    name = subprocess.run(
        [*command, "--protocol", "http"], check=True, capture_output=True, text=True
    ).stdout.strip()
    deadline = time.monotonic() + EMULATOR_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1):
            break
        time.sleep(1)
    return CosmosAccount(f"cosmos://:{quote(EMULATOR_KEY, safe='')}@127.0.0.1:{port}?tls=disable", name)
