"""The composition root: the only module that sees every floor.

Owns putting the parts together for one process, the tasks that run beside requests (following the control
plane, taking part in moves, relaying outboxes, projecting spines, adopting rotated secrets, reclaiming what
expired) and ending them in order. Leaves every decision to the parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Final

import msgspec
import structlog

from engines.agent.stores import AgentStores, agent_stores
from engines.catalogue import SERVED
from engines.clock import Clock, SystemClock
from engines.control.access import Issuers, Keys
from engines.control.audit import Audit
from engines.control.directory import Directory
from engines.control.gates import GateConfigs, KillSwitches
from engines.control.products import Products, apps, oses, projects, surfaces
from engines.control.rate_limits import AdoptedPolicies, RateLimitPolicies
from engines.control.records import App, Backend, Os, Project, Surface
from engines.control.service import Service
from engines.control.store import PARTITION, ControlStore
from engines.control.subjects import DataSubjects
from engines.control.tables import MODES, TENANTS
from engines.control.tenants import LAB_MODE, Members, Modes, Tenants, Users
from engines.core.documents import Documents
from engines.core.lease import Lease
from engines.core.outbox import Backlog, Relay
from engines.core.pledges import Pledges
from engines.core.secrets import Secrets
from engines.drivers.registry import document_driver, driver_of_url, secret_sources, url_secrets
from engines.errors import EnginesError, Invalid, Unavailable
from engines.identity.context import Contexts
from engines.identity.refusals import RefusalAudit
from engines.identity.tokens import TokenVerifier
from engines.ids import Ids
from engines.ports.documents import DocumentDriver
from engines.routing.backends import CONTROL_BACKEND, Backends
from engines.routing.diagnostics import Diagnostics
from engines.routing.erasures import Erasures
from engines.routing.homes import Homes
from engines.routing.movers import Movers
from engines.routing.moves import Moves
from engines.routing.participation import Participation
from engines.routing.router import Router, Where
from engines.routing.routes import BackendRecords, Routes
from engines.safety.evaluations import Gates
from engines.safety.ingesting import IngestGate
from engines.safety.joined import gates_over
from engines.scope import SYSTEM_TENANT, RequestContext
from engines.stores.analytics import Analytics
from engines.stores.announcements import Announcements
from engines.stores.approvals import Approvals
from engines.stores.attribution_contracts import ContractDefinitions
from engines.stores.blackboard import Blackboard
from engines.stores.budget import Budget
from engines.stores.definitions import Definitions
from engines.stores.erasing import Erasing
from engines.stores.events import EventSpine, EventStreams
from engines.stores.firearm_uses import FirearmUses
from engines.stores.firearms import Firearms, SystemContext
from engines.stores.flags import Flags
from engines.stores.kpis import Kpis
from engines.stores.memory import SessionMemory
from engines.stores.notes import Notes
from engines.stores.rate_limits import RateLimits
from engines.stores.realtime import RealtimeRegistry
from engines.stores.strategy_locks import StrategyLocks
from engines.stores.tables import Tables
from engines.stores.temperature import Temperatures

START_TIMEOUT_S: Final = 30.0
PLEDGES_PARTITION: Final = "pledges"
log = structlog.get_logger(__name__)


class ControlPlane(msgspec.Struct, frozen=True):
    """A control plane's database, opened from its URL, and the backend record that describes it."""

    documents: Documents
    store: ControlStore
    record: Backend
    host_local: bool


