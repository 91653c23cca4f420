"""A control plane with two tenants, three backends and the services that change routes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from engines.clock import Clock, SystemClock
from engines.control.bootstrap import Seed, apply_seed, bootstrap
from engines.control.directory import Directory
from engines.control.records import Backend
from engines.control.service import Service
from engines.core.secrets import Secrets
from engines.drivers.registry import secret_sources
from engines.ids import Ids
from engines.routing.backends import Backends
from engines.routing.diagnostics import Diagnostics
from engines.routing.participation import Participation
from engines.routing.router import Router
from engines.routing.routes import BackendRecords, Routes
from engines.wiring import ControlPlane, open_control_plane

SEED: Seed = {
    "tenants": [
        {
            "tenant_id": "t_a",
            "name": "A",
            "mode": "lab",
            "envs": ["prod", "dev"],
            "default_surface_id": "chat",
        },
        {"tenant_id": "t_b", "name": "B", "mode": "lab", "envs": ["prod"], "default_surface_id": "chat"},
    ],
    "apps": [{"app_id": "app1", "surface_id": "chat", "name": "App"}],
    "projects": [
        {"tenant_id": "t_a", "project_id": "p1", "name": "P"},
        {"tenant_id": "t_b", "project_id": "p2", "name": "P"},
    ],
}


class Process(msgspec.Struct, frozen=True):
    """What one process has of routing."""

    control: ControlPlane
    directory: Directory
    backends: Backends
    router: Router
    routes: Routes
    records: BackendRecords
    diagnostics: Diagnostics


NewProcess = Callable[..., Awaitable[Process]]


@pytest.fixture(params=["sqlite", "postgres"])
def control_plane_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/control.db"
    return str(request.getfixturevalue("postgres_database"))


def sqlite_backend(backend_id: str, directory: Path, offered_to: object = "*") -> Backend:
    return Backend(
        backend_id=backend_id,
        driver="sqlite",
        backend_class="host_local",
        config={"path": str(directory / f"{backend_id}.db")},
        offered_to=offered_to,  # type: ignore[arg-type]
    )


@pytest.fixture
async def new_process(control_plane_url: str, tmp_path: Path) -> AsyncIterator[NewProcess]:
    """Each call is another process on the one control plane: a lab whose default backend is `lab`."""
    async with AsyncExitStack() as stack:

        async def make(clock: Clock | None = None) -> Process:
            chosen = clock or SystemClock()
            control = await stack.enter_async_context(open_control_plane(control_plane_url, clock=chosen))
            data = sqlite_backend("lab", tmp_path)
            await bootstrap(control.store, control.record, data=data, host_local=True)
            await apply_seed(control.store, SEED)
            directory = Directory(control.store, chosen)
            await directory.refresh()
            resolver = Secrets(secret_sources())
            backends = Backends(control.documents, resolver, ids=Ids(chosen), clock=chosen)
            stack.push_async_callback(backends.close)
            participation = Participation(
                control.documents, directory, process_id=Ids(chosen).write_id(), clock=chosen
            )
            await participation.register()
            router = Router(directory, backends, participation)
            service = Service(control.store, router)
            control.store.on_change = directory.refresh
            return Process(
                control=control,
                directory=directory,
                backends=backends,
                router=router,
                routes=Routes(service, router),
                records=BackendRecords(service, backends),
                diagnostics=Diagnostics(router, backends),
            )

        yield make
