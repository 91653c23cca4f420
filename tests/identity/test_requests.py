"""What varies with each request: its ids, its trace, and what it says in headers at all."""

from __future__ import annotations

import pytest

from engines.errors import (
    ContextMismatch,
    Invalid,
    Unauthenticated,
)
from tests.identity.judging import context_of
from tests.identity.world import World

# --- what varies with each request ---


async def test_ids_are_made_where_none_are_sent(world: World) -> None:
    first, second = await context_of(world), await context_of(world)
    assert first.run_id == first.request_id != second.request_id
    assert first.step_id == "0"
    assert first.thread_id is first.session_id is None
    assert len({first.trace_id, second.trace_id, first.span_id, second.span_id}) == 4
    assert (len(first.trace_id), len(first.span_id)) == (32, 16)
    assert first.sources["run_id"] == "request id"


async def test_ids_that_are_sent_are_taken(world: World) -> None:
    sent = {
        "x_run_id": "run-1",
        "x_step_id": "7",
        "x_thread_id": "th",
        "x_session_id": "se",
        "x_request_id": "req~1",
    }
    context = await context_of(world, **sent)
    assert context.run_id == "run-1"
    assert context.step_id == "7"
    assert context.thread_id == "th"
    assert context.session_id == "se"
    assert context.request_id == "req~1"
    assert context.sources["thread_id"] == "header X-Thread-Id"
    assert context.sources["request_id"] == "header X-Request-Id"
    only_request = await context_of(world, x_request_id="req~2")
    assert only_request.run_id == only_request.request_id == "req~2"


async def test_what_one_request_says_is_not_said_by_the_next(world: World) -> None:
    before = dict((await context_of(world)).sources)
    await context_of(world, x_run_id="run-1", x_thread_id="th")
    after = await context_of(world)
    assert after.thread_id is None
    assert after.run_id == after.request_id
    assert after.sources == before


async def test_the_edges_request_id_holds(world: World) -> None:
    context = await world.contexts.context(world.token(), {"x-request-id": "sent"}, request_id="sent")
    assert (context.request_id, context.run_id) == ("sent", "sent")
    assert (await world.contexts.context(world.token(), request_id="made")).request_id == "made"


@pytest.mark.parametrize(
    "header",
    ["x-run-id", "x-step-id", "x-thread-id", "x-session-id", "x-request-id", "x-app-id", "x-project-id"],
)
@pytest.mark.parametrize("value", ["", "a b", "../x", "-a", "a" * 129, "a\n", "é", "a!b"])
async def test_a_bad_pattern_is_invalid_and_names_the_header(world: World, header: str, value: str) -> None:
    for _ in range(2):
        with pytest.raises(Invalid) as caught:
            await world.contexts.context(world.token(), {header: value})
        assert (caught.value.field or "").lower() == header


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-tenant-id", "one"),
        ("x-tenant-id", "t_One"),
        ("x-tenant-id", "t_" + "a" * 63),
        ("x-tenant-id", ""),
        ("x-env", "Prod"),
        ("x-env", ""),
        ("x-mode", ""),
        ("x-surface-id", ""),
        ("x-surface-id", "a/b"),
        ("x-surface-id", "a" * 65),
        ("x-user-id", "a b"),
    ],
)
async def test_a_bad_identity_is_invalid_and_names_the_header(world: World, header: str, value: str) -> None:
    with pytest.raises(Invalid) as caught:
        await world.contexts.context(world.token(), {header: value})
    assert not isinstance(caught.value, ContextMismatch)
    assert (caught.value.field or "").lower() == header


async def test_a_header_sent_twice_is_invalid(world: World) -> None:
    authorization = (b"authorization", f"Bearer {world.token()}".encode())
    for name in (b"x-tenant-id", b"x-run-id", b"x-request-id"):
        with pytest.raises(Invalid, match="twice"):
            await world.contexts.context_of([authorization, (name, b"t_one"), (name, b"t_one")])
    with pytest.raises(Unauthenticated):
        await world.contexts.context_of([authorization, authorization])


@pytest.mark.parametrize(
    "value",
    [None, b"", b"Bearer", b"Bearer ", b"Basic YTpi", b"Token x", b"Bearer\tx", b"Bearer \xff", b"Bearer  "],
)
async def test_only_a_bearer_credential_is_one(world: World, value: bytes | None) -> None:
    headers = [] if value is None else [(b"authorization", value)]
    with pytest.raises(Unauthenticated):
        await world.contexts.context_of(headers)


# --- traces ---

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    "value",
    [
        f"00-{TRACE}-b7ad6b7169203331-01",
        f"00-{TRACE}-b7ad6b7169203331-00",
        f"cc-{TRACE}-b7ad6b7169203331-01",
        f"cc-{TRACE}-b7ad6b7169203331-01-what-comes-later",
    ],
)
async def test_a_trace_is_continued_with_a_span_of_our_own(world: World, value: str) -> None:
    context = await context_of(world, traceparent=value)
    assert context.trace_id == TRACE
    assert context.span_id != "b7ad6b7169203331"
    assert context.sources["trace_id"] == "header traceparent"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        f"00-{TRACE.upper()}-b7ad6b7169203331-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-b7ad6b7169203331-01-more",
        f"ff-{TRACE}-b7ad6b7169203331-01",
        f"00-{TRACE}-b7ad6b7169203331",
        f"00-{TRACE}-b7ad6b7169203331-0",
        f"00-{TRACE}-b7ad6b7169203331-01x",
        f" 00-{TRACE}-b7ad6b7169203331-01",
        f"00-{TRACE[:-1]}-b7ad6b7169203331-01",
        "é" * 55,
    ],
)
async def test_a_malformed_trace_begins_a_new_one(world: World, value: str) -> None:
    context = await context_of(world, traceparent=value)
    assert context.trace_id != TRACE
    assert len(context.trace_id) == 32
    assert context.sources["trace_id"] == "generated"


async def test_two_traces_are_none(world: World) -> None:
    trace = (b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode())
    headers = [(b"authorization", f"Bearer {world.token()}".encode()), trace, trace]
    assert (await world.contexts.context_of(headers)).trace_id != TRACE
