"""`engines init`: the first admin's key, which is shown once and made again when it was lost."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import engines as library
from engines.control.store import Actor
from engines.control.tables import MEMBERSHIPS
from engines.wiring import open_control_plane
from tests.cli.conftest import Engines

ACTOR = Actor(user_id="u", tenant_id="t_system", request_id="r", tenants=("t_system",))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/control.db"


def keys_in(text: str) -> list[str]:
    return re.findall(r"ek_[0-9a-f]{32}_[0-9A-Za-z]{43}", text)


async def opens(url: str, key: str) -> tuple[str, str, bool]:
    async with library.open(url) as deployment:
        context = await deployment.contexts.context(key)
        return context.tenant_id, context.user_id, context.is_system_admin


def test_a_lost_key_is_replaced_as_often_as_asked_and_by_nothing_else(engines: Engines, url: str) -> None:
    shown = [
        keys_in(engines("init", "--control-plane", url, *more).out) for more in ((), (), ("--new-admin-key",))
    ]
    assert [len(keys) for keys in shown] == [1, 0, 1]
    again = keys_in(engines("init", "--control-plane", url, "--new-admin-key").out)
    keys = {*shown[0], *shown[2], *again}
    assert len(keys) == 3
    for key in keys:
        assert asyncio.run(opens(url, key)) == ("t_system", "admin", True)


def test_a_database_that_is_none_yet_becomes_one_with_one_key(engines: Engines, url: str) -> None:
    assert len(keys_in(engines("init", "--control-plane", url, "--new-admin-key").out)) == 1


def test_an_admin_who_was_removed_gets_no_key(engines: Engines, url: str) -> None:
    assert engines("init", "--control-plane", url).code == 0

    async def remove() -> None:
        async with open_control_plane(url) as control:
            await control.store.delete(MEMBERSHIPS, ["t_system", "admin"], actor=ACTOR)

    asyncio.run(remove())
    refused = engines("init", "--control-plane", url, "--new-admin-key")
    assert (refused.code, keys_in(refused.out)) == (1, [])
    assert "Conflict" in refused.err
