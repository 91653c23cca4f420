"""What a call sends, and how pages are walked."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from engines.client import AsyncEngines, NewEvent, NewNote, RouteScope, UserIdentity
from engines.client.transport import target
from engines.errors import EnginesError, Invalid
from tests.client.loopback import Answer, Loopback

NOTE = {"note_id": "n1", "tenant_id": "t_a", "etag": '"1"'}
ENTRY = {"tenant_id": "t_a", "run_id": "r", "key": "k", "value": None, "version": 1, "etag": '"1"'}


async def test_the_credential_and_the_context_go_with_every_call(server: Loopback) -> None:
    async with AsyncEngines(server.url, "t0k", tenant_id="t_a", env="dev", surface_id="canvas") as client:
        server.script.append(Answer(200, json=NOTE))
        await client.bound(run_id="r1", thread_id="th1").notes.get("n1")
    sent = server.received[0].headers
    expected = {
        "Authorization": "Bearer t0k",
        "X-Tenant-Id": "t_a",
        "X-Env": "dev",
        "X-Surface-Id": "canvas",
        "X-Run-Id": "r1",
        "X-Thread-Id": "th1",
    }
    assert {name: sent[name] for name in expected} == expected


async def test_binding_leaves_the_wider_client_as_it_was(client: AsyncEngines, server: Loopback) -> None:
    client.bound(run_id="r1")
    server.script.append(Answer(200, json=NOTE))
    await client.notes.get("n1")
    assert "X-Run-Id" not in server.received[0].headers


async def test_conditions_become_headers(client: AsyncEngines, server: Loopback) -> None:
    server.script.extend([Answer(200, json=ENTRY)] * 2)
    await client.blackboard.put("r", "k", 1, if_match='"7"')
    await client.blackboard.put("r", "k", 1, if_absent=True)
    first, second = (request.headers for request in server.received)
    assert (first["If-Match"], first.get("If-None-Match")) == ('"7"', None)
    assert (second.get("If-Match"), second["If-None-Match"]) == (None, "*")


async def test_an_event_is_sent_without_what_was_not_said(client: AsyncEngines, server: Loopback) -> None:
    server.script.append(Answer(201, json={"events": []}))
    await client.events.append([NewEvent(event_type="x", payload={"a": None})])
    assert server.received[0].json == {"events": [{"event_type": "x", "payload": {"a": None}}]}


async def test_values_keep_every_digit_and_character(client: AsyncEngines, server: Loopback) -> None:
    value = {"n": 2**63 - 1, "f": 0.1, "s": "☃\u2028\x00", "l": [None, True, {}]}
    server.script.append(Answer(200, json={**ENTRY, "value": value}))
    entry = await client.blackboard.put("r", "k", value, if_absent=True)
    assert server.received[0].json == {"value": value}
    assert entry.value == value


async def test_a_filter_that_is_not_given_is_not_sent(client: AsyncEngines, server: Loopback) -> None:
    server.script.append(Answer(200, json={"items": [], "after": None}))
    await client.events.page(event_type="message", limit=5)
    assert dict(server.received[0].query) == {"event_type": "message", "limit": "5"}


async def test_members_that_a_newer_server_adds_are_passed_over(
    client: AsyncEngines, server: Loopback
) -> None:
    server.script.append(Answer(200, json={**NOTE, "sentiment": {"new": True}}))
    assert (await client.notes.get("n1")).note_id == "n1"


async def test_a_deletion_has_no_answer_to_decode(client: AsyncEngines, server: Loopback) -> None:
    server.script.append(Answer(204))
    await client.notes.delete("n1", if_match='"1"')
    assert (server.received[0].method, server.received[0].path) == ("DELETE", "/notes/n1")


async def test_a_routes_scope_is_in_the_body_or_the_query(client: AsyncEngines, server: Loopback) -> None:
    route = {"resource_kind": "notes_store", "backend_id": "b"}
    server.script.extend([Answer(201, json=route), Answer(204)])
    scope = RouteScope(surface_id="chat", env="dev")
    await client.routes.put("notes_store", "b", scope=scope, if_absent=True)
    await client.routes.delete("notes_store", scope=scope, if_match='"1"')
    put, delete = server.received
    assert put.json == {"backend_id": "b", "scope": {"surface_id": "chat", "env": "dev"}, "options": {}}
    assert dict(delete.query) == {"surface_id": "chat", "env": "dev"}


async def test_users_are_made_with_their_identities(client: AsyncEngines, server: Loopback) -> None:
    server.script.append(Answer(201, json={"user_id": "u"}))
    await client.users.create("u", identities=[UserIdentity("https://issuer", "s")])
    assert server.received[0].json == {"user_id": "u", "identities": [{"iss": "https://issuer", "sub": "s"}]}


# --- pages ---


async def test_each_walks_every_page_and_stops_at_the_end(client: AsyncEngines, server: Loopback) -> None:
    server.script.extend(
        [
            Answer(200, json={"items": [{**NOTE, "note_id": "a"}], "after": "p1"}),
            Answer(200, json={"items": [], "after": "p2"}),
            Answer(200, json={"items": [{**NOTE, "note_id": "b"}], "after": None}),
        ]
    )
    assert [note.note_id async for note in client.notes.each(tag="t")] == ["a", "b"]
    assert [request.query.get("after") for request in server.received] == [None, "p1", "p2"]
    assert all(request.query["tag"] == "t" for request in server.received)


async def test_a_page_that_leads_to_itself_is_not_walked_for_ever(
    client: AsyncEngines, server: Loopback
) -> None:
    server.script.extend([Answer(200, json={"items": [NOTE], "after": "same"})] * 3)
    with pytest.raises(EnginesError, match="leads back"):
        assert [note async for note in client.notes.each()]


# --- paths ---


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "../users", "a/b", "a b", "a?b", "a#b", "a%2Fb", "ä", "\n", "-a", "x" * 129]
)
async def test_an_id_that_could_lead_elsewhere_is_refused_here(
    client: AsyncEngines, server: Loopback, bad: str
) -> None:
    with pytest.raises(Invalid):
        await client.notes.get(bad)
    assert server.received == []


def test_allowed_ids_are_escaped_where_a_url_needs_it() -> None:
    assert target("notes", "a|b+c@d:e~f") == "/notes/a%7Cb%2Bc%40d%3Ae~f"


async def test_an_escaped_id_arrives_as_it_was_meant(client: AsyncEngines, server: Loopback) -> None:
    server.script.append(Answer(200, json=NOTE))
    await client.notes.get("a|b+c@d:e")
    assert server.received[0].path == "/notes/a%7Cb%2Bc%40d%3Ae"


async def test_what_is_no_json_is_refused_before_it_is_sent(client: AsyncEngines, server: Loopback) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (object(), {1: {2, 3}, "x": object()}, deep):
        with pytest.raises(Invalid):
            await client.notes.create(NewNote(content=value, content_type="json"))
    assert server.received == []


async def test_a_closed_client_says_so(client: AsyncEngines) -> None:
    await client.close()
    with pytest.raises(EnginesError, match="closed"):
        await client.notes.get("n1")


def test_every_change_takes_a_key_and_no_read_does() -> None:
    client = AsyncEngines("http://localhost:1")
    reads = {
        "get",
        "page",
        "each",
        "follow",
        "versions",
        "last",
        "verify",
        "resolve",
        "history",
        "live",
        "ready",
        "routes",
        "bootstrap",
        "probe",
        "plan",
        "index",
        "rebuild_index",
        "export_page",
        "tag_link",
        "diff",
        "policy",
        "summary",
        "reading",
        "report",
        "measurements",
        "each_measurement",
        "reservation",
        "reservations",
        "each_reservation",
        "kill_switch",
        "config",
        "evaluate_all",
        "erasure",
    }
    seen = 0
    for group in vars(client).values():
        for name, method in inspect.getmembers(group, inspect.isroutine):
            if name.startswith("_") or not type(group).__module__.startswith("engines.client."):
                continue
            if type(group).__name__ == "Calls":
                continue
            takes_key = "idempotency_key" in inspect.signature(method).parameters
            called = f"{type(group).__name__}.{name}"
            # A flag's evaluation reads; the gates' is recorded, and takes what an action needs. To erase
            # again is to go on.
            takes_none = name in reads or called in ("Ofrep.evaluate", "Users.erase")
            assert takes_key is not takes_none, called
            seen += 1
    assert seen > 60
