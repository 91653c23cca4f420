"""The rules on a bad network: what an error says of a write is true, and a driver gets well by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from random import Random

import pytest
import pytest_asyncio

from engines.errors import EnginesError, OutcomeUnknown, Unavailable
from engines.ports.documents import ABSENT, DocumentDriver
from engines.testing.documents.concurrency import RECOVERY_TIMEOUT_S, assert_usable
from engines.testing.documents.harness import (
    PARTITION,
    DocumentHarness,
    bodies,
    get,
    offered,
    put,
    read_keys,
    write,
)
from engines.testing.proxy import WELL, Behaviour, FaultProxy

# How many of two documents may be there after a write that ended so.
TRUE_COUNTS: Mapping[type[EnginesError] | None, tuple[int, ...]] = {
    None: (2,),
    Unavailable: (0,),
    OutcomeUnknown: (0, 2),
}
LARGE = '"' + "x" * 300_000 + '"'


async def recover(client: DocumentDriver) -> None:
    """The client answers again by itself."""
    async with asyncio.timeout(RECOVERY_TIMEOUT_S):
        while True:
            with contextlib.suppress(Unavailable):
                await client.get(PARTITION, ["warm"])
                break
            await asyncio.sleep(0.01)
        await assert_usable(client)


async def appear(driver: DocumentDriver, *keys: str) -> None:
    """Returns once all of `keys` are there."""
    async with asyncio.timeout(RECOVERY_TIMEOUT_S):
        while len(await driver.get(PARTITION, keys)) < len(keys):  # noqa: ASYNC110 (it is another process)
            await asyncio.sleep(0.005)


@pytest.mark.asyncio
class TestNetwork:
    @pytest_asyncio.fixture
    async def proxy(self, harness: DocumentHarness) -> AsyncIterator[FaultProxy]:
        async with FaultProxy(offered(harness.network).address) as relay:
            yield relay

    @pytest_asyncio.fixture
    async def distant(
        self, driver: DocumentDriver, harness: DocumentHarness, proxy: FaultProxy
    ) -> AsyncIterator[DocumentDriver]:
        """A client behind the proxy, with one connection that has done each kind of call before.

        `driver` has provisioned the storage; on its direct way a test sees what really happened.
        """
        await get(driver, "warm")
        client = offered(harness.network).open(*proxy.address)
        await write(client, put("warm"))
        await write(client, put("warm1", "1", ABSENT), put("warm2"))
        await get(client, "warm2")
        yield client
        proxy.behave(WELL)
        await client.close()

    async def test_a_refused_connection_is_unavailable_until_it_is_accepted(
        self, distant: DocumentDriver, proxy: FaultProxy
    ) -> None:
        await proxy.refuse()
        await asyncio.sleep(0.05)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await distant.get(PARTITION, ["warm"])
            with pytest.raises(Unavailable):
                await write(distant, put("k1"))
        await proxy.accept()
        await recover(distant)
        assert await bodies(distant, "k1") == {}

    @pytest.mark.parametrize("batch", [False, True], ids=["alone", "in a batch"])
    async def test_a_reply_lost_after_the_server_acted_is_outcome_unknown(
        self, driver: DocumentDriver, distant: DocumentDriver, proxy: FaultProxy, *, batch: bool
    ) -> None:
        keys = ["k1", "k2"] if batch else ["k1"]
        proxy.behave(Behaviour(reply_bytes_max=0))
        with pytest.raises(OutcomeUnknown):
            await write(distant, *(put(key, "1") for key in keys))
        await appear(driver, *keys)
        proxy.behave(WELL)
        await recover(distant)

    async def test_a_request_cut_in_its_middle_changes_nothing(
        self, driver: DocumentDriver, distant: DocumentDriver, proxy: FaultProxy
    ) -> None:
        for ops in ([put("k1", LARGE)], [put("k1", LARGE), put("k2", LARGE)]):
            proxy.behave(Behaviour(request_bytes_max=50_000))
            with pytest.raises((OutcomeUnknown, Unavailable)):
                await write(distant, *ops)
            proxy.behave(WELL)
            await recover(distant)
        assert await bodies(driver, "k1", "k2") == {}

    async def test_a_read_whose_reply_breaks_off_is_unavailable(
        self, driver: DocumentDriver, distant: DocumentDriver, proxy: FaultProxy
    ) -> None:
        await write(driver, put("k1", LARGE))
        for limit in (0, 1, 1_000, 200_000):
            proxy.behave(Behaviour(reply_bytes_max=limit))
            with pytest.raises(Unavailable):
                await distant.get(PARTITION, ["k1"])
            proxy.behave(Behaviour(reply_bytes_max=limit))
            with pytest.raises(Unavailable):
                await distant.scan(PARTITION, above="k", below="l", limit=10, reverse=False)
            proxy.behave(WELL)
            await recover(distant)
        assert await bodies(distant, "k1") == {"k1": LARGE}

    @pytest.mark.parametrize(
        "behaviour", [Behaviour(hang=True), Behaviour(drop_replies=True)], ids=["hang", "no replies"]
    )
    async def test_callers_that_give_up_on_silence_leave_the_driver_usable(
        self, distant: DocumentDriver, proxy: FaultProxy, behaviour: Behaviour
    ) -> None:
        async def give_up(number: int) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await (write(distant, put(f"k{number}")) if number % 2 else get(distant, "warm"))

        proxy.behave(behaviour)
        await asyncio.gather(*(give_up(number) for number in range(20)))
        proxy.behave(WELL)
        await recover(distant)

    async def test_idle_connections_that_were_reset_are_replaced(
        self, distant: DocumentDriver, proxy: FaultProxy
    ) -> None:
        await asyncio.gather(*(get(distant, "warm") for _ in range(8)))
        await proxy.reset()
        await recover(distant)

    async def test_a_slow_and_narrow_network_changes_no_answer(
        self, distant: DocumentDriver, proxy: FaultProxy
    ) -> None:
        proxy.behave(Behaviour(delay_s=0.005, bytes_per_s=5_000_000))
        await write(distant, put("k1", LARGE, ABSENT))
        await write(distant, put("k2", LARGE, ABSENT), put("k3", LARGE))
        assert await bodies(distant, "k1", "k2", "k3") == dict.fromkeys(("k1", "k2", "k3"), LARGE)
        assert await read_keys(distant, above="k", below="l") == ["k1", "k2", "k3"]

    @pytest.mark.parametrize("seed", range(4))
    async def test_under_resets_at_random_moments_every_error_tells_the_truth(
        self, driver: DocumentDriver, distant: DocumentDriver, proxy: FaultProxy, seed: int
    ) -> None:
        random = Random(seed)
        outcomes: dict[int, type[EnginesError] | None] = {}

        async def attempt(number: int) -> None:
            await asyncio.sleep(random.uniform(0, 0.3))
            try:
                await write(distant, put(f"k{number}a", "1", ABSENT), put(f"k{number}b", "1"))
            except (Unavailable, OutcomeUnknown) as error:
                outcomes[number] = type(error)
            else:
                outcomes[number] = None

        async def disturb() -> None:
            for _ in range(15):
                await asyncio.sleep(random.uniform(0, 0.03))
                await proxy.reset()

        await asyncio.gather(disturb(), *(attempt(number) for number in range(80)))
        await recover(distant)
        for number, error in outcomes.items():
            found = await driver.get(PARTITION, [f"k{number}a", f"k{number}b"])
            assert len(found) in TRUE_COUNTS[error], f"write {number} ended as {error}"
