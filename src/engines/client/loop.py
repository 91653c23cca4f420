"""How the blocking client waits: one background thread with one event loop.

Owns the loop's thread, and the translation of a coroutine into a call and of an asynchronous iterator into an
iterator. Leaves which methods there are to `client/blocking.py`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar

from engines.errors import EnginesError

G = TypeVar("G")
P = ParamSpec("P")
T = TypeVar("T")

# How long an interrupted call may take to let go of what it holds, and closing to end what is under way.
CLOSE_TIMEOUT_S: Final = 10.0
_END: Final = object()


class Loop:
    """A thread of its own that runs an event loop until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engines-client", daemon=True)
        self._thread.start()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`. Where the wait is interrupted the work is cancelled, and waited for to let go."""
        if self._closed or threading.current_thread() is self._thread:
            work.close()
            raise EnginesError("this client is closed, or called from inside its own event loop")
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(functools.partial(_settle, answer))

        def stop() -> None:
            if not tasks:  # the interrupt came before `start` was passed to the loop
                start()
            tasks[0].cancel()

        try:
            self._loop.call_soon_threadsafe(start)
            return answer.result()
        finally:
            if not answer.done():
                self._loop.call_soon_threadsafe(stop)
                concurrent.futures.wait([answer], CLOSE_TIMEOUT_S)

    async def join(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work` in a coroutine of another event loop, which goes on meanwhile."""
        if self._closed:
            work.close()
            raise EnginesError("this client is closed")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """End what is under way, then the thread."""
        if self._closed:
            return
        self.run(_cancel_others())
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._loop.close()


def _settle(answer: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        answer.set_exception(concurrent.futures.CancelledError())
    elif (error := task.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(task.result())


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), CLOSE_TIMEOUT_S)


class Group(Generic[G]):
    """The blocking twin of one group of methods."""

    def __init__(self, group: G, loop: Loop) -> None:
        self._group = group
        self._loop = loop


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """The method that runs `method` on the loop's thread and waits for it."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        answer: T = self._loop.run(method(self._group, *args, **kwargs))
        return answer

    functools.update_wrapper(call, method)
    return call


def iterating(
    method: Callable[Concatenate[Any, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Any, P], Generator[T, None, None]]:
    """The method that iterates over what `method` gives; leaving the loop early ends it there too."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        found: Any = method(self._group, *args, **kwargs)
        try:
            while (item := self._loop.run(_next(found))) is not _END:
                yield item
        finally:
            if not self._loop.closed:
                self._loop.run(found.aclose())

    functools.update_wrapper(call, method)
    return call


async def _next(found: Any) -> Any:
    return await anext(found, _END)
