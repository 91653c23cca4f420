"""Pledges: made before the work, renewed while it goes on, finished by others when their process is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engines.core import pledges
from engines.core.documents import Documents
from engines.core.pledges import ABANDONED_S, IDLE_S, TRUSTED_S, Pledges
from engines.drivers.registry import document_driver
from engines.errors import Throttled, Unavailable
from engines.ids import Ids
from engines.testing.clock import ManualClock
from engines.testing.faults import Fault, FaultyDriver

PARTITION = "pledges"


class World:
    """One database, a clock moved by hand, and the processes on them."""

    def __init__(self, path: Path) -> None:
        module = document_driver("sqlite")
        self.clock = ManualClock()
        self.driver = FaultyDriver(module.open_driver(module.Config(path=str(path)), {}, self.clock))
        self.documents = Documents(self.driver, ids=Ids(self.clock), clock=self.clock)
        self.finished: list[str] = []
        self.refuses: set[str] = set()

    def process(self, name: str) -> Pledges:
        return Pledges(self.documents, PARTITION, process_id=name, clock=self.clock, finish=self._finish)

    async def _finish(self, name: str) -> None:
        if name in self.refuses:
            raise Unavailable("not now")
        self.finished.append(name)

    async def documents_left(self) -> int:
        return len((await self.documents.scan(PARTITION, above="p!", below='p"')).docs)

    async def writes(self) -> int:
        return self.driver.seen.total()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "pledges.db")
    await world.driver.provision()
    yield world
    await world.documents.close()


async def test_a_pledge_is_written_once_while_it_is_trusted(world: World) -> None:
    one = world.process("one")
    await one.make("a", owner="t_a")
    await one.make("a", owner="t_a")
    assert await world.writes() == 1
    world.clock.advance(TRUSTED_S)
    await one.make("a", owner="t_a")
    assert await world.writes() == 2


async def test_many_at_once_are_written_together(world: World) -> None:
    one = world.process("one")
    await asyncio.gather(*(one.make(f"n{number}", owner="t_a") for number in range(50)))
    assert await world.writes() <= 2


async def test_nothing_is_pledged_where_the_write_failed(world: World) -> None:
    one = world.process("one")
    world.driver.script(Fault.LOST_UNAPPLIED)
    with pytest.raises(Unavailable):
        await one.make("a", owner="t_a")
    await one.make("a", owner="t_a")
    assert await world.documents_left() == 1


async def test_what_a_process_left_is_finished_once_it_renews_no_more(world: World) -> None:
    one, two = world.process("one"), world.process("two")
    await one.make("a", owner="t_a")
    await one.make("b", owner="t_a")
    assert await two.finish_abandoned() == 0
    world.clock.advance(ABANDONED_S - 1)
    assert await two.finish_abandoned() == 0
    world.clock.advance(1)
    assert await two.finish_abandoned() == 1
    assert sorted(world.finished) == ["a", "b"]
    assert await world.documents_left() == 0


async def test_a_process_that_renews_is_left_alone(world: World) -> None:
    one, two = world.process("one"), world.process("two")
    await one.make("a", owner="t_a")
    for _ in range(4):
        await two.finish_abandoned()
        world.clock.advance(ABANDONED_S / 2)
        one.keep("a")
        await one.make("a", owner="t_a")
    assert world.finished == []


async def test_its_own_are_not_finished_by_itself(world: World) -> None:
    one = world.process("one")
    await one.make("a", owner="t_a")
    await one.finish_abandoned()
    world.clock.advance(ABANDONED_S + 1)
    await one.finish_abandoned()
    assert world.finished == []


async def test_what_could_not_be_finished_stays_and_is_tried_again(world: World) -> None:
    await world.process("one").make("a", owner="t_a")
    two = world.process("two")
    await two.finish_abandoned()
    world.clock.advance(ABANDONED_S)
    world.refuses = {"a"}
    assert await two.finish_abandoned() == 0
    assert await world.documents_left() == 1
    world.refuses = set()
    assert await two.finish_abandoned() == 1
    assert await world.documents_left() == 0


async def test_a_process_that_comes_back_in_between_keeps_its_pledge(world: World) -> None:
    one, two = world.process("one"), world.process("two")
    await one.make("a", owner="t_a")
    await two.finish_abandoned()
    world.clock.advance(ABANDONED_S)

    async def meanwhile(name: str) -> None:
        world.finished.append(name)
        await one.make("b", owner="t_a")

    two._finish = meanwhile
    assert await two.finish_abandoned() == 0
    assert await world.documents_left() == 1


async def test_what_is_idle_is_dropped_and_the_document_goes(world: World) -> None:
    one = world.process("one")
    await one.make("a", owner="t_a")
    world.clock.advance(IDLE_S)
    await one._renew()
    assert await world.documents_left() == 0
    await one.make("a", owner="t_a")
    assert await world.documents_left() == 1


async def test_on_the_way_out_what_is_done_is_withdrawn_and_the_rest_stays(world: World) -> None:
    one = world.process("one")
    await one.make("a", owner="t_a")
    await one.make("b", owner="t_a")
    await one.withdraw(["a"])
    two = world.process("two")
    await two.finish_abandoned()
    world.clock.advance(ABANDONED_S)
    await two.finish_abandoned()
    assert world.finished == ["b"]


async def test_a_process_has_so_many_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pledges, "NAMES_MAX", 2)
    one = world.process("one")
    await one.make("a", owner="t_a")
    await one.make("b", owner="t_a")
    with pytest.raises(Throttled):
        await one.make("c", owner="t_a")
    await one.make("a", owner="t_a")


async def test_one_owner_does_not_take_the_room_of_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pledges, "OWNER_NAMES_MAX", 1)
    one = world.process("one")
    await one.make("a", owner="t_a")
    with pytest.raises(Throttled):
        await one.make("b", owner="t_a")
    await one.make("b", owner="t_b")


async def test_what_cannot_be_finished_keeps_nothing_else_waiting(world: World) -> None:
    one, two = world.process("one"), world.process("two")
    for name in ("a", "b", "c"):
        await one.make(name, owner=name)
    await two.finish_abandoned()
    world.clock.advance(ABANDONED_S)
    world.refuses = {"b"}
    assert await two.finish_abandoned() == 0
    assert world.finished == ["a", "c"]
    world.refuses = set()
    await two.finish_abandoned()
    world.clock.advance(ABANDONED_S)
    assert await two.finish_abandoned() == 1
    assert world.finished == ["a", "c", "b"]


async def test_more_names_than_a_document_holds_stand_in_several_and_are_all_finished(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pledges, "DOCUMENT_NAMES_MAX", 2)
    one, two = world.process("one"), world.process("two")
    await asyncio.gather(*(one.make(name, owner=name) for name in "abcde"))
    assert await world.documents_left() == 3
    await one.finish_abandoned()
    await two.finish_abandoned()
    world.clock.advance(ABANDONED_S)
    assert (await one.finish_abandoned(), world.finished) == (0, [])
    assert await two.finish_abandoned() == 3
    assert sorted(world.finished) == list("abcde")


async def test_a_document_holds_so_many_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pledges, "DOCUMENT_BYTES_MAX", 3 * (10 + 2))
    one = world.process("one")
    for letter in "abcd":
        await one.make(letter * 10, owner="t_a")
    assert await world.documents_left() == 2
    await one.withdraw(["a" * 10])
    await one.make("e" * 10, owner="t_a")
    assert await world.documents_left() == 2


async def test_a_name_that_is_dropped_leaves_room_for_its_owner(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pledges, "OWNER_NAMES_MAX", 1)
    one = world.process("one")
    await one.make("a", owner="t_a")
    world.clock.advance(IDLE_S)
    await one._renew()
    await one.make("b", owner="t_a")
    assert await world.documents_left() == 1
