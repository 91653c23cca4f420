"""Every record that is served, and how to get at it: by the client over HTTP, and in process.

Owns two tables. `RECORDS` are written by one who expects something to be there, and each of their rows has
two doors; `LOGS` are appended to. A kind that begins to be served needs a row in one of them. Leaves what
must hold of all of them to the tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

import engines
from engines import catalogue
from engines.client import (
    AsyncEngines,
    BudgetLimit,
    NewAnalyticsEvent,
    NewBudgetPolicy,
    NewEvent,
    NewNote,
    NewUsage,
    RateLimit,
    RouteScope,
    Switch,
)
from engines.client import GateRule as ClientRule
from engines.control import records as control
from engines.core.idempotency import Request, identify
from engines.core.records import Condition
from engines.errors import NotFound
from engines.safety.asks import EvaluationInput
from engines.scope import SYSTEM_TENANT, RequestContext
from engines.scope import RouteScope as Scope
from engines.stores import analytics, budget_policy, budget_records, event_records, kpi_records, rate_limits
from engines.stores.blackboard import BlackboardInput
from engines.stores.definition_records import DefinitionInput
from engines.stores.definition_schemas import SCHEMAS, Schema
from engines.stores.events import EventFilter
from engines.stores.memory import MemoryInput
from engines.stores.notes import NoteInput
from engines.stores.tables import TableRowInput
from tests.stores.definition_samples import SAMPLES

Payload = Mapping[str, Any]
# A backend that is offered to everybody, and that nothing but the row of routes is led to.
ASIDE: Final = "aside"


class Seen(NamedTuple):
    """What a record says, and its ETag as the server gave it."""

    value: Any
    etag: str


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """One record through one door. `put` and `delete` take what the client's own methods take."""

    put: Callable[..., Awaitable[Seen]]
    get: Callable[[], Awaitable[Seen]]
    listed: Callable[[], Awaitable[list[Any]]] | None = None
    versions: Callable[[], Awaitable[list[Any]]] | None = None
    delete: Callable[..., Awaitable[Any]] | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A record, two things that it may say, and which of the spine's payloads are about it, if any are."""

    name: str
    kind: str
    client: Callable[[AsyncEngines], Door]
    process: Callable[[engines.Engines, RequestContext], Door]
    first: Any = 1
    second: Any = 2
    told: Callable[[Payload], bool] | None = None
    # A record that the server names is made again and again.
    is_named_by_server: bool = False


class LogDoor(msgspec.Struct, frozen=True, kw_only=True):
    """One log through one door. `append` takes a number and a key; `listed` gives the numbers, in order."""

    append: Callable[[int, str], Awaitable[Any]]
    listed: Callable[[], Awaitable[list[int]]]


