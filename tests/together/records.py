"""Every record that is written on what one expects to be there, and how to get at it by both doors.

Owns the rows; a kind that begins to be served needs one here or in `logs.py`. Leaves what must hold of all of
them to the tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import partial
from typing import Any, Final

import msgspec

import engines
from engines import catalogue
from engines.agent.memory import AgentMemoryInput
from engines.agent.sessions import SessionInput, SessionPatch
from engines.client import (
    AsyncEngines,
    BudgetLimit,
    GateRule,
    NewBudgetPolicy,
    NewNote,
    RateLimit,
    RouteScope,
    Switch,
)
from engines.control import records as control
from engines.errors import NotFound
from engines.scope import SYSTEM_TENANT, RequestContext
from engines.scope import RouteScope as Scope
from engines.stores import budget_policy, rate_limits
from engines.stores.blackboard import BlackboardInput
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMAS, Schema
from engines.stores.memory import MemoryInput
from engines.stores.notes import NoteInput
from engines.stores.realtime_rooms import RoomMemberInput
from engines.stores.tables import TableRowInput
from tests.stores.definition_samples import SAMPLES
from tests.together.doors import (
    Door,
    Payload,
    Record,
    Seen,
    asked,
    blob_of,
    by_client,
    in_process,
    one,
    value_of,
)

# A backend that is offered to everybody, and that nothing but the row of routes is led to.
ASIDE: Final = "aside"


class _NoteDoor:
    """A note, whose id the server says when it is made."""

    note_id = "n_none"

    def by_client(self, client: AsyncEngines) -> Door:
        async def put(value: Any, *, if_absent: bool = False, **how: Any) -> Seen:
            note = NewNote(content=str(value))
            write = client.notes.create if if_absent else partial(client.notes.replace, self.note_id)
            made = await write(note, **how)
            self.note_id = made.note_id
            return Seen(int(made.content), made.etag)

        async def get() -> Seen:
            note = await client.notes.get(self.note_id)
            return Seen(int(note.content), note.etag)

        async def listed() -> list[Any]:
            return [int(note.content) async for note in client.notes.each()]

        async def delete(**how: Any) -> None:
            await client.notes.delete(self.note_id, **how)

        return Door(put=put, get=get, listed=listed, delete=delete)

    def in_process(self, opened: engines.Engines, who: RequestContext) -> Door:
        async def put(value: Any, *, if_absent: bool = False, **how: Any) -> Seen:
            note, notes = NoteInput(content=str(value)), opened.notes
            write = partial(notes.create, who) if if_absent else partial(notes.replace, who, self.note_id)
            made = await write(note, **asked(how))
            self.note_id = made.record.note_id
            return Seen(int(made.record.content), made.etag)

        async def get() -> Seen:
            note = await opened.notes.get(who, self.note_id)
            return Seen(int(note.content), note.etag)

        async def listed() -> list[Any]:
            return [int(note.content) for note in (await opened.notes.list(who)).items]

        async def delete(**how: Any) -> None:
            await opened.notes.delete(who, self.note_id, **asked(how))

        return Door(put=put, get=get, listed=listed, delete=delete)


class _SessionDoor:
    """A session, whose id the server says when it is made; its title is what it says."""

    session_id = "s_none"

    def by_client(self, client: AsyncEngines) -> Door:
        async def put(value: Any, *, if_absent: bool = False, **how: Any) -> Seen:
            write = client.sessions.create if if_absent else partial(client.sessions.patch, self.session_id)
            made = await write(title=str(value), **how)
            self.session_id = made.session_id
            return Seen(int(made.title), made.etag)

        async def get() -> Seen:
            session = await client.sessions.get(self.session_id)
            return Seen(int(session.title), session.etag)

        async def listed() -> list[Any]:
            return [int(session.title) async for session in client.sessions.each()]

        async def delete(**how: Any) -> None:
            await client.sessions.delete(self.session_id, **how)

        return Door(put=put, get=get, listed=listed, delete=delete)

    def in_process(self, opened: engines.Engines, who: RequestContext) -> Door:
        sessions = opened.agent.sessions

        async def put(value: Any, *, if_absent: bool = False, **how: Any) -> Seen:
            if if_absent:
                made = await sessions.create(who, SessionInput(title=str(value)), **asked(how))
            else:
                patch = SessionPatch(title=str(value))
                made = await sessions.patch(who, self.session_id, patch, **asked(how))
            self.session_id = made.record.session_id
            return Seen(int(made.record.title), made.etag)

        async def get() -> Seen:
            session = await sessions.get(who, self.session_id)
            return Seen(int(session.title), session.etag)

        async def listed() -> list[Any]:
            return [int(session.title) for session in (await sessions.list(who)).items]

        async def delete(**how: Any) -> None:
            await sessions.delete(who, self.session_id, **asked(how))

        return Door(put=put, get=get, listed=listed, delete=delete)


def _definition(schema: Schema) -> Record:
    id_ = schema.ids[0] if schema.ids else "one"
    sample = SAMPLES[schema.name]
    group = {
        "firearms-licences": "firearm_licences",
        "firearms-grants": "firearm_grants",
        "firearms-bindings": "firearm_bindings",
    }.get(schema.name, schema.name.replace("-", "_"))
    return Record(
        name=schema.name,
        kind=schema.kind,
        first=sample.first,
        second=sample.second,
        client=lambda client: by_client(getattr(client, group), id_, shows=blob_of, has_versions=True),
        process=lambda opened, who: in_process(
            opened.definitions,
            who,
            *(schema, id_),
            body=lambda value: DefinitionInput(json_blob=value),
            shows=blob_of,
            has_versions=True,
        ),
        told=lambda payload: payload.get("definition") == schema.name,
    )


def _of_table(name: str) -> Callable[[Payload], bool]:
    """Payloads about the control plane's records of one table."""
    return lambda payload: str(payload.get("action", "")).startswith(f"{name}.")


