"""`engines init`: make a database a control plane, and give its first admin a key.

Owns the first admin: a user of t_system and an API key that is shown once. Leaves the first records to
`control/bootstrap.py`. Running it again changes nothing and shows no key, unless another is asked for: a key
is stored before it is shown, so a crash or a closed pipe in between loses it.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from engines.clock import SystemClock
from engines.control.bootstrap import bootstrap
from engines.control.records import ApiKey, Membership, User
from engines.control.store import Actor, ControlStore
from engines.control.tables import KEYS, MEMBERSHIPS, USERS
from engines.errors import Conflict, Invalid
from engines.identity.keys import mint_key
from engines.ids import Ids
from engines.scope import SYSTEM_TENANT
from engines.settings import read_settings
from engines.wiring import open_control_plane

ADMIN: Final = "admin"


def init(*, control_plane: str | None = None, new_admin_key: bool = False) -> None:
    """Make the database at the URL a control plane. Safe to repeat: what stands is left as it is.

    Parameters
    ----------
    control_plane
        URL of the control plane's database.
    new_admin_key
        Show a new key of the first admin, where the first one was lost; every earlier key stays valid.
    """
    url = control_plane or read_settings().control_plane
    if url is None:
        raise Invalid("say where the control plane is: --control-plane URL or ENGINES_CONTROL_PLANE")
    found = asyncio.run(_init(url, new_admin_key=new_admin_key))
    kind = "a lab, because its database is host-local" if found.host_local else "of class server or cloud"
    print(f"The control plane stands; it is {kind}.")
    if found.key is None:
        print("It was initialised before: nothing was changed.")
        print("Where the key of its first admin was lost, --new-admin-key makes another.")
    else:
        name = "The key" if found.is_new else "A new key"
        print(f"{name} of its first admin, shown this once:\n\n{found.key}\n")
    print(f"Serve it: engines serve --control-plane {_without_password(url)}")


class _Initialised(msgspec.Struct, frozen=True):
    """What stands now. `key` was made by this run; `is_new`: there was none before."""

    host_local: bool
    is_new: bool
    key: str | None


async def _init(url: str, *, new_admin_key: bool) -> _Initialised:
    async with open_control_plane(url) as control:
        await bootstrap(control.store, control.record, host_local=control.host_local)
        is_new = not await control.store.scan_index("i", "keys", SYSTEM_TENANT, limit=1)
        key = await _admin_key(control.store) if is_new or new_admin_key else None
        return _Initialised(control.host_local, is_new, key)


async def _admin_key(store: ControlStore) -> str:
    """A new key of t_system's first admin, who is made where they never were.

    Raises Conflict where they were removed since: no key may bring back who was sent away.
    """
    actor = Actor(user_id="system", tenant_id=SYSTEM_TENANT, request_id="init", tenants=(SYSTEM_TENANT,))
    membership = Membership(tenant_id=SYSTEM_TENANT, user_id=ADMIN, role="admin", status="accepted")
    await store.seed(USERS, [ADMIN], User(user_id=ADMIN, name="First admin"), actor=actor)
    await store.seed(MEMBERSHIPS, [SYSTEM_TENANT, ADMIN], membership, actor=actor)
    standing = await store.read(MEMBERSHIPS, SYSTEM_TENANT, ADMIN)
    if standing is None:
        raise Conflict(
            f"the first admin, {ADMIN}, is no member of {SYSTEM_TENANT} any more: ask another admin"
        )
    minted = mint_key(Ids(SystemClock()))
    record = ApiKey(
        key_id=minted.key_id,
        tenant_id=SYSTEM_TENANT,
        user_id=ADMIN,
        role="admin",
        name="init",
        secret_sha256=minted.secret_sha256,
        membership=standing.record.began_at_version,
    )
    await store.seed(KEYS, [minted.key_id], record, actor=actor)
    return minted.key


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    return f"{scheme}://{credentials.partition(':')[0]}{at}{place}"
