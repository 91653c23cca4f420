"""Secrets of three clouds: what is asked, what is read, and that every refusal says what to do about it."""

import asyncio
import base64
import json
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from engines.core.secrets import Secrets
from engines.drivers.registry import secret_sources
from engines.drivers.secrets import aws, azure, google
from engines.errors import BackendRefused, Invalid
from tests.secrets.refusals import VALUE, refused
from tests.servers.secret_managers import ACCESS_KEY_ID, IDENTITY_HEADER, REGION, SecretManagers

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


class Cloud(msgspec.Struct, frozen=True):
    """A handle, the key under which the server keeps its value, and the module that reads it."""

    handle: str
    key: str
    module: object
    sdk: str
    extra: str


AWS = Cloud("aws:prod/db", "prod/db", aws, "aiobotocore.session", "aws-secrets")
GOOGLE = Cloud(
    "google:my-project/db",
    "projects/my-project/secrets/db/versions/latest",
    google,
    "google.auth.transport.requests",
    "google-secrets",
)
AZURE = Cloud("azure:my-vault/db", "my-vault/db", azure, "azure.identity.aio", "azure-secrets")
CLOUDS = pytest.mark.parametrize("cloud", [AWS, GOOGLE, AZURE], ids=["aws", "google", "azure"])


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[SecretManagers]:
    """Running, with an identity of each cloud in the places where the vendors' default chains look."""
    async with SecretManagers() as running:
        key_file = tmp_path / "service-account.json"
        key_file.write_text(running.service_account())
        for name, value in {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": str(tmp_path / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "GOOGLE_APPLICATION_CREDENTIALS": str(key_file),
            "IDENTITY_ENDPOINT": f"{running.url}/azure/identity",
            "IDENTITY_HEADER": IDENTITY_HEADER,
        }.items():
            monkeypatch.setenv(name, value)
        for cloud in (AWS, GOOGLE, AZURE):
            running.values[cloud.key] = VALUE
        yield running
        assert running.wrong == []


@pytest.fixture
def secrets(server: SecretManagers) -> Secrets:
    return Secrets(secret_sources(**server.places))


@CLOUDS
async def test_a_secret_is_read_and_a_rotated_one_is_seen(
    secrets: Secrets, server: SecretManagers, cloud: Cloud
) -> None:
    assert (await secrets.resolve(cloud.handle)).reveal() == VALUE
    server.values[cloud.key] = "é☃"
    assert (await secrets.resolve(cloud.handle)).reveal() == "é☃"


async def test_a_member_of_an_aws_secret_is_read(secrets: Secrets, server: SecretManagers) -> None:
    server.values["prod/db"] = json.dumps({"password": VALUE, "port": 5432})
    assert (await secrets.resolve("aws:prod/db#password")).reveal() == VALUE
    for member in ("port", "missing"):
        assert f"#{member}" in (await refused(secrets, f"aws:prod/db#{member}", BackendRefused)).detail
    server.values["prod/db"] = f'{{"password": "{VALUE}"'
    await refused(secrets, "aws:prod/db#password", BackendRefused)


async def test_an_arn_says_its_region(secrets: Secrets, server: SecretManagers) -> None:
    arn = "arn:aws:secretsmanager:us-east-2:123456789012:secret:prod/db-a1b2c3"
    server.values[arn] = VALUE
    assert (await secrets.resolve(f"aws:{arn}")).reveal() == VALUE
    assert (await secrets.resolve("aws:prod/db")).reveal() == VALUE
    assert server.regions == ["us-east-2", REGION]


async def test_a_version_of_a_google_secret_is_read(secrets: Secrets, server: SecretManagers) -> None:
    server.values["projects/my-project/secrets/db/versions/7"] = "seventh"
    assert (await secrets.resolve("google:my-project/db/7")).reveal() == "seventh"


@pytest.mark.parametrize(
    "handle",
    [
        "aws:#member",
        "aws:name#",
        "aws:a?b",
        "google:project",
        "google:project/",
        "google:project/../secret",
        "google:project/secret/1/2",
        "google:project/secret:destroy",
        "azure:vault",
        "azure:vault/",
        "azure:evil.example/name",
        "azure:vault@evil/name",
        "azure:vault/name?a=b",
        "azure:vault/name/version",
    ],
)
async def test_a_name_that_the_scheme_cannot_have_is_invalid_and_nobody_is_asked(
    secrets: Secrets, server: SecretManagers, handle: str
) -> None:
    await refused(secrets, handle, Invalid)
    assert server.tokens == 0
    assert server.regions == []


@CLOUDS
async def test_a_secret_that_is_not_there_is_refused_by_name(
    secrets: Secrets, server: SecretManagers, cloud: Cloud
) -> None:
    del server.values[cloud.key]
    error = await refused(secrets, cloud.handle, BackendRefused)
    assert cloud.handle in error.detail
    assert "there is no" in error.detail


