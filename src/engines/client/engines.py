"""The client: one server, one credential, one context, and a group of methods for each store.

Owns construction, context headers and closing. Leaves every call to its group.

    async with AsyncEngines("http://127.0.0.1:8080", token) as client:
        await client.notes.create(NewNote(title="First", content="It will be here after a restart."))
        async for event in client.events.follow():
            print(event.position, event.event_type)
"""

from __future__ import annotations

from types import TracebackType
from typing import Final

from engines.client.agent import AgentMemory, Checkpoints, Messages, Sessions, Telemetry, Traces
from engines.client.analytics import Analytics
from engines.client.budget import Budget
from engines.client.calls import Calls
from engines.client.control import Collection, Issuers, Keys, Members, Modes, RateLimits, Tenants, Users
from engines.client.control_results import App, Me, Os, Project, Surface
from engines.client.decisions import Approvals, Kpis, StrategyLocks, Temperature
from engines.client.definitions import Definitions
from engines.client.gates import Gates
from engines.client.logs import Events, Streams
from engines.client.ofrep import Ofrep
from engines.client.retry import Retries, RetryPolicy
from engines.client.routing import Backends, Diagnostics, Moves, Routes
from engines.client.stores import Blackboard, Memory, Notes, Realtime, Tables
from engines.client.transport import CONNECTIONS_MAX, TIMEOUT_S, Transport
from engines.clock import Clock, SystemClock
from engines.ids import Ids

CONTEXT_HEADERS: Final = {
    "tenant_id": "X-Tenant-Id",
    "mode": "X-Mode",
    "env": "X-Env",
    "surface_id": "X-Surface-Id",
    "app_id": "X-App-Id",
    "project_id": "X-Project-Id",
    "run_id": "X-Run-Id",
    "step_id": "X-Step-Id",
    "thread_id": "X-Thread-Id",
    "session_id": "X-Session-Id",
    "request_id": "X-Request-Id",
    "traceparent": "traceparent",
}


class AsyncEngines:
    """A client of one server. Any number of concurrent calls on one event loop; close it when done.

    `token` is a JWT or an API key. The context arguments are sent with every call and validated by the
    server, which refuses those that disagree with the credential (ContextMismatch). `timeout_s` bounds one
    attempt, the policy's `deadline_s` a call with its repeats.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        tenant_id: str | None = None,
        mode: str | None = None,
        env: str | None = None,
        surface_id: str | None = None,
        app_id: str | None = None,
        project_id: str | None = None,
        run_id: str | None = None,
        step_id: str | None = None,
        thread_id: str | None = None,
        session_id: str | None = None,
        retry: RetryPolicy | None = None,
        timeout_s: float = TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
        mint_keys: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """Nothing is sent yet. Raises Invalid for a URL that is none."""
        clock = clock or SystemClock()
        transport = Transport(
            url,
            token,
            retries=Retries(retry or RetryPolicy(), clock=clock),
            connections_max=connections_max,
            timeout_s=timeout_s,
        )
        context = _headers(
            tenant_id=tenant_id,
            mode=mode,
            env=env,
            surface_id=surface_id,
            app_id=app_id,
            project_id=project_id,
            run_id=run_id,
            step_id=step_id,
            thread_id=thread_id,
            session_id=session_id,
        )
        self._groups(Calls(transport, context, ids=Ids(clock), mint_keys=mint_keys))

    def _groups(self, calls: Calls) -> None:
        self._calls = calls
        self.events = Events(calls)
        self.streams = Streams(calls)
        self.tables = Tables(calls)
        self.memory = Memory(calls)
        self.blackboard = Blackboard(calls)
        self.notes = Notes(calls)
        self.ofrep = Ofrep(calls)
        self.analytics = Analytics(calls)
        self.budget = Budget(calls)
        self.flows = Definitions(calls, "flows")
        self.graphs = Definitions(calls, "graphs")
        self.overlays = Definitions(calls, "overlays")
        self.seo = Definitions(calls, "seo")
        self.pages = Definitions(calls, "pages")
        self.attribution = Definitions(calls, "attribution")
        self.flags = Definitions(calls, "flags")
        self.strategy_locks = StrategyLocks(calls)
        self.kpis = Kpis(calls)
        self.temperature = Temperature(calls)
        self.approvals = Approvals(calls)
        self.realtime = Realtime(calls)
        self.sessions = Sessions(calls)
        self.messages = Messages(calls)
        self.checkpoints = Checkpoints(calls)
        self.traces = Traces(calls)
        self.agent_memory = AgentMemory(calls)
        self.telemetry = Telemetry(calls)
        self.firearms = Definitions(calls, "firearms")
        self.firearm_licences = Definitions(calls, "firearms", "licences")
        self.firearm_grants = Definitions(calls, "firearms", "grants")
        self.firearm_bindings = Definitions(calls, "firearms", "bindings")
        self.gates = Gates(calls)
        self._control_groups(calls)

    def _control_groups(self, calls: Calls) -> None:
        self.tenants = Tenants(calls)
        self.users = Users(calls)
        self.members = Members(calls)
        self.keys = Keys(calls)
        self.modes = Modes(calls)
        self.issuers = Issuers(calls)
        self.rate_limits = RateLimits(calls)
        self.oses: Collection[Os] = Collection(calls, "oses", Os)
        self.surfaces: Collection[Surface] = Collection(calls, "surfaces", Surface)
        self.apps: Collection[App] = Collection(calls, "apps", App)
        self.projects: Collection[Project] = Collection(calls, "projects", Project)
        self.backends = Backends(calls)
        self.routes = Routes(calls)
        self.moves = Moves(calls)
        self.diagnostics = Diagnostics(calls)

    @property
    def url(self) -> str:
        """The server's address."""
        return self._calls.transport.url

    async def me(self) -> Me:
        """The context that the server derives of this client's calls. Raises Unauthenticated."""
        return await self._calls.get(Me, "me")

    def bound(
        self,
        *,
        tenant_id: str | None = None,
        mode: str | None = None,
        env: str | None = None,
        surface_id: str | None = None,
        app_id: str | None = None,
        project_id: str | None = None,
        run_id: str | None = None,
        step_id: str | None = None,
        thread_id: str | None = None,
        session_id: str | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
    ) -> AsyncEngines:
        """A client of the same server and connections in a narrower context; closing either closes both."""
        context = _headers(
            tenant_id=tenant_id,
            mode=mode,
            env=env,
            surface_id=surface_id,
            app_id=app_id,
            project_id=project_id,
            run_id=run_id,
            step_id=step_id,
            thread_id=thread_id,
            session_id=session_id,
            request_id=request_id,
            traceparent=traceparent,
        )
        narrower = object.__new__(AsyncEngines)
        narrower._groups(self._calls.bound(context))
        return narrower

    async def close(self) -> None:
        """Close every connection."""
        await self._calls.transport.close()

    async def __aenter__(self) -> AsyncEngines:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _headers(**context: str | None) -> dict[str, str]:
    return {CONTEXT_HEADERS[name]: value for name, value in context.items() if value is not None}
