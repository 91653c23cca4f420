"""The blocking client: the same methods, without an event loop."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest

from engines.client import AsyncEngines, Engines, NewNote, RetryPolicy
from engines.client import loop as facade
from engines.errors import EnginesError, NotFound
from tests.client.loopback import Answer, Loopback, Silence, Stream, loopback
from tests.client.test_sse import frames

NOTE = {"note_id": "n1", "tenant_id": "t_a", "etag": '"1"', "content": "x"}


class ServerThread:
    """The scripted server on a thread of its own, because the client under test blocks this one."""

    def __init__(self) -> None:
        self.server: Loopback | None = None
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        async with loopback() as self.server:
            self._ready.set()
            await self._done.wait()

    def close(self) -> None:
        assert self._loop is not None
        assert self._done is not None
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)


@pytest.fixture
def server() -> Iterator[Loopback]:
    running = ServerThread()
    assert running.server is not None
    yield running.server
    running.close()


def test_every_method_of_the_client_has_its_blocking_twin() -> None:
    async_client, twin = AsyncEngines("http://localhost:1"), Engines("http://localhost:1")
    try:
        groups = {name: group for name, group in vars(async_client).items() if not name.startswith("_")}
        assert groups.keys() == {name for name in vars(twin) if not name.startswith("_")}
        for name, group in groups.items():
            methods = {one for one in dir(group) if not one.startswith("_")}
            twins = {one for one in dir(getattr(twin, name)) if not one.startswith("_")}
            assert methods == twins, name
            for method in methods:
                _same_parameters(getattr(group, method), getattr(getattr(twin, name), method))
    finally:
        twin.close()
    own = {name for name in dir(AsyncEngines) if not name.startswith("_")}
    assert own == {name for name in dir(Engines) if not name.startswith("_")}


def _same_parameters(method: object, twin: object) -> None:
    ours, theirs = inspect.signature(method), inspect.signature(twin)  # type: ignore[arg-type]
    assert list(ours.parameters) == list(theirs.parameters)
    assert not inspect.iscoroutinefunction(twin)
    assert not inspect.isasyncgenfunction(twin)


def test_a_call_waits_for_its_answer(server: Loopback) -> None:
    server.script.append(Answer(201, json=NOTE))
    with Engines(server.url, "t0k") as client:
        assert client.notes.create(NewNote(content="x")).note_id == "n1"
    assert server.received[0].headers["Authorization"] == "Bearer t0k"


def test_errors_are_raised_where_the_call_was_made(server: Loopback) -> None:
    with Engines(server.url) as client, pytest.raises(NotFound):
        client.notes.get("n1")


def test_pages_are_walked_by_an_ordinary_loop(server: Loopback) -> None:
    server.script.append(Answer(200, json={"items": [NOTE], "after": "p1"}))
    server.script.append(Answer(200, json={"items": [NOTE], "after": None}))
    with Engines(server.url) as client:
        assert len(list(client.notes.each())) == 2


def test_following_can_be_left_at_any_time(server: Loopback) -> None:
    server.script.append(Stream((frames([1, 2, 3]),), end="open"))
    with Engines(server.url) as client:
        events = client.events.follow()
        assert [next(events).position for _ in range(2)] == [1, 2]
        events.close()


def test_a_bound_client_shares_the_connections(server: Loopback) -> None:
    server.script.append(Answer(200, json=NOTE))
    with Engines(server.url) as client:
        client.bound(run_id="r1").notes.get("n1")
    assert server.received[0].headers["X-Run-Id"] == "r1"


def test_several_threads_use_one_client(server: Loopback) -> None:
    server.script.extend([Answer(200, json=NOTE)] * 40)
    with Engines(server.url) as client:
        threads = [
            threading.Thread(target=lambda: [client.notes.get("n1") for _ in range(10)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert len(server.received) == 40


def test_closing_ends_what_is_under_way_and_the_thread(server: Loopback) -> None:
    server.script.append(Silence())
    client = Engines(server.url, retry=RetryPolicy(attempts_max=1))
    raised: list[BaseException] = []

    def wait_for_ever() -> None:
        try:
            client.notes.get("n1")
        except BaseException as error:  # noqa: BLE001  whatever ends the wait
            raised.append(error)

    caller = threading.Thread(target=wait_for_ever)
    caller.start()
    deadline = time.monotonic() + 10
    while not server.received and time.monotonic() < deadline:
        time.sleep(0.005)
    client.close()
    caller.join(10)
    assert len(raised) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "engines-client"]


def test_closing_twice_is_harmless_and_a_closed_client_says_so(server: Loopback) -> None:
    client = Engines(server.url)
    client.close()
    client.close()
    with pytest.raises(EnginesError, match="closed"):
        client.notes.get("n1")


@pytest.mark.parametrize("moment", ["before it is passed on", "as it begins", "while it waits"])
def test_an_interrupted_call_has_ended_before_the_interrupt_goes_on(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at any moment of a call: the coroutine has ended before the caller sees KeyboardInterrupt."""
    loop, started, ended = facade.Loop(), threading.Event(), threading.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    pass_on = loop._loop.call_soon_threadsafe

    def interrupted(*args: Any) -> asyncio.Handle:
        """Passes on what it is given; the first time Ctrl-C falls into it."""
        monkeypatch.undo()
        if moment == "before it is passed on":
            signal.raise_signal(signal.SIGINT)
        handle = pass_on(*args)
        assert started.wait(10)
        if moment == "as it begins":
            signal.raise_signal(signal.SIGINT)
        main = threading.get_ident()
        threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        return handle

    monkeypatch.setattr(loop._loop, "call_soon_threadsafe", interrupted)
    coroutine = work()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run(coroutine)
        assert ended.is_set() == started.is_set()
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    finally:
        loop.close()


def test_a_call_from_inside_its_own_loop_is_refused() -> None:
    loop = facade.Loop()

    async def nested() -> None:
        async def nothing() -> None:
            pass

        loop.run(nothing())

    with pytest.raises(EnginesError, match="own event loop"):
        loop.run(nested())
    loop.close()


def test_an_iterator_is_ended_where_its_loop_was_left() -> None:
    loop = facade.Loop()
    ended: list[str] = []

    class Numbers:
        def count(self) -> AsyncGenerator[int, None]:
            # Kept, so that it is not ended merely because nobody holds it any more.
            self.counting = self._count()
            return self.counting

        async def _count(self) -> AsyncGenerator[int, None]:
            try:
                for number in range(100):
                    yield number
            finally:
                ended.append("ended")

    class NumbersTwin(facade.Group[Numbers]):
        count = facade.iterating(Numbers.count)

    numbers = Numbers()
    for number in NumbersTwin(numbers, loop).count():
        if number == 3:
            break
    assert ended == ["ended"]
    loop.close()
