"""Open backends: from a backend record to documents that stores can use.

Owns the drivers that this process has open, one for each backend record as it now stands, and closing them.
A changed record (its config, a secret's handle) opens a new driver; the old one is closed once its calls
have had time to end. Secrets of all that is open are looked up again now and then. Leaves which backend to
use to `routing/router.py`, adopting a changed secret to `routing/rotation.py`, and secrets to the resolver.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Mapping
from typing import Final

import msgspec
import structlog

from engines.clock import Clock
from engines.control.records import Backend
from engines.core.circuit import TRY_S
from engines.core.documents import TIMEOUT_S, Documents
from engines.core.place import Layouts
from engines.core.secrets import parse_handle
from engines.drivers.registry import document_driver
from engines.errors import EnginesError, Invalid, Unavailable
from engines.ids import Ids
from engines.ports.documents import DocumentDriver
from engines.ports.secrets import Secret, SecretResolver
from engines.routing.rotation import RotatingDriver

# The backend record under which the control plane's own database is known.
CONTROL_BACKEND: Final = "control"
PROBE_TIMEOUT_S: Final = 10.0
RECLAIM_INTERVAL_S: Final = 60.0
RECLAIM_MAX: Final = 1_000
# A rotated secret that no call was refused for is adopted within this, give or take a fifth.
LOOK_INTERVAL_S: Final = 30.0
LOOKS_AT_ONCE_MAX: Final = 4

log = structlog.get_logger(__name__)


class OpenBackend(msgspec.Struct, frozen=True):
    """A backend as this process has it open. `rotating` is the driver below, where it has secrets."""

    record: Backend
    documents: Documents
    layouts: Layouts
    rotating: RotatingDriver | None = None

    @property
    def problem(self) -> str | None:
        """One sentence on what an operator should mend although calls succeed; None as a rule."""
        return None if self.rotating is None else self.rotating.problem


class _Attempt(msgspec.Struct, frozen=True):
    """A backend that is being opened, for all who wait for it."""

    record: Backend
    task: asyncio.Task[OpenBackend]


class Backends:
    """Opens backends on first use and keeps them. `control` is the control plane's own documents."""

    def __init__(self, control: Documents, secrets: SecretResolver, *, ids: Ids, clock: Clock) -> None:
        self._control = control
        self._control_layouts = Layouts(control)
        self._secrets = secrets
        self._ids = ids
        self.clock = clock
        self._open: dict[str, OpenBackend] = {}
        self._attempts: dict[str, _Attempt] = {}
        # The records whose last attempt got no answer.
        self._silent: dict[str, Backend] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    async def open(self, record: Backend) -> OpenBackend:
        """The backend that `record` describes, provisioned. Raises BackendRefused, Unavailable, Invalid.

        Whoever asks while it is being opened gets the outcome of that one attempt. Once an attempt got no
        answer only the caller that makes the next one waits for it, and all others learn so at once. Callers
        of other backends wait for nothing.
        """
        present = self._open.get(record.backend_id)
        if present is not None and present.record == record:
            return present
        attempt = self._attempts.get(record.backend_id)
        if attempt is None or attempt.record != record:
            attempt = _Attempt(record, asyncio.create_task(self._replace(record)))
            self._attempts[record.backend_id] = attempt
            attempt.task.add_done_callback(lambda _: self._forget(attempt))
        elif self._silent.get(record.backend_id) == record:
            raise Unavailable("the backend does not answer", retry_after_s=TRY_S)
        try:
            return await asyncio.shield(attempt.task)
        except EnginesError as error:
            raise copy.copy(error) from error
        except asyncio.CancelledError:
            if attempt.task.cancelled():
                raise Unavailable("the backends are being closed") from None
            raise

    async def connect(self, record: Backend) -> Documents:
        """A driver of the caller's own for a record that may not be stored yet; the caller closes it.

        Its secrets are looked up again when a call is refused, and not in between.
        """
        return self._documents(await self._driver(record))

    async def follow_secrets(self) -> None:
        """Adopt rotated secrets, for ever; the owner cancels it."""
        while True:
            spread = random.uniform(0.8, 1.2)  # noqa: S311 (it spreads processes, it hides nothing)
            await asyncio.sleep(LOOK_INTERVAL_S * spread)
            await self.look_once()

    async def look_once(self) -> None:
        """The same, once: look up again the secrets of all that is open."""
        at_once = asyncio.Semaphore(LOOKS_AT_ONCE_MAX)

        async def look(rotating: RotatingDriver) -> None:
            async with at_once:
                await rotating.look()

        rotating = [opened.rotating for opened in self._open.values() if opened.rotating is not None]
        await asyncio.gather(*map(look, rotating))

    async def reclaim(self) -> None:
        """Remove expired documents everywhere, for ever; the owner cancels it."""
        while True:
            await asyncio.sleep(RECLAIM_INTERVAL_S)
            await self.reclaim_once()

    async def reclaim_once(self) -> None:
        """The same, once: on the control plane, which has markers of requests too, and all that is open."""
        opened = {backend_id: backend.documents for backend_id, backend in self._open.items()}
        for backend_id, documents in {**opened, CONTROL_BACKEND: self._control}.items():
            try:
                while await documents.reclaim(RECLAIM_MAX) == RECLAIM_MAX:
                    pass
            except EnginesError as error:
                log.warning("reclaim failed", backend=backend_id, error=error.code)

    async def close(self) -> None:
        """Close every driver but the control plane's, which belongs to who opened it."""
        ending = [*self._retiring, *(attempt.task for attempt in self._attempts.values())]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for opened in self._open.values():
            if opened.documents is not self._control:
                await opened.documents.close()
        self._open.clear()

    async def _replace(self, record: Backend) -> OpenBackend:
        try:
            opened = await self._open_new(record)
        except Unavailable:
            self._silent[record.backend_id] = record
            raise
        except EnginesError:
            self._silent.pop(record.backend_id, None)
            raise
        self._silent.pop(record.backend_id, None)
        # Whoever is there now: another record's attempt may have ended while this one connected.
        former = self._open.get(record.backend_id)
        self._open[record.backend_id] = opened
        if former is not None and former.documents is not self._control:
            self._retire(former)
        return opened

    def _forget(self, attempt: _Attempt) -> None:
        if not attempt.task.cancelled():
            attempt.task.exception()  # Seen, even where everybody who waited was cancelled.
        if self._attempts.get(attempt.record.backend_id) is attempt:
            del self._attempts[attempt.record.backend_id]

    async def _open_new(self, record: Backend) -> OpenBackend:
        if record.backend_id == CONTROL_BACKEND:
            return OpenBackend(record, self._control, self._control_layouts)
        driver = await self._driver(record)
        documents = self._documents(driver)
        rotating = driver if isinstance(driver, RotatingDriver) else None
        return OpenBackend(record, documents, Layouts(documents), rotating)

    async def _driver(self, record: Backend) -> DocumentDriver:
        """A driver that has answered; one whose secrets may change, where it has any."""
        config = check_config(record)

        async def open_driver(secrets: Mapping[str, Secret]) -> DocumentDriver:
            # In a thread: importing an SDK takes seconds, for which nobody else would be served.
            module = document_driver(record.driver)
            driver = await asyncio.to_thread(module.open_driver, config, secrets, self.clock)
            await _provision(driver)
            return driver

        if not record.secrets:
            return await open_driver({})
        return await RotatingDriver.open(
            record.backend_id, lambda: self._resolved(record.secrets), open_driver
        )

    def _documents(self, driver: DocumentDriver) -> Documents:
        return Documents(driver, ids=self._ids, clock=self.clock)

    async def _resolved(self, handles: Mapping[str, str]) -> dict[str, Secret]:
        return {name: await self._secrets.resolve(handle) for name, handle in handles.items()}

    def _retire(self, opened: OpenBackend) -> None:
        task = asyncio.create_task(_close_later(opened))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _provision(driver: DocumentDriver) -> None:
    """Closes the driver where it fails. Raises BackendRefused, Unavailable."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await driver.provision()
    except TimeoutError as error:
        await driver.close()
        raise Unavailable("the backend did not answer while it was set up") from error
    except BaseException:
        await driver.close()
        raise


async def _close_later(opened: OpenBackend) -> None:
    """A call that began on the old driver may take as long as its deadline."""
    try:
        await asyncio.sleep(TIMEOUT_S)
    finally:
        await opened.documents.close()


def check_config(record: Backend) -> msgspec.Struct:
    """The record's config as its driver reads it. Raises Invalid, naming the member."""
    module = document_driver(record.driver)
    if record.backend_class != module.DESCRIPTION.backend_class:
        raise Invalid(f"{record.driver} is of class {module.DESCRIPTION.backend_class}", field="class")
    unknown = sorted(record.secrets.keys() - module.DESCRIPTION.secrets.keys())
    if unknown:
        raise Invalid(f"{record.driver} takes no secret of this name", field=f"secrets.{unknown[0]}")
    for handle in record.secrets.values():
        parse_handle(handle)
    try:
        return msgspec.convert(record.config, module.Config)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise Invalid(message, field=f"config.{path.rstrip('`')}" if path else "config") from error
