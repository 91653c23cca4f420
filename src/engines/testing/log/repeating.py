"""The rules of repeats: a client's id stands once, an Idempotency-Key is answered as the first time."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from engines.core.idempotency import KEPT_S, Request, identify
from engines.errors import Conflict, IdempotencyKeyReused, Invalid
from engines.ids import event_id_at
from engines.testing.log.harness import TAG, Logs, append, client_id, entry, names

REQUEST = identify("POST", "/events", "key-1", body=b"one")


@pytest.mark.asyncio
class TestClientIds:
    async def test_a_known_id_returns_its_first_position(self, logs: Logs) -> None:
        log, known = logs.open(), client_id()
        first = await log.append([entry("a", known)])
        assert first.event_ids == (known,)
        await append(log, "b")
        for other in (log, logs.open()):
            again = await other.append([entry("a", known)])
            assert (again.positions, again.event_ids, again.at_ms) == ((1,), (known,), first.at_ms)
        assert await names(log) == ["a", "b"]

    async def test_a_known_id_with_other_contents_is_a_conflict_and_nothing_is_written(
        self, logs: Logs
    ) -> None:
        log, known = logs.open(), client_id()
        await log.append([entry("a", known)])
        for other in (log, logs.open()):
            with pytest.raises(Conflict):
                await other.append([entry("new"), entry("changed", known)])
        assert await names(log) == ["a"]

    async def test_new_events_beside_a_known_id_are_appended(self, logs: Logs) -> None:
        log, known = logs.open(), client_id()
        await log.append([entry("a", known)])
        appended = await log.append([entry("b"), entry("a", known), entry("c", client_id())])
        assert appended.positions == (2, 1, 3)
        assert await names(log) == ["a", "b", "c"]
        for event_id, name in zip(appended.event_ids, "bac", strict=True):
            found = await log.find(event_id)
            assert found is not None
            assert found.body == entry(name).body

    async def test_an_id_twice_in_one_request_stands_once(self, logs: Logs) -> None:
        log, own = logs.open(), client_id()
        appended = await log.append([entry("a", own), entry("b"), entry("a", own)])
        assert appended.positions == (1, 2, 1)
        assert appended.event_ids[0] == appended.event_ids[2] == own
        with pytest.raises(Conflict):
            await log.append([entry("a", own := client_id()), entry("b", own)])
        assert await names(log) == ["a", "b"]

    async def test_an_id_that_waits_twice_stands_once(self, logs: Logs) -> None:
        opened, own = [logs.open(), logs.open()], client_id()
        await append(opened[0], "first")
        calls = [log.append([entry("a", own), entry(f"{n}")]) for n, log in enumerate(opened * 6)]
        answers = await asyncio.gather(*calls)
        assert len({answer.positions[0] for answer in answers}) == 1
        assert sorted(map(str, await names(opened[0]))) == sorted(["first", "a", *map(str, range(12))])

    @pytest.mark.parametrize(
        "event_id",
        [
            event_id_at(TAG, 5),
            str(uuid.uuid4()).upper(),
            uuid.uuid4().hex,
            "{" + str(uuid.uuid4()) + "}",
            "",
            "../x",
        ],
        ids=["minted", "upper case", "without hyphens", "in braces", "empty", "no UUID"],
    )
    async def test_an_id_that_is_no_clients_is_invalid(self, logs: Logs, event_id: str) -> None:
        log = logs.open()
        with pytest.raises(Invalid):
            await log.append([entry("a", event_id)])
        assert (await log.head()).position == 0

    async def test_what_a_repeat_must_equal_can_be_told_apart_from_the_text(self, logs: Logs) -> None:
        log, own = logs.open(), client_id()
        stamped = [entry(f"at {n}", own) for n in range(2)]
        same = [type(e)(e.body, e.event_id, digest="what the client sent") for e in stamped]
        assert (await log.append(same[:1])).positions == (await log.append(same[1:])).positions


@pytest.mark.asyncio
class TestIdempotencyKey:
    async def test_a_repeat_gets_the_first_answer(self, logs: Logs) -> None:
        log, own = logs.open(), client_id()
        entries = [entry("a"), entry("b", own), entry("a"), entry("b", own)]
        first = await log.append(entries, request=REQUEST)
        assert not first.replayed
        await append(log, "between")
        for other in (log, logs.open()):
            again = await other.append(entries, request=REQUEST)
            assert again.replayed
            assert (again.positions, again.event_ids) == (first.positions, first.event_ids)
            assert again.at_ms == first.at_ms
        assert await names(log) == ["a", "b", "a", "between"]

    async def test_another_request_under_the_key_is_refused(self, logs: Logs) -> None:
        log = logs.open()
        await append(log, "a", request=REQUEST)
        with pytest.raises(IdempotencyKeyReused):
            await append(log, "b", request=Request(REQUEST.key, "another digest"))
        assert await names(log) == ["a"]

    async def test_repeats_at_once_from_several_processes_append_once(self, logs: Logs) -> None:
        opened = [logs.open() for _ in range(3)]
        await append(opened[0], "first")
        answers = await asyncio.gather(*(append(log, "a", "b", request=REQUEST) for log in opened * 4))
        assert {answer.positions for answer in answers} == {(2, 3)}
        assert sum(not answer.replayed for answer in answers) == 1
        assert await names(opened[0]) == ["first", "a", "b"]

    async def test_a_repeat_is_answered_before_the_expected_position_is_judged(self, logs: Logs) -> None:
        log, own = logs.open(), client_id()
        first = await append(log, "a", request=REQUEST, expected_position=0)
        assert (await append(log, "a", request=REQUEST, expected_position=0)).positions == first.positions
        second = await log.append([entry("b", own)], expected_position=1)
        for other in (log, logs.open()):
            assert (await other.append([entry("b", own)], expected_position=1)).positions == second.positions
        with pytest.raises(Conflict):
            await append(log, "c", request=identify("another", body=b""), expected_position=0)
        assert await names(log) == ["a", "b"]

    async def test_a_refused_request_leaves_no_marker(self, logs: Logs) -> None:
        log = logs.open()
        with pytest.raises(Conflict):
            await append(log, "a", request=REQUEST, expected_position=9)
        assert not (await append(log, "a", request=REQUEST)).replayed

    async def test_the_key_is_forgotten_after_its_time(self, logs: Logs) -> None:
        log = logs.open()
        await append(log, "a", request=REQUEST)
        logs.wall.advance(KEPT_S + 1)
        assert (await append(log, "b", request=Request(REQUEST.key, "later"))).positions == (2,)
