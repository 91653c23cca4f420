"""`engines init`: make a database a control plane, and give its first admin a key.

Owns the first admin: a user of t_system and an API key that is shown once. Leaves the first records to
`control/bootstrap.py`. Running it again changes nothing and shows no key.
"""

from __future__ import annotations

import asyncio
from typing import Final

from engines.clock import SystemClock
from engines.control.bootstrap import bootstrap
from engines.control.records import ApiKey, Membership, User
from engines.control.store import Actor, ControlStore
from engines.control.tables import KEYS, MEMBERSHIPS, USERS
from engines.errors import Invalid
from engines.identity.keys import mint_key
from engines.ids import Ids
from engines.scope import SYSTEM_TENANT
from engines.settings import read_settings
from engines.wiring import open_control_plane

ADMIN: Final = "admin"


def init(*, control_plane: str | None = None) -> None:
    """Make the database at the URL a control plane. Safe to repeat: what stands is left as it is."""
    url = control_plane or read_settings().control_plane
    if url is None:
        raise Invalid("say where the control plane is: --control-plane URL or ENGINES_CONTROL_PLANE")
    key, host_local = asyncio.run(_init(url))
    kind = "a lab, because its database is host-local" if host_local else "of class server or cloud"
    print(f"The control plane stands; it is {kind}.")
    if key is None:
        print("It was initialised before: nothing was changed.")
    else:
        print(f"The key of its first admin, shown this once:\n\n{key}\n")
    print(f"Serve it: engines serve --control-plane {_without_password(url)}")


async def _init(url: str) -> tuple[str | None, bool]:
    async with open_control_plane(url) as control:
        await bootstrap(control.store, control.record, host_local=control.host_local)
        return await _first_admin(control.store), control.host_local


async def _first_admin(store: ControlStore) -> str | None:
    """The key of t_system's first admin, if there was none before."""
    if await store.scan_index("i", "keys", SYSTEM_TENANT, limit=1):
        return None
    actor = Actor(user_id="system", tenant_id=SYSTEM_TENANT, request_id="init", tenants=(SYSTEM_TENANT,))
    membership = Membership(tenant_id=SYSTEM_TENANT, user_id=ADMIN, role="admin", status="accepted")
    await store.seed(USERS, [ADMIN], User(user_id=ADMIN, name="First admin"), actor=actor)
    await store.seed(MEMBERSHIPS, [SYSTEM_TENANT, ADMIN], membership, actor=actor)
    minted = mint_key(Ids(SystemClock()))
    record = ApiKey(
        key_id=minted.key_id,
        tenant_id=SYSTEM_TENANT,
        user_id=ADMIN,
        role="admin",
        name="init",
        secret_sha256=minted.secret_sha256,
    )
    await store.seed(KEYS, [minted.key_id], record, actor=actor)
    return minted.key


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    return f"{scheme}://{credentials.partition(':')[0]}{at}{place}"
