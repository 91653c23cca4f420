"""The first records of a control plane, from seed files.

Owns applying a seed so that it can be applied again: a record that ever existed is left as it is, whether it
was changed since or deleted. Roles alone gain what a newer release lets them do: no call changes a role, and
without it the members of an older deployment could not use what came since. Leaves what is seeded to the
files under `control/seeds/`.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from engines.catalogue import CONTROL_PLANE, ROUTING_REGISTRY, SERVED
from engines.control.records import Backend, Role, Route
from engines.control.store import Actor, ControlStore, Table
from engines.control.tables import (
    APPS,
    BACKENDS,
    ISSUERS,
    MEMBERSHIPS,
    MODES,
    OSES,
    PROJECTS,
    ROLES,
    ROUTES,
    SURFACES,
    TENANTS,
    USERS,
    route_ids,
)
from engines.scope import SYSTEM_TENANT, RouteScope

Seed = Mapping[str, Sequence[Mapping[str, Any]]]

_ACTOR: Final = Actor(
    user_id="system", tenant_id=SYSTEM_TENANT, request_id="bootstrap", tenants=(SYSTEM_TENANT,)
)
# In the order in which records refer to each other; each with the fields of its id.
_TABLES: Final[Sequence[tuple[Table[Any], tuple[str, ...]]]] = (
    (MODES, ("mode",)),
    (ROLES, ("role",)),
    (OSES, ("os_id",)),
    (SURFACES, ("surface_id",)),
    (APPS, ("app_id",)),
    (TENANTS, ("tenant_id",)),
    (USERS, ("user_id",)),
    (MEMBERSHIPS, ("tenant_id", "user_id")),
    (ISSUERS, ("issuer_id",)),
    (BACKENDS, ("backend_id",)),
)


def read_seed(name: str) -> Seed:
    """A seed file of the package, by the name before `.json`."""
    text = importlib.resources.files("engines.control").joinpath("seeds", f"{name}.json").read_text("utf-8")
    return msgspec.json.decode(text)  # type: ignore[no-any-return]


async def bootstrap(
    store: ControlStore, control: Backend, *, data: Backend | None = None, host_local: bool
) -> None:
    """Make an empty database a control plane, or leave one as it is. Idempotent; safe when two do it at once.

    `control` is the backend record of the control plane itself. t_system's default routes lead to `data`, or
    to `control` where none is given.
    """
    seed = dict(read_seed("system"))
    if host_local:
        seed["tenants"] = [{**tenant, "mode": "lab"} for tenant in seed["tenants"]]
    await apply_seed(store, seed)
    for row in seed["roles"]:
        await _extend(store, msgspec.convert(row, Role))
    await store.seed(BACKENDS, [control.backend_id], control, actor=_ACTOR)
    if data is not None:
        await store.seed(BACKENDS, [data.backend_id], data, actor=_ACTOR)
    control_kinds = (CONTROL_PLANE, ROUTING_REGISTRY)
    for kind in SERVED:
        backend = control if kind.name in control_kinds or data is None else data
        route = Route(tenant_id=SYSTEM_TENANT, resource_kind=kind.name, backend_id=backend.backend_id)
        await store.seed(ROUTES, route_ids(SYSTEM_TENANT, kind.name, RouteScope()), route, actor=_ACTOR)


async def _extend(store: ControlStore, seeded: Role) -> None:
    """Give a role the permissions that its seed has and it lacks."""
    stored = await store.read(ROLES, seeded.role)
    if stored is None or set(seeded.permissions) <= set(stored.record.permissions):
        return

    async def build(existing: Role | None) -> Role:
        known = () if existing is None else existing.permissions
        gained = tuple(permission for permission in seeded.permissions if permission not in known)
        return Role(role=seeded.role, permissions=known + gained)

    await store.put(ROLES, [seeded.role], build, actor=_ACTOR)


async def apply_seed(store: ControlStore, seed: Seed) -> None:
    """Create every record of the seed that never existed."""
    for table, id_fields in _TABLES:
        for row in seed.get(table.name, ()):
            record = msgspec.convert(row, table.type)
            await store.seed(table, [row[field] for field in id_fields], record, actor=_ACTOR)
    for row in seed.get(PROJECTS.name, ()):
        project = {name: value for name, value in row.items() if name != "tenant_id"}
        record = msgspec.convert(project, PROJECTS.type)
        await store.seed(PROJECTS, [row["tenant_id"], row["project_id"]], record, actor=_ACTOR)
