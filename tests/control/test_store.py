"""The control plane's storage: one atomic write a change, uniqueness, versions, the feed."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

import engines.control.store as store_module
from engines.control.records import Membership, Tenant, User, UserIdentity
from engines.control.store import PARTITION, Actor, ControlStore, Stored
from engines.control.tables import MEMBERSHIPS, TENANTS, USERS
from engines.core.idempotency import identify
from engines.core.keys import within
from engines.core.records import Condition
from engines.errors import Conflict, IdempotencyKeyReused, NotFound, PreconditionFailed, Throttled
from engines.wiring import ControlPlane
from tests.torn import torn

Another = Callable[[], Awaitable[ControlPlane]]
ACTOR = Actor(user_id="u_admin", tenant_id="t_system", request_id="r1", tenants=("t_system",))


async def put_user(store: ControlStore, user: User, *, condition: Condition | None = None) -> Stored[User]:
    async def build(_: User | None) -> User:
        return user

    return await store.put(USERS, [user.user_id], build, actor=ACTOR, condition=condition or Condition())


async def feed_numbers(store: ControlStore) -> list[int]:
    above, below = within("c")
    page = await store.documents.scan(PARTITION, above=above, below=below)
    return [int(doc.key.rsplit("!", 1)[1]) for doc in page.docs]


async def test_a_record_is_read_back_with_its_version_and_etag(another: Another) -> None:
    store = (await another()).store
    written = await put_user(store, User(user_id="u1", name="Ada"))
    read = await store.get(USERS, "u1")
    assert (read.record, read.version, read.etag) == (User(user_id="u1", name="Ada"), 1, written.etag)
    assert written.created
    assert not (await put_user(store, User(user_id="u1", name="Eve"))).created
    assert (await store.get(USERS, "u1")).version == 2


async def test_two_who_claim_one_identity_at_once_have_one_winner(another: Another) -> None:
    stores = [(await another()).store for _ in range(4)]
    identity = (UserIdentity("https://issuer.example", "s1"),)
    results = await asyncio.gather(
        *(put_user(store, User(user_id=f"u{n}", identities=identity)) for n, store in enumerate(stores)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Stored) for result in results) == 1
    losers = [result for result in results if isinstance(result, Conflict)]
    assert len(losers) == 3
    assert all("another record" in loser.detail for loser in losers)


@pytest.mark.parametrize("is_repeat", [True, False])
async def test_a_name_that_the_same_request_or_record_took_meanwhile_is_no_others(
    another: Another, *, is_repeat: bool
) -> None:
    slower, faster = (await another()).store, (await another()).store
    request = identify("t_system", "prod", "u_admin", "POST", "/users", "k", body=b"{}")
    condition = Condition(absent=True) if is_repeat else Condition()
    user = User(user_id="u1", identities=(UserIdentity("iss", "s1"),))
    won: list[Stored[User]] = []

    async def overtaken(_: User | None) -> User:
        if not won:
            store, twin = faster, request if is_repeat else None
            won.append(await store.put(USERS, ["u1"], as_it_is, actor=ACTOR, request=twin))
        return user

    async def as_it_is(_: User | None) -> User:
        return user

    found = await slower.put(
        USERS, ["u1"], overtaken, actor=ACTOR, condition=condition, request=request if is_repeat else None
    )
    assert (found.version, found.replayed) == ((1, True) if is_repeat else (2, False))
    assert found.record == won[0].record == user


async def test_an_identity_given_up_is_free_for_another(another: Another) -> None:
    store = (await another()).store
    identity = (UserIdentity("iss", "s1"),)
    await put_user(store, User(user_id="u1", identities=identity))
    await put_user(store, User(user_id="u1"))
    await put_user(store, User(user_id="u2", identities=identity))
    assert (await store.get(USERS, "u2")).record.identities == identity


async def test_identities_that_differ_only_in_where_they_are_split_are_two(another: Another) -> None:
    store = (await another()).store
    await put_user(store, User(user_id="u1", identities=(UserIdentity("ab", "c"),)))
    await put_user(store, User(user_id="u2", identities=(UserIdentity("a", "bc"),)))
    assert (await store.get(USERS, "u2")).version == 1


async def test_changes_from_many_processes_are_all_kept_and_numbered_without_a_gap(another: Another) -> None:
    stores = [(await another()).store for _ in range(3)]

    async def write_many(number: int, store: ControlStore) -> None:
        for index in range(10):
            await put_user(store, User(user_id=f"u{number}-{index}"))

    await asyncio.gather(*(write_many(number, store) for number, store in enumerate(stores)))
    assert len((await stores[0].page(USERS, limit=1000)).items) == 30
    assert await feed_numbers(stores[0]) == list(range(1, 31))


async def test_a_change_that_a_follower_adopts_does_not_hide_itself_from_one_under_way(
    another: Another,
) -> None:
    """It moves the tail that both know; the number under which the first read stays what it was."""
    store, elsewhere = (await another()).store, (await another()).store
    await put_user(store, User(user_id="u1", name="here"))
    seen: list[str | None] = []

    async def build(_: User | None) -> User:
        other = await store.read(USERS, "u1")
        seen.append(None if other is None else other.record.name)
        if len(seen) == 1:
            await elsewhere.delete(USERS, ["u1"], actor=ACTOR)
            await store.advance()
        return User(user_id="u2", name=seen[-1])

    written = await store.put(USERS, ["u2"], build, actor=ACTOR)
    assert seen == ["here", None]
    assert written.record.name is None


async def test_a_deleted_record_is_gone_and_its_versions_go_on(another: Another) -> None:
    store = (await another()).store
    await put_user(store, User(user_id="u1", name="Ada"))
    await store.delete(USERS, ["u1"], actor=ACTOR)
    assert await store.read(USERS, "u1") is None
    assert (await store.page(USERS)).items == ()
    with pytest.raises(NotFound):
        await store.delete(USERS, ["u1"], actor=ACTOR)
    again = await put_user(store, User(user_id="u1", name="Eve"), condition=Condition(absent=True))
    assert (again.version, again.created) == (3, True)
    history = [
        (item.version, item.deleted, item.record.name) for item in (await store.versions(USERS, "u1")).items
    ]
    assert history == [(1, False, "Ada"), (2, True, "Ada"), (3, False, "Eve")]


async def test_a_seed_does_not_put_back_what_was_deleted_or_changed(another: Another) -> None:
    store = (await another()).store
    for user_id in ("u1", "u2"):
        await store.seed(USERS, [user_id], User(user_id=user_id, name="seeded"), actor=ACTOR)
    await store.delete(USERS, ["u1"], actor=ACTOR)
    await put_user(store, User(user_id="u2", name="changed"))
    for user_id in ("u1", "u2"):
        await store.seed(USERS, [user_id], User(user_id=user_id, name="seeded"), actor=ACTOR)
    assert await store.read(USERS, "u1") is None
    assert (await store.get(USERS, "u2")).record.name == "changed"


async def test_a_condition_is_judged_against_the_live_record(another: Another) -> None:
    store = (await another()).store
    first = await put_user(store, User(user_id="u1"))
    version = first.etag.strip('"')
    await put_user(store, User(user_id="u1", name="2"), condition=Condition(versions=(version,)))
    with pytest.raises(PreconditionFailed):
        await put_user(store, User(user_id="u1", name="3"), condition=Condition(versions=(version,)))
    with pytest.raises(PreconditionFailed):
        await put_user(store, User(user_id="u1", name="3"), condition=Condition(absent=True))
    with pytest.raises(PreconditionFailed):
        await put_user(store, User(user_id="u9"), condition=Condition(versions=("*",)))


async def test_a_repeated_request_gets_its_first_answer_and_changes_nothing(another: Another) -> None:
    store = (await another()).store
    request = identify("t_system", "prod", "u_admin", "POST", "/users", "key-1", body=b"{}")

    async def build(existing: User | None) -> User:
        if existing is not None:
            raise Conflict("exists")
        return User(user_id="u1", name="first")

    first = await store.put(USERS, ["u1"], build, actor=ACTOR, request=request)
    await put_user(store, User(user_id="u1", name="changed since"))
    again = await store.put(USERS, ["u1"], build, actor=ACTOR, request=request)
    assert again.replayed
    assert (again.record, again.created, again.etag) == (first.record, first.created, first.etag)
    assert (await store.get(USERS, "u1")).record.name == "changed since"
    other = identify("t_system", "prod", "u_admin", "POST", "/users", "key-1", body=b'{"a":1}')
    with pytest.raises(IdempotencyKeyReused):
        await store.put(USERS, ["u1"], build, actor=ACTOR, request=other)


async def test_a_repeat_that_meets_its_first_as_it_lands_gets_its_answer(
    another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record, or another one, shows the first attempt; the marker was looked for before that landed."""
    control, twin = await another(), await another()
    ids = ["u1"]

    async def create(store: ControlStore = control.store, key: str = "c") -> Stored[User]:
        async def build(_: User | None) -> User:
            return User(user_id="u1")

        condition, request = Condition(absent=True), identify(key, body=b"{}")
        return await store.put(USERS, ids, build, actor=ACTOR, condition=condition, request=request)

    async def claim(store: ControlStore = control.store, key: str = "m") -> Stored[Membership]:
        async def build(_: Membership | None) -> Membership:
            if store is control.store and key == "m":
                await claim(twin.store)
            if await store.read(MEMBERSHIPS, "t_a", "u1") is not None:
                raise Conflict("claimed")
            return Membership(tenant_id="t_a", user_id="u1", role="owner", status="invited")

        request = identify(key, body=b"{}")
        return await store.put(MEMBERSHIPS, ["t_a", "u1"], build, actor=ACTOR, request=request)

    async def delete(store: ControlStore = control.store, key: str = "d") -> Stored[User]:
        return await store.delete(USERS, ids, actor=ACTOR, request=identify(key, body=b"{}"))

    torn(control.documents, monkeypatch, lambda: create(twin.store))
    created = await create()
    assert (created.replayed, created.created, created.version) == (True, True, 1)
    with pytest.raises(PreconditionFailed):
        await create(key="another c")

    claimed = await claim()
    assert (claimed.replayed, claimed.version) == (True, 1)
    with pytest.raises(Conflict, match="claimed"):
        await claim(key="another m")

    torn(control.documents, monkeypatch, lambda: delete(twin.store))
    deleted = await delete()
    assert (deleted.replayed, deleted.deleted, deleted.version) == (True, True, 2)
    with pytest.raises(NotFound):
        await delete(key="another d")


