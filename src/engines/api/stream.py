"""Server-sent events: a log followed over HTTP (WHATWG HTML, section 9.2).

Owns framing, the heartbeat, asking again whether the follower still may, and an orderly end: when the client
leaves, when the server stops, when the right to read ends, and when the place is no longer kept. The events
that came together leave as one write, and the next are read once that one was taken: a slow reader costs one
batch, as text. Leaves following to the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import structlog

from engines.api.call import Call
from engines.api.protocol import ON_SHUTDOWN
from engines.api.reply import internal_problem_reply, problem_reply
from engines.core.slots import Slots
from engines.errors import EnginesError, Forbidden, Gone
from engines.scope import RequestContext
from engines.stores.events import EventText

HEARTBEAT_S: Final = 15.0
# Half of the second within which a revoked key must be of no use; the directory takes the other half.
RECHECK_S: Final = 0.4
# How long a client waits before it comes back after a broken connection.
RETRY_MS: Final = 1_000
# Of one process. Each follower holds a connection, a few tasks and an open log, and reads when it is behind.
FOLLOWERS_TENANT_MAX: Final = 250
FOLLOWERS_MAX: Final = 1_000
FOLLOWERS_RETRY_S: Final = 5.0
MEDIA_TYPE: Final = "text/event-stream"

_HEARTBEAT: Final = b": still here\n\n"
_FIELDS: Final = ((b"content-type", MEDIA_TYPE.encode()), (b"x-accel-buffering", b"no"))
log = structlog.get_logger(__name__)

Batches = AsyncGenerator[tuple[EventText, ...], None]


def follower_slots() -> Slots:
    """Room for the followers of one process."""
    return Slots(
        "followers",
        tenant_max=FOLLOWERS_TENANT_MAX,
        process_max=FOLLOWERS_MAX,
        retry_after_s=FOLLOWERS_RETRY_S,
    )


class EventStream:
    """The answer of a call that follows a log. It closes `batches`, and asks for `permission` again.

    It holds a follower's slot from when it is made until it was sent: whoever makes one sends it. Raises
    Throttled where there is none.
    """

    def __init__(self, call: Call, context: RequestContext, batches: Batches, *, permission: str) -> None:
        call.followers.take(context.tenant_id)
        self._call = call
        self._context = context
        self._batches = batches
        self._permission = permission
        self._stopping = asyncio.Event()

    async def send(self, call: Call) -> None:
        try:
            await self._send(call)
        finally:
            call.followers.give_back(self._context.tenant_id)

    async def _send(self, call: Call) -> None:
        call.scope[ON_SHUTDOWN] = self._stopping.set
        waiting = [
            asyncio.create_task(self._stopping.wait(), name="stream-stop"),
            asyncio.create_task(self._client_leaves(), name="stream-leave"),
        ]
        self._call.metrics.streams.inc()
        try:
            await call.begin(200, _FIELDS)
            await call.write(b"retry: %d\n\n" % RETRY_MS)
            await call.write(await self._follow(waiting), is_last=True)
        finally:
            self._call.metrics.streams.dec()
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await self._batches.aclose()

    async def _client_leaves(self) -> None:
        while (await self._call.receive())["type"] != "http.disconnect":
            pass

    async def _follow(self, waiting: Sequence[asyncio.Task[object]]) -> bytes:
        """Pass on what comes until somebody ends it. The last bytes say why."""
        coming: asyncio.Task[tuple[EventText, ...] | None] | None = None
        silent_since = self._call.engines.clock.monotonic()
        try:
            while True:
                coming = coming or asyncio.create_task(_next(self._batches), name="stream-next")
                await asyncio.wait((coming, *waiting), timeout=RECHECK_S, return_when=asyncio.FIRST_COMPLETED)
                if any(task.done() for task in waiting):
                    return b""
                await self._check_still_allowed()
                now = self._call.engines.clock.monotonic()
                if coming.done():
                    batch, coming = coming.result(), None
                    if batch is None:
                        return b""
                    piece = [frames(batch)]
                    del batch
                    await self._call.write(piece.pop())
                    silent_since = now
                elif now - silent_since >= HEARTBEAT_S:
                    await self._call.write(_HEARTBEAT)
                    silent_since = now
        except EnginesError as error:
            return self._farewell(error)
        except Exception:
            log.exception("unexpected error in a stream", request_id=self._call.request_id)
            return _message("problem", internal_problem_reply(self._call.request_id).body)
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    async def _check_still_allowed(self) -> None:
        """The credential still counts, and stands for what it stood for. Raises what ended it."""
        contexts = self._call.engines.contexts
        fresh = await contexts.context_of(self._call.scope["headers"], request_id=self._call.request_id)
        fresh.require_data(self._permission)
        if fresh.scope() != self._context.scope():
            raise Forbidden("the request would now mean another place; follow it anew")

    def _farewell(self, error: EnginesError) -> bytes:
        name = "gone" if isinstance(error, Gone) else "problem"
        return _message(name, problem_reply(error, self._call.request_id).body)


def frames(events: Sequence[EventText]) -> bytes:
    """Events as one piece of a stream; `id` is the cursor that goes on behind each.

    Its text has no line ends, so one `data:` line holds an event.
    """
    return b"".join(b"id: %s\ndata: %s\n\n" % (event.cursor.encode(), event.text) for event in events)


def _message(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


async def _next(batches: Batches) -> tuple[EventText, ...] | None:
    """The next batch; None at the end."""
    return await anext(batches, None)
