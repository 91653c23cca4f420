"""Rules of turns: one at a time, each lane in turn, bounded, and nobody who leaves keeps one."""

import asyncio

import pytest

import engines.control.turns as turns_module
from engines.control.turns import ROW_MAX, Lane, Turns
from engines.errors import Throttled

FLOOD: Lane = ("t_flood", False)
URGENT: Lane = ("t_flood", True)
OTHER: Lane = ("t_other", False)
# How long those that could go on have for it.
PATIENCE_S = 2.0


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class Changes:
    """Changes of several lanes; `made` is the order in which they had their turns."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.made: list[Lane] = []
        self.under_way = 0

    def begin(self, lane: Lane) -> asyncio.Task[None]:
        return asyncio.create_task(self._change(lane))

    async def _change(self, lane: Lane) -> None:
        async with self.turns.hold(lane):
            self.made.append(lane)
            self.under_way += 1
            assert self.under_way == 1
            await asyncio.sleep(0)
            self.under_way -= 1


async def test_lanes_take_turns_however_many_wait_in_one() -> None:
    changes = Changes(Turns())
    async with changes.turns.hold(FLOOD):
        tasks = [changes.begin(lane) for lane in (*[FLOOD] * 4, OTHER, OTHER, URGENT)]
        await settle()
    await asyncio.gather(*tasks)
    assert changes.made == [FLOOD, OTHER, URGENT, FLOOD, OTHER, FLOOD, FLOOD]


async def test_a_lane_holds_so_many_and_refuses_the_rest_alone() -> None:
    changes = Changes(Turns(waiting_max=2))
    async with changes.turns.hold(FLOOD):
        waiting = [changes.begin(FLOOD) for _ in range(2)]
        await settle()
        with pytest.raises(Throttled) as refusal:
            await changes.begin(FLOOD)
        assert refusal.value.retry_after_s is not None
        waiting += [changes.begin(lane) for lane in (OTHER, URGENT)]
        await settle()
    await asyncio.gather(*waiting)
    assert len(changes.made) == 4


async def test_whoever_leaves_makes_room_and_keeps_no_turn() -> None:
    changes = Changes(Turns(waiting_max=1))
    async with changes.turns.hold(OTHER):
        gone = changes.begin(FLOOD)
        await settle()
        gone.cancel()
        await settle()
        waiting = changes.begin(FLOOD)
        await settle()
        assert not waiting.done()
    waiting.cancel()  # Just given the turn.
    await settle()
    await asyncio.wait_for(changes.begin(OTHER), 30)
    assert changes.made == [OTHER]


async def test_a_change_that_fails_passes_the_turn_on() -> None:
    changes = Changes(Turns())

    async def fail() -> None:
        async with changes.turns.hold(FLOOD):
            await settle()
            raise RuntimeError

    failing, waiting = asyncio.create_task(fail()), changes.begin(OTHER)
    with pytest.raises(RuntimeError):
        await failing
    await waiting


async def test_a_change_within_a_change_is_a_mistake_and_no_standstill() -> None:
    turns = Turns()
    async with turns.hold(FLOOD):
        with pytest.raises(AssertionError):
            async with turns.hold(OTHER):
                pass


async def test_a_process_whose_queue_never_empties_makes_way_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After so many in a row nobody here has the turn for a while, though some wait; then they go on."""
    changes = Changes(Turns())
    await asyncio.gather(*(changes.begin(FLOOD) for _ in range(3 * ROW_MAX)))
    assert len(changes.made) == 3 * ROW_MAX

    monkeypatch.setattr(turns_module, "BERTH_CHANGES", 1e9)
    monkeypatch.setattr(turns_module, "BERTH_S_MAX", 3_600.0)
    changes = Changes(Turns())
    done, waiting = await asyncio.wait([changes.begin(FLOOD) for _ in range(ROW_MAX + 2)], timeout=PATIENCE_S)
    assert (len(done), len(waiting)) == (ROW_MAX, 2)
    for task in waiting:
        task.cancel()