class Engines(msgspec.Struct, frozen=True, kw_only=True):
    """All of Engines in one process. Stores and services take a RequestContext, which `contexts` makes."""

    clock: Clock
    ids: Ids
    directory: Directory
    contexts: Contexts
    refusals: RefusalAudit
    router: Router
    tenants: Tenants
    users: Users
    members: Members
    subjects: DataSubjects
    erasures: Erasures
    modes: Modes
    oses: Products[Os]
    surfaces: Products[Surface]
    apps: Products[App]
    projects: Products[Project]
    keys: Keys
    issuers: Issuers
    backends: BackendRecords
    routes: Routes
    moves: Moves
    diagnostics: Diagnostics
    spine: EventSpine
    streams: EventStreams
    tables: Tables
    memory: SessionMemory
    blackboard: Blackboard
    notes: Notes
    budget: Budget
    announcements: Announcements
    definitions: Definitions
    flags: Flags
    rate_limit_policies: RateLimitPolicies
    rate_limits: RateLimits
    kill_switches: KillSwitches
    gate_configs: GateConfigs
    gates: Gates
    analytics: Analytics
    strategy_locks: StrategyLocks
    firearms: Firearms
    approvals: Approvals
    kpis: Kpis
    temperatures: Temperatures
    realtime: RealtimeRegistry
    agent: AgentStores


@contextlib.asynccontextmanager
async def open_control_plane(
    url: str, *, clock: Clock | None = None, random_bytes: Callable[[int], bytes] = os.urandom
) -> AsyncIterator[ControlPlane]:
    """The control plane's own database, provisioned. Raises Invalid, BackendRefused, Unavailable."""
    clock = clock or SystemClock()
    driver, record = open_driver(url, clock)
    documents = Documents(driver, ids=Ids(clock, random_bytes), clock=clock)
    try:
        await driver.provision()
        store = ControlStore(documents, Backlog(documents, PARTITION, clock))
        yield ControlPlane(documents, store, record, record.backend_class == "host_local")
    finally:
        await documents.close()


def open_driver(url: str, clock: Clock) -> tuple[DocumentDriver, Backend]:
    """The driver of a control plane's URL, and the backend record that describes it. Raises Invalid."""
    name = driver_of_url(url)
    module = document_driver(name)
    config, password = module.config_from_url(url)
    secrets = url_secrets(module, password)
    driver = module.open_driver(msgspec.convert(config, module.Config), secrets, clock)
    record = Backend(
        backend_id=CONTROL_BACKEND,
        driver=name,
        backend_class=module.DESCRIPTION.backend_class,
        config=config,
    )
    return driver, record


