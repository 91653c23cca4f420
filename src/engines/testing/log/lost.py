"""The rules of lost replies: whatever became of a write, every event that was acknowledged stands once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import pytest

from engines.core.documents import TIMEOUT_S
from engines.core.idempotency import identify
from engines.core.log import Appended, Log
from engines.errors import Conflict, EnginesError, OutcomeUnknown, Unavailable
from engines.ports.documents import Doc, DocumentDriver, Op, Page
from engines.testing.faults import Fault, FaultPlan
from engines.testing.log.harness import Logs, Watched, append, client_id, entry, names

SHORT_S = 0.5
SOON_S = 10.0


def hurry(log: Log, timeout_s: float) -> None:
    """From now on what is asked of it has so long. A cold client had all the time that it needs."""
    log._timeout_s = log._chain.documents._timeout_s = timeout_s


class Post:
    """A driver whose writes a test keeps under way: OutcomeUnknown at once, delivered when it says so."""

    def __init__(self, driver: DocumentDriver) -> None:
        self.keep = 0
        self.kept: deque[tuple[str, Sequence[Op], str]] = deque()
        self._driver = driver
        self.get, self.scan, self.close = driver.get, driver.scan, driver.close
        self.provision, self.reclaim = driver.provision, driver.reclaim

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        if self.keep == 0:
            return await self._driver.write(partition, ops, write_id=write_id)
        self.keep -= 1
        self.kept.append((partition, ops, write_id))
        raise OutcomeUnknown("the reply is lost, the write is under way")

    async def deliver(self) -> str:
        """Let the oldest kept write arrive; says what became of it."""
        partition, ops, write_id = self.kept.popleft()
        try:
            await self._driver.write(partition, ops, write_id=write_id)
        except EnginesError as error:
            return type(error).__name__
        return "applied"


async def _append(log: Log, kind: str) -> Appended:
    if kind == "client ids":
        return await log.append([entry("own", client_id()), entry("own too", client_id())])
    request = identify("a key", body=b"") if kind == "request" else None
    return await append(log, "own", "own too", request=request)


@pytest.mark.asyncio
class TestLostReplies:
    @pytest.mark.parametrize("kind", ["minted", "client ids", "request"])
    @pytest.mark.parametrize(
        "faults",
        [
            (Fault.REFUSED,),
            (Fault.LOST_APPLIED,),
            (Fault.LOST_UNAPPLIED,),
            (Fault.LATE,),
            (Fault.LOST_UNAPPLIED, Fault.LOST_APPLIED),
            (Fault.LATE, Fault.LOST_UNAPPLIED, Fault.REFUSED),
            (Fault.REFUSED, Fault.LATE, Fault.LATE, Fault.LOST_APPLIED),
        ],
        ids=lambda faults: "-".join(fault.value for fault in faults),
    )
    async def test_an_append_stands_once_whatever_its_writes_met(
        self, logs: Logs, faults: tuple[Fault, ...], kind: str
    ) -> None:
        driver = logs.faulty(FaultPlan(late_s_max=0.01))
        log = logs.open(driver)
        await append(log, "first")
        driver.script(*faults)
        assert (await _append(log, kind)).positions == (2, 3)
        await append(log, "last")
        await driver.late_writes_delivered()
        assert await names(logs.open()) == ["first", "own", "own too", "last"]

    async def test_a_write_that_landed_is_not_sent_again(self, logs: Logs) -> None:
        driver = logs.faulty()
        log = logs.open(driver)
        await append(log, "first")
        sent = driver.seen.total()
        driver.script(Fault.LOST_APPLIED)
        assert (await append(log, "own")).positions == (2,)
        assert driver.seen.total() == sent + 1


@pytest.mark.asyncio
class TestLateDeliveries:
    async def test_a_write_that_arrives_after_its_repeat_changes_nothing(self, logs: Logs) -> None:
        post = Post(logs.client())
        log = logs.open(post)
        await append(log, "first")
        post.keep = 1
        assert (await append(log, "own")).positions == (2,)
        assert await post.deliver() == "Conflict"
        await append(log, "last")
        assert await names(log) == ["first", "own", "last"]

    async def test_of_two_writes_under_way_either_may_land_but_one_alone(self, logs: Logs) -> None:
        post = Post(logs.client())
        log = logs.open(post)
        await append(log, "first")
        post.keep = 1_000
        own = asyncio.ensure_future(append(log, "own"))
        await self._until_kept(post, 2)
        post.kept.reverse()
        assert await post.deliver() == "applied"
        assert (await own).positions == (2,)
        post.keep = 0
        joined = asyncio.ensure_future(append(log, "joined"))
        assert (await joined).positions == (3,)
        while post.kept:
            assert await post.deliver() == "Conflict"
        assert await names(log) == ["first", "own", "joined"]

    async def test_a_write_that_lands_while_others_joined_the_request_settles_its_own_alone(
        self, logs: Logs
    ) -> None:
        post = Post(logs.client())
        log = logs.open(post)
        await append(log, "first")
        post.keep = 1
        own = asyncio.ensure_future(append(log, "own"))
        await self._until_kept(post, 1)
        post.keep = 100
        joined = asyncio.ensure_future(append(log, "joined"))
        await self._until_kept(post, 3)
        assert await post.deliver() == "applied"
        assert (await own).positions == (2,)
        post.keep = 0
        assert (await joined).positions == (3,)
        while post.kept:
            assert await post.deliver() == "Conflict"
        assert await names(log) == ["first", "own", "joined"]

    async def test_a_write_whose_slot_another_took_never_lands(self, logs: Logs) -> None:
        post = Post(logs.client())
        log, other = logs.open(post), logs.open()
        await append(log, "first")
        post.keep = 1
        own = asyncio.ensure_future(append(log, "own"))
        await self._until_kept(post, 1)
        await asyncio.gather(append(other, "other"), own)
        assert await post.deliver() == "Conflict"
        stored = await names(log)
        assert sorted(map(str, stored)) == ["first", "other", "own"]
        assert (await own).positions == (stored.index("own") + 1,)

    async def test_a_write_that_arrives_after_its_caller_gave_up_leaves_no_gap(self, logs: Logs) -> None:
        post = Post(logs.client())
        log = logs.open(post)
        await append(log, "first")
        hurry(log, SHORT_S)
        post.keep = 1_000
        with pytest.raises(OutcomeUnknown):
            await asyncio.wait_for(append(log, "given up"), SOON_S)
        post.keep = 0
        assert await post.deliver() == "applied"
        while post.kept:
            assert await post.deliver() == "Conflict"
        hurry(log, TIMEOUT_S)
        assert (await append(log, "last")).positions == (3,)
        assert await names(log) == ["first", "given up", "last"]

    async def test_a_write_in_doubt_is_recognised_after_its_commit_was_redacted(self, logs: Logs) -> None:
        """A redacted commit is another document with another version; it is still the same commit."""
        driver = logs.faulty()
        log = logs.open(driver)
        await append(log, "first")
        driver.script(Fault.LOST_APPLIED)
        driver.plan = FaultPlan(read_refused=1.0)
        own = asyncio.ensure_future(append(log, "own"))
        other = logs.open()
        async with asyncio.timeout(SOON_S):
            while (await other.head()).position < 2:  # noqa: ASYNC110 (the storage is what changes)
                await asyncio.sleep(0.005)
        await other.redact(2)
        driver.plan = FaultPlan()
        assert (await own).positions == (2,)
        assert await names(other) == ["first", None]

    @staticmethod
    async def _until_kept(post: Post, count: int) -> None:
        async with asyncio.timeout(SOON_S):
            while len(post.kept) < count:  # noqa: ASYNC110 (the log decides when it sends)
                await asyncio.sleep(0.001)


@pytest.mark.asyncio
class TestDeadline:
    async def test_what_was_never_sent_is_unavailable_and_never_appears(self, logs: Logs) -> None:
        driver = logs.faulty()
        log = logs.open(driver)
        await append(log, "first")
        hurry(log, SHORT_S)
        driver.plan = FaultPlan(write_refused=1.0)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(append(log, "own"), SOON_S)
        driver.plan = FaultPlan()
        hurry(log, TIMEOUT_S)
        await append(log, "last")
        assert await names(log) == ["first", "last"]

    async def test_a_log_whose_backend_stays_away_keeps_no_task_and_closes(self, logs: Logs) -> None:
        driver = logs.faulty(FaultPlan(read_refused=1.0, write_refused=1.0))
        log = logs.open(driver, timeout_s=SHORT_S)
        before = asyncio.all_tasks()
        calls = [asyncio.ensure_future(append(log, "own")) for _ in range(3)]
        await asyncio.sleep(SHORT_S / 2)
        calls[0].cancel()
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), SOON_S)
        assert [type(answer) for answer in answers[1:]] == [Unavailable] * 2
        await asyncio.wait_for(log.close(), SOON_S)
        assert asyncio.all_tasks() <= before

    async def test_what_may_have_landed_and_cannot_be_looked_up_is_unknown(self, logs: Logs) -> None:
        driver = logs.faulty()
        log = logs.open(driver)
        await append(log, "first")
        hurry(log, SHORT_S)
        driver.script(Fault.LOST_APPLIED)
        driver.plan = FaultPlan(read_refused=1.0, write_refused=1.0)
        with pytest.raises(OutcomeUnknown):
            await asyncio.wait_for(append(log, "own"), SOON_S)
        driver.plan = FaultPlan()
        hurry(log, TIMEOUT_S)
        assert (await append(log, "last")).positions == (3,)
        assert await names(log) == ["first", "own", "last"]

    async def test_a_stream_whose_own_record_could_not_be_written_holds_nothing(self, logs: Logs) -> None:
        driver = logs.faulty(FaultPlan(write_lost_unapplied=1.0))
        log = logs.open(driver, timeout_s=SHORT_S)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(append(log, "own"), SOON_S)
        driver.plan = FaultPlan()
        hurry(log, TIMEOUT_S)
        assert (await append(log, "last")).positions == (1,)

    async def test_a_conflict_that_nothing_explains_ends_with_the_deadline(self, logs: Logs) -> None:
        driver = Watched(logs.client())
        log = logs.open(driver)
        await append(log, "first")
        hurry(log, SHORT_S)
        driver.calls.clear()
        driver.fail_writes = [Conflict("without a reason")] * 1_000
        with pytest.raises(Unavailable):
            await asyncio.wait_for(append(log, "own"), SOON_S)
        assert driver.calls["write"] < 100
        driver.fail_writes = []
        hurry(log, TIMEOUT_S)
        assert (await append(log, "last")).positions == (2,)

    async def test_a_slot_that_was_lost_to_another_is_no_longer_in_doubt(self, logs: Logs) -> None:
        """Its first write can never land, so what follows is Unavailable: nothing was applied."""
        post = Post(logs.client())
        driver = logs.faulty()
        log, other = logs.open(_Both(post, driver)), logs.open()
        await append(log, "first")
        await other.head()
        hurry(log, 2.0)
        post.keep = 1
        driver.plan = FaultPlan(write_refused=1.0)
        own = asyncio.ensure_future(append(log, "own"))
        async with asyncio.timeout(SOON_S):
            while not post.kept:  # noqa: ASYNC110 (the log decides when it sends)
                await asyncio.sleep(0.001)
        await append(other, "other")
        with pytest.raises(Unavailable):
            await asyncio.wait_for(own, SOON_S)
        assert await post.deliver() == "Conflict"
        assert await names(other) == ["first", "other"]


class _Both:
    """The first writes go through `post` while it keeps any, then through `other`; reads are `other`'s."""

    def __init__(self, post: Post, other: DocumentDriver) -> None:
        self._post = post
        self._other = other
        self.provision, self.reclaim, self.close = other.provision, other.reclaim, other.close

    async def get(self, partition: str, keys: Sequence[str]) -> dict[str, Doc]:
        return await self._other.get(partition, keys)

    async def scan(self, partition: str, *, above: str, below: str, limit: int, reverse: bool) -> Page:
        return await self._other.scan(partition, above=above, below=below, limit=limit, reverse=reverse)

    async def write(self, partition: str, ops: Sequence[Op], *, write_id: str) -> None:
        through = self._post if self._post.keep else self._other
        await through.write(partition, ops, write_id=write_id)
