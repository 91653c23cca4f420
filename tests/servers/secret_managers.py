"""Shows our wiring and not the vendors' behaviour: replies in the shapes that three secret managers document.

Owns one loopback server with a path for each: AWS Secrets Manager, Google Secret Manager with Google's token
endpoint, and Azure Key Vault with the identity endpoint of an Azure App Service. It is strict: a request that
differs from what the documentation asks for is kept in `wrong` and answered with 500.

The shapes are those of
- "GetSecretValue", https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html
- "Method: projects.secrets.versions.access",
  https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access
- "Using OAuth 2.0 for Server to Server Applications",
  https://developers.google.com/identity/protocols/oauth2/service-account
- "Get Secret", https://learn.microsoft.com/en-us/rest/api/keyvault/secrets/get-secret/get-secret (7.4)
- "Azure Key Vault REST API Error Codes",
  https://learn.microsoft.com/en-us/azure/key-vault/general/rest-error-codes
- "How to use managed identities for App Service and Azure Functions",
  https://learn.microsoft.com/en-us/azure/app-service/overview-managed-identity
"""

import asyncio
import base64
import functools
import json
import re
import time
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import RSAKey

REGION = "eu-west-1"
ACCESS_KEY_ID = "test-access-key-id"
IDENTITY_HEADER = "test-identity-header"
CLIENT_EMAIL = "reader@project.iam.gserviceaccount.com"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@functools.cache
def _signing_key() -> RSAKey:
    return RSAKey.generate_key(2048)


class SecretManagers:
    """`values` are by AWS's SecretId, by Google's resource name, and by VAULT/NAME."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.wrong: list[str] = []
        self.tokens = 0
        self.regions: list[str] = []
        """The regions for which AWS was asked."""
        self.instead: web.Response | None = None
        """What every question for a secret is answered with, if set."""
        self.hold: asyncio.Event | None = None
        """What every question for a secret waits for, if set."""
        self._key = _signing_key()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._strict])
        app.router.add_post("/aws/", self._aws)
        app.router.add_post("/google/token", self._google_token)
        app.router.add_get("/google/v1/{name:.+}:access", self._google)
        app.router.add_get("/azure/identity", self._azure_token)
        app.router.add_get("/azure/{vault}/secrets/{name}", self._azure)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def places(self) -> dict[str, str]:
        """What the bootstrap says of the three."""
        return {
            "aws_endpoint": f"{self.url}/aws/",
            "google_endpoint": f"{self.url}/google",
            "azure_endpoint": f"{self.url}/azure/{{vault}}",
        }

    def service_account(self) -> str:
        """The text of a Google service account's key file."""
        return json.dumps(
            {
                "type": "service_account",
                "client_email": CLIENT_EMAIL,
                "private_key": self._key.as_pem(private=True).decode(),
                "token_uri": f"{self.url}/google/token",
            }
        )

    @web.middleware
    async def _strict(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            reply: web.StreamResponse = await handler(request)
        except Exception as error:  # noqa: BLE001 (what is wrong with a request is the test's to see)
            self.wrong.append(f"{request.method} {request.path}: {error!r}")
            return web.Response(status=500)
        return reply

    async def _special(self) -> web.Response | None:
        if self.hold is not None:
            await self.hold.wait()
        if self.instead is None:
            return None
        return web.Response(
            status=self.instead.status, body=self.instead.body, headers=dict(self.instead.headers)
        )

    # --- AWS ---

    async def _aws(self, request: web.Request) -> web.Response:
        assert request.headers["X-Amz-Target"] == "secretsmanager.GetSecretValue"
        assert request.content_type == "application/x-amz-json-1.1"
        signature = re.fullmatch(
            rf"AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/\d{{8}}/([a-z0-9-]+)/secretsmanager/aws4_request, "
            r"SignedHeaders=[a-z0-9;-]+, Signature=[0-9a-f]{64}",
            request.headers["Authorization"],
        )
        assert signature is not None
        self.regions.append(signature[1])
        asked = json.loads(await request.text())
        assert asked.keys() == {"SecretId"}
        if special := await self._special():
            return special
        name = asked["SecretId"]
        if name not in self.values:
            return self.aws_error("ResourceNotFoundException")
        body = {
            "ARN": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:{name}-a1b2c3",
            "CreatedDate": 1523477145.713,
            "Name": name,
            "SecretString": self.values[name],
            "VersionId": "00000000-0000-0000-0000-000000000000",
            "VersionStages": ["AWSCURRENT"],
        }
        return web.json_response(body, content_type="application/x-amz-json-1.1")

    @staticmethod
    def aws_error(code: str) -> web.Response:
        body = {"__type": code, "Message": "what the service says of it"}
        return web.json_response(body, status=400, content_type="application/x-amz-json-1.1")

    # --- Google ---

    async def _google_token(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        claims = jwt.decode(str(form["assertion"]), self._key, algorithms=["RS256"]).claims
        assert claims["iss"] == CLIENT_EMAIL
        assert claims["aud"] == "https://oauth2.googleapis.com/token"
        assert claims["scope"] == SCOPE
        self.tokens += 1
        return web.json_response(
            {"access_token": f"google-{self.tokens}", "expires_in": 3600, "token_type": "Bearer"}
        )

    async def _google(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer google-{self.tokens}"
        assert not request.query
        assert not await request.read()
        if special := await self._special():
            return special
        name = request.match_info["name"]
        if name not in self.values:
            return self.google_error(404, "NOT_FOUND")
        data = base64.b64encode(self.values[name].encode()).decode()
        return web.json_response({"name": name, "payload": {"data": data, "dataCrc32c": "0"}})

    @staticmethod
    def google_error(status: int, name: str) -> web.Response:
        body = {"error": {"code": status, "message": "what the service says of it", "status": name}}
        return web.json_response(body, status=status)

    # --- Azure ---

    async def _azure_token(self, request: web.Request) -> web.Response:
        assert request.headers["X-IDENTITY-HEADER"] == IDENTITY_HEADER
        assert dict(request.query) == {"api-version": "2019-08-01", "resource": "https://vault.azure.net"}
        self.tokens += 1
        return web.json_response(
            {
                "access_token": f"azure-{self.tokens}",
                "expires_on": str(int(time.time()) + 3600),
                "resource": "https://vault.azure.net",
                "token_type": "Bearer",
            }
        )

    async def _azure(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer azure-{self.tokens}"
        assert dict(request.query) == {"api-version": "7.4"}
        if special := await self._special():
            return special
        vault, name = request.match_info["vault"], request.match_info["name"]
        value = self.values.get(f"{vault}/{name}")
        if value is None:
            return self.azure_error(404, "SecretNotFound")
        body = {
            "value": value,
            "id": f"https://{vault}.vault.azure.net/secrets/{name}/4387e9f3d6e14c459867679a90fd0f79",
            "attributes": {
                "enabled": True,
                "created": 1493938410,
                "updated": 1493938410,
                "recoveryLevel": "Recoverable+Purgeable",
            },
        }
        return web.json_response(body)

    @staticmethod
    def azure_error(status: int, code: str) -> web.Response:
        return web.json_response({"error": {"code": code, "message": "what the vault says"}}, status=status)
