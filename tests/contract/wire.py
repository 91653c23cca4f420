"""Requests as bytes on a socket and replies as they came: the server as its HTTP alone.

Leaves to `cast.py` who calls, and to the tests what an answer must be.
"""

import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PATIENCE_S = 15.0
PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "request_id"}


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply: `body` is the decoded JSON, None where nothing came."""

    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content) if self.content else None

    @property
    def etag(self) -> str | None:
        return self.headers["ETag"]

    @property
    def replayed(self) -> bool:
        return self.headers["Idempotency-Replayed"] == "true"

    def __repr__(self) -> str:
        return f"{self.status} {self.content[:600]!r}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a credential (None: nobody). `headers` go with every request of theirs."""

    url: str
    credential: str | None
    headers: Mapping[str, str]

    def having(self, **headers: str) -> "Caller":
        """The same caller with more headers: `x_tenant_id="t_a"` is `X-Tenant-Id: t_a`."""
        return Caller(self.url, self.credential, {**self.headers, **_named(headers)})

    def call(self, method: str, path: str, body: Any = None, /, **headers: str) -> Reply:
        """One request on a connection of its own. `body` is sent as JSON, or as it is where it is bytes."""
        sent = {**self.headers, **_named(headers)}
        content: bytes | None = None
        if body is not None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        if self.credential is not None:
            sent.setdefault("Authorization", f"Bearer {self.credential}")
        return exchange(self.url, method, path, sent, content)

    def get(self, path: str, /, **headers: str) -> Reply:
        return self.call("GET", path, None, **headers)

    def put(self, path: str, body: Any, /, **headers: str) -> Reply:
        return self.call("PUT", path, body, **headers)

    def post(self, path: str, body: Any = None, /, **headers: str) -> Reply:
        return self.call("POST", path, body, **headers)

    def patch(self, path: str, body: Any, /, **headers: str) -> Reply:
        return self.call("PATCH", path, body, **headers)

    def delete(self, path: str, /, **headers: str) -> Reply:
        return self.call("DELETE", path, None, **headers)

    def items(self, path: str) -> list[Any]:
        """Every item of a list, page after page."""
        found: list[Any] = []
        after: str | None = None
        join = "&" if "?" in path else "?"
        for _ in range(1000):
            reply = self.get(path if after is None else f"{path}{join}after={after}")
            assert reply.status == 200, reply
            found += reply.body["items"]
            after = reply.body["after"]
            if after is None:
                return found
        raise AssertionError(f"{path} has no end")

    @contextmanager
    def stream(self, path: str, /, **headers: str) -> Iterator["Frames"]:
        """A server-sent event stream; the connection closes with the block."""
        connection = _connection(self.url)
        try:
            sent = {"Authorization": f"Bearer {self.credential}", **self.headers, **_named(headers)}
            connection.request("GET", path, headers=sent)
            yield Frames(connection.getresponse())
        finally:
            connection.close()


class Frames:
    """The frames of one event stream, in order, comments left out."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers

    def next(self) -> dict[str, str]:
        """The next frame's fields; raises TimeoutError where none comes, EOFError at the end."""
        fields: dict[str, str] = {}
        while True:
            line = self._response.readline()
            if not line:
                raise EOFError
            text = line.decode().rstrip("\r\n")
            if not text:
                if fields.get("data") is not None:
                    return fields
                fields = {}
            elif not text.startswith(":"):
                name, _, value = text.partition(":")
                value = value.removeprefix(" ")
                fields[name] = f"{fields[name]}\n{value}" if name in fields else value

    def event(self) -> Any:
        """The next frame's data, decoded."""
        return json.loads(self.next()["data"])


def exchange(
    url: str, method: str, path: str, headers: Mapping[str, str], content: bytes | None = None
) -> Reply:
    """One request and its reply; the path goes as it stands, tricks included."""
    connection = _connection(url)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value.encode("utf-8"))
        if content is not None:
            connection.putheader("Content-Length", str(len(content)))
        elif method in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", "0")
        connection.endheaders(content)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


def raw(url: str, request: bytes, *, patience_s: float = PATIENCE_S) -> bytes:
    """Whatever the server says to these bytes until it closes the connection."""
    host, port = _address(url)
    with socket.create_connection((host, port), timeout=patience_s) as connection:
        connection.sendall(request)
        said = b""
        while True:
            try:
                more = connection.recv(65536)
            except ConnectionResetError:
                return said
            if not more:
                return said
            said += more


def problem(reply: Reply, status: int, code: str | None = None) -> dict[str, Any]:
    """The reply's problem document, whole as the contract wants it, with this status and code."""
    assert reply.status == status, reply
    assert reply.headers["Content-Type"].split(";")[0] == "application/problem+json", reply.headers.items()
    document: dict[str, Any] = reply.body
    assert set(document) >= PROBLEM_MEMBERS, document
    assert document["status"] == status, document
    assert document["request_id"] == reply.headers["X-Request-Id"], document
    assert set(document) <= PROBLEM_MEMBERS | {
        "field",
        "resource_kind",
        "scope",
        "gate",
        "reason_code",
        "outcome",
        "decision",
    }
    if code is not None:
        assert document["code"] == code, document
    return document


def record(reply: Reply, status: int = 200) -> dict[str, Any]:
    """The reply's one record: its ETag header is its `etag` member."""
    assert reply.status == status, reply
    document: dict[str, Any] = reply.body
    assert reply.etag is not None, reply
    assert reply.etag == document["etag"], (reply.etag, document)
    return document


def _connection(url: str) -> http.client.HTTPConnection:
    host, port = _address(url)
    return http.client.HTTPConnection(host, port, timeout=PATIENCE_S)


def _address(url: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-").title(): value for name, value in headers.items()}
