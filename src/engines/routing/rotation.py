"""Rotation: a backend's secrets change, and its calls go on.

Owns the one driver of a backend that calls go to, looking its secrets up again, and putting a new driver in
its place once that works with what changed. Documents, layouts and places stay the same objects across a
rotation: the exchange is below them. Leaves looking now and then, beside calls, to `routing/backends.py`.

BackendRefused says that nothing was applied, so a call that the former secret no longer opens is repeated
after the secrets were looked up. A changed secret that does not work replaces nothing: the former driver
stays, and `problem` says so.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Final, Self

import msgspec
import structlog

from engines.core.documents import TIMEOUT_S
from engines.errors import BackendRefused, EnginesError
from engines.ports.documents import Doc, DocumentDriver, Op, Page
from engines.ports.secrets import Secret

# Between two looks at a backend's secrets, however many calls are refused.
LOOK_PAUSE_S: Final = 2.0
LOOK_TIMEOUT_S: Final = 30.0
# Who rotates may change the database some seconds before the source of the secret. From the first refusal on,
# refused calls are repeated after each look for this long: well within their own deadline, past which the
# outcome of a write would be called unknown. Where that was in vain, a call waits for one look until no call
# was refused for a while.
PATIENCE_S: Final = 6.0
PATIENCE_PAUSE_S: Final = 60.0

Resolve = Callable[[], Awaitable[Mapping[str, Secret]]]
OpenDriver = Callable[[Mapping[str, Secret]], Awaitable[DocumentDriver]]

log = structlog.get_logger(__name__)


class RotatingDriver:
    """`DocumentDriver` that delegates to the present one. Bound to one event loop.

    `problem` is None, or one sentence on why secrets that may have changed are not in use.
    """

    def __init__(
        self,
        backend_id: str,
        resolve: Resolve,
        open_driver: OpenDriver,
        *,
        present: DocumentDriver,
        digest: bytes,
    ) -> None:
        self.problem: str | None = None
        self._backend_id = backend_id
        self._resolve = resolve
        self._open_driver = open_driver
        self._present = present
        self._digest = digest
        self._looked_at = float("-inf")
        self._patient_until = float("-inf")
        self._refused_at = float("-inf")
        self._turn = asyncio.Lock()
        # The look that has not begun: whoever wants one shares it.
        self._next_look: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(cls, backend_id: str, resolve: Resolve, open_driver: OpenDriver) -> Self:
        """With the secrets' present values. `open_driver` gives a driver that answered under them."""
        secrets = await resolve()
        present = await open_driver(secrets)
        return cls(backend_id, resolve, open_driver, present=present, digest=_digest(secrets))

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        driver = self._present
        while True:
            try:
                return await driver.get(partition, keys)
            except BackendRefused as refusal:
                driver = await self._successor(driver, refusal)

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        driver = self._present
        while True:
            try:
                return await driver.scan(partition, above=above, below=below, limit=limit, reverse=reverse)
            except BackendRefused as refusal:
                driver = await self._successor(driver, refusal)

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        driver = self._present
        while True:
            try:
                return await driver.write(partition, ops, write_id=write_id)
            except BackendRefused as refusal:
                driver = await self._successor(driver, refusal)

    async def provision(self) -> None:
        await self._present.provision()

    async def reclaim(self, limit: int) -> int:
        driver = self._present
        while True:
            try:
                return await driver.reclaim(limit)
            except BackendRefused as refusal:
                driver = await self._successor(driver, refusal)

    async def close(self) -> None:
        """Ends a look under way, and closes former drivers with the present one."""
        self._closed = True
        ending = list(self._tasks)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await self._present.close()

    async def look(self) -> None:
        """Look the secrets up once more and adopt what changed. Never raises for what it finds."""
        await asyncio.wait((self._look_soon(),))

    async def _successor(self, refused: DocumentDriver, refusal: BackendRefused) -> DocumentDriver:
        """The driver to repeat a refused call on. Raises the refusal where another look is not worth it.

        While patience lasts that may be the same one: who rotates may have put the former value back.
        """
        if self._closed:
            raise refusal
        began = _now()
        if began >= self._refused_at + PATIENCE_PAUSE_S:
            self._patient_until = began + PATIENCE_S
        self._refused_at = began
        if self._present is refused:
            await asyncio.wait((self._look_soon(),), timeout=PATIENCE_S)
        if self._present is refused and _now() + LOOK_PAUSE_S > self._patient_until:
            raise refusal
        return self._present

    def _look_soon(self) -> asyncio.Task[None]:
        """A look that begins after this call, as many share it as ask before it begins."""
        if self._next_look is None:
            self._next_look = self._start(self._look())
        return self._next_look

    async def _look(self) -> None:
        async with self._turn:
            await asyncio.sleep(max(0.0, self._looked_at + LOOK_PAUSE_S - _now()))
            # A secret may change while it is looked up: who asks from here on needs another look.
            self._next_look = None
            self._looked_at = _now()
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    secrets = await self._resolve()
            except (EnginesError, TimeoutError) as error:
                self._note("a secret cannot be read again; the former one is in use", error)
                return
            await self._adopt(secrets)

    async def _adopt(self, secrets: Mapping[str, Secret]) -> None:
        digest = _digest(secrets)
        if digest == self._digest:
            self.problem = None
            return
        try:
            successor = await self._open_driver(secrets)
        except EnginesError as error:
            self._note("a changed secret does not work; the former one is in use", error)
            return
        former, self._present, self._digest = self._present, successor, digest
        self.problem = None
        self._refused_at = float("-inf")  # Patience was not in vain.
        log.info("a changed secret is in use", backend=self._backend_id)
        self._start(_close_later(former))

    def _note(self, problem: str, error: EnginesError | TimeoutError) -> None:
        """Told when it begins, not at every look."""
        if self.problem != problem:
            self.problem = problem
            detail = error.detail if isinstance(error, EnginesError) else "no answer in time"
            log.warning(problem, backend=self._backend_id, error=type(error).__name__, detail=detail)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _close_later(driver: DocumentDriver) -> None:
    """A call that began on the former driver may take as long as its deadline."""
    try:
        await asyncio.sleep(TIMEOUT_S)
    finally:
        await driver.close()


def _now() -> float:
    """What timers go by, as all of this is about waiting."""
    return asyncio.get_running_loop().time()


def _digest(secrets: Mapping[str, Secret]) -> bytes:
    """Tells whether a value changed, without a second copy of it."""
    values = sorted((name, secret.reveal()) for name, secret in secrets.items())
    return hashlib.sha256(msgspec.json.encode(values)).digest()
