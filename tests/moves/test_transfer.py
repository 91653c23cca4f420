"""Copying: one partition, one stream, and two movers that do not know of each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engines.clock import SystemClock
from engines.core.appends import Entry
from engines.core.chain import SEGMENT_SIZE_DEFAULT
from engines.core.documents import Documents
from engines.core.idempotency import identify
from engines.core.journal import Journalled
from engines.core.log import Log
from engines.core.transfer import (
    LogTransfer,
    PartitionTransfer,
    Superseded,
    Tally,
    empty,
    everything,
    segments,
)
from engines.drivers.registry import document_driver
from engines.errors import Corrupt, Unavailable
from engines.ids import Ids
from engines.ports.documents import ABSENT, ALWAYS, Delete, Doc, DocumentDriver, Match, Put
from engines.testing.faults import Fault, FaultyDriver

HERE, THERE = "notes_store.t_a.prod.0", "notes_store.t_a.prod.0.g1"
CLOCK = SystemClock()


@pytest.fixture
async def documents(tmp_path: Path) -> AsyncIterator[Documents]:
    """Both sides: what tells them apart is the name of the partition."""
    module = document_driver("sqlite")
    driver = module.open_driver(module.Config(path=str(tmp_path / "both.db")), {}, CLOCK)
    opened = Documents(driver, ids=Ids(CLOCK), clock=CLOCK)
    yield opened
    await opened.close()


@pytest.fixture
def journalled(documents: Documents) -> Documents:
    return documents.through(lambda driver: Journalled(driver, [HERE]))


def transfer(
    documents: Documents, mover: str = "m1", *, target: Documents | None = None
) -> PartitionTransfer:
    return PartitionTransfer(
        documents,
        target or documents,
        source_partition=HERE,
        target_partition=THERE,
        mover=mover,
        tally=Tally(),
    )


async def all_docs(documents: Documents, partition: str) -> list[Doc]:
    return [doc async for docs in everything(documents, partition) for doc in docs]


async def filled(documents: Documents, count: int) -> None:
    for number in range(count):
        expires_at = int(CLOCK.now()) + 3600 if number % 3 else None
        await documents.write(HERE, [Put(f"n!{number:05d}", f'"{number}"', ABSENT, expires_at=expires_at)])


async def test_a_copy_has_bodies_versions_and_expiries(documents: Documents) -> None:
    await filled(documents, 1_203)
    one = transfer(documents)
    await one.claim()
    await one.copy()
    assert await all_docs(documents, THERE) == await all_docs(documents, HERE)
    assert one.is_copied


async def test_what_the_journal_names_is_brought_up_to_date(
    documents: Documents, journalled: Documents
) -> None:
    await filled(documents, 10)
    one = transfer(documents)
    await one.claim()
    await one.copy()
    version = await journalled.write(HERE, [Put("n!00003", '"new"', ALWAYS), Delete("n!00004", ALWAYS)])
    await journalled.write(HERE, [Put("n!00003", '"newer"', Match(version)), Put("n!99999", '"one"', ABSENT)])
    assert await all_docs(documents, THERE) != await all_docs(documents, HERE)
    assert await one.drain() == 2
    assert await all_docs(documents, THERE) == await all_docs(documents, HERE)
    assert await one.drain() == 0


async def test_a_copy_whose_reply_and_request_were_lost_is_made_again(
    documents: Documents, journalled: Documents
) -> None:
    """That a document stands at the target as it did shows nothing of the write that was lost."""
    await filled(documents, 2)
    faulty: list[FaultyDriver] = []

    def on_a_bad_way(driver: DocumentDriver) -> FaultyDriver:
        faulty.append(FaultyDriver(driver))
        return faulty[0]

    one = transfer(documents, target=documents.through(on_a_bad_way))
    await one.claim()
    await one.copy()
    await journalled.write(HERE, [Put("n!00001", '"changed"', ALWAYS)])
    await journalled.write(HERE, [Delete("n!none", ALWAYS), Delete("n!00000", ALWAYS)])
    await documents.write(HERE, [Put("n!00000", '"again"', ALWAYS)])
    await one.drain()
    await journalled.write(HERE, [Put("n!00001", '"at last"', ALWAYS), Delete("n!none", ALWAYS)])
    entry = (await documents.get_many(HERE, ["n!00000"]))["n!00000"]
    await journalled.write(HERE, [Put("n!00000", entry.body, ALWAYS, write_id=entry.version)])
    faulty[0].script(Fault.LOST_UNAPPLIED)
    await one.drain()
    assert faulty[0].seen[Fault.LOST_UNAPPLIED] == 1
    assert await all_docs(documents, THERE) == await all_docs(documents, HERE)


async def test_another_mover_goes_on_where_the_first_came_to_and_ends_it(documents: Documents) -> None:
    await filled(documents, 5)
    first, second = transfer(documents, "m1"), transfer(documents, "m2")
    await first.claim()
    await first.copy()
    await second.claim()
    assert second.is_copied
    await documents.write(HERE, [Put("n!00001", '"changed"', ALWAYS)])
    with pytest.raises(Superseded):
        await first.compare()
    await second.compare()
    assert await all_docs(documents, THERE) == await all_docs(documents, HERE)


async def test_a_mover_that_was_paused_writes_nothing_over_what_is_live(documents: Documents) -> None:
    await filled(documents, 5)
    paused, other = transfer(documents, "m1"), transfer(documents, "m2")
    await paused.claim()
    await other.claim()
    await other.copy()
    await other.finish()
    await documents.write(THERE, [Put("n!00001", '"live"', ALWAYS)])
    with pytest.raises(Superseded):
        await paused.copy()
    with pytest.raises(Superseded):  # One that has not even begun.
        await transfer(documents, "m3").claim()
    live = await documents.get(THERE, "n!00001")
    assert live is not None
    assert live.body == '"live"'


async def test_a_partition_is_finished_once_more_by_another_mover(documents: Documents) -> None:
    """The first may have ended between the last partition and the word that all are."""
    await filled(documents, 5)
    first = transfer(documents, "m1")
    await first.claim()
    await first.copy()
    await first.finish()
    await first.finish()
    await transfer(documents, "m2").finish()


async def test_a_comparison_mends_what_nobody_journalled(documents: Documents) -> None:
    """Such as a write that was delivered late, and acknowledged to nobody."""
    await filled(documents, 700)
    one = transfer(documents)
    await one.claim()
    await one.copy()
    await documents.write(HERE, [Put("n!00600", '"late"', ALWAYS), Put("zlast", "1", ALWAYS)])
    await documents.write(HERE, [Delete("n!00000", ALWAYS), Delete("n!00699", ALWAYS)])
    await one.compare()
    assert await all_docs(documents, THERE) == await all_docs(documents, HERE)


async def test_a_log_that_is_being_moved_is_appended_to_and_not_rewritten(journalled: Documents) -> None:
    log = new_log(journalled, 0)
    await log.append([Entry('{"a":1}')])
    with pytest.raises(Unavailable):
        await log.redact(1)
    await log.close()


async def test_a_log_is_copied_with_its_markers(documents: Documents) -> None:
    source, target = new_log(documents, 0), new_log(documents, 1)
    request = identify("r", body=b"")
    first = await source.append([Entry('{"a":1}')], request=request)
    for number in range(30):
        await source.append([Entry(f'{{"n":{number}}}')])
    await copy_shard(documents)
    one = LogTransfer(source._chain, target._chain, tally=Tally())
    assert await one.follow() == 31
    assert await one.follow() == 0
    await source.append([Entry('{"late":true}')])
    assert await one.follow() == 1
    await one.compare()
    assert await target.head() == await source.head()
    assert (await target.verify()).ok
    again = await target.append([Entry('{"a":1}')], request=request)
    assert (again.positions, again.replayed) == (first.positions, True)


async def test_a_log_that_does_not_hold_what_its_digests_say_is_not_copied(documents: Documents) -> None:
    source = new_log(documents, 0)
    await source.append([Entry('{"a":1}')])
    await copy_shard(documents)
    segment = "event_spine.t_a.prod.main.0"
    key = "c!00000000000000000001"
    doc = await documents.get(segment, key)
    assert doc is not None
    await documents.write(segment, [Put(key, doc.body.replace('{"a":1}', '{"a":2}'), ALWAYS)])
    one = LogTransfer(source._chain, new_log(documents, 1)._chain, tally=Tally())
    with pytest.raises(Corrupt):
        await one.follow()
    assert (await new_log(documents, 1).head()).position == 0


async def test_a_log_whose_removal_was_interrupted_is_removed_whole(documents: Documents) -> None:
    log = new_log(documents, 0, segment_size_default=10)
    for number in range(45):
        await log.append([Entry(f'{{"n":{number}}}')], request=identify(str(number), body=b""))
    everywhere = set(await segments(log._chain))
    for _ in everywhere:
        (_, newest, *_) = await segments(new_log(documents, 0)._chain)
        # Its commits are gone, its markers are not.
        commits = [doc.key for doc in await all_docs(documents, newest) if doc.key.startswith("c!")]
        await documents.write(newest, [Delete(key, ALWAYS) for key in commits])
        left = {name for name in everywhere if await all_docs(documents, name)}
        assert left <= set(await segments(new_log(documents, 0)._chain))
        await empty(documents, newest, Tally())
        if newest.endswith(".0"):
            break
    assert not [name for name in everywhere if await all_docs(documents, name)]


async def test_an_empty_partition_is_empty(documents: Documents) -> None:
    await filled(documents, 620)
    await empty(documents, HERE, Tally())
    assert await all_docs(documents, HERE) == []


def new_log(
    documents: Documents, generation: int, *, segment_size_default: int = SEGMENT_SIZE_DEFAULT
) -> Log:
    return Log(
        documents,
        kind="event_spine",
        tenant_id="t_a",
        env="prod",
        stream="main",
        ids=Ids(CLOCK),
        clock=CLOCK,
        shard_partition=HERE if generation == 0 else THERE,
        generation=generation,
        segment_size_default=segment_size_default,
    )


async def copy_shard(documents: Documents) -> None:
    shard = transfer(documents)
    await shard.claim()
    await shard.copy()