class Log(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    kind: str
    client: Callable[[AsyncEngines], LogDoor]
    process: Callable[[engines.Engines, RequestContext], LogDoor]
    # What has to be there before anything is appended.
    prepare: Callable[[AsyncEngines], Awaitable[Any]] | None = None


# --- how the doors differ ---


def asked(how: Mapping[str, Any]) -> dict[str, Any]:
    """What a store is told, where the client is told `if_match`, `if_absent` and `idempotency_key`."""
    told: dict[str, Any] = {}
    if how.get("if_absent"):
        told["condition"] = Condition(absent=True)
    if how.get("if_match"):
        told["condition"] = Condition(versions=(how["if_match"].strip('"'),))
    if how.get("idempotency_key"):
        told["request"] = under(how["idempotency_key"])
    return told


def under(key: str) -> Request:
    return identify("test", key, body=b"")


def by_client(
    group: Any, *key: str, shows: Callable[[Any], Any], has_versions: bool = False, deletes: bool = True
) -> Door:
    """A group of the client whose methods take the record's key; a list takes all of it but the end."""

    async def put(value: Any, **how: Any) -> Seen:
        record = await group.put(*key, value, **how)
        return Seen(shows(record), record.etag)

    async def get() -> Seen:
        record = await group.get(*key)
        return Seen(shows(record), record.etag)

    async def listed() -> list[Any]:
        return [shows(record) async for record in group.each(*key[:-1])]

    async def versions() -> list[Any]:
        return [shows(record) async for record in group.versions(*key)]

    return Door(
        put=put,
        get=get,
        listed=listed,
        versions=versions if has_versions else None,
        delete=partial(group.delete, *key) if deletes else None,
    )


def in_process(
    store: Any,
    who: RequestContext,
    *key: Any,
    body: Callable[[Any], Any],
    shows: Callable[[Any], Any],
    has_versions: bool = False,
    deletes: bool = True,
) -> Door:
    """A store whose methods take the context and the record's key."""
    write = store.set if hasattr(store, "set") else store.put

    async def put(value: Any, **how: Any) -> Seen:
        change = await write(who, *key, body(value), **asked(how))
        return Seen(shows(change.record), change.etag)

    async def get() -> Seen:
        record = await store.get(who, *key)
        return Seen(shows(record), record.etag)

    async def listed() -> list[Any]:
        return [shows(record) for record in (await store.list(who, *key[:-1])).items]

    async def versions() -> list[Any]:
        return [shows(record) for record in (await store.versions(who, *key)).items]

    async def delete(**how: Any) -> None:
        await store.delete(who, *key, **asked(how))

    return Door(
        put=put,
        get=get,
        listed=listed,
        versions=versions if has_versions else None,
        delete=delete if deletes else None,
    )


def one(
    put: Callable[..., Awaitable[Any]], get: Callable[[], Awaitable[Any]], shows: Callable[[Any], Any]
) -> Door:
    """What there is one of: a policy, a switch. `put` takes what the client's does."""

    async def seen(record: Any) -> Seen:
        return Seen(shows(getattr(record, "record", record)), record.etag)

    async def write(value: Any, **how: Any) -> Seen:
        return await seen(await put(value, **how))

    async def read() -> Seen:
        return await seen(await get())

    return Door(put=write, get=read)


def value_of(record: Any) -> Any:
    return record.value


def blob_of(record: Any) -> Any:
    return record.json_blob


# --- records ---


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
        rule = ClientRule(action=f"never-{value}", gates=("kill_switch",))
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
    *map(_definition, SCHEMAS),
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


# --- logs ---


def _numbers(events: Sequence[Any]) -> list[int]:
    return [event.payload["n"] for event in events if "n" in event.payload]


def _spine_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = NewEvent(event_type="message", payload={"n": number})
        return await client.events.append([event], idempotency_key=key)

    async def listed() -> list[int]:
        return _numbers([event async for event in client.events.each(event_type="message")])

    return LogDoor(append=append, listed=listed)


def _spine_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = event_records.NewEvent(event_type="message", payload={"n": number})
        return (await opened.spine.append(who, [event], request=under(key))).events

    async def listed() -> list[int]:
        return _numbers((await opened.spine.list(who, EventFilter(event_type="message"))).items)

    return LogDoor(append=append, listed=listed)


def _stream_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = NewEvent(event_type="message", payload={"n": number})
        return await client.streams.append("s", [event], idempotency_key=key)

    async def listed() -> list[int]:
        return _numbers([event async for event in client.streams.each("s")])

    return LogDoor(append=append, listed=listed)


def _stream_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = event_records.NewEvent(event_type="message", payload={"n": number})
        return (await opened.streams.append(who, "s", [event], request=under(key))).events

    async def listed() -> list[int]:
        return _numbers((await opened.streams.list(who, "s")).items)

    return LogDoor(append=append, listed=listed)


def _measured_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        return await client.kpis.measure("measured", number, idempotency_key=key)

    async def listed() -> list[int]:
        return [int(one.value or 0) async for one in client.kpis.each_measurement("measured")]

    return LogDoor(append=append, listed=listed)


def _measured_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        said = kpi_records.MeasurementInput(value=float(number))
        return (await opened.kpis.measure(who, "measured", said, request=under(key))).record

    async def listed() -> list[int]:
        return [int(one.value or 0) for one in (await opened.kpis.measurements(who, "measured")).items]

    return LogDoor(append=append, listed=listed)


def _usage_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        usage = NewUsage(units=number, cost=Decimal("0.1"), currency="USD")
        return await client.budget.record(usage, idempotency_key=key)

    async def listed() -> list[int]:
        return [entry.units async for entry in client.budget.each()]

    return LogDoor(append=append, listed=listed)


def _usage_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        usage = budget_records.UsageInput(units=number, cost="0.1", currency="USD")
        return (await opened.budget.record(who, usage, request=under(key))).record

    async def listed() -> list[int]:
        return [entry.units for entry in (await opened.budget.usage(who)).items]

    return LogDoor(append=append, listed=listed)


def _analytics_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = NewAnalyticsEvent(event_type="page_view", payload={"n": number})
        ingested = await client.analytics.ingest([event], idempotency_key=key)
        assert ingested.accepted == 1
        return ingested

    async def listed() -> list[int]:
        return _numbers([event async for event in client.analytics.each(event_type="page_view")])

    return LogDoor(append=append, listed=listed)


def _analytics_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        event = analytics.NewAnalyticsEvent(event_type="page_view", payload={"n": number})
        ingested = await opened.analytics.ingest(who, [event], request=under(key))
        assert ingested.accepted == 1
        return ingested.events

    async def listed() -> list[int]:
        where = analytics.AnalyticsFilter(event_type="page_view")
        return _numbers((await opened.analytics.list(who, where)).items)

    return LogDoor(append=append, listed=listed)


def _decided_by_client(client: AsyncEngines) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        return await client.gates.evaluate(f"act-{number}", idempotency_key=key)

    async def listed() -> list[int]:
        return _actions([event async for event in client.events.each(event_type="safety")])

    return LogDoor(append=append, listed=listed)


def _decided_in_process(opened: engines.Engines, who: RequestContext) -> LogDoor:
    async def append(number: int, key: str) -> Any:
        asked_for = EvaluationInput(action=f"act-{number}")
        return (await opened.gates.evaluate(who, asked_for, request=under(key))).answer

    async def listed() -> list[int]:
        return _actions((await opened.spine.list(who, EventFilter(event_type="safety"))).items)

    return LogDoor(append=append, listed=listed)


def _actions(events: Sequence[Any]) -> list[int]:
    return [int(event.payload["action"].removeprefix("act-")) for event in events]


LOGS: Final = (
    Log(name="spine", kind=catalogue.EVENT_SPINE, client=_spine_by_client, process=_spine_in_process),
    Log(name="stream", kind=catalogue.EVENT_STREAM, client=_stream_by_client, process=_stream_in_process),
    Log(
        name="measurements",
        kind=catalogue.KPIS,
        client=_measured_by_client,
        process=_measured_in_process,
        prepare=lambda client: client.kpis.create({"aggregation": "sum"}, definition_id="measured"),
    ),
    Log(name="usage", kind=catalogue.BUDGET, client=_usage_by_client, process=_usage_in_process),
    Log(
        name="analytics",
        kind=catalogue.ANALYTICS,
        client=_analytics_by_client,
        process=_analytics_in_process,
    ),
    Log(name="decisions", kind=catalogue.EVENT_SPINE, client=_decided_by_client, process=_decided_in_process),
)
