"""Errors cross HTTP by name: what a server raises is what the client raises."""

from __future__ import annotations

import inspect
import socket
from typing import Any

import aiohttp
import msgspec
import pytest

from engines import errors
from engines.client import NO_RETRY, AsyncEngines, NewNote, RetryPolicy
from engines.client.problems import CLASSES, error_of_reply, translated
from engines.errors import (
    Conflict,
    EnginesError,
    Invalid,
    MissingRoute,
    OutcomeUnknown,
    PreconditionFailed,
    Throttled,
    Unavailable,
)
from tests.client.loopback import Answer, Drop, HalfAnswer, Loopback, Silence, problem

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EnginesError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_of_the_server_is_raised_by_its_own_class(kind: type[EnginesError]) -> None:
    answer = problem(kind.status, kind.code, field="title")
    assert answer.raw is not None
    error = error_of_reply(answer.status, answer.raw, answer.headers)
    assert type(error) is kind
    assert (error.detail, error.field, error.request_id) == (f"{kind.code} on purpose", "title", "req-1")


def test_the_table_of_classes_is_whole() -> None:
    assert set(CLASSES.values()) == set(ERRORS)


async def test_the_members_of_a_problem_reach_the_error(client: AsyncEngines, server: Loopback) -> None:
    members = {"resource_kind": "notes_store", "scope": {"tenant_id": "t_a"}, "reason_code": "r"}
    server.script.append(problem(503, "MissingRoute", **members))
    with pytest.raises(MissingRoute) as raised:
        await client.notes.get("n1")
    error = raised.value
    assert (error.resource_kind, error.scope, error.reason_code) == ("notes_store", {"tenant_id": "t_a"}, "r")


async def test_retry_after_reaches_the_error(server: Loopback) -> None:
    async with AsyncEngines(server.url, retry=NO_RETRY) as client:
        server.script.append(problem(429, "Throttled", headers={"Retry-After": "7"}))
        with pytest.raises(Throttled) as raised:
            await client.notes.get("n1")
    assert raised.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid),
        (409, Conflict),
        (412, PreconditionFailed),
        (500, EnginesError),
        (502, OutcomeUnknown),
        (503, OutcomeUnknown),
        (504, OutcomeUnknown),
    ],
)
def test_a_reply_that_is_no_problem_document_is_judged_by_its_status(
    status: int, kind: type[EnginesError]
) -> None:
    error = error_of_reply(status, b"<html>gateway</html>", {"Content-Type": "text/html"})
    assert type(error) is kind


def test_a_conflict_at_412_is_a_condition_that_did_not_hold() -> None:
    for status, kind in ((409, Conflict), (412, PreconditionFailed)):
        answer = problem(status, "Conflict")
        assert answer.raw is not None
        assert type(error_of_reply(status, answer.raw, answer.headers)) is kind


def test_outcome_unknown_is_said_by_the_member_whatever_the_code() -> None:
    answer = problem(503, "SomethingNewer", outcome="unknown")
    assert answer.raw is not None
    assert type(error_of_reply(503, answer.raw, answer.headers)) is OutcomeUnknown


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"code": 5}', b"\xff\xfe"])
def test_a_broken_problem_document_still_makes_an_error(body: bytes) -> None:
    error = error_of_reply(404, body, {"Content-Type": "application/problem+json", "X-Request-Id": "r9"})
    assert type(error) is errors.NotFound
    assert error.request_id == "r9"


# --- what breaks below HTTP ---


def _all_client_errors() -> list[type[BaseException]]:
    found = [aiohttp.ClientError]
    for kind in found:
        found.extend(derived for derived in kind.__subclasses__() if derived not in found)
    return list(found)


NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


@pytest.mark.parametrize("kind", _all_client_errors(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("changes", [True, False])
def test_every_error_of_the_http_library_becomes_one_of_ours(
    kind: type[BaseException], *, changes: bool
) -> None:
    broken: Any = kind.__new__(kind)
    broken.args = ("broken",)
    broken._os_error = OSError("broken")
    expected: type[EnginesError] = OutcomeUnknown if changes else Unavailable
    if issubclass(kind, NOT_SENT):
        expected = Unavailable
    if issubclass(kind, aiohttp.InvalidURL):
        expected = Invalid
    with pytest.raises(EnginesError) as raised, translated(changes=changes):
        _raise_quietly(broken)
    assert type(raised.value) is expected


def _raise_quietly(error: BaseException) -> None:
    # Some of these show their parts, which `__new__` left unset.
    type(error).__str__ = lambda _: "broken"  # type: ignore[method-assign]
    raise error


async def test_nobody_listening_is_unavailable_for_a_write_too() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        async with AsyncEngines(f"http://127.0.0.1:{port}", retry=NO_RETRY) as client:
            with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: Connection refused"):
                await client.notes.create(NewNote(content="x"))


@pytest.mark.parametrize("step", [Drop(), HalfAnswer()], ids=["no answer", "half an answer"])
async def test_a_write_whose_connection_breaks_has_an_unknown_outcome(
    server: Loopback, step: Drop | HalfAnswer
) -> None:
    async with AsyncEngines(server.url, retry=NO_RETRY) as client:
        server.script.append(step)
        with pytest.raises(OutcomeUnknown):
            await client.notes.create(NewNote(content="x"))


async def test_a_read_whose_connection_breaks_is_unavailable(server: Loopback) -> None:
    async with AsyncEngines(server.url, retry=NO_RETRY) as client:
        server.script.extend([HalfAnswer()])
        with pytest.raises(Unavailable):
            await client.notes.get("n1")


async def test_a_write_that_is_never_answered_has_an_unknown_outcome(server: Loopback) -> None:
    async with AsyncEngines(server.url, retry=NO_RETRY, timeout_s=0.2) as client:
        server.script.append(Silence())
        with pytest.raises(OutcomeUnknown):
            await client.notes.create(NewNote(content="x"))


async def test_an_answer_of_another_shape_is_said_to_be_one(client: AsyncEngines, server: Loopback) -> None:
    server.script.append(Answer(200, json={"unexpected": True}))
    with pytest.raises(EnginesError, match="not what this client reads"):
        await client.notes.get("n1")


async def test_a_redirect_is_not_followed(client: AsyncEngines, server: Loopback) -> None:
    server.script.append(Answer(307, headers={"Location": f"{server.url}/elsewhere"}))
    with pytest.raises(EnginesError):
        await client.notes.get("n1")
    assert [request.path for request in server.received] == ["/notes/n1"]


async def test_an_answer_past_its_limit_is_not_read_to_the_end(
    client: AsyncEngines, server: Loopback
) -> None:
    server.script.append(Answer(200, raw=b'"' + b"x" * (17 * 1024 * 1024) + b'"'))
    with pytest.raises(EnginesError, match="longer than"):
        await client.notes.get("n1")


async def test_the_token_appears_in_no_error(server: Loopback) -> None:
    async with AsyncEngines(server.url, "very-secret", retry=NO_RETRY) as client:
        for step in (Drop(), HalfAnswer(), problem(401, "Unauthenticated"), Answer(200, raw=b"{")):
            server.script.append(step)
            with pytest.raises(EnginesError) as raised:
                await client.notes.create(NewNote(content="x"))
            assert "very-secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://host", "http://", "http://h/?q=1", "http://a:b@h"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(Invalid):
        AsyncEngines(url)


def test_a_policy_has_limits() -> None:
    with pytest.raises(AssertionError):
        RetryPolicy(attempts_max=0)
    assert msgspec.structs.asdict(RetryPolicy())["attempts_max"] < 100
