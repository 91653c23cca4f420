"""Powers: which roles and permissions a credential has.

Owns how an API key's role and its user's present membership meet: a key is a part of what its user may, and
never more. Leaves which membership counts to `derivation.py`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engines.control.access import BEACON_ROLE
from engines.control.directory import Directory
from engines.scope import ADMIN_ROLES
from engines.stores.scoped import AGENT_ROLE

# What a machine alone does, which no person's role is for: a key in one of these has what the role grants,
# as long as its user is a member, whatever as.
MACHINE_ROLES: Final = frozenset({BEACON_ROLE, "scrape"})


class Powers(msgspec.Struct, frozen=True):
    """What a caller is and may. `roles` are those of which every permission is among `permissions`, and
    `agent` for whoever is one. `source` says where they come from, as `GET /me` shows it."""

    roles: tuple[str, ...]
    permissions: frozenset[str]
    source: str

    @property
    def is_admin(self) -> bool:
        return not ADMIN_ROLES.isdisjoint(self.roles)


async def powers_of(directory: Directory, held: str, asked: str | None) -> Powers:
    """`held`: the role of the membership, as it is now; `asked`: the key's, None for a token."""
    if asked is None or asked == held:
        return Powers((held,), await _granted(directory, held), "membership" if asked is None else "api key")
    wanted = await _granted(directory, asked)
    if asked in MACHINE_ROLES:
        return Powers((asked,), wanted, "api key")
    own = await _granted(directory, held)
    common = wanted & own
    roles: tuple[str, ...] = ()
    # A role that nobody defines grants nothing; its name alone makes nobody anything.
    if wanted and common == wanted:
        roles = (asked,)
    elif own and common == own:
        roles = (held,)
    # An agent is held to more than its permissions, and does not get rid of that by either side.
    if AGENT_ROLE in (asked, held) and AGENT_ROLE not in roles:
        roles = (*roles, AGENT_ROLE)
    return Powers(roles, common, "api key" if roles == (asked,) else "api key and membership")


async def _granted(directory: Directory, name: str) -> frozenset[str]:
    role = await directory.role(name)
    return frozenset(() if role is None else role.permissions)