@contextlib.asynccontextmanager
async def open_engines(
    control_plane_url: str,
    *,
    secrets: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> AsyncIterator[Engines]:
    """Engines on an initialised control plane, until the block ends.

    `secrets` are the bootstrap's places of secrets: `file` (a JSON file) and `directory` (mounted files).
    Raises Invalid where the control plane was never initialised, and outside a lab MissingRoute or
    ForbiddenBackendClass where a required kind has no usable default.
    """
    clock = clock or SystemClock()
    async with open_control_plane(control_plane_url, clock=clock, random_bytes=random_bytes) as control:
        ids = Ids(clock, random_bytes)
        backends, participation, engines = _assemble(control, secrets or {}, ids=ids, clock=clock)
        audit = Audit(engines.directory, engines.spine, ids)
        lease = Lease(control.documents, PARTITION, "outbox", holder=ids.write_id(), clock=clock)
        relay = Relay(control.documents, PARTITION, audit.deliver, lease=lease, clock=clock)
        movers = Movers(
            control.store, engines.directory, backends, engines.router.resolve, ids=ids, clock=clock
        )
        pledges = engines.announcements.promises = Pledges(
            control.documents,
            PLEDGES_PARTITION,
            process_id=ids.write_id(),
            clock=clock,
            finish=engines.announcements.finish,
        )
        control.store.on_change = _adopt_at_once(engines.directory, relay)
        try:
            await _check_start(engines.directory, engines.router, control.store, participation)
        except BaseException:
            await participation.release()
            raise
        try:
            async with _running(
                engines.directory.follow(),
                participation.run(),
                relay.run(),
                movers.run(),
                engines.spine.projector.run(),
                pledges.run(),
                engines.analytics.projector.run(),
                backends.follow_secrets(),
                backends.reclaim(),
            ):
                yield engines
        finally:
            await engines.contexts.close()
            await engines.refusals.close()
            await engines.erasures.close()
            await engines.flags.close()
            await engines.budget.close()
            await engines.temperatures.close()
            await engines.kpis.close()
            await engines.firearms.close()
            await engines.strategy_locks.close()
            await engines.announcements.close()
            await engines.rate_limits.close()
            await engines.gates.close()
            await engines.spine.close()
            await engines.streams.close()
            await backends.close()


def _assemble(
    control: ControlPlane, secrets: Mapping[str, str], *, ids: Ids, clock: Clock
) -> tuple[Backends, Participation, Engines]:
    """Every store and service, and what runs beside them; nothing has been read yet."""
    resolver = Secrets(secret_sources(**secrets))
    directory = Directory(control.store, clock)
    backends = Backends(control.documents, resolver, ids=ids, clock=clock)
    participation = Participation(control.documents, directory, process_id=ids.write_id(), clock=clock)
    router = Router(directory, backends, participation)
    participation.open_target = router.open_backend
    spine = EventSpine(router, ids, clock)
    refusals = RefusalAudit(Audit(directory, spine, ids).refused, clock)
    announcements = Announcements(router, spine, ids, clock)
    definitions = Definitions(router, announcements, ids, clock)
    service = Service(control.store, router)
    routes = Routes(service, router)
    members = Members(service)
    keys = Keys(service)
    subjects = DataSubjects(service, members, keys, clock)
    deciding = _deciding(directory, router, spine, announcements, definitions, ids, clock)
    engines = Engines(
        clock=clock,
        ids=ids,
        directory=directory,
        contexts=Contexts(directory, TokenVerifier(resolver, clock), ids, clock, refusals=refusals),
        refusals=refusals,
        router=router,
        tenants=Tenants(service),
        users=Users(service),
        members=members,
        subjects=subjects,
        erasures=Erasures(subjects, Homes(control.store, router), Erasing(router, ids, clock), clock),
        modes=Modes(service),
        oses=oses(service),
        surfaces=surfaces(service),
        apps=apps(service),
        projects=projects(service),
        keys=keys,
        issuers=Issuers(service),
        backends=BackendRecords(service, backends),
        routes=routes,
        moves=Moves(service, router, ids),
        diagnostics=Diagnostics(router, backends),
        spine=spine,
        streams=EventStreams(router, ids, clock),
        tables=Tables(router, clock),
        memory=SessionMemory(router, clock),
        blackboard=Blackboard(router, clock),
        notes=Notes(router, ids, clock),
        budget=deciding.budget,
        announcements=announcements,
        definitions=definitions,
        flags=Flags(definitions, clock),
        rate_limit_policies=RateLimitPolicies(service),
        rate_limits=deciding.rate_limits,
        kill_switches=KillSwitches(service),
        gate_configs=GateConfigs(service, deciding.gates.mounted),
        gates=deciding.gates,
        analytics=Analytics(
            router, spine, ContractDefinitions(definitions, clock), clock, gate=IngestGate(deciding.gates)
        ),
        strategy_locks=deciding.strategy_locks,
        firearms=deciding.firearms,
        approvals=Approvals(router, announcements, deciding.firearms.class_of_action, ids, clock),
        kpis=deciding.kpis,
        temperatures=deciding.temperatures,
        realtime=RealtimeRegistry(router, announcements, clock),
        agent=agent_stores(router, ids, clock),
    )
    return backends, participation, engines


def _system_reader(directory: Directory) -> SystemContext:
    """The server itself in t_system, at the default env and surface, which may read definitions alone."""

    async def context() -> RequestContext:
        tenant = await directory.tenant(SYSTEM_TENANT)
        if tenant is None:
            raise Unavailable("t_system is not known yet")
        surface = await directory.surface(tenant.default_surface_id)
        return RequestContext(
            tenant_id=SYSTEM_TENANT,
            mode=tenant.mode,
            env=tenant.default_env,
            user_id="system",
            roles=(),
            permissions=frozenset({"definitions.read"}),
            os_id="" if surface is None else surface.os_id,
            surface_id=tenant.default_surface_id,
            run_id="firearms",
            step_id="0",
            request_id="firearms",
            trace_id="0" * 32,
            span_id="0" * 16,
            lab=tenant.mode == LAB_MODE,
            sources={},
        )

    return context


class _Deciding(msgspec.Struct, frozen=True, kw_only=True):
    """What decides whether an action may happen, and the gates over it."""

    strategy_locks: StrategyLocks
    firearms: Firearms
    budget: Budget
    kpis: Kpis
    temperatures: Temperatures
    rate_limits: RateLimits
    gates: Gates


def _deciding(
    directory: Directory,
    router: Router,
    spine: EventSpine,
    announcements: Announcements,
    definitions: Definitions,
    ids: Ids,
    clock: Clock,
) -> _Deciding:
    locks = StrategyLocks(definitions, clock)
    uses = FirearmUses(router, announcements, clock)
    firearms = Firearms(definitions, uses, locks, _system_reader(directory), clock)
    kpis = Kpis(router, definitions, ids, clock)
    temperatures = Temperatures(definitions, kpis, clock)
    budget = Budget(router, announcements, ids, clock)
    rate_limits = RateLimits(router, AdoptedPolicies(directory), clock)
    gates = gates_over(
        firearms=firearms,
        strategy_locks=locks,
        budget=budget,
        kpis=kpis,
        temperatures=temperatures,
        rate_limits=rate_limits,
        clock=clock,
    )
    return _Deciding(
        strategy_locks=locks,
        firearms=firearms,
        budget=budget,
        kpis=kpis,
        temperatures=temperatures,
        rate_limits=rate_limits,
        gates=Gates(directory, spine, ids, clock, gates=gates),
    )


def _adopt_at_once(directory: Directory, relay: Relay) -> Callable[[], Awaitable[None]]:
    async def adopt() -> None:
        relay.nudge()
        try:
            await directory.refresh()
        except EnginesError as error:  # The change stands; the next poll adopts it.
            log.warning("a change was not adopted at once", error=error.code)

    return adopt


@contextlib.asynccontextmanager
async def _running(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run tasks beside the block. One that breaks ends the block: half a server is worse than none.

    Unlike a task group, it leaves an exception of the block as it is.
    """
    block = asyncio.current_task()
    assert block is not None
    broken: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            broken.append(error)
            block.cancel()

    tasks = [asyncio.create_task(item) for item in work]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    except asyncio.CancelledError:
        if broken:
            block.uncancel()
            raise broken[0] from None
        raise
    finally:
        for task in tasks:
            task.remove_done_callback(ended)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _check_start(
    directory: Directory, router: Router, store: ControlStore, participation: Participation
) -> None:
    """Refuse to run where the control plane is none, or a required kind has no usable default."""
    async with asyncio.timeout(START_TIMEOUT_S):
        # In this order: a mover that does not see this process yet is seen by it.
        await participation.register()
        await directory.refresh()
        system = await store.read(TENANTS, SYSTEM_TENANT)
        if system is None:
            raise Invalid("this database is no control plane yet: run engines init --control-plane URL")
        if system.record.mode == LAB_MODE:
            return
        modes = await store.page(MODES, limit=1_000)
        for stored in modes.items:
            mode = stored.record
            if mode.mode == LAB_MODE:
                continue
            at = Where(
                tenant_id=SYSTEM_TENANT,
                mode=mode.mode,
                env=system.record.default_env,
            )
            for kind in SERVED:
                if kind.name in (*mode.optional_kinds, *mode.per_tenant_kinds):
                    continue
                await router.checked_backend(await router.resolve(kind.name, at), at)
