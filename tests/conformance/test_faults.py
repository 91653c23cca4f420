"""The faults themselves: each does what it says, and nothing else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio

from engines.errors import BackendRefused, OutcomeUnknown, Unavailable
from engines.ports.documents import ABSENT, DocumentDriver
from engines.testing.clock import START_S, ManualClock
from engines.testing.documents import driver
from engines.testing.documents.harness import bodies, put, write
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan, FaultyDriver
from engines.testing.proxy import Behaviour, FaultProxy

__all__ = ["driver"]

UNKNOWN = (Fault.LOST_APPLIED, Fault.LOST_UNAPPLIED, Fault.LATE)
EVERYTHING = FaultPlan(write_refused=0.2, write_lost_applied=0.2, write_lost_unapplied=0.2, write_late=0.2)


class TestFaultyDriver:
    @pytest.mark.parametrize("fault", Fault)
    async def test_each_fault_raises_its_error_and_delivers_as_it_says(
        self, driver: DocumentDriver, fault: Fault
    ) -> None:
        faulty = FaultyDriver(driver, FaultPlan(late_s_max=0.5))
        faulty.script(fault)
        raised: type[Exception] | None = None
        try:
            await write(faulty, put("k1", "1", ABSENT))
        except (Unavailable, BackendRefused, OutcomeUnknown) as error:
            raised = type(error)
        refusals = {Fault.NONE: None, Fault.REFUSED: Unavailable, Fault.FORBIDDEN: BackendRefused}
        assert raised is refusals.get(fault, OutcomeUnknown)
        at_once = await bodies(driver, "k1")
        assert bool(at_once) == (fault in (Fault.NONE, Fault.LOST_APPLIED))
        await faulty.late_writes_delivered()
        delivered = await bodies(driver, "k1")
        assert bool(delivered) == (fault in (Fault.NONE, Fault.LOST_APPLIED, Fault.LATE))
        assert faulty.seen == {fault: 1}

    async def test_a_lost_conflict_looks_like_any_lost_reply(self, driver: DocumentDriver) -> None:
        await write(driver, put("k1", "1"))
        faulty = FaultyDriver(driver)
        for fault in UNKNOWN:
            faulty.script(fault)
            with pytest.raises(OutcomeUnknown):
                await write(faulty, put("k1", "2", ABSENT))
        await faulty.late_writes_delivered()
        assert await bodies(driver, "k1") == {"k1": "1"}

    async def test_one_seed_gives_one_sequence_of_faults(self, driver: DocumentDriver) -> None:
        async def sequence(seed: int) -> list[str]:
            faulty = FaultyDriver(driver, EVERYTHING, random=Random(seed))
            seen = []
            for number in range(40):
                results = await asyncio.gather(
                    write(faulty, put(f"k{seed}.{number}")), return_exceptions=True
                )
                seen.append(type(results[0]).__name__)
            await faulty.late_writes_delivered()
            assert set(faulty.seen) == set(Fault) - {Fault.FORBIDDEN}
            return seen

        assert await sequence(1) == await sequence(1) != await sequence(2)

    async def test_a_held_write_waits_and_later_ones_pass_it(self, driver: DocumentDriver) -> None:
        faulty = FaultyDriver(driver)
        held = faulty.hold_next_write()
        waiting = asyncio.create_task(write(faulty, put("k1")))
        await held.arrived()
        await write(faulty, put("k2"))
        assert await bodies(driver, "k1", "k2") == {"k2": "{}"}
        held.release()
        await waiting
        assert set(await bodies(driver, "k1", "k2")) == {"k1", "k2"}

    async def test_without_a_plan_nothing_happens(self, driver: DocumentDriver) -> None:
        faulty = FaultyDriver(driver, NO_FAULTS, random=Random(3))
        for number in range(50):
            await write(faulty, put(f"k{number}"))
        assert faulty.seen == {Fault.NONE: 50}

    def test_chances_beyond_certainty_are_refused(self) -> None:
        with pytest.raises(AssertionError):
            FaultPlan(write_refused=0.6, write_late=0.6)


class TestFaultProxy:
    """Against a server that answers each line with the line, doubled."""

    @pytest.fixture
    def received(self) -> list[bytes]:
        return []

    @pytest_asyncio.fixture
    async def proxy(self, received: list[bytes]) -> AsyncIterator[FaultProxy]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                while line := await reader.readline():
                    received.append(line)
                    writer.write(line.rstrip() * 2 + b"\n")
            writer.transport.abort()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server, FaultProxy(server.sockets[0].getsockname()) as relay:
            yield relay

    async def test_all_is_relayed_while_all_is_well(self, proxy: FaultProxy) -> None:
        assert await converse(proxy, b"a" * 50_000 + b"\n") == b"a" * 100_000 + b"\n"

    async def test_a_reply_is_cut_after_the_server_has_the_request(
        self, proxy: FaultProxy, received: list[bytes]
    ) -> None:
        proxy.behave(Behaviour(reply_bytes_max=2))
        with pytest.raises(ConnectionResetError):
            await converse(proxy, b"ab\n")
        assert received == [b"ab\n"]

    async def test_a_request_is_cut_before_the_server_has_all_of_it(
        self, proxy: FaultProxy, received: list[bytes]
    ) -> None:
        proxy.behave(Behaviour(request_bytes_max=1))
        with pytest.raises(ConnectionResetError):
            await converse(proxy, b"ab\n")
        assert b"ab\n" not in received

    async def test_a_fault_that_comes_once_is_over_then(self, proxy: FaultProxy) -> None:
        proxy.behave(Behaviour(reply_bytes_max=0, once=True))
        with pytest.raises(ConnectionResetError):
            await converse(proxy, b"ab\n")
        assert await converse(proxy, b"cd\n") == b"cdcd\n"

    @pytest.mark.parametrize("hang", [True, False], ids=["hang", "no replies"])
    async def test_silence_keeps_requests_only_where_everything_hangs(
        self, proxy: FaultProxy, received: list[bytes], *, hang: bool
    ) -> None:
        proxy.behave(Behaviour(hang=hang, drop_replies=not hang))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await converse(proxy, b"ab\n")
        assert received == ([] if hang else [b"ab\n"])

    @pytest.mark.parametrize("slow", [Behaviour(delay_s=0.05), Behaviour(bytes_per_s=100)])
    async def test_a_slow_way_is_slow_and_whole(self, proxy: FaultProxy, slow: Behaviour) -> None:
        proxy.behave(slow)
        began = asyncio.get_running_loop().time()
        assert await converse(proxy, b"abcd\n") == b"abcdabcd\n"
        assert asyncio.get_running_loop().time() - began >= 0.1

    async def test_what_is_refused_is_accepted_again_at_the_same_address(self, proxy: FaultProxy) -> None:
        address = proxy.address
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await converse(proxy, b"ab\n")
        await proxy.accept()
        assert (proxy.address, await converse(proxy, b"cd\n")) == (address, b"cdcd\n")

    async def test_a_reset_ends_open_connections_alone(self, proxy: FaultProxy) -> None:
        reader, writer = await asyncio.open_connection(*proxy.address)
        writer.write(b"ab\n")
        assert await reader.readline() == b"abab\n"
        await proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        writer.transport.abort()
        assert await converse(proxy, b"cd\n") == b"cdcd\n"


async def converse(proxy: FaultProxy, line: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*proxy.address, limit=2**20)
    try:
        writer.write(line)
        await writer.drain()
        return await reader.readline()
    finally:
        writer.transport.abort()


class TestManualClock:
    def test_time_passes_only_when_told_and_jumps_only_on_the_wall(self) -> None:
        clock = ManualClock()
        clock.advance(2.5)
        clock.jump(-10)
        assert (clock.now(), clock.monotonic()) == (START_S - 7.5, 2.5)
