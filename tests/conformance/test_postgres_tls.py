"""PostgreSQL over TLS. The server of the tests is built without it, so it ends at a small front before it."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engines.drivers.documents.postgres import Config, PostgresDocuments, config_from_url, open_driver
from engines.errors import BackendRefused, Unavailable
from engines.ports.secrets import Secret
from engines.testing.clock import ManualClock
from engines.testing.documents.harness import put, read_keys, write

# The client asks for TLS before anything else (PostgreSQL documentation, "Message Formats", SSLRequest).
SSL_REQUEST: Final = (8).to_bytes(4) + (80877103).to_bytes(4)
Open = Callable[..., PostgresDocuments]


def write_certificate(directory: Path, name: str) -> None:
    """A self-signed certificate for 127.0.0.1, `{name}.crt`, and its key, `{name}.key`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(loopback, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (directory / f"{name}.crt").write_bytes(certificate.public_bytes(encoding))
    (directory / f"{name}.key").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    write_certificate(tmp_path, "server")
    write_certificate(tmp_path, "stranger")
    return tmp_path


@pytest_asyncio.fixture
async def open_at_front(postgres_database: str, certificates: Path) -> AsyncIterator[Open]:
    """Opens a driver at the front, which serves nobody who does not ask for TLS."""
    config, password = config_from_url(postgres_database)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if await reader.readexactly(len(SSL_REQUEST)) == SSL_REQUEST:
                writer.write(b"S")
                await writer.start_tls(context)
                server = await asyncio.open_connection(config["host"], config["port"])
                await asyncio.gather(relay(reader, server[1]), relay(server[0], writer))
        writer.transport.abort()

    front = await asyncio.start_server(serve, "127.0.0.1", 0)

    def open_at(**fields: Any) -> PostgresDocuments:
        there = {**config, "port": front.sockets[0].getsockname()[1], **fields}
        return open_driver(
            msgspec.convert(there, Config), {"password": Secret(password or "")}, ManualClock()
        )

    async with front:
        yield open_at


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def assert_works(client: PostgresDocuments) -> None:
    await client.provision()
    await write(client, put("k1"), put("k2", '"' + "x" * 300_000 + '"'))
    assert await read_keys(client) == ["k1", "k2"]
    await client.close()


async def test_a_server_that_the_named_authority_vouches_for_is_used(
    open_at_front: Open, certificates: Path
) -> None:
    await assert_works(open_at_front(tls="verify-full", tls_ca_file=str(certificates / "server.crt")))


async def test_without_a_check_of_the_certificate_the_way_is_encrypted_all_the_same(
    open_at_front: Open,
) -> None:
    await assert_works(open_at_front(tls="require"))


@pytest.mark.parametrize("authority", ["stranger", None], ids=["another authority", "the system's"])
async def test_a_server_that_nobody_vouches_for_is_refused(
    open_at_front: Open, certificates: Path, authority: str | None
) -> None:
    file = None if authority is None else str(certificates / f"{authority}.crt")
    client = open_at_front(tls="verify-full", tls_ca_file=file)
    with pytest.raises(BackendRefused):
        await client.provision()
    await client.close()


async def test_a_server_under_a_name_that_is_not_in_its_certificate_is_refused(
    open_at_front: Open, certificates: Path
) -> None:
    client = open_at_front(host="localhost", tls="verify-full", tls_ca_file=str(certificates / "server.crt"))
    with pytest.raises(BackendRefused):
        await client.provision()
    await client.close()


async def test_a_missing_or_broken_authority_file_is_refused(open_at_front: Open, certificates: Path) -> None:
    for name in ("gone.crt", "server.key"):
        client = open_at_front(tls="verify-full", tls_ca_file=str(certificates / name))
        with pytest.raises(BackendRefused):
            await client.provision()
        await client.close()


async def test_without_tls_nothing_is_sent_to_a_server_that_asks_for_it(open_at_front: Open) -> None:
    client = open_at_front(tls="disable")
    with pytest.raises(Unavailable):
        await client.provision()
    await client.close()
