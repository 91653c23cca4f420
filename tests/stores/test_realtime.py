"""Rules of who may join a room, and of who may say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from engines import catalogue
from engines.api.realtime import put_room_member
from engines.codec import escaped_bytes
from engines.core.listing import Window
from engines.core.records import RECORD_BYTES_MAX, Condition
from engines.errors import (
    Conflict,
    ContextMismatch,
    Forbidden,
    IdempotencyKeyReused,
    Invalid,
    MissingRoute,
    NotFound,
    PreconditionFailed,
)
from engines.scope import RequestContext
from engines.stores import realtime_rooms
from engines.stores.erasing import ERASED, erased
from engines.stores.realtime import RealtimeRegistry
from engines.stores.realtime_rooms import MEMBERS_MAX, ROOMS, Room, RoomMember, RoomMemberInput, Seat
from engines.stores.scoped import Change
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan
from tests.contexts import PERMISSIONS_OF
from tests.stores.definitions_home import Told
from tests.stores.home import Home, context
from tests.stores.subjects import keyed
from tests.torn import torn

HOST, WRITER, READER = (RoomMemberInput(role=role) for role in ("host", "writer", "reader"))
ABSENT = Condition(absent=True)
ROOM = ("thread", "t1")


def person(user_id: str, role: str = "member", **changes: Any) -> RequestContext:
    return context(user_id=user_id, roles=(role,), permissions=PERMISSIONS_OF[role], **changes)


ADA, BOB, EVE = person("ada"), person("bob"), person("eve")
ADMIN = person("root", "admin")


def matching(etag: str) -> Condition:
    return Condition(versions=(etag.strip('"'),))


class Rooms:
    """One process with a registry."""

    def __init__(self, home: Home, name: str) -> None:
        self.told = Told(home, name)
        self.registry = RealtimeRegistry(home, self.told.announcements, home.clock)

    async def put(
        self, who: RequestContext, user_id: str, member: RoomMemberInput, **options: Any
    ) -> Change[RoomMember]:
        return await self.registry.put(who, *ROOM, user_id, member, **options)

    async def out(self, who: RequestContext, user_id: str, **options: Any) -> bool:
        return (await self.registry.delete(who, *ROOM, user_id, **options)).replayed

    async def role(self, user_id: str, who: RequestContext = ADA) -> str | None:
        """What the access check says; None for who is not in."""
        try:
            return (await self.registry.get(who, *ROOM, user_id)).role
        except NotFound:
            return None

    async def roles(self, who: RequestContext = ADA) -> dict[str, str]:
        return {one.user_id: one.role for one in (await self.registry.list(who, *ROOM)).items}


@pytest_asyncio.fixture
async def both(home: Home) -> AsyncIterator[tuple[Rooms, Rooms]]:
    pair = Rooms(home, "one"), Rooms(home, "two")
    yield pair
    home.faults.plan = NO_FAULTS
    for rooms in pair:
        await rooms.told.close()


@pytest_asyncio.fixture
async def rooms(both: tuple[Rooms, Rooms]) -> Rooms:
    return both[0]


async def at_once(*calls: Awaitable[Any]) -> list[type[BaseException] | None]:
    """What each was refused with, None for those that were not."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    return [type(one) if isinstance(one, BaseException) else None for one in outcomes]


