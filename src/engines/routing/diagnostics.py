"""Diagnostics: whether each kind of a tenant has a route, may use it, and reaches its backend.

Owns the probe, which writes, reads back and deletes one document on the real thing, and the report over all
served kinds. Leaves resolution to `routing/router.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from engines.catalogue import RESERVED, RESERVED_DETAIL, SERVED
from engines.control.records import Backend
from engines.core.keys import join, partition
from engines.errors import BackendRefused, EnginesError, ForbiddenBackendClass, MissingRoute, Unavailable
from engines.ports.documents import ALWAYS, Delete, Put
from engines.routing.backends import Backends
from engines.routing.router import Router, Where
from engines.scope import SYSTEM_TENANT

FINDING_S: Final = 5.0
_PARTITION: Final = partition("probe", SYSTEM_TENANT, "global", 0)


class Probe(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a probe found. `error` is the code of what went wrong and `detail` its sentence.

    Without an error, `detail` is what an operator should mend although the backend works.
    """

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
    warning: str | None = None
    try:
        opened = await backends.open(record)
        documents = opened.documents
        key = join("p", documents.new_write_id())
        version = await documents.write(_PARTITION, [Put(key, '{"probe":true}', ALWAYS)])
        doc = await documents.get(_PARTITION, key)
        if doc is None or doc.version != version:
            raise BackendRefused("the backend did not give back what was written")
        await documents.write(_PARTITION, [Delete(key, ALWAYS)])
        warning = opened.problem
    except EnginesError as refusal:
        error = refusal
    return Probe(
        backend_id=record.backend_id,
        ok=error is None,
        duration_ms=round((clock.monotonic() - began) * 1000, 3),
        error=None if error is None else error.code,
        detail=warning if error is None else error.detail,
    )


class KindReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """One kind of a tenant: `ready`, `missing`, `forbidden`, `unreachable` or `reserved`, and why.

    A `ready` kind has a `detail` where its backend works and an operator has something to mend.
    """

    resource_kind: str
    state: str
    backend_id: str | None = None
    backend_class: str | None = None
    detail: str | None = None


# Nothing is asked for these: they have no route, and nothing depends on them.
_RESERVED: Final = tuple(
    KindReport(resource_kind=kind.name, state="reserved", detail=RESERVED_DETAIL) for kind in RESERVED
)


class _Finding:
    """The last probe of one backend. The lock is held by whoever probes it anew."""

    __slots__ = ("began_at_s", "lock", "probe", "record")

    def __init__(self, record: Backend) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.probe: Probe | None = None
        self.began_at_s = 0.0


class Diagnostics:
    """`/diagnostics/routes`: every served kind, resolved and its backend asked, and the reserved ones.

    A finding is remembered for `FINDING_S`, so that asking in a loop writes no more than asking at leisure.
    """

    def __init__(self, router: Router, backends: Backends) -> None:
        self._router = router
        self._backends = backends
        self._findings: dict[str, _Finding] = {}

    async def report(self, at: Where) -> Sequence[KindReport]:
        """Every served kind, each backend asked once and all at once; then what is reserved."""
        served = await asyncio.gather(*(self._kind(kind.name, at) for kind in SERVED))
        return [*served, *_RESERVED]

    async def _kind(self, kind: str, at: Where) -> KindReport:
        backend: Backend | None = None
        try:
            resolution = await self._router.resolve(kind, at)
            backend = await self._router.checked_backend(resolution, at)
            found = await self._probed(backend)
            state, detail = "ready" if found.ok else "unreachable", found.detail
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

    async def _probed(self, record: Backend) -> Probe:
        """What a probe found now or a moment ago; who asks meanwhile waits for the one under way."""
        clock = self._backends.clock
        finding = self._findings.get(record.backend_id)
        if finding is None or finding.record != record:
            finding = self._findings[record.backend_id] = _Finding(record)
        async with finding.lock:
            if finding.probe is None or clock.monotonic() >= finding.began_at_s + FINDING_S:
                finding.began_at_s = clock.monotonic()
                finding.probe = await probe(self._backends, record)
            return finding.probe