# A call that no other row makes.
_LIMITED: Final = "POST /attribution/tag-link"


def _limits_by_client(client: AsyncEngines) -> Door:
    def put(value: int, **how: Any) -> Awaitable[Any]:
        limit = RateLimit(name="all", per=("user",), route=_LIMITED, limit=value, window_seconds=60)
        return client.rate_limits.put([limit], **how)

    return one(put, client.rate_limits.get, lambda policy: policy.limits[0].limit)


def _limits_in_process(opened: engines.Engines, who: RequestContext) -> Door:
    def put(value: int, **how: Any) -> Awaitable[Any]:
        limit = rate_limits.RateLimit(
            name="all", per=("user",), route=_LIMITED, limit=value, window_seconds=60
        )
        return opened.rate_limit_policies.put(who, [limit], **asked(how))

    return one(put, partial(opened.rate_limit_policies.get, who), lambda policy: policy.limits[0].limit)


def _budget_by_client(client: AsyncEngines) -> Door:
    def put(value: int, **how: Any) -> Awaitable[Any]:
        limit = BudgetLimit(limit_id="all", period="total", hard=Decimal(value))
        return client.budget.put_policy(NewBudgetPolicy(currency="USD", limits=(limit,)), **how)

    return one(put, client.budget.policy, lambda policy: int(policy.limits[0].hard))


def _budget_in_process(opened: engines.Engines, who: RequestContext) -> Door:
    def put(value: int, **how: Any) -> Awaitable[Any]:
        limit = budget_policy.Limit(limit_id="all", period="total", hard=str(value))
        policy = budget_policy.PolicyInput(currency="USD", limits=(limit,))
        return opened.budget.put_policy(who, policy, **asked(how))

    return one(put, partial(opened.budget.policy, who), lambda policy: int(policy.limits[0].hard))


def _switch_by_client(client: AsyncEngines) -> Door:
    def put(value: int, **how: Any) -> Awaitable[Any]:
        return client.gates.put_kill_switch(switches=[Switch(action=f"never-{value}")], **how)

    return one(put, client.gates.kill_switch, _switched)


def _switch_in_process(opened: engines.Engines, who: RequestContext) -> Door:
    def put(value: int, **how: Any) -> Awaitable[Any]:
        switch = control.Switch(action=f"never-{value}")
        return opened.kill_switches.put(who, switches=[switch], **asked(how))

    return one(put, partial(opened.kill_switches.get, who), _switched)