class TestWhoIsIn:
    async def test_it_is_still_so_after_a_restart(self, home: Home, rooms: Rooms) -> None:
        made = (await rooms.put(ADA, "ada", HOST)).record
        await rooms.put(ADA, "bob", READER)
        await rooms.told.close()
        await home.reopen()
        again = Rooms(home, "three")
        assert await again.registry.get(BOB, *ROOM, "ada") == made
        assert await again.roles() == {"ada": "host", "bob": "reader"}
        with pytest.raises(Forbidden):
            await again.put(EVE, "eve", WRITER)
        await again.told.close()

    async def test_a_member_shows_who_let_them_in_and_when(self, home: Home, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        made = await rooms.put(ADA, "bob", WRITER)
        home.clock.advance(1)
        await rooms.put(ADA, "eve", HOST)
        record = (await rooms.put(EVE, "bob", READER)).record
        assert made.created
        assert (record.tenant_id, record.mode, record.env, record.surface_id) == (
            "t_one",
            "saas",
            "prod",
            "chat",
        )
        assert (record.room_kind, record.room_id, record.user_id, record.role) == (*ROOM, "bob", "reader")
        assert (record.created_by, record.updated_by) == ("ada", "eve")
        assert (record.created_at, record.updated_at) == (
            "2027-01-15T08:00:00.000Z",
            "2027-01-15T08:00:01.000Z",
        )
        assert record.etag != made.etag
        assert await rooms.registry.get(ADA, *ROOM, "bob") == record

    async def test_the_access_check_is_one_read_and_no_room_is_no_access(
        self, home: Home, rooms: Rooms
    ) -> None:
        await rooms.put(ADA, "ada", HOST)
        await rooms.told.close()
        home.driver.calls.clear()
        assert await rooms.role("ada") == "host"
        assert home.driver.calls == ["get"]
        for kind, id_ in (("canvas", "t1"), ("thread", "t2")):
            with pytest.raises(NotFound):
                await rooms.registry.get(ADA, kind, id_, "ada")
            assert (await rooms.registry.list(ADA, kind, id_)).items == ()
        for other in (person("ada", tenant_id="t_two"), person("ada", env="dev")):
            assert await rooms.role("ada", other) is None

    async def test_a_membership_lapses_where_that_was_asked_for(self, home: Home, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        made = (await rooms.put(ADA, "bob", RoomMemberInput(role="writer", ttl_seconds=10))).record
        assert made.expires_at == "2027-01-15T08:00:10.000Z"
        home.clock.advance(9.5)
        assert await rooms.role("bob") == "writer"
        home.clock.advance(0.5)
        assert await rooms.role("bob") is None
        assert await rooms.roles() == {"ada": "host"}
        with pytest.raises(NotFound):
            await rooms.out(ADA, "bob")
        with pytest.raises(PreconditionFailed):
            await rooms.put(ADA, "bob", WRITER, condition=matching(made.etag))
        again = await rooms.put(ADA, "bob", WRITER, condition=ABSENT)
        assert (again.created, again.record.expires_at) == (True, None)
        with pytest.raises(Invalid) as caught:
            await rooms.put(ADA, "ada", RoomMemberInput(role="host", ttl_seconds=10))
        assert caught.value.field == "ttl_seconds"

    async def test_lists_go_by_user_id_in_pages(self, rooms: Rooms) -> None:
        names = ["Zoe", "ada", "ada-b", "ada.c", "bob"]
        await rooms.put(ADA, "ada", HOST)
        for name in names:
            if name != "ada":
                await rooms.put(ADA, name, READER)
        for descending in (False, True):
            found: list[str] = []
            after: str | None = None
            while True:
                window = Window(limit=2, after=after, descending=descending)
                page = await rooms.registry.list(EVE, *ROOM, window=window)
                found += [one.user_id for one in page.items]
                after = page.after
                if after is None:
                    break
            assert found == sorted(names, reverse=descending)
        cursor = (await rooms.registry.list(ADA, *ROOM, window=Window(limit=1))).after
        for at, window in (
            (("thread", "t2"), Window(after=cursor)),
            (ROOM, Window(limit=0)),
            (ROOM, Window(after="x")),
        ):
            with pytest.raises(Invalid):
                await rooms.registry.list(ADA, *at, window=window)


class TestWhoMaySaySo:
    async def test_who_names_a_room_first_makes_it_and_is_its_host(self, rooms: Rooms) -> None:
        with pytest.raises(Forbidden):
            await rooms.put(ADA, "bob", HOST)
        with pytest.raises(Invalid) as caught:
            await rooms.put(ADA, "ada", WRITER)
        assert caught.value.field == "role"
        assert (await rooms.put(ADA, "ada", HOST, condition=ABSENT)).created
        with pytest.raises(Forbidden):
            await rooms.put(BOB, "bob", HOST)

    async def test_of_many_who_make_a_room_at_once_one_does(self, both: tuple[Rooms, Rooms]) -> None:
        people = [person(f"u{number}") for number in range(6)]
        refused = await at_once(
            *(both[number % 2].put(who, who.user_id, HOST) for number, who in enumerate(people))
        )
        assert refused.count(None) == 1
        assert refused.count(Forbidden) == 5
        assert await both[0].roles() == {people[refused.index(None)].user_id: "host"}

    async def test_hosts_let_others_in_and_out_and_nobody_else_does(self, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        await rooms.put(ADA, "bob", WRITER)
        for who, user_id in ((BOB, "bob"), (BOB, "eve"), (BOB, "ada"), (EVE, "eve")):
            with pytest.raises(Forbidden):
                await rooms.put(who, user_id, HOST)
        for who, user_id in ((BOB, "ada"), (EVE, "bob"), (EVE, "nobody")):
            with pytest.raises(Forbidden):
                await rooms.out(who, user_id)
        await rooms.put(ADA, "bob", HOST)
        await rooms.put(BOB, "eve", READER)
        await rooms.out(BOB, "ada")
        assert await rooms.roles() == {"bob": "host", "eve": "reader"}
        await rooms.out(EVE, "eve")
        assert await rooms.roles() == {"bob": "host"}

    async def test_the_last_host_stays(self, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        await rooms.put(ADA, "bob", WRITER)
        for call in (rooms.put(ADA, "ada", WRITER), rooms.out(ADA, "ada")):
            with pytest.raises(Conflict, match="last host"):
                await call
        assert (await rooms.put(ADA, "ada", HOST)).record.role == "host"
        await rooms.put(ADA, "bob", HOST)
        await rooms.out(ADA, "ada")
        with pytest.raises(Conflict):
            await rooms.out(BOB, "bob")

    async def test_of_all_hosts_who_leave_at_once_one_stays(
        self, home: Home, both: tuple[Rooms, Rooms]
    ) -> None:
        hosts = [person(f"u{number}") for number in range(4)]
        await both[0].put(hosts[0], "u0", HOST)
        for who in hosts[1:]:
            await both[0].put(hosts[0], who.user_id, HOST)
        home.faults.plan = FaultPlan(pause_s_max=0.002)
        refused = await at_once(*(both[number % 2].out(who, who.user_id) for number, who in enumerate(hosts)))
        assert sorted(map(str, refused)) == sorted(map(str, [None, None, None, Conflict]))
        assert list((await both[0].roles()).values()) == ["host"]

    async def test_two_hosts_who_put_each_other_out_do_not_both(
        self, home: Home, both: tuple[Rooms, Rooms]
    ) -> None:
        await both[0].put(ADA, "ada", HOST)
        await both[0].put(ADA, "bob", HOST)
        home.faults.plan = FaultPlan(pause_s_max=0.002)
        refused = await at_once(both[0].out(ADA, "bob"), both[1].put(BOB, "ada", READER))
        assert sorted(map(str, refused)) == sorted(map(str, [None, Forbidden]))
        assert "host" in (await both[0].roles()).values()

    async def test_an_empty_room_is_not_for_the_next_one_to_take(self, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        await rooms.out(ADMIN, "ada")
        assert await rooms.roles() == {}
        for who in (ADA, EVE):
            with pytest.raises(Forbidden):
                await rooms.put(who, who.user_id, HOST)
        with pytest.raises(Invalid):
            await rooms.put(ADMIN, "eve", WRITER)
        await rooms.put(ADMIN, "eve", HOST)
        assert await rooms.roles() == {"eve": "host"}

    async def test_an_admin_mends_a_room_without_a_host(self, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        await rooms.put(ADA, "bob", WRITER)
        await rooms.out(ADMIN, "ada")
        with pytest.raises(Forbidden):
            await rooms.put(BOB, "bob", HOST)
        await rooms.put(ADMIN, "bob", HOST)
        await rooms.put(BOB, "eve", READER)
        assert await rooms.roles() == {"bob": "host", "eve": "reader"}

    async def test_a_room_holds_so_many_and_no_more(
        self, both: tuple[Rooms, Rooms], home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(realtime_rooms, "MEMBERS_MAX", 4)
        await both[0].put(ADA, "ada", HOST)
        await both[0].put(ADA, "guest", RoomMemberInput(role="reader", ttl_seconds=5))
        home.faults.plan = FaultPlan(pause_s_max=0.002)
        refused = await at_once(*(both[number % 2].put(ADA, f"u{number}", READER) for number in range(5)))
        home.faults.plan = NO_FAULTS
        assert (refused.count(None), refused.count(Conflict)) == (2, 3)
        assert len(await both[0].roles()) == 4
        for who in (ADA, ADMIN):
            with pytest.raises(Conflict) as caught:
                await both[0].put(who, "late", READER)
            assert (caught.value.field, "at most 4 members" in caught.value.detail) == ("members", True)
        assert not (await both[0].put(ADA, "guest", RoomMemberInput(role="writer", ttl_seconds=5))).created
        home.clock.advance(5)
        assert (await both[0].put(ADA, "late", READER)).created

    async def test_the_role_decides(self, home: Home, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        await rooms.put(ADA, "viewer", HOST)
        viewer = person("viewer", "viewer")
        assert await rooms.roles(viewer) == {"ada": "host", "viewer": "host"}
        assert await rooms.role("ada", person("agent", "agent")) == "host"
        for call in (rooms.put(viewer, "bob", READER), rooms.out(viewer, "viewer")):
            with pytest.raises(Forbidden):
                await call
        nobody = context(user_id="ada", permissions=frozenset())
        for read in (rooms.registry.get(nobody, *ROOM, "ada"), rooms.registry.list(nobody, *ROOM)):
            with pytest.raises(Forbidden):
                await read
        home.missing.add("realtime_registry")
        with pytest.raises(MissingRoute):
            await rooms.role("ada")
        with pytest.raises(MissingRoute):
            await rooms.put(ADA, "bob", READER)
        home.missing.clear()

    async def test_what_is_malformed_is_refused_and_nothing_written(self, home: Home, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        put, many = rooms.registry.put, "x" * 129
        await rooms.told.close()
        home.driver.calls.clear()
        for call, field in (
            (put(ADA, "meadow", "t1", "bob", READER), "room_kind"),
            (put(ADA, "thread", "a/b", "bob", READER), "room_id"),
            (put(ADA, "thread", "t1", many, READER), "user_id"),
            (rooms.put(ADA, "bob", RoomMemberInput(role="king")), "role"),  # type: ignore[arg-type]
            (rooms.put(ADA, "bob", RoomMemberInput(role="reader", ttl_seconds=0)), "ttl_seconds"),
            (rooms.out(ADA, many), "user_id"),
            (rooms.registry.get(ADA, *ROOM, many), "user_id"),
        ):
            with pytest.raises(Invalid) as caught:
                await call
            assert caught.value.field == field
        with pytest.raises(ContextMismatch):
            await rooms.put(ADA, "bob", RoomMemberInput(role="reader", tenant_id="t_two"))
        assert home.driver.calls == []


class TestOneChange:
    async def test_a_condition_is_judged_against_the_member(self, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        bob = (await rooms.put(ADA, "bob", WRITER)).record
        await rooms.put(ADA, "eve", READER)
        with pytest.raises(PreconditionFailed):
            await rooms.put(ADA, "bob", READER, condition=ABSENT)
        with pytest.raises(PreconditionFailed):
            await rooms.put(ADA, "carol", READER, condition=matching(bob.etag))
        changed = await rooms.put(ADA, "bob", READER, condition=matching(bob.etag))
        assert not changed.created
        with pytest.raises(PreconditionFailed):
            await rooms.out(ADA, "bob", condition=matching(bob.etag))
        await rooms.out(ADA, "bob", condition=matching(changed.etag))
        with pytest.raises(NotFound):
            await rooms.out(ADA, "bob")
        back = (await rooms.put(ADA, "bob", READER, condition=ABSENT)).record
        assert back.etag != changed.etag

    async def test_of_two_on_one_etag_one_wins(self, both: tuple[Rooms, Rooms]) -> None:
        await both[0].put(ADA, "ada", HOST)
        bob = (await both[0].put(ADA, "bob", WRITER)).record
        refused = await at_once(
            both[0].put(ADA, "bob", READER, condition=matching(bob.etag)),
            both[1].out(ADA, "bob", condition=matching(bob.etag)),
        )
        assert sorted(map(str, refused)) == sorted(map(str, [None, PreconditionFailed]))

    async def test_all_who_are_let_in_at_once_are_in(self, both: tuple[Rooms, Rooms]) -> None:
        await both[0].put(ADA, "ada", HOST)
        assert set(
            await at_once(*(both[number % 2].put(ADA, f"u{number}", READER) for number in range(10)))
        ) == {None}
        assert len(await both[0].roles()) == 11
        told = await both[0].told.told(11)
        assert [one["version"] for one in told] == list(range(1, 12))

    async def test_a_repeat_gets_the_first_answer(self, home: Home, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        home.faults.script(Fault.LOST_APPLIED)
        first = await rooms.put(ADA, "bob", WRITER, request=keyed("k"))
        await rooms.put(ADA, "bob", READER)
        again = await rooms.put(ADA, "bob", WRITER, condition=ABSENT, request=keyed("k"))
        assert (again.replayed, again.created, again.record) == (True, True, first.record)
        assert await rooms.role("bob") == "reader"
        with pytest.raises(IdempotencyKeyReused):
            await rooms.put(ADA, "bob", HOST, request=keyed("k", b"2"))
        assert [await rooms.out(ADA, "bob", request=keyed("d")) for _ in range(2)] == [False, True]

    async def test_who_left_learns_it_again_though_they_may_not_ask_any_more(self, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        await rooms.put(ADA, "bob", HOST)
        assert [await rooms.out(ADA, "ada", request=keyed("d")) for _ in range(2)] == [False, True]

    async def test_a_repeat_that_meets_its_first_as_it_lands_learns_what_that_did(
        self, home: Home, rooms: Rooms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await rooms.put(ADA, "ada", HOST)
        await rooms.put(ADA, "bob", HOST)
        torn(home.documents, monkeypatch, lambda: rooms.out(ADA, "ada", request=keyed("d")))
        assert await rooms.out(ADA, "ada", request=keyed("d"))
        torn(home.documents, monkeypatch, lambda: rooms.put(BOB, "eve", READER, request=keyed("p")))
        again = await rooms.put(BOB, "eve", READER, condition=ABSENT, request=keyed("p"))
        assert (again.replayed, again.created, await rooms.role("eve")) == (True, True, "reader")

    async def test_a_repeat_lets_nobody_in_again_who_was_erased(self, home: Home, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        await rooms.put(ADA, "bob", READER, request=keyed("p"))
        place = await home.place(catalogue.REALTIME, ADA)
        for partition in await place.partitions():
            docs = (await home.documents.scan(partition, above="!", below="~")).docs
            ops = [op for doc in docs if (op := erased(catalogue.REALTIME, doc, "bob")) is not None]
            if ops:
                await home.documents.write(partition, ops)
        again = await rooms.put(ADA, "bob", READER, request=keyed("p"))
        assert (again.replayed, again.record.user_id) == (True, ERASED)
        assert await rooms.roles() == {"ada": "host"}

    async def test_repeats_at_once_are_one_change(self, home: Home, both: tuple[Rooms, Rooms]) -> None:
        home.faults.plan = FaultPlan(pause_s_max=0.002)
        made = await asyncio.gather(
            *(
                both[number % 2].put(ADA, "ada", HOST, condition=ABSENT, request=keyed("p"))
                for number in range(6)
            )
        )
        assert sorted(one.replayed for one in made) == [False, *[True] * 5]
        assert len({one.etag for one in made}) == 1
        assert len(await both[0].told.told(1)) == 1

    async def test_each_change_is_told_in_its_order(self, rooms: Rooms) -> None:
        await rooms.put(ADA, "ada", HOST)
        await rooms.put(ADA, "bob", RoomMemberInput(role="writer", ttl_seconds=60))
        await rooms.put(ADA, "bob", READER)
        await rooms.out(BOB, "bob")
        await rooms.put(ADA, "eve", READER)
        await rooms.out(ADA, "eve")
        told = await rooms.told.told(6)
        assert [(one["action"], one["member_id"], one.get("role")) for one in told] == [
            ("joined", "ada", "host"),
            ("joined", "bob", "writer"),
            ("changed", "bob", "reader"),
            ("left", "bob", None),
            ("joined", "eve", "reader"),
            ("removed", "eve", None),
        ]
        assert told[1] == {
            "action": "joined",
            "resource_kind": "realtime_registry",
            "record": "room",
            "room_kind": "thread",
            "id": "t1",
            "version": 2,
            "member_id": "bob",
            "role": "writer",
            "expires_at": "2027-01-15T08:01:00.000Z",
        }


def test_the_limit_is_the_documented_one() -> None:
    said = f"at most {MEMBERS_MAX} members"
    page = Path(__file__).resolve().parents[2] / "docs" / "records" / "realtime.md"
    assert said in (put_room_member.__doc__ or "")
    assert f"At most **{MEMBERS_MAX} members**" in page.read_text("utf-8")


def test_the_largest_room_is_a_record() -> None:
    """Every id as long as it may be; and so a change of it is never too large for what is written with it."""
    long = "x" * 126
    record = RoomMember(
        tenant_id="t_" + "x" * 62,
        mode="x" * 64,
        env="x" * 32,
        user_id=long,
        surface_id="x" * 64,
        app_id=long,
        project_id=long,
        run_id=long,
        step_id=long,
        thread_id=long,
        room_kind="thread",
        room_id=long,
        role="writer",
        created_by=long,
        created_at="2027-01-15T08:00:00.000Z",
        updated_by=long,
        updated_at="2027-01-15T08:00:00.000Z",
        expires_at="2027-01-15T08:00:00.000Z",
    )
    seats = {
        f"{number:03}{long}"[:128]: Seat(
            msgspec.structs.replace(record, user_id=f"{number:03}{long}"[:128]), 10**9, 1_800_000_000.123
        )
        for number in range(MEMBERS_MAX)
    }
    assert escaped_bytes(ROOMS.encode(Room(10**9, seats))) <= RECORD_BYTES_MAX