@pytest.mark.parametrize(
    ("cloud", "reply", "remedy"),
    [
        (AWS, SecretManagers.aws_error("AccessDeniedException"), "secretsmanager:GetSecretValue"),
        (AWS, SecretManagers.aws_error("DecryptionFailure"), "kms:Decrypt"),
        (AWS, SecretManagers.aws_error("InvalidRequestException"), "restore"),
        (AWS, SecretManagers.aws_error("ExpiredTokenException"), "credentials"),
        (AWS, SecretManagers.aws_error("SomethingNew"), "SomethingNew"),
        (GOOGLE, SecretManagers.google_error(403, "PERMISSION_DENIED"), "secretAccessor"),
        (GOOGLE, SecretManagers.google_error(400, "FAILED_PRECONDITION"), "disabled"),
        (GOOGLE, SecretManagers.google_error(418, "TEAPOT"), "418"),
        (AZURE, SecretManagers.azure_error(403, "Forbidden"), "Key Vault Secrets User"),
        (AZURE, SecretManagers.azure_error(418, "Teapot"), "418"),
    ],
)
async def test_a_refusal_says_what_to_do(
    secrets: Secrets, server: SecretManagers, cloud: Cloud, reply: web.Response, remedy: str
) -> None:
    server.instead = reply
    error = await refused(secrets, cloud.handle, BackendRefused)
    assert cloud.handle in error.detail
    assert remedy in error.detail


def _google(data: bytes) -> bytes:
    return json.dumps({"payload": {"data": base64.b64encode(data).decode()}}).encode()


@pytest.mark.parametrize(
    ("cloud", "body"),
    [
        (AWS, b"{}"),
        (AWS, b'{"SecretString": ""}'),
        (AWS, b'{"SecretBinary": "aHVudGVyMg=="}'),
        (AWS, f'{{"SecretString": "{VALUE}'.encode()),
        (AWS, json.dumps({"SecretString": VALUE * aws.SECRET_BYTES_MAX}).encode()),
        (GOOGLE, b"{}"),
        (GOOGLE, _google(b"")),
        (GOOGLE, _google(VALUE.encode() + b"\xff")),
        (GOOGLE, f'{{"payload": {{"data": "{VALUE}"}}}}'.encode()),
        (GOOGLE, b"[" * 100_000),
        (GOOGLE, _google(VALUE.encode() * google.REPLY_BYTES_MAX)),
        (AZURE, b"{}"),
        (AZURE, b'{"value": ""}'),
        (AZURE, f'{{"value": "{VALUE}'.encode()),
        (AZURE, b'{"value": "' + VALUE.encode() + b'\xff"}'),
        (AZURE, json.dumps({"value": VALUE * azure.REPLY_BYTES_MAX}).encode()),
    ],
)
async def test_a_reply_that_is_none_is_refused_and_its_text_is_not_told(
    secrets: Secrets, server: SecretManagers, cloud: Cloud, body: bytes
) -> None:
    server.instead = web.Response(body=body, content_type="application/json")
    assert cloud.handle in (await refused(secrets, cloud.handle, BackendRefused)).detail


@pytest.mark.parametrize("cloud", [GOOGLE, AZURE], ids=["google", "azure"])
async def test_a_redirect_leads_nowhere(secrets: Secrets, server: SecretManagers, cloud: Cloud) -> None:
    """Where it leads to might be anybody, and the request carries a token. AWS signs for one host."""
    server.instead = web.Response(status=307, headers={"Location": f"{server.url}/elsewhere"})
    await refused(secrets, cloud.handle, BackendRefused)


@CLOUDS
async def test_a_service_that_hangs_is_given_up(
    secrets: Secrets, server: SecretManagers, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    await secrets.resolve(cloud.handle)
    monkeypatch.setattr(cloud.module, "TIMEOUT_S", 0.3)
    server.hold = asyncio.Event()
    error = await refused(secrets, cloud.handle, BackendRefused)
    assert "did not answer" in error.detail
    server.hold.set()


@CLOUDS
async def test_a_service_that_is_down_is_refused(
    secrets: Secrets, server: SecretManagers, cloud: Cloud
) -> None:
    await secrets.resolve(cloud.handle)
    nowhere = dict.fromkeys(server.places, "http://127.0.0.1:9")
    error = await refused(Secrets(secret_sources(**nowhere)), cloud.handle, BackendRefused)
    assert "did not answer" in error.detail


@CLOUDS
async def test_without_its_sdk_a_handle_is_refused_with_the_command_that_installs_it(
    secrets: Secrets, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, cloud.sdk, None)
    error = await refused(secrets, cloud.handle, BackendRefused)
    assert f"pip install 'engines[{cloud.extra}]'" in error.detail
    assert cloud.extra in tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("cloud", [GOOGLE, AZURE], ids=["google", "azure"])
async def test_a_token_is_used_until_it_is_refused(
    secrets: Secrets, server: SecretManagers, cloud: Cloud
) -> None:
    await asyncio.gather(*(secrets.resolve(cloud.handle) for _ in range(5)))
    assert server.tokens == 1
    server.instead = web.Response(status=401)
    await refused(secrets, cloud.handle, BackendRefused)
    server.instead = None
    assert (await secrets.resolve(cloud.handle)).reveal() == VALUE
    assert server.tokens == 2


async def test_without_credentials_or_region_aws_is_refused_in_words(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "AWS_DEFAULT_REGION" in (await refused(secrets, AWS.handle, BackendRefused)).detail
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fresh = Secrets(secret_sources())
    assert "no AWS credentials" in (await refused(fresh, AWS.handle, BackendRefused)).detail


async def test_a_google_credential_that_cannot_be_read_is_refused(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(f'{{"private_key": "{VALUE}"}}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(broken))
    assert "service account" in (await refused(secrets, GOOGLE.handle, BackendRefused)).detail


async def test_an_azure_identity_that_gives_no_token_is_refused(
    secrets: Secrets, server: SecretManagers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{server.url}/azure/nowhere")
    assert "managed identity" in (await refused(secrets, AZURE.handle, BackendRefused)).detail
    server.wrong.clear()
