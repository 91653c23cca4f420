"""The directory: adoption of others' changes, caches that are never stale, refusal when they may be."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from engines.clock import SystemClock
from engines.control.directory import AGE_MAX_S, POLL_S, Directory
from engines.control.records import Membership, Route, User, UserIdentity
from engines.control.store import PARTITION, Actor, ControlStore
from engines.control.tables import MEMBERSHIPS, ROUTES, USERS, route_ids
from engines.core.keys import join
from engines.errors import Unavailable
from engines.ports.documents import ALWAYS, Delete
from engines.scope import RouteScope
from engines.testing.clock import ManualClock
from engines.wiring import ControlPlane

Another = Callable[[], Awaitable[ControlPlane]]
ACTOR = Actor(user_id="u_admin", tenant_id="t_system", request_id="r1", tenants=("t_system",))
# The one under way when the change comes, and the next.
POLLS_MAX = 2
PATIENCE_S = 30.0


async def put_user(store: ControlStore, user: User) -> None:
    async def build(_: User | None) -> User:
        return user

    await store.put(USERS, [user.user_id], build, actor=ACTOR)


async def put_member(store: ControlStore, tenant_id: str, user_id: str) -> None:
    async def build(_: Membership | None) -> Membership:
        return Membership(tenant_id=tenant_id, user_id=user_id, role="member", status="accepted")

    await store.put(MEMBERSHIPS, [tenant_id, user_id], build, actor=ACTOR)


async def test_another_process_adopts_a_change_within_a_second(another: Another) -> None:
    writer, reader = (await another()).store, await another()
    directory = Directory(reader.store, SystemClock())
    await put_user(writer, User(user_id="u1", name="before"))
    await directory.refresh()
    following = asyncio.create_task(directory.follow())
    assert (await directory.user("u1")) == User(user_id="u1", name="before")
    await put_user(writer, User(user_id="u1", name="after"))
    polls = count_polls(directory)
    async with asyncio.timeout(PATIENCE_S):
        while (await directory.user("u1")) != User(user_id="u1", name="after"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    following.cancel()
    # In polls, because a machine that pauses adds seconds to the test and not to the rule.
    assert len(polls) <= POLLS_MAX
    assert POLLS_MAX * POLL_S <= 1


def count_polls(directory: Directory) -> list[None]:
    """One more for each time from now on that the directory asks whether anything has changed."""
    polls: list[None] = []
    refresh = directory.refresh

    async def counted() -> None:
        polls.append(None)
        await refresh()

    directory.refresh = counted  # type: ignore[method-assign]
    return polls


async def test_an_absence_that_was_remembered_ends_with_the_creation(another: Another) -> None:
    writer, directory = (await another()).store, Directory((await another()).store, SystemClock())
    await put_user(writer, User(user_id="u0"))
    await directory.refresh()
    assert await directory.user("u1") is None
    assert await directory.user_of_identity("iss", "s1") is None
    assert await directory.memberships_of("u1") == ()
    await put_user(writer, User(user_id="u1", identities=(UserIdentity("iss", "s1"),)))
    await put_member(writer, "t_a", "u1")
    await directory.refresh()
    user = await directory.user_of_identity("iss", "s1")
    assert user is not None
    assert user.user_id == "u1"
    assert [membership.tenant_id for membership in await directory.memberships_of("u1")] == ["t_a"]


async def test_a_change_of_one_record_leaves_the_others_remembered(another: Another) -> None:
    writer, reader = (await another()).store, await another()
    directory = Directory(reader.store, SystemClock())
    await put_user(writer, User(user_id="u1"))
    await put_user(writer, User(user_id="u2"))
    await directory.refresh()
    await directory.user("u1")
    await directory.user("u2")
    await put_user(writer, User(user_id="u2", name="new"))
    await directory.refresh()
    await reader.documents.close()  # From here on only what is remembered can be had.
    assert await directory.user("u1") == User(user_id="u1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await directory.user("u2")


async def test_routes_of_an_owner_follow_each_change(another: Another) -> None:
    writer, directory = (await another()).store, Directory((await another()).store, SystemClock())
    route = Route(tenant_id="t_a", resource_kind="notes_store", backend_id="b1")
    ids = route_ids("t_a", "notes_store", RouteScope())

    async def build(_: Route | None) -> Route:
        return route

    wanted = [("t_a", "notes_store", RouteScope()), ("t_a", "notes_store", RouteScope(env="prod"))]
    await directory.refresh()
    assert await directory.routes(wanted) == [None, None]
    written = await writer.put(ROUTES, ids, build, actor=ACTOR)
    await directory.refresh()
    assert await directory.routes(wanted) == [(route, written.etag), None]
    await writer.delete(ROUTES, ids, actor=ACTOR)
    await directory.refresh()
    assert await directory.routes(wanted) == [None, None]


async def test_names_that_are_invented_push_nothing_out(
    another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = (await another()).store, await another()
    monkeypatch.setattr("engines.control.directory.MISSES_MAX", 10)
    monkeypatch.setattr("engines.control.directory.ENTRIES_MAX", 10)
    directory = Directory(reader.store, SystemClock())
    for number in range(10):
        await put_user(writer, User(user_id=f"u{number}"))
    await directory.refresh()
    for number in range(10):
        await directory.user(f"u{number}")
    for number in range(30):
        assert await directory.api_key(f"invented{number}") is None
    await reader.documents.close()  # From here on only what is remembered can be had.
    for number in range(10):
        assert await directory.user(f"u{number}") == User(user_id=f"u{number}")
    assert await directory.api_key("invented29") is None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await directory.api_key("invented1")


async def test_a_view_older_than_its_maximum_is_refused(another: Another) -> None:
    clock = ManualClock()
    directory = Directory((await another()).store, clock)
    with pytest.raises(Unavailable):
        directory.check_fresh()
    await directory.refresh()
    clock.advance(AGE_MAX_S)
    directory.check_fresh()
    clock.advance(0.1)
    with pytest.raises(Unavailable):
        directory.check_fresh()
    await directory.refresh()
    directory.check_fresh()


async def test_a_follower_too_far_behind_the_feed_forgets_everything(
    another: Another,
) -> None:
    writer, reader = (await another()).store, (await another()).store
    directory = Directory(reader, SystemClock())
    await put_user(writer, User(user_id="u1", name="before"))
    await directory.refresh()
    await directory.user("u1")
    await put_user(writer, User(user_id="u1", name="after"))
    await put_user(writer, User(user_id="u2"))
    # What a long absence leaves: the entry after the last one seen is no longer kept.
    await writer.documents.write(PARTITION, [Delete(join("c", f"{2:020d}"), ALWAYS)])
    await directory.refresh()
    assert await directory.user("u1") == User(user_id="u1", name="after")
