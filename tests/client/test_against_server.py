"""The client and a real server: every call decodes, and a lost reply never shows in what was done."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

import pytest

from engines.client import (
    NO_RETRY,
    AsyncEngines,
    Causality,
    Cost,
    GateRule,
    Head,
    NewAnalyticsEvent,
    NewEvent,
    NewNote,
    NoteSource,
    RateLimit,
    RouteScope,
    Switch,
)
from engines.errors import (
    Conflict,
    ContextMismatch,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    Throttled,
    Unauthenticated,
)
from engines.testing.proxy import Behaviour, FaultProxy
from tests.cli.lab import LabProcess
from tests.client.conftest import client_as


@pytest.fixture
async def owner(lab: LabProcess) -> AsyncIterator[AsyncEngines]:
    async with client_as(lab, "owner") as client:
        yield client


@pytest.fixture
async def admin(lab: LabProcess) -> AsyncIterator[AsyncEngines]:
    async with client_as(lab, "system_admin") as client:
        yield client


def fresh(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


# --- every group ---


async def test_me_says_who_and_where_from(member: AsyncEngines) -> None:
    me = await member.bound(project_id="p_demo", run_id="run-7", surface_id="Squared 2").me()
    assert (me.tenant_id, me.user_id, me.roles, me.lab) == ("t_demo", "u_member", ("member",), True)
    assert (me.project_id, me.run_id, me.surface_id) == ("p_demo", "run-7", "squared2")
    assert me.sources["tenant_id"]


async def test_events_are_appended_read_listed_followed_and_verified(
    member: AsyncEngines, owner: AsyncEngines
) -> None:
    run_id = fresh("run")
    told = [NewEvent(event_type="message", payload={"n": n}, run_id=run_id) for n in range(3)]
    appended = await member.events.append(told)
    assert [one.position for one in appended] == list(range(appended[0].position, appended[0].position + 3))
    first = await member.events.get(appended[0].event_id)
    assert (first.payload, first.run_id, first.source) == ({"n": 0}, run_id, "ui")
    assert [event.payload async for event in member.events.each(run_id=run_id)] == [
        event.payload for event in told
    ]
    page = await member.events.page(after=appended[0].cursor, limit=1, event_type="message")
    assert page.items[0].event_id == appended[1].event_id
    async with contextlib.aclosing(member.events.follow(after=appended[1].cursor)) as events:
        assert (await anext(events)).event_id == appended[2].event_id
    verification = await owner.events.verify()
    assert verification.ok
    assert (await owner.events.verify(expected=verification.head)).ok
    assert not (await owner.events.verify(expected=Head(verification.head.position, "0" * 64))).ok


async def test_analytics_are_taken_in_found_and_their_links_tagged(
    member: AsyncEngines, owner: AsyncEngines
) -> None:
    platform, session = fresh("web"), fresh("session")
    blob = {
        "platform": platform,
        "utm_template": {"utm_source": "{source}"},
        "allowed_hosts": ["example.com"],
    }
    contract = await member.attribution.create(blob)
    events = [
        NewAnalyticsEvent(event_type="page_view", platform=platform, utm_source="news", session_id=session),
        NewAnalyticsEvent(platform=platform, utm_medium="email", session_id=session),
        NewAnalyticsEvent(event_type="click", payload={"n": 1}, session_id=session),
    ]
    ingested = await member.analytics.ingest(events)
    assert (ingested.accepted, ingested.refused) == (2, 1)
    refused = ingested.events[1].problem
    assert refused is not None
    assert (refused.code, refused.field) == ("Invalid", "utm_medium")
    found = [event async for event in owner.analytics.each(session_id=session)]
    assert [event.event_type for event in found] == ["page_view", "click"]
    assert found[0].contract is not None
    assert (found[0].contract.id, found[0].contract.version) == (contract.id, 1)
    page = await owner.analytics.page(session_id=session, event_type="click", order="desc")
    assert page.items == (found[1],)
    link = await member.analytics.tag_link("https://example.com/a", platform, values={"source": "news"})
    assert link.url == "https://example.com/a?utm_source=news"
    assert (await owner.analytics.index()).lag >= 0
    assert (await owner.analytics.rebuild_index()).position == 0
    with pytest.raises(Invalid):
        await member.analytics.ingest([NewAnalyticsEvent(platform="a b")])
    key = await owner.keys.create("u_owner", role="beacon", origins=["https://example.com"])
    assert key.origins == ("https://example.com",)


async def test_streams_hold_their_position(member: AsyncEngines) -> None:
    stream = fresh("stream")
    event = NewEvent(event_type="message", payload={})
    assert (await member.streams.append(stream, [event], expected_position=0))[0].position == 1
    with pytest.raises(Conflict):
        await member.streams.append(stream, [event], expected_position=0)
    await member.streams.append(stream, [event], expected_position=1)
    assert [one.position async for one in member.streams.each(stream)] == [1, 2]
    assert [one.position for one in (await member.streams.page(stream, order="desc")).items] == [2, 1]


async def test_rows_are_put_read_listed_and_deleted(member: AsyncEngines) -> None:
    table = fresh("table")
    value = {"n": 2**63 - 1, "text": "☃\u2028", "list": [None, 1.5, {}]}
    row = await member.tables.put(table, "p", "a", value)
    assert (row.value, row.etag[0], row.etag[-1]) == (value, '"', '"')
    assert (await member.tables.get(table, "p", "a")).etag == row.etag
    with pytest.raises(PreconditionFailed):
        await member.tables.put(table, "p", "a", 1, if_absent=True)
    await member.tables.put(table, "p", "b", 1, if_absent=True)
    assert [one.sk async for one in member.tables.each(table, "p", order="desc")] == ["b", "a"]
    assert [one.sk for one in (await member.tables.page(table, "p", limit=1)).items] == ["a"]
    await member.tables.delete(table, "p", "a", if_match=row.etag)
    with pytest.raises(NotFound):
        await member.tables.get(table, "p", "a")


async def test_session_memory_expires_only_when_asked(member: AsyncEngines) -> None:
    session = fresh("session")
    assert (await member.memory.put(session, "k", 1, ttl_seconds=60)).expires_at is not None
    assert (await member.memory.put(session, "k", 2)).expires_at is None
    assert (await member.memory.get(session, "k")).value == 2
    assert [entry.key async for entry in member.memory.each(session)] == ["k"]
    assert len((await member.memory.page(session)).items) == 1
    with pytest.raises(Invalid):
        await member.memory.put(session, "k", 3, ttl_seconds=0)
    await member.memory.delete(session, "k")
    with pytest.raises(NotFound):
        await member.memory.get(session, "k")


async def test_a_blackboard_entry_keeps_its_versions(member: AsyncEngines) -> None:
    run_id = fresh("run")
    with pytest.raises(PreconditionRequired):
        await member.blackboard.put(run_id, "k", 0)
    first = await member.blackboard.put(run_id, "k", 1, if_absent=True)
    second = await member.blackboard.put(run_id, "k", 2, if_match=first.etag)
    assert (second.version, second.value) == (2, 2)
    assert (await member.blackboard.get(run_id, "k", version=1)).value == 1
    assert [entry.value async for entry in member.blackboard.versions(run_id, "k")] == [1, 2]
    assert [entry.key async for entry in member.blackboard.each(run_id)] == ["k"]
    assert len((await member.blackboard.page(run_id)).items) == 1
    with pytest.raises(PreconditionFailed):
        await member.blackboard.put(run_id, "k", 3, if_match=first.etag)


async def test_a_host_says_who_is_in_a_room(member: AsyncEngines, owner: AsyncEngines) -> None:
    room, me = ("thread", fresh("room")), (await member.me()).user_id
    host = await member.realtime.put(*room, me, "host", if_absent=True)
    guest = await member.realtime.put(*room, "guest", "writer", ttl_seconds=60)
    assert (host.role, host.expires_at, guest.created_by) == ("host", None, me)
    assert guest.expires_at is not None
    assert await owner.realtime.get(*room, "guest") == guest
    assert (await member.realtime.page(*room, order="desc")).items == (host, guest)
    with pytest.raises(Conflict):
        await member.realtime.delete(*room, me)
    await member.realtime.delete(*room, "guest", if_match=guest.etag)
    assert [one.user_id async for one in member.realtime.each(*room)] == [me]


async def test_an_action_is_switched_off_and_on_and_each_decision_is_told(
    member: AsyncEngines, owner: AsyncEngines
) -> None:
    action = fresh("act")
    with pytest.raises(NotFound):
        await owner.gates.config("canvas")
    rules = (GateRule(action=action, gates=("kill_switch",)),)
    config = await owner.gates.put_config("canvas", rules=rules, if_absent=True)
    assert (config.rules, config.otherwise) == (rules, "base")
    assert await owner.gates.config("canvas") == config
    passed = await member.gates.evaluate(
        action,
        subject="order-7",
        details={"amount": "1"},
        cost=Cost(amount="1", currency="USD"),
        causality=Causality(trace_id="trace-7"),
        explain=True,
    )
    assert (passed.passed, passed.gate, passed.reason_code) == (True, None, "passed")
    assert passed.gates is not None
    assert [one.gate for one in passed.gates] == ["kill_switch", "firearms"]
    event = await member.events.get(passed.event_id)
    assert (event.position, event.causality) == (passed.position, Causality(trace_id="trace-7"))
    switch = await owner.gates.put_kill_switch(switches=(Switch(action=action, reason="test"),))
    assert await member.gates.kill_switch() == switch
    blocked = await member.gates.evaluate(action, dry_run=True, parent_event_id=passed.event_id)
    assert (blocked.passed, blocked.gate, blocked.dry_run) == (False, "kill_switch", True)
    assert (await member.events.get(blocked.event_id)).parent_event_id == passed.event_id
    assert not (await owner.gates.put_kill_switch(if_match=switch.etag)).switches
    assert (await member.gates.evaluate(action)).passed


async def test_notes_are_made_found_replaced_and_deleted(member: AsyncEngines) -> None:
    tag = fresh("tag")
    made = await member.notes.create(
        NewNote(
            title="t", content={"a": [1]}, content_type="json", tags=(tag,), source=NoteSource(run_id="r")
        )
    )
    assert (made.content, made.source.run_id, made.user_id) == ({"a": [1]}, "r", "u_member")
    assert made.timestamps is not None
    assert [note.note_id async for note in member.notes.each(tag=tag)] == [made.note_id]
    replaced = await member.notes.replace(made.note_id, NewNote(content="x", tags=(tag,)), if_match=made.etag)
    assert (replaced.content, replaced.content_type) == ("x", "markdown")
    with pytest.raises(PreconditionFailed):
        await member.notes.delete(made.note_id, if_match=made.etag)
    await member.notes.delete(made.note_id)
    assert (await member.notes.page(tag=tag)).items == ()
    with pytest.raises(NotFound):
        await member.notes.get(made.note_id)


async def test_the_control_plane_decodes(admin: AsyncEngines) -> None:
    tenant_id, user_id = fresh("t_x").replace("-", "_"), fresh("u")
    tenant = await admin.tenants.create(tenant_id, name="X", mode="lab", default_surface_id="chat")
    assert (await admin.tenants.get(tenant_id)).etag == tenant.etag
    changed = await admin.tenants.patch(tenant_id, {"name": "Y"}, if_match=tenant.etag)
    assert (changed.name, changed.version) == ("Y", 2)
    assert tenant_id in [one.tenant_id async for one in admin.tenants.each()]
    assert (await admin.tenants.page(limit=1)).after is not None
    assert (await admin.users.create(user_id, name="U")).user_id == user_id
    assert user_id in [one.user_id async for one in admin.users.each()]
    assert (await admin.users.page(limit=1)).items
    invited = await admin.members.put(tenant_id, user_id, role="viewer")
    assert (invited.status, (await admin.members.get(tenant_id, user_id)).role) == ("invited", "viewer")
    with pytest.raises(ContextMismatch):
        await admin.members.accept(tenant_id, user_id)
    await admin.members.delete(tenant_id, user_id)
    key = await admin.bound(tenant_id="t_demo").keys.create("u_member", role="member")
    assert key.key is not None
    assert key.key_id in [one.key_id async for one in admin.bound(tenant_id="t_demo").keys.each()]
    assert (await admin.bound(tenant_id="t_demo").keys.page()).items
    await admin.bound(tenant_id="t_demo").keys.delete(key.key_id)


async def test_products_modes_and_issuers_decode(admin: AsyncEngines, owner: AsyncEngines) -> None:
    os_id, app_id, surface_id, project_id = fresh("os"), fresh("app"), fresh("surface"), fresh("project")
    assert (await admin.oses.create({"os_id": os_id, "name": "O"})).name == "O"
    made = await admin.surfaces.create(
        {"surface_id": surface_id, "os_id": os_id, "name": "S", "aliases": [f"{surface_id}²"]}
    )
    assert (await admin.surfaces.get(surface_id)).aliases == (f"{surface_id}²",)
    assert (await admin.surfaces.patch(surface_id, {"name": "T"}, if_match=made.etag)).version == 2
    await admin.apps.create({"app_id": app_id, "surface_id": surface_id, "name": "A"})
    assert app_id in [one.app_id async for one in admin.apps.each()]
    await owner.projects.create({"project_id": project_id, "app_id": app_id, "name": "P"})
    assert (await owner.projects.get(project_id)).app_id == app_id
    assert (await owner.projects.page(limit=1)).items
    mode = await admin.modes.put(
        "enterprise", allowed_classes=["cloud", "server"], optional_kinds=["embedder"]
    )
    assert (await admin.modes.get("enterprise")).optional_kinds == mode.optional_kinds == ("embedder",)
    issuer = await admin.issuers.put(
        "other", issuer="https://issuer.example", audience="engines", jwks_url="https://issuer.example/jwks"
    )
    assert (await admin.issuers.get("other")).etag == issuer.etag
    await admin.issuers.delete("other", if_match=issuer.etag)
    with pytest.raises(NotFound):
        await admin.issuers.get("other")


async def test_backends_routes_and_diagnostics_decode(
    admin: AsyncEngines, owner: AsyncEngines, lab: LabProcess
) -> None:
    path = str(lab.directory / "third.db")
    made = await admin.backends.put(
        *("third",),
        driver="sqlite",
        backend_class="host_local",
        config={"path": path},
        offered_to=["t_demo"],
        if_absent=True,
    )
    assert (await admin.backends.probe("third")).ok
    assert (await admin.backends.get("third")).offered_to == ("t_demo",)
    scope = RouteScope(project_id="p_demo", env="dev")
    route = await owner.routes.put("notes_store", "third", scope=scope, if_absent=True)
    assert [one.scope async for one in owner.routes.each()] == [scope]
    assert (await owner.routes.page()).items[0].etag == route.etag
    resolved = await owner.bound(project_id="p_demo", env="dev").routes.resolve("notes_store")
    assert (resolved.route.backend_id, resolved.looked_at[-1].found) == ("third", True)
    with pytest.raises(Conflict):
        await admin.backends.delete("third", if_match=made.etag)
    await owner.routes.delete("notes_store", scope=scope, if_match=route.etag)
    history = [one.deleted async for one in owner.routes.history("notes_store", scope=scope)]
    assert history == [False, True]
    await admin.backends.delete("third", if_match=made.etag)
    assert "third" not in [one.backend_id async for one in admin.backends.each()]
    assert (await admin.backends.page()).items
    await owner.diagnostics.live()
    await owner.diagnostics.ready()
    states = await owner.diagnostics.routes()
    assert {state.state for state in states} == {"ready", "reserved"}
    assert (await owner.diagnostics.bootstrap())["areas"]


async def test_rate_limits_are_set_and_met(lab: LabProcess, owner: AsyncEngines) -> None:
    dev = owner.bound(env="dev")
    limit = RateLimit(name="reads", per=("user",), route="GET /notes", limit=2, window_seconds=3600)
    made = await dev.rate_limits.put([limit], if_absent=True)
    assert (made.env, made.version, made.limits) == ("dev", 1, (limit,))
    assert (await dev.rate_limits.get()).etag == made.etag
    # Without repeats: a limit whose hour is nearly over would be waited for.
    token = lab.file.user("member").token
    async with AsyncEngines(lab.file.url, token, env="dev", retry=NO_RETRY) as reading:

        async def read_on() -> None:
            for _ in range(4):  # The hour may end meanwhile.
                await reading.notes.page()

        await reading.notes.page()
        with pytest.raises(Throttled) as refused:
            await read_on()
        assert refused.value.resource_kind == "rate_limit_store"
        assert 0 < (refused.value.retry_after_s or 0) <= 3600
        assert (await dev.rate_limits.put([], if_match=made.etag)).limits == ()
        await reading.notes.page()
    with pytest.raises(NotFound):
        await owner.rate_limits.get()


async def test_refusals_come_back_by_name(lab: LabProcess, member: AsyncEngines) -> None:
    with pytest.raises(Forbidden):
        await member.users.create("u_never")
    async with AsyncEngines(lab.file.url, "not.a.token") as stranger:
        with pytest.raises(Unauthenticated) as raised:
            await stranger.me()
    assert raised.value.request_id
    with pytest.raises(ContextMismatch):
        await member.bound(tenant_id="t_system").notes.create(NewNote(content="x"))


async def test_a_key_that_is_used_for_another_request_is_refused(member: AsyncEngines) -> None:
    key = fresh("key")
    await member.notes.create(NewNote(content="a"), idempotency_key=key)
    with pytest.raises(IdempotencyKeyReused):
        await member.notes.create(NewNote(content="b"), idempotency_key=key)


# --- a network that loses replies ---


async def _note(client: AsyncEngines, name: str) -> object:
    await client.notes.create(NewNote(content="x", tags=(name,)))
    return [note.content async for note in client.notes.each(tag=name)]


async def _event(client: AsyncEngines, name: str) -> object:
    await client.events.append([NewEvent(event_type="message", payload={}, run_id=name)])
    return [event.payload async for event in client.events.each(run_id=name)]


async def _own_event(client: AsyncEngines, name: str) -> object:
    event_id = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    await client.events.append([NewEvent(event_type="message", payload={}, run_id=name, event_id=event_id)])
    return [event.payload async for event in client.events.each(run_id=name)]


async def _stream(client: AsyncEngines, name: str) -> object:
    event = NewEvent(event_type="message", payload={})
    await client.streams.append(name, [event], expected_position=0)
    return [event.payload async for event in client.streams.each(name)]


async def _entry(client: AsyncEngines, name: str) -> object:
    entry = await client.blackboard.put(name, "k", {}, if_absent=True)
    return [entry.value] if entry.version == 1 else entry


async def _row(client: AsyncEngines, name: str) -> object:
    await client.tables.put(name, "p", "s", {}, if_absent=True)
    return [row.value async for row in client.tables.each(name, "p")]


async def _decision(client: AsyncEngines, name: str) -> object:
    decision = await client.bound(run_id=name).gates.evaluate("refund.create")
    return [decision.event_id == event.event_id async for event in client.events.each(run_id=name)]


WRITES = [_note, _event, _own_event, _stream, _entry, _row, _decision]
EXPECTED: dict[str, list[object]] = {"_note": ["x"], "_decision": [True]}


@pytest.mark.parametrize("reply_bytes", [0, 1, 200])
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__.strip("_"))
async def test_a_write_whose_reply_is_lost_was_made_once(
    far: AsyncEngines,
    proxy: FaultProxy,
    write: Callable[[AsyncEngines, str], Awaitable[object]],
    reply_bytes: int,
) -> None:
    await far.me()
    proxy.behave(Behaviour(reply_bytes_max=reply_bytes, once=True))
    assert await write(far, fresh("lost")) == EXPECTED.get(write.__name__, [{}])


async def test_a_deletion_whose_reply_is_lost_has_succeeded(far: AsyncEngines, proxy: FaultProxy) -> None:
    table = fresh("table")
    row = await far.tables.put(table, "p", "s", 1)
    proxy.behave(Behaviour(reply_bytes_max=0, once=True))
    await far.tables.delete(table, "p", "s", if_match=row.etag)
    with pytest.raises(NotFound):
        await far.tables.get(table, "p", "s")


async def test_a_repeat_does_not_undo_what_another_wrote_in_between(
    far: AsyncEngines, member: AsyncEngines, proxy: FaultProxy
) -> None:
    """An unconditional PUT is applied, its reply is held back, another writes, the PUT is repeated."""
    table = fresh("table")
    await far.tables.put(table, "p", "s", "first")
    proxy.behave(Behaviour(drop_replies=True))
    slow = asyncio.create_task(far.tables.put(table, "p", "s", "ours"))
    async with asyncio.timeout(20):
        while (await member.tables.get(table, "p", "s")).value != "ours":  # noqa: ASYNC110  (another's state)
            await asyncio.sleep(0.01)
    await member.tables.put(table, "p", "s", "theirs")
    await proxy.reset()
    proxy.behave(Behaviour())
    assert (await slow).value == "ours"
    assert (await member.tables.get(table, "p", "s")).value == "theirs"


@pytest.mark.parametrize("seed", [1, 2])
async def test_following_through_a_bad_network_loses_and_doubles_nothing(
    far: AsyncEngines, member: AsyncEngines, proxy: FaultProxy, seed: int
) -> None:
    random, stream, count = Random(seed), fresh("stream"), 120

    async def write() -> None:
        for number in range(count):
            await member.streams.append(stream, [NewEvent(event_type="x", payload={"n": number})])

    async def spoil() -> None:
        while True:
            await asyncio.sleep(random.uniform(0.0, 0.05))
            proxy.behave(Behaviour(reply_bytes_max=random.randint(0, 6_000), once=True))
            if random.random() < 0.3:
                await proxy.reset()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        spoiler = group.create_task(spoil())
        group.create_task(write())
        seen: list[int] = []
        async with contextlib.aclosing(far.streams.follow(stream)) as events:
            async for event in events:
                assert event.payload is not None
                seen.append(event.payload["n"])
                if len(seen) == count:
                    break
        spoiler.cancel()
    assert seen == list(range(count)), f"seed {seed}"