def _switched(switch: Any) -> int:
    return int(switch.switches[0].action.removeprefix("never-"))


def _gates_by_client(client: AsyncEngines) -> Door:
    def put(value: int, **how: Any) -> Awaitable[Any]:
        rule = GateRule(action=f"never-{value}", gates=("kill_switch",))
        return client.gates.put_config("canvas", rules=[rule], **how)

    return one(put, partial(client.gates.config, "canvas"), _ruled)


def _gates_in_process(opened: engines.Engines, who: RequestContext) -> Door:
    def put(value: int, **how: Any) -> Awaitable[Any]:
        rule = control.GateRule(action=f"never-{value}", gates=("kill_switch",))
        config = control.GateConfig(tenant_id=who.tenant_id, surface_id="canvas", rules=(rule,))
        return opened.gate_configs.put(who, config, **asked(how))

    return one(put, partial(opened.gate_configs.get, who, "canvas"), _ruled)


def _ruled(config: Any) -> int:
    return int(config.rules[0].action.removeprefix("never-"))


def _project_by_client(client: AsyncEngines) -> Door:
    async def put(value: int, *, if_absent: bool = False, **how: Any) -> Any:
        if if_absent:
            return await client.projects.create({"project_id": "p", "name": str(value)}, **how)
        return await client.projects.patch("p", {"name": str(value)}, **how)

    async def listed() -> list[Any]:
        return [int(project.name) async for project in client.projects.each()]

    door = one(put, partial(client.projects.get, "p"), lambda project: int(project.name))
    return msgspec.structs.replace(door, listed=listed)


def _project_in_process(opened: engines.Engines, who: RequestContext) -> Door:
    async def put(value: int, *, if_absent: bool = False, **how: Any) -> Any:
        if if_absent:
            project = control.Project(project_id="p", name=str(value))
            return await opened.projects.create(who, project, **asked(how))
        return await opened.projects.patch(who, "p", {"name": str(value)}, **asked(how))

    async def listed() -> list[Any]:
        return [int(project.record.name) for project in (await opened.projects.list(who)).items]

    door = one(put, partial(opened.projects.get, who, "p"), lambda project: int(project.name))
    return msgspec.structs.replace(door, listed=listed)


# A route of a blackboard, whose options may differ between its versions.
_ROUTED: Final = catalogue.BLACKBOARD
_ELSEWHERE: Final = "dev"


def _route_by_client(client: AsyncEngines) -> Door:
    scope = RouteScope(env=_ELSEWHERE)

    def put(value: int, **how: Any) -> Awaitable[Any]:
        options = {"versions_kept": value}
        return client.routes.put(_ROUTED, ASIDE, scope=scope, options=options, **how)

    async def get() -> Any:
        return _own(await client.bound(env=_ELSEWHERE).routes.resolve(_ROUTED))

    async def listed() -> list[Any]:
        return [_kept(route) async for route in client.routes.each()]

    async def versions() -> list[Any]:
        history = client.routes.history(_ROUTED, scope=scope)
        return [None if route.deleted else _kept(route) async for route in history]

    door = one(put, get, _kept)
    delete = partial(client.routes.delete, _ROUTED, scope=scope)
    return msgspec.structs.replace(door, listed=listed, versions=versions, delete=delete)


def _route_in_process(opened: engines.Engines, who: RequestContext) -> Door:
    scope = Scope(env=_ELSEWHERE)

    def put(value: int, **how: Any) -> Awaitable[Any]:
        options = {"versions_kept": value}
        return opened.routes.put(who, _ROUTED, ASIDE, scope=scope, options=options, **asked(how))

    async def get() -> Any:
        there = msgspec.structs.replace(who, env=_ELSEWHERE)
        return _own(await opened.routes.resolve(there, _ROUTED))

    async def listed() -> list[Any]:
        return [_kept(route.record) for route in (await opened.routes.list(who)).items]

    async def versions() -> list[Any]:
        history = (await opened.routes.history(who, _ROUTED, scope)).items
        return [None if route.deleted else _kept(route.record) for route in history]

    async def delete(**how: Any) -> None:
        await opened.routes.delete(who, _ROUTED, scope, **asked(how))

    door = one(put, get, _kept)
    return msgspec.structs.replace(door, listed=listed, versions=versions, delete=delete)