async def test_a_change_that_gives_back_what_stands_writes_nothing(another: Another) -> None:
    store = (await another()).store
    first = await put_user(store, User(user_id="u1", name="here"))

    async def as_it_stands(existing: User | None) -> User:
        assert existing is not None
        return existing

    request = identify("k", body=b"{}")
    for given in (None, request, request):
        again = await store.put(USERS, ["u1"], as_it_stands, actor=ACTOR, request=given)
        assert again == msgspec.structs.replace(first, created=False)
    assert await feed_numbers(store) == [1]
    with pytest.raises(PreconditionFailed):
        await store.put(USERS, ["u1"], as_it_stands, actor=ACTOR, condition=Condition(absent=True))


async def test_lost_races_are_no_conflict_and_the_change_may_be_repeated(
    another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Conflict would say that a condition of the caller's failed, and it had none."""
    monkeypatch.setattr(store_module, "RACES_MAX", 3)
    slower, faster = (await another()).store, (await another()).store

    async def overtaken(_: User | None) -> User:
        await put_user(faster, User(user_id="u2"))
        return User(user_id="u1")

    with pytest.raises(Throttled) as refusal:
        await slower.put(USERS, ["u1"], overtaken, actor=ACTOR)
    assert refusal.value.retry_after_s is not None
    assert await slower.read(USERS, "u1") is None
    assert (await put_user(slower, User(user_id="u1"))).version == 1


async def test_changes_of_one_process_never_race_each_other(another: Another) -> None:
    """Each is built once, however many come at once, and a tenant's first waits for one of the others'."""
    store = (await another()).store
    built: list[str] = []
    begun = asyncio.Event()

    async def put(tenant_id: str, number: int, *, mends: bool = False) -> None:
        async def build(_: User | None) -> User:
            built.append(tenant_id)
            begun.set()
            return User(user_id=f"{tenant_id}-{number}")

        actor = msgspec.structs.replace(ACTOR, tenant_id=tenant_id)
        await store.put(USERS, [f"{tenant_id}-{number}"], build, actor=actor, mends=mends)

    flood = [asyncio.create_task(put("t_flood", number)) for number in range(40)]
    await begun.wait()
    others = [put("t_other", 1), put("t_system", 1), put("t_flood", 99, mends=True)]
    await asyncio.gather(*others)
    assert len(built) <= 12
    await asyncio.gather(*flood)
    assert len(built) == 43


async def test_what_a_change_read_of_other_records_still_holds_when_it_is_written(another: Another) -> None:
    """A membership is built only while its tenant stands, whatever happens meanwhile."""
    one, two = (await another()).store, (await another()).store
    tenant = Tenant(tenant_id="t_a", name="A", mode="lab", default_surface_id="chat")

    async def build_tenant(_: Tenant | None) -> Tenant:
        return tenant

    await one.put(TENANTS, ["t_a"], build_tenant, actor=ACTOR)
    between = asyncio.Event()
    deleted = asyncio.Event()

    async def build_membership(_: Membership | None) -> Membership:
        if await one.read(TENANTS, "t_a") is None:
            raise NotFound("there is no such tenant")
        between.set()
        await deleted.wait()
        return Membership(tenant_id="t_a", user_id="u1", role="owner", status="invited")

    joining = asyncio.create_task(one.put(MEMBERSHIPS, ["t_a", "u1"], build_membership, actor=ACTOR))
    await between.wait()
    await two.delete(TENANTS, ["t_a"], actor=ACTOR)
    deleted.set()
    with pytest.raises(NotFound):
        await joining
    assert await one.read(MEMBERSHIPS, "t_a", "u1") is None


async def test_every_change_leaves_one_message_for_each_spine_concerned(another: Another) -> None:
    control = await another()
    actor = Actor(user_id="u_admin", tenant_id="t_system", request_id="r1", tenants=("t_a", "t_system"))

    async def build(_: User | None) -> User:
        return User(user_id="u1", name="secret of nobody")

    await control.store.put(USERS, ["u1"], build, actor=actor)
    above, below = within("o")
    page = await control.documents.scan(PARTITION, above=above, below=below)
    assert [doc.key.split("!")[1] for doc in page.docs] == ["t_a", "t_system"]
    assert all('"action":"users.created"' in doc.body for doc in page.docs)
    assert all("secret of nobody" not in doc.body for doc in page.docs)


async def test_pages_of_records_pass_over_the_deleted_and_end_exactly(another: Another) -> None:
    store = (await another()).store
    for number in range(7):
        await put_user(store, User(user_id=f"u{number}"))
    for number in (1, 2, 6):
        await store.delete(USERS, [f"u{number}"], actor=ACTOR)
    first = await store.page(USERS, limit=2)
    assert ([item.record.user_id for item in first.items], first.after) == (["u0", "u3"], "u3")
    second = await store.page(USERS, limit=2, after=first.after)
    assert ([item.record.user_id for item in second.items], second.after) == (["u4", "u5"], None)
    backwards = await store.page(USERS, limit=3, descending=True)
    assert [item.record.user_id for item in backwards.items] == ["u5", "u4", "u3"]
    rest = await store.page(USERS, limit=3, descending=True, after=backwards.after)
    assert ([item.record.user_id for item in rest.items], rest.after) == (["u0"], None)


async def test_a_page_looks_at_a_bounded_number_of_the_deleted_and_goes_on_from_there(
    another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOOKED_AT_MAX", 4)
    monkeypatch.setattr(store_module, "SCAN_LIMIT_MAX", 3)
    store = (await another()).store
    for number in range(10):
        await put_user(store, User(user_id=f"u{number}"))
    for number in range(1, 9):
        await store.delete(USERS, [f"u{number}"], actor=ACTOR)
    for descending, first_and_last in ((False, ["u0", "u9"]), (True, ["u9", "u0"])):
        pages = [await store.page(USERS, limit=5, descending=descending)]
        while (after := pages[-1].after) is not None:
            pages.append(await store.page(USERS, limit=5, after=after, descending=descending))
        assert [item.record.user_id for page in pages for item in page.items] == first_and_last
        assert [len(page.items) for page in pages] == [1, 1]
        assert pages[0].after == ("u4" if descending else "u5")
