"""Diagnostics: whether each kind of a tenant has a route, may use it, and reaches its backend.

Owns the probe, which writes, reads back and deletes one document on the real thing, and the report over all
served kinds. Leaves resolution to `routing/router.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from engines.catalogue import SERVED
from engines.control.records import Backend
from engines.core.keys import join, partition
from engines.errors import BackendRefused, EnginesError, ForbiddenBackendClass, MissingRoute, Unavailable
from engines.ports.documents import ALWAYS, Delete, Put
from engines.routing.backends import Backends
from engines.routing.router import Router, Where
from engines.scope import SYSTEM_TENANT

_PARTITION: Final = partition("probe", SYSTEM_TENANT, "global", 0)


class Probe(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a probe found. `error` is the code of what went wrong and `detail` its sentence."""

    backend_id: str
    ok: bool
    duration_ms: float
    error: str | None = None
    detail: str | None = None


async def probe(backends: Backends, record: Backend) -> Probe:
    """Write, read back and delete one document in a partition of its own."""
    clock = backends.clock
    began = clock.monotonic()
    error: EnginesError | None = None
    try:
        opened = await backends.open(record)
        documents = opened.documents
        key = join("p", documents.new_write_id())
        version = await documents.write(_PARTITION, [Put(key, '{"probe":true}', ALWAYS)])
        doc = await documents.get(_PARTITION, key)
        if doc is None or doc.version != version:
            raise BackendRefused("the backend did not give back what was written")
        await documents.write(_PARTITION, [Delete(key, ALWAYS)])
    except EnginesError as refusal:
        error = refusal
    return Probe(
        backend_id=record.backend_id,
        ok=error is None,
        duration_ms=round((clock.monotonic() - began) * 1000, 3),
        error=None if error is None else error.code,
        detail=None if error is None else error.detail,
    )


class KindReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """One kind of a tenant: `ready`, `missing`, `forbidden` or `unreachable`, and why."""

    resource_kind: str
    state: str
    backend_id: str | None = None
    backend_class: str | None = None
    detail: str | None = None


class Diagnostics:
    """`/diagnostics/routes`: every served kind, resolved and its backend asked."""

    def __init__(self, router: Router, backends: Backends) -> None:
        self._router = router
        self._backends = backends

    async def report(self, at: Where) -> Sequence[KindReport]:
        """Every served kind; each backend is asked once, and all at once, so that one that hangs delays the
        report by its own time limit alone.
        """
        probes: dict[str, asyncio.Task[Probe]] = {}
        async with asyncio.TaskGroup() as group:
            kinds = [group.create_task(self._kind(kind.name, at, probes)) for kind in SERVED]
        return [kind.result() for kind in kinds]

    async def _kind(self, kind: str, at: Where, probes: dict[str, asyncio.Task[Probe]]) -> KindReport:
        backend: Backend | None = None
        try:
            resolution = await self._router.resolve(kind, at)
            backend = await self._router.checked_backend(resolution, at)
            if backend.backend_id not in probes:
                probes[backend.backend_id] = asyncio.create_task(probe(self._backends, backend))
            found = await probes[backend.backend_id]
            state, detail = ("ready", None) if found.ok else ("unreachable", found.detail)
        except MissingRoute as error:
            state, detail = "missing", error.detail
        except ForbiddenBackendClass as error:
            state, detail = "forbidden", error.detail
        except (BackendRefused, Unavailable) as error:
            state, detail = "unreachable", error.detail
        return KindReport(
            resource_kind=kind,
            state=state,
            backend_id=None if backend is None else backend.backend_id,
            backend_class=None if backend is None else backend.backend_class,
            detail=detail,
        )