def _own(found: Any) -> Any:
    """What answers, where that is the tenant's own."""
    if found.route.tenant_id == SYSTEM_TENANT:
        raise NotFound("no route of the tenant's own")
    return found


def _kept(route: Any) -> int:
    return int(getattr(route, "route", route).options["versions_kept"])


def _role_of(member: Any) -> Any:
    return member.role


RECORDS: Final = (
    Record(
        name="tables",
        kind=catalogue.TABLES,
        client=lambda client: by_client(client.tables, "t", "pk", "sk", shows=value_of),
        process=lambda opened, who: in_process(
            opened.tables,
            who,
            *("t", "pk", "sk"),
            body=lambda value: TableRowInput(value=value),
            shows=value_of,
        ),
    ),
    Record(
        name="memory",
        kind=catalogue.SESSION_MEMORY,
        client=lambda client: by_client(client.memory, "s", "k", shows=value_of),
        process=lambda opened, who: in_process(
            opened.memory, who, "s", "k", body=lambda value: MemoryInput(value=value), shows=value_of
        ),
    ),
    Record(
        name="blackboard",
        kind=catalogue.BLACKBOARD,
        client=lambda client: by_client(
            client.blackboard, "r", "k", shows=value_of, has_versions=True, deletes=False
        ),
        process=lambda opened, who: in_process(
            opened.blackboard,
            who,
            *("r", "k"),
            body=lambda value: BlackboardInput(value=value),
            shows=value_of,
            has_versions=True,
            deletes=False,
        ),
    ),
    Record(
        name="notes",
        kind=catalogue.NOTES,
        client=lambda client: _NoteDoor().by_client(client),
        process=lambda opened, who: _NoteDoor().in_process(opened, who),
        is_named_by_server=True,
    ),
    Record(
        name="sessions",
        kind=catalogue.SESSIONS,
        client=lambda client: _SessionDoor().by_client(client),
        process=lambda opened, who: _SessionDoor().in_process(opened, who),
        is_named_by_server=True,
    ),
    Record(
        name="agent memory",
        kind=catalogue.AGENT_MEMORY,
        client=lambda client: by_client(client.agent_memory, "episodes", "k", shows=value_of),
        process=lambda opened, who: in_process(
            opened.agent.memory,
            who,
            *("episodes", "k"),
            body=lambda value: AgentMemoryInput(value=value),
            shows=value_of,
        ),
    ),
    *map(_definition, SCHEMAS),
    Record(
        name="realtime",
        kind=catalogue.REALTIME,
        first="host",
        second="writer",
        client=lambda client: by_client(client.realtime, "thread", "t", "owner", shows=_role_of),
        process=lambda opened, who: in_process(
            opened.realtime,
            who,
            *("thread", "t", "owner"),
            body=lambda value: RoomMemberInput(role=value),
            shows=_role_of,
        ),
        told=lambda payload: payload.get("record") == "room",
    ),
    Record(
        name="rate limits",
        kind=catalogue.RATE_LIMITS,
        client=_limits_by_client,
        process=_limits_in_process,
        told=_of_table("rate_limits"),
    ),
    Record(
        name="budget policy",
        kind=catalogue.BUDGET,
        client=_budget_by_client,
        process=_budget_in_process,
        told=lambda payload: payload.get("kind") == "policy",
    ),
    Record(
        name="kill switch",
        kind=catalogue.CONTROL_PLANE,
        client=_switch_by_client,
        process=_switch_in_process,
        told=_of_table("kill_switches"),
    ),
    Record(
        name="gates",
        kind=catalogue.CONTROL_PLANE,
        client=_gates_by_client,
        process=_gates_in_process,
        told=_of_table("gate_configs"),
    ),
    Record(
        name="projects",
        kind=catalogue.CONTROL_PLANE,
        client=_project_by_client,
        process=_project_in_process,
        told=_of_table("projects"),
    ),
    Record(
        name="routes",
        kind=catalogue.ROUTING_REGISTRY,
        client=_route_by_client,
        process=_route_in_process,
        told=_of_table("routes"),
    ),
)
