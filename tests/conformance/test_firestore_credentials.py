"""Firestore as in production: over TLS, with an access token that a service account's key is exchanged for.

The service and the place where tokens are had are on loopback; everything between is Google's and gRPC's own.
"""

import http.server
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from engines.drivers.documents.firestore import Config, connection, open_driver
from engines.errors import BackendRefused, Unavailable
from engines.ports.documents import DocumentDriver
from engines.ports.secrets import Secret
from engines.testing.clock import ManualClock
from engines.testing.documents.harness import get, put, write
from tests.conformance.test_postgres_tls import write_certificate

TOKEN = "an-access-token"
Open = Callable[[str], DocumentDriver]


class Tokens(http.server.BaseHTTPRequestHandler):
    """Where a signed assertion is exchanged for an access token; refuses below /refuse."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        refused = self.path == "/refuse"
        body: dict[str, Any] = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
        if refused:
            body = {"error": "invalid_grant", "error_description": "hunter2"}
        self.send_response(400 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing on the tests' output."""


@pytest.fixture
def token_url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


class Finding(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds no document, and keeps what was presented."""

    def __init__(self) -> None:
        self.authorizations: list[str] = []

    def service(self, details: Any) -> Any:
        self.authorizations.append(dict(details.invocation_metadata).get("authorization", ""))

        async def nothing(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
            empty: tuple[bytes, ...] = ()
            for reply in empty:
                yield reply

        return grpc.unary_stream_rpc_method_handler(nothing)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trusted by every TLS channel of the process from the first on: gRPC reads the variable once."""
    directory = tmp_path_factory.mktemp("certificate")
    write_certificate(directory, "server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", str(directory / "server.crt"))
        yield directory


@pytest_asyncio.fixture
async def service(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Finding]:
    """Stands where the driver looks for Firestore."""
    finding = Finding()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((finding,))
    pair = ((certificate / "server.key").read_bytes(), (certificate / "server.crt").read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    monkeypatch.setattr(connection, "SERVICE_ENDPOINT", f"127.0.0.1:{port}")
    yield finding
    await server.stop(None)


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return text.decode()


@pytest_asyncio.fixture
async def open_with_tokens_of(private_key: str) -> AsyncIterator[Open]:
    opened: list[DocumentDriver] = []

    def open_it(token_uri: str) -> DocumentDriver:
        key = {
            "type": "service_account",
            "client_email": "engines@a-project.example",
            "private_key": private_key,
            "token_uri": token_uri,
        }
        secrets = {"service_account": Secret(json.dumps(key))}
        opened.append(open_driver(Config(project="a-project"), secrets, ManualClock()))
        return opened[-1]

    yield open_it
    for client in opened:
        await client.close()


async def test_a_service_accounts_key_becomes_a_token_that_is_presented_over_tls(
    service: Finding, open_with_tokens_of: Open, token_url: str
) -> None:
    assert await get(open_with_tokens_of(token_url), "k1") is None
    assert service.authorizations == [f"Bearer {TOKEN}"]


async def test_a_key_that_is_refused_is_the_operators_work(
    service: Finding, open_with_tokens_of: Open, token_url: str
) -> None:
    client = open_with_tokens_of(f"{token_url}/refuse")
    for call in (get(client, "k1"), write(client, put("k1"))):
        with pytest.raises(BackendRefused, match="renew") as caught:
            await call
        assert "hunter2" not in str(caught.value)
    assert service.authorizations == []


async def test_a_token_that_cannot_be_fetched_is_unavailable_even_to_a_write(
    service: Finding, open_with_tokens_of: Open
) -> None:
    client = open_with_tokens_of("http://127.0.0.1:1/")
    for call in (get(client, "k1"), write(client, put("k1"))):
        with pytest.raises(Unavailable):
            await call
    assert service.authorizations == []
