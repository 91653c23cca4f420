"""The client for programs without an event loop: the same methods, each of which waits for its answer.

Signatures and behaviour are those of `AsyncEngines`: each line below names one of its methods and takes its
types, and a test holds that none is missing. Leaves waiting to `client/loop.py`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic, TypeVar

from engines.client import (
    agent,
    analytics,
    budget,
    control,
    decisions,
    definitions,
    gates,
    logs,
    ofrep,
    routing,
    stores,
)
from engines.client.control_results import App, Me, Os, Project, Surface
from engines.client.engines import AsyncEngines
from engines.client.loop import Group, Loop, blocking, iterating

T = TypeVar("T")


class Events(Group[logs.Events]):
    """`AsyncEngines.events`, blocking."""

    append = blocking(logs.Events.append)
    get = blocking(logs.Events.get)
    page = blocking(logs.Events.page)
    export_page = blocking(logs.Events.export_page)
    each = iterating(logs.Events.each)
    follow = iterating(logs.Events.follow)
    last = blocking(logs.Events.last)
    verify = blocking(logs.Events.verify)
    index = blocking(logs.Events.index)
    rebuild_index = blocking(logs.Events.rebuild_index)


class Streams(Group[logs.Streams]):
    """`AsyncEngines.streams`, blocking."""

    append = blocking(logs.Streams.append)
    page = blocking(logs.Streams.page)
    each = iterating(logs.Streams.each)
    follow = iterating(logs.Streams.follow)


class Tables(Group[stores.Tables]):
    """`AsyncEngines.tables`, blocking."""

    put = blocking(stores.Tables.put)
    get = blocking(stores.Tables.get)
    delete = blocking(stores.Tables.delete)
    page = blocking(stores.Tables.page)
    each = iterating(stores.Tables.each)


class Memory(Group[stores.Memory]):
    """`AsyncEngines.memory`, blocking."""

    put = blocking(stores.Memory.put)
    get = blocking(stores.Memory.get)
    delete = blocking(stores.Memory.delete)
    page = blocking(stores.Memory.page)
    each = iterating(stores.Memory.each)


class Blackboard(Group[stores.Blackboard]):
    """`AsyncEngines.blackboard`, blocking."""

    put = blocking(stores.Blackboard.put)
    get = blocking(stores.Blackboard.get)
    page = blocking(stores.Blackboard.page)
    each = iterating(stores.Blackboard.each)
    versions = iterating(stores.Blackboard.versions)


class Realtime(Group[stores.Realtime]):
    """`AsyncEngines.realtime`, blocking."""

    put = blocking(stores.Realtime.put)
    get = blocking(stores.Realtime.get)
    delete = blocking(stores.Realtime.delete)
    page = blocking(stores.Realtime.page)
    each = iterating(stores.Realtime.each)


class Sessions(Group[agent.Sessions]):
    """`AsyncEngines.sessions`, blocking."""

    create = blocking(agent.Sessions.create)
    get = blocking(agent.Sessions.get)
    patch = blocking(agent.Sessions.patch)
    delete = blocking(agent.Sessions.delete)
    page = blocking(agent.Sessions.page)
    each = iterating(agent.Sessions.each)


class Messages(Group[agent.Messages]):
    """`AsyncEngines.messages`, blocking."""

    append = blocking(agent.Messages.append)
    page = blocking(agent.Messages.page)
    each = iterating(agent.Messages.each)


class Checkpoints(Group[agent.Checkpoints]):
    """`AsyncEngines.checkpoints`, blocking."""

    save = blocking(agent.Checkpoints.save)
    get = blocking(agent.Checkpoints.get)
    page = blocking(agent.Checkpoints.page)
    each = iterating(agent.Checkpoints.each)
    fork = blocking(agent.Checkpoints.fork)


class Traces(Group[agent.Traces]):
    """`AsyncEngines.traces`, blocking."""

    record = blocking(agent.Traces.record)
    get = blocking(agent.Traces.get)
    page = blocking(agent.Traces.page)
    each = iterating(agent.Traces.each)


class AgentMemory(Group[agent.AgentMemory]):
    """`AsyncEngines.agent_memory`, blocking."""

    put = blocking(agent.AgentMemory.put)
    get = blocking(agent.AgentMemory.get)
    delete = blocking(agent.AgentMemory.delete)
    page = blocking(agent.AgentMemory.page)
    each = iterating(agent.AgentMemory.each)


class Telemetry(Group[agent.Telemetry]):
    """`AsyncEngines.telemetry`, blocking."""

    count = blocking(agent.Telemetry.count)
    report = blocking(agent.Telemetry.report)


class Notes(Group[stores.Notes]):
    """`AsyncEngines.notes`, blocking."""

    create = blocking(stores.Notes.create)
    get = blocking(stores.Notes.get)
    replace = blocking(stores.Notes.replace)
    delete = blocking(stores.Notes.delete)
    page = blocking(stores.Notes.page)
    each = iterating(stores.Notes.each)


class Ofrep(Group[ofrep.Ofrep]):
    """`AsyncEngines.ofrep`, blocking."""

    evaluate = blocking(ofrep.Ofrep.evaluate)
    evaluate_all = blocking(ofrep.Ofrep.evaluate_all)


class Analytics(Group[analytics.Analytics]):
    """`AsyncEngines.analytics`, blocking."""

    ingest = blocking(analytics.Analytics.ingest)
    page = blocking(analytics.Analytics.page)
    each = iterating(analytics.Analytics.each)
    index = blocking(analytics.Analytics.index)
    rebuild_index = blocking(analytics.Analytics.rebuild_index)
    tag_link = blocking(analytics.Analytics.tag_link)


class Budget(Group[budget.Budget]):
    """`AsyncEngines.budget`, blocking."""

    record = blocking(budget.Budget.record)
    page = blocking(budget.Budget.page)
    each = iterating(budget.Budget.each)
    policy = blocking(budget.Budget.policy)
    put_policy = blocking(budget.Budget.put_policy)
    summary = blocking(budget.Budget.summary)
    reserve = blocking(budget.Budget.reserve)
    reservation = blocking(budget.Budget.reservation)
    reservations = blocking(budget.Budget.reservations)
    each_reservation = iterating(budget.Budget.each_reservation)
    settle = blocking(budget.Budget.settle)
    release = blocking(budget.Budget.release)


class Definitions(Group[definitions.Definitions]):
    """`AsyncEngines.flows` and the like, blocking."""

    create = blocking(definitions.Definitions.create)
    get = blocking(definitions.Definitions.get)
    put = blocking(definitions.Definitions.put)
    delete = blocking(definitions.Definitions.delete)
    page = blocking(definitions.Definitions.page)
    each = iterating(definitions.Definitions.each)
    versions = iterating(definitions.Definitions.versions)
    diff = blocking(definitions.Definitions.diff)
    restore = blocking(definitions.Definitions.restore)
    copy = blocking(definitions.Definitions.copy)


class Gates(Group[gates.Gates]):
    """`AsyncEngines.gates`, blocking."""

    evaluate = blocking(gates.Gates.evaluate)
    kill_switch = blocking(gates.Gates.kill_switch)
    put_kill_switch = blocking(gates.Gates.put_kill_switch)
    config = blocking(gates.Gates.config)
    put_config = blocking(gates.Gates.put_config)


class StrategyLocks(Definitions):
    """`AsyncEngines.strategy_locks`, blocking."""

    approve = blocking(decisions.StrategyLocks.approve)
    reject = blocking(decisions.StrategyLocks.reject)


class Kpis(Definitions):
    """`AsyncEngines.kpis`, blocking."""

    measure = blocking(decisions.Kpis.measure)
    measurements = blocking(decisions.Kpis.measurements)
    each_measurement = iterating(decisions.Kpis.each_measurement)
    reading = blocking(decisions.Kpis.reading)


class Temperature(Definitions):
    """`AsyncEngines.temperature`, blocking."""

    reading = blocking(decisions.Temperature.reading)


class Approvals(Group[decisions.Approvals]):
    """`AsyncEngines.approvals`, blocking."""

    request = blocking(decisions.Approvals.request)
    get = blocking(decisions.Approvals.get)
    page = blocking(decisions.Approvals.page)
    each = iterating(decisions.Approvals.each)
    answer = blocking(decisions.Approvals.answer)


class Tenants(Group[control.Tenants]):
    """`AsyncEngines.tenants`, blocking."""

    create = blocking(control.Tenants.create)
    get = blocking(control.Tenants.get)
    page = blocking(control.Tenants.page)
    each = iterating(control.Tenants.each)
    patch = blocking(control.Tenants.patch)


class Users(Group[control.Users]):
    """`AsyncEngines.users`, blocking."""

    create = blocking(control.Users.create)
    page = blocking(control.Users.page)
    each = iterating(control.Users.each)
    erase = blocking(control.Users.erase)
    erasure = blocking(control.Users.erasure)
    hold = blocking(control.Users.hold)
    lift_hold = blocking(control.Users.lift_hold)


class Members(Group[control.Members]):
    """`AsyncEngines.members`, blocking."""

    put = blocking(control.Members.put)
    get = blocking(control.Members.get)
    accept = blocking(control.Members.accept)
    delete = blocking(control.Members.delete)


class Keys(Group[control.Keys]):
    """`AsyncEngines.keys`, blocking."""

    create = blocking(control.Keys.create)
    page = blocking(control.Keys.page)
    each = iterating(control.Keys.each)
    delete = blocking(control.Keys.delete)


class Modes(Group[control.Modes]):
    """`AsyncEngines.modes`, blocking."""

    get = blocking(control.Modes.get)
    put = blocking(control.Modes.put)


class Issuers(Group[control.Issuers]):
    """`AsyncEngines.issuers`, blocking."""

    get = blocking(control.Issuers.get)
    put = blocking(control.Issuers.put)
    delete = blocking(control.Issuers.delete)


class RateLimits(Group[control.RateLimits]):
    """`AsyncEngines.rate_limits`, blocking."""

    get = blocking(control.RateLimits.get)
    put = blocking(control.RateLimits.put)


class Collection(Group[control.Collection[T]], Generic[T]):
    """`AsyncEngines.projects` and the like, blocking."""

    create = blocking(control.Collection.create)
    get = blocking(control.Collection.get)
    page = blocking(control.Collection.page)
    each = iterating(control.Collection.each)
    patch = blocking(control.Collection.patch)


class Backends(Group[routing.Backends]):
    """`AsyncEngines.backends`, blocking."""

    put = blocking(routing.Backends.put)
    get = blocking(routing.Backends.get)
    page = blocking(routing.Backends.page)
    each = iterating(routing.Backends.each)
    delete = blocking(routing.Backends.delete)
    probe = blocking(routing.Backends.probe)


class Routes(Group[routing.Routes]):
    """`AsyncEngines.routes`, blocking."""

    page = blocking(routing.Routes.page)
    each = iterating(routing.Routes.each)
    put = blocking(routing.Routes.put)
    delete = blocking(routing.Routes.delete)
    resolve = blocking(routing.Routes.resolve)
    history = iterating(routing.Routes.history)


class Moves(Group[routing.Moves]):
    """`AsyncEngines.moves`, blocking."""

    start = blocking(routing.Moves.start)
    plan = blocking(routing.Moves.plan)
    get = blocking(routing.Moves.get)
    each = iterating(routing.Moves.each)
    cancel = blocking(routing.Moves.cancel)
    retire = blocking(routing.Moves.retire)


class Diagnostics(Group[routing.Diagnostics]):
    """`AsyncEngines.diagnostics`, blocking."""

    live = blocking(routing.Diagnostics.live)
    ready = blocking(routing.Diagnostics.ready)
    routes = blocking(routing.Diagnostics.routes)
    bootstrap = blocking(routing.Diagnostics.bootstrap)


class Engines:
    """`AsyncEngines` for a program without an event loop; safe to use from several threads.

    with Engines("http://127.0.0.1:8080", token) as client:
        note = client.notes.create(NewNote(title="First", content="It will be here after a restart."))
    """

    def __init__(self, url: str, token: str | None = None, **options: Any) -> None:
        """`options` are those of `AsyncEngines`. Raises Invalid for a URL that is none."""
        client = AsyncEngines(url, token, **options)
        self._groups(client, Loop())

    def _groups(self, client: AsyncEngines, loop: Loop) -> None:
        self._client = client
        self._loop = loop
        self.events = Events(client.events, loop)
        self.streams = Streams(client.streams, loop)
        self.tables = Tables(client.tables, loop)
        self.memory = Memory(client.memory, loop)
        self.blackboard = Blackboard(client.blackboard, loop)
        self.notes = Notes(client.notes, loop)
        self.ofrep = Ofrep(client.ofrep, loop)
        self.analytics = Analytics(client.analytics, loop)
        self.budget = Budget(client.budget, loop)
        self.flows = Definitions(client.flows, loop)
        self.graphs = Definitions(client.graphs, loop)
        self.overlays = Definitions(client.overlays, loop)
        self.seo = Definitions(client.seo, loop)
        self.pages = Definitions(client.pages, loop)
        self.attribution = Definitions(client.attribution, loop)
        self.flags = Definitions(client.flags, loop)
        self.strategy_locks = StrategyLocks(client.strategy_locks, loop)
        self.kpis = Kpis(client.kpis, loop)
        self.temperature = Temperature(client.temperature, loop)
        self.approvals = Approvals(client.approvals, loop)
        self.realtime = Realtime(client.realtime, loop)
        self.sessions = Sessions(client.sessions, loop)
        self.messages = Messages(client.messages, loop)
        self.checkpoints = Checkpoints(client.checkpoints, loop)
        self.traces = Traces(client.traces, loop)
        self.agent_memory = AgentMemory(client.agent_memory, loop)
        self.telemetry = Telemetry(client.telemetry, loop)
        self.firearms = Definitions(client.firearms, loop)
        self.firearm_licences = Definitions(client.firearm_licences, loop)
        self.firearm_grants = Definitions(client.firearm_grants, loop)
        self.firearm_bindings = Definitions(client.firearm_bindings, loop)
        self.gates = Gates(client.gates, loop)
        self._control_groups(client, loop)

    def _control_groups(self, client: AsyncEngines, loop: Loop) -> None:
        self.tenants = Tenants(client.tenants, loop)
        self.users = Users(client.users, loop)
        self.members = Members(client.members, loop)
        self.keys = Keys(client.keys, loop)
        self.modes = Modes(client.modes, loop)
        self.issuers = Issuers(client.issuers, loop)
        self.rate_limits = RateLimits(client.rate_limits, loop)
        self.oses: Collection[Os] = Collection(client.oses, loop)
        self.surfaces: Collection[Surface] = Collection(client.surfaces, loop)
        self.apps: Collection[App] = Collection(client.apps, loop)
        self.projects: Collection[Project] = Collection(client.projects, loop)
        self.backends = Backends(client.backends, loop)
        self.routes = Routes(client.routes, loop)
        self.moves = Moves(client.moves, loop)
        self.diagnostics = Diagnostics(client.diagnostics, loop)

    @property
    def url(self) -> str:
        """The server's address."""
        return self._client.url

    def me(self) -> Me:
        """The context that the server derives of this client's calls. Raises Unauthenticated."""
        return self._loop.run(self._client.me())

    def bound(self, **context: str | None) -> Engines:
        """A client of the same server and connections in a narrower context; closing either closes both."""
        narrower = object.__new__(Engines)
        narrower._groups(self._client.bound(**context), self._loop)
        return narrower

    def close(self) -> None:
        """Close every connection and end the thread. Calls under way in other threads are cancelled."""
        if not self._loop.closed:
            self._loop.run(self._client.close())
            self._loop.close()

    def __enter__(self) -> Engines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
