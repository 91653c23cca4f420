"""Each record that is served lives through the same on each backend: by the client, and in process."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import pytest_asyncio

import engines
from engines.api.app import create_app
from engines.catalogue import SERVED
from engines.client import AsyncEngines
from engines.control.bootstrap import Seed, apply_seed, bootstrap
from engines.core.records import Condition
from engines.drivers.registry import DOCUMENT_DRIVERS
from engines.errors import Conflict, NotFound, PreconditionFailed
from engines.wiring import open_control_plane
from tests.api.serving import serving
from tests.backends import DYNAMODB_CREDENTIALS, new_backend, new_url, session_server
from tests.contexts import ADMIN
from tests.deployment.conftest import AUDIENCE, ISSUER, KEY, token
from tests.together.doors import Door, Log, LogDoor, Payload, Record
from tests.together.logs import LOGS
from tests.together.records import ASIDE, RECORDS
from tests.together.verbs import VERBS, Verb

in_the_modules_loop = pytest.mark.asyncio(loop_scope="module")

# Who comes through a door has a tenant of their own, so that all that is there is what they wrote.
DOORS: Final = ("client", "process")
STRANGER: Final = "t_stranger"
TENANTS: Final = ("t_client", "t_process", "t_client_logs", "t_process_logs", STRANGER, "t_verbs")
USERS: Final = ("owner", "other")
TOLD_WITHIN_S: Final = 20.0
TAKEN: Final = (Conflict, PreconditionFailed)


credential = functools.cache(token)


class Served(msgspec.Struct, frozen=True):
    """A deployment whose control plane and tenants are all on one backend, in this process and on a port."""

    opened: engines.Engines
    url: str

    def client(self, tenant_id: str, user_id: str = "owner") -> AsyncEngines:
        return AsyncEngines(self.url, credential(user_id), tenant_id=tenant_id)

    async def door(self, row: Record, name: str, tenant_id: str, client: AsyncEngines) -> Door:
        if name == "client":
            return row.client(client)
        return row.process(self.opened, await self._context(tenant_id))

    async def log(self, row: Log, name: str, tenant_id: str, client: AsyncEngines) -> LogDoor:
        if name == "client":
            return row.client(client)
        return row.process(self.opened, await self._context(tenant_id))

    async def _context(self, tenant_id: str) -> Any:
        return await self.opened.contexts.context(credential("owner"), {"x-tenant-id": tenant_id})


def untold(_: object) -> None:
    """What the server says of each request is not looked at here."""


def seed(mode: str, jwks: Path) -> Seed:
    return {
        "tenants": [
            {
                "tenant_id": tenant_id,
                "name": tenant_id,
                "mode": mode,
                "envs": ["prod", "dev"],
                "default_surface_id": "chat",
            }
            for tenant_id in TENANTS
        ],
        "users": [{"user_id": name, "identities": [{"iss": ISSUER, "sub": name}]} for name in USERS],
        "memberships": [
            {"tenant_id": tenant_id, "user_id": name, "role": "owner", "status": "accepted"}
            for tenant_id in TENANTS
            for name in USERS
        ],
        "issuers": [{"issuer_id": "test", "issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(jwks)}],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=DOCUMENT_DRIVERS)
async def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    driver: str = request.param
    directory = tmp_path_factory.mktemp(driver)
    jwks = directory / "jwks.json"
    jwks.write_text(json.dumps({"keys": [{**KEY.as_dict(private=False), "alg": "EdDSA", "use": "sig"}]}))
    server = session_server(request, driver)
    url, aside = new_url(driver, server, directory), new_backend(driver, server, directory, ASIDE)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in DYNAMODB_CREDENTIALS.items():
            environment.setenv(f"AWS_{name.upper()}", value)
        async with open_control_plane(url) as control:
            await bootstrap(control.store, control.record, host_local=control.host_local)
            await apply_seed(control.store, seed("lab" if control.host_local else "saas", jwks))
        async with (
            engines.open(url) as opened,
            serving(create_app(opened, tell=untold), lifespan="off") as (_, port),
        ):
            await opened.backends.put(ADMIN, aside, condition=Condition(absent=True))
            yield Served(opened, f"http://127.0.0.1:{port}")


def test_every_kind_that_is_served_has_a_row() -> None:
    rows = {row.kind for row in RECORDS} | {row.kind for row in LOGS}
    assert rows == {kind.name for kind in SERVED}


@in_the_modules_loop
@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("row", RECORDS, ids=lambda row: row.name)
async def test_a_record_is_written_on_conditions_told_and_nobody_elses(
    served: Served, row: Record, name: str
) -> None:
    tenant_id = f"t_{name}"
    async with served.client(tenant_id) as client, served.client(STRANGER) as stranger:
        door = await served.door(row, name, tenant_id, client)
        key = f"{row.name}-".replace(" ", "-")
        last = await client.events.last()
        with pytest.raises(NotFound):
            await door.get()
        made, again = await asyncio.gather(
            *(door.put(row.first, if_absent=True, idempotency_key=f"{key}1") for _ in range(2))
        )
        assert again == made
        if not row.is_named_by_server:
            with pytest.raises(TAKEN):
                await door.put(row.second, if_absent=True)
        both = await asyncio.gather(
            *(door.put(row.second, if_match=made.etag, idempotency_key=f"{key}{n}") for n in (2, 3)),
            return_exceptions=True,
        )
        (won,) = [each for each in both if not isinstance(each, BaseException)]
        assert [type(each) for each in both if isinstance(each, BaseException)] == [PreconditionFailed]
        with pytest.raises(PreconditionFailed):
            await door.put(row.first, if_match=made.etag)
        assert await door.get() == won
        assert won.value == row.second
        await check_list(door, row.second)
        with pytest.raises(NotFound):
            await (await served.door(row, name, STRANGER, stranger)).get()
        count = 2
        if door.versions is not None:
            assert (await door.versions())[:2] == [row.first, row.second]
        if door.delete is not None:
            with pytest.raises(PreconditionFailed):
                await door.delete(if_match=made.etag)
            for _ in range(2):
                await door.delete(if_match=won.etag, idempotency_key=f"{key}4")
            with pytest.raises(NotFound):
                await door.get()
            await check_list(door)
            count = 3
        if row.told is not None:
            after = None if last is None else last.cursor
            assert await told(client, row.told, count, after=after) == list(range(1, count + 1))


async def check_list(door: Door, *expected: Any) -> None:
    if door.listed is not None:
        assert await door.listed() == list(expected)


async def told(
    client: AsyncEngines, is_about: Callable[[Payload], bool], count: int, *, after: str | None
) -> list[int]:
    """The versions that the spine was told of since, in its order, once there are so many."""
    async with asyncio.timeout(TOLD_WITHIN_S):
        while True:
            payloads = [event.payload or {} async for event in client.events.each(after=after)]
            found = [payload["version"] for payload in payloads if is_about(payload)]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)


@in_the_modules_loop
@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("row", LOGS, ids=lambda row: row.name)
async def test_a_log_keeps_what_was_appended_once_and_in_order(served: Served, row: Log, name: str) -> None:
    tenant_id = f"t_{name}_logs"
    async with served.client(tenant_id) as client, served.client(STRANGER) as stranger:
        if row.prepare is not None:
            await row.prepare(client)
        door = await served.log(row, name, tenant_id, client)
        appended = [await door.append(number, f"{row.name}-{number}") for number in (1, 2, 3)]
        again = [await door.append(number, f"{row.name}-{number}") for number in (2, 1)]
        assert again == [appended[1], appended[0]]
        await asyncio.gather(*(door.append(number, f"{row.name}-{number}") for number in (4, 4, 5)))
        listed = await door.listed()
        assert (listed[:3], sorted(listed[3:])) == ([1, 2, 3], [4, 5])
        if row.prepare is not None:
            with pytest.raises(NotFound):
                await (await served.log(row, name, STRANGER, stranger)).listed()
        else:
            assert await (await served.log(row, name, STRANGER, stranger)).listed() == []


@in_the_modules_loop
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
async def test_a_kind_does_what_it_is_for(served: Served, verb: Verb) -> None:
    async with served.client("t_verbs") as one, served.client("t_verbs", "other") as another:
        await verb(one, another)
