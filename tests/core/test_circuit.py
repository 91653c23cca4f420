"""A backend that does not answer is left alone, and used again once it does."""

import asyncio

import msgspec
import pytest

from engines.clock import SystemClock
from engines.core.circuit import FAILING_S, FAILURES_MAX, TRY_S, Circuit
from engines.core.documents import Documents
from engines.drivers.registry import document_driver
from engines.errors import Unavailable
from engines.ids import Ids
from engines.ports.documents import ALWAYS, Put
from engines.ports.secrets import Secret
from engines.testing.clock import ManualClock
from engines.testing.log.harness import Watched
from engines.testing.proxy import WELL, Behaviour, FaultProxy

PARTITION = "kit.t_a.prod.0"


def fail(circuit: Circuit, clock: ManualClock, *, over_s: float, count: int) -> None:
    for _ in range(count):
        circuit.failed()
        clock.advance(over_s / count)


def test_it_opens_after_many_failures_over_some_time_and_an_answer_closes_it() -> None:
    clock = ManualClock()
    circuit = Circuit(clock)
    fail(circuit, clock, over_s=FAILING_S + 0.1, count=FAILURES_MAX - 1)
    circuit.admit()
    circuit.failed()
    circuit.admit()  # It is open now: one tries, the others learn at once.
    with pytest.raises(Unavailable) as caught:
        circuit.admit()
    assert caught.value.retry_after_s == TRY_S
    clock.advance(TRY_S)
    circuit.admit()
    circuit.succeeded()
    for _ in range(3):
        circuit.admit()


def test_a_short_absence_and_one_with_answers_leave_it_closed() -> None:
    clock = ManualClock()
    circuit = Circuit(clock)
    fail(circuit, clock, over_s=FAILING_S / 2, count=10 * FAILURES_MAX)
    assert not circuit.is_open
    circuit.succeeded()
    for _ in range(5):
        fail(circuit, clock, over_s=FAILING_S, count=FAILURES_MAX - 1)
        circuit.succeeded()
    assert not circuit.is_open


async def test_a_hung_database_costs_its_callers_little_once_that_is_known(postgres_database: str) -> None:
    clock = SystemClock()
    module = document_driver("postgres")
    config, password = module.config_from_url(postgres_database)
    async with FaultProxy((config["host"], config["port"])) as proxy:
        host, port = proxy.address
        config = msgspec.convert({**config, "host": host, "port": port}, module.Config)
        driver = module.open_driver(config, {"password": Secret(password or "")}, clock)
        watched, circuit = Watched(driver), Circuit(clock)
        documents = Documents(watched, ids=Ids(clock), clock=clock, timeout_s=1.0, circuit=circuit)
        await driver.provision()
        await driver.write(PARTITION, [Put("a", "1", ALWAYS)], write_id="a" * 32)
        proxy.behave(Behaviour(hang=True))
        while not circuit.is_open:
            assert await refusals(documents, FAILURES_MAX) == FAILURES_MAX
        watched.calls.clear()
        assert await refusals(documents, 100) == 100
        assert watched.calls["get"] < 10, "one now and then tries; without a circuit all would"
        proxy.behave(WELL)
        healed_s = clock.monotonic()
        while await refusals(documents, 1):
            assert clock.monotonic() - healed_s < 5
        await documents.close()


async def refusals(documents: Documents, count: int) -> int:
    """How many of so many reads at once are refused."""
    reads = (documents.get(PARTITION, "a") for _ in range(count))
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    return sum(isinstance(outcome, Unavailable) for outcome in outcomes)
