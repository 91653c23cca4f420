"""Refusals of identity, told to the spine: at most one event a second for each principal, with a count.

Owns what such an event says, the bound on how many are sent, and that nothing is lost silently: what is held
back is counted in the next event, which follows within a second or when the process ends. A refusal stays a
refusal whether or not it could be told. Leaves appending to the injected `emit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, Protocol

import msgspec
import structlog

from engines.clock import Clock, timestamp
from engines.errors import ContextMismatch
from engines.scope import SYSTEM_TENANT

INTERVAL_S: Final = 1.0
EMIT_TIMEOUT_S: Final = 2.0
# Principals held apart at one time; the refusals of any others within that second are told as one event.
PRINCIPALS_MAX: Final = 1_000
NAMED_CHARACTERS_MAX: Final = 128
_OTHERS: Final = ("", "")

Emit = Callable[[str, str, str, Mapping[str, Any]], Awaitable[None]]
"""(tenant_id, user_id, request_id, payload): one audit event on that tenant's spine."""
Sleep = Callable[[float], Awaitable[None]]

log = structlog.get_logger(__name__)


class Refused(Protocol):
    """Whoever was refused: a RequestContext, a Principal, or a Refusal."""

    @property
    def tenant_id(self) -> str: ...
    @property
    def user_id(self) -> str: ...
    @property
    def request_id(self) -> str: ...


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Who was refused, and what they named. `tenant_id`: whose spine is told."""

    tenant_id: str
    user_id: str
    request_id: str
    field: str | None
    named: str | None = None


class RefusedContext(ContextMismatch):
    """A mismatch found before there was a context: it carries who the caller is, for the audit."""

    def __init__(self, detail: str, *, refusal: Refusal) -> None:
        super().__init__(detail, field=refusal.field)
        self.refusal = refusal


# To a caller it is a ContextMismatch like any other.
RefusedContext.code = ContextMismatch.code


class _Window:
    """One principal's second: what was refused since its last event."""

    __slots__ = ("count", "last")

    def __init__(self) -> None:
        self.count = 0
        self.last: Refusal | None = None


class RefusalAudit:
    """Tells refusals. One instance a process; `close` tells what is still held back."""

    def __init__(
        self,
        emit: Emit,
        clock: Clock,
        *,
        sleep: Sleep = asyncio.sleep,
        principals_max: int = PRINCIPALS_MAX,
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._sleep = sleep
        self._principals_max = principals_max
        self._windows: dict[tuple[str, str], _Window] = {}
        self._followers: set[asyncio.Task[None]] = set()
        self._tellings: set[asyncio.Task[None]] = set()
        self._closed = False

    async def record(self, mismatch: ContextMismatch, who: Refused | None = None) -> None:
        """Tell of a refusal, at once or counted within a second. Never raises but for cancellation.

        `who` is the context or principal where there was one; a `RefusedContext` knows by itself.
        """
        refusal = _refusal(mismatch, who)
        if refusal is None:
            log.warning("a mismatch of nobody known", field=mismatch.field)
            return
        principal = (refusal.tenant_id, refusal.user_id)
        if principal not in self._windows and len(self._windows) >= self._principals_max:
            principal = _OTHERS
        window = self._windows.get(principal)
        if window is not None:
            window.count += 1
            window.last = refusal
            return
        if not self._closed:
            self._windows[principal] = _Window()
            _own(self._followers, self._follow(principal))
        await self._tell(principal, refusal, 1)

    async def close(self) -> None:
        """Tell what is held back. Later refusals are told one by one."""
        self._closed = True
        for follower in self._followers:
            follower.cancel()
        windows, self._windows = self._windows, {}
        for principal, window in windows.items():
            if window.last is not None:
                _own(self._tellings, self._emit_within_time(principal, window.last, window.count))
        pending = self._followers | self._tellings
        if pending:
            await asyncio.wait(pending)

    async def _follow(self, principal: tuple[str, str]) -> None:
        """The principal's window: an event at its end if anything was held back, and then another second."""
        while True:
            await self._sleep(INTERVAL_S)
            window = self._windows[principal]
            if window.last is None:
                del self._windows[principal]
                return
            self._windows[principal] = _Window()
            await self._tell(principal, window.last, window.count)

    async def _tell(self, principal: tuple[str, str], refusal: Refusal, count: int) -> None:
        """By a task of its own: a caller that is cancelled, or `close`, does not break it off."""
        await asyncio.shield(_own(self._tellings, self._emit_within_time(principal, refusal, count)))

    async def _emit_within_time(self, principal: tuple[str, str], refusal: Refusal, count: int) -> None:
        payload: dict[str, Any] = {
            "action": "context.refused",
            "field": refusal.field,
            "named": refusal.named,
            "count": count,
            "at": timestamp(self._clock.now()),
        }
        tenant_id = refusal.tenant_id
        if principal == _OTHERS:
            tenant_id = SYSTEM_TENANT
            payload["others"] = True
        try:
            async with asyncio.timeout(EMIT_TIMEOUT_S):
                await self._emit(tenant_id, refusal.user_id, refusal.request_id, payload)
        except Exception as error:  # noqa: BLE001 (whatever broke, the caller was refused and stays so)
            log.warning(
                "a refusal could not be told",
                tenant_id=tenant_id,
                user_id=refusal.user_id,
                request_id=refusal.request_id,
                field=refusal.field,
                count=count,
                error=type(error).__name__,
            )


def _own(tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


def _refusal(mismatch: ContextMismatch, who: Refused | None) -> Refusal | None:
    if isinstance(mismatch, RefusedContext):
        return mismatch.refusal
    if who is None:
        return None
    return Refusal(
        tenant_id=who.tenant_id, user_id=who.user_id, request_id=who.request_id, field=mismatch.field
    )
