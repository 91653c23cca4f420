"""One record of each kind that a client writes, and the calls on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.contract.cast import AUDIENCE, Cast, Tenant, fresh
from tests.contract.wire import Caller, Reply, record


@dataclass(frozen=True)
class Kind:
    """One kind of record: its path for a fresh name, and two bodies that a write may have."""

    path: str
    first: Mapping[str, Any]
    second: Mapping[str, Any]
    role: str = "member"
    conditional: bool = False  # a write without a condition is 428
    deletes: bool = True
    created_by: str = "PUT"  # POST: to the collection, which names the record in `id_field`
    changed_by: str = "PUT"
    id_field: str | None = None


BOARD_1, BOARD_2 = {"value": 1}, {"value": 2}
NAME_1, NAME_2 = {"name": "One"}, {"name": "Two"}
ROUTE_1 = {"backend_id": "lab", "options": {}}

KINDS = {
    "table": Kind("/tables/t/p/{}", BOARD_1, BOARD_2),
    "memory": Kind("/memory/s/{}", BOARD_1, BOARD_2),
    "blackboard": Kind("/blackboard/r/{}", BOARD_1, BOARD_2, conditional=True, deletes=False),
    "room member": Kind("/realtime/canvas/{}/members/u", {"role": "host"}, {"role": "writer"}, "admin"),
    "agent memory": Kind("/agent-memory/long_term/{}", BOARD_1, BOARD_2),
    "session": Kind(
        "/sessions/{}",
        {"title": "One"},
        {"title": "Two"},
        created_by="POST",
        changed_by="PATCH",
        id_field="session_id",
    ),
    "note": Kind("/notes/{}", {"content": "1"}, {"content": "2"}, created_by="POST", id_field="note_id"),
    "issuer": Kind(
        "/issuers/{}",
        {"audience": AUDIENCE, "jwks_file": "{jwks}", "issuer": "https://{}.example"},
        {"audience": "b", "jwks_file": "{jwks}", "issuer": "https://{}.example"},
        role="system",
    ),
    "mode": Kind(
        "/modes/{}",
        {"allowed_classes": ["cloud"]},
        {"allowed_classes": ["server"]},
        role="system",
        deletes=False,
    ),
    "backend": Kind(
        "/backends/{}",
        {"driver": "sqlite", "class": "host_local", "config": {"path": "{file}"}, "offered_to": []},
        {"driver": "sqlite", "class": "host_local", "config": {"path": "{file}"}, "offered_to": "*"},
        role="system",
        conditional=True,
    ),
    "project": Kind(
        "/projects/{}",
        NAME_1,
        NAME_2,
        "admin",
        deletes=False,
        created_by="POST",
        changed_by="PATCH",
        id_field="project_id",
    ),
    "os": Kind(
        "/oses/{}",
        NAME_1,
        NAME_2,
        "system",
        deletes=False,
        created_by="POST",
        changed_by="PATCH",
        id_field="os_id",
    ),
    "surface": Kind(
        "/surfaces/{}",
        {**NAME_1, "os_id": "engines"},
        NAME_2,
        "system",
        deletes=False,
        created_by="POST",
        changed_by="PATCH",
        id_field="surface_id",
    ),
    "app": Kind(
        "/apps/{}",
        {**NAME_1, "surface_id": "chat"},
        NAME_2,
        "system",
        deletes=False,
        created_by="POST",
        changed_by="PATCH",
        id_field="app_id",
    ),
    "tenant": Kind(
        "/tenants/{}",
        {**NAME_1, "mode": "lab", "default_surface_id": "chat"},
        NAME_2,
        "system",
        conditional=True,
        deletes=False,
        created_by="POST",
        changed_by="PATCH",
        id_field="tenant_id",
    ),
    "member": Kind("{members}/{user}", {"role": "member"}, {"role": "viewer"}, "owner"),
    "route": Kind(
        "/routes/{route}", ROUTE_1, {**ROUTE_1, "backend_id": "lab", "options": {}}, "owner", conditional=True
    ),
}
# What these are called the server says.
NAMED_BY_SERVER = ("session", "note")
MADE_BY_PUT = [name for name, kind in KINDS.items() if kind.created_by == "PUT"]
DELETED = [name for name, kind in KINDS.items() if kind.deletes]
CONDITIONAL = [name for name, kind in KINDS.items() if kind.conditional]
UNCONDITIONAL = [name for name, kind in KINDS.items() if not kind.conditional]


class Sample:
    """One record of a kind, not yet made, and the calls on it."""

    def __init__(self, cast: Cast, tenant: Tenant, kind: Kind) -> None:
        self.kind = kind
        if "{route}" in kind.path:
            tenant = cast.tenant(
                "owner"
            )  # a route is named by its kind: each sample needs a tenant of its own
        self.caller: Caller = cast.system_admin if kind.role == "system" else tenant[kind.role]
        self.name = fresh("t_n" if kind.id_field == "tenant_id" else "n")
        self._values = {
            "{jwks}": str(cast.directory / "people.jwks"),
            "{file}": str(cast.directory / f"{self.name}.db"),
            "{members}": tenant.path("/members"),
            "{user}": cast.user() if "{user}" in kind.path else "",
            "{route}": "notes_store",
            "{}": self.name,
        }
        self.path = self._filled(kind.path)

    def _filled(self, text: str) -> str:
        for mark, value in self._values.items():
            text = text.replace(mark, value)
        return text

    def body(self, which: Mapping[str, Any]) -> dict[str, Any]:
        def filled(value: Any) -> Any:
            if isinstance(value, str):
                return self._filled(value)
            if isinstance(value, dict):
                return {name: filled(member) for name, member in value.items()}
            return value

        return {name: filled(value) for name, value in which.items()}

    def create(self) -> dict[str, Any]:
        """Make it; its record."""
        kind = self.kind
        if kind.created_by == "PUT":
            headers = {"if_none_match": "*"} if kind.conditional else {}
            return record(self.caller.put(self.path, self.body(kind.first), **headers), 201)
        body = self.body(kind.first)
        if kind not in [KINDS[name] for name in NAMED_BY_SERVER]:
            body[str(kind.id_field)] = self.name
        made_record = record(self.caller.post(self.path.rpartition("/")[0], body), 201)
        self.path = f"{self.path.rpartition('/')[0]}/{made_record[str(kind.id_field)]}"
        return made_record

    def write(self, which: Mapping[str, Any] | None = None, **headers: str) -> Reply:
        """PUT or PATCH the second body."""
        body = self.body(which or self.kind.second)
        return self.caller.call(self.kind.changed_by, self.path, body, **headers)

    def read(self) -> Reply:
        if "/routes/" in self.path:
            return self.caller.get(f"{self.path}/resolve")
        return self.caller.get(self.path)

    def delete(self, **headers: str) -> Reply:
        return self.caller.delete(self.path, **headers)
