"""Every error of the taxonomy as a problem document, and what the log says of requests."""

import asyncio
import io
import json
from pathlib import Path

import pytest

from engines import errors
from engines.api.logs import FLUSH_S, Account, Lines
from engines.api.reply import internal_problem_reply, problem_reply
from engines.errors import EnginesError
from engines.testing.clock import ManualClock
from tests.api.client import Client, until


def every_error(base: type[EnginesError] = EnginesError) -> list[type[EnginesError]]:
    return [found for child in base.__subclasses__() for found in (child, *every_error(child))]


ERRORS = [error for error in every_error() if error.__module__ == errors.__name__]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_has_a_problem_document_of_its_code_and_status(error: type[EnginesError]) -> None:
    reply = problem_reply(error("why"), "r1")
    document = json.loads(reply.body)
    assert document["code"] == error.code
    assert error.code == ("Conflict" if error is errors.PreconditionFailed else error.__name__)
    assert document["status"] == reply.status == error.status
    assert (document["detail"], document["request_id"]) == ("why", "r1")
    assert set(document) <= {"type", "title", "status", "detail", "code", "request_id", "outcome"}
    assert dict(reply.fields)[b"content-type"] == b"application/problem+json"
    assert ("outcome" in document) == (error is errors.OutcomeUnknown)
    assert (b"www-authenticate" in dict(reply.fields)) == (error is errors.Unauthenticated)


def test_a_problem_shows_what_the_error_knows() -> None:
    error = errors.MissingRoute(
        "none", field="f", resource_kind="notes_store", scope={"tenant_id": "t"}, gate="g", reason_code="c"
    )
    document = json.loads(problem_reply(error, "r").body)
    assert (document["title"], document["type"]) == ("Missing route", "urn:engines:problem:MissingRoute")
    assert (document["field"], document["resource_kind"]) == ("f", "notes_store")
    assert document["scope"] == {"tenant_id": "t"}
    assert (document["gate"], document["reason_code"]) == ("g", "c")
    assert json.loads(problem_reply(errors.OutcomeUnknown("lost"), "r").body)["outcome"] == "unknown"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.2, b"2"), (30, b"30")]
)
def test_the_time_to_wait_is_told_in_whole_seconds(seconds: float, shown: bytes) -> None:
    for error in (
        errors.Throttled("slow", retry_after_s=seconds),
        errors.Unavailable("x", retry_after_s=seconds),
    ):
        assert dict(problem_reply(error, "r").fields)[b"retry-after"] == shown
    assert b"retry-after" not in dict(problem_reply(errors.Throttled("slow"), "r").fields)


def test_a_bug_tells_its_request_id_and_nothing_else() -> None:
    document = json.loads(internal_problem_reply("r1").body)
    assert (document["status"], document["code"], document["request_id"]) == (500, "Internal", "r1")


# --- the log ---

LINE = Account(method="GET", route="/notes", status=200, duration_ms=1.5, tenant_id="t_a", request_id="r1")


async def test_ordinary_accounts_are_written_together_soon() -> None:
    file = io.BytesIO()
    lines = Lines(file, ManualClock())
    for _ in range(3):
        lines.account(LINE)
    assert file.getvalue() == b""
    await asyncio.sleep(FLUSH_S * 2)
    written = [json.loads(line) for line in file.getvalue().splitlines()]
    assert len(written) == 3
    assert written[0] == {
        "at": "2027-01-15T08:00:00.000Z",
        "level": "info",
        "event": "request",
        "method": "GET",
        "route": "/notes",
        "status": 200,
        "duration_ms": 1.5,
        "tenant_id": "t_a",
        "request_id": "r1",
    }


async def test_a_warning_is_written_at_once_behind_what_waited() -> None:
    file = io.BytesIO()
    lines = Lines(file, ManualClock())
    lines.account(LINE)
    lines.write(b'{"level":"warning"}', at_once=True)
    assert [json.loads(line)["level"] for line in file.getvalue().splitlines()] == ["info", "warning"]


async def test_what_waits_is_bounded() -> None:
    file = io.BytesIO()
    lines = Lines(file, ManualClock())
    for _ in range(1000):
        lines.account(LINE)
    assert len(file.getvalue()) > 64 * 1024


def said(log: Path) -> str:
    return log.read_text()


async def test_the_log_names_the_route_and_never_what_was_sent(
    member: Client, anyone: Client, lab_log: Path
) -> None:
    mark = "mark5d1f"
    token = "ek_" + "0" * 32 + "_" + mark.ljust(43, "x")
    await member("PUT", f"/memory/{mark}/{mark}", {"value": mark, mark: 1}, Idempotency_Key=mark)
    await member("GET", f"/notes?tag={mark}&{mark}=1")
    await anyone("GET", f"/notes/{mark}", Authorization=f"Bearer {token}")
    await anyone("GET", f"/{mark}/{mark}")
    last = await member("GET", "/me")
    wanted = last.headers["X-Request-Id"]

    async def is_written() -> bool:
        return wanted in said(lab_log)

    await until(is_written, timeout_s=5)
    text = said(lab_log)
    assert mark not in text
    entries = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    (entry,) = [entry for entry in entries if entry.get("request_id") == wanted]
    assert entry["tenant_id"] == "t_demo"
    assert entry["duration_ms"] > 0
    assert {name: entry[name] for name in ("level", "event", "method", "route", "status")} == {
        "level": "info",
        "event": "request",
        "method": "GET",
        "route": "/me",
        "status": 200,
    }
