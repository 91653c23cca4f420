"""What `core/documents.py` makes of lost replies and refusals, on real drivers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from random import Random

import pytest
import pytest_asyncio

from engines.clock import SystemClock
from engines.core.documents import ATTEMPT_SHARE, TIMEOUT_S, Documents
from engines.errors import BackendRefused, Conflict, OutcomeUnknown, Unavailable
from engines.ids import Ids
from engines.ports.documents import ABSENT, ALWAYS, Delete, DocumentDriver, Match, Op
from engines.testing.clock import ManualClock
from engines.testing.documents import DocumentHarness, driver
from engines.testing.documents.harness import PARTITION, bodies, get, offered, put, write
from engines.testing.faults import NO_FAULTS, Fault, FaultPlan, FaultyDriver
from engines.testing.log.harness import Watched
from engines.testing.proxy import Behaviour, FaultProxy

__all__ = ["driver"]

SHORT_TIMEOUT_S = 0.3


@pytest.fixture
def faulty(driver: DocumentDriver) -> FaultyDriver:
    """The driver under test on a bad way; `driver` itself sees what really happened."""
    return FaultyDriver(driver)


def documents_on(faulty: DocumentDriver, *, timeout_s: float = TIMEOUT_S) -> Documents:
    clock = SystemClock()
    return Documents(faulty, ids=Ids(clock), clock=clock, timeout_s=timeout_s)


@pytest.fixture
def documents(faulty: FaultyDriver) -> Documents:
    return documents_on(faulty)


@pytest.fixture
def impatient(faulty: FaultyDriver) -> Documents:
    return documents_on(faulty, timeout_s=SHORT_TIMEOUT_S)


async def version_at(driver: DocumentDriver, key: str) -> str | None:
    doc = await get(driver, key)
    return None if doc is None else doc.version


class TestLostReply:
    @pytest.mark.parametrize("batch", [False, True], ids=["alone", "in a batch"])
    async def test_a_conditioned_write_that_landed_is_a_success_and_sent_once(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver, *, batch: bool
    ) -> None:
        faulty.script(Fault.LOST_APPLIED)
        ops: list[Op] = [put("k1", "1", ABSENT), *([put("k2")] if batch else [])]
        version = await documents.write(PARTITION, ops)
        assert await version_at(driver, "k1") == version
        assert faulty.seen.total() == 1

    async def test_a_conditioned_write_that_did_not_land_is_sent_again(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        faulty.script(Fault.LOST_UNAPPLIED, Fault.LOST_UNAPPLIED)
        version = await documents.write(PARTITION, [put("k1", "1", ABSENT)])
        assert await version_at(driver, "k1") == version
        assert faulty.seen.total() == 3

    async def test_an_unconditioned_write_that_landed_is_a_success(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        faulty.script(Fault.LOST_APPLIED)
        assert await documents.write(PARTITION, [put("k1")]) == await version_at(driver, "k1")
        assert faulty.seen.total() == 1

    @pytest.mark.parametrize("op", [put("k1", "2"), Delete("k1", ALWAYS)], ids=["put", "delete"])
    async def test_an_unconditioned_write_that_cannot_be_seen_is_not_repeated(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver, op: Op
    ) -> None:
        await write(driver, put("k1", "1"))
        faulty.script(Fault.LOST_UNAPPLIED)
        with pytest.raises(OutcomeUnknown):
            await documents.write(PARTITION, [op])
        assert faulty.seen.total() == 1
        assert await bodies(driver, "k1") == {"k1": "1"}

    async def test_a_late_delivery_before_the_second_attempt_is_the_same_success(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        first = await write(driver, put("k2", "1"))
        faulty.script(Fault.LATE)
        passing, second = faulty.hold_next_write(), faulty.hold_next_write()
        passing.release()
        writing = asyncio.create_task(
            documents.write(PARTITION, [put("k1", "1", ABSENT), put("k2", "2", Match(first))])
        )
        await asyncio.wait({writing, asyncio.create_task(second.arrived())}, return_when="FIRST_COMPLETED")
        await faulty.late_writes_delivered()
        second.release()
        version = await writing
        assert (await version_at(driver, "k1"), await version_at(driver, "k2")) == (version, version)

    async def test_a_conflict_with_somebody_else_after_a_lost_reply_settles_nothing(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        faulty.script(Fault.LOST_UNAPPLIED)
        passing, second = faulty.hold_next_write(), faulty.hold_next_write()
        passing.release()
        writing = asyncio.create_task(documents.write(PARTITION, [put("k1", "ours", ABSENT)]))
        await second.arrived()
        theirs = await write(driver, put("k1", "theirs", ABSENT))
        second.release()
        with pytest.raises(OutcomeUnknown):
            await writing
        assert await version_at(driver, "k1") == theirs

    async def test_a_conditioned_delete_that_landed_cannot_be_told_from_anothers(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        version = await write(driver, put("k1"))
        faulty.script(Fault.LOST_APPLIED)
        with pytest.raises(OutcomeUnknown):
            await documents.write(PARTITION, [Delete("k1", Match(version))])
        assert await bodies(driver, "k1") == {}

    async def test_a_write_id_of_an_op_settles_its_write_too(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        faulty.script(Fault.LOST_APPLIED)
        await documents.write(PARTITION, [put("k1", "1", ABSENT, write_id="e" * 32)])
        assert await version_at(driver, "k1") == "e" * 32

    async def test_a_backend_that_does_not_answer_in_time_leaves_the_outcome_unknown(
        self, impatient: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        faulty.hold_next_write()
        with pytest.raises(OutcomeUnknown):
            await impatient.write(PARTITION, [put("k1", "1", ABSENT)])
        assert await bodies(driver, "k1") == {}

    async def test_a_first_conflict_is_the_answer(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        await write(driver, put("k1", "1"))
        with pytest.raises(Conflict) as caught:
            await documents.write(PARTITION, [put("k1", "2", ABSENT)])
        assert (caught.value.keys, faulty.seen.total()) == (("k1",), 1)


class TestRefusal:
    async def test_a_write_that_was_not_applied_is_repeated_even_unconditioned(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        faulty.script(Fault.REFUSED, Fault.REFUSED)
        assert await documents.write(PARTITION, [put("k1")]) == await version_at(driver, "k1")
        assert faulty.seen.total() == 3

    async def test_refusals_until_the_deadline_are_unavailable(
        self, impatient: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        faulty.plan = FaultPlan(write_refused=1.0)
        with pytest.raises(Unavailable):
            await impatient.write(PARTITION, [put("k1")])
        assert faulty.seen[Fault.REFUSED] > 1
        assert await bodies(driver, "k1") == {}

    async def test_no_attempt_begins_so_late_that_it_would_be_cut_off(
        self, driver: DocumentDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a clock that moves in pauses alone: a machine that stands still is no attempt's fault."""
        clock, began_s = ManualClock(), list[float]()

        class Refusing(Watched):
            async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:  # noqa: ARG002
                began_s.append(clock.monotonic())
                raise Unavailable("no")

        async def pause(seconds: float) -> None:
            clock.advance(seconds)

        monkeypatch.setattr(asyncio, "sleep", pause)
        for _ in range(100):
            until_s = clock.monotonic() + 1.0
            documents = Documents(Refusing(driver), ids=Ids(clock), clock=clock, timeout_s=1.0)
            with pytest.raises(Unavailable):
                await documents.write(PARTITION, [put("k1")])
            assert began_s[-1] < until_s - ATTEMPT_SHARE + 1e-6

    async def test_refusals_after_a_lost_reply_leave_the_outcome_unknown(
        self, impatient: Documents, faulty: FaultyDriver
    ) -> None:
        faulty.plan = FaultPlan(write_refused=1.0)
        faulty.script(Fault.LOST_UNAPPLIED)
        with pytest.raises(OutcomeUnknown):
            await impatient.write(PARTITION, [put("k1", "1", ABSENT)])

    async def test_a_backend_that_refuses_after_a_lost_reply_leaves_the_outcome_unknown(
        self, documents: Documents, faulty: FaultyDriver
    ) -> None:
        faulty.script(Fault.LOST_UNAPPLIED, Fault.FORBIDDEN)
        with pytest.raises(OutcomeUnknown):
            await documents.write(PARTITION, [put("k1", "1", ABSENT)])
        faulty.script(Fault.FORBIDDEN)
        with pytest.raises(BackendRefused):
            await documents.write(PARTITION, [put("k1", "1", ABSENT)])

    async def test_reads_are_repeated_until_they_are_answered(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        version = await write(driver, put("k1"))
        faulty.plan = FaultPlan(read_refused=0.6)
        for _ in range(5):
            doc = await documents.get(PARTITION, "k1")
            assert doc is not None
            assert doc.version == version
            assert (await documents.scan(PARTITION, above="A", below="~")).docs == (doc,)

    async def test_reads_refused_until_the_deadline_are_unavailable(
        self, impatient: Documents, faulty: FaultyDriver
    ) -> None:
        faulty.plan = FaultPlan(read_refused=1.0)
        with pytest.raises(Unavailable):
            await impatient.get(PARTITION, "k1")

    async def test_reads_that_settle_a_lost_write_are_repeated_too(
        self, documents: Documents, faulty: FaultyDriver, driver: DocumentDriver
    ) -> None:
        faulty.plan = FaultPlan(read_refused=0.6)
        for number in range(5):
            faulty.script(Fault.LOST_APPLIED)
            version = await documents.write(PARTITION, [put(f"k{number}")])
            assert await version_at(driver, f"k{number}") == version

    @pytest.mark.property
    @pytest.mark.parametrize("seed", range(6))
    async def test_under_every_fault_a_counter_counts_each_success_once(
        self, driver: DocumentDriver, seed: int
    ) -> None:
        plan = FaultPlan(
            write_refused=0.1,
            write_lost_applied=0.1,
            write_lost_unapplied=0.1,
            write_late=0.1,
            read_refused=0.1,
            late_s_max=0.01,
            pause_s_max=0.002,
        )
        faulty = FaultyDriver(driver, plan, random=Random(seed))
        await write(driver, put("k1", "0"))
        counts = await asyncio.gather(*(count(documents_on(faulty), 8) for _ in range(4)))
        faulty.plan = NO_FAULTS
        await faulty.late_writes_delivered()
        found = int((await bodies(driver, "k1"))["k1"])
        succeeded, unknown = (sum(numbers) for numbers in zip(*counts, strict=True))
        assert succeeded <= found <= succeeded + unknown


async def count(documents: Documents, turns: int) -> tuple[int, int]:
    """Add one, `turns` times; how many succeeded, and how many ended without an answer."""
    succeeded = unknown = 0
    while succeeded + unknown < turns:
        doc = await documents.get(PARTITION, "k1")
        assert doc is not None
        try:
            await documents.write(PARTITION, [put("k1", str(int(doc.body) + 1), Match(doc.version))])
            succeeded += 1
        except Conflict:
            continue
        except OutcomeUnknown:
            unknown += 1
    return succeeded, unknown


class TestThroughTheNetwork:
    @pytest_asyncio.fixture
    async def proxy(self, harness: DocumentHarness) -> AsyncIterator[FaultProxy]:
        async with FaultProxy(offered(harness.network).address) as relay:
            yield relay

    @pytest_asyncio.fixture
    async def distant(
        self, driver: DocumentDriver, harness: DocumentHarness, proxy: FaultProxy
    ) -> AsyncIterator[Documents]:
        assert await bodies(driver, "warm") == {}
        documents = documents_on(offered(harness.network).open(*proxy.address))
        await documents.write(PARTITION, [put("warm")])
        await documents.write(PARTITION, [put("warm1", "1", ABSENT)])
        yield documents
        await documents.close()

    @pytest.mark.parametrize("op", [put("k1", "1", ABSENT), put("k1", "1")], ids=["absent", "always"])
    async def test_a_write_whose_reply_was_lost_settles_as_a_success(
        self, distant: Documents, proxy: FaultProxy, driver: DocumentDriver, op: Op
    ) -> None:
        proxy.behave(Behaviour(reply_bytes_max=0, once=True))
        version = await distant.write(PARTITION, [op])
        assert await version_at(driver, "k1") == version

    async def test_a_conditioned_request_cut_in_its_middle_is_sent_again(
        self, distant: Documents, proxy: FaultProxy, driver: DocumentDriver
    ) -> None:
        body = '"' + "x" * 200_000 + '"'
        proxy.behave(Behaviour(request_bytes_max=50_000, once=True))
        version = await distant.write(PARTITION, [put("k1", body, ABSENT)])
        assert await version_at(driver, "k1") == version

    async def test_an_unconditioned_request_cut_in_its_middle_is_not_sent_again(
        self, distant: Documents, proxy: FaultProxy, driver: DocumentDriver
    ) -> None:
        proxy.behave(Behaviour(request_bytes_max=50_000, once=True))
        with pytest.raises(OutcomeUnknown):
            await distant.write(PARTITION, [put("k1", '"' + "x" * 200_000 + '"')])
        assert await bodies(driver, "k1") == {}

    async def test_a_read_whose_reply_broke_off_is_read_again(
        self, distant: Documents, proxy: FaultProxy, driver: DocumentDriver
    ) -> None:
        version = await write(driver, put("k1", '"' + "x" * 200_000 + '"'))
        proxy.behave(Behaviour(reply_bytes_max=50_000, once=True))
        doc = await distant.get(PARTITION, "k1")
        assert doc is not None
        assert doc.version == version
