"""The rules of verification and redaction: what was done to the stored bytes shows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from engines.core.commits import COMMIT, Commit, commit_key, stream_key
from engines.core.log import Head, Log
from engines.errors import Corrupt, NotFound
from engines.ports.documents import ALWAYS, Delete, Put
from engines.testing.log.harness import SHARD, STREAM, Logs, append, client_id, entry, names

SIZE = 10


async def written(logs: Logs, commits: int = 25) -> tuple[Log, Head]:
    """A log of commits of 1 to 3 events, some with ids of clients, over several segments; and its head."""
    log = logs.open(segment_size=SIZE)
    for number in range(commits):
        events = [entry(f"{number}.{index}") for index in range(1 + number % 3)]
        await log.append([*events[1:], entry(f"{number}.0", client_id() if number % 4 == 0 else None)])
    return log, await log.head()


async def put(logs: Logs, commit: Commit, at: int | None = None) -> None:
    """Somebody who holds the database writes a commit's document, at its place or another's."""
    first = commit.first if at is None else at
    body = COMMIT.encode(commit)
    ops = [Put(commit_key(first), body, ALWAYS)]
    await logs.driver.write(_partition(logs, first), ops, write_id="f" * 32)


async def drop(logs: Logs, commit: Commit) -> None:
    ops = [Delete(commit_key(commit.first), ALWAYS)]
    await logs.driver.write(_partition(logs, commit.first), ops, write_id="f" * 32)


def _partition(logs: Logs, first: int) -> str:
    chain = logs.chain()
    chain.segment_size = SIZE
    return chain.partition(first // SIZE)


async def _edit(logs: Logs, commits: list[Commit]) -> int:
    commit = commits[12]
    item = msgspec.structs.replace(commit.events[0], event=msgspec.Raw(b'{"name":"forged"}'))
    await put(logs, msgspec.structs.replace(commit, events=[item, *commit.events[1:]]))
    return commit.first


async def _edit_id(logs: Logs, commits: list[Commit]) -> int:
    commit = commits[12]
    item = msgspec.structs.replace(commit.events[-1], id=client_id())
    await put(logs, msgspec.structs.replace(commit, events=[*commit.events[:-1], item]))
    return commit.first


async def _edit_time(logs: Logs, commits: list[Commit]) -> int:
    await put(logs, msgspec.structs.replace(commits[12], at=commits[12].at + 1))
    return commits[12].first


async def _edit_with_a_new_digest(logs: Logs, commits: list[Commit]) -> int:
    """The commit itself is consistent; the one behind it no longer follows."""
    commit = commits[12]
    item = msgspec.structs.replace(commit.events[0], event=msgspec.Raw(b'{"name":"forged"}'))
    forged = msgspec.structs.replace(commit, events=[item, *commit.events[1:]])
    await put(logs, msgspec.structs.replace(forged, digest=forged.computed_digest()))
    return commits[13].first


async def _edit_with_the_next_link(logs: Logs, commits: list[Commit]) -> int:
    """The commit is consistent and the one behind it names its digest, but has not got another itself."""
    await _edit_with_a_new_digest(logs, commits)
    forged = (await logs.commits())[12]
    await put(logs, msgspec.structs.replace(commits[13], previous=forged.digest))
    return commits[13].first


async def _swap_events(logs: Logs, commits: list[Commit]) -> int:
    commit = commits[14]
    await put(logs, msgspec.structs.replace(commit, events=commit.events[::-1]))
    return commit.first


async def _swap_commits(logs: Logs, commits: list[Commit]) -> int:
    one, other = commits[12], commits[18]
    assert len(one.events) == len(other.events)
    await put(logs, msgspec.structs.replace(other, first=one.first))
    await put(logs, msgspec.structs.replace(one, first=other.first))
    return one.first


async def _move_a_document(logs: Logs, commits: list[Commit]) -> int:
    await put(logs, commits[18], at=commits[12].first)
    return commits[12].first


async def _drop_middle(logs: Logs, commits: list[Commit]) -> int:
    await drop(logs, commits[12])
    return commits[12].first


async def _drop_segment(logs: Logs, commits: list[Commit]) -> int:
    gone = [commit for commit in commits if commit.first // SIZE == 2]
    for commit in gone:
        await drop(logs, commit)
    return gone[0].first


async def _drop_two_segments(logs: Logs, commits: list[Commit]) -> int:
    gone = [commit for commit in commits if commit.first // SIZE in (1, 2)]
    for commit in gone:
        await drop(logs, commit)
    return gone[0].first


async def _no_json(logs: Logs, commits: list[Commit]) -> int:
    first = commits[12].first
    ops = [Put(commit_key(first), '{"schema":"commit/1"}', ALWAYS)]
    await logs.driver.write(_partition(logs, first), ops, write_id="f" * 32)
    return first


TAMPERINGS = [
    _edit,
    _edit_id,
    _edit_time,
    _edit_with_a_new_digest,
    _edit_with_the_next_link,
    _swap_events,
    _swap_commits,
    _move_a_document,
    _drop_middle,
    _drop_segment,
    _drop_two_segments,
    _no_json,
]


@pytest.mark.asyncio
class TestVerify:
    async def test_an_untouched_log_verifies_and_returns_its_head(self, logs: Logs) -> None:
        log, head = await written(logs)
        for verifying in (log, logs.open()):
            verification = await verifying.verify(head)
            assert verification.ok
            assert Head(verification.position, verification.digest) == head
            assert (verification.commit_count, verification.event_count) == (25, head.position)

    @pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__.strip("_"))
    async def test_what_was_tampered_with_is_found_at_its_place(
        self, logs: Logs, tamper: Callable[[Logs, list[Commit]], Awaitable[int]]
    ) -> None:
        await written(logs)
        position = await tamper(logs, await logs.commits())
        verification = await logs.open().verify()
        assert not verification.ok
        assert verification.bad_position == position
        assert verification.reason
        assert verification.position == position - 1

    async def test_what_was_cut_off_shows_against_a_head_kept_elsewhere(self, logs: Logs) -> None:
        log, head = await written(logs)
        *_, one, last = await logs.commits()
        await drop(logs, last)
        assert (await logs.open().verify()).ok, "what is left is a log like any other"
        assert (await logs.open().verify(head)).bad_position == last.first
        assert not (await log.verify()).ok, "this process saw more of it"
        await drop(logs, one)
        assert (await logs.open().verify(head)).bad_position == one.first
        await append(logs.open(), *"abcdefgh")
        assert (await logs.open().verify()).ok
        assert not (await logs.open().verify(head)).ok

    async def test_a_log_written_anew_shows_against_a_head_kept_elsewhere(self, logs: Logs) -> None:
        _, head = await written(logs)
        for commit in await logs.commits():
            await drop(logs, commit)
        await written(logs)
        again = logs.open()
        assert (await again.head()).position == head.position
        assert (await again.verify()).ok
        assert (await again.verify(head)).bad_position == head.position

    async def test_any_earlier_head_is_confirmed_and_no_other_digest(self, logs: Logs) -> None:
        await written(logs)
        for commit in await logs.commits():
            log = logs.open(logs.driver)
            assert (await log.verify(Head(commit.last, commit.digest))).ok
            forged = await log.verify(Head(commit.last, commit.digest[::-1]))
            assert forged.bad_position == commit.last

    async def test_a_reader_stops_at_a_commit_that_is_missing(self, logs: Logs) -> None:
        """In either direction, wherever it begins."""
        await written(logs)
        missing = (await logs.commits())[12]
        await drop(logs, missing)
        log = logs.open()
        whole = (await log.list_after(0, limit=missing.first - 1)).events
        assert whole[-1].position == missing.first - 1
        for cursor in (0, missing.first - 2, *range(missing.first - 1, missing.last)):
            with pytest.raises(Corrupt):
                await log.list_after(cursor, limit=missing.first)
        end = (await log.head()).position
        down = (await log.list_before(None, limit=end - missing.last)).events
        assert down[-1].position == missing.last + 1
        for cursor in (end, missing.last + 2, *range(missing.first + 1, missing.last + 2)):
            with pytest.raises(Corrupt):
                await log.list_before(cursor, limit=end)

    async def test_a_search_for_a_time_ends_at_a_commit_that_is_missing(self, logs: Logs) -> None:
        _, head = await written(logs)
        middle = (1 + head.position + 1) // 2  # Where a search over all of it looks first.
        (missing,) = [commit for commit in await logs.commits() if commit.first <= middle <= commit.last]
        await drop(logs, missing)
        async with asyncio.timeout(10):
            with pytest.raises(Corrupt):
                await logs.open().seek(0)

    async def test_the_loss_of_the_streams_own_record_is_no_empty_log(self, logs: Logs) -> None:
        _, head = await written(logs)
        ops = [Delete(stream_key(STREAM), ALWAYS)]
        await logs.driver.write(SHARD, ops, write_id="f" * 32)
        assert not (await logs.open().verify(head)).ok


@pytest.mark.asyncio
class TestRedact:
    async def test_a_log_with_redacted_events_verifies_with_the_same_head(self, logs: Logs) -> None:
        log, head = await written(logs)
        for position in (1, 2, 7, head.position):
            await log.redact(position)
            await log.redact(position)
        verification = await logs.open().verify(head)
        assert (verification.ok, verification.redacted_count) == (True, 4)
        stored = [doc.body for n in range(8) for doc in await logs.documents_in(_partition(logs, n * SIZE))]
        assert not any('"0.0"' in body for body in stored)

    async def test_redactions_of_one_commit_at_once_all_hold(self, logs: Logs) -> None:
        log = logs.open()
        await append(log, *"abcdefgh")
        await asyncio.gather(*(logs.open(logs.driver).redact(position) for position in range(1, 9)))
        assert await names(log) == [None] * 8
        assert (await log.verify()).redacted_count == 8

    async def test_several_in_several_commits_go_in_one_call_and_the_others_stay(self, logs: Logs) -> None:
        log, head = await written(logs)
        gone = (1, 2, 5, head.position)
        before = (await log.list_after(0, limit=head.position)).events
        await log.redact(*reversed(gone), 1)
        after = (await logs.open().list_after(0, limit=head.position)).events
        assert [event for event in after if event.body is not None] == [
            event for event in before if event.position not in gone
        ]
        verification = await log.verify(head)
        assert (verification.ok, verification.redacted_count) == (True, len(gone))

    async def test_a_redacted_client_id_is_still_known_and_its_digest_is_gone(self, logs: Logs) -> None:
        log, own = logs.open(), client_id()
        await log.append([entry("a", own)])
        partition = logs.chain()
        await partition.open()
        (marker,) = await logs.documents_in(partition.partition(0), "i!", 'i"')
        assert "digest" in marker.body
        await log.redact(1)
        (marker,) = await logs.documents_in(partition.partition(0), "i!", 'i"')
        assert "digest" not in marker.body
        assert (await log.append([entry("a", own)])).positions == (1,)
        assert await names(log) == [None]

    async def test_what_is_not_there_is_not_found(self, logs: Logs) -> None:
        log = logs.open()
        for _ in range(2):
            with pytest.raises(NotFound):
                await log.redact(2)
            if (await log.head()).position == 0:
                await append(log, "a")

    async def test_a_redaction_that_is_tampered_with_is_found(self, logs: Logs) -> None:
        log, head = await written(logs)
        await log.redact(1)
        commit = (await logs.commits())[0]
        forged = msgspec.structs.replace(commit.events[0], leaf="0" * 64)
        await put(logs, msgspec.structs.replace(commit, events=[forged]))
        assert (await logs.open().verify(head)).bad_position == 1
