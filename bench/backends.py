"""Empty storage of each driver: PostgreSQL, a file, and the servers of the cloud services' APIs.

Owns those servers' starts and ends, and what opens a driver on them. A server that cannot run on this machine
is `NotRun`, with its reason. What answers for a cloud service here is no cloud service: its label says what
it is, and ratios are of clients on it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from engines.clock import SystemClock
from engines.drivers.registry import document_driver, driver_of_url
from engines.ports.documents import DocumentDriver
from engines.ports.secrets import Secret
from tests.servers.cosmos import CosmosAccount, CosmosServer, open_cosmos
from tests.servers.dynamodb import DynamoServer, DynamoUnavailableError
from tests.servers.firestore import FirestoreServer, FirestoreUnavailableError

# Any will do: the server does not check signatures.
DYNAMODB_CREDENTIALS: Final = {
    "access_key_id": "local",
    "secret_access_key": "local",  # pragma: allowlist secret
}

S = TypeVar("S")


class NotRun(Exception):
    """What a comparison needs cannot be had on this machine; the text says why."""


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """Empty storage: what opens a driver on it, in this process or another. `label` names the peer."""

    driver: str
    label: str
    config: Mapping[str, Any]
    secrets: Mapping[str, str] = {}

    def open(self) -> DocumentDriver:
        module = document_driver(self.driver)
        secrets = {name: Secret(value) for name, value in self.secrets.items()}
        return module.open_driver(msgspec.convert(self.config, module.Config), secrets, SystemClock())


def sqlite_backend(path: Path) -> Backend:
    return Backend(driver="sqlite", label="SQLite", config={"path": str(path)})


def url_backend(url: str, label: str) -> Backend:
    """What a control plane's URL describes."""
    driver = driver_of_url(url)
    module = document_driver(driver)
    config, password = module.config_from_url(url)
    secrets = {} if password is None else {next(iter(module.DESCRIPTION.secrets)): password}
    return Backend(driver=driver, label=label, config=config, secrets=secrets)


class Servers:
    """The servers of the cloud services' APIs, each started by the first storage that is asked for on it."""

    def __init__(self) -> None:
        self._running: dict[str, Any] = {}
        self._makers: dict[str, Callable[[], Backend]] = {
            "dynamodb": self._dynamodb,
            "firestore": self._firestore,
            "cosmos": self._cosmos,
        }

    def new_backend(self, driver: str) -> Backend:
        """Raises NotRun where the server cannot run here."""
        try:
            return self._makers[driver]()
        except (DynamoUnavailableError, FirestoreUnavailableError, TimeoutError) as error:
            raise NotRun(f"{driver}: {error}") from error

    def close(self) -> None:
        while self._running:
            self._running.popitem()[1].close()

    def _dynamodb(self) -> Backend:
        server = self._started("dynamodb", lambda: _started(DynamoServer()))
        return Backend(
            driver="dynamodb",
            label="DynamoDB (dynoxide)",
            config={
                "region": "eu-central-1",
                "table": f"bench_{uuid.uuid4().hex}",
                "endpoint": server.endpoint,
                "point_in_time_recovery": False,
            },
            secrets=DYNAMODB_CREDENTIALS,
        )

    def _firestore(self) -> Backend:
        """On the emulator itself: the journal in front of it would be part of every figure."""
        server = self._started("firestore", lambda: _started(FirestoreServer()))
        return Backend(
            driver="firestore",
            label="Firestore (emulator)",
            config={
                "project": server.project,
                "database": server.database,
                "collection": f"bench_{uuid.uuid4().hex}",
                "endpoint": server.emulator_endpoint,
                "manage_indexes": False,
            },
        )

    def _cosmos(self) -> Backend:
        server: CosmosServer | CosmosAccount = self._started("cosmos", open_cosmos)
        peer = "wire-level server" if isinstance(server, CosmosServer) else "account or emulator"
        return url_backend(server.url("bench", f"bench_{uuid.uuid4().hex}"), f"Cosmos DB ({peer})")

    def _started(self, name: str, start: Callable[[], S]) -> S:
        if name not in self._running:
            self._running[name] = start()
        found: S = self._running[name]
        return found


def _started(server: Any) -> Any:
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server
